/* cost: what a server's CPU does while a command runs that makes load, such as wrk or h2load; runs the command and prints one line of JSON
 * behind its output.
 *
 *   cost --pid N [--cpu N] COMMAND…
 *
 * It knows nothing of what the command asks for: how many answers came is for its own output to say.
 */
#include "measure.h"
#include "message.h"
#include "options.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static long server_pid, cpu = -1;

static const struct known_option known[] = {{"pid", NULL, &server_pid, 1, 1L << 30}, {"cpu", NULL, &cpu, 0, 1023}};

static double micros(struct timeval t) {
  return (double)t.tv_sec * 1e6 + (double)t.tv_usec;
}

/* Returns the CPU time that it took, in microseconds. It ends with this program. */
static double run(char **command) {
  pid_t pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execvp(command[0], command);
    fail("%s: %s", command[0], strerror(errno));
  }
  int status;
  struct rusage used;
  if (pid < 0 || wait4(pid, &status, 0, &used) != pid) fail("%s: %s", command[0], strerror(errno));
  if (status != 0) fail("%s has failed, wait status %d", command[0], status);
  return micros(used.ru_utime) + micros(used.ru_stime);
}

int main(int argc, char **argv) {
  int rest = options_read(known, sizeof known / sizeof *known, argc, argv);
  if (rest == argc || !server_pid) fail("use: %s --pid N [--cpu N] COMMAND…", argv[0]);
  if (cpu >= 0) pin_to_cpu((int)cpu);
  struct cpu_clocks server;
  cpu_clocks_open(&server, (pid_t)server_pid);
  uint64_t before_ns = cpu_clocks_ns(&server), began_ns = now_ns();
  double load_us = run(argv + rest);
  printf("{\"wall_s\":%.3f,\"server_cpu_us\":%.1f,\"load_cpu_us\":%.1f}\n", (double)(now_ns() - began_ns) / 1e9,
         (double)(cpu_clocks_ns(&server) - before_ns) / 1e3, load_us);
  return 0;
}
