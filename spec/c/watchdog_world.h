/* What the tests of the watchdog share: a Lua state that is watched, and tasks in it. All times are CPU time of the thread, so that they
 * hold on a busy machine and under valgrind too. */
#ifndef KORV_SPEC_WATCHDOG_WORLD_H
#define KORV_SPEC_WATCHDOG_WORLD_H

#include "host/watchdog.h"

#define LIMIT_S 0.05

typedef struct world {
  lua_State *L;
  watchdog *w;
} world;

world world_new(double limit_s);
void world_end(world *o);

/* For cmocka: *state is a world with LIMIT_S. */
int world_set_up(void **state);
int world_tear_down(void **state);
#define WORLD_TEST(name) cmocka_unit_test_setup_teardown(name, world_set_up, world_tear_down)

typedef struct outcome {
  int status; /* of lua_resume; LUA_ERRRUN where it was stopped */
  bool stopped;
  double cpu_s;
  char text[4096]; /* the first result, the error or the watchdog's message */
} outcome;

outcome run(const world *o);                         /* pops a function and runs it as a task */
outcome run_text(const world *o, const char *text);  /* which is called app.lua */
bool bury(const world *o, lua_State *co);            /* closes what it holds open; true: that was stopped */

void is_stopped(const outcome *out, const char *begins_with); /* at LIMIT_S */
void ends(const outcome *out, const char *text);              /* well */
void must(lua_State *L, int status);                          /* be LUA_OK */

double cpu_s(void);
void burn(double seconds);
void push_busy(const world *o, double seconds); /* a function that computes so long and returns "done" */

#endif
