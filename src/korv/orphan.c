/* core.start_orphan: a program that is no child of this process, but of whoever takes in orphans. A supervisor such as systemd waits only
 * for its own children: one that is to take this process's place has to be such a child before it does. Knows not what is started. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "korv/korv.h"

enum { FIRST_FD = 3, MOST_FDS = 128 };

/* What becomes of it, told by the process in between. */
typedef struct {
  int error;
  pid_t pid;
} outcome;

typedef struct {
  char **argv, **env;
  int fds[MOST_FDS], count;
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
} plan;

/* The texts of the list at an index, NULL at their end; a userdata on the stack. The list has to stay. */
static char **texts(lua_State *L, int index) {
  luaL_checktype(L, index, LUA_TTABLE);
  size_t count = lua_rawlen(L, index);
  char **list = lua_newuserdatauv(L, (count + 1) * sizeof *list, 0);
  for (size_t i = 0; i < count; i++) {
    luaL_argcheck(L, lua_rawgeti(L, index, (lua_Integer)i + 1) == LUA_TSTRING, index, "must be a list of texts");
    const char *text = lua_tostring(L, -1);
    memcpy(&list[i], &text, sizeof text); /* what is started is only shown it, whatever its type says */
    lua_pop(L, 1);
  }
  list[count] = NULL;
  return list;
}

static void numbers(lua_State *L, int index, plan *p) {
  luaL_checktype(L, index, LUA_TTABLE);
  size_t count = lua_rawlen(L, index);
  luaL_argcheck(L, count <= MOST_FDS, index, "too many file descriptors");
  for (p->count = 0; p->count < (int)count; p->count++) {
    lua_rawgeti(L, index, p->count + 1);
    p->fds[p->count] = (int)luaL_checkinteger(L, -1);
    lua_pop(L, 1);
  }
}

/* Replaces them by copies that are in nobody's way, for one may have a number that another is to get. 0, or the errno, and what was
 * copied is to be closed. */
static int copy_fds(plan *p) {
  for (int i = 0; i < p->count; i++) {
    int copy = fcntl(p->fds[i], F_DUPFD_CLOEXEC, FIRST_FD + p->count);
    if (copy < 0) {
      p->count = i;
      return errno;
    }
    p->fds[i] = copy;
  }
  return 0;
}

static void close_fds(const plan *p) {
  for (int i = 0; i < p->count; i++) close(p->fds[i]);
}

/* Signals are as if nothing had been done to them here. */
static int prepare(plan *p) {
  sigset_t all, none;
  sigfillset(&all);
  sigemptyset(&none);
  posix_spawnattr_setsigdefault(&p->attributes, &all);
  posix_spawnattr_setsigmask(&p->attributes, &none);
  posix_spawnattr_setflags(&p->attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  for (int i = 0; i < p->count; i++) {
    int error = posix_spawn_file_actions_adddup2(&p->files, p->fds[i], FIRST_FD + i);
    if (error) return error;
  }
  return 0;
}

/* The process in between: its end makes an orphan of what it starts. */
static void start_and_end(const plan *p, int tell) {
  outcome o = {0};
  o.error = posix_spawnp(&o.pid, p->argv[0], &p->files, &p->attributes, p->argv, p->env);
  _exit(write(tell, &o, sizeof o) == sizeof o ? 0 : 1);
}

/* A signal that comes to the process in between is not to run a handler of this one's. */
static pid_t fork_without_signals(void) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pid_t pid = fork();
  if (pid != 0) pthread_sigmask(SIG_SETMASK, &before, NULL);
  return pid;
}

static outcome start(const plan *p) {
  int tell[2];
  if (pipe2(tell, O_CLOEXEC) < 0) return (outcome){.error = errno};
  pid_t between = fork_without_signals();
  if (between == 0) start_and_end(p, tell[1]);
  outcome o = {.error = errno};
  close(tell[1]);
  if (between > 0) {
    while (waitpid(between, NULL, 0) < 0 && errno == EINTR) {}
    if (read(tell[0], &o, sizeof o) != sizeof o) o.error = ECHILD;
  }
  close(tell[0]);
  return o;
}

static outcome start_planned(plan *p) {
  outcome o = {.error = copy_fds(p)};
  if (!o.error) {
    posix_spawn_file_actions_init(&p->files);
    posix_spawnattr_init(&p->attributes);
    o.error = prepare(p);
    if (!o.error) o = start(p);
    posix_spawnattr_destroy(&p->attributes);
    posix_spawn_file_actions_destroy(&p->files);
  }
  close_fds(p);
  return o;
}

/* start_orphan(argv, env, fds) -> pid | nil, message, name. argv[1] is looked for in PATH; env is a list of NAME=VALUE; the descriptors are
 * its own from 3 on, beside 0, 1 and 2 of this process. */
static int start_orphan(lua_State *L) {
  plan p;
  p.argv = texts(L, 1);
  luaL_argcheck(L, p.argv[0], 1, "must begin with a program");
  p.env = texts(L, 2);
  numbers(L, 3, &p);
  outcome o = start_planned(&p);
  if (o.error) {
    int code = uv_translate_sys_error(o.error);
    return fail(L, uv_err_name(code), uv_strerror(code));
  }
  lua_pushinteger(L, o.pid);
  return 1;
}

void orphan_open(lua_State *L) {
  static const luaL_Reg functions[] = {{"start_orphan", start_orphan}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
