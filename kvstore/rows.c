#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "kvstore/kvstore.h"
#include "kvstore/pool.h"

static enum status rows_memory(struct kv_rows *r, size_t bytes)
{
    if (!r->ops)
        return kv_memory_map(&r->memory, bytes);
    r->memory.at = r->ops->alloc(bytes);
    return r->memory.at ? ST_OK : ST_NO_MEMORY;
}

enum status kv_pool_rows_new(struct kv_pool *pool, size_t part_bytes, uint32_t n, struct error *err)
{
    struct kv_layout layout = pool->layout;
    struct kv_rows *r = &pool->rows;
    size_t bytes;
    assert(!r->n);
    layout.part_bytes = part_bytes;
    if (!n || n > 1u << 30 || part_bytes % 64 || !kv_layout_block_bytes(&layout, &r->block_bytes))
        return error_set(err, ST_INVALID, "open rows: %u blocks of parts of %zu bytes", n, part_bytes);
    r->part_bytes = part_bytes;
    r->layer_bytes = 2 * part_bytes * layout.n_kv_heads;
    r->free = calloc(n, sizeof *r->free);
    r->dirty = calloc(n, sizeof *r->dirty);
    r->ops = pool->ops;
    if (!r->free || !r->dirty || !size_mul(r->block_bytes, n, &bytes) || rows_memory(r, bytes)) {
        kv_rows_deinit(r);
        return error_set(err, ST_NO_MEMORY, "open rows: no memory for %u blocks of %zu bytes", n, r->block_bytes);
    }
    for (uint32_t i = 0; i < n; i++)
        r->free[i] = n - 1 - i;
    r->n = r->n_free = n;
    return ST_OK;
}

void kv_rows_deinit(struct kv_rows *r)
{
    if (r->ops && r->memory.at)
        r->ops->free(r->memory.at);
    kv_memory_unmap(&r->memory);
    free(r->free);
    free(r->dirty);
    r->free = NULL;
    r->dirty = NULL;
    r->n = r->n_free = 0;
}

uint32_t kv_pool_rows(const struct kv_pool *pool, uint32_t slot)
{
    return pool->slots[slot].rows - 1;
}

enum status kv_pool_rows_take(struct kv_pool *pool, uint32_t slot, uint32_t *place_out)
{
    struct kv_rows *r = &pool->rows;
    struct kv_pool_slot *s = &pool->slots[slot];
    if (!s->rows) {
        if (!r->n_free)
            return ST_BUSY;
        const uint32_t place = r->free[--r->n_free];
        if (r->dirty[place] && !r->ops)
            memset(r->memory.at + place * r->block_bytes, 0, r->block_bytes);
        r->dirty[place] = true;
        s->rows = place + 1;
    }
    *place_out = s->rows - 1;
    return ST_OK;
}

void kv_pool_rows_drop(struct kv_pool *pool, uint32_t slot)
{
    struct kv_pool_slot *s = &pool->slots[slot];
    if (!s->rows)
        return;
    pool->rows.free[pool->rows.n_free++] = s->rows - 1;
    s->rows = 0;
}

void *kv_pool_rows_part(const struct kv_pool *pool, uint32_t place, uint32_t layer, uint32_t kv_head)
{
    const struct kv_rows *r = &pool->rows;
    return r->memory.at + place * r->block_bytes + layer * r->layer_bytes + kv_head * 2 * r->part_bytes;
}
