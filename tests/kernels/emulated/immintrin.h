/* The vector and tile instructions that csrc/ uses, in portable C: its code for AVX-512 and AMX can be
   tested on any CPU. Slow. Semantics: Intel's intrinsics guide and the AMX chapters of its manual. */

#pragma once
#include <stdint.h>
#include <string.h>

#define _UNISTD_H 1 /* left out: its read and write are other functions than those of fused.c */
#define syscall(...) ((void)arch_req_xcomp_perm, (void)xfeature_xtiledata, 0) /* tiles are granted */

typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef long long __m512i __attribute__((vector_size(64), may_alias));
typedef long long __m256i __attribute__((vector_size(32), may_alias));
typedef uint16_t __mmask16;
typedef uint32_t __mmask32;

typedef union { __m512i v; __m512 f; uint16_t h[32]; int16_t s[32]; uint32_t w[16]; int32_t d[16]; uint64_t q[8]; float x[16]; } Wide;
typedef union { __m256i v; uint16_t h[16]; uint8_t b[32]; uint64_t q[4]; } Half;

#define EACH(i, count) for (int i = 0; i < (count); i++)
#define WIDE(name, value) Wide name = {.v = (__m512i)(value)}
#define HALF(name, value) Half name = {.v = (__m256i)(value)}
#define OP(name, type, params) static inline type name params

static inline uint16_t rounded_bits(float value) { /* to nearest even; subnormals, as the CPU has it, to 0 */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7f800000) == 0) return (bits >> 16) & 0x8000;
    if (value != value) return (bits >> 16) | 0x40;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
static inline float widened(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* constants, loads, stores */
OP(_mm512_setzero_si512, __m512i, (void)) { return (__m512i){0}; }
OP(_mm512_setzero_ps, __m512, (void)) { return (__m512){0}; }
OP(_mm512_set1_ps, __m512, (float a)) { Wide r; EACH(i, 16) r.x[i] = a; return r.f; }
OP(_mm512_set1_epi16, __m512i, (short a)) { Wide r; EACH(i, 32) r.s[i] = a; return r.v; }
OP(_mm256_set1_epi8, __m256i, (char a)) { Half r; EACH(i, 32) r.b[i] = a; return r.v; }
OP(_mm512_loadu_si512, __m512i, (const void *p)) { Wide r; memcpy(&r, p, 64); return r.v; }
OP(_mm512_loadu_ps, __m512, (const void *p)) { Wide r; memcpy(&r, p, 64); return r.f; }
OP(_mm512_load_ps, __m512, (const void *p)) { if ((uintptr_t)p % 64) __builtin_trap(); return _mm512_loadu_ps(p); }
OP(_mm512_storeu_ps, void, (void *p, __m512 a)) { memcpy(p, &a, 64); }
OP(_mm512_store_si512, void, (void *p, __m512i a)) { if ((uintptr_t)p % 64) __builtin_trap(); memcpy(p, &a, 64); }
OP(_mm512_stream_si512, void, (void *p, __m512i a)) { _mm512_store_si512(p, a); }
OP(_mm512_maskz_loadu_ps, __m512, (__mmask16 k, const void *p)) {
    Wide r; EACH(i, 16) if (k >> i & 1) memcpy(&r.w[i], (const char *)p + 4 * i, 4); else r.w[i] = 0;
    return r.f;
}
OP(_mm512_maskz_loadu_epi16, __m512i, (__mmask32 k, const void *p)) {
    Wide r; EACH(i, 32) if (k >> i & 1) memcpy(&r.h[i], (const char *)p + 2 * i, 2); else r.h[i] = 0;
    return r.v;
}
OP(_mm256_maskz_loadu_epi16, __m256i, (__mmask16 k, const void *p)) {
    Half r; EACH(i, 16) if (k >> i & 1) memcpy(&r.h[i], (const char *)p + 2 * i, 2); else r.h[i] = 0;
    return r.v;
}
OP(_mm256_maskz_loadu_epi8, __m256i, (__mmask32 k, const void *p)) {
    Half r; EACH(i, 32) r.b[i] = k >> i & 1 ? ((const uint8_t *)p)[i] : 0;
    return r.v;
}
OP(_mm512_mask_storeu_ps, void, (void *p, __mmask16 k, __m512 a)) { WIDE(r, a); EACH(i, 16) if (k >> i & 1) memcpy((char *)p + 4 * i, &r.w[i], 4); }
OP(_mm512_mask_storeu_epi16, void, (void *p, __mmask32 k, __m512i a)) { WIDE(r, a); EACH(i, 32) if (k >> i & 1) memcpy((char *)p + 2 * i, &r.h[i], 2); }
OP(_mm256_mask_storeu_epi16, void, (void *p, __mmask16 k, __m256i a)) { HALF(r, a); EACH(i, 16) if (k >> i & 1) memcpy((char *)p + 2 * i, &r.h[i], 2); }
OP(_mm256_mask_storeu_epi8, void, (void *p, __mmask32 k, __m256i a)) { HALF(r, a); EACH(i, 32) if (k >> i & 1) ((uint8_t *)p)[i] = r.b[i]; }
OP(_mm_sfence, void, (void)) {}

/* arithmetic; max and min return the second operand where one is NaN, as the CPU does */
OP(_mm512_add_ps, __m512, (__m512 a, __m512 b)) { return a + b; }
OP(_mm512_fmadd_ps, __m512, (__m512 a, __m512 b, __m512 c)) { Wide r; WIDE(p, a); WIDE(q, b); WIDE(s, c); EACH(i, 16) r.x[i] = __builtin_fmaf(p.x[i], q.x[i], s.x[i]); return r.f; }
OP(_mm512_max_ps, __m512, (__m512 a, __m512 b)) { WIDE(p, a); WIDE(q, b); EACH(i, 16) if (p.x[i] > q.x[i]) q.x[i] = p.x[i]; return q.f; }
OP(_mm512_min_ps, __m512, (__m512 a, __m512 b)) { WIDE(p, a); WIDE(q, b); EACH(i, 16) if (p.x[i] < q.x[i]) q.x[i] = p.x[i]; return q.f; }
OP(_mm512_add_epi16, __m512i, (__m512i a, __m512i b)) { WIDE(p, a); WIDE(q, b); EACH(i, 32) p.h[i] += q.h[i]; return p.v; }
OP(_mm512_sub_epi16, __m512i, (__m512i a, __m512i b)) { WIDE(p, a); WIDE(q, b); EACH(i, 32) p.h[i] -= q.h[i]; return p.v; }
OP(_mm512_max_epi16, __m512i, (__m512i a, __m512i b)) { WIDE(p, a); WIDE(q, b); EACH(i, 32) if (q.s[i] > p.s[i]) p.s[i] = q.s[i]; return p.v; }
OP(_mm512_slli_epi32, __m512i, (__m512i a, unsigned n)) { WIDE(p, a); EACH(i, 16) p.w[i] <<= n; return p.v; }
OP(_mm512_srai_epi16, __m512i, (__m512i a, unsigned n)) { WIDE(p, a); EACH(i, 32) p.s[i] >>= n; return p.v; }
OP(_mm512_ternarylogic_epi32, __m512i, (__m512i a, __m512i b, __m512i c, int table)) {
    WIDE(p, a); WIDE(q, b); WIDE(s, c);
    EACH(i, 16) {
        uint32_t bits = 0;
        EACH(j, 32) bits |= (uint32_t)(table >> ((p.w[i] >> j & 1) << 2 | (q.w[i] >> j & 1) << 1 | (s.w[i] >> j & 1)) & 1) << j;
        p.w[i] = bits;
    }
    return p.v;
}

/* conversions */
OP(_mm512_cvtepu16_epi32, __m512i, (__m256i a)) { Wide r; HALF(p, a); EACH(i, 16) r.w[i] = p.h[i]; return r.v; }
OP(_mm512_cvtneps_pbh, __m256i, (__m512 a)) { Half r; WIDE(p, a); EACH(i, 16) r.h[i] = rounded_bits(p.x[i]); return r.v; }
OP(_mm512_cvtne2ps_pbh, __m512i, (__m512 high, __m512 low)) {
    Wide r; WIDE(p, low); WIDE(q, high);
    EACH(i, 16) r.h[i] = rounded_bits(p.x[i]), r.h[16 + i] = rounded_bits(q.x[i]);
    return r.v;
}
OP(_mm512_castsi512_si256, __m256i, (__m512i a)) { Half r; memcpy(&r, &a, 32); return r.v; }
OP(_mm512_extracti64x4_epi64, __m256i, (__m512i a, int half)) { Half r; memcpy(&r, (char *)&a + 32 * half, 32); return r.v; }

/* comparisons and choices */
#define _CMP_GT_OQ 30
OP(_mm512_cmp_ps_mask, __mmask16, (__m512 a, __m512 b, int op)) { (void)op; __mmask16 k = 0; WIDE(p, a); WIDE(q, b); EACH(i, 16) k |= (p.x[i] > q.x[i]) << i; return k; }
OP(_mm512_cmpeq_epi16_mask, __mmask32, (__m512i a, __m512i b)) { __mmask32 k = 0; WIDE(p, a); WIDE(q, b); EACH(i, 32) k |= (uint32_t)(p.h[i] == q.h[i]) << i; return k; }
OP(_mm256_cmpeq_epi8_mask, __mmask32, (__m256i a, __m256i b)) { __mmask32 k = 0; HALF(p, a); HALF(q, b); EACH(i, 32) k |= (uint32_t)(p.b[i] == q.b[i]) << i; return k; }
OP(_mm512_maskz_mov_ps, __m512, (__mmask16 k, __m512 a)) { WIDE(p, a); EACH(i, 16) if (!(k >> i & 1)) p.w[i] = 0; return p.f; }
OP(_mm256_mask_mov_epi8, __m256i, (__m256i a, __mmask32 k, __m256i b)) { HALF(p, a); HALF(q, b); EACH(i, 32) if (k >> i & 1) p.b[i] = q.b[i]; return p.v; }

/* permutations */
OP(_mm512_permutexvar_epi16, __m512i, (__m512i places, __m512i a)) { Wide r; WIDE(at, places); WIDE(p, a); EACH(i, 32) r.h[i] = p.h[at.h[i] & 31]; return r.v; }
OP(_mm512_permutex2var_epi16, __m512i, (__m512i a, __m512i places, __m512i b)) {
    Wide r; WIDE(at, places); WIDE(p, a); WIDE(q, b);
    EACH(i, 32) r.h[i] = at.h[i] & 32 ? q.h[at.h[i] & 31] : p.h[at.h[i] & 31];
    return r.v;
}
#define UNPACK(name, field, lanes, first)                                                            \
    OP(name, __m512i, (__m512i a, __m512i b)) {                                                      \
        Wide r; WIDE(p, a); WIDE(q, b);                                                              \
        EACH(lane, 4) EACH(i, (lanes) / 2) {                                                         \
            r.field[lane * (lanes) + 2 * i] = p.field[lane * (lanes) + (first) + i];                 \
            r.field[lane * (lanes) + 2 * i + 1] = q.field[lane * (lanes) + (first) + i];             \
        }                                                                                            \
        return r.v;                                                                                  \
    }
UNPACK(_mm512_unpacklo_epi32, w, 4, 0)
UNPACK(_mm512_unpackhi_epi32, w, 4, 2)
UNPACK(_mm512_unpacklo_epi64, q, 2, 0)
UNPACK(_mm512_unpackhi_epi64, q, 2, 1)
OP(_mm512_shuffle_i32x4, __m512i, (__m512i a, __m512i b, int places)) {
    Wide r; WIDE(p, a); WIDE(q, b);
    EACH(i, 4) memcpy(&r.w[4 * i], &(i < 2 ? &p : &q)->w[4 * (places >> 2 * i & 3)], 16);
    return r.v;
}

/* tiles: 16 rows of 64 bytes each. As with the CPU's own, the compiler is not told which memory a
   tile is loaded from, so that a store it may drop is found missing here too. */
typedef struct { uint8_t bytes[16][64]; } Tile;
static __thread Tile tile_registers[8];
static __thread int tiles_configured;

OP(hidden, const char *, (const void *p)) { __asm__ volatile("" : "+r"(p)); return p; }
OP(_tile_loadconfig, void, (const void *config)) {
    const uint8_t *c = (const uint8_t *)hidden(config);
    EACH(i, 8) if (c[0] != 1 || c[16 + 2 * i] != 64 || c[17 + 2 * i] || c[48 + i] != 16) __builtin_trap();
    tiles_configured = 1;
}
OP(_tile_release, void, (void)) { tiles_configured = 0; }
OP(tile_at, Tile *, (int t)) { if (!tiles_configured) __builtin_trap(); return &tile_registers[t]; }
OP(_tile_zero, void, (int t)) { memset(tile_at(t), 0, sizeof(Tile)); }
OP(_tile_loadd, void, (int t, const void *from, long stride)) { EACH(i, 16) memcpy(tile_at(t)->bytes[i], hidden(from) + i * stride, 64); }
OP(_tile_stored, void, (int t, void *to, long stride)) { EACH(i, 16) memcpy((char *)to + i * stride, tile_at(t)->bytes[i], 64); }
OP(_tile_dpbf16ps, void, (int sum, int left, int right)) {
    float *s = (float *)tile_at(sum);
    const uint16_t *a = (const uint16_t *)tile_at(left), *b = (const uint16_t *)tile_at(right);
    EACH(m, 16) EACH(k, 16) EACH(n, 16) {
        s[16 * m + n] += widened(a[32 * m + 2 * k]) * widened(b[32 * k + 2 * n]);
        s[16 * m + n] += widened(a[32 * m + 2 * k + 1]) * widened(b[32 * k + 2 * n + 1]);
    }
}
