/* What server.c, request.c and answer.c share: the server's types. */
#ifndef KORV_SERVER_H
#define KORV_SERVER_H

#include <sys/queue.h>

#include "korv/korv.h"

enum { ID_BYTES = 256 };

typedef struct server server;
typedef struct channel channel;

typedef struct request {
  LIST_ENTRY(request) link; /* of its channel, or its server's orphans or spares */
  LIST_ENTRY(request) live; /* of the hub, while it is to be answered */
  server *server;
  channel *channel; /* NULL: gone */
  host_task *task;
  const void *table; /* the Lua table's address: it lives as long as the task, at the bottom of its stack */
  timer *deadline;   /* NULL: none */
  double seconds;    /* the deadline's */
  uint64_t due_ms;   /* the same, on the loop's clock */
  int cancel_code;   /* why it was cancelled: 499, 504; 0: it was not */
  bool stream;       /* items go out as they come */
  bool sent;         /* an item was sent or gathered */
  wire_buf items;    /* gathered, encoded, commas between */
  wire_encoding encoding;
  size_t id_len;
  char id[ID_BYTES]; /* as its bytes stood in the message */
} request;

typedef LIST_HEAD(request_list, request) request_list;

struct server {
  hub *hub;
  net_listener *listener;
  int handler, failed, authorize, closed, refused; /* Lua functions */
  int request_meta;                       /* the metatable of request tables */
  int self;                               /* keeps the userdata while a connection may need it */
  wire_limits in;
  host_json_limits json;
  size_t in_flight, in_flight_most; /* of all channels */
  size_t channel_in_flight_most, queued_most, turn_bytes;
  double timeout; /* of a request, in seconds; 0: none */
  bool unused;    /* its listener and its sessions have gone */
  request_list spare;   /* to be used again */
  request_list orphans; /* whose channel has gone while they ran */
};

struct channel {
  server *server;
  net_channel *net;
  wire_reader *reader;
  int peer; /* the session's table, in the registry; the session owns the reference */
  size_t in_flight;
  request_list requests;
  wire_buf senders; /* of `sender`: tasks that wait for output to drain */
  bool paused, ended; /* ended: no more requests will come */
  bool large;         /* it has carried large messages */
};

typedef struct sender {
  host_task *task;
  uint64_t ticket;
} sender;

void server_release(server *s); /* after the last of anything that needs it */
bool channel_is_full(const channel *c);    /* no more requests are to be read */
bool channel_is_clogged(const channel *c); /* no more output is to be queued */
void channel_less_busy(channel *c); /* an answer is out: go on reading, or finish */

/* ---- answer.c ---------------------------------------------------------------------------------------------------------------------------- */

typedef struct answer {
  channel *channel;
  const char *id; /* JSON text */
  size_t id_len;
  wire_encoding encoding;
  int code;
  bool more;             /* one of a stream, and not its last */
  const wire_buf *items; /* gathered ones, which the body is the last of; or NULL */
} answer;

/* Sends the value on top of L (popped) as the body. False: it has no JSON form, *err says why and nothing was sent. */
bool answer_send(const answer *a, lua_State *L, host_json_error *err);
void answer_refuse(answer *a, const char *message, const char *detail); /* a body of these; message NULL: null */

/* ---- request.c: a message that asks for something -------------------------------------------------------------------------------------------- */

void request_read(channel *c, const wire_message *m); /* answers it, now or when its endpoint has */
void request_refuse(channel *c, wire_encoding encoding, int code, const char *message, const char *detail); /* with request_id 0 */
void request_orphan(channel *c); /* the channel has gone: what runs for it is cancelled */

#endif
