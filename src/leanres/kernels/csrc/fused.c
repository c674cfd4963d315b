/* Max-pool, batch norm and activation in few passes over memory, for bfloat16 maps whose channels
   lie together (channels last). Compiled where it runs, by training/kernels.py; training/fused.py
   says what the arguments are. Values are widened to float, sums carried on in double. */

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { NONE, RELU, GELU };
#define INLINE static inline __attribute__((always_inline))
#define BLOCK 256 /* rows between two additions to the sums in double */
#define LONG 256  /* values that a loop should take at least */

static inline float wide(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Loops take LANES values at once, V: 16 where the CPU rounds to bfloat16 itself, as code for the
   compiler to make vectors of would take seven instructions for it; else one. */
#ifdef __AVX512BF16__
#include <immintrin.h>
#define LANES 16
typedef float V __attribute__((vector_size(64)));
typedef __mmask16 Lanes; /* those that are there */

INLINE Lanes lanes(int64_t left) { return left >= 16 ? 0xffff : (1u << left) - 1; }
INLINE V read(const uint16_t *from, Lanes of) {
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(of, from)), 16);
}
INLINE void write(uint16_t *to, Lanes of, V value) { _mm256_mask_storeu_epi16(to, of, (__m256i)_mm512_cvtneps_pbh(value)); }
INLINE V rounded(V value) { return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value)), 16); }
INLINE V get(const float *from) { return _mm512_loadu_ps(from); }
INLINE void put(float *to, V value) { _mm512_storeu_ps(to, value); }
INLINE V cut(V z, float at) { return _mm512_max_ps(_mm512_set1_ps(-at), _mm512_min_ps(_mm512_set1_ps(at), z)); }
INLINE V positive(V z) { return _mm512_max_ps(_mm512_setzero_ps(), z); } /* a NaN as it is */
INLINE V step(V z) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_GT_OQ), _mm512_set1_ps(1)); }
#else
#define LANES 1
typedef float V;
typedef int Lanes;

static inline uint16_t narrow(float value) { /* to nearest, ties to even; NaN stays one */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return value != value ? 0x7fc0 : (uint16_t)rounded;
}

INLINE Lanes lanes(int64_t left) { return left > 0; }
INLINE V read(const uint16_t *from, Lanes of) { (void)of; return wide(*from); }
INLINE void write(uint16_t *to, Lanes of, V value) { (void)of; *to = narrow(value); }
INLINE V rounded(V value) { return wide(narrow(value)); }
INLINE V get(const float *from) { return *from; }
INLINE void put(float *to, V value) { *to = value; }
INLINE V cut(V z, float at) { /* by its bits: a loop with a comparison of floats stays scalar */
    uint32_t bits, size, limit;
    memcpy(&bits, &z, 4);
    memcpy(&limit, &at, 4);
    size = bits & 0x7fffffff;
    bits = (bits & 0x80000000) | (size > limit ? limit : size);
    memcpy(&z, &bits, 4);
    return z;
}
INLINE V positive(V z) { return z > 0 || z != z ? z : 0.0f; }
INLINE V step(V z) { return z > 0 ? 1.0f : 0.0f; }
#endif

/* Polynomials, fitted on [-4, 4] and constant beyond: the normal distribution function at z, off by
   at most 3e-5, and the slope of z times it, off by 5e-4; a bfloat16 near 1 is off by 4e-3. */
INLINE V below(V z) {
    V w = cut(z, 4), u = w * w, p = u * 7.804711256e-11f - 6.827683748e-09f;
    p = p * u + 2.666981721e-07f;
    p = p * u - 6.222018266e-06f;
    p = p * u + 9.829133151e-05f;
    p = p * u - 1.130966313e-03f;
    p = p * u + 9.869967510e-03f;
    p = p * u - 6.640203406e-02f;
    p = p * u + 3.989198652e-01f;
    return w * p + 0.5f;
}

INLINE V gelu_slope(V z) {
    V w = cut(z, 4), u = w * w, p = u * -5.066656453e-11f + 4.789404823e-09f;
    p = p * u - 2.026334901e-07f;
    p = p * u + 5.107091856e-06f;
    p = p * u - 8.623214197e-05f;
    p = p * u + 1.038562907e-03f;
    p = p * u - 9.190203826e-03f;
    p = p * u + 5.937874753e-02f;
    p = p * u - 2.656380801e-01f;
    p = p * u + 7.978171689e-01f;
    return w * p + 0.5f;
}

INLINE V activate(V z, const int act) { return act == RELU ? positive(z) : act == GELU ? z * below(z) : z; }

/* by times the slope at z. */
INLINE V through(V z, V by, const int act) { return act == RELU ? by * step(z) : act == GELU ? by * gelu_slope(z) : by; }

#define BY_ACT(f, ...)                       \
    if (act == RELU) f(__VA_ARGS__, RELU);   \
    else if (act == GELU) f(__VA_ARGS__, GELU); \
    else f(__VA_ARGS__, NONE)

/* How many pixels' channels a loop takes at once. Few channels, or a number of them that does not
   fill vectors, make it slow. */
static int64_t at_once(int64_t c) {
    int64_t many = 1;
    while (many < BLOCK && (many * c < LONG || many * c % 32)) many *= 2;
    return many;
}

/* Lines (count, c) as (count, many * c), each repeated; what follows them may be read. */
static float *repeat(const float *lines, int64_t count, int64_t c, int64_t many) {
    float *out = calloc(count * many * c + LANES, sizeof(float)), *to = out;
    for (int64_t k = 0; k < count; k++)
        for (int64_t m = 0; m < many; m++, to += c) memcpy(to, lines + k * c, c * sizeof(float));
    return out;
}

/* The values from row r on that a loop takes at once: of many pixels, or at the end of one. */
static inline int64_t values_at(int64_t r, int64_t count, int64_t many, int64_t c) {
    return count - r < many ? c : many * c;
}

static inline int64_t rows_from(int64_t r, int64_t rows) { return rows - r < BLOCK ? rows - r : BLOCK; }

/* A thread's two sums for each of c channels: in float for some rows, in double for all, in a place
   of its own, so that adding the threads' up has one order. The former are for `many` pixels. */
typedef struct {
    double *total;
    float *first, *second;
    int64_t c, many;
} Sums;

static Sums begin(int64_t c, int64_t many, double *sums) {
    float *part = calloc(2 * many * c + LANES, sizeof(float));
    return (Sums){sums + 2 * c * omp_get_thread_num(), part, part + many * c, c, many};
}

static void add_up(Sums *s) {
    float *part = s->first;
    for (int64_t k = 0; k < 2; k++)
        for (int64_t m = 0; m < s->many; m++, part += s->c)
            for (int64_t i = 0; i < s->c; i++) s->total[k * s->c + i] += part[i], part[i] = 0;
}

static void end(Sums *s) {
    add_up(s);
    free(s->first);
}

INLINE void sums_rows(const uint16_t *restrict x, int64_t count, int64_t c, int64_t many, float *restrict first,
                      float *restrict second) {
    for (int64_t r = 0, values; r < count; r += values / c, x += values) {
        values = values_at(r, count, many, c);
        for (int64_t i = 0; i < values; i += LANES) {
            V v = read(x + i, lanes(values - i));
            put(first + i, get(first + i) + v);
            put(second + i, get(second + i) + v * v);
        }
    }
}

/* sums (threads, 2, c), given as zeros: of x, and of its squares. */
void sums_of(const uint16_t *x, int64_t rows, int64_t c, double *sums, int threads) {
    int64_t many = at_once(c);
#pragma omp parallel num_threads(threads)
    {
        Sums s = begin(c, many, sums);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r += BLOCK) {
            sums_rows(x + r * c, rows_from(r, rows), c, many, s.first, s.second);
            add_up(&s);
        }
        end(&s);
    }
}

static inline uint16_t high(float value) { /* of a float that was a bfloat16 */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits >> 16;
}

INLINE void larger(const uint16_t *restrict x, int64_t i, int32_t place, float *best, int32_t *at) {
    float v = wide(x[i]);
    int more = v > *best || v != v;
    *best = more ? v : *best;
    *at = more ? place : *at;
}

INLINE void pool_row(const uint16_t *restrict x, int64_t ow, int64_t below, int64_t c, uint16_t *restrict out,
                     uint8_t *restrict where, float *restrict first, float *restrict second) {
    for (int64_t j = 0; j < ow; j++, x += 2 * c, out += c, where += c)
        for (int64_t i = 0; i < c; i++) {
            float best = wide(x[i]);
            int32_t at = 0;
            larger(x + c, i, 1, &best, &at);
            larger(x + below, i, 2, &best, &at);
            larger(x + below + c, i, 3, &best, &at);
            out[i] = high(best);
            where[i] = (uint8_t)at;
            first[i] += best;
            second[i] += best * best;
        }
}

/* 2x2 max-pool of x (n, h, w, c) to out (n, h / 2, w / 2, c), `where` each value was, its sums as above. */
void pool(const uint16_t *x, int64_t n, int64_t h, int64_t w, int64_t c, uint16_t *out, uint8_t *where,
          double *sums, int threads) {
    int64_t oh = h / 2, ow = w / 2, row = ow * c;
#pragma omp parallel num_threads(threads)
    {
        Sums s = begin(c, 1, sums);
        int64_t since = 0;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < n * oh; r++) {
            const uint16_t *top = x + (r / oh * h + 2 * (r % oh)) * w * c;
            pool_row(top, ow, w * c, c, out + r * row, where + r * row, s.first, s.second);
            since += ow;
            if (since >= BLOCK) {
                add_up(&s);
                since = 0;
            }
        }
        end(&s);
    }
}

INLINE void forward_rows(const uint16_t *restrict x, int64_t count, int64_t c, int64_t many,
                         const float *restrict lines, uint16_t *restrict y, const int act) {
    const float *scale = lines, *shift = lines + many * c;
    for (int64_t r = 0, values; r < count; r += values / c, x += values, y += values) {
        values = values_at(r, count, many, c);
        for (int64_t i = 0; i < values; i += LANES) {
            Lanes of = lanes(values - i);
            write(y + i, of, activate(read(x + i, of) * get(scale + i) + get(shift + i), act));
        }
    }
}

/* y = act(x * scale + shift), by channel. lines (2, c): scale, shift. */
void forward(const uint16_t *x, int64_t rows, int64_t c, const float *lines, int act, uint16_t *y, int threads) {
    int64_t many = at_once(c);
    float *whole = repeat(lines, 2, c, many);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r += BLOCK)
        BY_ACT(forward_rows, x + r * c, rows_from(r, rows), c, many, whole, y + r * c);
    free(whole);
}

INLINE void gradient_rows(const uint16_t *restrict x, const uint16_t *restrict dy, int64_t count, int64_t c, int64_t many,
                          const float *restrict lines, float *restrict first, float *restrict second, const int act) {
    const float *scale = lines, *shift = lines + many * c;
    for (int64_t r = 0, values; r < count; r += values / c, x += values, dy += values) {
        values = values_at(r, count, many, c);
        for (int64_t i = 0; i < values; i += LANES) {
            Lanes of = lanes(values - i);
            V v = read(x + i, of), dz = through(v * get(scale + i) + get(shift + i), read(dy + i, of), act);
            put(first + i, get(first + i) + dz);
            put(second + i, get(second + i) + dz * v);
        }
    }
}

/* sums (threads, 2, c), given as zeros: of the gradient by z = x * scale + shift, and of its products
   with x. lines as of `forward`. */
void gradient_sums(const uint16_t *x, const uint16_t *dy, int64_t rows, int64_t c, const float *lines, int act,
                   double *sums, int threads) {
    int64_t many = at_once(c);
    float *whole = repeat(lines, 2, c, many);
#pragma omp parallel num_threads(threads)
    {
        Sums s = begin(c, many, sums);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r += BLOCK) {
            BY_ACT(gradient_rows, x + r * c, dy + r * c, rows_from(r, rows), c, many, whole, s.first, s.second);
            add_up(&s);
        }
        end(&s);
    }
    free(whole);
}

INLINE void join_rows(const uint16_t *restrict x, const uint16_t *restrict other, int64_t count, int64_t c, int64_t many,
                      const float *restrict lines, uint16_t *restrict y, const int act) {
    const float *scale = lines, *shift = lines + many * c;
    for (int64_t r = 0, values; r < count; r += values / c, x += values, other += values, y += values) {
        values = values_at(r, count, many, c);
        for (int64_t i = 0; i < values; i += LANES) {
            Lanes of = lanes(values - i);
            V z = read(x + i, of) * get(scale + i) + get(shift + i) + read(other + i, of);
            write(y + i, of, activate(z, act));
        }
    }
}

/* y = act(x * scale + shift + other), by channel. lines as of `forward`. */
void join(const uint16_t *x, const uint16_t *other, int64_t rows, int64_t c, const float *lines, int act, uint16_t *y,
          int threads) {
    int64_t many = at_once(c);
    float *whole = repeat(lines, 2, c, many);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r += BLOCK)
        BY_ACT(join_rows, x + r * c, other + r * c, rows_from(r, rows), c, many, whole, y + r * c);
    free(whole);
}

INLINE void join_gradient_rows(const uint16_t *restrict x, const uint16_t *restrict other, const uint16_t *restrict dy,
                               int64_t count, int64_t c, int64_t many, const float *restrict lines,
                               uint16_t *restrict dz, float *restrict first, float *restrict second, const int act) {
    const float *scale = lines, *shift = lines + many * c;
    for (int64_t r = 0, values; r < count; r += values / c, x += values, other += values, dy += values, dz += values) {
        values = values_at(r, count, many, c);
        for (int64_t i = 0; i < values; i += LANES) {
            Lanes of = lanes(values - i);
            V v = read(x + i, of), z = v * get(scale + i) + get(shift + i) + read(other + i, of);
            V kept = rounded(through(z, read(dy + i, of), act));
            write(dz + i, of, kept);
            put(first + i, get(first + i) + kept);
            put(second + i, get(second + i) + kept * v);
        }
    }
}

/* dz: the gradient by the sum that `join` activates. sums: as of `gradient_sums`. */
void join_gradient(const uint16_t *x, const uint16_t *other, const uint16_t *dy, int64_t rows, int64_t c,
                   const float *lines, int act, uint16_t *dz, double *sums, int threads) {
    int64_t many = at_once(c);
    float *whole = repeat(lines, 2, c, many);
#pragma omp parallel num_threads(threads)
    {
        Sums s = begin(c, many, sums);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r += BLOCK) {
            int64_t at = r * c;
            BY_ACT(join_gradient_rows, x + at, other + at, dy + at, rows_from(r, rows), c, many, whole, dz + at, s.first,
                   s.second);
            add_up(&s);
        }
        end(&s);
    }
    free(whole);
}

INLINE void backward_rows(const uint16_t *restrict x, const uint16_t *restrict dy, int64_t count, int64_t c, int64_t many,
                          const float *restrict lines, uint16_t *restrict dx, const int act) {
    const float *scale = lines, *shift = lines + many * c, *along = shift + many * c, *level = along + many * c;
    for (int64_t r = 0, values; r < count; r += values / c, x += values, dy += values, dx += values) {
        values = values_at(r, count, many, c);
        for (int64_t i = 0; i < values; i += LANES) {
            Lanes of = lanes(values - i);
            V v = read(x + i, of), dz = through(v * get(scale + i) + get(shift + i), read(dy + i, of), act);
            write(dx + i, of, get(scale + i) * dz + get(along + i) * v + get(level + i));
        }
    }
}

/* dx: scale * dz + along * x + level. lines (4, c): scale, shift, along, level. */
void backward(const uint16_t *x, const uint16_t *dy, int64_t rows, int64_t c, const float *lines, int act,
              uint16_t *dx, int threads) {
    int64_t many = at_once(c);
    float *whole = repeat(lines, 4, c, many);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r += BLOCK)
        BY_ACT(backward_rows, x + r * c, dy + r * c, rows_from(r, rows), c, many, whole, dx + r * c);
    free(whole);
}

INLINE void unpool_row(const uint16_t *restrict x, const uint16_t *restrict dy, const uint8_t *restrict where,
                       int64_t ow, int64_t c, const float *restrict lines, uint16_t *restrict line,
                       uint16_t *restrict a, uint16_t *restrict b, const int act) {
    for (int64_t j = 0; j < ow; j++, x += c, dy += c, where += c, a += 2 * c, b += 2 * c) {
        backward_rows(x, dy, 1, c, 1, lines, line, act);
        for (int64_t i = 0; i < c; i++) {
            a[i] = where[i] == 0 ? line[i] : 0;
            a[c + i] = where[i] == 1 ? line[i] : 0;
            b[i] = where[i] == 2 ? line[i] : 0;
            b[c + i] = where[i] == 3 ? line[i] : 0;
        }
    }
}

/* The same through the pool: x is what it gave, dx (n, h, w, c) the gradient by what it took. */
void unpool(const uint16_t *x, const uint16_t *dy, const uint8_t *where, int64_t n, int64_t h, int64_t w,
            int64_t c, const float *lines, int act, uint16_t *dx, int threads) {
    int64_t oh = h / 2, ow = w / 2, row = ow * c, below = w * c;
    float *whole = repeat(lines, 4, c, 1);
#pragma omp parallel num_threads(threads)
    {
        uint16_t *line = malloc(c * sizeof(uint16_t));
#pragma omp for schedule(static)
        for (int64_t r = 0; r < n * oh; r++) {
            uint16_t *top = dx + (r / oh * h + 2 * (r % oh)) * below;
            BY_ACT(unpool_row, x + r * row, dy + r * row, where + r * row, ow, c, whole, line, top, top + below);
            if (w % 2) {
                memset(top + below - c, 0, 2 * c);
                memset(top + 2 * below - c, 0, 2 * c);
            }
            if (h % 2 && r % oh == oh - 1) memset(top + 2 * below, 0, 2 * below);
        }
        free(line);
    }
    free(whole);
}
