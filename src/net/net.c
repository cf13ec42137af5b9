/* The loop's side: which sessions have something to tell or to write, and the two passes over them that make a turn. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "net/internal.h"

void net_error_set(net_error *err, const char *name, const char *format, ...) {
  va_list args;
  va_start(args, format);
  err->name = name;
  vsnprintf(err->text, sizeof err->text, format, args);
  va_end(args);
}

net *net_new(uv_loop_t *loop, void *handle_data) {
  net *n = ssh_init() == SSH_OK ? calloc(1, sizeof *n) : NULL;
  if (!n) return NULL;
  net_random_open();
  n->loop = loop;
  n->handle_data = handle_data;
  LIST_INIT(&n->sessions);
  LIST_INIT(&n->listeners);
  TAILQ_INIT(&n->reports);
  TAILQ_INIT(&n->flushes);
  return n;
}

static void free_if_over(net *n) {
  if (n->ending && n->handles == 0) free(n);
}

void net_handle_init(net *n, uv_handle_t *h) {
  h->data = n->handle_data;
  n->handles++;
}

void net_handle_gone(net *n) {
  n->handles--;
  free_if_over(n);
}

/* ---- the turn ------------------------------------------------------------------------------------------------------------------- */

void net_session_changed(net_session *s) {
  if (s->in_reports || s->state == SESSION_CLOSING) return;
  s->in_reports = true;
  TAILQ_INSERT_TAIL(&s->net->reports, s, report_link);
}

void net_session_written(net_session *s) {
  if (s->in_flushes || s->state == SESSION_CLOSING) return;
  s->in_flushes = true;
  TAILQ_INSERT_TAIL(&s->net->flushes, s, flush_link);
}

/* Tells the end: first of each channel, then of the session. */
static void report_death(net_session *s) {
  net_channel *c;
  while ((c = TAILQ_FIRST(&s->channels))) {
    net_channel_read_rest(c);
    if (c->told_open || c->data) s->events->channel_closed(s->owner, c); /* a client knows its own before they are open */
    net_channel_free(c, true);
  }
  s->events->session_closed(s->owner, s, s->why);
  net_session_close_handles(s);
}

static void report_session(net_session *s) {
  if (s->state == SESSION_OPEN && !s->told_open) {
    s->told_open = true;
    s->events->session_open(s->owner, s);
  }
  if (s->opening && s->state == SESSION_OPEN) net_dial_step_channels(s); /* here: a write may have read the answer to the last step */
  bool again = false;
  net_channel *c, *next;
  for (c = TAILQ_FIRST(&s->channels); c && s->state == SESSION_OPEN; c = next) {
    next = TAILQ_NEXT(c, link);
    if (net_channel_report(c)) again = true;
    if (net_channel_is_over(c)) net_channel_free(c, false);
  }
  if (s->state == SESSION_DEAD) {
    report_death(s);
    return;
  }
  if (again) net_session_changed(s);
  net_session_note_input(s);
}

/* Takes the next session off a queue, up to the one that was last when the pass began: what a pass causes comes in the next. */
static net_session *take(session_queue *q, net_session **last) {
  net_session *s = *last ? TAILQ_FIRST(q) : NULL;
  if (s == *last) *last = NULL;
  return s;
}

bool net_report(net *n) {
  net_session *last = TAILQ_LAST(&n->reports, session_queue), *s;
  while ((s = take(&n->reports, &last))) {
    TAILQ_REMOVE(&n->reports, s, report_link);
    s->in_reports = false;
    n->told = s;
    report_session(s);
    n->told = NULL;
  }
  return !TAILQ_EMPTY(&n->reports);
}

void net_report_broken_off(net *n) {
  net_session *s = n->told;
  n->told = NULL;
  if (!s) return;
  net_session_fail(s, "ENOMEM", "out of memory for what the peer sent");
  net_session_changed(s); /* where it was its end that could not be told, that is to be told again */
}

/* What is sent until the last cork is off leaves together. */
static void cork(net_session *s, bool on) {
  if (on)
    s->corks++;
  else
    s->corks--;
  if (s->corks == (on ? 1 : 0)) setsockopt(s->poll_fd, IPPROTO_TCP, TCP_CORK, &(int){on}, sizeof(int));
}

static void set_full_by_a_byte(net_session *s, bool on) {
  if (s->full_by_a_byte == on) return;
  s->full_by_a_byte = on;
  setsockopt(s->poll_fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &(int){on}, sizeof(int)); /* 0: the system's own */
}

/* Several packets are about to be written one by one. libssh would send each by itself; but a socket that is corked and told to count
 * as full by its first unsent byte makes it gather them, until it no longer counts as full. Then all leave together. */
static void begin_gathering(net_session *s) {
  s->gathering = true;
  cork(s, true);
}

/* Only now: the first packet libssh may send without asking the socket again, and it takes EAGAIN for the end. */
void net_session_packet_written(net_session *s) {
  if (s->gathering) set_full_by_a_byte(s, true);
}

static void end_gathering(net_session *s) {
  s->gathering = false;
  set_full_by_a_byte(s, false);
  if (s->state == SESSION_OPEN) {
    ssh_blocking_flush(s->ssh, 0);
    net_session_healthy(s);
  }
  cork(s, false);
}

static bool has_packets(const net_session *s) {
  net_channel *c;
  TAILQ_FOREACH(c, &s->channels, link) {
    if (net_channel_has_packets(c)) return true;
  }
  return false;
}

/* Each channel writes its share. Returns the bytes. */
static size_t write_pass(net_session *s) {
  size_t pass = 0;
  if (!net_session_has_room(s)) return 0; /* when it has */
  bool gathered = has_packets(s);
  if (gathered) begin_gathering(s);
  net_channel *c;
  TAILQ_FOREACH(c, &s->channels, link) {
    pass += net_channel_write(c);
    if (s->state != SESSION_OPEN) break;
    if (gathered && pass >= CHUNK_BYTES) { /* enough at once: the others come first in the next pass */
      TAILQ_REMOVE(&s->channels, c, link);
      TAILQ_INSERT_TAIL(&s->channels, c, link);
      break;
    }
  }
  if (gathered) end_gathering(s);
  return pass;
}

/* The channels of a session take turns of CHUNK_BYTES until none can write or the session has had its share. */
static void write_channels(net_session *s) {
  size_t total = 0, pass;
  do {
    pass = write_pass(s);
    total += pass;
  } while (pass > 0 && total < FLUSH_BYTES && s->state == SESSION_OPEN);
  if (pass > 0) net_session_written(s);
}

static void close_channels(net_session *s) {
  net_channel *c;
  TAILQ_FOREACH(c, &s->channels, link) {
    if (s->state == SESSION_OPEN) net_channel_close_out(c);
  }
}

/* A channel's last output, its exit status, EOF and CLOSE are packets each. */
static bool has_parting(const net_session *s) {
  net_channel *c;
  TAILQ_FOREACH(c, &s->channels, link) {
    if (net_channel_is_parting(c)) return true;
  }
  return false;
}

static void flush_session(net_session *s) {
  bool parting = s->state == SESSION_OPEN && has_parting(s);
  if (parting) cork(s, true);
  if (s->state == SESSION_OPEN) write_channels(s);
  close_channels(s);
  if (parting) cork(s, false);
  net_session_note_input(s);
  if (s->state < SESSION_DEAD) net_session_mask(s);
}

bool net_flush(net *n) {
  net_session *last = TAILQ_LAST(&n->flushes, session_queue), *s;
  while ((s = take(&n->flushes, &last))) {
    TAILQ_REMOVE(&n->flushes, s, flush_link);
    s->in_flushes = false;
    flush_session(s);
  }
  return !TAILQ_EMPTY(&n->flushes) || !TAILQ_EMPTY(&n->reports);
}

bool net_pending(const net *n) { return !TAILQ_EMPTY(&n->reports) || !TAILQ_EMPTY(&n->flushes); }

void net_free(net *n) {
  n->ending = true;
  n->handles++; /* keeps n while we walk */
  net_session *s, *next_session;
  for (s = LIST_FIRST(&n->sessions); s; s = next_session) {
    next_session = LIST_NEXT(s, all);
    net_session_fail(s, "ECLOSED", "the program ends");
    if (s->state == SESSION_DEAD) report_death(s);
  }
  net_listener *l, *next_listener;
  for (l = LIST_FIRST(&n->listeners); l; l = next_listener) {
    next_listener = LIST_NEXT(l, link);
    net_listener_close(l);
  }
  net_handle_gone(n);
}
