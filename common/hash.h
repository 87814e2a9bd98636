#ifndef LONGSPAN_COMMON_HASH_H
#define LONGSPAN_COMMON_HASH_H

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
 * Sum over i of (word_i + 1) * (mix64(i) | 1) mod 2^64, over 32-bit little-endian words; the tail is padded with zero bytes and the length
 * is added as one more word. Words may be summed in any order, so a GPU can compute the same in parallel. Not against an adversary: it
 * finds flipped bits.
 */
uint64_t checksum64(const void *data, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
