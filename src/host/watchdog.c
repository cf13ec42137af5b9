/* The watchdog's timer, its hook, and the coroutine functions that keep the chain of what runs.
 *
 * Lua cannot be interrupted, but lua_sethook may be called from a signal handler on the thread that runs Lua, and from nowhere else. So the
 * timer's signal goes to that thread alone. Which coroutine runs there no function tells: the chain does, from the innermost outwards.
 * Knows no task and no loop: whoever calls Lua says so by watchdog_enter. */
#include "host/watchdog.h"

#include <errno.h>
#include <lauxlib.h>
#include <lualib.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

enum { TICKS = 16, SECOND_NS = 1000000000, LEAST_TICK_NS = SECOND_NS / 1000 }; /* TICKS in a limit: two at most are added to it */

struct watchdog {
  /* What the signal handler and the rest both see. */
  watchdog_run *volatile inner; /* NULL: nothing runs */
  volatile unsigned number;     /* of the outermost run */
  volatile bool stopped;        /* what runs is to end */
  volatile int64_t limit_ns;

  /* The handler's own: when it first saw which number. */
  unsigned seen;
  int64_t seen_ns;

  bool grace;  /* the coroutines of a stopped run are being closed, in a limit of their own */
  bool traced; /* the user value is the traceback of the coroutine where it was stopped */
  bool has_timer;
  timer_t timer;
  int64_t tick_ns; /* while nothing has to be stopped */
  lua_CFunction stock_close;
  char place[LUA_IDSIZE + 16]; /* "app.lua:12", where it was stopped; "": in no Lua function */
};

static const char WATCHDOG; /* its address is the key in the registry */

static int tick_every(const watchdog *w, int64_t tick_ns) {
  struct timespec tick = {.tv_sec = tick_ns / SECOND_NS, .tv_nsec = tick_ns % SECOND_NS};
  struct itimerspec ticks = {.it_interval = tick, .it_value = tick};
  return w->has_timer && timer_settime(w->timer, 0, &ticks, NULL) < 0 ? -errno : 0;
}

/* ---- what runs --------------------------------------------------------------------------------------------------------------- */

void watchdog_enter(watchdog *w, watchdog_run *run, lua_State *L) {
  run->L = L;
  run->outer = w->inner;
  if (!run->outer) w->number++;
  atomic_signal_fence(memory_order_release); /* a tick finds run whole */
  w->inner = run;
}

bool watchdog_leave(watchdog *w, const watchdog_run *run) {
  w->inner = run->outer; /* first, so that the answer below is the last one */
  if (!w->stopped) return false;
  lua_sethook(run->L, NULL, 0, 0);
  if (!run->outer) {
    w->stopped = w->grace = false;
    tick_every(w, w->tick_ns);
  }
  return true;
}

int watchdog_pcall(watchdog *w, lua_State *L, int nargs, int nresults, int handler) {
  watchdog_run run;
  int base = lua_gettop(L) - nargs - 1;
  watchdog_enter(w, &run, L);
  int status = lua_pcall(L, nargs, nresults, handler);
  if (!watchdog_leave(w, &run)) return status;
  lua_settop(L, base);
  watchdog_push_message(w, L);
  return LUA_ERRRUN;
}

/* ---- the end of a run -------------------------------------------------------------------------------------------------------- */

static void note_place(watchdog *w, lua_State *L) {
  lua_Debug ar;
  for (int level = 0; !w->place[0] && lua_getstack(L, level, &ar); level++) {
    lua_getinfo(L, "Sl", &ar);
    if (ar.currentline > 0) snprintf(w->place, sizeof w->place, "%s:%d", ar.short_src, ar.currentline);
  }
}

/* Ends what runs on L. A yield leaves every pcall behind. Where a C function is in the way of that it gets an error, as does whatever
 * catches this, until it has gone. Lua takes this one error for its own and asks no message handler, which might loop. A coroutine that
 * dies of an error out of a hook is deaf to hooks from then on, so what it holds open can only be closed unwatched. */
static int break_off(watchdog *w, lua_State *L) {
  note_place(w, L);
  if (lua_isyieldable(L)) return lua_yield(L, 0);
  lua_pushliteral(L, "not enough memory");
  return lua_error(L);
}

/* At every instruction. A coroutine that was made while its maker was hooked has inherited the hook, and may run when all is well. */
static void on_instruction(lua_State *L, lua_Debug *ar) {
  (void)ar;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &WATCHDOG);
  watchdog *w = lua_touserdata(L, -1);
  lua_pop(L, 1);
  if (w->stopped)
    break_off(w, L);
  else
    lua_sethook(L, NULL, 0, 0);
}

void watchdog_push_message(const watchdog *w, lua_State *L) {
  char limit[32];
  snprintf(limit, sizeof limit, "%g", (double)w->limit_ns / SECOND_NS);
  lua_pushfstring(L, "%s%sstopped after %s s of computing without waiting (cpu_limit)", w->place, w->place[0] ? ": " : "", limit);
  if (!w->traced) return;
  lua_pushliteral(L, "\nin a coroutine of its own, ");
  lua_rawgetp(L, LUA_REGISTRYINDEX, &WATCHDOG);
  lua_getiuservalue(L, -1, 1);
  lua_remove(L, -2);
  lua_concat(L, 3);
}

/* ---- the timer --------------------------------------------------------------------------------------------------------------- */

static int64_t cpu_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (int64_t)t.tv_sec * SECOND_NS + t.tv_nsec;
}

/* Again and soon, until it has ended: app code may take the hook away, or go on to a coroutine that was not in the chain. */
static void stop(watchdog *w) {
  if (!w->stopped && !w->grace) {
    w->place[0] = '\0';
    w->traced = false;
    tick_every(w, LEAST_TICK_NS);
  }
  w->stopped = true;
  for (watchdog_run *run = w->inner; run; run = run->outer) lua_sethook(run->L, on_instruction, LUA_MASKCOUNT, 1);
}

static void look(watchdog *w) {
  if (!w->inner) return;
  int64_t now_ns = cpu_ns();
  if (w->number != w->seen) {
    w->seen = w->number;
    w->seen_ns = now_ns;
  } else if (w->stopped || now_ns - w->seen_ns >= w->limit_ns) {
    stop(w);
  }
}

static void on_signal(int number, siginfo_t *info, void *context) {
  (void)number, (void)context;
  int kept = errno;
  if (info->si_code == SI_TIMER) look(info->si_value.sival_ptr);
  errno = kept;
}

static int tick_signal; /* of the process; 0: none could be had */

/* The first that nobody handles. The lowest are what programs choose for themselves, the highest is valgrind's. Without SA_ONSTACK, which
 * keeps valgrind from growing the stack for a handler. */
static void choose_signal(void) {
  struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART}, old;
  sigemptyset(&action.sa_mask);
  for (int s = SIGRTMIN + 3; s < SIGRTMAX && !tick_signal; s++) {
    bool is_free = sigaction(s, NULL, &old) == 0 && old.sa_handler == SIG_DFL;
    if (is_free && sigaction(s, &action, NULL) == 0) tick_signal = s;
  }
}

static int make_timer(watchdog *w) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  sigset_t set;
  pthread_once(&once, choose_signal);
  if (!tick_signal) return -EBUSY;
  struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = tick_signal, .sigev_value.sival_ptr = w};
  event.sigev_notify_thread_id = gettid();
  if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &w->timer) < 0) return -errno;
  w->has_timer = true;
  sigemptyset(&set);
  sigaddset(&set, tick_signal);
  return -pthread_sigmask(SIG_UNBLOCK, &set, NULL); /* threads are often made with everything blocked */
}

int watchdog_limit(watchdog *w, double seconds) {
  bool on = seconds > 0;
  int rc = on && !w->has_timer ? make_timer(w) : 0;
  if (rc < 0 || !w->has_timer) return rc;
  w->limit_ns = on ? (int64_t)((seconds < 1e9 ? seconds : 1e9) * SECOND_NS) : INT64_MAX; /* 292 years */
  w->tick_ns = w->limit_ns / TICKS > LEAST_TICK_NS ? w->limit_ns / TICKS : LEAST_TICK_NS;
  return tick_every(w, w->tick_ns);
}

/* ---- coroutines of the app's own --------------------------------------------------------------------------------------------- */

static bool has_frames(lua_State *co) {
  lua_Debug ar;
  return lua_getstack(co, 0, &ar);
}

/* Kills a coroutine that was stopped, so that nobody goes on with it in the middle of nowhere. What it holds open is closed first, in one
 * limit for all that a run has left. */
static void discard(watchdog *w, lua_State *L, lua_State *co) {
  watchdog_run run;
  if (!w->traced && has_frames(co)) {
    luaL_traceback(L, co, NULL, 0);
    lua_setiuservalue(L, lua_upvalueindex(1), 1);
    w->traced = true;
  }
  if (!w->grace) w->number++;
  w->grace = true;
  w->stopped = false;
  watchdog_enter(w, &run, co);
  lua_resetthread(co);
  lua_settop(co, 0);
  watchdog_leave(w, &run);
  w->stopped = true;
}

/* Whether co belongs into the chain. Not where nothing is watched, nor where it cannot run now, which Lua will complain of. */
static bool joins(const watchdog *w, lua_State *co) {
  return w->inner && (lua_status(co) != LUA_OK || !has_frames(co));
}

/* Behind whatever ran co, which joined. Where the run was stopped meanwhile it does not return. */
static void part(watchdog *w, const watchdog_run *run, lua_State *L, lua_State *co) {
  if (!watchdog_leave(w, run)) return;
  lua_settop(L, 1); /* room, and what holds co */
  discard(w, L, co);
  break_off(w, L);
}

static watchdog *own(lua_State *L) { return lua_touserdata(L, lua_upvalueindex(1)); }

static int fail(lua_State *L, const char *message) {
  lua_pushstring(L, message);
  return -1;
}

/* Goes on in co with the nargs values on top of L: the number of those that are there then, or -1 and an error. */
static int transfer(watchdog *w, lua_State *L, lua_State *co, int nargs) {
  watchdog_run run;
  int nresults;
  if (!lua_checkstack(co, nargs)) return fail(L, "too many arguments to resume");
  lua_xmove(L, co, nargs);
  bool joined = joins(w, co);
  if (joined) watchdog_enter(w, &run, co);
  int status = lua_resume(co, L, nargs, &nresults);
  if (joined) part(w, &run, L, co);
  bool is_well = status == LUA_OK || status == LUA_YIELD;
  if (is_well && !lua_checkstack(L, nresults + 1)) {
    lua_pop(co, nresults);
    return fail(L, "too many results to resume");
  }
  lua_xmove(co, L, is_well ? nresults : 1);
  return is_well ? nresults : -1;
}

static int resume(lua_State *L) {
  lua_State *co = lua_tothread(L, 1);
  if (!co) return luaL_typeerror(L, 1, "thread");
  int nresults = transfer(own(L), L, co, lua_gettop(L) - 1);
  int nvalues = nresults < 0 ? 1 : nresults;
  lua_pushboolean(L, nresults >= 0);
  lua_insert(L, -nvalues - 1);
  return nvalues + 1;
}

static int close_(lua_State *L) {
  watchdog_run run;
  watchdog *w = own(L);
  lua_State *co = lua_tothread(L, 1);
  if (!co || !joins(w, co)) return w->stock_close(L);
  watchdog_enter(w, &run, co);
  int nresults = w->stock_close(L);
  part(w, &run, L, co);
  return nresults;
}

/* Of a coroutine that may have died of an error: its status, and the error on top of L. What it held open is closed. */
static int bury(watchdog *w, lua_State *L, lua_State *co) {
  watchdog_run run;
  int status = lua_status(co);
  if (status == LUA_OK || status == LUA_YIELD) return status;
  bool joined = joins(w, co);
  if (joined) watchdog_enter(w, &run, co);
  status = lua_resetthread(co);
  lua_xmove(co, L, 1);
  if (joined) part(w, &run, L, co);
  return status;
}

/* What wrap makes. An error goes on to the caller, whose place is put before its text. */
static int call_wrapped(lua_State *L) {
  lua_State *co = lua_tothread(L, lua_upvalueindex(2));
  int nresults = transfer(own(L), L, co, lua_gettop(L));
  if (nresults >= 0) return nresults;
  if (bury(own(L), L, co) != LUA_ERRMEM && lua_type(L, -1) == LUA_TSTRING) {
    luaL_where(L, 1);
    lua_insert(L, -2);
    lua_concat(L, 2);
  }
  return lua_error(L);
}

static int wrap(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_State *co = lua_newthread(L);
  lua_pushvalue(L, 1);
  lua_xmove(L, co, 1);
  lua_pushcclosure(L, call_wrapped, 2);
  return 1;
}

/* ---- life -------------------------------------------------------------------------------------------------------------------- */

static lua_CFunction find_stock_close(lua_State *L) {
  lua_pushcfunction(L, luaopen_coroutine);
  lua_call(L, 0, 1);
  lua_getfield(L, -1, "close");
  lua_CFunction stock_close = lua_tocfunction(L, -1);
  lua_pop(L, 2);
  return stock_close;
}

/* The watchdog's userdata is on top of L. */
static void replace_stock(lua_State *L) {
  static const luaL_Reg functions[] = {{"resume", resume}, {"wrap", wrap}, {"close", close_}, {NULL, NULL}};
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  if (lua_getfield(L, -1, LUA_COLIBNAME) == LUA_TTABLE) {
    lua_pushvalue(L, -3);
    luaL_setfuncs(L, functions, 1);
  }
  lua_pop(L, 2);
}

watchdog *watchdog_open(lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &WATCHDOG);
  watchdog *w = lua_touserdata(L, -1);
  lua_pop(L, 1);
  if (w) return w;
  w = lua_newuserdatauv(L, sizeof *w, 1);
  memset(w, 0, sizeof *w);
  w->stock_close = find_stock_close(L);
  replace_stock(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &WATCHDOG);
  return w;
}

void watchdog_close(watchdog *w) {
  if (w->has_timer) timer_delete(w->timer);
  w->has_timer = false;
}
