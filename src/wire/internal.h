/* What the files of wire share among themselves: the codec's parts and the reading of one gzip member.
 *
 * Nothing outside src/wire includes this.
 */
#ifndef KORV_WIRE_INTERNAL_H
#define KORV_WIRE_INTERNAL_H

#include <libdeflate.h>

#include "wire/wire.h"

enum { WIRE_GZIP_FIRST = 0x1f }; /* the first byte of a member; no JSON text begins with it */

static inline size_t smaller(size_t a, size_t b) {
  return a < b ? a : b;
}

/* A gzip member that comes in pieces. It is lent by the codec while it lasts, so that a reader between two messages is small. */
typedef struct wire_member wire_member;

struct wire_codec {
  struct libdeflate_compressor *deflater;
  struct libdeflate_decompressor *inflater;
  wire_buf scratch;  /* holds the text of the member that was delivered last; its len stays 0 */
  wire_member *idle; /* the members that are not lent */
  size_t idle_count;
};

/* Reads the member at the front of `in` in one go. Returns WIRE_MESSAGE, WIRE_NOMEM, or WIRE_MORE where that did not work out, with
 * nothing consumed: the member is incomplete, damaged or over a limit, and only wire_member_feed can tell which. */
int wire_member_whole(wire_codec *z, const wire_limits *limits, wire_buf *in, wire_message *m);

wire_member *wire_member_take(wire_codec *z, const wire_limits *limits); /* NULL: no memory; limits must outlive the loan */
void wire_member_give(wire_codec *z, wire_member *member);               /* ends the loan */
void wire_member_free_idle(wire_codec *z);

/* Consumes what `in` holds of the member. Anything but WIRE_MORE ends the member: WIRE_MESSAGE or a wire_error. */
int wire_member_feed(wire_member *member, wire_buf *in);

bool wire_member_ended(const wire_member *member); /* well or not */
wire_message wire_member_message(const wire_member *member); /* of one that ended well; valid while the member is lent */

/* Moves the text of a member that ended well to the codec's scratch, where it outlives the loan. */
void wire_member_deliver(wire_codec *z, wire_member *member, wire_message *m);

#endif
