#include "coordinator/sched/outbox.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

void *sched_alloc(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);
    if (!p) {
        log_error("scheduler: no memory for %zu items of %zu bytes", n, size);
        abort();
    }
    return p;
}

void sched_grow(void **items, uint32_t *cap, uint32_t n, size_t size)
{
    if (n <= *cap)
        return;
    uint32_t more = *cap ? *cap : 16;
    while (more < n)
        more = more < UINT32_MAX / 2 ? 2 * more : n;
    char *p = sched_alloc(more, size);
    if (*cap)
        memcpy(p, *items, *cap * size);
    free(*items);
    *items = p;
    *cap = more;
}

void outbox_push(struct outbox *box, uint64_t item)
{
    if (box->head + box->n == box->cap && box->head >= box->n) {
        if (box->n)
            memmove(box->items, box->items + box->head, box->n * sizeof *box->items);
        box->head = 0;
    }
    sched_grow((void **)&box->items, &box->cap, box->head + box->n + 1, sizeof *box->items);
    box->items[box->head + box->n++] = item;
}

uint32_t outbox_send(struct outbox *box, const uint64_t **items_out)
{
    const uint32_t n = box->n - box->sent;
    *items_out = n ? box->items + box->head + box->sent : NULL;
    box->sent = box->n;
    return n;
}

uint64_t outbox_pop(struct outbox *box)
{
    assert(box->sent > 0);
    const uint64_t item = box->items[box->head++];
    box->n--;
    box->sent--;
    if (!box->n)
        box->head = 0;
    return item;
}

void outbox_rewind(struct outbox *box)
{
    box->sent = 0;
}

void outbox_deinit(struct outbox *box)
{
    free(box->items);
    *box = (struct outbox){ 0 };
}
