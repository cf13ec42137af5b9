/* json_state: see json_state.h. */
#include "json_state.h"

#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t live_bytes;
long allocations_left = -1;

const host_json_limits WIDE = {.depth = 128, .bytes = 1 << 24};

static void *allocate(void *ud, void *block, size_t old, size_t new) {
  (void)ud;
  if (!block) old = 0; /* it is a type then */
  if (new > old) {
    if (allocations_left == 0) return NULL;
    if (allocations_left > 0) allocations_left--;
  }
  live_bytes = live_bytes - old + new;
  if (new > 0) return realloc(block, new);
  free(block);
  return NULL;
}

int make_state(void **state) {
  lua_State *L = lua_newstate(allocate, NULL);
  if (!L) return -1;
  luaL_openlibs(L);
  host_json_open(L);
  host_json_module(L);
  lua_getfield(L, -1, "array");
  lua_setglobal(L, "array");
  lua_getfield(L, -1, "null");
  lua_setglobal(L, "null");
  lua_settop(L, 0);
  *state = L;
  return 0;
}

int free_state(void **state) {
  lua_State *L = *state;
  assert_int_equal(lua_gettop(L), 0);
  lua_close(L);
  assert_int_equal(live_bytes, 0);
  return 0;
}

void push_expression(lua_State *L, const char *expression) {
  char chunk[2000];
  snprintf(chunk, sizeof chunk, "return %s", expression);
  if (luaL_dostring(L, chunk)) fail_msg("%s", lua_tostring(L, -1));
}

static bool is_array(lua_State *L, int index) {
  if (!lua_getmetatable(L, index)) return false;
  luaL_getmetatable(L, HOST_ARRAY);
  bool array = lua_rawequal(L, -1, -2);
  lua_pop(L, 2);
  return array;
}

static int count_members(lua_State *L, int table) {
  int n = 0;
  for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) n++;
  return n;
}

static bool same_members(lua_State *L, int a, int b) {
  if (count_members(L, a) != count_members(L, b)) return false;
  for (lua_pushnil(L); lua_next(L, a); lua_pop(L, 2)) {
    lua_pushvalue(L, -2);
    lua_rawget(L, b);
    if (!same(L, lua_gettop(L) - 1, lua_gettop(L))) {
      lua_pop(L, 3);
      return false;
    }
  }
  return true;
}

bool same(lua_State *L, int a, int b) {
  luaL_checkstack(L, 10, "same");
  if (lua_type(L, a) != lua_type(L, b)) return false;
  if (lua_istable(L, a)) return is_array(L, a) == is_array(L, b) && same_members(L, a, b);
  if (lua_type(L, a) != LUA_TNUMBER) return lua_rawequal(L, a, b);
  if (lua_isinteger(L, a) || lua_isinteger(L, b)) return lua_isinteger(L, a) && lua_isinteger(L, b) && lua_rawequal(L, a, b);
  double x = lua_tonumber(L, a), y = lua_tonumber(L, b);
  return memcmp(&x, &y, sizeof x) == 0; /* NOLINT(bugprone-suspicious-memory-comparison,cert-exp42-c,cert-flp37-c): to the last bit */
}

int decode_with(lua_State *L, const char *text, size_t len, const host_json_limits *limits, host_json_error *err) {
  char *exact = malloc(len + (len == 0));
  assert_non_null(exact);
  memcpy(exact, text, len);
  int top = lua_gettop(L), result = host_json_decode(L, exact, len, limits, NULL, 0, err);
  assert_int_equal(lua_gettop(L), result == 0 ? top + 1 : top);
  free(exact);
  return result;
}

void decode(lua_State *L, const char *text, size_t len) {
  host_json_error err;
  if (decode_with(L, text, len, &WIDE, &err) != 0) fail_msg("%.*s: %s", (int)len, text, err.text);
}

const char *encode_with(lua_State *L, const host_json_limits *limits, host_json_error *err) {
  static wire_buf out;
  wire_buf_free(&out);
  wire_buf_append(&out, "kept", 4);
  int top = lua_gettop(L), result = host_json_encode(L, -1, "body", limits, &out, err);
  assert_int_equal(lua_gettop(L), top);
  lua_pop(L, 1);
  assert_memory_equal(wire_buf_at(&out), "kept", 4);
  if (result != 0) assert_int_equal(out.len, 4);
  wire_buf_append(&out, "", 1);
  return result == 0 ? wire_buf_at(&out) + 4 : NULL;
}

const char *encode(lua_State *L) {
  host_json_error err;
  const char *text = encode_with(L, &WIDE, &err);
  if (!text) fail_msg("%s", err.text);
  return text;
}
