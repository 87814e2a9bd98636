#include "worker/open.h"

#include <assert.h>
#include <stdlib.h>

enum status open_blocks_init(struct open_blocks *o, struct kv_pool *pool, size_t part_bytes, uint32_t n_max,
                             struct error *err)
{
    *o = (struct open_blocks){ .apart = part_bytes > 0, .n_max = n_max };
    if (!o->apart)
        return ST_OK;
    o->blocks = calloc(n_max ? n_max : 1, sizeof *o->blocks);
    return o->blocks ? kv_pool_rows_new(pool, part_bytes, n_max, err)
                     : error_set(err, ST_NO_MEMORY, "no memory for %u open blocks", n_max);
}

void open_blocks_deinit(struct open_blocks *o)
{
    free(o->blocks);
    *o = (struct open_blocks){ 0 };
}

void open_blocks_step(struct open_blocks *o, struct kv_pool *pool, struct sequences *all)
{
    o->n_scratch = 0;
    for (uint32_t i = 0; i < o->n;) {
        const struct open_block *b = &o->blocks[i];
        const struct sequence *s = sequence_find(all, b->seq);
        const uint32_t slot = kv_pool_find(pool, b->handle);
        if (s && slot != UINT32_MAX && s->committed / KV_BLOCK <= b->block) {
            i++;
            continue;
        }
        if (slot != UINT32_MAX)
            kv_pool_rows_drop(pool, slot);
        o->blocks[i] = o->blocks[--o->n];
    }
}

enum status open_blocks_take(struct open_blocks *o, struct kv_pool *pool, const struct sequence *s, uint32_t block,
                             uint32_t slot, uint32_t pos, uint32_t end, uint32_t *open_out)
{
    if (!o->apart) {
        *open_out = STEP_IN_PLACE;
        return ST_OK;
    }
    if (kv_pool_rows(pool, slot) == UINT32_MAX) {
        if (pos <= block * KV_BLOCK && end >= (block + 1) * KV_BLOCK) {
            *open_out = STEP_SCRATCH + o->n_scratch++;
            return ST_OK;
        }
        if (o->n == o->n_max)
            return ST_BUSY;
        o->blocks[o->n++] = (struct open_block){ s->table[block], s->id, block };
    }
    const enum status st = kv_pool_rows_take(pool, slot, open_out);
    assert(st == ST_OK); /* each place of the pool is one of o->blocks */
    return st;
}
