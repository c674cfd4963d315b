/* Max-pool, batch norm and activation fused into few passes over memory, for bfloat16 maps stored
   channels last. Compiled at first use by kernels/build.py, called by kernels/fused_norm.py, whose
   head derives the formulas.

   A map is a matrix here: `rows` pixels (n * h * w) by `c` channels, both passes of a batch norm are
   loops over its rows:
     forward   channel_sums          sum of x and of x^2 by channel -> mean, variance (in Python)
               norm_act              y = act(scale * x + shift)
     backward  norm_act_grad_sums    sum of dz and of dz * x, dz = dy * act'(scale * x + shift)
               norm_act_grad_input   dx = scale * dz + slope * x + offset
   `max_pool` also takes the sums of its result, and `unpool_grad_input` also undoes the pooling, so
   that neither needs a pass of its own; the add_ functions are those of act(bn(x) + other).
   `coefs` holds these coefficients, one row of c floats each, in the order of the formulas.

   Threads: each takes a contiguous part of the rows and writes its sums to its own place, so that the
   result of a given number of threads is always the same, bit for bit. Values are widened to float;
   sums are float within BLOCK_ROWS rows and double across them. */

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { NONE, RELU, GELU }; /* as ACTS of kernels/fused_norm.py */
#define INLINE static inline __attribute__((always_inline))
#define BLOCK_ROWS 256 /* rows between two additions to the sums in double */
#define MIN_VALUES 256 /* values that one inner loop should have at least */

static inline float from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Inner loops take LANES values, one V, at a time. Where the CPU rounds to bfloat16 in one
   instruction that is a vector of 16, by intrinsics. Elsewhere V is a float and the compiler
   vectorises; there rounding takes seven instructions. */
#ifdef __AVX512BF16__
#include <immintrin.h>
#define LANES 16
typedef float V __attribute__((vector_size(64)));
typedef __mmask16 Mask; /* the lanes in use */

INLINE Mask mask_of(int64_t left) { return left >= 16 ? 0xffff : (1u << left) - 1; }
INLINE V read(const uint16_t *from, Mask mask) {
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16);
}
INLINE void write(uint16_t *to, Mask mask, V value) {
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(value));
}
INLINE V rounded(V value) {
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value)), 16);
}
INLINE V get(const float *from) { return _mm512_loadu_ps(from); }
INLINE void put(float *to, V value) { _mm512_storeu_ps(to, value); }
INLINE V clamp(V z, float limit) {
    return _mm512_max_ps(_mm512_set1_ps(-limit), _mm512_min_ps(_mm512_set1_ps(limit), z));
}
INLINE V relu(V z) { return _mm512_max_ps(_mm512_setzero_ps(), z); } /* in this order a NaN stays NaN */
INLINE V relu_derivative(V z) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_GT_OQ), _mm512_set1_ps(1));
}
#else
#define LANES 1
typedef float V;
typedef int Mask;

static inline uint16_t to_bf16(float value) { /* to nearest, ties to even; a NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return value != value ? 0x7fc0 : (uint16_t)nearest;
}

INLINE Mask mask_of(int64_t left) { return left > 0; }
INLINE V read(const uint16_t *from, Mask mask) { (void)mask; return from_bf16(*from); }
INLINE void write(uint16_t *to, Mask mask, V value) { (void)mask; *to = to_bf16(value); }
INLINE V rounded(V value) { return from_bf16(to_bf16(value)); }
INLINE V get(const float *from) { return *from; }
INLINE void put(float *to, V value) { *to = value; }
INLINE V clamp(V z, float limit) { /* on the bits: gcc does not vectorise a loop that compares floats */
    uint32_t bits, size, most;
    memcpy(&bits, &z, 4);
    memcpy(&most, &limit, 4);
    size = bits & 0x7fffffff;
    bits = (bits & 0x80000000) | (size > most ? most : size);
    memcpy(&z, &bits, 4);
    return z;
}
INLINE V relu(V z) { return z > 0 || z != z ? z : 0.0f; }
INLINE V relu_derivative(V z) { return z > 0 ? 1.0f : 0.0f; }
#endif

/* GELU is z * cdf(z), cdf that of the standard normal distribution. Both functions are odd
   polynomials plus 1/2, fitted on [-4, 4] and constant beyond. Their largest errors, 3e-5 and 5e-4,
   are below the rounding of a bfloat16 near 1, 4e-3. */
INLINE V normal_cdf(V z) {
    V w = clamp(z, 4), u = w * w, p = u * 7.804711256e-11f - 6.827683748e-09f;
    p = p * u + 2.666981721e-07f;
    p = p * u - 6.222018266e-06f;
    p = p * u + 9.829133151e-05f;
    p = p * u - 1.130966313e-03f;
    p = p * u + 9.869967510e-03f;
    p = p * u - 6.640203406e-02f;
    p = p * u + 3.989198652e-01f;
    return w * p + 0.5f;
}

INLINE V gelu_derivative(V z) {
    V w = clamp(z, 4), u = w * w, p = u * -5.066656453e-11f + 4.789404823e-09f;
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

INLINE V activate(V z, const int act) {
    return act == RELU ? relu(z) : act == GELU ? z * normal_cdf(z) : z;
}

/* dy * act'(z). */
INLINE V act_gradient(V z, V dy, const int act) {
    return act == RELU ? dy * relu_derivative(z) : act == GELU ? dy * gelu_derivative(z) : dy;
}

/* One copy of an inner loop for each activation, so that no loop branches on it. */
#define BY_ACT(f, ...)                       \
    if (act == RELU) f(__VA_ARGS__, RELU);   \
    else if (act == GELU) f(__VA_ARGS__, GELU); \
    else f(__VA_ARGS__, NONE)

/* Pixels that one inner loop takes together. A loop over the channels of one pixel is slow where
   they are few or do not fill whole vectors; over `group` pixels they are many, and they do. */
static int64_t group_of(int64_t c) {
    int64_t group = 1;
    while (group < BLOCK_ROWS && (group * c < MIN_VALUES || group * c % 32)) group *= 2;
    return group;
}

/* Coefficients (count, c) as (count, group * c): each row repeated for the pixels of a group. The
   allocation ends in LANES more floats, which the last vector may read. */
static float *repeat(const float *coefs, int64_t count, int64_t c, int64_t group) {
    float *out = calloc(count * group * c + LANES, sizeof(float)), *to = out;
    for (int64_t k = 0; k < count; k++)
        for (int64_t m = 0; m < group; m++, to += c) memcpy(to, coefs + k * c, c * sizeof(float));
    return out;
}

/* Values of the next inner loop, from row r on: those of a group, or of one pixel near the end. */
static inline int64_t values_from(int64_t r, int64_t count, int64_t group, int64_t c) {
    return count - r < group ? c : group * c;
}

static inline int64_t rows_from(int64_t r, int64_t rows) { return rows - r < BLOCK_ROWS ? rows - r : BLOCK_ROWS; }

/* Two sums by channel of one thread: in float of the rows since the last flush, for each pixel of a
   group apart, and in double of all before. */
typedef struct {
    double *total;         /* (2, c), this thread's part of `sums` */
    float *first, *second; /* (group, c) each */
    int64_t c, group;
} Sums;

static Sums begin_sums(int64_t c, int64_t group, double *sums) {
    float *part = calloc(2 * group * c + LANES, sizeof(float));
    return (Sums){sums + 2 * c * omp_get_thread_num(), part, part + group * c, c, group};
}

static void flush_sums(Sums *s) {
    float *part = s->first;
    for (int64_t k = 0; k < 2; k++)
        for (int64_t m = 0; m < s->group; m++, part += s->c)
            for (int64_t i = 0; i < s->c; i++) s->total[k * s->c + i] += part[i], part[i] = 0;
}

static void end_sums(Sums *s) {
    flush_sums(s);
    free(s->first);
}

/* ---- forward ---- */

INLINE void channel_sums_rows(const uint16_t *restrict x, int64_t count, int64_t c, int64_t group,
                              float *restrict first, float *restrict second) {
    for (int64_t r = 0, values; r < count; r += values / c, x += values) {
        values = values_from(r, count, group, c);
        for (int64_t i = 0; i < values; i += LANES) {
            V v = read(x + i, mask_of(values - i));
            put(first + i, get(first + i) + v);
            put(second + i, get(second + i) + v * v);
        }
    }
}

/* sums (threads, 2, c), given as zeros: each thread's sums of x and of x^2. */
void channel_sums(const uint16_t *x, int64_t rows, int64_t c, double *sums, int threads) {
    int64_t group = group_of(c);
#pragma omp parallel num_threads(threads)
    {
        Sums s = begin_sums(c, group, sums);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r += BLOCK_ROWS) {
            channel_sums_rows(x + r * c, rows_from(r, rows), c, group, s.first, s.second);
            flush_sums(&s);
        }
        end_sums(&s);
    }
}

static inline uint16_t bf16_bits(float value) { /* of a float that was a bfloat16: no rounding */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits >> 16;
}

/* A NaN counts as larger, so that it is not lost. */
INLINE void take_larger(const uint16_t *restrict x, int64_t i, int32_t place, float *best, int32_t *argmax) {
    float v = from_bf16(x[i]);
    int more = v > *best || v != v;
    *best = more ? v : *best;
    *argmax = more ? place : *argmax;
}

INLINE void max_pool_row(const uint16_t *restrict x, int64_t ow, int64_t below, int64_t c, uint16_t *restrict out,
                         uint8_t *restrict argmax, float *restrict first, float *restrict second) {
    for (int64_t j = 0; j < ow; j++, x += 2 * c, out += c, argmax += c)
        for (int64_t i = 0; i < c; i++) {
            float best = from_bf16(x[i]);
            int32_t place = 0;
            take_larger(x + c, i, 1, &best, &place);
            take_larger(x + below, i, 2, &best, &place);
            take_larger(x + below + c, i, 3, &best, &place);
            out[i] = bf16_bits(best);
            argmax[i] = (uint8_t)place;
            first[i] += best;
            second[i] += best * best;
        }
}

/* 2x2 max-pool of x (n, h, w, c). out (n, h / 2, w / 2, c); argmax, as out: which of the four was the
   largest, 0 1 in the upper row, 2 3 in the lower. sums: those of `channel_sums`, of out. */
void max_pool(const uint16_t *x, int64_t n, int64_t h, int64_t w, int64_t c, uint16_t *out, uint8_t *argmax,
              double *sums, int threads) {
    int64_t oh = h / 2, ow = w / 2, row = ow * c;
#pragma omp parallel num_threads(threads)
    {
        Sums s = begin_sums(c, 1, sums);
        int64_t since_flush = 0;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < n * oh; r++) {
            const uint16_t *top = x + (r / oh * h + 2 * (r % oh)) * w * c;
            max_pool_row(top, ow, w * c, c, out + r * row, argmax + r * row, s.first, s.second);
            since_flush += ow;
            if (since_flush >= BLOCK_ROWS) {
                flush_sums(&s);
                since_flush = 0;
            }
        }
        end_sums(&s);
    }
}

INLINE void norm_act_rows(const uint16_t *restrict x, int64_t count, int64_t c, int64_t group,
                          const float *restrict coefs, uint16_t *restrict y, const int act) {
    const float *scale = coefs, *shift = coefs + group * c;
    for (int64_t r = 0, values; r < count; r += values / c, x += values, y += values) {
        values = values_from(r, count, group, c);
        for (int64_t i = 0; i < values; i += LANES) {
            Mask mask = mask_of(values - i);
            write(y + i, mask, activate(read(x + i, mask) * get(scale + i) + get(shift + i), act));
        }
    }
}

/* y = act(scale * x + shift). coefs (2, c): scale, shift. */
void norm_act(const uint16_t *x, int64_t rows, int64_t c, const float *coefs, int act, uint16_t *y, int threads) {
    int64_t group = group_of(c);
    float *repeated = repeat(coefs, 2, c, group);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r += BLOCK_ROWS)
        BY_ACT(norm_act_rows, x + r * c, rows_from(r, rows), c, group, repeated, y + r * c);
    free(repeated);
}

INLINE void add_norm_act_rows(const uint16_t *restrict x, const uint16_t *restrict other, int64_t count, int64_t c,
                              int64_t group, const float *restrict coefs, uint16_t *restrict y, const int act) {
    const float *scale = coefs, *shift = coefs + group * c;
    for (int64_t r = 0, values; r < count; r += values / c, x += values, other += values, y += values) {
        values = values_from(r, count, group, c);
        for (int64_t i = 0; i < values; i += LANES) {
            Mask mask = mask_of(values - i);
            V z = read(x + i, mask) * get(scale + i) + get(shift + i) + read(other + i, mask);
            write(y + i, mask, activate(z, act));
        }
    }
}

/* y = act(scale * x + shift + other). coefs (2, c): scale, shift. */
void add_norm_act(const uint16_t *x, const uint16_t *other, int64_t rows, int64_t c, const float *coefs, int act,
                  uint16_t *y, int threads) {
    int64_t group = group_of(c);
    float *repeated = repeat(coefs, 2, c, group);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r += BLOCK_ROWS)
        BY_ACT(add_norm_act_rows, x + r * c, other + r * c, rows_from(r, rows), c, group, repeated, y + r * c);
    free(repeated);
}

/* ---- backward ---- */

INLINE void grad_sums_rows(const uint16_t *restrict x, const uint16_t *restrict dy, int64_t count, int64_t c,
                           int64_t group, const float *restrict coefs, float *restrict first, float *restrict second,
                           const int act) {
    const float *scale = coefs, *shift = coefs + group * c;
    for (int64_t r = 0, values; r < count; r += values / c, x += values, dy += values) {
        values = values_from(r, count, group, c);
        for (int64_t i = 0; i < values; i += LANES) {
            Mask mask = mask_of(values - i);
            V v = read(x + i, mask), dz = act_gradient(v * get(scale + i) + get(shift + i), read(dy + i, mask), act);
            put(first + i, get(first + i) + dz);
            put(second + i, get(second + i) + dz * v);
        }
    }
}

/* sums (threads, 2, c), given as zeros: each thread's sums of dz and of dz * x, where dz is the gradient
   with respect to z = scale * x + shift. coefs (2, c): scale, shift. */
void norm_act_grad_sums(const uint16_t *x, const uint16_t *dy, int64_t rows, int64_t c, const float *coefs, int act,
                        double *sums, int threads) {
    int64_t group = group_of(c);
    float *repeated = repeat(coefs, 2, c, group);
#pragma omp parallel num_threads(threads)
    {
        Sums s = begin_sums(c, group, sums);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r += BLOCK_ROWS) {
            BY_ACT(grad_sums_rows, x + r * c, dy + r * c, rows_from(r, rows), c, group, repeated, s.first, s.second);
            flush_sums(&s);
        }
        end_sums(&s);
    }
    free(repeated);
}

INLINE void add_norm_act_grad_rows(const uint16_t *restrict x, const uint16_t *restrict other,
                                   const uint16_t *restrict dy, int64_t count, int64_t c, int64_t group,
                                   const float *restrict coefs, uint16_t *restrict dz, float *restrict first,
                                   float *restrict second, const int act) {
    const float *scale = coefs, *shift = coefs + group * c;
    for (int64_t r = 0, values; r < count;
         r += values / c, x += values, other += values, dy += values, dz += values) {
        values = values_from(r, count, group, c);
        for (int64_t i = 0; i < values; i += LANES) {
            Mask mask = mask_of(values - i);
            V v = read(x + i, mask), z = v * get(scale + i) + get(shift + i) + read(other + i, mask);
            V gradient = rounded(act_gradient(z, read(dy + i, mask), act)); /* sums are of what is stored */
            write(dz + i, mask, gradient);
            put(first + i, get(first + i) + gradient);
            put(second + i, get(second + i) + gradient * v);
        }
    }
}

/* dz: the gradient with respect to the sum z = scale * x + shift + other, which is also that of
   other. sums: as of `norm_act_grad_sums`. */
void add_norm_act_grad(const uint16_t *x, const uint16_t *other, const uint16_t *dy, int64_t rows, int64_t c,
                       const float *coefs, int act, uint16_t *dz, double *sums, int threads) {
    int64_t group = group_of(c);
    float *repeated = repeat(coefs, 2, c, group);
#pragma omp parallel num_threads(threads)
    {
        Sums s = begin_sums(c, group, sums);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r += BLOCK_ROWS) {
            int64_t at = r * c;
            BY_ACT(add_norm_act_grad_rows, x + at, other + at, dy + at, rows_from(r, rows), c, group, repeated, dz + at,
                   s.first, s.second);
            flush_sums(&s);
        }
        end_sums(&s);
    }
    free(repeated);
}

INLINE void grad_input_rows(const uint16_t *restrict x, const uint16_t *restrict dy, int64_t count, int64_t c,
                            int64_t group, const float *restrict coefs, uint16_t *restrict dx, const int act) {
    const float *scale = coefs, *shift = coefs + group * c, *slope = shift + group * c, *offset = slope + group * c;
    for (int64_t r = 0, values; r < count; r += values / c, x += values, dy += values, dx += values) {
        values = values_from(r, count, group, c);
        for (int64_t i = 0; i < values; i += LANES) {
            Mask mask = mask_of(values - i);
            V v = read(x + i, mask), dz = act_gradient(v * get(scale + i) + get(shift + i), read(dy + i, mask), act);
            write(dx + i, mask, get(scale + i) * dz + get(slope + i) * v + get(offset + i));
        }
    }
}

/* dx = scale * dz + slope * x + offset. coefs (4, c): scale, shift, slope, offset. */
void norm_act_grad_input(const uint16_t *x, const uint16_t *dy, int64_t rows, int64_t c, const float *coefs, int act,
                         uint16_t *dx, int threads) {
    int64_t group = group_of(c);
    float *repeated = repeat(coefs, 4, c, group);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r += BLOCK_ROWS)
        BY_ACT(grad_input_rows, x + r * c, dy + r * c, rows_from(r, rows), c, group, repeated, dx + r * c);
    free(repeated);
}

/* One row of pooled pixels to two rows of gradients, upper and lower; `pooled` is a buffer for the
   gradient of one pixel. */
INLINE void unpool_row(const uint16_t *restrict x, const uint16_t *restrict dy, const uint8_t *restrict argmax,
                       int64_t ow, int64_t c, const float *restrict coefs, uint16_t *restrict pooled,
                       uint16_t *restrict upper, uint16_t *restrict lower, const int act) {
    for (int64_t j = 0; j < ow; j++, x += c, dy += c, argmax += c, upper += 2 * c, lower += 2 * c) {
        grad_input_rows(x, dy, 1, c, 1, coefs, pooled, act);
        for (int64_t i = 0; i < c; i++) {
            upper[i] = argmax[i] == 0 ? pooled[i] : 0;
            upper[c + i] = argmax[i] == 1 ? pooled[i] : 0;
            lower[i] = argmax[i] == 2 ? pooled[i] : 0;
            lower[c + i] = argmax[i] == 3 ? pooled[i] : 0;
        }
    }
}

/* `norm_act_grad_input` through the max-pool before it: x is the pool's result, dx (n, h, w, c) the
   gradient of its input. An odd last row or column of the input was not pooled: its gradient is 0. */
void unpool_grad_input(const uint16_t *x, const uint16_t *dy, const uint8_t *argmax, int64_t n, int64_t h, int64_t w,
                       int64_t c, const float *coefs, int act, uint16_t *dx, int threads) {
    int64_t oh = h / 2, ow = w / 2, row = ow * c, below = w * c;
    float *repeated = repeat(coefs, 4, c, 1);
#pragma omp parallel num_threads(threads)
    {
        uint16_t *pooled = malloc(c * sizeof(uint16_t));
#pragma omp for schedule(static)
        for (int64_t r = 0; r < n * oh; r++) {
            uint16_t *top = dx + (r / oh * h + 2 * (r % oh)) * below;
            BY_ACT(unpool_row, x + r * row, dy + r * row, argmax + r * row, ow, c, repeated, pooled, top, top + below);
            if (w % 2) {
                memset(top + below - c, 0, 2 * c);
                memset(top + 2 * below - c, 0, 2 * c);
            }
            if (h % 2 && r % oh == oh - 1) memset(top + 2 * below, 0, 2 * below);
        }
        free(pooled);
    }
    free(repeated);
}
