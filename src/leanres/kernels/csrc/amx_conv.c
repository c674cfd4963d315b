/* 3x3 convolutions of stride 1 and padding 1, for bfloat16 maps stored channels last, with AMX.
   Compiled at first use by kernels/build.py, called by kernels/amx_conv.py.

   AMX multiplies tiles: 16x32 by 32x16 bfloat16, added to 16x16 float. Here the rows of a tile are 16
   images, all at one pixel, and its columns 32 channels. So no image is unfolded: the maps become an
   array of tiles by row and column, and a tap of the filter just reads the tile of a neighbouring
   pixel. Taps beyond an edge are skipped. At 7x7 those are a fifth of the products, where tiles of
   pixels in a row would add a column of zeros to every image.

   Forward, and the gradient of the input, which is the same with the filters rotated by half a turn
   and their channels exchanged:
     for each group of 16 images, for each strip of rows that fits the cache:
       copy the strip to tiles; for each block of 2x3 pixels (2x2 where the result is max-pooled):
         6 tiles of sums stay in registers while all taps and input channels are added.
   Gradient of the filters: the sum over images and pixels of dy (o, pixels) times x (pixels, c). There
   a tile has 32 images as depth of the product: dy is transposed to 16 channels by 32 images, x is
   16 pairs of images by 16 channels. Threads sum on their own and add up at the end, in a fixed order.

   Pooled maps: where a 2x2 max-pool follows, only its result and the place of each maximum, `argmax`
   (0 1 in the upper row, 2 3 in the lower), are stored. The gradient of the pool's input, zero in three
   of four pixels, is read from these two and never materialised. */

#ifndef __AMX_BF16__
int has_amx(void) { return 0; }
#else

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define INLINE static inline __attribute__((always_inline))
#define TILE 512 /* bfloat16 values of a tile; a tile of sums has half as many floats */
#define BLOCK 32 /* channels that are read and written together: a cache line */
#define TAPS 9
/* Before tiles are loaded: gcc is not told which memory that reads, and may drop or delay stores to it. */
#define STORES_ARE_READ() __asm__ volatile("" ::: "memory")
#define BUFFER_BYTES 1200000 /* of a thread's tiles: with the filters they stay in the second-level cache */
/* Of the tiles for a gradient of the filters: more where its sums, which come from the third-level
   cache, cost more than maps from it. */
#define GRAD_BUFFER_MIN 800000
#define GRAD_BUFFER_MAX 2400000

typedef const uint16_t *In; /* bfloat16 */
typedef uint16_t *Out;

int has_amx(void) { /* Linux lends the tile registers to a process that asks for them */
    const int arch_req_xcomp_perm = 0x1023, xfeature_xtiledata = 18;
    return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0;
}

static void configure_tiles(void) { /* all eight registers: 16 rows of 64 bytes */
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    __asm__ volatile("" ::"r"(&config) : "memory"); /* as STORES_ARE_READ, for a local variable */
    _tile_loadconfig(&config);
}

static inline int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }
static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

/* Rows of one thread's share of a group of images, an even number: all rows, unless there are fewer
   groups than threads. */
static int64_t rows_per_part(int64_t rows, int64_t groups, int threads) {
    int64_t parts = max(1, threads / max(1, groups));
    return max(2, round_up((rows + parts - 1) / parts, 2));
}

INLINE __mmask32 mask_of(int64_t count) { return count >= 32 ? 0xffffffffu : (1u << count) - 1; }

/* Maps (n, h, w, c). With `argmax` they are given pooled, (n, h / 2, w / 2, c): each pooled value stands
   at the place of its maximum, and the three others of its 2x2 pixels are 0. */
typedef struct {
    In maps;
    const uint8_t *argmax;
    int64_t h, w, c;
} Source;

/* Where a source stores the pixel in `column` of `row`: 4 * (index of the stored pixel) + which of its
   2x2 pixels it is; -1 if nowhere, as it was not pooled: it is 0. */
static inline int64_t find_pixel(const Source *s, int64_t image, int64_t row, int64_t column) {
    if (s->argmax == NULL) return 4 * ((image * s->h + row) * s->w + column);
    int64_t oh = s->h / 2, ow = s->w / 2;
    if (row >= 2 * oh || column >= 2 * ow) return -1;
    return 4 * ((image * oh + row / 2) * ow + column / 2) + row % 2 * 2 + column % 2;
}

static Source from_image(Source s, int64_t image) {
    int64_t offset = image * (s.argmax ? (s.h / 2) * (s.w / 2) : s.h * s.w) * s.c;
    s.maps += offset;
    if (s.argmax) s.argmax += offset;
    return s;
}

/* 32 channels of a pixel that `find_pixel` found. */
INLINE __m512i read_pixel(const Source *s, int64_t found, int64_t channel, __mmask32 mask) {
    if (found < 0) return _mm512_setzero_si512();
    int64_t at = (found >> 2) * s->c + channel;
    if (s->argmax != NULL) {
        __m256i places = _mm256_maskz_loadu_epi8(mask, s->argmax + at);
        mask &= _mm256_cmpeq_epi8_mask(places, _mm256_set1_epi8(found & 3));
    }
    return _mm512_maskz_loadu_epi16(mask, s->maps + at);
}

/* Transpose 16x16 elements of 32 bits, each a pair of bfloat16. */
INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            t[8 * j + i] = _mm512_shuffle_i32x4(r[8 * j + i], r[8 * j + i + 4], 0x88);
            t[8 * j + i + 4] = _mm512_shuffle_i32x4(r[8 * j + i], r[8 * j + i + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

/* ---- forward, and the gradient of the input ---- */

/* Rows and columns of a source that may differ from 0: an odd last one was not pooled. */
static int64_t rows_of(const Source *s) { return s->argmax ? s->h / 2 * 2 : s->h; }
static int64_t columns_of(const Source *s) { return s->argmax ? s->w / 2 * 2 : s->w; }

/* Copy rows `from` to `to` of `images` images to tiles (rows, blocks of channels, columns), each 16 images
   by 32 channels. */
static void copy_to_tiles(Out tiles, const Source *s, int64_t images, int64_t from, int64_t to) {
    int64_t blocks = round_up(s->c, BLOCK) / BLOCK, w = columns_of(s);
    for (int64_t row = from; row < to; row++, tiles += blocks * w * TILE)
        for (int64_t image = 0; image < images; image++)
            for (int64_t column = 0; column < w; column++) {
                int64_t found = find_pixel(s, image, row, column);
                for (int64_t k = 0; k < blocks; k++)
                    _mm512_store_si512(tiles + (k * w + column) * TILE + image * BLOCK,
                                       read_pixel(s, found, BLOCK * k, mask_of(s->c - BLOCK * k)));
            }
}

INLINE __m512i to_bf16(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

/* Filters (o, 9, c) float to tiles (blocks of 16 outputs, blocks of 32 inputs, 9 taps), each 16 pairs of
   inputs by 16 outputs. `rotated`: filters (c, 9, o), their taps in reverse, for the gradient of the
   input. */
static void pack_filters(const float *filters, int64_t c, int64_t o, int rotated, Out tiles) {
    int64_t blocks = round_up(c, BLOCK) / BLOCK;
    __m512i zip; /* 0 16 1 17 ...: interleaves two rows of 16 */
    {
        uint16_t places[32];
        for (int i = 0; i < 16; i++) places[2 * i] = i, places[2 * i + 1] = 16 + i;
        zip = _mm512_loadu_si512(places);
    }
#pragma omp for schedule(static)
    for (int64_t j = 0; j < round_up(o, 16) / 16 * blocks * TAPS; j++) {
        int64_t tap = j % TAPS, k = j / TAPS % blocks * BLOCK, out = j / TAPS / blocks * 16;
        __m512i rows[16];
        for (int i = 0; i < 16; i++)
            if (rotated) { /* a row is a pair of inputs already */
                const float *from = filters + ((k + 2 * i) * TAPS + TAPS - 1 - tap) * o + out;
                __mmask16 mask = mask_of(o - out);
                __m512 a = k + 2 * i < c ? _mm512_maskz_loadu_ps(mask, from) : _mm512_setzero_ps();
                __m512 b = k + 2 * i + 1 < c ? _mm512_maskz_loadu_ps(mask, from + TAPS * o) : _mm512_setzero_ps();
                rows[i] = _mm512_permutexvar_epi16(zip, to_bf16(a, b));
            } else if (out + i < o) { /* a row is an output, transposed below */
                const float *from = filters + ((out + i) * TAPS + tap) * c + k;
                __mmask32 mask = mask_of(c - k);
                rows[i] = to_bf16(_mm512_maskz_loadu_ps(mask, from), _mm512_maskz_loadu_ps(mask >> 16, from + 16));
            } else rows[i] = _mm512_setzero_si512();
        if (!rotated) transpose(rows);
        for (int i = 0; i < 16; i++) _mm512_store_si512(tiles + j * TILE + 32 * i, rows[i]);
    }
}

/* A block of the result is 2 rows by `across` = 2 or 3 columns of pixels from (row, column) on, each a tile of
   sums. Bit `tap * 6 + pixel` is set where the pixel is in the result, up to (oh, ow), and the tap
   meets a pixel of the maps. */
static uint64_t taps_of_block(int64_t row, int64_t column, int across, int64_t oh, int64_t ow, int64_t h, int64_t w) {
    uint64_t bits = 0;
    for (int tap = 0; tap < TAPS; tap++)
        for (int pixel = 0; pixel < 2 * across; pixel++) {
            int64_t y = row + pixel / across, x = column + pixel % across, in_y = y + tap / 3 - 1, in_x = x + tap % 3 - 1;
            if (y < oh && x < ow && in_y >= 0 && in_y < h && in_x >= 0 && in_x < w) bits |= 1ull << (tap * 6 + pixel);
        }
    return bits;
}

/* One block of the result, for 16 output channels. rows: the four rows of tiles that it reads, at its first
   column; the tiles of the next 32 input channels are `next` further. out (pixels, 16 images, 32 channels)
   float: 16 of the 32 channels are written. Registers: 0 to 5 sums, 6 maps, 7 filters. */
INLINE void multiply_block(In rows[4], int64_t next, int64_t blocks, In filters, uint64_t taps, float *out,
                           const int across) {
    In r0 = rows[0], r1 = rows[1], r2 = rows[2], r3 = rows[3];
    STORES_ARE_READ();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (across == 3) {
        _tile_zero(4);
        _tile_zero(5);
    }
#define PIXEL(tap, pixel, row, column)                     \
    if (taps >> ((tap) * 6 + pixel) & 1) {                 \
        _tile_loadd(6, (row) + (column) * TILE, 64);       \
        _tile_dpbf16ps(pixel, 6, 7);                       \
    }
#define TAP(dy, dx, upper, lower)                                          \
    _tile_loadd(7, filters + (3 * (dy) + (dx)) * TILE, 64);                \
    PIXEL(3 * (dy) + (dx), 0, upper, (dx) - 1)                             \
    PIXEL(3 * (dy) + (dx), 1, upper, (dx))                                 \
    if (across == 3) {                                                     \
        PIXEL(3 * (dy) + (dx), 2, upper, (dx) + 1)                         \
        PIXEL(3 * (dy) + (dx), 3, lower, (dx) - 1)                         \
        PIXEL(3 * (dy) + (dx), 4, lower, (dx))                             \
        PIXEL(3 * (dy) + (dx), 5, lower, (dx) + 1)                         \
    } else {                                                               \
        PIXEL(3 * (dy) + (dx), 2, lower, (dx) - 1)                         \
        PIXEL(3 * (dy) + (dx), 3, lower, (dx))                             \
    }
    for (int64_t k = 0; k < blocks; k++, filters += TAPS * TILE, r0 += next, r1 += next, r2 += next, r3 += next) {
        TAP(0, 0, r0, r1)
        TAP(0, 1, r0, r1)
        TAP(0, 2, r0, r1)
        TAP(1, 0, r1, r2)
        TAP(1, 1, r1, r2)
        TAP(1, 2, r1, r2)
        TAP(2, 0, r2, r3)
        TAP(2, 1, r2, r3)
        TAP(2, 2, r2, r3)
    }
    _tile_stored(0, out, 128);
    _tile_stored(1, out + TILE, 128);
    _tile_stored(2, out + 2 * TILE, 128);
    _tile_stored(3, out + 3 * TILE, 128);
    if (across == 3) {
        _tile_stored(4, out + 4 * TILE, 128);
        _tile_stored(5, out + 5 * TILE, 128);
    }
}

INLINE void store(Out to, __m512i values, __mmask32 mask) {
    /* A whole cache line bypasses the caches: it is read only after all others are written. */
    if (mask == 0xffffffffu && (uintptr_t)to % 64 == 0) _mm512_stream_si512((void *)to, values);
    else _mm512_mask_storeu_epi16(to, mask, values);
}

INLINE __m512 from_bf16(__m512i values, int half) {
    __m256i part = half ? _mm512_extracti64x4_epi64(values, 1) : _mm512_castsi512_si256(values);
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(part), 16);
}

/* bfloat16 as 16-bit integers in the same order, with NaN above all others, and back: AVX-512 compares
   those. Negative floats are ordered in reverse, so their bits but the sign are flipped. */
INLINE __m512i flip_negative(__m512i bits) { /* bits ^ (bits < 0 ? 0x7fff : 0) */
    return _mm512_ternarylogic_epi32(bits, _mm512_srai_epi16(bits, 15), _mm512_set1_epi16(0x7fff), 0x78);
}
/* The subtraction takes a negative NaN, then below -infinity, around to the top. */
INLINE __m512i to_rank(__m512i bits) { return _mm512_sub_epi16(flip_negative(bits), _mm512_set1_epi16(0x7f)); }
INLINE __m512i from_rank(__m512i rank) { return flip_negative(_mm512_add_epi16(rank, _mm512_set1_epi16(0x7f))); }

/* Max-pool the four pixels of a block, (4, 16 images, 32 channels): maxima to y and their places to
   `argmax`, the images `image_stride` apart; their sums and sums of squares are added to sums (2, o). */
static void pool_block(const float *four, int64_t images, int64_t image_stride, int64_t o, __mmask32 mask, Out y,
                       uint8_t *argmax, double *sums) {
    __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, squares[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t image = 0; image < images; image++, four += BLOCK, y += image_stride, argmax += image_stride) {
        __m512i ranks[4];
        for (int i = 0; i < 4; i++)
            ranks[i] = to_rank(to_bf16(_mm512_load_ps(four + i * TILE), _mm512_load_ps(four + i * TILE + 16)));
        __m512i best = _mm512_max_epi16(_mm512_max_epi16(ranks[0], ranks[1]), _mm512_max_epi16(ranks[2], ranks[3]));
        __m256i place = _mm256_set1_epi8(3); /* or the first of equal ones, as PyTorch has it */
        for (int i = 2; i >= 0; i--)
            place = _mm256_mask_mov_epi8(place, _mm512_cmpeq_epi16_mask(ranks[i], best), _mm256_set1_epi8(i));
        best = from_rank(best);
        for (int half = 0; half < 2; half++) {
            __m512 value = from_bf16(best, half);
            total[half] = _mm512_add_ps(total[half], value);
            squares[half] = _mm512_fmadd_ps(value, value, squares[half]);
        }
        store(y, best, mask);
        _mm256_mask_storeu_epi8(argmax, mask, place);
    }
    float values[2][BLOCK];
    for (int half = 0; half < 2; half++) {
        _mm512_storeu_ps(values[0] + 16 * half, total[half]);
        _mm512_storeu_ps(values[1] + 16 * half, squares[half]);
    }
    for (int i = 0; i < BLOCK && mask >> i & 1; i++) sums[i] += values[0][i], sums[o + i] += values[1][i];
}

/* y (n, h, w, o): the convolution of maps (n, h, w, c), which are given pooled where `argmax` is, with filters
   (o, 3, 3, c) float. `rotated`: filters (c, 3, 3, o), `maps` a gradient of a convolution with them, and y
   the gradient of its input. With `pooled_argmax` (n, h / 2, w / 2, o) the result is max-pooled, as y, and
   sums (threads, 2, o), given as zeros, are those of `max_pool` in fused.c. */
void amx_conv3x3(In maps, const uint8_t *argmax, const float *filters, int rotated, int64_t n, int64_t h, int64_t w,
                 int64_t c, int64_t o, Out y, uint8_t *pooled_argmax, double *sums, int threads) {
    const Source source = {maps, argmax, h, w, c};
    const int64_t ih = rows_of(&source), iw = columns_of(&source), blocks = round_up(c, BLOCK) / BLOCK;
    const int64_t row_size = blocks * max(1, iw) * TILE;
    const int64_t oh = pooled_argmax ? h / 2 * 2 : h, ow = pooled_argmax ? w / 2 * 2 : w, widest = pooled_argmax ? 2 : 3;
    const int64_t panel = blocks * TAPS * TILE; /* filters of 16 outputs */
    const int64_t across = (ow + widest - 1) / widest, count = (oh + 1) / 2 * across; /* blocks along a row; in all */
    /* Columns where blocks begin, evenly spread: one block of a single pixel among wider ones would wait
       for each of its sums before the next. */
    int64_t edges[across + 1];
    for (int64_t i = 0; i <= across; i++) edges[i] = i * ow / max(1, across);
    const int64_t groups = (n + 15) / 16, part = rows_per_part(oh, groups, threads), parts = (oh + part - 1) / part;
    int64_t strip = max(2, min(part, (BUFFER_BYTES / (2 * row_size) - 2) / 2 * 2)); /* rows made from one buffer */
    uint64_t *taps = malloc(count * sizeof(uint64_t));
    for (int64_t i = 0; i < count; i++)
        taps[i] = taps_of_block(i / across * 2, edges[i % across], widest, oh, edges[i % across + 1], ih, iw);
    Out packed = aligned_alloc(64, 2 * round_up(o, 16) / 16 * panel);
#pragma omp parallel num_threads(threads)
    {
        configure_tiles();
        pack_filters(filters, c, o, rotated, packed);
        Out tiles = aligned_alloc(64, 2 * (strip + 2) * row_size);
        float out[6 * TILE] __attribute__((aligned(64)));
        memset(tiles, 0, 2 * (strip + 2) * row_size);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < groups * parts; item++) {
            int64_t group = item / parts, start = item % parts * part, stop = min(oh, start + part);
            int64_t images = min(16, n - 16 * group);
            Source here = from_image(source, group * 16);
            for (int64_t top = start; top < stop; top += strip) {
                int64_t end = min(top + strip, stop), from = max(0, top - 1), to = min(end + 1, ih);
                copy_to_tiles(tiles, &here, images, from, to);
                for (int64_t j = 0; j < o; j += BLOCK) {
                    __mmask32 mask = mask_of(o - j);
                    for (int64_t row = top; row < end; row += 2)
                        for (int64_t i = 0; i < across; i++) {
                            int64_t column = edges[i];
                            uint64_t bits = taps[row / 2 * across + i];
                            In at = tiles + column * TILE, rows[4];
                            for (int k = 0; k < 4; k++) rows[k] = at + (row - 1 + k - from) * row_size;
                            for (int half = 0; half < 2 && (half == 0 || mask >> 16); half++) {
                                In weights = packed + (j / 16 + half) * panel;
                                if (pooled_argmax) multiply_block(rows, iw * TILE, blocks, weights, bits, out + 16 * half, 2);
                                else multiply_block(rows, iw * TILE, blocks, weights, bits, out + 16 * half, 3);
                            }
                            if (pooled_argmax) {
                                int64_t place = ((group * 16 * (h / 2) + row / 2) * (w / 2) + column / 2) * o + j;
                                pool_block(out, images, (h / 2) * (w / 2) * o, o, mask, y + place, pooled_argmax + place,
                                           sums + 2 * o * omp_get_thread_num() + j);
                                continue;
                            }
                            for (int64_t p = 0; p < 6; p++) {
                                int64_t r = row + p / 3, q = column + p % 3;
                                if (r >= oh || q >= edges[i + 1]) continue;
                                Out pixel = y + ((group * 16 * h + r) * w + q) * o + j;
                                const float *values = out + p * TILE;
                                for (int64_t k = 0; k < images; k++, pixel += h * w * o, values += BLOCK)
                                    store(pixel, to_bf16(_mm512_load_ps(values), _mm512_load_ps(values + 16)), mask);
                            }
                        }
                }
            }
        }
        _mm_sfence();
        free(tiles);
        _tile_release();
    }
    free(taps);
    free(packed);
}

/* ---- the gradient of the filters ---- */

/* Indices that interleave two rows of 32 channels: the pairs of the first 16 channels, and of the others. */
static void interleave(__m512i *low, __m512i *high) {
    uint16_t a[32], b[32];
    for (int i = 0; i < 16; i++) a[2 * i] = i, a[2 * i + 1] = 32 + i, b[2 * i] = 16 + i, b[2 * i + 1] = 48 + i;
    *low = _mm512_loadu_si512(a), *high = _mm512_loadu_si512(b);
}

/* One row of `images` images, at most 32, to tiles (blocks of 16 channels, columns): 16 pairs of images by 16
   channels or, `transposed`, 16 channels by 32 images. Images beyond the last are 0. */
static void pair_images(const Source *s, int64_t images, int64_t row, Out tiles, const int transposed) {
    __m512i low, high;
    interleave(&low, &high);
    int64_t w = columns_of(s), image = s->argmax ? (s->h / 2) * (s->w / 2) : s->h * s->w;
    for (int64_t column = 0; column < w; column++) {
        int64_t found = find_pixel(s, 0, row, column);
        for (int64_t k = 0; k < s->c; k += BLOCK) {
            __mmask32 mask = mask_of(s->c - k);
            Out to = tiles + (k / 16 * w + column) * TILE;
            __m512i r[2][16];
            for (int i = 0; i < 16; i++) {
                __m512i a = read_pixel(s, 2 * i < images ? found + 8 * i * image : -1, k, mask);
                __m512i b = read_pixel(s, 2 * i + 1 < images ? found + (8 * i + 4) * image : -1, k, mask);
                r[0][i] = _mm512_permutex2var_epi16(a, low, b);
                r[1][i] = _mm512_permutex2var_epi16(a, high, b);
            }
            for (int half = 0; half < 2; half++) {
                if (transposed) transpose(r[half]);
                for (int i = 0; i < 16; i++) _mm512_store_si512(to + half * w * TILE + 32 * i, r[half][i]);
            }
        }
    }
}

/* Sums (3 taps of a filter's row, 2) of tiles, 16 outputs by 16 inputs. The second of two tiles, the next 16
   outputs, is there where `both` is set. Registers: 0 to 5 sums, 6 gradients, 7 maps. */
INLINE void load_sums(const float *sums, const int both) {
    STORES_ARE_READ();
    _tile_loadd(0, sums, 64);
    _tile_loadd(2, sums + 512, 64);
    _tile_loadd(4, sums + 1024, 64);
    if (both) {
        _tile_loadd(1, sums + 256, 64);
        _tile_loadd(3, sums + 768, 64);
        _tile_loadd(5, sums + 1280, 64);
    }
}

/* Add a row of `ow` gradients times the row x of w pixels: each gradient meets the pixels left of it, at it
   and right of it. g: tiles of gradients; those of the next 16 outputs are `next` further. */
INLINE void add_row(In g, int64_t next, int64_t ow, In x, int64_t w, const int both) {
    for (int64_t column = 0; column < ow; column++, g += TILE, x += TILE) {
        _tile_loadd(6, g, 64);
        if (column > 0) {
            _tile_loadd(7, x - TILE, 64);
            _tile_dpbf16ps(0, 6, 7);
            if (both) {
                _tile_loadd(6, g + next, 64);
                _tile_dpbf16ps(1, 6, 7);
            }
        } else if (both) _tile_loadd(6, g + next, 64);
        _tile_loadd(7, x, 64);
        if (both) {
            _tile_dpbf16ps(3, 6, 7);
            _tile_loadd(6, g, 64);
        }
        _tile_dpbf16ps(2, 6, 7);
        if (column + 1 < w) {
            _tile_loadd(7, x + TILE, 64);
            _tile_dpbf16ps(4, 6, 7);
            if (both) {
                _tile_loadd(6, g + next, 64);
                _tile_dpbf16ps(5, 6, 7);
            }
        }
    }
}

INLINE void store_sums(float *sums, const int both) {
    _tile_stored(0, sums, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(4, sums + 1024, 64);
    if (both) {
        _tile_stored(1, sums + 256, 64);
        _tile_stored(3, sums + 768, 64);
        _tile_stored(5, sums + 1280, 64);
    }
}

/* grad_weight (o, 3, 3, c) float: the gradient of the filters of `amx_conv3x3`, from its maps x (n, h, w, c) and
   the gradient g of its result, which is given pooled where `argmax` is. */
void amx_conv3x3_grad_weight(In x, In g, const uint8_t *argmax, int64_t n, int64_t h, int64_t w, int64_t c, int64_t o,
                             float *grad_weight, int threads) {
    const Source images = {x, NULL, h, w, c}, gradients = {g, argmax, h, w, o};
    const int64_t oh = rows_of(&gradients), ow = columns_of(&gradients);
    const int64_t ins = round_up(c, 16) / 16, pairs = round_up(o, BLOCK) / BLOCK; /* of 16 inputs; of 2 x 16 outputs */
    const int64_t x_row = round_up(c, BLOCK) / 16 * w * TILE, g_row = 2 * pairs * ow * TILE;
    const int64_t size = pairs * 3 * ins * 6 * 256; /* floats of one thread's sums */
    const int64_t bytes = max(GRAD_BUFFER_MIN, min(GRAD_BUFFER_MAX, 8 * size));
    const int64_t groups = (n + 31) / 32, part = rows_per_part(oh, groups, threads), parts = (oh + part - 1) / part;
    const int64_t strip = max(1, min(part, (bytes / 2 - 2 * x_row) / (x_row + g_row))); /* rows of g in a buffer */
    float *sums = aligned_alloc(64, threads * size * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        const int started = omp_get_num_threads(); /* OpenMP may start fewer than asked for */
        configure_tiles();
        float *own = sums + size * omp_get_thread_num();
        memset(own, 0, size * sizeof(float));
        Out x_tiles = aligned_alloc(64, 2 * (strip + 2) * x_row), g_tiles = aligned_alloc(64, 2 * strip * g_row);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < groups * parts; item++) {
            int64_t group = item / parts, start = item % parts * part, stop = min(oh, start + part);
            int64_t count = min(32, n - 32 * group), next_row = max(0, start - 1);
            Source x_here = from_image(images, group * 32), g_here = from_image(gradients, group * 32);
            for (int64_t top = start; top < stop; top += strip) {
                int64_t end = min(top + strip, stop);
                for (; next_row < h && next_row <= end; next_row++) /* a ring: row r is at r % (strip + 2) */
                    pair_images(&x_here, count, next_row, x_tiles + next_row % (strip + 2) * x_row, 0);
                for (int64_t row = top; row < end; row++)
                    pair_images(&g_here, count, row, g_tiles + (row - top) * g_row, 1);
                for (int64_t j = 0; j < pairs; j++)
                    for (int64_t i = 0; i < ins; i++)
                        for (int dy = -1; dy <= 1; dy++) {
                            float *sum = own + ((j * ins + i) * 3 + dy + 1) * 6 * 256;
                            const int both = o - BLOCK * j > 16;
                            if (both) load_sums(sum, 1);
                            else load_sums(sum, 0);
                            for (int64_t row = top; row < end; row++) {
                                if (row + dy < 0 || row + dy >= h) continue;
                                In a = g_tiles + (row - top) * g_row + 2 * j * ow * TILE;
                                In b = x_tiles + (row + dy) % (strip + 2) * x_row + i * w * TILE;
                                if (both) add_row(a, ow * TILE, ow, b, w, 1);
                                else add_row(a, ow * TILE, ow, b, w, 0);
                            }
                            if (both) store_sums(sum, 1);
                            else store_sums(sum, 0);
                        }
            }
        }
        free(x_tiles);
        free(g_tiles);
        _tile_release();
        /* Add up the threads' sums, and put their tiles in the order of the filters. */
#pragma omp for schedule(static)
        for (int64_t row = 0; row < TAPS * o; row++)
            for (int64_t i = 0; i < ins; i++) {
                int64_t output = row / TAPS, tap = row % TAPS;
                int64_t at = ((((output / BLOCK * ins + i) * 3 + tap / 3) * 3 + tap % 3) * 2 + output / 16 % 2) * 256 + output % 16 * 16;
                __m512 sum = _mm512_load_ps(sums + at);
                for (int t = 1; t < started; t++) sum = _mm512_add_ps(sum, _mm512_load_ps(sums + t * size + at));
                int64_t left = c - 16 * i;
                _mm512_mask_storeu_ps(grad_weight + row * c + 16 * i, (__mmask16)mask_of(left < 16 ? left : 16), sum);
            }
    }
    free(sums);
}
#endif
