/* host's JSON codec: documents, values, errors, limits and reported members, case by case. What no table holds is in
 * json_random_test.c.
 *
 * Expected values are Lua expressions, in which array() marks a table and null is null.
 */
#include "json_state.h"

#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- documents ---------------------------------------------------------------------------------------------------------------- */

typedef struct pair {
  const char *from;
  size_t from_len;
  const char *to;
} pair;

#define CASE(from, to)                                                                                                                     \
  { from, sizeof(from) - 1, to }
/* NOLINTNEXTLINE(bugprone-macro-parentheses): what stands in a for's own */
#define ALL(pairs, p) (const pair *p = pairs; p < pairs + sizeof pairs / sizeof *pairs; p++)

static const pair VALID[] = {
    CASE("null", "null"),
    CASE("true", "true"),
    CASE(" \t\r\nfalse \t\r\n", "false"),
    CASE("0", "0"),
    CASE("-0", "-0.0"),
    CASE("-0.0", "-0.0"),
    CASE("0.0", "0.0"),
    CASE("-1", "-1"),
    CASE("1.0", "1.0"),
    CASE("1e3", "1000.0"),
    CASE("1E+3", "1000.0"),
    CASE("25e-1", "2.5"),
    CASE("9007199254740993", "9007199254740993"),
    CASE("9007199254740993.0", "9007199254740992.0"),
    CASE("9223372036854775807", "math.maxinteger"),
    CASE("9223372036854775808", "2.0^63"),
    CASE("-9223372036854775808", "math.mininteger"),
    CASE("-9223372036854775809", "-2.0^63"),
    CASE("18446744073709551615", "2.0^64"),
    CASE("18446744073709551616", "2.0^64"),
    CASE("100000000000000000000000", "1e23"),
    CASE("0.1", "0.1"),
    CASE("1795330870.6222768", "1795330870.6222768"),
    CASE("1.7976931348623157e308", "0x1.fffffffffffffp+1023"),
    CASE("4.9e-324", "0x1p-1074"),
    CASE("2.4703282292062327e-324", "0.0"),
    CASE("2.2250738585072011e-308", "0x0.fffffffffffffp-1022"),
    CASE("1e-99999999999999999999", "0.0"),
    CASE("0e99999999999999999999", "0.0"),
    CASE("0.00000000000000000000000000000000000001e38", "1.0"),
    CASE("[9007199254740993.00000000000000000000000000000000000000000001]", "array{9007199254740994.0}"),
    CASE("\"\"", "''"),
    CASE("\"a\"", "'a'"),
    CASE("\"exactly 16 bytes\"", "'exactly 16 bytes'"),
    CASE("\"a longer one, with a quote at \\\" and \\\\\"", "'a longer one, with a quote at \" and \\\\'"),
    CASE("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "'\"\\\\/\\b\\f\\n\\r\\t'"),
    CASE("\"\\u0000\\u0041\\u007f\\u0080\\u00e9\\u07ff\\u0800\\u20AC\\uffff\"",
         "'\\0A\x7f\\u{80}\\u{e9}\\u{7ff}\\u{800}\\u{20ac}\\u{ffff}'"),
    CASE("\"\\ud83d\\ude00\\uDBFF\\uDFFF\\ud7ff\\ue000\"", "'\\u{1f600}\\u{10ffff}\\u{d7ff}\\u{e000}'"),
    CASE("\"\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\"",
         "'\x7f\\u{80}\\u{7ff}\\u{800}\\u{d7ff}\\u{e000}\\u{10000}\\u{10ffff}'"),
    CASE("[]", "array{}"),
    CASE("{}", "{}"),
    CASE("[[]]", "array{array{}}"),
    CASE("[{}]", "array{{}}"),
    CASE(" [ 1 , 2 , [ 3 ] , 4 ] ", "array{1, 2, array{3}, 4}"),
    CASE("[1,2,3,4,5,6,7,8,9]", "array{1, 2, 3, 4, 5, 6, 7, 8, 9}"),
    CASE("[null,[null]]", "array{null, array{null}}"),
    CASE(" { \"a\" : 1 , \"b\" : { } } ", "{a = 1, b = {}}"),
    CASE("{\"a\":1,\"b\":2,\"c\":3,\"d\":4,\"e\":5,\"f\":[{\"g\":6}]}", "{a = 1, b = 2, c = 3, d = 4, e = 5, f = array{{g = 6}}}"),
    CASE("{\"a\":1,\"a\":{\"a\":2},\"a\":3}", "{a = 3}"),
    CASE("{\"\":0,\"\\u0061\":1,\"1\":2}", "{[''] = 0, a = 1, ['1'] = 2}"),
    CASE("{\"a\":[1,{\"b\":[2,3],\"c\":4},5],\"d\":null}", "{a = array{1, {b = array{2, 3}, c = 4}, 5}, d = null}"),
};

static const pair INVALID[] = {
    CASE("", "line 1, column 1: expected a value, found the end of the text"),
    CASE(" \n ", "line 2, column 2: expected a value, found the end of the text"),
    CASE("\xef\xbb\xbf{}", "line 1, column 1: expected a value, found a byte order mark"),
    CASE("nul", "line 1, column 1: expected a value, found 'n'"),
    CASE("True", "line 1, column 1: expected a value, found 'T'"),
    CASE("NaN", "line 1, column 1: expected a value, found 'N'"),
    CASE("Infinity", "line 1, column 1: expected a value, found 'I'"),
    CASE("'a'", "line 1, column 1: expected a value, found '''"),
    CASE("\v1", "line 1, column 1: expected a value, found the byte 0x0b"),
    CASE("1\0", "line 1, column 2: expected the end of the text, found the byte 0x00"),
    CASE("1 2", "line 1, column 3: expected the end of the text, found '2'"),
    CASE("{}{}", "line 1, column 3: expected the end of the text, found '{'"),
    CASE("nullx", "line 1, column 5: expected the end of the text, found 'x'"),
    CASE("-", "line 1, column 2: expected a digit after '-', found the end of the text"),
    CASE("-x", "line 1, column 2: expected a digit after '-', found 'x'"),
    CASE("-Infinity", "line 1, column 2: expected a digit after '-', found 'I'"),
    CASE("+1", "line 1, column 1: expected a value, found '+'"),
    CASE(".5", "line 1, column 1: expected a value, found '.'"),
    CASE("01", "line 1, column 1: expected a number without leading zeros, found '0'"),
    CASE("-00", "line 1, column 2: expected a number without leading zeros, found '0'"),
    CASE("0x10", "line 1, column 2: expected the end of the text, found 'x'"),
    CASE("1.", "line 1, column 3: expected a digit after '.', found the end of the text"),
    CASE("[1.]", "line 1, column 4: expected a digit after '.', found ']'"),
    CASE("1e", "line 1, column 3: expected a digit in the exponent, found the end of the text"),
    CASE("[1e+]", "line 1, column 5: expected a digit in the exponent, found ']'"),
    CASE("1e400", "line 1, column 1: expected a number up to 1.7976931348623157e308"),
    CASE("[-1e400]", "line 1, column 2: expected a number up to 1.7976931348623157e308"),
    CASE("[1.7976931348623159e308]", "line 1, column 2: expected a number up to 1.7976931348623157e308"),
    CASE("\"", "line 1, column 2: expected '\"' at the end of a string, found the end of the text"),
    CASE("\"a\\", "line 1, column 4: expected one of \" \\ / b f n r t u after a backslash, found the end of the text"),
    CASE("\"\\x\"", "line 1, column 3: expected one of \" \\ / b f n r t u after a backslash, found 'x'"),
    CASE("\"\\\0\"", "line 1, column 3: expected one of \" \\ / b f n r t u after a backslash, found the byte 0x00"),
    CASE("\"a\nb\"", "line 1, column 3: expected the control character 0x0a in a string as an escape, '\\u000a'"),
    CASE("\"\0\"", "line 1, column 2: expected the control character 0x00 in a string as an escape, '\\u0000'"),
    CASE("\"\\u12\"", "line 1, column 2: expected four hexadecimal digits after '\\u'"),
    CASE("\"\\u12g4\"", "line 1, column 2: expected four hexadecimal digits after '\\u'"),
    CASE("\"\\u", "line 1, column 2: expected four hexadecimal digits after '\\u'"),
    CASE("\"\\ud800\"", "line 1, column 2: expected a pair of surrogates, a high one and then a low one, found only '\\ud800'"),
    CASE("\"\\udc00\\ud800\"", "line 1, column 2: expected a pair of surrogates, a high one and then a low one, found only '\\udc00'"),
    CASE("\"\\ud800\\u0041\"", "line 1, column 2: expected a pair of surrogates, a high one and then a low one, found only '\\ud800'"),
    CASE("\"\\ud800x\\udc00\"", "line 1, column 2: expected a pair of surrogates, a high one and then a low one, found only '\\ud800'"),
    CASE("\"\x80\"", "line 1, column 2: expected valid UTF-8, found the byte 0x80"),
    CASE("\"\xc0\xaf\"", "line 1, column 2: expected valid UTF-8, found the byte 0xc0"),
    CASE("\"\xc3\"", "line 1, column 2: expected valid UTF-8, found the byte 0xc3"),
    CASE("\"\xc3", "line 1, column 2: expected valid UTF-8, found the byte 0xc3"),
    CASE("\"\xe0\x9f\xbf\"", "line 1, column 2: expected valid UTF-8, found the byte 0xe0"),
    CASE("\"\xe2\x82\"", "line 1, column 2: expected valid UTF-8, found the byte 0xe2"),
    CASE("\"\xed\xa0\x80\"", "line 1, column 2: expected valid UTF-8, found the byte 0xed"),
    CASE("\"\xf0\x8f\xbf\xbf\"", "line 1, column 2: expected valid UTF-8, found the byte 0xf0"),
    CASE("\"\xf4\x90\x80\x80\"", "line 1, column 2: expected valid UTF-8, found the byte 0xf4"),
    CASE("\"\xf5\x80\x80\x80\"", "line 1, column 2: expected valid UTF-8, found the byte 0xf5"),
    CASE("\"a string of some length, and then \xff\"", "line 1, column 36: expected valid UTF-8, found the byte 0xff"),
    CASE("[", "line 1, column 2: expected a value, found the end of the text"),
    CASE("[1", "line 1, column 3: expected ',' or ']', found the end of the text"),
    CASE("[1,]", "line 1, column 4: expected a value, found ']'"),
    CASE("[,1]", "line 1, column 2: expected a value, found ','"),
    CASE("[1 2]", "line 1, column 4: expected ',' or ']', found '2'"),
    CASE("[1}", "line 1, column 3: expected ',' or ']', found '}'"),
    CASE("]", "line 1, column 1: expected a value, found ']'"),
    CASE("{", "line 1, column 2: expected a name in double quotes, found the end of the text"),
    CASE("{a:1}", "line 1, column 2: expected a name in double quotes, found 'a'"),
    CASE("{1:1}", "line 1, column 2: expected a name in double quotes, found '1'"),
    CASE("{\"a\"}", "line 1, column 5: expected ':' after a name, found '}'"),
    CASE("{\"a\":}", "line 1, column 6: expected a value, found '}'"),
    CASE("{\"a\":1,}", "line 1, column 8: expected a name in double quotes, found '}'"),
    CASE("{\"a\":1]", "line 1, column 7: expected ',' or '}', found ']'"),
    CASE("{\"a\":[1,{\"b\":nul}]}", "line 1, column 14: expected a value, found 'n'"),
    CASE("{\n  \"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\": 1,\n  \"\xc3\xa9\": ?\n}", "line 3, column 8: expected a value, found '?'"),
};

static void test_valid_documents(void **state) {
  lua_State *L = *state;
  for
    ALL(VALID, p) {
      decode(L, p->from, p->from_len);
      push_expression(L, p->to);
      if (!same(L, 1, 2)) fail_msg("%s is not %s", p->from, p->to);
      lua_settop(L, 0);
    }
}

static void test_invalid_documents(void **state) {
  lua_State *L = *state;
  for
    ALL(INVALID, p) {
      host_json_error err;
      if (decode_with(L, p->from, p->from_len, &WIDE, &err) == 0) fail_msg("%s was taken", p->from);
      assert_string_equal(err.text, p->to);
      assert_false(err.too_large);
    }
}

/* ---- values ------------------------------------------------------------------------------------------------------------------- */

static const pair VALUES[] = {
    CASE("nil", "null"),
    CASE("null", "null"),
    CASE("true", "true"),
    CASE("{false}", "[false]"),
    CASE("0", "0"),
    CASE("-7", "-7"),
    CASE("math.mininteger", "-9223372036854775808"),
    CASE("math.maxinteger", "9223372036854775807"),
    CASE("0.0", "0.0"),
    CASE("-0.0", "-0.0"),
    CASE("2.0", "2.0"),
    CASE("-2.5", "-2.5"),
    CASE("0.1", "0.1"),
    CASE("1/3", "0.3333333333333333"),
    CASE("0.1 + 0.2", "0.30000000000000004"),
    CASE("0.001", "0.001"),
    CASE("0.0001", "0.0001"),
    CASE("0.00001", "1e-05"),
    CASE("100.0", "100.0"),
    CASE("1795330870.6222768", "1795330870.6222768"),
    CASE("123456789012345.0", "123456789012345.0"),
    CASE("999999999999999.0", "999999999999999.0"),
    CASE("1e15", "1e+15"),
    CASE("1234567890123456.0", "1234567890123456.0"),
    CASE("2.0^53", "9007199254740992.0"),
    CASE("2.0^63", "9.223372036854776e+18"),
    CASE("1e300", "1e+300"),
    CASE("5e-324", "4.94065645841247e-324"),
    CASE("1.7976931348623157e308", "1.7976931348623157e+308"),
    CASE("''", "\"\""),
    CASE("'/\\\"\\\\\\b\\f\\n\\r\\t\\v\\0\\31\x7f'", "\"/\\\"\\\\\\b\\f\\n\\r\\t\\u000b\\u0000\\u001f\x7f\""),
    CASE("'\\u{e9}\\u{20ac}\\u{10ffff}'", "\"\xc3\xa9\xe2\x82\xac\xf4\x8f\xbf\xbf\""),
    CASE("'a string of some length,\\nand then one more'", "\"a string of some length,\\nand then one more\""),
    CASE("{}", "{}"),
    CASE("array{}", "[]"),
    CASE("array()", "[]"),
    CASE("{1}", "[1]"),
    CASE("array{1, 'x', {}, array{}}", "[1,\"x\",{},[]]"),
    CASE("{[3] = 3, [2] = 2, [1] = 1}", "[1,2,3]"),
    CASE("{{{1}, 2}, 3}", "[[[1],2],3]"),
    CASE("{[2.0] = 2, [1.0] = 1}", "[1,2]"),
    CASE("{a = {b = {c = {1, {d = 2}}}}}", "{\"a\":{\"b\":{\"c\":[1,{\"d\":2}]}}}"),
    CASE("{['1'] = 1}", "{\"1\":1}"),
    CASE("{['a\\n'] = 1}", "{\"a\\n\":1}"),
    CASE("setmetatable({1}, {__index = error, __len = error, __pairs = error, __name = 'x'})", "[1]"),
    CASE("setmetatable({a = 1}, {__index = {b = 2}})", "{\"a\":1}"),
};

#define TEN ".x.x.x.x.x.x.x.x.x.x"

static const pair UNSUPPORTED[] = {
    CASE("print", "body: a function has no JSON form"),
    CASE("{items = {1, 2, {when = print}}}", "body.items[3].when: a function has no JSON form"),
    CASE("{[1] = coroutine.create(print)}", "body[1]: a thread has no JSON form"),
    CASE("{io.stdout}", "body[1]: a userdata has no JSON form"),
    CASE("{pointer}", "body[1]: a light userdata that is not null has no JSON form"),
    CASE("{x = 0/0}", "body.x: NaN has no JSON form"),
    CASE("{_1 = -1/0}", "body._1: an infinite number has no JSON form"),
    CASE("{1/0}", "body[1]: an infinite number has no JSON form"),
    CASE("{['odd key'] = {print}}", "body[\"odd key\"][1]: a function has no JSON form"),
    CASE("{['1a'] = print}", "body[\"1a\"]: a function has no JSON form"),
    CASE("{[''] = print}", "body[\"\"]: a function has no JSON form"),
    CASE("{['a\\n'] = print}", "body[\"a?\"]: a function has no JSON form"),
    CASE("{'\\xff'}", "body[1]: a string that is not valid UTF-8 has no JSON form"),
    CASE("{s = '0123456789abcdef \\xe2\\x82'}", "body.s: a string that is not valid UTF-8 has no JSON form"),
    CASE("{a = {['\\xff'] = 1}}", "body.a: a key that is not valid UTF-8 has no JSON form"),
    CASE("{1, x = 2}", "body: a table of integer and string keys has no JSON form"),
    CASE("{a = {1, [1.5] = 2}}", "body.a: a table of integer and fractional keys has no JSON form"),
    CASE("{[true] = 1}", "body: a table of boolean keys has no JSON form"),
    CASE("{[1.5] = 1}", "body: a table of fractional keys has no JSON form"),
    CASE("{[0] = 1}", "body: an array with the key 0 has no JSON form: the first is 1"),
    CASE("{1, nil, 3}", "body: an array with a hole has no JSON form (2 is missing of 1 to 3)"),
    CASE("{[10] = 1}", "body: an array with a hole has no JSON form (1 is missing of 1 to 10)"),
    CASE("{[math.maxinteger] = 1}", "body: an array with a hole has no JSON form (1 is missing of 1 to 9223372036854775807)"),
    CASE("{x = array{1, nil, 3}}", "body.x: an array with a hole has no JSON form (2 is missing of 1 to 3)"),
    CASE("array{x = 1}", "body: an array with string keys has no JSON form"),
    CASE("array{1, x = 1}", "body: an array with string keys has no JSON form"),
    CASE("{[('k'):rep(41)] = print}", "body[\"kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk...\"]: a function has no JSON form"),
    CASE("{[('k'):rep(40)] = print}", "body.kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk: a function has no JSON form"),
    CASE("{['x' .. ('\\u{e9}'):rep(19) .. '\\u{20ac}'] = print}",
         "body[\"x\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9"
         "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9...\"]: a function has no JSON form"),
    CASE("deep(70, print)", "body" TEN TEN TEN TEN TEN TEN TEN ": a function has no JSON form"),
    CASE("deep(100, {last = print})", "body..." TEN TEN TEN TEN TEN TEN TEN ".last: a function has no JSON form"),
};

static void test_values(void **state) {
  lua_State *L = *state;
  for
    ALL(VALUES, p) {
      push_expression(L, p->from);
      assert_string_equal(encode(L), p->to);
    }
}

static void test_unsupported_values(void **state) {
  lua_State *L = *state;
  lua_pushlightuserdata(L, L);
  lua_setglobal(L, "pointer");
  push_expression(L, "function(n, value) for _ = 1, n do value = {x = value} end return value end");
  lua_setglobal(L, "deep");
  for
    ALL(UNSUPPORTED, p) {
      host_json_error err;
      push_expression(L, p->from);
      if (encode_with(L, &WIDE, &err)) fail_msg("%s was encoded", p->from);
      assert_string_equal(err.text, p->to);
      assert_false(err.too_large);
    }
}

/* A mixed table is one in whatever order its keys come. */
static void test_mixed_tables(void **state) {
  lua_State *L = *state;
  for (int key = 'a'; key <= 'z'; key++) {
    host_json_error err;
    lua_createtable(L, 0, 8);
    lua_pushboolean(L, 1);
    lua_setfield(L, -2, (char[]){(char)key, '\0'});
    lua_pushboolean(L, 1);
    lua_rawseti(L, -2, key);
    assert_null(encode_with(L, &WIDE, &err));
    if (!strstr(err.text, "of integer and string keys") && !strstr(err.text, "of string and integer keys")) fail_msg("%s", err.text);
  }
}

/* ---- limits ------------------------------------------------------------------------------------------------------------------- */

static char *nested(const char *open, const char *inner, const char *close, size_t levels) {
  char *text = malloc(levels * (strlen(open) + strlen(close)) + strlen(inner) + 1), *at = text;
  assert_non_null(text);
  for (size_t i = 0; i < levels; i++) at = stpcpy(at, open);
  at = stpcpy(at, inner);
  for (size_t i = 0; i < levels; i++) at = stpcpy(at, close);
  return text;
}

static void test_depth(void **state) {
  lua_State *L = *state;
  const char *opens[] = {"[", "{\"a\":", "[[1],"}, *closes[] = {"]", "}", "]"};
  const host_json_limits limits = {.depth = 5, .bytes = 1 << 20}, tighter = {.depth = 4, .bytes = 1 << 20};
  host_json_error err;
  for (int i = 0; i < 3; i++) {
    char *just = nested(opens[i], "[]", closes[i], 4), *over = nested(opens[i], "{}", closes[i], 5);
    assert_int_equal(decode_with(L, just, strlen(just), &limits, &err), 0);
    assert_int_equal(decode_with(L, over, strlen(over), &limits, &err), -1);
    assert_non_null(strstr(err.text, "expected at most 5 levels of nesting"));
    lua_pushvalue(L, -1);
    assert_string_equal(encode_with(L, &limits, &err), just);
    assert_null(encode_with(L, &tighter, &err));
    assert_non_null(strstr(err.text, ": more than 4 levels of nesting have no JSON form (is there a cycle?)"));
    free(just);
    free(over);
  }
}

static void test_scalars_have_no_depth(void **state) {
  lua_State *L = *state;
  const host_json_limits limits = {.depth = 0, .bytes = 100};
  host_json_error err;
  assert_int_equal(decode_with(L, "\"x\"", 3, &limits, &err), 0);
  assert_string_equal(encode_with(L, &limits, &err), "\"x\"");
  assert_int_equal(decode_with(L, "[]", 2, &limits, &err), -1);
  assert_string_equal(err.text, "line 1, column 1: expected at most 0 levels of nesting");
}

/* Neither C's stack nor Lua's is run over, however generous the limit. */
static void test_very_deep(void **state) {
  lua_State *L = *state;
  const host_json_limits limits = {.depth = 2000000000, .bytes = 1 << 24};
  host_json_error err;
  char *deep = nested("[", "", "]", 200000), *too_deep = nested("{\"a\":", "1", "}", 1000000);
  assert_int_equal(decode_with(L, deep, strlen(deep), &limits, &err), 0);
  assert_string_equal(encode_with(L, &limits, &err), deep);
  assert_int_equal(decode_with(L, too_deep, strlen(too_deep), &limits, &err), -1);
  assert_non_null(strstr(err.text, "levels of nesting"));
  free(deep);
  free(too_deep);
}

static void test_cycle(void **state) {
  lua_State *L = *state;
  host_json_error err;
  push_expression(L, "(function() local t = {1} t[2] = {t = t} return t end)()");
  assert_null(encode_with(L, &WIDE, &err));
  assert_non_null(strstr(err.text, "body...[2].t[2].t"));
  assert_non_null(strstr(err.text, "more than 128 levels of nesting have no JSON form (is there a cycle?)"));
}

static void test_size(void **state) {
  lua_State *L = *state;
  static const char *const values[] = {"1",
                                       "'x'",
                                       "{1, 2, 3}",
                                       "{a = {b = 0.1}}",
                                       "('x'):rep(5000)",
                                       "('\"'):rep(5000)",
                                       "{('y'):rep(100), 2}",
                                       "{[('k'):rep(700)] = true}",
                                       "{{}, {{}}, array()}"};
  for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
    push_expression(L, values[i]);
    lua_pushvalue(L, -1);
    host_json_limits limits = {.depth = 9, .bytes = strlen(encode(L))};
    host_json_error err;
    lua_pushvalue(L, -1);
    assert_non_null(encode_with(L, &limits, &err));
    assert_false(err.too_large);
    limits.bytes--;
    char message[80];
    snprintf(message, sizeof message, "body: its JSON form is larger than %zu bytes", limits.bytes);
    assert_null(encode_with(L, &limits, &err));
    assert_string_equal(err.text, message);
    assert_true(err.too_large);
  }
}

/* The limit is kept on the way, not only looked at in the end. */
static void test_size_as_it_grows(void **state) {
  lua_State *L = *state;
  wire_buf out = {0};
  host_json_error err;
  push_expression(L, "(function() local t = {} for i = 1, 1e5 do t[i] = i end return {t, t, t, t} end)()");
  assert_int_equal(host_json_encode(L, -1, "body", &(host_json_limits){.depth = 9, .bytes = 10000}, &out, &err), -1);
  assert_true(err.too_large);
  assert_in_range(out.cap, 10000, 30000);
  lua_pop(L, 1);
  wire_buf_free(&out);
}

/* ---- members ------------------------------------------------------------------------------------------------------------------ */

static void expect_member(lua_State *L, const char *text, int type, const char *raw) {
  host_json_field fields[] = {{.name = "verb", .name_len = 4}, {.name = "id", .name_len = 2}};
  host_json_error err;
  int result = host_json_decode(L, text, strlen(text), &WIDE, fields, 2, &err);
  if (result == 0) lua_pop(L, 1);
  assert_null(fields[0].raw.at);
  assert_int_equal(fields[0].type, LUA_TNONE);
  assert_int_equal(fields[1].type, type);
  assert_int_equal(fields[1].raw.len, raw ? strlen(raw) : 0);
  if (raw)
    assert_memory_equal(fields[1].raw.at, raw, strlen(raw));
  else
    assert_null(fields[1].raw.at);
}

static void test_members(void **state) {
  lua_State *L = *state;
  expect_member(L, "{\"id\":1795330870.6222768}", LUA_TNUMBER, "1795330870.6222768");
  expect_member(L, "{\"id\":18446744073709551615}", LUA_TNUMBER, "18446744073709551615");
  expect_member(L, "{\"a\":[1,{\"id\":2}], \"id\" : 1e3 }", LUA_TNUMBER, "1e3");
  expect_member(L, "{\"id\":\"a\\\"b\",\"id2\":{\"id\":{}}}", LUA_TSTRING, "\"a\\\"b\"");
  expect_member(L, "{\"\\u0069d\":\n null\n}", LUA_TLIGHTUSERDATA, "null");
  expect_member(L, "{\"id\":[1, {\"id\":2} ] ,\"x\":[]}", LUA_TTABLE, "[1, {\"id\":2} ]");
  expect_member(L, "{\"id\":{}}", LUA_TTABLE, "{}");
  expect_member(L, "{\"id\":1,\"id\":{\"id\":2},\"x\":2,\"id\":false}", LUA_TBOOLEAN, "false");
  expect_member(L, "{}", LUA_TNONE, NULL);
  expect_member(L, "{\"i\":1,\"idx\":2,\"ID\":3,\"a\":{\"id\":1}}", LUA_TNONE, NULL);
  expect_member(L, "[{\"id\":1}]", LUA_TNONE, NULL);
  expect_member(L, "\"id\"", LUA_TNONE, NULL);
  expect_member(L, "{\"id\":1,}", LUA_TNONE, NULL);
  expect_member(L, "{\"id\":1", LUA_TNONE, NULL);
  expect_member(L, "{\"id\"", LUA_TNONE, NULL);
  expect_member(L, "{\"id", LUA_TNONE, NULL);
}

/* ---- locale ------------------------------------------------------------------------------------------------------------------- */

/* Where the system has no such locale but can make one, it is made. */
static bool enter_comma_locale(void) {
  if (setlocale(LC_NUMERIC, "de_DE.UTF-8")) return true;
  char folder[] = "/tmp/korv-locale-XXXXXX", command[200];
  if (!mkdtemp(folder)) return false;
  snprintf(command, sizeof command, "localedef -i de_DE -f UTF-8 %s/de_DE.UTF-8 2>/dev/null", folder);
  setenv("LOCPATH", folder, 1);
  bool entered = system(command) == 0 /* NOLINT(cert-env33-c): nothing in it is from outside */ && setlocale(LC_NUMERIC, "de_DE.UTF-8");
  snprintf(command, sizeof command, "rm -r %s", folder);
  return system(command) == 0 && entered; /* NOLINT(cert-env33-c) */
}

static void test_decimal_comma(void **state) {
  lua_State *L = *state;
  assert_true(enter_comma_locale()); /* Debian's package `locales` has what it takes */
  assert_string_equal(localeconv()->decimal_point, ",");
  const char text[] = "[0.1,1.5e300,1234567890.12345678901234567890,1e-7]";
  decode(L, text, sizeof text - 1);
  assert_string_equal(encode(L), "[0.1,1.5e+300,1234567890.1234567,1e-07]");
  assert_string_equal(localeconv()->decimal_point, ",");
  setlocale(LC_NUMERIC, "C");
}

int main(void) {
  const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_state, free_state)
      TEST(test_valid_documents),
      TEST(test_invalid_documents),
      TEST(test_values),
      TEST(test_unsupported_values),
      TEST(test_mixed_tables),
      TEST(test_depth),
      TEST(test_scalars_have_no_depth),
      TEST(test_very_deep),
      TEST(test_cycle),
      TEST(test_size),
      TEST(test_size_as_it_grows),
      TEST(test_members),
      TEST(test_decimal_comma),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
