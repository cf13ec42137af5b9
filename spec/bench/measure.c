/* measure: see measure.h. */
#include "measure.h"

#include "message.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t clock_ns(clockid_t id) {
  struct timespec t;
  if (clock_gettime(id, &t) != 0) fail("the server is gone");
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t now_ns(void) {
  return clock_ns(CLOCK_MONOTONIC);
}

void pin_to_cpu(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET((size_t)cpu, &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0) fail("CPU %d: %s", cpu, strerror(errno));
}

/* The parent's id is the second field behind the command's closing parenthesis, which the command itself may hold too. */
static pid_t parent_of(const char *pid) {
  char path[64], line[512];
  snprintf(path, sizeof path, "/proc/%.16s/stat", pid);
  FILE *file = fopen(path, "re");
  if (!file) return 0;
  size_t n = fread(line, 1, sizeof line - 1, file);
  fclose(file);
  line[n] = '\0';
  const char *end = strrchr(line, ')');
  return end && strlen(end) > 4 ? (pid_t)strtol(end + 4, NULL, 10) : 0;
}

static void add_children(struct cpu_clocks *c, pid_t parent);

static void add_tree(struct cpu_clocks *c, pid_t pid) {
  if (c->count == CLOCKS_MOST) fail("the server has more than %d processes", CLOCKS_MOST);
  int error = clock_getcpuclockid(pid, &c->ids[c->count]);
  if (error) fail("process %d: %s", (int)pid, strerror(error));
  c->count++;
  add_children(c, pid);
}

static void add_children(struct cpu_clocks *c, pid_t parent) {
  DIR *proc = opendir("/proc");
  if (!proc) fail("/proc: %s", strerror(errno));
  for (struct dirent *entry; (entry = readdir(proc));) {
    pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
    if (pid > 0 && parent_of(entry->d_name) == parent) add_tree(c, pid);
  }
  closedir(proc);
}

void cpu_clocks_open(struct cpu_clocks *c, pid_t pid) {
  c->count = 0;
  if (pid)
    add_tree(c, pid);
  else
    c->ids[c->count++] = CLOCK_PROCESS_CPUTIME_ID;
}

uint64_t cpu_clocks_ns(const struct cpu_clocks *c) {
  uint64_t sum = 0;
  for (size_t i = 0; i < c->count; i++) sum += clock_ns(c->ids[i]);
  return sum;
}

/* Values below HISTOGRAM_STEPS have a bucket each; above, each doubling is cut into HISTOGRAM_STEPS buckets. */
static size_t bucket_of(uint64_t value) {
  if (value < HISTOGRAM_STEPS) return (size_t)value;
  unsigned shift = 63u - (unsigned)__builtin_clzll(value) - 6u;
  return (size_t)shift * HISTOGRAM_STEPS + (size_t)(value >> shift);
}

static uint64_t bucket_middle(size_t bucket) {
  if (bucket / 2 < HISTOGRAM_STEPS) return bucket;
  unsigned shift = (unsigned)(bucket / HISTOGRAM_STEPS) - 1;
  uint64_t low = (uint64_t)(bucket - (size_t)shift * HISTOGRAM_STEPS) << shift;
  return low + ((uint64_t)1 << shift) / 2;
}

void histogram_add(struct histogram *h, uint64_t value) {
  h->counts[bucket_of(value)]++;
  h->total++;
  if (value > h->most) h->most = value;
}

uint64_t histogram_quantile(const struct histogram *h, double part) {
  uint64_t wanted = (uint64_t)(part * (double)h->total);
  uint64_t seen = 0;
  for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++)
    if ((seen += h->counts[i]) > wanted) return bucket_middle(i);
  return h->most;
}
