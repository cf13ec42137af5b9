/* message: see message.h. */
#include "message.h"

#include <libdeflate.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_FIRST_BYTES = 64 * 1024, TEXT_MOST_BYTES = 64 * 1024 * 1024 };

static struct libdeflate_compressor *compressor;
static struct libdeflate_decompressor *decompressor;
static struct bytes inflated;

void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(1);
}

char *bytes_room(struct bytes *b, size_t n) {
  if (n > b->capacity - b->length) {
    size_t capacity = b->capacity ? b->capacity : 4096;
    while (capacity - b->length < n) {
      if (capacity > SIZE_MAX / 2) fail("out of memory");
      capacity *= 2;
    }
    char *at = realloc(b->at, capacity);
    if (!at) fail("out of memory");
    b->at = at;
    b->capacity = capacity;
  }
  return b->at + b->length;
}

void bytes_add(struct bytes *b, const void *from, size_t n) {
  memcpy(bytes_room(b, n), from, n);
  b->length += n;
}

void bytes_drop(struct bytes *b, size_t n) {
  b->length -= n;
  if (n && b->length) memmove(b->at, b->at + n, b->length);
}

void bytes_free(struct bytes *b) {
  free(b->at);
  *b = (struct bytes){0};
}

struct text text_after(struct text in, const char *key) {
  size_t key_length = strlen(key);
  const char *end = in.at + in.length;
  const char *from = memmem(in.at, in.length, key, key_length);
  if (!from) return (struct text){in.at, 0};
  const char *to = from += key_length;
  while (to < end && *to != ',' && *to != '}') to++;
  return (struct text){from, (size_t)(to - from)};
}

bool text_holds(struct text in, const char *what) {
  return memmem(in.at, in.length, what, strlen(what)) != NULL;
}

void packer_open(int level) {
  compressor = libdeflate_alloc_compressor(level);
  decompressor = libdeflate_alloc_decompressor();
  if (!compressor || !decompressor) fail("libdeflate: no compressor of level %d", level);
  bytes_room(&inflated, TEXT_FIRST_BYTES);
}

void packer_close(void) {
  libdeflate_free_compressor(compressor);
  libdeflate_free_decompressor(decompressor);
  bytes_free(&inflated);
}

size_t line_read(const char *at, size_t length, struct text *text) {
  const char *newline = length ? memchr(at, '\n', length) : NULL;
  if (!newline) return 0;
  *text = (struct text){at, (size_t)(newline - at)};
  return text->length + 1;
}

size_t member_read(const char *at, size_t length, struct text *text) {
  size_t taken = 0;
  size_t made = 0;
  enum libdeflate_result result;
  if (!length) return 0;
  while ((result = libdeflate_gzip_decompress_ex(decompressor, at, length, inflated.at, inflated.capacity, &taken, &made)) ==
             LIBDEFLATE_INSUFFICIENT_SPACE &&
         inflated.capacity < TEXT_MOST_BYTES)
    bytes_room(&inflated, inflated.capacity * 2);
  if (result != LIBDEFLATE_SUCCESS) return 0;
  *text = (struct text){inflated.at, made};
  return taken;
}

void member_write(struct bytes *out, const char *text, size_t length) {
  size_t most = libdeflate_gzip_compress_bound(compressor, length);
  size_t made = libdeflate_gzip_compress(compressor, text, length, bytes_room(out, most), most);
  if (!made) fail("libdeflate: a message of %zu bytes can't be packed", length);
  out->length += made;
}
