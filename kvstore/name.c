#include "kvstore/kvstore.h"

#include <assert.h>

#include "proto/plan.h"

struct digest kv_block_id(const struct digest *parent, const struct digest *context, const int32_t *tokens,
                          uint32_t n_prompt_rows)
{
    static const struct digest none = { { 0 } };
    struct hasher *h = hasher_new();
    hasher_add_text(h, "longspan kv block 1");
    /* a first block differs from one whose parent happens to be all zeros */
    hasher_add_u64(h, parent != NULL);
    hasher_add(h, parent ? parent->byte : none.byte, sizeof none.byte);
    hasher_add(h, context->byte, sizeof context->byte);
    hasher_add_u64(h, n_prompt_rows);
    hasher_add(h, tokens, PLAN_BLOCK * sizeof *tokens);
    return hasher_end(h);
}

uint32_t kv_slot_reversed(uint32_t slot, uint32_t slots)
{
    assert(slots && !(slots & (slots - 1)) && slot < slots);
    uint32_t r = 0;
    for (uint32_t bit = 1; bit < slots; bit *= 2) {
        r = r << 1 | (slot & 1);
        slot >>= 1;
    }
    return r;
}

uint32_t kv_slot_owner(uint32_t slot, uint32_t slots, uint32_t n_workers)
{
    return (uint32_t)((uint64_t)kv_slot_reversed(slot, slots) * n_workers / slots);
}
