/* What a server counts: its answers, by endpoint and code, how long they took, and how late its loop runs. The counting is on the way of
 * every request, so it takes no more than a few loads and stores; what it adds up to is put into tables only when somebody asks. Knows an
 * endpoint by its slot, a number; which one that is, and what all of this looks like from outside, is Lua's (lua/korv/metrics.lua). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "korv/server.h"

enum { BUCKETS = 17, CODES = 8, CLASSES = 5, SLOTS_MOST = 4096, PULSES = 120 /* in a period */ };

static const double PULSE_S = 0.5;

static const uint64_t MS = 1000000;

/* The last bucket has no bound. */
static const uint64_t bounds_us[BUCKETS - 1] = {100,   250,    500,    1000,   2500,    5000,    10000,   25000,
                                                50000, 100000, 250000, 500000, 1000000, 2500000, 5000000, 10000000};

struct endpoint_metrics {
  struct {
    int code; /* 0: free, and so are those behind it */
    uint64_t count;
  } codes[CODES];
  uint64_t classes[CLASSES]; /* of the codes that found no place: 1xx to 5xx */
  uint64_t buckets[BUCKETS];
  uint64_t ns;
};

/* ---- counting ------------------------------------------------------------------------------------------------------------------------ */

/* Makes room for a slot. */
static bool grow(metrics *m, size_t slot) {
  if (slot >= SLOTS_MOST) return false;
  size_t count = m->count ? m->count : 16;
  while (count <= slot) count *= 2;
  endpoint_metrics *more = realloc(m->endpoints, count * sizeof *more);
  if (!more) return false;
  memset(more + m->count, 0, (count - m->count) * sizeof *more);
  m->endpoints = more;
  m->count = count;
  return true;
}

static void count(endpoint_metrics *e, int code) {
  size_t i = 0;
  while (i < CODES && e->codes[i].code != code && e->codes[i].code) i++;
  if (i == CODES) {
    e->classes[code / 100 - 1]++;
    return;
  }
  e->codes[i].code = code;
  e->codes[i].count++;
}

void metrics_request(metrics *m, size_t slot, int code, uint64_t ns) {
  if (slot >= m->count && !grow(m, slot)) return;
  endpoint_metrics *e = &m->endpoints[slot];
  count(e, code);
  size_t i = 0;
  while (i < BUCKETS - 1 && ns > bounds_us[i] * 1000) i++;
  e->buckets[i]++;
  e->ns += ns;
}

void metrics_refused(metrics *m, size_t slot, int code) {
  if (slot < m->count || grow(m, slot)) count(&m->endpoints[slot], code);
}

/* ---- the loop's lag ---------------------------------------------------------------------------------------------------------------------- */

static void on_pulse(void *arg, uint64_t number);

/* Aside: it does not keep the loop running. */
static void start_pulse(server *s) {
  metrics *m = &s->metrics;
  m->pulse = timer_start(s->hub, PULSE_S, on_pulse, s, 0);
  if (m->pulse) uv_unref((uv_handle_t *)&m->pulse->uv);
  m->due_ns = uv_hrtime() + (uint64_t)(PULSE_S * 1e9);
}

static void on_pulse(void *arg, uint64_t number) {
  (void)number;
  server *s = arg;
  metrics *m = &s->metrics;
  uint64_t now = uv_hrtime();
  m->lag_ns = now > m->due_ns + MS ? now - m->due_ns : 0; /* the loop's clock ticks in milliseconds */
  if (m->lag_ns > m->most_lag_ns[0]) m->most_lag_ns[0] = m->lag_ns;
  if (++m->pulses == PULSES) {
    m->pulses = 0;
    m->most_lag_ns[1] = m->most_lag_ns[0];
    m->most_lag_ns[0] = 0;
  }
  start_pulse(s);
}

void metrics_begin(server *s) { start_pulse(s); }

void metrics_end(server *s) {
  if (s->metrics.pulse) timer_stop(s->metrics.pulse);
  s->metrics.pulse = NULL;
}

void metrics_free(metrics *m) {
  free(m->endpoints);
  m->endpoints = NULL;
  m->count = 0;
}

/* ---- for Lua --------------------------------------------------------------------------------------------------------------------------- */

static void set_integer(lua_State *L, const char *name, uint64_t value) {
  lua_pushinteger(L, (lua_Integer)value);
  lua_setfield(L, -2, name);
}

static void set_seconds(lua_State *L, const char *name, uint64_t ns) {
  lua_pushnumber(L, (double)ns / 1e9);
  lua_setfield(L, -2, name);
}

/* By code as text, "404", or by class, "4xx". */
static void push_codes(lua_State *L, const endpoint_metrics *e) {
  char name[16];
  lua_createtable(L, 0, 2);
  for (size_t i = 0; i < CODES && e->codes[i].code; i++) {
    snprintf(name, sizeof name, "%d", e->codes[i].code);
    set_integer(L, name, e->codes[i].count);
  }
  for (int i = 0; i < CLASSES; i++) {
    snprintf(name, sizeof name, "%dxx", i + 1);
    if (e->classes[i]) set_integer(L, name, e->classes[i]);
  }
}

static void push_endpoint(lua_State *L, const endpoint_metrics *e) {
  lua_createtable(L, 0, 3);
  push_codes(L, e);
  lua_setfield(L, -2, "codes");
  lua_createtable(L, BUCKETS, 0);
  for (int i = 0; i < BUCKETS; i++) {
    lua_pushinteger(L, (lua_Integer)e->buckets[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "buckets");
  set_seconds(L, "seconds", e->ns);
}

/* By slot: those that were used. */
static void push_endpoints(lua_State *L, const metrics *m) {
  lua_newtable(L);
  for (size_t slot = 0; slot < m->count; slot++) {
    if (!m->endpoints[slot].codes[0].code) continue;
    push_endpoint(L, &m->endpoints[slot]);
    lua_rawseti(L, -2, (lua_Integer)slot);
  }
}

int metrics_push(lua_State *L) {
  const server *s = luaL_checkudata(L, 1, KORV_SERVER);
  const metrics *m = &s->metrics;
  net_traffic traffic = s->listener ? net_listener_traffic(s->listener) : (net_traffic){0};
  lua_createtable(L, 0, 10);
  set_integer(L, "connections", s->listener ? net_listener_sessions(s->listener) : 0);
  set_integer(L, "connections_accepted", traffic.sessions);
  set_integer(L, "bytes_received", traffic.in_bytes);
  set_integer(L, "bytes_sent", traffic.out_bytes);
  set_integer(L, "in_flight", s->in_flight);
  set_integer(L, "requests", s->requests);
  set_integer(L, "log_lines_dropped", s->hub->log.dropped_ever);
  set_seconds(L, "loop_lag", m->lag_ns);
  set_seconds(L, "loop_lag_max", m->most_lag_ns[m->most_lag_ns[1] > m->most_lag_ns[0]]);
  push_endpoints(L, m);
  lua_setfield(L, -2, "endpoints");
  return 1;
}

void metrics_open(lua_State *L) {
  lua_createtable(L, BUCKETS - 1, 0);
  for (int i = 0; i < BUCKETS - 1; i++) {
    lua_pushnumber(L, (double)bounds_us[i] / 1e6);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "duration_bounds");
}
