/* core.dup_cloexec: a file descriptor's second number. luv has no dup, and two of its handles must not share one number. core.hung_up: a
 * look at its other end. Knows not what is behind a descriptor. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>

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

/* hung_up(fd) -> boolean: whether nobody reads any more what is written there. A look, which changes nothing for those who share it, as
 * to poll it on the loop would. */
static int hung_up(lua_State *L) {
  struct pollfd at = {.fd = (int)luaL_checkinteger(L, 1)};
  lua_pushboolean(L, poll(&at, 1, 0) > 0 && at.revents & (POLLERR | POLLHUP));
  return 1;
}

void fd_open(lua_State *L) {
  lua_pushcfunction(L, dup_cloexec);
  lua_setfield(L, -2, "dup_cloexec");
  lua_pushcfunction(L, hung_up);
  lua_setfield(L, -2, "hung_up");
}
