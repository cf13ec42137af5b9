/* The watchdog: stops Lua code that computes for too long without letting anybody else run. Private to this layer.
 *
 * A timer on the CPU time of the thread ticks while the thread computes, and only then. At a tick the watchdog looks whether what runs now
 * has run since a tick that is the limit ago; if so it hooks everything in the chain of coroutines, and the hook ends them. Until then it
 * costs a few stores a resume. What a C function does cannot be stopped, nor a finalizer, nor a debug hook.
 */
#ifndef KORV_HOST_WATCHDOG_H
#define KORV_HOST_WATCHDOG_H

#include <lua.h>
#include <stdbool.h>

typedef struct watchdog watchdog; /* one for each Lua state, whose memory it is: it lasts as long as the state */

/* One entry into Lua: on the C stack of whoever enters. */
typedef struct watchdog_run {
  lua_State *L;
  struct watchdog_run *outer;
} watchdog_run;

/* Makes the state's watchdog, or finds it. Puts resume, wrap and close of its own into the library `coroutine`; they are the stock ones
 * but for telling the watchdog. It watches nothing yet. Raises for want of memory. */
watchdog *watchdog_open(lua_State *L);
void watchdog_close(watchdog *w); /* no more ticks; on the thread that set the limit */

/* From now on, seconds of the calling thread's CPU, which has to be the one that runs Lua; 0: none. 0, or a negative errno. */
int watchdog_limit(watchdog *w, double seconds);

/* Around whatever runs Lua code on L: lua_resume, lua_pcall, lua_resetthread. One within another is charged to the outermost, and stopped
 * with it. watchdog_leave says whether it was stopped. If so, status and values on L mean nothing, a coroutine must never be resumed again
 * nor used for something else, and watchdog_push_message says what happened. */
void watchdog_enter(watchdog *w, watchdog_run *run, lua_State *L);
bool watchdog_leave(watchdog *w, const watchdog_run *run);

/* Pushes "app.lua:12: stopped after 1 s of computing without waiting (cpu_limit)"; where it was stopped in a coroutine of its own, that
 * one's traceback is behind it. Of the run that was left last. Raises for want of memory. */
void watchdog_push_message(const watchdog *w, lua_State *L);

/* lua_pcall, watched. Stopped: LUA_ERRRUN with the message, and no message handler was called. */
int watchdog_pcall(watchdog *w, lua_State *L, int nargs, int nresults, int handler);

#endif
