#include "kvstore/kvstore.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/bytes.h"
#include "common/rng.h"
#include "kvstore/pool.h"

enum { HUGE_PAGE = 2 << 20 };

bool kv_layout_block_bytes(const struct kv_layout *layout, size_t *bytes_out)
{
    size_t n;
    if (!layout->n_layers || !layout->n_kv_heads || !layout->part_bytes)
        return false;
    if (!size_mul(layout->n_layers, layout->n_kv_heads, &n) || !size_mul(n, 2, &n) ||
        !size_mul(n, layout->part_bytes, &n))
        return false;
    *bytes_out = n;
    return true;
}

enum status kv_memory_map(struct kv_memory *m, size_t bytes)
{
    /* a huge page more, so that the payloads can start on one */
    if (!size_add(bytes, HUGE_PAGE, &m->map_bytes))
        return ST_NO_MEMORY;
    void *map = mmap(NULL, m->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return ST_NO_MEMORY;
    m->map = map;
    m->at = (uint8_t *)(((uintptr_t)map + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    (void)madvise(m->at, bytes, MADV_HUGEPAGE); /* a system without them is slower, not wrong */
    (void)madvise(m->at, bytes, MADV_DONTDUMP);
    return ST_OK;
}

void kv_memory_unmap(struct kv_memory *m)
{
    if (m->map)
        munmap(m->map, m->map_bytes);
    *m = (struct kv_memory){ 0 };
}

static enum status pool_arrays(struct kv_pool *pool)
{
    uint32_t table = 16;
    while (table < 2 * pool->n_blocks)
        table *= 2;
    size_t n_sums;
    if (!size_mul(pool->n_blocks, pool->layout.n_layers, &n_sums))
        return ST_NO_MEMORY;
    pool->slots = calloc(pool->n_blocks, sizeof *pool->slots);
    pool->sums = calloc(n_sums, sizeof *pool->sums);
    pool->free_slots = calloc(pool->n_blocks, sizeof *pool->free_slots);
    pool->table = calloc(table, sizeof *pool->table);
    pool->table_mask = table - 1;
    return pool->slots && pool->sums && pool->free_slots && pool->table ? ST_OK : ST_NO_MEMORY;
}

enum status kv_pool_new(const struct kv_layout *layout, uint32_t n_blocks, struct kv_pool **pool_out, struct error *err)
{
    return kv_pool_new_in(layout, n_blocks, NULL, pool_out, err);
}

static enum status pool_memory(struct kv_pool *pool, size_t bytes)
{
    if (!pool->ops)
        return kv_memory_map(&pool->memory, bytes);
    pool->layer = malloc(pool->layer_bytes);
    pool->memory.at = pool->ops->alloc(bytes);
    return pool->layer && pool->memory.at ? ST_OK : ST_NO_MEMORY;
}

enum status kv_pool_new_in(const struct kv_layout *layout, uint32_t n_blocks, const struct kv_memory_ops *memory,
                           struct kv_pool **pool_out, struct error *err)
{
    size_t block_bytes, bytes;
    if (!kv_layout_block_bytes(layout, &block_bytes))
        return error_set(err, ST_INVALID, "kv layout: %u layers of %u heads of %zu bytes", layout->n_layers,
                         layout->n_kv_heads, layout->part_bytes);
    if (layout->part_bytes % 64)
        return error_set(err, ST_INVALID, "kv layout: part_bytes %zu is not a multiple of 64", layout->part_bytes);
    if (!n_blocks || n_blocks > 1u << 30)
        return error_set(err, ST_INVALID, "kv pool: %u blocks", n_blocks);
    if (!size_mul(block_bytes, n_blocks, &bytes))
        return error_set(err, ST_NO_MEMORY, "kv pool: %u blocks of %zu bytes", n_blocks, block_bytes);
    struct kv_pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return error_set(err, ST_NO_MEMORY, "kv pool: out of memory");
    pool->layout = *layout;
    pool->ops = memory;
    pool->n_blocks = n_blocks;
    pool->part_bytes = layout->part_bytes;
    pool->layer_bytes = 2 * layout->part_bytes * layout->n_kv_heads;
    pool->block_bytes = block_bytes;
    enum status st = pool_arrays(pool);
    if (!st)
        st = pool_memory(pool, bytes);
    if (st) {
        kv_pool_free(pool);
        return error_set(err, st, "kv pool: no memory for %u blocks of %zu bytes", n_blocks, block_bytes);
    }
    /* slot 0 is on top, so that memory is touched from its start */
    for (uint32_t i = 0; i < n_blocks; i++)
        pool->free_slots[i] = n_blocks - 1 - i;
    pool->n_free = n_blocks;
    *pool_out = pool;
    return ST_OK;
}

void kv_pool_free(struct kv_pool *pool)
{
    if (!pool)
        return;
    for (uint32_t i = 0; pool->slots && i < pool->n_blocks; i++)
        free(pool->slots[i].copy);
    if (pool->ops && pool->memory.at)
        pool->ops->free(pool->memory.at);
    free(pool->layer);
    kv_memory_unmap(&pool->memory);
    kv_rows_deinit(&pool->rows);
    kv_spills_deinit(&pool->spills);
    free(pool->slots);
    free(pool->sums);
    free(pool->free_slots);
    free(pool->table);
    free(pool);
}

/* Where the handle's entry is, or the empty place where it would go. */
static uint32_t table_at(const struct kv_pool *pool, kv_handle handle)
{
    uint32_t i = (uint32_t)mix64(handle) & pool->table_mask;
    while (pool->table[i] && pool->slots[pool->table[i] - 1].handle != handle)
        i = (i + 1) & pool->table_mask;
    return i;
}

static void table_remove(struct kv_pool *pool, kv_handle handle)
{
    uint32_t hole = table_at(pool, handle);
    /* moves later entries of the run back, so that no tombstones are needed */
    for (uint32_t i = (hole + 1) & pool->table_mask; pool->table[i]; i = (i + 1) & pool->table_mask) {
        const uint32_t wanted = (uint32_t)mix64(pool->slots[pool->table[i] - 1].handle) & pool->table_mask;
        if (((i - wanted) & pool->table_mask) < ((i - hole) & pool->table_mask))
            continue;
        pool->table[hole] = pool->table[i];
        hole = i;
    }
    pool->table[hole] = 0;
}

uint32_t kv_pool_find(const struct kv_pool *pool, kv_handle handle)
{
    return handle ? pool->table[table_at(pool, handle)] - 1 : UINT32_MAX;
}

uint32_t kv_pool_find_near(const struct kv_pool *pool, kv_handle handle, uint32_t hint)
{
    return handle && hint < pool->n_blocks && pool->slots[hint].handle == handle ? hint : kv_pool_find(pool, handle);
}

enum status kv_pool_take(struct kv_pool *pool, kv_handle handle, uint32_t *slot_out, bool *fresh_out)
{
    if (!handle)
        return ST_INVALID;
    if (!pool->n_free)
        return ST_BUSY;
    const uint32_t slot = pool->free_slots[--pool->n_free];
    struct kv_pool_slot *s = &pool->slots[slot];
    const uint32_t at = table_at(pool, handle);
    assert(!pool->table[at]);
    *fresh_out = !s->dirty;
    *s = (struct kv_pool_slot){ .handle = handle, .dirty = true };
    pool->table[at] = slot + 1;
    atomic_fetch_add_explicit(&pool->used, 1, memory_order_relaxed);
    *slot_out = slot;
    return ST_OK;
}

enum status kv_pool_open(struct kv_pool *pool, kv_handle handle, uint32_t *slot_out)
{
    uint32_t slot = kv_pool_find(pool, handle);
    if (slot != UINT32_MAX) {
        pool->slots[slot].summed = pool->slots[slot].named = false; /* who opens it may write it */
        if (!pool->slots[slot].pins) {
            free(pool->slots[slot].copy);
            pool->slots[slot].copy = NULL;
        }
        *slot_out = slot;
        return ST_OK;
    }
    bool fresh;
    const enum status st = kv_pool_take(pool, handle, &slot, &fresh);
    if (st)
        return st;
    if (!fresh && !pool->rows.n && !pool->ops) /* with open rows it is written whole, by sealing */
        memset(kv_pool_payload(pool, slot), 0, pool->block_bytes);
    *slot_out = slot;
    return ST_OK;
}

static void slot_release(struct kv_pool *pool, uint32_t slot)
{
    free(pool->slots[slot].copy);
    pool->slots[slot].copy = NULL;
    pool->slots[slot].dropped = false;
    kv_spills_release(pool, slot);
    pool->free_slots[pool->n_free++] = slot;
    atomic_fetch_sub_explicit(&pool->used, 1, memory_order_relaxed);
}

void kv_pool_drop(struct kv_pool *pool, kv_handle handle)
{
    const uint32_t slot = kv_pool_find(pool, handle);
    if (slot == UINT32_MAX)
        return;
    struct kv_pool_slot *s = &pool->slots[slot];
    kv_pool_rows_drop(pool, slot);
    table_remove(pool, handle);
    s->handle = 0; /* not found any more, and a copy that comes back under this handle gets a slot of its own */
    if (s->pins)
        s->dropped = true;
    else
        slot_release(pool, slot);
}

void kv_pool_pin(struct kv_pool *pool, uint32_t slot)
{
    if (pool->slots[slot].pins++ == 0)
        atomic_fetch_add_explicit(&pool->pinned, 1, memory_order_relaxed);
}

void kv_pool_unpin(struct kv_pool *pool, uint32_t slot)
{
    struct kv_pool_slot *s = &pool->slots[slot];
    assert(s->pins);
    if (--s->pins)
        return;
    free(s->copy); /* it may be written from now on */
    s->copy = NULL;
    atomic_fetch_sub_explicit(&pool->pinned, 1, memory_order_relaxed);
    if (s->dropped)
        slot_release(pool, slot);
}

uint8_t *kv_pool_payload(const struct kv_pool *pool, uint32_t slot)
{
    return pool->memory.at + (size_t)slot * pool->block_bytes;
}

void *kv_pool_part(const struct kv_pool *pool, uint32_t slot, uint32_t layer, uint32_t kv_head)
{
    return kv_pool_payload(pool, slot) + layer * pool->layer_bytes + kv_head * 2 * pool->part_bytes;
}

uint8_t *kv_pool_copy(struct kv_pool *pool, uint32_t slot)
{
    struct kv_pool_slot *s = &pool->slots[slot];
    if (s->copy)
        return s->copy;
    uint8_t *copy = malloc(pool->block_bytes);
    if (copy && !pool->ops->read(copy, kv_pool_payload(pool, slot), pool->block_bytes)) {
        free(copy);
        copy = NULL;
    }
    s->copy = copy;
    return copy;
}

/* One layer of a payload, readable here; NULL: it can not be read. */
static const uint8_t *layer_at(struct kv_pool *pool, uint32_t slot, uint32_t layer)
{
    const uint8_t *at = kv_pool_payload(pool, slot) + layer * pool->layer_bytes;
    if (!pool->ops)
        return at;
    return pool->ops->read(pool->layer, at, pool->layer_bytes) ? pool->layer : NULL;
}

const uint64_t *kv_pool_sums(struct kv_pool *pool, uint32_t slot)
{
    uint64_t *sums = pool->sums + (size_t)slot * pool->layout.n_layers;
    if (!pool->slots[slot].summed) {
        for (uint32_t l = 0; l < pool->layout.n_layers; l++) {
            const uint8_t *layer = layer_at(pool, slot, l);
            if (!layer)
                return NULL;
            sums[l] = kv_spills_sum(pool, slot, l, checksum64(layer, pool->layer_bytes));
        }
        pool->slots[slot].summed = true;
    }
    return sums;
}

void kv_pool_stats(const struct kv_pool *pool, struct kv_pool_stats *stats_out)
{
    *stats_out = (struct kv_pool_stats){
        .n_blocks = pool->n_blocks,
        .used = atomic_load_explicit(&pool->used, memory_order_relaxed),
        .pinned = atomic_load_explicit(&pool->pinned, memory_order_relaxed),
        .block_bytes = pool->block_bytes,
        .n_rows = pool->rows.n,
        .rows_bytes = pool->rows.block_bytes,
        .n_spilled = atomic_load_explicit(&pool->spills.n_spilled, memory_order_relaxed),
        .spill_bytes = pool->spills.block_bytes,
    };
}

void kv_pool_each(const struct kv_pool *pool, void (*fn)(void *ctx, kv_handle handle), void *ctx)
{
    for (uint32_t i = 0; i < pool->n_blocks; i++) {
        if (pool->slots[i].handle)
            fn(ctx, pool->slots[i].handle);
    }
}
