/* json_text: the characters and the numbers of JSON text, for its decoder and its encoder alike.
 *
 * Bytes in, bytes or C numbers out: knows nothing of Lua, of buffers or of documents. Nothing outside src/host includes this.
 */
#ifndef KORV_JSON_TEXT_H
#define KORV_JSON_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* ---- characters --------------------------------------------------------------------------------------------------------------- */

/* The length of the UTF-8 sequence of two to four bytes at p, or 0 where none is whole and valid. */
size_t json_utf8(const char *p, const char *end);

/* The end of the longest prefix of p … end that a JSON string holds as it is: valid UTF-8 without ", \ and control characters. */
static inline const char *json_unescaped(const char *p, const char *end) {
  for (;;) {
#ifdef __SSE2__
    for (; end - p >= 16; p += 16) {
      __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)p);
      __m128i quote = _mm_cmpeq_epi8(bytes, _mm_set1_epi8('"'));
      __m128i slash = _mm_cmpeq_epi8(bytes, _mm_set1_epi8('\\'));
      __m128i other = _mm_cmplt_epi8(bytes, _mm_set1_epi8(' ')); /* bytes are signed: those from 0x80 on as well */
      int found = _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quote, slash), other));
      if (found) {
        p += __builtin_ctz((unsigned)found);
        break;
      }
    }
#endif
    while (p < end && *p != '"' && *p != '\\' && (unsigned char)*p >= ' ' && (unsigned char)*p < 0x80) p++;
    if (p == end || (unsigned char)*p < 0x80) return p;
    do {
      size_t n = json_utf8(p, end);
      if (n == 0) return p;
      p += n;
    } while (p < end && (unsigned char)*p >= 0x80);
  }
}

/* ---- numbers ------------------------------------------------------------------------------------------------------------------ */

typedef struct json_number {
  enum { JSON_INTEGER, JSON_FLOAT, JSON_LONG, JSON_BAD } kind;
  int64_t integer;
  double real;
  const char *problem; /* JSON_BAD: what is expected where the scan ended */
} json_number;

/* Reads the number that begins at p (a digit or '-') and returns its end; for JSON_BAD the place of the problem. A JSON_LONG number
 * is a float that takes json_strtod, which wants a byte behind the number that is no part of it. */
const char *json_number_scan(const char *p, const char *end, json_number *n);

double json_strtod(const char *text); /* as in the C locale, whatever the program's is */

enum { JSON_NUMBER_BYTES = 32 }; /* room for any number, a terminator included */

/* Both write at most JSON_NUMBER_BYTES and return the end of what they wrote. A float is finite, and reads as one: "2.0". */
char *json_write_integer(char *at, int64_t value);
char *json_write_float(char *at, double value);

#endif
