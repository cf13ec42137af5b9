/* logins: logs in to a korv server again and again, asks one request in a line each time, checks its answer and hangs up; prints what that
 * cost as one line of JSON.
 *
 *   logins --port N --key FILE --count N [--rate N] [--pid N] [--cpu N]
 *   logins --port N --key FILE --count N --hold 1       hangs up on none; once all are there, waits for the end of its input
 *
 * With --rate a log-in is due so many times a second; it goes without where the server does not keep up, and the report shows it.
 * A tenth are made before as a warm-up, but not with --rate and not with --hold.
 */
#include "dial.h"
#include "measure.h"
#include "options.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REQUEST "{\"id\":100000000000,\"verb\":\"GET\",\"resource\":\"/hello\",\"body\":\"abcdefghijklmnopqrstuvwxyzabcdefghijkl\"}\n"
#define ANSWER "Hello World!"

enum { ANSWER_MOST_BYTES = 1024 };

static struct {
  struct dial dial;
  long count, rate, hold, pid, cpu;
} options = {.dial = {.host = "127.0.0.1", .timeout_s = 60}, .cpu = -1};

static const struct known_option known[] = {
    {"port", NULL, &options.dial.port, 1, 65535}, {"key", &options.dial.key, NULL, 0, 0},
    {"count", NULL, &options.count, 1, 1000000},  {"rate", NULL, &options.rate, 1, 100000},
    {"hold", NULL, &options.hold, 0, 1},          {"pid", NULL, &options.pid, 1, 1L << 30},
    {"cpu", NULL, &options.cpu, 0, 1023},         {"timeout", NULL, &options.dial.timeout_s, 1, 3600},
};

static void ask(struct link *l, struct stream *s) {
  if (ssh_channel_write(s->ssh, REQUEST, sizeof REQUEST - 1) != sizeof REQUEST - 1) fail("no request: %s", ssh_get_error(l->ssh));
  struct text answer;
  while (!line_read(s->in.at, s->in.length, &answer)) {
    if (s->ended || s->in.length > ANSWER_MOST_BYTES || ssh_event_dopoll(l->event, (int)options.dial.timeout_s * 1000) != SSH_OK)
      fail("no answer: %s", ssh_get_error(l->ssh));
  }
  if (!text_holds(answer, ANSWER)) fail("a wrong answer: %.*s", (int)answer.length, answer.at);
}

static void begin(struct link *l, struct stream *s, ssh_key key) {
  memset(s, 0, sizeof *s);
  dial_log_in(&options.dial, key, l);
  l->event = ssh_event_new();
  l->fd = -1;
  dial_open(&options.dial, LINE, l, s);
  if (!l->event || ssh_event_add_session(l->event, l->ssh) != SSH_OK) fail("out of memory");
  ask(l, s);
}

static void end(struct link *l, struct stream *s) {
  ssh_disconnect(l->ssh);
  link_close(l);
  stream_close(s);
}

static void wait_until(uint64_t ns) {
  struct timespec until = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static void log_in_often(ssh_key key, long count) {
  uint64_t interval_ns = options.rate ? 1000000000u / (uint64_t)options.rate : 0, due_ns = now_ns();
  struct link l;
  struct stream s;
  for (long i = 0; i < count; i++, due_ns += interval_ns) {
    if (interval_ns) wait_until(due_ns);
    begin(&l, &s, key);
    end(&l, &s);
  }
}

static void measure(ssh_key key) {
  struct cpu_clocks server = {.count = 0}, own;
  if (!options.rate) log_in_often(key, options.count / 10 + 1);
  if (options.pid) cpu_clocks_open(&server, (pid_t)options.pid);
  cpu_clocks_open(&own, 0);
  uint64_t wall_ns = now_ns(), server_ns = cpu_clocks_ns(&server), own_ns = cpu_clocks_ns(&own);
  log_in_often(key, options.count);
  wall_ns = now_ns() - wall_ns;
  double count = (double)options.count, server_s = (double)(cpu_clocks_ns(&server) - server_ns) / 1e9;
  printf("{\"log_ins\":%ld,\"wall_s\":%.3f,\"log_ins_per_s\":%.1f,\"log_ins_per_server_cpu_s\":%.1f,\"load_cpu_us_per_log_in\":%.1f}\n",
         options.count, (double)wall_ns / 1e9, count / ((double)wall_ns / 1e9), options.pid ? count / server_s : 0.0,
         (double)(cpu_clocks_ns(&own) - own_ns) / 1e3 / count);
}

static void hold(ssh_key key) {
  struct stream *streams = calloc((size_t)options.count, sizeof *streams);
  struct link *links = calloc((size_t)options.count, sizeof *links);
  if (!streams || !links) fail("out of memory");
  for (long i = 0; i < options.count; i++) begin(&links[i], &streams[i], key);
  alarm(0);
  printf("{\"held\":%ld}\n", options.count);
  fflush(stdout);
  for (char byte; read(STDIN_FILENO, &byte, 1) > 0;) continue;
  for (long i = 0; i < options.count; i++) end(&links[i], &streams[i]);
  free(streams);
  free(links);
}

int main(int argc, char **argv) {
  int rest = options_read(known, sizeof known / sizeof *known, argc, argv);
  if (rest != argc || !options.dial.port || !options.dial.key || !options.count)
    fail("use: %s --port N --key FILE --count N …", argv[0]);
  signal(SIGPIPE, SIG_IGN);
  alarm((unsigned)options.dial.timeout_s + 2);
  if (options.cpu >= 0) pin_to_cpu((int)options.cpu);
  ssh_key key = dial_key(&options.dial);
  if (options.hold)
    hold(key);
  else
    measure(key);
  ssh_key_free(key);
  return 0;
}
