/* 3x3 convolutions of stride 1, for float32 maps stored channels last, by Winograd's minimal filtering
   F(4x4, 3x3): Lavin and Gray 2016, arXiv:1509.09308. Compiled at first use by kernels/build.py, called
   by kernels/winograd.py.

   A tile of 4x4 outputs y depends on a tile of 6x6 inputs d. Per pair of channels, with filters g,
     y = A' [ (G g G') * (B' d B) ] A        (*: element by element, ': transposed)
   takes 36 products where the sum over taps takes 144. The 36 elements are the values of polynomials
   at the points 0, 1, -1, 2, -2 and infinity of outputs dimensions:
          |4  0 -5  0 1 0|        | 6  0  0|
          |0 -4 -4  1 1 0|        |-4 -4 -4|        |1 1  1 1  1 0|
     B' = |0  4 -4 -1 1 0|   24 G=|-4  4 -4|   A' = |0 1 -1 2 -2 0|
          |0 -2 -1  2 1 0|        | 1  2  4|        |0 1  1 4  4 0|
          |0  2 -1 -2 1 0|        | 1 -2  4|        |0 1 -1 8 -8 1|
          |0  4  0 -5 0 1|        | 0  0 24|
   Summed over input channels, each of the 36 points is a product of matrices, (tiles, c) by (c, o).
   The gradient of the input is such a convolution too, of dy with the filters rotated by half a turn.
   The gradient of the filters is, summed over tiles,
     dg = G' [ (B' d B) * (A dy A') ] G,
   again 36 products of matrices, (c, tiles) by (tiles, o). G is applied in Python, where it is small.

   Tiles are transformed, multiplied and transformed back a block at a time, so that all that lies
   between input and output stays in the cache. */

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
#define ROWS 12 /* 12 x 2 vectors of sums in 24 of 32 registers */
#else
#define LANES 8
#define ROWS 6 /* 6 x 2 vectors of sums in 12 of 16 registers */
#endif
#define COLS (2 * LANES)
#define TILE_IN 6  /* pixels along a side of an input tile */
#define TILE_OUT 4 /* pixels along a side of an output tile: input tiles overlap by 2 */
#define POINTS (TILE_IN * TILE_IN)
#define BLOCK_BYTES 2000000 /* of a thread's transformed tiles of one block: they stay in its cache */
#define BLOCK_TILES 48      /* at least these tiles a block: the filters are read again for each block */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

int has_fma(void) { return 1; }
int rows_at_once(void) { return ROWS; }
int columns_at_once(void) { return COLS; }

INLINE int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }
INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

/* Maps (n, h, w, c); their first tile begins `pad` pixels above and left of the first pixel. */
typedef struct {
    const float *data;
    int64_t n, h, w, c, pad;
} Maps;

/* How outputs of h x w pixels are cut into tiles. */
typedef struct {
    int64_t down, across; /* tiles along the height and the width of an image */
    int64_t count;        /* tiles of all images */
} Grid;

static Grid grid_of(int64_t n, int64_t h, int64_t w) {
    int64_t down = (h + TILE_OUT - 1) / TILE_OUT, across = (w + TILE_OUT - 1) / TILE_OUT;
    return (Grid){down, across, n * down * across};
}

/* Tiles of a block, each of `floats` at every point: as many as the cache holds, but no more than a
   thread's share of all. */
static int64_t block_of(int64_t floats, int64_t tiles, int64_t threads) {
    int64_t fitting = max(BLOCK_BYTES / (POINTS * 4 * floats), BLOCK_TILES);
    return round_up(max(1, min(fitting, (tiles + threads - 1) / threads)), ROWS);
}

/* side x side pixels of one tile, LANES channels from `from` on. Zeros outside of the image and beyond
   the last channel. */
INLINE void load(vec *d, Maps x, Grid grid, int64_t tile, int64_t from, int side) {
    int64_t image = tile / (grid.down * grid.across), place = tile % (grid.down * grid.across);
    int64_t top = place / grid.across * TILE_OUT - x.pad, left = place % grid.across * TILE_OUT - x.pad;
    const float *origin = x.data + image * x.h * x.w * x.c + from;
    int full = from + LANES <= x.c;
    size_t bytes_left = 4 * (size_t)min(LANES, x.c - from);
    if (full && top >= 0 && left >= 0 && top + side <= x.h && left + side <= x.w) {
        for (int i = 0; i < side; i++)
            for (int j = 0; j < side; j++)
                d[i * side + j] = *(const vec *)(origin + ((top + i) * x.w + left + j) * x.c);
        return;
    }
    for (int i = 0; i < side; i++)
        for (int j = 0; j < side; j++) {
            int64_t row = top + i, column = left + j;
            vec value = {0};
            if (row >= 0 && row < x.h && column >= 0 && column < x.w) {
                const float *pixel = origin + (row * x.w + column) * x.c;
                if (full)
                    value = *(const vec *)pixel;
                else
                    memcpy(&value, pixel, bytes_left);
            }
            d[i * side + j] = value;
        }
}

/* B' times one column, 6 pixels `ds` vectors apart: 6 points, `os` vectors apart. */
INLINE void input_transform(vec *o, int os, const vec *d, int ds) {
    vec a = d[4 * ds] - 4 * d[2 * ds], b = d[3 * ds] - 4 * d[ds];
    vec e = d[4 * ds] - d[2 * ds], f = 2 * (d[3 * ds] - d[ds]);
    vec first = 4 * d[0] - 5 * d[2 * ds] + d[4 * ds];
    vec last = 4 * d[ds] - 5 * d[3 * ds] + d[5 * ds];
    o[0] = first, o[os] = a + b, o[2 * os] = a - b, o[3 * os] = e + f, o[4 * os] = e - f, o[5 * os] = last;
}

/* A times one column, 4 gradients of outputs: 6 points. */
INLINE void gradient_transform(vec *o, int os, const vec *g, int gs) {
    vec a = g[0] + g[2 * gs], b = g[gs] + g[3 * gs];
    vec e = g[0] + 4 * g[2 * gs], f = 2 * g[gs] + 8 * g[3 * gs];
    vec first = g[0], last = g[3 * gs];
    o[0] = first, o[os] = a + b, o[2 * os] = a - b, o[3 * os] = e + f, o[4 * os] = e - f, o[5 * os] = last;
}

/* A' times one column, 6 points: 4 outputs. */
INLINE void output_transform(vec *o, int os, const vec *m, int ms) {
    vec a = m[ms] + m[2 * ms], b = m[ms] - m[2 * ms], e = m[3 * ms] + m[4 * ms], f = m[3 * ms] - m[4 * ms];
    o[0] = m[0] + a + e, o[os] = b + 2 * f, o[2 * os] = a + 4 * e, o[3 * os] = b + 8 * f + m[5 * ms];
}

/* Floats from one point of a block to the next: a cache line more than its values, as else the 36
   points of a tile would compete for the same few lines of the cache. */
INLINE int64_t point_stride(int64_t block, int64_t width) { return block * width + 16; }

/* Transform tiles first .. first + count of x to v (POINTS, block, width), its points `stride` floats
   apart: input tiles to B' d B or, with `is_gradient`, gradients of output tiles to A dy A'. */
INLINE void transform_tiles(float *v, Maps x, Grid grid, int64_t first, int64_t count, int64_t stride, int64_t width,
                            int is_gradient) {
    const int side = is_gradient ? TILE_OUT : TILE_IN;
    for (int64_t t = 0; t < count; t++)
        for (int64_t from = 0; from < x.c; from += LANES) {
            vec d[POINTS], half[POINTS], points[POINTS]; /* half: the columns transformed, then the rows */
            load(d, x, grid, first + t, from, side);
            if (is_gradient) {
                for (int j = 0; j < TILE_OUT; j++) gradient_transform(half + j, TILE_OUT, d + j, TILE_OUT);
                for (int i = 0; i < TILE_IN; i++) gradient_transform(points + i * TILE_IN, 1, half + i * TILE_OUT, 1);
            } else {
                for (int j = 0; j < TILE_IN; j++) input_transform(half + j, TILE_IN, d + j, TILE_IN);
                for (int i = 0; i < TILE_IN; i++) input_transform(points + i * TILE_IN, 1, half + i * TILE_IN, 1);
            }
            for (int p = 0; p < POINTS; p++) *(vec *)(v + p * stride + t * width + from) = points[p];
        }
}

/* ROWS x COLS of a product of matrices of depth k, held in registers: out = a b, or with `add` out += a b.
   Element (row, i) of a is at a[row * row_step + i * step], row i of b at b + i * b_step. */
INLINE void product(float *out, int64_t out_step, const float *a, int64_t row_step, int64_t step, const float *b,
                    int64_t b_step, int64_t k, int add) {
    vec sum[ROWS][2];
    for (int r = 0; r < ROWS; r++)
        for (int s = 0; s < 2; s++) sum[r][s] = add ? *(vec *)(out + r * out_step + s * LANES) : (vec){0};
    for (int64_t i = 0; i < k; i++) {
        vec right0 = *(const vec *)(b + i * b_step), right1 = *(const vec *)(b + i * b_step + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            vec left = a[r * row_step + i * step] - (vec){0}; /* the value in every lane */
            sum[r][0] += left * right0;
            sum[r][1] += left * right1;
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int s = 0; s < 2; s++) *(vec *)(out + r * out_step + s * LANES) = sum[r][s];
}

/* A' m A of tiles first .. first + count, m (POINTS, block, width), to outputs y (n, h, w, o). The last
   tiles of an image may reach beyond it and are cropped. */
static void write_outputs(float *y, int64_t h, int64_t w, int64_t o, const float *m, Grid grid, int64_t first,
                          int64_t count, int64_t stride, int64_t width) {
    for (int64_t t = 0; t < count; t++) {
        int64_t tile = first + t, image = tile / (grid.down * grid.across);
        int64_t place = tile % (grid.down * grid.across);
        int64_t top = place / grid.across * TILE_OUT, left = place % grid.across * TILE_OUT;
        int64_t rows = min(TILE_OUT, h - top), columns = min(TILE_OUT, w - left);
        for (int64_t from = 0; from < o; from += LANES) {
            vec points[POINTS], half[TILE_OUT * TILE_IN], outputs[TILE_OUT * TILE_OUT];
            for (int p = 0; p < POINTS; p++) points[p] = *(const vec *)(m + p * stride + t * width + from);
            for (int j = 0; j < TILE_IN; j++) output_transform(half + j, TILE_IN, points + j, TILE_IN);
            for (int i = 0; i < TILE_OUT; i++) output_transform(outputs + i * TILE_OUT, 1, half + i * TILE_IN, 1);
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < columns; j++) {
                    float *pixel = y + ((image * h + top + i) * w + left + j) * o + from;
                    if (from + LANES <= o)
                        *(vec *)pixel = outputs[i * TILE_OUT + j];
                    else
                        memcpy(pixel, &outputs[i * TILE_OUT + j], 4 * (size_t)(o - from));
                }
        }
    }
}

static float *zeros(int64_t count) {
    float *floats = aligned_alloc(64, round_up(4 * count, 64));
    if (floats) memset(floats, 0, 4 * count);
    return floats;
}

/* y (n, h + 2 pad - 2, w + 2 pad - 2, o): the convolution of x (n, h, w, c), with `pad` zeros around it.
   filters: G g G' as (POINTS, panels, c, COLS), where a panel is COLS of the o outputs, the last one
   filled up with zeros. Returns 0, or 1 if memory ran out. */
int winograd(const float *x, int64_t n, int64_t h, int64_t w, int64_t c, int64_t pad, const float *filters, int64_t o,
             float *y, int64_t threads) {
    int64_t oh = h + 2 * pad - 2, ow = w + 2 * pad - 2, c_up = round_up(c, LANES), o_up = round_up(o, COLS);
    Grid grid = grid_of(n, oh, ow);
    Maps maps = {x, n, h, w, c, pad};
    int64_t block = block_of(c_up + o_up, grid.count, threads), blocks = (grid.count + block - 1) / block;
    int64_t v_stride = point_stride(block, c_up), m_stride = point_stride(block, o_up);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        float *v = zeros(POINTS * v_stride), *m = zeros(POINTS * m_stride);
        if (!v || !m) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
#pragma omp for schedule(static)
            for (int64_t b = 0; b < blocks; b++) {
                int64_t first = b * block, count = min(block, grid.count - first);
                transform_tiles(v, maps, grid, first, count, v_stride, c_up, 0);
                for (int64_t p = 0; p < POINTS; p++)
                    for (int64_t column = 0; column < o_up; column += COLS)
                        for (int64_t t = 0; t < count; t += ROWS)
                            product(m + p * m_stride + t * o_up + column, o_up, v + p * v_stride + t * c_up, c_up, 1,
                                    filters + (p * o_up + column) * c, COLS, c, 0);
                write_outputs(y, oh, ow, o, m, grid, first, count, m_stride, o_up);
            }
        }
        free(v), free(m);
    }
    return failed;
}

/* sums (threads, POINTS, c rounded up to ROWS, o rounded up to COLS): each thread's part of the sum over
   tiles of (B' d B) * (A dy A'), from x (n, h, w, c) with `pad` zeros around it and the gradient
   dy (n, h + 2 pad - 2, w + 2 pad - 2, o). Returns 0, or 1 if memory ran out. */
int winograd_grad_weight(const float *x, const float *dy, int64_t n, int64_t h, int64_t w, int64_t c,
                         int64_t pad, int64_t o, float *sums, int64_t threads) {
    int64_t oh = h + 2 * pad - 2, ow = w + 2 * pad - 2;
    int64_t rows = round_up(c, ROWS), c_up = round_up(rows, LANES), o_up = round_up(o, COLS);
    Grid grid = grid_of(n, oh, ow);
    Maps maps = {x, n, h, w, c, pad}, gradients = {dy, n, oh, ow, o, 0};
    int64_t block = block_of(c_up + o_up, grid.count, threads), blocks = (grid.count + block - 1) / block;
    int64_t v_stride = point_stride(block, c_up), m_stride = point_stride(block, o_up);
    int failed = 0, started = 0;
#pragma omp parallel num_threads(threads)
    {
        float *v = zeros(POINTS * v_stride), *m = zeros(POINTS * m_stride);
        float *sum = sums + omp_get_thread_num() * POINTS * rows * o_up;
        int add = 0;
#pragma omp atomic
        started++;
        if (!v || !m) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
#pragma omp for schedule(static)
            for (int64_t b = 0; b < blocks; b++) {
                int64_t first = b * block, count = min(block, grid.count - first);
                transform_tiles(v, maps, grid, first, count, v_stride, c_up, 0);
                transform_tiles(m, gradients, grid, first, count, m_stride, o_up, 1);
                for (int64_t p = 0; p < POINTS; p++)
                    for (int64_t column = 0; column < o_up; column += COLS)
                        for (int64_t row = 0; row < rows; row += ROWS)
                            product(sum + (p * rows + row) * o_up + column, o_up, v + p * v_stride + row, 1, c_up,
                                    m + p * m_stride + column, o_up, count, add);
                add = 1;
            }
        }
        if (!add) memset(sum, 0, 4 * POINTS * rows * o_up);
        free(v), free(m);
    }
    /* OpenMP may start fewer threads than asked for (OMP_THREAD_LIMIT): the others' sums are zeros */
    memset(sums + started * POINTS * rows * o_up, 0, 4 * (threads - started) * POINTS * rows * o_up);
    return failed;
}
#endif
