/* json_encode: a Lua value to JSON text, in one pass, without recursion in C and without running any Lua code.
 *
 * The Lua stack is the encoder's stack: each open table takes two slots, the table and the key that was last taken from it (before the
 * first: nil in an object, 0 in an array). So the path to a value that has no JSON form is read off the stack. Knows no message.
 */
#include "host/host.h"
#include "host/json_text.h"

#include <lauxlib.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { CHUNK_BYTES = 512 }; /* asked of the buffer at a time, beyond what is needed at once */

/* What became of a value: written, or a table that was opened. Of an open table: closed, or its next value is taken out, on top of the
 * stack. Functions that can only fail or do it return a bool, so the first two are its values. */
enum { FAILED = false, DONE = true, OPENED, TAKEN };

typedef struct encoder {
  lua_State *L;
  wire_buf *out;
  size_t before;     /* the length of out when this began */
  char *at, *end;    /* where the next byte goes, and how far there is room; not committed to out yet */
  int base;          /* the stack index of the outermost table */
  int depth;         /* of open tables */
  bool in_array;     /* the innermost of them is written as one */
  const void *array; /* the array metatable, once a table with a metatable was seen */
  const host_json_limits *limits;
  const char *root;
  host_json_error *err;
} encoder;

/* ---- errors ------------------------------------------------------------------------------------------------------------------- */

enum { KEY_BYTES = 40, STEP_BYTES = KEY_BYTES + 16, ROOT_BYTES = 40 };

static bool is_identifier(const char *s, size_t len) {
  for (size_t i = 0; i < len; i++) {
    bool letter = (s[i] >= 'a' && s[i] <= 'z') || (s[i] >= 'A' && s[i] <= 'Z') || s[i] == '_';
    bool digit = s[i] >= '0' && s[i] <= '9';
    if (!letter && !(digit && i > 0)) return false;
  }
  return len > 0;
}

/* Writes the key at index as a step of a path, long ones shortened, and returns its length. */
static size_t put_step(lua_State *L, int index, char *step) {
  if (lua_isinteger(L, index)) return (size_t)snprintf(step, STEP_BYTES, "[%lld]", (long long)lua_tointeger(L, index));
  size_t len;
  const char *key = lua_tolstring(L, index, &len);
  size_t shown = len;
  if (shown > KEY_BYTES) {
    shown = KEY_BYTES;
    while (shown > 0 && ((unsigned char)key[shown] & 0xc0) == 0x80) shown--; /* keep characters whole */
  }
  if (shown == len && is_identifier(key, len)) return (size_t)snprintf(step, STEP_BYTES, ".%s", key);
  size_t n = 0;
  step[n++] = '[';
  step[n++] = '"';
  for (size_t i = 0; i < shown; i++) step[n++] = (unsigned char)key[i] < ' ' ? '?' : key[i];
  return n + (size_t)snprintf(step + n, STEP_BYTES - n, "%s\"]", shown < len ? "..." : "");
}

/* Writes root and the first `keys` keys on the stack into path; where they don't fit, "..." and the last of them. */
static void put_path(encoder *e, int keys, char *path, size_t size) {
  char steps[sizeof e->err->text];
  size_t begin = sizeof steps, root_len = strlen(e->root);
  if (root_len > ROOT_BYTES) root_len = ROOT_BYTES;
  size_t room = size - root_len - sizeof "...";
  bool all = true;
  for (int k = keys; k > 0 && all; k--) {
    char step[STEP_BYTES];
    size_t n = put_step(e->L, e->base + 2 * k - 1, step);
    all = sizeof steps - begin + n <= room;
    if (all) memcpy(steps + (begin -= n), step, n);
  }
  snprintf(path, size, "%.*s%s%.*s", (int)root_len, e->root, all ? "" : "...", (int)(sizeof steps - begin), steps + begin);
}

/* What is wrong with the value that the first `keys` keys on the stack lead to. */
__attribute__((format(printf, 3, 4))) static bool fail(encoder *e, int keys, const char *format, ...) {
  char problem[100], path[sizeof e->err->text - sizeof problem - sizeof ":"];
  va_list args;
  va_start(args, format);
  vsnprintf(problem, sizeof problem, format, args);
  va_end(args);
  put_path(e, keys, path, sizeof path);
  snprintf(e->err->text, sizeof e->err->text, "%s: %s", path, problem);
  return false;
}

/* ---- output ------------------------------------------------------------------------------------------------------------------- */

static bool within_limit(encoder *e, size_t bytes) {
  if (bytes <= e->limits->bytes) return true;
  e->err->too_large = true;
  return fail(e, 0, "its JSON form is larger than %zu bytes", e->limits->bytes);
}

static void commit(encoder *e) {
  wire_buf_commit(e->out, (size_t)(e->at - (wire_buf_at(e->out) + e->out->len)));
}

static bool extend(encoder *e, size_t n) {
  e->at = wire_buf_reserve(e->out, n + CHUNK_BYTES);
  if (!e->at) return fail(e, 0, "there is no memory for its JSON form");
  e->end = e->at + n + CHUNK_BYTES;
  return true;
}

static bool grow(encoder *e, size_t n) {
  commit(e);
  return within_limit(e, e->out->len - e->before) && extend(e, n);
}

/* Makes sure that n bytes can be written at e->at. */
static inline bool room(encoder *e, size_t n) {
  return (size_t)(e->end - e->at) >= n || grow(e, n);
}

static bool put(encoder *e, const char *bytes, size_t n) {
  if (!room(e, n)) return false;
  memcpy(e->at, bytes, n);
  e->at += n;
  return true;
}

static bool put_char(encoder *e, char c) {
  if (!room(e, 1)) return false;
  *e->at++ = c;
  return true;
}

/* ---- scalars ------------------------------------------------------------------------------------------------------------------ */

static bool put_escape(encoder *e, unsigned char c) {
  static const char hex[] = "0123456789abcdef", plain[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
  const char *found = memchr(plain, c, sizeof plain - 1);
  char escape[] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
  if (!found) return put(e, escape, sizeof escape);
  escape[1] = names[found - plain];
  return put(e, escape, 2);
}

/* Writes the string at index; what and keys say in an error what it is and where. */
static bool string(encoder *e, int index, const char *what, int keys) {
  size_t len;
  const char *p = lua_tolstring(e->L, index, &len), *end = p + len;
  if (!within_limit(e, len) || !room(e, len + 2)) return false;
  *e->at++ = '"';
  for (;;) {
    const char *stop = json_unescaped(p, end);
    if (!put(e, p, (size_t)(stop - p))) return false;
    if (stop == end) return put_char(e, '"');
    if ((unsigned char)*stop >= 0x80) return fail(e, keys, "%s that is not valid UTF-8 has no JSON form", what);
    if (!put_escape(e, (unsigned char)*stop)) return false;
    p = stop + 1;
  }
}

static bool number(encoder *e) {
  if (!room(e, JSON_NUMBER_BYTES)) return false;
  if (lua_isinteger(e->L, -1)) {
    e->at = json_write_integer(e->at, lua_tointeger(e->L, -1));
    return true;
  }
  double value = lua_tonumber(e->L, -1);
  if (value != value) return fail(e, e->depth, "NaN has no JSON form");
  if (value - value != 0) return fail(e, e->depth, "an infinite number has no JSON form");
  e->at = json_write_float(e->at, value);
  return true;
}

static bool pointer(encoder *e) {
  if (!lua_touserdata(e->L, -1)) return put(e, "null", 4);
  return fail(e, e->depth, "a light userdata that is not null has no JSON form");
}

static bool scalar(encoder *e, int type) {
  switch (type) {
  case LUA_TNIL: return put(e, "null", 4);
  case LUA_TBOOLEAN: return lua_toboolean(e->L, -1) ? put(e, "true", 4) : put(e, "false", 5);
  case LUA_TLIGHTUSERDATA: return pointer(e);
  case LUA_TNUMBER: return number(e);
  case LUA_TSTRING: return string(e, -1, "a string", e->depth);
  default: return fail(e, e->depth, "a %s has no JSON form", lua_typename(e->L, type));
  }
}

/* ---- tables ------------------------------------------------------------------------------------------------------------------- */

static bool is_marked(encoder *e) {
  if (!lua_getmetatable(e->L, -1)) return false;
  const void *metatable = lua_topointer(e->L, -1);
  lua_pop(e->L, 1);
  if (!e->array) {
    luaL_getmetatable(e->L, HOST_ARRAY);
    e->array = lua_topointer(e->L, -1);
    lua_pop(e->L, 1);
  }
  return metatable == e->array;
}

static const char *kind(lua_State *L, int index) {
  if (lua_type(L, index) != LUA_TNUMBER) return luaL_typename(L, index);
  return lua_isinteger(L, index) ? "integer" : "fractional";
}

static bool hole(encoder *e, lua_Integer most) {
  lua_Integer i = 1;
  while (lua_rawgeti(e->L, -1, i) != LUA_TNIL) {
    lua_pop(e->L, 1);
    i++;
  }
  return fail(e, e->depth, "an array with a hole has no JSON form (%lld is missing of 1 to %lld)", (long long)i, (long long)most);
}

/* Whether the keys of the table on top are 1 … n. */
static bool check_sequence(encoder *e, bool marked) {
  lua_State *L = e->L;
  lua_Integer count = 0, most = 0;
  for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
    lua_Integer key = lua_tointeger(L, -2);
    if (!lua_isinteger(L, -2)) {
      const char *what = marked ? "an array with" : count > 0 ? "a table of integer and" : "a table of";
      return fail(e, e->depth, "%s %s keys has no JSON form", what, kind(L, -2));
    }
    if (key < 1) return fail(e, e->depth, "an array with the key %lld has no JSON form: the first is 1", (long long)key);
    if (key > most) most = key;
    count++;
  }
  return most == count || hole(e, most);
}

/* Opens the table on top, or writes it where it is empty. */
static int open_table(encoder *e) {
  lua_State *L = e->L;
  if (e->depth >= e->limits->depth || !lua_checkstack(L, 8)) {
    return fail(e, e->depth, "more than %d levels of nesting have no JSON form (is there a cycle?)", e->depth);
  }
  bool marked = is_marked(e);
  lua_pushnil(L);
  if (!lua_next(L, -2)) {
    lua_pop(L, 1);
    return put(e, marked ? "[]" : "{}", 2);
  }
  bool array = marked || lua_type(L, -2) != LUA_TSTRING;
  lua_pop(L, 2);
  if (array && !check_sequence(e, marked)) return FAILED;
  if (array)
    lua_pushinteger(L, 0);
  else
    lua_pushnil(L);
  e->depth++;
  e->in_array = array;
  return put_char(e, array ? '[' : '{') ? OPENED : FAILED;
}

/* Drops the innermost table, now on top, and goes on in the one around it, whose key is below. */
static int close_table(encoder *e) {
  char bracket = e->in_array ? ']' : '}';
  lua_pop(e->L, 1);
  e->depth--;
  e->in_array = e->depth > 0 && lua_isinteger(e->L, -1);
  return put_char(e, bracket);
}

/* Takes the next element out of the array below its last index: TAKEN with it on top, DONE where the array ended. */
static int next_element(encoder *e) {
  lua_State *L = e->L;
  lua_Integer i = lua_tointeger(L, -1) + 1;
  lua_pop(L, 1);
  if (lua_rawgeti(L, -1, i) == LUA_TNIL) {
    lua_pop(L, 1);
    return close_table(e);
  }
  lua_pushinteger(L, i);
  lua_insert(L, -2);
  return i == 1 || put_char(e, ',') ? TAKEN : FAILED;
}

/* The same for an object; the member's name is written. */
static int next_member(encoder *e) {
  lua_State *L = e->L;
  bool first = lua_isnil(L, -1);
  if (!lua_next(L, -2)) return close_table(e);
  if (lua_type(L, -2) != LUA_TSTRING) {
    return fail(e, e->depth - 1, "a table of string and %s keys has no JSON form", kind(L, -2));
  }
  if (!first && !put_char(e, ',')) return FAILED;
  if (!string(e, -2, "a key", e->depth - 1)) return FAILED;
  return put_char(e, ':') ? TAKEN : FAILED;
}

/* Writes the value on top and drops it, or opens it. */
static int value(encoder *e) {
  int type = lua_type(e->L, -1);
  if (type == LUA_TTABLE) return open_table(e);
  if (!scalar(e, type)) return FAILED;
  lua_pop(e->L, 1);
  return DONE;
}

static bool document(encoder *e) {
  if (!extend(e, 0)) return false;
  int result = value(e);
  while (result != FAILED && e->depth > 0) {
    result = e->in_array ? next_element(e) : next_member(e);
    if (result == TAKEN) result = value(e);
  }
  if (result == FAILED) return false;
  commit(e);
  return within_limit(e, e->out->len - e->before);
}

int host_json_encode(lua_State *L, int index, const char *root, const host_json_limits *limits, wire_buf *out, host_json_error *err) {
  encoder e = {.L = L, .out = out, .before = out->len, .base = lua_gettop(L) + 1, .limits = limits, .root = root, .err = err};
  err->too_large = false;
  if (!lua_checkstack(L, 8)) {
    fail(&e, 0, "there is no memory for Lua's stack");
    return -1;
  }
  lua_pushvalue(L, index);
  bool done = document(&e);
  if (!done) out->len = e.before;
  lua_settop(L, e.base - 1);
  return done ? 0 : -1;
}
