/* core.load_key, core.make_key, core.public_key: keys as Lua sees them. */
#include <string.h>

#include "korv/korv.h"

static const char KEY[] = "korv.key";

static net_key **new_box(lua_State *L) {
  net_key **box = lua_newuserdatauv(L, sizeof *box, 0);
  *box = NULL;
  luaL_setmetatable(L, KEY);
  return box;
}

static int key_gc(lua_State *L) {
  net_key **box = luaL_checkudata(L, 1, KEY);
  net_key_free(*box);
  *box = NULL;
  return 0;
}

/* load_key(path [, passphrase]) -> key | nil, message, name */
static int load_key(lua_State *L) {
  net_error err;
  lua_settop(L, 2);
  net_key **box = new_box(L);
  *box = net_key_load(luaL_checkstring(L, 1), luaL_optstring(L, 2, NULL), &err);
  return *box ? 1 : fail(L, err.name, err.text);
}

/* make_key(path [, comment]) -> key | nil, message, name */
static int make_key(lua_State *L) {
  net_error err;
  const char *path = luaL_checkstring(L, 1), *comment = luaL_optstring(L, 2, "");
  luaL_argcheck(L, strlen(comment) <= NET_COMMENT_BYTES, 2, "the comment is too long");
  net_key **box = new_box(L);
  *box = net_key_make(path, comment, &err);
  return *box ? 1 : fail(L, err.name, err.text);
}

static int push_text(lua_State *L, const net_key_text *text) {
  lua_pushstring(L, text->fingerprint);
  lua_pushstring(L, text->type);
  return 2;
}

/* key:describe() -> fingerprint, type | nil, message, name */
static int describe(lua_State *L) {
  net_error err;
  net_key_text text;
  net_key **box = luaL_checkudata(L, 1, KEY);
  if (!*box) return luaL_error(L, "this key is in use elsewhere");
  return net_key_describe(*box, &text, &err) ? push_text(L, &text) : fail(L, err.name, err.text);
}

/* key:public() -> base64 */
static int public_(lua_State *L) {
  char blob[8192];
  net_key **box = luaL_checkudata(L, 1, KEY);
  if (!*box) return luaL_error(L, "this key is in use elsewhere");
  if (!net_key_public(*box, blob, sizeof blob)) return luaL_error(L, "the public key cannot be told");
  lua_pushstring(L, blob);
  return 1;
}

/* public_key(type, base64) -> fingerprint, type | nil, message, name */
static int public_key(lua_State *L) {
  net_error err;
  net_key_text text;
  bool ok = net_public_key_describe(luaL_checkstring(L, 1), luaL_checkstring(L, 2), &text, &err);
  return ok ? push_text(L, &text) : fail(L, err.name, err.text);
}

/* address_bytes(text) -> string | nil */
static int address_bytes(lua_State *L) {
  unsigned char bytes[16];
  size_t len = net_address_bytes(luaL_checkstring(L, 1), bytes);
  if (len == 0) return 0;
  lua_pushlstring(L, (const char *)bytes, len);
  return 1;
}

net_key **key_list(lua_State *L, int index, const char *name, size_t *count) {
  if (lua_getfield(L, index, name) != LUA_TTABLE) luaL_error(L, "%s must be a list of keys", name);
  int list = lua_gettop(L);
  size_t n = lua_rawlen(L, list);
  net_key **keys = lua_newuserdatauv(L, (n ? n : 1) * sizeof *keys, 0);
  for (size_t i = 0; i < n; i++) {
    lua_rawgeti(L, list, (lua_Integer)i + 1);
    keys[i] = *(net_key **)luaL_checkudata(L, -1, KEY);
    if (!keys[i]) luaL_error(L, "%s[%d] is in use elsewhere", name, (int)i + 1);
    lua_pop(L, 1);
  }
  lua_remove(L, list);
  *count = n;
  return keys;
}

void key_list_give_up(lua_State *L, int index, const char *name) {
  lua_getfield(L, index, name);
  for (lua_Integer i = 1; lua_rawgeti(L, -1, i) != LUA_TNIL; i++) {
    *(net_key **)luaL_checkudata(L, -1, KEY) = NULL;
    lua_pop(L, 1);
  }
  lua_pop(L, 2);
}

void key_open(lua_State *L) {
  static const luaL_Reg methods[] = {{"describe", describe}, {"public", public_}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"load_key", load_key}, {"make_key", make_key}, {"public_key", public_key},
                                       {"address_bytes", address_bytes}, {NULL, NULL}};
  type_make(L, KEY, methods, key_gc);
  luaL_setfuncs(L, functions, 0);
}
