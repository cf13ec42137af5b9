/* host's JSON codec, beyond what a table of cases can hold: numbers against strtod and printf, random values there and back, a document
 * cut short and damaged everywhere, and memory that runs out at every allocation. The seed is fixed.
 */
#include "json_state.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t seed;

static uint64_t random_bits(void) { /* splitmix64 */
  uint64_t z = seed += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

static unsigned random_below(unsigned n) {
  return (unsigned)(random_bits() % n);
}

static int setup(void **state) {
  seed = 20240229;
  return make_state(state);
}

/* ---- numbers ------------------------------------------------------------------------------------------------------------------ */

static void expect_written(lua_State *L, double value) {
  char expected[40];
  for (int digits = 15; digits <= 17; digits++) {
    snprintf(expected, sizeof expected, "%.*g", digits, value);
    if (strtod(expected, NULL) == value) break;
  }
  size_t len = strlen(expected);
  if (!strpbrk(expected, ".e")) snprintf(expected + len, sizeof expected - len, ".0");
  lua_pushnumber(L, value);
  assert_string_equal(encode(L), expected);
}

static void expect_read(lua_State *L, const char *text) {
  decode(L, text, strlen(text));
  double expected = strtod(text, NULL), value = lua_tonumber(L, -1);
  /* NOLINTNEXTLINE(bugprone-suspicious-memory-comparison,cert-exp42-c,cert-flp37-c): to the last bit, and -0.0 is not 0.0 */
  if (lua_isinteger(L, -1) || memcmp(&value, &expected, sizeof value) != 0) fail_msg("%s was read as %.17g", text, value);
  lua_pop(L, 1);
}

static double any_double(void) {
  uint64_t bits = random_bits();
  double value;
  memcpy(&value, &bits, sizeof value);
  return isfinite(value) ? value : 0;
}

/* From 10^-7 to 10^19, and now and then a neighbour of what has few digits. */
static double everyday_double(void) {
  double value = (double)(random_bits() >> random_below(60)) / pow(10, random_below(12));
  switch (random_below(4)) {
  case 0: return nextafter(value, INFINITY);
  case 1: return nextafter(value, 0);
  case 2: return value / (double)(1 + random_below(1000));
  default: return value;
  }
}

static double power(void) {
  double value = random_below(2) ? ldexp(1, (int)random_below(140) - 70) : pow(10, (double)random_below(40) - 20);
  return random_below(2) ? value : nextafter(value, random_below(2) ? 0 : INFINITY);
}

static void test_floats_written(void **state) {
  lua_State *L = *state;
  for (int i = 0; i < 100000; i++) {
    expect_written(L, any_double());
    expect_written(L, everyday_double());
    expect_written(L, -everyday_double());
    expect_written(L, power());
  }
}

static void test_floats_read(void **state) {
  lua_State *L = *state;
  for (int i = 0; i < 100000; i++) {
    char text[64];
    snprintf(text, sizeof text, "%.*e", (int)random_below(25), any_double());
    expect_read(L, text);
    snprintf(text, sizeof text, "%.*f", 1 + (int)random_below(25), everyday_double());
    expect_read(L, text);
    snprintf(text, sizeof text, "%" PRIu64 "e%d", random_bits() >> random_below(64), (int)random_below(50) - 25);
    expect_read(L, text);
    snprintf(text, sizeof text, "-%" PRIu64 ".%" PRIu64, random_bits() >> random_below(64), random_bits() >> random_below(64));
    expect_read(L, text);
  }
}

/* Decimals right between two doubles, and next to there. */
static void test_halves_read(void **state) {
  lua_State *L = *state;
  static const char *const tails[] = {".0", ".000", ".5", ".0000000000000000001", "e0", "e1", "e+3", "00e-3", "000e-5"};
  for (int i = 0; i < 50000; i++) {
    uint64_t odd = random_bits() >> 10 | (uint64_t)1 << 53 | 1;
    char text[100];
    snprintf(text, sizeof text, "%" PRIu64 "%s", odd, tails[random_below(9)]);
    expect_read(L, text);
    snprintf(text, sizeof text, "%.31Lf", ldexpl((long double)odd, (int)random_below(20) - 31));
    expect_read(L, text);
  }
}

static void test_integers(void **state) {
  lua_State *L = *state;
  for (int i = 0; i < 50000; i++) {
    int64_t value = (int64_t)(random_bits() >> random_below(64)) * (random_below(2) ? 1 : -1);
    char text[32];
    int n = snprintf(text, sizeof text, "%" PRId64, value);
    decode(L, text, (size_t)n);
    assert_true(lua_isinteger(L, -1));
    assert_int_equal(lua_tointeger(L, -1), value);
    assert_string_equal(encode(L), text);
  }
}

/* ---- values there and back ---------------------------------------------------------------------------------------------------- */

static void push_character(lua_State *L) {
  static const unsigned most[] = {0x20, 0x80, 0x80, 0x80, 0x800, 0xd800, 0x110000};
  unsigned code = random_below(most[random_below(7)]);
  if (code >= 0xd800 && code < 0xe000) code = '"';
  lua_pushfstring(L, "%U", (unsigned long)code);
}

static void push_string(lua_State *L) {
  int n = (int)random_below(random_below(10) ? 12 : 200);
  luaL_checkstack(L, n + 1, "string");
  for (int i = 0; i < n; i++) push_character(L);
  lua_concat(L, n);
}

static void push_value(lua_State *L, unsigned depth);

static void push_container(lua_State *L, unsigned depth) {
  bool array = random_below(2);
  lua_newtable(L);
  if (array) luaL_setmetatable(L, HOST_ARRAY);
  for (unsigned i = random_below(random_below(10) ? 6 : 40); i > 0; i--) {
    if (array) {
      push_value(L, depth - 1);
      lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
    } else {
      push_string(L);
      push_value(L, depth - 1);
      lua_rawset(L, -3);
    }
  }
}

static void push_scalar(lua_State *L) {
  switch (random_below(6)) {
  case 0: lua_pushlightuserdata(L, NULL); break;
  case 1: lua_pushboolean(L, (int)random_below(2)); break;
  case 2: lua_pushinteger(L, (lua_Integer)(random_bits() >> random_below(64))); break;
  case 3: lua_pushnumber(L, any_double()); break;
  case 4: lua_pushnumber(L, everyday_double()); break;
  default: push_string(L);
  }
}

static void push_value(lua_State *L, unsigned depth) {
  luaL_checkstack(L, 8, "value");
  if (depth > 0 && random_below(3) == 0) {
    push_container(L, depth);
  } else {
    push_scalar(L);
  }
}

static void test_round_trips(void **state) {
  lua_State *L = *state;
  for (int i = 0; i < 3000; i++) {
    push_container(L, 5);
    lua_pushvalue(L, -1);
    const char *text = encode(L);
    decode(L, text, strlen(text));
    if (!same(L, 1, 2)) fail_msg("%s", text);
    lua_settop(L, 0);
  }
}

/* ---- damage ------------------------------------------------------------------------------------------------------------------- */

static const char RICH[] =
    "{\"id\":1795330870.6222768,\"verb\":\"STORE\",\"resource\":\"/users/\\u00e9\\ud83d\\ude00/x\",\"timeout\":1e1,"
    "\"stream\":true,\"body\":[{\"a\":-0,\"b\":[],\"c\":{}},null,false,[1,[2,[3,[-4.5e-7]]]],\"\xc3\xa9\xe2\x82\xac\","
    "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\",18446744073709551615,9007199254740993,0.30000000000000004, 12345678901234567890.5 ,"
    "{ \"a long name, longer than sixteen bytes\" : \"and a long string, with \\u20ac and \xe2\x82\xac in it\" }]}";

static void test_truncations(void **state) {
  lua_State *L = *state;
  host_json_error err;
  for (size_t n = 0; n < sizeof RICH - 1; n++) {
    assert_int_equal(decode_with(L, RICH, n, &WIDE, &err), -1);
    assert_memory_equal(err.text, "line 1, column ", 15);
  }
  decode(L, RICH, sizeof RICH - 1);
  lua_pop(L, 1);
}

/* What is taken, however damaged, can be encoded, and comes back the same. */
static void test_damage(void **state) {
  lua_State *L = *state;
  int taken = 0;
  for (int i = 0; i < 100000; i++) {
    char text[sizeof RICH];
    host_json_error err;
    memcpy(text, RICH, sizeof RICH);
    for (unsigned changes = 1 + random_below(3); changes > 0; changes--) {
      size_t at = random_below(sizeof RICH - 1);
      text[at] = random_below(2) ? (char)random_below(256) : RICH[random_below(sizeof RICH - 1)];
    }
    if (decode_with(L, text, sizeof RICH - 1, &WIDE, &err) != 0) continue;
    taken++;
    lua_pushvalue(L, -1);
    const char *again = encode(L);
    decode(L, again, strlen(again));
    if (!same(L, 1, 2)) fail_msg("%s", text);
    lua_settop(L, 0);
  }
  assert_in_range(taken, 1000, 99000);
}

/* ---- memory ------------------------------------------------------------------------------------------------------------------- */

static int decode_rich(lua_State *L) {
  host_json_field id = {.name = "id", .name_len = 2};
  host_json_error err;
  return host_json_decode(L, RICH, sizeof RICH - 1, &WIDE, &id, 1, &err) == 0 ? 1 : luaL_error(L, "%s", err.text);
}

/* Runs function with one argument, the value at index 1, failing at its n-th allocation and after. */
static int call_without_memory(lua_State *L, lua_CFunction function, long n) {
  lua_settop(L, 1);
  lua_pushcfunction(L, function);
  lua_pushvalue(L, 1);
  lua_gc(L, LUA_GCCOLLECT);
  allocations_left = n;
  int status = lua_pcall(L, 1, 1, 0);
  allocations_left = -1;
  return status;
}

static void test_decoding_without_memory(void **state) {
  lua_State *L = *state;
  decode(L, RICH, sizeof RICH - 1);
  long n = 0;
  for (int status = LUA_ERRMEM; status != LUA_OK; n++) {
    status = call_without_memory(L, decode_rich, n);
    if (status != LUA_OK) assert_int_equal(status, LUA_ERRMEM);
  }
  assert_true(n > 20);
  assert_true(same(L, 1, 2));
  lua_settop(L, 0);
}

static wire_buf without_memory;

static int encode_argument(lua_State *L) {
  host_json_error err;
  int result = host_json_encode(L, 1, "body", &WIDE, &without_memory, &err);
  if (result != 0 && without_memory.len != 4) abort();
  lua_pushboolean(L, result == 0);
  return 1;
}

/* Lua's stack is all that encoding takes from Lua's allocator. It fails then, and raises nothing. */
static void test_encoding_without_memory(void **state) {
  lua_State *L = *state;
  lua_newtable(L);
  for (int i = 1; i <= 100; i++) { /* nest */
    lua_newtable(L);
    lua_insert(L, -2);
    lua_rawseti(L, -2, 1);
  }
  wire_buf_append(&without_memory, "kept", 4);
  long n = 0;
  for (bool done = false; !done; n++) {
    assert_int_equal(call_without_memory(L, encode_argument, n), LUA_OK);
    done = lua_toboolean(L, -1);
    lua_settop(L, 1);
    lua_gc(L, LUA_GCCOLLECT); /* shrinks the stack too */
  }
  assert_int_equal(without_memory.len, 4 + 2 * 101);
  assert_memory_equal(wire_buf_at(&without_memory), "kept[[[", 7);
  assert_true(n > 1);
  wire_buf_free(&without_memory);
  lua_settop(L, 0);
}

/* A buffer that claims to be as full as a buffer can be gets no more memory. */
static void test_full_buffer(void **state) {
  lua_State *L = *state;
  wire_buf full = {.base = (char[1]){0}, .len = PTRDIFF_MAX - 100, .cap = PTRDIFF_MAX - 100};
  const wire_buf before = full;
  host_json_error err;
  lua_pushinteger(L, 1);
  assert_int_equal(host_json_encode(L, 1, "body", &WIDE, &full, &err), -1);
  assert_string_equal(err.text, "body: there is no memory for its JSON form");
  assert_false(err.too_large);
  assert_memory_equal(&full, &before, sizeof full);
  lua_settop(L, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, free_state)
      TEST(test_floats_written),
      TEST(test_floats_read),
      TEST(test_halves_read),
      TEST(test_integers),
      TEST(test_round_trips),
      TEST(test_truncations),
      TEST(test_damage),
      TEST(test_decoding_without_memory),
      TEST(test_encoding_without_memory),
      TEST(test_full_buffer),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
