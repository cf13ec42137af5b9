/* fail_allocations: preloaded into a server, it has Lua go without memory when a spec says so. The file that FAIL_ALLOCATIONS names begins
 * with two numbers of 32 bits: while the first is not 0 it counts what Lua allocates down, and at its end as many as the second says fail.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* What is beneath the name that this replaces. */
void *libc_realloc(void *at, size_t n) __asm__("__libc_realloc");

static volatile struct {
  uint32_t until, failing;
} *wanted;

__attribute__((constructor)) static void open_file(void) {
  const char *path = getenv("FAIL_ALLOCATIONS");
  int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  void *at = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *wanted, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at != MAP_FAILED) wanted = at;
  if (fd >= 0) close(fd);
}

/* The interpreter has nothing from a library but its own state. */
static int is_lua(const void *caller) {
  Dl_info info;
  return dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "lua5.4") && !strstr(info.dli_fname, ".so");
}

static int fails(void) {
  if (wanted->until > 1) {
    wanted->until--;
    return 0;
  }
  if (--wanted->failing == 0) wanted->until = 0;
  return 1;
}

void *realloc(void *at, size_t n) {
  if (n > 0 && wanted && wanted->until && is_lua(__builtin_return_address(0)) && fails()) return NULL;
  return libc_realloc(at, n);
}
