/* host: the watchdog around plain calls, in the library `coroutine` (spec/data/coroutines.lua compares that with the stock one), and
 * with other limits, hosts, threads and signals beside it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <lauxlib.h>
#include <lualib.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "watchdog_world.h"

/* ---- plain calls ------------------------------------------------------------------------------------------------------------- */

static int handler(lua_State *L) {
  lua_pushfstring(L, "handled: %s", lua_tostring(L, 1));
  return 1;
}

/* Leaves the error or the only result on top. */
static int call(const world *o, lua_State *L, const char *text) {
  lua_settop(L, 0);
  lua_pushcfunction(L, handler);
  must(L, luaL_loadbuffer(L, text, strlen(text), "=app.lua"));
  lua_pushliteral(L, "argument");
  int status = watchdog_pcall(o->w, L, 1, 1, 1);
  assert_int_equal(lua_gettop(L), 2);
  return status;
}

static void plain_calls_are_watched(void **state) {
  const world *o = *state;
  lua_State *threads[] = {o->L, lua_newthread(o->L)};
  lua_rawsetp(o->L, LUA_REGISTRYINDEX, threads);
  for (size_t i = 0; i < 2; i++) {
    lua_State *L = threads[i];
    assert_int_equal(call(o, L, "return (...)"), LUA_OK);
    assert_string_equal(lua_tostring(L, -1), "argument");
    assert_int_equal(call(o, L, "error('no', 0)"), LUA_ERRRUN);
    assert_string_equal(lua_tostring(L, -1), "handled: no");
    assert_int_equal(call(o, L, "return pcall(function() while true do pcall(error) end end)"), LUA_ERRRUN);
    assert_string_equal(lua_tostring(L, -1), "app.lua:1: stopped after 0.05 s of computing without waiting (cpu_limit)");
    assert_null(lua_gethook(L));
    assert_int_equal(call(o, L, "local n = 0 for i = 1, 1000 do n = n + i end return n"), LUA_OK);
    lua_settop(L, 0);
  }
}

static const world *nested_world;

/* Calls its argument, protected and watched, on another thread: what a C function does that runs a callback. */
static int nested_call(lua_State *L) {
  lua_State *other = lua_newthread(L);
  lua_pushvalue(L, 1);
  lua_xmove(L, other, 1);
  int status = watchdog_pcall(nested_world->w, other, 0, 1, 0);
  lua_xmove(other, L, 1);
  lua_pushinteger(L, status);
  return 2;
}

/* What is called within is charged to the task, and ends it. */
static void nested_calls_are_of_one_account(void **state) {
  const world *o = *state;
  nested_world = o;
  lua_register(o->L, "nested", nested_call);
  outcome out = run_text(o, "return (nested(function() return 'within' end))");
  ends(&out, "within");
  out = run_text(o, "while true do nested(function() end) end");
  is_stopped(&out, "app.lua:1: ");
  out = run_text(o, "nested(function()\n while true do pcall(error) end end)\nafterwards = true");
  is_stopped(&out, "app.lua:2: ");
  out = run_text(o, "return afterwards");
  ends(&out, "nil");
}

/* ---- the coroutine library --------------------------------------------------------------------------------------------------- */

/* compare(stock, ours) -> differences, n */
static int compare(lua_State *L) {
  luaL_loadfile(L, SPEC_DATA "/coroutines.lua");
  lua_call(L, 0, 1);
  lua_pushcfunction(L, luaopen_coroutine);
  lua_call(L, 0, 1);
  lua_getglobal(L, "coroutine");
  lua_call(L, 2, 2);
  assert_int_equal(lua_tointeger(L, -1), 56);
  lua_pop(L, 1);
  return 1;
}

static void coroutines_behave_as_the_stock_ones(void **state) {
  const world *o = *state;
  watchdog_limit(o->w, 1000);
  lua_pushcfunction(o->L, compare);
  must(o->L, lua_pcall(o->L, 0, 1, 0));
  assert_string_equal(lua_tostring(o->L, -1), "");
  lua_pushcfunction(o->L, compare);
  outcome out = run(o);
  ends(&out, "");
}

static void the_stock_ones_are_replaced_once(void **state) {
  const world *o = *state;
  assert_ptr_equal(watchdog_open(o->L), o->w);
  outcome out = run_text(o, "local names = {} for name in pairs(coroutine) do names[#names + 1] = name end table.sort(names)\n"
                            "return table.concat(names, ' ')");
  ends(&out, "close create isyieldable resume running status wrap yield");
}

/* ---- limits, hosts, threads, signals ----------------------------------------------------------------------------------------- */

static void the_limit_can_change(void **state) {
  const world *o = *state;
  assert_int_equal(watchdog_limit(o->w, 0), 0);
  push_busy(o, LIMIT_S * 3);
  outcome out = run(o);
  ends(&out, "done");
  assert_int_equal(watchdog_limit(o->w, LIMIT_S * 4), 0);
  push_busy(o, LIMIT_S * 3);
  out = run(o);
  ends(&out, "done");
  out = run_text(o, "while true do end");
  assert_string_equal(out.text, "app.lua:1: stopped after 0.2 s of computing without waiting (cpu_limit)");
  assert_int_equal(watchdog_limit(o->w, LIMIT_S), 0);
  out = run_text(o, "while true do end");
  is_stopped(&out, "app.lua:1: ");
  assert_true(out.cpu_s < LIMIT_S * 3);
}

static int set_limit(lua_State *L) {
  assert_int_equal(watchdog_limit(watchdog_open(L), luaL_checknumber(L, 1)), 0);
  return 0;
}

static void the_limit_can_change_from_within(void **state) {
  const world *o = *state;
  lua_register(o->L, "set_limit", set_limit);
  outcome out = run_text(o, "set_limit(0.1) while true do end");
  assert_string_equal(out.text, "app.lua:1: stopped after 0.1 s of computing without waiting (cpu_limit)");
}

static void odd_limits(void **state) {
  const world *o = *state;
  static const double never[] = {-1, 0, NAN, 1e300};
  for (size_t i = 0; i < sizeof never / sizeof *never; i++) {
    assert_int_equal(watchdog_limit(o->w, never[i]), 0);
    push_busy(o, 0.03);
    outcome out = run(o);
    ends(&out, "done");
  }
  assert_int_equal(watchdog_limit(o->w, 1e-9), 0);
  outcome out = run_text(o, "while true do end");
  assert_true(out.stopped);
}

static void a_watchdog_without_a_limit(void **state) {
  (void)state;
  world o = world_new(0);
  push_busy(&o, 0.1);
  outcome out = run(&o);
  ends(&out, "done");
  world_end(&o);
}

/* One that runs within another, and stops, leaves that alone; and the other way round. */
static int run_inner(lua_State *L) {
  const world *o = nested_world;
  outcome out = run_text(o, lua_tostring(L, 1));
  lua_pushstring(L, out.text);
  return 1;
}

static void several_hosts_on_a_thread(void **state) {
  const world *o = *state;
  world inner = world_new(LIMIT_S / 2);
  nested_world = &inner;
  lua_register(o->L, "inner", run_inner);
  outcome out = run_text(o, "return inner 'while true do end'");
  ends(&out, "app.lua:1: stopped after 0.025 s of computing without waiting (cpu_limit)");
  assert_int_equal(watchdog_limit(inner.w, 0), 0);
  push_busy(&inner, LIMIT_S * 2);
  lua_setglobal(inner.L, "busy");
  out = run_text(o, "text = inner 'return busy()' while true do end");
  is_stopped(&out, "app.lua:1: ");
  out = run_text(o, "return text");
  ends(&out, "nil");
  world_end(&inner);
  out = run_text(o, "while true do end");
  is_stopped(&out, "app.lua:1: ");
}

/* The timer must not outlive the watchdog, nor the watchdog its state. */
static void hosts_come_and_go(void **state) {
  const world *o = *state;
  for (int i = 0; i < 200; i++) {
    world other = world_new(0.001);
    if (i % 10 == 0) {
      outcome out = run_text(&other, "while true do end");
      assert_true(out.stopped);
    }
    burn(0.0005);
    world_end(&other);
    burn(0.0005);
  }
  outcome out = run_text(o, "while true do end");
  is_stopped(&out, "app.lua:1: ");
}

/* Finalizers run when the watchdog has gone, and may use coroutines. */
static void outlived_by_finalizers(void **state) {
  (void)state;
  world o = world_new(LIMIT_S);
  outcome out = run_text(&o, "keep = setmetatable({}, { __gc = function() coroutine.wrap(function() coroutine.yield() end)() end })");
  assert_int_equal(out.status, LUA_OK);
  world_end(&o);
}

/* cmocka's assertions are for its own thread only. */
typedef struct thread_report {
  int stopped, rounds;
} thread_report;

static void *on_thread(void *report) {
  thread_report *r = report;
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, NULL);
  world o = world_new(LIMIT_S / 5);
  for (; r->rounds < 20; r->rounds++) {
    outcome out = run_text(&o, "coroutine.wrap(function() while true do pcall(error) end end)()");
    r->stopped += out.stopped;
  }
  world_end(&o);
  return NULL;
}

static void each_thread_stops_its_own(void **state) {
  const world *o = *state;
  thread_report reports[2] = {{0, 0}, {0, 0}};
  pthread_t threads[2];
  for (size_t i = 0; i < 2; i++) assert_int_equal(pthread_create(&threads[i], NULL, on_thread, &reports[i]), 0);
  for (int i = 0; i < 5; i++) {
    outcome out = run_text(o, "while true do pcall(error) end");
    is_stopped(&out, "app.lua:1: ");
    push_busy(o, LIMIT_S / 4);
    out = run(o);
    assert_false(out.stopped);
  }
  for (size_t i = 0; i < 2; i++) {
    pthread_join(threads[i], NULL);
    assert_int_equal(reports[i].rounds, 20);
    assert_int_equal(reports[i].stopped, 20);
  }
}

static int signal_of_the_watchdog(void) {
  struct sigaction action;
  for (int s = SIGRTMIN; s < SIGRTMAX; s++)
    if (sigaction(s, NULL, &action) == 0 && action.sa_handler != SIG_DFL) return s;
  return 0;
}

typedef struct caller {
  pthread_t thread;
  int signal, pipe;
} caller;

static void *interrupt(void *data) {
  const caller *c = data;
  for (int i = 0; i < 20; i++) {
    usleep(1000);
    pthread_kill(c->thread, c->signal);
  }
  return write(c->pipe, "x", 1) == 1 ? data : NULL;
}

static void blocking_calls_go_on(void **state) {
  (void)state;
  int ends_of[2];
  char byte;
  pthread_t thread;
  void *well;
  assert_int_equal(pipe(ends_of), 0);
  caller c = {pthread_self(), signal_of_the_watchdog(), ends_of[1]};
  assert_true(c.signal > SIGRTMIN);
  assert_int_equal(pthread_create(&thread, NULL, interrupt, &c), 0);
  assert_int_equal(read(ends_of[0], &byte, 1), 1);
  pthread_join(thread, &well);
  assert_non_null(well);
  close(ends_of[0]);
  close(ends_of[1]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      WORLD_TEST(plain_calls_are_watched),
      WORLD_TEST(nested_calls_are_of_one_account),
      WORLD_TEST(coroutines_behave_as_the_stock_ones),
      WORLD_TEST(the_stock_ones_are_replaced_once),
      WORLD_TEST(the_limit_can_change),
      WORLD_TEST(the_limit_can_change_from_within),
      WORLD_TEST(odd_limits),
      cmocka_unit_test(a_watchdog_without_a_limit),
      WORLD_TEST(several_hosts_on_a_thread),
      WORLD_TEST(hosts_come_and_go),
      cmocka_unit_test(outlived_by_finalizers),
      WORLD_TEST(each_thread_stops_its_own),
      WORLD_TEST(blocking_calls_go_on),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
