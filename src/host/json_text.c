/* json_text: UTF-8, as RFC 3629 has it: no overlong forms, no surrogates, nothing over U+10FFFF. */
#include "host/json_text.h"

static bool continues(const char *p) {
  return ((unsigned char)*p & 0xc0) == 0x80;
}

static size_t utf8_3(const char *p, const char *end) {
  if (end - p < 3 || !continues(p + 1) || !continues(p + 2)) return 0;
  unsigned char first = (unsigned char)p[0], second = (unsigned char)p[1];
  bool overlong = first == 0xe0 && second < 0xa0;
  bool surrogate = first == 0xed && second >= 0xa0;
  return overlong || surrogate ? 0 : 3;
}

static size_t utf8_4(const char *p, const char *end) {
  if (end - p < 4 || !continues(p + 1) || !continues(p + 2) || !continues(p + 3)) return 0;
  unsigned char first = (unsigned char)p[0], second = (unsigned char)p[1];
  bool overlong = first == 0xf0 && second < 0x90;
  bool too_high = first == 0xf4 && second >= 0x90;
  return overlong || too_high ? 0 : 4;
}

size_t json_utf8(const char *p, const char *end) {
  unsigned char first = (unsigned char)*p;
  if (first >= 0xc2 && first <= 0xdf) return end - p >= 2 && continues(p + 1) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) return utf8_3(p, end);
  if (first >= 0xf0 && first <= 0xf4) return utf8_4(p, end);
  return 0;
}
