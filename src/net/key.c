/* Keys: made, read and named. Whether a key is let in is decided elsewhere. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "net/internal.h"

static net_key *wrap(ssh_key key, net_error *err) {
  net_key *k = malloc(sizeof *k);
  if (k) {
    k->key = key;
  } else {
    ssh_key_free(key);
    net_error_set(err, "ENOMEM", "out of memory");
  }
  return k;
}

/* The likeliest slip: a line as in authorized_keys in place of the key. */
static bool is_public(const char *path) {
  char begin[6] = "";
  FILE *file = fopen(path, "re");
  size_t got = file ? fread(begin, 1, sizeof begin - 1, file) : 0;
  if (file) fclose(file);
  return got && (strncmp(begin, "ssh-", 4) == 0 || strncmp(begin, "ecdsa", 5) == 0 || strncmp(begin, "sk-", 3) == 0);
}

/* As ssh does: a private key that others can read is no secret. */
static bool is_private(const char *path, net_error *err) {
  struct stat st;
  if (stat(path, &st) < 0) {
    net_error_set(err, uv_err_name(uv_translate_sys_error(errno)), "%s: %s", path, strerror(errno));
    return false;
  }
  if (!S_ISREG(st.st_mode)) {
    net_error_set(err, "EINVAL", "%s: not a file", path);
    return false;
  }
  if (is_public(path)) {
    net_error_set(err, "EKEY", "%s: this is a public key; name the private one, which has no .pub at its end", path);
    return false;
  }
  if (st.st_mode & 077) {
    net_error_set(err, "EPERM", "%s: others can read this private key (mode %04o); mend it with: chmod 600 %s", path, st.st_mode & 07777u, path);
    return false;
  }
  return true;
}

/* Else OpenSSL would ask for it at the terminal, and everybody would wait for who types there. */
static int no_passphrase(const char *prompt, char *to, size_t size, int echo, int verify, void *userdata) {
  (void)prompt, (void)to, (void)size, (void)echo, (void)verify, (void)userdata;
  return -1;
}

net_key *net_key_load(const char *path, const char *passphrase, net_error *err) {
  ssh_key key = NULL;
  if (!is_private(path, err)) return NULL;
  if (access(path, R_OK) < 0) {
    net_error_set(err, "EACCES", "%s: %s", path, strerror(errno));
    return NULL;
  }
  if (ssh_pki_import_privkey_file(path, passphrase, no_passphrase, NULL, &key) == SSH_OK) return wrap(key, err);
  net_error_set(err, "EKEY", "%s: not a private key that can be used%s", path,
                passphrase ? ", or the passphrase is wrong" : "; if it is encrypted, give its passphrase");
  return NULL;
}

/* Whole or not at all, and never in place of another: written beside it, and linked. */
static bool write_new(const char *path, const char *text, net_error *err) {
  char beside[4096];
  bool fits = snprintf(beside, sizeof beside, "%s.XXXXXX", path) < (int)sizeof beside;
  int fd = fits ? mkostemp(beside, O_CLOEXEC) : -1;
  if (!fits) errno = ENAMETOOLONG;
  bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && fsync(fd) == 0 && link(beside, path) == 0;
  if (!ok) net_error_set(err, uv_err_name(uv_translate_sys_error(errno)), "cannot make the key %s: %s", path, strerror(errno));
  if (fd >= 0) {
    close(fd);
    unlink(beside);
  }
  return ok;
}

net_key *net_key_make(const char *path, const char *comment, net_error *err) {
  ssh_key key = NULL;
  char *text = ssh_pki_generate(SSH_KEYTYPE_ED25519, 0, &key) == SSH_OK ? net_keyfile_text(key, comment) : NULL;
  if (!text) net_error_set(err, "ESSH", "cannot make the key %s", path);
  bool ok = text && write_new(path, text, err);
  net_keyfile_wipe(text);
  if (ok) return wrap(key, err);
  ssh_key_free(key);
  return NULL;
}

void net_key_free(net_key *k) {
  if (!k) return;
  ssh_key_free(k->key);
  free(k);
}

static bool fingerprint_of(ssh_key key, char *out, size_t size) {
  unsigned char *hash = NULL;
  size_t len = 0;
  if (ssh_get_publickey_hash(key, SSH_PUBLICKEY_HASH_SHA256, &hash, &len) != SSH_OK) return false;
  char *text = ssh_get_fingerprint_hash(SSH_PUBLICKEY_HASH_SHA256, hash, len);
  ssh_clean_pubkey_hash(&hash);
  bool fits = text && strlen(text) < size;
  if (fits) memcpy(out, text, strlen(text) + 1);
  ssh_string_free_char(text);
  return fits;
}

bool net_public_key_text(ssh_key key, char **blob, char *fingerprint, size_t size) {
  return fingerprint_of(key, fingerprint, size) && ssh_pki_export_pubkey_base64(key, blob) == SSH_OK;
}

static bool describe(ssh_key key, net_key_text *out, net_error *err) {
  const char *type = ssh_key_type_to_char(ssh_key_type(key));
  if (type && strlen(type) < sizeof out->type && fingerprint_of(key, out->fingerprint, sizeof out->fingerprint)) {
    memcpy(out->type, type, strlen(type) + 1);
    return true;
  }
  net_error_set(err, "EKEY", "the key cannot be read");
  return false;
}

bool net_key_describe(const net_key *k, net_key_text *out, net_error *err) { return describe(k->key, out, err); }

bool net_key_public(const net_key *k, char *out, size_t size) {
  char *blob = NULL;
  bool ok = ssh_pki_export_pubkey_base64(k->key, &blob) == SSH_OK && strlen(blob) < size;
  if (ok) memcpy(out, blob, strlen(blob) + 1);
  ssh_string_free_char(blob);
  return ok;
}

/* libssh reads over what stands behind a key, which nobody has written there on purpose. */
static bool is_all_of(ssh_key key, const char *blob) {
  char *own = NULL;
  bool same = ssh_pki_export_pubkey_base64(key, &own) == SSH_OK && strcmp(own, blob) == 0;
  ssh_string_free_char(own);
  return same;
}

bool net_public_key_describe(const char *type, const char *blob, net_key_text *out, net_error *err) {
  ssh_key key = NULL;
  enum ssh_keytypes_e wanted = ssh_key_type_from_name(type);
  if (wanted == SSH_KEYTYPE_UNKNOWN || ssh_pki_import_pubkey_base64(blob, wanted, &key) != SSH_OK) {
    net_error_set(err, "EKEY", "not a key of type %.60s", type);
    return false;
  }
  bool ok = is_all_of(key, blob);
  if (!ok) net_error_set(err, "EKEY", "something stands behind the key, in its base64 text");
  ok = ok && describe(key, out, err);
  ssh_key_free(key);
  if (ok && strcmp(out->type, type) != 0) {
    net_error_set(err, "EKEY", "the key is of type %s, not %.60s", out->type, type);
    ok = false;
  }
  return ok;
}
