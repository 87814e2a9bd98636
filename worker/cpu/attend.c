#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/cpu/cpu.h"

static bool push_unit(struct backend *b, struct cpu_unit unit)
{
    if (b->n_units == b->units_room) {
        const uint32_t room = b->units_room ? b->units_room * 2 : 256;
        struct cpu_unit *units = realloc(b->units, room * sizeof *units);
        if (!units)
            return false;
        b->units = units;
        b->units_room = room;
    }
    b->units[b->n_units++] = unit;
    return true;
}

/* Blocks that a program names. */
static uint32_t program_blocks(const struct attend *a, uint32_t begin, uint32_t end)
{
    uint32_t n = 0;
    for (uint32_t i = begin; i < end; i++)
        n += a->code.v[i] != TREE_MERGE;
    return n;
}

static bool push_job(struct backend *b, uint32_t j)
{
    const struct attend *a = b->input->attend;
    const struct attend_job *job = &a->jobs[j];
    const uint32_t n_kv_heads = b->config->n_kv_heads, passes = job->n_fine + (job->local ? 1 : 0);
    for (uint32_t pass = 0; pass < passes; pass++) {
        const struct attend_fine *fine = pass < job->n_fine ? &a->fines[job->fine + pass] : NULL;
        const uint32_t blocks = fine ? program_blocks(a, fine->begin, fine->end) : job->own_end - job->own_begin;
        for (uint32_t head = 0; head < n_kv_heads && blocks; head++) {
            for (uint32_t tile = 0; tile < job->n_tiles; tile += CPU_UNIT_TILES) {
                const uint32_t left = job->n_tiles - tile;
                const struct cpu_unit unit = {
                    .job = j,
                    .head = head,
                    .tile = tile,
                    .n_tiles = left < CPU_UNIT_TILES ? left : CPU_UNIT_TILES,
                    .fine = fine ? job->fine + pass : UINT32_MAX,
                    .item = pass,
                    .leaf = UINT32_MAX,
                };
                if (!push_unit(b, unit))
                    return false;
                const uint32_t sealed = fine || b->in_place ? blocks : blocks - 1;
                b->parts_read += sealed;
                b->parts_dense += sealed;
                b->open_read += blocks - sealed;
            }
        }
    }
    return true;
}

/* Tiles a pass: as many as there can be while every thread has some units. */
static uint32_t leaf_pass(const struct backend *b, uint32_t n_tiles, uint32_t n_leaves)
{
    const uint32_t units = n_leaves * b->config->n_kv_heads, wanted = b->n_threads > 1 ? 2 * b->n_threads : 1;
    const uint32_t parts = units >= wanted ? 1 : (wanted + units - 1) / units, pass = (n_tiles + parts - 1) / parts;
    return pass < CPU_LEAF_TILES ? pass : CPU_LEAF_TILES;
}

static bool push_leaves(struct backend *b, uint32_t begin, uint32_t end)
{
    const struct attend *a = b->input->attend;
    for (uint32_t i = begin; i < end; i++) {
        const struct attend_leaf *leaf = &a->leaves[i];
        const uint32_t n_tiles = (leaf->n_vectors + ATTN_ROWS - 1) / ATTN_ROWS,
                       pass = leaf_pass(b, n_tiles, end - begin);
        const uint32_t blocks = program_blocks(a, leaf->begin, leaf->end);
        for (uint32_t head = 0; head < b->config->n_kv_heads; head++) {
            b->parts_dense += (uint64_t)blocks * leaf->n_users; /* their tiles are few enough for one pass each */
            for (uint32_t tile = 0; tile < n_tiles; tile += pass) {
                const uint32_t left = n_tiles - tile;
                const struct cpu_unit unit = {
                    .head = head, .tile = tile, .n_tiles = left < pass ? left : pass, .leaf = i
                };
                if (!push_unit(b, unit))
                    return false;
                b->parts_read += blocks;
            }
        }
    }
    return true;
}

static bool push_units(struct backend *b, bool local)
{
    const struct attend *a = b->input->attend;
    if (!push_leaves(b, local ? 0 : a->n_local_leaves, local ? a->n_local_leaves : a->n_leaves))
        return false;
    for (uint32_t j = local ? 0 : a->n_local; j < (local ? a->n_local : a->n_jobs); j++)
        if (!push_job(b, j))
            return false;
    return true;
}

bool cpu_units_build(struct backend *b)
{
    b->n_units = 0;
    b->parts_read = b->parts_dense = b->open_read = 0;
    if (!push_units(b, true))
        return false;
    b->n_local_units = b->n_units;
    return push_units(b, false) &&
           cpu_reserve(&b->store, &b->store_room, b->input->attend->n_store * b->partial_floats * sizeof(float));
}

/* Query vector v of a job: local ones stand in Q, others in the received window, as they were rounded at their home; then they are unpacked to `to`. */
const float *cpu_query_vector(const struct backend *b, const struct attend_job *job, uint32_t head, uint32_t v,
                              float *to)
{
    const struct model_config *c = b->config;
    const uint32_t group = c->n_heads / c->n_kv_heads, width = c->n_heads * c->head_dim, row = job->row + v / group,
                   at = (head * group + v % group) * c->head_dim;
    if (job->local)
        return (const float *)(const void *)b->tensor[TENSOR_Q].data + row * b->tensor[TENSOR_Q].stride + at;
    if (b->float32)
        return (const float *)(const void *)b->window + (size_t)row * width + at;
    const uint16_t *from = (const uint16_t *)(const void *)b->window + (size_t)row * width + at;
    for (uint32_t d = 0; d < c->head_dim; d++)
        to[d] = bf16_to_f32(from[d]);
    return to;
}

const struct cpu_reader *cpu_unit_reader(const struct backend *b, const struct cpu_unit *u)
{
    const struct attend *a = b->input->attend;
    return &b->reader[u->leaf == UINT32_MAX ? a->jobs[u->job].cls : a->leaves[u->leaf].cls];
}

/* Queries of a unit, for sealed blocks: tile t of its member's. */
static void pack(const struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t layer,
                 const float *const *q, uint32_t n, uint32_t t)
{
    const struct cpu_reader *r = cpu_unit_reader(b, u);
    const struct cpu_part_id id = { layer, u->head, 0 };
    struct attn_shape shape = r->shape;
    struct cpu_book book;
    shape.books = r->expands ? NULL : cpu_book_of(b, &id, &book);
    r->attn->pack_q(&shape, q, n, m->q_tiles + t * r->q_tile_bytes);
}

/* The query vectors of the unit's tile t, packed for sealed blocks and, in the own leaf, for open ones. */
static void pack_tile(const struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t layer,
                      uint32_t t)
{
    const struct attend_job *job = &b->input->attend->jobs[u->job];
    const uint32_t tile = u->tile + t, n = cpu_tile_vectors(b, job, tile);
    const float *q[ATTN_ROWS];
    for (uint32_t i = 0; i < n; i++)
        q[i] = cpu_query_vector(b, job, u->head, tile * ATTN_ROWS + i, m->queries + i * b->config->head_dim);
    pack(b, m, u, layer, q, n, t);
    if (u->fine == UINT32_MAX && cpu_unit_reader(b, u)->attn != b->open)
        b->open->pack_q(&b->open_shape, q, n, m->open_q_tiles + t * b->open_q_tile_bytes);
}

enum own { OWN_OPEN = 1, OWN_SEALED = 2, OWN_ALL = 3 };

/*
 * Positions of block c of the own leaf (starting at position `first`) that the tile's vectors see: rows of that block see it open, later ones sealed.
 * Of the forms that `which` names. false: none of them sees any.
 */
static bool own_visible(const struct backend *b, const struct attend_job *job, uint32_t tile, uint32_t first,
                        enum own which, uint8_t visible[ATTN_ROWS])
{
    const uint32_t group = b->config->n_heads / b->config->n_kv_heads, n = cpu_tile_vectors(b, job, tile);
    bool any = false;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t pos = job->pos + (tile * ATTN_ROWS + i) / group;
        const uint32_t before = pos < first ? 0 : pos - first + 1, sees = before < KV_BLOCK ? before : KV_BLOCK;
        const enum own form = pos < first + KV_BLOCK ? OWN_OPEN : OWN_SEALED;
        visible[i] = (uint8_t)(form & which ? sees : 0);
        any = any || visible[i];
    }
    return any;
}

void cpu_partial_clear(const struct backend *b, float *tile)
{
    for (int i = 0; i < ATTN_ROWS; i++)
        tile[i] = -INFINITY;
    memset(tile + ATTN_ROWS, 0, (b->partial_floats - ATTN_ROWS) * sizeof(float));
}

float *cpu_stack_tile(const struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t depth,
                      uint32_t t)
{
    return m->stack +
           ((size_t)depth * (u->leaf == UINT32_MAX ? CPU_UNIT_TILES : CPU_LEAF_TILES) + t) * b->partial_floats;
}

/* The block after code[i] in a program that ends before `end`, or UINT32_MAX. */
static uint32_t next_slot(const uint32_t *code, uint32_t i, uint32_t end)
{
    do
        i++;
    while (i < end && code[i] == TREE_MERGE);
    return i < end ? code[i] : UINT32_MAX;
}

/* Vectors in the unit's tile t. */
uint32_t cpu_unit_vectors(const struct backend *b, const struct cpu_unit *u, uint32_t t)
{
    const struct attend *a = b->input->attend;
    if (u->leaf == UINT32_MAX)
        return cpu_tile_vectors(b, &a->jobs[u->job], u->tile + t);
    const uint32_t left = a->leaves[u->leaf].n_vectors - (u->tile + t) * ATTN_ROWS;
    return left < ATTN_ROWS ? left : ATTN_ROWS;
}

/* spilled: what is not in the part, if it is marked */
static void expand_part(const struct backend *b, const struct attn_shape *shape, const uint8_t *part,
                        const uint8_t *next_part, const uint8_t *spilled, uint8_t *open_out)
{
    if (!kv_spilled(&b->spill, part)) {
        b->coded->expand(shape, part, next_part, open_out);
        return;
    }
    const size_t kept = b->open_part_bytes - b->spill.bytes;
    memcpy(open_out, part, kept);
    memcpy(open_out + kept, spilled, b->spill.bytes);
}

/* The block's keys and values as they were before sealing, unless they are there from the tile before. */
static void expand(const struct backend *b, struct cpu_expanded *e, const struct cpu_part_id *id, uint32_t slot,
                   const uint8_t *part, const uint8_t *next_part)
{
    const uint8_t *spilled = b->spill.bytes ? kv_pool_spill(b->input->pool, slot, id->layer, id->head) : NULL;
    struct attn_shape shape = b->coded_shape;
    struct cpu_book book;
    if (e->part == part)
        return;
    shape.books = cpu_book_of(b, id, &book);
    expand_part(b, &shape, part, next_part, spilled, e->data);
    shape.books = shape.books ? shape.books + 1 : NULL;
    expand_part(b, &shape, part + b->part_bytes, next_part ? next_part + b->part_bytes : NULL,
                spilled ? spilled + b->spill.bytes : NULL, e->data + b->open_part_bytes);
    e->part = part;
}

/* at: where in attend.code the block stands; next: the slot that will be read after this one (UINT32_MAX: none) */
void cpu_attend_block(struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t layer,
                      uint32_t at, uint32_t next, uint32_t depth, uint32_t t, const uint8_t *visible)
{
    const struct attend *a = b->input->attend;
    const struct cpu_reader *r = cpu_unit_reader(b, u);
    const struct cpu_part_id id = { layer, u->head, a->blocks.v[at] };
    const uint8_t *part = kv_pool_part(b->input->pool, a->code.v[at], layer, u->head);
    const uint8_t *next_part = next == UINT32_MAX ? NULL : kv_pool_part(b->input->pool, next, layer, u->head);
    const uint8_t *values = part + b->part_bytes;
    if (r->expands) {
        expand(b, m->expanded, &id, a->code.v[at], part, next_part);
        part = m->expanded->data;
        values = part + b->open_part_bytes;
        next_part = NULL;
    }
    r->attn->block(&r->shape, m->q_tiles + t * r->q_tile_bytes, cpu_unit_vectors(b, u, t), visible, part, values,
                   next_part, cpu_stack_tile(b, m, u, depth, t));
}

static void merge_top(struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t depth)
{
    const struct cpu_reader *r = cpu_unit_reader(b, u);
    for (uint32_t t = 0; t < u->n_tiles; t++)
        r->attn->merge(&r->shape, cpu_unit_vectors(b, u, t), cpu_stack_tile(b, m, u, depth, t),
                       cpu_stack_tile(b, m, u, depth + 1, t));
}

/* Whole leaves: all positions visible. A block is read once for the unit's tiles, so that it comes from the nearest cache. */
static void attend_whole(struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t layer,
                         uint32_t begin, uint32_t end)
{
    const struct attend *a = b->input->attend;
    uint8_t all[ATTN_ROWS];
    struct cpu_lists lists;
    uint32_t depth = 0;
    if (cpu_unit_lists(b, u, layer, &lists)) {
        cpu_attend_whole_sparse(b, m, u, layer, begin, end, &lists);
        return;
    }
    memset(all, KV_BLOCK, sizeof all);
    for (uint32_t i = begin; i < end; i++) {
        if (a->code.v[i] == TREE_MERGE) {
            depth--;
            merge_top(b, m, u, depth - 1);
            continue;
        }
        for (uint32_t t = 0; t < u->n_tiles; t++)
            cpu_attend_block(b, m, u, layer, i, t ? UINT32_MAX : next_slot(a->code.v, i, end), depth, t, all);
        depth++;
    }
}

/* Where block i of the own leaf is open. false: none of the job's rows is of that block, so nobody reads it open. */
static bool own_open(const struct backend *b, const struct attend_job *job, uint32_t first, uint32_t *open_out)
{
    const uint32_t pos = job->pos > first ? job->pos : first;
    if (pos >= first + KV_BLOCK || pos >= job->pos + job->n_rows)
        return false;
    *open_out = b->input->rows[job->row + pos - job->pos].open;
    return true;
}

/* own_visible(), and of the blocks that the vectors' lists have. lists: NULL: all */
static bool own_chosen(const struct backend *b, const struct cpu_unit *u, const struct cpu_lists *lists, uint32_t t,
                       uint32_t first, enum own which, uint8_t visible[ATTN_ROWS])
{
    return own_visible(b, &b->input->attend->jobs[u->job], u->tile + t, first, which, visible) &&
           (!lists || cpu_lists_filter(lists, t, cpu_unit_vectors(b, u, t), first / KV_BLOCK, visible));
}

/* Counts the block if the unit would read it, but for the lists. */
static void own_skipped(struct backend *b, const struct cpu_unit *u, const struct cpu_lists *lists, uint32_t first)
{
    bool dense = false, chosen = false;
    uint8_t visible[ATTN_ROWS];
    for (uint32_t t = 0; t < u->n_tiles; t++) {
        dense = dense || own_chosen(b, u, NULL, t, first, OWN_ALL, visible);
        chosen = chosen || own_chosen(b, u, lists, t, first, OWN_ALL, visible);
    }
    if (dense && !chosen)
        atomic_fetch_add_explicit(&b->parts_skipped, 1, memory_order_relaxed);
}

/*
 * Block i of the own leaf for tile t of the unit, where open blocks have a form of their own: rows of the block read that, later ones the sealed
 * block, so one vector reads one of them. What is read open is turned to the basis of sealed blocks' outputs.
 */
static void attend_own_block(struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t layer,
                             uint32_t i, uint32_t t, const struct cpu_lists *lists)
{
    const struct attend_job *job = &b->input->attend->jobs[u->job];
    const struct cpu_reader *r = cpu_unit_reader(b, u);
    const uint32_t leaf = CPU_LEAF_BLOCKS * KV_BLOCK, first = job->pos / leaf * leaf + i * KV_BLOCK,
                   n = cpu_unit_vectors(b, u, t), slot = b->input->attend->code.v[job->own_begin + i];
    uint8_t visible[ATTN_ROWS];
    uint32_t open;
    float *to = cpu_stack_tile(b, m, u, i, t);
    const bool sealed = own_chosen(b, u, lists, t, first, OWN_SEALED, visible);
    if (sealed)
        cpu_attend_block(b, m, u, layer, job->own_begin + i, UINT32_MAX, i, t, visible);
    if (!own_open(b, job, first, &open) || !own_chosen(b, u, lists, t, first, OWN_OPEN, visible)) {
        if (!sealed)
            cpu_partial_clear(b, to);
        return;
    }
    const uint8_t *part = cpu_open_part(b, slot, open, layer, u->head);
    float *own = sealed ? cpu_stack_tile(b, m, u, CPU_LEAF_BLOCKS, t) : to;
    b->open->block(&b->open_shape, (r->attn == b->open ? m->q_tiles : m->open_q_tiles) + t * b->open_q_tile_bytes, n,
                   visible, part, part + b->open_part_bytes, NULL, own);
    if (r->attn->rotate)
        r->attn->rotate(&r->shape, n, own);
    if (sealed)
        r->attn->merge(&r->shape, n, to, own);
}

/* The own leaf: blocks before the own one whole, the own one up to the row's position; pieces join by adjacent pairs. */
static void attend_own(struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t layer)
{
    const struct attend *a = b->input->attend;
    const struct attend_job *job = &a->jobs[u->job];
    const struct cpu_reader *r = cpu_unit_reader(b, u);
    const uint32_t leaf = CPU_LEAF_BLOCKS * KV_BLOCK, first = job->pos / leaf * leaf, n = job->own_end - job->own_begin;
    struct cpu_lists chosen, *lists = cpu_unit_lists(b, u, layer, &chosen) ? &chosen : NULL;
    for (uint32_t i = 0; i < n; i++) {
        if (lists)
            own_skipped(b, u, lists, first + i * KV_BLOCK);
        for (uint32_t t = 0; t < u->n_tiles; t++) {
            uint8_t visible[ATTN_ROWS];
            if (!b->in_place)
                attend_own_block(b, m, u, layer, i, t, lists);
            else if (own_chosen(b, u, lists, t, first + i * KV_BLOCK, OWN_ALL, visible))
                cpu_attend_block(b, m, u, layer, job->own_begin + i,
                                 t || i + 1 == n ? UINT32_MAX : a->code.v[job->own_begin + i + 1], i, t, visible);
            else
                cpu_partial_clear(b, cpu_stack_tile(b, m, u, i, t));
        }
    }
    for (uint32_t step = 1; step < n; step *= 2)
        for (uint32_t i = 0; i + step < n; i += 2 * step)
            for (uint32_t t = 0; t < u->n_tiles; t++)
                r->attn->merge(&r->shape, cpu_tile_vectors(b, job, u->tile + t), cpu_stack_tile(b, m, u, i, t),
                               cpu_stack_tile(b, m, u, i + step, t));
}

/* Where a user's vector is among the unit's, and among its job's: the unit has some of the leaf's vectors. */
struct part {
    uint32_t tile, at; /* of the unit */
    uint32_t v;        /* of the job */
};

/* The user's next vector from v on that is the unit's. false: there is none. */
static bool part_next(const struct backend *b, const struct cpu_unit *u, const struct attend_user *user, uint32_t v,
                      struct part *part_out)
{
    const struct attend *a = b->input->attend;
    const uint32_t n = a->jobs[user->job].n_rows * (b->config->n_heads / b->config->n_kv_heads),
                   first = u->tile * ATTN_ROWS, end = (u->tile + u->n_tiles) * ATTN_ROWS;
    if (user->vector + v < first)
        v = first - user->vector;
    if (v >= n || user->vector + v >= end)
        return false;
    const uint32_t at = user->vector + v - first;
    *part_out = (struct part){ .tile = at / ATTN_ROWS, .at = at % ATTN_ROWS, .v = v };
    return true;
}

static void pack_leaf(const struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t layer)
{
    const struct attend *a = b->input->attend;
    const struct attend_leaf *leaf = &a->leaves[u->leaf];
    const float *q[ATTN_ROWS];
    uint32_t tile = 0, n = 0;
    struct part part;
    for (uint32_t i = leaf->user; i < leaf->user + leaf->n_users; i++) {
        const struct attend_user *user = &a->users[i];
        for (uint32_t v = 0; part_next(b, u, user, v, &part); v = part.v + 1) {
            if (part.tile != tile) {
                pack(b, m, u, layer, q, n, tile);
                tile = part.tile;
                n = 0;
            }
            q[n++] =
                cpu_query_vector(b, &a->jobs[user->job], u->head, part.v, m->queries + part.at * b->config->head_dim);
        }
    }
    pack(b, m, u, layer, q, n, tile);
}

/* The partials of a shared leaf go to each user's item. */
static void hand_out(struct backend *b, const struct cpu_member *m, const struct cpu_unit *u)
{
    const struct attend *a = b->input->attend;
    const struct attend_leaf *leaf = &a->leaves[u->leaf];
    const size_t head_dim = b->config->head_dim;
    struct part part;
    for (uint32_t i = leaf->user; i < leaf->user + leaf->n_users; i++) {
        const struct attend_user *user = &a->users[i];
        for (uint32_t v = 0; part_next(b, u, user, v, &part); v = part.v + 1) {
            const float *from = cpu_stack_tile(b, m, u, 0, part.tile);
            float *to = cpu_store_tile(b, &a->jobs[user->job], user->item, u->head, part.v / ATTN_ROWS);
            const uint32_t at = part.v % ATTN_ROWS;
            to[at] = from[part.at];
            to[ATTN_ROWS + at] = from[ATTN_ROWS + part.at];
            memcpy(to + 2 * ATTN_ROWS + at * head_dim, from + 2 * ATTN_ROWS + part.at * head_dim,
                   head_dim * sizeof(float));
        }
    }
}

static void attend_job_unit(struct backend *b, struct cpu_member *m, const struct cpu_unit *u, uint32_t layer)
{
    const struct attend *a = b->input->attend;
    const struct attend_job *job = &a->jobs[u->job];
    for (uint32_t t = 0; t < u->n_tiles; t++)
        pack_tile(b, m, u, layer, t);
    if (u->fine == UINT32_MAX)
        attend_own(b, m, u, layer);
    else
        attend_whole(b, m, u, layer, a->fines[u->fine].begin, a->fines[u->fine].end);
    for (uint32_t t = 0; t < u->n_tiles; t++)
        memcpy(cpu_store_tile(b, job, u->item, u->head, u->tile + t), cpu_stack_tile(b, m, u, 0, t),
               b->partial_floats * sizeof(float));
}

/* Rows of several sequences in one pass over what they share: each vector by itself, so that its bits are those it has alone. */
static void attend_leaf_unit(struct backend *b, struct cpu_member *m, const struct cpu_unit *u, uint32_t layer)
{
    const struct attend_leaf *leaf = &b->input->attend->leaves[u->leaf];
    pack_leaf(b, m, u, layer);
    attend_whole(b, m, u, layer, leaf->begin, leaf->end);
    hand_out(b, m, u);
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
        if (m->expanded)
            m->expanded->part = NULL;
        if (u->leaf == UINT32_MAX)
            attend_job_unit(b, m, u, op->layer);
        else
            attend_leaf_unit(b, m, u, op->layer);
    }
}

/* Runs a program over items for one tile; items merge in place into the leftmost, which is returned. */
static float *run_program(struct backend *b, const struct attend_job *job, uint32_t begin, uint32_t end, uint32_t head,
                          uint32_t tile)
{
    const uint32_t *code = b->input->attend->code.v, n = cpu_tile_vectors(b, job, tile);
    const struct cpu_reader *r = &b->reader[job->cls];
    float *stack[CPU_STACK];
    uint32_t depth = 0;
    for (uint32_t i = begin; i < end; i++) {
        if (code[i] != TREE_MERGE) {
            stack[depth++] = cpu_store_tile(b, job, code[i], head, tile);
            continue;
        }
        depth--;
        r->attn->merge(&r->shape, n, stack[depth - 1], stack[depth]);
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
    float *p = run_program(b, job, job->final_begin, job->final_end, head, tile);
    bool finite = true;
    if (b->reader[job->cls].attn->rotate)
        b->reader[job->cls].attn->rotate(&b->reader[job->cls].shape, n, p);
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
