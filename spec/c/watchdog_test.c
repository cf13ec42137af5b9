/* host: what the watchdog stops, what it does not, and what a stop leaves behind. The runaways are those of spec/data/runaway.lua. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <lauxlib.h>
#include <lualib.h>
#include <string.h>

#include "watchdog_world.h"

/* ---- what is stopped --------------------------------------------------------------------------------------------------------- */

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
  static const char stack[] = "\nin a coroutine of its own, stack traceback:\n\tapp.lua:1: in function 'spin'\n\tapp.lua:2: in ";
  assert_non_null(strstr(out.text, stack));
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

/* ---- what is not ------------------------------------------------------------------------------------------------------------- */

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

/* ---- what a stop leaves behind ----------------------------------------------------------------------------------------------- */

static void a_stopped_coroutine_is_dead(void **state) {
  const world *o = *state;
  outcome out = run_text(o, "worker = coroutine.create(function() while true do end end) coroutine.resume(worker)");
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

/* late = coroutine.create(fn), once the caller has been hooked: it inherits the hook */
static int make_late(lua_State *L) {
  burn(LIMIT_S * 4);
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
                              "local function work()\n"
                              "  local begin = os.clock()\n"
                              "  while os.clock() - begin < 0.01 do end\n"
                              "  order[#order + 1] = 'done'\n"
                              "end\n";

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
                                    "    coroutine.wrap(function() local _ <close> = closing('inner', work)\n"
                                    "      pcall(spin) end)() end)() end)");
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

int main(void) {
  const struct CMUnitTest tests[] = {
      WORLD_TEST(every_runaway_is_stopped),
      WORLD_TEST(says_where),
      WORLD_TEST(tells_the_stack_of_a_coroutine),
      WORLD_TEST(a_c_function_is_let_finish),
      WORLD_TEST(a_stop_is_repeated_soon),
      WORLD_TEST(just_under_the_limit_is_well),
      WORLD_TEST(well_over_the_limit_is_not),
      WORLD_TEST(short_tasks_pay_for_nobody),
      WORLD_TEST(a_yield_begins_a_new_account),
      WORLD_TEST(code_that_is_not_watched_runs_on),
      WORLD_TEST(a_stopped_coroutine_is_dead),
      WORLD_TEST(a_coroutine_beside_the_stop_lives),
      WORLD_TEST(an_inherited_hook_is_shed),
      WORLD_TEST(what_it_held_open_is_closed),
      WORLD_TEST(closers_that_loop_are_stopped),
      WORLD_TEST(bury_says_that_it_was_stopped),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
