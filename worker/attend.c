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
    const enum status st = u32_list_push(&b->a->code, value);
    return st ? st : u32_list_push(&b->a->blocks, 0);
}

/* The program of n slots, of blocks from c on, joined by adjacent pairs: 2n - 1 words and as many numbers of blocks. Returns where it ends. */
static uint32_t *write_pairs(uint32_t *code, uint32_t *blocks, const uint32_t *slots, uint32_t c, uint32_t n)
{
    uint32_t half = 1;
    if (n == 1) {
        *code = *slots == UINT32_MAX ? 0 : *slots; /* of another block, which nobody will read as this one */
        *blocks = c;
        return code + 1;
    }
    while (half * 2 < n)
        half *= 2;
    uint32_t *at = write_pairs(code, blocks, slots, c, half);
    at = write_pairs(at, blocks + (at - code), slots + half, c + half, n - half);
    *at = TREE_MERGE;
    blocks[at - code] = 0;
    return at + 1;
}

static enum status push_slots(struct builder *b, const uint32_t *slots, uint32_t c, uint32_t n)
{
    uint32_t *code = u32_list_add(&b->a->code, 2 * n - 1), *blocks = u32_list_add(&b->a->blocks, 2 * n - 1);
    if (!code || !blocks)
        return ST_NO_MEMORY;
    write_pairs(code, blocks, slots, c, n);
    return ST_OK;
}

/* The slots of n blocks from block c on, joined by adjacent pairs. */
static enum status push_blocks(struct builder *b, const struct plan_run *run, uint32_t c, uint32_t n)
{
    const uint32_t *slots = b->at->slots(b->at->ctx, run->seq, c, n);
    for (uint32_t i = 0; i < n; i++)
        if (!slots || (slots[i] == UINT32_MAX && !(b->at->passed && b->at->passed(b->at->ctx, run, c + i))))
            return error_set(b->err, ST_PROTOCOL, "plan %llu: block %u of sequence %llu is not here",
                             (unsigned long long)b->plan->number, c + i,
                             (unsigned long long)b->plan->seqs[run->seq].id);
    return push_slots(b, slots, c, n);
}

static uint32_t run_leaf(const struct builder *b, const struct plan_run *run)
{
    return run->pos / (b->plan->leaf_blocks * PLAN_BLOCK);
}

/* Of a run's leaf, the index in attend.leaves, or SHARE_NONE: it is not shared. */
static uint32_t shared_leaf(const struct attend *a, uint32_t r, uint32_t leaf)
{
    const uint32_t id = a->from.n && a->from.v[r] != SHARE_NONE ? a->ids.v[a->from.v[r] + leaf] : SHARE_NONE;
    return id == SHARE_NONE ? SHARE_NONE : a->share.leaves[id].leaf;
}

static void user_add(struct builder *b, uint32_t index, uint32_t number, uint32_t job, uint32_t item)
{
    struct attend_leaf *leaf = &b->a->leaves[index];
    uint32_t block = number * b->plan->leaf_blocks; /* equal for all users: equal blocks stand at equal positions */
    for (uint32_t i = leaf->begin; i < leaf->end; i++)
        b->a->blocks.v[i] = b->a->code.v[i] == TREE_MERGE ? 0 : block++;
    b->a->users[leaf->user + leaf->n_users++] =
        (struct attend_user){ .job = job, .item = item, .vector = leaf->n_vectors };
    leaf->n_vectors += b->a->jobs[job].n_rows * (b->shape->n_heads / b->shape->n_kv_heads);
}

/* Programs over slots for the fine nodes of the tree plan, which is job's. */
static enum status push_fines(struct builder *b, uint32_t job)
{
    struct attend *a = b->a;
    const uint32_t r = a->jobs[job].run;
    const struct plan_run *run = &b->plan->runs[r];
    for (uint32_t f = 0; f < a->tree.n_fine; f++) {
        const struct tree_fine *fine = &a->tree.fine[f];
        GROW(a->fines, a->n_fines, a->fines_room);
        const uint32_t index = a->n_fines++;
        a->fines[index].begin = a->code.n;
        const uint32_t shared = fine->n_leaves == 1 ? shared_leaf(a, r, a->tree.leaves.v[fine->begin]) : SHARE_NONE;
        if (shared != SHARE_NONE)
            user_add(b, shared, a->tree.leaves.v[fine->begin], job, f);
        for (uint32_t i = fine->begin; i < fine->end && shared == SHARE_NONE; i++) {
            const uint32_t leaf = a->tree.leaves.v[i];
            const enum status st = leaf == TREE_MERGE
                                       ? push_code(b, TREE_MERGE)
                                       : push_blocks(b, run, leaf * b->plan->leaf_blocks, b->plan->leaf_blocks);
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

static enum status leaf_readers(struct builder *b, const struct plan_run *run, const uint16_t **readers_out)
{
    const uint32_t leaf = run_leaf(b, run);
    *readers_out = b->at->readers(b->at->ctx, run->seq, leaf);
    if (leaf && !*readers_out)
        return error_set(b->err, ST_PROTOCOL, "plan %llu: sequence %llu has no readers for %u leaves",
                         (unsigned long long)b->plan->number, (unsigned long long)b->plan->seqs[run->seq].id, leaf);
    return ST_OK;
}

static enum status build_tree(struct builder *b, uint32_t r)
{
    struct attend *a = b->a;
    const struct plan_run *run = &b->plan->runs[r];
    const uint32_t leaf = run_leaf(b, run);
    const uint16_t *readers;
    enum status st = leaf_readers(b, run, &readers);
    const bool may_share = a->from.n && a->from.v[r] != SHARE_NONE;
    a->apart.n = 0;
    for (uint32_t i = 0; may_share && i < leaf && !st; i++)
        st = u32_list_push(&a->apart, shared_leaf(a, r, i) != SHARE_NONE);
    return st ? st
              : tree_build(&a->tree, leaf, readers, PLAN_SLOTS, b->self, fine_leaves(b, run_tiles(b, run), leaf),
                           may_share ? a->apart.v : NULL);
}

/* ---- shared leaves ---- */

/* Whose leaf may be shared with whose. */
static uint32_t kind_of(const struct builder *b, bool local, enum row_class cls)
{
    return (b->shape->row_classes ? 2 * (uint32_t)cls : 0) + local;
}

/* Notes the leaves that run r reads here. */
static enum status run_note(struct builder *b, uint32_t r)
{
    struct attend *a = b->a;
    const struct plan_run *run = &b->plan->runs[r];
    const uint32_t leaf = run_leaf(b, run), leaf_blocks = b->plan->leaf_blocks;
    const bool may_share = leaf && run_tiles(b, run) <= ATTEND_SHARE_TILES;
    enum status st = u32_list_push(&a->from, may_share ? a->ids.n : SHARE_NONE);
    const uint16_t *readers = NULL;
    if (!st && may_share)
        st = leaf_readers(b, run, &readers);
    for (uint32_t i = 0; may_share && i < leaf && !st; i++) {
        uint32_t id = SHARE_NONE;
        if (readers[i] == b->self) {
            const uint32_t *found = b->at->slots(b->at->ctx, run->seq, i * leaf_blocks, leaf_blocks);
            uint32_t *slots = share_next(&a->share);
            bool here = slots && found;
            for (uint32_t c = 0; c < leaf_blocks && here; c++) {
                slots[c] = found[c];
                here = slots[c] != UINT32_MAX; /* else push_blocks says what is missing */
            }
            id = here ? share_add(&a->share, kind_of(b, run->home == b->self, run->cls)) : SHARE_NONE;
        }
        st = u32_list_push(&a->ids, id);
    }
    return st;
}

/* Those with several readers, of local runs or others', as far as there is room for their items. */
static enum status leaves_choose(struct builder *b, bool local, uint32_t *room)
{
    struct attend *a = b->a;
    for (uint32_t i = 0; i < a->share.n; i++) {
        struct share_leaf *found = &a->share.leaves[i];
        const uint32_t store = found->readers * b->shape->n_kv_heads;
        if (found->readers < 2 || found->kind % 2 != local || store > *room)
            continue;
        *room -= store;
        GROW(a->leaves, a->n_leaves, a->leaves_room);
        found->leaf = a->n_leaves++;
        struct attend_leaf *leaf = &a->leaves[found->leaf];
        *leaf = (struct attend_leaf){ .begin = a->code.n, .user = a->n_users, .cls = (uint8_t)(found->kind / 2) };
        const enum status st =
            push_slots(b, a->share.slots + (size_t)i * b->plan->leaf_blocks, 0, b->plan->leaf_blocks);
        if (st)
            return st;
        leaf->end = a->code.n;
        for (uint32_t u = 0; u < found->readers; u++) {
            GROW(a->users, a->n_users, a->users_room);
            a->n_users++;
        }
    }
    return ST_OK;
}

static enum status leaves_share(struct builder *b)
{
    struct attend *a = b->a;
    uint32_t room = ATTEND_SHARE_STORE;
    a->n_leaves = a->n_local_leaves = a->n_users = a->ids.n = a->from.n = 0;
    if (b->shape->reads_apart || b->plan->n_runs < 2)
        return ST_OK;
    share_reset(&a->share, b->plan->leaf_blocks);
    enum status st = ST_OK;
    for (uint32_t r = 0; r < b->plan->n_runs && !st; r++)
        st = run_note(b, r);
    if (!st)
        st = leaves_choose(b, true, &room);
    a->n_local_leaves = a->n_leaves;
    return st ? st : leaves_choose(b, false, &room);
}

/* ---- jobs ---- */

/* The own leaf, and the whole tree: received nodes become items behind the own leaf, in tree order. */
static enum status local_job(struct builder *b, uint32_t r)
{
    struct attend *a = b->a;
    const struct plan_run *run = &b->plan->runs[r];
    const uint32_t leaf = run_leaf(b, run);
    enum status st = build_tree(b, r);
    if (st)
        return st;
    GROW(a->jobs, a->n_jobs, a->jobs_room);
    struct attend_job *job = &a->jobs[a->n_jobs++];
    *job = (struct attend_job){ .run = r,
                                .home = b->self,
                                .local = true,
                                .cls = run->cls,
                                .n_rows = run->n_rows,
                                .pos = run->pos,
                                .row = b->my_rows };
    b->my_rows += run->n_rows;
    job->n_tiles = run_tiles(b, run);
    job->n_fine = a->tree.n_fine;
    job->fine = a->n_fines;
    job->n_items = job->n_fine + 1;
    st = push_fines(b, a->n_jobs - 1);
    if (st)
        return st;
    job->own_begin = a->code.n;
    const uint32_t last = (run->pos + run->n_rows - 1) / PLAN_BLOCK;
    for (uint32_t c = leaf * b->plan->leaf_blocks; c <= last && !st; c++)
        st = push_blocks(b, run, c, 1);
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
    enum status st = build_tree(b, r);
    if (st || !a->tree.n_fine)
        return st;
    GROW(a->jobs, a->n_jobs, a->jobs_room);
    struct attend_job *job = &a->jobs[a->n_jobs++];
    *job = (struct attend_job){
        .run = r, .home = run->home, .cls = run->cls, .n_rows = run->n_rows, .pos = run->pos, .row = a->n_remote_rows
    };
    a->n_remote_rows += run->n_rows;
    job->n_tiles = run_tiles(b, run);
    job->n_fine = job->n_items = a->tree.n_fine;
    job->fine = a->n_fines;
    st = push_fines(b, a->n_jobs - 1);
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
    const enum status st = build_tree(b, job->run);
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
    a->n_jobs = a->n_local = a->n_fines = a->n_nodes = a->n_refs = a->n_store = a->n_remote_rows = a->code.n =
        a->blocks.n = 0;
    for (int i = 0; i < ATTEND_TRAFFICS; i++)
        a->n_messages[i] = 0;
    enum status st = leaves_share(&b);
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
    free(a->leaves);
    free(a->users);
    free(a->refs);
    for (int i = 0; i < ATTEND_TRAFFICS; i++)
        free(a->messages[i]);
    u32_list_free(&a->code);
    u32_list_free(&a->blocks);
    u32_list_free(&a->ids);
    u32_list_free(&a->from);
    u32_list_free(&a->apart);
    share_free(&a->share);
    tree_plan_free(&a->tree);
    *a = (struct attend){ 0 };
}

size_t attend_message_max(const struct attend *a)
{
    size_t most = 0;
    for (int kind = 0; kind < ATTEND_TRAFFICS; kind++)
        for (uint32_t i = 0; i < a->n_messages[kind]; i++)
            most = a->messages[kind][i].bytes > most ? a->messages[kind][i].bytes : most;
    return most;
}
