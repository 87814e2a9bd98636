/*
 * Attention where some vectors have lists: a vector that did not choose a block has the empty partial of it, and a block that no vector of the unit chose is
 * not read. An empty partial is not written out: merge(x, empty) is x, so a stack's empty places cost nothing.
 */
#include <math.h>
#include <string.h>

#include "worker/cpu/cpu.h"

bool cpu_unit_lists(const struct backend *b, const struct cpu_unit *u, uint32_t layer, struct cpu_lists *lists)
{
    const struct attend *a = b->input->attend;
    const struct select *s = b->input->select;
    const uint32_t heads = b->config->n_kv_heads, group = b->config->n_heads / heads;
    bool any = false;
    if (!b->selects || !select_layer(s, layer))
        return false;
    memset(lists->of, 0, sizeof lists->of);
    if (u->leaf == UINT32_MAX) {
        const struct attend_job *job = &a->jobs[u->job];
        for (uint32_t t = 0; t < u->n_tiles && s->jobs[u->job].density; t++)
            for (uint32_t i = 0; i < cpu_tile_vectors(b, job, u->tile + t); i++)
                lists->of[t][i] =
                    select_list(s, b->lists, u->job, job->pos, ((u->tile + t) * ATTN_ROWS + i) / group, heads, u->head);
        return s->jobs[u->job].density != 0;
    }
    const struct attend_leaf *leaf = &a->leaves[u->leaf];
    for (uint32_t k = leaf->user; k < leaf->user + leaf->n_users; k++) {
        const struct attend_user *user = &a->users[k];
        const struct attend_job *job = &a->jobs[user->job];
        for (uint32_t v = 0; v < job->n_rows * group && s->jobs[user->job].density; v++) {
            const uint32_t at = user->vector + v - u->tile * ATTN_ROWS; /* wraps round below the unit's first */
            if (user->vector + v < u->tile * ATTN_ROWS || at >= u->n_tiles * ATTN_ROWS)
                continue;
            lists->of[at / ATTN_ROWS][at % ATTN_ROWS] =
                select_list(s, b->lists, user->job, job->pos, v / group, heads, u->head);
            any = true;
        }
    }
    return any;
}

/* Which of the tile's n vectors see a block: it is theirs to see whole, or not at all. */
static bool visible_of(const struct cpu_lists *lists, uint32_t t, uint32_t n, uint32_t block, uint8_t *visible)
{
    bool any = false;
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t *list = lists->of[t][i];
        visible[i] = !list || selector_has(list, block) ? KV_BLOCK : 0;
        any = any || visible[i];
    }
    return any;
}

/* The places of a stack: which tile of memory each has, as merges move them about. */
struct places {
    uint8_t at[CPU_STACK][CPU_LEAF_TILES];
    bool empty[CPU_STACK][CPU_LEAF_TILES];
};

static void join(struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t depth,
                 struct places *p)
{
    const struct cpu_reader *r = cpu_unit_reader(b, u);
    for (uint32_t t = 0; t < u->n_tiles; t++) {
        uint8_t *at = &p->at[depth][t], *next = &p->at[depth + 1][t];
        if (p->empty[depth + 1][t])
            continue;
        if (p->empty[depth][t]) {
            const uint8_t swap = *at;
            *at = *next;
            *next = swap;
            p->empty[depth][t] = false;
            continue;
        }
        r->attn->merge(&r->shape, cpu_unit_vectors(b, u, t), cpu_stack_tile(b, m, u, *at, t),
                       cpu_stack_tile(b, m, u, *next, t));
    }
}

/* The next block that a vector of the unit chose, from code[i] on; end: none. */
static uint32_t next_wanted(const struct backend *b, const struct cpu_unit *u, const struct cpu_lists *lists,
                            uint32_t i, uint32_t end)
{
    const struct attend *a = b->input->attend;
    for (; i < end; i++) {
        for (uint32_t t = 0; t < u->n_tiles && a->code.v[i] != TREE_MERGE; t++) {
            uint8_t visible[ATTN_ROWS];
            if (visible_of(lists, t, cpu_unit_vectors(b, u, t), a->blocks.v[i], visible))
                return i;
        }
    }
    return end;
}

void cpu_attend_whole_sparse(struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t layer,
                             uint32_t begin, uint32_t end, const struct cpu_lists *lists)
{
    const struct attend *a = b->input->attend;
    struct places p;
    uint32_t depth = 0, skipped = 0, wanted = next_wanted(b, u, lists, begin, end);
    for (uint32_t d = 0; d < CPU_STACK; d++)
        memset(p.at[d], (int)d, sizeof p.at[d]);
    for (uint32_t i = begin; i < end; i++) {
        if (a->code.v[i] == TREE_MERGE) {
            depth--;
            join(b, m, u, depth - 1, &p);
            continue;
        }
        memset(p.empty[depth], true, sizeof p.empty[depth]);
        skipped += i != wanted;
        const uint32_t next = i == wanted ? next_wanted(b, u, lists, i + 1, end) : wanted;
        for (uint32_t t = 0; t < u->n_tiles && i == wanted; t++) {
            uint8_t visible[ATTN_ROWS];
            if (!visible_of(lists, t, cpu_unit_vectors(b, u, t), a->blocks.v[i], visible))
                continue;
            cpu_attend_block(b, m, u, layer, i, t || next == end ? UINT32_MAX : a->code.v[next], p.at[depth][t], t,
                             visible);
            p.empty[depth][t] = false;
        }
        wanted = next;
        depth++;
    }
    for (uint32_t t = 0; t < u->n_tiles && begin < end; t++) {
        float *result = cpu_stack_tile(b, m, u, 0, t);
        if (p.empty[0][t])
            cpu_partial_clear(b, result);
        else if (p.at[0][t])
            memcpy(result, cpu_stack_tile(b, m, u, p.at[0][t], t), b->partial_floats * sizeof(float));
    }
    atomic_fetch_add_explicit(&b->parts_skipped, skipped, memory_order_relaxed);
}

bool cpu_lists_filter(const struct cpu_lists *lists, uint32_t t, uint32_t n, uint32_t block, uint8_t *visible)
{
    bool any = false;
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t *list = lists->of[t][i];
        if (list && !selector_has(list, block))
            visible[i] = 0;
        any = any || visible[i];
    }
    return any;
}
