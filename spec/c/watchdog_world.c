/* The tests' watched Lua state; its tasks are run as the host runs one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <lauxlib.h>
#include <lualib.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "watchdog_world.h"

double cpu_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

world world_new(double limit_s) {
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  world o = {L, watchdog_open(L)};
  assert_int_equal(watchdog_limit(o.w, limit_s), 0);
  return o;
}

void world_end(world *o) {
  watchdog_close(o->w);
  lua_close(o->L);
}

int world_set_up(void **state) {
  static world o;
  o = world_new(LIMIT_S);
  *state = &o;
  return 0;
}

int world_tear_down(void **state) {
  world_end(*state);
  return 0;
}

void must(lua_State *L, int status) {
  if (status != LUA_OK) fail_msg("%s", lua_tostring(L, -1));
}

static void keep_text(outcome *out, lua_State *L) {
  snprintf(out->text, sizeof out->text, "%s", luaL_tolstring(L, -1, NULL));
  lua_pop(L, 2);
}

bool bury(const world *o, lua_State *co) {
  watchdog_run run;
  watchdog_enter(o->w, &run, co);
  lua_resetthread(co);
  return watchdog_leave(o->w, &run);
}

outcome run(const world *o) {
  outcome out = {.text = ""};
  watchdog_run r;
  int n = 0;
  lua_State *co = lua_newthread(o->L);
  lua_insert(o->L, -2);
  lua_xmove(o->L, co, 1);
  double begin_s = cpu_s();
  watchdog_enter(o->w, &r, co);
  out.status = lua_resume(co, o->L, 0, &n);
  out.stopped = watchdog_leave(o->w, &r);
  out.cpu_s = cpu_s() - begin_s;
  if (out.stopped) {
    out.status = LUA_ERRRUN;
    watchdog_push_message(o->w, o->L);
    keep_text(&out, o->L);
  } else if (n > 0 || out.status > LUA_YIELD) {
    lua_xmove(co, o->L, 1);
    keep_text(&out, o->L);
  }
  assert_null(lua_gethook(co));
  bury(o, co);
  lua_pop(o->L, 1);
  return out;
}

outcome run_text(const world *o, const char *text) {
  must(o->L, luaL_loadbuffer(o->L, text, strlen(text), "=app.lua"));
  return run(o);
}

void is_stopped(const outcome *out, const char *begins_with) {
  static const char message[] = "stopped after 0.05 s of computing without waiting (cpu_limit)";
  assert_true(out->stopped);
  assert_memory_equal(out->text, begins_with, strlen(begins_with));
  if (!strstr(out->text, message)) fail_msg("%s", out->text);
  assert_true(out->cpu_s >= LIMIT_S);
}

void ends(const outcome *out, const char *text) {
  if (out->stopped) fail_msg("%s", out->text);
  assert_string_equal(out->text, text);
  assert_int_equal(out->status, LUA_OK);
}

static const char BUSY[] = "local seconds = ...\n"
                           "return function()\n"
                           "  local begin = os.clock()\n"
                           "  while os.clock() - begin < seconds do end\n"
                           "  return 'done'\n"
                           "end";

void push_busy(const world *o, double seconds) {
  must(o->L, luaL_loadstring(o->L, BUSY));
  lua_pushnumber(o->L, seconds);
  must(o->L, lua_pcall(o->L, 1, 1, 0));
}

void burn(double seconds) {
  for (double begin_s = cpu_s(); cpu_s() - begin_s < seconds;) continue;
}
