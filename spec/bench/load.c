/* load: asks a korv server over any number of connections, each with so many requests in flight, checks every answer, and prints what
 * it cost as one line of JSON.
 *
 *   load --port N --key FILE --requests N [--connections N] [--in-flight N] [--encoding gzip|line|cat|exec] … (all: see known[])
 *
 * A gzip request is one SSH packet on a direct-tcpip channel, as the protocol's first clients send it; lines go to the subsystem
 * `korv`, all that are due in one write; cat is no korv but OpenSSH's server, which runs that command. An answer counts once its
 * request_id is one that is waited for, its code 200 and the expected text in it (from /echo: the whole body; from cat: all of it). With
 * exec each request is a command on a channel of its own, one after the other, as `ssh HOST GET /hello` is over a connection that is
 * kept; it counts once its output has ended, with exit status 0 and the expected text. A tenth of the requests are sent before as a
 * warm-up that is checked but not counted. With --rate requests are due at so many a second, whether or not the server keeps up, and
 * latency counts from then. Exit status 1 where any answer was wrong or missing.
 */
#include "dial.h"
#include "measure.h"
#include "options.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { EVENTS_A_TURN = 64, OUT_MOST_BYTES = 32000, COMPLAINTS_MOST = 5, ID_DIGITS = 12, OUTPUT_READ_BYTES = 4096 };

#define ID_FIRST UINT64_C(100000000000) /* of ID_DIGITS digits, so that all requests have one length */

struct options {
  struct dial dial;
  const char *encoding, *verb, *resource, *expect;
  long connections, in_flight, requests, rate, size, level, pid, cpu;
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
  enum encoding encoding;
  struct bytes request; /* the text of each, but for its id */
  size_t id_at;
  struct text body; /* of the request, where the answer has to hold it */
  struct connection *connections;
  int epoll;
  uint64_t now_ns;
  uint64_t deadline_ns;
  uint64_t due_ns;      /* when the next request is due */
  uint64_t interval_ns; /* 0: whenever there is a free place */
  uint64_t unsent;
  uint64_t answers;
  uint64_t errors;
  struct histogram latency;
};

/* ---- requests -------------------------------------------------------------------------------------------------------------- */

static void add_string(struct bytes *b, const char *s) {
  bytes_add(b, s, strlen(s));
}

/* Letters as a file in base64 has them: nothing that JSON would escape, and little that packs. */
static void add_letters(struct bytes *b, size_t n) {
  static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  uint32_t random = 2463534242u;
  for (char *at = bytes_room(b, n), *end = at + n; at < end; at++, b->length++) {
    random ^= random << 13, random ^= random >> 17, random ^= random << 5;
    *at = letters[random % 64];
  }
}

static void make_command(struct load *l) {
  struct bytes *r = &l->request;
  add_string(r, l->options.verb);
  add_string(r, " ");
  add_string(r, l->options.resource);
  *bytes_room(r, 1) = '\0';
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
  size_t body_at = r->length - 1, size = (size_t)l->options.size;
  if (r->length + 2 < size) add_letters(r, size - 2 - r->length);
  add_string(r, "\"}");
  size_t body_length = r->length - 1 - body_at;
  if (l->encoding == LINE) add_string(r, "\n");
  if (strcmp(l->options.resource, "/echo") == 0) l->body = (struct text){r->at + body_at, body_length};
  if (l->encoding == CAT) l->body = (struct text){r->at, r->length};
}

/* Takes a free place for the next request and puts its id into the text. */
static void begin_request(struct load *l, struct connection *c) {
  size_t index = c->free[--c->free_count];
  uint64_t id = ID_FIRST + c->round++ * (uint64_t)l->options.in_flight + index;
  c->places[index] = (struct place){id, l->interval_ns ? l->due_ns : l->now_ns};
  l->due_ns += l->interval_ns;
  for (size_t i = ID_DIGITS; i-- > 0; id /= 10) l->request.at[l->id_at + i] = (char)('0' + id % 10);
  l->unsent--;
}

static bool due(const struct load *l, const struct connection *c) {
  return l->unsent && c->free_count && (!l->interval_ns || l->due_ns <= l->now_ns);
}

static bool send_members(struct load *l, struct connection *c) {
  static struct bytes packet;
  bool alive = true;
  bool corked = l->unsent > 1 && c->free_count > 1 && !l->interval_ns;
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
  return l->encoding == GZIP ? send_members(l, c) : send_lines(l, c);
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

static bool is_right(const struct load *l, struct text answer) {
  if (!l->body.length) return text_holds(answer, l->options.expect);
  const char *body = l->encoding == CAT ? answer.at : text_after(answer, "\"body\":").at;
  return (size_t)(answer.at + answer.length - body) >= l->body.length && memcmp(body, l->body.at, l->body.length) == 0;
}

static void take_answer(struct load *l, struct connection *c, struct text answer) {
  uint64_t id = number(text_after(answer, l->encoding == CAT ? "\"id\":" : "\"request_id\":"));
  size_t index = (size_t)((id - ID_FIRST) % (uint64_t)l->options.in_flight);
  if (id < ID_FIRST || c->places[index].id != id) {
    complain(l, "an answer to nothing that was asked, or a second one", answer);
    return;
  }
  c->places[index].id = 0;
  c->free[c->free_count++] = index;
  l->answers++;
  histogram_add(&l->latency, l->now_ns - c->places[index].sent_ns);
  if (l->encoding != CAT && number(text_after(answer, "\"code\":")) != 200)
    complain(l, "a code other than 200", answer);
  else if (!is_right(l, answer))
    complain(l, "an answer without the expected text", answer);
}

/* The first whole answer among so many bytes; returns what it takes. What is too short to be one is not searched. */
static size_t next_answer(const struct load *l, const char *at, size_t length, struct text *answer) {
  if (l->encoding == GZIP) return member_read(at, length, answer);
  if (length < l->body.length) return 0;
  if (l->encoding == LINE) return line_read(at, length, answer);
  *answer = (struct text){at, l->body.length};
  return l->body.length;
}

static void take_answers(struct load *l, struct connection *c) {
  struct bytes *in = &c->stream.in;
  size_t done = 0, taken;
  struct text answer;
  while (done < in->length && (taken = next_answer(l, in->at + done, in->length - done, &answer))) {
    take_answer(l, c, answer);
    done += taken;
  }
  bytes_drop(in, done);
}

/* ---- connections ----------------------------------------------------------------------------------------------------------- */

static void *zeroed(size_t count, size_t size) {
  void *at = calloc(count, size);
  if (!at) fail("out of memory");
  return at;
}

/* gcc's analyzer loses sight of what l->connections holds where a call may end the program. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wanalyzer-malloc-leak"
static void open_connection(struct load *l, struct connection *c, ssh_key key) {
  size_t places = (size_t)l->options.in_flight;
  c->places = zeroed(places, sizeof *c->places);
  c->free = zeroed(places, sizeof *c->free);
  while (c->free_count < places) c->free[c->free_count] = c->free_count, c->free_count++;
  dial_log_in(&l->options.dial, key, &c->link);
  link_count(&c->link);
  c->link.fd = -1;
  if (l->encoding == EXEC) return;
  dial_open(&l->options.dial, l->encoding, &c->link, &c->stream);
  ssh_set_blocking(c->link.ssh, 0);
  if (!link_open(&c->link, l->epoll)) fail("a connection can't be watched: %s", strerror(errno));
}

static void open_connections(struct load *l) {
  ssh_key key = dial_key(&l->options.dial);
  size_t count = (size_t)l->options.connections;
  l->epoll = epoll_create1(EPOLL_CLOEXEC);
  l->connections = zeroed(count, sizeof *l->connections);
  if (l->epoll < 0) fail("epoll: %s", strerror(errno));
  for (size_t i = 0; i < count; i++) open_connection(l, &l->connections[i], key);
  ssh_key_free(key);
}
#pragma GCC diagnostic pop

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

/* ---- commands -------------------------------------------------------------------------------------------------------------- */

/* What a command prints, to its end. False: it failed. */
static bool command_output(ssh_channel channel, const char *command, struct bytes *output) {
  int got = 1;
  if (ssh_channel_open_session(channel) != SSH_OK || ssh_channel_request_exec(channel, command) != SSH_OK) return false;
  while (got > 0) {
    got = ssh_channel_read(channel, bytes_room(output, OUTPUT_READ_BYTES), OUTPUT_READ_BYTES, 0);
    if (got > 0) output->length += (size_t)got;
  }
  return got == 0 && ssh_channel_get_exit_status(channel) == 0;
}

static void run_command(struct load *l, ssh_session ssh) {
  static struct bytes output;
  output.length = 0;
  ssh_channel channel = ssh_channel_new(ssh);
  if (!channel) fail("out of memory");
  uint64_t sent_ns = now_ns();
  bool done = command_output(channel, l->request.at, &output);
  ssh_channel_close(channel);
  ssh_channel_free(channel);
  l->now_ns = now_ns();
  l->unsent--;
  l->answers++;
  histogram_add(&l->latency, l->now_ns - sent_ns);
  struct text answer = {output.at, output.length};
  if (!done)
    complain(l, "a command that failed", answer);
  else if (!is_right(l, answer))
    complain(l, "a command without the expected text", answer);
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

/* Until when nothing is to be done but to take answers. */
static uint64_t next_ns(const struct load *l) {
  bool any_free = false;
  for (long i = 0; l->interval_ns && l->unsent && i < l->options.connections; i++) any_free |= l->connections[i].free_count > 0;
  return any_free && l->due_ns < l->deadline_ns ? l->due_ns : l->deadline_ns;
}

static void wait_for_answers(struct load *l) {
  struct epoll_event events[EVENTS_A_TURN];
  uint64_t until_ns = next_ns(l), left_ns = l->now_ns < until_ns ? until_ns - l->now_ns : 0;
  struct timespec left = {(time_t)(left_ns / 1000000000u), (long)(left_ns % 1000000000u)};
  int count = epoll_pwait2(l->epoll, events, EVENTS_A_TURN, &left, NULL);
  l->now_ns = now_ns();
  for (int i = 0; i < count; i++) turn(l, events[i].data.ptr);
  for (long i = 0; l->interval_ns && i < l->options.connections; i++)
    if (due(l, &l->connections[i])) turn(l, &l->connections[i]);
}

static void run_messages(struct load *l, uint64_t requests) {
  for (long i = 0; i < l->options.connections && l->unsent; i++) turn(l, &l->connections[i]);
  while (l->answers < requests && l->now_ns < l->deadline_ns) wait_for_answers(l);
}

static void run_commands(struct load *l) {
  while (l->unsent && l->now_ns < l->deadline_ns) run_command(l, l->connections[0].link.ssh);
}

/* Sends so many requests and waits for their answers, or for the deadline. */
static void run(struct load *l, uint64_t requests) {
  memset(&l->latency, 0, sizeof l->latency);
  l->answers = 0;
  l->unsent = requests;
  l->now_ns = l->due_ns = now_ns();
  if (l->encoding == EXEC)
    run_commands(l);
  else
    run_messages(l, requests);
  if (l->answers < requests) {
    fprintf(stderr, "%llu of %llu requests without an answer after %ld s\n", (unsigned long long)(requests - l->answers),
            (unsigned long long)requests, l->options.dial.timeout_s);
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
         o->encoding, o->connections, o->in_flight, l->request.length - (l->encoding == LINE), o->requests, (unsigned long long)l->answers,
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

static struct load load = {.options = {.dial = {.host = "127.0.0.1", .timeout_s = 60},
                                       .encoding = "line",
                                       .verb = "GET",
                                       .resource = "/hello",
                                       .expect = "Hello World!",
                                       .connections = 1,
                                       .in_flight = 1,
                                       .size = 100,
                                       .cpu = -1}};

static const struct known_option known[] = {
    {"port", NULL, &load.options.dial.port, 1, 65535},
    {"key", &load.options.dial.key, NULL, 0, 0}, /* the client's private key */
    {"requests", NULL, &load.options.requests, 1, 100000000},
    {"host", &load.options.dial.host, NULL, 0, 0},
    {"connections", NULL, &load.options.connections, 1, 10000},
    {"in-flight", NULL, &load.options.in_flight, 1, 100000}, /* on each connection */
    {"rate", NULL, &load.options.rate, 1, 1000000},          /* requests due each second, over all connections */
    {"encoding", &load.options.encoding, NULL, 0, 0},        /* gzip, line, cat or exec */
    {"level", NULL, &load.options.level, 0, 9},              /* of gzip; 0 stores */
    {"size", NULL, &load.options.size, 0, 16 << 20},         /* bytes of a request's JSON, filled up in its body */
    {"verb", &load.options.verb, NULL, 0, 0},
    {"resource", &load.options.resource, NULL, 0, 0},
    {"expect", &load.options.expect, NULL, 0, 0},             /* a text that every answer holds */
    {"pid", NULL, &load.options.pid, 1, 1L << 30},            /* the server, to measure its CPU time and its children's */
    {"cpu", NULL, &load.options.cpu, 0, 1023},                /* where to run */
    {"timeout", NULL, &load.options.dial.timeout_s, 1, 3600}, /* seconds for all of it */
};

static void read_options(int argc, char **argv) {
  int rest = options_read(known, sizeof known / sizeof *known, argc, argv);
  struct options *o = &load.options;
  if (rest != argc || !o->dial.port || !o->dial.key || !o->requests) fail("use: %s --port N --key FILE --requests N …", argv[0]);
  load.encoding = encoding_of(o->encoding);
  if (load.encoding >= CAT && (o->connections > 1 || o->in_flight > 1)) fail("%s has one request in flight", o->encoding);
  if (load.encoding == EXEC && o->rate) fail("exec has no rate");
  if (o->rate) load.interval_ns = 1000000000u / (uint64_t)o->rate;
}

int main(int argc, char **argv) {
  read_options(argc, argv);
  signal(SIGPIPE, SIG_IGN);
  alarm((unsigned)load.options.dial.timeout_s + 2); /* for what blocks: the log-ins */
  prctl(PR_SET_TIMERSLACK, 1);
  load.deadline_ns = now_ns() + (uint64_t)load.options.dial.timeout_s * 1000000000u;
  if (load.options.cpu >= 0) pin_to_cpu((int)load.options.cpu);
  packer_open((int)load.options.level);
  if (load.encoding == EXEC)
    make_command(&load);
  else
    make_request(&load);
  open_connections(&load);
  measure(&load);
  close_connections(&load);
  bytes_free(&load.request);
  packer_close();
  return load.errors ? 1 : 0;
}
