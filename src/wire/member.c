/* The reading of one gzip member (RFC 1952). Where all of it is at hand libdeflate reads it in one go, which is fast but can't tell an
 * incomplete member from a broken one. So whatever libdeflate won't take goes through the parser below, with zlib for the deflate
 * stream, and each byte goes in once. The header and the trailer are parsed here, not by zlib, so that a checksum that does not fit
 * is told from a stream that can't be read.
 *
 * Knows nothing of lines, nor of what comes before and after the member.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "wire/internal.h"

enum {
  HEAD_BYTES = 10,
  TRAILER_BYTES = 8,
  SCRATCH_BYTES = 64 * 1024,        /* where libdeflate starts guessing the size of a text */
  SCRATCH_KEEP_BYTES = 1024 * 1024, /* of the one scratch of a codec, between messages */
  TEXT_STEP_BYTES = 4 * 1024,
  TEXT_KEEP_BYTES = 64 * 1024, /* of each idle member */
  IDLE_MAX = 16,
};

/* ---- the whole member at once ------------------------------------------------------------------------------------------------- */

/* libdeflate also takes some streams that zlib refuses, such as those that describe codes which no encoder makes. That does no harm:
 * their checksums fit. */

/* Makes the scratch at least twice as large, at first SCRATCH_BYTES. */
static bool widen(wire_buf *scratch) {
  return wire_buf_reserve(scratch, scratch->cap < SCRATCH_BYTES ? SCRATCH_BYTES : scratch->cap * 2);
}

int wire_member_whole(wire_codec *z, const wire_limits *limits, wire_buf *in, wire_message *m) {
  wire_buf *scratch = &z->scratch;
  size_t n = smaller(in->len, limits->packed_bytes);
  if (n < HEAD_BYTES + TRAILER_BYTES) return WIRE_MORE;
  wire_buf_shrink(scratch, SCRATCH_KEEP_BYTES);
  if (scratch->cap < SCRATCH_BYTES && !widen(scratch)) return WIRE_NOMEM;
  for (;;) {
    size_t packed, len, room = smaller(scratch->cap, limits->message_bytes);
    enum libdeflate_result result = libdeflate_gzip_decompress_ex(z->inflater, wire_buf_at(in), n, scratch->base, room, &packed, &len);
    if (result == LIBDEFLATE_SUCCESS) {
      wire_buf_consume(in, packed);
      *m = (wire_message){scratch->base, len, WIRE_GZIP};
      return WIRE_MESSAGE;
    }
    if (result != LIBDEFLATE_INSUFFICIENT_SPACE || room == limits->message_bytes) break;
    if (!widen(scratch)) return WIRE_NOMEM;
  }
  wire_buf_shrink(scratch, SCRATCH_BYTES);
  return WIRE_MORE;
}

/* ---- a member in pieces ------------------------------------------------------------------------------------------------------- */

/* The parts in their order. What stands in flag_of is there only where the header has that flag. */
enum part { HEAD, EXTRA_SIZE, EXTRA, NAME, COMMENT, HEAD_CRC, BODY, TRAILER };
static const unsigned char flag_of[] = {[EXTRA_SIZE] = 4, [EXTRA] = 4, [NAME] = 8, [COMMENT] = 16, [HEAD_CRC] = 2, [TRAILER] = 0};

struct wire_member {
  wire_member *next; /* idle */
  const wire_limits *limits;
  z_stream zlib;
  wire_buf text;
  size_t packed_bytes; /* taken so far */
  int result;          /* WIRE_MORE until the member ends */
  enum part part;
  unsigned flags;
  size_t have;                    /* bytes in held, */
  unsigned char held[HEAD_BYTES]; /* a part of fixed size that came in pieces */
  size_t extra_left;
};

static void enter(wire_member *member, enum part part) {
  while (flag_of[part] & ~member->flags) part++; /* NOLINT(clang-analyzer-core.UndefinedBinaryOperatorResult): TRAILER has no flag */
  member->part = part;
  member->have = 0;
}

/* Every read_PART takes bytes at the front of these n (at least 1), goes on to the next part where its own ends, and returns how many
 * bytes it took. */

static size_t hold(wire_member *member, const char *at, size_t n, size_t want) {
  size_t taken = smaller(n, want - member->have);
  memcpy(member->held + member->have, at, taken);
  member->have += taken;
  return taken;
}

static size_t read_head(wire_member *member, const char *at, size_t n) {
  static const unsigned char magic[] = {WIRE_GZIP_FIRST, 0x8b, Z_DEFLATED};
  enum { FLAGS = sizeof magic, RESERVED = 0xe0 };
  size_t taken = hold(member, at, n, HEAD_BYTES);
  member->flags = member->have > FLAGS ? member->held[FLAGS] : 0;
  if (memcmp(member->held, magic, smaller(member->have, sizeof magic)) != 0 || member->flags & RESERVED)
    member->result = WIRE_BAD_GZIP;
  else if (member->have == HEAD_BYTES)
    enter(member, EXTRA_SIZE);
  return taken;
}

static size_t read_extra_size(wire_member *member, const char *at, size_t n) {
  size_t taken = hold(member, at, n, 2);
  if (member->have < 2) return taken;
  member->extra_left = (size_t)(member->held[0] | member->held[1] << 8);
  enter(member, EXTRA);
  return taken;
}

static size_t read_extra(wire_member *member, size_t n) {
  size_t taken = smaller(n, member->extra_left);
  member->extra_left -= taken;
  if (member->extra_left == 0) enter(member, NAME);
  return taken;
}

static size_t read_string(wire_member *member, const char *at, size_t n) {
  const char *nul = memchr(at, 0, n);
  if (!nul) return n;
  enter(member, member->part + 1);
  return (size_t)(nul - at) + 1;
}

/* Not compared, as libdeflate doesn't either: a message must not depend on how it was cut into packets. */
static size_t read_head_crc(wire_member *member, const char *at, size_t n) {
  size_t taken = hold(member, at, n, 2);
  if (member->have == 2) enter(member, BODY);
  return taken;
}

/* The room goes one byte past the limit, which tells a text of just that size from a longer one. */
static int inflate_more(wire_member *member) {
  wire_buf *text = &member->text;
  size_t left = member->limits->message_bytes + 1 - text->len;
  char *to = wire_buf_reserve(text, smaller(left, TEXT_STEP_BYTES));
  if (!to) return Z_MEM_ERROR;
  uInt room = (uInt)smaller(smaller(text->cap - text->len, left), UINT_MAX);
  member->zlib.next_out = (Bytef *)to;
  member->zlib.avail_out = room;
  int status = inflate(&member->zlib, Z_NO_FLUSH);
  wire_buf_commit(text, room - member->zlib.avail_out);
  return status;
}

static size_t read_body(wire_member *member, char *at, size_t n) {
  uInt given = (uInt)smaller(n, UINT_MAX);
  member->zlib.next_in = (Bytef *)at;
  member->zlib.avail_in = given;
  int status;
  do status = inflate_more(member);
  while (status == Z_OK && member->zlib.avail_out == 0);
  if (status == Z_MEM_ERROR)
    member->result = WIRE_NOMEM;
  else if (member->text.len > member->limits->message_bytes)
    member->result = WIRE_TOO_LARGE;
  else if (status == Z_STREAM_END)
    enter(member, TRAILER);
  else if (status != Z_OK && status != Z_BUF_ERROR)
    member->result = WIRE_BAD_GZIP; /* Z_BUF_ERROR: no more input */
  return given - member->zlib.avail_in;
}

static uint32_t little_endian(const unsigned char *at) {
  return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static size_t read_trailer(wire_member *member, const char *at, size_t n) {
  size_t taken = hold(member, at, n, TRAILER_BYTES);
  if (member->have < TRAILER_BYTES) return taken;
  const wire_buf *text = &member->text;
  bool fits = little_endian(member->held) == libdeflate_crc32(0, wire_buf_at(text), text->len) &&
              little_endian(member->held + 4) == (uint32_t)text->len;
  member->result = fits ? WIRE_MESSAGE : WIRE_BAD_CRC;
  return taken;
}

static size_t read_part(wire_member *member, char *at, size_t n) {
  switch (member->part) {
  case HEAD: return read_head(member, at, n);
  case EXTRA_SIZE: return read_extra_size(member, at, n);
  case EXTRA: return read_extra(member, n);
  case NAME:
  case COMMENT: return read_string(member, at, n);
  case HEAD_CRC: return read_head_crc(member, at, n);
  case BODY: return read_body(member, at, n);
  case TRAILER: break;
  }
  return read_trailer(member, at, n);
}

int wire_member_feed(wire_member *member, wire_buf *in) {
  while (member->result == WIRE_MORE && in->len > 0) {
    size_t n = smaller(in->len, member->limits->packed_bytes - member->packed_bytes);
    if (n == 0) return WIRE_TOO_LARGE;
    size_t taken = read_part(member, wire_buf_at(in), n);
    wire_buf_consume(in, taken);
    member->packed_bytes += taken;
  }
  return member->result;
}

/* ---- the loan ----------------------------------------------------------------------------------------------------------------- */

static wire_member *make_member(void) {
  wire_member *member = calloc(1, sizeof *member);
  if (!member) return NULL;
  if (inflateInit2(&member->zlib, -MAX_WBITS) == Z_OK) return member; /* negative: no header, no trailer */
  free(member);
  return NULL;
}

static void free_member(wire_member *member) {
  inflateEnd(&member->zlib);
  wire_buf_free(&member->text);
  free(member);
}

wire_member *wire_member_take(wire_codec *z, const wire_limits *limits) {
  wire_member *member = z->idle;
  if (!member) {
    member = make_member();
    if (!member) return NULL;
  } else {
    z->idle = member->next;
    z->idle_count--;
    inflateReset(&member->zlib);
  }
  member->limits = limits;
  member->packed_bytes = 0;
  member->result = WIRE_MORE;
  member->flags = 0;
  enter(member, HEAD);
  return member;
}

void wire_member_give(wire_codec *z, wire_member *member) {
  if (z->idle_count == IDLE_MAX) {
    free_member(member);
    return;
  }
  wire_buf_consume(&member->text, member->text.len);
  wire_buf_shrink(&member->text, TEXT_KEEP_BYTES);
  member->next = z->idle;
  z->idle = member;
  z->idle_count++;
}

void wire_member_free_idle(wire_codec *z) {
  while (z->idle) {
    wire_member *member = z->idle;
    z->idle = member->next;
    free_member(member);
  }
  z->idle_count = 0;
}

bool wire_member_ended(const wire_member *member) { return member->result != WIRE_MORE; }

wire_message wire_member_message(const wire_member *member) {
  return (wire_message){wire_buf_at(&member->text), member->text.len, WIRE_GZIP};
}

void wire_member_deliver(wire_codec *z, wire_member *member, wire_message *m) {
  wire_buf text = member->text;
  member->text = z->scratch;
  *m = (wire_message){wire_buf_at(&text), text.len, WIRE_GZIP};
  text.len = 0;
  z->scratch = text;
}
