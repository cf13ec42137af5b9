/* options: the command line of a measuring tool, `--name value` each, from a table. It knows nothing of what is measured.
 */
#ifndef BENCH_OPTIONS_H
#define BENCH_OPTIONS_H

#include <stddef.h>

/* Either a text, or a whole number within limits. */
struct known_option {
  const char *name;
  const char **text;
  long *number;
  long least, most;
};

enum { OPTIONS_MOST = 32 };

/* Reads options up to the first argument that is none, and returns its index. What is wrong ends the program with a message. */
int options_read(const struct known_option *known, size_t count, int argc, char **argv);

#endif
