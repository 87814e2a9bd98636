#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/kv_expand.h"
#include "kernels/cpu/x86/vec_avx512.h"

/* Brings bytes of the next part nearer, as many as were just read. */
static void prefetch(const uint8_t *next, size_t bytes)
{
    for (size_t i = 0; next && i < bytes; i += 64)
        _mm_prefetch((const char *)next + i, _MM_HINT_T0);
}

/* bf16 of 16 sums, as words. */
static __m256i table(__m512 code, __m512 scale, __m512 least)
{
    const __m512 x = _mm512_add_ps(_mm512_mul_ps(code, scale), least);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bf16_round_avx512(x), 16));
}

/* A run has 2 x 16 different numbers: one permutation looks 32 of them up. */
static void expand4(uint32_t runs, const uint8_t *codes, const uint16_t *scale, const uint16_t *least, uint16_t *open)
{
    const __m512i odd = _mm512_set1_epi32(16 << 16), low = _mm512_set1_epi16(15);
    const __m512 code = _mm512_cvtepi32_ps(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (uint32_t run = 0; run < runs; run++, codes += KIVI_RUN / 2, open += KIVI_RUN) {
        __m256i of[2];
        for (uint32_t e = 0; e < 2; e++)
            of[e] = table(code, _mm512_cvtph_ps(_mm256_set1_epi16((short)scale[2 * run + e])),
                          _mm512_cvtph_ps(_mm256_set1_epi16((short)least[2 * run + e])));
        const __m512i numbers = _mm512_inserti64x4(_mm512_castsi256_si512(of[0]), of[1], 1);
        const __m512i both = _mm512_cvtepu8_epi16(_mm256_load_si256((const void *)codes));
        const __m512i first = _mm512_or_si512(_mm512_and_si512(both, low), odd),
                      second = _mm512_or_si512(_mm512_srli_epi16(both, 4), odd);
        _mm512_store_si512(open, _mm512_permutexvar_epi16(first, numbers));
        _mm512_store_si512(open + 32, _mm512_permutexvar_epi16(second, numbers));
    }
}

/* Two runs at a time have 4 x 4 different numbers. */
static void expand2(uint32_t runs, const uint8_t *codes, const uint16_t *scale, const uint16_t *least, uint16_t *open)
{
    const __m512 code = _mm512_cvtepi32_ps(_mm512_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3));
    const __m512i of = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), three = _mm512_set1_epi16(3),
                  odd = _mm512_set1_epi32(4 << 16),
                  by = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1),
                  by2 = _mm512_add_epi16(by, _mm512_set1_epi16(4));
    for (uint32_t run = 0; run < runs; run += 2) {
        __m128i s, l;
        s = _mm_loadl_epi64((const void *)(scale + 2 * run));
        l = _mm_loadl_epi64((const void *)(least + 2 * run));
        const __m512 s4 = _mm512_castps128_ps512(_mm_cvtph_ps(s)), l4 = _mm512_castps128_ps512(_mm_cvtph_ps(l));
        const __m512i numbers =
            _mm512_castsi256_si512(table(code, _mm512_permutexvar_ps(of, s4), _mm512_permutexvar_ps(of, l4)));
        for (uint32_t r = 0; r < 2; r++, codes += KIVI_RUN / 4, open += KIVI_RUN) {
            const __m512i which = _mm512_or_si512(odd, _mm512_set1_epi16((short)(8 * r)));
            const __m512i all = _mm512_broadcast_i64x4(_mm256_cvtepu8_epi16(_mm_load_si128((const void *)codes)));
            const __m512i first = _mm512_and_si512(_mm512_srlv_epi16(all, by), three),
                          second = _mm512_and_si512(_mm512_srlv_epi16(all, by2), three);
            _mm512_store_si512(open, _mm512_permutexvar_epi16(_mm512_or_si512(first, which), numbers));
            _mm512_store_si512(open + 32, _mm512_permutexvar_epi16(_mm512_or_si512(second, which), numbers));
        }
    }
}

void kv_expand_kivi_avx512(const struct attn_shape *shape, const void *part_bytes, const void *next_part,
                           void *open_out)
{
    const struct kivi_planes planes = kivi_planes(shape);
    const uint8_t *part = part_bytes;
    const uint16_t *scale = (const uint16_t *)(const void *)(part + planes.scale),
                   *least = (const uint16_t *)(const void *)(part + planes.least);
    prefetch(next_part, kv_part_bytes_kivi(shape));
    if (shape->codec == KV_KIVI4)
        expand4(shape->head_dim, part, scale, least, open_out);
    else
        expand2(shape->head_dim, part, scale, least, open_out);
}

void kv_expand_fp8_avx512(const struct attn_shape *shape, const void *part_bytes, const void *next_part, void *open_out)
{
    const uint32_t n = KV_BLOCK * shape->head_dim;
    const __m512i sign = _mm512_set1_epi16((short)0x8000), rest = _mm512_set1_epi16(0x3F80);
    const uint8_t *part = part_bytes;
    uint16_t *open = open_out;
    float scale;
    memcpy(&scale, part + n, sizeof scale);
    const __m512 by = _mm512_set1_ps(scale), f16 = _mm512_set1_ps(0x1p8f); /* apart: their product may be beyond f32 */
    prefetch(next_part, kv_part_bytes_fp8(shape));
    for (uint32_t i = 0; i < n; i += 32) {
        const __m512i w = _mm512_cvtepi8_epi16(_mm256_load_si256((const void *)(part + i)));
        const __m512i h = _mm512_or_si512(_mm512_and_si512(w, sign), _mm512_and_si512(_mm512_slli_epi16(w, 7), rest));
        for (int half = 0; half < 2; half++) {
            const __m512 x = _mm512_cvtph_ps(half ? _mm512_extracti64x4_epi64(h, 1) : _mm512_castsi512_si256(h));
            const __m512i u = bf16_round_avx512(_mm512_mul_ps(_mm512_mul_ps(x, f16), by));
            _mm256_store_si256((void *)(open + i + 16 * half), _mm512_cvtepi32_epi16(_mm512_srli_epi32(u, 16)));
        }
    }
}

/* Exponents of a run, e [2], of which those in `missing` are escapes; -> how many were taken of the list. Rare. */
static uint32_t put_escapes(__m256i e[2], uint64_t missing, const uint8_t *escapes, uint32_t left)
{
    uint8_t run[LOSSLESS_RUN] __attribute__((aligned(64)));
    uint32_t taken = 0;
    _mm256_store_si256((void *)run, e[0]);
    _mm256_store_si256((void *)(run + 32), e[1]);
    for (; missing; missing &= missing - 1) {
        run[__builtin_ctzll(missing)] = taken < left ? escapes[taken] : 0;
        taken += taken < left;
    }
    e[0] = _mm256_load_si256((const void *)run);
    e[1] = _mm256_load_si256((const void *)(run + 32));
    return taken;
}

/* 32 numbers of their signs and mantissas, and exponents. */
static __m512i joined(__m256i rest, __m256i exponent)
{
    const __m512i keep = _mm512_set1_epi16((short)0x807F), w = _mm512_cvtepu8_epi16(rest);
    const __m512i twice = _mm512_or_si512(w, _mm512_slli_epi16(w, 8)),
                  e = _mm512_slli_epi16(_mm512_cvtepu8_epi16(exponent), 7);
    return _mm512_ternarylogic_epi32(twice, keep, e, 0xEA); /* twice & keep | e */
}

void kv_expand_lossless_avx512(const struct attn_shape *shape, const void *part_bytes, const void *next_part,
                               void *open_out)
{
    const struct kv_lossless_planes planes = kv_lossless_planes(shape);
    const uint8_t *part = part_bytes, *classes = part + planes.classes, *escapes = part + planes.escapes;
    const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128((const void *)(part + planes.table))),
                  low = _mm256_set1_epi8(15);
    uint16_t *open = open_out;
    uint32_t taken = 0;
    prefetch(next_part, kv_part_bytes_lossless(shape));
    for (uint32_t run = 0; run < shape->head_dim; run++, part += LOSSLESS_RUN, classes += LOSSLESS_RUN / 2) {
        const __m256i both = _mm256_load_si256((const void *)classes), first = _mm256_and_si256(both, low),
                      second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        const uint64_t missing = _mm256_cmpeq_epi8_mask(first, low) | (uint64_t)_mm256_cmpeq_epi8_mask(second, low)
                                                                          << 32;
        __m256i e[2] = { _mm256_shuffle_epi8(table, first), _mm256_shuffle_epi8(table, second) };
        if (missing)
            taken += put_escapes(e, missing, escapes + taken, planes.room - taken);
        _mm512_store_si512(open, joined(_mm256_load_si256((const void *)part), e[0]));
        _mm512_store_si512(open + 32, joined(_mm256_load_si256((const void *)(part + 32)), e[1]));
        open += LOSSLESS_RUN;
    }
}
