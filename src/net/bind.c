/* Listening sockets: made here, handed to whoever listens on them, be it a process that was started later. Knows no SSH. */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/internal.h"

enum { BACKLOG = 512 };

typedef struct binding {
  int *fds;
  size_t count;
  int port; /* 0: none yet */
  const char *host; /* as people know it */
  net_error *err;
} binding;

static bool failed(const binding *b, int fd) {
  int code = errno;
  net_error_set(b->err, uv_err_name(uv_translate_sys_error(code)), "cannot listen on %s port %d: %s%s", b->host, b->port, strerror(code),
                code == EADDRINUSE ? "; stop what listens there or choose another port (--port)"
                : code == EACCES   ? "; ports below 1024 need privileges, choose another (--port)"
                                   : "");
  if (fd >= 0) close(fd);
  return false;
}

int net_socket_port(int fd) {
  struct sockaddr_storage at;
  socklen_t len = sizeof at;
  if (getsockname(fd, (struct sockaddr *)&at, &len) < 0) return 0;
  /* NOLINTNEXTLINE(clang-analyzer-core.*): getsockname has filled it */
  return ntohs(at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&at)->sin6_port : ((struct sockaddr_in *)&at)->sin_port);
}

/* Binds one more socket. only_v6: there is to be an IPv4 socket of its own beside it. */
static bool add_socket(binding *b, const struct sockaddr *at, socklen_t len, bool only_v6) {
  int on = 1, v6 = only_v6;
  int fd = socket(at->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return failed(b, fd);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (at->sa_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6, sizeof v6);
  if (bind(fd, at, len) < 0 || listen(fd, BACKLOG) < 0) return failed(b, fd);
  b->fds[b->count++] = fd;
  if (b->port == 0) b->port = net_socket_port(fd); /* further addresses take the same one */
  return true;
}

static bool bind_everywhere(binding *b) {
  struct sockaddr_in6 any6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)b->port), .sin6_addr = IN6ADDR_ANY_INIT};
  struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)b->port)};
  b->host = "all interfaces";
  if (add_socket(b, (struct sockaddr *)&any6, sizeof any6, false)) return true;
  if (strcmp(b->err->name, "EAFNOSUPPORT") != 0 && strcmp(b->err->name, "EADDRNOTAVAIL") != 0) return false;
  return add_socket(b, (struct sockaddr *)&any4, sizeof any4, false); /* a machine without IPv6 */
}

static bool bind_address(binding *b, const struct addrinfo *a) {
  struct sockaddr_storage at;
  memcpy(&at, a->ai_addr, a->ai_addrlen);
  if (at.ss_family == AF_INET6)
    ((struct sockaddr_in6 *)&at)->sin6_port = htons((uint16_t)b->port);
  else
    ((struct sockaddr_in *)&at)->sin_port = htons((uint16_t)b->port);
  return add_socket(b, (struct sockaddr *)&at, a->ai_addrlen, true);
}

static bool bind_host(binding *b) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found;
  int rc = getaddrinfo(b->host, NULL, &hints, &found);
  if (rc != 0) {
    net_error_set(b->err, "EAI", "cannot listen on %s: %s", b->host, gai_strerror(rc));
    return false;
  }
  bool ok = true;
  for (const struct addrinfo *a = found; a && ok && b->count < NET_SOCKETS; a = a->ai_next) ok = bind_address(b, a);
  freeaddrinfo(found);
  return ok;
}

size_t net_bind(const char *host, int port, int fds[NET_SOCKETS], net_error *err) {
  binding b = {fds, 0, port, host, err};
  if (host ? bind_host(&b) : bind_everywhere(&b)) return b.count;
  while (b.count) close(fds[--b.count]);
  return 0;
}
