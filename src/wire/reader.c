/* Finds messages in a stream of bytes: the first byte of each tells whether it is a gzip member or a line.
 *
 * Knows nothing of what is inside a member.
 */
#include <stdlib.h>
#include <string.h>

#include "wire/internal.h"

enum state {
  BOUNDARY, /* at the first byte of a message, or of a line that is not whole yet */
  MEMBER,   /* inside a gzip member */
  SKIPPING, /* inside an over-long line */
  BROKEN,
};

struct wire_reader {
  wire_codec *codec;
  wire_limits limits;
  wire_member *member; /* MEMBER: on loan from the codec */
  size_t scanned;      /* BOUNDARY: bytes at the front of the input that hold no newline; there may be one behind them */
  size_t skip_left;    /* SKIPPING: bytes that may still come before the newline */
  enum state state;
};

enum { AGAIN = WIRE_MESSAGE + 1 }; /* nothing to deliver, but the input may hold more */

wire_reader *wire_reader_new(wire_codec *z, const wire_limits *limits) {
  wire_reader *r = calloc(1, sizeof *r);
  if (!r) return NULL;
  r->codec = z;
  r->limits.message_bytes = smaller(limits->message_bytes, PTRDIFF_MAX); /* so that 1 may be added to it */
  r->limits.packed_bytes = limits->packed_bytes;
  return r;
}

static void end_member(wire_reader *r) {
  if (r->member) wire_member_give(r->codec, r->member);
  r->member = NULL;
}

void wire_reader_free(wire_reader *r) {
  if (!r) return;
  end_member(r);
  free(r);
}

bool wire_reader_broken(const wire_reader *r) {
  return r->state == BROKEN;
}

static int drop_all(wire_reader *r, wire_buf *in) {
  end_member(r);
  r->state = BROKEN;
  wire_buf_consume(in, in->len);
  return WIRE_MORE;
}

/* ---- lines -------------------------------------------------------------------------------------------------------------------- */

static bool is_blank(const char *at, size_t len) {
  while (len > 0 && (*at == ' ' || *at == '\t' || *at == '\r' || *at == '\n')) at++, len--;
  return len == 0;
}

/* What is consumed here and skipped later does not depend on how much of the line is at hand. */
static int refuse_line(wire_reader *r, wire_buf *in, wire_message *m) {
  wire_buf_consume(in, r->limits.message_bytes);
  r->scanned = 0;
  r->skip_left = r->limits.message_bytes;
  r->state = SKIPPING;
  m->encoding = WIRE_LINE;
  return WIRE_TOO_LARGE;
}

static int skip_line(wire_reader *r, wire_buf *in) {
  const char *at = wire_buf_at(in);
  size_t n = smaller(in->len, r->skip_left + 1);
  const char *newline = memchr(at, '\n', n);
  if (newline) {
    r->state = BOUNDARY;
    wire_buf_consume(in, (size_t)(newline - at) + 1);
    return AGAIN;
  }
  if (n > r->skip_left) return drop_all(r, in);
  r->skip_left -= n;
  wire_buf_consume(in, n);
  return WIRE_MORE;
}

/* The line at the front of the input, which stays there. */
static int find_line(wire_reader *r, const wire_buf *in, wire_message *m) {
  const char *at = wire_buf_at(in);
  const char *newline = memchr(at + r->scanned, '\n', in->len - r->scanned);
  size_t end = newline ? (size_t)(newline - at) : in->len;
  size_t len = end > 0 && at[end - 1] == '\r' ? end - 1 : end;
  r->scanned = end;
  *m = (wire_message){at, len, WIRE_LINE};
  if (len > r->limits.message_bytes) return WIRE_TOO_LARGE;
  return newline ? WIRE_MESSAGE : WIRE_MORE;
}

static int read_line(wire_reader *r, wire_buf *in, wire_message *m) {
  int result = find_line(r, in, m);
  if (result == WIRE_TOO_LARGE) return refuse_line(r, in, m);
  if (result == WIRE_MORE) return WIRE_MORE;
  wire_buf_consume(in, r->scanned + 1);
  r->scanned = 0;
  return is_blank(m->text, m->len) ? AGAIN : WIRE_MESSAGE;
}

static int peek_line(wire_reader *r, wire_buf *in, wire_message *m) {
  int result = find_line(r, in, m);
  return result == WIRE_MESSAGE && is_blank(m->text, m->len) ? read_line(r, in, m) : result;
}

/* ---- members ------------------------------------------------------------------------------------------------------------------ */

static bool enter_member(wire_reader *r) {
  r->member = wire_member_take(r->codec, &r->limits);
  if (r->member) r->state = MEMBER;
  return r->member;
}

static int go_on_with_member(wire_reader *r, wire_buf *in, wire_message *m) {
  int result = wire_member_feed(r->member, in);
  if (result == WIRE_MORE) return WIRE_MORE;
  m->encoding = WIRE_GZIP;
  if (result == WIRE_MESSAGE) wire_member_deliver(r->codec, r->member, m);
  end_member(r);
  r->state = BOUNDARY;
  if (result != WIRE_MESSAGE && result != WIRE_BAD_CRC) drop_all(r, in);
  return result;
}

static int read_member(wire_reader *r, wire_buf *in, wire_message *m) {
  int result = wire_member_whole(r->codec, &r->limits, in, m);
  if (result == WIRE_MESSAGE) return result;
  m->encoding = WIRE_GZIP;
  if (result == WIRE_NOMEM || !enter_member(r)) {
    drop_all(r, in);
    return WIRE_NOMEM;
  }
  return go_on_with_member(r, in, m);
}

/* What is read of it is the member's to keep. */
static int peek_member(wire_reader *r, wire_buf *in, wire_message *m) {
  m->encoding = WIRE_GZIP;
  if (r->state != MEMBER && !enter_member(r)) return WIRE_NOMEM;
  int result = wire_member_feed(r->member, in);
  if (result == WIRE_MESSAGE) *m = wire_member_message(r->member);
  return result;
}

/* ---- either ------------------------------------------------------------------------------------------------------------------- */

static bool at_member(const wire_buf *in) {
  return (unsigned char)*wire_buf_at(in) == WIRE_GZIP_FIRST;
}

static int step(wire_reader *r, wire_buf *in, wire_message *m) {
  switch (r->state) {
  case BOUNDARY: return at_member(in) ? read_member(r, in, m) : read_line(r, in, m);
  case MEMBER: return go_on_with_member(r, in, m);
  case SKIPPING: return skip_line(r, in);
  case BROKEN: break;
  }
  return drop_all(r, in);
}

/* Whether anything may come of what is at hand: input, or a member that was peeked at to its end. */
static bool has_some(const wire_reader *r, const wire_buf *in) { return in->len > 0 || (r->member && wire_member_ended(r->member)); }

int wire_reader_next(wire_reader *r, wire_buf *in, wire_message *m) {
  int result = AGAIN;
  while (result == AGAIN) result = has_some(r, in) ? step(r, in, m) : WIRE_MORE;
  return result;
}

static int peek_step(wire_reader *r, wire_buf *in, wire_message *m) {
  if (r->state == MEMBER || (r->state == BOUNDARY && at_member(in))) return peek_member(r, in, m);
  return r->state == BOUNDARY ? peek_line(r, in, m) : step(r, in, m); /* where a line is skipped there is nothing to take */
}

int wire_reader_peek(wire_reader *r, wire_buf *in, wire_message *m) {
  int result = AGAIN;
  while (result == AGAIN) result = has_some(r, in) ? peek_step(r, in, m) : WIRE_MORE;
  return result;
}

int wire_reader_end(wire_reader *r, wire_buf *in, wire_message *m) {
  bool in_line = r->state == BOUNDARY && in->len > 0 && !is_blank(wire_buf_at(in), in->len);
  if (r->state != MEMBER && !in_line) return WIRE_MORE;
  m->encoding = r->state == MEMBER || at_member(in) ? WIRE_GZIP : WIRE_LINE;
  drop_all(r, in);
  return WIRE_TRUNCATED;
}

const char *wire_strerror(int error) {
  switch (error) {
  case WIRE_OK: return "no error";
  case WIRE_NOMEM: return "out of memory";
  case WIRE_TOO_LARGE: return "the message is too large";
  case WIRE_BAD_GZIP: return "the gzip data can't be read";
  case WIRE_BAD_CRC: return "the gzip checksum does not fit the data";
  case WIRE_TRUNCATED: return "the input ends inside a message";
  }
  return "unknown error";
}
