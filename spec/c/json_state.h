/* json_state: a Lua state for the tests of host's JSON codec, with an allocator that counts and can be made to fail. */
#ifndef KORV_JSON_STATE_H
#define KORV_JSON_STATE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <lauxlib.h>

#include "host/host.h"

extern const host_json_limits WIDE;

extern long allocations_left; /* those after it fail; -1: none does */

/* Setup and teardown: *state is a lua_State whose globals are Lua's own, array and null. The teardown holds that its stack is empty
 * and that all of its memory came back. */
int make_state(void **state);
int free_state(void **state);

void push_expression(lua_State *L, const char *expression);

/* Equal to the last bit, in type and kind of number and of table. The indices are absolute. */
bool same(lua_State *L, int a, int b);

/* Decodes a copy of exactly len bytes, so that the sanitizer sees a byte too far, and holds that the stack is as it should be. */
int decode_with(lua_State *L, const char *text, size_t len, const host_json_limits *limits, host_json_error *err);
void decode(lua_State *L, const char *text, size_t len); /* fails the test where that fails */

/* Encodes the value on top as "body" and pops it. The text is good until the next call; NULL where that fails,
 * and then out is held to be as it was. */
const char *encode_with(lua_State *L, const host_json_limits *limits, host_json_error *err);
const char *encode(lua_State *L); /* fails the test where that fails */

#endif
