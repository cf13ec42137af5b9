/* core.dial: a client's connection and its channels. Which answer belongs to which call is Lua's to know (lua/korv/client.lua). */
#include <stdlib.h>
#include <string.h>

#include "korv/korv.h"

static const char CONNECTION[] = "korv.connection";
static const char CHANNEL[] = "korv.channel";

enum { TURN_MESSAGES = 256 };

typedef struct connection {
  hub *hub;
  net_session *session; /* NULL once it has ended */
  wire_limits in;
  host_json_limits json;
  bool over;                 /* closed was called */
  int open, message, closed; /* Lua functions; message is the first channel's */
  int self;                  /* keeps the userdata while the session lives */
} connection;

typedef struct outlet { /* one channel, as Lua holds it */
  connection *connection;
  net_channel *net; /* NULL once it is closed */
  wire_reader *reader;
  bool first;
  int message, closed; /* Lua functions; the first channel has none for its end, which is the connection's */
  int self;            /* keeps the userdata, and by its user value the connection, while the channel lives */
} outlet;

/* ---- messages in ----------------------------------------------------------------------------------------------------------------------- */

/* Decodes a message for the function `message`; one that cannot be is logged and passed over: no call waits for it by name. */
static void tell_message(const outlet *o, const wire_message *m) {
  host_json_error err;
  hub *h = o->connection->hub;
  hub_burst(h, m->len);
  lua_rawgeti(h->L, LUA_REGISTRYINDEX, o->message);
  if (host_json_decode(h->L, m->text, m->len, &o->connection->json, NULL, 0, &err) < 0) {
    lua_pop(h->L, 1);
    hub_log(h, "warn", "ignored a message from the server that is not JSON: %s", err.text);
  } else {
    hub_call(h, 1, 0, "in a client");
  }
}

static void tell_closed(connection *c, const char *name, const char *text) {
  lua_State *L = c->hub->L;
  if (c->over) return;
  c->over = true;
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->closed);
  lua_pushstring(L, name);
  lua_pushstring(L, text);
  hub_call(c->hub, 2, 0, "in a client");
}

/* The first channel's end is the connection's. But a server that is about to end finishes the streams on others: the session ends with
 * the last of them. */
static void part(connection *c, const char *name, const char *why) {
  if (net_session_channels(c->session) > 1)
    tell_closed(c, name, why);
  else
    net_session_close(c->session, name, why);
}

/* What can't be read any more costs a stream its channel, and the first channel, whose answers nobody could tell apart, the connection. */
static void end(outlet *o, const char *name, const char *why) {
  connection *c = o->connection;
  if (o->first && !net_channel_ended(o->net)) {
    net_session_close(c->session, name, why);
    return;
  }
  net_channel_abort(o->net);
  if (o->first) part(c, name, why);
}

static bool on_channel_readable(void *owner, net_channel *nc) {
  (void)owner;
  outlet *o = net_channel_data(nc);
  wire_message m;
  wire_buf *in = net_channel_in(nc);
  for (int n = 0; n < TURN_MESSAGES && o && !net_channel_paused(nc); n++) {
    int rc = wire_reader_next(o->reader, in, &m);
    if (rc == WIRE_MESSAGE) tell_message(o, &m);
    if (!o->connection->session || net_channel_closing(nc)) return false; /* the message's function closed it */
    if (rc < 0) end(o, "EPROTO", wire_strerror(rc));
    if (rc == WIRE_MORE && net_channel_ended(nc)) end(o, "EOF", "the server ended the conversation");
    if (rc != WIRE_MESSAGE) {
      if (in->len == 0) wire_buf_shrink(in, 65536);
      return false;
    }
  }
  return o && !net_channel_paused(nc);
}

/* ---- events ---------------------------------------------------------------------------------------------------------------------------------- */

/* Pushes a new outlet, which has no channel yet. */
static outlet *push_outlet(lua_State *L, connection *c, int connection_index) {
  outlet *o = lua_newuserdatauv(L, sizeof *o, 1);
  memset(o, 0, sizeof *o);
  o->connection = c;
  o->message = o->closed = o->self = LUA_NOREF;
  luaL_setmetatable(L, CHANNEL);
  lua_pushvalue(L, connection_index);
  lua_setiuservalue(L, -2, 1);
  o->reader = wire_reader_new(c->hub->codec, &c->in);
  if (!o->reader) luaL_error(L, "out of memory for a channel");
  return o;
}

static void attach(lua_State *L, outlet *o, net_channel *nc) {
  o->net = nc;
  net_channel_set_data(nc, o);
  lua_pushvalue(L, -1);
  o->self = ref_take(L);
}

static void on_session_open(void *owner, net_session *s) { (void)owner, (void)s; }

static void on_channel_open(void *owner, net_channel *nc) {
  connection *c = owner;
  lua_State *L = c->hub->L;
  if (net_channel_data(nc)) return; /* a further one */
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->self);
  outlet *o = push_outlet(L, c, lua_gettop(L));
  o->first = true;
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->message);
  o->message = ref_take(L);
  attach(L, o, nc);
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->open);
  lua_insert(L, -2);
  lua_pushstring(L, net_channel_way(nc) == NET_SUBSYSTEM ? "subsystem" : "tcpip");
  lua_pushstring(L, net_session_fingerprint(c->session));
  hub_call(c->hub, 3, 0, "in a client");
  lua_pop(L, 1);
}

static void on_channel_drained(void *owner, net_channel *nc) {
  const connection *c = owner;
  (void)nc;
  hub_burst(c->hub, BURST_BYTES);
}

/* A channel that ends with its session ends for the session's reason. */
static net_error reason_of_end(const net_channel *nc) {
  const net_error *why = net_session_why(net_channel_session(nc));
  if (why) return *why;
  if (net_channel_was_refused(nc)) return (net_error){"ECONNREFUSED", "the server refused a further channel (its max_channels?)"};
  return (net_error){"ECONNRESET", "the channel was closed"};
}

static void on_channel_closed(void *owner, net_channel *nc) {
  connection *c = owner;
  outlet *o = net_channel_data(nc);
  if (!o) return;
  net_channel_set_data(nc, NULL); /* o may be garbage long before the socket has taken our own CLOSE */
  o->net = NULL;
  if (c->hub->dead) return;
  bool session_ends = net_session_why(net_channel_session(nc)) != NULL; /* which is told, too */
  if (o->first && c->session && !session_ends) part(c, "EOF", "the server closed the channel");
  lua_State *L = c->hub->L;
  if (!o->first) {
    lua_rawgeti(L, LUA_REGISTRYINDEX, o->closed);
    net_error why = reason_of_end(nc);
    lua_pushstring(L, why.name);
    lua_pushstring(L, why.text);
    hub_call(c->hub, 2, 0, "in a client");
    if (c->over && c->session && net_session_channels(c->session) <= 1) net_session_close(c->session, "EOF", "the last stream has ended");
  }
  ref_drop(L, &o->self);
}

static void on_session_closed(void *owner, net_session *s, const net_error *why) {
  connection *c = owner;
  (void)s;
  c->session = NULL;
  if (c->hub->dead) return;
  tell_closed(c, why->name, why->text);
  ref_drop(c->hub->L, &c->self);
}

static const net_events events = {
    .session_open = on_session_open,
    .session_closed = on_session_closed,
    .channel_open = on_channel_open,
    .channel_readable = on_channel_readable,
    .channel_drained = on_channel_drained,
    .channel_closed = on_channel_closed,
};

/* ---- the connection --------------------------------------------------------------------------------------------------------------------------- */

static net_dial_options read_dial_options(lua_State *L) {
  net_dial_options o = {
      .host = option_string(L, 1, "host", "localhost"),
      .port = (int)option_integer(L, 1, "port", 8022, 1, 65535),
      .user = option_string(L, 1, "user", "korv"),
      .known_hosts = option_string(L, 1, "known_hosts", NULL),
      .accept_new = option_boolean(L, 1, "accept_new", false),
      .timeout_ms = option_ms(L, 1, "timeout", 30),
      .keepalive_ms = option_ms(L, 1, "keepalive", 60),
  };
  return o;
}

static connection *push_connection(lua_State *L) {
  connection *c = lua_newuserdatauv(L, sizeof *c, 0);
  memset(c, 0, sizeof *c);
  c->hub = hub_get(L);
  c->open = c->message = c->closed = c->self = LUA_NOREF;
  luaL_setmetatable(L, CONNECTION);
  c->in = option_wire_limits(L, 1);
  c->json = option_json_limits(L, 1);
  c->open = option_function(L, 1, "open");
  c->message = option_function(L, 1, "message");
  c->closed = option_function(L, 1, "closed");
  return c;
}

/* dial(options) -> connection | nil, message, name. The keys are given up to it. Then open(channel, way, fingerprint) is called, or closed(name,
 * message). */
static int dial_(lua_State *L) {
  net_error err;
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  net_dial_options o = read_dial_options(L);
  connection *c = push_connection(L);
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

/* connection:channel(message, closed) -> channel | nil, message, name: a further one; it can be sent on at once. At its end
 * closed(name, message) is called. */
static int channel_(lua_State *L) {
  connection *c = check(L);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  luaL_checktype(L, 3, LUA_TFUNCTION);
  lua_settop(L, 3);
  if (!c->session) return fail(L, "ENOTCONN", "the connection is not open");
  outlet *o = push_outlet(L, c, 1);
  lua_pushvalue(L, 2);
  o->message = ref_take(L);
  lua_pushvalue(L, 3);
  o->closed = ref_take(L);
  net_channel *nc = net_channel_open(c->session);
  if (!nc) return fail(L, "ENOMEM", "out of memory for a channel");
  attach(L, o, nc);
  hub_poke(c->hub);
  return 1;
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
  ref_drop(L, &c->open);
  ref_drop(L, &c->message);
  ref_drop(L, &c->closed);
  return 0;
}

/* ---- the channel ---------------------------------------------------------------------------------------------------------------------------------- */

static outlet *check_channel(lua_State *L) { return luaL_checkudata(L, 1, CHANNEL); }

/* Encodes the value at index 2 to the end of out. 0, or the number of results that say what is wrong. */
static int encode(lua_State *L, const outlet *o, wire_buf *out) {
  host_json_error err;
  if (host_json_encode(L, 2, "request", &o->connection->json, out, &err) == 0) return 0;
  return fail(L, err.too_large ? "EMSGSIZE" : "EJSON", err.text);
}

static int send_line(lua_State *L, outlet *o) {
  wire_buf *out = net_channel_out(o->net);
  int failed = encode(L, o, out);
  if (failed) return failed;
  if (wire_buf_append(out, "\n", 1) < 0) return luaL_error(L, "out of memory for a message");
  net_channel_commit(o->net, false);
  return 0;
}

static int send_member(lua_State *L, outlet *o) {
  hub *h = o->connection->hub;
  wire_buf_consume(&h->scratch, h->scratch.len);
  int failed = encode(L, o, &h->scratch);
  if (failed) return failed;
  if (wire_gzip(h->codec, net_channel_out(o->net), wire_buf_at(&h->scratch), h->scratch.len) < 0)
    return luaL_error(L, "out of memory for a message");
  net_channel_commit(o->net, true);
  return 0;
}

/* channel:send(message) -> true | nil, message, name. A subsystem gets lines; direct-tcpip, as any korv peer reads it, gzip. */
static int send_(lua_State *L) {
  outlet *o = check_channel(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  if (!o->net || !o->connection->session) return fail(L, "ENOTCONN", "the channel is not open");
  int failed = net_channel_way(o->net) == NET_SUBSYSTEM ? send_line(L, o) : send_member(L, o);
  if (failed) return failed;
  hub_poke(o->connection->hub);
  lua_pushboolean(L, true);
  return 1;
}

/* channel:pause(whether): not read any more; the server's output waits. */
static int pause_(lua_State *L) {
  outlet *o = check_channel(L);
  if (o->net) net_channel_pause(o->net, lua_toboolean(L, 2));
  hub_poke(o->connection->hub);
  return 0;
}

/* channel:close(): what runs for it on the server is cancelled. */
static int close_channel(lua_State *L) {
  outlet *o = check_channel(L);
  if (o->net) net_channel_abort(o->net);
  hub_poke(o->connection->hub);
  return 0;
}

static int channel_gc(lua_State *L) {
  outlet *o = check_channel(L);
  if (o->net) net_channel_set_data(o->net, NULL);
  wire_reader_free(o->reader);
  o->reader = NULL;
  ref_drop(L, &o->message);
  ref_drop(L, &o->closed);
  return 0;
}

void connection_open(lua_State *L) {
  static const luaL_Reg connection_methods[] = {{"channel", channel_}, {"keep_loop", keep_loop}, {"close", close_}, {NULL, NULL}};
  static const luaL_Reg channel_methods[] = {{"send", send_}, {"pause", pause_}, {"close", close_channel}, {NULL, NULL}};
  type_make(L, CONNECTION, connection_methods, connection_gc);
  type_make(L, CHANNEL, channel_methods, channel_gc);
  lua_pushcfunction(L, dial_);
  lua_setfield(L, -2, "dial");
}
