/* What outlives this scheduler: its term, by which its numbers are higher than before, the names of blocks, which their workers keep
 * for the next one, and what is on their disks. */
#include "coordinator/sched/state.h"

#include <stdlib.h>
#include <string.h>

enum { NAMES_AT_ONCE = 256 };

void sched_begin(struct sched *s, uint64_t term)
{
    const uint64_t base = (term & UINT32_MAX) << 32;
    s->epochs = base > s->epochs ? base : s->epochs;
    s->next_seq = base > s->next_seq ? base : s->next_seq;
    s->dir.next = base + 1 > s->dir.next ? base + 1 : s->dir.next;
}

static void names_send(struct sched *s, uint8_t slot)
{
    if (s->n_names[slot] && s->workers[slot].ready)
        s->ops.named(s->ctx, s->workers[slot].id, s->names[slot], s->n_names[slot]);
    s->n_names[slot] = 0;
}

void names_note(struct sched *s, const struct copy *c)
{
    const uint8_t slot = c->slot;
    if (!s->ops.named || !s->config.prefix_sharing)
        return;
    sched_grow((void **)&s->names[slot], &s->names_cap[slot], s->n_names[slot] + 1, sizeof *s->names[slot]);
    struct control_block *b = &s->names[slot][s->n_names[slot]++];
    *b = (struct control_block){ .handle = c->block->handle, .position = c->block->position };
    memcpy(b->id, c->block->id.byte, sizeof b->id);
    if (s->n_names[slot] == NAMES_AT_ONCE)
        names_send(s, slot);
}

void names_tell(struct sched *s)
{
    for (uint8_t slot = 0; slot < SCHED_SLOTS && s->ops.named; slot++)
        names_send(s, slot);
}

void names_deinit(struct sched *s)
{
    for (uint32_t i = 0; i < SCHED_SLOTS; i++)
        free(s->names[i]);
}

void sched_worker_holds(struct sched *s, uint16_t worker, const struct control_block *blocks, uint32_t n)
{
    const uint8_t slot = sched_slot(s, worker);
    if (slot == SCHED_NO_SLOT)
        return;
    for (uint32_t i = 0; i < n; i++) {
        struct digest id;
        memcpy(id.byte, blocks[i].id, sizeof id.byte);
        if (!s->config.prefix_sharing || !directory_adopt(&s->dir, slot, blocks[i].handle, blocks[i].position, &id))
            directory_drop_stray(&s->dir, slot, blocks[i].handle);
    }
}

void sched_worker_disk(struct sched *s, uint16_t worker, const struct control_block *blocks, uint32_t n, bool gone)
{
    const uint8_t slot = sched_slot(s, worker);
    if (slot == SCHED_NO_SLOT || !s->config.prefix_sharing)
        return;
    for (uint32_t i = 0; i < n; i++) {
        struct digest id;
        memcpy(id.byte, blocks[i].id, sizeof id.byte);
        if (gone)
            directory_disk_remove(&s->dir, slot, &id);
        else
            directory_disk_add(&s->dir, slot, blocks[i].position, &id);
    }
}
