/* See wire_feed.h. Members are made with zlib alone, so that nothing of what is tested takes part. */
#include "wire_feed.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { EXACT_BELOW_BYTES = 4096 };

static void insist(bool fine, const char *what) {
  if (fine) return;
  fprintf(stderr, "wire_feed: %s\n", what);
  abort();
}

size_t dice_below(dice *d, size_t n) {
  *d ^= *d << 13;
  *d ^= *d >> 7;
  *d ^= *d << 17;
  return (size_t)(*d >> 11) % n;
}

static void append(wire_buf *b, const void *bytes, size_t n) {
  insist(wire_buf_append(b, bytes, n) == WIRE_OK, "no memory");
}

void put_text(wire_buf *b, const char *text) {
  append(b, text, strlen(text));
}

/* Small inputs get a block of just their size, so that AddressSanitizer sees a read past their end. */
static void append_exactly(wire_buf *b, const char *bytes, size_t n) {
  if (b->len + n > EXACT_BELOW_BYTES) {
    append(b, bytes, n);
    return;
  }
  char *base = malloc(b->len + n);
  insist(base != NULL, "no memory");
  if (b->len > 0) memcpy(base, wire_buf_at(b), b->len);
  memcpy(base + b->len, bytes, n);
  size_t len = b->len + n;
  wire_buf_free(b);
  *b = (wire_buf){base, 0, len, len};
  /* cppcheck-suppress memleak ; it is b's */
}

static void note(wire_buf *transcript, const char *format, ...) {
  char line[64];
  va_list args;
  va_start(args, format);
  vsnprintf(line, sizeof line, format, args);
  va_end(args);
  put_text(transcript, line);
}

static void note_result(wire_buf *transcript, int result, const wire_message *m) {
  const char *encoding = m->encoding == WIRE_GZIP ? "gzip" : "line";
  if (result < 0) {
    note(transcript, "%s error %d\n", encoding, result);
    return;
  }
  insist(result == WIRE_MESSAGE, "a result that wire.h does not know");
  insist(m->text, "a message without a text");
  note(transcript, "%s %zu:", encoding, m->len);
  append(transcript, m->text, m->len);
  put_text(transcript, "\n");
}

void drain(wire_reader *r, wire_buf *in, wire_buf *transcript) {
  wire_message m;
  for (int result; (result = wire_reader_next(r, in, &m)) != WIRE_MORE;) note_result(transcript, result, &m);
}

static void note_peeked(wire_reader *r, wire_buf *in, wire_buf *transcript) {
  wire_message m;
  int result = wire_reader_peek(r, in, &m);
  if (result != WIRE_MORE) note_result(transcript, result, &m);
}

/* As drain; each message is peeked at before it is taken, and a second time if the dice say so. */
static void drain_peeking(wire_reader *r, wire_buf *in, wire_buf *transcript, dice *d) {
  for (;;) {
    wire_message m;
    wire_buf peeked = {0}, again = {0}, taken = {0};
    note_peeked(r, in, &peeked);
    bool twice = dice_below(d, 2) == 0;
    if (twice) note_peeked(r, in, &again);
    int result = wire_reader_next(r, in, &m);
    if (result != WIRE_MORE) note_result(&taken, result, &m);
    insist(taken.len == peeked.len && (taken.len == 0 || memcmp(taken.base, peeked.base, taken.len) == 0), "the peek was wrong");
    insist(!twice || (again.len == peeked.len && (again.len == 0 || memcmp(again.base, peeked.base, again.len) == 0)), "peeks differ");
    if (taken.len > 0) append(transcript, taken.base, taken.len);
    wire_buf_free(&peeked);
    wire_buf_free(&again);
    wire_buf_free(&taken);
    if (result == WIRE_MORE) return;
  }
}

static size_t next_cut(uint64_t cuts, dice *d, size_t left) {
  if (cuts == WHOLE) return left;
  if (cuts == BYTE_BY_BYTE) return 1;
  size_t most = dice_below(d, 4) == 0 ? left : 12;
  return 1 + dice_below(d, most < left ? most : left);
}

static wire_buf feed_once(wire_codec *z, const wire_limits *limits, const char *bytes, size_t n, uint64_t cuts, bool peeking) {
  wire_buf transcript = {0}, in = {0};
  wire_message m;
  dice d = cuts * 0x9e3779b97f4a7c15u | 1;
  wire_reader *r = wire_reader_new(z, limits);
  insist(r, "no memory");
  for (size_t cut; n > 0; bytes += cut, n -= cut) {
    cut = next_cut(cuts, &d, n);
    append_exactly(&in, bytes, cut);
    if (peeking)
      drain_peeking(r, &in, &transcript, &d);
    else
      drain(r, &in, &transcript);
  }
  int result = wire_reader_end(r, &in, &m);
  if (result != WIRE_MORE) note_result(&transcript, result, &m);
  insist(wire_reader_end(r, &in, &m) == WIRE_MORE, "the end is told twice");
  if (wire_reader_broken(r)) put_text(&transcript, "broken\n");
  append(&transcript, "", 1);
  transcript.len--;
  wire_reader_free(r);
  wire_buf_free(&in);
  return transcript;
}

wire_buf feed(wire_codec *z, const wire_limits *limits, const char *bytes, size_t n, uint64_t cuts) {
  wire_buf plain = feed_once(z, limits, bytes, n, cuts, false), peeking = feed_once(z, limits, bytes, n, cuts, true);
  bool same = plain.len == peeking.len && memcmp(plain.base, peeking.base, plain.len) == 0;
  if (!same) fprintf(stderr, "plain:\n%s\npeeking:\n%s\n", plain.base, peeking.base);
  insist(same, "peeking made a difference");
  wire_buf_free(&peeking);
  return plain;
}

wire_buf feed_every_way(wire_codec *z, const wire_limits *limits, const char *bytes, size_t n, uint64_t seed) {
  wire_buf whole = feed(z, limits, bytes, n, WHOLE);
  uint64_t cuts[] = {BYTE_BY_BYTE, 2 + seed};
  for (int i = 0; i < 2; i++) {
    wire_buf cut = feed(z, limits, bytes, n, cuts[i]);
    bool same = cut.len == whole.len && memcmp(cut.base, whole.base, whole.len) == 0;
    if (!same) fprintf(stderr, "whole:\n%s\ncut:\n%s\n", whole.base, cut.base);
    insist(same, "the cuts made a difference");
    wire_buf_free(&cut);
  }
  return whole;
}

/* zlib's headers are for writing and for reading. */
static Bytef *unconst(const void *p) {
  return (Bytef *)(uintptr_t)p; /* NOLINT(performance-no-int-to-ptr): -Wcast-qual allows no other way */
}

void put_member(wire_buf *b, const member_spec *spec) {
  static char zeros[UINT16_MAX];
  z_stream s = {.next_in = unconst(spec->text), .avail_in = (uInt)spec->len};
  gz_header header = {.extra = spec->has_extra ? unconst(zeros) : NULL,
                      .extra_len = (uInt)spec->extra_bytes,
                      .name = unconst(spec->name),
                      .comment = unconst(spec->comment),
                      .hcrc = spec->header_crc};
  insist(deflateInit2(&s, spec->level, Z_DEFLATED, MAX_WBITS + 16, 8, spec->strategy) == Z_OK, "deflateInit2");
  insist(deflateSetHeader(&s, &header) == Z_OK, "deflateSetHeader");
  size_t room = deflateBound(&s, (uLong)spec->len);
  char *to = wire_buf_reserve(b, room);
  insist(to, "no memory");
  s.next_out = (Bytef *)to;
  s.avail_out = (uInt)room;
  insist(deflate(&s, Z_FINISH) == Z_STREAM_END, "deflate");
  wire_buf_commit(b, room - s.avail_out);
  deflateEnd(&s);
}

void put_plain_member(wire_buf *b, const char *text) {
  put_member(b, &(member_spec){.text = text, .len = strlen(text), .level = 6});
}
