/* Sparse attention: sketches of the blocks that the step completes, and the lists of blocks that its rows read. */
#include <string.h>

#include "common/clock.h"
#include "worker/cpu/cpu.h"

/* What one thread needs: pointers to sketches, rows of weights or keys; queries; scores of each KV head, and two words a block for the choice. */
struct scratch {
    const void **pointers;
    const float **q;
    float *queries, *scores, *logits;
    uint32_t *words;
};

static size_t scratch_pointers(const struct backend *b)
{
    const size_t blocks = (size_t)b->input->select->own_max + 1;
    return blocks > 2 * b->config->n_kv_heads ? blocks : 2 * b->config->n_kv_heads;
}

static size_t scratch_bytes(const struct backend *b)
{
    const size_t blocks = (size_t)b->input->select->own_max + 1, heads = b->config->n_heads;
    return (scratch_pointers(b) + heads) * sizeof(void *) + heads * b->config->head_dim * sizeof(float) +
           blocks * ((b->config->n_kv_heads + 1) * sizeof(float) + 2 * sizeof(uint32_t));
}

static struct scratch scratch_of(const struct backend *b, uint32_t member)
{
    const size_t blocks = (size_t)b->input->select->own_max + 1, heads = b->config->n_heads;
    struct scratch x = { .pointers = (const void **)(void *)b->members[member].select };
    x.q = (const float **)(void *)(x.pointers + scratch_pointers(b));
    x.queries = (float *)(void *)(x.q + heads);
    x.scores = x.queries + heads * b->config->head_dim;
    x.logits = x.scores + blocks * b->config->n_kv_heads;
    x.words = (uint32_t *)(void *)(x.logits + blocks);
    return x;
}

void cpu_select_scratch(const struct backend *b, uint32_t member, const void ***pointers_out, const float ***q_out,
                        float **queries_out, float **scores_out)
{
    const struct scratch x = scratch_of(b, member);
    *pointers_out = x.pointers;
    *q_out = x.q;
    *queries_out = x.queries;
    *scores_out = x.scores;
}

bool cpu_select_reserve(struct backend *b)
{
    const struct select *s = b->input->select;
    size_t most = 0;
    b->selects = s && select_active(s) && s->sparse;
    if (!s || !select_active(s))
        return true;
    for (uint32_t i = 0; i < s->n_sends; i++)
        most = s->sends[i].end - s->sends[i].begin > most ? s->sends[i].end - s->sends[i].begin : most;
    for (uint32_t i = 0; i < s->n_gets; i++)
        most = s->gets[i].end - s->gets[i].begin > most ? s->gets[i].end - s->gets[i].begin : most;
    most *= s->store.layer_bytes;
    for (int kind = SEND_QUERIES; kind <= RECEIVE_QUERIES; kind++) {
        for (uint32_t i = 0; i < b->input->attend->n_messages[kind]; i++) {
            const size_t bytes = b->input->attend->messages[kind][i].bytes + s->choices[kind][i];
            most = bytes > most ? bytes : most;
        }
    }
    if (!cpu_reserve(&b->wire, &b->wire_room, most) ||
        !cpu_reserve(&b->lists, &b->lists_room, s->list_words * sizeof(uint64_t)))
        return false;
    for (uint32_t i = 0; i < b->n_threads; i++)
        if (!cpu_reserve(&b->members[i].select, &b->members[i].select_room, scratch_bytes(b)))
            return false;
    return !s->spread || cpu_owners_reserve(b);
}

static uint32_t sparse_index(const struct select *s, uint32_t layer)
{
    return layer - s->store.spec.dense_layers;
}

/* ---- sketches ---- */

void cpu_sketch_queries(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    const struct select *s = b->input->select;
    const struct cpu_tensor *q = &b->tensor[TENSOR_Q];
    uint32_t begin, end;
    team_share(b->input->n_rows, member, n_members, &begin, &end);
    for (uint32_t r = begin; r < end; r++) {
        float *means = sketch_queries(&s->store, s->rows[r], op->layer);
        selector_q_mean(&s->store.shape, (const float *)(const void *)q->data + r * q->stride,
                        means + (size_t)(b->input->rows[r].pos % KV_BLOCK) * b->config->head_dim);
    }
}

void cpu_sketch_make(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    const struct select *s = b->input->select;
    for (uint32_t i = member; i < s->n_seals; i += n_members) {
        const struct step_seal *seal = &b->input->seals[i];
        struct sketch *sketch = s->seals[i];
        const uint32_t heads = b->config->n_kv_heads;
        const void **parts = scratch_of(b, member).pointers;
        for (uint32_t j = 0; j < heads; j++) {
            const uint8_t *keys = cpu_open_part(b, seal->slot, seal->open, op->layer, j);
            parts[j] = keys;
            parts[heads + j] = keys + b->open_part_bytes;
        }
        const struct selector_block block = { .k_parts = parts,
                                              .v_parts = parts + heads,
                                              .q_means =
                                                  sketch->queries ? sketch_queries(&s->store, sketch, op->layer) : NULL,
                                              .channels = sketches_channels(&s->store, op->layer) };
        s->store.impl->sketch(&s->store.shape, &block, sketch_layer(&s->store, sketch, op->layer));
        sketch->have[sparse_index(s, op->layer)] = 1;
    }
}

static struct exchange_key sketch_key(const struct backend *b, const struct cpu_op *op, uint16_t peer)
{
    struct exchange_key key = b->input->key;
    key.layer = (uint16_t)op->layer;
    key.phase = PHASE_SKETCH;
    key.peer = peer;
    return key;
}

void cpu_sketch_send(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    const struct select *s = b->input->select;
    (void)n_members;
    for (uint32_t i = 0; member == 0 && i < s->n_sends; i++) {
        const struct select_message *m = &s->sends[i];
        const struct exchange_key key = sketch_key(b, op, m->peer);
        const size_t bytes = (m->end - m->begin) * s->store.layer_bytes;
        for (uint32_t k = m->begin; k < m->end; k++)
            memcpy(b->wire + (k - m->begin) * s->store.layer_bytes, sketch_layer(&s->store, s->sent[k], op->layer),
                   s->store.layer_bytes);
        const struct iovec part = { b->wire, bytes };
        const enum status st = b->exchange_ops->send(b->exchange, &key, &part, 1);
        if (st) {
            cpu_fail(b, st, m->peer);
            return;
        }
        b->cost.bytes_sent += bytes;
    }
}

void cpu_sketch_receive(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    const struct select *s = b->input->select;
    (void)n_members;
    for (uint32_t i = 0; member == 0 && i < s->n_gets; i++) {
        const struct select_message *m = &s->gets[i];
        const struct exchange_key key = sketch_key(b, op, m->peer);
        const size_t bytes = (m->end - m->begin) * s->store.layer_bytes;
        const int64_t start = clock_ns();
        enum status st = b->exchange_ops->recv(b->exchange, &key, b->wire, bytes, b->deadline_ns);
        b->cost.wait_ns += clock_ns() - start;
        b->cost.bytes_received += bytes;
        if (!st && !sketch_valid(&s->store, b->wire, bytes))
            st = ST_CORRUPT;
        if (st) {
            cpu_fail(b, st, m->peer);
            return;
        }
        for (uint32_t k = m->begin; k < m->end; k++) {
            memcpy(sketch_layer(&s->store, s->sent[k], op->layer), b->wire + (k - m->begin) * s->store.layer_bytes,
                   s->store.layer_bytes);
            s->sent[k]->have[sparse_index(s, op->layer)] = 1;
        }
    }
}

/* Those of blocks 0 .. n - 1 in one layer. false: one is not here, which no plan of a sound coordinator brings about. */
static bool sketches_point(struct backend *b, const struct select_seq *q, uint32_t n, uint32_t layer, const void **out)
{
    const struct select *s = b->input->select;
    for (uint32_t c = 0; c < n; c++) {
        const struct sketch *sketch = q->sketches[c];
        if (!sketch->have || !sketch->have[sparse_index(s, layer)]) {
            cpu_fail(b, ST_NOT_FOUND, UINT16_MAX);
            return false;
        }
        out[c] = sketch_layer(&s->store, sketch, layer);
    }
    return true;
}

/* ---- lists ---- */

static uint64_t *unit_list(const struct backend *b, const struct select_unit *u)
{
    const struct select_job *job = &b->input->select->jobs[u->job];
    return b->lists + job->at + (size_t)u->index * job->words;
}

/* The words of a job's lists are as many as its last row needs: those that this one has no use for. */
static void rest_clear(const struct backend *b, const struct select_unit *u)
{
    const uint32_t own_words = selector_words(u->own);
    memset(unit_list(b, u) + own_words, 0, (b->input->select->jobs[u->job].words - own_words) * sizeof(uint64_t));
}

static void choose(struct backend *b, const struct select_unit *u, const float *scores, uint32_t *words)
{
    const struct select *s = b->input->select;
    rest_clear(b, u);
    const struct selector_choice choice = { .own = u->own,
                                            .density = s->jobs[u->job].density,
                                            .leaf_blocks = s->leaf_blocks,
                                            .by_slot = s->store.spec.by_slot };
    selector_choose(&choice, scores, words, unit_list(b, u));
}

/* ---- by row ---- */

/* Queries as attention rounds them. */
static const float *rounded(const struct backend *b, const float *q, float *to)
{
    for (uint32_t d = 0; d < b->config->head_dim; d++)
        to[d] = b->float32 ? q[d] : bf16_to_f32(f32_to_bf16(q[d]));
    return to;
}

/* Lists of KV heads head .. head + n - 1 of one row: u is the first one's unit, the others' follow it. */
static void choose_by_row(struct backend *b, const struct select_unit *u, uint32_t head, uint32_t n, uint32_t layer,
                          const struct scratch *x)
{
    const struct select *s = b->input->select;
    const struct model_config *c = b->config;
    const struct attend_job *job = &b->input->attend->jobs[u->job];
    const struct cpu_tensor *tensor = &b->tensor[TENSOR_Q];
    const uint32_t group = c->n_heads / c->n_kv_heads, row = job->row + u->index / c->n_kv_heads;
    if (!selector_reads_all(u->own, s->jobs[u->job].density)) {
        const float *from = (const float *)(const void *)tensor->data + row * tensor->stride;
        if (!sketches_point(b, s->jobs[u->job].seq, u->own, layer, x->pointers))
            return;
        for (uint32_t i = 0; i < n * group; i++)
            x->q[i] = rounded(b, from + (size_t)(head * group + i) * c->head_dim, x->queries + (size_t)i * c->head_dim);
        s->store.impl->score(&s->store.shape, head, head + n, x->q, x->pointers, u->own, x->scores);
    }
    for (uint32_t i = 0; i < n; i++)
        choose(b, u + i, x->scores + (size_t)i * u->own, x->words);
}

/* A member's share of the lists is a run of heads, row after row. */
static void select_rows(struct backend *b, uint32_t layer, uint32_t member, uint32_t n_members, const struct scratch *x)
{
    const struct select *s = b->input->select;
    const uint32_t heads = b->config->n_kv_heads;
    uint32_t begin, end;
    team_share(s->n_units, member, n_members, &begin, &end);
    while (begin < end) {
        const uint32_t head = s->units[begin].index % heads, left = heads - head,
                       n = left < end - begin ? left : end - begin;
        choose_by_row(b, &s->units[begin], head, n, layer, x);
        begin += n;
    }
}

/* ---- by block: a walk ---- */

/* Rows of the layer's weights that are not kept yet: row i by one thread, whichever sequences name it. */
void cpu_select_weights(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    struct select *s = b->input->select;
    const struct scratch x = scratch_of(b, member);
    const uint32_t layer = sparse_index(s, op->layer);
    for (uint32_t k = 0; k < s->n_units; k++) {
        const struct select_unit *u = &s->units[k];
        const struct select_job *job = &s->jobs[u->job];
        const bool last = k + 1 == s->n_units || s->units[k + 1].job != u->job; /* of the job: it needs the most */
        bool pointed = false;
        for (uint32_t i = member; last && i < u->own; i += n_members) {
            struct sketch *sketch = job->seq->sketches[i];
            if (sketch->weights && sketch->weights[layer])
                continue;
            if (!pointed && !sketches_point(b, job->seq, u->own, op->layer, x.pointers))
                return;
            pointed = true;
            if (!sketch->weights)
                sketch->weights = sketch_alloc(&s->store, s->store.n_layers * sizeof(uint16_t *));
            uint16_t *w = sketch->weights ? sketch_alloc(&s->store, (i + 1) * sizeof *w) : NULL;
            if (!w) {
                cpu_fail(b, ST_NO_MEMORY, UINT16_MAX);
                return;
            }
            s->store.impl->weights(&s->store.shape, x.pointers, i, x.logits, w);
            sketch->weights[layer] = w;
        }
    }
}

/* One layer on from where the walk of the block's last sketch is; from the first layer if it is not at the layer before. */
static const float *walk_to(struct backend *b, struct sketch *at, const struct select_seq *q, uint32_t n,
                            uint32_t layer, const struct scratch *x)
{
    struct select *s = b->input->select;
    if (!at->walk)
        at->walk = sketch_alloc(&s->store, n * sizeof *at->walk);
    if (!at->walk) {
        cpu_fail(b, ST_NO_MEMORY, UINT16_MAX);
        return NULL;
    }
    uint32_t from = layer;
    if (!(at->walk_n && at->walk_layer + 1 == layer))
        from = 0;
    for (uint32_t l = from; l <= layer; l++) {
        if (l == 0) {
            for (uint32_t j = 0; j < n; j++)
                at->walk[j] = bf16_to_f32(at->weights[0][j]);
        } else {
            for (uint32_t i = 0; i < n; i++)
                x->pointers[i] = q->sketches[i]->weights[l];
            selector_walk((const uint16_t *const *)(const void *)x->pointers, n, at->walk, x->scores);
            memcpy(at->walk, x->scores, n * sizeof *at->walk);
        }
    }
    at->walk_n = n;
    at->walk_layer = layer;
    return at->walk;
}

/* A list is kept with the sketch that it was made with, behind the density that it was made for. */
static void choose_by_block(struct backend *b, const struct select_unit *u, uint32_t layer, const struct scratch *x)
{
    struct select *s = b->input->select;
    const struct select_job *job = &s->jobs[u->job];
    const size_t bytes = selector_words(u->own) * sizeof(uint64_t);
    uint64_t *list = unit_list(b, u);
    if (selector_reads_all(u->own, job->density)) {
        choose(b, u, NULL, x->words);
        return;
    }
    struct sketch *at = job->seq->sketches[u->own - 1];
    if (at->lists && at->lists[layer] && at->lists[layer][0] == job->density) {
        memset(list, 0, job->words * sizeof *list);
        memcpy(list, at->lists[layer] + 1, bytes);
        return;
    }
    const float *walk = walk_to(b, at, job->seq, u->own, layer, x);
    if (!walk || !sketches_point(b, job->seq, u->own, layer + s->store.spec.dense_layers, x->pointers))
        return;
    s->store.impl->logits(&s->store.shape, x->pointers, u->own - 1, x->logits);
    selector_walk_scores(walk, x->logits, u->own, x->scores);
    choose(b, u, x->scores, x->words);
    if (!at->lists)
        at->lists = sketch_alloc(&s->store, s->store.n_layers * sizeof(uint64_t *));
    if (at->lists && !at->lists[layer])
        at->lists[layer] = sketch_alloc(&s->store, sizeof(uint64_t) + bytes);
    if (!at->lists || !at->lists[layer]) {
        cpu_fail(b, ST_NO_MEMORY, UINT16_MAX);
        return;
    }
    at->lists[layer][0] = job->density;
    memcpy(at->lists[layer] + 1, list, bytes);
}

static void select_windows(struct backend *b, uint32_t member, uint32_t n_members)
{
    const struct select *s = b->input->select;
    for (uint32_t i = member; i < s->n_units; i += n_members) {
        rest_clear(b, &s->units[i]);
        selector_window(s->units[i].own, s->store.spec.window / KV_BLOCK, unit_list(b, &s->units[i]));
    }
}

/* A sketch's walk and lists are made by one thread: rows of the same block of several sequences may share it. */
void cpu_select(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    const struct select *s = b->input->select;
    const struct scratch x = scratch_of(b, member);
    if (!select_sketches(s)) {
        select_windows(b, member, n_members);
        return;
    }
    if (s->store.impl->by_row) {
        select_rows(b, op->layer, member, n_members, &x);
        return;
    }
    for (uint32_t i = 0; i < s->n_units; i++)
        if (s->units[i].own % n_members == member)
            choose_by_block(b, &s->units[i], sparse_index(s, op->layer), &x);
}

/* ---- choices with queries ---- */

size_t cpu_choices_bytes(const struct backend *b, uint32_t kind, uint32_t message, uint32_t layer)
{
    return b->selects && select_layer(b->input->select, layer) ? b->input->select->choices[kind][message] : 0;
}

void cpu_choices_put(struct backend *b, uint32_t message, uint8_t *wire)
{
    select_choices_move(b->input->select, b->input->attend, SEND_QUERIES, message, b->lists, wire);
}

void cpu_choices_get(struct backend *b, uint32_t message, uint8_t *wire)
{
    select_choices_move(b->input->select, b->input->attend, RECEIVE_QUERIES, message, b->lists, wire);
}
