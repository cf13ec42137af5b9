/* What can be asked of a server that listens: to take over connections, to swap its handler or its keys, to part with peers, to drain. */
#include <unistd.h>

#include "korv/server.h"

static const char stopping[] = "the server is stopping";

void session_close_drained(const server *s, net_session *session, size_t leaving) {
  if (s->draining && net_session_channels(session) <= leaving) net_session_close(session, "ESHUTDOWN", stopping);
}

/* server:adopt(fd): takes over a connected socket. */
static int adopt(lua_State *L) {
  server *s = luaL_checkudata(L, 1, KORV_SERVER);
  int fd = (int)luaL_checkinteger(L, 2);
  if (s->listener)
    net_listener_adopt(s->listener, fd);
  else
    close(fd);
  hub_poke(s->hub);
  return 0;
}

/* server:leave_sockets(): no new connections; those that there are go on until it drains, and then read no more. */
static int leave_sockets(lua_State *L) {
  server *s = luaL_checkudata(L, 1, KORV_SERVER);
  s->replaced = true;
  if (s->listener) net_listener_leave_sockets(s->listener);
  return 0;
}

/* server:close(): no new connections, and the ones that there are end. `ended` follows. */
static int close_(lua_State *L) {
  server *s = luaL_checkudata(L, 1, KORV_SERVER);
  if (s->listener) net_listener_close(s->listener);
  hub_poke(s->hub);
  return 0;
}

static void drain_session(net_session *session, void *arg) {
  if (net_session_is_open(session))
    session_close_drained(arg, session, 0);
  else
    net_session_close(session, "ESHUTDOWN", stopping);
}

/* server:drain(): no new connections, requests or channels; what has nothing to do is closed, and the rest as it ends. `ended` follows. */
static int drain(lua_State *L) {
  server *s = luaL_checkudata(L, 1, KORV_SERVER);
  channel *c;
  if (!s->listener || s->draining) return 0;
  s->draining = true;
  net_listener_stop(s->listener);
  LIST_FOREACH(c, &s->channels, link) channel_finish_if_done(c);
  net_listener_visit(s->listener, drain_session, s);
  hub_poke(s->hub);
  return 0;
}

/* server:cancel(code): every request under way is answered so. */
static int cancel(lua_State *L) {
  server *s = luaL_checkudata(L, 1, KORV_SERVER);
  request_cancel_all(s, (int)luaL_checkinteger(L, 2));
  hub_poke(s->hub);
  return 0;
}

/* server:handle(handler, number): the generation of the requests from the next one on. */
static int handle(lua_State *L) {
  server *s = luaL_checkudata(L, 1, KORV_SERVER);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  lua_Integer number = luaL_checkinteger(L, 3);
  lua_settop(L, 2);
  generation_swap(s, L, number);
  return 0;
}

/* server:set_keys{ keys = {…} } -> true | nil, message, name: host keys from the next connection on. */
static int set_keys(lua_State *L) {
  server *s = luaL_checkudata(L, 1, KORV_SERVER);
  net_error err;
  size_t count;
  luaL_checktype(L, 2, LUA_TTABLE);
  net_key **keys = key_list(L, 2, "keys", &count);
  if (s->listener && !net_listener_set_keys(s->listener, keys, count, &err)) return fail(L, err.name, err.text);
  lua_pushboolean(L, true);
  return 1;
}

typedef struct expulsion {
  hub *hub;
  int judge; /* a reference */
} expulsion;

static void expel_session(net_session *session, void *arg) {
  const expulsion *e = arg;
  const int *peer = net_session_data(session);
  lua_State *L = e->hub->L;
  if (!peer || *peer == LUA_NOREF) return;
  lua_rawgeti(L, LUA_REGISTRYINDEX, e->judge);
  lua_rawgeti(L, LUA_REGISTRYINDEX, *peer);
  if (!hub_call(e->hub, 1, 1, "expel")) { /* as at a log-in, where an error refuses */
    net_session_close(session, "EREVOKED", "whether the key may stay could not be found out");
    return;
  }
  if (lua_isstring(L, -1)) net_session_close(session, "EREVOKED", lua_tostring(L, -1));
  lua_pop(L, 1);
}

/* server:expel(judge): each peer for whom judge(peer) returns a reason, or raises, loses its session, and is told the reason. */
static int expel(lua_State *L) {
  server *s = luaL_checkudata(L, 1, KORV_SERVER);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  lua_settop(L, 2);
  expulsion e = {s->hub, ref_take(L)};
  if (s->listener) net_listener_visit(s->listener, expel_session, &e);
  ref_drop(L, &e.judge);
  hub_poke(s->hub);
  return 0;
}

/* server:counts() -> connections, requests in flight, requests ever */
static int counts(lua_State *L) {
  const server *s = luaL_checkudata(L, 1, KORV_SERVER);
  lua_pushinteger(L, s->listener ? (lua_Integer)net_listener_sessions(s->listener) : 0);
  lua_pushinteger(L, (lua_Integer)s->in_flight);
  lua_pushinteger(L, (lua_Integer)s->requests);
  return 3;
}

const luaL_Reg control_methods[] = {{"adopt", adopt},   {"leave_sockets", leave_sockets}, {"close", close_}, {"drain", drain},
                                    {"cancel", cancel}, {"handle", handle},               {"expel", expel},  {"set_keys", set_keys},
                                    {"counts", counts}, {"caller", caller_new},           {"metrics", metrics_push},
                                    {NULL, NULL}};
