/* What answers requests: the handler that one load of the endpoints made. It is kept until the last request that began in it has ended,
 * and then Lua is told. Knows nothing of how endpoints are loaded. */
#include <stdlib.h>

#include "korv/server.h"

static int tell_retired(lua_State *L) {
  const generation *g = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, g->server->retired);
  lua_pushinteger(L, g->number);
  lua_call(L, 1, 0);
  return 0;
}

static void retire_if_over(generation *g) {
  hub *h = g->server->hub;
  if (g->in_flight || g->server->generation == g) return;
  ref_drop(h->L, &g->handler);
  lua_pushcfunction(h->L, tell_retired);
  lua_pushlightuserdata(h->L, g);
  hub_call(h, 1, 0, "retired");
  free(g);
}

generation *generation_enter(server *s) {
  s->generation->in_flight++;
  return s->generation;
}

void generation_leave(generation *g) {
  g->in_flight--;
  retire_if_over(g);
}

void generation_swap(server *s, lua_State *L, lua_Integer number) {
  generation *next = calloc(1, sizeof *next), *last = s->generation;
  if (!next) luaL_error(L, "out of memory for a generation");
  next->server = s;
  next->number = number;
  next->handler = ref_take(L);
  s->generation = next;
  if (last) retire_if_over(last);
}

void generation_free(lua_State *L, generation *g) {
  if (!g) return;
  ref_drop(L, &g->handler);
  free(g);
}
