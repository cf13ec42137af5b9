/* net: sockets and SSH. Listens, dials, and carries bytes on channels; makes and reads keys.
 *
 * Knows no Lua and not what a message means. libssh is driven here and nowhere else, by one rule: its callbacks only append and mark;
 * what there is to tell is told from net_report, and what there is to write is written by net_flush, both called once a turn of the
 * loop by whoever owns the loop. So every net_events function but authorize may call anything in this header.
 *
 * Nothing here blocks, but for reading small files (keys, known_hosts). Functions that can fail return false or NULL and fill *err.
 */
#ifndef KORV_NET_H
#define KORV_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "wire/wire.h"

typedef struct net net;                   /* all that belongs to one loop */
typedef struct net_listener net_listener; /* a server's sockets */
typedef struct net_session net_session;   /* one SSH connection, of either role */
typedef struct net_channel net_channel;   /* one channel of it */
typedef struct net_key net_key;           /* a private key */

/* Why something failed: a short stable name for programs and a sentence for people. */
typedef struct net_error {
  const char *name; /* "EADDRINUSE", "EHOSTKEY", "EAUTH", "ETIMEDOUT", …; static */
  char text[320];
} net_error;

/* ---- what comes up --------------------------------------------------------------------------------------------------------- */

typedef struct net_public_key {
  const char *type;        /* "ssh-ed25519" */
  const char *blob;        /* base64, as in authorized_keys */
  const char *fingerprint; /* "SHA256:…" */
} net_public_key;

/* Set for each listener and each dialled session. owner is theirs. Only what the other role is told may be NULL. */
typedef struct net_events {
  /* May this key in, as seen now? Called within libssh, up to twice for each key that a client offers: first when it is offered, then,
   * with verified, when its signature has been checked. May touch no session, but say whether this one may have terminals. */
  bool (*authorize)(void *owner, net_session *s, const net_public_key *key, bool verified);
  void (*refused)(void *owner, const char *address, const char *why);         /* a connection, mostly at a limit; told outside a report */
  void (*listener_closed)(void *owner);                                       /* and the last of its sessions has gone */
  void (*session_open)(void *owner, net_session *s);                          /* logged in */
  void (*session_closed)(void *owner, net_session *s, const net_error *why);  /* the last word on it, also where it never opened */
  void (*channel_open)(void *owner, net_channel *c);                          /* its way in is known */
  bool (*channel_readable)(void *owner, net_channel *c);                      /* bytes, the end, or a pause is over; true: more to do, call again */
  void (*channel_drained)(void *owner, net_channel *c);                       /* output that was over the mark has gone */
  void (*channel_nudged)(void *owner, net_channel *c);                        /* its terminal has another size, or an interrupt came */
  void (*channel_closed)(void *owner, net_channel *c);                        /* the last word on it */
} net_events;

/* ---- the loop ----------------------------------------------------------------------------------------------------------------- */

/* handle_data is put into ->data of every uv handle made here. NULL: no memory. */
net *net_new(uv_loop_t *loop, void *handle_data);

/* Ends everything now: channel_closed and session_closed are told, nothing else. The memory goes once the loop has run the closing
 * callbacks. */
void net_free(net *n);

bool net_report(net *n); /* tells what happened; true: there is more to tell, run another turn without waiting */
void net_report_broken_off(net *n); /* an event has left net_report by longjmp: nobody knows what its session was told of, so that ends */
bool net_flush(net *n);  /* writes what was committed; true as above */
bool net_pending(const net *n); /* is there anything for either? */

/* ---- listening ---------------------------------------------------------------------------------------------------------------- */

enum { NET_SOCKETS = 8 }; /* of one listener, at most */

/* Makes listening sockets, which do not block and are closed on exec, on a host (NULL: all interfaces, IPv6 and IPv4) and a port (0: a free
 * one). They are the caller's. Returns how many; 0: an error. */
size_t net_bind(const char *host, int port, int fds[NET_SOCKETS], net_error *err);
int net_socket_port(int fd);

typedef struct net_listen_options {
  const int *sockets; /* of net_bind, or what another process has handed over; the listener takes them over, also where it fails */
  size_t socket_count; /* 0: it has only what is adopted */
  net_key **keys;      /* host keys, one of a type; they stay the caller's */
  size_t key_count;
  size_t connections;     /* in all; lowered to what the file descriptors allow */
  size_t unauthenticated; /* of these, not logged in yet */
  size_t unauthenticated_source; /* of those, from one address, or one /64 of IPv6 */
  size_t channels;        /* of one connection */
  unsigned ways;          /* that are open, NET_WAY(way) of each */
  bool compatible;        /* older ciphers as well, for clients that have no other */
  unsigned auth_attempts; /* of one connection */
  uint64_t login_ms;      /* from accept to log-in */
  uint64_t keepalive_ms;  /* a peer that is silent so long is asked for a sign of life, and given up after thrice that; 0: never */
} net_listen_options;

net_listener *net_listen(net *n, const net_listen_options *o, const net_events *events, void *owner, net_error *err);
void net_listener_adopt(net_listener *l, int fd);  /* a connected socket, as if it had been accepted here; it is taken over */
bool net_listener_set_keys(net_listener *l, net_key **keys, size_t count, net_error *err); /* host keys, from the next connection on */
void net_listener_leave_sockets(net_listener *l); /* closes them; the sessions, and what is adopted, go on */
void net_listener_stop(net_listener *l);  /* no new connections and channels; listener_closed follows the last session's end */
void net_listener_close(net_listener *l); /* the same, and those that there are end */
typedef void net_visit(net_session *s, void *arg);
void net_listener_visit(net_listener *l, net_visit *visit, void *arg); /* each session that lives; visit may close it */
size_t net_listener_sessions(const net_listener *l);

/* What its sessions have carried, those that have gone included. */
typedef struct net_traffic {
  uint64_t sessions, in_bytes, out_bytes;
} net_traffic;

net_traffic net_listener_traffic(const net_listener *l);

/* ---- dialling ----------------------------------------------------------------------------------------------------------------- */

typedef struct net_dial_options {
  const char *host;
  int port;
  const char *user;
  net_key **keys; /* tried in this order; the session takes them over, also where net_dial fails */
  size_t key_count;
  const char *known_hosts; /* a file, which may not exist yet; NULL: the host's key is not checked */
  bool accept_new;         /* an unknown host's key is added to known_hosts; a changed one never is */
  uint64_t timeout_ms;     /* until the first channel is open */
  uint64_t keepalive_ms;   /* as a listener's */
} net_dial_options;

/* Connects, checks the host, logs in and opens the first channel (subsystem "korv", else direct-tcpip): session_open and channel_open
 * follow, or session_closed with the reason. NULL where it could not even begin. */
net_session *net_dial(net *n, const net_dial_options *o, const net_events *events, void *owner, net_error *err);

/* ---- sessions ------------------------------------------------------------------------------------------------------------------ */

/* Tells session_closed at the next net_report. A server tells its peer `why`. */
void net_session_close(net_session *s, const char *name, const char *why);
void net_session_allow_terminals(net_session *s, bool on); /* a server's, on whose channels none is allowed otherwise */
size_t net_session_channels(const net_session *s);
bool net_session_is_open(const net_session *s);        /* logged in, and not at its end */
const net_error *net_session_why(const net_session *s); /* why it has ended; NULL while it has not */
void net_session_set_data(net_session *s, void *data);
void *net_session_data(const net_session *s);
const char *net_session_address(const net_session *s); /* "127.0.0.1"; of the peer */
const char *net_session_login(const net_session *s);   /* the user name that the peer typed: no identity */
const char *net_session_fingerprint(const net_session *s); /* server: of the key that logged in; client: of the host's key */
void net_session_keep_loop(net_session *s, bool keep);     /* false: this session alone does not keep the loop running */

/* ---- channels ------------------------------------------------------------------------------------------------------------------ */

typedef enum net_way { NET_TCPIP, NET_SUBSYSTEM, NET_EXEC, NET_SHELL } net_way;

#define NET_WAY(way) (1u << (way))

/* What a client has told of the terminal that it sits at. */
typedef struct net_terminal {
  char name[64]; /* "xterm-256color" */
  unsigned columns, rows;
  bool no_color; /* it sent the variable NO_COLOR */
} net_terminal;

/* A client's further channel, of the same way as its first. channel_open follows, or channel_closed where it is refused; what is
 * committed before that is written then. NULL: no memory. */
net_channel *net_channel_open(net_session *s);

net_way net_channel_way(const net_channel *c);
const char *net_channel_command(const net_channel *c);           /* of NET_EXEC; NULL: none */
const net_terminal *net_channel_terminal(const net_channel *c);  /* NULL: none was asked for */
bool net_channel_take_interrupt(net_channel *c); /* a signal that ends programs has come since the last call */
net_session *net_channel_session(const net_channel *c);
void net_channel_set_data(net_channel *c, void *data);
void *net_channel_data(const net_channel *c);

wire_buf *net_channel_in(net_channel *c);       /* what has come; consume from it */
bool net_channel_ended(const net_channel *c);   /* the peer sends no more than is in there */
void net_channel_pause(net_channel *c, bool on); /* stop reading: the peer's window runs full */
bool net_channel_was_refused(const net_channel *c); /* of one that is closed: it never was open */
bool net_channel_paused(const net_channel *c);
bool net_channel_closing(const net_channel *c); /* finished or aborted from our side */

/* Output is appended to this buffer and becomes due by net_channel_commit: `whole` sends all that was appended since the last commit
 * as one SSH data packet (split only where it is longer than the peer's packets), else it runs on with what is there. Asking for the
 * buffer anew drops what was appended and not committed. */
wire_buf *net_channel_out(net_channel *c);
void net_channel_commit(net_channel *c, bool whole);
void net_channel_commit_error(net_channel *c); /* to the peer's stderr */
size_t net_channel_queued(const net_channel *c); /* bytes not handed to the library yet */

void net_channel_finish(net_channel *c); /* once the output is written: EOF and close */
void net_channel_exit_status(net_channel *c, unsigned status); /* what it finishes with, where not with 0 */
void net_channel_abort(net_channel *c);  /* drop the output, close now */

/* An address in text as its bytes, 4 or 16 of them; an IPv4 address in IPv6's clothes is one of IPv4. 0: it is none. */
size_t net_address_bytes(const char *text, unsigned char out[16]);

/* ---- keys ---------------------------------------------------------------------------------------------------------------------- */

net_key *net_key_load(const char *path, const char *passphrase, net_error *err); /* passphrase may be NULL */
enum { NET_COMMENT_BYTES = 1024 };
/* A new ed25519 key, mode 0600; never replaces a file ("EEXIST"). */
net_key *net_key_make(const char *path, const char *comment, net_error *err);
void net_key_free(net_key *k);

typedef struct net_key_text {
  char type[64];
  char fingerprint[96];
} net_key_text;

bool net_key_describe(const net_key *k, net_key_text *out, net_error *err);
bool net_key_public(const net_key *k, char *out, size_t size); /* the public key in base64 */
/* Of a public key as it stands in authorized_keys: true where it is whole and of that type. */
bool net_public_key_describe(const char *type, const char *blob, net_key_text *out, net_error *err);

#endif
