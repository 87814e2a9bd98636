#include "worker/attend.h"

#include <stdlib.h>

#include "kernels/kernels.h"

struct builder {
    struct attend *a;
    const struct plan *plan;
    const struct attend_shape *shape;
    const struct attend_lookup *at;
    struct error *err;
    uint16_t self;
    uint32_t my_rows; /* so far */
};

static void *grow(void *array, uint32_t n, uint32_t *room, size_t size)
{
    if (n < *room)
        return array;
    const uint32_t bigger = *room ? *room * 2 : 16;
    void *p = realloc(array, bigger * size);
    if (p)
        *room = bigger;
    return p;
}

#define GROW(array, n, room)                                                                                           \
    do {                                                                                                               \
        void *bigger_ = grow(array, n, &(room), sizeof *(array));                                                      \
        if (!bigger_)                                                                                                  \
            return ST_NO_MEMORY;                                                                                       \
        (array) = bigger_;                                                                                             \
    } while (0)

static enum status push_code(struct builder *b, uint32_t value)
{
    return u32_list_push(&b->a->code, value);
}

/* The slots of n blocks from block c on, joined by adjacent pairs. */
static enum status push_blocks(struct builder *b, uint32_t seq, uint32_t c, uint32_t n)
{
    if (n == 1) {
        const uint32_t slot = b->at->slot(b->at->ctx, seq, c);
        if (slot == UINT32_MAX)
            return error_set(b->err, ST_PROTOCOL, "plan %llu: block %u of sequence %llu is not here",
                             (unsigned long long)b->plan->number, c, (unsigned long long)b->plan->seqs[seq].id);
        return push_code(b, slot);
    }
    uint32_t half = 1;
    while (half * 2 < n)
        half *= 2;
    enum status st = push_blocks(b, seq, c, half);
    if (!st)
        st = push_blocks(b, seq, c + half, n - half);
    return st ? st : push_code(b, TREE_MERGE);
}

/* Programs over slots for the fine nodes fine_begin .. fine_end - 1 of the tree plan. */
static enum status push_fines(struct builder *b, uint32_t seq, uint32_t fine_begin, uint32_t fine_end)
{
    struct attend *a = b->a;
    for (uint32_t f = fine_begin; f < fine_end; f++) {
        const struct tree_fine *fine = &a->tree.fine[f];
        GROW(a->fines, a->n_fines, a->fines_room);
        const uint32_t index = a->n_fines++;
        a->fines[index].begin = a->code.n;
        for (uint32_t i = fine->begin; i < fine->end; i++) {
            const uint32_t leaf = a->tree.leaves.v[i];
            const enum status st = leaf == TREE_MERGE
                                       ? push_code(b, TREE_MERGE)
                                       : push_blocks(b, seq, leaf * b->plan->leaf_blocks, b->plan->leaf_blocks);
            if (st)
                return st;
        }
        a->fines[index].end = a->code.n;
    }
    return ST_OK;
}

/*
 * Finer nodes than needed cost merges; coarser ones leave threads idle. Decode steps have few tiles, so their nodes are cut until there are some
 * units a thread.
 */
static uint32_t fine_leaves(const struct builder *b, uint32_t n_tiles, uint32_t n_leaves)
{
    const uint32_t units = n_tiles * b->shape->n_kv_heads,
                   wanted = b->shape->n_threads > 1 ? 8 * b->shape->n_threads : 1;
    const uint32_t parts = units >= wanted ? 1 : (wanted + units - 1) / units;
    const uint32_t leaves = n_leaves / parts;
    return leaves ? leaves : 1;
}

static uint32_t run_tiles(const struct builder *b, const struct plan_run *run)
{
    const uint32_t group = b->shape->n_heads / b->shape->n_kv_heads;
    return (run->n_rows * group + ATTN_ROWS - 1) / ATTN_ROWS;
}

static enum status build_tree(struct builder *b, const struct plan_run *run, uint32_t leaf)
{
    const uint16_t *readers = b->at->readers(b->at->ctx, run->seq, leaf);
    if (leaf && !readers)
        return error_set(b->err, ST_PROTOCOL, "plan %llu: sequence %llu has no readers for %u leaves",
                         (unsigned long long)b->plan->number, (unsigned long long)b->plan->seqs[run->seq].id, leaf);
    return tree_build(&b->a->tree, leaf, readers, PLAN_SLOTS, b->self, fine_leaves(b, run_tiles(b, run), leaf));
}

/* The own leaf, and the whole tree: received nodes become items behind the own leaf, in tree order. */
static enum status local_job(struct builder *b, uint32_t r)
{
    struct attend *a = b->a;
    const struct plan_run *run = &b->plan->runs[r];
    const uint32_t leaf_positions = b->plan->leaf_blocks * PLAN_BLOCK, leaf = run->pos / leaf_positions;
    enum status st = build_tree(b, run, leaf);
    if (st)
        return st;
    GROW(a->jobs, a->n_jobs, a->jobs_room);
    struct attend_job *job = &a->jobs[a->n_jobs++];
    *job = (struct attend_job){
        .run = r, .home = b->self, .local = true, .n_rows = run->n_rows, .pos = run->pos, .row = b->my_rows
    };
    b->my_rows += run->n_rows;
    job->n_tiles = run_tiles(b, run);
    job->n_fine = a->tree.n_fine;
    job->fine = a->n_fines;
    job->n_items = job->n_fine + 1;
    st = push_fines(b, run->seq, 0, a->tree.n_fine);
    if (st)
        return st;
    job->own_begin = a->code.n;
    const uint32_t last = (run->pos + run->n_rows - 1) / PLAN_BLOCK;
    for (uint32_t c = leaf * b->plan->leaf_blocks; c <= last && !st; c++)
        st = push_blocks(b, run->seq, c, 1);
    job->own_end = a->code.n;
    if (st)
        return st;
    job->final_begin = a->code.n;
    for (uint32_t i = 0; i < a->tree.top.n && !st; i++) {
        const uint32_t x = a->tree.top.v[i];
        if (x == TREE_MERGE || a->tree.nodes[x].reader != b->self) {
            st = push_code(b, x == TREE_MERGE ? TREE_MERGE : job->n_items++);
            continue;
        }
        const struct tree_node *node = &a->tree.nodes[x];
        for (uint32_t k = node->join_begin; k < node->join_end && !st; k++)
            st = push_code(b, a->tree.joins.v[k]);
    }
    if (!st)
        st = push_code(b, job->n_fine);
    if (!st && leaf)
        st = push_code(b, TREE_MERGE);
    job->final_end = a->code.n;
    return st;
}

/* Another home's rows: only if a leaf before theirs is read here. */
static enum status remote_job(struct builder *b, uint32_t r)
{
    struct attend *a = b->a;
    const struct plan_run *run = &b->plan->runs[r];
    const uint32_t leaf = run->pos / (b->plan->leaf_blocks * PLAN_BLOCK);
    enum status st = build_tree(b, run, leaf);
    if (st || !a->tree.n_fine)
        return st;
    GROW(a->jobs, a->n_jobs, a->jobs_room);
    struct attend_job *job = &a->jobs[a->n_jobs++];
    *job = (struct attend_job){
        .run = r, .home = run->home, .n_rows = run->n_rows, .pos = run->pos, .row = a->n_remote_rows
    };
    a->n_remote_rows += run->n_rows;
    job->n_tiles = run_tiles(b, run);
    job->n_fine = job->n_items = a->tree.n_fine;
    job->fine = a->n_fines;
    st = push_fines(b, run->seq, 0, a->tree.n_fine);
    job->node = a->n_nodes;
    for (uint32_t i = 0; i < a->tree.n_nodes && !st; i++) {
        const struct tree_node *node = &a->tree.nodes[i];
        if (node->reader != b->self)
            continue;
        GROW(a->nodes, a->n_nodes, a->nodes_room);
        struct attend_node *out = &a->nodes[a->n_nodes++];
        out->begin = a->code.n;
        for (uint32_t k = node->join_begin; k < node->join_end && !st; k++)
            st = push_code(b, a->tree.joins.v[k]);
        out->end = a->code.n;
        job->n_nodes++;
    }
    return st;
}

/* Adds part of a message; messages of one kind are built peer by peer. */
static enum status push_ref(struct attend *a, enum attend_traffic kind, uint16_t peer, uint32_t job, uint32_t item,
                            uint32_t n_items, size_t bytes)
{
    const uint32_t n = a->n_messages[kind];
    struct attend_message *m = n ? &a->messages[kind][n - 1] : NULL;
    if (!m || m->peer != peer) {
        GROW(a->messages[kind], n, a->messages_room[kind]);
        m = &a->messages[kind][a->n_messages[kind]++];
        *m = (struct attend_message){ .peer = peer, .job_begin = a->n_refs, .job_end = a->n_refs };
    }
    GROW(a->refs, a->n_refs, a->refs_room);
    a->refs[a->n_refs++] = (struct attend_ref){ .job = job, .item = item, .n_items = n_items, .offset = m->bytes };
    m->bytes += bytes;
    m->job_end = a->n_refs;
    return ST_OK;
}

/* What a local job sends to, and gets from, one other reader: found by walking its tree once more. */
static enum status local_traffic(struct builder *b, uint32_t j, uint16_t peer, enum attend_traffic kind, size_t query,
                                 size_t node)
{
    struct attend *a = b->a;
    const struct attend_job *job = &a->jobs[j];
    const enum status st = build_tree(b, &b->plan->runs[job->run], job->pos / (b->plan->leaf_blocks * PLAN_BLOCK));
    if (st)
        return st;
    uint32_t item = job->n_fine + 1;
    bool asked = false;
    for (uint32_t i = 0; i < a->tree.n_nodes; i++) {
        const uint16_t reader = a->tree.nodes[i].reader;
        if (reader == b->self)
            continue;
        if (reader == peer && kind == RECEIVE_NODES) {
            const enum status pushed = push_ref(a, kind, peer, j, item, 1, node * job->n_rows);
            if (pushed)
                return pushed;
        }
        if (reader == peer && kind == SEND_QUERIES && !asked) {
            const enum status pushed = push_ref(a, kind, peer, j, 0, 0, query * job->n_rows);
            if (pushed)
                return pushed;
            asked = true;
        }
        item++;
    }
    return ST_OK;
}

static enum status traffic(struct builder *b)
{
    struct attend *a = b->a;
    const struct attend_shape *s = b->shape;
    const size_t query = (size_t)s->n_heads * s->head_dim * s->query_bytes,
                 node = (size_t)s->n_heads * (s->head_dim + 2) * sizeof(float);
    for (uint32_t m = 0; m < b->plan->n_members; m++) {
        const uint16_t peer = b->plan->members[m];
        if (peer == b->self)
            continue;
        for (enum attend_traffic kind = 0; kind < ATTEND_TRAFFICS; kind++) {
            for (uint32_t j = 0; j < a->n_jobs; j++) {
                const struct attend_job *job = &a->jobs[j];
                enum status st = ST_OK;
                if (job->local && (kind == SEND_QUERIES || kind == RECEIVE_NODES))
                    st = local_traffic(b, j, peer, kind, query, node);
                else if (!job->local && job->home == peer && kind == RECEIVE_QUERIES)
                    st = push_ref(a, kind, peer, j, 0, 0, query * job->n_rows);
                else if (!job->local && job->home == peer && kind == SEND_NODES)
                    st = push_ref(a, kind, peer, j, 0, job->n_nodes, node * job->n_rows * job->n_nodes);
                if (st)
                    return st;
            }
        }
    }
    return ST_OK;
}

enum status attend_build(struct attend *a, const struct plan *plan, uint16_t self, const struct attend_shape *shape,
                         const struct attend_lookup *at, struct error *err)
{
    struct builder b = { a, plan, shape, at, err, self, 0 };
    a->n_jobs = a->n_local = a->n_fines = a->n_nodes = a->n_refs = a->n_store = a->n_remote_rows = a->code.n = 0;
    for (int i = 0; i < ATTEND_TRAFFICS; i++)
        a->n_messages[i] = 0;
    enum status st = ST_OK;
    for (uint32_t r = 0; r < plan->n_runs && !st; r++)
        if (plan->runs[r].home == self)
            st = local_job(&b, r);
    a->n_local = a->n_jobs;
    for (uint32_t r = 0; r < plan->n_runs && !st; r++)
        if (plan->runs[r].home != self)
            st = remote_job(&b, r);
    for (uint32_t j = 0; j < a->n_jobs; j++) {
        struct attend_job *job = &a->jobs[j];
        job->store = a->n_store;
        a->n_store += job->n_items * shape->n_kv_heads * job->n_tiles;
    }
    return st ? st : traffic(&b);
}

void attend_free(struct attend *a)
{
    free(a->jobs);
    free(a->fines);
    free(a->nodes);
    free(a->refs);
    for (int i = 0; i < ATTEND_TRAFFICS; i++)
        free(a->messages[i]);
    u32_list_free(&a->code);
    tree_plan_free(&a->tree);
    *a = (struct attend){ 0 };
}
