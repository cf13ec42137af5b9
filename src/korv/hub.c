/* The hub: one for each Lua state. It borrows luv's loop and gives each of its iterations a turn: report what came in, resume what is
 * ready, write what is due. All Lua that korv runs from the loop runs in a turn, protected, on a thread of the hub's own. */
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "korv/korv.h"

static const char HUB[] = "korv.hub";
static const char LOG[] = "korv.log";

enum { REST_MS = 1000, SMALL_KB = 65536 };

/* ---- a turn ------------------------------------------------------------------------------------------------------------------------ */

/* Seconds with six digits behind the point: a JSON float, as the first korv's clock was. In a turn of the same second only those change. */
static void tell_time(hub *h) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (now.tv_sec != h->second) h->time_len = (size_t)snprintf(h->time, sizeof h->time, "%lld.000000", (long long)now.tv_sec);
  h->second = now.tv_sec;
  char *end = h->time + h->time_len;
  long micros = now.tv_nsec / 1000;
  for (int i = 1; i <= 6; i++, micros /= 10) end[-i] = (char)('0' + micros % 10);
}

uint64_t hub_clock(hub *h) { return h->clock_ns = uv_hrtime(); }

static int turn_protected(lua_State *L) {
  hub *h = lua_touserdata(L, 1);
  tell_time(h);
  hub_clock(h);
  bool more = net_report(h->net);
  more |= net_flush(h->net); /* answers do not wait for what the tasks compute */
  more |= host_run(h->host, L);
  more |= net_flush(h->net);
  lua_pushboolean(L, more);
  return 1;
}

static void on_idle(uv_idle_t *handle) { (void)handle; }

static void stay_awake(hub *h, bool awake) {
  if (awake)
    uv_idle_start(&h->idle, on_idle);
  else
    uv_idle_stop(&h->idle);
}

/* While messages of megabytes come and go, the allocator is to keep their pages, in place of mapping, clearing and giving back new ones for
 * each: with the bounds that glibc comes to by itself once it has freed a block of 32 MiB. Else it has those that it begins with. */
static void keep_pages(bool keep) {
  enum { KIB = 1024, MIB = 1024 * KIB };
  mallopt(M_MMAP_THRESHOLD, keep ? 32 * MIB : 128 * KIB);
  mallopt(M_TRIM_THRESHOLD, keep ? 64 * MIB : 128 * KIB);
}

/* Garbage and free pages that large messages left behind would stay until the next burst: Lua collects only as it allocates, and the
 * allocator keeps what it once had. A program with much in memory is collected only where half of that may be garbage: it is not to be
 * held up for little. */
static void on_rest(uv_timer_t *handle) {
  hub *h = (hub *)(void *)((char *)handle - offsetof(hub, rest));
  int kb = lua_gc(h->L, LUA_GCCOUNT);
  if (kb < SMALL_KB || kb >= 2 * h->rested_kb) {
    lua_gc(h->L, LUA_GCCOLLECT);
    h->rested_kb = lua_gc(h->L, LUA_GCCOUNT);
  }
  wire_codec_trim(h->codec);
  keep_pages(false);
  malloc_trim(0);
}

void hub_burst(hub *h, size_t bytes) {
  h->burst_bytes += bytes;
  if (h->burst_bytes < BURST_BYTES || h->dead) return;
  h->burst_bytes = 0;
  if (!uv_is_active((uv_handle_t *)&h->rest)) keep_pages(true);
  uv_timer_start(&h->rest, on_rest, REST_MS, 0);
}

/* For want of memory: all else that is called in a turn is protected. */
static void turn_failed(hub *h) {
  h->beginning = NULL;
  net_report_broken_off(h->net);
  hub_log(h, "error", "a turn of the loop failed: %s", lua_tostring(h->L, -1));
}

static void turn(hub *h) {
  if (h->in_turn || h->dead) return;
  h->in_turn = true;
  lua_pushcfunction(h->L, turn_protected);
  lua_pushlightuserdata(h->L, h);
  bool more = true;
  if (lua_pcall(h->L, 1, 1, 0) == LUA_OK)
    more = lua_toboolean(h->L, -1);
  else
    turn_failed(h);
  lua_settop(h->L, 0);
  h->in_turn = false;
  stay_awake(h, more);
}

static bool has_work(const hub *h) { return net_pending(h->net) || host_pending(h->host); }

static void on_prepare(uv_prepare_t *handle) {
  hub *h = (hub *)(void *)((char *)handle - offsetof(hub, prepare));
  if (has_work(h)) turn(h);
  log_flush(h);
}

static void on_check(uv_check_t *handle) {
  hub *h = (hub *)(void *)((char *)handle - offsetof(hub, check));
  if (has_work(h)) turn(h);
  log_flush(h);
}

void hub_poke(hub *h) {
  if (!h->in_turn && !h->dead && has_work(h)) stay_awake(h, true);
}

/* ---- Lua from C -------------------------------------------------------------------------------------------------------------------- */

static int with_traceback(lua_State *L) {
  const char *message = luaL_tolstring(L, 1, NULL);
  luaL_traceback(L, L, message, 1);
  return 1;
}

bool hub_call(hub *h, int nargs, int nresults, const char *where) {
  lua_State *L = h->L;
  int handler = lua_gettop(L) - nargs;
  lua_pushcfunction(L, with_traceback);
  lua_insert(L, handler);
  bool ok = host_pcall(h->host, L, nargs, nresults, handler) == LUA_OK;
  if (!ok) {
    hub_log(h, "error", "%s: %s", where, lua_tostring(L, -1));
    lua_pop(L, 1);
  }
  lua_remove(L, handler);
  return ok;
}

static int tell_log(lua_State *L) {
  const char *const *words = lua_touserdata(L, 1);
  lua_getfield(L, LUA_REGISTRYINDEX, LOG);
  lua_pushstring(L, words[0]);
  lua_pushstring(L, words[1]);
  lua_call(L, 2, 0);
  return 0;
}

/* core.log is Lua's: function(level, message). Where it is missing or fails, a plain line has to do. */
void hub_log(hub *h, const char *level, const char *format, ...) {
  char text[2048], line[sizeof text + 32];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  const char *words[] = {level, text};
  lua_pushcfunction(h->L, tell_log);
  lua_pushlightuserdata(h->L, words);
  if (host_pcall(h->host, h->L, 1, 0, 0) == LUA_OK) return;
  lua_pop(h->L, 1);
  log_line(h, line, (size_t)snprintf(line, sizeof line, "korv: %s: %s", level, text));
}

static int to_text(lua_State *L) {
  luaL_tolstring(L, 1, NULL);
  return 1;
}

const char *hub_text(hub *h) {
  lua_pushcfunction(h->L, to_text);
  lua_insert(h->L, -2);
  if (host_pcall(h->host, h->L, 1, 1, 0) == LUA_OK) return lua_tostring(h->L, -1);
  lua_pop(h->L, 1);
  return lua_pushliteral(h->L, "an error whose __tostring fails");
}

void hub_log_error(hub *h, lua_State *co, const char *where) {
  lua_xmove(co, h->L, 1);
  hub_log(h, "error", "%s: %s", where, hub_text(h));
  lua_pop(h->L, 1);
}

static int set_log(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  lua_setfield(L, LUA_REGISTRYINDEX, LOG);
  return 0;
}

/* cpu_limit([seconds]): of this thread's CPU between two waits of a task, and in a callback; none or 0: any. */
static int cpu_limit(lua_State *L) {
  int rc = host_cpu_limit(hub_get(L)->host, luaL_optnumber(L, 1, 0));
  return rc < 0 ? luaL_error(L, "cpu_limit cannot be set: %s", strerror(-rc)) : 0;
}

/* In luv's own words an error in a callback ends the process; in a server it must not. */
static int luv_callback(lua_State *L, int nargs, int nresults, int flags) {
  (void)flags;
  int top = lua_gettop(L) - nargs; /* where the function is */
  lua_pushcfunction(L, with_traceback);
  lua_insert(L, top);
  hub *h = hub_find(L); /* NULL: the state closes */
  int status = h ? host_pcall(h->host, L, nargs, nresults, top) : lua_pcall(L, nargs, nresults, top);
  lua_remove(L, top);
  if (status == LUA_OK) return nresults == LUA_MULTRET ? lua_gettop(L) - top + 1 : nresults;
  if (h) hub_log(h, "error", "in a luv callback: %s", lua_tostring(L, -1));
  lua_pop(L, 1);
  return -status;
}

int ref_take(lua_State *L) { return luaL_ref(L, LUA_REGISTRYINDEX); }

void ref_drop(lua_State *L, int *ref) {
  luaL_unref(L, LUA_REGISTRYINDEX, *ref);
  *ref = LUA_NOREF;
}

int fail(lua_State *L, const char *name, const char *message) {
  lua_pushnil(L);
  lua_pushstring(L, message);
  lua_pushstring(L, name);
  return 3;
}

void type_make(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction gc) {
  luaL_newmetatable(L, name);
  lua_newtable(L);
  luaL_setfuncs(L, methods, 0);
  lua_setfield(L, -2, "__index");
  if (gc) {
    lua_pushcfunction(L, gc);
    lua_setfield(L, -2, "__gc");
  }
  lua_pop(L, 1);
}

/* ---- life -------------------------------------------------------------------------------------------------------------------------------- */

/* The luv data stays: it is Lua's, and handles of net may close later than these. */
void hub_handle_closed(hub *h) {
  if (--h->closing_handles) return;
  wire_codec_free(h->codec);
  wire_buf_free(&h->scratch);
  free(h);
}

static void on_closed(uv_handle_t *handle) { hub_handle_closed(((luv_handle_t *)handle->data)->extra); }

static int hub_gc(lua_State *L) {
  hub **box = lua_touserdata(L, 1);
  hub *h = *box;
  if (!h) return 0;
  *box = NULL;
  log_end(h);
  h->dead = true;
  net_free(h->net);
  host_free(h->host);
  h->closing_handles = 4;
  uv_close((uv_handle_t *)&h->prepare, on_closed);
  uv_close((uv_handle_t *)&h->check, on_closed);
  uv_close((uv_handle_t *)&h->idle, on_closed);
  uv_close((uv_handle_t *)&h->rest, on_closed);
  timers_close(h);
  log_close(h);
  return 0;
}

static void begin_turns(hub *h) {
  uv_prepare_init(h->loop, &h->prepare);
  uv_check_init(h->loop, &h->check);
  uv_idle_init(h->loop, &h->idle);
  uv_timer_init(h->loop, &h->rest);
  h->prepare.data = h->check.data = h->idle.data = h->rest.data = h->luv;
  uv_prepare_start(&h->prepare, on_prepare);
  uv_check_start(&h->check, on_check);
  uv_unref((uv_handle_t *)&h->prepare);
  uv_unref((uv_handle_t *)&h->check);
  uv_unref((uv_handle_t *)&h->rest);
}

/* luv walks every handle on its loop and takes what is behind ->data for its own. */
static luv_handle_t *luv_data(lua_State *L, hub *h) {
  luv_handle_t *luv = lua_newuserdatauv(L, sizeof *luv, 0);
  memset(luv, 0, sizeof *luv);
  luv->ref = luv->callbacks[0] = luv->callbacks[1] = LUA_NOREF;
  luv->ctx = luv_context(L);
  luv->extra = h;
  lua_rawsetp(L, LUA_REGISTRYINDEX, luv);
  return luv;
}

/* A program that we write to may end before it has read all: that is an error of the write, not the end of the server. */
static void ignore_broken_pipes(void) {
  struct sigaction now;
  if (sigaction(SIGPIPE, NULL, &now) == 0 && now.sa_handler == SIG_DFL) signal(SIGPIPE, SIG_IGN);
}

/* Where somebody has closed stdin, stdout or stderr, a pipe of the loop's own would get its number, and the log would go there. */
static void fill_standard_streams(void) {
  int fd;
  do fd = open("/dev/null", O_RDWR);
  while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd >= 0) close(fd);
}

static void open_luv(lua_State *L) {
  lua_getglobal(L, "require");
  lua_pushliteral(L, "luv");
  lua_call(L, 1, 1);
  lua_setfield(L, LUA_REGISTRYINDEX, "korv.luv"); /* its table owns the loop: it must outlive package.loaded */
  luv_ctx_t *ctx = luv_context(L);
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
  ctx->L = lua_tothread(L, -1); /* whoever opened luv first may have been a coroutine, which dies */
  lua_pop(L, 1);
  luv_set_callback(L, luv_callback);
}

hub *hub_find(lua_State *L) {
  lua_getfield(L, LUA_REGISTRYINDEX, HUB);
  hub **box = lua_touserdata(L, -1);
  lua_pop(L, 1);
  return box ? *box : NULL;
}

hub *hub_get(lua_State *L) {
  hub *h = hub_find(L);
  if (!h) luaL_error(L, "korv cannot be used any more: the program is ending, and this is a finalizer that runs late");
  return h;
}

void hub_push(lua_State *L) { lua_getfield(L, LUA_REGISTRYINDEX, HUB); }

void hub_open(lua_State *L) {
  lua_pushcfunction(L, set_log);
  lua_setfield(L, -2, "set_log");
  lua_pushcfunction(L, cpu_limit);
  lua_setfield(L, -2, "cpu_limit");
  if (hub_find(L)) return; /* the module is loaded a second time */
  fill_standard_streams();
  open_luv(L);
  ignore_broken_pipes();
  hub **box = lua_newuserdatauv(L, sizeof *box, 0);
  *box = NULL;
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, hub_gc);
  lua_setfield(L, -2, "__gc");
  lua_setmetatable(L, -2);
  hub *h = calloc(1, sizeof *h);
  if (!h) luaL_error(L, "out of memory");
  h->second = -1;
  h->loop = luv_loop(L);
  h->luv = luv_data(L, h);
  h->net = net_new(h->loop, h->luv);
  h->host = host_new(L, h);
  h->codec = wire_codec_new();
  if (!h->net || !h->host || !h->codec) luaL_error(L, "out of memory");
  h->L = lua_newthread(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, h);
  begin_turns(h);
  log_begin(h);
  *box = h;
  lua_setfield(L, LUA_REGISTRYINDEX, HUB);
}
