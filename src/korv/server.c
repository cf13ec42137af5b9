/* core.server: a listener, its connections and channels. Who may log in and what a request gets is asked of Lua. What can be asked of a
 * server that listens is in control.c. */
#include <stdlib.h>
#include <string.h>

#include "korv/server.h"

enum {
  TURN_MESSAGES = 256, /* what one channel may do before others get their turn */
  LARGE_BYTES = 1 << 20,
};

/* ---- log-in -------------------------------------------------------------------------------------------------------------------------- */

typedef struct question {
  server *server;
  net_session *session;
  const net_public_key *key;
  bool verified;
} question;

static int *peer_ref(net_session *s) {
  if (!net_session_data(s)) {
    int *ref = malloc(sizeof *ref);
    if (ref) *ref = LUA_NOREF;
    net_session_set_data(s, ref);
  }
  return net_session_data(s);
}

/* authorize(type, blob, fingerprint, login, address, verified) -> the peer's table, whether it may have terminals | nil. Of a verified key
 * both are kept. */
static int ask(lua_State *L) {
  const question *q = lua_touserdata(L, 1);
  int *peer = peer_ref(q->session);
  if (!peer) return 0;
  lua_rawgeti(L, LUA_REGISTRYINDEX, q->server->authorize);
  lua_pushstring(L, q->key->type);
  lua_pushstring(L, q->key->blob);
  lua_pushstring(L, q->key->fingerprint);
  lua_pushstring(L, net_session_login(q->session));
  lua_pushstring(L, net_session_address(q->session));
  lua_pushboolean(L, q->verified);
  lua_call(L, 6, 2);
  bool allowed = lua_istable(L, -2);
  if (allowed && q->verified) {
    net_session_allow_terminals(q->session, lua_toboolean(L, -1));
    lua_pop(L, 1);
    ref_drop(L, peer);
    *peer = ref_take(L);
  }
  lua_pushboolean(L, allowed);
  return 1;
}

static bool on_authorize(void *owner, net_session *session, const net_public_key *key, bool verified) {
  server *s = owner;
  if (s->hub->dead) return false;
  question q = {s, session, key, verified};
  lua_State *L = s->hub->L;
  lua_pushcfunction(L, ask);
  lua_pushlightuserdata(L, &q);
  if (!hub_call(s->hub, 1, 1, "authorize")) return false;
  bool allowed = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return allowed;
}

/* ---- connections --------------------------------------------------------------------------------------------------------------------- */

static void on_session_open(void *owner, net_session *session) { session_close_drained(owner, session, 0); }

typedef struct refusal {
  server *server;
  const char *address, *why;
} refusal;

static int tell_refused(lua_State *L) {
  const refusal *r = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, r->server->refused);
  lua_pushstring(L, r->address);
  lua_pushstring(L, r->why);
  lua_call(L, 2, 0);
  return 0;
}

static void on_refused(void *owner, const char *address, const char *why) {
  server *s = owner;
  refusal r = {s, address, why};
  if (s->hub->dead) return;
  lua_pushcfunction(s->hub->L, tell_refused);
  lua_pushlightuserdata(s->hub->L, &r);
  hub_call(s->hub, 1, 0, "refused");
}

/* No listener, no session, and no endpoint that is still on its way out: nothing needs the userdata any more. */
void server_release(server *s) {
  if (s->unused && s->in_flight == 0 && !s->hub->dead) ref_drop(s->hub->L, &s->self);
}

static void on_listener_closed(void *owner) {
  server *s = owner;
  hub *h = s->hub;
  s->unused = true;
  s->listener = NULL;
  if (h->dead) return;
  metrics_end(s);
  lua_rawgeti(h->L, LUA_REGISTRYINDEX, s->ended);
  hub_call(h, 0, 0, "ended");
  server_release(s);
}

static void tell_closed(server *s, net_session *session, const net_error *why) {
  lua_State *L = s->hub->L;
  int *peer = net_session_data(session);
  lua_rawgeti(L, LUA_REGISTRYINDEX, s->closed);
  if (peer)
    lua_rawgeti(L, LUA_REGISTRYINDEX, *peer);
  else
    lua_pushnil(L);
  lua_pushstring(L, net_session_address(session));
  lua_pushstring(L, why->name);
  lua_pushstring(L, why->text);
  hub_call(s->hub, 4, 0, "closed");
  if (peer) ref_drop(L, peer);
}

static void on_session_closed(void *owner, net_session *session, const net_error *why) {
  server *s = owner;
  if (!s->hub->dead) tell_closed(s, session, why);
  free(net_session_data(session));
  net_session_set_data(session, NULL);
}

/* ---- channels ------------------------------------------------------------------------------------------------------------------------ */

/* What people type, in place of messages. */
static bool is_typed(const net_channel *nc) {
  return net_channel_way(nc) == NET_EXEC || (net_channel_way(nc) == NET_SHELL && net_channel_terminal(nc));
}

static void on_channel_open(void *owner, net_channel *nc) {
  server *s = owner;
  int *peer = net_session_data(net_channel_session(nc));
  channel *c = peer ? calloc(1, sizeof *c) : NULL;
  if (c && !is_typed(nc)) c->reader = wire_reader_new(s->hub->codec, &s->in);
  if (!c || !(c->reader || is_typed(nc))) {
    free(c);
    net_channel_abort(nc);
    return;
  }
  c->server = s;
  c->net = nc;
  c->peer = *peer;
  c->handlers = c->caller = LUA_NOREF;
  LIST_INIT(&c->requests);
  LIST_INSERT_HEAD(&s->channels, c, link);
  net_channel_set_data(nc, c);
  if (!c->reader) caller_open(c);
}

void channel_wake_senders(channel *c, bool gone) {
  hub *h = c->server->hub;
  while (c->senders.len) {
    sender *first = (sender *)(void *)wire_buf_at(&c->senders);
    int told = gone ? fail(h->L, "ECANCELED", "the client has gone") : 0;
    host_task_wake(h->host, first->task, first->ticket, h->L, told);
    wire_buf_consume(&c->senders, sizeof *first);
  }
}

static void on_channel_closed(void *owner, net_channel *nc) {
  (void)owner;
  channel *c = net_channel_data(nc);
  if (!c) return;
  net_channel_set_data(nc, NULL); /* told once, though something below may raise */
  LIST_REMOVE(c, link);
  request_orphan(c);
  if (!c->server->hub->dead) channel_wake_senders(c, true);
  if (!c->server->hub->dead) caller_closed(c);
  if (c->large) hub_burst(c->server->hub, BURST_BYTES); /* its buffers go now */
  wire_reader_free(c->reader);
  wire_buf_free(&c->senders);
  session_close_drained(c->server, net_channel_session(nc), 1);
  free(c);
}

bool channel_is_clogged(const channel *c) { return c->net ? net_channel_queued(c->net) >= c->server->queued_most : c->held; }

bool channel_is_full(const channel *c) { return c->in_flight >= c->server->channel_in_flight_most || channel_is_clogged(c); }

void channel_finish_if_done(channel *c) {
  if (!c->reader) {
    if (c->in_flight == 0 && c->server->draining && c->net && !net_channel_closing(c->net)) caller_stopping(c);
    return;
  }
  if (c->in_flight == 0 && (c->ended || (c->server->draining && !c->reading))) net_channel_finish(c->net);
}

void channel_less_busy(channel *c) {
  if (!channel_is_clogged(c)) channel_wake_senders(c, false);
  if (!c->reader && c->net && !channel_is_clogged(c)) caller_drained(c);
  if (c->paused && !channel_is_full(c)) {
    c->paused = false;
    net_channel_pause(c->net, false);
    c->reading = true; /* it is read again in any case: something may have been kept for it */
  }
  channel_finish_if_done(c);
}

static void on_channel_drained(void *owner, net_channel *nc) {
  server *s = owner;
  hub_burst(s->hub, BURST_BYTES);
  if (net_channel_data(nc)) channel_less_busy(net_channel_data(nc));
}

static void refuse(channel *c, int error, wire_encoding encoding) {
  if (error == WIRE_TOO_LARGE)
    request_refuse(c, encoding, 413, "Message too large", wire_strerror(error));
  else
    request_refuse(c, encoding, 400, "Unable to process request", wire_strerror(error));
}

/* One message, or one bad one; *bytes counts what was decoded. False: there is none at hand. */
static bool read_one(channel *c, size_t *bytes) {
  wire_message m;
  wire_buf *in = net_channel_in(c->net);
  c->large |= in->len > LARGE_BYTES; /* be it of a message that never ends */
  int rc = wire_reader_next(c->reader, in, &m);
  c->looked_ahead = false;
  if (rc == WIRE_MORE && net_channel_ended(c->net)) {
    rc = wire_reader_end(c->reader, in, &m);
    c->ended = true;
  }
  if (rc == WIRE_MESSAGE) {
    c->large |= m.len > LARGE_BYTES;
    hub_burst(c->server->hub, m.len);
    *bytes += m.len;
    request_read(c, &m);
  }
  c->large |= rc == WIRE_TRUNCATED || rc == WIRE_TOO_LARGE;
  if (rc < 0) refuse(c, rc, m.encoding);
  if (wire_reader_broken(c->reader)) c->ended = true;
  return rc != WIRE_MORE && !c->ended;
}

/* A channel that is full takes nothing but a cancel, which may end what fills it. Whatever else is next stays where it is, be it what is
 * wrong with a message or the end, and the channel waits with it. False: no cancel is at hand. */
static bool cancel_one(channel *c, size_t *bytes) {
  wire_message m;
  wire_buf *in = net_channel_in(c->net);
  int rc = wire_reader_peek(c->reader, in, &m);
  if (rc == WIRE_MESSAGE && !c->looked_ahead && request_cancel(c, &m)) {
    *bytes += m.len;
    wire_reader_next(c->reader, in, &m);
    return true;
  }
  c->looked_ahead = rc == WIRE_MESSAGE; /* it is not decoded again */
  c->reading = c->paused = rc != WIRE_MORE || net_channel_ended(c->net) || wire_reader_broken(c->reader);
  if (c->paused) net_channel_pause(c->net, true);
  return false;
}

static bool on_channel_readable(void *owner, net_channel *nc) {
  (void)owner;
  channel *c = net_channel_data(nc);
  if (!c) return false;
  if (c->ended) { /* what still comes stays with the library, and the window runs full */
    net_channel_pause(nc, true);
    return false;
  }
  if (c->server->draining && c->server->replaced) { /* the next server is asked for the rest, which is not to gather here */
    net_channel_pause(nc, true);
    c->reading = false;
    channel_finish_if_done(c);
    return false;
  }
  if (!c->reader) return caller_readable(c);
  wire_buf *in = net_channel_in(nc);
  size_t bytes = 0;
  c->reading = true;
  for (int n = 0; n < TURN_MESSAGES && bytes < c->server->turn_bytes; n++) {
    if (channel_is_full(c)) {
      if (!cancel_one(c, &bytes)) return false;
      continue;
    }
    if (!read_one(c, &bytes)) {
      c->reading = false;
      channel_finish_if_done(c);
      if (in->len == 0) wire_buf_shrink(in, 65536);
      return false;
    }
  }
  return true;
}

static void on_channel_nudged(void *owner, net_channel *nc) {
  (void)owner;
  channel *c = net_channel_data(nc);
  if (c && !c->reader) caller_nudged(c);
}

static const net_events events = {
    .channel_nudged = on_channel_nudged,
    .refused = on_refused,
    .listener_closed = on_listener_closed,
    .authorize = on_authorize,
    .session_open = on_session_open,
    .session_closed = on_session_closed,
    .channel_open = on_channel_open,
    .channel_readable = on_channel_readable,
    .channel_drained = on_channel_drained,
    .channel_closed = on_channel_closed,
};

/* ---- the Lua type -------------------------------------------------------------------------------------------------------------------- */

static void read_limits(lua_State *L, server *s) {
  s->in = option_wire_limits(L, 1);
  s->json = option_json_limits(L, 1);
  s->json.bytes = (size_t)option_integer(L, 1, "max_response_bytes", 16 << 20, 1024, 1 << 30);
  s->channel_in_flight_most = (size_t)option_integer(L, 1, "max_channel_in_flight", 1024, 1, 1 << 20);
  s->in_flight_most = (size_t)option_integer(L, 1, "max_in_flight", 65536, 1, 1 << 24);
  s->in_flight_bytes_most = (size_t)option_integer(L, 1, "max_in_flight_bytes", 128 << 20, 1024, (lua_Integer)1 << 40);
  s->turn_bytes = (size_t)option_integer(L, 1, "max_turn_bytes", 1 << 20, 1024, 1 << 30);
  s->timeout = (double)option_ms(L, 1, "timeout", 0) / 1000;
  s->queued_most = (size_t)option_integer(L, 1, "max_queued_bytes", 256 << 10, 65536, 1 << 30);
}

/* ways{ tcpip =, subsystem =, exec =, shell = }: which of them are open; all, where nothing is said. */
static unsigned read_ways(lua_State *L) {
  static const char *const names[] = {[NET_TCPIP] = "tcpip", [NET_SUBSYSTEM] = "subsystem", [NET_EXEC] = "exec", [NET_SHELL] = "shell"};
  unsigned ways = 0;
  bool all = lua_getfield(L, 1, "ways") != LUA_TTABLE;
  for (unsigned way = 0; way < sizeof names / sizeof *names; way++) {
    bool open = all || lua_getfield(L, -1, names[way]) == LUA_TNIL || lua_toboolean(L, -1);
    if (!all) lua_pop(L, 1);
    if (open) ways |= NET_WAY(way);
  }
  lua_pop(L, 1);
  return ways;
}

static void read_listen_options(lua_State *L, net_listen_options *o) {
  o->ways = read_ways(L);
  o->connections = (size_t)option_integer(L, 1, "max_connections", 10000, 1, 1 << 20);
  o->unauthenticated = (size_t)option_integer(L, 1, "max_unauthenticated", 256, 1, 1 << 20);
  o->unauthenticated_source = (size_t)option_integer(L, 1, "max_unauthenticated_per_address", 64, 1, 1 << 20);
  o->compatible = strcmp(option_string(L, 1, "ciphers", "modern"), "compatible") == 0;
  o->channels = (size_t)option_integer(L, 1, "max_channels", 64, 1, 4096);
  o->auth_attempts = (unsigned)option_integer(L, 1, "max_auth_attempts", 10, 1, 1000);
  o->login_ms = option_ms(L, 1, "login_timeout", 30);
  o->keepalive_ms = option_ms(L, 1, "keepalive", 60);
}

static int optional_function(lua_State *L, const char *name) {
  int type = lua_getfield(L, 1, name);
  lua_pop(L, 1);
  return type == LUA_TNIL ? LUA_NOREF : option_function(L, 1, name);
}

static void read_functions(lua_State *L, server *s) {
  s->failed = option_function(L, 1, "failed");
  s->authorize = option_function(L, 1, "authorize");
  s->closed = option_function(L, 1, "closed");
  s->refused = option_function(L, 1, "refused");
  s->retired = option_function(L, 1, "retired");
  s->ended = option_function(L, 1, "ended");
  s->converse = option_function(L, 1, "converse");
  s->answered = optional_function(L, "answered");
  s->slot = optional_function(L, "slot");
  if (lua_getfield(L, 1, "request") != LUA_TTABLE) luaL_error(L, "request must be the metatable of requests");
  s->request_meta = ref_take(L);
}

static server *new_server(lua_State *L) {
  server *s = lua_newuserdatauv(L, sizeof *s, 0);
  memset(s, 0, sizeof *s);
  s->hub = hub_get(L);
  int *refs[] = {&s->failed,   &s->authorize, &s->closed, &s->refused,      &s->retired, &s->ended,
                 &s->converse, &s->answered,  &s->slot,   &s->request_meta, &s->self};
  for (size_t i = 0; i < sizeof refs / sizeof *refs; i++) *refs[i] = LUA_NOREF;
  LIST_INIT(&s->channels);
  LIST_INIT(&s->spare);
  LIST_INIT(&s->orphans);
  luaL_setmetatable(L, KORV_SERVER);
  return s;
}

/* The list of file descriptors in a field of the options. */
static size_t read_sockets(lua_State *L, int fds[NET_SOCKETS]) {
  if (lua_getfield(L, 1, "sockets") != LUA_TTABLE) luaL_error(L, "sockets must be a list");
  size_t n = lua_rawlen(L, -1);
  if (n > NET_SOCKETS) luaL_error(L, "sockets: at most %d", NET_SOCKETS);
  for (size_t i = 0; i < n; i++) {
    int is_integer;
    lua_rawgeti(L, -1, (lua_Integer)i + 1);
    fds[i] = (int)lua_tointegerx(L, -1, &is_integer);
    if (!is_integer) luaL_error(L, "sockets[%d] must be a file descriptor", (int)i + 1);
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
  return n;
}

/* bind(host | nil, port) -> sockets, port | nil, message, name */
static int bind_(lua_State *L) {
  net_error err;
  int fds[NET_SOCKETS];
  size_t n = net_bind(luaL_optstring(L, 1, NULL), (int)luaL_checkinteger(L, 2), fds, &err);
  if (n == 0) return fail(L, err.name, err.text);
  lua_createtable(L, (int)n, 0);
  for (size_t i = 0; i < n; i++) {
    lua_pushinteger(L, fds[i]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  lua_pushinteger(L, net_socket_port(fds[0]));
  return 2;
}

/* socket_port(fd) -> integer */
static int socket_port(lua_State *L) {
  lua_pushinteger(L, net_socket_port((int)luaL_checkinteger(L, 1)));
  return 1;
}

/* server(options) -> server | nil, message, name. Listens at once on the sockets, which it takes over; its first handler is `handler`. */
static int listen_(lua_State *L) {
  net_error err;
  int sockets[NET_SOCKETS];
  net_listen_options o = {.sockets = sockets};
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  server *s = new_server(L);
  read_limits(L, s);
  read_listen_options(L, &o);
  read_functions(L, s);
  int handler = option_function(L, 1, "handler");
  lua_rawgeti(L, LUA_REGISTRYINDEX, handler);
  ref_drop(L, &handler);
  generation_swap(s, L, option_integer(L, 1, "generation", 1, 0, LUA_MAXINTEGER));
  o.keys = key_list(L, 1, "keys", &o.key_count);
  o.socket_count = read_sockets(L, sockets);
  s->listener = net_listen(s->hub->net, &o, &events, s, &err);
  if (!s->listener) return fail(L, err.name, err.text);
  lua_pushvalue(L, 2);
  s->self = ref_take(L);
  metrics_begin(s);
  lua_pushvalue(L, 2);
  return 1;
}

static int server_gc(lua_State *L) {
  server *s = luaL_checkudata(L, 1, KORV_SERVER);
  generation_free(L, s->generation);
  metrics_free(&s->metrics);
  int *refs[] = {&s->failed, &s->authorize, &s->closed,   &s->refused, &s->retired,
                 &s->ended,  &s->converse,  &s->answered, &s->slot,    &s->request_meta};
  for (size_t i = 0; i < sizeof refs / sizeof *refs; i++) ref_drop(L, refs[i]);
  request_list *lists[] = {&s->spare, &s->orphans};
  for (size_t i = 0; i < 2; i++) {
    request *r;
    while ((r = LIST_FIRST(lists[i]))) {
      LIST_REMOVE(r, link);
      if (lists[i] == &s->orphans) LIST_REMOVE(r, live);
      wire_buf_free(&r->items);
      free(r);
    }
  }
  return 0;
}

void server_open(lua_State *L) {
  caller_open_type(L);
  static const luaL_Reg functions[] = {{"server", listen_}, {"bind", bind_}, {"socket_port", socket_port}, {NULL, NULL}};
  type_make(L, KORV_SERVER, control_methods, server_gc);
  luaL_setfuncs(L, functions, 0);
}
