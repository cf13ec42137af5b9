/* wire: what it takes from the heap, when it gives it back, and what holds when there is none.
 *
 * The linker sends malloc and its kin of wire through the functions at the top (--wrap), and zlib and libdeflate are told to take their
 * memory there too, so that every byte is counted and every allocation can be made to fail.
 */
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <libdeflate.h>
#include <zlib.h>

#include "wire_feed.h"

static struct {
  size_t calls, live_bytes, peak_bytes;
  size_t fail_at; /* the call that finds no memory; 0: none */
  size_t streams; /* of zlib, made so far */
} heap;

/* NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp): the names are what the linker makes them */
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t each);
void *__real_realloc(void *p, size_t n);
void __real_free(void *p);
int __real_inflateInit2_(z_stream *s, int bits, const char *version, int size);

void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t each);
void *__wrap_realloc(void *p, size_t n);
void __wrap_free(void *p);
int __wrap_inflateInit2_(z_stream *s, int bits, const char *version, int size);
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

static bool refuse(void) {
  return ++heap.calls == heap.fail_at;
}

static void *count(void *p) {
  heap.live_bytes += malloc_usable_size(p);
  if (heap.live_bytes > heap.peak_bytes) heap.peak_bytes = heap.live_bytes;
  return p;
}

void *__wrap_malloc(size_t n) {
  return refuse() ? NULL : count(__real_malloc(n));
}

void *__wrap_calloc(size_t n, size_t each) {
  return refuse() ? NULL : count(__real_calloc(n, each));
}

void *__wrap_realloc(void *p, size_t n) {
  if (refuse()) return NULL;
  heap.live_bytes -= malloc_usable_size(p);
  return count(__real_realloc(p, n));
}

void __wrap_free(void *p) {
  heap.live_bytes -= malloc_usable_size(p);
  __real_free(p);
}

static void *take(void *opaque, uInt n, uInt each) {
  (void)opaque;
  return malloc((size_t)n * each);
}

static void give(void *opaque, void *p) {
  (void)opaque;
  free(p);
}

int __wrap_inflateInit2_(z_stream *s, int bits, const char *version, int size) {
  s->zalloc = take;
  s->zfree = give;
  heap.streams++;
  return __real_inflateInit2_(s, bits, version, size);
}

static void *libdeflate_malloc(size_t n) {
  return malloc(n);
}

static void libdeflate_free(void *p) {
  free(p);
}

/* ---- warm --------------------------------------------------------------------------------------------------------------------- */

static const wire_limits LIMITS = {.message_bytes = 1 << 24, .packed_bytes = 1 << 24};
static const char TEXT[] = "{\"id\":1,\"verb\":\"GET\",\"resource\":\"/hello\"}";

static void expect_message(wire_reader *r, wire_buf *in, size_t len) {
  wire_message m;
  assert_int_equal(wire_reader_next(r, in, &m), WIRE_MESSAGE);
  assert_int_equal(m.len, len);
}

/* A line, a member at once, a member in two pieces. */
static void read_small_messages(wire_reader *r, wire_buf *in, const wire_buf *member) {
  wire_message m;
  put_text(in, TEXT);
  put_text(in, "\n");
  expect_message(r, in, strlen(TEXT));
  wire_buf_append(in, member->base, member->len);
  expect_message(r, in, strlen(TEXT));
  wire_buf_append(in, member->base, 15);
  assert_int_equal(wire_reader_next(r, in, &m), WIRE_MORE);
  wire_buf_append(in, member->base + 15, member->len - 15);
  expect_message(r, in, strlen(TEXT));
}

static void small_messages_take_no_memory(void **state) {
  (void)state;
  wire_codec *z = wire_codec_new();
  wire_reader *r = wire_reader_new(z, &LIMITS);
  wire_buf in = {0}, out = {0}, member = {0};
  put_plain_member(&member, TEXT);
  size_t calls = 0;
  for (int round = 0; round < 100; round++) {
    if (round == 2) calls = heap.calls;
    read_small_messages(r, &in, &member);
    assert_int_equal(wire_gzip(z, &out, TEXT, strlen(TEXT)), WIRE_OK);
    wire_buf_consume(&out, out.len);
  }
  assert_int_equal(heap.calls, calls);
  wire_buf_free(&in);
  wire_buf_free(&out);
  wire_buf_free(&member);
  wire_reader_free(r);
  wire_codec_free(z);
}

static void only_a_member_in_pieces_needs_a_stream(void **state) {
  (void)state;
  wire_codec *z = wire_codec_new();
  wire_reader *r = wire_reader_new(z, &LIMITS);
  wire_buf in = {0};
  wire_message m;
  size_t before = heap.streams;
  put_plain_member(&in, TEXT);
  put_plain_member(&in, TEXT);
  expect_message(r, &in, strlen(TEXT));
  expect_message(r, &in, strlen(TEXT));
  assert_int_equal(heap.streams, before);
  put_plain_member(&in, TEXT);
  in.len--;
  assert_int_equal(wire_reader_next(r, &in, &m), WIRE_MORE);
  assert_int_equal(heap.streams, before + 1);
  wire_buf_free(&in);
  wire_reader_free(r);
  wire_codec_free(z);
}

/* ---- given back --------------------------------------------------------------------------------------------------------------- */

enum { CHANNELS = 1000, SMALL_BYTES = 128, STREAM_BYTES = 200000, STREAMS_KEPT = 16 }; /* a stream: zlib's state and two buffers */

static void idle_channels_hold_nothing(void **state) {
  (void)state;
  wire_codec *z = wire_codec_new();
  wire_reader *readers[CHANNELS];
  wire_buf in = {0}, member = {0};
  wire_message m;
  put_plain_member(&member, TEXT);
  size_t before = heap.live_bytes;
  for (int i = 0; i < CHANNELS; i++) readers[i] = wire_reader_new(z, &LIMITS);
  size_t idle = heap.live_bytes - before;
  assert_true(idle <= (size_t)CHANNELS * SMALL_BYTES);
  for (int i = 0; i < CHANNELS; i++) { /* one after the other: one stream serves them all */
    wire_buf_append(&in, member.base, member.len - 1);
    assert_int_equal(wire_reader_next(readers[i], &in, &m), WIRE_MORE);
    wire_buf_append(&in, member.base + member.len - 1, 1);
    expect_message(readers[i], &in, strlen(TEXT));
  }
  assert_true(heap.live_bytes - before <= idle + STREAM_BYTES);
  for (int i = 0; i < CHANNELS; i++) { /* all at once */
    wire_buf_append(&in, member.base, member.len - 1);
    assert_int_equal(wire_reader_next(readers[i], &in, &m), WIRE_MORE);
  }
  assert_true(heap.live_bytes - before > idle + (size_t)CHANNELS * SMALL_BYTES);
  for (int i = 0; i < CHANNELS / 2; i++) {
    wire_buf_append(&in, member.base + member.len - 1, 1);
    expect_message(readers[i], &in, strlen(TEXT));
  }
  for (int i = CHANNELS / 2; i < CHANNELS; i++) assert_int_equal(wire_reader_end(readers[i], &in, &m), WIRE_TRUNCATED);
  assert_true(heap.live_bytes - before <= idle + (size_t)STREAMS_KEPT * STREAM_BYTES);
  for (int i = 0; i < CHANNELS; i++) wire_reader_free(readers[i]);
  wire_buf_free(&in);
  wire_buf_free(&member);
  wire_codec_free(z);
}

static void a_large_message_leaves_nothing(void **state) {
  (void)state;
  enum { LARGE = 8 << 20 };
  wire_codec *z = wire_codec_new();
  wire_reader *r = wire_reader_new(z, &LIMITS);
  wire_buf in = {0}, large = {0}, small = {0};
  char *text = calloc(1, LARGE);
  put_member(&large, &(member_spec){.text = text, .len = LARGE, .level = 6});
  free(text);
  put_plain_member(&small, TEXT);
  size_t before = heap.live_bytes;
  for (size_t first = 0; first <= 1000; first += 1000) { /* at once, and in two pieces */
    wire_message m;
    wire_buf_append(&in, large.base, first);
    assert_int_equal(wire_reader_next(r, &in, &m), WIRE_MORE);
    wire_buf_append(&in, large.base + first, large.len - first);
    expect_message(r, &in, LARGE);
    assert_true(heap.live_bytes - before >= LARGE);
    wire_buf_append(&in, small.base, small.len);
    expect_message(r, &in, strlen(TEXT));
    assert_true(heap.live_bytes - before < LARGE / 16);
  }
  wire_buf_free(&in);
  wire_buf_free(&large);
  wire_buf_free(&small);
  wire_reader_free(r);
  wire_codec_free(z);
}

/* ---- bombs -------------------------------------------------------------------------------------------------------------------- */

/* A member of 1 GiB of zeros: a mebibyte of them, deflated so that it stands alone, over and over. */
static wire_buf make_bomb(void) {
  static Bytef zeros[1 << 20], block[1 << 12];
  z_stream s = {.next_in = zeros, .avail_in = sizeof zeros, .next_out = block, .avail_out = sizeof block};
  assert_int_equal(deflateInit2(&s, 9, Z_DEFLATED, -MAX_WBITS, 9, Z_DEFAULT_STRATEGY), Z_OK);
  assert_int_equal(deflate(&s, Z_FULL_FLUSH), Z_OK);
  deflateEnd(&s);
  wire_buf bomb = {0};
  uLong crc = 0, each = crc32(0, zeros, sizeof zeros);
  wire_buf_append(&bomb, "\x1f\x8b\x08\0\0\0\0\0\0\xff", 10);
  for (int i = 0; i < 1024; i++) {
    wire_buf_append(&bomb, block, s.total_out);
    crc = crc32_combine(crc, each, sizeof zeros);
  }
  wire_buf_append(&bomb, "\x03\0", 2);
  for (int i = 0; i < 4; i++) wire_buf_append(&bomb, &(char){(char)(crc >> 8 * i & 0xff)}, 1);
  wire_buf_append(&bomb, "\0\0\0\x40", 4);
  return bomb;
}

static void check_bomb(const wire_buf *bomb, size_t piece, size_t message_bytes) {
  enum { SOME_BYTES = 1 << 20 };
  const wire_limits limits = {message_bytes, bomb->len};
  wire_codec *z = wire_codec_new();
  wire_reader *r = wire_reader_new(z, &limits);
  wire_buf in = {0};
  wire_message m;
  int result = WIRE_MORE;
  wire_buf_reserve(&in, bomb->len);
  size_t before = heap.peak_bytes = heap.live_bytes;
  for (size_t at = 0; result == WIRE_MORE && at < bomb->len; at += piece) {
    wire_buf_append(&in, bomb->base + at, piece < bomb->len - at ? piece : bomb->len - at);
    result = wire_reader_next(r, &in, &m);
  }
  assert_int_equal(result, WIRE_TOO_LARGE);
  assert_true(wire_reader_broken(r));
  assert_true(heap.peak_bytes - before <= 2 * message_bytes + SOME_BYTES);
  assert_true(heap.live_bytes - before <= SOME_BYTES);
  wire_reader_free(r);
  wire_buf_free(&in);
  wire_codec_free(z);
}

static void a_bomb_stays_within_the_limits(void **state) {
  (void)state;
  wire_buf bomb = make_bomb();
  assert_true(bomb.len < 3 << 19);
  for (size_t limit = 1 << 16; limit <= 1 << 24; limit <<= 4) {
    check_bomb(&bomb, bomb.len, limit);
    check_bomb(&bomb, 32768, limit);
  }
  wire_buf_free(&bomb);
}

static void a_bomb_fits_a_limit_that_is_large_enough(void **state) {
  (void)state;
  const wire_limits limits = {.message_bytes = (size_t)1 << 30, .packed_bytes = 1 << 24};
  wire_buf bomb = make_bomb();
  wire_codec *z = wire_codec_new();
  wire_reader *r = wire_reader_new(z, &limits);
  expect_message(r, &bomb, limits.message_bytes);
  wire_reader_free(r);
  wire_codec_free(z);
  wire_buf_free(&bomb);
}

/* ---- no memory ---------------------------------------------------------------------------------------------------------------- */

static bool append_all(wire_buf *to, const wire_buf *from) {
  wire_buf was = *to;
  if (wire_buf_append(to, from->base, from->len) == WIRE_OK) return true;
  assert_int_equal(to->len, was.len);
  return false;
}

/* Reads two members, the second of them in two pieces; false: no memory. */
static bool try_reading(wire_codec *z, const wire_buf *member, size_t len) {
  wire_reader *r = wire_reader_new(z, &LIMITS);
  if (!r) return false;
  wire_buf in = {0}, half = {.base = member->base, .len = member->len / 2}, rest = {member->base + half.len, 0, member->len - half.len, 0};
  wire_message m = {NULL, 0, WIRE_LINE};
  int result = WIRE_NOMEM;
  if (!append_all(&in, member)) goto done;
  result = wire_reader_next(r, &in, &m);
  if (result != WIRE_MESSAGE || !append_all(&in, &half)) goto done;
  assert_int_equal(m.len, len);
  result = wire_reader_next(r, &in, &m);
  if (result != WIRE_MORE || !append_all(&in, &rest)) goto done;
  result = wire_reader_next(r, &in, &m);
  if (result == WIRE_MESSAGE) assert_int_equal(m.len, len);
done:
  if (result < 0) assert_int_equal(result, WIRE_NOMEM);
  bool well = result == WIRE_MESSAGE && in.len == 0 && m.encoding == WIRE_GZIP;
  if (result == WIRE_NOMEM && m.encoding == WIRE_GZIP) assert_true(wire_reader_broken(r));
  wire_reader_free(r);
  wire_buf_free(&in);
  return well;
}

static bool try_writing(wire_codec *z, const char *text, size_t len) {
  wire_buf out = {0};
  if (wire_buf_append(&out, "kept", 4) != WIRE_OK) return false;
  int result = wire_gzip(z, &out, text, len);
  assert_memory_equal(wire_buf_at(&out), "kept", 4);
  if (result != WIRE_OK) assert_int_equal(out.len, 4);
  wire_buf_free(&out);
  return result == WIRE_OK;
}

static bool try_everything(const wire_buf *member, const char *text, size_t len) {
  wire_codec *z = wire_codec_new();
  if (!z) return false;
  bool well = try_reading(z, member, len) && try_writing(z, text, len) && try_writing(z, text, 300);
  wire_codec_free(z);
  return well;
}

static void want_of_memory_is_told_and_leaks_nothing(void **state) {
  (void)state;
  enum { LEN = 3000000 };
  char *text = malloc(LEN);
  assert_non_null(text);
  dice d = 3;
  for (size_t i = 0; i < LEN; i++) text[i] = (char)('a' + dice_below(&d, 3));
  wire_buf member = {0};
  put_member(&member, &(member_spec){.text = text, .len = LEN, .level = 1});
  size_t before = heap.live_bytes, calls = heap.calls, needed;
  assert_true(try_everything(&member, text, LEN));
  needed = heap.calls - calls;
  assert_true(needed > 20);
  for (size_t i = 1; i <= needed; i++) {
    heap.fail_at = heap.calls + i;
    assert_false(try_everything(&member, text, LEN));
    assert_int_equal(heap.live_bytes, before);
  }
  heap.fail_at = 0;
  assert_true(try_everything(&member, text, LEN));
  wire_buf_free(&member);
  free(text);
}

static int count_libdeflate_too(void **state) {
  (void)state;
  libdeflate_set_memory_allocator(libdeflate_malloc, libdeflate_free);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(small_messages_take_no_memory),
      cmocka_unit_test(only_a_member_in_pieces_needs_a_stream),
      cmocka_unit_test(idle_channels_hold_nothing),
      cmocka_unit_test(a_large_message_leaves_nothing),
      cmocka_unit_test(a_bomb_stays_within_the_limits),
      cmocka_unit_test(a_bomb_fits_a_limit_that_is_large_enough),
      cmocka_unit_test(want_of_memory_is_told_and_leaks_nothing),
  };
  return cmocka_run_group_tests(tests, count_libdeflate_too, NULL);
}
