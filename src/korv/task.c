/* core.spawn, sleep and the primitives that korv.await is made of (lua/korv/task.lua). */
#include <string.h>

#include "korv/korv.h"

/* ---- spawn --------------------------------------------------------------------------------------------------------------------------------- */

static void on_spawned_done(void *owner, host_task *t, lua_State *co, int status, int nresults) {
  (void)t;
  hub *h = owner;
  if (status == HOST_CANCELLED && nresults) hub_log_error(h, co, "in a to-be-closed variable of a cancelled task");
  if (status == LUA_OK || status == HOST_CANCELLED) return;
  lua_xmove(co, h->L, 1);
  const char *message = hub_text(h);
  luaL_traceback(h->L, co, message, 0);
  hub_log(h, "error", "in korv.spawn: %s", lua_tostring(h->L, -1));
  lua_pop(h->L, 2);
}

/* spawn(fn, …): begins at the next turn of the loop. */
static int spawn(lua_State *L) {
  hub *h = hub_get(L);
  luaL_checktype(L, 1, LUA_TFUNCTION);
  int n = lua_gettop(L);
  host_task *t = host_task_new(h->host, L, on_spawned_done, h);
  luaL_checkstack(host_task_state(t), n, "too many arguments");
  lua_xmove(L, host_task_state(t), n);
  host_task_queue(h->host, t, n - 1);
  hub_poke(h);
  return 0;
}

/* ---- waiting ------------------------------------------------------------------------------------------------------------------------------- */

static bool is_passable(const char *name) {
  static const char *const passable[] = {"korv.", "pcall'", "xpcall'", "dofile'"};
  for (size_t i = 0; i < sizeof passable / sizeof *passable; i++)
    if (strncmp(name, passable[i], strlen(passable[i])) == 0) return true;
  return false;
}

/* Replaces a traceback on top of L by the name of the first function in it that is C, and neither ours nor one that Lua can suspend
 * through. */
static void name_obstacle(lua_State *L) {
  static const char in_c[] = "[C]: in function '";
  const char *at = strstr(lua_tostring(L, -1), in_c);
  while (at && is_passable(at + sizeof in_c - 1)) at = strstr(at + 1, in_c);
  const char *name = at ? at + sizeof in_c - 1 : "a metamethod or another C function'";
  lua_pushlstring(L, name, strcspn(name, "'"));
  lua_remove(L, -2);
}

/* Pushes why nothing can wait here; why NULL: a C function is in the way. */
static void push_reason(lua_State *L, const char *why) {
  if (why) {
    lua_pushfstring(L, "cannot wait here: %s", why);
    return;
  }
  luaL_traceback(L, L, NULL, 0);
  name_obstacle(L);
  lua_pushfstring(L, "cannot wait here: inside '%s', a C function, Lua cannot suspend; do the wait before or after it", lua_tostring(L, -1));
  lua_remove(L, -2);
}

/* here() -> task | nil, why not */
static int here(lua_State *L) {
  const char *why;
  host_task *t = host_task_here(hub_get(L)->host, L, &why);
  if (t) {
    lua_pushlightuserdata(L, t);
    return 1;
  }
  lua_pushnil(L);
  push_reason(L, why);
  return 2;
}

host_task *task_that_waits(lua_State *L, int level) {
  const char *why;
  host_task *t = host_task_here(hub_get(L)->host, L, &why);
  if (t) return t;
  luaL_where(L, level);
  push_reason(L, why);
  lua_concat(L, 2);
  lua_error(L);
  return NULL;
}

/* The function that a korv.await gave is to undo what it began: it is kept under the task until the wait is over. */
static void undo(host_task *t, void *arg) {
  hub *h = arg;
  if (lua_rawgetp(h->L, LUA_REGISTRYINDEX, t) == LUA_TFUNCTION)
    hub_call(h, 0, 0, "in the cancel function of a korv.await");
  else
    lua_pop(h->L, 1);
  lua_pushnil(h->L);
  lua_rawsetp(h->L, LUA_REGISTRYINDEX, t);
}

/* must_wait(): raises where the caller of the caller cannot wait */
static int must_wait(lua_State *L) {
  task_that_waits(L, 2);
  return 0;
}

/* ticket() -> task, ticket; raises where nothing can wait */
static int ticket(lua_State *L) {
  hub *h = hub_get(L);
  host_task *t = task_that_waits(L, 2); /* the caller of korv.await */
  lua_pushlightuserdata(L, t);
  lua_pushinteger(L, (lua_Integer)host_task_ticket(h->host, t, undo, h));
  return 2;
}

static int woken(lua_State *L, int status, lua_KContext at) {
  (void)status;
  lua_pushnil(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, lua_touserdata(L, 1));
  return lua_gettop(L) - (int)at;
}

/* wait(task [, undo]) -> what wake was given */
static int wait_for(lua_State *L) {
  luaL_checktype(L, 1, LUA_TLIGHTUSERDATA);
  lua_settop(L, 2);
  lua_rawsetp(L, LUA_REGISTRYINDEX, lua_touserdata(L, 1));
  host_task_wait(lua_touserdata(L, 1));
  return lua_yieldk(L, 0, 1, woken);
}

/* wake(task, ticket, …) -> whether it still waited for that */
static int wake(lua_State *L) {
  hub *h = hub_get(L);
  luaL_checktype(L, 1, LUA_TLIGHTUSERDATA);
  uint64_t number = (uint64_t)luaL_checkinteger(L, 2);
  bool was_waiting = host_task_wake(h->host, lua_touserdata(L, 1), number, L, lua_gettop(L) - 2);
  hub_poke(h);
  lua_pushboolean(L, was_waiting);
  return 1;
}

/* ---- sleep ------------------------------------------------------------------------------------------------------------------------------------ */

static void on_slept(void *arg, uint64_t number) {
  host_task *t = arg;
  hub *h = host_owner(t);
  host_task_wake(h->host, t, number, h->L, 0);
}

static void stop_sleep(host_task *t, void *arg) {
  (void)t;
  timer_stop(arg);
}

static int slept(lua_State *L, int status, lua_KContext at) {
  (void)L, (void)status, (void)at;
  return 0;
}

/* sleep(seconds): 0 goes behind the loop's next look at its sockets and timers, which a timer of 0 would not. */
static int sleep_(lua_State *L) {
  hub *h = hub_get(L);
  double seconds = luaL_checknumber(L, 1);
  luaL_argcheck(L, seconds >= 0 && seconds <= 1e9, 1, "seconds from 0 on");
  host_task *t = task_that_waits(L, 1);
  if (seconds == 0) {
    host_task_ticket(h->host, t, NULL, NULL);
    host_task_wake_next(h->host, t);
  } else {
    uint64_t number = host_task_ticket(h->host, t, stop_sleep, NULL);
    timer *alarm = timer_start(h, seconds, on_slept, t, number);
    if (!alarm) return luaL_error(L, "out of memory for a timer");
    host_task_set_unwait_arg(t, alarm);
  }
  host_task_wait(t);
  return lua_yieldk(L, 0, 0, slept);
}

void task_open(lua_State *L) {
  static const luaL_Reg functions[] = {{"spawn", spawn}, {"sleep", sleep_}, {"here", here}, {"must_wait", must_wait}, {"ticket", ticket}, {"wait", wait_for},
                                       {"wake", wake}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
