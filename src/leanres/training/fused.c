/* Max-pool, batch norm and activation in few passes over memory, for bfloat16 maps whose channels
   lie together (channels last). Compiled where it runs, by training/kernels.py; training/fused.py
   says what the arguments are. Values are widened to float, sums carried on in double. */

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { NONE, RELU, GELU };
#define BLOCK 256 /* rows between two additions to the sums in double */

static inline float wide(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint16_t narrow(float value) { /* to nearest, ties to even; NaN stays one */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return value != value ? 0x7fc0 : (uint16_t)rounded;
}

/* z cut to [-4, 4]. By its bits: a loop with a comparison of floats stays scalar. */
static inline float cut(float z) {
    uint32_t bits, size;
    memcpy(&bits, &z, 4);
    size = bits & 0x7fffffff;
    bits = (bits & 0x80000000) | (size > 0x40800000 ? 0x40800000 : size);
    memcpy(&z, &bits, 4);
    return z;
}

/* Polynomials, fitted on [-4, 4] and constant beyond: the normal distribution function at z, off by
   at most 3e-5, and the slope of z times it, off by 5e-4; a bfloat16 near 1 is off by 4e-3. */
static inline float below(float z) {
    float w = cut(z), u = w * w, p = 7.804711256e-11f;
    p = p * u - 6.827683748e-09f;
    p = p * u + 2.666981721e-07f;
    p = p * u - 6.222018266e-06f;
    p = p * u + 9.829133151e-05f;
    p = p * u - 1.130966313e-03f;
    p = p * u + 9.869967510e-03f;
    p = p * u - 6.640203406e-02f;
    p = p * u + 3.989198652e-01f;
    return 0.5f + w * p;
}

static inline float gelu_slope(float z) {
    float w = cut(z), u = w * w, p = -5.066656453e-11f;
    p = p * u + 4.789404823e-09f;
    p = p * u - 2.026334901e-07f;
    p = p * u + 5.107091856e-06f;
    p = p * u - 8.623214197e-05f;
    p = p * u + 1.038562907e-03f;
    p = p * u - 9.190203826e-03f;
    p = p * u + 5.937874753e-02f;
    p = p * u - 2.656380801e-01f;
    p = p * u + 7.978171689e-01f;
    return 0.5f + w * p;
}

static inline float activate(float z, const int act) {
    if (act == RELU) return z > 0 || z != z ? z : 0.0f;
    return act == GELU ? z * below(z) : z;
}

static inline float slope(float z, const int act) {
    if (act == RELU) return z > 0 ? 1.0f : 0.0f;
    return act == GELU ? gelu_slope(z) : 1.0f;
}

#define INLINE static inline __attribute__((always_inline))
#define BY_ACT(f, ...)                       \
    if (act == RELU) f(__VA_ARGS__, RELU);   \
    else if (act == GELU) f(__VA_ARGS__, GELU); \
    else f(__VA_ARGS__, NONE)

/* A thread's two sums for each of c channels: in float for some rows, in double for all, in a place
   of its own, so that adding the threads' up has one order. */
typedef struct {
    double *total;
    float *first, *second;
    int64_t c;
} Sums;

static Sums begin(int64_t c, double *sums) {
    float *part = calloc(2 * c, sizeof(float));
    return (Sums){sums + 2 * c * omp_get_thread_num(), part, part + c, c};
}

static void add_up(Sums *s) {
    for (int64_t i = 0; i < 2 * s->c; i++) s->total[i] += s->first[i], s->first[i] = 0;
}

static void end(Sums *s) {
    add_up(s);
    free(s->first);
}

/* sums (threads, 2, c), given as zeros: of x, and of its squares. */
void sums_of(const uint16_t *x, int64_t rows, int64_t c, double *sums, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Sums s = begin(c, sums);
        float *restrict first = s.first, *restrict second = s.second;
#pragma omp for schedule(static)
        for (int64_t block = 0; block < rows; block += BLOCK) {
            for (int64_t r = block; r < rows && r < block + BLOCK; r++)
                for (int64_t i = 0; i < c; i++) {
                    float v = wide(x[r * c + i]);
                    first[i] += v;
                    second[i] += v * v;
                }
            add_up(&s);
        }
        end(&s);
    }
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
            out[i] = narrow(best);
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
        Sums s = begin(c, sums);
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

INLINE void forward_rows(const uint16_t *restrict x, int64_t count, int64_t c, const float *restrict scale,
                         const float *restrict shift, uint16_t *restrict y, const int act) {
    for (int64_t r = 0; r < count; r++, x += c, y += c)
        for (int64_t i = 0; i < c; i++) y[i] = narrow(activate(wide(x[i]) * scale[i] + shift[i], act));
}

/* y = act(x * scale + shift), by channel. */
void forward(const uint16_t *x, int64_t rows, int64_t c, const float *scale, const float *shift, int act,
             uint16_t *y, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r += BLOCK) {
        int64_t count = rows - r < BLOCK ? rows - r : BLOCK;
        BY_ACT(forward_rows, x + r * c, count, c, scale, shift, y + r * c);
    }
}

INLINE void gradient_rows(const uint16_t *restrict x, const uint16_t *restrict dy, int64_t count, int64_t c,
                          const float *restrict scale, const float *restrict shift, float *restrict first,
                          float *restrict second, const int act) {
    for (int64_t r = 0; r < count; r++, x += c, dy += c)
        for (int64_t i = 0; i < c; i++) {
            float v = wide(x[i]);
            float dz = wide(dy[i]) * slope(v * scale[i] + shift[i], act);
            first[i] += dz;
            second[i] += dz * v;
        }
}

/* sums (threads, 2, c), given as zeros: of the gradient by z = x * scale + shift, and of its products with x. */
void gradient_sums(const uint16_t *x, const uint16_t *dy, int64_t rows, int64_t c, const float *scale,
                   const float *shift, int act, double *sums, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Sums s = begin(c, sums);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r += BLOCK) {
            int64_t count = rows - r < BLOCK ? rows - r : BLOCK;
            BY_ACT(gradient_rows, x + r * c, dy + r * c, count, c, scale, shift, s.first, s.second);
            add_up(&s);
        }
        end(&s);
    }
}

INLINE uint16_t gradient(uint16_t x, uint16_t dy, float scale, float shift, float along, float level, const int act) {
    float v = wide(x);
    return narrow(scale * wide(dy) * slope(v * scale + shift, act) + along * v + level);
}

INLINE void join_rows(const uint16_t *restrict x, const uint16_t *restrict other, int64_t count, int64_t c,
                      const float *restrict scale, const float *restrict shift, uint16_t *restrict y, const int act) {
    for (int64_t r = 0; r < count; r++, x += c, other += c, y += c)
        for (int64_t i = 0; i < c; i++) y[i] = narrow(activate(wide(x[i]) * scale[i] + shift[i] + wide(other[i]), act));
}

/* y = act(x * scale + shift + other), by channel. */
void join(const uint16_t *x, const uint16_t *other, int64_t rows, int64_t c, const float *scale, const float *shift,
          int act, uint16_t *y, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r += BLOCK) {
        int64_t count = rows - r < BLOCK ? rows - r : BLOCK;
        BY_ACT(join_rows, x + r * c, other + r * c, count, c, scale, shift, y + r * c);
    }
}

INLINE void join_gradient_rows(const uint16_t *restrict x, const uint16_t *restrict other, const uint16_t *restrict dy,
                               int64_t count, int64_t c, const float *restrict scale, const float *restrict shift,
                               uint16_t *restrict dz, float *restrict first, float *restrict second, const int act) {
    for (int64_t r = 0; r < count; r++, x += c, other += c, dy += c, dz += c)
        for (int64_t i = 0; i < c; i++) {
            float v = wide(x[i]), z = v * scale[i] + shift[i] + wide(other[i]);
            dz[i] = narrow(wide(dy[i]) * slope(z, act));
            first[i] += wide(dz[i]);
            second[i] += wide(dz[i]) * v;
        }
}

/* dz: the gradient by the sum that `join` activates. sums: as of `gradient_sums`. */
void join_gradient(const uint16_t *x, const uint16_t *other, const uint16_t *dy, int64_t rows, int64_t c,
                   const float *scale, const float *shift, int act, uint16_t *dz, double *sums, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Sums s = begin(c, sums);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r += BLOCK) {
            int64_t count = rows - r < BLOCK ? rows - r : BLOCK, at = r * c;
            BY_ACT(join_gradient_rows, x + at, other + at, dy + at, count, c, scale, shift, dz + at, s.first, s.second);
            add_up(&s);
        }
        end(&s);
    }
}

INLINE void backward_rows(const uint16_t *restrict x, const uint16_t *restrict dy, int64_t count, int64_t c,
                          const float *restrict lines, uint16_t *restrict dx, const int act) {
    const float *scale = lines, *shift = lines + c, *along = lines + 2 * c, *level = lines + 3 * c;
    for (int64_t r = 0; r < count; r++, x += c, dy += c, dx += c)
        for (int64_t i = 0; i < c; i++) dx[i] = gradient(x[i], dy[i], scale[i], shift[i], along[i], level[i], act);
}

/* dx: scale * dz + along * x + level. lines (4, c): scale, shift, along, level. */
void backward(const uint16_t *x, const uint16_t *dy, int64_t rows, int64_t c, const float *lines, int act,
              uint16_t *dx, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r += BLOCK) {
        int64_t count = rows - r < BLOCK ? rows - r : BLOCK;
        BY_ACT(backward_rows, x + r * c, dy + r * c, count, c, lines, dx + r * c);
    }
}

INLINE void unpool_row(const uint16_t *restrict x, const uint16_t *restrict dy, const uint8_t *restrict where,
                       int64_t ow, int64_t c, const float *restrict lines, uint16_t *restrict a,
                       uint16_t *restrict b, const int act) {
    const float *scale = lines, *shift = lines + c, *along = lines + 2 * c, *level = lines + 3 * c;
    for (int64_t j = 0; j < ow; j++, x += c, dy += c, where += c, a += 2 * c, b += 2 * c)
        for (int64_t i = 0; i < c; i++) {
            uint16_t v = gradient(x[i], dy[i], scale[i], shift[i], along[i], level[i], act);
            a[i] = where[i] == 0 ? v : 0;
            a[c + i] = where[i] == 1 ? v : 0;
            b[i] = where[i] == 2 ? v : 0;
            b[c + i] = where[i] == 3 ? v : 0;
        }
}

/* The same through the pool: x is what it gave, dx (n, h, w, c) the gradient by what it took. */
void unpool(const uint16_t *x, const uint16_t *dy, const uint8_t *where, int64_t n, int64_t h, int64_t w,
            int64_t c, const float *lines, int act, uint16_t *dx, int threads) {
    int64_t oh = h / 2, ow = w / 2, row = ow * c, below = w * c;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < n * oh; r++) {
        uint16_t *top = dx + (r / oh * h + 2 * (r % oh)) * below;
        BY_ACT(unpool_row, x + r * row, dy + r * row, where + r * row, ow, c, lines, top, top + below);
        if (w % 2) {
            memset(top + below - c, 0, 2 * c);
            memset(top + 2 * below - c, 0, 2 * c);
        }
        if (h % 2 && r % oh == oh - 1) memset(top + 2 * below, 0, 2 * below);
    }
}
