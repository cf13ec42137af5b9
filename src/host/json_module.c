/* json_module: the codec as the Lua table korv.json, and the mark that makes a table an array.
 *
 * The fixed limits are those of a program that encodes and decodes for itself; the limits of messages are the server's matter.
 */
#include "host/host.h"

#include <lauxlib.h>

static const host_json_limits limits = {.depth = 128, .bytes = 16 << 20};

enum { KEEP_BYTES = 64 << 10 }; /* of memory, between two calls of encode */

static int failure(lua_State *L, const char *message) {
  lua_pushnil(L);
  lua_pushstring(L, message);
  lua_pushliteral(L, "EJSON");
  return 3;
}

/* The text is collected in memory that a userdata owns, so that it is released whatever raises. */
static int encode(lua_State *L) {
  luaL_checkany(L, 1);
  wire_buf *out = lua_touserdata(L, lua_upvalueindex(1));
  wire_buf_consume(out, out->len); /* of a call that raised */
  host_json_error err;
  if (host_json_encode(L, 1, "value", &limits, out, &err) != 0) return failure(L, err.text);
  lua_pushlstring(L, wire_buf_at(out), out->len);
  wire_buf_consume(out, out->len);
  wire_buf_shrink(out, KEEP_BYTES);
  return 1;
}

static int decode(lua_State *L) {
  luaL_checktype(L, 1, LUA_TSTRING);
  size_t len;
  const char *text = lua_tolstring(L, 1, &len);
  host_json_error err;
  return host_json_decode(L, text, len, &limits, NULL, 0, &err) == 0 ? 1 : failure(L, err.text);
}

static int array(lua_State *L) {
  lua_settop(L, 1);
  if (lua_isnil(L, 1)) {
    lua_newtable(L);
    lua_replace(L, 1);
  }
  luaL_checktype(L, 1, LUA_TTABLE);
  luaL_getmetatable(L, HOST_ARRAY);
  bool bare = !lua_getmetatable(L, 1);
  bool marked = !bare && lua_rawequal(L, -1, -2);
  luaL_argcheck(L, bare || marked, 1, "this table has a metatable of its own; pass a table without one");
  lua_settop(L, 2);
  lua_setmetatable(L, 1);
  return 1;
}

static int free_scratch(lua_State *L) {
  wire_buf_free(lua_touserdata(L, 1));
  return 0;
}

static void push_scratch(lua_State *L) {
  wire_buf *scratch = lua_newuserdatauv(L, sizeof *scratch, 0);
  *scratch = (wire_buf){0};
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, free_scratch);
  lua_setfield(L, -2, "__gc");
  lua_setmetatable(L, -2);
}

void host_json_open(lua_State *L) {
  luaL_newmetatable(L, HOST_ARRAY);
  lua_pop(L, 1);
}

void host_json_module(lua_State *L) {
  static const luaL_Reg functions[] = {{"decode", decode}, {"array", array}, {NULL, NULL}};
  luaL_checkstack(L, 4, "korv.json");
  luaL_newlib(L, functions);
  push_scratch(L);
  lua_pushcclosure(L, encode, 1);
  lua_setfield(L, -2, "encode");
  lua_pushlightuserdata(L, NULL);
  lua_setfield(L, -2, "null");
}
