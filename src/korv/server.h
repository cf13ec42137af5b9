/* What server.c, control.c, generation.c, metrics.c, access.c, request.c, endpoint.c, answer.c and caller.c share: the server's types. */
#ifndef KORV_SERVER_H
#define KORV_SERVER_H

#include <sys/queue.h>

#include "korv/korv.h"

#define KORV_SERVER "korv.server"

enum { ID_BYTES = 256 };

typedef struct server server;
typedef struct channel channel;

typedef struct generation {
  server *server;
  int handler; /* a Lua function */
  lua_Integer number;
  size_t in_flight; /* requests that began in it */
} generation;

typedef struct request {
  LIST_ENTRY(request) link; /* of its channel, or its server's orphans or spares */
  LIST_ENTRY(request) live; /* of the hub, while it is to be answered */
  server *server;
  channel *channel; /* NULL: gone */
  generation *generation;
  host_task *task;
  int line;          /* the message's table, for the access line; LUA_NOREF: none is wanted */
  uint64_t began_ns; /* by hub_clock, which is not asked for each */
  size_t slot;       /* what it is counted under */
  size_t bytes;      /* answered so far */
  size_t asked_bytes; /* the message's, as JSON */
  const void *table; /* the Lua table's address: it lives as long as the task, at the bottom of its stack */
  timer *deadline;   /* NULL: none */
  double seconds;    /* the deadline's */
  uint64_t due_ms;   /* the same, on the loop's clock */
  int cancel_code;   /* why it was cancelled: 499, 503, 504; 0: it was not */
  bool stream;       /* items go out as they come */
  bool sent;         /* an item was sent or gathered */
  wire_buf items;    /* gathered, encoded, commas between */
  wire_encoding encoding;
  size_t id_len;
  char id[ID_BYTES]; /* as its bytes stood in the message */
} request;

typedef LIST_HEAD(request_list, request) request_list;

typedef struct endpoint_metrics endpoint_metrics;

typedef struct metrics {
  endpoint_metrics *endpoints; /* by slot, as far as something was counted */
  size_t count;
  timer *pulse; /* how late it comes is the loop's lag */
  uint64_t due_ns, lag_ns, most_lag_ns[2]; /* the greatest of this period and of the one before */
  unsigned pulses;
} metrics;

struct server {
  hub *hub;
  net_listener *listener;
  int failed, authorize, closed, refused, retired, ended, converse, answered, slot; /* Lua functions; the last two may be none */
  generation *generation;                 /* of new requests */
  int request_meta;                       /* the metatable of request tables */
  int self;                               /* keeps the userdata while a connection may need it */
  wire_limits in;
  host_json_limits json;
  size_t in_flight, in_flight_most; /* of all channels */
  size_t in_flight_bytes, in_flight_bytes_most; /* of their messages */
  size_t channel_in_flight_most, queued_most, turn_bytes;
  double timeout; /* of a request, in seconds; 0: none */
  uint64_t requests; /* ever */
  metrics metrics;
  bool draining;  /* what runs may end, nothing begins */
  bool replaced;  /* by another server: what is not read yet when this one drains is for that one */
  bool unused;    /* its listener and its sessions have gone */
  LIST_HEAD(, channel) channels;
  request_list spare;   /* to be used again */
  request_list orphans; /* whose channel has gone while they ran */
};

struct channel {
  LIST_ENTRY(channel) link; /* of its server */
  server *server;
  net_channel *net;    /* NULL: a caller within this process */
  wire_reader *reader; /* NULL: a caller's */
  int peer; /* the session's table, in the registry; the session owns the reference */
  int handlers, caller; /* references: what Lua speaks for it with; none: it speaks messages */
  bool told_stopping;
  size_t in_flight;
  request_list requests;
  wire_buf senders; /* of `sender`: tasks that wait for output to drain */
  bool held;          /* a caller in this process has enough for now */
  bool paused, ended; /* ended: no more requests will come */
  bool looked_ahead;  /* the next message is at hand, and no cancel */
  bool reading;       /* whole messages may be at hand */
  bool large;         /* it has carried large messages */
};

typedef struct sender {
  host_task *task;
  uint64_t ticket;
} sender;

void server_release(server *s); /* after the last of anything that needs it */
bool channel_is_full(const channel *c);    /* no more requests are to be read */
bool channel_is_clogged(const channel *c); /* no more output is to be queued */
void channel_finish_if_done(channel *c);
void channel_wake_senders(channel *c, bool gone); /* those who wait to send go on; where the client has gone they are told */
void channel_less_busy(channel *c); /* an answer is out: go on reading, or finish */

/* ---- control.c ----------------------------------------------------------------------------------------------------------------------------- */

extern const luaL_Reg control_methods[]; /* of the Lua type */
/* Closes a session that a drain has left without a use: it has no channels but `leaving`, which are about to go. */
void session_close_drained(const server *s, net_session *session, size_t leaving);

/* ---- generation.c ------------------------------------------------------------------------------------------------------------------------ */

generation *generation_enter(server *s); /* for a request that begins */
void generation_leave(generation *g);    /* which has ended */
void generation_swap(server *s, lua_State *L, lua_Integer number); /* pops the handler of requests to come; raises for want of memory */
void generation_free(lua_State *L, generation *g);

/* ---- metrics.c: what is counted ------------------------------------------------------------------------------------------------------------- */

/* Slots are small numbers for which Lua has names; these two mean the same to both. */
enum { SLOT_NOTHING = 0 /* no endpoint */, SLOT_NO_REQUEST = 1 };

void metrics_begin(server *s);
void metrics_end(server *s); /* it measures no lag any more; the counts stay */
void metrics_free(metrics *m);
void metrics_request(metrics *m, size_t slot, int code, uint64_t ns); /* has ended after so long */
void metrics_refused(metrics *m, size_t slot, int code);              /* what has not begun */
int metrics_push(lua_State *L); /* server:metrics() -> table */

/* ---- answer.c ---------------------------------------------------------------------------------------------------------------------------- */

typedef struct answer {
  channel *channel;
  const char *id; /* JSON text */
  size_t id_len;
  wire_encoding encoding;
  int code;
  bool more;             /* one of a stream, and not its last */
  const wire_buf *items; /* gathered ones, which the body is the last of; or NULL */
  size_t bytes;          /* out: the message's, before compression */
} answer;

/* Sends the value on top of L (popped) as the body. False: it has no JSON form, *err says why and nothing was sent. */
int answer_append_body(lua_State *L, const wire_buf *items, host_json_limits limits, wire_buf *out, host_json_error *err);
bool answer_send(answer *a, lua_State *L, host_json_error *err);
void answer_refuse(answer *a, const char *message, const char *detail); /* a body of these; message NULL: null */

/* ---- access.c ---------------------------------------------------------------------------------------------------------------------------- */

void access_refused(const channel *c, const answer *a, int table); /* table: a reference to the message's, or none */
void access_answered(request *r, int code, uint64_t ns);

/* ---- request.c: a message that asks for something -------------------------------------------------------------------------------------------- */

void request_read(channel *c, const wire_message *m); /* answers it, now or when its endpoint has */
bool request_cancel(channel *c, const wire_message *m); /* false, and nothing is done: it is something else than a cancel */
void request_refuse(channel *c, wire_encoding encoding, int code, const char *message, const char *detail); /* with request_id 0 */
void request_orphan(channel *c); /* the channel has gone: what runs for it is cancelled */
void request_cancel_all(server *s, int code); /* which their clients are answered */
request *request_running(const hub *h); /* whose endpoint runs now; NULL: none. h may be NULL */
void request_set_deadline(request *r, double seconds); /* from when it began; the earliest counts */

/* ---- caller.c ---------------------------------------------------------------------------------------------------------------------------- */

/* Of a channel with handlers; each of these tells one of them. */
void caller_open(channel *c); /* asks Lua for them */
bool caller_readable(channel *c);
void caller_nudged(channel *c);
void caller_drained(channel *c);
void caller_stopping(channel *c); /* it has nothing under way, and the server drains */
void caller_closed(channel *c);
bool caller_answer(answer *a, lua_State *L, host_json_error *err); /* as answer_send */
int caller_new(lua_State *L); /* server:caller(peer, handlers) -> caller: one without a channel of SSH's; it lasts until it is closed */
void caller_open_type(lua_State *L);

#endif
