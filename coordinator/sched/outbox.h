#ifndef LONGSPAN_COORDINATOR_SCHED_OUTBOX_H
#define LONGSPAN_COORDINATOR_SCHED_OUTBOX_H

/*
 * Small allocations of the scheduler's own bookkeeping, and a queue of numbers that are sent with the next plan to one worker and leave when
 * that plan's result is back; when a plan is abandoned they are sent again.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Zeroed; ends the process when there is no memory: a coordinator that cannot note what it sent cannot go on. */
void *sched_alloc(size_t n, size_t size);
/* Grows *items (of `size` bytes each) so that it holds at least n; new bytes are zero. */
void sched_grow(void **items, uint32_t *cap, uint32_t n, size_t size);

struct outbox {
    uint64_t *items; /* items[head .. head + n - 1] */
    uint32_t head, n, sent, cap;
};

void outbox_push(struct outbox *box, uint64_t item);
/* Those not sent yet; they count as sent from now on. -> how many */
uint32_t outbox_send(struct outbox *box, const uint64_t **items_out);
/* The first, which was sent and has arrived. */
uint64_t outbox_pop(struct outbox *box);
/* What was sent may not have arrived: all is sent again. */
void outbox_rewind(struct outbox *box);
static inline bool outbox_waits(const struct outbox *box)
{
    return box->n > box->sent;
}
void outbox_deinit(struct outbox *box);

#ifdef __cplusplus
}
#endif
#endif
