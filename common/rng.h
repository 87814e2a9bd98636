#ifndef LONGSPAN_COMMON_RNG_H
#define LONGSPAN_COMMON_RNG_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Mixes 64 bits well (the finaliser of SplitMix64). Bijective. */
static inline uint64_t mix64(uint64_t x)
{
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* Counter-based: 64 random bits that are a function of (seed, a, b) and nothing else, so that a replay draws the same numbers. */
static inline uint64_t rng_at(uint64_t seed, uint64_t a, uint64_t b)
{
    return mix64(mix64(mix64(seed) ^ a) ^ b);
}

/* Uniform in the open interval (0, 1), 53 bits: never 0, never 1. */
static inline double rng_unit(uint64_t bits)
{
    return ((double)(bits >> 11) + 0.5) * 0x1p-53;
}

/* A stream for tests, shuffles and back-off. */
struct rng {
    uint64_t seed, n;
};

static inline uint64_t rng_next(struct rng *r)
{
    return rng_at(r->seed, r->n++, 0);
}

/* 0 .. n-1; n > 0 */
static inline uint32_t rng_below(struct rng *r, uint32_t n)
{
    return (uint32_t)(((rng_next(r) >> 32) * n) >> 32);
}

#ifdef __cplusplus
}
#endif
#endif
