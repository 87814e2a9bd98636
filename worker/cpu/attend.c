#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/cpu/cpu.h"

static bool push_units(struct backend *b, uint32_t j)
{
    const struct attend_job *job = &b->input->attend->jobs[j];
    const uint32_t n_kv_heads = b->config->n_kv_heads, passes = job->n_fine + (job->local ? 1 : 0);
    for (uint32_t pass = 0; pass < passes; pass++) {
        for (uint32_t head = 0; head < n_kv_heads; head++) {
            for (uint32_t tile = 0; tile < job->n_tiles; tile += CPU_UNIT_TILES) {
                if (b->n_units == b->units_room) {
                    const uint32_t room = b->units_room ? b->units_room * 2 : 256;
                    struct cpu_unit *units = realloc(b->units, room * sizeof *units);
                    if (!units)
                        return false;
                    b->units = units;
                    b->units_room = room;
                }
                const uint32_t left = job->n_tiles - tile;
                b->units[b->n_units++] = (struct cpu_unit){
                    .job = j,
                    .head = head,
                    .tile = tile,
                    .n_tiles = left < CPU_UNIT_TILES ? left : CPU_UNIT_TILES,
                    .fine = pass < job->n_fine ? job->fine + pass : UINT32_MAX,
                    .item = pass,
                };
            }
        }
    }
    return true;
}

bool cpu_units_build(struct backend *b)
{
    const struct attend *a = b->input->attend;
    b->n_units = 0;
    for (uint32_t j = 0; j < a->n_jobs; j++) {
        if (j == a->n_local)
            b->n_local_units = b->n_units;
        if (!push_units(b, j))
            return false;
    }
    if (a->n_local == a->n_jobs)
        b->n_local_units = b->n_units;
    return cpu_reserve(&b->store, &b->store_room, a->n_store * b->partial_floats * sizeof(float));
}

/* The query vectors of one tile, packed. Local ones stand in Q, others in the received window, as they were rounded at their home. */
static void pack_tile(struct backend *b, struct cpu_member *m, const struct attend_job *job, uint32_t head,
                      uint32_t tile, void *q_tile)
{
    const struct model_config *c = b->config;
    const uint32_t group = c->n_heads / c->n_kv_heads, n = cpu_tile_vectors(b, job, tile),
                   width = c->n_heads * c->head_dim;
    const float *q[ATTN_ROWS];
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t v = tile * ATTN_ROWS + i, row = job->row + v / group,
                       at = (head * group + v % group) * c->head_dim;
        if (job->local) {
            q[i] = (const float *)(const void *)b->tensor[TENSOR_Q].data + row * b->tensor[TENSOR_Q].stride + at;
        } else if (b->float32) {
            q[i] = (const float *)(const void *)b->window + (size_t)row * width + at;
        } else {
            const uint16_t *from = (const uint16_t *)(const void *)b->window + (size_t)row * width + at;
            float *to = m->queries + i * c->head_dim;
            for (uint32_t d = 0; d < c->head_dim; d++)
                to[d] = bf16_to_f32(from[d]);
            q[i] = to;
        }
    }
    b->attn->pack_q(&b->attn_shape, q, n, q_tile);
}

/* Positions of block c of the own leaf (starting at position `first`) that the tile's vectors see; false: none of them sees any. */
static bool own_visible(const struct backend *b, const struct attend_job *job, uint32_t tile, uint32_t first,
                        uint8_t visible[ATTN_ROWS])
{
    const uint32_t group = b->config->n_heads / b->config->n_kv_heads, n = cpu_tile_vectors(b, job, tile);
    bool any = false;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t pos = job->pos + (tile * ATTN_ROWS + i) / group;
        const uint32_t sees = pos < first ? 0 : pos - first + 1;
        visible[i] = (uint8_t)(sees < KV_BLOCK ? sees : KV_BLOCK);
        any = any || sees;
    }
    return any;
}

static void partial_clear(const struct backend *b, float *tile)
{
    for (int i = 0; i < ATTN_ROWS; i++)
        tile[i] = -INFINITY;
    memset(tile + ATTN_ROWS, 0, (b->partial_floats - ATTN_ROWS) * sizeof(float));
}

static float *stack_tile(const struct backend *b, const struct cpu_member *m, uint32_t depth, uint32_t t)
{
    return m->stack + ((size_t)depth * CPU_UNIT_TILES + t) * b->partial_floats;
}

/* The block after code[i] in a program that ends before `end`, or UINT32_MAX. */
static uint32_t next_slot(const uint32_t *code, uint32_t i, uint32_t end)
{
    do
        i++;
    while (i < end && code[i] == TREE_MERGE);
    return i < end ? code[i] : UINT32_MAX;
}

/* next: the slot that will be read after this one (UINT32_MAX: none) */
static void attend_block(struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t layer,
                         uint32_t slot, uint32_t next, uint32_t depth, uint32_t t, const uint8_t *visible)
{
    const struct attend_job *job = &b->input->attend->jobs[u->job];
    const uint8_t *part = kv_pool_part(b->input->pool, slot, layer, u->head);
    const uint8_t *next_part = next == UINT32_MAX ? NULL : kv_pool_part(b->input->pool, next, layer, u->head);
    b->attn->block(&b->attn_shape, m->q_tiles + t * b->q_tile_bytes, cpu_tile_vectors(b, job, u->tile + t), visible,
                   part, part + b->part_bytes, next_part, stack_tile(b, m, depth, t));
}

static void merge_top(struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t depth)
{
    const struct attend_job *job = &b->input->attend->jobs[u->job];
    for (uint32_t t = 0; t < u->n_tiles; t++)
        b->attn->merge(&b->attn_shape, cpu_tile_vectors(b, job, u->tile + t), stack_tile(b, m, depth, t),
                       stack_tile(b, m, depth + 1, t));
}

/* Whole leaves: all positions visible. A block is read once for the unit's tiles, so that it comes from the nearest cache. */
static void attend_fine(struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t layer)
{
    const struct attend *a = b->input->attend;
    const struct attend_fine *fine = &a->fines[u->fine];
    uint8_t all[ATTN_ROWS];
    uint32_t depth = 0;
    memset(all, KV_BLOCK, sizeof all);
    for (uint32_t i = fine->begin; i < fine->end; i++) {
        if (a->code.v[i] == TREE_MERGE) {
            depth--;
            merge_top(b, m, u, depth - 1);
            continue;
        }
        for (uint32_t t = 0; t < u->n_tiles; t++)
            attend_block(b, m, u, layer, a->code.v[i], t ? UINT32_MAX : next_slot(a->code.v, i, fine->end), depth, t,
                         all);
        depth++;
    }
}

/* The own leaf: blocks before the own one whole, the own one up to the row's position; pieces join by adjacent pairs. */
static void attend_own(struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t layer)
{
    const struct attend *a = b->input->attend;
    const struct attend_job *job = &a->jobs[u->job];
    const uint32_t leaf = CPU_LEAF_BLOCKS * KV_BLOCK, first = job->pos / leaf * leaf, n = job->own_end - job->own_begin;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t t = 0; t < u->n_tiles; t++) {
            uint8_t visible[ATTN_ROWS];
            if (own_visible(b, job, u->tile + t, first + i * KV_BLOCK, visible))
                attend_block(b, m, u, layer, a->code.v[job->own_begin + i],
                             t || i + 1 == n ? UINT32_MAX : a->code.v[job->own_begin + i + 1], i, t, visible);
            else
                partial_clear(b, stack_tile(b, m, i, t));
        }
    }
    for (uint32_t step = 1; step < n; step *= 2)
        for (uint32_t i = 0; i + step < n; i += 2 * step)
            for (uint32_t t = 0; t < u->n_tiles; t++)
                b->attn->merge(&b->attn_shape, cpu_tile_vectors(b, job, u->tile + t), stack_tile(b, m, i, t),
                               stack_tile(b, m, i + step, t));
}

/* op->flag: local units, else those of other homes' rows */
void cpu_attend(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    (void)n_members;
    struct cpu_member *m = &b->members[member];
    const uint32_t begin = op->flag ? 0 : b->n_local_units, end = op->flag ? b->n_local_units : b->n_units;
    for (;;) {
        const uint32_t i = begin + atomic_fetch_add_explicit(&op->next, 1, memory_order_relaxed);
        if (i >= end)
            return;
        const struct cpu_unit *u = &b->units[i];
        const struct attend_job *job = &b->input->attend->jobs[u->job];
        for (uint32_t t = 0; t < u->n_tiles; t++)
            pack_tile(b, m, job, u->head, u->tile + t, m->q_tiles + t * b->q_tile_bytes);
        if (u->fine == UINT32_MAX)
            attend_own(b, m, u, op->layer);
        else
            attend_fine(b, m, u, op->layer);
        for (uint32_t t = 0; t < u->n_tiles; t++)
            memcpy(cpu_store_tile(b, job, u->item, u->head, u->tile + t), stack_tile(b, m, 0, t),
                   b->partial_floats * sizeof(float));
    }
}

/* Runs a program over items for one tile; items merge in place into the leftmost, which is returned. */
static float *run_program(struct backend *b, const struct attend_job *job, uint32_t begin, uint32_t end, uint32_t head,
                          uint32_t tile)
{
    const uint32_t *code = b->input->attend->code.v, n = cpu_tile_vectors(b, job, tile);
    float *stack[CPU_STACK];
    uint32_t depth = 0;
    for (uint32_t i = begin; i < end; i++) {
        if (code[i] != TREE_MERGE) {
            stack[depth++] = cpu_store_tile(b, job, code[i], head, tile);
            continue;
        }
        depth--;
        b->attn->merge(&b->attn_shape, n, stack[depth - 1], stack[depth]);
    }
    return stack[0];
}

/* Calls fn for this member's share of the (job, head, tile)s of jobs begin .. end - 1. */
static void each_tile(struct backend *b, uint32_t begin, uint32_t end, uint32_t member, uint32_t n_members,
                      void (*fn)(struct backend *b, const struct attend_job *job, uint32_t head, uint32_t tile))
{
    uint32_t n = 0;
    for (uint32_t j = begin; j < end; j++) {
        const struct attend_job *job = &b->input->attend->jobs[j];
        for (uint32_t head = 0; head < b->config->n_kv_heads; head++)
            for (uint32_t tile = 0; tile < job->n_tiles; tile++, n++)
                if (n % n_members == member)
                    fn(b, job, head, tile);
    }
}

static void join_tile(struct backend *b, const struct attend_job *job, uint32_t head, uint32_t tile)
{
    for (uint32_t i = job->node; i < job->node + job->n_nodes; i++)
        run_program(b, job, b->input->attend->nodes[i].begin, b->input->attend->nodes[i].end, head, tile);
}

void cpu_attend_join(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    (void)op;
    each_tile(b, b->input->attend->n_local, b->input->attend->n_jobs, member, n_members, join_tile);
}

static void finish_tile(struct backend *b, const struct attend_job *job, uint32_t head, uint32_t tile)
{
    const struct model_config *c = b->config;
    const struct cpu_tensor *a = &b->tensor[TENSOR_A];
    const uint32_t group = c->n_heads / c->n_kv_heads, n = cpu_tile_vectors(b, job, tile);
    const float *p = run_program(b, job, job->final_begin, job->final_end, head, tile);
    bool finite = true;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t v = tile * ATTN_ROWS + i, row = job->row + v / group,
                       at = (head * group + v % group) * c->head_dim;
        b->rows->attn_finish(p + 2 * ATTN_ROWS + i * c->head_dim, p[ATTN_ROWS + i], c->head_dim, a->type,
                             a->data + (row * a->stride + at) * dtype_bytes(a->type), &finite);
    }
    if (!finite)
        cpu_fail(b, ST_CORRUPT, UINT16_MAX);
}

void cpu_attend_finish(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    (void)op;
    each_tile(b, 0, b->input->attend->n_local, member, n_members, finish_tile);
}
