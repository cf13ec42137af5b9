/* core.dial: a client's connection, and core.reader: the same messages out of any other stream of bytes. Which answer belongs to which
 * call is Lua's to know (lua/korv/client.lua). */
#include <stdlib.h>
#include <string.h>

#include "korv/korv.h"

static const char CONNECTION[] = "korv.connection";
static const char READER[] = "korv.reader";

typedef struct connection {
  hub *hub;
  net_session *session; /* NULL once it has ended */
  net_channel *channel; /* NULL until it is open */
  wire_reader *reader;
  host_json_limits json;
  int open, message, closed; /* Lua functions */
  int self;                  /* keeps the userdata while the session lives */
} connection;

static host_json_limits read_json_limits(lua_State *L) {
  host_json_limits limits = {(int)option_integer(L, 1, "max_depth", 128, 1, 1000),
                             (size_t)option_integer(L, 1, "max_request_bytes", 16 << 20, 1024, 1 << 30)};
  return limits;
}

static wire_limits read_wire_limits(lua_State *L) {
  wire_limits limits = {(size_t)option_integer(L, 1, "max_message_bytes", 16 << 20, 1024, 1 << 30),
                        (size_t)option_integer(L, 1, "max_packed_bytes", 16 << 20, 1024, 1 << 30)};
  return limits;
}

/* ---- messages in ----------------------------------------------------------------------------------------------------------------------- */

/* Decodes a message for the function `message`; one that cannot be is logged and passed over: no call waits for it by name. */
static void tell_message(hub *h, int message, const wire_message *m, const host_json_limits *limits) {
  host_json_error err;
  lua_State *L = h->L;
  lua_rawgeti(L, LUA_REGISTRYINDEX, message);
  if (host_json_decode(L, m->text, m->len, limits, NULL, 0, &err) < 0) {
    lua_pop(L, 1);
    hub_log(h, "warn", "ignored a message from the server that is not JSON: %s", err.text);
  } else {
    hub_call(h, 1, 0, "in a client");
  }
}

static bool on_channel_readable(void *owner, net_channel *nc) {
  connection *c = owner;
  wire_message m;
  wire_buf *in = net_channel_in(nc);
  for (int n = 0; n < 256; n++) {
    int rc = wire_reader_next(c->reader, in, &m);
    if (rc == WIRE_MESSAGE) tell_message(c->hub, c->message, &m, &c->json);
    if (!c->session) return false; /* a callback closed it */
    if (rc < 0) net_session_close(c->session, "EPROTO", wire_strerror(rc));
    if (rc == WIRE_MORE && net_channel_ended(nc)) net_session_close(c->session, "EOF", "the server ended the conversation");
    if (rc != WIRE_MESSAGE) {
      if (in->len == 0) wire_buf_shrink(in, 65536);
      return false;
    }
  }
  return true;
}

/* ---- the session ------------------------------------------------------------------------------------------------------------------------- */

static void on_session_open(void *owner, net_session *s) { (void)owner, (void)s; }

static void on_channel_open(void *owner, net_channel *nc) {
  connection *c = owner;
  lua_State *L = c->hub->L;
  if (c->channel) return;
  c->channel = nc;
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->open);
  lua_pushstring(L, net_channel_way(nc) == NET_SUBSYSTEM ? "subsystem" : "tcpip");
  lua_pushstring(L, net_session_fingerprint(c->session));
  hub_call(c->hub, 2, 0, "in a client");
}

static void on_channel_drained(void *owner, net_channel *nc) { (void)owner, (void)nc; }

static void on_channel_closed(void *owner, net_channel *nc) {
  connection *c = owner;
  (void)nc;
  c->channel = NULL;
  if (c->session) net_session_close(c->session, "EOF", "the server closed the channel");
}

static void on_session_closed(void *owner, net_session *s, const net_error *why) {
  connection *c = owner;
  (void)s;
  c->session = NULL;
  if (c->hub->dead) return;
  lua_State *L = c->hub->L;
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->closed);
  lua_pushstring(L, why->name);
  lua_pushstring(L, why->text);
  hub_call(c->hub, 2, 0, "in a client");
  ref_drop(L, &c->self);
}

static const net_events events = {
    .session_open = on_session_open,
    .session_closed = on_session_closed,
    .channel_open = on_channel_open,
    .channel_readable = on_channel_readable,
    .channel_drained = on_channel_drained,
    .channel_closed = on_channel_closed,
};

/* ---- the Lua type ------------------------------------------------------------------------------------------------------------------------ */

static net_dial_options read_dial_options(lua_State *L) {
  net_dial_options o = {
      .host = option_string(L, 1, "host", "localhost"),
      .port = (int)option_integer(L, 1, "port", 8022, 1, 65535),
      .user = option_string(L, 1, "user", "korv"),
      .known_hosts = option_string(L, 1, "known_hosts", NULL),
      .accept_new = option_boolean(L, 1, "accept_new", false),
      .timeout_ms = option_ms(L, 1, "timeout", 30),
  };
  return o;
}

static connection *new_connection(lua_State *L) {
  connection *c = lua_newuserdatauv(L, sizeof *c, 0);
  memset(c, 0, sizeof *c);
  c->hub = hub_get(L);
  c->open = c->message = c->closed = c->self = LUA_NOREF;
  luaL_setmetatable(L, CONNECTION);
  return c;
}

/* dial(options) -> connection | nil, message, name. The keys are given up to it. */
static int dial_(lua_State *L) {
  net_error err;
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  net_dial_options o = read_dial_options(L);
  wire_limits limits = read_wire_limits(L);
  connection *c = new_connection(L);
  c->json = read_json_limits(L);
  c->open = option_function(L, 1, "open");
  c->message = option_function(L, 1, "message");
  c->closed = option_function(L, 1, "closed");
  c->reader = wire_reader_new(c->hub->codec, &limits);
  if (!c->reader) return fail(L, "ENOMEM", "out of memory");
  o.keys = key_list(L, 1, "keys", &o.key_count);
  lua_pushvalue(L, 2);
  c->self = ref_take(L);
  key_list_give_up(L, 1, "keys");
  c->session = net_dial(c->hub->net, &o, &events, c, &err);
  if (!c->session) {
    ref_drop(L, &c->self);
    return fail(L, err.name, err.text);
  }
  hub_poke(c->hub);
  lua_pushvalue(L, 2);
  return 1;
}

static connection *check(lua_State *L) { return luaL_checkudata(L, 1, CONNECTION); }

static int send_line(lua_State *L, connection *c) {
  host_json_error err;
  wire_buf *out = net_channel_out(c->channel);
  if (host_json_encode(L, 2, "request", &c->json, out, &err) < 0) return fail(L, err.too_large ? "EMSGSIZE" : "EJSON", err.text);
  if (wire_buf_append(out, "\n", 1) < 0) return luaL_error(L, "out of memory for a message");
  net_channel_commit(c->channel, false);
  lua_pushboolean(L, true);
  return 1;
}

static int send_member(lua_State *L, connection *c) {
  host_json_error err;
  wire_buf *draft = &c->hub->scratch;
  wire_buf_consume(draft, draft->len);
  if (host_json_encode(L, 2, "request", &c->json, draft, &err) < 0) return fail(L, err.too_large ? "EMSGSIZE" : "EJSON", err.text);
  if (wire_gzip(c->hub->codec, net_channel_out(c->channel), wire_buf_at(draft), draft->len) < 0)
    return luaL_error(L, "out of memory for a message");
  net_channel_commit(c->channel, true);
  lua_pushboolean(L, true);
  return 1;
}

/* connection:send(message) -> true | nil, message, name. A subsystem gets lines; direct-tcpip, as any korv peer reads it, gzip. */
static int send_(lua_State *L) {
  connection *c = check(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  if (!c->channel) return fail(L, "ENOTCONN", "the connection is not open");
  int results = net_channel_way(c->channel) == NET_SUBSYSTEM ? send_line(L, c) : send_member(L, c);
  hub_poke(c->hub);
  return results;
}

/* connection:keep_loop(whether): an open connection that nobody waits on need not keep the loop running. */
static int keep_loop(lua_State *L) {
  connection *c = check(L);
  if (c->session) net_session_keep_loop(c->session, lua_toboolean(L, 2));
  return 0;
}

/* connection:close(): `closed` follows. */
static int close_(lua_State *L) {
  connection *c = check(L);
  if (c->session) net_session_close(c->session, "ECLOSED", "the client was closed");
  hub_poke(c->hub);
  return 0;
}

static int connection_gc(lua_State *L) {
  connection *c = check(L);
  wire_reader_free(c->reader);
  c->reader = NULL;
  ref_drop(L, &c->open);
  ref_drop(L, &c->message);
  ref_drop(L, &c->closed);
  return 0;
}

/* ---- core.reader --------------------------------------------------------------------------------------------------------------------------- */

typedef struct reader {
  wire_reader *wire;
  wire_buf in;
  host_json_limits json;
} reader;

/* reader(options) -> reader */
static int reader_(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  wire_limits limits = read_wire_limits(L);
  reader *r = lua_newuserdatauv(L, sizeof *r, 0);
  memset(r, 0, sizeof *r);
  luaL_setmetatable(L, READER);
  r->json = read_json_limits(L);
  r->wire = wire_reader_new(hub_get(L)->codec, &limits);
  return r->wire ? 1 : luaL_error(L, "out of memory");
}

static reader *check_reader(lua_State *L) { return luaL_checkudata(L, 1, READER); }

/* reader:feed(bytes): more input. */
static int feed(lua_State *L) {
  reader *r = check_reader(L);
  size_t len;
  const char *bytes = luaL_checklstring(L, 2, &len);
  return wire_buf_append(&r->in, bytes, len) < 0 ? luaL_error(L, "out of memory for a stream's input") : 0;
}

/* reader:next() -> message | nil | nil, message, name: the next one at hand, none, or what was wrong with it. */
static int next(lua_State *L) {
  reader *r = check_reader(L);
  wire_message m;
  host_json_error err;
  int rc = wire_reader_next(r->wire, &r->in, &m);
  if (rc == WIRE_MORE) return 0;
  if (rc < 0) return fail(L, "EPROTO", wire_strerror(rc));
  return host_json_decode(L, m.text, m.len, &r->json, NULL, 0, &err) == 0 ? 1 : fail(L, "EJSON", err.text);
}

static int reader_gc(lua_State *L) {
  reader *r = check_reader(L);
  wire_reader_free(r->wire);
  wire_buf_free(&r->in);
  r->wire = NULL;
  return 0;
}

void connection_open(lua_State *L) {
  static const luaL_Reg connection_methods[] = {{"send", send_}, {"keep_loop", keep_loop}, {"close", close_}, {NULL, NULL}};
  static const luaL_Reg reader_methods[] = {{"feed", feed}, {"next", next}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"dial", dial_}, {"reader", reader_}, {NULL, NULL}};
  type_make(L, CONNECTION, connection_methods, connection_gc);
  type_make(L, READER, reader_methods, reader_gc);
  luaL_setfuncs(L, functions, 0);
}
