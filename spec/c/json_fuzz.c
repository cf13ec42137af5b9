/* host's JSON codec, fuzzed: what is decoded can be encoded, and decodes again to the same value; a member that is reported is that
 * member. scripts/fuzz builds and runs it. */
#include "json_state.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static lua_State *state(void) {
  static void *L;
  if (!L && make_state(&L) != 0) abort();
  return L;
}

/* The value on top is what text decodes to. */
static void check_text(lua_State *L, const char *text, size_t n) {
  decode(L, text, n);
  if (!same(L, lua_gettop(L) - 1, lua_gettop(L))) abort();
  lua_pop(L, 1);
}

static void check_value(lua_State *L) {
  lua_pushvalue(L, -1);
  const char *text = encode(L);
  check_text(L, text, strlen(text));
}

static void check_member(lua_State *L, const host_json_field *field) {
  if (!field->raw.at) return;
  lua_getfield(L, -1, field->name);
  if (lua_type(L, -1) != field->type) abort();
  check_text(L, field->raw.at, field->raw.len);
  lua_pop(L, 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  lua_State *L = state();
  host_json_field id = {.name = "id", .name_len = 2};
  host_json_error err;
  char *text = malloc(n + (n == 0)); /* as long as the document, to see a byte too far */
  if (!text) abort();
  if (n > 0) memcpy(text, data, n);
  if (host_json_decode(L, text, n, &WIDE, &id, 1, &err) == 0) {
    check_value(L);
    check_member(L, &id);
  }
  lua_settop(L, 0);
  free(text);
  return 0;
}
