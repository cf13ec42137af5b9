/* Tasks: a pool of coroutines, the queue of those that are ready to go on, and tickets for those that wait.
 *
 * A task is resumed from host_task_begin and host_run only, never from within another, so one is running or none is. What makes a task
 * ready is not known here. */
#include <lauxlib.h>
#include <stdlib.h>

#include "host/host.h"

struct host_task {
  host_task *next; /* in the pool or the ready queue */
  host_task *all;  /* every task that was ever made */
  lua_State *co;
  int ref; /* of co, in the registry */
  host_task_done *done;
  void *owner;
  uint64_t ticket; /* what it waits for; 0: it does not wait */
  int nargs;       /* of the next resume */
  bool again;      /* ready as soon as it waits */
};

struct host {
  host_task *all, *pool, *running;
  host_task *ready_first, *ready_last;
  uint64_t tickets;
};

host *host_new(lua_State *L) {
  (void)L;
  return calloc(1, sizeof(host));
}

void host_free(host *h) {
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
  return t;
}

lua_State *host_task_state(const host_task *t) { return t->co; }

/* An error leaves the dead frames for the traceback; resetting makes the thread good again. */
static void recycle(host *h, lua_State *L, host_task *t, int status) {
  if (status != LUA_OK && lua_resetthread(t->co) != LUA_OK) drop_thread(L, t);
  if (t->co) lua_settop(t->co, 0);
  t->next = h->pool;
  h->pool = t;
}

/* Suspended: by a wait of ours, which has a ticket, or by nobody who would ever resume it, which is an error. */
static int suspended(host *h, host_task *t, int nresults) {
  lua_pop(t->co, nresults);
  if (t->ticket == 0) {
    lua_pushliteral(t->co, "coroutine.yield outside a coroutine of your own: use korv.sleep or korv.await to wait");
    return LUA_ERRRUN;
  }
  if (t->again) {
    t->ticket = 0;
    host_task_queue(h, t, 0);
  }
  return LUA_YIELD;
}

static void resume(host *h, host_task *t, lua_State *L) {
  int nresults = 0;
  t->again = false;
  h->running = t;
  int status = lua_resume(t->co, L, t->nargs, &nresults);
  h->running = NULL;
  if (status == LUA_YIELD) status = suspended(h, t, nresults);
  if (status == LUA_YIELD) return;
  t->ticket = 0;
  t->done(t->owner, t, t->co, status, nresults);
  recycle(h, L, t, status);
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
    *why = "Lua cannot suspend through the C function that called this (table.sort, string.gsub, require, a metamethod of tostring …): "
           "wait before or after it";
  } else {
    return t;
  }
  return NULL;
}

uint64_t host_task_ticket(host *h, host_task *t) { return t->ticket = ++h->tickets; }

/* What the wake pushed on the coroutine's stack is what the waiting C function returns. */
static int woken(lua_State *L, int status, lua_KContext at) {
  (void)status;
  return lua_gettop(L) - (int)at;
}

int host_task_wait(host_task *t, lua_State *L) {
  (void)t;
  return lua_yieldk(L, 0, lua_gettop(L), woken);
}

bool host_task_wake(host *h, host_task *t, uint64_t ticket, lua_State *from, int nvalues) {
  if (t->ticket != ticket || t == h->running || !lua_checkstack(t->co, nvalues + 1)) {
    lua_pop(from, nvalues);
    return false;
  }
  t->ticket = 0;
  lua_xmove(from, t->co, nvalues);
  host_task_queue(h, t, nvalues);
  return true;
}

void host_task_wake_next(host *h, host_task *t, uint64_t ticket) {
  t->again = t == h->running && t->ticket == ticket;
}
