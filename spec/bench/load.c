/* load: asks a korv server over any number of connections, each with so many requests in flight, checks every answer, and prints what
 * it cost as one line of JSON.
 *
 *   load --port N --key FILE --requests N [--connections N] [--in-flight N] [--encoding gzip|line|exec] … (all: see known[])
 *
 * A gzip request is one SSH packet on a direct-tcpip channel, as the protocol's first clients send it; lines go to the subsystem
 * `korv`, all that are due in one write. An answer counts once its request_id is one that is waited for, its code 200 and the expected
 * text in it. With exec each request is a command on a channel of its own, one after the other on one connection, as `ssh HOST GET /hello`
 * is over a connection that is kept; it counts once its output has ended, with exit status 0 and the expected text. A tenth of the requests are sent before as a warm-up that is checked but not counted. Exit status 1 where any answer
 * was wrong or missing.
 */
#include "link.h"
#include "measure.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { EVENTS_A_TURN = 64, OUT_MOST_BYTES = 32000, COMPLAINTS_MOST = 5, ID_DIGITS = 12 };

#define ID_FIRST UINT64_C(100000000000) /* of ID_DIGITS digits, so that all requests have one length */

struct options {
  const char *host, *key, *encoding, *verb, *resource, *expect;
  long port, connections, in_flight, requests, size, level, pid, cpu, timeout_s;
};

/* A request that is waited for, or a free place for one: id 0. Its id is its place plus a multiple of the number of places. */
struct place {
  uint64_t id;
  uint64_t sent_ns;
};

struct connection {
  struct link link; /* first: epoll's data is the link */
  struct stream stream;
  struct place *places;
  size_t *free; /* a stack of indices of places */
  size_t free_count;
  uint64_t round;
};

struct load {
  struct options options;
  bool lines, commands;
  struct bytes request; /* the text of each, but for its id */
  size_t id_at;
  struct connection *connections;
  int epoll;
  uint64_t now_ns;
  uint64_t deadline_ns;
  uint64_t unsent;
  uint64_t answers;
  uint64_t errors;
  struct histogram latency;
};

/* ---- requests -------------------------------------------------------------------------------------------------------------- */

static void add_string(struct bytes *b, const char *s) {
  bytes_add(b, s, strlen(s));
}

static void make_request(struct load *l) {
  struct bytes *r = &l->request;
  add_string(r, "{\"id\":");
  l->id_at = r->length;
  add_string(r, "000000000000,\"verb\":\"");
  add_string(r, l->options.verb);
  add_string(r, "\",\"resource\":\"");
  add_string(r, l->options.resource);
  add_string(r, "\",\"body\":\"");
  while (r->length + 2 < (size_t)l->options.size) add_string(r, "x");
  add_string(r, "\"}");
  if (l->lines) add_string(r, "\n");
}

/* Takes a free place for the next request and puts its id into the text. */
static void begin_request(struct load *l, struct connection *c) {
  size_t index = c->free[--c->free_count];
  uint64_t id = ID_FIRST + c->round++ * (uint64_t)l->options.in_flight + index;
  c->places[index] = (struct place){id, l->now_ns};
  for (size_t i = ID_DIGITS; i-- > 0; id /= 10) l->request.at[l->id_at + i] = (char)('0' + id % 10);
  l->unsent--;
}

static bool due(const struct load *l, const struct connection *c) {
  return l->unsent && c->free_count;
}

static bool send_members(struct load *l, struct connection *c) {
  static struct bytes packet;
  bool alive = true;
  bool corked = l->unsent > 1 && c->free_count > 1;
  if (corked) link_cork(&c->link, true);
  while (alive && due(l, c) && stream_ready(&c->link, &c->stream, l->request.length)) {
    begin_request(l, c);
    packet.length = 0;
    member_write(&packet, l->request.at, l->request.length);
    alive = stream_send(&c->link, &c->stream, packet.at, packet.length);
  }
  if (corked) link_cork(&c->link, false);
  return alive;
}

static bool send_lines(struct load *l, struct connection *c) {
  while (due(l, c) && c->stream.out.length < OUT_MOST_BYTES) {
    begin_request(l, c);
    bytes_add(&c->stream.out, l->request.at, l->request.length);
  }
  return stream_flush(&c->link, &c->stream);
}

static bool send_due(struct load *l, struct connection *c) {
  if (c->stream.out.length && !stream_flush(&c->link, &c->stream)) return false;
  if (!due(l, c)) return true;
  return l->lines ? send_lines(l, c) : send_members(l, c);
}

/* ---- answers --------------------------------------------------------------------------------------------------------------- */

static void complain(struct load *l, const char *what, struct text answer) {
  if (l->errors++ < COMPLAINTS_MOST) fprintf(stderr, "%s: %.*s\n", what, (int)(answer.length < 300 ? answer.length : 300), answer.at);
}

static uint64_t number(struct text t) {
  uint64_t n = 0;
  for (size_t i = 0; i < t.length; i++) {
    if (t.at[i] < '0' || t.at[i] > '9' || n > UINT64_MAX / 100) return 0;
    n = n * 10 + (uint64_t)(t.at[i] - '0');
  }
  return n;
}

static void take_answer(struct load *l, struct connection *c, struct text answer) {
  uint64_t id = number(text_after(answer, "\"request_id\":"));
  size_t index = (size_t)((id - ID_FIRST) % (uint64_t)l->options.in_flight);
  if (id < ID_FIRST || c->places[index].id != id) {
    complain(l, "an answer to nothing that was asked, or a second one", answer);
    return;
  }
  c->places[index].id = 0;
  c->free[c->free_count++] = index;
  l->answers++;
  histogram_add(&l->latency, l->now_ns - c->places[index].sent_ns);
  if (number(text_after(answer, "\"code\":")) != 200)
    complain(l, "a code other than 200", answer);
  else if (!text_holds(answer, l->options.expect))
    complain(l, "an answer without the expected text", answer);
}

static void take_answers(struct load *l, struct connection *c) {
  struct bytes *in = &c->stream.in;
  size_t done = 0, taken;
  struct text answer;
  while (
      (taken = l->lines ? line_read(in->at + done, in->length - done, &answer) : member_read(in->at + done, in->length - done, &answer))) {
    take_answer(l, c, answer);
    done += taken;
  }
  bytes_drop(in, done);
}

/* ---- connections ----------------------------------------------------------------------------------------------------------- */

static ssh_session log_in(const struct options *o, ssh_key key) {
  ssh_session ssh = ssh_new();
  if (!ssh) fail("out of memory");
  ssh_options_set(ssh, SSH_OPTIONS_PROCESS_CONFIG, &(bool){false});
  ssh_options_set(ssh, SSH_OPTIONS_HOST, o->host);
  unsigned port = (unsigned)o->port;
  ssh_options_set(ssh, SSH_OPTIONS_PORT, &port);
  ssh_options_set(ssh, SSH_OPTIONS_USER, "bench");
  ssh_options_set(ssh, SSH_OPTIONS_TIMEOUT, &o->timeout_s);
  ssh_options_set(ssh, SSH_OPTIONS_NODELAY, &(int){1});
  ssh_options_set(ssh, SSH_OPTIONS_KNOWNHOSTS, "/dev/null");
  ssh_options_set(ssh, SSH_OPTIONS_GLOBAL_KNOWNHOSTS, "/dev/null");
  ssh_options_set(ssh, SSH_OPTIONS_CIPHERS_C_S, "aes128-gcm@openssh.com");
  ssh_options_set(ssh, SSH_OPTIONS_CIPHERS_S_C, "aes128-gcm@openssh.com");
  if (ssh_connect(ssh) != SSH_OK || ssh_userauth_publickey(ssh, NULL, key) != SSH_AUTH_SUCCESS)
    fail("%s port %ld: %s", o->host, o->port, ssh_get_error(ssh));
  return ssh;
}

static void open_channel(struct load *l, struct connection *c) {
  const struct options *o = &l->options;
  c->stream.ssh = ssh_channel_new(c->link.ssh);
  if (!c->stream.ssh) fail("out of memory");
  stream_listen(&c->stream);
  int result;
  if (l->lines) {
    result = ssh_channel_open_session(c->stream.ssh);
    if (result == SSH_OK) result = ssh_channel_request_subsystem(c->stream.ssh, "korv");
  } else {
    result = ssh_channel_open_forward(c->stream.ssh, o->host, (int)o->port, "127.0.0.1", 0);
  }
  if (result != SSH_OK) fail("no channel: %s", ssh_get_error(c->link.ssh));
}

static void open_connection(struct load *l, struct connection *c, ssh_key key) {
  size_t places = (size_t)l->options.in_flight;
  c->places = calloc(places, sizeof *c->places);
  c->free = calloc(places, sizeof *c->free);
  if (!c->places || !c->free) fail("out of memory");
  while (c->free_count < places) c->free[c->free_count] = c->free_count, c->free_count++;
  c->link.ssh = log_in(&l->options, key);
  link_count(&c->link);
  c->link.fd = -1;
  if (l->commands) return;
  open_channel(l, c);
  ssh_set_blocking(c->link.ssh, 0);
  if (!link_open(&c->link, l->epoll)) fail("a connection can't be watched: %s", strerror(errno));
}

static void open_connections(struct load *l) {
  ssh_key key;
  size_t count = (size_t)l->options.connections;
  if (ssh_pki_import_privkey_file(l->options.key, NULL, NULL, NULL, &key) != SSH_OK)
    fail("%s: no private key that can be read", l->options.key);
  l->epoll = epoll_create1(EPOLL_CLOEXEC);
  l->connections = calloc(count, sizeof *l->connections);
  if (l->epoll < 0 || !l->connections) fail("out of memory");
  for (size_t i = 0; i < count; i++) open_connection(l, &l->connections[i], key);
  ssh_key_free(key);
}

static void close_connections(struct load *l) {
  for (long i = 0; i < l->options.connections; i++) {
    struct connection *c = &l->connections[i];
    link_close(&c->link);
    stream_close(&c->stream);
    free(c->places);
    free(c->free);
  }
  free(l->connections);
  close(l->epoll);
}

/* ---- the run --------------------------------------------------------------------------------------------------------------- */

/* Sending may read: libssh takes what has come in when it flushes. So it goes on until nothing came in. */
static void turn(struct load *l, struct connection *c) {
  bool alive = link_pump(&c->link);
  uint64_t before;
  do {
    before = c->link.socket_bytes.in_bytes;
    l->now_ns = now_ns();
    take_answers(l, c);
    alive = alive && send_due(l, c);
  } while (alive && c->link.socket_bytes.in_bytes != before);
  if (!alive || !link_watch(&c->link)) fail("connection lost: %s", ssh_get_error(c->link.ssh));
  if (c->stream.ended) fail("the server closed a channel");
}

static void wait_for_answers(struct load *l) {
  struct epoll_event events[EVENTS_A_TURN];
  uint64_t left_ns = l->now_ns < l->deadline_ns ? l->deadline_ns - l->now_ns : 0;
  int count = epoll_wait(l->epoll, events, EVENTS_A_TURN, (int)(left_ns / 1000000u));
  l->now_ns = now_ns();
  for (int i = 0; i < count; i++) turn(l, events[i].data.ptr);
}

/* What one command prints; NULL where it failed. */
static const char *command_output(ssh_channel channel, const char *command) {
  static char output[4096];
  size_t length = 0;
  int got = 1;
  if (ssh_channel_open_session(channel) != SSH_OK || ssh_channel_request_exec(channel, command) != SSH_OK) return NULL;
  while (got > 0 && length < sizeof output - 1) {
    got = ssh_channel_read(channel, output + length, (uint32_t)(sizeof output - 1 - length), 0);
    if (got > 0) length += (size_t)got;
  }
  output[length] = '\0';
  return got == 0 && ssh_channel_get_exit_status(channel) == 0 ? output : NULL;
}

static void run_command(struct load *l, ssh_session ssh, const char *command) {
  ssh_channel channel = ssh_channel_new(ssh);
  if (!channel) fail("out of memory");
  uint64_t sent_ns = now_ns();
  const char *output = command_output(channel, command);
  ssh_channel_close(channel);
  ssh_channel_free(channel);
  l->now_ns = now_ns();
  l->unsent--;
  l->answers++;
  histogram_add(&l->latency, l->now_ns - sent_ns);
  if (!output || !strstr(output, l->options.expect))
    complain(l, "a command that failed, or without the expected text", (struct text){output ? output : "", output ? strlen(output) : 0});
}

static void run_commands(struct load *l) {
  char command[1024];
  snprintf(command, sizeof command, "%s %s", l->options.verb, l->options.resource);
  while (l->unsent && l->now_ns < l->deadline_ns) run_command(l, l->connections[0].link.ssh, command);
}

/* Sends so many requests and waits for their answers, or for the deadline. */
static void run(struct load *l, uint64_t requests) {
  memset(&l->latency, 0, sizeof l->latency);
  l->answers = 0;
  l->unsent = requests;
  l->now_ns = now_ns();
  if (l->commands) run_commands(l);
  for (long i = 0; i < l->options.connections && l->unsent; i++) turn(l, &l->connections[i]);
  while (l->answers < requests && l->now_ns < l->deadline_ns) wait_for_answers(l);
  if (l->answers < requests) {
    fprintf(stderr, "%llu of %llu requests without an answer after %ld s\n", (unsigned long long)(requests - l->answers),
            (unsigned long long)requests, l->options.timeout_s);
    l->errors += requests - l->answers;
  }
}

static double micros(uint64_t ns) {
  return (double)ns / 1000.0;
}

static void report(const struct load *l, uint64_t wall_ns, uint64_t server_ns, uint64_t load_ns) {
  const struct options *o = &l->options;
  double count = l->answers ? (double)l->answers : 1.0;
  printf("{\"encoding\":\"%s\",\"connections\":%ld,\"in_flight\":%ld,\"message_bytes\":%zu,\"requests\":%ld,\"answers\":%llu,"
         "\"errors\":%llu,\"wall_s\":%.3f,\"answers_per_s\":%.0f,\"server_cpu_us_per_request\":%.3f,\"load_cpu_us_per_request\":%.3f,"
         "\"p50_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f}\n",
         o->encoding, o->connections, o->in_flight, l->request.length - l->lines, o->requests, (unsigned long long)l->answers,
         (unsigned long long)l->errors, micros(wall_ns) / 1e6, count / (micros(wall_ns) / 1e6), micros(server_ns) / count,
         micros(load_ns) / count, micros(histogram_quantile(&l->latency, 0.5)), micros(histogram_quantile(&l->latency, 0.99)),
         micros(l->latency.most));
}

static void measure(struct load *l) {
  struct cpu_clocks server = {.count = 0}, own;
  run(l, (uint64_t)l->options.requests / 10);
  if (l->errors) fail("%llu errors in the warm-up", (unsigned long long)l->errors);
  if (l->options.pid) cpu_clocks_open(&server, (pid_t)l->options.pid);
  cpu_clocks_open(&own, 0);
  uint64_t wall_ns = now_ns(), server_ns = cpu_clocks_ns(&server), own_ns = cpu_clocks_ns(&own);
  run(l, (uint64_t)l->options.requests);
  server_ns = cpu_clocks_ns(&server) - server_ns;
  own_ns = cpu_clocks_ns(&own) - own_ns;
  report(l, now_ns() - wall_ns, server_ns, own_ns);
}

/* ---- options --------------------------------------------------------------------------------------------------------------- */

static struct load load = {.options = {.host = "127.0.0.1",
                                       .encoding = "line",
                                       .verb = "GET",
                                       .resource = "/hello",
                                       .expect = "Hello World!",
                                       .connections = 1,
                                       .in_flight = 1,
                                       .size = 100,
                                       .cpu = -1,
                                       .timeout_s = 60}};

static const struct {
  const char *name;
  const char **text; /* or */
  long *number;
  long least, most;
} known[] = {
    {"port", NULL, &load.options.port, 1, 65535},
    {"key", &load.options.key, NULL, 0, 0}, /* the client's private key */
    {"requests", NULL, &load.options.requests, 1, 100000000},
    {"host", &load.options.host, NULL, 0, 0},
    {"connections", NULL, &load.options.connections, 1, 10000},
    {"in-flight", NULL, &load.options.in_flight, 1, 100000}, /* on each connection */
    {"encoding", &load.options.encoding, NULL, 0, 0},        /* gzip, line or exec */
    {"level", NULL, &load.options.level, 0, 9},              /* of gzip; 0 stores */
    {"size", NULL, &load.options.size, 0, 16 << 20},         /* bytes of a request's JSON, filled up in its body */
    {"verb", &load.options.verb, NULL, 0, 0},
    {"resource", &load.options.resource, NULL, 0, 0},
    {"expect", &load.options.expect, NULL, 0, 0},        /* a text that every answer holds */
    {"pid", NULL, &load.options.pid, 1, 1L << 30},       /* the server, to measure its CPU time and its children's */
    {"cpu", NULL, &load.options.cpu, 0, 1023},           /* where to run */
    {"timeout", NULL, &load.options.timeout_s, 1, 3600}, /* seconds for all of it */
};

enum { KNOWN = sizeof known / sizeof *known };

static long whole_number(size_t option, const char *value) {
  char *end;
  errno = 0;
  long n = strtol(value, &end, 10);
  if (errno || *end || end == value || n < known[option].least || n > known[option].most)
    fail("--%s: a whole number from %ld to %ld, not '%s'", known[option].name, known[option].least, known[option].most, value);
  return n;
}

static void read_options(int argc, char **argv) {
  struct option options[KNOWN + 1] = {{0}};
  for (size_t i = 0; i < KNOWN; i++) options[i] = (struct option){known[i].name, required_argument, NULL, 0};
  int got, i;
  while ((got = getopt_long(argc, argv, "", options, &i)) == 0) {
    if (known[i].text)
      *known[i].text = optarg;
    else
      *known[i].number = whole_number((size_t)i, optarg);
  }
  const struct options *o = &load.options;
  if (got != -1 || optind != argc || !o->port || !o->key || !o->requests) fail("use: %s --port N --key FILE --requests N …", argv[0]);
  load.lines = strcmp(o->encoding, "line") == 0;
  load.commands = strcmp(o->encoding, "exec") == 0;
  if (!load.lines && !load.commands && strcmp(o->encoding, "gzip") != 0) fail("--encoding: gzip, line or exec, not '%s'", o->encoding);
}

int main(int argc, char **argv) {
  read_options(argc, argv);
  signal(SIGPIPE, SIG_IGN);
  alarm((unsigned)load.options.timeout_s + 2); /* for what blocks: the log-ins */
  load.deadline_ns = now_ns() + (uint64_t)load.options.timeout_s * 1000000000u;
  if (load.options.cpu >= 0) pin_to_cpu((int)load.options.cpu);
  packer_open((int)load.options.level);
  make_request(&load);
  open_connections(&load);
  measure(&load);
  close_connections(&load);
  bytes_free(&load.request);
  packer_close();
  return load.errors ? 1 : 0;
}
