/* 3x3 convolutions, stride 1, for float32 maps whose channels lie together, by Winograd's minimal
   filtering F(4x4, 3x3): 4x4 results cost 36 products of channels, where a sum over taps costs 144.
   Lavin and Gray 2016, arXiv:1509.09308. Compiled beside fused.c and convolve.c.

   Tiles of the maps are transformed, multiplied and transformed back a block at a time, so that
   what is between stays in the cache. */

#if !defined(__AVX2__) || !defined(__FMA__)
int has_fma(void) { return 0; }
int rows_at_once(void) { return 0; }
int columns_at_once(void) { return 0; }
#else

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#ifdef __AVX512F__
#define LANES 16
#define ROWS 12 /* of a product held in registers: 24 of 32 */
#else
#define LANES 8
#define ROWS 6 /* 12 of 16 */
#endif
#define COLS (2 * LANES)
#define SIDE 6
#define BYTES 2000000 /* of a thread's points of one block of tiles */
#define LEAST 48 /* tiles of a block: filters are read once for each */
#define KEPT 4 /* results along a side of a tile */
#define POINTS (SIDE * SIDE)

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

int has_fma(void) { return 1; }
int rows_at_once(void) { return ROWS; }
int columns_at_once(void) { return COLS; }

INLINE int64_t up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Maps (n, h, w, c), cut into tiles of `kept` pixels a side that start `before` pixels early. */
typedef struct {
    const float *at;
    int64_t n, h, w, c, before;
} Maps;

typedef struct {
    int64_t down, across, count; /* tiles of an image; of all images */
} Grid;

static Grid grid_of(int64_t n, int64_t h, int64_t w) { /* of results h x w */
    int64_t down = (h + KEPT - 1) / KEPT, across = (w + KEPT - 1) / KEPT;
    return (Grid){down, across, n * down * across};
}

/* Tiles of a block, where each has `floats` at every point; no more than its share of all. */
static int64_t block_of(int64_t floats, int64_t tiles, int64_t threads) {
    int64_t fit = most(BYTES / (POINTS * 4 * floats), LEAST);
    return up(least(fit, (tiles + threads - 1) / threads), ROWS);
}

/* side x side pixels of one tile, LANES channels of them; 0 beyond an edge and beyond the channels. */
INLINE void load(vec *d, Maps x, Grid grid, int64_t tile, int64_t from, int side) {
    int64_t image = tile / (grid.down * grid.across), place = tile % (grid.down * grid.across);
    int64_t top = place / grid.across * KEPT - x.before, left = place % grid.across * KEPT - x.before;
    const float *maps = x.at + image * x.h * x.w * x.c + from;
    int whole = from + LANES <= x.c;
    size_t rest = 4 * (size_t)least(LANES, x.c - from);
    if (whole && top >= 0 && left >= 0 && top + side <= x.h && left + side <= x.w) {
        for (int i = 0; i < side; i++)
            for (int j = 0; j < side; j++)
                d[i * side + j] = *(const vec *)(maps + ((top + i) * x.w + left + j) * x.c);
        return;
    }
    for (int i = 0; i < side; i++)
        for (int j = 0; j < side; j++) {
            int64_t row = top + i, column = left + j;
            vec value = {0};
            if (row >= 0 && row < x.h && column >= 0 && column < x.w) {
                const float *pixel = maps + (row * x.w + column) * x.c;
                if (whole)
                    value = *(const vec *)pixel;
                else
                    memcpy(&value, pixel, rest);
            }
            d[i * side + j] = value;
        }
}

/* One dimension of B' d: 6 pixels to 6 points. */
INLINE void maps_to_points(vec *o, int os, const vec *d, int ds) {
    vec a = d[4 * ds] - 4 * d[2 * ds], b = d[3 * ds] - 4 * d[ds];
    vec e = d[4 * ds] - d[2 * ds], f = 2 * (d[3 * ds] - d[ds]);
    vec first = 4 * d[0] - 5 * d[2 * ds] + d[4 * ds];
    vec last = 4 * d[ds] - 5 * d[3 * ds] + d[5 * ds];
    o[0] = first, o[os] = a + b, o[2 * os] = a - b, o[3 * os] = e + f, o[4 * os] = e - f, o[5 * os] = last;
}

/* A g: 4 gradients to 6 points. */
INLINE void results_to_points(vec *o, int os, const vec *g, int gs) {
    vec a = g[0] + g[2 * gs], b = g[gs] + g[3 * gs];
    vec e = g[0] + 4 * g[2 * gs], f = 2 * g[gs] + 8 * g[3 * gs];
    vec first = g[0], last = g[3 * gs];
    o[0] = first, o[os] = a + b, o[2 * os] = a - b, o[3 * os] = e + f, o[4 * os] = e - f, o[5 * os] = last;
}

/* A' m: 6 points to 4 results. */
INLINE void points_to_results(vec *o, int os, const vec *m, int ms) {
    vec a = m[ms] + m[2 * ms], b = m[ms] - m[2 * ms], e = m[3 * ms] + m[4 * ms], f = m[3 * ms] - m[4 * ms];
    o[0] = m[0] + a + e, o[os] = b + 2 * f, o[2 * os] = a + 4 * e, o[3 * os] = b + 8 * f + m[5 * ms];
}

/* Floats from one point of a block to the next: a line of the cache more than it has, or all points of a
   tile would fall into the same few lines. */
INLINE int64_t point_of(int64_t block, int64_t width) { return block * width + 16; }

/* The points of tiles first .. first + count, (POINTS, block, width) but for `point`: of the maps, or with
   `results` of gradients by the results. */
INLINE void spread(float *v, Maps x, Grid grid, int64_t first, int64_t count, int64_t point, int64_t width,
                   int results) {
    const int side = results ? KEPT : SIDE;
    for (int64_t t = 0; t < count; t++)
        for (int64_t from = 0; from < x.c; from += LANES) {
            vec d[POINTS], half[POINTS], all[POINTS];
            load(d, x, grid, first + t, from, side);
            if (results) {
                for (int j = 0; j < KEPT; j++) results_to_points(half + j, KEPT, d + j, KEPT);
                for (int i = 0; i < SIDE; i++) results_to_points(all + i * SIDE, 1, half + i * KEPT, 1);
            } else {
                for (int j = 0; j < SIDE; j++) maps_to_points(half + j, SIDE, d + j, SIDE);
                for (int i = 0; i < SIDE; i++) maps_to_points(all + i * SIDE, 1, half + i * SIDE, 1);
            }
            for (int p = 0; p < POINTS; p++) *(vec *)(v + p * point + t * width + from) = all[p];
        }
}

/* ROWS x COLS of a product of depth k: element (row, i) of the left at a[row * row_step + i * step],
   row i of the right at b + i * b_step. */
INLINE void product(float *out, int64_t out_step, const float *a, int64_t row_step, int64_t step, const float *b,
                    int64_t b_step, int64_t k, int add) {
    vec sum[ROWS][2];
    for (int r = 0; r < ROWS; r++)
        for (int s = 0; s < 2; s++) sum[r][s] = add ? *(vec *)(out + r * out_step + s * LANES) : (vec){0};
    for (int64_t i = 0; i < k; i++) {
        vec right0 = *(const vec *)(b + i * b_step), right1 = *(const vec *)(b + i * b_step + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            vec left = a[r * row_step + i * step] - (vec){0};
            sum[r][0] += left * right0;
            sum[r][1] += left * right1;
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int s = 0; s < 2; s++) *(vec *)(out + r * out_step + s * LANES) = sum[r][s];
}

/* Results of the tiles, from their points. */
static void gather(float *y, int64_t h, int64_t w, int64_t o, const float *m, Grid grid, int64_t first, int64_t count,
                   int64_t point, int64_t width) {
    for (int64_t t = 0; t < count; t++) {
        int64_t tile = first + t, image = tile / (grid.down * grid.across);
        int64_t place = tile % (grid.down * grid.across);
        int64_t top = place / grid.across * KEPT, left = place % grid.across * KEPT;
        int64_t rows = least(KEPT, h - top), columns = least(KEPT, w - left);
        for (int64_t from = 0; from < o; from += LANES) {
            vec points[POINTS], half[KEPT * SIDE], all[KEPT * KEPT];
            for (int p = 0; p < POINTS; p++) points[p] = *(const vec *)(m + p * point + t * width + from);
            for (int j = 0; j < SIDE; j++) points_to_results(half + j, SIDE, points + j, SIDE);
            for (int i = 0; i < KEPT; i++) points_to_results(all + i * KEPT, 1, half + i * SIDE, 1);
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < columns; j++) {
                    float *pixel = y + ((image * h + top + i) * w + left + j) * o + from;
                    if (from + LANES <= o)
                        *(vec *)pixel = all[i * KEPT + j];
                    else
                        memcpy(pixel, &all[i * KEPT + j], 4 * (size_t)(o - from));
                }
        }
    }
}

static float *zeros(int64_t count) {
    float *made = aligned_alloc(64, up(4 * count, 64));
    if (made) memset(made, 0, 4 * count);
    return made;
}

/* y (n, h', w', o) of x (n, h, w, c) with `pad` zeros around; filters as (POINTS, o / COLS rounded up, c, COLS).
   Returns 0, or 1 where memory is short. */
int winograd(const float *x, int64_t n, int64_t h, int64_t w, int64_t c, int64_t pad, const float *filters, int64_t o,
             float *y, int64_t threads) {
    int64_t high = h + 2 * pad - 2, wide = w + 2 * pad - 2, left = up(c, LANES), right = up(o, COLS);
    Grid grid = grid_of(n, high, wide);
    Maps maps = {x, n, h, w, c, pad};
    int64_t block = block_of(left + right, grid.count, threads), blocks = (grid.count + block - 1) / block;
    int64_t lefts = point_of(block, left), rights = point_of(block, right);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        float *v = zeros(POINTS * lefts), *m = zeros(POINTS * rights);
        if (!v || !m) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
#pragma omp for schedule(static)
            for (int64_t b = 0; b < blocks; b++) {
                int64_t first = b * block, count = least(block, grid.count - first);
                spread(v, maps, grid, first, count, lefts, left, 0);
                for (int64_t p = 0; p < POINTS; p++)
                    for (int64_t column = 0; column < right; column += COLS)
                        for (int64_t t = 0; t < count; t += ROWS)
                            product(m + p * rights + t * right + column, right, v + p * lefts + t * left, left, 1,
                                    filters + (p * right + column) * c, COLS, c, 0);
                gather(y, high, wide, o, m, grid, first, count, rights, right);
            }
        }
        free(v), free(m);
    }
    return failed;
}

/* The gradient by the filters' points, (threads, POINTS, c rounded up to ROWS, o rounded up to COLS): each thread's
   part of it. g (n, h', w', o) is the gradient by the results. */
int winograd_filters(const float *x, const float *g, int64_t n, int64_t h, int64_t w, int64_t c, int64_t pad,
                     int64_t o, float *sums, int64_t threads) {
    int64_t high = h + 2 * pad - 2, wide = w + 2 * pad - 2;
    int64_t rows = up(c, ROWS), left = up(rows, LANES), right = up(o, COLS);
    Grid grid = grid_of(n, high, wide);
    Maps maps = {x, n, h, w, c, pad}, gradients = {g, n, high, wide, o, 0};
    int64_t block = block_of(left + right, grid.count, threads), blocks = (grid.count + block - 1) / block;
    int64_t lefts = point_of(block, left), rights = point_of(block, right);
    int failed = 0, there = 0;
#pragma omp parallel num_threads(threads)
    {
        float *v = zeros(POINTS * lefts), *m = zeros(POINTS * rights);
        float *sum = sums + omp_get_thread_num() * POINTS * rows * right;
        int add = 0;
#pragma omp atomic
        there++;
        if (!v || !m) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
#pragma omp for schedule(static)
            for (int64_t b = 0; b < blocks; b++) {
                int64_t first = b * block, count = least(block, grid.count - first);
                spread(v, maps, grid, first, count, lefts, left, 0);
                spread(m, gradients, grid, first, count, rights, right, 1);
                for (int64_t p = 0; p < POINTS; p++)
                    for (int64_t column = 0; column < right; column += COLS)
                        for (int64_t row = 0; row < rows; row += ROWS)
                            product(sum + (p * rows + row) * right + column, right, v + p * lefts + row, 1, left,
                                    m + p * rights + column, right, count, add);
                add = 1;
            }
        }
        if (!add) memset(sum, 0, 4 * POINTS * rows * right);
        free(v), free(m);
    }
    /* a limit on threads may give fewer than asked for */
    memset(sums + there * POINTS * rows * right, 0, 4 * (threads - there) * POINTS * rows * right);
    return failed;
}
#endif
