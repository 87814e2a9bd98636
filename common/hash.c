#include "common/hash.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "common/rng.h"

struct hasher {
    EVP_MD_CTX *ctx;
};

struct hasher *hasher_new(void)
{
    struct hasher *h = malloc(sizeof *h);
    if (!h || !(h->ctx = EVP_MD_CTX_new()) || EVP_DigestInit_ex(h->ctx, EVP_sha256(), NULL) != 1)
        abort();
    return h;
}

void hasher_add(struct hasher *h, const void *data, size_t bytes)
{
    if (bytes && EVP_DigestUpdate(h->ctx, data, bytes) != 1)
        abort();
}

void hasher_add_u64(struct hasher *h, uint64_t value)
{
    hasher_add(h, &value, sizeof value);
}

void hasher_add_text(struct hasher *h, const char *text)
{
    hasher_add_u64(h, strlen(text));
    hasher_add(h, text, strlen(text));
}

struct digest hasher_end(struct hasher *h)
{
    uint8_t full[EVP_MAX_MD_SIZE];
    struct digest d;
    if (EVP_DigestFinal_ex(h->ctx, full, NULL) != 1)
        abort();
    memcpy(d.byte, full, sizeof d.byte);
    EVP_MD_CTX_free(h->ctx);
    free(h);
    return d;
}

struct digest digest_of(const void *data, size_t bytes)
{
    struct hasher *h = hasher_new();
    hasher_add(h, data, bytes);
    return hasher_end(h);
}

void digest_text(const struct digest *d, char text_out[33])
{
    for (int i = 0; i < 16; i++)
        snprintf(text_out + 2 * i, 3, "%02x", d->byte[i]);
}

/* ---- checksum ---- */

enum { LANES = 8, STRIPE = 8 * LANES, BLOCK_STRIPES = 16, BLOCK = BLOCK_STRIPES * STRIPE };
#define SCRAMBLE 0x9E3779B1u

/* key[i] = mix64(i) */
static const uint64_t key[BLOCK_STRIPES + LANES] = {
    0xE220A8397B1DCDAFu, 0x910A2DEC89025CC1u, 0x975835DE1C9756CEu, 0x1D0B14E4DB018FEDu, 0x6E73E372E2338ACAu,
    0x63033B0CA389C35Au, 0xBD64A5D9ADEFE000u, 0x63CBE1E459320DD7u, 0x9E5651B0EF953636u, 0xAEAF52FEBE706064u,
    0x088712BE8A582FCAu, 0x50F5647D2380309Du, 0x943FF9FC99DE8F03u, 0xC4CA37B7F8AD8AFFu, 0x6AA9D61435DBE63Eu,
    0x875B9307ABF55005u, 0x5DE186DCBA779207u, 0x808475F02EE37363u, 0x1120B3D00955F032u, 0xBC4075F2EF431A44u,
    0x362259904816818Cu, 0x06CA0A95B7E825C7u, 0xC80DE0F9D4D60E0Au, 0xE8D7DA001B0181D6u,
};

/*
 * The lanes of some bytes. Plain C is the definition, and what machines of either byte order run; the others make the same additions and products,
 * mod 2^64, in vectors.
 */
typedef void lanes_fn(const uint8_t *p, size_t bytes, uint64_t a[LANES]);

static uint64_t load_le64(const uint8_t *p)
{
    uint64_t w;
    memcpy(&w, p, sizeof w);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    w = __builtin_bswap64(w);
#endif
    return w;
}

static void stripe_c(uint64_t a[restrict LANES], const uint8_t *restrict p, size_t s)
{
    for (int k = 0; k < LANES; k++) {
        const uint64_t w = load_le64(p + 8 * k), z = w ^ key[s + (size_t)k];
        a[k] += (z & UINT32_MAX) * (z >> 32);
        a[k ^ 1] += w;
    }
}

static void lanes_c(const uint8_t *p, size_t bytes, uint64_t a[LANES])
{
    size_t s = 0;
    memcpy(a, key, LANES * sizeof *a);
    for (; bytes >= STRIPE; bytes -= STRIPE, p += STRIPE) {
        stripe_c(a, p, s++);
        if (s < BLOCK_STRIPES)
            continue;
        for (int k = 0; k < LANES; k++)
            a[k] = (a[k] ^ a[k] >> 47 ^ key[BLOCK_STRIPES + k]) * SCRAMBLE;
        s = 0;
    }
    uint8_t last[STRIPE] = { 0 };
    if (bytes)
        stripe_c(a, memcpy(last, p, bytes), s);
}

#ifdef __x86_64__
#define AVX2   __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw")))

AVX2 static inline __m256i stripe_avx2(__m256i a, const uint8_t *p, const uint64_t *keys)
{
    const __m256i w = _mm256_loadu_si256((const __m256i *)p),
                  z = _mm256_xor_si256(w, _mm256_loadu_si256((const __m256i *)keys));
    a = _mm256_add_epi64(a, _mm256_shuffle_epi32(w, 0x4E));
    return _mm256_add_epi64(a, _mm256_mul_epu32(z, _mm256_shuffle_epi32(z, 0x31)));
}

AVX2 static inline __m256i scramble_avx2(__m256i a, const uint64_t *keys)
{
    const __m256i by = _mm256_set1_epi64x(SCRAMBLE);
    a = _mm256_xor_si256(a, _mm256_srli_epi64(a, 47));
    a = _mm256_xor_si256(a, _mm256_loadu_si256((const __m256i *)keys));
    const __m256i high = _mm256_slli_epi64(_mm256_mul_epu32(_mm256_srli_epi64(a, 32), by), 32);
    return _mm256_add_epi64(_mm256_mul_epu32(a, by), high);
}

AVX2 static void lanes_avx2(const uint8_t *p, size_t bytes, uint64_t a[LANES])
{
    __m256i a0 = _mm256_loadu_si256((const __m256i *)key), a1 = _mm256_loadu_si256((const __m256i *)(key + 4));
    for (; bytes >= BLOCK; bytes -= BLOCK, p += BLOCK) {
#pragma GCC unroll 16
        for (int s = 0; s < BLOCK_STRIPES; s++) {
            a0 = stripe_avx2(a0, p + s * STRIPE, key + s);
            a1 = stripe_avx2(a1, p + s * STRIPE + 32, key + s + 4);
        }
        a0 = scramble_avx2(a0, key + BLOCK_STRIPES);
        a1 = scramble_avx2(a1, key + BLOCK_STRIPES + 4);
    }
    const uint64_t *keys = key;
    for (; bytes >= STRIPE; bytes -= STRIPE, p += STRIPE, keys++) {
        a0 = stripe_avx2(a0, p, keys);
        a1 = stripe_avx2(a1, p + 32, keys + 4);
    }
    if (bytes) {
        uint8_t last[STRIPE] = { 0 };
        memcpy(last, p, bytes);
        a0 = stripe_avx2(a0, last, keys);
        a1 = stripe_avx2(a1, last + 32, keys + 4);
    }
    _mm256_storeu_si256((__m256i *)a, a0);
    _mm256_storeu_si256((__m256i *)(a + 4), a1);
}

AVX512 static inline __m512i stripe_avx512(__m512i a, __m512i w, const uint64_t *keys)
{
    const __m512i z = _mm512_xor_si512(w, _mm512_loadu_si512(keys));
    a = _mm512_add_epi64(a, _mm512_shuffle_epi32(w, 0x4E));
    return _mm512_add_epi64(a, _mm512_mul_epu32(z, _mm512_srli_epi64(z, 32)));
}

AVX512 static inline __m512i scramble_avx512(__m512i a)
{
    const __m512i by = _mm512_set1_epi64(SCRAMBLE);
    a = _mm512_xor_si512(a, _mm512_srli_epi64(a, 47));
    a = _mm512_xor_si512(a, _mm512_loadu_si512(key + BLOCK_STRIPES));
    const __m512i high = _mm512_slli_epi64(_mm512_mul_epu32(_mm512_srli_epi64(a, 32), by), 32);
    return _mm512_add_epi64(_mm512_mul_epu32(a, by), high);
}

AVX512 static void lanes_avx512(const uint8_t *p, size_t bytes, uint64_t a[LANES])
{
    __m512i sum = _mm512_loadu_si512(key);
    for (; bytes >= BLOCK; bytes -= BLOCK, p += BLOCK) {
#pragma GCC unroll 16
        for (int s = 0; s < BLOCK_STRIPES; s++)
            sum = stripe_avx512(sum, _mm512_loadu_si512(p + s * STRIPE), key + s);
        sum = scramble_avx512(sum);
    }
    const uint64_t *keys = key;
    for (; bytes >= STRIPE; bytes -= STRIPE, p += STRIPE)
        sum = stripe_avx512(sum, _mm512_loadu_si512(p), keys++);
    if (bytes)
        sum = stripe_avx512(sum, _mm512_maskz_loadu_epi8(((uint64_t)1 << bytes) - 1, p), keys);
    _mm512_storeu_si512(a, sum);
}
#endif

/* The n-th that this machine can run, best first; NULL: there is none. */
static lanes_fn *lanes_find(int n)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && !n--)
        return lanes_avx512;
    if (__builtin_cpu_supports("avx2") && !n--)
        return lanes_avx2;
#endif
    return n ? NULL : lanes_c;
}

static uint64_t checksum_by(lanes_fn *lanes, const void *data, size_t bytes)
{
    uint64_t a[LANES], sum = bytes;
    lanes(data, bytes, a);
    for (int k = 0; k < LANES; k++)
        sum += mix64(a[k] ^ key[LANES + k]);
    return mix64(sum);
}

uint64_t checksum64(const void *data, size_t bytes)
{
    return checksum_by(lanes_find(0), data, bytes);
}

bool checksum64_variant(int n, const void *data, size_t bytes, uint64_t *sum_out)
{
    lanes_fn *lanes = lanes_find(n);
    if (lanes)
        *sum_out = checksum_by(lanes, data, bytes);
    return lanes;
}
