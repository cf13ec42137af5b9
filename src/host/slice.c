/* Slices: a task that computes for long gives way to the loop about twenty times a millisecond, so that a small request that comes
 * meanwhile takes no more than a few times what it takes otherwise. It is done by a hook on its coroutine. Knows of tasks only what host.h
 * says.
 *
 * Lua code may be left in the middle only where nothing but itself relies on what it was about to do. So the hook yields in functions of
 * chosen sources alone, and a library that everybody uses is never interrupted. Where it may not, or cannot, the task goes on: to the next
 * line where it may, or until the watchdog ends it. */
#include <lauxlib.h>
#include <stdio.h>
#include <time.h>

#include "host/host.h"

enum { INSTRUCTIONS = 100, SLICE_NS = 50000 };

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static bool is_own(lua_State *L, const host_slices *s, const lua_Debug *ar) {
  if (lua_rawgeti(L, LUA_REGISTRYINDEX, s->sources) != LUA_TTABLE) {
    lua_pop(L, 1);
    return true;
  }
  lua_pushstring(L, ar->source);
  bool own = lua_rawget(L, -2) != LUA_TNIL;
  lua_pop(L, 2);
  return own;
}

static host_slices *find(lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, L);
  host_slices *s = lua_touserdata(L, -1);
  lua_pop(L, 1);
  return s;
}

static bool give_way(lua_State *L, host_slices *s, lua_Debug *ar) {
  if (lua_getinfo(L, "Sl", ar) == 0 || !is_own(L, s, ar) || !host_task_give_way(s->host, L)) return false;
  s->end_ns = 0;
  s->line = ar->currentline;
  return true;
}

static void watch(lua_State *L, int events);

/* A coroutine that the task made has inherited the hook, and is not korv's to suspend. A script that calls a library all the time would
 * hardly ever be met by the count of instructions: so, once it is late, each line is looked at. */
static void on_hook(lua_State *L, lua_Debug *ar) {
  host_slices *s = find(L);
  if (!s) {
    lua_sethook(L, NULL, 0, 0);
    return;
  }
  int64_t now = now_ns();
  if (s->end_ns == 0) s->end_ns = now + SLICE_NS;
  if (now < s->end_ns) return;
  watch(L, give_way(L, s, ar) ? LUA_MASKCOUNT : LUA_MASKCOUNT | LUA_MASKLINE);
}

static void watch(lua_State *L, int events) {
  if (lua_gethookmask(L) != events) lua_sethook(L, on_hook, events, INSTRUCTIONS);
}

void host_slices_begin(host_slices *s, host *h, const host_task *t, lua_State *L) {
  *s = (host_slices){.host = h, .co = host_task_state(t), .sources = LUA_NOREF};
  s->sources = luaL_ref(L, LUA_REGISTRYINDEX);
  lua_pushlightuserdata(L, s);
  lua_rawsetp(L, LUA_REGISTRYINDEX, s->co);
  watch(s->co, LUA_MASKCOUNT);
}

void host_slices_end(host_slices *s, lua_State *L) {
  lua_sethook(s->co, NULL, 0, 0);
  lua_pushnil(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, s->co);
  luaL_unref(L, LUA_REGISTRYINDEX, s->sources);
  s->sources = LUA_NOREF;
}

/* A function that a hook has suspended stands at the instruction before its own: the hook knew better. */
void host_slices_place(const host_slices *s, lua_State *L, char *place, size_t size) {
  lua_Debug ar;
  place[0] = '\0';
  for (int level = 0; lua_getstack(s->co, level, &ar); level++) {
    lua_getinfo(s->co, "Sl", &ar);
    if (ar.currentline <= 0 || !is_own(L, s, &ar)) continue;
    int line = level == 0 && s->line ? s->line : ar.currentline;
    snprintf(place, size, "%s:%d: ", ar.source[0] == '@' ? ar.source + 1 : ar.short_src, line);
    return;
  }
}
