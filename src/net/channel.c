/* One channel: bytes in, bytes out cut into packets as the reader at the other end needs them, and the order in which it closes. */
#include <stdlib.h>
#include <string.h>

#include "net/internal.h"

/* ---- from libssh: only append and mark ------------------------------------------------------------------------------------------- */

static int on_data(ssh_session ssh, ssh_channel channel, void *data, uint32_t len, int is_stderr, void *userdata) {
  (void)ssh, (void)channel;
  net_channel *c = userdata;
  if (len > INPUT_BYTES) {
    net_session_fail(c->session, "EPROTO", "the peer sent data past the channel's window");
    return (int)len;
  }
  /* What we leave libssh keeps, and the window runs full. What we took it would answer by opening the window, also behind a CLOSE of ours,
   * and then the peer may drop the connection. */
  if (c->paused || c->behind || c->finishing || !c->has_way) return 0;
  if (is_stderr) return (int)len; /* nobody reads it */
  if (wire_buf_append(&c->in, data, len) < 0) net_session_fail(c->session, "ENOMEM", "out of memory for a channel's input");
  return (int)len;
}

static void on_eof(ssh_session ssh, ssh_channel channel, void *userdata) {
  (void)ssh, (void)channel;
  ((net_channel *)userdata)->ended = true;
}

static void on_close(ssh_session ssh, ssh_channel channel, void *userdata) {
  (void)ssh, (void)channel;
  net_channel *c = userdata;
  c->ended = c->remote_closed = true;
}

/* ---- life -------------------------------------------------------------------------------------------------------------------------- */

net_channel *net_channel_new(net_session *s, ssh_channel ssh) {
  net_channel *c = calloc(1, sizeof *c);
  if (!c) return NULL;
  c->session = s;
  c->ssh = ssh;
  c->callbacks.userdata = c;
  c->callbacks.channel_data_function = on_data;
  c->callbacks.channel_eof_function = on_eof;
  c->callbacks.channel_close_function = on_close;
  ssh_callbacks_init(&c->callbacks);
  ssh_set_channel_callbacks(ssh, &c->callbacks);
  TAILQ_INSERT_TAIL(&s->channels, c, link);
  s->channel_count++;
  return c;
}

void net_channel_set_way(net_channel *c, net_way way) {
  c->has_way = true;
  c->way = way;
}

void net_channel_refused(net_channel *c) {
  c->told_open = c->remote_closed = c->eof_sent = c->close_sent = true;
}

void net_channel_free(net_channel *c, bool session_gone) {
  if (!session_gone) {
    ssh_remove_channel_callbacks(c->ssh, &c->callbacks); /* the library may keep its channel until the peer has closed it */
    ssh_channel_free(c->ssh);
  }
  if (c->opening) c->session->opening--;
  TAILQ_REMOVE(&c->session->channels, c, link);
  c->session->channel_count--;
  wire_buf_free(&c->in);
  wire_buf_free(&c->out);
  wire_buf_free(&c->segments);
  free(c->command);
  free(c->terminal);
  free(c);
}

bool net_channel_is_over(const net_channel *c) { return c->remote_closed && c->close_sent && !c->told_open; }

/* The library subtracts 10 from the peer's maximum packet size without looking: a peer that announces 10 makes it loop for ever, and
 * there is no getter. In 0.10.6 the field lies 8 bytes behind the window, which has a getter to check the place by; later versions
 * no longer subtract. */
static uint32_t announced_packet_bytes(ssh_channel ssh) {
  enum { WINDOW_AT = 28, PACKET_AT = 36 };
  uint32_t window, bytes;
  if (strncmp(ssh_version(0), "0.10.", 5) != 0) return CHUNK_BYTES;
  memcpy(&window, (const char *)ssh + WINDOW_AT, sizeof window);
  memcpy(&bytes, (const char *)ssh + PACKET_AT, sizeof bytes);
  return window == ssh_channel_window_size(ssh) ? bytes : 0;
}

static bool packets_are_sane(net_channel *c) {
  if (c->packet_bytes) return true;
  uint32_t bytes = announced_packet_bytes(c->ssh);
  if (bytes < MIN_PACKET_BYTES) {
    net_session_fail(c->session, "EPROTO", "the peer announced packets of at most %u bytes; at least %d are needed", bytes, MIN_PACKET_BYTES);
    return false;
  }
  c->packet_bytes = bytes - 10;
  return true;
}

/* ---- up: what the session's report tells of a channel ---------------------------------------------------------------------------- */

/* Fetches what libssh kept while the channel was paused or had no way in yet. A read of more than the first window of 32000 bytes
 * also makes libssh open the window wide, which saves a large first request a round trip. */
static void fetch(net_channel *c) {
  char chunk[33000];
  int got;
  while ((got = ssh_channel_read_timeout(c->ssh, chunk, sizeof chunk, 0, 0)) > 0) {
    if (wire_buf_append(&c->in, chunk, (size_t)got) < 0) {
      net_session_fail(c->session, "ENOMEM", "out of memory for a channel's input");
      return;
    }
  }
}

static void tell_open(net_channel *c) {
  if (!packets_are_sane(c)) return;
  c->told_open = true;
  c->session->events->channel_open(c->session->owner, c);
  if (c->session->state != SESSION_OPEN || c->paused || c->finishing) return;
  fetch(c);
  if (net_session_healthy(c->session)) net_session_written(c->session); /* the window's growth may still be with libssh */
}

static void tell_drained(net_channel *c) {
  bool over = net_channel_queued(c) >= DRAINED_BYTES;
  if (c->over_mark && !over) c->session->events->channel_drained(c->session->owner, c);
  c->over_mark = over;
}

/* A reader that leaves whole messages behind, since others get their turn, is not given more of them than that: the window runs full.
 * Returns whether there is more to read at once. */
static bool hold_back(net_channel *c, bool more) {
  bool was_behind = c->behind;
  c->behind = more && c->in.len > DRAINED_BYTES;
  if (!was_behind || c->behind || c->paused || c->finishing) return more;
  fetch(c);
  if (net_session_healthy(c->session)) net_session_written(c->session);
  return true;
}

static bool read_in(net_channel *c) {
  if ((c->in.len == 0 && !c->ended && !c->resumed) || c->paused || c->finishing) return false;
  c->resumed = false;
  return c->session->events->channel_readable(c->session->owner, c);
}

/* What a server sent before it closed the channel is read first; what a client did is given up with it. */
static bool has_last_words(net_channel *c) {
  if (c->session->listener || c->finishing) return false;
  return read_in(c) || (c->paused && !c->finishing);
}

void net_channel_read_rest(net_channel *c) {
  while (c->told_open && has_last_words(c) && !c->paused) continue;
}

static void tell_nudged(net_channel *c) {
  if (!c->nudged) return;
  c->nudged = false;
  c->session->events->channel_nudged(c->session->owner, c);
}

/* True where the reader has more to do at once. */
bool net_channel_report(net_channel *c) {
  const net_events *events = c->session->events;
  void *owner = c->session->owner;
  if (!c->has_way && !c->remote_closed) return false;
  if (!c->told_open && !c->remote_closed) tell_open(c);
  if (!c->told_open || c->session->state != SESSION_OPEN) {
    if (c->remote_closed) net_channel_abort(c);
    return false;
  }
  if (c->remote_closed) {
    if (has_last_words(c)) return !c->paused;
    c->told_open = false;
    events->channel_closed(owner, c);
    net_channel_abort(c);
    return false;
  }
  tell_nudged(c);
  bool more = hold_back(c, read_in(c));
  tell_drained(c);
  return more;
}

void net_channel_pause(net_channel *c, bool on) {
  if (c->paused == on) return;
  c->paused = on;
  if (on) return;
  c->resumed = true;
  fetch(c);
  if (!net_session_healthy(c->session)) return;
  net_session_changed(c->session);
  net_session_written(c->session); /* the window's growth may still be with libssh */
}

/* ---- down: output ------------------------------------------------------------------------------------------------------------------ */

static void commit(net_channel *c, bool whole, bool error) {
  size_t bytes = c->out.len - c->due;
  if (c->finishing || c->aborted) { /* nobody will read it */
    c->out.len = c->due;
    return;
  }
  if (bytes == 0) return;
  segment *last = c->segments.len ? (segment *)(void *)(wire_buf_at(&c->segments) + c->segments.len - sizeof *last) : NULL;
  if (!whole && last && !last->whole && last->error == error) {
    last->bytes += bytes;
  } else {
    segment next = {bytes, whole, error};
    if (wire_buf_append(&c->segments, &next, sizeof next) < 0) {
      net_session_fail(c->session, "ENOMEM", "out of memory for a channel's output");
      return;
    }
  }
  c->due += bytes;
  if (c->due >= DRAINED_BYTES) c->over_mark = true;
  net_session_written(c->session);
}

void net_channel_commit(net_channel *c, bool whole) { commit(c, whole, false); }
void net_channel_commit_error(net_channel *c) { commit(c, false, true); }

/* How much of the first segment may be written now: a message that fits a packet goes as one or not at all, unless it is longer than the
 * peer's window has ever been, and would wait for ever. */
static size_t writable_bytes(net_channel *c, const segment *first) {
  size_t window = ssh_channel_window_size(c->ssh);
  if (window > c->widest) c->widest = window;
  bool fits = first->bytes <= c->packet_bytes && first->bytes <= c->widest;
  if (first->whole && fits) return window >= first->bytes ? first->bytes : 0;
  size_t bytes = first->bytes < CHUNK_BYTES ? first->bytes : CHUNK_BYTES;
  return bytes < window ? bytes : window;
}

static void written(net_channel *c, segment *first, size_t bytes) {
  wire_buf_consume(&c->out, bytes);
  c->due -= bytes;
  first->bytes -= bytes;
  if (first->bytes == 0) wire_buf_consume(&c->segments, sizeof *first);
  if (c->out.len == 0) wire_buf_shrink(&c->out, CHUNK_BYTES);
  if (c->over_mark && c->due < DRAINED_BYTES) net_session_changed(c->session);
}

bool net_channel_has_packets(const net_channel *c) { return c->segments.len > sizeof(segment); }

/* What libssh has not sent yet is to be sent first, unless it gathers packets on purpose. */
static bool may_write(const net_session *s) { return s->gathering || !(ssh_get_status(s->ssh) & SSH_WRITE_PENDING); }

/* Mostly the peer has closed it, which is about to be reported. Else nothing more can be said at all. */
static void not_written(net_channel *c) {
  if (c->remote_closed)
    net_channel_abort(c);
  else
    net_session_fail(c->session, "EPROTO", "%s", net_session_error(c->session));
}

size_t net_channel_write(net_channel *c) {
  size_t turn = 0;
  while (c->told_open && c->segments.len && turn < CHUNK_BYTES && may_write(c->session)) {
    segment *first = (segment *)(void *)wire_buf_at(&c->segments);
    size_t bytes = writable_bytes(c, first);
    if (bytes == 0) break;
    int rc = (first->error ? ssh_channel_write_stderr : ssh_channel_write)(c->ssh, wire_buf_at(&c->out), (uint32_t)bytes);
    if (!net_session_healthy(c->session)) break;
    if (rc < 0) not_written(c);
    if (rc <= 0) break; /* 0: a key exchange is under way */
    net_session_packet_written(c->session);
    written(c, first, (size_t)rc);
    turn += (size_t)rc;
  }
  return turn;
}

size_t net_channel_queued(const net_channel *c) { return c->due; }

void net_channel_finish(net_channel *c) {
  c->finishing = true;
  net_session_written(c->session);
}

void net_channel_exit_status(net_channel *c, unsigned status) { c->exit_status = status; }

void net_channel_abort(net_channel *c) {
  c->exit_status = 1;
  c->finishing = c->aborted = true;
  wire_buf_free(&c->in);
  wire_buf_free(&c->out);
  wire_buf_free(&c->segments);
  c->due = 0;
  net_session_written(c->session);
}

/* The next step of closing: what ssh exits with, EOF, CLOSE. */
static void close_step(net_channel *c) {
  if (!c->eof_sent && !c->status_sent && c->session->listener && c->way != NET_TCPIP && !c->remote_closed) {
    ssh_channel_request_send_exit_status(c->ssh, (int)c->exit_status);
    c->status_sent = true;
  } else if (!c->eof_sent) {
    ssh_channel_send_eof(c->ssh);
    c->eof_sent = true;
  } else {
    ssh_channel_close(c->ssh);
    c->close_sent = true;
    net_session_changed(c->session);
  }
}

bool net_channel_is_parting(const net_channel *c) {
  return c->finishing && !c->close_sent && !c->opening && (c->segments.len == 0 || ssh_channel_window_size(c->ssh) > 0);
}

/* libssh sends no CLOSE while its socket buffer holds bytes and tells so only by SSH_AGAIN: so each step waits for the one before. */
void net_channel_close_out(net_channel *c) {
  if (!c->finishing || c->opening || c->segments.len) return;
  while (!c->close_sent && !(ssh_get_status(c->session->ssh) & SSH_WRITE_PENDING)) {
    close_step(c);
    ssh_blocking_flush(c->session->ssh, 0); /* an exit status would else stay with libssh, and hold up the next step */
    if (!net_session_healthy(c->session)) return;
  }
}

/* ---- what others ask --------------------------------------------------------------------------------------------------------------- */

net_way net_channel_way(const net_channel *c) { return c->way; }
const char *net_channel_command(const net_channel *c) { return c->command; }
const net_terminal *net_channel_terminal(const net_channel *c) { return c->terminal; }

bool net_channel_take_interrupt(net_channel *c) {
  bool was = c->interrupted;
  c->interrupted = false;
  return was;
}

net_session *net_channel_session(const net_channel *c) { return c->session; }
void net_channel_set_data(net_channel *c, void *data) { c->data = data; }
void *net_channel_data(const net_channel *c) { return c->data; }
wire_buf *net_channel_in(net_channel *c) { return &c->in; }

wire_buf *net_channel_out(net_channel *c) {
  c->out.len = c->due; /* what was appended and never committed was given up */
  return &c->out;
}

bool net_channel_ended(const net_channel *c) { return c->ended && !c->behind; }
bool net_channel_paused(const net_channel *c) { return c->paused; }
bool net_channel_closing(const net_channel *c) { return c->finishing; }
bool net_channel_was_refused(const net_channel *c) { return c->remote_closed && !c->has_way; }
