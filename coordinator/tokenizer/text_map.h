#ifndef LONGSPAN_COORDINATOR_TOKENIZER_TEXT_MAP_H
#define LONGSPAN_COORDINATOR_TOKENIZER_TEXT_MAP_H

/* A map from byte strings, borrowed, to ids; filled once, then read by any thread. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct text_map_slot {
    const uint8_t *text; /* NULL: free */
    uint32_t bytes;
    int32_t id;
};

struct text_map {
    struct text_map_slot *slots;
    size_t mask;
    uint64_t seed;
};

/* Room for n texts. */
enum status text_map_init(struct text_map *m, size_t n, uint64_t seed);
void text_map_deinit(struct text_map *m);
/* A text that is there already gets the new id. */
void text_map_put(struct text_map *m, const void *text, uint32_t bytes, int32_t id);

static inline uint64_t text_hash(const uint8_t *p, size_t bytes, uint64_t seed)
{
    uint64_t h = seed ^ bytes, word = 0;
    for (; bytes > 8; bytes -= 8, p += 8) {
        memcpy(&word, p, 8);
        h = (h ^ word) * 0xBF58476D1CE4E5B9u;
        h ^= h >> 29;
    }
    if (bytes >= 4) { /* two reads that overlap, instead of a copy of a length that is not known */
        uint32_t a, b;
        memcpy(&a, p, 4);
        memcpy(&b, p + bytes - 4, 4);
        word = (uint64_t)a << 32 | b;
    } else {
        word = bytes == 0 ? 0 : (uint64_t)p[0] << 16 | (uint64_t)p[bytes / 2] << 8 | p[bytes - 1];
    }
    h = (h ^ word) * 0x94D049BB133111EBu;
    return h ^ h >> 32;
}

/* -1: not there */
static inline int32_t text_map_get(const struct text_map *m, const uint8_t *text, size_t bytes)
{
    for (size_t i = text_hash(text, bytes, m->seed) & m->mask;; i = (i + 1) & m->mask) {
        const struct text_map_slot *s = &m->slots[i];
        if (!s->text)
            return -1;
        if (s->bytes == bytes && memcmp(s->text, text, bytes) == 0)
            return s->id;
    }
}

#ifdef __cplusplus
}
#endif
#endif
