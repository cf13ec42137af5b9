/* Timers of the hub: for whoever sleeps, for deadlines, and for Lua (core.timer). They are pooled and closed with the hub only, so
 * that nothing of ours is ever half closed on luv's loop. */
#include <math.h>
#include <stdlib.h>

#include "korv/korv.h"

static const char TIMER[] = "korv.timer";

static const double LONGEST_S = 1e9; /* thirty years */

static void on_fire(uv_timer_t *uv) {
  timer *t = (timer *)(void *)((char *)uv - offsetof(timer, uv));
  hub *h = t->hub;
  timer_fire *fire = t->fire;
  void *arg = t->arg;
  uint64_t number = t->number;
  timer_stop(t);
  fire(arg, number);
  hub_poke(h);
}

static timer *new_timer(hub *h) {
  timer *t = malloc(sizeof *t);
  if (!t) return NULL;
  uv_timer_init(h->loop, &t->uv);
  t->uv.data = h->luv;
  t->hub = h;
  t->all = h->timers;
  h->timers = t;
  return t;
}

timer *timer_start(hub *h, double seconds, timer_fire *fire, void *arg, uint64_t number) {
  timer *t = h->spare_timers;
  if (t)
    h->spare_timers = t->next;
  else
    t = new_timer(h);
  if (!t) return NULL;
  t->fire = fire;
  t->arg = arg;
  t->number = number;
  uv_update_time(h->loop);
  uv_ref((uv_handle_t *)&t->uv);
  uv_timer_start(&t->uv, on_fire, (uint64_t)ceil(fmin(seconds, LONGEST_S) * 1000), 0);
  return t;
}

void timer_stop(timer *t) {
  uv_timer_stop(&t->uv);
  t->next = t->hub->spare_timers;
  t->hub->spare_timers = t;
}

static void on_closed(uv_handle_t *handle) {
  timer *t = (timer *)(void *)((char *)handle - offsetof(timer, uv));
  hub *h = t->hub;
  free(t);
  hub_handle_closed(h);
}

void timers_close(hub *h) {
  timer *next;
  for (timer *t = h->timers; t; t = next) {
    next = t->all;
    h->closing_handles++;
    uv_close((uv_handle_t *)&t->uv, on_closed);
  }
}

/* ---- core.timer -------------------------------------------------------------------------------------------------------------------------- */

/* Its function is its user value: the registry would hold for ever what refers to its own timer, as most of what has one does. */
typedef struct lua_timer {
  hub *hub;
  timer *running; /* NULL: not started */
  int self;       /* while it runs */
} lua_timer;

static void on_lua_timer(void *arg, uint64_t number) {
  (void)number;
  lua_timer *t = arg;
  hub *h = t->hub;
  t->running = NULL;
  lua_rawgeti(h->L, LUA_REGISTRYINDEX, t->self);
  ref_drop(h->L, &t->self);
  lua_getiuservalue(h->L, -1, 1);
  lua_remove(h->L, -2); /* t may be gone from here on */
  hub_call(h, 0, 0, "in a timer");
}

/* timer(fn) -> timer: calls fn once, each time that it was started and has run off. */
static int timer_(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_timer *t = lua_newuserdatauv(L, sizeof *t, 1);
  *t = (lua_timer){hub_get(L), NULL, LUA_NOREF};
  luaL_setmetatable(L, TIMER);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1);
  return 1;
}

static int stop(lua_State *L) {
  lua_timer *t = luaL_checkudata(L, 1, TIMER);
  if (t->running && !t->hub->dead) timer_stop(t->running);
  t->running = NULL;
  ref_drop(L, &t->self);
  return 0;
}

/* timer:start(seconds [, aside]): anew where it runs already; aside: it does not keep the loop running. */
static int start(lua_State *L) {
  lua_timer *t = luaL_checkudata(L, 1, TIMER);
  double seconds = luaL_checknumber(L, 2);
  stop(L);
  lua_pushvalue(L, 1);
  t->self = ref_take(L);
  t->running = timer_start(t->hub, seconds > 0 ? seconds : 0, on_lua_timer, t, 0);
  if (!t->running) {
    ref_drop(L, &t->self);
    return luaL_error(L, "out of memory for a timer");
  }
  if (lua_toboolean(L, 3)) uv_unref((uv_handle_t *)&t->running->uv);
  return 0;
}

void timer_open(lua_State *L) {
  static const luaL_Reg methods[] = {{"start", start}, {"stop", stop}, {NULL, NULL}};
  type_make(L, TIMER, methods, stop);
  lua_pushcfunction(L, timer_);
  lua_setfield(L, -2, "timer");
}
