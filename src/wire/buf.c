/* The queue of bytes that all input and output waits in. Appending costs amortised O(1) a byte, consuming nothing.
 *
 * Knows nothing of messages.
 */
#include <stdlib.h>
#include <string.h>

#include "wire/wire.h"

enum { SMALLEST_BYTES = 256 };

void wire_buf_free(wire_buf *b) {
  free(b->base);
  *b = (wire_buf){0};
}

static void move_to_front(wire_buf *b) {
  /* NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): what was consumed had a base */
  memmove(b->base, b->base + b->head, b->len);
  b->head = 0;
}

static bool grow(wire_buf *b, size_t need) {
  size_t cap = b->cap < SMALLEST_BYTES / 2 ? SMALLEST_BYTES : b->cap * 2; /* no buffer is larger than PTRDIFF_MAX */
  if (cap < need) cap = need;
  char *base = realloc(b->base, cap);
  if (!base) return false;
  b->base = base;
  b->cap = cap;
  return true;
}

char *wire_buf_reserve(wire_buf *b, size_t n) {
  if (!b->base || b->cap - b->head - b->len < n) {
    if (n > PTRDIFF_MAX - b->len) return NULL;
    /* Moving len bytes is paid for by the head bytes that were consumed since the last move. */
    bool movable = b->head >= b->len && b->cap >= b->len + n;
    if (b->head > 0) move_to_front(b); /* before growing too: realloc would copy the consumed bytes */
    if (!(b->base && movable) && !grow(b, b->len + n)) return NULL;
  }
  return b->base + b->head + b->len;
}

int wire_buf_append(wire_buf *b, const void *bytes, size_t n) {
  if (n == 0) return WIRE_OK;
  char *to = wire_buf_reserve(b, n);
  if (!to) return WIRE_NOMEM;
  memcpy(to, bytes, n);
  wire_buf_commit(b, n);
  return WIRE_OK;
}

void wire_buf_consume(wire_buf *b, size_t n) {
  b->len -= n;
  b->head = b->len > 0 ? b->head + n : 0;
}

void wire_buf_shrink(wire_buf *b, size_t keep) {
  if (b->len == 0 && b->cap > keep) wire_buf_free(b);
}
