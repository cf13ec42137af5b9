/* dial: a client's way in: connect, log in, open a channel. For the programs that make load; all of it blocks.
 */
#ifndef BENCH_DIAL_H
#define BENCH_DIAL_H

#include "link.h"

struct dial {
  const char *host;
  const char *key; /* the private key's file */
  long port;
  long timeout_s;
};

/* What a channel carries: gzip members over direct-tcpip, lines over the subsystem `korv`, bytes to and from the command `cat`, or one
 * request that is the command itself. */
enum encoding { GZIP, LINE, CAT, EXEC };

enum encoding encoding_of(const char *name);

ssh_key dial_key(const struct dial *d);                            /* to be freed by the caller */
void dial_log_in(const struct dial *d, ssh_key key, struct link *l); /* any failure ends the program */
void dial_open(const struct dial *d, enum encoding encoding, struct link *l, struct stream *s); /* not for EXEC */

#endif
