/* A caller: a channel that Lua speaks for, where a person or a test sits at the other end in place of a program that speaks messages. What
 * is asked through it goes the way of every message, with the same limits and deadlines; what comes back is handed to Lua, and on a channel
 * of SSH's Lua says what is written. Knows nothing of commands, prompts or JSON beyond its text. */
#include <stdlib.h>
#include <string.h>

#include "korv/server.h"

static const char CALLER[] = "korv.caller";

typedef struct caller {
  channel *channel; /* NULL: gone */
} caller;

/* ---- up ------------------------------------------------------------------------------------------------------------------------------ */

/* Pushes the handler of that name, below which nargs arguments are to follow; false: there is none. */
static bool push_handler(channel *c, const char *name) {
  lua_State *L = c->server->hub->L;
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->handlers);
  lua_pushstring(L, name);
  lua_rawget(L, -2);
  lua_remove(L, -2);
  if (lua_isfunction(L, -1)) return true;
  lua_pop(L, 1);
  return false;
}

/* Calls what push_handler pushed. A handler that failed would leave whoever sits there waiting for ever. */
static void call(channel *c, int nargs, const char *name) {
  if (!hub_call(c->server->hub, nargs, 0, name) && c->net) net_channel_abort(c->net);
}

static void tell(channel *c, const char *name) {
  if (push_handler(c, name)) call(c, 0, name);
}

typedef struct handing {
  const answer *answer;
  const wire_buf *body;
} handing;

/* answer(id, code, body, more): id and body are JSON text. */
static int hand_over(lua_State *L) {
  const handing *it = lua_touserdata(L, 1);
  if (!push_handler(it->answer->channel, "answer")) return 0;
  lua_pushlstring(L, it->answer->id, it->answer->id_len);
  lua_pushinteger(L, it->answer->code);
  lua_pushlstring(L, wire_buf_at(it->body), it->body->len);
  lua_pushboolean(L, it->answer->more);
  lua_call(L, 4, 0);
  return 0;
}

/* An endpoint that sends an item may be running: whatever raised on the hub's thread outside of a call would leave that behind. */
bool caller_answer(answer *a, lua_State *L, host_json_error *err) {
  channel *c = a->channel;
  hub *h = c->server->hub;
  wire_buf *draft = &h->scratch;
  wire_buf_consume(draft, draft->len);
  bool encoded = answer_append_body(L, a->items, c->server->json, draft, err) == 0;
  lua_pop(L, 1);
  if (!encoded) return false;
  a->bytes = draft->len;
  handing it = {a, draft};
  lua_pushcfunction(h->L, hand_over);
  lua_pushlightuserdata(h->L, &it);
  call(c, 1, "answer");
  wire_buf_consume(draft, draft->len);
  wire_buf_shrink(draft, 65536);
  return true;
}

/* data(bytes), and data(nil) at the end of the input. */
bool caller_readable(channel *c) {
  lua_State *L = c->server->hub->L;
  wire_buf *in = net_channel_in(c->net);
  if (in->len && push_handler(c, "data")) {
    lua_pushlstring(L, wire_buf_at(in), in->len);
    wire_buf_consume(in, in->len);
    call(c, 1, "data");
  }
  if (!net_channel_ended(c->net) || c->ended || net_channel_closing(c->net) || net_channel_in(c->net)->len) return false;
  c->ended = true;
  if (!push_handler(c, "data")) return false;
  lua_pushnil(L);
  call(c, 1, "data");
  return false;
}

/* resized(columns, rows) and interrupted() */
void caller_nudged(channel *c) {
  const net_terminal *t = net_channel_terminal(c->net);
  if (net_channel_take_interrupt(c->net)) tell(c, "interrupted");
  if (!t || net_channel_closing(c->net) || !push_handler(c, "resized")) return;
  lua_pushinteger(c->server->hub->L, t->columns);
  lua_pushinteger(c->server->hub->L, t->rows);
  call(c, 2, "resized");
}

void caller_drained(channel *c) { tell(c, "drained"); }

void caller_stopping(channel *c) {
  if (c->told_stopping) return;
  c->told_stopping = true;
  tell(c, "stopping");
}

/* ---- life ---------------------------------------------------------------------------------------------------------------------------- */

static caller *push_caller(lua_State *L, channel *c) {
  caller *box = lua_newuserdatauv(L, sizeof *box, 0);
  box->channel = c;
  luaL_setmetatable(L, CALLER);
  return box;
}

static void push_terminal(lua_State *L, const net_terminal *t) {
  if (!t) {
    lua_pushnil(L);
    return;
  }
  lua_createtable(L, 0, 4);
  lua_pushstring(L, t->name);
  lua_setfield(L, -2, "name");
  lua_pushinteger(L, t->columns);
  lua_setfield(L, -2, "columns");
  lua_pushinteger(L, t->rows);
  lua_setfield(L, -2, "rows");
  lua_pushboolean(L, t->no_color);
  lua_setfield(L, -2, "no_color");
}

/* converse(caller, peer, command | nil, terminal | nil) -> its handlers, of which `opened` is called next */
static int open_protected(lua_State *L) {
  channel *c = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->server->converse);
  push_caller(L, c);
  lua_pushvalue(L, -1);
  c->caller = ref_take(L);
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->peer);
  lua_pushstring(L, net_channel_command(c->net));
  push_terminal(L, net_channel_terminal(c->net));
  lua_newtable(L); /* no handlers, until it has returned its own */
  c->handlers = ref_take(L);
  lua_call(L, 4, 1);
  luaL_checktype(L, -1, LUA_TTABLE);
  ref_drop(L, &c->handlers);
  c->handlers = ref_take(L);
  return 0;
}

void caller_open(channel *c) {
  lua_State *L = c->server->hub->L;
  net_channel_pause(c->net, true);
  lua_pushcfunction(L, open_protected);
  lua_pushlightuserdata(L, c);
  if (!hub_call(c->server->hub, 1, 0, "converse")) {
    net_channel_abort(c->net);
    return;
  }
  tell(c, "opened");
  channel_finish_if_done(c); /* a drain that began before it opened has not told it */
}

static void part(lua_State *L, channel *c) {
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->caller);
  caller *box = lua_touserdata(L, -1);
  if (box) box->channel = NULL;
  lua_pop(L, 1);
  ref_drop(L, &c->caller);
  ref_drop(L, &c->handlers);
}

void caller_closed(channel *c) {
  lua_State *L = c->server->hub->L;
  if (c->handlers == LUA_NOREF) return;
  tell(c, "closed");
  part(L, c);
}

/* ---- down ---------------------------------------------------------------------------------------------------------------------------- */

static caller *check(lua_State *L) { return luaL_checkudata(L, 1, CALLER); }

/* The channel of SSH's behind it; NULL: it is closing or has gone. */
static net_channel *outlet(lua_State *L) {
  const caller *box = check(L);
  if (!box->channel || !box->channel->net || net_channel_closing(box->channel->net)) return NULL;
  return box->channel->net;
}

/* caller:message(text): what a message is on any channel. Its answers come to the handler `answer`; false: it cannot be asked now. */
static int message(lua_State *L) {
  const caller *box = check(L);
  channel *c = box->channel;
  wire_message m = {.encoding = WIRE_LINE};
  m.text = luaL_checklstring(L, 2, &m.len);
  bool is_cancel = strncmp(m.text, "{\"cancel\"", 9) == 0; /* which begins nothing, and may end what fills the channel */
  bool possible = c && (is_cancel || c->in_flight < c->server->channel_in_flight_most);
  if (possible) {
    request_read(c, &m);
    hub_poke(c->server->hub);
  }
  lua_pushboolean(L, possible);
  return 1;
}

/* caller:write(bytes [, to_stderr]): false: so much waits to be read that more should wait for the handler `drained`. */
static int write_(lua_State *L) {
  net_channel *nc = outlet(L);
  size_t len;
  const char *bytes = luaL_checklstring(L, 2, &len);
  if (!nc) return 0;
  if (wire_buf_append(net_channel_out(nc), bytes, len) < 0) return luaL_error(L, "out of memory for output");
  if (lua_toboolean(L, 3))
    net_channel_commit_error(nc);
  else
    net_channel_commit(nc, false);
  hub_poke(hub_get(L));
  lua_pushboolean(L, !channel_is_clogged(check(L)->channel));
  return 1;
}

/* caller:read(whether): input comes to the handler `data`; none does at first. */
static int read_(lua_State *L) {
  net_channel *nc = outlet(L);
  if (nc) net_channel_pause(nc, !lua_toboolean(L, 2));
  hub_poke(hub_get(L));
  return 0;
}

/* caller:finish([status]): what was written is sent, then the exit status, and the channel is closed. */
static int finish(lua_State *L) {
  net_channel *nc = outlet(L);
  if (!nc) return 0;
  net_channel_exit_status(nc, (unsigned)luaL_optinteger(L, 2, 0) & 255);
  net_channel_finish(nc);
  hub_poke(hub_get(L));
  return 0;
}

/* caller:hold(whether): one without a channel of SSH's has enough for now: who sends it an item waits. */
static int hold(lua_State *L) {
  const caller *box = check(L);
  channel *c = box->channel;
  if (!c || c->net) return 0;
  c->held = lua_toboolean(L, 2);
  if (!c->held) channel_less_busy(c);
  hub_poke(hub_get(L));
  return 0;
}

/* caller:close(): of one without a channel of SSH's; what runs for it is cancelled. Not from within its handler `answer`. */
static int close_(lua_State *L) {
  hub *h = hub_get(L);
  caller *box = check(L);
  channel *c = box->channel;
  if (!c || c->net) return 0;
  LIST_REMOVE(c, link);
  request_orphan(c);
  channel_wake_senders(c, true);
  wire_buf_free(&c->senders);
  ref_drop(L, &c->peer);
  part(L, c);
  hub_poke(h);
  free(c);
  return 0;
}

int caller_new(lua_State *L) {
  server *s = luaL_checkudata(L, 1, KORV_SERVER);
  luaL_checktype(L, 2, LUA_TTABLE);
  luaL_checktype(L, 3, LUA_TTABLE);
  lua_settop(L, 3);
  channel *c = calloc(1, sizeof *c);
  if (!c) return luaL_error(L, "out of memory for a caller");
  c->server = s;
  c->peer = c->handlers = c->caller = LUA_NOREF;
  LIST_INIT(&c->requests);
  LIST_INSERT_HEAD(&s->channels, c, link);
  c->handlers = ref_take(L);
  c->peer = ref_take(L);
  push_caller(L, c);
  lua_pushvalue(L, -1);
  c->caller = ref_take(L);
  return 1;
}

void caller_open_type(lua_State *L) {
  static const luaL_Reg methods[] = {{"message", message}, {"write", write_}, {"read", read_}, {"finish", finish}, {"hold", hold},
                                     {"close", close_},     {NULL, NULL}};
  type_make(L, CALLER, methods, NULL);
}
