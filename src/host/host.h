/* host: Lua. JSON <-> Lua values, coroutines, protected calls, references.
 *
 * Knows no socket and no SSH, and nothing of what a message means. Functions that take a lua_State may raise a Lua error for want of
 * memory, so they are called within a protected call; what else can fail is returned.
 */
#ifndef KORV_HOST_H
#define KORV_HOST_H

#include <lua.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire/wire.h"

/* ---- JSON <-> Lua values ------------------------------------------------------------------------------------------------------ */

/* Numbers and arrays are never changed on the way through (docs/protocol.md, "Numbers and arrays").
 * null is a light userdata NULL, as in lua-cjson. A decoded array carries the array metatable, HOST_ARRAY in the registry. */
#define HOST_ARRAY "korv.array"

void host_json_open(lua_State *L); /* makes the array metatable; once for each Lua state, before all else here */

typedef struct host_json_limits {
  int depth;    /* of nesting, both ways */
  size_t bytes; /* of one encoded document; decoding has no use for it */
} host_json_limits;

/* What was wrong with a document or a value, and where. */
typedef struct host_json_error {
  char text[256]; /* "line 1, column 8: …", or "body.items[3].when: a function has no JSON form" */
  bool too_large; /* the encoded document went over limits->bytes */
} host_json_error;

typedef struct host_span {
  const char *at; /* NULL: none */
  size_t len;
} host_span;

/* A member of the top-level object that the caller wants to know more of than its Lua value. */
typedef struct host_json_field {
  const char *name; /* ends with a NUL */
  size_t name_len;
  host_span raw; /* out: the value's bytes as they stood in the text, without white space around; at = NULL: no such member */
  int type;      /* out: its Lua type (LUA_TLIGHTUSERDATA is null), or LUA_TNONE */
} host_json_field;

/* Decodes exactly one JSON document (RFC 8259, nothing after it but white space) and pushes its value. 0, or -1 with *err filled and
 * the stack as it was. Of a top-level object the members named in fields[0 … n-1] are reported there, the last of a name winning;
 * none of any other document, nor after a failure. */
int host_json_decode(lua_State *L, const char *text, size_t len, const host_json_limits *limits, host_json_field *fields, size_t n,
                     host_json_error *err);

/* Appends the value at index, encoded, to out. root names the value in error messages ("body"). 0, or -1 with *err filled and
 * out as it was. Calls no metamethod, runs no Lua code and never raises.
 * A table is an array where it carries the array metatable or, without that, has the keys 1 … n (n >= 1) and no others; else it is an
 * object, and its keys are strings. All that is neither, and what JSON has no form for, is an error. nil is null. */
int host_json_encode(lua_State *L, int index, const char *root, const host_json_limits *limits, wire_buf *out, host_json_error *err);

/* Lua functions json.encode(value) -> text | nil, message, name and json.decode(text) -> value | nil, message, name, and the fields
 * null and array: pushes the table that is korv.json. */
void host_json_module(lua_State *L);

/* ---- tasks: coroutines that the loop resumes -------------------------------------------------------------------------------------- */

typedef struct host host;           /* what one Lua state's tasks share */
typedef struct host_task host_task; /* one coroutine at work; pooled, and never freed before the host */

host *host_new(lua_State *L, void *owner); /* NULL: no memory; may raise for want of it, too */
void host_free(host *h);     /* before the Lua state closes, or while it does */
void *host_owner(const host_task *t);

/* The CPU time that a task may take between two waits, and a host_pcall in all: past it Lua code is stopped, and that is an error
 * (LUA_ERRRUN) which nothing in it can catch. 0: any. To be set on the thread that runs Lua; 0, or a negative errno. */
int host_cpu_limit(host *h, double seconds);
int host_pcall(host *h, lua_State *L, int nargs, int nresults, int handler); /* lua_pcall under the limit; a stop calls no handler */

enum { HOST_CANCELLED = 64 }; /* a status beside Lua's own */

/* Told once: the task's function has returned (status LUA_OK: nresults values on top of co), raised (else: the error's value on top of co,
 * whose stack still stands for a traceback) or was cancelled (HOST_CANCELLED; nresults 1: a to-be-closed variable raised the value on top of
 * co). The task goes back to the pool behind it. */
typedef void host_task_done(void *owner, host_task *t, lua_State *co, int status, int nresults);

/* A task to be begun: push a function and its arguments on host_task_state(t). Raises for want of memory. */
host_task *host_task_new(host *h, lua_State *L, host_task_done *done, void *owner);
void host_task_set_owner(host_task *t, void *owner); /* where it is made later than the task */
lua_State *host_task_state(const host_task *t);
void *host_task_owner(const host_task *t, host_task_done *done); /* NULL where done is not the task's */

void host_task_begin(host *h, host_task *t, lua_State *L, int nargs); /* runs it until it waits or ends; not from within a task */
void host_task_queue(host *h, host_task *t, int nargs);               /* it begins at the next host_run */
bool host_run(host *h, lua_State *L);                                 /* resumes what is ready; true: more is ready already */
bool host_pending(const host *h);

/* The task that runs now and may wait on this lua_State, or NULL with *why saying what is in the way (*why NULL: a C function, which Lua
 * cannot suspend through). */
host_task *host_task_here(const host *h, lua_State *L, const char **why);
host_task *host_task_running(const host *h); /* NULL: none */

/* Waiting, in two steps so that nothing is lost between them: a ticket first, then the yield, by lua_yieldk, of nothing. Whoever has task
 * and ticket wakes it once; its values are pushed on the coroutine's stack. A ticket that is over is ignored, so a late wake harms nobody.
 * Where the task is cancelled meanwhile, unwait is called (NULL: nothing to do) to let go of what would have woken it. */
typedef void host_task_unwait(host_task *t, void *arg);

uint64_t host_task_ticket(host *h, host_task *t, host_task_unwait *unwait, void *arg);
void host_task_set_unwait_arg(host_task *t, void *arg);
void host_task_wait(host_task *t); /* just before the yield */
bool host_task_wake(host *h, host_task *t, uint64_t ticket, lua_State *from, int nvalues); /* pops the values in any case */
void host_task_wake_next(host *h, host_task *t); /* a running task with a ticket: ready again, for the next host_run, once it waits */

/* From within a debug hook on L: yields, for the next host_run to go on. False: what runs on L is no task's coroutine, cannot yield, or
 * has a ticket and is about to wait for that. */
bool host_task_give_way(host *h, lua_State *L);

/* Ends a task: one that waits or is ready is closed in the next host_run (its to-be-closed variables run, and cannot wait), one that runs
 * at its next wait. Cancelling twice is once. */
void host_task_cancel(host *h, host_task *t);

/* ---- slices: tasks that compute for long and hold up nobody ------------------------------------------------------------------------- */

/* The caller's memory; where it is must not change between begin and end. */
typedef struct host_slices {
  host *host;
  lua_State *co;
  int64_t end_ns; /* of this slice; 0: it has not been looked at yet */
  int sources;    /* a reference to the table of them, or to nil */
  int line;       /* where it gave way last; 0: it has not yet */
} host_slices;

/* From now on the task gives way about every 50 µs while it runs functions whose source, as in lua_Debug, is a key of the table
 * on top of L (popped; nil: any function). To be ended when the task is done, at the latest from its host_task_done. Raises for want of
 * memory. */
void host_slices_begin(host_slices *s, host *h, const host_task *t, lua_State *L);
void host_slices_end(host_slices *s, lua_State *L);

/* "app.lua:12: ": where the innermost of those functions stands, or "". May raise for want of memory. */
void host_slices_place(const host_slices *s, lua_State *L, char *place, size_t size);

#endif
