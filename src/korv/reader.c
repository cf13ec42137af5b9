/* core.reader: messages out of a stream of bytes that is no channel of ours, such as the output of the user's own ssh. */
#include <string.h>

#include "korv/korv.h"

static const char READER[] = "korv.reader";

typedef struct reader {
  wire_reader *wire;
  wire_buf in;
  host_json_limits json;
} reader;

/* reader(options) -> reader */
static int reader_(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  wire_limits limits = option_wire_limits(L, 1);
  reader *r = lua_newuserdatauv(L, sizeof *r, 0);
  memset(r, 0, sizeof *r);
  luaL_setmetatable(L, READER);
  r->json = option_json_limits(L, 1);
  r->wire = wire_reader_new(hub_get(L)->codec, &limits);
  return r->wire ? 1 : luaL_error(L, "out of memory");
}

static reader *check(lua_State *L) { return luaL_checkudata(L, 1, READER); }

/* reader:feed(bytes): more input. */
static int feed(lua_State *L) {
  reader *r = check(L);
  size_t len;
  const char *bytes = luaL_checklstring(L, 2, &len);
  return wire_buf_append(&r->in, bytes, len) < 0 ? luaL_error(L, "out of memory for a stream's input") : 0;
}

/* reader:next() -> message | nil | nil, message, name: the next one at hand, none, or what was wrong with it. */
static int next(lua_State *L) {
  reader *r = check(L);
  wire_message m;
  host_json_error err;
  int rc = wire_reader_next(r->wire, &r->in, &m);
  if (rc == WIRE_MORE) return 0;
  if (rc < 0) return fail(L, "EPROTO", wire_strerror(rc));
  return host_json_decode(L, m.text, m.len, &r->json, NULL, 0, &err) == 0 ? 1 : fail(L, "EJSON", err.text);
}

static int reader_gc(lua_State *L) {
  reader *r = check(L);
  wire_reader_free(r->wire);
  wire_buf_free(&r->in);
  r->wire = NULL;
  return 0;
}

void reader_open(lua_State *L) {
  static const luaL_Reg methods[] = {{"feed", feed}, {"next", next}, {NULL, NULL}};
  type_make(L, READER, methods, reader_gc);
  lua_pushcfunction(L, reader_);
  lua_setfield(L, -2, "reader");
}
