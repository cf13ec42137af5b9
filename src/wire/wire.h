/* wire: bytes <-> messages. Buffers, framing (gzip members and lines) and their limits.
 *
 * Knows no socket, no SSH and no Lua. A message here is a span of JSON text and the encoding that it came in; what it means is
 * somebody else's matter. Functions that can fail return 0 or a negative enum wire_error; nothing here aborts or prints.
 */
#ifndef KORV_WIRE_H
#define KORV_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum wire_error {
  WIRE_OK = 0,
  WIRE_NOMEM = -1,     /* no memory; the reader's state is undefined, close the channel */
  WIRE_TOO_LARGE = -2, /* a message over a limit */
  WIRE_BAD_GZIP = -3,  /* not a gzip member, or its deflate stream is broken: what follows can't be found any more */
  WIRE_BAD_CRC = -4,   /* a whole member whose checksum or length does not fit: the next member can be read */
  WIRE_TRUNCATED = -5, /* the input ended inside a message */
};

/* ---- buffers ---------------------------------------------------------------------------------------------------------------- */

/* A queue of bytes: appended at the end, consumed at the front. All zero is an empty buffer. The bytes are at wire_buf_at() and
 * stay where they are until the next append, reserve or free; consuming moves nothing. */
typedef struct wire_buf {
  char *base;
  size_t head; /* consumed bytes at the front of base */
  size_t len;  /* bytes in the queue, from base + head */
  size_t cap;  /* bytes that base can hold */
} wire_buf;

static inline char *wire_buf_at(const wire_buf *b) { return b->base + b->head; }

void wire_buf_free(wire_buf *b); /* frees the memory and leaves an empty buffer */

/* Makes room for n more bytes and returns where they go, or NULL (the buffer is then as it was). Follow with wire_buf_commit. */
char *wire_buf_reserve(wire_buf *b, size_t n);
static inline void wire_buf_commit(wire_buf *b, size_t n) { b->len += n; }

int wire_buf_append(wire_buf *b, const void *bytes, size_t n); /* WIRE_OK or WIRE_NOMEM */

/* Drops n (at most len) bytes at the front. An emptied buffer starts at its base again. Never frees. */
void wire_buf_consume(wire_buf *b, size_t n);

/* Gives memory back where the buffer is empty and holds more than keep bytes. */
void wire_buf_shrink(wire_buf *b, size_t keep);

/* ---- messages --------------------------------------------------------------------------------------------------------------- */

typedef enum wire_encoding { WIRE_LINE, WIRE_GZIP } wire_encoding;

typedef struct wire_limits {
  size_t message_bytes; /* one message, after decompression */
  size_t packed_bytes;  /* one gzip member, before decompression */
} wire_limits;

/* What compresses and decompresses: expensive to make, so one serves every reader and writer of a thread. */
typedef struct wire_codec wire_codec;

wire_codec *wire_codec_new(void); /* NULL: no memory */
void wire_codec_free(wire_codec *z); /* its readers are freed before it */
void wire_codec_trim(wire_codec *z); /* gives back what is kept for the next message; the last one is over then */

/* Finds messages in a stream of bytes. One for each direction of each channel. */
typedef struct wire_reader wire_reader;

wire_reader *wire_reader_new(wire_codec *z, const wire_limits *limits); /* NULL: no memory; limits are copied */
void wire_reader_free(wire_reader *r);

typedef struct wire_message {
  const char *text; /* not terminated; valid until the next call on this reader, another of its codec or its input buffer */
  size_t len;
  wire_encoding encoding; /* set for errors too: the answer goes out as the request came in */
} wire_message;

enum { WIRE_MORE = 0, WIRE_MESSAGE = 1 };

/* Takes the next message out of `in`. Returns WIRE_MESSAGE with *m filled, WIRE_MORE where `in` holds no whole message (what was
 * scanned or decompressed is remembered: no byte is looked at twice), or a negative wire_error, once for each bad message.
 * Lines of white space are skipped; a line's newline, and a carriage return before it, are no part of it.
 * At WIRE_MORE `in` may keep bytes: append to it and call again. One call does the work of one message at most, so a caller can
 * share its time out by counting calls and bytes. */
int wire_reader_next(wire_reader *r, wire_buf *in, wire_message *m);

/* The same, and the message or error stays the next one; what is found again costs nothing. A WIRE_MORE is what wire_reader_next would
 * give. For who may not want the message yet: a member is read in a way that can be held, which is slower. */
int wire_reader_peek(wire_reader *r, wire_buf *in, wire_message *m);

/* The peer sends no more, and wire_reader_next has found all there was: WIRE_TRUNCATED (with m->encoding) where a message was begun
 * and not ended, else WIRE_MORE. A last line without its newline counts as truncated, unless it is white space. */
int wire_reader_end(wire_reader *r, wire_buf *in, wire_message *m);

/* True once an error has left the stream unreadable: everything but an over-long line being skipped and a bad checksum. A skipped line
 * that does not end within the limit again has had its error: it breaks the reader at a WIRE_MORE. A broken reader takes whatever
 * comes and finds nothing in it. */
bool wire_reader_broken(const wire_reader *r);

/* Appends text as one gzip member. WIRE_OK or WIRE_NOMEM (out is then as it was). */
int wire_gzip(wire_codec *z, wire_buf *out, const char *text, size_t len);

const char *wire_strerror(int error); /* one short English clause, for a 400's "detail" and for logs */

#endif
