"""What every source begins with: types, mathematical functions, products with matrices."""

from __future__ import annotations

import platform

_VECTORISED = ["exp", "log", "sin", "cos", "pow"]  # by the GNU C library's libmvec, from 2.22 on
_SINCE_235 = ["expm1", "log1p", "tan", "tanh", "atan", "erf", "erfc"]
_SCALAR = ["lgamma", "sqrt"]

WORTH = 200_000
"""Operations, from which on threads are worth their start."""

_HEAD = """\
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INFINITY ((real)__builtin_inf())
#define NAN ((real)__builtin_nan(""))
#define SIMD _Pragma("omp simd")
#define STRING(text) #text
#define ALIGNED _Alignas(64)
/* Where a part of many rows begins: rows are read by vectors. */
#define PART(k, parts, rows) ((k) == (parts) ? (rows) : (k) * (rows) / (parts) / 16 * 16)
#ifdef _OPENMP
#define PARALLEL(condition, threads) \\
    _Pragma(STRING(omp parallel for schedule(static) if(condition) num_threads(threads)))
#else
#define PARALLEL(condition, threads)
#endif

struct data { int64_t threads; const real *const *reals; const int32_t *const *positions; };

/* Not a number where either is not. */
static inline real larger(real a, real b) { return (a < b) | (b != b) ? b : a; }
static inline real smaller(real a, real b) { return (a > b) | (b != b) ? b : a; }
static inline real absolute(real a) { return a < 0 ? -a : a; }

/* The logarithmic derivative of the gamma function: recurrence, then its asymptotic series. */
static inline real digamma_(real a)
{
    real sum = 0;
    if (a != a || a == INFINITY) return a;
    if (a <= 0) {
        if (a == (real)(int64_t)a) return NAN;
        const real half_turn = (real)3.141592653589793;
        sum = -half_turn * F(cos)(half_turn * a) / F(sin)(half_turn * a);
        a = 1 - a;
    }
    while (a < 10) { sum -= 1 / a; a += 1; }
    const real s = 1 / (a * a);
    return sum + F(log)(a) - (real)0.5 / a - s * ((real)(1.0 / 12) - s * ((real)(1.0 / 120)
        - s * ((real)(1.0 / 252) - s * ((real)(1.0 / 240) - s * ((real)(1.0 / 132)
        - s * ((real)(691.0 / 32760) - s * (real)(1.0 / 12)))))));
}

/* Its derivative, in the same way. */
static inline real trigamma_(real a)
{
    real sum = 0, sign = 1;
    if (a != a) return a;
    if (a <= 0) {
        if (a == (real)(int64_t)a) return NAN;
        const real turn = (real)3.141592653589793 / F(sin)((real)3.141592653589793 * a);
        sum = turn * turn;
        sign = -1;
        a = 1 - a;
    }
    while (a < 15) { sum += sign / (a * a); a += 1; }
    const real s = 1 / (a * a);
    return sum + sign * (1 / a + s / 2 + s / a * ((real)(1.0 / 6) - s * ((real)(1.0 / 30)
        - s * ((real)(1.0 / 42) - s * ((real)(1.0 / 30) - s * (real)(5.0 / 66))))));
}

/* out[k] = the sum over j < rows of m[j * stride + k] v[j] */
static inline void matvec(const int64_t n, const int64_t rows, const real *restrict m,
                          const int64_t stride, const real *restrict v, real *restrict out)
{
    for (int64_t k = 0; k < n; k++) out[k] = 0;
    int64_t j = 0;
    for (; j + 8 <= rows; j += 8, m += 8 * stride) {
        const real v0 = v[j], v1 = v[j + 1], v2 = v[j + 2], v3 = v[j + 3];
        const real v4 = v[j + 4], v5 = v[j + 5], v6 = v[j + 6], v7 = v[j + 7];
        SIMD
        for (int64_t k = 0; k < n; k++)
            out[k] += v0 * m[k] + v1 * m[stride + k] + v2 * m[2 * stride + k]
                + v3 * m[3 * stride + k] + v4 * m[4 * stride + k] + v5 * m[5 * stride + k]
                + v6 * m[6 * stride + k] + v7 * m[7 * stride + k];
    }
    for (; j < rows; j++, m += stride) {
        const real v0 = v[j];
        SIMD
        for (int64_t k = 0; k < n; k++) out[k] += v0 * m[k];
    }
}

/* out[j] += the sum over k < n of m[j * stride + k] r[k] */
static inline void dots(const int64_t n, const int64_t rows, const real *restrict m,
                        const int64_t stride, const real *restrict r, real *restrict out)
{
    int64_t j = 0;
    for (; j + 8 <= rows; j += 8, m += 8 * stride) {
        real a0 = 0, a1 = 0, a2 = 0, a3 = 0, a4 = 0, a5 = 0, a6 = 0, a7 = 0;
        _Pragma("omp simd reduction(+:a0, a1, a2, a3, a4, a5, a6, a7)")
        for (int64_t k = 0; k < n; k++) {
            const real s = r[k];
            a0 += m[k] * s, a1 += m[stride + k] * s;
            a2 += m[2 * stride + k] * s, a3 += m[3 * stride + k] * s;
            a4 += m[4 * stride + k] * s, a5 += m[5 * stride + k] * s;
            a6 += m[6 * stride + k] * s, a7 += m[7 * stride + k] * s;
        }
        out[j] += a0, out[j + 1] += a1, out[j + 2] += a2, out[j + 3] += a3;
        out[j + 4] += a4, out[j + 5] += a5, out[j + 6] += a6, out[j + 7] += a7;
    }
    for (; j < rows; j++, m += stride) {
        real a0 = 0;
        _Pragma("omp simd reduction(+:a0)")
        for (int64_t k = 0; k < n; k++) a0 += m[k] * r[k];
        out[j] += a0;
    }
}
"""


def prelude(double: bool) -> str:
    """The beginning of a source, in double or single precision."""
    real = "double" if double else "float"
    suffix = "" if double else "f"
    library, version = platform.libc_ver()
    vectorised = []
    if library == "glibc" and platform.machine() == "x86_64":
        numbers = tuple(int(part) for part in version.split(".")[:2])
        vectorised = _VECTORISED + (_SINCE_235 if numbers >= (2, 35) else [])
    lines = [
        f"#define WORTH {WORTH}",
        f"typedef {real} real;",
        f"#define F(name) name##{suffix}" if suffix else "#define F(name) name",
    ]
    for name in [*_VECTORISED, *_SINCE_235, *_SCALAR]:
        arguments = "real, real" if name == "pow" else "real"
        if name in vectorised:
            lines.append('_Pragma("omp declare simd notinbranch")')
        lines.append(f"real {name}{suffix}({arguments});")
    own = [f"#define {name}{suffix}(a) {name}_(a)" for name in ("digamma", "trigamma")]
    return "\n".join([*lines, _HEAD, *own])
