#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/cuda/gpu.h"

enum { ROWS_ALONE = 8 };

void *gpu_list_push(struct gpu_list *list, size_t bytes)
{
    if (!list->data || list->bytes + bytes > list->room) { /* of nothing, too, there is a place */
        const size_t room = (list->bytes + bytes) * 2 + 256;
        uint8_t *data = realloc(list->data, room);
        if (!data)
            return NULL;
        list->data = data;
        list->room = room;
    }
    void *at = list->data + list->bytes;
    list->bytes += bytes;
    return at;
}

bool gpu_host_reserve(void *p, size_t *room, size_t bytes)
{
    void **at = p;
    if (bytes <= *room && *at)
        return true;
    free(*at);
    *at = malloc(bytes + bytes / 4 + 64);
    *room = *at ? bytes + bytes / 4 : 0;
    return *at != NULL;
}

static bool push_u32(struct backend *b, int section, uint32_t value)
{
    uint32_t *at = gpu_list_push(&b->list[section], sizeof value);
    if (at)
        *at = value;
    return at != NULL;
}

static uint32_t count_of(const struct backend *b, int section, size_t size)
{
    return (uint32_t)(b->list[section].bytes / size);
}

/* ---- rows ---- */

static bool push_rows(struct backend *b)
{
    const struct model_config *c = b->config;
    const size_t n = b->input->n_rows;
    struct cuda_row *rows = gpu_list_push(&b->list[SECTION_ROWS], n * sizeof *rows);
    for (uint32_t r = 0; rows && r < n; r++) {
        const struct step_row *row = &b->input->rows[r];
        rows[r] = (struct cuda_row){ row->open == STEP_IN_PLACE ? row->slot : row->open, row->pos % KV_BLOCK };
    }
    b->list[SECTION_COS].bytes = b->list[SECTION_SIN].bytes = n * (c->head_dim / 2) * sizeof(float);
    b->list[SECTION_EMBED].bytes = n * c->d_model * sizeof(float);
    for (uint32_t i = 0; i < b->input->n_asks; i++)
        if (!push_u32(b, SECTION_WHICH, b->input->asks[i].row))
            return false;
    return rows != NULL;
}

static float *host_at(const struct backend *b, int section)
{
    return (float *)(void *)((uint8_t *)b->host_arena.data + b->list[section].offset);
}

/* Angles and embeddings of a member's share of the rows. */
static void rows_share(void *ctx, uint32_t member, uint32_t n_members)
{
    struct backend *b = ctx;
    const struct model_config *c = b->config;
    const uint32_t half = c->head_dim / 2;
    float *cosines = host_at(b, SECTION_COS), *sines = host_at(b, SECTION_SIN), *x = host_at(b, SECTION_EMBED);
    uint32_t begin, end;
    team_share(b->input->n_rows, member, n_members, &begin, &end);
    for (uint32_t r = begin; r < end; r++) {
        const struct step_row *row = &b->input->rows[r];
        for (uint32_t i = 0; i < half; i++) {
            const double angle = (double)row->pos * c->inv_freq[i];
            cosines[(size_t)r * half + i] = (float)(cos(angle) * c->rope_scale);
            sines[(size_t)r * half + i] = (float)(sin(angle) * c->rope_scale);
        }
        weight_row_f32(
            b->embedding.codec,
            model_tensor_row(&b->embedding, (uint32_t)row->token, b->row_scratch + member * b->row_scratch_bytes),
            c->d_model, x + (size_t)r * c->d_model);
    }
}

/* Local jobs have an item more where open blocks have a form of their own. */
static uint32_t job_items(const struct backend *b, const struct attend_job *job)
{
    return job->n_items + (job->local && b->open_part_bytes ? 1 : 0);
}

/* ---- units ---- */

/*
 * A program over pool slots as the kernel wants it: slots, and for each leaf how many partials of the stack it closes. Merges inside a leaf are left
 * out: there the kernel has an order of its own.
 */
static bool push_program(struct backend *b, uint32_t begin, uint32_t end)
{
    const uint32_t *code = b->input->attend->code.v;
    uint32_t in_leaf = 0, inner = 0, depth = 0, n = 0;
    struct gpu_list *merges = &b->list[SECTION_MERGES],
                    *lists[] = { &b->list[SECTION_SLOTS], &b->list[SECTION_BLOCKS] };
    const size_t most = (end - begin) * sizeof(uint32_t); /* what merges take of it is given back */
    uint32_t *slots = gpu_list_push(lists[0], most), *blocks = b->selects ? gpu_list_push(lists[1], most) : NULL;
    if (!slots || (b->selects && !blocks))
        return false;
    for (uint32_t i = begin; i < end; i++) {
        if (code[i] != TREE_MERGE) {
            if (in_leaf == CUDA_LEAF_BLOCKS || i == begin) {
                uint8_t *leaf = gpu_list_push(merges, 1);
                if (!leaf)
                    return false;
                *leaf = 0;
                in_leaf = inner = 0;
                depth++;
                b->depth = depth > b->depth ? depth : b->depth;
            }
            in_leaf++;
            inner++;
            if (blocks)
                blocks[n] = b->input->attend->blocks.v[i];
            slots[n++] = code[i];
        } else if (inner > 1) {
            inner--;
        } else {
            merges->data[merges->bytes - 1]++;
            depth--;
        }
    }
    for (int i = 0; i < (blocks ? 2 : 1); i++)
        lists[i]->bytes -= most - n * sizeof(uint32_t);
    return true;
}

/* What units of a job differ in, but for head and vectors: an item, whose blocks stand at slots `slot` .. */
struct pass {
    uint32_t job, item, slot, n_blocks, merges;
    enum cuda_sees sees;
    bool own; /* of the own leaf */
    bool coded;
};

/* The unit's blocks: of the own leaf, those that its vectors see any position of. */
static void unit_blocks(const struct backend *b, const struct pass *p, const struct attend_job *job,
                        struct cuda_unit *u, uint32_t vectors)
{
    const uint32_t group = b->config->n_heads / b->config->n_kv_heads, leaf = CUDA_LEAF_BLOCKS * KV_BLOCK,
                   last = (u->vector + vectors < u->n_vectors ? u->vector + vectors : u->n_vectors) - 1,
                   seen = job->pos % leaf + last / group + 1, blocks = (seen + KV_BLOCK - 1) / KV_BLOCK;
    if (p->sees == CUDA_SEES_OWN) { /* slots are those of the job's rows, from its first row's block on */
        const uint32_t in = job->pos % KV_BLOCK, from = (in + u->vector / group) / KV_BLOCK;
        u->slot = p->slot + from;
        u->n_blocks = (in + last / group) / KV_BLOCK - from + 1;
        u->visible = in - from * KV_BLOCK;
    } else if (p->own) {
        u->n_blocks = p->sees == CUDA_SEES_BEFORE ? (seen - 1) / KV_BLOCK : blocks < p->n_blocks ? blocks : p->n_blocks;
        u->visible = job->pos % leaf;
    }
}

static bool push_pass(struct backend *b, const struct pass *p)
{
    const struct attend_job *job = &b->input->attend->jobs[p->job];
    const uint32_t n_kv_heads = b->config->n_kv_heads, group = b->config->n_heads / n_kv_heads;
    const bool wide = !p->coded && job->n_tiles > CUDA_UNIT_TILES;
    const uint32_t step = wide ? CUDA_WIDE_TILES : CUDA_UNIT_TILES, side = job->local ? 0 : 1,
                   vectors = job->n_rows * group, most = step * ATTN_ROWS;
    const int list = p->coded ? UNITS_LOCAL_CODED + (int)side : UNITS_LOCAL + 2 * (int)side + (wide ? 1 : 0);
    if (p->coded && b->coded_vectors[side] < most)
        b->coded_vectors[side] =
            vectors < most ? vectors > b->coded_vectors[side] ? vectors : b->coded_vectors[side] : most;
    for (uint32_t head = 0; head < n_kv_heads; head++) {
        for (uint32_t tile = 0; tile < job->n_tiles; tile += step) {
            struct cuda_unit *u = gpu_list_push(&b->list[SECTION_UNITS + list], sizeof *u);
            if (!u)
                return false;
            *u = (struct cuda_unit){
                .slot = p->slot,
                .n_blocks = p->n_blocks,
                .merges = p->merges,
                .head = head,
                .row = job->local ? job->row : b->cap + job->row,
                .vector = tile * ATTN_ROWS,
                .n_vectors = vectors,
                .visible = UINT32_MAX,
                .sees = p->sees,
                .store = b->job_store[p->job] + (p->item * n_kv_heads + head) * job->n_tiles + tile,
            };
            unit_blocks(b, p, job, u, most);
            if (b->selects && p->sees != CUDA_SEES_OWN) { /* the own block is always read */
                const struct select_job *sparse = &b->input->select->jobs[p->job];
                u->list = (uint32_t)sparse->at;
                u->words = sparse->density ? sparse->words : 0;
                u->position = job->pos % KV_BLOCK;
            }
            *(p->sees == CUDA_SEES_OWN ? &b->open_read : &b->parts_read) += u->n_blocks;
        }
    }
    return true;
}

static bool pass_program(struct backend *b, struct pass *p, uint32_t begin, uint32_t end)
{
    p->slot = count_of(b, SECTION_SLOTS, 4);
    p->merges = count_of(b, SECTION_MERGES, 1);
    if (!push_program(b, begin, end))
        return false;
    p->n_blocks = count_of(b, SECTION_SLOTS, 4) - p->slot;
    return true;
}

/* The rows' own blocks, in their open form: an item beside that of the sealed blocks of their leaf. */
static bool push_open(struct backend *b, uint32_t j)
{
    const struct attend_job *job = &b->input->attend->jobs[j];
    struct pass p = { .job = j, .item = job->n_items, .sees = CUDA_SEES_OWN, .own = true };
    p.slot = count_of(b, SECTION_SLOTS, 4);
    p.merges = count_of(b, SECTION_MERGES, 1);
    uint8_t *none = gpu_list_push(&b->list[SECTION_MERGES], 1);
    if (!none)
        return false;
    *none = 0;
    for (uint32_t r = 0; r < job->n_rows; r++) {
        const struct step_row *row = &b->input->rows[job->row + r];
        if (r && row->pos % KV_BLOCK)
            continue;
        if (!push_u32(b, SECTION_SLOTS, row->open) || (b->selects && !push_u32(b, SECTION_BLOCKS, row->pos / KV_BLOCK)))
            return false;
    }
    return push_pass(b, &p);
}

static bool push_job(struct backend *b, uint32_t j)
{
    const struct attend *a = b->input->attend;
    const struct attend_job *job = &a->jobs[j];
    const bool coded = b->open_part_bytes > 0;
    for (uint32_t f = 0; f < job->n_fine; f++) {
        struct pass p = { .job = j, .item = f, .coded = coded };
        if (!pass_program(b, &p, a->fines[job->fine + f].begin, a->fines[job->fine + f].end) || !push_pass(b, &p))
            return false;
    }
    struct pass own = { .job = j,
                        .item = job->n_fine,
                        .sees = coded ? CUDA_SEES_BEFORE : CUDA_SEES_POSITIONS,
                        .own = true,
                        .coded = coded };
    if (!job->local)
        return true;
    return pass_program(b, &own, job->own_begin, job->own_end) && push_pass(b, &own) && (!coded || push_open(b, j));
}

static int heavier(const void *x, const void *y)
{
    const uint32_t a = ((const struct cuda_unit *)x)->n_blocks, b = ((const struct cuda_unit *)y)->n_blocks;
    return (a < b) - (a > b);
}

static bool push_units(struct backend *b)
{
    const struct attend *a = b->input->attend;
    for (uint32_t j = 0; j < a->n_jobs; j++)
        if (!push_job(b, j))
            return false;
    for (int i = 0; i < UNIT_LISTS; i++) {
        struct gpu_list *list = &b->list[SECTION_UNITS + i];
        const uint32_t n = count_of(b, SECTION_UNITS + i, sizeof(struct cuda_unit));
        if (n)
            qsort(list->data, n, sizeof(struct cuda_unit), heavier);
        if (!push_u32(b, SECTION_COUNTS, n))
            return false;
    }
    return true;
}

static bool push_seals(struct backend *b)
{
    const uint32_t n = b->open_part_bytes ? b->input->n_seals : 0;
    struct cuda_seal *jobs = gpu_list_push(&b->list[SECTION_SEALS], n * sizeof *jobs);
    for (uint32_t i = 0; jobs && i < n; i++)
        jobs[i] = (struct cuda_seal){ b->input->seals[i].open, b->input->seals[i].slot };
    return jobs && push_u32(b, SECTION_COUNTS, n);
}

/* ---- joins ---- */

struct merge {
    uint32_t level, into, from;
};

/* The merges of programs begin .. end, each with its level: one more than the higher of its two sides. late: an item whose level is 1. */
static bool program_merges(struct backend *b, uint32_t begin, uint32_t end, uint32_t late, struct gpu_list *out,
                           uint32_t *item_out)
{
    const uint32_t *code = b->input->attend->code.v;
    uint32_t item[CUDA_STACK], level[CUDA_STACK], depth = 0;
    for (uint32_t i = begin; i < end; i++) {
        if (code[i] != TREE_MERGE) {
            if (depth == CUDA_STACK)
                return false;
            item[depth] = code[i];
            level[depth++] = code[i] == late;
            continue;
        }
        struct merge *m = gpu_list_push(out, sizeof *m);
        if (!m)
            return false;
        depth--;
        level[depth - 1] = (level[depth - 1] > level[depth] ? level[depth - 1] : level[depth]) + 1;
        *m = (struct merge){ level[depth - 1], item[depth - 1], item[depth] };
    }
    *item_out = item[0];
    return true;
}

/* Merges by level, borders of levels. */
static bool push_levels(struct backend *b, const struct gpu_list *merges, struct cuda_join *join)
{
    const struct merge *m = (const struct merge *)(const void *)merges->data;
    const uint32_t n = (uint32_t)(merges->bytes / sizeof *m);
    uint32_t left = n;
    join->level = count_of(b, SECTION_LEVELS, 4);
    for (uint32_t level = 1; left; level++) {
        if (!push_u32(b, SECTION_LEVELS, count_of(b, SECTION_PAIRS, 8)))
            return false;
        for (uint32_t i = 0; i < n; i++) {
            if (m[i].level != level)
                continue;
            if (!push_u32(b, SECTION_PAIRS, m[i].into) || !push_u32(b, SECTION_PAIRS, m[i].from))
                return false;
            left--;
        }
        join->n_levels = level;
    }
    return push_u32(b, SECTION_LEVELS, count_of(b, SECTION_PAIRS, 8));
}

static bool push_joins(struct backend *b)
{
    const struct attend *a = b->input->attend;
    const bool coded = b->open_part_bytes > 0;
    struct gpu_list merges = { 0 };
    bool ok = true;
    for (uint32_t j = 0; j < a->n_jobs && ok; j++) {
        const struct attend_job *job = &a->jobs[j];
        const int side = job->local ? 0 : 1;
        struct cuda_join join = { .store = b->job_store[j],
                                  .n_tiles = job->n_tiles,
                                  .n_vectors = job->n_rows * (b->config->n_heads / b->config->n_kv_heads),
                                  .n_items = job_items(b, job),
                                  .row = job->row,
                                  .first = b->join_blocks[side] };
        uint32_t item = 0;
        merges.bytes = 0;
        if (job->local && coded) { /* the own leaf: its sealed blocks, then the row's own */
            struct merge *m = gpu_list_push(&merges, sizeof *m);
            ok = m != NULL;
            if (m)
                *m = (struct merge){ 1, job->n_fine, job->n_items };
        }
        if (job->local && ok)
            ok = program_merges(b, job->final_begin, job->final_end, coded ? job->n_fine : UINT32_MAX, &merges,
                                &join.item);
        for (uint32_t i = job->node; i < job->node + job->n_nodes && ok; i++)
            ok = program_merges(b, a->nodes[i].begin, a->nodes[i].end, UINT32_MAX, &merges, &item);
        ok = ok && push_levels(b, &merges, &join);
        struct cuda_join *at = ok ? gpu_list_push(&b->list[SECTION_JOINS + side], sizeof join) : NULL;
        ok = at != NULL;
        if (at)
            *at = join;
        b->join_blocks[side] += b->config->n_kv_heads * job->n_tiles;
        if (job->local)
            b->items_max = join.n_items > b->items_max ? join.n_items : b->items_max;
    }
    free(merges.data);
    return ok;
}

/* ---- the arena ---- */

/* Lists whose length the rows decide are as long as they are; others get room, so that a sequence that grows keeps its graph for a while. */
static size_t room_for(int section, size_t bytes)
{
    size_t room = 256;
    if (section < SECTION_COUNTS)
        return (bytes + 255) / 256 * 256;
    while (room < bytes)
        room *= 2;
    return room;
}

/* Where the items of each job stand. */
static bool stores_place(struct backend *b, size_t *n_store_out)
{
    const struct attend *a = b->input->attend;
    uint32_t n = 0;
    if (!gpu_host_reserve(&b->job_store, &b->job_store_room, a->n_jobs * sizeof *b->job_store))
        return false;
    for (uint32_t j = 0; j < a->n_jobs; j++) {
        b->job_store[j] = n;
        n += job_items(b, &a->jobs[j]) * b->config->n_kv_heads * a->jobs[j].n_tiles;
    }
    *n_store_out = n;
    return true;
}

enum status gpu_arena_build(struct backend *b)
{
    size_t n_store = 0;
    for (int i = 0; i < SECTIONS; i++)
        b->list[i].bytes = 0;
    b->depth = 1;
    b->items_max = b->join_blocks[0] = b->join_blocks[1] = 0;
    b->coded_vectors[0] = b->coded_vectors[1] = 0;
    b->parts_read = b->open_read = 0;
    if (!stores_place(b, &n_store) || !push_rows(b) || !push_units(b) || !push_seals(b) || !push_joins(b) ||
        !gpu_select_push(b))
        return ST_NO_MEMORY;
    const uint32_t border = b->items_max <= CUDA_JOIN_FEW ? CUDA_JOIN_FEW : 64;
    b->items_max = (b->items_max + border - 1) / border * border; /* so that it seldom makes another graph */
    b->depth = (b->depth + 7) / 8 * 8;
    size_t bytes = 0;
    for (int i = 0; i < SECTIONS; i++) {
        b->list[i].offset = bytes;
        b->list[i].cap = room_for(i, b->list[i].bytes);
        bytes += b->list[i].cap;
    }
    b->arena_bytes = bytes;
    const struct attend *a = b->input->attend;
    const size_t query = (size_t)b->config->n_heads * b->config->head_dim * 2;
    enum status st = gpu_reserve(b, &b->arena, bytes, false);
    if (!st)
        st = gpu_reserve(b, &b->host_arena, bytes, true);
    if (!st)
        st = gpu_reserve(b, &b->queries, (b->cap + (size_t)a->n_remote_rows) * query, false);
    if (!st)
        st = gpu_reserve(b, &b->store, n_store * b->partial_floats * sizeof(float), false);
    if (!st)
        st = gpu_reserve(
            b, &b->stack,
            cuda_stack_floats(b->config->head_dim, b->depth, (uint32_t)b->device.processors) * sizeof(float), false);
    for (int i = 0; i < SECTIONS && !st; i++)
        if (b->list[i].bytes && (i < SECTION_IN_PLACE || i >= SECTION_IN_PLACE_END))
            memcpy((uint8_t *)b->host_arena.data + b->list[i].offset, b->list[i].data, b->list[i].bytes);
    if (st)
        return st;
    if (b->input->n_rows < ROWS_ALONE) /* waking threads takes longer */
        rows_share(b, 0, 1);
    else
        team_run(b->team, rows_share, b);
    return ST_OK;
}

void *gpu_at(const struct backend *b, int section)
{
    return (uint8_t *)b->arena.data + b->list[section].offset;
}

uint64_t gpu_arena_key(const struct backend *b)
{
    struct hasher *h = hasher_new();
    const uint32_t shape[] = { b->input->n_rows,
                               b->input->n_asks,
                               b->join_blocks[0],
                               b->join_blocks[1],
                               b->items_max,
                               b->depth,
                               count_of(b, SECTION_UNITS + UNITS_LOCAL, sizeof(struct cuda_unit)) > 0,
                               count_of(b, SECTION_UNITS + UNITS_LOCAL_WIDE, sizeof(struct cuda_unit)),
                               count_of(b, SECTION_UNITS + UNITS_LOCAL_CODED, sizeof(struct cuda_unit)) > 0,
                               b->coded_vectors[0],
                               b->list[SECTION_SEALS].bytes > 0,
                               (uint32_t)b->list[SECTION_MAKES].bytes,
                               count_of(b, SECTION_WEIGHED, sizeof(struct cuda_walk_weights)),
                               count_of(b, SECTION_KEPT, sizeof(struct cuda_walk_kept)),
                               count_of(b, SECTION_CHOICES, sizeof(struct cuda_quest_job)),
                               b->selects,
                               b->own_max,
                               count_of(b, SECTION_JOINS, sizeof(struct cuda_join)) };
    hasher_add(h, shape, sizeof shape);
    for (int i = 0; i < SECTIONS; i++)
        hasher_add(h, &b->list[i].cap, sizeof b->list[i].cap);
    void *const pool = kv_pool_part(b->input->pool, 0, 0, 0);
    hasher_add(h, &pool, sizeof pool);
    const struct digest d = hasher_end(h);
    uint64_t key;
    memcpy(&key, d.byte, sizeof key);
    return key | 1;
}
