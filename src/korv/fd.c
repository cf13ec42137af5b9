/* core.dup_cloexec: a file descriptor's second number. luv has no dup, and two of its handles must not share one number. Knows not what
 * is behind a descriptor. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>

#include "korv/korv.h"

/* dup_cloexec(fd) -> fd | nil, message, name: the programs that this process runs do not inherit it. */
static int dup_cloexec(lua_State *L) {
  lua_Integer fd = luaL_checkinteger(L, 1);
  luaL_argcheck(L, fd >= 0 && fd <= INT_MAX, 1, "a file descriptor is a number from 0 on");
  int copy = fcntl((int)fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) {
    int code = uv_translate_sys_error(errno);
    return fail(L, uv_err_name(code), uv_strerror(code));
  }
  lua_pushinteger(L, copy);
  return 1;
}

void fd_open(lua_State *L) {
  lua_pushcfunction(L, dup_cloexec);
  lua_setfield(L, -2, "dup_cloexec");
}
