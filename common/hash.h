#ifndef LONGSPAN_COMMON_HASH_H
#define LONGSPAN_COMMON_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The first 128 bits of a SHA-256. */
struct digest {
    uint8_t byte[16];
};

/* Incremental; never fails (an allocation failure inside the library aborts). */
struct hasher;
struct hasher *hasher_new(void);
void hasher_add(struct hasher *h, const void *data, size_t bytes);
void hasher_add_u64(struct hasher *h, uint64_t value);
/* A length and the bytes, so that ("ab","c") and ("a","bc") differ. */
void hasher_add_text(struct hasher *h, const char *text);
/* Frees h. */
struct digest hasher_end(struct hasher *h);

struct digest digest_of(const void *data, size_t bytes);
/* 32 lower-case hex digits and a NUL */
void digest_text(const struct digest *d, char text_out[33]);

/*
 * A checksum that runs at the speed of memory: it finds flipped bits, words in other places, and other lengths. Not against an adversary. The same number on
 * every machine. It is part of the wire form of messages, blocks and journals, whose versions change with it.
 *
 * With key[i] = mix64(i) there are eight lanes, a[k] = key[k] at first. The data, padded with zeros to a multiple of 64 bytes, is taken as stripes of eight
 * little-endian 64-bit words w[k]. Stripe s adds to a[k], with z = w[k] ^ key[s mod 16 + k], the product of z's two halves, and w[k ^ 1]. After every 16th
 * stripe that is all data, a[k] = (a[k] ^ a[k] >> 47 ^ key[16 + k]) * 0x9E3779B1. The sum is mix64(bytes + the sum over k of mix64(a[k] ^ key[8 + k])). All mod
 * 2^64. Source: the idea of lanes of 32-bit products is XXH3's (https://github.com/Cyan4973/xxHash); keys, order and numbers are not.
 */
uint64_t checksum64(const void *data, size_t bytes);
/* The same by the n-th of the ways that this machine has to compute it, best first. false: it has no n-th. */
bool checksum64_variant(int n, const void *data, size_t bytes, uint64_t *sum_out);

#ifdef __cplusplus
}
#endif
#endif
