/* The watchdog's timer, its hook, and the coroutine functions that keep the chain of what runs.
 *
 * Lua cannot be interrupted, but lua_sethook may be called from a signal handler on the thread that runs Lua, and from nowhere else. So the
 * timer's signal goes to that thread alone. Which coroutine runs there no function tells: the chain does, from the innermost outwards.
 * Knows no task and no loop: whoever calls Lua says so by watchdog_enter. */
#include "host/watchdog.h"

#include <errno.h>
#include <lauxlib.h>
#include <lualib.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

enum { TICKS = 16 }; /* in a limit: it is overdrawn by two of them at most */

#define SECOND_NS INT64_C(1000000000)

struct watchdog {
  /* What the signal handler sees change under it; a plain store each. */
  watchdog_run *volatile inner; /* NULL: nothing runs */
  volatile unsigned number;     /* of the outermost run */
  volatile unsigned stopped;    /* the number of the run that is to end */
  volatile int64_t limit_ns;

  /* The handler's own: when it first saw which number. */
  unsigned seen;
  int64_t seen_ns;

  unsigned grace; /* the number under which a stopped run's coroutines are closed */
  bool traced;    /* the user value is the traceback of the coroutine where it was stopped */
  bool has_timer;
  timer_t timer;
  lua_CFunction resume, close; /* the stock ones */
  char place[LUA_IDSIZE + 16]; /* "app.lua:12", where it was stopped; "": it was in no Lua function */
};

static const char WATCHDOG; /* its address is the key in the registry */

static bool is_stopped(const watchdog *w) { return w->stopped == w->number; }

/* ---- what runs ----------------------------------------------------------------------------------------------------------------------- */

void watchdog_enter(watchdog *w, watchdog_run *run, lua_State *L) {
  run->L = L;
  run->outer = w->inner;
  if (!run->outer) w->number++;
  atomic_signal_fence(memory_order_release); /* a tick finds run whole */
  w->inner = run;
}

bool watchdog_leave(watchdog *w, const watchdog_run *run) {
  w->inner = run->outer; /* first, so that the answer below is the last one */
  if (!is_stopped(w)) return false;
  lua_sethook(run->L, NULL, 0, 0);
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

/* ---- the end of a run ------------------------------------------------------------------------------------------------------------------ */

static void note_place(watchdog *w, lua_State *L) {
  lua_Debug ar;
  for (int level = 0; !w->place[0] && lua_getstack(L, level, &ar); level++) {
    lua_getinfo(L, "Sl", &ar);
    if (ar.currentline > 0) snprintf(w->place, sizeof w->place, "%s:%d", ar.short_src, ar.currentline);
  }
}

/* Ends what runs on L. A yield leaves every pcall behind. Where a C function is in the way of that it gets an error, as does whatever
 * catches this, until it has gone. Lua takes this one error for its own and asks no message handler, which might loop. */
static int end(watchdog *w, lua_State *L) {
  note_place(w, L);
  if (lua_isyieldable(L)) return lua_yield(L, 0);
  lua_pushliteral(L, "not enough memory");
  return lua_error(L);
}

/* At every instruction. A coroutine that was made while its maker was hooked has inherited the hook, and may run it when all is well. */
static void on_instruction(lua_State *L, lua_Debug *ar) {
  (void)ar;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &WATCHDOG);
  watchdog *w = lua_touserdata(L, -1);
  lua_pop(L, 1);
  if (w->inner && is_stopped(w))
    end(w, L);
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

/* ---- the timer ------------------------------------------------------------------------------------------------------------------------- */

static int64_t cpu_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec * SECOND_NS + t.tv_nsec;
}

/* Again at each tick: app code may have taken the hook away, or gone on to a coroutine that was not in the chain. */
static void stop(watchdog *w) {
  if (!is_stopped(w) && w->number != w->grace) {
    w->place[0] = '\0';
    w->traced = false;
  }
  w->stopped = w->number;
  for (watchdog_run *run = w->inner; run; run = run->outer) lua_sethook(run->L, on_instruction, LUA_MASKCOUNT, 1);
}

static void look(watchdog *w) {
  if (!w->inner) return;
  int64_t now_ns = cpu_ns();
  if (w->number != w->seen) {
    w->seen = w->number;
    w->seen_ns = now_ns;
  } else if (is_stopped(w) || now_ns - w->seen_ns >= w->limit_ns) {
    stop(w);
  }
}

static void on_signal(int signal, siginfo_t *info, void *context) {
  (void)signal, (void)context;
  int kept = errno;
  if (info->si_code == SI_TIMER) look(info->si_value.sival_ptr);
  errno = kept;
}

static int tick_signal; /* of the process; 0: none could be had */

/* The first that nobody handles. Low ones are for what a program starts itself, the last one is valgrind's. */
static void choose_signal(void) {
  struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK}, old;
  sigemptyset(&action.sa_mask);
  for (int s = SIGRTMIN + 3; s < SIGRTMAX && !tick_signal; s++) {
    if (sigaction(s, NULL, &old) == 0 && old.sa_handler == SIG_DFL && sigaction(s, &action, NULL) == 0) tick_signal = s;
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
  return -pthread_sigmask(SIG_UNBLOCK, &set, NULL); /* threads that are not the program's first are often made with all blocked */
}

static struct timespec to_timespec(int64_t ns) { return (struct timespec){.tv_sec = ns / SECOND_NS, .tv_nsec = ns % SECOND_NS}; }

int watchdog_limit(watchdog *w, double seconds) {
  static const int64_t LEAST_TICK_NS = SECOND_NS / 1000;
  bool on = seconds > 0;
  int rc = on && !w->has_timer ? make_timer(w) : 0;
  if (rc < 0 || !w->has_timer) return rc;
  w->limit_ns = on ? (int64_t)(fmin(seconds, 1e9) * SECOND_NS) : INT64_MAX;
  int64_t tick_ns = w->limit_ns / TICKS > LEAST_TICK_NS ? w->limit_ns / TICKS : LEAST_TICK_NS;
  struct itimerspec ticks = {{0}, {0}};
  if (on) ticks.it_value = ticks.it_interval = to_timespec(tick_ns);
  return timer_settime(w->timer, 0, &ticks, NULL) < 0 ? -errno : 0;
}

/* ---- coroutines of the app's own ------------------------------------------------------------------------------------------------------- */

static bool is_at_rest(lua_State *co) {
  lua_Debug ar;
  return lua_status(co) != LUA_OK || !lua_getstack(co, 0, &ar);
}

/* False: there is no need to, since nothing is watched or nothing will run. */
static bool join(watchdog *w, watchdog_run *run, lua_State *co) {
  if (!w->inner || !is_at_rest(co)) return false;
  watchdog_enter(w, run, co);
  return true;
}

/* Kills a coroutine that was stopped, so that nobody goes on with it in the middle of nowhere. What it holds open is closed first, in a
 * limit that all coroutines of the stopped run share. */
static void discard(watchdog *w, lua_State *L, lua_State *co) {
  watchdog_run run;
  if (!w->traced) {
    luaL_traceback(L, co, NULL, 0);
    lua_setiuservalue(L, lua_upvalueindex(1), 1);
    w->traced = true;
  }
  if (w->grace != w->number) w->grace = ++w->number;
  w->stopped = w->number - 1;
  watchdog_enter(w, &run, co);
  lua_resetthread(co);
  lua_settop(co, 0);
  watchdog_leave(w, &run);
  w->stopped = w->number;
}

/* Calls a stock function that runs co, the first argument. Where the run was stopped meanwhile it does not return. */
static int watched(watchdog *w, lua_State *L, lua_State *co, lua_CFunction stock) {
  watchdog_run run;
  if (!join(w, &run, co)) return stock(L);
  int nresults = stock(L); /* co is at rest, so that this does not raise */
  if (!watchdog_leave(w, &run)) return nresults;
  lua_settop(L, 1);
  discard(w, L, co);
  return end(w, L);
}

static int call_stock(lua_State *L, lua_CFunction (*choose)(const watchdog *w)) {
  watchdog *w = lua_touserdata(L, lua_upvalueindex(1));
  lua_State *co = lua_tothread(L, 1);
  return co ? watched(w, L, co, choose(w)) : choose(w)(L);
}
