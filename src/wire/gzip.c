/* The codec as a whole, and the writing of gzip members.
 *
 * A short message goes out as a stored block: to deflate it would take many times as long and save next to nothing.
 */
#include <stdlib.h>
#include <string.h>

#include "wire/internal.h"

enum { DEFLATE_LEVEL = 1, STORED_BELOW_BYTES = 512, HEADER_BYTES = 10, BLOCK_BYTES = 5, TRAILER_BYTES = 8 };

wire_codec *wire_codec_new(void) {
  wire_codec *z = calloc(1, sizeof *z);
  if (!z) return NULL;
  z->deflater = libdeflate_alloc_compressor(DEFLATE_LEVEL);
  z->inflater = libdeflate_alloc_decompressor();
  if (z->deflater && z->inflater) return z;
  wire_codec_free(z);
  return NULL;
}

void wire_codec_trim(wire_codec *z) {
  wire_member_free_idle(z);
  wire_buf_free(&z->scratch);
}

void wire_codec_free(wire_codec *z) {
  if (!z) return;
  wire_codec_trim(z);
  libdeflate_free_decompressor(z->inflater);
  libdeflate_free_compressor(z->deflater);
  free(z);
}

/* Puts the low n bytes of value, the lowest first, and returns where the next bytes go. */
static char *put(char *to, uint32_t value, int n) {
  for (int i = 0; i < n; i++) *to++ = (char)(value >> 8 * i & 0xff);
  return to;
}

static int write_stored(wire_buf *out, const char *text, size_t len) {
  static const char header[HEADER_BYTES] = {WIRE_GZIP_FIRST, (char)0x8b, 8, 0, 0, 0, 0, 0, 0, (char)0xff}; /* no name, no time */
  size_t packed = HEADER_BYTES + BLOCK_BYTES + len + TRAILER_BYTES;
  char *to = wire_buf_reserve(out, packed);
  if (!to) return WIRE_NOMEM;
  memcpy(to, header, HEADER_BYTES);
  to = put(to + HEADER_BYTES, 1, 1); /* the last block, stored */
  to = put(to, (uint32_t)len, 2);
  to = put(to, ~(uint32_t)len, 2);
  if (len > 0) memcpy(to, text, len);
  to = put(to + len, libdeflate_crc32(0, text, len), 4);
  put(to, (uint32_t)len, 4);
  wire_buf_commit(out, packed);
  return WIRE_OK;
}

static int write_deflated(wire_codec *z, wire_buf *out, const char *text, size_t len) {
  size_t room = libdeflate_gzip_compress_bound(z->deflater, len);
  char *to = wire_buf_reserve(out, room);
  if (!to) return WIRE_NOMEM;
  wire_buf_commit(out, libdeflate_gzip_compress(z->deflater, text, len, to, room));
  return WIRE_OK;
}

int wire_gzip(wire_codec *z, wire_buf *out, const char *text, size_t len) {
  return len < STORED_BELOW_BYTES ? write_stored(out, text, len) : write_deflated(z, out, text, len);
}
