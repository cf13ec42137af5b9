/* What the tests of wire share: makes gzip members of every kind, feeds a reader in pieces and writes down what comes out of it.
 *
 * A transcript has one line for each result, such as `line 3:abc`, `gzip 0:` or `gzip error -4`, and at its end `broken` where the
 * reader is.
 */
#ifndef KORV_SPEC_WIRE_FEED_H
#define KORV_SPEC_WIRE_FEED_H

#include "wire/wire.h"

/* A reproducible source of numbers. Not 0. */
typedef uint64_t dice;
size_t dice_below(dice *d, size_t n); /* 0 … n - 1 */

enum { WHOLE = 0, BYTE_BY_BYTE = 1 }; /* any larger value is a seed for random cuts */

/* Feeds the bytes to a reader of its own, and to another that peeks at each message; insists that it comes to the same, and returns the
 * transcript, to be freed by the caller with wire_buf_free. Ends with a zero that
 * is not counted. */
wire_buf feed(wire_codec *z, const wire_limits *limits, const char *bytes, size_t n, uint64_t cuts);

/* Feeds them whole, byte by byte and in random cuts, insists that the transcript is the same, and returns it. */
wire_buf feed_every_way(wire_codec *z, const wire_limits *limits, const char *bytes, size_t n, uint64_t seed);

/* Calls wire_reader_next until it wants more, and adds to the transcript. */
void drain(wire_reader *r, wire_buf *in, wire_buf *transcript);

void put_text(wire_buf *b, const char *text); /* appends a terminated string */

/* The parts of a member, as zlib understands them. Zero is a plain member without text. */
typedef struct member_spec {
  const char *text;
  size_t len;
  int level;    /* 0 … 9, zlib's */
  int strategy; /* zlib's: Z_FIXED, Z_HUFFMAN_ONLY … */
  const char *name;
  const char *comment;
  size_t extra_bytes;
  bool has_extra, header_crc;
} member_spec;

void put_member(wire_buf *b, const member_spec *spec);
void put_plain_member(wire_buf *b, const char *text); /* level 6 */

#endif
