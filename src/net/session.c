/* A session of either role: how libssh is driven from the loop, how it dies and how it is torn down. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/internal.h"

static net_error out_of_memory = {"ENOMEM", "out of memory"};

net_session *net_session_new(net *n, const net_events *events, void *owner) {
  net_session *s = calloc(1, sizeof *s);
  if (!s) return NULL;
  s->net = n;
  s->events = events;
  s->owner = owner;
  s->poll_fd = -1;
  TAILQ_INIT(&s->channels);
  uv_timer_init(n->loop, &s->timer);
  net_handle_init(n, (uv_handle_t *)&s->timer);
  LIST_INSERT_HEAD(&n->sessions, s, all);
  return s;
}

void net_session_deadline(net_session *s, uint64_t ms, uv_timer_cb cb) { uv_timer_start(&s->timer, cb, ms, 0); }

/* ---- death ---------------------------------------------------------------------------------------------------------------------- */

void net_session_fail(net_session *s, const char *name, const char *format, ...) {
  if (s->state >= SESSION_DEAD) return;
  s->state = SESSION_DEAD;
  s->why = malloc(sizeof *s->why);
  if (s->why) {
    va_list args;
    va_start(args, format);
    s->why->name = name;
    vsnprintf(s->why->text, sizeof s->why->text, format, args);
    va_end(args);
  } else {
    s->why = &out_of_memory;
  }
  net_session_changed(s);
}

void net_session_close(net_session *s, const char *name, const char *why) {
  if (s->state < SESSION_DEAD) s->farewell = s->listener && s->event;
  net_session_fail(s, name, "%s", why);
}

/* SSH's own last message. What the socket does not take at once is lost: the peer had its time to read. libssh holds back what it has to
 * say until a poll has told that it may write; but what a poll reads would go to channels of ours that are gone. */
static void say_farewell(net_session *s) {
  ssh_set_fd_towrite(s->ssh);
  ssh_session_set_disconnect_message(s->ssh, s->why->text);
  ssh_disconnect(s->ssh);
}

static void session_free(net_session *s) {
  if (s->event) {
    ssh_event_remove_session(s->event, s->ssh);
    ssh_event_free(s->event);
  }
  if (s->farewell && ssh_get_fd(s->ssh) >= 0) say_farewell(s);
  if (s->ssh) ssh_free(s->ssh);
  if (s->poll_fd >= 0) close(s->poll_fd);
  net_channel *c;
  while ((c = TAILQ_FIRST(&s->channels))) net_channel_free(c, true);
  if (s->listener) net_listener_release(s);
  if (s->dial) net_dial_free(s);
  if (s->why != &out_of_memory) free(s->why);
  free(s->login);
  free(s);
}

static void on_handle_closed(net_session *s) {
  net *n = s->net;
  if (--s->closing_handles == 0) {
    LIST_REMOVE(s, all);
    session_free(s);
  }
  net_handle_gone(n);
}

static void on_poll_closed(uv_handle_t *h) { on_handle_closed((net_session *)((char *)h - offsetof(net_session, poll))); }
static void on_timer_closed(uv_handle_t *h) { on_handle_closed((net_session *)((char *)h - offsetof(net_session, timer))); }

void net_session_close_handles(net_session *s) {
  if (s->state == SESSION_CLOSING) return;
  s->state = SESSION_CLOSING;
  if (s->in_reports) TAILQ_REMOVE(&s->net->reports, s, report_link);
  if (s->in_flushes) TAILQ_REMOVE(&s->net->flushes, s, flush_link);
  s->in_reports = s->in_flushes = false;
  if (s->dial) net_dial_cancel(s);
  s->closing_handles = 1;
  if (s->poll_fd >= 0) {
    s->closing_handles++;
    uv_close((uv_handle_t *)&s->poll, on_poll_closed);
  }
  uv_close((uv_handle_t *)&s->timer, on_timer_closed);
}

/* ---- life ----------------------------------------------------------------------------------------------------------------------- */

static const char closed[] = "the peer closed the connection";

/* The library's last words, where they say more than that the socket was closed. Where it has closed it over what came, they may be of
 * a write behind that, and an errno that nobody has set: 0, as it was before the library was entered. */
const char *net_session_error(const net_session *s) {
  const char *what = ssh_get_error(s->ssh);
  if (!what || !*what || strstr(what, "disconnected")) return closed;
  if (!strstr(what, "Socket error: Success")) return what;
  if (s->state != SESSION_KEX) return "what came was no SSH";
  return "the handshake failed: what came was no SSH, or no algorithm was in common with " NET_KEX "; " NET_CIPHERS;
}

static unsigned char *put_number(unsigned char *to, size_t n) {
  for (int shift = 24; shift >= 0; shift -= 8) *to++ = (unsigned char)(n >> shift);
  return to;
}

/* A client's algorithms do not suit, and libssh has closed its socket, perhaps with its own list unwritten, so that the client would not
 * know why. There is another descriptor of that socket, and nothing is encrypted yet: it is told in the clear (RFC 4253, 6 and 11.1). */
static void refuse_in_the_clear(const net_session *s, const char *why) {
  enum { DISCONNECT = 1, KEY_EXCHANGE_FAILED = 3, LEAST_PADDING = 4, BLOCK = 8 };
  unsigned char packet[1024] = {0}, *at = packet + 5; /* behind the lengths of the packet and of its padding */
  size_t length = strnlen(why, sizeof packet - 64);
  *at++ = DISCONNECT;
  at = put_number(put_number(at, KEY_EXCHANGE_FAILED), length);
  at = put_number((unsigned char *)memcpy(at, why, length) + length, 0); /* in no language */
  size_t filled = (size_t)(at - packet), whole = (filled + LEAST_PADDING + BLOCK - 1) / BLOCK * BLOCK;
  packet[4] = (unsigned char)(whole - filled);
  put_number(packet, whole - 4);
  send(s->poll_fd, packet, whole, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static bool may_be_told(const net_session *s) {
  return s->listener && s->state == SESSION_KEX && s->poll_fd >= 0 && s->counter.out_bytes > 0 && !ssh_get_kex_algo(s->ssh);
}

bool net_session_healthy(net_session *s) {
  if (s->state >= SESSION_DEAD) return false;
  if (ssh_get_fd(s->ssh) >= 0 && !(ssh_get_status(s->ssh) & (SSH_CLOSED | SSH_CLOSED_ERROR))) return true;
  const char *why = net_session_error(s);
  if (why != closed && may_be_told(s)) refuse_in_the_clear(s, why);
  net_session_fail(s, "ECONNRESET", "%s", why);
  return false;
}

bool net_session_has_room(net_session *s) {
  if (ssh_get_status(s->ssh) & SSH_WRITE_PENDING) return false;
  s->taken_packets = s->packets.out_packets;
  return true;
}

/* Requests of SSH's own the library answers by itself, and keeps without a bound what the peer does not read. */
static bool is_read(net_session *s) {
  if (net_session_has_room(s) || s->packets.out_packets - s->taken_packets <= UNREAD_PACKETS) return true;
  net_session_fail(s, "EPROTO", "the peer does not read what it asks for");
  return false;
}

void net_session_pump(net_session *s) {
  int rounds = s->listener && !s->verified ? 1 : PUMP_ROUNDS; /* a stranger may make a few bytes expensive */
  for (int round = 0; round < rounds; round++) {
    uint64_t before = s->counter.in_bytes;
    errno = 0; /* see net_session_error */
    int rc = ssh_event_dopoll(s->event, 0);
    if (!net_session_healthy(s)) return;
    if (rc == SSH_ERROR) {
      net_session_fail(s, "ECONNRESET", "%s", net_session_error(s));
      return;
    }
    if (s->counter.in_bytes - before != 4096) break; /* a short read: the socket is empty */
  }
  if (!is_read(s)) return;
  if (s->listener && s->state == SESSION_KEX) net_serve_before_log_in(s);
  s->seen_bytes = s->counter.in_bytes;
  if (s->state == SESSION_KEX) { /* nobody is to be told of anything yet: a log-in takes no turns */
    net_session_mask(s);
    return;
  }
  net_session_changed(s);
  net_session_written(s); /* a window may have grown, which no callback tells */
}

void net_session_note_input(net_session *s) {
  if (s->counter.in_bytes == s->seen_bytes) return;
  s->seen_bytes = s->counter.in_bytes;
  net_session_changed(s);
  net_session_written(s); /* as above */
}

/* libuv tells a reset or a hang-up as EBADF; libssh, asked once more, may have read why. */
static void on_poll(uv_poll_t *h, int status, int events) {
  (void)events;
  net_session *s = (net_session *)((char *)h - offsetof(net_session, poll));
  if (s->state >= SESSION_DEAD) return;
  if (s->event)
    net_session_pump(s);
  else
    net_dial_step(s);
  if (status < 0 && s->event)
    net_session_fail(s, "ECONNRESET", "the connection was reset");
  else if (status < 0)
    net_dial_lost(s);
}

void net_session_mask(net_session *s) {
  if (s->poll_fd < 0) return;
  int mask = UV_READABLE | ((ssh_get_status(s->ssh) & SSH_WRITE_PENDING) ? UV_WRITABLE : 0);
  if (mask == s->poll_mask) return; /* each start is two system calls */
  s->poll_mask = mask;
  uv_poll_start(&s->poll, mask, on_poll);
}

bool net_session_watch(net_session *s, net_error *err) {
  s->poll_fd = fcntl(ssh_get_fd(s->ssh), F_DUPFD_CLOEXEC, 0);
  if (s->poll_fd < 0) {
    net_error_set(err, "EMFILE", "cannot watch the connection: %s", strerror(errno));
    return false;
  }
  int rc = uv_poll_init(s->net->loop, &s->poll, s->poll_fd);
  if (rc < 0) {
    close(s->poll_fd);
    s->poll_fd = -1;
    net_error_set(err, uv_err_name(rc), "cannot watch the connection: %s", uv_strerror(rc));
    return false;
  }
  net_handle_init(s->net, (uv_handle_t *)&s->poll);
  net_session_mask(s);
  return true;
}

bool net_session_drive(net_session *s) {
  s->event = ssh_event_new();
  if (s->event && ssh_event_add_session(s->event, s->ssh) == SSH_OK) return true;
  net_session_fail(s, "ENOMEM", "out of memory for the session");
  return false;
}

/* ---- signs of life ----------------------------------------------------------------------------------------------------------------- */

/* libssh sends a keepalive on every second call only: the other takes note of the reply to the one before. */
static void ask_for_life(net_session *s) {
  ssh_send_keepalive(s->ssh);
  if (net_session_healthy(s)) ssh_send_keepalive(s->ssh);
  if (net_session_healthy(s)) net_session_written(s);
  net_session_note_input(s);
}

static void on_keepalive(uv_timer_t *timer) {
  net_session *s = (net_session *)((char *)timer - offsetof(net_session, timer));
  if (s->state != SESSION_OPEN) return;
  s->silent = s->counter.in_bytes == s->alive_bytes ? s->silent + 1 : 0;
  s->alive_bytes = s->counter.in_bytes;
  if (s->silent >= 2)
    net_session_fail(s, "ETIMEDOUT", "the peer has given no sign of life for %.3g s", (double)s->keepalive_ms * 2 / 1000);
  else if (s->silent == 1 && !(ssh_get_status(s->ssh) & SSH_WRITE_PENDING))
    ask_for_life(s);
}

void net_session_opened(net_session *s) {
  s->state = SESSION_OPEN;
  s->alive_bytes = s->counter.in_bytes;
  uv_timer_stop(&s->timer);
  if (!s->keepalive_ms) return;
  uv_timer_start(&s->timer, on_keepalive, s->keepalive_ms, s->keepalive_ms);
  uv_unref((uv_handle_t *)&s->timer);
}

/* ---- what others ask ---------------------------------------------------------------------------------------------------------------- */

void net_session_allow_terminals(net_session *s, bool on) { s->terminals = on; }
void net_session_set_data(net_session *s, void *data) { s->data = data; }
void *net_session_data(const net_session *s) { return s->data; }
const char *net_session_address(const net_session *s) { return s->address; }
size_t net_session_channels(const net_session *s) { return s->channel_count; }
bool net_session_is_open(const net_session *s) { return s->state == SESSION_OPEN; }
const net_error *net_session_why(const net_session *s) { return s->why; }
const char *net_session_login(const net_session *s) { return s->login ? s->login : ""; }
const char *net_session_fingerprint(const net_session *s) { return s->fingerprint; }

void net_session_keep_loop(net_session *s, bool keep) {
  if (s->poll_fd < 0) return;
  if (keep)
    uv_ref((uv_handle_t *)&s->poll);
  else
    uv_unref((uv_handle_t *)&s->poll);
}
