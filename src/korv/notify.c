/* core.notify, core.inherit: a datagram to whoever supervises this process, and the descriptors that came from the process before. What is
 * said, and when, is Lua's (lua/korv/notify.lua, lua/korv/service.lua). */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "korv/korv.h"

static int fail_errno(lua_State *L, int error) {
  int code = uv_translate_sys_error(error);
  return fail(L, uv_err_name(code), uv_strerror(code));
}

/* A path, or with @ for its first byte a name that is in no file system. 0: it is neither, or too long. */
static socklen_t address_of(const char *path, size_t len, struct sockaddr_un *address) {
  bool abstract = path[0] == '@';
  if (len < 2 || len >= sizeof address->sun_path || (!abstract && path[0] != '/')) return 0;
  *address = (struct sockaddr_un){.sun_family = AF_UNIX};
  memcpy(address->sun_path, path, len);
  if (abstract) address->sun_path[0] = '\0';
  return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + (abstract ? 0 : 1));
}

/* 0, or the errno. */
static int send_datagram(const struct sockaddr_un *address, socklen_t len, const char *text, size_t text_len) {
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return errno;
  ssize_t sent = sendto(fd, text, text_len, MSG_NOSIGNAL, (const struct sockaddr *)address, len);
  int error = sent < 0 ? errno : 0;
  close(fd);
  return error;
}

/* notify(path, text) -> true | nil, message, name */
static int notify(lua_State *L) {
  struct sockaddr_un address;
  size_t path_len, text_len;
  const char *path = luaL_checklstring(L, 1, &path_len);
  const char *text = luaL_checklstring(L, 2, &text_len);
  socklen_t len = address_of(path, path_len, &address);
  if (!len) return fail(L, "EINVAL", "it is no path and no @name, or too long");
  int error = send_datagram(&address, len, text, text_len);
  if (error) return fail_errno(L, error);
  lua_pushboolean(L, true);
  return 1;
}

static bool is_listening(int fd) {
  int listening = 0;
  socklen_t len = sizeof listening;
  return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) == 0 && listening;
}

/* inherit(fd) -> whether it is a listening socket | nil, message, name. It is close-on-exec and non-blocking from then on. */
static int inherit(lua_State *L) {
  lua_Integer n = luaL_checkinteger(L, 1);
  luaL_argcheck(L, n >= 0 && n <= INT_MAX, 1, "it is no file descriptor");
  int fd = (int)n, flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) return fail_errno(L, errno);
  lua_pushboolean(L, is_listening(fd));
  return 1;
}

void notify_open(lua_State *L) {
  static const luaL_Reg functions[] = {{"notify", notify}, {"inherit", inherit}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
