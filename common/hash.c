#include "common/hash.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/*
 * The words' part of the sum, in vectors: mixing the index takes two 64-bit products a word and the sum a third, which is all the time that a
 * checksum takes (word by word 1.5 GB/s, with AVX-512 7). One function an instruction set, its vectors as wide as the set's.
 */
#define WORDS_SUM(name, attributes, vector_bytes)                                                                      \
    attributes static uint64_t name(const uint8_t *p, size_t words)                                                    \
    {                                                                                                                  \
        typedef uint64_t lanes __attribute__((vector_size(vector_bytes)));                                             \
        typedef uint32_t half_lanes __attribute__((vector_size(vector_bytes / 2)));                                    \
        enum { LANES = vector_bytes / 8 };                                                                             \
        lanes sum0 = { 0 }, sum1 = { 0 }, index;                                                                       \
        for (int k = 0; k < LANES; k++)                                                                                \
            index[k] = (uint64_t)k;                                                                                    \
        size_t i = 0;                                                                                                  \
        for (; i + 2 * LANES <= words; i += 2 * LANES) {                                                               \
            half_lanes w0, w1;                                                                                         \
            memcpy(&w0, p + 4 * i, sizeof w0);                                                                         \
            memcpy(&w1, p + 4 * i + sizeof w0, sizeof w1);                                                             \
            lanes x0 = index + 0x9E3779B97F4A7C15u, x1 = x0 + LANES; /* mix64 */                                       \
            x0 = (x0 ^ (x0 >> 30)) * 0xBF58476D1CE4E5B9u;                                                              \
            x1 = (x1 ^ (x1 >> 30)) * 0xBF58476D1CE4E5B9u;                                                              \
            x0 = (x0 ^ (x0 >> 27)) * 0x94D049BB133111EBu;                                                              \
            x1 = (x1 ^ (x1 >> 27)) * 0x94D049BB133111EBu;                                                              \
            x0 = (x0 ^ (x0 >> 31)) | 1;                                                                                \
            x1 = (x1 ^ (x1 >> 31)) | 1;                                                                                \
            sum0 += (__builtin_convertvector(w0, lanes) + 1) * x0;                                                     \
            sum1 += (__builtin_convertvector(w1, lanes) + 1) * x1;                                                     \
            index += 2 * LANES;                                                                                        \
        }                                                                                                              \
        uint64_t all = 0;                                                                                              \
        for (int k = 0; k < LANES; k++)                                                                                \
            all += sum0[k] + sum1[k];                                                                                  \
        for (; i < words; i++) {                                                                                       \
            uint32_t w;                                                                                                \
            memcpy(&w, p + 4 * i, 4);                                                                                  \
            all += ((uint64_t)w + 1) * (mix64(i) | 1);                                                                 \
        }                                                                                                              \
        return all;                                                                                                    \
    }

#ifdef __x86_64__
WORDS_SUM(words_sum_avx512, __attribute__((target("avx512f,avx512dq"))), 64)
WORDS_SUM(words_sum_avx2, __attribute__((target("avx2"))), 32)
#endif
WORDS_SUM(words_sum_any, , 16)

static uint64_t words_sum(const uint8_t *p, size_t words)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
        return words_sum_avx512(p, words);
    if (__builtin_cpu_supports("avx2"))
        return words_sum_avx2(p, words);
#endif
    return words_sum_any(p, words);
}

uint64_t checksum64(const void *data, size_t bytes)
{
    const uint8_t *p = data;
    const size_t words = bytes / 4;
    uint64_t sum = words_sum(p, words);
    uint32_t tail = 0;
    if (bytes % 4)
        memcpy(&tail, p + 4 * words, bytes % 4);
    sum += ((uint64_t)tail + 1) * (mix64(words) | 1);
    return sum + ((uint64_t)bytes + 1) * (mix64(words + 1) | 1);
}
