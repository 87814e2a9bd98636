#include <string.h>

#include "worker/cpu/cpu.h"

uint8_t *cpu_open_part(const struct backend *b, uint32_t slot, uint32_t open, uint32_t layer, uint32_t head)
{
    if (open == STEP_IN_PLACE)
        return kv_pool_part(b->input->pool, slot, layer, head);
    if (open < STEP_SCRATCH)
        return kv_pool_rows_part(b->input->pool, open, layer, head);
    return b->scratch + ((size_t)(open - STEP_SCRATCH) * b->config->n_kv_heads + head) * 2 * b->open_part_bytes;
}

/* What a part has no room for; at: where it goes. */
static void keep(const struct backend *b, const uint8_t *open, const uint8_t *part, uint8_t *at)
{
    if (kv_spilled(&b->spill, part))
        memcpy(at, open + b->open_part_bytes - b->spill.bytes, b->spill.bytes);
}

static void keep_spilled(struct backend *b, const struct step_seal *s, uint32_t layer, uint32_t head,
                         const uint8_t *open)
{
    const uint8_t *part = kv_pool_part(b->input->pool, s->slot, layer, head);
    if (!kv_spilled(&b->spill, part) && !kv_spilled(&b->spill, part + b->part_bytes))
        return;
    uint8_t *at = kv_pool_spill_take(b->input->pool, s->slot, layer, head);
    keep(b, open, part, at);
    keep(b, open + b->open_part_bytes, part + b->part_bytes, at + b->spill.bytes);
}

void cpu_seal(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    const uint32_t n_kv_heads = b->config->n_kv_heads;
    uint32_t begin, end;
    team_share(b->input->n_seals * n_kv_heads, member, n_members, &begin, &end);
    for (uint32_t i = begin; i < end && b->coded->seal; i++) {
        const struct step_seal *s = &b->input->seals[i / n_kv_heads];
        const uint8_t *open = cpu_open_part(b, s->slot, s->open, op->layer, i % n_kv_heads);
        uint8_t *part = kv_pool_part(b->input->pool, s->slot, op->layer, i % n_kv_heads);
        const struct cpu_part_id id = { op->layer, i % n_kv_heads, s->block };
        struct attn_shape shape = b->coded_shape;
        struct cpu_book book;
        shape.books = cpu_book_of(b, &id, &book);
        if (!b->coded->seal(&shape, open, open + b->open_part_bytes, part, part + b->part_bytes))
            cpu_fail(b, ST_CORRUPT, UINT16_MAX);
        keep_spilled(b, s, op->layer, i % n_kv_heads, open);
    }
}
