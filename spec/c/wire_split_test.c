/* wire: a stream of bytes means the same however it is cut into packets, and damage is never taken for a message. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zlib.h>

#include "wire_feed.h"

enum { RANDOM_CUTS = 6, STREAMS = 3000 };

static wire_codec *codec;

static int make_codec(void **state) {
  (void)state;
  codec = wire_codec_new();
  return codec ? 0 : -1;
}

static int free_codec(void **state) {
  (void)state;
  wire_codec_free(codec);
  return 0;
}

/* Returns the transcript, which must be the same for all cuts. */
static wire_buf feed_in_every_way(const wire_limits *limits, const wire_buf *in) {
  wire_buf whole = feed(codec, limits, wire_buf_at(in), in->len, WHOLE);
  for (uint64_t cuts = BYTE_BY_BYTE; cuts <= BYTE_BY_BYTE + RANDOM_CUTS; cuts++) {
    wire_buf cut = feed(codec, limits, wire_buf_at(in), in->len, cuts);
    if (cut.len != whole.len || memcmp(wire_buf_at(&cut), wire_buf_at(&whole), whole.len) != 0)
      fail_msg("cuts %d:\n%s--- whole:\n%s", (int)cuts, wire_buf_at(&cut), wire_buf_at(&whole));
    wire_buf_free(&cut);
  }
  return whole;
}

static void expect(const wire_limits *limits, const wire_buf *in, const char *transcript) {
  wire_buf got = feed_in_every_way(limits, in);
  assert_string_equal(wire_buf_at(&got), transcript);
  wire_buf_free(&got);
}

/* ---- streams of anything ------------------------------------------------------------------------------------------------------ */

static void put_random_bytes(wire_buf *b, dice *d, size_t n, size_t kinds) {
  char *to = wire_buf_reserve(b, n);
  for (size_t i = 0; i < n; i++) to[i] = (char)(kinds < 256 ? "x\r {\"\t1"[dice_below(d, kinds)] : (int)dice_below(d, 256));
  wire_buf_commit(b, n);
}

static void put_random_line(wire_buf *b, dice *d) {
  put_random_bytes(b, d, dice_below(d, dice_below(d, 10) ? 20 : 200), dice_below(d, 2) ? 7 : 3);
  put_text(b, dice_below(d, 2) ? "\n" : "\r\n");
}

static void put_random_member(wire_buf *b, dice *d) {
  wire_buf text = {0};
  put_random_bytes(&text, d, dice_below(d, dice_below(d, 10) ? 40 : 3000), dice_below(d, 2) ? 7 : 256);
  member_spec spec = {.text = text.base, .len = text.len, .level = (int)dice_below(d, 10), .strategy = (int)dice_below(d, 5)};
  spec.name = dice_below(d, 4) ? NULL : "name";
  spec.comment = dice_below(d, 4) ? NULL : "";
  spec.has_extra = dice_below(d, 4) == 0;
  spec.extra_bytes = dice_below(d, 2) ? 0 : dice_below(d, 100);
  spec.header_crc = dice_below(d, 4) == 0;
  if (dice_below(d, 4))
    put_member(b, &spec);
  else
    assert_int_equal(wire_gzip(codec, b, text.base, text.len), WIRE_OK);
  wire_buf_free(&text);
}

static void put_damaged_member(wire_buf *b, dice *d) {
  wire_buf member = {0};
  put_random_member(&member, d);
  size_t tail = member.len < 12 ? member.len : 12;
  size_t at = dice_below(d, 2) ? dice_below(d, member.len) : member.len - 1 - dice_below(d, tail);
  if (dice_below(d, 3))
    member.base[at] = (char)(member.base[at] ^ 1 << dice_below(d, 8));
  else
    member.len = at;
  wire_buf_append(b, member.base, member.len);
  wire_buf_free(&member);
}

static wire_buf random_stream(dice *d) {
  wire_buf b = {0};
  for (size_t pieces = 1 + dice_below(d, 8); pieces > 0; pieces--) {
    switch (dice_below(d, 8)) {
    case 0: put_text(&b, "\n \r\n"); break;
    case 1: put_plain_member(&b, ""); break;
    case 2: put_damaged_member(&b, d); break;
    case 3:
    case 4: put_random_line(&b, d); break;
    default: put_random_member(&b, d);
    }
  }
  return b;
}

static void cuts_change_nothing(void **state) {
  (void)state;
  static const size_t SIZES[] = {1, 7, 20, 64, 300, 5000, 1 << 20};
  size_t results = 0;
  for (dice seed = 1; seed <= STREAMS; seed++) {
    dice d = seed * 0x9e3779b97f4a7c15u;
    wire_limits limits = {.message_bytes = SIZES[dice_below(&d, 7)], .packed_bytes = 18 + SIZES[dice_below(&d, 7)]};
    if (dice_below(&d, 2)) limits = (wire_limits){1 << 20, 1 << 20};
    wire_buf in = random_stream(&d), got = feed_in_every_way(&limits, &in);
    results += got.len > 0;
    wire_buf_free(&got);
    wire_buf_free(&in);
  }
  assert_true(results > STREAMS * 9 / 10);
}

static void cuts_change_nothing_of_large_messages(void **state) {
  (void)state;
  enum { LINE = 300000, MEMBER = 3000000 };
  wire_limits limits = {MEMBER, (size_t)MEMBER * 2};
  dice d = 7;
  for (int level = 0; level < 10; level += 3) {
    wire_buf in = {0}, text = {0};
    put_random_bytes(&text, &d, MEMBER, 7);
    put_member(&in, &(member_spec){.text = text.base, .len = MEMBER, .level = level});
    wire_buf_append(&in, text.base, LINE);
    put_text(&in, "\n");
    wire_buf got = feed_in_every_way(&limits, &in);
    assert_memory_equal(got.base, "gzip 3000000:", 13);
    assert_memory_equal(got.base + 13, text.base, MEMBER);
    assert_memory_equal(got.base + 13 + MEMBER, "\nline 300000:", 13);
    wire_buf_free(&got);
    limits.message_bytes--;
    expect(&limits, &in, "gzip error -2\nbroken\n");
    limits.message_bytes++;
    wire_buf_free(&text);
    wire_buf_free(&in);
  }
}

/* ---- damage ------------------------------------------------------------------------------------------------------------------- */

enum { KINDS = 6 };

/* Members of different makes with this text: stored, fixed and dynamic codes, every field of the header. */
static wire_buf member_of_kind(int kind, const char *text) {
  wire_buf b = {0};
  member_spec spec = {.text = text, .len = strlen(text), .level = kind == 0 ? 0 : 9, .strategy = kind == 1 ? Z_FIXED : Z_HUFFMAN_ONLY};
  if (kind >= 3) spec.name = "name";
  if (kind >= 4) spec.comment = "comment";
  if (kind >= 5) spec.has_extra = spec.header_crc = true, spec.extra_bytes = 5;
  put_member(&b, &spec);
  return b;
}

static const char TEXT[] = "{\"id\":1,\"verb\":\"GET\",\"resource\":\"/hello\",\"body\":null}, and some more, so that dynamic codes pay: "
                           "abracadabra abracadabra simsalabim simsalabim hocus pocus hocus pocus fidibus fidibus";

static void a_member_cut_anywhere_is_truncated(void **state) {
  (void)state;
  const wire_limits limits = {1 << 20, 1 << 20};
  for (int kind = 0; kind < KINDS; kind++) {
    wire_buf member = member_of_kind(kind, TEXT);
    for (size_t n = 1; n < member.len; n++) {
      wire_buf cut = {.base = member.base, .len = n};
      expect(&limits, &cut, "gzip error -5\nbroken\n");
    }
    wire_buf_free(&member);
  }
}

static size_t bytes_in(const wire_buf *cut, size_t most) {
  static char text[200000];
  assert_true(most <= sizeof text);
  z_stream s = {.next_in = (Bytef *)wire_buf_at(cut), .avail_in = (uInt)cut->len, .next_out = (Bytef *)text, .avail_out = (uInt)most};
  assert_int_equal(inflateInit2(&s, MAX_WBITS + 16), Z_OK);
  inflate(&s, Z_SYNC_FLUSH);
  inflateEnd(&s);
  return s.total_out;
}

/* Too large wins as soon as the bytes at hand unpack to more than the limit, even where the input ends right there. The limit is just
 * past a size at which the text is moved, so one byte of these makes more than the room that is left. */
static void a_large_member_cut_anywhere_is_too_large_or_truncated(void **state) {
  (void)state;
  enum { LIMIT = (1 << 16) + 50, LEN = 200000 };
  const wire_limits limits = {LIMIT, 1 << 20};
  static const char zeros[LEN] = {0};
  wire_buf member = {0};
  put_member(&member, &(member_spec){.text = zeros, .len = LEN, .level = 9});
  for (size_t n = 1; n < member.len; n++) {
    wire_buf cut = {.base = member.base, .len = n};
    expect(&limits, &cut, bytes_in(&cut, LEN) > LIMIT ? "gzip error -2\nbroken\n" : "gzip error -5\nbroken\n");
  }
  wire_buf_free(&member);
}

/* Whatever a transcript says was in a member must have been sent. */
static void check_only_sent_texts(const char *transcript) {
  char first[sizeof TEXT + 32];
  snprintf(first, sizeof first, "gzip %zu:%s\n", strlen(TEXT), TEXT);
  while ((transcript = strstr(transcript, "gzip ")) != NULL) {
    bool sent = strncmp(transcript, first, strlen(first)) == 0 || strncmp(transcript, "gzip 4:next\n", 12) == 0;
    if (!sent && strncmp(transcript, "gzip error -", 12) != 0) fail_msg("delivered %.60s", transcript);
    transcript++;
  }
}

static void a_flipped_bit_is_never_a_message(void **state) {
  (void)state;
  const wire_limits limits = {1 << 20, 1 << 20};
  for (int kind = 0; kind < KINDS; kind++) {
    wire_buf in = member_of_kind(kind, TEXT);
    put_plain_member(&in, "next");
    for (size_t bit = 0; bit < in.len * 8; bit++) {
      in.base[bit / 8] = (char)(in.base[bit / 8] ^ 1 << bit % 8);
      wire_buf got = feed_in_every_way(&limits, &in);
      check_only_sent_texts(wire_buf_at(&got));
      wire_buf_free(&got);
      in.base[bit / 8] = (char)(in.base[bit / 8] ^ 1 << bit % 8);
    }
    wire_buf_free(&in);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(cuts_change_nothing),
      cmocka_unit_test(cuts_change_nothing_of_large_messages),
      cmocka_unit_test(a_member_cut_anywhere_is_truncated),
      cmocka_unit_test(a_large_member_cut_anywhere_is_too_large_or_truncated),
      cmocka_unit_test(a_flipped_bit_is_never_a_message),
  };
  return cmocka_run_group_tests(tests, make_codec, free_codec);
}
