/* bare: the least that a libssh server can do for a request, as the yardstick for korv's server. It takes any number of sessions with
 * one authorized key, finds each request's end, copies its id, and sends a fixed answer: no JSON, no Lua, no router.
 *
 *   bare --host-key FILE --authorized-key FILE.pub [--port N]      port 0, the default, takes a free one; 127.0.0.1 only
 *
 * A channel (direct-tcpip, or a session's subsystem `korv`) speaks gzip members or lines as its peer's first byte says. A member is
 * answered by one SSH packet; the lines of one turn are answered in one write.
 */
#include "link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <libssh/server.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHANNELS_MOST = 64, EVENTS_A_TURN = 64, ANSWER_BYTES = 512, OUT_MOST_BYTES = 32000, IN_MOST_BYTES = 64 * 1024 * 1024 };

#define CIPHERS "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com"
#define KEY_EXCHANGE "curve25519-sha256,curve25519-sha256@libssh.org"
#define MACS "hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com"
#define ANSWER_HEAD "{\"id\":1795330870.622277,\"request_id\":"
#define ANSWER_TAIL ",\"code\":200,\"body\":{\"msg\":\"Hello World!\"}}"

struct server {
  const char *host_key;
  const char *authorized_key;
  int port;
  ssh_bind bind;
  ssh_key authorized;
  int listener;
  int epoll;
};

struct session {
  struct link link; /* first: epoll's data is the link */
  const struct server *server;
  struct ssh_server_callbacks_struct callbacks;
  struct stream channels[CHANNELS_MOST];
  size_t channel_count;
};

static volatile sig_atomic_t stopped;

static void stop(int signal_number) {
  (void)signal_number;
  stopped = 1;
}

/* ---- answers --------------------------------------------------------------------------------------------------------------- */

static void answer(struct bytes *out, struct text request) {
  struct text id = text_after(request, "\"id\":");
  if (id.length == 0 || id.length > 256) id = (struct text){"0", 1};
  char *to = bytes_room(out, ANSWER_BYTES);
  to = mempcpy(to, ANSWER_HEAD, sizeof ANSWER_HEAD - 1);
  to = mempcpy(to, id.at, id.length);
  memcpy(to, ANSWER_TAIL, sizeof ANSWER_TAIL - 1);
  out->length += sizeof ANSWER_HEAD - 1 + id.length + sizeof ANSWER_TAIL - 1;
}

/* A request is only taken when its answer can go out: what waits, waits unread. */
static bool serve_members(struct link *l, struct stream *s) {
  static struct bytes text, packet;
  struct text request;
  size_t done = 0, taken;
  bool corked = false, alive = true;
  while (alive && stream_ready(l, s, ANSWER_BYTES) && (taken = member_read(s->in.at + done, s->in.length - done, &request))) {
    done += taken;
    if (!corked && done < s->in.length) link_cork(l, corked = true);
    text.length = packet.length = 0;
    answer(&text, request);
    member_write(&packet, text.at, text.length);
    alive = stream_send(l, s, packet.at, packet.length);
  }
  if (corked) link_cork(l, false);
  bytes_drop(&s->in, done);
  return alive;
}

static bool serve_lines(struct link *l, struct stream *s) {
  struct text request;
  size_t done;
  bool alive;
  do {
    done = 0;
    for (size_t taken; s->out.length < OUT_MOST_BYTES && (taken = line_read(s->in.at + done, s->in.length - done, &request));) {
      done += taken;
      answer(&s->out, request);
      bytes_add(&s->out, "\n", 1);
    }
    bytes_drop(&s->in, done);
    alive = stream_flush(l, s);
  } while (alive && done && s->out.length == 0);
  return alive;
}

static void finish(struct link *l, struct stream *s) {
  if (s->out.length || !ssh_channel_is_open(s->ssh) || !stream_ready(l, s, 0)) return;
  ssh_channel_send_eof(s->ssh);
  ssh_channel_close(s->ssh);
}

static bool serve(struct link *l, struct stream *s) {
  bool alive = stream_flush(l, s);
  if (alive && s->in.length) alive = s->in.at[0] == GZIP_FIRST_BYTE ? serve_members(l, s) : serve_lines(l, s);
  if (alive && s->ended) finish(l, s);
  return alive && s->in.length < IN_MOST_BYTES;
}

/* ---- sessions -------------------------------------------------------------------------------------------------------------- */

static ssh_channel open_channel(ssh_session ssh, void *user) {
  struct session *s = user;
  if (s->channel_count == CHANNELS_MOST) return NULL;
  ssh_channel channel = ssh_channel_new(ssh);
  if (!channel) return NULL;
  struct stream *stream = &s->channels[s->channel_count++];
  stream->ssh = channel;
  stream_listen(stream);
  return channel;
}

static int take_subsystem(ssh_session ssh, ssh_channel channel, const char *name, void *user) {
  (void)ssh, (void)channel, (void)user;
  return strcmp(name, "korv") == 0 ? SSH_OK : SSH_ERROR;
}

static ssh_channel open_session_channel(ssh_session ssh, void *user) {
  struct session *s = user;
  ssh_channel channel = open_channel(ssh, user);
  if (channel) s->channels[s->channel_count - 1].callbacks.channel_subsystem_request_function = take_subsystem;
  return channel;
}

/* Messages that no callback takes: of these, direct-tcpip is ours. 1 has libssh give its default reply. */
static int take_message(ssh_session ssh, ssh_message message, void *user) {
  if (ssh_message_type(message) != SSH_REQUEST_CHANNEL_OPEN || ssh_message_subtype(message) != SSH_CHANNEL_DIRECT_TCPIP) return 1;
  ssh_channel channel = open_channel(ssh, user);
  if (!channel) return 1;
  ssh_message_channel_request_open_reply_accept_channel(message, channel);
  return 0;
}

static int authenticate(ssh_session ssh, const char *login, struct ssh_key_struct *key, char state, void *user) {
  (void)ssh, (void)login;
  const struct session *s = user;
  bool known = ssh_key_cmp(key, s->server->authorized, SSH_KEY_CMP_PUBLIC) == 0;
  return known && (state == SSH_PUBLICKEY_STATE_NONE || state == SSH_PUBLICKEY_STATE_VALID) ? SSH_AUTH_SUCCESS : SSH_AUTH_DENIED;
}

static void session_end(struct session *s) {
  link_close(&s->link);
  for (size_t i = 0; i < s->channel_count; i++) stream_close(&s->channels[i]);
  free(s);
}

/* Writing may read: libssh takes what has come in when it flushes. So it goes on until nothing came in. */
static void session_turn(struct session *s) {
  bool alive = link_pump(&s->link);
  uint64_t before;
  do {
    before = s->link.socket_bytes.in_bytes;
    for (size_t i = 0; alive && i < s->channel_count; i++) alive = serve(&s->link, &s->channels[i]);
  } while (alive && s->link.socket_bytes.in_bytes != before);
  if (!alive || !link_watch(&s->link)) session_end(s);
}

static void session_prepare(struct session *s) {
  s->callbacks.userdata = s;
  s->callbacks.auth_pubkey_function = authenticate;
  s->callbacks.channel_open_request_session_function = open_session_channel;
  ssh_callbacks_init(&s->callbacks);
  ssh_set_server_callbacks(s->link.ssh, &s->callbacks);
  ssh_set_message_callback(s->link.ssh, take_message, s);
  ssh_set_auth_methods(s->link.ssh, SSH_AUTH_METHOD_PUBLICKEY);
  ssh_set_blocking(s->link.ssh, 0);
  ssh_options_set(s->link.ssh, SSH_OPTIONS_COMPRESSION_C_S, "none");
  ssh_options_set(s->link.ssh, SSH_OPTIONS_COMPRESSION_S_C, "none");
  link_count(&s->link);
}

static void session_begin(const struct server *server, int fd) {
  struct session *s = calloc(1, sizeof *s);
  if (!s || !(s->link.ssh = ssh_new())) fail("out of memory");
  s->link.fd = -1;
  s->server = server;
  session_prepare(s);
  if (ssh_bind_accept_fd(server->bind, s->link.ssh, fd) != SSH_OK) {
    close(fd);
    session_end(s);
  } else if (ssh_handle_key_exchange(s->link.ssh) == SSH_ERROR || !link_open(&s->link, server->epoll)) {
    session_end(s);
  }
}

/* ---- the server ------------------------------------------------------------------------------------------------------------ */

static void accept_all(const struct server *server) {
  int fd;
  while ((fd = accept4(server->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    session_begin(server, fd);
  }
}

static void read_options(struct server *server, int argc, char **argv) {
  static const struct option options[] = {
      {"host-key", required_argument, 0, 'h'}, {"authorized-key", required_argument, 0, 'a'}, {"port", required_argument, 0, 'p'}, {0}};
  int option;
  while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
    if (option == 'h')
      server->host_key = optarg;
    else if (option == 'a')
      server->authorized_key = optarg;
    else if (option == 'p')
      server->port = (int)strtol(optarg, NULL, 10);
    else
      exit(1);
  }
  if (!server->host_key || !server->authorized_key || optind != argc || server->port < 0 || server->port > 65535)
    fail("use: %s --host-key FILE --authorized-key FILE.pub [--port N]", argv[0]);
}

static void load_keys(struct server *server) {
  server->bind = ssh_bind_new();
  if (!server->bind) fail("out of memory");
  ssh_bind_options_set(server->bind, SSH_BIND_OPTIONS_PROCESS_CONFIG, &(bool){false});
  ssh_bind_options_set(server->bind, SSH_BIND_OPTIONS_KEY_EXCHANGE, KEY_EXCHANGE);
  ssh_bind_options_set(server->bind, SSH_BIND_OPTIONS_CIPHERS_C_S, CIPHERS);
  ssh_bind_options_set(server->bind, SSH_BIND_OPTIONS_CIPHERS_S_C, CIPHERS);
  ssh_bind_options_set(server->bind, SSH_BIND_OPTIONS_HMAC_C_S, MACS);
  ssh_bind_options_set(server->bind, SSH_BIND_OPTIONS_HMAC_S_C, MACS);
  if (ssh_bind_options_set(server->bind, SSH_BIND_OPTIONS_HOSTKEY, server->host_key) != SSH_OK)
    fail("%s: %s", server->host_key, ssh_get_error(server->bind));
  if (ssh_pki_import_pubkey_file(server->authorized_key, &server->authorized) != SSH_OK)
    fail("%s: no public key that can be read", server->authorized_key);
}

static void listen_at(struct server *server) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)server->port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof at;
  server->listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  server->epoll = epoll_create1(EPOLL_CLOEXEC);
  if (server->listener < 0 || server->epoll < 0) fail("socket: %s", strerror(errno));
  setsockopt(server->listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
  if (bind(server->listener, (struct sockaddr *)&at, size) < 0 || listen(server->listener, 1024) < 0 ||
      getsockname(server->listener, (struct sockaddr *)&at, &size) < 0)
    fail("port %d: %s", server->port, strerror(errno));
  epoll_ctl(server->epoll, EPOLL_CTL_ADD, server->listener, &(struct epoll_event){.events = EPOLLIN, .data.ptr = NULL});
  printf("listening on 127.0.0.1 port %d\n", ntohs(at.sin_port));
  fflush(stdout);
}

static void run(const struct server *server) {
  struct epoll_event events[EVENTS_A_TURN];
  while (!stopped) {
    int count = epoll_wait(server->epoll, events, EVENTS_A_TURN, -1);
    for (int i = 0; i < count; i++) {
      if (events[i].data.ptr)
        session_turn(events[i].data.ptr);
      else
        accept_all(server);
    }
  }
}

int main(int argc, char **argv) {
  static struct server server;
  struct rlimit files;
  read_options(&server, argc, argv);
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  signal(SIGTERM, stop);
  signal(SIGINT, stop);
  signal(SIGPIPE, SIG_IGN);
  packer_open(0);
  load_keys(&server);
  listen_at(&server);
  run(&server);
  packer_close();
  ssh_key_free(server.authorized);
  ssh_bind_free(server.bind);
  return 0;
}
