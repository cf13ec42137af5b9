/* A request: from a message's fields to a coroutine that runs the app's handler, and from its end, whatever that is, to the answer. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "korv/server.h"

enum { ID, VERB, RESOURCE, BODY, TIMEOUT, STREAM, CANCEL, PARAMS, QUERY, SEND, FIELDS };

static const char unable[] = "Unable to process request", stopping[] = "The server is stopping";

/* ---- refusals ------------------------------------------------------------------------------------------------------------------------------ */

static void note_refused(channel *c, const answer *a, int table, size_t slot) {
  metrics_refused(&c->server->metrics, slot, a->code);
  access_refused(c, a, table);
}

void request_refuse(channel *c, wire_encoding encoding, int code, const char *message, const char *detail) {
  answer a = {.channel = c, .id = "0", .id_len = 1, .encoding = encoding, .code = code};
  answer_refuse(&a, message, detail);
  note_refused(c, &a, LUA_NOREF, SLOT_NO_REQUEST);
}

/* ---- the end of a request -------------------------------------------------------------------------------------------------------------- */

static void retire(request *r) {
  if (r->deadline) timer_stop(r->deadline);
  r->deadline = NULL;
  wire_buf_consume(&r->items, r->items.len);
  wire_buf_shrink(&r->items, 0);
  LIST_REMOVE(r, live);
  LIST_REMOVE(r, link);
  LIST_INSERT_HEAD(&r->server->spare, r, link);
  r->server->in_flight--;
  r->server->in_flight_bytes -= r->asked_bytes;
  generation_leave(r->generation);
  server_release(r->server);
}

/* Asks Lua for the answer to what went wrong: failed(kind, …) -> code, body; the body on top of L. nargs values are there already. */
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

/* The endpoint raised: its value is on top of co, whose stack still stands. Where there is no memory there is none for a traceback. */
static int after_error(server *s, lua_State *co, int status) {
  lua_State *L = s->hub->L;
  lua_pushliteral(L, "error");
  lua_xmove(co, L, 1);
  if (status != LUA_ERRMEM) luaL_traceback(L, co, NULL, 0);
  return ask_failed(s, status == LUA_ERRMEM ? 2 : 3);
}

/* It returned: at the bottom of co lies the request, above it what came back. Leaves the body on top of L. */
static int after_return(request *r, lua_State *co) {
  lua_State *L = r->server->hub->L;
  lua_settop(co, 3); /* the request, code, body */
  int is_code = lua_isinteger(co, 2);
  lua_Integer code = lua_tointeger(co, 2);
  if ((r->sent || r->stream) && lua_isnil(co, 2) && lua_isnil(co, 3)) is_code = true, code = 200; /* a stream may just end */
  if (is_code && code >= 100 && code <= 599) {
    lua_xmove(co, L, 1);
    return (int)code;
  }
  wire_buf_consume(&r->items, r->items.len); /* an error replaces them */
  lua_pushliteral(L, "result");
  lua_xmove(co, L, 3);
  return ask_failed(r->server, 4);
}

static int after_cancel(const request *r) {
  lua_State *L = r->server->hub->L;
  lua_createtable(L, 0, 1);
  if (r->cancel_code == 504)
    lua_pushfstring(L, "Timed out after %f s", r->seconds);
  else
    lua_pushstring(L, r->cancel_code == 503 ? stopping : "Cancelled");
  lua_setfield(L, -2, "message");
  return r->cancel_code;
}

/* The body has no JSON form, or too long a one. */
static int after_bad_body(server *s, const host_json_error *err) {
  lua_State *L = s->hub->L;
  lua_pushliteral(L, "body");
  lua_pushstring(L, err->text);
  lua_pushboolean(L, err->too_large);
  return ask_failed(s, 3);
}

/* Returns the code. */
static int answer_done(request *r, lua_State *co, int status) {
  server *s = r->server;
  host_json_error err;
  answer a = {.channel = r->channel, .id = r->id, .id_len = r->id_len, .encoding = r->encoding};
  a.code = status == LUA_OK ? after_return(r, co) : status == HOST_CANCELLED ? after_cancel(r) : after_error(s, co, status);
  if (status == LUA_OK && r->items.len) a.items = &r->items;
  if (!answer_send(&a, s->hub->L, &err)) {
    a.items = NULL;
    a.code = after_bad_body(s, &err);
    answer_send(&a, s->hub->L, &err);
  }
  r->bytes += a.bytes;
  return a.code;
}

static void on_done(void *owner, host_task *t, lua_State *co, int status, int nresults) {
  (void)t;
  request *r = owner;
  channel *c = r->channel;
  if (status == HOST_CANCELLED && nresults) hub_log_error(r->server->hub, co, "in a to-be-closed variable of a cancelled endpoint");
  int code = c ? answer_done(r, co, status) : 499;
  uint64_t ns = hub_clock(r->server->hub) - r->began_ns;
  metrics_request(&r->server->metrics, r->slot, code, ns);
  if (r->line != LUA_NOREF) access_answered(r, code, ns);
  retire(r);
  if (!c) return;
  c->in_flight--;
  channel_less_busy(c);
}

request *request_running(const hub *h) {
  const host_task *running = h ? host_task_running(h->host) : NULL;
  return running ? host_task_owner(running, on_done) : NULL;
}

/* ---- cancelling -------------------------------------------------------------------------------------------------------------------------- */

static void cancel(request *r, int code) {
  if (!r->cancel_code) r->cancel_code = code;
  host_task_cancel(r->server->hub->host, r->task);
}

void request_orphan(channel *c) {
  server *s = c->server;
  request *r;
  while ((r = LIST_FIRST(&c->requests))) {
    LIST_REMOVE(r, link);
    r->channel = NULL;
    if (s->hub->dead) { /* its coroutine never runs again */
      LIST_REMOVE(r, live);
      wire_buf_free(&r->items);
      free(r);
    } else {
      LIST_INSERT_HEAD(&s->orphans, r, link);
      cancel(r, 499);
    }
  }
}

void request_cancel_all(server *s, int code) {
  request *r;
  LIST_FOREACH(r, &s->hub->requests, live) { /* none ends within: that is host_run's */
    if (r->server == s) cancel(r, code);
  }
}

/* {"cancel": ID} has no answer of its own; each request of that id has its own, once it has stopped. */
static void cancel_by_id(channel *c, const host_span *id) {
  request *r;
  LIST_FOREACH(r, &c->requests, link) {
    if (r->id_len == id->len && memcmp(r->id, id->at, id->len) == 0) cancel(r, 499);
  }
}

static void on_deadline(void *arg, uint64_t number) {
  (void)number;
  request *r = arg;
  r->deadline = NULL;
  cancel(r, 504);
}

void request_set_deadline(request *r, double seconds) {
  if (!(seconds > 0) || (r->deadline && seconds >= r->seconds)) return;
  if (r->deadline) timer_stop(r->deadline);
  r->seconds = seconds;
  r->due_ms = uv_now(r->server->hub->loop) + (uint64_t)(fmin(seconds, 1e9) * 1000);
  r->deadline = timer_start(r->server->hub, seconds, on_deadline, r, 0);
}

/* ---- the beginning of a request ---------------------------------------------------------------------------------------------------------- */

/* A request that came in this turn began when the turn did, or when the one before it ended: the clock is asked once for each request. */
static uint64_t beginning(hub *h, bool is_queued) { return h->in_turn && !is_queued ? h->clock_ns : hub_clock(h); }

static request *take(channel *c, size_t asked_bytes, bool is_queued) {
  server *s = c->server;
  request *r = LIST_FIRST(&s->spare);
  if (r)
    LIST_REMOVE(r, link);
  else
    r = calloc(1, sizeof *r);
  if (!r) return NULL;
  r->channel = c;
  r->server = s;
  r->cancel_code = 0;
  r->stream = r->sent = false;
  r->bytes = 0;
  r->asked_bytes = asked_bytes;
  r->began_ns = beginning(s->hub, is_queued);
  LIST_INSERT_HEAD(&c->requests, r, link);
  LIST_INSERT_HEAD(&s->hub->requests, r, live);
  s->in_flight++;
  s->in_flight_bytes += asked_bytes;
  s->requests++;
  r->generation = generation_enter(s);
  return r;
}

/* What an answer to the message on top of L is counted under, where it does not get to the handler, which says so by core.mark. */
static size_t slot_of(const server *s) {
  lua_State *L = s->hub->L;
  if (s->slot == LUA_NOREF) return SLOT_NOTHING;
  lua_rawgeti(L, LUA_REGISTRYINDEX, s->slot);
  lua_pushvalue(L, -2);
  if (!hub_call(s->hub, 1, 1, "slot")) return SLOT_NOTHING;
  size_t slot = (size_t)lua_tointeger(L, -1);
  lua_pop(L, 1);
  return slot;
}

/* What endpoints find in a request besides the message's own fields is not the client's to say. */
static void drop_reserved(lua_State *L, const host_json_field *f) {
  for (int i = PARAMS; i <= SEND; i++) {
    if (!f[i].raw.at) continue;
    lua_pushnil(L);
    lua_setfield(L, -2, f[i].name);
  }
}

/* The message's table is on top of L (popped): it becomes the request that the handler gets. */
static void begin(channel *c, lua_State *L, const host_json_field *f, double timeout, const wire_message *m) {
  server *s = c->server;
  bool is_queued = !c->reader; /* a caller asks, out of Lua: what the endpoint computes is not that code's to answer for */
  int line = LUA_NOREF;
  drop_reserved(L, f);
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->peer);
  lua_setfield(L, -2, "peer");
  lua_rawgeti(L, LUA_REGISTRYINDEX, s->request_meta);
  lua_setmetatable(L, -2);
  size_t slot = is_queued ? slot_of(s) : SLOT_NOTHING;
  host_task *t = host_task_new(s->hub->host, L, on_done, NULL);
  if (s->answered != LUA_NOREF) lua_pushvalue(L, -1), line = ref_take(L);
  request *r = take(c, m->len, is_queued);
  if (!r) luaL_error(L, "out of memory for a request");
  r->task = t; /* and nothing raises any more, which would leave a request that nobody ends */
  host_task_set_owner(t, r);
  r->line = line;
  r->slot = slot;
  r->encoding = m->encoding;
  r->id_len = f[ID].raw.len;
  memcpy(r->id, f[ID].raw.at, f[ID].raw.len);
  r->stream = f[STREAM].type == LUA_TBOOLEAN && f[STREAM].raw.at[0] == 't';
  r->table = lua_topointer(L, -1);
  request_set_deadline(r, s->timeout);
  request_set_deadline(r, timeout);
  lua_pushvalue(L, -1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, r->generation->handler);
  lua_rotate(L, -2, 1);
  lua_xmove(L, host_task_state(r->task), 3); /* the request, which stays below for after_return; the handler; its argument */
  c->in_flight++;
  if (is_queued) {
    host_task_queue(s->hub->host, r->task, 1);
    return;
  }
  s->hub->beginning = r;
  host_task_begin(s->hub->host, r->task, L, 1);
  s->hub->beginning = NULL;
}

static bool is_verb(const host_span *raw) {
  static const char *const verbs[] = {"\"GET\"", "\"STORE\"", "\"UPDATE\"", "\"DELETE\""};
  for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
    if (raw->len == strlen(verbs[i]) && memcmp(raw->at, verbs[i], raw->len) == 0) return true;
  return false;
}

static bool needs_body(const host_span *raw) { return raw->at[1] == 'S' || raw->at[1] == 'U'; }

typedef struct fault {
  int code; /* 0: nothing is wrong */
  const char *message, *detail;
} fault;

static bool has_id(const host_json_field *f) {
  return f[ID].raw.at && f[ID].raw.len <= ID_BYTES && (f[ID].type == LUA_TNUMBER || f[ID].type == LUA_TSTRING);
}

/* The message's `timeout`; 0 where there is none or it is no number. */
static double read_timeout(lua_State *L, const host_json_field *f) {
  if (f[TIMEOUT].type != LUA_TNUMBER) return 0;
  lua_getfield(L, -1, "timeout");
  double seconds = lua_tonumber(L, -1);
  lua_pop(L, 1);
  return seconds;
}

/* What is wrong with the fields of part 1 of the protocol, looked at in its order. */
static fault find_fault(const host_json_field *f, double timeout) {
  if (!f[ID].raw.at) return (fault){400, "Missing 'id'", NULL};
  if (!has_id(f)) return (fault){400, unable, "'id' must be a number or a string of at most 256 bytes"};
  if (!f[VERB].raw.at) return (fault){400, "Missing 'verb'", NULL};
  if (f[VERB].type != LUA_TSTRING) return (fault){400, unable, "'verb' must be a string"};
  if (!f[RESOURCE].raw.at) return (fault){400, "Missing 'resource'", NULL};
  if (f[RESOURCE].type != LUA_TSTRING) return (fault){400, unable, "'resource' must be a string"};
  if (!is_verb(&f[VERB].raw)) return (fault){404, NULL, NULL}; /* as a resource that nobody knows */
  if (needs_body(&f[VERB].raw) && !f[BODY].raw.at) return (fault){400, "Missing 'body'", NULL};
  if (f[TIMEOUT].raw.at && !(timeout > 0)) return (fault){400, unable, "'timeout' must be a positive number of seconds"};
  if (f[STREAM].raw.at && f[STREAM].type != LUA_TBOOLEAN) return (fault){400, unable, "'stream' must be true or false"};
  return (fault){0, NULL, NULL};
}

static bool is_cancel(const host_json_field *f) { return f[CANCEL].raw.at && !f[VERB].raw.at; }

/* What the server cannot take in now. Whatever the limit of bytes, one message at a time is taken: how large it may be has another. */
static fault find_limit(const server *s, size_t bytes) {
  if (s->draining) return (fault){503, stopping, NULL};
  if (s->in_flight >= s->in_flight_most) return (fault){503, "Too many requests in flight on this server", NULL};
  if (s->in_flight_bytes > 0 && s->in_flight_bytes + bytes > s->in_flight_bytes_most)
    return (fault){503, "Too many bytes of requests in flight on this server", NULL};
  return (fault){0, NULL, NULL};
}

/* The message is a table on top of L (popped) whose fields are f. */
static void read_fields(channel *c, lua_State *L, const host_json_field *f, const wire_message *m) {
  if (is_cancel(f)) {
    lua_pop(L, 1);
    cancel_by_id(c, &f[CANCEL].raw);
    return;
  }
  double timeout = read_timeout(L, f);
  fault wrong = find_fault(f, timeout);
  if (!wrong.code) wrong = find_limit(c->server, m->len);
  if (!wrong.code) {
    begin(c, L, f, timeout, m);
    return;
  }
  bool is_request = f[VERB].type == LUA_TSTRING && f[RESOURCE].type == LUA_TSTRING;
  size_t slot = is_request ? slot_of(c->server) : SLOT_NO_REQUEST;
  int table = is_request ? ref_take(L) : LUA_NOREF;
  if (!is_request) lua_pop(L, 1);
  answer a = {.channel = c, .id = "0", .id_len = 1, .encoding = m->encoding, .code = wrong.code};
  if (has_id(f)) a.id = f[ID].raw.at, a.id_len = f[ID].raw.len;
  answer_refuse(&a, wrong.message, wrong.detail);
  note_refused(c, &a, table, slot);
  ref_drop(L, &table);
}

static bool is_object(const wire_message *m) {
  size_t i = 0;
  while (i < m->len && strchr(" \t\r\n", m->text[i])) i++;
  return i < m->len && m->text[i] == '{';
}

/* The message's value is left on top of L, where it is JSON. */
static bool decode(channel *c, const wire_message *m, host_json_field fields[FIELDS], host_json_error *err) {
#define NAMED(text) {.name = (text), .name_len = sizeof(text) - 1}
  static const host_json_field named[FIELDS] = {
      [ID] = NAMED("id"), [VERB] = NAMED("verb"), [RESOURCE] = NAMED("resource"), [BODY] = NAMED("body"), [TIMEOUT] = NAMED("timeout"),
      [STREAM] = NAMED("stream"), [CANCEL] = NAMED("cancel"), [PARAMS] = NAMED("params"), [QUERY] = NAMED("query"), [SEND] = NAMED("send"),
  };
#undef NAMED
  memcpy(fields, named, sizeof named);
  return host_json_decode(c->server->hub->L, m->text, m->len, &c->server->json, fields, FIELDS, err) == 0;
}

void request_read(channel *c, const wire_message *m) {
  lua_State *L = c->server->hub->L;
  host_json_error err;
  host_json_field fields[FIELDS];
  if (!decode(c, m, fields, &err)) {
    request_refuse(c, m->encoding, 400, unable, err.text);
  } else if (is_object(m)) {
    read_fields(c, L, fields, m);
  } else {
    lua_pop(L, 1);
    request_refuse(c, m->encoding, 400, unable, "a message is a JSON object");
  }
}

/* Most messages lack the word, and need not be decoded for this; it may be spelled with escapes. */
bool request_cancel(channel *c, const wire_message *m) {
  host_json_error err;
  host_json_field fields[FIELDS];
  bool may_be_one = memmem(m->text, m->len, "cancel", 6) || memchr(m->text, '\\', m->len);
  if (!may_be_one || !decode(c, m, fields, &err)) return false;
  lua_pop(c->server->hub->L, 1);
  if (!is_cancel(fields)) return false;
  cancel_by_id(c, &fields[CANCEL].raw);
  return true;
}
