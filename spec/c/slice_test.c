/* host: tasks in slices, run as the loop runs them. What takes its time here computes until it was given so many turns, or so long. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <lauxlib.h>
#include <lualib.h>
#include <stdio.h>
#include <string.h>

#include "host/host.h"

/* One task, its slices, and how it ended. */
typedef struct world {
  lua_State *L;
  host *h;
  host_task *task;
  host_slices slices;
  int runs; /* of host_run, until it ended */
  int status;
  bool done, hooked;
  char text[256]; /* the first result, or the error */
} world;

static int set_up(void **state) {
  static world o;
  memset(&o, 0, sizeof o);
  o.L = luaL_newstate();
  luaL_openlibs(o.L);
  o.h = host_new(o.L, NULL);
  assert_non_null(o.h);
  *state = &o;
  return 0;
}

static int tear_down(void **state) {
  world *o = *state;
  host_free(o->h);
  lua_close(o->L);
  return 0;
}

static void on_done(void *owner, host_task *t, lua_State *co, int status, int nresults) {
  (void)t;
  world *o = owner;
  host_slices_end(&o->slices, o->L);
  o->hooked = lua_gethook(co) != NULL;
  o->done = true;
  o->status = status;
  bool has_value = status == LUA_OK || status == HOST_CANCELLED ? nresults > 0 : true;
  snprintf(o->text, sizeof o->text, "%s", has_value ? luaL_tolstring(co, -1, NULL) : "");
}

/* Begins a task with this text, called @app.lua; the table of sources is on top of L (popped). */
static void begin(world *o, const char *text) {
  o->task = host_task_new(o->h, o->L, on_done, o);
  host_slices_begin(&o->slices, o->h, o->task, o->L);
  lua_State *co = host_task_state(o->task);
  assert_int_equal(luaL_loadbuffer(co, text, strlen(text), "@app.lua"), LUA_OK);
  host_task_queue(o->h, o->task, 0);
}

static void push_sources(world *o, const char *source) {
  lua_newtable(o->L);
  lua_pushboolean(o->L, true);
  lua_setfield(o->L, -2, source);
}

/* Runs until the task has ended, or so many times. */
static void run(world *o, int most) {
  while (!o->done && o->runs < most) {
    o->runs++;
    host_run(o->h, o->L);
  }
}

static int tell_runs(lua_State *L) {
  const world *o = lua_touserdata(L, lua_upvalueindex(1));
  lua_pushinteger(L, o->runs);
  return 1;
}

static void register_runs(world *o) {
  lua_pushlightuserdata(o->L, o);
  lua_pushcclosure(o->L, tell_runs, 1);
  lua_setglobal(o->L, "runs");
}

static void gives_way_and_ends(void **state) {
  world *o = *state;
  register_runs(o);
  lua_pushnil(o->L);
  begin(o, "while runs() < 5 do end\nreturn 'ended'");
  run(o, 1000);
  assert_true(o->done);
  assert_int_equal(o->runs, 5);
  assert_string_equal(o->text, "ended");
  assert_false(o->hooked);
}

/* A yield out of a hook must leave every value where it was. */
static void harms_no_value(void **state) {
  world *o = *state;
  register_runs(o);
  lua_pushnil(o->L);
  begin(o, "local function id(...) return ... end\n"
           "local n = 0\n"
           "while runs() < 20 do\n"
           "  local t = { id(1, 2, 3, id(id(4, 5), 6)) }\n"
           "  local ok, a, b = pcall(id, 'a', ('%s-%d'):format('b', 7))\n"
           "  if #t ~= 5 or t[4] ~= 4 or t[5] ~= 6 or not ok or a .. b ~= 'ab-7' then return 'harmed' end\n"
           "  for k, v in pairs { x = n } do n = v + #k end\n"
           "end\n"
           "return n > 100");
  run(o, 1000);
  assert_int_equal(o->runs, 20);
  assert_string_equal(o->text, "true");
}

static void gives_way_in_own_sources_only(void **state) {
  world *o = *state;
  push_sources(o, "@other.lua");
  begin(o, "local begin = os.clock()\nwhile os.clock() - begin < 0.02 do end");
  run(o, 1000);
  assert_int_equal(o->runs, 1);
  o->done = false, o->runs = 0;
  push_sources(o, "@app.lua");
  begin(o, "local begin = os.clock()\nwhile os.clock() - begin < 0.02 do end");
  run(o, 1000);
  assert_true(o->runs > 3);
}

static void a_coroutine_of_its_own_goes_on_unhooked(void **state) {
  world *o = *state;
  lua_pushnil(o->L);
  begin(o, "local co = coroutine.create(function()\n"
           "  local begin = os.clock()\n"
           "  while os.clock() - begin < 0.02 do end\n"
           "  return debug.gethook() == nil\n"
           "end)\n"
           "local ok, unhooked = coroutine.resume(co)\n"
           "return ok and unhooked");
  run(o, 1000);
  assert_string_equal(o->text, "true");
}

/* What is about to wait has a ticket, which a slice must not replace. */
static int take_ticket(lua_State *L) {
  world *o = lua_touserdata(L, lua_upvalueindex(1));
  host_task_ticket(o->h, o->task, NULL, NULL);
  return 0;
}

static void one_with_a_ticket_is_let_wait(void **state) {
  world *o = *state;
  lua_pushlightuserdata(o->L, o);
  lua_pushcclosure(o->L, take_ticket, 1);
  lua_setglobal(o->L, "take_ticket");
  lua_pushnil(o->L);
  begin(o, "take_ticket()\nlocal begin = os.clock()\nwhile os.clock() - begin < 0.02 do end");
  run(o, 1000);
  assert_int_equal(o->runs, 1);
}

static void says_where_it_is_and_is_cancelled(void **state) {
  world *o = *state;
  char place[64];
  push_sources(o, "@app.lua");
  begin(o, "local closed <close> = setmetatable({}, { __close = function() error('closed', 0) end })\n"
           "while true do\n  pcall(function()\n    while true do end\n  end)\nend");
  run(o, 3);
  assert_false(o->done);
  host_slices_place(&o->slices, o->L, place, sizeof place);
  assert_string_equal(place, "app.lua:4: ");
  host_task_cancel(o->h, o->task);
  run(o, 5);
  assert_true(o->done);
  assert_int_equal(o->status, HOST_CANCELLED);
  assert_string_equal(o->text, "closed");
}

static void the_watchdog_goes_before(void **state) {
  world *o = *state;
  assert_int_equal(host_cpu_limit(o->h, 0.02), 0);
  lua_pushnil(o->L);
  begin(o, "table.sort({ 1, 2, 3 }, function()\n  while true do end\nend)");
  run(o, 1000);
  assert_int_equal(o->runs, 1);
  assert_int_equal(o->status, LUA_ERRRUN);
  assert_string_equal(o->text, "app.lua:2: stopped after 0.02 s of computing without waiting (cpu_limit)");
  assert_int_equal(lua_gettop(o->L), 0);
}

static void a_thread_is_used_again_unhooked(void **state) {
  world *o = *state;
  static const char *const texts[] = {"return 1", "error 'boom'", "return 1"};
  for (int i = 0; i < 3; i++) {
    lua_pushnil(o->L);
    o->done = false;
    begin(o, texts[i]);
    lua_State *co = host_task_state(o->task);
    run(o, o->runs + 1);
    assert_true(o->done);
    assert_null(lua_gethook(co));
    lua_rawgetp(o->L, LUA_REGISTRYINDEX, co);
    assert_true(lua_isnil(o->L, -1));
    lua_pop(o->L, 1);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(gives_way_and_ends, set_up, tear_down),
      cmocka_unit_test_setup_teardown(harms_no_value, set_up, tear_down),
      cmocka_unit_test_setup_teardown(gives_way_in_own_sources_only, set_up, tear_down),
      cmocka_unit_test_setup_teardown(a_coroutine_of_its_own_goes_on_unhooked, set_up, tear_down),
      cmocka_unit_test_setup_teardown(one_with_a_ticket_is_let_wait, set_up, tear_down),
      cmocka_unit_test_setup_teardown(says_where_it_is_and_is_cancelled, set_up, tear_down),
      cmocka_unit_test_setup_teardown(the_watchdog_goes_before, set_up, tear_down),
      cmocka_unit_test_setup_teardown(a_thread_is_used_again_unhooked, set_up, tear_down),
  };
  return cmocka_run_group_tests_name("slices", tests, NULL, NULL);
}
