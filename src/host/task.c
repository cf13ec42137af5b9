/* Tasks: a pool of coroutines, the queue of those that are ready to go on, and tickets for those that wait.
 *
 * A task is resumed from host_task_begin and host_run only, never from within another, so one is running or none is. What makes a task
 * ready is not known here. */
#include <lauxlib.h>
#include <stdlib.h>

#include "host/host.h"
#include "host/watchdog.h"

struct host_task {
  host_task *next; /* in the pool or the ready queue */
  host_task *all;  /* every task that was ever made */
  lua_State *co;
  int ref; /* of co, in the registry */
  host_task_done *done;
  void *owner;
  host *host;
  uint64_t ticket; /* what it waits for; 0: it does not wait */
  host_task_unwait *unwait;
  void *unwait_arg;
  int nargs;      /* of the next resume */
  bool waits;     /* it yielded for its ticket */
  bool again;     /* ready as soon as it waits */
  bool cancelled; /* to be closed in place of being resumed */
  bool stopped;   /* by the watchdog */
};

struct host {
  host_task *all, *pool, *running;
  host_task *ready_first, *ready_last;
  uint64_t tickets;
  void *owner;
  watchdog *watchdog;
};

host *host_new(lua_State *L, void *owner) {
  watchdog *w = watchdog_open(L); /* first: it may raise */
  host *h = calloc(1, sizeof *h);
  if (!h) return NULL;
  h->owner = owner;
  h->watchdog = w;
  return h;
}

int host_cpu_limit(host *h, double seconds) { return watchdog_limit(h->watchdog, seconds); }

int host_pcall(host *h, lua_State *L, int nargs, int nresults, int handler) {
  return watchdog_pcall(h->watchdog, L, nargs, nresults, handler);
}

void *host_owner(const host_task *t) { return t->host->owner; }

void host_free(host *h) {
  watchdog_close(h->watchdog);
  while (h->all) {
    host_task *t = h->all;
    h->all = t->all;
    free(t);
  }
  free(h);
}

static void drop_thread(lua_State *L, host_task *t) {
  luaL_unref(L, LUA_REGISTRYINDEX, t->ref);
  t->ref = LUA_NOREF;
  t->co = NULL;
}

static void give_thread(lua_State *L, host_task *t) {
  lua_State *co = lua_newthread(L);
  t->ref = luaL_ref(L, LUA_REGISTRYINDEX);
  t->co = co;
}

host_task *host_task_new(host *h, lua_State *L, host_task_done *done, void *owner) {
  host_task *t = h->pool;
  if (!t) {
    t = calloc(1, sizeof *t);
    if (!t) luaL_error(L, "out of memory for a task");
    t->ref = LUA_NOREF;
    t->host = h;
    t->all = h->all;
    h->all = t;
    t->next = NULL;
    h->pool = t; /* where it is found if the next line raises */
  }
  if (!t->co) give_thread(L, t);
  h->pool = t->next;
  t->next = NULL;
  t->done = done;
  t->owner = owner;
  t->cancelled = t->stopped = false;
  return t;
}

void host_task_set_owner(host_task *t, void *owner) { t->owner = owner; }
lua_State *host_task_state(const host_task *t) { return t->co; }
/* cppcheck-suppress constParameter ; it is a function */
void *host_task_owner(const host_task *t, host_task_done *done) { return t->done == done ? t->owner : NULL; }

/* Closes the to-be-closed variables of every frame. False: one of them raised, or the coroutine is good for nothing more. */
static bool reset(host *h, host_task *t) {
  watchdog_run run;
  watchdog_enter(h->watchdog, &run, t->co);
  int status = lua_resetthread(t->co);
  if (watchdog_leave(h->watchdog, &run)) t->stopped = true;
  return status == LUA_OK && !t->stopped;
}

/* An error leaves the dead frames for the traceback; resetting makes the thread good again, unless the watchdog has touched it. */
static void recycle(host *h, lua_State *L, host_task *t, int status) {
  bool dead = status != LUA_OK && status != HOST_CANCELLED;
  if ((dead && !reset(h, t)) || t->stopped) drop_thread(L, t);
  if (t->co) lua_settop(t->co, 0);
  t->next = h->pool;
  h->pool = t;
}

static void finish(host *h, host_task *t, lua_State *L, int status, int nresults) {
  t->ticket = 0;
  t->done(t->owner, t, t->co, status, nresults);
  recycle(h, L, t, status);
}

/* What the watchdog stopped goes on top of co, which stays where it was for a traceback. */
static void tell_stopped(host *h, host_task *t, lua_State *L) {
  t->stopped = true;
  watchdog_push_message(h->watchdog, L);
  lua_xmove(L, t->co, 1);
}

/* Closing runs the to-be-closed variables of every frame; what the last of them raised is on top of co. */
static void close_cancelled(host *h, host_task *t, lua_State *L) {
  int failed = !reset(h, t);
  if (t->stopped) tell_stopped(h, t, L);
  finish(h, t, L, HOST_CANCELLED, failed);
}

static void end_wait(host_task *t) {
  t->ticket = 0;
  if (t->unwait) t->unwait(t, t->unwait_arg);
  t->unwait = NULL;
}

/* Suspended: by a wait of ours, which has a ticket, or by nobody who would ever resume it, which is an error. */
static int suspended(host *h, host_task *t, int nresults) {
  lua_pop(t->co, nresults);
  if (!t->waits) {
    lua_pushliteral(t->co, "coroutine.yield outside a coroutine of your own: use korv.sleep or korv.await to wait");
    return LUA_ERRRUN;
  }
  if (t->cancelled) end_wait(t);
  if (t->again || t->cancelled) {
    t->ticket = 0;
    host_task_queue(h, t, 0);
  }
  return LUA_YIELD;
}

static void resume(host *h, host_task *t, lua_State *L) {
  int nresults = 0;
  watchdog_run run;
  t->waits = t->again = false;
  h->running = t;
  watchdog_enter(h->watchdog, &run, t->co);
  int status = lua_resume(t->co, L, t->nargs, &nresults);
  bool stopped = watchdog_leave(h->watchdog, &run);
  h->running = NULL;
  if (stopped) {
    if (t->waits) end_wait(t); /* it may have come to wait at that very moment */
    tell_stopped(h, t, L);
    status = LUA_ERRRUN;
  } else if (status == LUA_YIELD) {
    status = suspended(h, t, nresults);
  }
  if (status != LUA_YIELD) finish(h, t, L, status, nresults);
}

void host_task_begin(host *h, host_task *t, lua_State *L, int nargs) {
  t->nargs = nargs;
  resume(h, t, L);
}

void host_task_queue(host *h, host_task *t, int nargs) {
  t->nargs = nargs;
  t->next = NULL;
  if (h->ready_last)
    h->ready_last->next = t;
  else
    h->ready_first = t;
  h->ready_last = t;
}

bool host_pending(const host *h) { return h->ready_first != NULL; }

/* Those that become ready meanwhile have to wait for the next turn, so that a task that always is cannot keep the loop to itself. */
bool host_run(host *h, lua_State *L) {
  host_task *last = h->ready_last;
  while (last && h->ready_first) {
    host_task *t = h->ready_first;
    h->ready_first = t->next;
    if (!h->ready_first) h->ready_last = NULL;
    if (t == last) last = NULL;
    t->next = NULL;
    if (t->cancelled)
      close_cancelled(h, t, L);
    else
      resume(h, t, L);
  }
  return host_pending(h);
}

/* ---- waiting ----------------------------------------------------------------------------------------------------------------------- */

host_task *host_task_here(const host *h, lua_State *L, const char **why) {
  host_task *t = h->running;
  if (!t) {
    *why = "this is no coroutine of korv's: use korv.spawn(function() … end), or a callback";
  } else if (t->co != L) {
    *why = "this coroutine is not korv's to resume: use korv.spawn(function() … end) in place of coroutine.wrap or coroutine.create";
  } else if (!lua_isyieldable(L)) {
    *why = NULL;
  } else {
    return t;
  }
  return NULL;
}

host_task *host_task_running(const host *h) { return h->running; }

uint64_t host_task_ticket(host *h, host_task *t, host_task_unwait *unwait, void *arg) {
  t->unwait = unwait;
  t->unwait_arg = arg;
  return t->ticket = ++h->tickets;
}

void host_task_set_unwait_arg(host_task *t, void *arg) { t->unwait_arg = arg; }

void host_task_wait(host_task *t) { t->waits = true; }

bool host_task_wake(host *h, host_task *t, uint64_t ticket, lua_State *from, int nvalues) {
  if (t->ticket != ticket || t == h->running || !lua_checkstack(t->co, nvalues + 1)) {
    lua_pop(from, nvalues);
    return false;
  }
  t->ticket = 0;
  t->unwait = NULL;
  lua_xmove(from, t->co, nvalues);
  host_task_queue(h, t, nvalues);
  return true;
}

void host_task_wake_next(host *h, host_task *t) { t->again = t == h->running && t->ticket != 0; }

bool host_task_give_way(host *h, lua_State *L) {
  const char *why;
  host_task *t = host_task_here(h, L, &why);
  if (!t || t->ticket != 0) return false;
  host_task_ticket(h, t, NULL, NULL);
  host_task_wake_next(h, t);
  host_task_wait(t);
  lua_yield(L, 0); /* which takes effect when the hook returns */
  return true;
}

void host_task_cancel(host *h, host_task *t) {
  if (t->cancelled) return;
  t->cancelled = true;
  if (t == h->running || t->ticket == 0) return; /* at its next wait; or it is in the ready queue already */
  end_wait(t);
  host_task_queue(h, t, 0);
}
