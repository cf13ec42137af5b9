/* wire: lines, gzip members, their limits, and the writer. Buffers are in wire_buf_test.c, the whole variety of cuts and damage in
 * wire_split_test.c, memory in wire_memory_test.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#include <zlib.h>

#include "wire_feed.h"

static const wire_limits WIDE = {.message_bytes = 1 << 24, .packed_bytes = 1 << 24};
static const wire_limits TIGHT = {.message_bytes = 8, .packed_bytes = 64};

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

/* ---- transcripts -------------------------------------------------------------------------------------------------------------- */

/* Holds that the input gives this transcript, whole and byte by byte. */
static void expect(const wire_limits *limits, const wire_buf *in, const char *transcript) {
  for (uint64_t cuts = WHOLE; cuts <= BYTE_BY_BYTE; cuts++) {
    wire_buf got = feed(codec, limits, wire_buf_at(in), in->len, cuts);
    assert_string_equal(wire_buf_at(&got), transcript);
    wire_buf_free(&got);
  }
}

static void expect_text(const wire_limits *limits, const char *in, const char *transcript) {
  wire_buf b = {0};
  put_text(&b, in);
  expect(limits, &b, transcript);
  wire_buf_free(&b);
}

static void expect_and_free(const wire_limits *limits, wire_buf *in, const char *transcript) {
  expect(limits, in, transcript);
  wire_buf_free(in);
}

static void put_times(wire_buf *b, char c, size_t n) {
  memset(wire_buf_reserve(b, n), c, n);
  wire_buf_commit(b, n);
}

/* ---- lines -------------------------------------------------------------------------------------------------------------------- */

static void lines_are_found(void **state) {
  (void)state;
  expect_text(&WIDE, "", "");
  expect_text(&WIDE, "{\"a\":1}\n", "line 7:{\"a\":1}\n");
  expect_text(&WIDE, "one\ntwo\r\nthr\ree\n", "line 3:one\nline 3:two\nline 6:thr\ree\n");
  expect_text(&WIDE, "\r\r\n x \r\n", "line 3: x \n");
  expect_text(&WIDE, "a\x1f\n", "line 2:a\x1f\n");
}

static void white_space_is_ignored(void **state) {
  (void)state;
  expect_text(&WIDE, "\n\r\n \t\r\n\n", "");
  expect_text(&WIDE, "\n one\n\n \n", "line 4: one\n");
  expect_text(&WIDE, " \t ", "");
  expect_text(&WIDE, "\v\n", "line 1:\v\n");
}

static void a_line_may_hold_a_nul(void **state) {
  (void)state;
  wire_buf in = {0};
  wire_buf_append(&in, "a\0b\n", 4);
  wire_buf got = feed(codec, &WIDE, wire_buf_at(&in), in.len, WHOLE);
  assert_int_equal(got.len, strlen("line 3:") + 4);
  assert_memory_equal(wire_buf_at(&got), "line 3:a\0b\n", got.len);
  wire_buf_free(&got);
  wire_buf_free(&in);
}

static void a_line_is_not_copied(void **state) {
  (void)state;
  wire_reader *r = wire_reader_new(codec, &WIDE);
  wire_buf in = {0};
  wire_message m;
  put_text(&in, "one\ntwo");
  assert_int_equal(wire_reader_next(r, &in, &m), WIRE_MESSAGE);
  assert_ptr_equal(m.text, in.base);
  assert_int_equal(in.len, 3);
  wire_reader_free(r);
  wire_buf_free(&in);
}

static void a_byte_is_scanned_once(void **state) {
  (void)state;
  wire_reader *r = wire_reader_new(codec, &WIDE);
  wire_buf in = {0};
  wire_message m;
  put_text(&in, "abc");
  assert_int_equal(wire_reader_next(r, &in, &m), WIRE_MORE);
  char *at = wire_buf_at(&in);
  at[1] = '\n'; /* seen only by a reader that looks again */
  put_text(&in, "d\n");
  assert_int_equal(wire_reader_next(r, &in, &m), WIRE_MESSAGE);
  assert_int_equal(m.len, 4);
  wire_reader_free(r);
  wire_buf_free(&in);
}

static void a_line_has_a_limit(void **state) {
  (void)state;
  expect_text(&TIGHT, "12345678\nx\n", "line 8:12345678\nline 1:x\n");
  expect_text(&TIGHT, "12345678\r\nx\n", "line 8:12345678\nline 1:x\n");
  expect_text(&TIGHT, "123456789\nx\n", "line error -2\nline 1:x\n");
  expect_text(&TIGHT, "123456789\r\nx\n", "line error -2\nline 1:x\n");
  expect_text(&TIGHT, "12345678\rx\ny\n", "line error -2\nline 1:y\n");
  expect_text(&TIGHT, "         \nx\n", "line error -2\nline 1:x\n");
  expect_text(&TIGHT, "1234567812345678\nx\n", "line error -2\nline 1:x\n");
  expect_text(&TIGHT, "12345678123456789\nx\n", "line error -2\nbroken\n");
  expect_text(&TIGHT, "123456789", "line error -2\n");
}

static void an_over_long_line_is_told_at_once(void **state) {
  (void)state;
  wire_reader *r = wire_reader_new(codec, &TIGHT);
  wire_buf in = {0};
  wire_message m;
  put_text(&in, "12345678");
  assert_int_equal(wire_reader_next(r, &in, &m), WIRE_MORE);
  put_text(&in, "9");
  assert_int_equal(wire_reader_next(r, &in, &m), WIRE_TOO_LARGE);
  assert_int_equal(m.encoding, WIRE_LINE);
  assert_false(wire_reader_broken(r));
  put_text(&in, "1234567");
  assert_int_equal(wire_reader_next(r, &in, &m), WIRE_MORE);
  assert_int_equal(in.len, 0);
  assert_false(wire_reader_broken(r));
  put_text(&in, "8\nx\n");
  assert_int_equal(wire_reader_next(r, &in, &m), WIRE_MORE);
  assert_true(wire_reader_broken(r));
  assert_int_equal(in.len, 0);
  wire_reader_free(r);
  wire_buf_free(&in);
}

static double cpu_seconds(void) {
  return (double)clock() / CLOCKS_PER_SEC;
}

/* Quadratic work on these would take minutes. */
static void runs_of_blanks_are_linear(void **state) {
  (void)state;
  double start = cpu_seconds();
  wire_buf in = {0};
  put_times(&in, ' ', 1 << 22);
  put_times(&in, '\n', 1 << 22);
  put_text(&in, "x\n");
  for (uint64_t cuts = WHOLE; cuts <= 2; cuts++) {
    wire_buf got = feed(codec, &WIDE, wire_buf_at(&in), in.len, cuts);
    assert_string_equal(wire_buf_at(&got), "line 1:x\n");
    wire_buf_free(&got);
  }
  wire_buf_free(&in);
  assert_true(cpu_seconds() - start < 20);
}

/* ---- members ------------------------------------------------------------------------------------------------------------------ */

static void members_of_every_kind_are_read(void **state) {
  (void)state;
  static const int STRATEGIES[] = {Z_DEFAULT_STRATEGY, Z_FILTERED, Z_HUFFMAN_ONLY, Z_RLE, Z_FIXED};
  static const char *const NAMES[] = {NULL, "", "name"};
  for (int i = 0; i < 5 * 3 * 3 * 8; i++) {
    member_spec spec = {.text = "hello hello hello", .len = 17, .level = i % 10, .strategy = STRATEGIES[i % 5]};
    spec.name = NAMES[i / 5 % 3];
    spec.comment = NAMES[i / 15 % 3];
    spec.has_extra = i / 45 & 1;
    spec.extra_bytes = i / 45 & 2 ? 300 : 0;
    spec.header_crc = i / 45 & 4;
    wire_buf in = {0};
    put_member(&in, &spec);
    put_text(&in, "x\n");
    expect_and_free(&WIDE, &in, "gzip 17:hello hello hello\nline 1:x\n");
  }
}

static void members_and_lines_mix(void **state) {
  (void)state;
  wire_buf in = {0};
  put_plain_member(&in, "one");
  put_plain_member(&in, "two");
  put_text(&in, "three\n\n");
  put_plain_member(&in, "four");
  put_text(&in, "\r\nfive\n");
  expect_and_free(&WIDE, &in, "gzip 3:one\ngzip 3:two\nline 5:three\ngzip 4:four\nline 4:five\n");
}

static void empty_members_come_one_at_a_call(void **state) {
  (void)state;
  wire_reader *r = wire_reader_new(codec, &WIDE);
  wire_buf in = {0};
  wire_message m;
  for (int i = 0; i < 3; i++) put_plain_member(&in, "");
  assert_int_equal(in.len, 60);
  for (size_t left = 40;; left -= 20) {
    assert_int_equal(wire_reader_next(r, &in, &m), WIRE_MESSAGE);
    assert_int_equal(m.len, 0);
    assert_int_equal(in.len, left);
    if (left == 0) break;
  }
  wire_reader_free(r);
  wire_buf_free(&in);
}

/* One member in ten packets, its trailer cut in the middle: each packet is consumed at once, and the next member begins in the last. */
static void a_member_comes_in_ten_packets(void **state) {
  (void)state;
  wire_reader *r = wire_reader_new(codec, &WIDE);
  wire_buf member = {0}, in = {0};
  wire_message m;
  put_plain_member(&member, "{\"id\":1,\"verb\":\"GET\",\"resource\":\"/hello\"}");
  size_t len = member.len, step = (len - 4) / 9;
  put_plain_member(&member, "next");
  for (size_t i = 0; i < 9; i++) {
    wire_buf_append(&in, wire_buf_at(&member) + i * step, i < 8 ? step : len - 4 - 8 * step);
    assert_int_equal(wire_reader_next(r, &in, &m), WIRE_MORE);
    assert_int_equal(in.len, 0);
  }
  wire_buf_append(&in, wire_buf_at(&member) + len - 4, member.len - len + 4);
  assert_int_equal(wire_reader_next(r, &in, &m), WIRE_MESSAGE);
  assert_int_equal(m.len, 41);
  assert_memory_equal(m.text, "{\"id\":1,\"verb\":\"GET\",\"resource\":\"/hello\"}", 41);
  assert_int_equal(wire_reader_next(r, &in, &m), WIRE_MESSAGE);
  assert_memory_equal(m.text, "next", 4);
  assert_int_equal(wire_reader_next(r, &in, &m), WIRE_MORE);
  wire_reader_free(r);
  wire_buf_free(&in);
  wire_buf_free(&member);
}

/* What a peek has found costs no input, and is found again where all input has gone. */
static void a_peek_takes_nothing(void **state) {
  (void)state;
  wire_reader *r = wire_reader_new(codec, &WIDE);
  wire_buf in = {0};
  wire_message m;
  put_text(&in, "one\n");
  put_plain_member(&in, "two");
  for (int i = 0; i < 3; i++) {
    size_t left = in.len;
    assert_int_equal(wire_reader_peek(r, &in, &m), WIRE_MESSAGE);
    assert_memory_equal(m.text, "one", 3);
    assert_int_equal(in.len, left);
  }
  assert_int_equal(wire_reader_next(r, &in, &m), WIRE_MESSAGE);
  assert_memory_equal(m.text, "one", 3);
  for (int i = 0; i < 3; i++) {
    assert_int_equal(wire_reader_peek(r, &in, &m), WIRE_MESSAGE);
    assert_memory_equal(m.text, "two", 3);
    assert_int_equal(in.len, 0); /* held by the reader, unpacked */
  }
  put_text(&in, "three\n");
  assert_int_equal(wire_reader_next(r, &in, &m), WIRE_MESSAGE);
  assert_memory_equal(m.text, "two", 3);
  assert_int_equal(wire_reader_next(r, &in, &m), WIRE_MESSAGE);
  assert_memory_equal(m.text, "three", 5);
  wire_reader_free(r);
  wire_buf_free(&in);
}

/* ---- bad members -------------------------------------------------------------------------------------------------------------- */

/* A member of "one" with byte `at` (from its end, where negative) changed by xor, then one of "two". */
static wire_buf damaged(ptrdiff_t at, unsigned char by) {
  wire_buf b = {0};
  put_plain_member(&b, "one");
  char *byte = at < 0 ? wire_buf_at(&b) + b.len + at : wire_buf_at(&b) + at;
  *byte = (char)((unsigned char)*byte ^ by);
  put_plain_member(&b, "two");
  return b;
}

static void a_bad_checksum_costs_one_message(void **state) {
  (void)state;
  for (ptrdiff_t at = -8; at < 0; at++) {
    wire_buf in = damaged(at, 0x80);
    expect_and_free(&WIDE, &in, "gzip error -4\ngzip 3:two\n");
  }
}

static void a_bad_header_breaks_the_stream(void **state) {
  (void)state;
  static const struct {
    ptrdiff_t at;
    unsigned char by;
  } DAMAGE[] = {{1, 1}, {2, 1}, {3, 0x20}, {3, 0x40}, {3, 0x80}};
  for (size_t i = 0; i < sizeof DAMAGE / sizeof *DAMAGE; i++) {
    wire_buf in = damaged(DAMAGE[i].at, DAMAGE[i].by);
    expect_and_free(&WIDE, &in, "gzip error -3\nbroken\n");
  }
  expect_text(&WIDE, "\x1fx", "gzip error -3\nbroken\n"); /* no need to wait for a whole header */
}

static void a_bad_deflate_stream_breaks_the_stream(void **state) {
  (void)state;
  wire_buf in = damaged(10, 0x06); /* block type 3 is reserved; this one has type 1 and is the last */
  in.base[10] = 0x07;
  expect_and_free(&WIDE, &in, "gzip error -3\nbroken\n");
}

static void a_member_has_a_limit_unpacked(void **state) {
  (void)state;
  wire_buf in = {0};
  put_plain_member(&in, "12345678");
  put_text(&in, "x\n");
  expect_and_free(&TIGHT, &in, "gzip 8:12345678\nline 1:x\n");
  in = (wire_buf){0};
  put_plain_member(&in, "123456789");
  put_text(&in, "x\n");
  expect_and_free(&TIGHT, &in, "gzip error -2\nbroken\n");
}

static void a_member_has_a_limit_packed(void **state) {
  (void)state;
  for (size_t name_len = 40; name_len < 80; name_len++) {
    char name[80] = "";
    memset(name, 'n', name_len);
    wire_buf in = {0};
    put_member(&in, &(member_spec){.text = "one", .len = 3, .name = name});
    bool fits = in.len <= TIGHT.packed_bytes;
    assert_int_equal(fits, name_len < 64 - 10 - 1 - 5 - 3 - 8 + 1);
    put_text(&in, "x\n");
    expect_and_free(&TIGHT, &in, fits ? "gzip 3:one\nline 1:x\n" : "gzip error -2\nbroken\n");
  }
}

static void an_endless_header_is_refused(void **state) {
  (void)state;
  static const char FLAGS[] = {8, 16, 4};
  for (size_t i = 0; i < sizeof FLAGS; i++) {
    wire_buf in = {0};
    wire_buf_append(&in, (char[]){0x1f, (char)0x8b, 8, FLAGS[i], 0, 0, 0, 0, 0, 0}, 10);
    put_times(&in, 'x', 70);
    expect_and_free(&TIGHT, &in, "gzip error -2\nbroken\n");
  }
}

/* The size in the trailer is only checked, never believed. */
static void a_size_that_lies_is_a_bad_checksum(void **state) {
  (void)state;
  wire_buf in = {0};
  put_plain_member(&in, "one");
  memset(wire_buf_at(&in) + in.len - 4, 0xff, 4);
  expect_and_free(&WIDE, &in, "gzip error -4\n");
}

static void what_is_cut_off_is_told_at_the_end(void **state) {
  (void)state;
  expect_text(&WIDE, "one\n{", "line 3:one\nline error -5\nbroken\n");
  expect_text(&WIDE, "one\n\r", "line 3:one\n");
  wire_buf in = {0};
  put_plain_member(&in, "one");
  for (size_t n = 1; n < in.len; n++) {
    wire_buf cut = {.base = in.base, .len = n};
    expect(&WIDE, &cut, "gzip error -5\nbroken\n");
  }
  wire_buf_free(&in);
}

/* ---- the writer --------------------------------------------------------------------------------------------------------------- */

static void check_unpacks(const wire_buf *packed, const char *text, size_t len) {
  char *got = malloc(len + 1);
  z_stream s = {
      .next_in = (Bytef *)wire_buf_at(packed), .avail_in = (uInt)packed->len, .next_out = (Bytef *)got, .avail_out = (uInt)len + 1};
  assert_int_equal(inflateInit2(&s, MAX_WBITS + 16), Z_OK);
  assert_int_equal(inflate(&s, Z_FINISH), Z_STREAM_END);
  assert_int_equal(s.avail_in, 0);
  assert_int_equal(s.total_out, len);
  assert_memory_equal(got, text, len);
  inflateEnd(&s);
  free(got);
}

static void what_is_written_can_be_read(void **state) {
  (void)state;
  enum { MOST = 200000 };
  char *text = malloc(MOST);
  assert_non_null(text);
  dice d = 42;
  for (size_t len = 0; len <= MOST; len += len < 1100 ? 1 : 1 + len / 3) {
    for (size_t i = 0; i < len; i++) text[i] = (char)(len % 2 ? dice_below(&d, 256) : ' ' + dice_below(&d, 8));
    wire_buf out = {0};
    put_text(&out, "before");
    assert_int_equal(wire_gzip(codec, &out, text, len), WIRE_OK);
    assert_memory_equal(wire_buf_at(&out), "before", 6);
    wire_buf_consume(&out, 6);
    if (len < 512)
      assert_int_equal(out.len, len + 23);
    else if (len % 2 == 0)
      assert_true(out.len < len);                         /* deflated */
    assert_true(out.len <= len + 23 + 5 * (len / 65535)); /* or stored, where that does not pay */
    check_unpacks(&out, text, len);
    wire_buf_free(&out);
  }
  free(text);
}

static void an_empty_text_is_written(void **state) {
  (void)state;
  wire_buf out = {0};
  assert_int_equal(wire_gzip(codec, &out, NULL, 0), WIRE_OK);
  expect_and_free(&WIDE, &out, "gzip 0:\n");
}

static void every_error_has_its_words(void **state) {
  (void)state;
  for (int error = WIRE_TRUNCATED; error <= WIRE_OK; error++)
    for (int other = WIRE_TRUNCATED; other < error; other++) assert_string_not_equal(wire_strerror(error), wire_strerror(other));
  assert_non_null(wire_strerror(1));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(lines_are_found),
      cmocka_unit_test(white_space_is_ignored),
      cmocka_unit_test(a_line_may_hold_a_nul),
      cmocka_unit_test(a_line_is_not_copied),
      cmocka_unit_test(a_byte_is_scanned_once),
      cmocka_unit_test(a_line_has_a_limit),
      cmocka_unit_test(an_over_long_line_is_told_at_once),
      cmocka_unit_test(runs_of_blanks_are_linear),
      cmocka_unit_test(members_of_every_kind_are_read),
      cmocka_unit_test(members_and_lines_mix),
      cmocka_unit_test(empty_members_come_one_at_a_call),
      cmocka_unit_test(a_member_comes_in_ten_packets),
      cmocka_unit_test(a_peek_takes_nothing),
      cmocka_unit_test(a_bad_checksum_costs_one_message),
      cmocka_unit_test(a_bad_header_breaks_the_stream),
      cmocka_unit_test(a_bad_deflate_stream_breaks_the_stream),
      cmocka_unit_test(a_member_has_a_limit_unpacked),
      cmocka_unit_test(a_member_has_a_limit_packed),
      cmocka_unit_test(an_endless_header_is_refused),
      cmocka_unit_test(a_size_that_lies_is_a_bad_checksum),
      cmocka_unit_test(what_is_cut_off_is_told_at_the_end),
      cmocka_unit_test(what_is_written_can_be_read),
      cmocka_unit_test(an_empty_text_is_written),
      cmocka_unit_test(every_error_has_its_words),
  };
  return cmocka_run_group_tests(tests, make_codec, free_codec);
}
