/* A fake worker's disk. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/sched/outbox.h"
#include "tests/sim/sim.h"

static void tell(struct sim *sim, struct sim_worker *w, enum control_kind kind, const struct sim_stored *item)
{
    struct control_block block = { .position = item->position };
    struct control_message m = { .kind = kind, .as.blocks = { 0, 1, &block } };
    memcpy(block.id, item->id.byte, sizeof block.id);
    sim_up(sim, w, sim_message_copy(sim, &m));
}

static uint32_t find(const struct sim_disk *d, const struct digest *id)
{
    uint32_t i = 0;
    while (i < d->n && memcmp(&d->items[i].id, id, sizeof *id) != 0)
        i++;
    return i;
}

static struct sim_stored cut(struct sim_disk *d, uint32_t i)
{
    const struct sim_stored item = d->items[i];
    memmove(&d->items[i], &d->items[i + 1], (--d->n - i) * sizeof item);
    return item;
}

static void lose(struct sim *sim, struct sim_worker *w, struct sim_disk *d, uint32_t i)
{
    const struct sim_stored item = cut(d, i);
    tell(sim, w, CONTROL_GONE, &item);
    free(item.contents);
}

void sim_disk_put(struct sim *sim, struct sim_worker *w, struct sim_disk *d, const struct digest *id, uint32_t position,
                  const void *contents, size_t bytes)
{
    if (sim_disk_get(d, id) || sim_draw(sim, 1000) < sim->options.copy_faults)
        return;
    if (d->n == sim->options.disk_blocks)
        lose(sim, w, d, 0);
    sched_grow((void **)&d->items, &d->cap, d->n + 1, sizeof *d->items);
    struct sim_stored *item = &d->items[d->n++];
    *item = (struct sim_stored){ *id, position, malloc(bytes) };
    memcpy(item->contents, contents, bytes);
    tell(sim, w, CONTROL_STORED, item);
}

const void *sim_disk_get(struct sim_disk *d, const struct digest *id)
{
    const uint32_t i = find(d, id);
    if (i == d->n)
        return NULL;
    const struct sim_stored item = cut(d, i);
    d->items[d->n++] = item;
    return item.contents;
}

void sim_disk_lose(struct sim *sim, struct sim_worker *w, struct sim_disk *d, const struct digest *id)
{
    const uint32_t i = find(d, id);
    if (i < d->n)
        lose(sim, w, d, i);
}

void sim_disk_free(struct sim_disk *d)
{
    while (d->n)
        free(d->items[--d->n].contents);
    free(d->items);
    *d = (struct sim_disk){ 0 };
}
