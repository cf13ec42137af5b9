/* The text of a private key's file, in OpenSSH's format (PROTOCOL.key, openssh-key-v1), of an ed25519 key without a passphrase. libssh's
 * own text is taken apart for the key and put together anew: libssh 0.10 pads what is not encrypted to 16 bytes where the format says 8,
 * which asyncssh refuses, and it writes no comment. What held the secret is wiped. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net/internal.h"

#define BEGIN "-----BEGIN OPENSSH PRIVATE KEY-----\n"
#define END "-----END OPENSSH PRIVATE KEY-----\n"

/* What every such file begins with: no cipher, no derivation of keys and no options of it, one key, of 51 bytes. */
static const char MAGIC[] = "openssh-key-v1\0\0\0\0\4none\0\0\0\4none\0\0\0\0\0\0\0\1\0\0\0\x33";

enum {
  PUBLIC = sizeof MAGIC - 1 + 51, /* up to the end of the public key */
  SECRET = 8 + 15 + 36 + 68,      /* two equal numbers, the type, the public key, the private one with it */
  BLOCK = 8,
  LINE = 70,
  BLOB = PUBLIC + 4 + SECRET + 4 + NET_COMMENT_BYTES + BLOCK,
};

static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* Decodes base64 up to whatever is none; returns how many bytes. */
static size_t decode(const char *text, unsigned char *out, size_t size) {
  unsigned bits = 0, held = 0;
  size_t n = 0;
  const char *digit;
  for (; n < size && ((*text && (digit = strchr(DIGITS, *text))) || *text == '\n'); text++) {
    if (*text == '\n') continue;
    held = (held << 6 | (unsigned)(digit - DIGITS)) & 0xffff;
    bits += 6;
    if (bits < 8) continue;
    bits -= 8;
    out[n++] = (unsigned char)(held >> bits);
  }
  return n;
}

/* Encodes in lines; returns what is behind the text. */
static char *encode(const unsigned char *in, size_t len, char *out) {
  size_t column = 0;
  for (size_t i = 0; i < len; i += 3) {
    unsigned three = (unsigned)in[i] << 16 | (i + 1 < len ? (unsigned)in[i + 1] << 8 : 0) | (i + 2 < len ? in[i + 2] : 0u);
    for (size_t d = 0; d < 4; d++) {
      *out++ = i + d > len ? '=' : DIGITS[three >> (18 - 6 * d) & 63];
      if (++column % LINE == 0) *out++ = '\n';
    }
  }
  if (column % LINE) *out++ = '\n';
  return out;
}

static unsigned char *put_length(unsigned char *at, size_t n) {
  for (int shift = 24; shift >= 0; shift -= 8) *at++ = (unsigned char)(n >> shift);
  return at;
}

/* Behind the private key: the comment, and 1, 2, 3 … up to a whole block. Returns the length of all. */
static size_t finish(unsigned char *blob, const char *comment) {
  unsigned char *secret = blob + PUBLIC + 4, *at = put_length(secret + SECRET, strlen(comment));
  memcpy(at, comment, strlen(comment));
  at += strlen(comment);
  for (unsigned char pad = 1; (at - secret) % BLOCK; pad++) *at++ = pad;
  put_length(blob + PUBLIC, (size_t)(at - secret));
  return (size_t)(at - blob);
}

static char *armour(const unsigned char *blob, size_t len) {
  char *text = malloc(sizeof BEGIN + sizeof END + len * 2);
  if (!text) return NULL;
  memcpy(text, BEGIN, sizeof BEGIN - 1);
  memcpy(encode(blob, len, text + sizeof BEGIN - 1), END, sizeof END);
  return text;
}

char *net_keyfile_text(ssh_key key, const char *comment) {
  char *theirs = NULL, *text = NULL;
  unsigned char blob[BLOB];
  if (strlen(comment) > NET_COMMENT_BYTES || ssh_pki_export_privkey_base64(key, NULL, NULL, NULL, &theirs) != SSH_OK) return NULL;
  bool known = strncmp(theirs, BEGIN, sizeof BEGIN - 1) == 0 && decode(theirs + sizeof BEGIN - 1, blob, sizeof blob) >= PUBLIC + 4 + SECRET &&
               memcmp(blob, MAGIC, sizeof MAGIC - 1) == 0;
  if (known) text = armour(blob, finish(blob, comment));
  explicit_bzero(blob, sizeof blob);
  explicit_bzero(theirs, strlen(theirs));
  ssh_string_free_char(theirs);
  return text;
}

void net_keyfile_wipe(char *text) {
  if (text) explicit_bzero(text, strlen(text));
  free(text);
}
