/* A request: from a message's fields to a coroutine that runs the app's handler, and from what that returns to the answer. */
#include <stdlib.h>
#include <string.h>

#include "korv/server.h"

enum { ID, VERB, RESOURCE, BODY, FIELDS };

/* ---- answers ------------------------------------------------------------------------------------------------------------------------- */

static char *put(char *at, const char *bytes, size_t len) { return (char *)memcpy(at, bytes, len) + len; }

#define PUT(at, literal) put(at, literal, sizeof(literal) - 1)

/* {"id":NOW,"request_id":ID,"code":CODE,"body": — the rest of the object is the caller's. False: no memory. */
static bool append_head(hub *h, wire_buf *out, const char *id, size_t id_len, int code) {
  enum { FIXED_BYTES = 64 };
  char *begin = wire_buf_reserve(out, FIXED_BYTES + h->time_len + id_len), *at = begin;
  if (!begin) return false;
  const char digits[] = {(char)('0' + code / 100), (char)('0' + code / 10 % 10), (char)('0' + code % 10)};
  at = put(PUT(at, "{\"id\":"), h->time, h->time_len);
  at = put(PUT(at, ",\"request_id\":"), id, id_len);
  at = put(PUT(at, ",\"code\":"), digits, sizeof digits);
  at = PUT(at, ",\"body\":");
  wire_buf_commit(out, (size_t)(at - begin));
  return true;
}

/* Where an answer is put together: lines in place, what becomes a gzip member beside it. */
static wire_buf *draft_of(channel *c, wire_encoding encoding) {
  hub *h = c->server->hub;
  if (encoding == WIRE_LINE) return net_channel_out(c->net);
  wire_buf_consume(&h->scratch, h->scratch.len);
  return &h->scratch;
}

static void send_draft(channel *c, wire_encoding encoding) {
  hub *h = c->server->hub;
  wire_buf *out = net_channel_out(c->net);
  int rc = 0;
  if (encoding == WIRE_GZIP) {
    rc = wire_gzip(h->codec, out, wire_buf_at(&h->scratch), h->scratch.len);
    wire_buf_consume(&h->scratch, h->scratch.len);
    wire_buf_shrink(&h->scratch, 65536);
  }
  if (rc < 0)
    net_channel_abort(c->net); /* no memory for the answer */
  else
    net_channel_commit(c->net, encoding == WIRE_GZIP);
}

/* Encodes the value on top of L (popped) as the body of an answer and sends it. False: it has no JSON form, *err says why and nothing
 * was sent. */
static bool answer(channel *c, lua_State *L, const char *id, size_t id_len, wire_encoding encoding, int code, host_json_error *err) {
  wire_buf *out = draft_of(c, encoding);
  size_t begin = out->len;
  bool room = append_head(c->server->hub, out, id, id_len, code);
  bool encoded = room && host_json_encode(L, -1, "body", &c->server->json, out, err) == 0;
  lua_pop(L, 1);
  if (encoded) room = wire_buf_append(out, "}\n", encoding == WIRE_LINE ? 2 : 1) == WIRE_OK;
  if (!room)
    net_channel_abort(c->net); /* no memory for the answer */
  else if (encoded)
    send_draft(c, encoding);
  else
    out->len = begin;
  return encoded || !room;
}

static void refuse(channel *c, const char *id, size_t id_len, wire_encoding encoding, int code, const char *message, const char *detail) {
  lua_State *L = c->server->hub->L;
  host_json_error err;
  if (message) {
    lua_createtable(L, 0, 2);
    lua_pushstring(L, message);
    lua_setfield(L, -2, "message");
    if (detail) lua_pushstring(L, detail), lua_setfield(L, -2, "detail");
  } else {
    lua_pushnil(L);
  }
  answer(c, L, id, id_len, encoding, code, &err);
}

void request_refuse(channel *c, wire_encoding encoding, int code, const char *message, const char *detail) {
  refuse(c, "0", 1, encoding, code, message, detail);
}

/* ---- the end of a request -------------------------------------------------------------------------------------------------------------- */

static void retire(request *r, server *s) {
  LIST_REMOVE(r, link);
  LIST_INSERT_HEAD(&s->spare, r, link);
}

/* Asks Lua for the answer to what went wrong: failed(kind, …) -> code, body, on top of L. nargs values are there already. */
static int ask_failed(server *s, int nargs) {
  lua_State *L = s->hub->L;
  lua_rawgeti(L, LUA_REGISTRYINDEX, s->failed);
  lua_insert(L, -nargs - 1);
  if (hub_call(s->hub, nargs, 2, "failed")) {
    int is_code;
    lua_Integer code = lua_tointegerx(L, -2, &is_code);
    lua_remove(L, -2);
    if (is_code && code >= 100 && code <= 599) return (int)code;
    lua_pop(L, 1);
  }
  lua_pushnil(L);
  return 500;
}

/* The endpoint raised: its value is on top of co, whose stack still stands. */
static int after_error(server *s, lua_State *co) {
  lua_State *L = s->hub->L;
  lua_pushliteral(L, "error");
  lua_xmove(co, L, 1);
  luaL_traceback(L, co, NULL, 0);
  return ask_failed(s, 3);
}

/* It returned: at the bottom of co lies the request, above it what came back. Leaves the body on top of L. */
static int after_return(server *s, lua_State *co, int nresults) {
  lua_State *L = s->hub->L;
  lua_settop(co, 3); /* the request, code, body */
  (void)nresults;
  int is_code = lua_isinteger(co, 2);
  lua_Integer code = lua_tointeger(co, 2);
  if (is_code && code >= 100 && code <= 599) {
    lua_xmove(co, L, 1);
    return (int)code;
  }
  lua_pushliteral(L, "result");
  lua_xmove(co, L, 3);
  return ask_failed(s, 4);
}

/* The body has no JSON form, or too long a one. */
static int after_bad_body(server *s, const host_json_error *err) {
  lua_State *L = s->hub->L;
  lua_pushliteral(L, "body");
  lua_pushstring(L, err->text);
  lua_pushboolean(L, err->too_large);
  return ask_failed(s, 3);
}

static void on_done(void *owner, host_task *t, lua_State *co, int status, int nresults) {
  (void)t;
  request *r = owner;
  server *s = r->server;
  channel *c = r->channel;
  host_json_error err;
  if (c) {
    int code = status == LUA_OK ? after_return(s, co, nresults) : after_error(s, co);
    if (!answer(c, s->hub->L, r->id, r->id_len, r->encoding, code, &err)) {
      code = after_bad_body(s, &err);
      answer(c, s->hub->L, r->id, r->id_len, r->encoding, code, &err);
    }
    c->in_flight--;
  }
  retire(r, s);
  if (c) channel_less_busy(c);
}

void request_orphan(channel *c) {
  server *s = c->server;
  request *r;
  while ((r = LIST_FIRST(&c->requests))) {
    LIST_REMOVE(r, link);
    r->channel = NULL;
    if (s->hub->dead)
      free(r); /* its coroutine never runs again */
    else
      LIST_INSERT_HEAD(&s->orphans, r, link);
  }
}

/* ---- the beginning of a request ---------------------------------------------------------------------------------------------------------- */

static request *take(channel *c) {
  request *r = LIST_FIRST(&c->server->spare);
  if (r)
    LIST_REMOVE(r, link);
  else
    r = malloc(sizeof *r);
  if (!r) return NULL;
  r->channel = c;
  r->server = c->server;
  LIST_INSERT_HEAD(&c->requests, r, link);
  return r;
}

/* The message's table is on top of L (popped): it becomes the request that the handler gets. */
static void begin(channel *c, lua_State *L, const host_span *id, wire_encoding encoding) {
  server *s = c->server;
  request *r = take(c);
  if (!r) luaL_error(L, "out of memory for a request");
  r->encoding = encoding;
  r->id_len = id->len;
  memcpy(r->id, id->at, id->len);
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->peer);
  lua_setfield(L, -2, "peer");
  lua_rawgeti(L, LUA_REGISTRYINDEX, s->request_meta);
  lua_setmetatable(L, -2);
  host_task *t = host_task_new(s->hub->host, L, on_done, r);
  lua_State *co = host_task_state(t);
  lua_pushvalue(L, -1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, s->handler);
  lua_rotate(L, -2, 1);
  lua_xmove(L, co, 3); /* the request, which stays below for after_return; the handler; its argument */
  c->in_flight++;
  host_task_begin(s->hub->host, t, L, 1);
}

static bool is_verb(const host_span *raw) {
  static const char *const verbs[] = {"\"GET\"", "\"STORE\"", "\"UPDATE\"", "\"DELETE\""};
  for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
    if (raw->len == strlen(verbs[i]) && memcmp(raw->at, verbs[i], raw->len) == 0) return true;
  return false;
}

static bool needs_body(const host_span *raw) { return raw->at[1] == 'S' || raw->at[1] == 'U'; }

typedef struct fault {
  const char *message, *detail;
} fault;

static const char unable[] = "Unable to process request";

static bool has_id(const host_json_field *f) {
  return f[ID].raw.at && f[ID].raw.len <= ID_BYTES && (f[ID].type == LUA_TNUMBER || f[ID].type == LUA_TSTRING);
}

/* What is wrong with the fields, looked at in the order of part 1 of the protocol. message NULL: nothing. */
static fault find_fault(const host_json_field *f) {
  if (!f[ID].raw.at) return (fault){"Missing 'id'", NULL};
  if (!has_id(f)) return (fault){unable, "'id' must be a number or a string of at most 256 bytes"};
  if (!f[VERB].raw.at) return (fault){"Missing 'verb'", NULL};
  if (f[VERB].type != LUA_TSTRING) return (fault){unable, "'verb' must be a string"};
  if (!f[RESOURCE].raw.at) return (fault){"Missing 'resource'", NULL};
  if (f[RESOURCE].type != LUA_TSTRING) return (fault){unable, "'resource' must be a string"};
  if (is_verb(&f[VERB].raw) && needs_body(&f[VERB].raw) && !f[BODY].raw.at) return (fault){"Missing 'body'", NULL};
  return (fault){NULL, NULL};
}

/* The message is a table on top of L (popped) whose fields are f. */
static void read_fields(channel *c, lua_State *L, const host_json_field *f, wire_encoding encoding) {
  fault wrong = find_fault(f);
  host_span id = has_id(f) ? f[ID].raw : (host_span){"0", 1};
  if (!wrong.message && is_verb(&f[VERB].raw)) {
    begin(c, L, &id, encoding);
    return;
  }
  lua_pop(L, 1);
  /* a verb that nobody knows is answered like a resource that nobody knows */
  refuse(c, id.at, id.len, encoding, wrong.message ? 400 : 404, wrong.message, wrong.detail);
}

static bool is_object(const wire_message *m) {
  size_t i = 0;
  while (i < m->len && strchr(" \t\r\n", m->text[i])) i++;
  return i < m->len && m->text[i] == '{';
}

void request_read(channel *c, const wire_message *m) {
  lua_State *L = c->server->hub->L;
  host_json_error err;
  host_json_field fields[FIELDS] = {{.name = "id", .name_len = 2}, {.name = "verb", .name_len = 4}, {.name = "resource", .name_len = 8},
                                    {.name = "body", .name_len = 4}};
  if (host_json_decode(L, m->text, m->len, &c->server->json, fields, FIELDS, &err) < 0) {
    request_refuse(c, m->encoding, 400, unable, err.text);
  } else if (is_object(m)) {
    read_fields(c, L, fields, m->encoding);
  } else {
    lua_pop(L, 1);
    request_refuse(c, m->encoding, 400, unable, "a message is a JSON object");
  }
}
