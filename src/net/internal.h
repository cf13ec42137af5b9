/* What the files of src/net share; nobody else includes this. */
#ifndef KORV_NET_INTERNAL_H
#define KORV_NET_INTERNAL_H

#include <libssh/callbacks.h>
#include <libssh/libssh.h>
#include <libssh/server.h>
#include <sys/queue.h>

#include "net/net.h"

enum {
  PUMP_ROUNDS = 16,         /* reads of 4096 bytes in one go before others get their turn */
  CHUNK_BYTES = 32768,      /* what one channel writes before the next of its session does */
  FLUSH_BYTES = 262144,     /* what one session writes before the loop turns */
  DRAINED_BYTES = 65536,    /* queued output below which a channel counts as drained */
  INPUT_BYTES = 1400000,    /* more than libssh's window: the peer ignores flow control */
  BARE_LOGIN_PACKETS = 16,  /* what a log-in takes beside its attempts, and a few more */
  STRANGER_BYTES = 131072,  /* more than any log-in takes: whoever sends so much without one does something else */
  MIN_PACKET_BYTES = 1024,  /* a peer that takes less per packet is refused */
  UNREAD_PACKETS = 10000,   /* many times what libssh has to say while a socket is full */
};

struct net_key {
  ssh_key key;
};

typedef TAILQ_HEAD(session_queue, net_session) session_queue;

struct net {
  uv_loop_t *loop;
  void *handle_data;
  bool ending; /* no events any more */
  size_t handles; /* uv handles that are not closed yet; net_free waits for them */
  LIST_HEAD(, net_session) sessions;
  LIST_HEAD(, net_listener) listeners;
  session_queue reports; /* something happened */
  net_session *told;     /* whose report it is now */
  session_queue flushes; /* something is to be written */
};

typedef struct listen_socket {
  uv_poll_t poll;
  struct net_listener *listener;
  int fd;
} listen_socket;

struct net_listener {
  LIST_ENTRY(net_listener) link;
  net *net;
  const net_events *events;
  void *owner;
  net_listen_options options; /* sockets and keys are not kept */
  ssh_bind bind;
  uv_timer_t retry; /* after the file descriptors ran out */
  listen_socket sockets[NET_SOCKETS];
  size_t socket_count, closing_handles;
  size_t sessions, unauthenticated;
  LIST_HEAD(, net_session) strangers; /* who have not logged in yet */
  net_traffic past; /* of the sessions that have gone */
  bool closed; /* to new connections */
};

typedef enum session_state {
  SESSION_RESOLVE, /* client: the name is being looked up */
  SESSION_CONNECT, /* client: TCP */
  SESSION_KEX,     /* key exchange; a server stays here until the log-in */
  SESSION_AUTH,    /* client: keys are being tried */
  SESSION_CHANNEL, /* client: the first channel is being opened */
  SESSION_OPEN,
  SESSION_DEAD,   /* to be told */
  SESSION_CLOSING /* told; uv handles closing */
} session_state;

typedef struct dial dial; /* what only a client has, while it dials; dial.c */

typedef struct net_source {
  unsigned char bytes[8]; /* of IPv6 the half that names a network */
  size_t len;
} net_source;

struct net_session {
  LIST_ENTRY(net_session) all, strangers;
  TAILQ_ENTRY(net_session) report_link, flush_link;
  net *net;
  const net_events *events;
  void *owner, *data;
  net_listener *listener; /* server only; NULL once it is counted out */
  dial *dial;             /* client only */
  ssh_session ssh;
  ssh_event event; /* NULL until the session may be driven by ssh_event_dopoll */
  uv_poll_t poll;
  uv_timer_t timer; /* the log-in's or the dial's deadline */
  int poll_fd;      /* a dup: libssh closes its own fd whenever it likes */
  int poll_mask;
  unsigned closing_handles;
  session_state state;
  bool in_reports, in_flushes, told_open, verified, logged_in, gathering, full_by_a_byte;
  bool farewell; /* a server's: its peer is told why */
  bool terminals; /* a server's: they are allowed */
  unsigned corks; /* that hold back what is sent */
  uint64_t seen_bytes; /* of counter.in_bytes: what a report has been asked for */
  uint64_t keepalive_ms, alive_bytes; /* alive_bytes: of counter.in_bytes, at the last look */
  unsigned silent; /* looks without a byte */
  net_way way;     /* client: of its channels */
  size_t opening;  /* client: channels that are being opened */
  unsigned auth_attempts;
  net_source source; /* server */
  uint64_t exchanges_since_ms, exchanges_since_bytes;
  unsigned exchanges; /* of keys, since then */
  struct ssh_callbacks_struct status;
  struct ssh_counter_struct counter, packets; /* of the socket; of what was in it */
  uint64_t taken_packets; /* of packets.out_packets: when the socket last had room */
  struct ssh_server_callbacks_struct callbacks;
  TAILQ_HEAD(, net_channel) channels;
  size_t channel_count;
  net_error *why; /* why it died; NULL while it lives */
  char *login;
  char address[64];
  char fingerprint[64];
};

typedef struct segment {
  size_t bytes;
  bool whole, error;
} segment;

struct net_channel {
  TAILQ_ENTRY(net_channel) link;
  net_session *session;
  ssh_channel ssh;
  struct ssh_channel_callbacks_struct callbacks;
  void *data;
  wire_buf in, out, segments; /* segments: of `segment`, what of out is due and how it is cut */
  size_t due; /* bytes of out that the segments cover */
  size_t packet_bytes; /* the peer's maximum; 0: not looked up yet */
  size_t widest;       /* that its window has been */
  net_way way;
  char *command;
  net_terminal *terminal;
  unsigned exit_status;
  bool no_color, nudged, interrupted;
  bool behind; /* whole messages wait to be read: what comes meanwhile stays with libssh */
  bool resumed; /* its reader may have kept something while it was paused: it is to be asked, though nothing has come */
  bool opening, has_way, told_open, again, paused, ended, remote_closed, finishing, aborted, status_sent, eof_sent, close_sent, over_mark;
};

/* net.c */
void net_handle_init(net *n, uv_handle_t *h);
void net_handle_gone(net *n); /* from every close callback */
void net_error_set(net_error *err, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));

void net_session_packet_written(net_session *s); /* to libssh */

/* session.c */
net_session *net_session_new(net *n, const net_events *events, void *owner);
bool net_session_watch(net_session *s, net_error *err); /* begins polling libssh's fd */
bool net_session_drive(net_session *s);                 /* into an ssh_event of its own */
void net_session_pump(net_session *s);                  /* reads what there is */
bool net_session_healthy(net_session *s);               /* after every entry into libssh; marks it dead where it is */
const char *net_session_error(const net_session *s);    /* why libssh gave up */
void net_session_mask(net_session *s);                  /* poll for what is wanted now */
void net_session_fail(net_session *s, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));
void net_session_changed(net_session *s); /* something to report */
void net_session_written(net_session *s); /* something to flush */
bool net_session_has_room(net_session *s); /* what was written has left */
void net_session_note_input(net_session *s); /* after calls that may have read: report what came */
void net_session_close_handles(net_session *s);
void net_session_opened(net_session *s); /* logged in, and for a client its first channel is there */
void net_session_deadline(net_session *s, uint64_t ms, uv_timer_cb cb);

/* listen.c */
void net_listener_know(net_session *s); /* it has logged in */
void net_listener_release(net_session *s); /* it is gone */

/* serve.c */
ssh_bind net_serve_bind(net_key **keys, size_t key_count, bool compatible, net_error *err); /* how sessions are set up */
void net_serve_accept(net_listener *l, int fd, const char *address, const net_source *source); /* takes fd over */
void net_serve_before_log_in(net_session *s); /* after each pump: has it logged in? does it go on too long about it? */

/* dial.c */
void net_dial_step(net_session *s);
void net_dial_step_channels(net_session *s); /* those that are being opened */
void net_dial_lost(net_session *s); /* the socket is dead */
void net_dial_cancel(net_session *s); /* stops what dials; the session is closing */
void net_dial_free(net_session *s);

/* channel.c */
net_channel *net_channel_new(net_session *s, ssh_channel ssh);
void net_channel_set_way(net_channel *c, net_way way);
void net_channel_refused(net_channel *c); /* it was never open: channel_closed is to be told */
bool net_channel_report(net_channel *c);
void net_channel_read_rest(net_channel *c); /* of a session that is dead: what a server still said */
size_t net_channel_write(net_channel *c); /* one share, at most about CHUNK_BYTES; returns the bytes written */
bool net_channel_has_packets(const net_channel *c); /* more than one to write */
bool net_channel_is_parting(const net_channel *c); /* it has last words to say: output, what ssh exits with, EOF, CLOSE */
void net_channel_close_out(net_channel *c); /* EOF and close, as far as they can go now */
void net_channel_free(net_channel *c, bool session_gone);
bool net_channel_is_over(const net_channel *c); /* closed both ways, and told */

/* random.c */
void net_random_open(void); /* once for the process: makes OpenSSL's RAND_bytes cheap for a few bytes, where nobody else has replaced it */

/* key.c */
char *net_keyfile_text(ssh_key key, const char *comment); /* to be wiped; NULL: it cannot be written */
void net_keyfile_wipe(char *text);
bool net_public_key_text(ssh_key key, char **blob, char *fingerprint, size_t size);

/* The algorithms, the same for both roles: AEAD only, curve25519, no SHA-1, no compression. */
#define NET_CIPHERS "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com"
#define NET_OLD_CIPHERS ",aes256-ctr" /* with the MACs below, which cover what is encrypted */
#define NET_KEX "curve25519-sha256,curve25519-sha256@libssh.org"
#define NET_MACS "hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com"
#define NET_KEY_TYPES                                                                                                                  \
  "ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,sk-ssh-ed25519@openssh.com,"                                \
  "sk-ecdsa-sha2-nistp256@openssh.com,rsa-sha2-512,rsa-sha2-256"
enum { NET_RSA_BITS = 2048 };

#endif
