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

uint64_t checksum64(const void *data, size_t bytes)
{
    const uint8_t *p = data;
    const size_t words = bytes / 4;
    uint64_t sum = 0;
    for (size_t i = 0; i < words; i++) {
        uint32_t w;
        memcpy(&w, p + 4 * i, 4);
        sum += ((uint64_t)w + 1) * (mix64(i) | 1);
    }
    uint32_t tail = 0;
    if (bytes % 4)
        memcpy(&tail, p + 4 * words, bytes % 4);
    sum += ((uint64_t)tail + 1) * (mix64(words) | 1);
    return sum + ((uint64_t)bytes + 1) * (mix64(words + 1) | 1);
}
