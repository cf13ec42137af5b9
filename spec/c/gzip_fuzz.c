/* wire's gzip, fuzzed, beside zlib: a deflate stream that zlib reads is read as the same text, and a text that is packed here is unpacked
 * to itself, by zlib and by the reader. A fuzzer does not guess checksums, so the stream gets a header and the trailer that fits; framing_fuzz
 * has those that do not. scripts/fuzz builds and runs it. The first byte chooses the limit, the second is the seed of the cuts. */
#include <libdeflate.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define ZLIB_CONST
#include <zlib.h>

#include "wire_feed.h"

enum { TEXT_BYTES = 1 << 16, ANY_BYTES = 1 << 20, RAW = -MAX_WBITS, MEMBER = MAX_WBITS + 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static wire_codec *codec;
static char text[TEXT_BYTES];

static void insist(bool fine, const char *what) {
  if (fine) return;
  fprintf(stderr, "%s\n", what);
  abort();
}

/* The length of what zlib makes of a stream, in text; SIZE_MAX: it is none. */
static size_t unpack(const void *data, size_t n, int kind, size_t *used) {
  z_stream s = {.next_in = data, .avail_in = (uInt)n, .next_out = (Bytef *)text, .avail_out = TEXT_BYTES};
  insist(inflateInit2(&s, kind) == Z_OK, "inflateInit2");
  int status = inflate(&s, Z_FINISH);
  *used = s.total_in;
  inflateEnd(&s);
  return status == Z_STREAM_END ? s.total_out : SIZE_MAX;
}

/* libdeflate takes some that zlib refuses, such as incomplete codes that are never used; the reader then goes by the library that gets to see
 * the member. False: this is no stream for both. */
static bool both_read(const uint8_t *data, size_t n, size_t *used, size_t *len) {
  static struct libdeflate_decompressor *decompressor;
  static char other[TEXT_BYTES];
  if (!decompressor) decompressor = libdeflate_alloc_decompressor();
  size_t other_used, other_len;
  *len = unpack(data, n, RAW, used);
  if (*len == SIZE_MAX) return false;
  if (libdeflate_deflate_decompress_ex(decompressor, data, n, other, sizeof other, &other_used, &other_len) != LIBDEFLATE_SUCCESS) return false;
  insist(*used == other_used && *len == other_len && memcmp(text, other, *len) == 0, "zlib and libdeflate read the same stream in two ways");
  return true;
}

static void put_number(wire_buf *b, uint32_t value) {
  for (int i = 0; i < 4; i++) wire_buf_append(b, &(char){(char)(value >> 8 * i & 0xff)}, 1);
}

static void put_member_of(wire_buf *b, const uint8_t *stream, size_t n, size_t len) {
  wire_buf_append(b, "\x1f\x8b\x08\0\0\0\0\0\0\xff", 10);
  wire_buf_append(b, stream, n);
  put_number(b, libdeflate_crc32(0, text, len));
  put_number(b, (uint32_t)len);
}

/* Reads the member and insists on what comes: the text of this length, or that it is over the limit. */
static void check_read(const wire_buf *member, size_t limit, size_t len, uint64_t cuts) {
  wire_limits limits = {.message_bytes = limit, .packed_bytes = ANY_BYTES};
  wire_buf transcript = feed_every_way(codec, &limits, wire_buf_at(member), member->len, cuts);
  char head[40];
  int at = len <= limit ? snprintf(head, sizeof head, "gzip %zu:", len) : snprintf(head, sizeof head, "gzip error %d\nbroken\n", WIRE_TOO_LARGE);
  insist(memcmp(wire_buf_at(&transcript), head, (size_t)at) == 0, "not the message that it is");
  insist(len > limit || memcmp(wire_buf_at(&transcript) + at, text, len) == 0, "not the text that it is");
  wire_buf_free(&transcript);
}

static void check_stream(const uint8_t *data, size_t n, size_t limit, uint64_t cuts) {
  size_t used, len;
  if (!both_read(data, n, &used, &len)) return;
  wire_buf member = {0};
  put_member_of(&member, data, used, len);
  check_read(&member, limit, len, cuts);
  wire_buf_free(&member);
}

/* Repeated, so that it is also long enough to be deflated. */
static void check_packing(const uint8_t *data, size_t n, uint64_t cuts) {
  wire_buf plain = {0}, member = {0};
  for (uint64_t i = 0; i <= cuts % 8; i++) wire_buf_append(&plain, data, n);
  insist(wire_gzip(codec, &member, wire_buf_at(&plain), plain.len) == WIRE_OK, "wire_gzip");
  size_t used, len = unpack(wire_buf_at(&member), member.len, MEMBER, &used);
  insist(len == plain.len && used == member.len && memcmp(text, wire_buf_at(&plain), len) == 0, "zlib reads something else");
  check_read(&member, ANY_BYTES, len, cuts);
  wire_buf_free(&plain);
  wire_buf_free(&member);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  static const size_t LIMITS[] = {1, 10, 100, ANY_BYTES};
  if (!codec) codec = wire_codec_new();
  if (!codec || n < 3 || n > TEXT_BYTES / 8) return 0;
  check_stream(data + 2, n - 2, LIMITS[data[0] & 3], data[1]);
  check_packing(data + 2, n - 2, data[1]);
  return 0;
}
