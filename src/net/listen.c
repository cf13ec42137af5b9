/* A server's sockets: accept, count. What happens on a connection once it is accepted is serve.c's. */
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

enum { ACCEPTS = 64 /* in one go */, RETRY_MS = 100, SPARE_FDS = 64, FDS_PER_SESSION = 2 };

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

size_t net_address_bytes(const char *text, unsigned char out[16]) {
  char plain[INET6_ADDRSTRLEN] = "";
  size_t len = strcspn(text, "%"); /* the interface behind a link-local address is none of its bytes */
  if (inet_pton(AF_INET, text, out) == 1) return 4;
  if (len >= sizeof plain) return 0;
  memcpy(plain, text, len);
  if (inet_pton(AF_INET6, plain, out) != 1) return 0;
  if (!IN6_IS_ADDR_V4MAPPED((struct in6_addr *)(void *)out)) return 16;
  memmove(out, out + 12, 4);
  return 4;
}

static net_source source_of(const char *address) {
  net_source source = {.len = 0};
  unsigned char bytes[16];
  size_t len = net_address_bytes(address, bytes);
  source.len = len < sizeof source.bytes ? len : sizeof source.bytes;
  memcpy(source.bytes, bytes, source.len);
  return source;
}

static size_t strangers_from(const net_listener *l, const net_source *source) {
  size_t count = 0;
  const net_session *s;
  LIST_FOREACH(s, &l->strangers, strangers) {
    count += s->source.len == source->len && memcmp(s->source.bytes, source->bytes, source->len) == 0;
  }
  return count;
}

/* Why no more connections are taken now; NULL: they are. */
static const char *limit_reached(const net_listener *l, const net_source *source) {
  if (l->sessions >= l->options.connections) return "max_connections is reached";
  if (strangers_from(l, source) >= l->options.unauthenticated_source) return "max_unauthenticated_per_address is reached";
  if (l->unauthenticated >= l->options.unauthenticated) return "max_unauthenticated is reached";
  return NULL;
}

static void accepted(net_listener *l, int fd, const struct sockaddr_storage *from, socklen_t len) {
  int on = 1;
  char address[64];
  numeric_address(from, len, address, sizeof address);
  net_source source = source_of(address);
  const char *why = limit_reached(l, &source);
  if (why) {
    close(fd);
    l->events->refused(l->owner, address, why);
    return;
  }
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  net_serve_accept(l, fd, address, &source);
}

static void on_acceptable(uv_poll_t *h, int status, int events) {
  (void)events;
  const listen_socket *ls = (listen_socket *)(void *)((char *)h - offsetof(listen_socket, poll));
  net_listener *l = ls->listener;
  for (int i = 0; status == 0 && i < ACCEPTS && !uv_is_closing((uv_handle_t *)h); i++) {
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

void net_listener_adopt(net_listener *l, int fd) {
  struct sockaddr_storage from = {0};
  socklen_t len = sizeof from;
  int flags = fcntl(fd, F_GETFL);
  bool gone = flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || getpeername(fd, (struct sockaddr *)&from, &len) < 0;
  if (!gone && !l->closed) {
    accepted(l, fd, &from, len);
    return;
  }
  close(fd);
  l->events->refused(l->owner, "?", gone ? "it has gone already" : "the server is stopping");
}

/* ---- life ---------------------------------------------------------------------------------------------------------------------------- */

/* Raises the soft limit of file descriptors to the hard one and returns how many connections that carries. */
static size_t connections_allowed(size_t wanted) {
  struct rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) < 0) return wanted;
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  if (getrlimit(RLIMIT_NOFILE, &files) < 0 || files.rlim_cur == RLIM_INFINITY) return wanted;
  size_t carried = files.rlim_cur / 2 > SPARE_FDS ? (files.rlim_cur - SPARE_FDS) / FDS_PER_SESSION : 16;
  return wanted < carried ? wanted : carried;
}

static bool watch_socket(net_listener *l, int fd, net_error *err) {
  listen_socket *ls = &l->sockets[l->socket_count];
  int rc = uv_poll_init(l->net->loop, &ls->poll, fd);
  if (rc < 0) {
    net_error_set(err, uv_err_name(rc), "cannot listen on the socket %d: %s", fd, uv_strerror(rc));
    return false;
  }
  ls->fd = fd;
  ls->listener = l;
  l->socket_count++;
  net_handle_init(l->net, (uv_handle_t *)&ls->poll);
  uv_poll_start(&ls->poll, UV_READABLE, on_acceptable);
  return true;
}

static bool watch_sockets(net_listener *l, const net_listen_options *o, net_error *err) {
  if (o->socket_count > NET_SOCKETS) net_error_set(err, "EINVAL", "%zu sockets are given, at most %d can be", o->socket_count, NET_SOCKETS);
  size_t i = 0;
  while (o->socket_count <= NET_SOCKETS && i < o->socket_count && watch_socket(l, o->sockets[i], err)) i++;
  bool ok = i == o->socket_count;
  for (; i < o->socket_count; i++) close(o->sockets[i]);
  return ok;
}

static net_listener *new_listener(net *n, const net_listen_options *o, const net_events *events, void *owner, net_error *err) {
  ssh_bind bind = net_serve_bind(o->keys, o->key_count, o->compatible, err);
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
  uv_timer_init(n->loop, &l->retry);
  net_handle_init(n, (uv_handle_t *)&l->retry);
  LIST_INSERT_HEAD(&n->listeners, l, link);
  return l;
}

net_listener *net_listen(net *n, const net_listen_options *o, const net_events *events, void *owner, net_error *err) {
  net_listener *l = new_listener(n, o, events, owner, err);
  if (!l) {
    for (size_t i = 0; i < o->socket_count; i++) close(o->sockets[i]);
    return NULL;
  }
  if (watch_sockets(l, o, err)) return l;
  l->owner = NULL; /* it never hears of this listener */
  net_listener_close(l);
  return NULL;
}

bool net_listener_set_keys(net_listener *l, net_key **keys, size_t count, net_error *err) {
  ssh_bind bind = net_serve_bind(keys, count, l->options.compatible, err);
  if (!bind) return false;
  ssh_bind_free(l->bind); /* each session has copies of its own */
  l->bind = bind;
  return true;
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

void net_listener_leave_sockets(net_listener *l) {
  l->closing_handles += l->socket_count;
  for (size_t i = 0; i < l->socket_count; i++) uv_close((uv_handle_t *)&l->sockets[i].poll, on_socket_closed);
  l->socket_count = 0;
}

void net_listener_stop(net_listener *l) {
  if (l->closed) return;
  l->closed = true;
  net_listener_leave_sockets(l);
  l->closing_handles++;
  uv_close((uv_handle_t *)&l->retry, on_retry_closed);
}

void net_listener_visit(net_listener *l, net_visit *visit, void *arg) {
  net_session *s;
  LIST_FOREACH(s, &l->net->sessions, all) { /* none is taken out within: they die in a report */
    if (s->listener == l && s->state < SESSION_DEAD) visit(s, arg);
  }
}

static void end_session(net_session *s, void *arg) {
  (void)arg;
  net_session_close(s, "ECLOSED", "the server stopped");
}

void net_listener_close(net_listener *l) {
  net_listener_stop(l);
  net_listener_visit(l, end_session, NULL);
}

void net_listener_know(net_session *s) {
  s->listener->unauthenticated--;
  LIST_REMOVE(s, strangers);
}

static void add_traffic(net_traffic *sum, const net_session *s) {
  sum->sessions++;
  sum->in_bytes += s->counter.in_bytes;
  sum->out_bytes += s->counter.out_bytes;
}

void net_listener_release(net_session *s) {
  net_listener *l = s->listener;
  l->sessions--;
  if (!s->logged_in) net_listener_know(s);
  add_traffic(&l->past, s);
  free_if_over(l);
}

size_t net_listener_sessions(const net_listener *l) { return l->sessions; }

net_traffic net_listener_traffic(const net_listener *l) {
  net_traffic sum = l->past;
  const net_session *s;
  LIST_FOREACH(s, &l->net->sessions, all) {
    if (s->listener == l) add_traffic(&sum, s);
  }
  return sum;
}
