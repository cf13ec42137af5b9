/* wire, fuzzed: any bytes, cut in any way, give the same messages, and none that is not there. Not built by default:
 *
 *   clang -std=c11 -D_GNU_SOURCE -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -Isrc \
 *     spec/c/wire_fuzz.c spec/c/wire_feed.c src/wire/[a-z]*.c -ldeflate -lz -o wire_fuzz && ./wire_fuzz -max_len=2000
 *
 * The first byte chooses the limits and how the rest is taken: as it is, or as a raw deflate stream that gets a header and the right
 * trailer, for a fuzzer does not guess checksums. The second byte is the seed of the cuts.
 */
#include <libdeflate.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define ZLIB_CONST
#include <zlib.h>

#include "wire_feed.h"

enum { TEXT_BYTES = 1 << 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static wire_codec *codec;

static void fail(const char *what) {
  fprintf(stderr, "%s\n", what);
  abort();
}

static wire_buf feed_cut(const wire_limits *limits, const wire_buf *in, uint64_t cuts) {
  return feed(codec, limits, wire_buf_at(in), in->len, cuts);
}

static void compare(const wire_limits *limits, const wire_buf *in, uint64_t seed) {
  uint64_t cuts[] = {WHOLE, BYTE_BY_BYTE, 2 + seed};
  wire_buf got[3];
  for (int i = 0; i < 3; i++) got[i] = feed_cut(limits, in, cuts[i]);
  for (int i = 1; i < 3; i++) {
    if (got[i].len == got[0].len && memcmp(got[i].base, got[0].base, got[0].len) == 0) continue;
    fprintf(stderr, "whole:\n%s\ncut:\n%s\n", got[0].base, got[i].base);
    fail("the cuts made a difference");
  }
  for (int i = 0; i < 3; i++) wire_buf_free(&got[i]);
}

static size_t zlib_inflates(const uint8_t *data, size_t n, size_t *used) {
  static Bytef text[TEXT_BYTES];
  z_stream s = {.next_in = data, .avail_in = (uInt)n, .next_out = text, .avail_out = TEXT_BYTES};
  if (inflateInit2(&s, -MAX_WBITS) != Z_OK) fail("inflateInit2");
  int status = inflate(&s, Z_FINISH);
  *used = s.total_in;
  inflateEnd(&s);
  return status == Z_STREAM_END ? s.total_out : SIZE_MAX;
}

static void put_number(wire_buf *b, uint32_t value) {
  for (int i = 0; i < 4; i++) wire_buf_append(b, &(char){(char)(value >> 8 * i & 0xff)}, 1);
}

/* False where the data is no whole deflate stream for both libraries. libdeflate takes some that zlib refuses, such as incomplete
 * codes that are never used; the reader then goes by the library that gets to see the member. */
static bool put_wrapped(wire_buf *b, const uint8_t *data, size_t n) {
  static struct libdeflate_decompressor *decompressor;
  static char text[TEXT_BYTES];
  if (!decompressor) decompressor = libdeflate_alloc_decompressor();
  size_t used, len, zlib_used, zlib_len = zlib_inflates(data, n, &zlib_used);
  if (libdeflate_deflate_decompress_ex(decompressor, data, n, text, sizeof text, &used, &len) != LIBDEFLATE_SUCCESS) return false;
  if (zlib_len == SIZE_MAX) return false;
  if (zlib_used != used || zlib_len != len) fail("zlib and libdeflate read the same stream in two ways");
  wire_buf_append(b, "\x1f\x8b\x08\0\0\0\0\0\0\xff", 10);
  wire_buf_append(b, data, used);
  put_number(b, libdeflate_crc32(0, text, len));
  put_number(b, (uint32_t)len);
  wire_buf_append(b, data + used, n - used);
  return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  static const size_t SIZES[] = {1, 10, 100, 1 << 20};
  if (!codec) codec = wire_codec_new();
  if (!codec || n < 3) return 0;
  wire_limits limits = {.message_bytes = SIZES[data[0] & 3], .packed_bytes = 18 + SIZES[data[0] >> 2 & 3]};
  wire_buf in = {0};
  if (!(data[0] & 0x10 && put_wrapped(&in, data + 2, n - 2))) wire_buf_append(&in, data + 2, n - 2);
  compare(&limits, &in, data[1]);
  wire_buf_free(&in);
  return 0;
}
