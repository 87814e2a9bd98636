#include "coordinator/tokenizer/text_map.h"

#include <stdlib.h>

enum status text_map_init(struct text_map *m, size_t n, uint64_t seed)
{
    size_t cap = 16;
    while (cap / 2 < n) { /* half full at most, so that misses end soon */
        if (cap > SIZE_MAX / 4 / sizeof(struct text_map_slot))
            return ST_NO_MEMORY;
        cap *= 2;
    }
    struct text_map_slot *slots = calloc(cap, sizeof *slots);
    if (!slots)
        return ST_NO_MEMORY;
    *m = (struct text_map){ .slots = slots, .mask = cap - 1, .seed = seed };
    return ST_OK;
}

void text_map_deinit(struct text_map *m)
{
    free(m->slots);
    m->slots = NULL;
}

void text_map_put(struct text_map *m, const void *text, uint32_t bytes, int32_t id)
{
    static const uint8_t nothing[1];
    const uint8_t *p = bytes > 0 ? text : nothing;
    size_t i = text_hash(p, bytes, m->seed) & m->mask;
    while (m->slots[i].text && !(m->slots[i].bytes == bytes && memcmp(m->slots[i].text, p, bytes) == 0))
        i = (i + 1) & m->mask;
    m->slots[i] = (struct text_map_slot){ .text = p, .bytes = bytes, .id = id };
}
