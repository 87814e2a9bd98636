/*
 * Where rows read block 0 and a window before their own block, in every layer, a sequence gives back what its window has left: the blocks become prefix cache, and
 * go when room is needed. At one worker it has no more promised than it can hold at once, so its memory does not grow with its length; each block that it gives
 * back pays for one to come. A block that others have found meanwhile stays as long as they read it: then there may be no room, and rows wait. Who reads
 * it was admitted later than who opened it, so nobody waits for himself.
 *
 * A sequence that is placed again finds what is still cached, and computes the rest once more.
 */
#include "coordinator/sched/state.h"

#include <assert.h>

static bool windowed(const struct sched *s, uint32_t density)
{
    return s->config.window && density && density < PLAN_DENSITY_ONE;
}

uint32_t retain_bound(const struct sched *s, uint32_t n_prompt, uint32_t density)
{
    const struct sched_config *c = &s->config;
    if (!windowed(s, density && c->density ? density : c->density))
        return 0;
    /* Block 0, the window, the block that is open, one more; what plans in flight compute; and dense prompts whole. */
    const uint64_t steps = (uint64_t)(c->plans_ahead + 1) * (c->step_rows_max / PLAN_BLOCK + 1),
                   bound = 3 + c->window / PLAN_BLOCK + steps + (c->prompt_sparse ? 0 : n_prompt / PLAN_BLOCK + 1);
    return bound < UINT32_MAX ? (uint32_t)bound : UINT32_MAX;
}

/* The first block beside block 0 that a row to come may read. */
static uint32_t first_read(const struct sched *s, const struct sched_request *r)
{
    const uint32_t own = r->done / PLAN_BLOCK, window = s->config.window / PLAN_BLOCK;
    if (!windowed(s, r->density) || (!s->config.prompt_sparse && r->done < r->n_prompt))
        return 1;
    return own > window + 1 ? own - window : 1;
}

bool retain_fill(struct sched *s, struct sched_request *r)
{
    const uint32_t held = r->n_table > r->passed ? r->n_table - r->passed + 1 : 1;
    uint32_t wanted = r->bound > held ? r->bound - held : 0;
    if (wanted > r->unopened)
        wanted = r->unopened;
    while (r->promise[r->home] < wanted && directory_promise(&s->dir, r->home, 1))
        r->promise[r->home]++;
    return r->promise[r->home] || !wanted;
}

void retain_step(struct sched *s, struct sched_request *r)
{
    uint32_t end = first_read(s, r);
    if (r->pending || r->ship != SHIP_IDLE)
        return; /* what is under way is needed whole */
    if (!r->bound && end > r->ship_leaf * r->leaf_blocks)
        end = r->ship_leaf * r->leaf_blocks; /* the rest goes to its owners first, whose room is promised */
    if (end <= r->passed)
        return;
    for (; r->passed < end; r->passed++) {
        struct copy *c = r->copies[r->passed];
        assert(c && r->passed < r->n_committed);
        r->copies[r->passed] = NULL;
        directory_unref(&s->dir, c);
        s->stats.blocks_passed++;
    }
    if (r->bound)
        retain_fill(s, r);
    s->admit_changed = true;
}
