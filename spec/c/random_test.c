/* net: the random bytes that are handed out a few at a time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <pthread.h>

#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/rand.h>

#include "net/internal.h"

enum { DRAWS = 100000, THREADS = 4, ALL_DRAWS = THREADS * DRAWS, DRAW_BYTES = 15 };

/* Two of so many draws of 15 bytes are alike once in 10^25 runs. */
typedef struct draw {
  unsigned char bytes[DRAW_BYTES];
} draw;

static int compare(const void *a, const void *b) {
  return memcmp(a, b, sizeof(draw));
}

static void *fill(void *draws) {
  for (draw *d = draws; d < (draw *)draws + DRAWS; d++)
    if (RAND_bytes(d->bytes, sizeof d->bytes) != 1) return NULL;
  return draws;
}

static draw *new_draws(size_t count) {
  draw *draws = calloc(count, sizeof *draws);
  assert_non_null(draws);
  return draws;
}

static void assert_all_differ(draw *draws, size_t count) {
  qsort(draws, count, sizeof *draws, compare);
  for (size_t i = 1; i < count; i++) assert_int_not_equal(compare(&draws[i - 1], &draws[i]), 0);
}

static void is_what_openssl_asks(void **state) {
  (void)state;
  assert_ptr_equal(RAND_get_rand_method(), RAND_OpenSSL());
  net_random_open();
  const RAND_METHOD *ours = RAND_get_rand_method();
  assert_ptr_not_equal(ours, RAND_OpenSSL());
  net_random_open();
  assert_ptr_equal(RAND_get_rand_method(), ours);
  assert_int_equal(RAND_status(), 1);
}

static void hands_out_each_byte_once(void **state) {
  (void)state;
  draw *draws = new_draws(DRAWS);
  assert_non_null(fill(draws));
  assert_all_differ(draws, DRAWS);
  free(draws);
}

/* Of a few bytes every amount is filled to its end, and not beyond; so are many. */
static void fills_what_was_asked(void **state) {
  (void)state;
  static const int lengths[] = {0, 1, 4, 15, 16, 17, 19, 20, 32, 4096, 100000};
  unsigned char *to = malloc(100001);
  assert_non_null(to);
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    int length = lengths[i];
    bool last_was_set = length == 0;
    for (int tries = 0; tries < 10; tries++) {
      memset(to, 0, 100001);
      assert_int_equal(RAND_bytes(to, length), 1);
      assert_int_equal(to[length], 0);
      last_was_set |= length > 0 && to[length - 1];
    }
    assert_true(last_was_set);
  }
  free(to);
}

static void gives_threads_different_bytes(void **state) {
  (void)state;
  draw *draws = new_draws(ALL_DRAWS);
  pthread_t threads[THREADS];
  for (size_t i = 0; i < THREADS; i++) assert_int_equal(pthread_create(&threads[i], NULL, fill, draws + i * DRAWS), 0);
  for (size_t i = 0; i < THREADS; i++) {
    void *filled;
    assert_int_equal(pthread_join(threads[i], &filled), 0);
    assert_non_null(filled);
  }
  assert_all_differ(draws, ALL_DRAWS);
  free(draws);
}

/* What the parent has in store the child does not know. */
static void gives_a_child_different_bytes(void **state) {
  (void)state;
  enum { FEW = 64, BOTH = 2 * FEW };
  draw draws[BOTH];
  int ends[2];
  assert_int_equal(RAND_bytes(draws[0].bytes, DRAW_BYTES), 1);
  assert_int_equal(pipe(ends), 0);
  pid_t child = fork();
  for (size_t i = 0; i < FEW; i++)
    if (RAND_bytes(draws[i].bytes, DRAW_BYTES) != 1) abort();
  if (child == 0) _exit(write(ends[1], draws, FEW * sizeof *draws) != FEW * sizeof *draws);
  close(ends[1]);
  assert_int_equal(read(ends[0], draws + FEW, FEW * sizeof *draws), FEW * sizeof *draws);
  close(ends[0]);
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(status, 0);
  assert_all_differ(draws, BOTH);
}

static bool generator_fails;

/* NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp): the names are what the linker makes them */
int __wrap_EVP_RAND_generate(EVP_RAND_CTX *, unsigned char *, size_t, unsigned, int, const unsigned char *, size_t);
int __real_EVP_RAND_generate(EVP_RAND_CTX *, unsigned char *, size_t, unsigned, int, const unsigned char *, size_t);
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

int __wrap_EVP_RAND_generate(EVP_RAND_CTX *generator, unsigned char *to, size_t n, unsigned strength, int resist, const unsigned char *more,
                             size_t more_length) {
  return generator_fails ? 0 : __real_EVP_RAND_generate(generator, to, n, strength, resist, more, more_length);
}

/* What was in store is given; then whoever asks is told, and nothing that was handed out comes again. */
static void tells_where_the_generator_fails(void **state) {
  (void)state;
  draw *draws = new_draws(DRAWS);
  unsigned char key[32];
  size_t given = 0, refused = 0;
  generator_fails = true;
  assert_int_equal(RAND_bytes(key, sizeof key), 0);
  while (RAND_bytes(draws[given].bytes, DRAW_BYTES) == 1) assert_in_range(++given, 0, DRAWS / 2);
  while (refused < 3 && RAND_bytes(draws[given].bytes, DRAW_BYTES) == 0) refused++;
  assert_int_equal(refused, 3);
  generator_fails = false;
  for (; given < DRAWS; given++) assert_int_equal(RAND_bytes(draws[given].bytes, DRAW_BYTES), 1);
  assert_int_equal(RAND_bytes(key, sizeof key), 1);
  assert_all_differ(draws, DRAWS);
  free(draws);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(is_what_openssl_asks),          cmocka_unit_test(hands_out_each_byte_once),
      cmocka_unit_test(fills_what_was_asked),          cmocka_unit_test(gives_threads_different_bytes),
      cmocka_unit_test(gives_a_child_different_bytes), cmocka_unit_test(tells_where_the_generator_fails),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
