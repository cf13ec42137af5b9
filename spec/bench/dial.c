/* dial: see dial.h. */
#include "dial.h"

#include <string.h>

enum encoding encoding_of(const char *name) {
  static const char *const names[] = {[GZIP] = "gzip", [LINE] = "line", [CAT] = "cat", [EXEC] = "exec"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (strcmp(name, names[i]) == 0) return (enum encoding)i;
  fail("--encoding: gzip, line, cat or exec, not '%s'", name);
}

ssh_key dial_key(const struct dial *d) {
  ssh_key key;
  if (ssh_pki_import_privkey_file(d->key, NULL, NULL, NULL, &key) != SSH_OK) fail("%s: no private key that can be read", d->key);
  return key;
}

void dial_log_in(const struct dial *d, ssh_key key, struct link *l) {
  ssh_session ssh = ssh_new();
  if (!ssh) fail("out of memory");
  unsigned port = (unsigned)d->port;
  ssh_options_set(ssh, SSH_OPTIONS_PROCESS_CONFIG, &(bool){false});
  ssh_options_set(ssh, SSH_OPTIONS_HOST, d->host);
  ssh_options_set(ssh, SSH_OPTIONS_PORT, &port);
  ssh_options_set(ssh, SSH_OPTIONS_TIMEOUT, &d->timeout_s);
  ssh_options_set(ssh, SSH_OPTIONS_NODELAY, &(int){1});
  ssh_options_set(ssh, SSH_OPTIONS_KNOWNHOSTS, "/dev/null");
  ssh_options_set(ssh, SSH_OPTIONS_GLOBAL_KNOWNHOSTS, "/dev/null");
  ssh_options_set(ssh, SSH_OPTIONS_CIPHERS_C_S, "aes128-gcm@openssh.com");
  ssh_options_set(ssh, SSH_OPTIONS_CIPHERS_S_C, "aes128-gcm@openssh.com");
  ssh_options_set(ssh, SSH_OPTIONS_COMPRESSION, "none");
  if (ssh_connect(ssh) != SSH_OK || ssh_userauth_publickey(ssh, NULL, key) != SSH_AUTH_SUCCESS)
    fail("%s port %ld: %s", d->host, d->port, ssh_get_error(ssh));
  l->ssh = ssh;
}

static int open_session(struct stream *s, enum encoding encoding) {
  if (ssh_channel_open_session(s->ssh) != SSH_OK) return SSH_ERROR;
  return encoding == CAT ? ssh_channel_request_exec(s->ssh, "cat") : ssh_channel_request_subsystem(s->ssh, "korv");
}

void dial_open(const struct dial *d, enum encoding encoding, struct link *l, struct stream *s) {
  s->ssh = ssh_channel_new(l->ssh);
  if (!s->ssh) fail("out of memory");
  stream_listen(s);
  int result =
      encoding == GZIP ? ssh_channel_open_forward(s->ssh, d->host, (int)d->port, "127.0.0.1", 0) : open_session(s, encoding);
  if (result != SSH_OK) fail("no channel: %s", ssh_get_error(l->ssh));
}
