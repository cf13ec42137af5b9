/* Answers: from a code and a Lua value to a message in the channel's output, in the encoding that was asked in. */
#include <string.h>

#include "korv/server.h"

enum { SCRATCH_BYTES = 65536 }; /* kept between messages */

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
  int rc = WIRE_OK;
  if (encoding == WIRE_GZIP) {
    rc = wire_gzip(h->codec, net_channel_out(c->net), wire_buf_at(&h->scratch), h->scratch.len);
    wire_buf_consume(&h->scratch, h->scratch.len);
    wire_buf_shrink(&h->scratch, SCRATCH_BYTES);
  }
  if (rc == WIRE_OK)
    net_channel_commit(c->net, encoding == WIRE_GZIP);
  else
    net_channel_abort(c->net); /* no memory for the answer */
}

static int too_long_together(host_json_error *err) {
  *err = (host_json_error){"the items that it sent and its body are longer than max_response_bytes together: call this endpoint with stream = true",
                           true};
  return -1;
}

/* Appends the value on top of L, or the items gathered and that value behind them unless it is nil. 0, or -1 with *err filled. */
int answer_append_body(lua_State *L, const wire_buf *items, host_json_limits limits, wire_buf *out, host_json_error *err) {
  if (!items) return host_json_encode(L, -1, "body", &limits, out, err);
  if (items->len + 2 > limits.bytes) return too_long_together(err);
  limits.bytes -= items->len + 2;
  bool room = wire_buf_append(out, "[", 1) == WIRE_OK && wire_buf_append(out, wire_buf_at(items), items->len) == WIRE_OK;
  if (room && !lua_isnil(L, -1)) {
    room = wire_buf_append(out, ",", 1) == WIRE_OK;
    if (room && host_json_encode(L, -1, "body", &limits, out, err) < 0) return err->too_large ? too_long_together(err) : -1;
  }
  if (room && wire_buf_append(out, "]", 1) == WIRE_OK) return 0;
  *err = (host_json_error){"out of memory for the body", false};
  return -1;
}

bool answer_send(answer *a, lua_State *L, host_json_error *err) {
  channel *c = a->channel;
  if (c->handlers != LUA_NOREF) return caller_answer(a, L, err);
  wire_buf *out = draft_of(c, a->encoding);
  size_t begin = out->len;
  bool room = append_head(c->server->hub, out, a->id, a->id_len, a->code);
  bool encoded = room && answer_append_body(L, a->items, c->server->json, out, err) == 0;
  lua_pop(L, 1);
  if (encoded && a->more) room = wire_buf_append(out, ",\"more\":true", 12) == WIRE_OK;
  if (encoded && room) room = wire_buf_append(out, "}\n", a->encoding == WIRE_LINE ? 2 : 1) == WIRE_OK;
  a->bytes = encoded ? out->len - begin : 0;
  hub_burst(c->server->hub, a->bytes);
  if (!room)
    net_channel_abort(c->net); /* no memory for the answer */
  else if (encoded)
    send_draft(c, a->encoding);
  else
    out->len = begin;
  return encoded || !room;
}

void answer_refuse(answer *a, const char *message, const char *detail) {
  lua_State *L = a->channel->server->hub->L;
  host_json_error err;
  if (message) {
    lua_createtable(L, 0, 2);
    lua_pushstring(L, message);
    lua_setfield(L, -2, "message");
    if (detail) lua_pushstring(L, detail), lua_setfield(L, -2, "detail");
  } else {
    lua_pushnil(L);
  }
  answer_send(a, L, &err);
}
