/* link: see link.h. */
#include "link.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
  SSH_READ_BYTES = 4096, /* libssh's receive buffer: a read that fills it may have left more */
  READS_A_TURN = 16,
  WRITE_BYTES = 32000, /* also the least window that a new channel has */
};

static bool waiting_to_write(const struct link *l) {
  return ssh_get_status(l->ssh) & SSH_WRITE_PENDING;
}

static bool lost(const struct link *l) {
  return ssh_get_fd(l->ssh) < 0 || (ssh_get_status(l->ssh) & (SSH_CLOSED | SSH_CLOSED_ERROR)) != 0;
}

void link_count(struct link *l) {
  ssh_set_counters(l->ssh, &l->socket_bytes, NULL);
}

bool link_open(struct link *l, int epoll) {
  int fd = ssh_get_fd(l->ssh);
  l->epoll = epoll;
  l->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  l->event = ssh_event_new();
  l->watched = EPOLLIN;
  struct epoll_event want = {.events = l->watched, .data.ptr = l};
  return l->fd >= 0 && l->event && fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0 &&
         ssh_event_add_session(l->event, l->ssh) == SSH_OK && epoll_ctl(epoll, EPOLL_CTL_ADD, l->fd, &want) == 0;
}

void link_close(struct link *l) {
  if (l->fd >= 0) epoll_ctl(l->epoll, EPOLL_CTL_DEL, l->fd, NULL);
  if (l->event) {
    ssh_event_remove_session(l->event, l->ssh);
    ssh_event_free(l->event);
  }
  ssh_free(l->ssh);
  if (l->fd >= 0) close(l->fd);
}

bool link_pump(struct link *l) {
  for (int reads = 0; reads < READS_A_TURN; reads++) {
    uint64_t before = l->socket_bytes.in_bytes;
    if (ssh_event_dopoll(l->event, 0) == SSH_ERROR || lost(l)) return false;
    if (l->socket_bytes.in_bytes - before != SSH_READ_BYTES) return true;
  }
  return true;
}

bool link_watch(struct link *l) {
  if (lost(l)) return false;
  uint32_t events = waiting_to_write(l) ? EPOLLIN | EPOLLOUT : EPOLLIN;
  if (events == l->watched) return true;
  l->watched = events;
  return epoll_ctl(l->epoll, EPOLL_CTL_MOD, l->fd, &(struct epoll_event){.events = events, .data.ptr = l}) == 0;
}

void link_cork(struct link *l, bool on) {
  setsockopt(l->fd, IPPROTO_TCP, TCP_CORK, &(int){on}, sizeof(int));
}

static int take_data(ssh_session ssh, ssh_channel channel, void *data, uint32_t length, int is_stderr, void *user) {
  (void)ssh, (void)channel;
  struct stream *s = user;
  if (!is_stderr) bytes_add(&s->in, data, length);
  return (int)length;
}

static void take_end(ssh_session ssh, ssh_channel channel, void *user) {
  (void)ssh, (void)channel;
  ((struct stream *)user)->ended = true;
}

void stream_listen(struct stream *s) {
  s->callbacks.userdata = s;
  s->callbacks.channel_data_function = take_data;
  s->callbacks.channel_eof_function = take_end;
  s->callbacks.channel_close_function = take_end;
  ssh_callbacks_init(&s->callbacks);
  ssh_set_channel_callbacks(s->ssh, &s->callbacks);
}

void stream_close(struct stream *s) {
  bytes_free(&s->in);
  bytes_free(&s->out);
}

bool stream_ready(struct link *l, struct stream *s, size_t n) {
  size_t least = n < WRITE_BYTES ? n : WRITE_BYTES;
  return s->out.length == 0 && !waiting_to_write(l) && ssh_channel_window_size(s->ssh) >= least;
}

bool stream_send(struct link *l, struct stream *s, const char *at, size_t n) {
  int sent = n <= WRITE_BYTES ? ssh_channel_write(s->ssh, at, (uint32_t)n) : 0;
  if (sent < 0) return false;
  if ((size_t)sent == n) return true;
  bytes_add(&s->out, at + sent, n - (size_t)sent);
  return sent > 0 || stream_flush(l, s);
}

bool stream_flush(struct link *l, struct stream *s) {
  int sent = 0;
  while (s->sent < s->out.length && !waiting_to_write(l)) {
    size_t n = s->out.length - s->sent;
    sent = ssh_channel_write(s->ssh, s->out.at + s->sent, (uint32_t)(n < WRITE_BYTES ? n : WRITE_BYTES));
    if (sent <= 0) break;
    s->sent += (size_t)sent;
  }
  if (s->sent == s->out.length) s->sent = s->out.length = 0;
  return sent >= 0;
}
