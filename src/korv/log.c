/* core.log_write and what is behind it: the lines of the log on their way to stderr. While the loop runs they wait for the end of its
 * turn and go out together; where none runs they go out at once. Whoever reads stderr may be slow, or gone: nothing here waits for
 * that, but for a moment at the program's end. Knows nothing of what a line says. */
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "korv/korv.h"

static const char DROPPED[] = "korv.log.dropped";

enum { MOST_BYTES = 1 << 20, KEPT_BYTES = 65536, RETRY_MS = 10, LONGEST_RETRY_MS = 500, EXIT_MS = 1000 };

/* Of this thread: what waits when the program ends by exit(), which closes no Lua state. */
static _Thread_local LIST_HEAD(, log_queue) queues;

static hub *hub_of(log_queue *q) { return (hub *)(void *)((char *)q - offsetof(hub, log)); }

/* ---- stderr -------------------------------------------------------------------------------------------------------------------------- */

enum { FILE_, SOCKET, OWN, SHARED };

/* Others write to what is behind fd 2, so O_NONBLOCK must not be set there. A pipe or a terminal is opened anew instead, for us alone.
 * Where that is refused (somebody else's pipe), poll(2) has to do, which says that a pipe takes PIPE_BUF bytes; only if another process
 * fills it up at the same moment, a write would wait. */
static void find_stderr(log_queue *q) {
  struct stat it;
  q->fd = STDERR_FILENO;
  q->kind = SHARED;
  if (fstat(q->fd, &it) < 0) return;
  if (S_ISREG(it.st_mode)) q->kind = FILE_;
  if (S_ISSOCK(it.st_mode)) q->kind = SOCKET;
  if (q->kind != SHARED) return;
  int own = open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (own < 0) return;
  q->fd = own;
  q->kind = OWN;
}

static bool has_room(int fd) {
  struct pollfd one = {.fd = fd, .events = POLLOUT};
  return poll(&one, 1, 0) == 1;
}

static ssize_t put(const log_queue *q, size_t n) {
  const char *at = wire_buf_at(&q->out);
  if (q->kind == SOCKET) return send(q->fd, at, n, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (q->kind == SHARED && !has_room(q->fd)) return -1;
  return write(q->fd, at, n);
}

/* Whole lines in one write of PIPE_BUF bytes at most, which no other process's lines get into. A longer line goes in parts. */
static size_t part(const log_queue *q) {
  if (q->out.len <= PIPE_BUF || q->kind == FILE_) return q->out.len;
  const char *at = wire_buf_at(&q->out), *end = memrchr(at, '\n', PIPE_BUF);
  return end ? (size_t)(end - at) + 1 : PIPE_BUF;
}

/* Errors too are waited out: a full disk may have room again. What never goes out is over the limit one day. */
static void drain(log_queue *q) {
  while (q->out.len > 0) {
    ssize_t n = put(q, part(q));
    if (n <= 0) return;
    wire_buf_consume(&q->out, (size_t)n);
    q->retry_ms = RETRY_MS;
  }
  wire_buf_shrink(&q->out, KEPT_BYTES);
}

/* ---- the queue ----------------------------------------------------------------------------------------------------------------------- */

static bool append(log_queue *q, const char *line, size_t len) {
  char *at = len < MOST_BYTES - q->out.len ? wire_buf_reserve(&q->out, len + 1) : NULL;
  if (!at) return false;
  memcpy(at, line, len);
  at[len] = '\n';
  wire_buf_commit(&q->out, len + 1);
  return true;
}

/* In the words that Lua has for it (core.log_dropped). */
static void tell_dropped(log_queue *q) {
  lua_State *L = hub_of(q)->L;
  char otherwise[80];
  int len = snprintf(otherwise, sizeof otherwise, "korv: dropped %zu lines of the log", q->dropped);
  lua_getfield(L, LUA_REGISTRYINDEX, DROPPED);
  lua_pushinteger(L, (lua_Integer)q->dropped);
  size_t line_len;
  const char *line = lua_pcall(L, 1, 1, 0) == LUA_OK ? lua_tolstring(L, -1, &line_len) : NULL;
  if (line ? append(q, line, line_len) : append(q, otherwise, (size_t)len)) q->dropped = 0;
  lua_pop(L, 1);
}

static bool waits(const log_queue *q) { return q->out.len > 0 || q->dropped > 0; }

/* Once a line was dropped all are until there is room again: the line that tells of it stands where they are missing. */
static void write_out(log_queue *q) {
  drain(q);
  if (q->dropped == 0 || q->out.len > MOST_BYTES / 2) return;
  tell_dropped(q);
  drain(q);
}

static void on_retry(uv_timer_t *handle) {
  log_queue *q = (log_queue *)(void *)((char *)handle - offsetof(log_queue, retry));
  if (q->retry_ms < LONGEST_RETRY_MS) q->retry_ms *= 2;
  log_flush(hub_of(q));
}

void log_flush(hub *h) {
  log_queue *q = &h->log;
  if (!waits(q)) return;
  write_out(q);
  if (waits(q) && !h->dead && !uv_is_active((uv_handle_t *)&q->retry)) uv_timer_start(&q->retry, on_retry, q->retry_ms, 0);
}

/* Whoever runs it for one turn only may go elsewhere with lines that came behind our part of it. */
static bool loop_runs(lua_State *L) { return luv_context(L)->mode == UV_RUN_DEFAULT; }

void log_line(hub *h, const char *line, size_t len) {
  log_queue *q = &h->log;
  if (q->dropped > 0 || !append(q, line, len)) q->dropped++, q->dropped_ever++;
  if (!loop_runs(h->L)) log_flush(h);
}

/* ---- the end ------------------------------------------------------------------------------------------------------------------------- */

static void drain_patiently(log_queue *q) {
  size_t left = q->out.len;
  for (int waited_ms = 0; left > 0 && waited_ms < EXIT_MS; waited_ms++) {
    drain(q);
    if (q->out.len < left) waited_ms = 0; /* somebody reads */
    left = q->out.len;
    if (left > 0) uv_sleep(1);
  }
}

static void write_all(log_queue *q) {
  drain_patiently(q);
  write_out(q);
  drain_patiently(q);
}

static void on_exit_(void) {
  log_queue *q;
  LIST_FOREACH(q, &queues, link) write_all(q);
}

void log_end(hub *h) {
  LIST_REMOVE(&h->log, link);
  write_all(&h->log);
}

/* The hub has gone, the Lua state is closing. */
static void write_last(const char *line, size_t len) {
  log_queue q = {0};
  find_stderr(&q);
  if (append(&q, line, len)) drain_patiently(&q);
  if (q.kind == OWN) close(q.fd);
  wire_buf_free(&q.out);
}

/* ---- for the hub --------------------------------------------------------------------------------------------------------------------- */

static void call_at_exit(void) { atexit(on_exit_); }

void log_begin(hub *h) {
  static uv_once_t once = UV_ONCE_INIT;
  log_queue *q = &h->log;
  find_stderr(q);
  q->retry_ms = RETRY_MS;
  uv_timer_init(h->loop, &q->retry);
  q->retry.data = h->luv;
  uv_unref((uv_handle_t *)&q->retry);
  LIST_INSERT_HEAD(&queues, q, link);
  uv_once(&once, call_at_exit);
}

static void on_closed(uv_handle_t *handle) {
  hub *h = hub_of((log_queue *)(void *)((char *)handle - offsetof(log_queue, retry)));
  if (h->log.kind == OWN) close(h->log.fd);
  wire_buf_free(&h->log.out);
  hub_handle_closed(h);
}

void log_close(hub *h) {
  h->closing_handles++;
  uv_close((uv_handle_t *)&h->log.retry, on_closed);
}

/* ---- for Lua ------------------------------------------------------------------------------------------------------------------------- */

/* log_write(line): without a newline. */
static int write_(lua_State *L) {
  size_t len;
  const char *line = luaL_checklstring(L, 1, &len);
  hub *h = hub_find(L);
  if (h)
    log_line(h, line, len);
  else
    write_last(line, len);
  return 0;
}

/* log_flush(): writes what stderr takes at once. */
static int flush(lua_State *L) {
  hub *h = hub_find(L);
  if (h) log_flush(h);
  return 0;
}

/* log_dropped(fn): fn(count) returns the line that tells of so many dropped lines. */
static int dropped(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  lua_setfield(L, LUA_REGISTRYINDEX, DROPPED);
  return 0;
}

/* log_time() -> the time in UTC, such as 2026-11-22T11:13:00.123Z. The date is put together once a second. */
static int time_(lua_State *L) {
  static _Thread_local time_t second = -1;
  static _Thread_local char text[40];
  static _Thread_local size_t len;
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (now.tv_sec != second) {
    struct tm utc;
    second = now.tv_sec;
    len = gmtime_r(&second, &utc) ? strftime(text, sizeof text - 4, "%Y-%m-%dT%H:%M:%S.000Z", &utc) : 0;
  }
  if (len > 4) {
    int ms = (int)(now.tv_nsec / 1000000);
    text[len - 4] = (char)('0' + ms / 100);
    text[len - 3] = (char)('0' + ms / 10 % 10);
    text[len - 2] = (char)('0' + ms % 10);
  }
  lua_pushlstring(L, text, len);
  return 1;
}

void log_open(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"log_write", write_}, {"log_flush", flush}, {"log_dropped", dropped}, {"log_time", time_}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
