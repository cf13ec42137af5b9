/* message: where a message ends in a stream of bytes, and how to pack one. For both of the benchmarks' programs.
 *
 * Knows lines and gzip members (by libdeflate), no SSH and no JSON. Out of memory ends the program: these are measuring tools.
 */
#ifndef BENCH_MESSAGE_H
#define BENCH_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>

enum { GZIP_FIRST_BYTE = 0x1f };

void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2))); /* one line on stderr, exit status 1 */

/* A growing string of bytes. All zero is an empty one. */
struct bytes {
  char *at;
  size_t length;
  size_t capacity;
};

char *bytes_room(struct bytes *b, size_t n); /* where n more bytes may be put; add them to length afterwards */
void bytes_add(struct bytes *b, const void *from, size_t n);
void bytes_drop(struct bytes *b, size_t n); /* takes n bytes away from the front */
void bytes_free(struct bytes *b);

struct text {
  const char *at;
  size_t length;
};

/* A whole number or other bare word behind a key such as "\"id\":", up to the next comma or brace; empty where there is none. */
struct text text_after(struct text in, const char *key);
bool text_holds(struct text in, const char *what);

void packer_open(int level); /* once, before member_read and member_write; level 0 stores */
void packer_close(void);

/* Both return how many bytes the first message takes, 0 where it is not whole yet, and its text. The text of a member is valid until
 * the next call. A member that is broken counts as one that is not whole: the caller limits what it waits for. */
size_t line_read(const char *at, size_t length, struct text *text);
size_t member_read(const char *at, size_t length, struct text *text);

void member_write(struct bytes *out, const char *text, size_t length); /* appends one gzip member */

#endif
