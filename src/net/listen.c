/* A server's sockets: bind, accept, count. What happens on a connection once it is accepted is serve.c's. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/internal.h"

enum { BACKLOG = 512, ACCEPTS = 64 /* in one go */, RETRY_MS = 100, SPARE_FDS = 64, FDS_PER_SESSION = 2 };

/* ---- accepting --------------------------------------------------------------------------------------------------------------------- */

static void on_acceptable(uv_poll_t *h, int status, int events);

static void resume(uv_timer_t *timer) {
  net_listener *l = (net_listener *)((char *)timer - offsetof(net_listener, retry));
  for (size_t i = 0; i < l->socket_count; i++) uv_poll_start(&l->sockets[i].poll, UV_READABLE, on_acceptable);
}

/* No descriptor is left: the connection stays in the kernel's queue, and asking at once again would only spin. */
static void wait_for_descriptors(net_listener *l) {
  for (size_t i = 0; i < l->socket_count; i++) uv_poll_stop(&l->sockets[i].poll);
  uv_timer_start(&l->retry, resume, RETRY_MS, 0);
}

static void numeric_address(const struct sockaddr_storage *from, socklen_t len, char *out, size_t size) {
  if (getnameinfo((const struct sockaddr *)from, len, out, (socklen_t)size, NULL, 0, NI_NUMERICHOST) != 0) out[0] = 0;
  static const char mapped[] = "::ffff:";
  if (strncmp(out, mapped, sizeof mapped - 1) == 0 && strchr(out, '.')) memmove(out, out + sizeof mapped - 1, strlen(out) - sizeof mapped + 2);
}

/* Why no more connections are taken now; NULL: they are. */
static const char *limit_reached(const net_listener *l) {
  if (l->sessions >= l->options.connections) return "max_connections is reached";
  if (l->unauthenticated >= l->options.unauthenticated) return "max_unauthenticated is reached";
  return NULL;
}

static void accepted(net_listener *l, int fd, const struct sockaddr_storage *from, socklen_t len) {
  int on = 1;
  char address[64];
  numeric_address(from, len, address, sizeof address);
  const char *why = limit_reached(l);
  if (why) {
    close(fd);
    l->events->refused(l->owner, address, why);
    return;
  }
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  net_serve_accept(l, fd, address);
}

static void on_acceptable(uv_poll_t *h, int status, int events) {
  (void)events;
  const listen_socket *ls = (listen_socket *)(void *)((char *)h - offsetof(listen_socket, poll));
  net_listener *l = ls->listener;
  for (int i = 0; status == 0 && i < ACCEPTS && !l->closed; i++) {
    struct sockaddr_storage from;
    socklen_t len = sizeof from;
    int fd = accept4(ls->fd, (struct sockaddr *)&from, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) wait_for_descriptors(l);
      if (errno == EINTR || errno == ECONNABORTED) continue;
      return;
    }
    accepted(l, fd, &from, len);
  }
}

/* ---- binding ------------------------------------------------------------------------------------------------------------------------ */

static bool bind_failed(int fd, const char *host, int port, net_error *err) {
  int code = errno;
  net_error_set(err, uv_err_name(uv_translate_sys_error(code)), "cannot listen on %s port %d: %s%s", host, port, strerror(code),
                code == EADDRINUSE ? "; stop what listens there or choose another port (--port)"
                : code == EACCES   ? "; ports below 1024 need privileges, choose another (--port)"
                                   : "");
  if (fd >= 0) close(fd);
  return false;
}

static int port_of(int fd) {
  struct sockaddr_storage at;
  socklen_t len = sizeof at;
  if (getsockname(fd, (struct sockaddr *)&at, &len) < 0) return 0;
  return ntohs(at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&at)->sin6_port : ((struct sockaddr_in *)&at)->sin_port);
}

/* Binds one more socket. only_v6: there is to be an IPv4 socket of its own beside it. */
static bool add_socket(net_listener *l, const struct sockaddr *at, socklen_t len, bool only_v6, const char *host, net_error *err) {
  int on = 1, v6 = only_v6;
  int fd = socket(at->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return bind_failed(fd, host, l->port, err);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (at->sa_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6, sizeof v6);
  if (bind(fd, at, len) < 0 || listen(fd, BACKLOG) < 0) return bind_failed(fd, host, l->port, err);
  listen_socket *ls = &l->sockets[l->socket_count];
  if (uv_poll_init(l->net->loop, &ls->poll, fd) < 0) return bind_failed(fd, host, l->port, err);
  ls->fd = fd;
  ls->listener = l;
  l->socket_count++;
  net_handle_init(l->net, (uv_handle_t *)&ls->poll);
  uv_poll_start(&ls->poll, UV_READABLE, on_acceptable);
  if (l->port == 0) l->port = port_of(fd); /* further addresses take the same one */
  return true;
}

static bool bind_everywhere(net_listener *l, net_error *err) {
  struct sockaddr_in6 any6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)l->port), .sin6_addr = IN6ADDR_ANY_INIT};
  struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)l->port)};
  if (add_socket(l, (struct sockaddr *)&any6, sizeof any6, false, "all interfaces", err)) return true;
  if (strcmp(err->name, "EAFNOSUPPORT") != 0 && strcmp(err->name, "EADDRNOTAVAIL") != 0) return false;
  return add_socket(l, (struct sockaddr *)&any4, sizeof any4, false, "all interfaces", err); /* a machine without IPv6 */
}

static bool bind_host(net_listener *l, const char *host, net_error *err) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found, *a;
  int rc = getaddrinfo(host, NULL, &hints, &found);
  if (rc != 0) {
    net_error_set(err, "EAI", "cannot listen on %s: %s", host, gai_strerror(rc));
    return false;
  }
  bool ok = true;
  for (a = found; a && ok && l->socket_count < LISTEN_SOCKETS; a = a->ai_next) {
    struct sockaddr_storage at;
    memcpy(&at, a->ai_addr, a->ai_addrlen);
    if (at.ss_family == AF_INET6)
      ((struct sockaddr_in6 *)&at)->sin6_port = htons((uint16_t)l->port);
    else
      ((struct sockaddr_in *)&at)->sin_port = htons((uint16_t)l->port);
    ok = add_socket(l, (struct sockaddr *)&at, a->ai_addrlen, true, host, err);
  }
  freeaddrinfo(found);
  return ok;
}

/* ---- life ---------------------------------------------------------------------------------------------------------------------------- */

/* Raises the soft limit of file descriptors to the hard one and returns how many connections that carries. */
static size_t connections_allowed(size_t wanted) {
  struct rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) < 0) return wanted;
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  if (getrlimit(RLIMIT_NOFILE, &files) < 0 || files.rlim_cur == RLIM_INFINITY) return wanted;
  size_t carried = files.rlim_cur > 2 * SPARE_FDS ? (files.rlim_cur - SPARE_FDS) / FDS_PER_SESSION : 16;
  return wanted < carried ? wanted : carried;
}

net_listener *net_listen(net *n, const net_listen_options *o, const net_events *events, void *owner, net_error *err) {
  ssh_bind bind = net_serve_bind(o, err);
  net_listener *l = bind ? calloc(1, sizeof *l) : NULL;
  if (!l) {
    if (bind) net_error_set(err, "ENOMEM", "out of memory");
    ssh_bind_free(bind);
    return NULL;
  }
  l->net = n;
  l->events = events;
  l->owner = owner;
  l->options = *o;
  l->options.connections = connections_allowed(o->connections);
  l->bind = bind;
  l->port = o->port;
  uv_timer_init(n->loop, &l->retry);
  net_handle_init(n, (uv_handle_t *)&l->retry);
  LIST_INSERT_HEAD(&n->listeners, l, link);
  if (o->host ? bind_host(l, o->host, err) : bind_everywhere(l, err)) return l;
  l->owner = NULL; /* it never hears of this listener */
  net_listener_close(l);
  return NULL;
}

static void free_if_over(net_listener *l) {
  if (!l->closed || l->closing_handles || l->sessions) return;
  LIST_REMOVE(l, link);
  if (!l->net->ending && l->owner) l->events->listener_closed(l->owner);
  ssh_bind_free(l->bind);
  free(l);
}

static void handle_gone(net_listener *l) {
  net *n = l->net;
  l->closing_handles--;
  free_if_over(l);
  net_handle_gone(n);
}

static void on_retry_closed(uv_handle_t *h) { handle_gone((net_listener *)((char *)h - offsetof(net_listener, retry))); }

static void on_socket_closed(uv_handle_t *h) {
  listen_socket *ls = (listen_socket *)(void *)((char *)h - offsetof(listen_socket, poll));
  close(ls->fd);
  handle_gone(ls->listener);
}

void net_listener_close(net_listener *l) {
  if (l->closed) return;
  l->closed = true;
  l->closing_handles = l->socket_count + 1;
  for (size_t i = 0; i < l->socket_count; i++) uv_close((uv_handle_t *)&l->sockets[i].poll, on_socket_closed);
  uv_close((uv_handle_t *)&l->retry, on_retry_closed);
  net_session *s;
  LIST_FOREACH(s, &l->net->sessions, all) {
    if (s->listener == l) net_session_fail(s, "ECLOSED", "the server stopped");
  }
}

void net_listener_release(net_listener *l, bool logged_in) {
  l->sessions--;
  if (!logged_in) l->unauthenticated--;
  free_if_over(l);
}

int net_listener_port(const net_listener *l) { return l->port; }
