#include <stdlib.h>

#include "kvstore/pool.h"

void kv_pool_name(struct kv_pool *pool, kv_handle handle, uint32_t position, const struct digest *id)
{
    const uint32_t slot = kv_pool_find(pool, handle);
    if (slot == UINT32_MAX)
        return;
    if (!pool->slots[slot].named)
        pool->slots[slot].marked = false;
    pool->slots[slot].named = true;
    pool->slots[slot].position = position;
    pool->slots[slot].id = *id;
}

bool kv_pool_name_of(const struct kv_pool *pool, kv_handle handle, struct kv_named *named_out)
{
    const uint32_t slot = kv_pool_find(pool, handle);
    if (slot == UINT32_MAX || !pool->slots[slot].named)
        return false;
    *named_out = (struct kv_named){ handle, pool->slots[slot].position, pool->slots[slot].id };
    return true;
}

bool kv_pool_unmarked(const struct kv_pool *pool, uint32_t n, uint32_t *cursor, struct kv_named *named_out)
{
    for (uint32_t i = 0; i < n && i < pool->n_blocks; i++) {
        *cursor = *cursor < pool->n_blocks ? *cursor : 0;
        const struct kv_pool_slot *s = &pool->slots[*cursor];
        if (s->handle && s->named && !s->marked) {
            *named_out = (struct kv_named){ s->handle, s->position, s->id };
            return true;
        }
        ++*cursor;
    }
    return false;
}

void kv_pool_mark(struct kv_pool *pool, kv_handle handle)
{
    const uint32_t slot = kv_pool_find(pool, handle);
    if (slot != UINT32_MAX)
        pool->slots[slot].marked = true;
}

/* The deepest first; blocks of one depth in any fixed order. */
static int by_depth(const void *a, const void *b)
{
    const struct kv_named *x = a, *y = b;
    if (x->position != y->position)
        return x->position > y->position ? -1 : 1;
    return x->handle < y->handle ? -1 : x->handle > y->handle;
}

enum status kv_pool_named(const struct kv_pool *pool, struct kv_named **blocks_out, uint32_t *n_out)
{
    struct kv_named *blocks = malloc((pool->n_blocks + 1) * sizeof *blocks);
    uint32_t n = 0;
    if (!blocks)
        return ST_NO_MEMORY;
    for (uint32_t i = 0; i < pool->n_blocks; i++) {
        const struct kv_pool_slot *s = &pool->slots[i];
        if (s->handle && s->named)
            blocks[n++] = (struct kv_named){ s->handle, s->position, s->id };
    }
    qsort(blocks, n, sizeof *blocks, by_depth);
    *blocks_out = blocks;
    *n_out = n;
    return ST_OK;
}

enum status kv_pool_nameless(const struct kv_pool *pool, kv_handle **handles_out, uint32_t *n_out)
{
    kv_handle *handles = malloc((pool->n_blocks + 1) * sizeof *handles);
    uint32_t n = 0;
    if (!handles)
        return ST_NO_MEMORY;
    for (uint32_t i = 0; i < pool->n_blocks; i++)
        if (pool->slots[i].handle && !pool->slots[i].named)
            handles[n++] = pool->slots[i].handle;
    *handles_out = handles;
    *n_out = n;
    return ST_OK;
}
