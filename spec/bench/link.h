/* link: a libssh session and its channels under an epoll loop, the same for both ends. For both of the benchmarks' programs.
 *
 * It keeps libssh's traps: a session's socket never blocks and is watched through a dup; callbacks only append to buffers; reading
 * goes on only after a read that filled libssh's buffer; writing waits while libssh still holds bytes. It knows no message.
 */
#ifndef BENCH_LINK_H
#define BENCH_LINK_H

#include "message.h"

#include <libssh/callbacks.h>
#include <libssh/libssh.h>
#include <stdint.h>

/* A session. */
struct link {
  ssh_session ssh;
  ssh_event event;
  struct ssh_counter_struct socket_bytes;
  int epoll;
  int fd;           /* a dup of libssh's: libssh may close its own in any call */
  uint32_t watched; /* the events that epoll was asked for */
};

/* A channel: what came in and was not read yet, and what libssh would not take yet. */
struct stream {
  ssh_channel ssh;
  struct ssh_channel_callbacks_struct callbacks;
  struct bytes in;
  struct bytes out;
  size_t sent; /* of out: it is only emptied whole, so that much of it is not moved again and again */
  bool ended; /* the peer sends no more */
};

void link_count(struct link *l);           /* has libssh count the socket's bytes; before the session's first packet */
bool link_open(struct link *l, int epoll); /* session from now on driven by link_pump; epoll's data is the link */
void link_close(struct link *l);           /* frees the session and with it every channel */

bool link_pump(struct link *l);          /* reads what has come and writes what waits. False: the session is lost */
bool link_watch(struct link *l);         /* has epoll wake us for writing too while libssh holds bytes. False: the session is lost */
void link_cork(struct link *l, bool on); /* on: packets gather in the socket until off */

void stream_listen(struct stream *s); /* sets the channel's callbacks, which fill s->in and s->ended */
void stream_close(struct stream *s);  /* frees the buffers; the channel is its session's */

bool stream_ready(struct link *l, struct stream *s, size_t n); /* whether n bytes would go out whole, or begin to where they are many */
bool stream_send(struct link *l, struct stream *s, const char *at, size_t n); /* one packet where it fits. False: session lost */
bool stream_flush(struct link *l, struct stream *s);                          /* sends from s->out what may go now. False: session lost */

#endif
