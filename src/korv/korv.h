/* korv: the Lua module korv.core. Joins wire, net and host, and knows what a message is; endpoints, policy and everything that a
 * person calls are Lua's (lua/korv). Each file here is one Lua type or a part of one. */
#ifndef KORV_KORV_H
#define KORV_KORV_H

#include <lauxlib.h>
#include <lua.h>
#include <luv/lhandle.h>
#include <luv/luv.h>
#include <sys/queue.h>
#include <uv.h>

#include "host/host.h"
#include "net/net.h"
#include "wire/wire.h"

/* ---- log.c: lines on their way to stderr ------------------------------------------------------------------------------------------ */

typedef struct log_queue {
  wire_buf out;     /* whole lines; of the first, a part may have gone out */
  size_t dropped;   /* lines, because too much waited */
  uint64_t dropped_ever;
  uv_timer_t retry; /* while stderr takes no more */
  uint64_t retry_ms;
  int fd, kind;     /* stderr, and how it is written to */
  LIST_ENTRY(log_queue) link;
} log_queue;

typedef struct hub hub;

void log_line(hub *h, const char *line, size_t len); /* its newline is added; written after the turn, or at once where no loop runs */
void log_flush(hub *h);                              /* writes what stderr takes without waiting */
void log_begin(hub *h);
void log_end(hub *h);   /* what waits goes out, if somebody reads it */
void log_close(hub *h); /* as timers_close */

/* ---- hub.c: what one Lua state has once ----------------------------------------------------------------------------------------- */

typedef struct timer timer;
struct request;

struct hub {
  uv_loop_t *loop;
  lua_State *L; /* a thread of its own for all that runs in a turn */
  net *net;
  host *host;
  wire_codec *codec;
  wire_buf scratch;        /* a message on its way into a gzip member */
  luv_handle_t *luv;       /* what luv expects behind ->data of every handle on its loop */
  uv_prepare_t prepare;    /* a turn before the loop sleeps, */
  uv_check_t check;        /* one after what woke it, */
  uv_idle_t idle;          /* and no sleep while something is left to do */
  uv_timer_t rest;         /* after a burst: memory is given back */
  size_t burst_bytes;      /* of large messages, not followed by a rest yet */
  int rested_kb;           /* of Lua's memory, after the last rest that collected */
  LIST_HEAD(, request) requests; /* of all servers, while they are to be answered */
  timer *timers, *spare_timers; /* all, and those not in use */
  log_queue log;
  unsigned closing_handles;
  struct request *beginning; /* which the app's handler has not been told of for long: it is looking for the endpoint */
  bool in_turn, dead;
  uint64_t clock_ns; /* when hub_clock was asked last: as this turn began, or since */
  char time[24]; /* of this turn, in seconds, as JSON */
  size_t time_len;
  time_t second; /* of time */
};

void hub_open(lua_State *L); /* makes it where there is none; the module's table is on top of the stack, it gets set_log; raises */
hub *hub_find(lua_State *L); /* NULL: it has gone, and the state is being closed */
hub *hub_get(lua_State *L);  /* raises then, for only a finalizer runs so late */
void hub_push(lua_State *L); /* a userdata, a hub **, for a function that is called often: as its upvalue */
uint64_t hub_clock(hub *h); /* uv_hrtime, which is put down */
void hub_poke(hub *h); /* something was queued outside a turn */
void hub_handle_closed(hub *h);

enum { BURST_BYTES = 4 << 20 };
void hub_burst(hub *h, size_t bytes); /* so much came in or was queued: past BURST_BYTES a rest follows, when it is quiet */

/* Calls the function below nargs arguments on h->L, protected; an error goes to the log (core.log) with its traceback and `where`. Leaves
 * nresults values, or none and returns false. */
bool hub_call(hub *h, int nargs, int nresults, const char *where);
void hub_log(hub *h, const char *level, const char *format, ...) __attribute__((format(printf, 3, 4)));

const char *hub_text(hub *h); /* replaces the value on top of h->L by its text, protected: __tostring is an app's */
void hub_log_error(hub *h, lua_State *co, const char *where); /* the error on top of co (popped), as text */

int ref_take(lua_State *L);              /* pops a value into the registry */
void ref_drop(lua_State *L, int *ref);   /* idempotent */
int fail(lua_State *L, const char *name, const char *message); /* returns nil, message, name */

/* A userdata type with these methods; one place for all. gc may be NULL. */
void type_make(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction gc);

/* ---- timer.c --------------------------------------------------------------------------------------------------------------------------- */

typedef void timer_fire(void *arg, uint64_t number); /* in the loop, outside a turn; the timer is stopped already */

struct timer {
  uv_timer_t uv;
  hub *hub;
  timer *all, *next;
  timer_fire *fire;
  void *arg;
  uint64_t number;
};

timer *timer_start(hub *h, double seconds, timer_fire *fire, void *arg, uint64_t number); /* NULL: no memory */
void timer_stop(timer *t);                                                               /* t is gone then, as it is once it has fired */
void timers_close(hub *h);

/* ---- options of a table at an index ------------------------------------------------------------------------------------------------ */

const char *option_string(lua_State *L, int index, const char *name, const char *otherwise); /* lives as long as the table holds it */
lua_Integer option_integer(lua_State *L, int index, const char *name, lua_Integer otherwise, lua_Integer least, lua_Integer most);
uint64_t option_ms(lua_State *L, int index, const char *name, double otherwise_s); /* seconds in Lua, milliseconds here */
bool option_boolean(lua_State *L, int index, const char *name, bool otherwise);
int option_function(lua_State *L, int index, const char *name); /* a reference; raises where there is none */
wire_limits option_wire_limits(lua_State *L, int index); /* of what comes in: max_message_bytes, max_packed_bytes */
host_json_limits option_json_limits(lua_State *L, int index); /* max_depth, and for what goes out max_request_bytes */

/* ---- the Lua types ------------------------------------------------------------------------------------------------------------------ */

void key_open(lua_State *L);        /* core.load_key, make_key, public_key; a key is a userdata */
net_key **key_list(lua_State *L, int index, const char *name, size_t *count); /* the keys in a table's list; a userdata on the stack */
void key_list_give_up(lua_State *L, int index, const char *name); /* the keys of the list belong to whoever has them now */
void server_open(lua_State *L);     /* core.server */
void connection_open(lua_State *L); /* core.dial */
void reader_open(lua_State *L);     /* core.reader */
void fd_open(lua_State *L);         /* core.dup_cloexec */
void orphan_open(lua_State *L);     /* core.start_orphan */
void endpoint_open(lua_State *L);   /* core.send, core.deadline, core.mark */
void metrics_open(lua_State *L);    /* core.duration_bounds */
void timer_open(lua_State *L);      /* core.timer */
void log_open(lua_State *L);        /* core.log_write, log_flush, log_dropped, log_time */
void notify_open(lua_State *L);     /* core.notify, inherit */
void task_open(lua_State *L);       /* core.spawn, sleep, here, ticket, wait, wake */
void slice_open(lua_State *L);      /* core.slices */
host_task *task_that_waits(lua_State *L, int level); /* raises where nothing can wait, as if at that level of the stack */

#endif
