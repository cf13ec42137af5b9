/* host: the watchdog. Its subjects are in Lua: spec/data/runaway.lua, whose functions do not end, and spec/data/coroutines.lua, which
 * compares two libraries. All times are CPU time of the thread, so that they hold on a busy machine and under valgrind too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <lauxlib.h>
#include <lualib.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "host/watchdog.h"

#define LIMIT_S 0.05

typedef struct world {
  lua_State *L;
  watchdog *w;
} world;

static double cpu_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static world world_new(double limit_s) {
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  world o = {L, watchdog_open(L)};
  assert_int_equal(watchdog_limit(o.w, limit_s), 0);
  return o;
}

static void world_end(world *o) {
  watchdog_close(o->w);
  lua_close(o->L);
}

static int set_up(void **state) {
  static world o;
  o = world_new(LIMIT_S);
  *state = &o;
  return 0;
}

static int tear_down(void **state) {
  world_end(*state);
  return 0;
}

static void must(lua_State *L, int status) {
  if (status != LUA_OK) fail_msg("%s", lua_tostring(L, -1));
}

/* ---- a task, as the host runs one ------------------------------------------------------------------------------------------------------ */

typedef struct outcome {
  int status; /* of lua_resume; LUA_ERRRUN where it was stopped */
  bool stopped;
  double cpu_s;
  char text[4096]; /* the first result, the error or the watchdog's message */
} outcome;

static void keep_text(outcome *out, lua_State *L) {
  snprintf(out->text, sizeof out->text, "%s", luaL_tolstring(L, -1, NULL));
  lua_pop(L, 2);
}

/* What it holds open is closed. */
static bool bury(const world *o, lua_State *co) {
  watchdog_run run;
  watchdog_enter(o->w, &run, co);
  lua_resetthread(co);
  return watchdog_leave(o->w, &run);
}

/* Pops a function and runs it as a task. */
static outcome run(const world *o) {
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

/* The chunk is called app.lua. */
static outcome run_text(const world *o, const char *text) {
  must(o->L, luaL_loadbuffer(o->L, text, strlen(text), "=app.lua"));
  return run(o);
}

static void is_stopped(const outcome *out, const char *begins_with) {
  static const char message[] = "stopped after 0.05 s of computing without waiting (cpu_limit)";
  assert_true(out->stopped);
  assert_memory_equal(out->text, begins_with, strlen(begins_with));
  if (!strstr(out->text, message)) fail_msg("%s", out->text);
  assert_true(out->cpu_s >= LIMIT_S);
}

static void ends(const outcome *out, const char *text) {
  if (out->stopped) fail_msg("%s", out->text);
  assert_string_equal(out->text, text);
  assert_int_equal(out->status, LUA_OK);
}

/* ---- what is stopped ------------------------------------------------------------------------------------------------------------------- */

/* app:get(resource, endpoint) */
static int keep_endpoint(lua_State *L) {
  lua_settop(L, 3);
  lua_rawset(L, 1);
  return 0;
}

/* Pushes the endpoints of a script as a table from resource to function. */
static void load_endpoints(lua_State *L, const char *path) {
  must(L, luaL_dofile(L, path));
  lua_newtable(L);
  lua_pushcfunction(L, keep_endpoint);
  lua_setfield(L, -2, "get");
  lua_pushvalue(L, -1);
  lua_insert(L, -3);
  must(L, lua_pcall(L, 1, 0, 0));
  lua_pushnil(L);
  lua_setfield(L, -2, "get");
}

static void every_runaway_is_stopped(void **state) {
  const world *o = *state;
  double slowest_s = 0;
  int n = 0;
  load_endpoints(o->L, SPEC_DATA "/runaway.lua");
  for (lua_pushnil(o->L); lua_next(o->L, -2); n++) {
    const char *name = lua_tostring(o->L, -2);
    outcome out = run(o);
    if (!out.stopped || !strstr(out.text, "runaway.lua:")) fail_msg("%s: %s", name, out.text);
    is_stopped(&out, SPEC_DATA);
    if (out.cpu_s > slowest_s) slowest_s = out.cpu_s;
    lua_settop(o->L, 2);
  }
  assert_int_equal(lua_gettop(o->L), 1);
  assert_true(n > 40);
  print_message("%d runaways, the slowest stopped after %.0f ms of %.0f\n", n, slowest_s * 1000, LIMIT_S * 1000);
}

static void says_where(void **state) {
  const world *o = *state;
  outcome out = run_text(o, "local n = 0\nwhile true do\n  n = n + 1 end");
  is_stopped(&out, "app.lua:");
  assert_true(out.text[8] == '2' || out.text[8] == '3');
  out = run_text(o, "local function f()\n while true do end\nend\n\n('x'):gsub('x', function()\n f() end)");
  is_stopped(&out, "app.lua:2: ");
  assert_null(strchr(out.text, '\n'));
}

static void tells_the_stack_of_a_coroutine(void **state) {
  const world *o = *state;
  outcome out = run_text(o, "function spin() while true do end end\n"
                            "local function inner() spin() end\n"
                            "local function outer() coroutine.wrap(inner)() end\n"
                            "coroutine.wrap(outer)()");
  is_stopped(&out, "app.lua:1: ");
  assert_non_null(strstr(out.text, "(cpu_limit)\nin a coroutine of its own, stack traceback:\n\tapp.lua:1: in function 'spin'\n\tapp.lua:2: in "));
  out = run_text(o, "while true do end");
  assert_null(strchr(out.text, '\n'));
}

static void a_c_function_is_let_finish(void **state) {
  const world *o = *state;
  outcome out = run_text(o, "local s = ('a'):rep(12000)\nlocal found = s:find('.-b')\nreturn found");
  is_stopped(&out, "app.lua:");
  assert_true(out.text[8] == '2' || out.text[8] == '3');
  out = run_text(o, "return (('a'):rep(12000):find('.-b'))");
  is_stopped(&out, "app.lua:1: ");
  out = run_text(o, "return ('a'):rep(12000):find('.-b')"); /* in the place of the task's own function, which has gone */
  is_stopped(&out, "stopped after 0.05 s ");
}

/* What a loop of debug.sethook() does, in CPU time that can be told. */
static int take_the_hook_away(lua_State *L) {
  int n = 0;
  for (double begin_s = cpu_s(); cpu_s() - begin_s < luaL_checknumber(L, 1);) {
    if (lua_gethook(L)) n++;
    lua_sethook(L, NULL, 0, 0);
  }
  lua_pushinteger(L, n);
  lua_setglobal(L, "times");
  return 0;
}

/* Ticks are 31 ms apart until it is stopped, and as close as the system has them from then on. */
static void a_stop_is_repeated_soon(void **state) {
  const world *o = *state;
  assert_int_equal(watchdog_limit(o->w, 0.5), 0);
  lua_register(o->L, "take_the_hook_away", take_the_hook_away);
  outcome out = run_text(o, "take_the_hook_away(0.75) while true do end");
  assert_true(out.stopped);
  out = run_text(o, "return times > 10");
  ends(&out, "true");
}

/* ---- what is not ----------------------------------------------------------------------------------------------------------------------- */

static const char BUSY[] = "local seconds = ...\n"
                           "return function()\n"
                           "  local begin = os.clock()\n"
                           "  while os.clock() - begin < seconds do end\n"
                           "  return 'done'\n"
                           "end";

static void push_busy(const world *o, double seconds) {
  must(o->L, luaL_loadstring(o->L, BUSY));
  lua_pushnumber(o->L, seconds);
  must(o->L, lua_pcall(o->L, 1, 1, 0));
}

static void just_under_the_limit_is_well(void **state) {
  const world *o = *state;
  for (int i = 0; i < 20; i++) {
    push_busy(o, LIMIT_S * 0.95);
    outcome out = run(o);
    if (out.cpu_s < LIMIT_S) ends(&out, "done"); /* a long pause between clock and end of the loop is the system's */
  }
}

static void well_over_the_limit_is_not(void **state) {
  const world *o = *state;
  push_busy(o, LIMIT_S * 3);
  outcome out = run(o);
  is_stopped(&out, "[string ");
}

/* Each is charged its own time only, whether the one before it ended or was stopped. */
static void short_tasks_pay_for_nobody(void **state) {
  const world *o = *state;
  double begin_s = cpu_s();
  for (int i = 0; i < 10000 || cpu_s() - begin_s < 4 * LIMIT_S; i++) {
    if (i % 2500 == 0) {
      push_busy(o, LIMIT_S * (i % 5000 ? 0.9 : 2));
      outcome before = run(o);
      if (before.cpu_s < LIMIT_S) assert_false(before.stopped);
    }
    outcome out = run_text(o, "return coroutine.wrap(function() return pcall(function() return 'short' end) end)()");
    ends(&out, "short");
  }
}

static void a_yield_begins_a_new_account(void **state) {
  const world *o = *state;
  int n;
  watchdog_run r;
  lua_State *co = lua_newthread(o->L);
  must(co, luaL_loadstring(co, "while true do local t = os.clock() while os.clock() - t < 0.02 do end coroutine.yield() end"));
  for (int i = 0; i < 20; i++) {
    watchdog_enter(o->w, &r, co);
    assert_int_equal(lua_resume(co, o->L, 0, &n), LUA_YIELD);
    assert_false(watchdog_leave(o->w, &r));
  }
}

static void code_that_is_not_watched_runs_on(void **state) {
  const world *o = *state;
  outcome out = run_text(o, "return 1"); /* its number is the last one that was given */
  ends(&out, "1");
  push_busy(o, LIMIT_S * 3);
  lua_getglobal(o->L, "coroutine");
  lua_getfield(o->L, -1, "wrap");
  lua_remove(o->L, -2);
  lua_insert(o->L, -2);
  must(o->L, lua_pcall(o->L, 1, 1, 0));
  must(o->L, lua_pcall(o->L, 0, 1, 0));
  assert_string_equal(lua_tostring(o->L, -1), "done");
}

/* ---- what a stop leaves behind ----------------------------------------------------------------------------------------------------------- */

static void a_stopped_coroutine_is_dead(void **state) {
  const world *o = *state;
  outcome out = run_text(o, "worker = coroutine.create(function() while true do end end) wrapped = coroutine.wrap(worker_body or coroutine.running)\n"
                            "coroutine.resume(worker)");
  is_stopped(&out, "app.lua:1: ");
  out = run_text(o, "return coroutine.status(worker) .. ', ' .. select(2, coroutine.resume(worker))");
  ends(&out, "dead, cannot resume dead coroutine");
}

static void a_coroutine_beside_the_stop_lives(void **state) {
  const world *o = *state;
  outcome out = run_text(o, "counter = coroutine.wrap(function() local n = 0 while true do n = n + 1 coroutine.yield(n) end end)\n"
                            "counter() while true do end");
  is_stopped(&out, "app.lua:2: ");
  out = run_text(o, "return counter()");
  ends(&out, "2");
}

static void burn(double seconds) {
  for (double begin_s = cpu_s(); cpu_s() - begin_s < seconds;) continue;
}

/* late = coroutine.create(fn), once the caller has been hooked: it inherits the hook */
static int make_late(lua_State *L) {
  burn(LIMIT_S * 1.5);
  assert_non_null(lua_gethook(L));
  lua_State *co = lua_newthread(L);
  assert_non_null(lua_gethook(co));
  lua_setglobal(L, "late");
  lua_xmove(L, co, 1);
  return 0;
}

static void an_inherited_hook_is_shed(void **state) {
  const world *o = *state;
  lua_register(o->L, "make_late", make_late);
  outcome out = run_text(o, "make_late(function() local n = 0 while true do n = n + 1 coroutine.yield(n) end end)");
  is_stopped(&out, "app.lua:1: ");
  out = run_text(o, "coroutine.resume(late) return select(2, coroutine.resume(late))");
  ends(&out, "2");
}

static const char CLOSERS[] = "order = {}\n"
                              "local function closing(name, fn)\n"
                              "  return setmetatable({}, { __close = function() order[#order + 1] = name if fn then fn() end end })\n"
                              "end\n"
                              "local function spin() while true do end end\n"
                              "local function work() local t = os.clock() while os.clock() - t < 0.01 do end order[#order + 1] = 'done' end\n";

static outcome run_with_closers(const world *o, const char *text) {
  lua_pushfstring(o->L, "%s%s", CLOSERS, text);
  must(o->L, luaL_loadbuffer(o->L, lua_tostring(o->L, -1), strlen(lua_tostring(o->L, -1)), "=app.lua"));
  lua_remove(o->L, -2);
  return run(o);
}

/* To the end, by code that takes its time. */
static void what_it_held_open_is_closed(void **state) {
  const world *o = *state;
  outcome out = run_with_closers(o, "local _ <close> = closing('task', work)\n"
                                    "pcall(function() local _ <close> = closing('pcall', work)\n"
                                    "  coroutine.wrap(function() local _ <close> = closing('outer', work)\n"
                                    "    coroutine.wrap(function() local _ <close> = closing('inner', work) pcall(spin) end)() end)() end)");
  is_stopped(&out, "app.lua:5: ");
  out = run_text(o, "return table.concat(order, ' ')");
  ends(&out, "inner done outer done pcall done task done");
}

/* Those in coroutines share one more limit, those of the task have one: closers that loop cost two, however many there are. */
static void closers_that_loop_are_stopped(void **state) {
  const world *o = *state;
  double begin_s = cpu_s();
  outcome out = run_with_closers(o, "local function deeper(n)\n"
                                    "  local _ <close> = closing('x', spin)\n"
                                    "  if n == 0 then spin() end\n"
                                    "  coroutine.wrap(deeper)(n - 1)\n"
                                    "end\n"
                                    "deeper(8)");
  is_stopped(&out, "app.lua:5: ");
  assert_true(cpu_s() - begin_s < 6 * LIMIT_S);
  out = run_text(o, "return #order");
  ends(&out, "9");
}

static void bury_says_that_it_was_stopped(void **state) {
  const world *o = *state;
  int n;
  lua_State *co = lua_newthread(o->L);
  must(co, luaL_loadstring(co, "local x <close> = setmetatable({}, { __close = function() while true do end end }) coroutine.yield()"));
  assert_int_equal(lua_resume(co, o->L, 0, &n), LUA_YIELD);
  assert_true(bury(o, co));
}

/* ---- plain calls --------------------------------------------------------------------------------------------------------------------------- */

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

/* ---- the coroutine library --------------------------------------------------------------------------------------------------------------- */

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

/* ---- limits, hosts, threads, signals ------------------------------------------------------------------------------------------------------- */

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
  static const double never[] = {-1, 0, 0.0 / 0.0, 1e300};
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

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(every_runaway_is_stopped),
      TEST(says_where),
      TEST(tells_the_stack_of_a_coroutine),
      TEST(a_c_function_is_let_finish),
      TEST(a_stop_is_repeated_soon),
      TEST(just_under_the_limit_is_well),
      TEST(well_over_the_limit_is_not),
      TEST(short_tasks_pay_for_nobody),
      TEST(a_yield_begins_a_new_account),
      TEST(code_that_is_not_watched_runs_on),
      TEST(a_stopped_coroutine_is_dead),
      TEST(a_coroutine_beside_the_stop_lives),
      TEST(an_inherited_hook_is_shed),
      TEST(what_it_held_open_is_closed),
      TEST(closers_that_loop_are_stopped),
      TEST(bury_says_that_it_was_stopped),
      TEST(plain_calls_are_watched),
      TEST(nested_calls_are_of_one_account),
      TEST(coroutines_behave_as_the_stock_ones),
      TEST(the_stock_ones_are_replaced_once),
      TEST(the_limit_can_change),
      TEST(the_limit_can_change_from_within),
      TEST(odd_limits),
      cmocka_unit_test(a_watchdog_without_a_limit),
      TEST(several_hosts_on_a_thread),
      TEST(hosts_come_and_go),
      cmocka_unit_test(outlived_by_finalizers),
      TEST(each_thread_stops_its_own),
      TEST(blocking_calls_go_on),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
