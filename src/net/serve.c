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

void net_serve_logged_in(net_session *s) {
  s->logged_in = true;
  s->listener->unauthenticated--;
  net_session_opened(s);
}

/* ---- channels ------------------------------------------------------------------------------------------------------------------------ */

static int on_subsystem(ssh_session ssh, ssh_channel channel, const char *name, void *userdata) {
  (void)ssh, (void)channel;
  net_channel *c = userdata;
  if (c->has_way || strcmp(name, "korv") != 0) return SSH_ERROR;
  net_channel_set_way(c, NET_SUBSYSTEM);
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
  return c->ssh;
}

/* What no other callback takes. 1: the library answers as it does by default, which refuses. */
static int on_message(ssh_session ssh, ssh_message message, void *userdata) {
  (void)ssh;
  net_session *s = userdata;
  if (ssh_message_type(message) == SSH_REQUEST_AUTH) may_try(s);
  if (ssh_message_type(message) != SSH_REQUEST_CHANNEL_OPEN || ssh_message_subtype(message) != SSH_CHANNEL_DIRECT_TCPIP) return 1;
  net_channel *c = accept_channel(s);
  if (!c) return 1;
  net_channel_set_way(c, NET_TCPIP); /* any destination: the channel is the API */
  ssh_message_channel_request_open_reply_accept_channel(message, c->ssh);
  return 0;
}

/* ---- set-up -------------------------------------------------------------------------------------------------------------------------- */

static bool set_algorithms(ssh_bind bind) {
  bool no_config = false;
  int rsa_bits = NET_RSA_BITS;
  return ssh_bind_options_set(bind, SSH_BIND_OPTIONS_PROCESS_CONFIG, &no_config) == SSH_OK &&
         ssh_bind_options_set(bind, SSH_BIND_OPTIONS_CIPHERS_C_S, NET_CIPHERS) == SSH_OK &&
         ssh_bind_options_set(bind, SSH_BIND_OPTIONS_CIPHERS_S_C, NET_CIPHERS) == SSH_OK &&
         ssh_bind_options_set(bind, SSH_BIND_OPTIONS_KEY_EXCHANGE, NET_KEX) == SSH_OK &&
         ssh_bind_options_set(bind, SSH_BIND_OPTIONS_HMAC_C_S, NET_MACS) == SSH_OK &&
         ssh_bind_options_set(bind, SSH_BIND_OPTIONS_HMAC_S_C, NET_MACS) == SSH_OK &&
         ssh_bind_options_set(bind, SSH_BIND_OPTIONS_PUBKEY_ACCEPTED_KEY_TYPES, NET_KEY_TYPES) == SSH_OK &&
         ssh_bind_options_set(bind, SSH_BIND_OPTIONS_RSA_MIN_SIZE, &rsa_bits) == SSH_OK &&
         ssh_bind_options_set(bind, SSH_BIND_OPTIONS_BANNER, "korv") == SSH_OK;
}

ssh_bind net_serve_bind(net_key **keys, size_t key_count, net_error *err) {
  ssh_bind bind = ssh_bind_new();
  bool ok = bind && set_algorithms(bind);
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

static void set_callbacks(net_session *s) {
  s->callbacks.userdata = s;
  s->callbacks.auth_none_function = on_auth_none;
  s->callbacks.auth_pubkey_function = on_auth_key;
  s->callbacks.gssapi_select_oid_function = no_gssapi;
  s->callbacks.channel_open_request_session_function = on_open_session;
  ssh_callbacks_init(&s->callbacks);
  ssh_set_server_callbacks(s->ssh, &s->callbacks);
  ssh_set_message_callback(s->ssh, on_message, s);
  ssh_set_auth_methods(s->ssh, SSH_AUTH_METHOD_PUBLICKEY);
  ssh_set_counters(s->ssh, &s->counter, NULL);
}

static ssh_session new_ssh(void) {
  ssh_session ssh = ssh_new();
  if (!ssh) return NULL;
  ssh_set_blocking(ssh, 0);
  if (ssh_options_set(ssh, SSH_OPTIONS_COMPRESSION_C_S, "none") == SSH_OK && ssh_options_set(ssh, SSH_OPTIONS_COMPRESSION_S_C, "none") == SSH_OK)
    return ssh;
  ssh_free(ssh);
  return NULL;
}

void net_serve_accept(net_listener *l, int fd, const char *address) {
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
    ssh_handle_key_exchange(ssh); /* begins it; ssh_event_dopoll does the rest */
    if (net_session_healthy(s)) net_session_drive(s);
    net_session_written(s);
  }
}
