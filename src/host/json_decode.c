/* json_decode: JSON text to a Lua value, in one pass and without recursion in C.
 *
 * The Lua stack is the parser's stack: each open container takes two slots, its table and the key of the value that is being read,
 * a string in an object. An array keeps its count of elements there, and only while a container inside it is open. Knows no message:
 * the caller tells which members of the top-level object matter.
 */
#include "host/host.h"
#include "host/json_text.h"

#include <lauxlib.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* What was read: a whole value, now on top of the stack, or the beginning of a container. Functions that can only fail or do it return
 * a bool, so the first two are its values. */
enum { FAILED = false, VALUE = true, OPENED };

enum { END_OF_TEXT = -1 };

/* That a table is made with: small ones then need no second allocation. Whoever asks for fields has some of its own to add. */
enum { ROOM = 4, ROOM_WITH_FIELDS = 8 };

typedef struct decoder {
  lua_State *L;
  const char *text, *at, *end;
  int metatable; /* the stack index of the array metatable, nil until the first array */
  int depth, max_depth;
  bool in_array;                   /* the innermost open container is one */
  lua_Integer count;               /* of values in it so far */
  host_json_field *fields, *field; /* field: the one that the current member of the top-level object belongs to, or NULL */
  size_t n_fields;
  host_json_error *err;
} decoder;

/* ---- errors ------------------------------------------------------------------------------------------------------------------- */

static size_t column(const char *line, const char *at) {
  size_t n = 1;
  for (; line < at; line++) n += ((unsigned char)*line & 0xc0) != 0x80; /* counts characters */
  return n;
}

__attribute__((format(printf, 3, 4))) static bool fail(decoder *d, const char *at, const char *format, ...) {
  size_t line = 1;
  const char *begin = d->text;
  for (const char *p; (p = memchr(begin, '\n', (size_t)(at - begin))); begin = p + 1) line++;
  int n = snprintf(d->err->text, sizeof d->err->text, "line %zu, column %zu: ", line, column(begin, at));
  va_list args;
  va_start(args, format);
  vsnprintf(d->err->text + n, sizeof d->err->text - (size_t)n, format, args);
  va_end(args);
  return false;
}

static bool expected(decoder *d, const char *at, const char *what) {
  if (at == d->end) return fail(d, at, "expected %s, found the end of the text", what);
  unsigned char found = (unsigned char)*at;
  if (found > ' ' && found < 0x7f) return fail(d, at, "expected %s, found '%c'", what, found);
  return fail(d, at, "expected %s, found the byte 0x%02x", what, found);
}

/* ---- strings ------------------------------------------------------------------------------------------------------------------ */

/* The four digits of a \u escape at p, or -1. */
static int32_t hex4(const char *p, const char *end) {
  if (end - p < 4) return -1;
  int32_t code = 0;
  for (int i = 0; i < 4; i++) {
    char c = p[i];
    int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return -1;
    code = code << 4 | digit;
  }
  return code;
}

static bool is_high(int32_t code) {
  return code >= 0xd800 && code <= 0xdbff;
}

static bool is_low(int32_t code) {
  return code >= 0xdc00 && code <= 0xdfff;
}

/* Checks the escape whose backslash is at p. Returns its end, or NULL where it failed. */
static const char *check_unicode(decoder *d, const char *p) {
  int32_t code = hex4(p + 2, d->end);
  if (code < 0) {
    fail(d, p, "expected four hexadecimal digits after '\\u'");
    return NULL;
  }
  if (!is_high(code) && !is_low(code)) return p + 6;
  bool paired = is_high(code) && d->end - p >= 12 && p[6] == '\\' && p[7] == 'u' && is_low(hex4(p + 8, d->end));
  if (paired) return p + 12;
  fail(d, p, "expected a pair of surrogates, a high one and then a low one, found only '\\u%.4s'", p + 2);
  return NULL;
}

static const char *check_escape(decoder *d, const char *p) {
  if (p + 1 < d->end) {
    if (p[1] == 'u') return check_unicode(d, p);
    if (p[1] != '\0' && strchr("\"\\/bfnrt", p[1])) return p + 2;
  }
  expected(d, p + 1, "one of \" \\ / b f n r t u after a backslash");
  return NULL;
}

static bool bad_byte(decoder *d, const char *p) {
  if (p == d->end) return fail(d, p, "expected '\"' at the end of a string, found the end of the text");
  unsigned char c = (unsigned char)*p;
  if (c < ' ') return fail(d, p, "expected the control character 0x%02x in a string as an escape, '\\u%04x'", c, c);
  return fail(d, p, "expected valid UTF-8, found the byte 0x%02x", c);
}

static char *put_utf8(char *to, int32_t code) {
  if (code < 0x80) {
    *to++ = (char)code;
    return to;
  }
  int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  static const int leads[] = {0, 0xc0, 0xe0, 0xf0};
  *to++ = (char)(leads[more] | code >> (6 * more));
  while (more-- > 0) *to++ = (char)(0x80 | (code >> (6 * more) & 0x3f));
  return to;
}

/* Writes what the escape at *p, which was checked, stands for, and moves *p behind it. */
static char *put_escape(char *to, const char **p) {
  const char *escape = *p;
  *p += 2;
  if (escape[1] != 'u') {
    static const char names[] = "bfnrt", meanings[] = "\b\f\n\r\t";
    const char *found = strchr(names, escape[1]);
    *to++ = found ? meanings[found - names] : escape[1];
    return to;
  }
  *p += 4;
  int32_t code = hex4(escape + 2, escape + 6);
  if (is_high(code)) {
    *p += 6;
    code = 0x10000 + ((code - 0xd800) << 10) + (hex4(escape + 8, escape + 12) - 0xdc00);
  }
  return put_utf8(to, code);
}

static void push_unescaped(lua_State *L, const char *p, const char *end) {
  luaL_Buffer b;
  char *begin = luaL_buffinitsize(L, &b, (size_t)(end - p)), *to = begin; /* an escape is longer than what it stands for */
  while (p < end) {
    if (*p == '\\') {
      to = put_escape(to, &p);
      continue;
    }
    const char *slash = memchr(p, '\\', (size_t)(end - p));
    size_t n = (size_t)((slash ? slash : end) - p);
    memcpy(to, p, n);
    to += n;
    p += n;
  }
  luaL_pushresultsize(&b, (size_t)(to - begin));
}

/* Reads the string whose first quote is at d->at, and pushes it. */
static bool string(decoder *d) {
  const char *first = d->at + 1, *p = json_unescaped(first, d->end);
  bool escapes = false;
  while (p < d->end && *p == '\\') {
    escapes = true;
    p = check_escape(d, p);
    if (!p) return false;
    p = json_unescaped(p, d->end);
  }
  if (p == d->end || *p != '"') return bad_byte(d, p);
  if (escapes)
    push_unescaped(d->L, first, p);
  else
    lua_pushlstring(d->L, first, (size_t)(p - first));
  d->at = p + 1;
  return true;
}

/* ---- other scalars ------------------------------------------------------------------------------------------------------------ */

/* A number that needs strtod. At the end of the text there may be nothing behind it to stop strtod, so a copy is read there. */
static bool long_number(decoder *d, const char *end) {
  const char *number = end < d->end ? d->at : lua_pushlstring(d->L, d->at, (size_t)(end - d->at));
  double value = json_strtod(number);
  if (end == d->end) lua_pop(d->L, 1);
  if (value - value != 0) return fail(d, d->at, "expected a number up to 1.7976931348623157e308");
  lua_pushnumber(d->L, value);
  return true;
}

static bool number(decoder *d) {
  json_number n;
  const char *end = json_number_scan(d->at, d->end, &n);
  bool done = true;
  if (n.kind == JSON_INTEGER)
    lua_pushinteger(d->L, n.integer);
  else if (n.kind == JSON_FLOAT)
    lua_pushnumber(d->L, n.real);
  else if (n.kind == JSON_LONG)
    done = long_number(d, end);
  else
    return expected(d, end, n.problem);
  d->at = end;
  return done;
}

static bool word(decoder *d, const char *name, size_t len) {
  if ((size_t)(d->end - d->at) < len || memcmp(d->at, name, len) != 0) return false;
  d->at += len;
  return true;
}

static bool literal(decoder *d) {
  if (word(d, "true", 4))
    lua_pushboolean(d->L, 1);
  else if (word(d, "false", 5))
    lua_pushboolean(d->L, 0);
  else if (word(d, "null", 4))
    lua_pushlightuserdata(d->L, NULL);
  else
    return expected(d, d->at, "a value");
  return true;
}

/* ---- containers --------------------------------------------------------------------------------------------------------------- */

/* Skips white space; the byte after it, or END_OF_TEXT. */
static int peek(decoder *d) {
  for (; d->at < d->end; d->at++) {
    char c = *d->at;
    if (c != ' ' && c != '\n' && c != '\t' && c != '\r') return (unsigned char)c;
  }
  return END_OF_TEXT;
}

static void mark_array(decoder *d) {
  if (lua_isnil(d->L, d->metatable)) {
    luaL_getmetatable(d->L, HOST_ARRAY);
    lua_replace(d->L, d->metatable);
  }
  lua_pushvalue(d->L, d->metatable);
  lua_setmetatable(d->L, -2);
}

static host_json_field *find_field(decoder *d) {
  size_t len;
  const char *name = lua_tolstring(d->L, -1, &len);
  for (host_json_field *f = d->fields; f < d->fields + d->n_fields; f++) {
    if (f->name_len == len && memcmp(f->name, name, len) == 0) return f;
  }
  return NULL;
}

/* A field whose name stands at d->at as it is known, and mostly it does: Lua then finds the string by where the name lies, without a hash. */
static bool known_name(decoder *d) {
  for (host_json_field *f = d->fields; f < d->fields + d->n_fields; f++) {
    if ((size_t)(d->end - d->at) < f->name_len + 2 || d->at[f->name_len + 1] != '"' || memcmp(d->at + 1, f->name, f->name_len) != 0) continue;
    lua_pushstring(d->L, f->name);
    d->at += f->name_len + 2;
    d->field = f;
    return true;
  }
  return false;
}

static bool name_of_field(decoder *d) {
  if (known_name(d)) return true;
  if (!string(d)) return false;
  d->field = find_field(d);
  return true;
}

/* Reads a member's name and the colon behind it, and pushes the name. */
static bool name(decoder *d) {
  if (peek(d) != '"') return expected(d, d->at, "a name in double quotes");
  bool may_be_field = d->depth == 1 && d->n_fields > 0;
  if (!(may_be_field ? name_of_field(d) : string(d))) return false;
  if (peek(d) != ':') return expected(d, d->at, "':' after a name");
  d->at++;
  if (!may_be_field) return true;
  peek(d);
  if (d->field) d->field->raw.at = d->at;
  return true;
}

/* Puts the value on top where it belongs: into the table below it, or into that below the name below it. */
static void store(decoder *d) {
  if (d->field && d->depth == 1) {
    d->field->raw.len = (size_t)(d->at - d->field->raw.at);
    d->field->type = lua_type(d->L, -1);
    d->field = NULL;
  }
  d->count++;
  if (d->in_array)
    lua_rawseti(d->L, -2, d->count);
  else
    lua_rawset(d->L, -3);
}

static int open_container(decoder *d) {
  bool array = *d->at == '[';
  if (d->depth >= d->max_depth || !lua_checkstack(d->L, 8)) return fail(d, d->at, "expected at most %d levels of nesting", d->depth);
  d->at++;
  if (peek(d) == (array ? ']' : '}')) {
    d->at++;
    lua_newtable(d->L);
    if (array) mark_array(d);
    return VALUE;
  }
  if (d->depth > 0 && d->in_array) lua_pushinteger(d->L, d->count);
  d->depth++;
  d->in_array = array;
  d->count = 0;
  lua_createtable(d->L, array ? ROOM : 0, array ? 0 : d->depth == 1 && d->n_fields ? ROOM_WITH_FIELDS : ROOM);
  if (array)
    mark_array(d);
  else if (!name(d))
    return FAILED;
  return OPENED;
}

/* Ends the innermost container, whose table is on top, and makes that around it the current one. */
static void close_container(decoder *d) {
  if (--d->depth == 0) return;
  d->in_array = lua_isinteger(d->L, -2);
  if (!d->in_array) return;
  d->count = lua_tointeger(d->L, -2);
  lua_remove(d->L, -2);
}

/* After a value: VALUE where it was the container's last, OPENED where another is to be read. */
static int next(decoder *d) {
  store(d);
  int c = peek(d);
  if (c == ',') {
    d->at++;
    if (!d->in_array && !name(d)) return FAILED;
    return OPENED;
  }
  if (c != (d->in_array ? ']' : '}')) return expected(d, d->at, d->in_array ? "',' or ']'" : "',' or '}'");
  d->at++;
  close_container(d);
  return VALUE;
}

static int value(decoder *d) {
  int c = peek(d);
  if (c == '"') return string(d);
  if (c == '{' || c == '[') return open_container(d);
  if (c == '-' || (c >= '0' && c <= '9')) return number(d);
  return literal(d);
}

static bool document(decoder *d) {
  if (word(d, "\xef\xbb\xbf", 3)) return fail(d, d->text, "expected a value, found a byte order mark");
  int result;
  do {
    result = value(d);
    while (result == VALUE && d->depth > 0) result = next(d);
  } while (result == OPENED);
  return result == VALUE && (peek(d) == END_OF_TEXT || expected(d, d->at, "the end of the text"));
}

static void forget(host_json_field *fields, size_t n) {
  for (size_t i = 0; i < n; i++) {
    fields[i].raw = (host_span){0};
    fields[i].type = LUA_TNONE;
  }
}

int host_json_decode(lua_State *L, const char *text, size_t len, const host_json_limits *limits, host_json_field *fields, size_t n,
                     host_json_error *err) {
  luaL_checkstack(L, 8, "JSON");
  lua_pushnil(L);
  decoder d = {.L = L,
               .text = text,
               .at = text,
               .end = text + len,
               .metatable = lua_gettop(L),
               .max_depth = limits->depth,
               .fields = fields,
               .n_fields = n,
               .err = err};
  forget(fields, n);
  err->too_large = false;
  if (!document(&d)) {
    forget(fields, n);
    lua_settop(L, d.metatable - 1);
    return -1;
  }
  lua_replace(L, d.metatable);
  return 0;
}
