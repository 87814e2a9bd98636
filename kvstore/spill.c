#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/rng.h"
#include "kvstore/kvstore.h"
#include "kvstore/pool.h"

/* Addresses only. A huge page would bring the memory of many parts that fit, and counting it all as used would refuse pools that never spill. */
static enum status spill_map(struct kv_memory *m, size_t bytes)
{
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return ST_NO_MEMORY;
    *m = (struct kv_memory){ .at = map, .map = map, .map_bytes = bytes };
    (void)madvise(map, bytes, MADV_NOHUGEPAGE);
    (void)madvise(map, bytes, MADV_DONTDUMP);
    return ST_OK;
}

enum status kv_pool_spill_new(struct kv_pool *pool, size_t part_bytes, size_t mark, struct error *err)
{
    const struct kv_layout layout = { pool->layout.n_layers, pool->layout.n_kv_heads, part_bytes, 0 };
    struct kv_spills *s = &pool->spills;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t block_bytes, bytes;
    assert(!s->part_bytes && !pool->ops);
    if (part_bytes % 64 || mark >= pool->part_bytes || !kv_layout_block_bytes(&layout, &block_bytes) ||
        !size_add(block_bytes, page - 1, &block_bytes))
        return error_set(err, ST_INVALID, "spilled parts: %zu bytes each, marked at byte %zu of %zu", part_bytes, mark,
                         pool->part_bytes);
    block_bytes -= block_bytes % page; /* a block's pages are its own, and can be given back */
    s->spilled = calloc(pool->n_blocks, sizeof *s->spilled);
    if (!s->spilled || !size_mul(block_bytes, pool->n_blocks, &bytes) || spill_map(&s->memory, bytes)) {
        kv_spills_deinit(s);
        return error_set(err, ST_NO_MEMORY, "spilled parts: no room for those of %u blocks of %zu bytes",
                         pool->n_blocks, block_bytes);
    }
    s->part_bytes = part_bytes;
    s->mark = mark;
    s->layer_bytes = 2 * part_bytes * layout.n_kv_heads;
    s->block_bytes = block_bytes;
    return ST_OK;
}

void kv_spills_deinit(struct kv_spills *s)
{
    kv_memory_unmap(&s->memory);
    free(s->spilled);
    *s = (struct kv_spills){ 0 };
}

void kv_spills_release(struct kv_pool *pool, uint32_t slot)
{
    struct kv_spills *s = &pool->spills;
    if (!s->part_bytes || !atomic_exchange_explicit(&s->spilled[slot], 0, memory_order_relaxed))
        return;
    (void)madvise(s->memory.at + slot * s->block_bytes, s->block_bytes, MADV_DONTNEED);
    atomic_fetch_sub_explicit(&s->n_spilled, 1, memory_order_relaxed);
}

const void *kv_pool_spill(const struct kv_pool *pool, uint32_t slot, uint32_t layer, uint32_t kv_head)
{
    const struct kv_spills *s = &pool->spills;
    return s->memory.at + slot * s->block_bytes + layer * s->layer_bytes + kv_head * 2 * s->part_bytes;
}

void *kv_pool_spill_take(struct kv_pool *pool, uint32_t slot, uint32_t layer, uint32_t kv_head)
{
    struct kv_spills *s = &pool->spills;
    if (!atomic_exchange_explicit(&s->spilled[slot], 1, memory_order_relaxed))
        atomic_fetch_add_explicit(&s->n_spilled, 1, memory_order_relaxed);
    return s->memory.at + slot * s->block_bytes + layer * s->layer_bytes + kv_head * 2 * s->part_bytes;
}

bool kv_spills_marked(const struct kv_pool *pool, const uint8_t *layer, uint32_t part)
{
    return layer[part * pool->part_bytes + pool->spills.mark] != 0;
}

uint64_t kv_spills_sum(const struct kv_pool *pool, uint32_t slot, uint32_t layer, uint64_t sum)
{
    const struct kv_spills *s = &pool->spills;
    if (!s->part_bytes || !atomic_load_explicit(&s->spilled[slot], memory_order_relaxed))
        return sum;
    const uint8_t *payload = kv_pool_payload(pool, slot) + layer * pool->layer_bytes,
                  *at = kv_pool_spill(pool, slot, layer, 0);
    for (uint32_t p = 0; p < 2 * pool->layout.n_kv_heads; p++)
        if (kv_spills_marked(pool, payload, p))
            sum = kv_spills_sum_next(sum, at + p * s->part_bytes, s->part_bytes);
    return sum;
}

uint64_t kv_spills_sum_next(uint64_t sum, const uint8_t *part, size_t bytes)
{
    return mix64(sum ^ checksum64(part, bytes));
}

/* The n-th part of a block is the n-th of the area that spills from it, too: keys and values by head by layer. */
static size_t marked(const struct kv_pool *pool, uint32_t slot, uint8_t *copy)
{
    const struct kv_spills *s = &pool->spills;
    const uint8_t *payload = kv_pool_payload(pool, slot), *at = kv_pool_spill(pool, slot, 0, 0);
    size_t bytes = 0;
    for (size_t p = 0; p < pool->block_bytes / pool->part_bytes; p++) {
        if (!payload[p * pool->part_bytes + s->mark])
            continue;
        if (copy)
            memcpy(copy + bytes, at + p * s->part_bytes, s->part_bytes);
        bytes += s->part_bytes;
    }
    return bytes;
}

enum status kv_spills_copy(struct kv_pool *pool, uint32_t slot, struct iovec *copy_out)
{
    struct kv_pool_slot *of = &pool->slots[slot];
    *copy_out = (struct iovec){ 0 };
    if (!pool->spills.part_bytes || !atomic_load_explicit(&pool->spills.spilled[slot], memory_order_relaxed))
        return ST_OK;
    const size_t bytes = marked(pool, slot, NULL);
    if (of->copy && of->copy_bytes != bytes)
        return ST_BUSY; /* it was written again while an older copy travels */
    if (bytes && !of->copy) {
        of->copy = malloc(bytes);
        if (!of->copy)
            return ST_NO_MEMORY;
        of->copy_bytes = bytes;
        marked(pool, slot, of->copy);
    }
    *copy_out = (struct iovec){ of->copy, bytes };
    return ST_OK;
}

void kv_spills_put(struct kv_pool *pool, uint32_t slot, const uint8_t *spilled)
{
    const struct kv_spills *s = &pool->spills;
    const uint8_t *payload = kv_pool_payload(pool, slot);
    for (size_t p = 0; s->part_bytes && p < pool->block_bytes / pool->part_bytes; p++)
        if (payload[p * pool->part_bytes + s->mark]) {
            memcpy((uint8_t *)kv_pool_spill_take(pool, slot, 0, 0) + p * s->part_bytes, spilled, s->part_bytes);
            spilled += s->part_bytes;
        }
}
