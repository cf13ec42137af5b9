/* What an endpoint may call of its request: it sends items, has its time limited, and asks what is left of it. Knows not how a request
 * begins and ends. */
#include "korv/server.h"

/* The request whose table is at index 1: most often the one whose task runs. */
static request *find(hub *h, lua_State *L) {
  const void *table = lua_topointer(L, 1);
  request *r = request_running(h);
  if (r && r->table == table) return r;
  LIST_FOREACH(r, &h->requests, live) {
    if (r->table == table) return r;
  }
  return NULL;
}

/* Behind the wait: what the wake brought, if anything, says that the client has gone. */
static int sent(lua_State *L, int status, lua_KContext top) {
  (void)status;
  if (lua_gettop(L) > (int)top) return lua_gettop(L) - (int)top;
  lua_pushboolean(L, true);
  return 1;
}

/* The peer reads slowly: go on when what is queued for it has drained. */
static int wait_to_send(lua_State *L, channel *c) {
  host_task *t = task_that_waits(L, 1);
  sender waiting = {t, host_task_ticket(c->server->hub->host, t, NULL, NULL)};
  if (wire_buf_append(&c->senders, &waiting, sizeof waiting) < 0) return luaL_error(L, "out of memory for a stream");
  host_task_wait(t);
  return lua_yieldk(L, 0, lua_gettop(L), sent);
}

static int send_item(lua_State *L, request *r) {
  host_json_error err;
  answer a = {.channel = r->channel, .id = r->id, .id_len = r->id_len, .encoding = r->encoding, .code = 200, .more = true};
  lua_settop(L, 2);
  if (!answer_send(&a, L, &err)) return luaL_error(L, "request:send: %s", err.text);
  r->bytes += a.bytes;
  hub_poke(r->server->hub);
  if (channel_is_clogged(r->channel)) return wait_to_send(L, r->channel);
  return sent(L, LUA_OK, lua_gettop(L));
}

static int gather_item(lua_State *L, request *r) {
  host_json_error err;
  host_json_limits limits = r->server->json;
  size_t begin = r->items.len;
  if (begin && wire_buf_append(&r->items, ",", 1) < 0) return luaL_error(L, "out of memory for a stream's items");
  limits.bytes = limits.bytes > begin ? limits.bytes - begin : 1;
  lua_settop(L, 2);
  if (host_json_encode(L, 2, "item", &limits, &r->items, &err) == 0) return sent(L, LUA_OK, 2);
  r->items.len = begin;
  if (!err.too_large) return luaL_error(L, "request:send: %s", err.text);
  return luaL_error(L, "request:send: the items are longer than max_response_bytes (%I) together: call this endpoint with stream = true",
                    (LUAI_UACINT)r->server->json.bytes);
}

/* send(request, item) -> true | nil, message, name: request:send. */
static int send_(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  request *r = find(hub_get(L), L);
  if (!r) return luaL_error(L, "request:send: this request has been answered already");
  if (!r->channel) return fail(L, "ECANCELED", "the client has gone");
  r->sent = true;
  return r->stream ? send_item(L, r) : gather_item(L, r);
}

/* remaining() -> seconds | nil: what is left to the request whose endpoint calls this. */
static int remaining(lua_State *L) {
  hub *h = hub_find(L);
  const request *r = request_running(h);
  if (!r || !r->deadline) return 0;
  uint64_t now = uv_now(h->loop);
  lua_pushnumber(L, r->due_ms > now ? (double)(r->due_ms - now) / 1000 : 0.001);
  return 1;
}

/* request_id() -> string | nil: the JSON text of the id of the request whose endpoint calls this. */
static int request_id(lua_State *L) {
  const request *r = request_running(hub_find(L));
  if (!r) return 0;
  lua_pushlstring(L, r->id, r->id_len);
  return 1;
}

/* deadline(request, seconds): it ends with 504 after so many seconds, unless it has to earlier. */
static int deadline(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  request *r = find(hub_get(L), L);
  if (r) request_set_deadline(r, luaL_checknumber(L, 2));
  return 0;
}

/* mark(slot): what the request that begins is counted under. Called for each, so it has to be quick. */
static int mark(lua_State *L) {
  const hub *h = *(hub **)lua_touserdata(L, lua_upvalueindex(1));
  if (h && h->beginning) h->beginning->slot = (size_t)lua_tointeger(L, 1);
  return 0;
}

void endpoint_open(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"send", send_}, {"deadline", deadline}, {"remaining", remaining}, {"request_id", request_id}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
  hub_push(L);
  lua_pushcclosure(L, mark, 1);
  lua_setfield(L, -2, "mark");
}
