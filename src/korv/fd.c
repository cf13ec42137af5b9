/* core.dup_cloexec: a file descriptor's second number. luv has no dup, and two of its handles must not share one number.
 * core.close_on_exec: what the programs that this process runs do not inherit. core.hung_up: a look at the other end. Knows not what is
 * behind a descriptor. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <poll.h>
#include <unistd.h>

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

/* close_on_exec(first): no program inherits a descriptor from this number on unless it is told to; those of Lua's
 * io.open would be. A kernel that has no such call (before 5.11) leaves them as they are. */
static int close_on_exec(lua_State *L) {
  lua_Integer first = luaL_checkinteger(L, 1);
  luaL_argcheck(L, first >= 0 && first <= INT_MAX, 1, "a file descriptor is a number from 0 on");
  close_range((unsigned)first, UINT_MAX, CLOSE_RANGE_CLOEXEC);
  return 0;
}

/* hung_up(fd) -> boolean: whether nobody reads any more what is written there. A look, which changes nothing for those who share it, as
 * to poll it on the loop would. */
static int hung_up(lua_State *L) {
  struct pollfd at = {.fd = (int)luaL_checkinteger(L, 1)};
  lua_pushboolean(L, poll(&at, 1, 0) > 0 && at.revents & (POLLERR | POLLHUP));
  return 1;
}

void fd_open(lua_State *L) {
  static const luaL_Reg functions[] = {{"dup_cloexec", dup_cloexec}, {"close_on_exec", close_on_exec}, {"hung_up", hung_up}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
