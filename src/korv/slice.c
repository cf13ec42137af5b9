/* core.slices: a function that may compute for long, such as a load of endpoint scripts, run in slices while others are served, and for
 * so long only. */
#include <stdio.h>

#include "korv/korv.h"

static const char JOB[] = "korv.job";

/* A Lua userdata, kept in the registry under `self` while its task lives. */
typedef struct job {
  hub *hub;
  host_task *task; /* NULL: it has ended */
  host_slices slices;
  timer *limit; /* NULL: it has fired */
  double seconds;
  int self, done;
  bool late;
  char place[1024]; /* where it was when it was too late */
} job;

/* Calls the function that done refers to with the nvalues on top of h->L, and lets go of it. */
static void tell(hub *h, int done, int nvalues) {
  lua_rawgeti(h->L, LUA_REGISTRYINDEX, done);
  luaL_unref(h->L, LUA_REGISTRYINDEX, done);
  lua_insert(h->L, -nvalues - 1);
  hub_call(h, nvalues, 0, "at the end of a load");
}

/* Pushes what done is called with: how many values. */
static int push_outcome(const job *j, lua_State *L, lua_State *co, int status, int nresults) {
  lua_pushboolean(L, status == LUA_OK);
  if (status == LUA_OK) {
    luaL_checkstack(L, nresults + LUA_MINSTACK, "too many results");
    lua_xmove(co, L, nresults);
    return nresults + 1;
  }
  if (status != HOST_CANCELLED) {
    lua_xmove(co, L, 1);
    luaL_traceback(L, co, NULL, 0);
    return 3;
  }
  char limit[32];
  snprintf(limit, sizeof limit, "%g", j->seconds);
  if (j->late)
    lua_pushfstring(L, "%sstopped after %s s of loading", j->place, limit);
  else
    lua_pushliteral(L, "cancelled");
  return 2;
}

static void on_done(void *owner, host_task *t, lua_State *co, int status, int nresults) {
  (void)t;
  job *j = owner;
  hub *h = j->hub;
  host_slices_end(&j->slices, h->L);
  if (j->limit) timer_stop(j->limit);
  j->limit = NULL;
  j->task = NULL;
  if (status == HOST_CANCELLED && nresults) hub_log_error(h, co, "in a to-be-closed variable of a load that was stopped");
  int nvalues = push_outcome(j, h->L, co, status, nresults);
  ref_drop(h->L, &j->self);
  tell(h, j->done, nvalues);
}

static int note_place(lua_State *L) {
  job *j = lua_touserdata(L, 1);
  host_slices_place(&j->slices, L, j->place, sizeof j->place);
  return 0;
}

static void on_late(void *arg, uint64_t number) {
  (void)number;
  job *j = arg;
  hub *h = j->hub;
  j->limit = NULL;
  j->late = true;
  lua_pushcfunction(h->L, note_place);
  lua_pushlightuserdata(h->L, j);
  if (lua_pcall(h->L, 1, 0, 0) != LUA_OK) lua_pop(h->L, 1);
  host_task_cancel(h->host, j->task);
}

/* The job is on top of L, what it needs below: 1 the function, 4 its sources. */
static void begin(lua_State *L, job *j) {
  hub *h = j->hub;
  host_task *t = host_task_new(h->host, L, on_done, j);
  lua_pushvalue(L, 4);
  host_slices_begin(&j->slices, h->host, t, L);
  j->limit = timer_start(h, j->seconds, on_late, j, 0);
  if (!j->limit) luaL_error(L, "out of memory for a timer");
  j->task = t;
  lua_pushvalue(L, 1);
  lua_xmove(L, host_task_state(t), 1);
  host_task_queue(h->host, t, 0);
  hub_poke(h);
}

/* slices(fn, seconds, done [, sources]) -> job: runs fn in a task that gives way about every 50 µs, where the source of the function
 * that runs is a key of sources. done(true, …) with what it returned, done(false, error, traceback), or done(false, message) where it took
 * more seconds or was cancelled. */
static int slices(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  double seconds = luaL_checknumber(L, 2);
  luaL_checktype(L, 3, LUA_TFUNCTION);
  lua_settop(L, 4);
  job *j = lua_newuserdatauv(L, sizeof *j, 0);
  *j = (job){.hub = hub_get(L), .seconds = seconds, .self = LUA_NOREF, .done = LUA_NOREF};
  luaL_setmetatable(L, JOB);
  lua_pushvalue(L, 3);
  j->done = ref_take(L);
  lua_pushvalue(L, -1);
  j->self = ref_take(L);
  begin(L, j);
  return 1;
}

/* job:cancel(): done(false, "cancelled") follows; nothing where it has ended. */
static int cancel(lua_State *L) {
  job *j = luaL_checkudata(L, 1, JOB);
  if (j->task && !j->hub->dead) {
    host_task_cancel(j->hub->host, j->task);
    hub_poke(j->hub);
  }
  return 0;
}

void slice_open(lua_State *L) {
  static const luaL_Reg methods[] = {{"cancel", cancel}, {NULL, NULL}};
  type_make(L, JOB, methods, NULL);
  lua_pushcfunction(L, slices);
  lua_setfield(L, -2, "slices");
}
