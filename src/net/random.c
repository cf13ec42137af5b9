/* The random bytes in the padding of every packet. libssh asks OpenSSL for those of one packet at a time, which costs as much as all the
 * rest that the two do for a small packet. So they come out of a page that OpenSSL's generator fills, as OpenSSH's come out of a buffer of
 * arc4random's. OpenSSL does not tell what it is asked for, so whoever asks for as few bytes gets them from there; but keys and the like
 * have 16 bytes, or 20 and more, and those are asked of the generator itself. Knows no session. */
#define OPENSSL_SUPPRESS_DEPRECATED /* RAND_METHOD is: the provider that is to take its place is asked in the slow way */
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "net/internal.h"

enum { PAGE_BYTES = 4096, PADDING_BYTES = 19 /* at most, with AES */, KEY_BYTES = 16 /* the least that one has */ };

/* In a page of its own, which the kernel empties in the child of a fork: a byte is never handed out twice. */
typedef struct pool {
  atomic_flag taken; /* by a thread: another one goes to the generator */
  size_t left;
  unsigned char bytes[PAGE_BYTES - 2 * sizeof(size_t)];
} pool;

static pool *page;

static int generate(EVP_RAND_CTX *generator, unsigned char *to, size_t n) {
  return generator && EVP_RAND_generate(generator, to, n, 0, 0, NULL, 0) == 1;
}

static int take(pool *p, unsigned char *to, size_t n) {
  if (p->left < n) {
    p->left = 0;
    if (!generate(RAND_get0_public(NULL), p->bytes, sizeof p->bytes)) return 0;
    p->left = sizeof p->bytes;
  }
  p->left -= n;
  memcpy(to, p->bytes + p->left, n);
  explicit_bzero(p->bytes + p->left, n);
  return 1;
}

static int random_bytes(unsigned char *to, int n) {
  if (n < 0) return 0;
  bool may_be_padding = n <= PADDING_BYTES && n != KEY_BYTES;
  if (!may_be_padding || atomic_flag_test_and_set(&page->taken)) return generate(RAND_get0_private(NULL), to, (size_t)n);
  int done = take(page, to, (size_t)n);
  atomic_flag_clear(&page->taken);
  return done;
}

static bool map_page(void) {
  void *at = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return false;
  page = at;
  if (madvise(at, PAGE_BYTES, MADV_WIPEONFORK) == 0 && madvise(at, PAGE_BYTES, MADV_DONTDUMP) == 0) return true;
  munmap(at, PAGE_BYTES);
  return false;
}

static RAND_METHOD method; /* OpenSSL calls it until the process ends: this code is never unloaded (stay_loaded in src/korv/core.c) */

void net_random_open(void) {
  static atomic_flag opened = ATOMIC_FLAG_INIT;
  if (atomic_flag_test_and_set(&opened) || RAND_get_rand_method() != RAND_OpenSSL() || !map_page()) return;
  method = *RAND_OpenSSL();
  method.bytes = method.pseudorand = random_bytes;
  RAND_set_rand_method(&method);
}
