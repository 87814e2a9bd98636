#include "worker/share.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"

enum { BUCKETS_MIN = 256 };

void share_reset(struct share *s, uint32_t leaf_blocks)
{
    if (s->leaf_blocks != leaf_blocks) {
        free(s->slots);
        s->slots = NULL;
        s->slots_room = 0;
    }
    s->leaf_blocks = leaf_blocks;
    s->n = 0;
    if (s->buckets)
        memset(s->buckets, 0xff, s->n_buckets * sizeof *s->buckets);
}

uint32_t *share_next(struct share *s)
{
    if (s->n >= s->slots_room) {
        const uint32_t room = s->slots_room ? 2 * s->slots_room : 64;
        uint32_t *slots = realloc(s->slots, (size_t)room * s->leaf_blocks * sizeof *slots);
        if (!slots)
            return NULL;
        s->slots = slots;
        s->slots_room = room;
    }
    return s->slots + (size_t)s->n * s->leaf_blocks;
}

/* By the last block: that of a prefix differs where anything before it does, but for copies. */
static uint32_t bucket_of(const struct share *s, uint32_t i)
{
    return (uint32_t)mix64(s->slots[(size_t)(i + 1) * s->leaf_blocks - 1]) & (s->n_buckets - 1);
}

static bool rehash(struct share *s)
{
    const uint32_t n = s->n_buckets ? 2 * s->n_buckets : BUCKETS_MIN;
    uint32_t *buckets = malloc(n * sizeof *buckets);
    if (!buckets)
        return false;
    free(s->buckets);
    s->buckets = buckets;
    s->n_buckets = n;
    memset(buckets, 0xff, n * sizeof *buckets);
    for (uint32_t i = 0; i < s->n; i++) {
        uint32_t *at = &buckets[bucket_of(s, i)];
        s->leaves[i].next = *at;
        *at = i;
    }
    return true;
}

uint32_t share_add(struct share *s, uint32_t kind)
{
    const size_t bytes = s->leaf_blocks * sizeof *s->slots;
    if (s->n >= s->n_buckets && !rehash(s))
        return SHARE_NONE;
    uint32_t *at = &s->buckets[bucket_of(s, s->n)];
    for (uint32_t i = *at; i != SHARE_NONE; i = s->leaves[i].next) {
        if (s->leaves[i].kind == kind &&
            !memcmp(s->slots + (size_t)i * s->leaf_blocks, s->slots + (size_t)s->n * s->leaf_blocks, bytes)) {
            s->leaves[i].readers++;
            return i;
        }
    }
    if (s->n == s->room) {
        const uint32_t room = s->room ? 2 * s->room : 64;
        struct share_leaf *leaves = realloc(s->leaves, room * sizeof *leaves);
        if (!leaves)
            return SHARE_NONE;
        s->leaves = leaves;
        s->room = room;
    }
    s->leaves[s->n] = (struct share_leaf){ .readers = 1, .next = *at, .leaf = SHARE_NONE, .kind = kind };
    *at = s->n;
    return s->n++;
}

void share_free(struct share *s)
{
    free(s->leaves);
    free(s->slots);
    free(s->buckets);
    *s = (struct share){ 0 };
}
