/* wire: buffers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "wire_feed.h"

static void is_a_queue(void **state) {
  (void)state;
  wire_buf b = {0};
  assert_int_equal(wire_buf_append(&b, "hello", 5), WIRE_OK);
  assert_int_equal(wire_buf_append(&b, NULL, 0), WIRE_OK);
  assert_int_equal(wire_buf_append(&b, " world", 6), WIRE_OK);
  const char *before = wire_buf_at(&b);
  wire_buf_consume(&b, 6);
  assert_ptr_equal(wire_buf_at(&b), before + 6);
  assert_int_equal(b.len, 5);
  assert_memory_equal(wire_buf_at(&b), "world", 5);
  wire_buf_consume(&b, 5);
  assert_ptr_equal(wire_buf_at(&b), b.base);
  wire_buf_free(&b);
  assert_null(b.base);
  assert_int_equal(b.cap, 0);
}

static void refuses_what_overflows(void **state) {
  (void)state;
  wire_buf b = {0};
  assert_null(wire_buf_reserve(&b, SIZE_MAX));
  put_text(&b, "kept");
  wire_buf was = b;
  static const size_t TOO_MUCH[] = {SIZE_MAX, SIZE_MAX - 3, SIZE_MAX - 4, (size_t)PTRDIFF_MAX + 1, PTRDIFF_MAX - 3};
  for (size_t i = 0; i < sizeof TOO_MUCH / sizeof *TOO_MUCH; i++) {
    assert_null(wire_buf_reserve(&b, TOO_MUCH[i]));
    assert_memory_equal(&b, &was, sizeof b);
  }
  assert_int_equal(wire_buf_append(&b, "x", SIZE_MAX), WIRE_NOMEM);
  assert_memory_equal(wire_buf_at(&b), "kept", 4);
  wire_buf_free(&b);
}

static void reserves_without_need(void **state) {
  (void)state;
  wire_buf b = {0};
  assert_non_null(wire_buf_reserve(&b, 0));
  assert_int_equal(b.len, 0);
  wire_buf_free(&b);
}

static void grows_by_doubling(void **state) {
  (void)state;
  wire_buf b = {0};
  size_t growths = 0, cap = 0;
  for (size_t i = 0; i < 1 << 20; i++) {
    put_text(&b, "x");
    if (b.cap != cap) growths++;
    cap = b.cap;
  }
  assert_true(growths <= 14);
  assert_true(b.cap <= 2 << 20);
  wire_buf_free(&b);
}

/* Bytes are moved only once as many were consumed, so a queue that never runs empty neither creeps on nor copies itself all the time. */
static void reuses_its_front(void **state) {
  (void)state;
  wire_buf b = {0};
  size_t moved = 0, round = 0;
  for (; round < 100000; round++) {
    size_t head = b.head, len = b.len;
    put_text(&b, "12345678");
    if (b.head < head) moved += len;
    if (round >= 100) {
      assert_memory_equal(wire_buf_at(&b), "12345678", 8);
      wire_buf_consume(&b, 8);
    }
  }
  assert_true(b.cap <= 4096);
  assert_true(moved <= 8 * round);
  wire_buf_free(&b);
}

static void shrinks_only_when_empty(void **state) {
  (void)state;
  wire_buf b = {0};
  put_text(&b, "x");
  wire_buf_shrink(&b, 0);
  assert_int_equal(b.len, 1);
  wire_buf_consume(&b, 1);
  wire_buf_shrink(&b, b.cap);
  assert_non_null(b.base);
  wire_buf_shrink(&b, b.cap - 1);
  assert_null(b.base);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(is_a_queue),        cmocka_unit_test(refuses_what_overflows), cmocka_unit_test(reserves_without_need),
      cmocka_unit_test(grows_by_doubling), cmocka_unit_test(reuses_its_front),       cmocka_unit_test(shrinks_only_when_empty),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
