/* wire's framing, fuzzed: any bytes, lines and gzip members or neither, give the same messages however they are cut. scripts/fuzz builds
 * and runs it. The first byte chooses the limits, the second is the seed of the cuts.
 *
 * Not compared is what the two libraries disagree about: libdeflate, which gets members that came whole, takes some deflate streams that
 * zlib, which gets the others, refuses, such as one with an incomplete code that is never used. */
#include <libdeflate.h>
#include <stdlib.h>
#define ZLIB_CONST
#include <zlib.h>

#include "wire_feed.h"

enum { TEXT_BYTES = 1 << 22 }; /* more than comes of the longest input */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static char text[TEXT_BYTES];

static bool libdeflate_reads(const uint8_t *at, size_t n) {
  static struct libdeflate_decompressor *decompressor;
  if (!decompressor) decompressor = libdeflate_alloc_decompressor();
  size_t used, len;
  return libdeflate_gzip_decompress_ex(decompressor, at, n, text, sizeof text, &used, &len) == LIBDEFLATE_SUCCESS;
}

static bool zlib_reads(const uint8_t *at, size_t n) {
  z_stream s = {.next_in = at, .avail_in = (uInt)n, .next_out = (Bytef *)text, .avail_out = TEXT_BYTES};
  if (inflateInit2(&s, MAX_WBITS + 16) != Z_OK) abort();
  int status = inflate(&s, Z_FINISH);
  inflateEnd(&s);
  return status == Z_STREAM_END;
}

static bool libraries_disagree(const uint8_t *bytes, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if (bytes[i] == 0x1f && libdeflate_reads(bytes + i, n - i) && !zlib_reads(bytes + i, n - i)) return true;
  }
  return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  static const size_t SIZES[] = {1, 10, 100, 1 << 20};
  static wire_codec *codec;
  if (!codec) codec = wire_codec_new();
  if (!codec || n < 2 || libraries_disagree(data + 2, n - 2)) return 0;
  wire_limits limits = {.message_bytes = SIZES[data[0] & 3], .packed_bytes = 18 + SIZES[data[0] >> 2 & 3]};
  wire_buf transcript = feed_every_way(codec, &limits, (const char *)data + 2, n - 2, data[1]);
  wire_buf_free(&transcript);
  return 0;
}
