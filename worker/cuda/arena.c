#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/cuda/gpu.h"

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
    const uint32_t half = c->head_dim / 2, n = b->input->n_rows;
    struct cuda_row *rows = gpu_list_push(&b->list[SECTION_ROWS], n * sizeof *rows);
    float *cosines = gpu_list_push(&b->list[SECTION_COS], (size_t)n * half * sizeof(float));
    float *sines = gpu_list_push(&b->list[SECTION_SIN], (size_t)n * half * sizeof(float));
    float *x = gpu_list_push(&b->list[SECTION_EMBED], (size_t)n * c->d_model * sizeof(float));
    if (!rows || !cosines || !sines || !x)
        return false;
    for (uint32_t r = 0; r < n; r++) {
        const struct step_row *row = &b->input->rows[r];
        rows[r] = (struct cuda_row){ row->slot, row->pos % KV_BLOCK };
        for (uint32_t i = 0; i < half; i++) {
            const double angle = (double)row->pos * c->inv_freq[i];
            cosines[(size_t)r * half + i] = (float)(cos(angle) * c->rope_scale);
            sines[(size_t)r * half + i] = (float)(sin(angle) * c->rope_scale);
        }
        weight_row_f32(b->embedding.codec, model_tensor_row(&b->embedding, (uint32_t)row->token, b->row_scratch),
                       c->d_model, x + (size_t)r * c->d_model);
    }
    for (uint32_t i = 0; i < b->input->n_asks; i++)
        if (!push_u32(b, SECTION_WHICH, b->input->asks[i].row))
            return false;
    return true;
}

/* ---- units ---- */

/*
 * A program over pool slots as the kernel wants it: slots, and for each leaf how many partials of the stack it closes. Merges inside a leaf are left
 * out: there the kernel has an order of its own.
 */
static bool push_program(struct backend *b, uint32_t begin, uint32_t end)
{
    const uint32_t *code = b->input->attend->code.v;
    uint32_t in_leaf = 0, inner = 0, depth = 0;
    struct gpu_list *merges = &b->list[SECTION_MERGES];
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
            if (!push_u32(b, SECTION_SLOTS, code[i]))
                return false;
        } else if (inner > 1) {
            inner--;
        } else {
            merges->data[merges->bytes - 1]++;
            depth--;
        }
    }
    return true;
}

static bool push_pass(struct backend *b, const struct attend_job *job, uint32_t pass)
{
    const struct attend *a = b->input->attend;
    const uint32_t n_kv_heads = b->config->n_kv_heads, group = b->config->n_heads / n_kv_heads;
    const bool own = pass == job->n_fine, wide = job->n_tiles > CUDA_UNIT_TILES;
    const uint32_t begin = own ? job->own_begin : a->fines[job->fine + pass].begin,
                   end = own ? job->own_end : a->fines[job->fine + pass].end,
                   step = wide ? CUDA_WIDE_TILES : CUDA_UNIT_TILES, first = count_of(b, SECTION_SLOTS, 4),
                   merges = count_of(b, SECTION_MERGES, 1), leaf = CUDA_LEAF_BLOCKS * KV_BLOCK;
    struct gpu_list *list = &b->list[SECTION_UNITS + (job->local ? 0 : 2) + (wide ? 1 : 0)];
    if (!push_program(b, begin, end))
        return false;
    const uint32_t n_blocks = count_of(b, SECTION_SLOTS, 4) - first;
    for (uint32_t head = 0; head < n_kv_heads; head++) {
        for (uint32_t tile = 0; tile < job->n_tiles; tile += step) {
            struct cuda_unit *u = gpu_list_push(list, sizeof *u);
            if (!u)
                return false;
            const uint32_t n = job->n_rows * group,
                           last = (tile + step) * ATTN_ROWS < n ? (tile + step) * ATTN_ROWS : n,
                           seen = job->pos % leaf + (last - 1) / group + 1;
            *u = (struct cuda_unit){
                .slot = first,
                .n_blocks =
                    own && (seen + KV_BLOCK - 1) / KV_BLOCK < n_blocks ? (seen + KV_BLOCK - 1) / KV_BLOCK : n_blocks,
                .merges = merges,
                .head = head,
                .row = job->local ? job->row : b->cap + job->row,
                .vector = tile * ATTN_ROWS,
                .n_vectors = n,
                .visible = own ? job->pos % leaf : UINT32_MAX,
                .store = job->store + (pass * n_kv_heads + head) * job->n_tiles + tile,
            };
            b->parts_read += u->n_blocks;
        }
    }
    return true;
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
        for (uint32_t pass = 0; pass < a->jobs[j].n_fine + (a->jobs[j].local ? 1 : 0); pass++)
            if (!push_pass(b, &a->jobs[j], pass))
                return false;
    for (int i = 0; i < 4; i++) {
        struct gpu_list *list = &b->list[SECTION_UNITS + i];
        const uint32_t n = count_of(b, SECTION_UNITS + i, sizeof(struct cuda_unit));
        if (n)
            qsort(list->data, n, sizeof(struct cuda_unit), heavier);
        if (!push_u32(b, SECTION_COUNTS, n))
            return false;
    }
    return true;
}

/* ---- joins ---- */

struct merge {
    uint32_t level, into, from;
};

/* The merges of programs begin .. end, each with its level: one more than the higher of its two sides. */
static bool program_merges(struct backend *b, uint32_t begin, uint32_t end, struct gpu_list *out, uint32_t *item_out)
{
    const uint32_t *code = b->input->attend->code.v;
    uint32_t item[CUDA_STACK], level[CUDA_STACK], depth = 0;
    for (uint32_t i = begin; i < end; i++) {
        if (code[i] != TREE_MERGE) {
            if (depth == CUDA_STACK)
                return false;
            item[depth] = code[i];
            level[depth++] = 0;
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
    struct gpu_list merges = { 0 };
    bool ok = true;
    for (uint32_t j = 0; j < a->n_jobs && ok; j++) {
        const struct attend_job *job = &a->jobs[j];
        const int side = job->local ? 0 : 1;
        struct cuda_join join = { .store = job->store,
                                  .n_tiles = job->n_tiles,
                                  .n_vectors = job->n_rows * (b->config->n_heads / b->config->n_kv_heads),
                                  .n_items = job->n_items,
                                  .row = job->row,
                                  .first = b->join_blocks[side] };
        uint32_t item = 0;
        merges.bytes = 0;
        if (job->local)
            ok = program_merges(b, job->final_begin, job->final_end, &merges, &join.item);
        for (uint32_t i = job->node; i < job->node + job->n_nodes && ok; i++)
            ok = program_merges(b, a->nodes[i].begin, a->nodes[i].end, &merges, &item);
        ok = ok && push_levels(b, &merges, &join);
        struct cuda_join *at = ok ? gpu_list_push(&b->list[SECTION_JOINS + side], sizeof join) : NULL;
        ok = at != NULL;
        if (at)
            *at = join;
        b->join_blocks[side] += b->config->n_kv_heads * job->n_tiles;
        if (job->local)
            b->items_max = job->n_items > b->items_max ? job->n_items : b->items_max;
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

enum status gpu_arena_build(struct backend *b)
{
    for (int i = 0; i < SECTIONS; i++)
        b->list[i].bytes = 0;
    b->depth = 1;
    b->items_max = b->join_blocks[0] = b->join_blocks[1] = 0;
    b->parts_read = 0;
    if (!push_rows(b) || !push_units(b) || !push_joins(b))
        return ST_NO_MEMORY;
    b->items_max = (b->items_max + 63) / 64 * 64; /* so that it seldom makes another graph */
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
        st = gpu_reserve(b, &b->store, a->n_store * b->partial_floats * sizeof(float), false);
    if (!st)
        st = gpu_reserve(
            b, &b->stack,
            cuda_stack_floats(b->config->head_dim, b->depth, (uint32_t)b->device.processors) * sizeof(float), false);
    for (int i = 0; i < SECTIONS && !st; i++)
        if (b->list[i].bytes)
            memcpy((uint8_t *)b->host_arena.data + b->list[i].offset, b->list[i].data, b->list[i].bytes);
    return st;
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
                               count_of(b, SECTION_UNITS, sizeof(struct cuda_unit)) > 0,
                               count_of(b, SECTION_UNITS + 1, sizeof(struct cuda_unit)),
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
