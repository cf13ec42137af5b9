/* measure: clocks, the CPU time of a process and its children, and a histogram of latencies. For the load generator.
 *
 * It knows neither SSH nor messages.
 */
#ifndef BENCH_MEASURE_H
#define BENCH_MEASURE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

uint64_t now_ns(void); /* monotonic */

void pin_to_cpu(int cpu);

/* The CPU clocks of a process and of all that it has started, as they are now. They count nanoseconds, not ticks. */
enum { CLOCKS_MOST = 64 };

struct cpu_clocks {
  clockid_t ids[CLOCKS_MOST];
  size_t count;
};

void cpu_clocks_open(struct cpu_clocks *c, pid_t pid); /* pid 0: this process alone */
uint64_t cpu_clocks_ns(const struct cpu_clocks *c);

/* Counts by size, exact to one part in 64. */
enum { HISTOGRAM_STEPS = 64, HISTOGRAM_BUCKETS = 60 * HISTOGRAM_STEPS };

struct histogram {
  uint64_t counts[HISTOGRAM_BUCKETS];
  uint64_t total;
  uint64_t most;
};

void histogram_add(struct histogram *h, uint64_t value);
uint64_t histogram_quantile(const struct histogram *h, double part); /* part 0.5 is the median; 0 where nothing was added */

#endif
