/* json_number: numbers between JSON text and C, to the last bit and digit.
 *
 * Most numbers take exact integer arithmetic of 128 bits: a double is an integer times a power of two, a decimal one times a power of
 * ten, and within the ranges below the two can be compared without rounding. The rest goes through strtod and printf. The rounding
 * mode is taken to be to nearest.
 */
#include "host/json_text.h"

#include <float.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __SIZEOF_INT128__
__extension__ typedef unsigned __int128 wide;

/* clang-format off */
static const uint64_t tens[] = {
  1u, 10u, 100u, 1000u, 10000u, 100000u, 1000000u, 10000000u, 100000000u, 1000000000u,
  10000000000u, 100000000000u, 1000000000000u, 10000000000000u, 100000000000000u,
  1000000000000000u, 10000000000000000u, 100000000000000000u, 1000000000000000000u, 10000000000000000000u,
};
/* clang-format on */
#endif

/* ---- the C locale ------------------------------------------------------------------------------------------------------------- */

static locale_t c_locale;

static void make_c_locale(void) {
  c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
}

/* Until leave_c_locale(), this thread writes and reads numbers with a '.'. */
static locale_t enter_c_locale(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, make_c_locale);
  return uselocale(c_locale);
}

static void leave_c_locale(locale_t before) {
  uselocale(before);
}

/* ---- reading ------------------------------------------------------------------------------------------------------------------ */

typedef struct decimal {
  uint64_t digits; /* the value is digits * 10^exponent; of no use where count > 19 */
  int64_t count;   /* of significant digits */
  int64_t exponent;
} decimal;

static bool is_digit(const char *p, const char *end) {
  return p < end && *p >= '0' && *p <= '9';
}

static const char *read_digits(const char *p, const char *end, decimal *d) {
  for (; is_digit(p, end); p++) {
    d->digits = d->digits * 10 + (uint64_t)(*p - '0');
    d->count += d->digits != 0 || d->count > 0;
  }
  return p;
}

static const char *read_fraction(const char *p, const char *end, decimal *d) {
  const char *first = p;
  p = read_digits(p, end, d);
  d->exponent = first - p;
  return p;
}

static const char *read_exponent(const char *p, const char *end, decimal *d) {
  const int64_t far = INT64_MAX / 100; /* no text has digits enough to make up for that */
  bool negative = p < end && *p == '-';
  int64_t exponent = 0;
  if (p < end && (*p == '-' || *p == '+')) p++;
  for (; is_digit(p, end); p++) {
    if (exponent < far) exponent = exponent * 10 + (*p - '0');
  }
  d->exponent += negative ? -exponent : exponent;
  return p;
}

#ifdef __SIZEOF_INT128__
/* digits / 10^scale, rounded once. Both are shifted to the top, so that the quotient has 63 or 64 bits; a remainder is kept as its
 * lowest bit, which is far below those of a double and so only breaks ties. */
static double quotient(uint64_t digits, int64_t scale) {
  int up = __builtin_clzll(digits), up_ten = __builtin_clzll(tens[scale]);
  wide dividend = (wide)(digits << up) << 63;
  uint64_t divisor = tens[scale] << up_ten;
  uint64_t result = (uint64_t)(dividend / divisor);
  if ((wide)result * divisor != dividend) result |= 1;
  return ldexp((double)result, up_ten - up - 63);
}

static bool exact(const decimal *d, double *value) {
  if (d->count > 19 || d->exponent < -19 || d->exponent > 19 || d->digits == 0) return false;
  *value = d->exponent < 0 ? quotient(d->digits, -d->exponent) : (double)((wide)d->digits * tens[d->exponent]);
  return true;
}
#else
static bool exact(const decimal *d, double *value) {
  (void)d;
  (void)value;
  return false;
}
#endif

/* Both operands are exact doubles, so that the one operation rounds once. */
static bool quick(const decimal *d, double *value) {
  static const double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                  1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
  if (FLT_EVAL_METHOD != 0 || d->count > 19 || d->digits > (uint64_t)1 << 53) return false;
  if (d->exponent < -22 || d->exponent > 22) return false;
  double digits = (double)d->digits;
  *value = d->exponent < 0 ? digits / powers[-d->exponent] : digits * powers[d->exponent];
  return true;
}

static void set_float(json_number *n, const decimal *d, bool negative) {
  double value = 0;
  n->kind = quick(d, &value) || exact(d, &value) ? JSON_FLOAT : JSON_LONG;
  n->real = negative ? -value : value;
}

static void set_integer(json_number *n, const decimal *d, bool negative) {
  uint64_t most = (uint64_t)INT64_MAX + negative;
  if (d->count > 19 || d->digits > most || (negative && d->digits == 0)) {
    set_float(n, d, negative);
    return;
  }
  n->kind = JSON_INTEGER;
  n->integer = (int64_t)(negative ? 0 - d->digits : d->digits);
}

static const char *bad(json_number *n, const char *p, const char *problem) {
  n->kind = JSON_BAD;
  n->problem = problem;
  return p;
}

const char *json_number_scan(const char *p, const char *end, json_number *n) {
  decimal d = {0};
  bool negative = *p == '-', integer = true;
  const char *first = p += negative;
  p = read_digits(p, end, &d);
  if (p == first) return bad(n, p, "a digit after '-'");
  if (*first == '0' && p - first > 1) return bad(n, first, "a number without leading zeros");
  if (p < end && *p == '.') {
    integer = false;
    p = read_fraction(p + 1, end, &d);
    if (p[-1] == '.') return bad(n, p, "a digit after '.'");
  }
  if (p < end && (*p == 'e' || *p == 'E')) {
    integer = false;
    p = read_exponent(p + 1, end, &d);
    if (p[-1] < '0' || p[-1] > '9') return bad(n, p, "a digit in the exponent");
  }
  if (integer)
    set_integer(n, &d, negative);
  else
    set_float(n, &d, negative);
  return p;
}

double json_strtod(const char *text) {
  locale_t before = enter_c_locale();
  double value = strtod(text, NULL);
  leave_c_locale(before);
  return value;
}

/* ---- writing ------------------------------------------------------------------------------------------------------------------ */

static char *write_unsigned(char *at, uint64_t value) {
  char digits[20];
  char *p = digits + sizeof digits;
  do {
    *--p = (char)('0' + value % 10);
    value /= 10;
  } while (value > 0);
  size_t n = (size_t)(digits + sizeof digits - p);
  memcpy(at, p, n);
  return at + n;
}

char *json_write_integer(char *at, int64_t value) {
  if (value >= 0) return write_unsigned(at, (uint64_t)value);
  *at++ = '-';
  return write_unsigned(at, 0 - (uint64_t)value);
}

/* Fewest of 15, 16 and 17 digits, the way printf has them. */
static char *write_printf(char *at, double value) {
  locale_t before = enter_c_locale();
  int n = 0;
  for (int digits = 15; digits <= 17; digits++) {
    n = snprintf(at, JSON_NUMBER_BYTES, "%.*g", digits, value);
    if (strtod(at, NULL) == value) break;
  }
  leave_c_locale(before);
  if (strpbrk(at, ".e")) return at + n;
  memcpy(at + n, ".0", 2);
  return at + n + 2;
}

#ifdef __SIZEOF_INT128__
static const double exact_from = 1e-3, exact_to = 1e15; /* where write_exact works */

/* floor(log10(value)). The doubles next to 0.001, 0.01 and 0.1 lie above these, so the comparisons are exact. */
static int decimal_exponent(double value, int binary_exponent) {
  if (value < 0.01) return -3;
  if (value < 1) return value < 0.1 ? -2 : -1;
  int k = binary_exponent * 1233 >> 12; /* 1233 / 4096 is log10(2), near enough up to 2^103 */
  return value < (double)tens[k + 1] ? k : k + 1;
}

/* digits / 10^scale, with at least one digit behind the point and no needless zeros. */
static char *write_decimal(char *at, uint64_t digits, int scale) {
  at = write_unsigned(at, digits / tens[scale]);
  uint64_t fraction = digits % tens[scale];
  *at++ = '.';
  if (fraction == 0) {
    *at++ = '0';
    return at;
  }
  for (; fraction % 10 == 0; fraction /= 10) scale--;
  for (char *p = at + scale; p > at; fraction /= 10) *--p = (char)('0' + fraction % 10);
  return at + scale;
}

/* value = m / 2^q. With s digits behind the point the decimal next to it is d / 10^s, where d is m * 10^s / 2^q, rounded. It reads back
 * where it lies within half a unit of m: 2 * |d * 2^q - m * 10^s| < 10^s. Right in the middle between two doubles lies none: such a
 * decimal has more digits. Powers of two, whose lower neighbour is nearer, are here written exactly, with 15 digits or less. */
static char *write_exact(char *at, double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  int binary_exponent = (int)(bits >> 52) - 1023;
  uint64_t m = (bits & (((uint64_t)1 << 52) - 1)) | (uint64_t)1 << 52;
  int q = 52 - binary_exponent, k = decimal_exponent(value, binary_exponent);
  for (int scale = 14 - k;; scale++) {
    wide scaled = (wide)m * tens[scale], unit = (wide)1 << q;
    uint64_t digits = (uint64_t)(scaled >> q);
    wide rest = scaled & (unit - 1);
    if (rest > unit / 2 || (rest == unit / 2 && digits % 2 == 1)) digits++;
    wide written = (wide)digits << q;
    wide off = written > scaled ? written - scaled : scaled - written;
    if (off * 2 < tens[scale] || scale == 16 - k) return write_decimal(at, digits, scale);
  }
}
#else
static const double exact_from = 1, exact_to = 0;

static char *write_exact(char *at, double value) {
  return write_printf(at, value);
}
#endif

char *json_write_float(char *at, double value) {
  if (signbit(value)) {
    *at++ = '-';
    value = -value;
  }
  if (value >= exact_from && value < exact_to) return write_exact(at, value);
  if (value != 0) return write_printf(at, value);
  memcpy(at, "0.0", 3);
  return at + 3;
}
