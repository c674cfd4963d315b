/* 3x3 convolutions, stride 1 and padding 1, for bfloat16 maps whose channels lie together, with
   AMX: products of tiles, 16x32 by 32x16 bfloat16 to 16x16 float. Compiled beside fused.c.

   A few images lie side by side in a buffer, a column of zeros between them and a row above and
   below. There a tap of the filter is one distance for all pixels, so that 16 pixels in a row are
   the rows of a tile, wherever they lie, and no image needs to be unfolded. */

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
#define TILE 512   /* bfloat16 of a tile; half as many floats */
#define BLOCK 32   /* pixels, or channels, of the four tiles that are summed at once */
#define NEAR 8     /* blocks of pixels that stay in the first cache while all nine taps use them */
#define MAP 180000 /* bytes of a buffer that leave room for filters in the second cache */
#define MAPS 1000000 /* of the buffers of a filter's gradient */

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

INLINE __mmask32 first(int64_t count) { return count >= 32 ? 0xffffffffu : (1u << count) - 1; }

/* How images lie in a buffer: `count` side by side, `pitch` pixels a row, `area` in the h rows. */
typedef struct {
    int64_t n, h, w, count, pitch, area;
} Lay;

/* most: pixels of a buffer. As many images as fit, but fewer where that fills blocks better. */
static Lay lay_out(int64_t n, int64_t h, int64_t w, int64_t most) {
    Lay lay = {n, h, w, 0, 0, 0};
    double least = 0;
    for (int64_t count = 1; count <= 64 && (count == 1 || (h + 2) * (w + 1) * count <= most); count++) {
        int64_t area = h * (w + 1) * count;
        double cost = (double)up(area, BLOCK) / count;
        if (count > 1 && cost > 1.01 * least) continue;
        least = cost, lay.count = count, lay.pitch = (w + 1) * count, lay.area = area;
    }
    return lay;
}

/* Which pixel of a group of `images` images lies at place p of the h rows; -1: none, it is 0. */
static int64_t pixel_at(const Lay *l, int64_t images, int64_t p) {
    if (p < 0 || p >= l->area) return -1;
    int64_t row = p / l->pitch, image = p % l->pitch / (l->w + 1), column = p % l->pitch % (l->w + 1);
    return column < l->w && image < images ? (image * l->h + row) * l->w + column : -1;
}

static int64_t images_of(const Lay *l, int64_t group) {
    int64_t left = l->n - group * l->count;
    return left < l->count ? left : l->count;
}

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

/* One product of tiles: where its pixels' channels begin, from a pixel's upper left neighbour on,
   and where the filter's weights, of which `count` are not beyond the end. */
typedef struct {
    int64_t from, weights;
    int count;
} Term;

/* The terms of a filter of c channels; the channels a pixel takes in the buffer by `stride`. */
static int64_t terms_of(int64_t c, int64_t pitch, int64_t *stride, Term *terms) {
    int64_t k = 0, whole = up(c, 32), rest = up(3 * c, 32);
    if (9 * whole <= 3.5 * rest) { /* 32 channels of one tap; rows on lines of the cache, odd ones apart */
        *stride = whole % 64 ? whole : whole + 32;
        for (int64_t channel = 0; channel < c; channel += 32)
            for (int t = 0; t < 9; t++) {
                int64_t left = c - channel;
                terms[k++] = (Term){(t / 3 * pitch + t % 3) * *stride + channel, t * c + channel, left < 32 ? left : 32};
            }
    } else { /* 32 of the 3 c numbers of three pixels in a row */
        *stride = c;
        for (int row = 0; row < 3; row++)
            for (int64_t at = 0; at < 3 * c; at += 32) {
                int64_t left = 3 * c - at;
                terms[k++] = (Term){row * pitch * c + at, row * 3 * c + at, left < 32 ? left : 32};
            }
    }
    return k;
}

/* out (32 pixels, 32 channels) float: sums of the terms; `wide`: more than 16 channels are asked for. */
INLINE void product(In map, const Term *terms, int64_t count, int64_t stride, In tiles, float *out, const int wide) {
    const int64_t bytes = 2 * stride;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < count; k++, tiles += 2 * TILE) {
        In a = map + terms[k].from;
        _tile_loadd(4, a, bytes);
        _tile_loadd(6, tiles, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a + 16 * stride, bytes);
        _tile_dpbf16ps(1, 5, 6);
        if (wide) {
            _tile_loadd(7, tiles + TILE, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, out, 128);
    _tile_stored(1, out + 512, 128);
    if (wide) {
        _tile_stored(2, out + 16, 128);
        _tile_stored(3, out + 528, 128);
    }
}

/* Filters (o, 9 c) as tiles (up(o, 32) / 32, terms, 2), pairs of inputs by 16 outputs. */
static void pack_filters(In filters, int64_t c, int64_t o, const Term *terms, int64_t count, Out tiles) {
#pragma omp for schedule(static)
    for (int64_t j = 0; j < up(o, BLOCK) / 16 * count; j++) {
        int64_t half = j % 2, k = j / 2 % count, block = j / 2 / count;
        __m512i rows[16];
        for (int i = 0; i < 16; i++) {
            int64_t row = block * BLOCK + half * 16 + i;
            In from = filters + row * 9 * c + terms[k].weights;
            rows[i] = row < o ? _mm512_maskz_loadu_epi16(first(terms[k].count), from) : _mm512_setzero_si512();
        }
        transpose(rows);
        for (int i = 0; i < 16; i++) _mm512_store_si512(tiles + j * TILE + 32 * i, rows[i]);
    }
}

/* `images` images, the source's first ones, into a buffer. */
static void fill(Out map, const Lay *l, int64_t stride, const Source *s, int64_t images) {
    for (int64_t image = 0; image < images; image++)
        for (int64_t row = 0; row < l->h; row++) {
            Out to = map + ((1 + row) * l->pitch + 1 + image * (l->w + 1)) * stride;
            if (stride == s->c && s->where == NULL)
                memcpy(to, s->maps + (image * l->h + row) * l->w * s->c, 2 * l->w * s->c);
            else
                for (int64_t column = 0; column < l->w; column++, to += stride) {
                    int64_t found = find(s, image, row, column);
                    for (int64_t k = 0; k < s->c; k += 32) {
                        __mmask32 mask = first(s->c - k);
                        _mm512_mask_storeu_epi16(to + k, mask, read_pixel(s, found, k, mask));
                    }
                }
        }
}

INLINE __m512i narrow(const float *values) { /* 32 floats */
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(values + 16), _mm512_loadu_ps(values));
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

/* 2x2 maxima of 32 channels of a group, block (area, 32): to y and `where` (n, h / 2, w / 2, o), and
   their sums and sums of squares to sums (2, o). */
static void pool_block(In block, const Lay *l, int64_t images, int64_t o, __mmask32 mask, Out y, uint8_t *where,
                       double *sums) {
    int64_t oh = l->h / 2, ow = l->w / 2;
    __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, squares[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t image = 0; image < images; image++)
        for (int64_t row = 0; row < oh; row++)
            for (int64_t column = 0; column < ow; column++) {
                In at = block + (2 * row * l->pitch + image * (l->w + 1) + 2 * column) * BLOCK;
                In four[4] = {at, at + BLOCK, at + l->pitch * BLOCK, at + (l->pitch + 1) * BLOCK};
                __m512 best[2];
                __m512i from[2];
                for (int half = 0; half < 2; half++) {
                    best[half] = widen(_mm512_load_si512(four[0]), half);
                    from[half] = _mm512_setzero_si512();
                    for (int i = 1; i < 4; i++) {
                        __m512 other = widen(_mm512_load_si512(four[i]), half);
                        __mmask16 more = _mm512_cmp_ps_mask(other, best[half], _CMP_NLE_UQ); /* a NaN is taken */
                        best[half] = _mm512_mask_mov_ps(best[half], more, other);
                        from[half] = _mm512_mask_set1_epi32(from[half], more, i);
                    }
                    total[half] = _mm512_add_ps(total[half], best[half]);
                    squares[half] = _mm512_fmadd_ps(best[half], best[half], squares[half]);
                }
                int64_t to = ((image * oh + row) * ow + column) * o;
                put(y + to, (__m512i)_mm512_cvtne2ps_pbh(best[1], best[0]), mask);
                __m256i places = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm512_cvtepi32_epi8(from[0])),
                                                         _mm512_cvtepi32_epi8(from[1]), 1);
                _mm256_mask_storeu_epi8(where + to, mask, places);
            }
    float values[2][BLOCK];
    for (int half = 0; half < 2; half++) {
        _mm512_storeu_ps(values[0] + 16 * half, total[half]);
        _mm512_storeu_ps(values[1] + 16 * half, squares[half]);
    }
    for (int i = 0; i < BLOCK && mask >> i & 1; i++) sums[i] += values[0][i], sums[o + i] += values[1][i];
}

/* The convolution of maps (n, h, w, c), or of what pooled maps and `where` stand for, with filters
   (o, 3, 3, c): y (n, h, w, o). With `kept` (n, h / 2, w / 2, o): y is pooled as `fused.c` does, and
   sums (threads, 2, o), given as zeros, are as its. */
void convolve(In maps, const uint8_t *where, In filters, int64_t n, int64_t h, int64_t w, int64_t c, int64_t o, Out y,
              uint8_t *kept, double *sums, int threads) {
    Term *terms = malloc(9 * up(c, 32) * sizeof(Term)); /* more than either way needs */
    int64_t stride, count = terms_of(c, 0, &stride, terms);
    Lay l = lay_out(n, h, w, MAP / (2 * stride));
    terms_of(c, l.pitch, &stride, terms);
    Source source = {maps, where, h, w, c};
    int64_t area = up(l.area, BLOCK), blocks = up(o, BLOCK) / BLOCK, panel = count * 2 * TILE;
    Out tiles = aligned_alloc(64, 2 * blocks * panel);
    int64_t *pixels = malloc(area * sizeof(int64_t));
    for (int64_t p = 0; p < area; p++) pixels[p] = pixel_at(&l, l.count, p);
    int64_t size = up(((2 * l.pitch + 2 + area) * stride + 64) * 2, 64);
#pragma omp parallel num_threads(threads)
    {
        begin_tiles();
        pack_filters(filters, c, o, terms, count, tiles);
        Out map = aligned_alloc(64, size), block = aligned_alloc(64, 2 * area * BLOCK);
        float out[BLOCK * BLOCK] __attribute__((aligned(64)));
        memset(map, 0, size);
#pragma omp for schedule(static)
        for (int64_t group = 0; group < (n + l.count - 1) / l.count; group++) {
            int64_t images = images_of(&l, group), limit = images * h * w;
            Source here = from_image(source, group * l.count);
            fill(map, &l, stride, &here, images);
            int64_t before = group * l.count * (kept ? (h / 2) * (w / 2) : h * w) * o;
            for (int64_t j = 0; j < blocks; j++) {
                __mmask32 mask = first(o - BLOCK * j);
                for (int64_t p = 0; p < area; p += BLOCK) {
                    if (mask >> 16) product(map + p * stride, terms, count, stride, tiles + j * panel, out, 1);
                    else product(map + p * stride, terms, count, stride, tiles + j * panel, out, 0);
                    if (kept)
                        for (int i = 0; i < BLOCK; i++)
                            _mm512_store_si512(block + (p + i) * BLOCK, narrow(out + BLOCK * i));
                    else
                        for (int i = 0; i < BLOCK; i++) {
                            int64_t pixel = pixels[p + i];
                            if (pixel >= 0 && pixel < limit)
                                put(y + before + pixel * o + BLOCK * j, narrow(out + BLOCK * i), mask);
                        }
                }
                if (kept)
                    pool_block(block, &l, images, o, mask, y + before + BLOCK * j, kept + before + BLOCK * j,
                               sums + 2 * o * omp_get_thread_num() + BLOCK * j);
            }
        }
        _mm_sfence();
        free(map);
        free(block);
        _tile_release();
    }
    free(terms);
    free(tiles);
    free(pixels);
}

/* ---- the gradient by the filters ---- */

/* What is at place p of the h rows of a group of `images` images, the source's first ones. */
static int64_t find_at(const Source *s, const Lay *l, int64_t images, int64_t p) {
    int64_t pixel = pixel_at(l, images, p), row = pixel / l->w;
    return pixel < 0 ? -1 : find(s, row / l->h, row % l->h, pixel % l->w);
}

/* Which bfloat16 of two rows of 32 channels make pairs: of the first 16 channels, and the others. */
static void pairs_of(__m512i *low, __m512i *high) {
    uint16_t a[32], b[32];
    for (int i = 0; i < 16; i++) a[2 * i] = i, a[2 * i + 1] = 32 + i, b[2 * i] = 16 + i, b[2 * i + 1] = 48 + i;
    *low = _mm512_loadu_si512(a), *high = _mm512_loadu_si512(b);
}

/* Pixels in pairs, (2 up(c, 32) / 32, pairs, 16 channels): even has the pairs that begin at even
   places, odd the others. found[i]: what is at place i. */
static void pair_up(const Source *s, const int64_t *found, int64_t pairs, Out even, Out odd) {
    __m512i low, high;
    pairs_of(&low, &high);
    for (int64_t i = 0; i < pairs; i++, found += 2)
        for (int64_t k = 0; k < s->c; k += 32) {
            __mmask32 mask = first(s->c - k);
            __m512i a = read_pixel(s, found[0], k, mask), b = read_pixel(s, found[1], k, mask);
            __m512i next = read_pixel(s, found[2], k, mask);
            int64_t to = 2 * k * pairs + 32 * i;
            _mm512_store_si512(even + to, _mm512_permutex2var_epi16(a, low, b));
            _mm512_store_si512(even + to + 32 * pairs, _mm512_permutex2var_epi16(a, high, b));
            _mm512_store_si512(odd + to, _mm512_permutex2var_epi16(b, low, next));
            _mm512_store_si512(odd + to + 32 * pairs, _mm512_permutex2var_epi16(b, high, next));
        }
}

/* Tiles of 16 channels by 32 pixels: (2 up(c, 32) / 32, blocks, TILE). found[i]: what is at place i. */
static void turn(const Source *s, const int64_t *found, int64_t blocks, Out tiles) {
    __m512i low, high;
    pairs_of(&low, &high);
    for (int64_t block = 0; block < blocks; block++, found += BLOCK)
        for (int64_t k = 0; k < s->c; k += 32) {
            __mmask32 mask = first(s->c - k);
            __m512i r[2][16];
            for (int i = 0; i < 16; i++) {
                __m512i a = read_pixel(s, found[2 * i], k, mask), b = read_pixel(s, found[2 * i + 1], k, mask);
                r[0][i] = _mm512_permutex2var_epi16(a, low, b);
                r[1][i] = _mm512_permutex2var_epi16(a, high, b);
            }
            for (int half = 0; half < 2; half++) {
                transpose(r[half]);
                Out to = tiles + ((k / 16 + half) * blocks + block) * TILE;
                for (int i = 0; i < 16; i++) _mm512_store_si512(to + 32 * i, r[half][i]);
            }
        }
}

/* sum (4 tiles of float): increased by products of `count` blocks of pixels: two tiles of gradients,
   `apart` apart, by two of images, `beside` apart. high, wide: whether the second ones are asked for. */
INLINE void add_products(float *sum, In g, int64_t apart, In x, int64_t beside, int64_t count, const int high, const int wide) {
    _tile_loadd(0, sum, 64);
    if (wide) _tile_loadd(1, sum + 256, 64);
    if (high) _tile_loadd(2, sum + 512, 64);
    if (high && wide) _tile_loadd(3, sum + 768, 64);
    for (int64_t k = 0; k < count; k++, g += TILE, x += TILE) {
        _tile_loadd(4, g, 64);
        _tile_loadd(6, x, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (wide) {
            _tile_loadd(7, x + beside, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (high) {
            _tile_loadd(5, g + apart, 64);
            _tile_dpbf16ps(2, 5, 6);
            if (wide) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sum, 64);
    if (wide) _tile_stored(1, sum + 256, 64);
    if (high) _tile_stored(2, sum + 512, 64);
    if (high && wide) _tile_stored(3, sum + 768, 64);
}

/* The gradient by the filters of `convolve`, (o, 3, 3, c) float: of its maps x and the gradient g by
   its result, which may be of pooled maps. */
void convolve_filters(In x, In g, const uint8_t *where, int64_t n, int64_t h, int64_t w, int64_t c, int64_t o,
                      float *by_filters, int threads) {
    int64_t ins = up(c, BLOCK) / BLOCK, outs = up(o, BLOCK) / BLOCK;
    Lay l = lay_out(n, h, w, MAPS / (128 * ins + 64 * outs));
    Source images = {x, NULL, h, w, c}, gradients = {g, where, h, w, o};
    int64_t start = up(l.pitch + 1, 2), area = up(l.area, BLOCK), span = start + area + up(l.pitch + 1, 2);
    int64_t blocks = area / BLOCK, pairs = span / 2, size = ins * outs * 9 * 2 * TILE;
    float *sums = aligned_alloc(64, threads * size * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        begin_tiles();
        float *own = sums + size * omp_get_thread_num();
        memset(own, 0, size * sizeof(float));
        Out even = aligned_alloc(64, ins * pairs * 128), odd = aligned_alloc(64, ins * pairs * 128);
        Out turned = aligned_alloc(64, outs * blocks * 4 * TILE);
        int64_t *of_images = malloc((span + 1) * sizeof(int64_t)), *of_gradients = malloc(area * sizeof(int64_t));
        int64_t known = 0;
#pragma omp for schedule(static)
        for (int64_t group = 0; group < (n + l.count - 1) / l.count; group++) {
            int64_t count = images_of(&l, group);
            if (count != known) {
                for (int64_t i = 0; i <= span; i++) of_images[i] = find_at(&images, &l, count, i - start);
                for (int64_t i = 0; i < area; i++) of_gradients[i] = find_at(&gradients, &l, count, i);
            }
            known = count;
            Source x_here = from_image(images, group * l.count), g_here = from_image(gradients, group * l.count);
            pair_up(&x_here, of_images, pairs, even, odd);
            turn(&g_here, of_gradients, blocks, turned);
            for (int64_t j = 0; j < outs; j++)
                for (int64_t i = 0; i < ins; i++)
                    for (int64_t k = 0; k < blocks; k += NEAR)
                        for (int t = 0; t < 9; t++) {
                            int64_t at = start + (t / 3 - 1) * l.pitch + t % 3 - 1;
                            In b = (at % 2 ? odd : even) + 64 * i * pairs + 32 * (at / 2 + 16 * k);
                            In a = turned + (2 * j * blocks + k) * TILE;
                            float *sum = own + ((j * ins + i) * 9 + t) * 2 * TILE;
                            int64_t few = blocks - k < NEAR ? blocks - k : NEAR;
                            int high = o - BLOCK * j > 16, wide = c - BLOCK * i > 16;
                            if (high && wide) add_products(sum, a, blocks * TILE, b, pairs * 32, few, 1, 1);
                            else if (high) add_products(sum, a, blocks * TILE, b, pairs * 32, few, 1, 0);
                            else if (wide) add_products(sum, a, blocks * TILE, b, pairs * 32, few, 0, 1);
                            else add_products(sum, a, blocks * TILE, b, pairs * 32, few, 0, 0);
                        }
        }
        free(even);
        free(odd);
        free(turned);
        free(of_images);
        free(of_gradients);
        _tile_release();
#pragma omp for schedule(static)
        for (int64_t row = 0; row < 9 * o; row++)
            for (int64_t k = 0; k < c; k += 16) {
                int64_t j = row / 9 / BLOCK, inner = row / 9 % BLOCK, i = k / BLOCK;
                int64_t at = ((j * ins + i) * 9 + row % 9) * 2 * TILE + (inner / 16 * 2 + k / 16 % 2) * 256 + inner % 16 * 16;
                __m512 sum = _mm512_load_ps(sums + at);
                for (int t = 1; t < threads; t++) sum = _mm512_add_ps(sum, _mm512_load_ps(sums + t * size + at));
                _mm512_mask_storeu_ps(by_filters + row * c + k, (__mmask16)first(c - k < 16 ? c - k : 16), sum);
            }
    }
    free(sums);
}
#endif
