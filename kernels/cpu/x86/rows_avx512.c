#include "kernels/cpu/rows.h"

#include <immintrin.h>
#include <math.h>

#include "kernels/cpu/x86/vec_avx512.h"

/* Elements i.. of a row of n, at most 16; and as many of the output. */
static inline __mmask16 rest(uint32_t n, uint32_t i)
{
    return n - i < 16 ? lanes_avx512(n - i) : (__mmask16)0xFFFF;
}

static inline void put(enum dtype type, void *out, uint32_t i, __mmask16 live, __m512 x)
{
    if (type == DTYPE_F32)
        _mm512_mask_storeu_ps((float *)out + i, live, x);
    else
        _mm512_mask_cvtepi32_storeu_epi16((uint16_t *)out + i, live, _mm512_srli_epi32(bf16_round_avx512(x), 16));
}

/* Four sums in turn, vector j of the row in sum j mod 4: enough to hide the latency of an addition. */
static inline float join(const __m512 s[4])
{
    return hsum_avx512(_mm512_add_ps(_mm512_add_ps(s[0], s[1]), _mm512_add_ps(s[2], s[3])));
}

void rmsnorm_avx512(const float *x, const float *w, uint32_t n, float eps, enum dtype out_type, void *out, uint32_t pad)
{
    __m512 s[4] = { _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps() };
    uint32_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (uint32_t j = 0; j < 4; j++) {
            const __m512 v = _mm512_loadu_ps(x + i + 16 * j);
            s[j] = _mm512_fmadd_ps(v, v, s[j]);
        }
    for (uint32_t j = 0; i < n; i += 16, j++) {
        const __m512 v = _mm512_maskz_loadu_ps(rest(n, i), x + i);
        s[j] = _mm512_fmadd_ps(v, v, s[j]);
    }
    const __m512 r = _mm512_set1_ps(1.0f / sqrtf(join(s) / (float)n + eps));
    for (i = 0; i < n; i += 16) {
        const __mmask16 live = rest(n, i);
        const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(live, x + i), r);
        put(out_type, out, i, live, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(live, w + i)));
    }
    row_pad(out_type, out, n, pad);
}

void add_avx512(float *x, const float *b, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 16) {
        const __mmask16 live = rest(n, i);
        const __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(live, x + i), _mm512_maskz_loadu_ps(live, b + i));
        _mm512_mask_storeu_ps(x + i, live, sum);
    }
}

void rope_avx512(float *x, uint32_t n_heads, uint32_t head_dim, const float *cos, const float *sin)
{
    const uint32_t half = head_dim / 2;
    for (uint32_t i = 0; i < half; i += 16) {
        const __mmask16 live = rest(half, i);
        const __m512 c = _mm512_maskz_loadu_ps(live, cos + i), s = _mm512_maskz_loadu_ps(live, sin + i);
        float *at = x + i;
        for (uint32_t h = 0; h < n_heads; h++, at += head_dim) {
            const __m512 a = _mm512_maskz_loadu_ps(live, at), b = _mm512_maskz_loadu_ps(live, at + half);
            _mm512_mask_storeu_ps(at, live, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
            _mm512_mask_storeu_ps(at + half, live, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
        }
    }
}

void silu_mul_avx512(const float *gate, const float *up, uint32_t n, enum dtype out_type, void *out, uint32_t pad)
{
    const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
    for (uint32_t i = 0; i < n; i += 16) {
        const __mmask16 live = rest(n, i);
        const __m512 g = _mm512_maskz_loadu_ps(live, gate + i);
        const __m512 e = exp_avx512(_mm512_or_ps(g, sign));
        const __mmask16 up_side = _mm512_cmp_ps_mask(g, _mm512_setzero_ps(), _CMP_GE_OQ);
        const __m512 num = _mm512_mask_mul_ps(g, (__mmask16)~up_side, g, e);
        const __m512 silu = _mm512_div_ps(num, _mm512_add_ps(one, e));
        put(out_type, out, i, live, _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(live, up + i)));
    }
    row_pad(out_type, out, n, pad);
}

void attn_finish_avx512(const float *o, float l, uint32_t head_dim, enum dtype out_type, void *out, bool *finite)
{
    enum { NAN_OR_INF = 0x99 };
    const __m512 by = _mm512_set1_ps(l);
    __mmask16 bad = 0;
    for (uint32_t i = 0; i < head_dim; i += 16) {
        const __mmask16 live = rest(head_dim, i);
        const __m512 v = _mm512_maskz_loadu_ps(live, o + i);
        bad |= _mm512_fpclass_ps_mask(v, NAN_OR_INF);
        put(out_type, out, i, live, _mm512_div_ps(v, by));
    }
    if (bad || !isfinite(l) || !(l > 0))
        *finite = false;
}

static float max_of(const float *x, uint32_t n)
{
    const __m512 none = _mm512_set1_ps(-INFINITY);
    __m512 m[4] = { none, none, none, none };
    uint32_t i = 0;
    /* max(x, m) is m if x is NaN */
    for (; i + 64 <= n; i += 64)
        for (uint32_t j = 0; j < 4; j++)
            m[j] = _mm512_max_ps(_mm512_loadu_ps(x + i + 16 * j), m[j]);
    for (; i < n; i += 16)
        m[0] = _mm512_max_ps(_mm512_mask_loadu_ps(none, rest(n, i), x + i), m[0]);
    return hmax_avx512(_mm512_max_ps(_mm512_max_ps(m[0], m[1]), _mm512_max_ps(m[2], m[3])));
}

void logit_max_sum_avx512(const float *x, uint32_t n, uint32_t *argmax_out, float *max_out, float *sum_out)
{
    const __m512 max = _mm512_set1_ps(max_of(x, n));
    __m512 s[4] = { _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps() };
    uint32_t at = 0, i = 0;
    for (uint32_t k = 0; k < n; k += 16) {
        const __mmask16 live = rest(n, k);
        const __mmask16 hit = _mm512_mask_cmp_ps_mask(live, _mm512_maskz_loadu_ps(live, x + k), max, _CMP_EQ_OQ);
        if (hit) {
            at = k + (uint32_t)__builtin_ctz(hit);
            break;
        }
    }
    for (; i + 64 <= n; i += 64)
        for (uint32_t j = 0; j < 4; j++)
            s[j] = _mm512_add_ps(s[j], exp_avx512(_mm512_sub_ps(_mm512_loadu_ps(x + i + 16 * j), max)));
    for (uint32_t j = 0; i < n; i += 16, j++) {
        const __mmask16 live = rest(n, i);
        const __m512 e = exp_avx512(_mm512_sub_ps(_mm512_maskz_loadu_ps(live, x + i), max));
        s[j] = _mm512_mask_add_ps(s[j], live, s[j], e);
    }
    *argmax_out = at;
    *max_out = _mm512_cvtss_f32(max);
    *sum_out = join(s);
}
