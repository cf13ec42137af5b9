/* The server's end of a session: its set-up, log-in, and which channels and requests it takes. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "net/internal.h"

/* ---- log-in -------------------------------------------------------------------------------------------------------------------------- */

/* Every attempt counts, whatever its method: the library keeps no count. */
static bool may_try(net_session *s) {
  if (s->state >= SESSION_DEAD) return false;
  if (++s->auth_attempts <= s->listener->options.auth_attempts) return true;
  net_session_fail(s, "EAUTH", "%u attempts to log in", s->auth_attempts - 1);
  return false;
}

static int on_auth_none(ssh_session ssh, const char *user, void *userdata) {
  (void)ssh, (void)user;
  may_try(userdata);
  return SSH_AUTH_DENIED;
}

/* Certificates are not verified by the library (only that their key is held), and DSA is on in Debian's build. */
static bool is_acceptable(ssh_key key) {
  switch (ssh_key_type(key)) {
  case SSH_KEYTYPE_ED25519:
  case SSH_KEYTYPE_ECDSA_P256:
  case SSH_KEYTYPE_ECDSA_P384:
  case SSH_KEYTYPE_ECDSA_P521:
  case SSH_KEYTYPE_SK_ED25519:
  case SSH_KEYTYPE_SK_ECDSA:
  case SSH_KEYTYPE_RSA: return true;
  default: return false;
  }
}

static bool is_allowed(net_session *s, ssh_key key, bool verified) {
  char *blob;
  net_public_key k = {ssh_key_type_to_char(ssh_key_type(key)), NULL, s->fingerprint};
  if (!is_acceptable(key) || !net_public_key_text(key, &blob, s->fingerprint, sizeof s->fingerprint)) return false;
  k.blob = blob;
  bool allowed = s->events->authorize(s->owner, s, &k, verified);
  ssh_string_free_char(blob);
  return allowed;
}

/* Asked for the offer of a key and again for its signature; only the latter is an identity, with the user name that came with it. */
static int on_auth_key(ssh_session ssh, const char *user, struct ssh_key_struct *key, char state, void *userdata) {
  (void)ssh;
  net_session *s = userdata;
  if (s->verified || !may_try(s)) return SSH_AUTH_DENIED;
  bool verified = state == SSH_PUBLICKEY_STATE_VALID;
  if (!verified && state != SSH_PUBLICKEY_STATE_NONE) return SSH_AUTH_DENIED;
  free(s->login);
  s->login = strdup(user ? user : "");
  if (!s->login || !is_allowed(s, key, verified)) return SSH_AUTH_DENIED;
  s->verified = verified;
  return SSH_AUTH_SUCCESS;
}

static ssh_string no_gssapi(ssh_session ssh, const char *user, int count, ssh_string *oids, void *userdata) {
  (void)ssh, (void)user, (void)count, (void)oids, (void)userdata;
  return NULL;
}

static void on_login_late(uv_timer_t *timer) {
  net_session *s = (net_session *)((char *)timer - offsetof(net_session, timer));
  net_session_fail(s, "ETIMEDOUT", "no log-in within %.3g s", (double)s->listener->options.login_ms / 1000);
}

/* The library drops what it cannot verify without a word to us, and to find that out may have cost it milliseconds: so what comes before the
 * log-in is counted by packets and bytes as well. */
void net_serve_before_log_in(net_session *s) {
  unsigned packets = BARE_LOGIN_PACKETS + 2 * s->listener->options.auth_attempts;
  if (s->verified) {
    s->logged_in = true;
    net_listener_know(s);
    net_session_opened(s);
  } else if (s->counter.in_bytes > STRANGER_BYTES) {
    net_session_fail(s, "EPROTO", "%d bytes without a log-in", STRANGER_BYTES);
  } else if (s->packets.in_packets > packets) {
    net_session_fail(s, "EPROTO", "%u packets without a log-in", packets);
  }
}

/* ---- channels ------------------------------------------------------------------------------------------------------------------------ */

static bool is_open(const net_channel *c, net_way way) { return c->session->listener->options.ways & NET_WAY(way); }

static int take_way(net_channel *c, net_way way) {
  if (c->has_way || !is_open(c, way)) return SSH_ERROR;
  net_channel_set_way(c, way);
  net_session_changed(c->session);
  return SSH_OK;
}

static int on_subsystem(ssh_session ssh, ssh_channel channel, const char *name, void *userdata) {
  (void)ssh, (void)channel;
  return strcmp(name, "korv") == 0 ? take_way(userdata, NET_SUBSYSTEM) : SSH_ERROR;
}

static int on_exec(ssh_session ssh, ssh_channel channel, const char *command, void *userdata) {
  (void)ssh, (void)channel;
  net_channel *c = userdata;
  if (take_way(c, NET_EXEC) != SSH_OK) return SSH_ERROR;
  c->command = strdup(command);
  if (!c->command) net_session_fail(c->session, "ENOMEM", "out of memory for a command");
  return SSH_OK;
}

static int on_shell(ssh_session ssh, ssh_channel channel, void *userdata) {
  (void)ssh, (void)channel;
  return take_way(userdata, NET_SHELL);
}

static void set_size(net_channel *c, int columns, int rows) {
  c->terminal->columns = columns > 0 && columns < 10000 ? (unsigned)columns : 80;
  c->terminal->rows = rows > 0 && rows < 10000 ? (unsigned)rows : 24;
}

static int on_pty(ssh_session ssh, ssh_channel channel, const char *name, int columns, int rows, int wide, int high, void *userdata) {
  (void)ssh, (void)channel, (void)wide, (void)high;
  net_channel *c = userdata;
  if (c->terminal || c->has_way || !c->session->terminals || !(is_open(c, NET_EXEC) || is_open(c, NET_SHELL))) return SSH_ERROR;
  c->terminal = calloc(1, sizeof *c->terminal);
  if (!c->terminal) return SSH_ERROR;
  strncpy(c->terminal->name, name, sizeof c->terminal->name - 1);
  c->terminal->no_color = c->no_color;
  set_size(c, columns, rows);
  return SSH_OK;
}

static int on_resize(ssh_session ssh, ssh_channel channel, int columns, int rows, int wide, int high, void *userdata) {
  (void)ssh, (void)channel, (void)wide, (void)high;
  net_channel *c = userdata;
  if (!c->terminal) return SSH_ERROR;
  set_size(c, columns, rows);
  c->nudged = true;
  net_session_changed(c->session);
  return SSH_OK;
}

static void on_signal(ssh_session ssh, ssh_channel channel, const char *name, void *userdata) {
  (void)ssh, (void)channel, (void)name; /* whichever it is: none is sent that lets a program go on */
  net_channel *c = userdata;
  c->interrupted = c->nudged = true;
  net_session_changed(c->session);
}

static int on_variable(ssh_session ssh, ssh_channel channel, const char *name, const char *value, void *userdata) {
  (void)ssh, (void)channel;
  net_channel *c = userdata;
  if (strcmp(name, "NO_COLOR") != 0) return SSH_ERROR;
  c->no_color = *value;
  if (c->terminal) c->terminal->no_color = c->no_color;
  return SSH_OK;
}

/* NULL: refused. The channel is the library's until its open is confirmed; c follows it from then on. */
static net_channel *accept_channel(net_session *s) {
  if (!s->verified || s->listener->closed || s->channel_count >= s->listener->options.channels) return NULL;
  ssh_channel ssh = ssh_channel_new(s->ssh);
  if (!ssh) return NULL;
  net_channel *c = net_channel_new(s, ssh);
  if (!c) ssh_channel_free(ssh);
  return c;
}

static ssh_channel on_open_session(ssh_session ssh, void *userdata) {
  (void)ssh;
  net_channel *c = accept_channel(userdata);
  if (!c) return NULL;
  c->callbacks.channel_subsystem_request_function = on_subsystem;
  c->callbacks.channel_exec_request_function = on_exec;
  c->callbacks.channel_shell_request_function = on_shell;
  c->callbacks.channel_pty_request_function = on_pty;
  c->callbacks.channel_pty_window_change_function = on_resize;
  c->callbacks.channel_signal_function = on_signal;
  c->callbacks.channel_env_request_function = on_variable;
  return c->ssh;
}

/* What no other callback takes. 1: the library answers as it does by default, which refuses. */
static int on_message(ssh_session ssh, ssh_message message, void *userdata) {
  (void)ssh;
  net_session *s = userdata;
  if (ssh_message_type(message) == SSH_REQUEST_AUTH) may_try(s);
  if (ssh_message_type(message) != SSH_REQUEST_CHANNEL_OPEN || ssh_message_subtype(message) != SSH_CHANNEL_DIRECT_TCPIP) return 1;
  net_channel *c = s->listener && s->listener->options.ways & NET_WAY(NET_TCPIP) ? accept_channel(s) : NULL;
  if (!c) return 1;
  net_channel_set_way(c, NET_TCPIP); /* any destination: the channel is the API */
  ssh_message_channel_request_open_reply_accept_channel(message, c->ssh);
  return 0;
}

/* ---- set-up -------------------------------------------------------------------------------------------------------------------------- */

static bool set_algorithms(ssh_bind bind, bool compatible) {
  const char *ciphers = compatible ? NET_CIPHERS NET_OLD_CIPHERS : NET_CIPHERS;
  bool no_config = false;
  int rsa_bits = NET_RSA_BITS;
  return ssh_bind_options_set(bind, SSH_BIND_OPTIONS_PROCESS_CONFIG, &no_config) == SSH_OK &&
         ssh_bind_options_set(bind, SSH_BIND_OPTIONS_CIPHERS_C_S, ciphers) == SSH_OK &&
         ssh_bind_options_set(bind, SSH_BIND_OPTIONS_CIPHERS_S_C, ciphers) == SSH_OK &&
         ssh_bind_options_set(bind, SSH_BIND_OPTIONS_KEY_EXCHANGE, NET_KEX) == SSH_OK &&
         ssh_bind_options_set(bind, SSH_BIND_OPTIONS_HMAC_C_S, NET_MACS) == SSH_OK &&
         ssh_bind_options_set(bind, SSH_BIND_OPTIONS_HMAC_S_C, NET_MACS) == SSH_OK &&
         ssh_bind_options_set(bind, SSH_BIND_OPTIONS_PUBKEY_ACCEPTED_KEY_TYPES, NET_KEY_TYPES) == SSH_OK &&
         ssh_bind_options_set(bind, SSH_BIND_OPTIONS_RSA_MIN_SIZE, &rsa_bits) == SSH_OK &&
         ssh_bind_options_set(bind, SSH_BIND_OPTIONS_BANNER, "korv") == SSH_OK;
}

ssh_bind net_serve_bind(net_key **keys, size_t key_count, bool compatible, net_error *err) {
  ssh_bind bind = ssh_bind_new();
  bool ok = bind && set_algorithms(bind, compatible);
  for (size_t i = 0; ok && i < key_count; i++) {
    ssh_key copy = ssh_key_dup(keys[i]->key); /* the bind takes it over */
    ok = copy && ssh_bind_options_set(bind, SSH_BIND_OPTIONS_IMPORT_KEY, copy) == SSH_OK;
    if (!ok) ssh_key_free(copy);
  }
  if (ok) return bind;
  net_error_set(err, "ESSH", "cannot set up SSH: %s", bind ? ssh_get_error(bind) : "out of memory");
  ssh_bind_free(bind);
  return NULL;
}

/* A key exchange costs as much as a log-in, and a client may ask for one whenever it likes: as often as this, and anew for each MiB that
 * went either way. */
static void on_status(void *userdata, float status) {
  enum { MOST = 60, WINDOW_MS = 60000, WINDOW_BYTES = 1 << 20 };
  net_session *s = userdata;
  if (status < 0.55f || status > 0.65f) return; /* what the library tells at the beginning of one */
  uint64_t now = uv_now(s->net->loop), bytes = s->counter.in_bytes + s->counter.out_bytes;
  if (now - s->exchanges_since_ms > WINDOW_MS || bytes - s->exchanges_since_bytes > WINDOW_BYTES) {
    s->exchanges_since_ms = now;
    s->exchanges_since_bytes = bytes;
    s->exchanges = 0;
  }
  if (++s->exchanges > MOST) net_session_fail(s, "EPROTO", "more than %d key exchanges for little data", MOST);
}

static void set_callbacks(net_session *s) {
  s->status.userdata = s;
  s->status.connect_status_function = on_status;
  ssh_callbacks_init(&s->status);
  ssh_set_callbacks(s->ssh, &s->status);
  s->callbacks.userdata = s;
  s->callbacks.auth_none_function = on_auth_none;
  s->callbacks.auth_pubkey_function = on_auth_key;
  s->callbacks.gssapi_select_oid_function = no_gssapi;
  s->callbacks.channel_open_request_session_function = on_open_session;
  ssh_callbacks_init(&s->callbacks);
  ssh_set_server_callbacks(s->ssh, &s->callbacks);
  ssh_set_message_callback(s->ssh, on_message, s);
  ssh_set_auth_methods(s->ssh, SSH_AUTH_METHOD_PUBLICKEY);
  ssh_set_counters(s->ssh, &s->counter, &s->packets);
}

static ssh_session new_ssh(void) {
  uint64_t rekey_bytes = 1 << 30;
  uint32_t rekey_s = 3600;
  ssh_session ssh = ssh_new();
  if (!ssh) return NULL;
  ssh_set_blocking(ssh, 0);
  if (ssh_options_set(ssh, SSH_OPTIONS_COMPRESSION_C_S, "none") == SSH_OK && ssh_options_set(ssh, SSH_OPTIONS_COMPRESSION_S_C, "none") == SSH_OK &&
      ssh_options_set(ssh, SSH_OPTIONS_REKEY_DATA, &rekey_bytes) == SSH_OK && ssh_options_set(ssh, SSH_OPTIONS_REKEY_TIME, &rekey_s) == SSH_OK)
    return ssh;
  ssh_free(ssh);
  return NULL;
}

void net_serve_accept(net_listener *l, int fd, const char *address, const net_source *source) {
  net_error err;
  ssh_session ssh = new_ssh();
  net_session *s = ssh ? net_session_new(l->net, l->events, l->owner) : NULL;
  if (!s) {
    ssh_free(ssh);
    close(fd);
    l->events->refused(l->owner, address, "out of memory");
    return;
  }
  s->listener = l;
  l->sessions++;
  l->unauthenticated++;
  s->source = *source;
  LIST_INSERT_HEAD(&l->strangers, s, strangers);
  s->state = SESSION_KEX;
  s->keepalive_ms = l->options.keepalive_ms;
  s->ssh = ssh;
  strncpy(s->address, address, sizeof s->address - 1);
  set_callbacks(s);
  net_session_deadline(s, l->options.login_ms, on_login_late);
  if (ssh_bind_accept_fd(l->bind, ssh, fd) != SSH_OK) {
    net_session_fail(s, "ESSH", "cannot begin SSH: %s", ssh_get_error(l->bind));
    if (ssh_get_fd(ssh) < 0) close(fd);
  } else if (!net_session_watch(s, &err)) {
    net_session_fail(s, err.name, "%s", err.text);
  } else {
    errno = 0; /* see net_session_error */
    ssh_handle_key_exchange(ssh); /* begins it; ssh_event_dopoll does the rest */
    if (net_session_healthy(s)) net_session_drive(s);
    net_session_written(s);
  }
}
