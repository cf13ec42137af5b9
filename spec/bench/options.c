/* options: see options.h. */
#include "options.h"

#include "message.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>

static long whole_number(const struct known_option *known, const char *value) {
  char *end;
  errno = 0;
  long n = strtol(value, &end, 10);
  if (errno || *end || end == value || n < known->least || n > known->most)
    fail("--%s: a whole number from %ld to %ld, not '%s'", known->name, known->least, known->most, value);
  return n;
}

int options_read(const struct known_option *known, size_t count, int argc, char **argv) {
  struct option options[OPTIONS_MOST + 1] = {{0}};
  if (count > OPTIONS_MOST) fail("more than %d options", OPTIONS_MOST);
  for (size_t i = 0; i < count; i++) options[i] = (struct option){known[i].name, required_argument, NULL, 0};
  int got, i = 0;
  while ((got = getopt_long(argc, argv, "+", options, &i)) == 0) {
    if (known[i].text)
      *known[i].text = optarg;
    else
      *known[i].number = whole_number(&known[i], optarg);
  }
  if (got != -1) exit(1); /* getopt_long has said what is wrong */
  return optind;
}
