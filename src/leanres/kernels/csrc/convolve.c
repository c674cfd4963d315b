/* 3x3 convolutions, stride 1 and padding 1, for bfloat16 maps whose channels lie together, with
   AMX: products of tiles, 16x32 by 32x16 bfloat16 to 16x16 float. Compiled beside fused.c.

   The rows of a tile are 16 images, all at one pixel. So a tap of the filter is another tile, no
   image is unfolded, and what lies beyond an edge is left out: at 7x7 that is a fifth of the
   products, where pixels in a row as rows of a tile would add a column of zeros to every image. */

#ifndef __AMX_BF16__
int has_tiles(void) { return 0; }
#else

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define INLINE static inline __attribute__((always_inline))
#define TILE 512 /* bfloat16 of a tile; half as many floats */
#define BLOCK 32 /* channels that are read and written at once: a line of the cache */
#define TAPS 9
#define MAPS 1200000 /* bytes of a thread's buffer, which with the filters stays in the second cache */
#define LEAST 800000 /* of the buffers of a filter's gradient; more where its sums, from the third cache, */
#define MOST 2400000 /* cost more than maps from it */

typedef const uint16_t *In;
typedef uint16_t *Out;

int has_tiles(void) { /* the kernel lends their registers to a process that asks */
    const int request = 0x1023, data = 18;
    return syscall(SYS_arch_prctl, request, data) == 0;
}

static void begin_tiles(void) {
    struct {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    _tile_loadconfig(&shape);
}

static inline int64_t up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Rows of a part of the maps, an even number: fewer than all where groups of images are fewer than threads. */
static int64_t part_of(int64_t rows, int64_t groups, int threads) {
    int64_t parts = most(1, threads / groups);
    return most(2, up((rows + parts - 1) / parts, 2));
}

INLINE __mmask32 first(int64_t count) { return count >= 32 ? 0xffffffffu : (1u << count) - 1; }

/* Maps (n, h, w, c), or with `where` the pooled ones that stand for them: each pixel's four have its
   value where the maximum was and 0 elsewhere. */
typedef struct {
    In maps;
    const uint8_t *where;
    int64_t h, w, c;
} Source;

/* Where a source keeps the pixel in `column` of `row`, of the h of all images: its place there times
   4, and which of its four it is. -1: nowhere, it is 0. */
static inline int64_t find(const Source *s, int64_t image, int64_t row, int64_t column) {
    if (s->where == NULL) return 4 * ((image * s->h + row) * s->w + column);
    int64_t oh = s->h / 2, ow = s->w / 2;
    if (row >= 2 * oh || column >= 2 * ow) return -1;
    return 4 * ((image * oh + row / 2) * ow + column / 2) + row % 2 * 2 + column % 2;
}

static Source from_image(Source s, int64_t image) {
    int64_t to = image * (s.where ? (s.h / 2) * (s.w / 2) : s.h * s.w) * s.c;
    s.maps += to;
    if (s.where) s.where += to;
    return s;
}

/* 32 channels of what was found. */
INLINE __m512i read_pixel(const Source *s, int64_t found, int64_t channel, __mmask32 mask) {
    if (found < 0) return _mm512_setzero_si512();
    int64_t at = (found >> 2) * s->c + channel;
    if (s->where != NULL) {
        __m256i which = _mm256_maskz_loadu_epi8(mask, s->where + at);
        mask &= _mm256_cmpeq_epi8_mask(which, _mm256_set1_epi8(found & 3));
    }
    return _mm512_maskz_loadu_epi16(mask, s->maps + at);
}

/* Dwords (pairs of bfloat16) of 16 rows, transposed. */
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

/* ---- forward, and the gradient by the images ---- */

/* Rows of images that matter to a filter of 3x3: of a source, those not below all pooled ones. */
static int64_t rows_of(const Source *s) { return s->where ? s->h / 2 * 2 : s->h; }
static int64_t columns_of(const Source *s) { return s->where ? s->w / 2 * 2 : s->w; }

/* Rows `from` to `to` of `images` images as tiles (rows, up(c, 32) / 32, columns), 16 images by 32 channels. */
static void fill(Out tiles, const Source *s, int64_t images, int64_t from, int64_t to) {
    int64_t blocks = up(s->c, BLOCK) / BLOCK, w = columns_of(s);
    for (int64_t row = from; row < to; row++, tiles += blocks * w * TILE)
        for (int64_t image = 0; image < images; image++)
            for (int64_t column = 0; column < w; column++) {
                int64_t found = find(s, image, row, column);
                for (int64_t k = 0; k < blocks; k++)
                    _mm512_store_si512(tiles + (k * w + column) * TILE + image * BLOCK,
                                       read_pixel(s, found, BLOCK * k, first(s->c - BLOCK * k)));
            }
}

INLINE __m512i narrow(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

/* Filters (o, 9, c) float as tiles (up(o, 16) / 16, up(c, 32) / 32, 9), pairs of inputs by 16 outputs.
   `turned`: they are (c, 9, o), for the gradient by what they were multiplied with. */
static void pack_filters(const float *filters, int64_t c, int64_t o, int turned, Out tiles) {
    int64_t blocks = up(c, BLOCK) / BLOCK;
    __m512i zip;
    {
        uint16_t places[32];
        for (int i = 0; i < 16; i++) places[2 * i] = i, places[2 * i + 1] = 16 + i;
        zip = _mm512_loadu_si512(places);
    }
#pragma omp for schedule(static)
    for (int64_t j = 0; j < up(o, 16) / 16 * blocks * TAPS; j++) {
        int64_t tap = j % TAPS, k = j / TAPS % blocks * BLOCK, out = j / TAPS / blocks * 16;
        __m512i rows[16];
        for (int i = 0; i < 16; i++)
            if (turned) { /* two inputs */
                const float *from = filters + ((k + 2 * i) * TAPS + TAPS - 1 - tap) * o + out;
                __mmask16 mask = first(o - out);
                __m512 a = k + 2 * i < c ? _mm512_maskz_loadu_ps(mask, from) : _mm512_setzero_ps();
                __m512 b = k + 2 * i + 1 < c ? _mm512_maskz_loadu_ps(mask, from + TAPS * o) : _mm512_setzero_ps();
                rows[i] = _mm512_permutexvar_epi16(zip, narrow(a, b));
            } else if (out + i < o) { /* an output */
                const float *from = filters + ((out + i) * TAPS + tap) * c + k;
                __mmask32 mask = first(c - k);
                rows[i] = narrow(_mm512_maskz_loadu_ps(mask, from), _mm512_maskz_loadu_ps(mask >> 16, from + 16));
            } else rows[i] = _mm512_setzero_si512();
        if (!turned) transpose(rows);
        for (int i = 0; i < 16; i++) _mm512_store_si512(tiles + j * TILE + 32 * i, rows[i]);
    }
}

/* A block of the result: 2 rows by 2 or 3 columns, each pixel a tile of sums. Bit `tap * 6 + pixel`
   of a mask: whether the pixel is asked for, and the tap meets a pixel that is there. */
static uint64_t mask_of(int64_t row, int64_t column, int wide, int64_t oh, int64_t ow, int64_t h, int64_t w) {
    uint64_t mask = 0;
    for (int tap = 0; tap < TAPS; tap++)
        for (int pixel = 0; pixel < 2 * wide; pixel++) {
            int64_t y = row + pixel / wide, x = column + pixel % wide, from = y + tap / 3 - 1, at = x + tap % 3 - 1;
            if (y < oh && x < ow && from >= 0 && from < h && at >= 0 && at < w) mask |= 1ull << (tap * 6 + pixel);
        }
    return mask;
}

/* rows: the four rows of tiles that the block meets, from its first column on; `next` further are
   those of the next 32 channels. out (pixels, 16 images, 32 channels) float: 16 channels of them. */
INLINE void product(In rows[4], int64_t next, int64_t blocks, In filters, uint64_t mask, float *out, const int wide) {
    In r0 = rows[0], r1 = rows[1], r2 = rows[2], r3 = rows[3];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (wide == 3) {
        _tile_zero(4);
        _tile_zero(5);
    }
#define MEET(tap, pixel, row, column)                      \
    if (mask >> ((tap) * 6 + pixel) & 1) {                 \
        _tile_loadd(6, (row) + (column) * TILE, 64);       \
        _tile_dpbf16ps(pixel, 6, 7);                       \
    }
#define TAP(dy, dx, above, below)                                          \
    _tile_loadd(7, filters + (3 * (dy) + (dx)) * TILE, 64);                \
    MEET(3 * (dy) + (dx), 0, above, (dx) - 1)                              \
    MEET(3 * (dy) + (dx), 1, above, (dx))                                  \
    if (wide == 3) {                                                       \
        MEET(3 * (dy) + (dx), 2, above, (dx) + 1)                          \
        MEET(3 * (dy) + (dx), 3, below, (dx) - 1)                          \
        MEET(3 * (dy) + (dx), 4, below, (dx))                              \
        MEET(3 * (dy) + (dx), 5, below, (dx) + 1)                          \
    } else {                                                               \
        MEET(3 * (dy) + (dx), 2, below, (dx) - 1)                          \
        MEET(3 * (dy) + (dx), 3, below, (dx))                              \
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
    if (wide == 3) {
        _tile_stored(4, out + 4 * TILE, 128);
        _tile_stored(5, out + 5 * TILE, 128);
    }
}

INLINE void put(Out to, __m512i values, __mmask32 mask) {
    /* Past the caches where a whole line is written: what reads it comes after all of them. */
    if (mask == 0xffffffffu && (uintptr_t)to % 64 == 0) _mm512_stream_si512((void *)to, values);
    else _mm512_mask_storeu_epi16(to, mask, values);
}

INLINE __m512 widen(__m512i values, int half) {
    __m256i part = half ? _mm512_extracti64x4_epi64(values, 1) : _mm512_castsi512_si256(values);
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(part), 16);
}

/* bfloat16 as numbers of 16 bits in the same order, NaN above all; and back. */
INLINE __m512i mirror(__m512i bits) { /* v ^ (v < 0 ? 0x7fff : 0) */
    return _mm512_ternarylogic_epi32(bits, _mm512_srai_epi16(bits, 15), _mm512_set1_epi16(0x7fff), 0x78);
}
INLINE __m512i ranked(__m512i bits) { return _mm512_sub_epi16(mirror(bits), _mm512_set1_epi16(0x7f)); } /* -NaN wraps round */
INLINE __m512i unranked(__m512i rank) { return mirror(_mm512_add_epi16(rank, _mm512_set1_epi16(0x7f))); }

/* The maxima of four pixels, (4, 16 images, 32 channels): to y and `where`, `apart` from image to image,
   and their sums and sums of squares to sums (2, o). */
static void pool_block(const float *four, int64_t images, int64_t apart, int64_t o, __mmask32 mask, Out y,
                       uint8_t *where, double *sums) {
    __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, squares[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t image = 0; image < images; image++, four += BLOCK, y += apart, where += apart) {
        __m512i ranks[4];
        for (int i = 0; i < 4; i++)
            ranks[i] = ranked(narrow(_mm512_load_ps(four + i * TILE), _mm512_load_ps(four + i * TILE + 16)));
        __m512i best = _mm512_max_epi16(_mm512_max_epi16(ranks[0], ranks[1]), _mm512_max_epi16(ranks[2], ranks[3]));
        __m256i place = _mm256_set1_epi8(3); /* or the first that is as large */
        for (int i = 2; i >= 0; i--)
            place = _mm256_mask_mov_epi8(place, _mm512_cmpeq_epi16_mask(ranks[i], best), _mm256_set1_epi8(i));
        best = unranked(best);
        for (int half = 0; half < 2; half++) {
            __m512 value = widen(best, half);
            total[half] = _mm512_add_ps(total[half], value);
            squares[half] = _mm512_fmadd_ps(value, value, squares[half]);
        }
        put(y, best, mask);
        _mm256_mask_storeu_epi8(where, mask, place);
    }
    float values[2][BLOCK];
    for (int half = 0; half < 2; half++) {
        _mm512_storeu_ps(values[0] + 16 * half, total[half]);
        _mm512_storeu_ps(values[1] + 16 * half, squares[half]);
    }
    for (int i = 0; i < BLOCK && mask >> i & 1; i++) sums[i] += values[0][i], sums[o + i] += values[1][i];
}

/* The convolution of maps (n, h, w, c), or of what pooled maps and `where` stand for, with filters
   (o, 3, 3, c) float: y (n, h, w, o). `turned`: filters (c, 3, 3, o), and y is the gradient by what
   they were multiplied with, of the gradient `maps`. With `kept` (n, h / 2, w / 2, o): y is pooled as `fused.c` does, and
   sums (threads, 2, o), given as zeros, are as its. */
void convolve(In maps, const uint8_t *where, const float *filters, int turned, int64_t n, int64_t h, int64_t w, int64_t c,
              int64_t o, Out y, uint8_t *kept, double *sums, int threads) {
    const Source source = {maps, where, h, w, c};
    const int64_t ih = rows_of(&source), iw = columns_of(&source), blocks = up(c, BLOCK) / BLOCK, line = blocks * iw * TILE;
    const int64_t oh = kept ? h / 2 * 2 : h, ow = kept ? w / 2 * 2 : w, wide = kept ? 2 : 3;
    const int64_t panel = blocks * TAPS * TILE, across = (ow + wide - 1) / wide, count = (oh + 1) / 2 * across;
    int64_t edges[across + 1]; /* of blocks; none one pixel wide if others are three, since sums follow one another */
    for (int64_t i = 0; i <= across; i++) edges[i] = i * ow / across;
    const int64_t groups = (n + 15) / 16, part = part_of(oh, groups, threads), parts = (oh + part - 1) / part;
    int64_t strip = most(2, least(part, (MAPS / (2 * line) - 2) / 2 * 2)); /* rows that are made from one buffer */
    uint64_t *masks = malloc(count * sizeof(uint64_t));
    for (int64_t i = 0; i < count; i++)
        masks[i] = mask_of(i / across * 2, edges[i % across], wide, oh, edges[i % across + 1], ih, iw);
    Out packed = aligned_alloc(64, 2 * up(o, 16) / 16 * panel);
#pragma omp parallel num_threads(threads)
    {
        begin_tiles();
        pack_filters(filters, c, o, turned, packed);
        Out tiles = aligned_alloc(64, 2 * (strip + 2) * line);
        float out[6 * TILE] __attribute__((aligned(64)));
        memset(tiles, 0, 2 * (strip + 2) * line);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < groups * parts; item++) {
            int64_t group = item / parts, start = item % parts * part, stop = least(oh, start + part);
            int64_t images = least(16, n - 16 * group);
            Source here = from_image(source, group * 16);
            for (int64_t top = start; top < stop; top += strip) {
                int64_t end = least(top + strip, stop), from = most(0, top - 1), to = least(end + 1, ih);
                fill(tiles, &here, images, from, to);
                for (int64_t j = 0; j < o; j += BLOCK) {
                    __mmask32 mask = first(o - j);
                    for (int64_t row = top; row < end; row += 2)
                        for (int64_t i = 0; i < across; i++) {
                            int64_t column = edges[i];
                            uint64_t met = masks[row / 2 * across + i];
                            In at = tiles + column * TILE, rows[4];
                            for (int k = 0; k < 4; k++) rows[k] = at + (row - 1 + k - from) * line;
                            for (int half = 0; half < 2 && (half == 0 || mask >> 16); half++) {
                                In weights = packed + (j / 16 + half) * panel;
                                if (kept) product(rows, iw * TILE, blocks, weights, met, out + 16 * half, 2);
                                else product(rows, iw * TILE, blocks, weights, met, out + 16 * half, 3);
                            }
                            if (kept) {
                                int64_t place = ((group * 16 * (h / 2) + row / 2) * (w / 2) + column / 2) * o + j;
                                pool_block(out, images, (h / 2) * (w / 2) * o, o, mask, y + place, kept + place,
                                           sums + 2 * o * omp_get_thread_num() + j);
                                continue;
                            }
                            for (int64_t p = 0; p < 6; p++) {
                                int64_t r = row + p / 3, q = column + p % 3;
                                if (r >= oh || q >= edges[i + 1]) continue;
                                Out to = y + ((group * 16 * h + r) * w + q) * o + j;
                                const float *values = out + p * TILE;
                                for (int64_t k = 0; k < images; k++, to += h * w * o, values += BLOCK)
                                    put(to, narrow(_mm512_load_ps(values), _mm512_load_ps(values + 16)), mask);
                            }
                        }
                }
            }
        }
        _mm_sfence();
        free(tiles);
        _tile_release();
    }
    free(masks);
    free(packed);
}

/* ---- the gradient by the filters ---- */

/* Which bfloat16 of two rows of 32 channels make pairs: of the first 16 channels, and the others. */
static void pairs_of(__m512i *low, __m512i *high) {
    uint16_t a[32], b[32];
    for (int i = 0; i < 16; i++) a[2 * i] = i, a[2 * i + 1] = 32 + i, b[2 * i] = 16 + i, b[2 * i + 1] = 48 + i;
    *low = _mm512_loadu_si512(a), *high = _mm512_loadu_si512(b);
}

/* A row of `images` images as tiles (up(c, 32) / 16, columns): 16 pairs of images by 16 channels or,
   `turned`, 16 channels by 32 images. Images beyond the last are 0. */
static void pair_up(const Source *s, int64_t images, int64_t row, Out tiles, const int turned) {
    __m512i low, high;
    pairs_of(&low, &high);
    int64_t w = columns_of(s), image = s->where ? (s->h / 2) * (s->w / 2) : s->h * s->w;
    for (int64_t column = 0; column < w; column++) {
        int64_t found = find(s, 0, row, column);
        for (int64_t k = 0; k < s->c; k += BLOCK) {
            __mmask32 mask = first(s->c - k);
            Out to = tiles + (k / 16 * w + column) * TILE;
            __m512i r[2][16];
            for (int i = 0; i < 16; i++) {
                __m512i a = read_pixel(s, 2 * i < images ? found + 8 * i * image : -1, k, mask);
                __m512i b = read_pixel(s, 2 * i + 1 < images ? found + (8 * i + 4) * image : -1, k, mask);
                r[0][i] = _mm512_permutex2var_epi16(a, low, b);
                r[1][i] = _mm512_permutex2var_epi16(a, high, b);
            }
            for (int half = 0; half < 2; half++) {
                if (turned) transpose(r[half]);
                for (int i = 0; i < 16; i++) _mm512_store_si512(to + half * w * TILE + 32 * i, r[half][i]);
            }
        }
    }
}

/* Sums (3 taps, 2) of tiles, 16 outputs by 16 inputs, increased by a row of `ow` gradients, the tiles
   g and if there are `both` those `apart`, times the row x of w pixels. */
INLINE void begin_sums(const float *sums, const int both) {
    _tile_loadd(0, sums, 64);
    _tile_loadd(2, sums + 512, 64);
    _tile_loadd(4, sums + 1024, 64);
    if (both) {
        _tile_loadd(1, sums + 256, 64);
        _tile_loadd(3, sums + 768, 64);
        _tile_loadd(5, sums + 1280, 64);
    }
}

INLINE void add_row(In g, int64_t apart, int64_t ow, In x, int64_t w, const int both) {
    for (int64_t column = 0; column < ow; column++, g += TILE, x += TILE) {
        _tile_loadd(6, g, 64);
        if (column > 0) {
            _tile_loadd(7, x - TILE, 64);
            _tile_dpbf16ps(0, 6, 7);
            if (both) {
                _tile_loadd(6, g + apart, 64);
                _tile_dpbf16ps(1, 6, 7);
            }
        } else if (both) _tile_loadd(6, g + apart, 64);
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
                _tile_loadd(6, g + apart, 64);
                _tile_dpbf16ps(5, 6, 7);
            }
        }
    }
}

INLINE void end_sums(float *sums, const int both) {
    _tile_stored(0, sums, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(4, sums + 1024, 64);
    if (both) {
        _tile_stored(1, sums + 256, 64);
        _tile_stored(3, sums + 768, 64);
        _tile_stored(5, sums + 1280, 64);
    }
}

/* The gradient by the filters of `convolve`, (o, 3, 3, c) float: of its maps x and the gradient g by
   its result, which may be of pooled maps. */
void convolve_filters(In x, In g, const uint8_t *where, int64_t n, int64_t h, int64_t w, int64_t c, int64_t o,
                      float *by_filters, int threads) {
    const Source images = {x, NULL, h, w, c}, gradients = {g, where, h, w, o};
    const int64_t oh = rows_of(&gradients), ow = columns_of(&gradients), ins = up(c, 16) / 16, pairs = up(o, BLOCK) / BLOCK;
    const int64_t line = up(c, BLOCK) / 16 * w * TILE, g_line = 2 * pairs * ow * TILE, size = pairs * 3 * ins * 6 * 256;
    const int64_t bytes = most(LEAST, least(MOST, 8 * size));
    const int64_t groups = (n + 31) / 32, part = part_of(oh, groups, threads), parts = (oh + part - 1) / part;
    const int64_t strip = most(1, least(part, (bytes / 2 - 2 * line) / (line + g_line))); /* rows of gradients in a buffer */
    float *sums = aligned_alloc(64, threads * size * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        begin_tiles();
        float *own = sums + size * omp_get_thread_num();
        memset(own, 0, size * sizeof(float));
        Out near = aligned_alloc(64, 2 * (strip + 2) * line), turned = aligned_alloc(64, 2 * strip * g_line);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < groups * parts; item++) {
            int64_t group = item / parts, start = item % parts * part, stop = least(oh, start + part);
            int64_t count = least(32, n - 32 * group), known = most(0, start - 1);
            Source x_here = from_image(images, group * 32), g_here = from_image(gradients, group * 32);
            for (int64_t top = start; top < stop; top += strip) {
                int64_t end = least(top + strip, stop);
                for (; known < h && known <= end; known++) /* a ring: row r is at r % (strip + 2) */
                    pair_up(&x_here, count, known, near + known % (strip + 2) * line, 0);
                for (int64_t row = top; row < end; row++)
                    pair_up(&g_here, count, row, turned + (row - top) * g_line, 1);
                for (int64_t j = 0; j < pairs; j++)
                    for (int64_t i = 0; i < ins; i++)
                        for (int dy = -1; dy <= 1; dy++) {
                            float *sum = own + ((j * ins + i) * 3 + dy + 1) * 6 * 256;
                            const int both = o - BLOCK * j > 16;
                            if (both) begin_sums(sum, 1);
                            else begin_sums(sum, 0);
                            for (int64_t row = top; row < end; row++) {
                                if (row + dy < 0 || row + dy >= h) continue;
                                In a = turned + (row - top) * g_line + 2 * j * ow * TILE;
                                In b = near + (row + dy) % (strip + 2) * line + i * w * TILE;
                                if (both) add_row(a, ow * TILE, ow, b, w, 1);
                                else add_row(a, ow * TILE, ow, b, w, 0);
                            }
                            if (both) end_sums(sum, 1);
                            else end_sums(sum, 0);
                        }
            }
        }
        free(near);
        free(turned);
        _tile_release();
#pragma omp for schedule(static)
        for (int64_t row = 0; row < TAPS * o; row++)
            for (int64_t i = 0; i < ins; i++) {
                int64_t output = row / TAPS, tap = row % TAPS;
                int64_t at = ((((output / BLOCK * ins + i) * 3 + tap / 3) * 3 + tap % 3) * 2 + output / 16 % 2) * 256 + output % 16 * 16;
                __m512 sum = _mm512_load_ps(sums + at);
                for (int t = 1; t < threads; t++) sum = _mm512_add_ps(sum, _mm512_load_ps(sums + t * size + at));
                int64_t left = c - 16 * i;
                _mm512_mask_storeu_ps(by_filters + row * c + 16 * i, (__mmask16)first(left < 16 ? left : 16), sum);
            }
    }
    free(sums);
}
#endif
