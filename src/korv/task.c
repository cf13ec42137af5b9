/* core.spawn and the primitives that korv.await is made of (lua/korv/task.lua). */
#include "korv/korv.h"

static void on_spawned_done(void *owner, host_task *t, lua_State *co, int status, int nresults) {
  (void)t, (void)nresults;
  hub *h = owner;
  if (status == LUA_OK) return;
  const char *message = luaL_tolstring(h->L, (lua_xmove(co, h->L, 1), -1), NULL);
  luaL_traceback(h->L, co, message, 0);
  hub_log(h, "error", "in korv.spawn: %s", lua_tostring(h->L, -1));
  lua_pop(h->L, 3);
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

/* here() -> task | nil, why not */
static int here(lua_State *L) {
  const char *why;
  host_task *t = host_task_here(hub_get(L)->host, L, &why);
  if (t) {
    lua_pushlightuserdata(L, t);
    return 1;
  }
  lua_pushnil(L);
  lua_pushstring(L, why);
  return 2;
}

/* ticket() -> task, ticket; raises where nothing can wait */
static int ticket(lua_State *L) {
  const char *why;
  host *h = hub_get(L)->host;
  host_task *t = host_task_here(h, L, &why);
  if (!t) {
    luaL_where(L, 2); /* the caller of korv.await, sleep and the like */
    lua_pushfstring(L, "cannot wait here: %s", why);
    lua_concat(L, 2);
    return lua_error(L);
  }
  lua_pushlightuserdata(L, t);
  lua_pushinteger(L, (lua_Integer)host_task_ticket(h, t));
  return 2;
}

/* wake_next(task, ticket): ready again behind the loop's next look at its sockets and timers. */
static int wake_next(lua_State *L) {
  hub *h = hub_get(L);
  luaL_checktype(L, 1, LUA_TLIGHTUSERDATA);
  host_task_wake_next(h->host, lua_touserdata(L, 1), (uint64_t)luaL_checkinteger(L, 2));
  return 0;
}

/* wait(task) -> what wake was given */
static int wait_for(lua_State *L) {
  luaL_checktype(L, 1, LUA_TLIGHTUSERDATA);
  return host_task_wait(lua_touserdata(L, 1), L);
}

/* wake(task, ticket, …) -> whether it still waited for that */
static int wake(lua_State *L) {
  hub *h = hub_get(L);
  luaL_checktype(L, 1, LUA_TLIGHTUSERDATA);
  uint64_t number = (uint64_t)luaL_checkinteger(L, 2);
  bool woken = host_task_wake(h->host, lua_touserdata(L, 1), number, L, lua_gettop(L) - 2);
  hub_poke(h);
  lua_pushboolean(L, woken);
  return 1;
}

void task_open(lua_State *L) {
  static const luaL_Reg functions[] = {{"spawn", spawn}, {"here", here}, {"ticket", ticket}, {"wait", wait_for}, {"wake", wake},
                                       {"wake_next", wake_next}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
