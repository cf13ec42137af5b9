/* Options: the fields of a table that Lua gave, with their defaults and their bounds. */
#include "korv/korv.h"

enum { MESSAGE_BYTES = 16 << 20 };

const char *option_string(lua_State *L, int index, const char *name, const char *otherwise) {
  int type = lua_getfield(L, index, name);
  const char *s = type == LUA_TNIL ? otherwise : lua_tostring(L, -1);
  if (type != LUA_TNIL && type != LUA_TSTRING) luaL_error(L, "%s must be a string, not a %s", name, lua_typename(L, type));
  lua_pop(L, 1);
  return s;
}

lua_Integer option_integer(lua_State *L, int index, const char *name, lua_Integer otherwise, lua_Integer least, lua_Integer most) {
  int ok = 1;
  lua_Integer n = lua_getfield(L, index, name) == LUA_TNIL ? otherwise : lua_tointegerx(L, -1, &ok);
  if (!ok || n < least || n > most) luaL_error(L, "%s must be an integer from %I to %I", name, (LUAI_UACINT)least, (LUAI_UACINT)most);
  lua_pop(L, 1);
  return n;
}

uint64_t option_ms(lua_State *L, int index, const char *name, double otherwise_s) {
  int ok = 1;
  double s = lua_getfield(L, index, name) == LUA_TNIL ? otherwise_s : lua_tonumberx(L, -1, &ok);
  if (!ok || !(s >= 0 && s <= 1e9)) luaL_error(L, "%s must be a number of seconds from 0 on", name);
  lua_pop(L, 1);
  return s > 0 && s < 0.001 ? 1 : (uint64_t)(s * 1000);
}

bool option_boolean(lua_State *L, int index, const char *name, bool otherwise) {
  bool b = lua_getfield(L, index, name) == LUA_TNIL ? otherwise : lua_toboolean(L, -1);
  lua_pop(L, 1);
  return b;
}

int option_function(lua_State *L, int index, const char *name) {
  if (lua_getfield(L, index, name) != LUA_TFUNCTION) luaL_error(L, "%s must be a function, not a %s", name, luaL_typename(L, -1));
  return ref_take(L);
}

wire_limits option_wire_limits(lua_State *L, int index) {
  wire_limits limits = {(size_t)option_integer(L, index, "max_message_bytes", MESSAGE_BYTES, 1024, 1 << 30),
                        (size_t)option_integer(L, index, "max_packed_bytes", MESSAGE_BYTES, 1024, 1 << 30)};
  return limits;
}

host_json_limits option_json_limits(lua_State *L, int index) {
  host_json_limits limits = {(int)option_integer(L, index, "max_depth", 128, 1, 1000),
                             (size_t)option_integer(L, index, "max_request_bytes", MESSAGE_BYTES, 1024, 1 << 30)};
  return limits;
}
