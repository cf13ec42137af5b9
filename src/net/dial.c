/* The client's end of a session until its first channel is open: name, TCP, key exchange, the host's key, log-in, channel. libssh's
 * calls of that time are stepped: the same call again whenever the socket moves, until it no longer says SSH_AGAIN. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "net/internal.h"

typedef struct attempt { /* to reach one address */
  uv_tcp_t tcp;
  uv_connect_t request;
  dial *dial;
} attempt;

struct dial {
  net_session *session; /* NULL: gone, only requests under way keep this alive */
  uv_getaddrinfo_t resolve;
  attempt *attempt;
  struct addrinfo *found, *next;
  unsigned pending; /* requests whose callback is to come */
  net_key **keys;
  size_t key_count, tried;
  ssh_channel channel;
  int port;
  bool accept_new, heard_of_rsa;
  char *host, *user, *known_hosts;
  uint64_t timeout_ms;
};

static void free_if_over(dial *d) {
  if (d->session || d->pending) return;
  for (size_t i = 0; i < d->key_count; i++) net_key_free(d->keys[i]);
  free(d->keys);
  if (d->found) uv_freeaddrinfo(d->found);
  free(d->host);
  free(d->user);
  free(d->known_hosts);
  free(d);
}

void net_dial_free(net_session *s) {
  dial *d = s->dial;
  s->dial = NULL;
  d->session = NULL;
  free_if_over(d);
}

static void request_done(dial *d) {
  d->pending--;
  free_if_over(d);
}

static void on_attempt_closed(uv_handle_t *h) {
  attempt *a = (attempt *)(void *)((char *)h - offsetof(attempt, tcp));
  dial *d = a->dial;
  net *n = (net *)d->resolve.data;
  free(a);
  request_done(d);
  net_handle_gone(n);
}

static void end_attempt(dial *d) {
  if (!d->attempt) return;
  uv_close((uv_handle_t *)&d->attempt->tcp, on_attempt_closed);
  d->attempt = NULL;
}

void net_dial_cancel(net_session *s) {
  end_attempt(s->dial);
  if (s->dial->pending) uv_cancel((uv_req_t *)&s->dial->resolve);
}

/* ---- the channel ------------------------------------------------------------------------------------------------------------------- */

/* One step of opening a channel: SSH_AGAIN, SSH_OK once it is there, SSH_ERROR where it is refused or the session is lost. */
static int step_open(net_session *s, ssh_channel ssh, net_way way) {
  if (way == NET_TCPIP) return ssh_channel_open_forward(ssh, s->dial->host, s->dial->port, "127.0.0.1", 0);
  int rc = ssh_channel_is_open(ssh) ? SSH_OK : ssh_channel_open_session(ssh);
  return rc == SSH_OK ? ssh_channel_request_subsystem(ssh, "korv") : rc;
}

static void first_opened(net_session *s) {
  net_channel *c = net_channel_new(s, s->dial->channel);
  if (!c) {
    net_session_fail(s, "ENOMEM", "out of memory for a channel");
    return;
  }
  net_channel_set_way(c, s->way);
  s->dial->channel = NULL;
  net_session_opened(s);
  if (net_session_drive(s)) net_session_pump(s);
}

/* A Python korv server knows direct-tcpip alone. */
static int fall_back(net_session *s) {
  dial *d = s->dial;
  if (!net_session_healthy(s)) return SSH_ERROR;
  if (s->way == NET_TCPIP) {
    net_session_fail(s, "EPROTO", "%s port %d let us log in but opens neither a korv subsystem nor a direct-tcpip channel: is it a korv server?",
                     d->host, d->port);
    return SSH_ERROR;
  }
  ssh_channel_free(d->channel);
  d->channel = NULL;
  s->way = NET_TCPIP;
  return SSH_OK;
}

static int step_channel(net_session *s) {
  dial *d = s->dial;
  if (!d->channel) d->channel = ssh_channel_new(s->ssh);
  if (!d->channel) {
    net_session_fail(s, "ENOMEM", "out of memory for a channel");
    return SSH_ERROR;
  }
  int rc = step_open(s, d->channel, s->way);
  if (rc == SSH_OK) first_opened(s);
  return rc == SSH_ERROR ? fall_back(s) : rc;
}

/* ---- further channels ------------------------------------------------------------------------------------------------------------------ */

static void step_further(net_session *s, net_channel *c) {
  int rc = step_open(s, c->ssh, s->way);
  if (rc == SSH_AGAIN || !net_session_healthy(s)) return;
  c->opening = false;
  s->opening--;
  if (rc == SSH_OK)
    net_channel_set_way(c, s->way);
  else
    net_channel_refused(c);
  net_session_changed(s);
  net_session_written(s);
}

void net_dial_step_channels(net_session *s) {
  net_channel *c;
  TAILQ_FOREACH(c, &s->channels, link) {
    if (c->opening) step_further(s, c);
    if (s->state != SESSION_OPEN) return;
  }
}

net_channel *net_channel_open(net_session *s) {
  ssh_channel ssh = ssh_channel_new(s->ssh);
  net_channel *c = ssh ? net_channel_new(s, ssh) : NULL;
  if (!c) {
    if (ssh) ssh_channel_free(ssh);
    return NULL;
  }
  c->way = s->way;
  c->opening = true;
  s->opening++;
  step_further(s, c);
  net_session_note_input(s);
  net_session_written(s);
  return c;
}

/* ---- log-in -------------------------------------------------------------------------------------------------------------------------- */

static void refused(net_session *s) {
  dial *d = s->dial;
  char list[160] = "";
  for (size_t i = 0; i < d->key_count; i++) {
    net_key_text key;
    net_error err;
    size_t at = strlen(list);
    if (net_key_describe(d->keys[i], &key, &err)) snprintf(list + at, sizeof list - at, "%s%s", at ? ", " : "", key.fingerprint);
  }
  net_session_fail(s, "EAUTH", "%s port %d lets none of our keys in (%s): add the public key to its authorized_keys", d->host, d->port, list);
}

/* Which signatures of RSA keys the server takes it tells only after the key exchange, and the library does not wait for that: it would
 * try SHA-1 and find that forbidden. So an RSA key comes after an exchange of messages, the attempt to log in with no key. */
static int hear_of_rsa(net_session *s) {
  dial *d = s->dial;
  if (d->heard_of_rsa || ssh_key_type(d->keys[d->tried]->key) != SSH_KEYTYPE_RSA) return SSH_OK;
  int rc = ssh_userauth_none(s->ssh, NULL);
  if (rc == SSH_AUTH_AGAIN) return SSH_AGAIN;
  d->heard_of_rsa = true;
  return SSH_OK;
}

static void auth_failed(net_session *s) {
  dial *d = s->dial;
  const char *why = ssh_get_error(s->ssh);
  bool closed = ssh_get_fd(s->ssh) < 0;
  net_session_fail(s, "EAUTH", "cannot log in to %s port %d: %s", d->host, d->port,
                   closed ? "it closed the connection, perhaps after too many keys" : why);
}

static int step_auth(net_session *s) {
  dial *d = s->dial;
  if (d->tried == d->key_count) {
    refused(s);
    return SSH_ERROR;
  }
  if (hear_of_rsa(s) == SSH_AGAIN) return SSH_AGAIN;
  switch (ssh_userauth_publickey(s->ssh, NULL, d->keys[d->tried]->key)) {
  case SSH_AUTH_SUCCESS: s->state = SESSION_CHANNEL; return SSH_OK;
  case SSH_AUTH_AGAIN: return SSH_AGAIN;
  case SSH_AUTH_ERROR: auth_failed(s); return SSH_ERROR;
  default: d->tried++; return SSH_OK;
  }
}

/* ---- the host's key ------------------------------------------------------------------------------------------------------------------- */

/* The library passes over lines with a marker. A revoked key is refused whatever hosts its line names. */
static bool is_revoked(const char *known_hosts, const char *blob) {
  static const char marker[] = "@revoked";
  FILE *file = fopen(known_hosts, "re");
  char *line = NULL;
  size_t size = 0;
  bool revoked = false;
  while (file && !revoked && getline(&line, &size, file) >= 0)
    revoked = strncmp(line, marker, sizeof marker - 1) == 0 && strstr(line, blob);
  free(line);
  if (file) fclose(file);
  return revoked;
}

/* Notes the fingerprint of the host's key; false where that can't be read or is revoked. */
static bool host_key_is_sound(net_session *s) {
  dial *d = s->dial;
  ssh_key key = NULL;
  char *blob = NULL;
  bool read = ssh_get_server_publickey(s->ssh, &key) == SSH_OK && net_public_key_text(key, &blob, s->fingerprint, sizeof s->fingerprint);
  bool revoked = read && d->known_hosts && is_revoked(d->known_hosts, blob);
  ssh_string_free_char(blob);
  ssh_key_free(key);
  if (!read) net_session_fail(s, "EHOSTKEY", "the host's key cannot be read");
  if (revoked)
    net_session_fail(s, "EHOSTKEYCHANGED", "THE HOST KEY OF %s PORT %d IS REVOKED: %s is marked so in %s", d->host, d->port, s->fingerprint,
                     d->known_hosts);
  return read && !revoked;
}

/* The library takes a file that cannot be read for an empty one. */
static bool known_hosts_can_be_read(net_session *s) {
  const char *path = s->dial->known_hosts;
  struct stat st;
  bool there = stat(path, &st) == 0;
  if (there ? !S_ISDIR(st.st_mode) && access(path, R_OK) == 0 : errno == ENOENT) return true;
  net_session_fail(s, "EHOSTKEY", "cannot read %s: %s", path, there && S_ISDIR(st.st_mode) ? "it is a folder" : strerror(errno));
  return false;
}

/* The library appends a line, also to one that has no end. */
static void end_last_line(const char *path) {
  int fd = open(path, O_RDWR | O_APPEND | O_CLOEXEC);
  char last = '\n';
  if (fd < 0) return;
  if (lseek(fd, -1, SEEK_END) >= 0 && read(fd, &last, 1) == 1 && last != '\n' && write(fd, "\n", 1) != 1) last = 0;
  close(fd);
}

static bool accept_host(net_session *s) {
  if (!s->dial->accept_new) return false;
  end_last_line(s->dial->known_hosts);
  return ssh_session_update_known_hosts(s->ssh) == SSH_OK;
}

static bool host_is_trusted(net_session *s) {
  dial *d = s->dial;
  if (d->known_hosts && !known_hosts_can_be_read(s)) return false;
  if (!host_key_is_sound(s)) return false;
  if (!d->known_hosts) return true;
  switch (ssh_session_is_known_server(s->ssh)) {
  case SSH_KNOWN_HOSTS_OK: return true;
  case SSH_KNOWN_HOSTS_CHANGED:
  case SSH_KNOWN_HOSTS_OTHER:
    net_session_fail(s, "EHOSTKEYCHANGED",
                 "THE HOST KEY OF %s PORT %d HAS CHANGED: it is now %s and is not the one in %s. Somebody may be listening in. If you know "
                 "why it changed, remove the old line from that file",
                 d->host, d->port, s->fingerprint, d->known_hosts);
    return false;
  case SSH_KNOWN_HOSTS_NOT_FOUND:
  case SSH_KNOWN_HOSTS_UNKNOWN:
    if (accept_host(s)) return true;
    net_session_fail(s, "EHOSTKEY", "%s port %d is not in %s; its host key is %s%s", d->host, d->port, d->known_hosts, s->fingerprint,
                 d->accept_new ? " and could not be added" : ". If that is the right one, accept it once (--accept-new, accept_new = true)");
    return false;
  default: net_session_fail(s, "EHOSTKEY", "cannot read %s: %s", d->known_hosts, ssh_get_error(s->ssh)); return false;
  }
}

static int step_kex(net_session *s) {
  int rc = ssh_connect(s->ssh);
  int fd = ssh_get_fd(s->ssh);
  if (fd >= 0) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); /* libssh makes it blocking */
  if (rc == SSH_OK && host_is_trusted(s)) s->state = SESSION_AUTH;
  if (rc == SSH_ERROR && s->state < SESSION_DEAD) {
    net_session_fail(s, "ESSH", "cannot begin SSH with %s port %d: %s", s->dial->host, s->dial->port, net_session_error(s));
  }
  return rc;
}

void net_dial_lost(net_session *s) {
  net_session_fail(s, "ECONNRESET", "SSH with %s port %d was not to be had: the connection was reset", s->dial->host, s->dial->port);
}

void net_dial_step(net_session *s) {
  int rc = SSH_OK;
  while (rc == SSH_OK && s->state < SESSION_OPEN) {
    rc = s->state == SESSION_KEX ? step_kex(s) : s->state == SESSION_AUTH ? step_auth(s) : step_channel(s);
  }
  if (s->state < SESSION_DEAD) net_session_mask(s);
}

/* ---- reaching it ---------------------------------------------------------------------------------------------------------------------- */

static bool set_options(net_session *s, int fd) {
  dial *d = s->dial;
  unsigned port = (unsigned)d->port;
  bool no_config = false;
  int rsa_bits = NET_RSA_BITS;
  const char *known_hosts = d->known_hosts ? d->known_hosts : "/dev/null";
  const struct {
    enum ssh_options_e name;
    const void *value;
  } options[] = {
      {SSH_OPTIONS_PROCESS_CONFIG, &no_config},
      {SSH_OPTIONS_HOST, d->host},
      {SSH_OPTIONS_PORT, &port},
      {SSH_OPTIONS_USER, d->user},
      {SSH_OPTIONS_FD, &fd},
      {SSH_OPTIONS_KNOWNHOSTS, known_hosts},
      {SSH_OPTIONS_GLOBAL_KNOWNHOSTS, "/dev/null"},
      {SSH_OPTIONS_CIPHERS_C_S, NET_CIPHERS},
      {SSH_OPTIONS_CIPHERS_S_C, NET_CIPHERS},
      {SSH_OPTIONS_KEY_EXCHANGE, NET_KEX},
      {SSH_OPTIONS_HMAC_C_S, NET_MACS},
      {SSH_OPTIONS_HMAC_S_C, NET_MACS},
      {SSH_OPTIONS_COMPRESSION, "none"},
      {SSH_OPTIONS_HOSTKEYS, NET_KEY_TYPES},
      {SSH_OPTIONS_PUBLICKEY_ACCEPTED_TYPES, NET_KEY_TYPES},
      {SSH_OPTIONS_RSA_MIN_SIZE, &rsa_bits},
  };
  for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
    if (ssh_options_set(s->ssh, options[i].name, options[i].value) == SSH_OK) continue;
    net_session_fail(s, "ESSH", "cannot set up SSH: %s", ssh_get_error(s->ssh));
    return false;
  }
  return true;
}

/* A server has nothing to ask of us. 1: the library refuses it; else it would keep it for somebody to fetch. */
static int on_message(ssh_session ssh, ssh_message message, void *userdata) {
  (void)ssh, (void)message, (void)userdata;
  return 1;
}

static void begin_ssh(net_session *s, int fd) {
  net_error err;
  s->ssh = ssh_new();
  if (!s->ssh || !set_options(s, fd)) {
    net_session_fail(s, "ENOMEM", "out of memory for the session");
    close(fd);
    return;
  }
  ssh_set_blocking(s->ssh, 0);
  ssh_set_message_callback(s->ssh, on_message, NULL);
  ssh_set_counters(s->ssh, &s->counter, &s->packets);
  s->state = SESSION_KEX;
  int rc = step_kex(s); /* from here on the fd is libssh's */
  if (s->state >= SESSION_DEAD) return;
  if (!net_session_watch(s, &err))
    net_session_fail(s, err.name, "%s", err.text);
  else if (rc == SSH_OK)
    net_dial_step(s);
}

static void connect_next(net_session *s, int error);

static void on_connected(uv_connect_t *request, int status) {
  attempt *a = (attempt *)(void *)((char *)request - offsetof(attempt, request));
  net_session *s = a->dial->session;
  if (status == UV_ECANCELED || !s || s->state >= SESSION_DEAD) return;
  uv_os_fd_t fd;
  int copy = -1;
  if (status == 0 && uv_fileno((uv_handle_t *)&a->tcp, &fd) == 0) copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  end_attempt(a->dial);
  if (copy >= 0) setsockopt(copy, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)); /* with an fd of ours libssh does not */
  if (copy >= 0)
    begin_ssh(s, copy);
  else
    connect_next(s, status ? status : UV_EMFILE);
}

/* gcc's analyzer does not see that the attempt is freed when its handle has been closed. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wanalyzer-malloc-leak"
static bool try_address(net_session *s, const struct addrinfo *at, int *error) {
  dial *d = s->dial;
  struct sockaddr_storage address;
  memcpy(&address, at->ai_addr, at->ai_addrlen);
  if (address.ss_family == AF_INET6)
    ((struct sockaddr_in6 *)&address)->sin6_port = htons((uint16_t)d->port);
  else
    ((struct sockaddr_in *)&address)->sin_port = htons((uint16_t)d->port);
  getnameinfo((struct sockaddr *)&address, at->ai_addrlen, s->address, sizeof s->address, NULL, 0, NI_NUMERICHOST);
  d->attempt = calloc(1, sizeof *d->attempt);
  if (!d->attempt) return *error = UV_ENOMEM, false;
  d->attempt->dial = d;
  d->pending++; /* until the handle is closed */
  uv_tcp_init(s->net->loop, &d->attempt->tcp);
  net_handle_init(s->net, (uv_handle_t *)&d->attempt->tcp);
  *error = uv_tcp_connect(&d->attempt->request, &d->attempt->tcp, (struct sockaddr *)&address, on_connected);
  if (*error < 0) end_attempt(d);
  return *error == 0;
}
#pragma GCC diagnostic pop

static void connect_next(net_session *s, int error) {
  dial *d = s->dial;
  s->state = SESSION_CONNECT;
  while (d->next) {
    struct addrinfo *at = d->next;
    d->next = at->ai_next;
    if (try_address(s, at, &error)) return;
  }
  net_session_fail(s, uv_err_name(error), "cannot connect to %s port %d: %s", d->host, d->port, uv_strerror(error));
}

static void on_resolved(uv_getaddrinfo_t *request, int status, struct addrinfo *found) {
  dial *d = (dial *)(void *)((char *)request - offsetof(dial, resolve));
  net *n = request->data;
  net_session *s = d->session;
  d->found = d->next = found;
  if (s && s->state < SESSION_DEAD) {
    if (status < 0)
      net_session_fail(s, uv_err_name(status), "cannot find the address of %s: %s", d->host, uv_strerror(status));
    else
      connect_next(s, UV_EADDRNOTAVAIL);
  }
  request_done(d);
  net_handle_gone(n);
}

static void on_late(uv_timer_t *timer) {
  static const char *const doing[] = {"finding its address", "connecting", "exchanging keys", "logging in", "opening a channel"};
  net_session *s = (net_session *)((char *)timer - offsetof(net_session, timer));
  net_session_fail(s, "ETIMEDOUT", "%s port %d did not answer within %.3g s, while %s", s->dial->host, s->dial->port,
               (double)s->dial->timeout_ms / 1000, doing[s->state]);
}

static bool copy_options(dial *d, const net_dial_options *o) {
  d->port = o->port;
  d->accept_new = o->accept_new;
  d->timeout_ms = o->timeout_ms;
  d->host = strdup(o->host);
  d->user = strdup(o->user);
  d->known_hosts = o->known_hosts ? strdup(o->known_hosts) : NULL;
  d->keys = calloc(o->key_count ? o->key_count : 1, sizeof *d->keys);
  if (d->keys) {
    memcpy(d->keys, o->keys, o->key_count * sizeof *d->keys);
    d->key_count = o->key_count;
  }
  return d->host && d->user && d->keys && (!o->known_hosts || d->known_hosts);
}

static net_session *fail_to_begin(dial *d, const net_dial_options *o, net_error *err) {
  net_error_set(err, "ENOMEM", "out of memory");
  bool taken = d && d->keys;
  for (size_t i = 0; !taken && i < o->key_count; i++) net_key_free(o->keys[i]);
  if (d) free_if_over(d);
  return NULL;
}

net_session *net_dial(net *n, const net_dial_options *o, const net_events *events, void *owner, net_error *err) {
  dial *d = calloc(1, sizeof *d);
  if (!d || !copy_options(d, o)) return fail_to_begin(d, o, err);
  net_session *s = net_session_new(n, events, owner);
  if (!s) return fail_to_begin(d, o, err);
  s->dial = d;
  s->way = NET_SUBSYSTEM;
  s->keepalive_ms = o->keepalive_ms;
  d->session = s;
  d->resolve.data = n;
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
  net_session_deadline(s, o->timeout_ms, on_late);
  int rc = uv_getaddrinfo(n->loop, &d->resolve, on_resolved, d->host, NULL, &hints);
  if (rc < 0) {
    net_session_fail(s, uv_err_name(rc), "cannot find the address of %s: %s", d->host, uv_strerror(rc));
  } else {
    d->pending++;
    n->handles++; /* the request holds the net as a handle does */
  }
  return s;
}
