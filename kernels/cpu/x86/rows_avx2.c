#include "kernels/cpu/rows.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/x86/vec_avx2.h"

/* Elements i.. of a row of n: eight, or the last ones with zeros after them. */
static inline __m256 get(const float *x, uint32_t n, uint32_t i)
{
    return n - i >= 8 ? _mm256_loadu_ps(x + i) : _mm256_maskload_ps(x + i, lanes_avx2((int)(n - i)));
}

static inline void put_f32(float *out, uint32_t n, uint32_t i, __m256 x)
{
    if (n - i >= 8)
        _mm256_storeu_ps(out + i, x);
    else
        _mm256_maskstore_ps(out + i, lanes_avx2((int)(n - i)), x);
}

static inline void put(enum dtype type, void *out, uint32_t n, uint32_t i, __m256 x)
{
    if (type == DTYPE_F32) {
        put_f32(out, n, i, x);
        return;
    }
    const __m128i h = bf16_avx2(x);
    if (n - i >= 8)
        _mm_storeu_si128((__m128i *)((uint16_t *)out + i), h);
    else
        memcpy((uint16_t *)out + i, &h, (n - i) * sizeof(uint16_t));
}

/* Four sums in turn, vector j of the row in sum j mod 4. */
static inline float join(const __m256 s[4])
{
    return hsum_avx2(_mm256_add_ps(_mm256_add_ps(s[0], s[1]), _mm256_add_ps(s[2], s[3])));
}

void rmsnorm_avx2(const float *x, const float *w, uint32_t n, float eps, enum dtype out_type, void *out, uint32_t pad)
{
    __m256 s[4] = { _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps() };
    uint32_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (uint32_t j = 0; j < 4; j++) {
            const __m256 v = _mm256_loadu_ps(x + i + 8 * j);
            s[j] = _mm256_fmadd_ps(v, v, s[j]);
        }
    for (uint32_t j = 0; i < n; i += 8, j++) {
        const __m256 v = get(x, n, i);
        s[j] = _mm256_fmadd_ps(v, v, s[j]);
    }
    const __m256 r = _mm256_set1_ps(1.0f / sqrtf(join(s) / (float)n + eps));
    for (i = 0; i < n; i += 8)
        put(out_type, out, n, i, _mm256_mul_ps(_mm256_mul_ps(get(x, n, i), r), get(w, n, i)));
    row_pad(out_type, out, n, pad);
}

void add_avx2(float *x, const float *b, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 8)
        put_f32(x, n, i, _mm256_add_ps(get(x, n, i), get(b, n, i)));
}

void rope_avx2(float *x, uint32_t n_heads, uint32_t head_dim, const float *cos, const float *sin)
{
    const uint32_t half = head_dim / 2;
    for (uint32_t i = 0; i < half; i += 8) {
        const __m256 c = get(cos, half, i), s = get(sin, half, i);
        float *at = x;
        for (uint32_t h = 0; h < n_heads; h++, at += head_dim) {
            const __m256 a = get(at, half, i), b = get(at + half, half, i);
            put_f32(at, half, i, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
            put_f32(at + half, half, i, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
        }
    }
}

void silu_mul_avx2(const float *gate, const float *up, uint32_t n, enum dtype out_type, void *out, uint32_t pad)
{
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    for (uint32_t i = 0; i < n; i += 8) {
        const __m256 g = get(gate, n, i), e = exp_avx2(_mm256_or_ps(g, sign));
        const __m256 up_side = _mm256_cmp_ps(g, _mm256_setzero_ps(), _CMP_GE_OQ);
        const __m256 num = _mm256_mul_ps(g, _mm256_blendv_ps(e, one, up_side));
        const __m256 silu = _mm256_div_ps(num, _mm256_add_ps(one, e));
        put(out_type, out, n, i, _mm256_mul_ps(silu, get(up, n, i)));
    }
    row_pad(out_type, out, n, pad);
}

void attn_finish_avx2(const float *o, float l, uint32_t head_dim, enum dtype out_type, void *out, bool *finite)
{
    const __m256 by = _mm256_set1_ps(l);
    __m256 bad = _mm256_setzero_ps();
    for (uint32_t i = 0; i < head_dim; i += 8) {
        const __m256 v = get(o, head_dim, i), zero = _mm256_sub_ps(v, v); /* NaN if v is not finite */
        bad = _mm256_or_ps(bad, _mm256_cmp_ps(zero, zero, _CMP_UNORD_Q));
        put(out_type, out, head_dim, i, _mm256_div_ps(v, by));
    }
    if (_mm256_movemask_ps(bad) || !isfinite(l) || !(l > 0))
        *finite = false;
}

static float max_of(const float *x, uint32_t n)
{
    const __m256 none = _mm256_set1_ps(-INFINITY);
    __m256 m[4] = { none, none, none, none };
    uint32_t i = 0;
    /* max(x, m) is m if x is NaN */
    for (; i + 32 <= n; i += 32)
        for (uint32_t j = 0; j < 4; j++)
            m[j] = _mm256_max_ps(_mm256_loadu_ps(x + i + 8 * j), m[j]);
    float max = hmax_avx2(_mm256_max_ps(_mm256_max_ps(m[0], m[1]), _mm256_max_ps(m[2], m[3])));
    for (; i < n; i++)
        max = x[i] > max ? x[i] : max;
    return max;
}

static uint32_t first_equal(const float *x, uint32_t n, float want)
{
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const int hit = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(want), _CMP_EQ_OQ));
        if (hit)
            return i + (uint32_t)__builtin_ctz((unsigned)hit);
    }
    for (; i < n; i++)
        if (x[i] == want)
            return i;
    return 0;
}

void logit_max_sum_avx2(const float *x, uint32_t n, uint32_t *argmax_out, float *max_out, float *sum_out)
{
    const float top = max_of(x, n);
    const __m256 max = _mm256_set1_ps(top);
    __m256 s[4] = { _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps() };
    uint32_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (uint32_t j = 0; j < 4; j++)
            s[j] = _mm256_add_ps(s[j], exp_avx2(_mm256_sub_ps(_mm256_loadu_ps(x + i + 8 * j), max)));
    for (uint32_t j = 0; i < n; i += 8, j++) {
        const __m256i live = lanes_avx2(n - i >= 8 ? 8 : (int)(n - i));
        const __m256 e = exp_avx2(_mm256_sub_ps(get(x, n, i), max));
        s[j] = _mm256_add_ps(s[j], _mm256_and_ps(e, _mm256_castsi256_ps(live)));
    }
    *argmax_out = first_equal(x, n, top);
    *max_out = top;
    *sum_out = join(s);
}
