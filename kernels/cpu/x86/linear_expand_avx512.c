#include "kernels/cpu/linear_expand.h"

#include <immintrin.h>

#include "model/df11_decode.h"

#define INLINE static inline __attribute__((always_inline))

/* Vector v's codes, where the look-up in four grids of 16 wants them: the output in bits 4 and 5. */
INLINE __m512i grid_index(const uint32_t bits, const uint8_t *lines, const uint32_t v)
{
    enum { AND_OR = 0xEA }; /* (a & b) | c */
    const __m512i outputs = _mm512_broadcast_i32x4(_mm_set_epi16(48, 48, 32, 32, 16, 16, 0, 0));
    if (bits == 4)
        return _mm512_ternarylogic_epi32(_mm512_srli_epi16(_mm512_load_si512(lines + v / 4 * 64), v % 4 * 4),
                                         _mm512_set1_epi16(15), outputs, AND_OR);
    const __m512i low = _mm512_ternarylogic_epi32(_mm512_srli_epi16(_mm512_load_si512(lines + v / 8 * 64), v % 8 * 2),
                                                  _mm512_set1_epi16(3), outputs, AND_OR);
    if (bits == 2)
        return low;
    const __m512i line = _mm512_load_si512(lines + 2 * 64);
    return _mm512_ternarylogic_epi32(v < 2 ? _mm512_slli_epi16(line, 2 - v) : _mm512_srli_epi16(line, v - 2),
                                     _mm512_set1_epi16(4), low, AND_OR);
}

INLINE void expand_grid(const struct linear_shape *s, const uint32_t bits, const uint8_t *group, uint8_t *out)
{
    const size_t n_blocks = linear_n_blocks(s);
    __m512i grid[8];
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++)
        grid[i] = _mm512_load_si512(group + i * 64);
    const uint8_t *lines = group + LINEAR_GRIDS;
    for (size_t b = 0; b < n_blocks; b++, lines += 64 * bits, out += LINEAR_BLOCK_BF16) {
        _mm_prefetch((const char *)lines + 2048, _MM_HINT_T0);
        _mm_prefetch((const char *)lines + 2048 + 64 * (bits - 1), _MM_HINT_T0);
#pragma GCC unroll 4
        for (uint32_t r = 0; r < 4; r++) {
            __m512i v[4];
#pragma GCC unroll 4
            for (uint32_t q = 0; q < 4; q++)
                v[q] = _mm512_permutex2var_epi16(grid[2 * q], grid_index(bits, lines, 4 * r + q), grid[2 * q + 1]);
            /* lane j of the four vectors is row 4 r + j */
            const __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x44), b2 = _mm512_shuffle_i32x4(v[2], v[3], 0x44),
                          c = _mm512_shuffle_i32x4(v[0], v[1], 0xEE), d = _mm512_shuffle_i32x4(v[2], v[3], 0xEE);
            _mm512_store_si512(out + (4 * r) * 64, _mm512_shuffle_i32x4(a, b2, 0x88));
            _mm512_store_si512(out + (4 * r + 1) * 64, _mm512_shuffle_i32x4(a, b2, 0xDD));
            _mm512_store_si512(out + (4 * r + 2) * 64, _mm512_shuffle_i32x4(c, d, 0x88));
            _mm512_store_si512(out + (4 * r + 3) * 64, _mm512_shuffle_i32x4(c, d, 0xDD));
        }
    }
    linear_clear_padding(s, (uint16_t *)(void *)(out - LINEAR_BLOCK_BF16));
}

void linear_expand_avx512(const struct linear_shape *shape, const uint8_t *group, uint8_t *out)
{
    const struct df11_group g = linear_df11_group(shape, group);
    switch (weight_grid_bits(shape->codec)) {
    case 4:
        expand_grid(shape, 4, group, out);
        return;
    case 3:
        expand_grid(shape, 3, group, out);
        return;
    case 2:
        expand_grid(shape, 2, group, out);
        return;
    default:
        df11_decode_inline(&g, (uint16_t *)(void *)out);
    }
}
