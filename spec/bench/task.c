/* task: what a coroutine of its own costs a request that never waits, against a plain protected call of the same function. Prints
 * nanoseconds of CPU time, the least of several rounds. */
#include "host/host.h"

#include <lauxlib.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CALLS = 1000000, ROUNDS = 15 };

static double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void done(void *owner, host_task *t, lua_State *co, int status, int nresults) {
  (void)t, (void)co;
  if (status != LUA_OK || nresults != 1) abort();
  ++*(size_t *)owner;
}

static double time_calls(lua_State *L) {
  double begin = now_ns();
  for (int i = 0; i < CALLS; i++) {
    lua_getglobal(L, "endpoint");
    lua_pushinteger(L, i);
    if (lua_pcall(L, 1, 1, 0) != LUA_OK) abort();
    lua_pop(L, 1);
  }
  return (now_ns() - begin) / CALLS;
}

static double time_tasks(lua_State *L, host *h) {
  size_t ended = 0;
  double begin = now_ns();
  for (int i = 0; i < CALLS; i++) {
    host_task *t = host_task_new(h, L, done, &ended);
    lua_State *co = host_task_state(t);
    lua_getglobal(co, "endpoint");
    lua_pushinteger(co, i);
    host_task_begin(h, t, L, 1);
  }
  if (ended != CALLS) abort();
  return (now_ns() - begin) / CALLS;
}

int main(void) {
  lua_State *L = luaL_newstate();
  if (!L) return 1;
  luaL_openlibs(L);
  host *h = host_new(L, NULL);
  if (!h || host_cpu_limit(h, 1) < 0 || luaL_dostring(L, "function endpoint(request) return request end")) return 1;
  double call = 1e9, task = 1e9;
  for (int i = 0; i < ROUNDS; i++) {
    double c = time_calls(L), t = time_tasks(L, h);
    if (c < call) call = c;
    if (t < task) task = t;
  }
  printf("call %.0f ns, task %.0f ns, difference %.0f ns\n", call, task, task - call);
  host_free(h);
  lua_close(L);
  return 0;
}
