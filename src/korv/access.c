/* The access line: Lua is told of each request that was answered, and of what was refused as none. Knows nothing of what the line says. */
#include "korv/server.h"

typedef struct line {
  const server *server;
  int request, peer; /* references; request may be none, and peer where there is one */
  int code;
  double ms;
  size_t bytes;
  lua_Integer generation;
} line;

/* answered(request | nil, peer | nil, code, ms, bytes, generation): no request where the message was none. */
static int tell_answered(lua_State *L) {
  const line *a = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, a->server->answered);
  lua_rawgeti(L, LUA_REGISTRYINDEX, a->request);
  lua_rawgeti(L, LUA_REGISTRYINDEX, a->peer);
  lua_pushinteger(L, a->code);
  lua_pushnumber(L, a->ms);
  lua_pushinteger(L, (lua_Integer)a->bytes);
  lua_pushinteger(L, a->generation);
  lua_call(L, 6, 0);
  return 0;
}

static void tell(hub *h, line *a) {
  lua_pushcfunction(h->L, tell_answered);
  lua_pushlightuserdata(h->L, a);
  hub_call(h, 1, 0, "the access log");
}

void access_refused(const channel *c, const answer *a, int table) {
  const server *s = c->server;
  line refused = {s, table, c->peer, a->code, 0, a->bytes, s->generation->number};
  if (s->answered != LUA_NOREF) tell(s->hub, &refused);
}

void access_answered(request *r, int code, uint64_t ns) {
  line done = {r->server, r->line, LUA_NOREF, code, (double)ns / 1e6, r->bytes, r->generation->number};
  tell(r->server->hub, &done);
  ref_drop(r->server->hub->L, &r->line);
}
