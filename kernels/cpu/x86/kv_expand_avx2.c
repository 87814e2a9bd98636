#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/kv_expand.h"
#include "kernels/cpu/x86/vec_avx2.h"

static void prefetch(const uint8_t *next, size_t bytes)
{
    for (size_t i = 0; next && i < bytes; i += 64)
        _mm_prefetch((const char *)next + i, _MM_HINT_T0);
}

/* A pair of f16 four times over. */
static __m256 pair(const uint16_t *at)
{
    uint32_t both;
    memcpy(&both, at, sizeof both);
    return _mm256_cvtph_ps(_mm_set1_epi32((int)both));
}

void kv_expand_kivi_avx2(const struct attn_shape *shape, const void *part_bytes, const void *next_part, void *open_out)
{
    const uint32_t bits = kivi_bits(shape), bytes = KIVI_RUN * bits / 8;
    const struct kivi_planes planes = kivi_planes(shape);
    const uint8_t *part = part_bytes;
    const uint16_t *scale = (const uint16_t *)(const void *)(part + planes.scale),
                   *least = (const uint16_t *)(const void *)(part + planes.least);
    const __m256i mask = _mm256_set1_epi32((1 << bits) - 1);
    uint16_t *open = open_out;
    prefetch(next_part, kv_part_bytes_kivi(shape));
    for (uint32_t run = 0; run < shape->head_dim; run++, part += bytes, open += KIVI_RUN) {
        const __m256 s = pair(scale + 2 * run), l = pair(least + 2 * run);
        for (uint32_t at = 0; at < KIVI_RUN; at += 8) {
            const __m256i all = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(part + at % bytes)));
            const __m128i shift = _mm_cvtsi32_si128((int)(at / bytes * bits));
            const __m256i code = _mm256_and_si256(_mm256_srl_epi32(all, shift), mask);
            _mm_store_si128((void *)(open + at),
                            bf16_avx2(_mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(code), s), l)));
        }
    }
}

void kv_expand_fp8_avx2(const struct attn_shape *shape, const void *part_bytes, const void *next_part, void *open_out)
{
    const uint32_t n = KV_BLOCK * shape->head_dim;
    const __m128i sign = _mm_set1_epi16((short)0x8000), rest = _mm_set1_epi16(0x3F80);
    const uint8_t *part = part_bytes;
    uint16_t *open = open_out;
    float scale;
    memcpy(&scale, part + n, sizeof scale);
    prefetch(next_part, kv_part_bytes_fp8(shape));
    for (uint32_t i = 0; i < n; i += 8) {
        const __m128i w = _mm_cvtepi8_epi16(_mm_loadl_epi64((const void *)(part + i)));
        const __m128i h = _mm_or_si128(_mm_and_si128(w, sign), _mm_and_si128(_mm_slli_epi16(w, 7), rest));
        const __m256 x = _mm256_mul_ps(_mm256_cvtph_ps(h), _mm256_set1_ps(0x1p8f));
        _mm_store_si128((void *)(open + i), bf16_avx2(_mm256_mul_ps(x, _mm256_set1_ps(scale))));
    }
}

/* 32 classes of a run to exponents; escapes go in one by one. -> how many were taken of the list */
static uint32_t exponents(__m256i table, __m256i class_of, const uint8_t *escapes, uint32_t left, uint8_t *out)
{
    const __m256i escape = _mm256_cmpeq_epi8(class_of, _mm256_set1_epi8(LOSSLESS_ESCAPE));
    uint32_t missing = (uint32_t)_mm256_movemask_epi8(escape), taken = 0;
    _mm256_store_si256((void *)out, _mm256_shuffle_epi8(table, class_of));
    for (; missing; missing &= missing - 1) {
        out[__builtin_ctz(missing)] = taken < left ? escapes[taken] : 0;
        taken += taken < left;
    }
    return taken;
}

void kv_expand_lossless_avx2(const struct attn_shape *shape, const void *part_bytes, const void *next_part,
                             void *open_out)
{
    const struct kv_lossless_planes planes = kv_lossless_planes(shape);
    const uint8_t *part = part_bytes, *classes = part + planes.classes, *escapes = part + planes.escapes;
    const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128((const void *)(part + planes.table))),
                  low = _mm256_set1_epi8(15), sign = _mm256_set1_epi16((short)0x8000), rest = _mm256_set1_epi16(0x7F);
    uint16_t *open = open_out;
    uint32_t taken = 0;
    prefetch(next_part, kv_part_bytes_lossless(shape));
    for (uint32_t run = 0; run < shape->head_dim; run++, classes += LOSSLESS_RUN / 2) {
        const __m256i both = _mm256_load_si256((const void *)classes);
        uint8_t e[LOSSLESS_RUN] __attribute__((aligned(32)));
        taken += exponents(table, _mm256_and_si256(both, low), escapes + taken, planes.room - taken, e);
        taken += exponents(table, _mm256_and_si256(_mm256_srli_epi16(both, 4), low), escapes + taken,
                           planes.room - taken, e + 32);
        for (uint32_t at = 0; at < LOSSLESS_RUN; at += 16, part += 16, open += 16) {
            const __m256i w = _mm256_cvtepu8_epi16(_mm_load_si128((const void *)part));
            const __m256i x = _mm256_cvtepu8_epi16(_mm_load_si128((const void *)(e + at)));
            const __m256i outer = _mm256_and_si256(_mm256_slli_epi16(w, 8), sign), inner = _mm256_and_si256(w, rest);
            _mm256_store_si256((void *)open, _mm256_or_si256(_mm256_or_si256(outer, inner), _mm256_slli_epi16(x, 7)));
        }
    }
}
