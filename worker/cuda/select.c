/*
 * Sparse attention: sketches of the blocks that the step completes, and the lists of blocks that its rows read. Sketches are kept twice: on the device, where
 * they are read, and on the host in the same layout, from where they go to other workers.
 */
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "common/clock.h"
#include "worker/cuda/gpu.h"

enum { CHUNK = 64 /* places taken together */, ROWS = 64 /* rows that choose together: their scores take room */ };

/* ---- places ---- */

bool gpu_pointers_grow(void *list, uint32_t *room, uint32_t n)
{
    void **at = list;
    if (n <= *room)
        return true;
    void *q = realloc(*at, ((size_t)n + n / 2 + CHUNK) * sizeof(void *));
    if (!q)
        return false;
    *at = q;
    *room = n + n / 2 + CHUNK;
    return true;
}

void *gpu_place_take(struct gpu_places *p)
{
    if (!p->n_unused) {
        void *chunk = NULL;
        if (!gpu_pointers_grow(&p->chunks, &p->chunks_room, p->n_chunks + 1) ||
            !gpu_pointers_grow(&p->unused, &p->unused_room, (p->n_chunks + 1) * CHUNK) ||
            gpu_status((int)cudaMalloc(&chunk, CHUNK * p->bytes), "memory of sketches"))
            return NULL;
        p->chunks[p->n_chunks++] = chunk;
        for (uint32_t i = CHUNK; i-- > 0;)
            p->unused[p->n_unused++] = (uint8_t *)chunk + i * p->bytes;
    }
    return p->unused[--p->n_unused];
}

void gpu_place_give(struct gpu_places *p, void *place)
{
    if (place)
        p->unused[p->n_unused++] = place; /* there is room for all that were taken */
}

static void places_free(struct gpu_places *p)
{
    for (uint32_t i = 0; i < p->n_chunks; i++)
        cudaFree(p->chunks[i]);
    free(p->chunks);
    free(p->unused);
    *p = (struct gpu_places){ 0 };
}

void gpu_select_free(struct backend *b)
{
    places_free(&b->places);
    places_free(&b->means_places);
    places_free(&b->lists_places);
    for (uint32_t i = 0; i < CUDA_WALK_BLOCKS / CUDA_WALK_STEP; i++)
        places_free(&b->weights_places[i]);
    free(b->weighed);
    free(b->listed);
}

/* What of a sketch is the device's, or its query means alone. */
static void sketch_give(void *ctx, struct sketch *s, bool all)
{
    struct backend *b = ctx;
    gpu_place_give(&b->means_places, s->device_means);
    s->device_means = NULL;
    if (!all)
        return;
    gpu_place_give(&b->places, s->device);
    if (s->device_weights)
        gpu_place_give(&b->weights_places[s->weights_room / CUDA_WALK_STEP - 1], s->device_weights);
    gpu_place_give(&b->lists_places, s->device_lists);
    s->device = s->device_weights = s->device_lists = NULL;
}

/* ---- before a step ---- */

static bool active(const struct backend *b)
{
    return b->input->select && select_active(b->input->select);
}

static uint32_t sparse_index(const struct select *s, uint32_t layer)
{
    return layer - s->store.spec.dense_layers;
}

/* The step makes it, or gets it. */
static bool sketch_expect(struct backend *b, struct sketch *sketch)
{
    if (!sketch->device)
        sketch->device = gpu_place_take(&b->places);
    sketch->device_step = b->select_step;
    return sketch->device != NULL;
}

/* Is it on the device, or will it be when its layer comes? What others sent is taken there. */
static enum status sketch_await(struct backend *b, struct sketch *sketch)
{
    if (sketch->device_ready || (sketch->device && sketch->device_step == b->select_step))
        return ST_OK;
    if (!sketch_complete(&b->input->select->store, sketch))
        return ST_NOT_FOUND;
    if (!sketch->device)
        sketch->device = gpu_place_take(&b->places);
    if (!sketch->device)
        return ST_NO_MEMORY;
    sketch->device_ready = true;
    return gpu_status((int)cudaMemcpy(sketch->device, sketch->data, b->places.bytes, cudaMemcpyHostToDevice),
                      "a sketch");
}

/* All that rows of block `own` choose among; those that are ready are noted, so that the next step has little to do. */
static enum status sketches_await(struct backend *b, struct select_seq *q, uint32_t own)
{
    if (!gpu_pointers_grow(&q->device, &q->device_room, own))
        return ST_NO_MEMORY;
    for (uint32_t c = q->n_device; c < own; c++) {
        const enum status st = sketch_await(b, q->sketches[c]);
        if (st)
            return st;
        q->device[c] = q->sketches[c]->device;
        if (q->sketches[c]->device_ready && q->n_device == c)
            q->n_device = c + 1;
    }
    return ST_OK;
}

static size_t traffic_bytes(const struct select *s)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < s->n_sends; i++)
        most = s->sends[i].end - s->sends[i].begin > most ? s->sends[i].end - s->sends[i].begin : most;
    for (uint32_t i = 0; i < s->n_gets; i++)
        most = s->gets[i].end - s->gets[i].begin > most ? s->gets[i].end - s->gets[i].begin : most;
    return most * s->store.layer_bytes;
}

enum status gpu_select_begin(struct backend *b)
{
    struct select *s = b->input->select;
    const struct attend *a = b->input->attend;
    enum status st = ST_OK;
    b->own_max = 0;
    b->selects = active(b) && s->sparse;
    if (!active(b))
        return ST_OK;
    b->places.bytes = s->store.n_layers * s->store.layer_bytes;
    b->select_step++;
    s->store.device_free = sketch_give;
    s->store.device_ctx = b;
    for (uint32_t i = 0; i < s->n_seals; i++)
        if (!sketch_expect(b, s->seals[i]))
            return ST_NO_MEMORY;
    for (uint32_t i = 0; i < s->n_gets; i++)
        for (uint32_t k = s->gets[i].begin; k < s->gets[i].end; k++)
            if (!sketch_expect(b, s->sent[k]))
                return ST_NO_MEMORY;
    for (uint32_t j = 0; j < a->n_local && !st; j++) {
        const uint32_t last = (a->jobs[j].pos + a->jobs[j].n_rows - 1) / KV_BLOCK;
        if (!s->jobs[j].density)
            continue;
        st = sketches_await(b, (struct select_seq *)(uintptr_t)s->jobs[j].seq, last);
        b->own_max = last > b->own_max ? last : b->own_max;
    }
    b->own_max = (b->own_max / 1024 + 1) * 1024; /* so that a graph's shape stays for a while */
    if (!st)
        st = gpu_reserve(b, &b->lists, s->list_words * sizeof(uint64_t), false);
    if (!st && (a->n_messages[SEND_QUERIES] || a->n_messages[RECEIVE_QUERIES]))
        st = gpu_reserve(b, &b->host_lists, s->list_words * sizeof(uint64_t), true);
    if (!st && !s->store.impl->by_row)
        st = gpu_walk_begin(b);
    else if (!st && b->selects)
        st = gpu_reserve(b, &b->scores, (size_t)ROWS * b->config->n_kv_heads * b->own_max * sizeof(float), false);
    if (!st && traffic_bytes(s))
        st = gpu_reserve(b, &b->host_wire, traffic_bytes(s), true);
    return st;
}

/* Pointers to the sketches of the first n blocks; of jobs of one sequence that follow each other, those of one go on where those before end. */
struct pointers {
    const struct select_seq *seq;
    uint32_t first, n;
};

static bool push_pointers(struct backend *b, struct pointers *p, const struct select_seq *q, uint32_t n)
{
    struct gpu_list *list = &b->list[SECTION_SKETCHES];
    if (p->seq != q)
        *p = (struct pointers){ q, (uint32_t)(list->bytes / sizeof(void *)), 0 };
    if (n <= p->n)
        return true;
    void **at = gpu_list_push(list, (n - p->n) * sizeof(void *));
    if (at)
        memcpy(at, q->device + p->n, (n - p->n) * sizeof(void *));
    p->n = n;
    return at != NULL;
}

static bool push_choices(struct backend *b, uint32_t j, struct pointers *p)
{
    const struct attend_job *job = &b->input->attend->jobs[j];
    const struct select_job *sparse = &b->input->select->jobs[j];
    if (!push_pointers(b, p, sparse->seq, (job->pos + job->n_rows - 1) / KV_BLOCK))
        return false;
    if (!b->input->select->store.impl->by_row)
        return gpu_walk_push_job(b, j, p->first);
    struct cuda_quest_job *out = gpu_list_push(&b->list[SECTION_CHOICES], job->n_rows * sizeof *out);
    for (uint32_t i = 0; out && i < job->n_rows; i++) {
        const uint32_t own = (job->pos + i) / KV_BLOCK;
        out[i] = (struct cuda_quest_job){
            .row = job->row + i,
            .own = own,
            .budget = selector_budget(own, sparse->density),
            .sketches = p->first,
            .list = (uint32_t)(sparse->at + (size_t)i * b->config->n_kv_heads * sparse->words),
            .words = sparse->words,
        };
    }
    return out != NULL;
}

bool gpu_select_push(struct backend *b)
{
    const struct select *s = b->input->select;
    struct pointers p = { 0 };
    const bool by_row = active(b) && s->store.impl->by_row;
    if (active(b) && !by_row && !gpu_walk_push(b))
        return false;
    for (uint32_t i = 0; by_row && i < s->n_seals; i++) {
        const struct step_seal *seal = &b->input->seals[i];
        struct cuda_quest_sketch *make = gpu_list_push(&b->list[SECTION_MAKES], sizeof *make);
        if (!make)
            return false;
        *make = (struct cuda_quest_sketch){ .from = seal->open == STEP_IN_PLACE ? seal->slot : seal->open,
                                            .to = s->seals[i]->device };
    }
    for (uint32_t j = 0; b->selects && j < b->input->attend->n_local; j++)
        if (s->jobs[j].density && !push_choices(b, j, &p))
            return false;
    return true;
}

/* ---- operations ---- */

int gpu_sketch(struct backend *b, const struct gpu_op *op)
{
    const struct select *s = b->input->select;
    const struct cuda_kv kv = gpu_open_kv(b);
    if (!s->store.impl->by_row)
        return gpu_status(gpu_walk_sketch(b, op->layer), "sketches");
    return gpu_status(cuda_quest_sketch(&kv, op->layer, s->store.layer_bytes, sparse_index(s, op->layer),
                                        gpu_at(b, SECTION_MAKES), s->n_seals, b->stream),
                      "sketches");
}

static struct exchange_key sketch_key(const struct backend *b, const struct gpu_op *op, uint16_t peer)
{
    struct exchange_key key = b->input->key;
    key.layer = (uint16_t)op->layer;
    key.phase = PHASE_SKETCH;
    key.peer = peer;
    return key;
}

int gpu_sketch_send(struct backend *b, const struct gpu_op *op)
{
    const struct select *s = b->input->select;
    const size_t bytes = s->store.layer_bytes, at = sparse_index(s, op->layer) * bytes;
    for (uint32_t i = 0; i < s->n_sends; i++) {
        const struct select_message *m = &s->sends[i];
        const struct exchange_key key = sketch_key(b, op, m->peer);
        int e = 0;
        for (uint32_t k = m->begin; k < m->end && !e; k++)
            e = (int)cudaMemcpyAsync((uint8_t *)b->host_wire.data + (k - m->begin) * bytes,
                                     (const uint8_t *)s->sent[k]->device + at, bytes, cudaMemcpyDeviceToHost,
                                     b->stream);
        enum status st = gpu_status(e, "sketches");
        if (!st)
            st = gpu_sync(b, "sketches");
        if (st)
            return st;
        const struct iovec part = { b->host_wire.data, (m->end - m->begin) * bytes };
        st = b->exchange_ops->send(b->exchange, &key, &part, 1);
        if (st) {
            b->failed_peer = m->peer;
            return st;
        }
        b->cost.bytes_sent += part.iov_len;
    }
    return ST_OK;
}

int gpu_sketch_receive(struct backend *b, const struct gpu_op *op)
{
    struct select *s = b->input->select;
    const size_t bytes = s->store.layer_bytes, at = sparse_index(s, op->layer) * bytes;
    for (uint32_t i = 0; i < s->n_gets; i++) {
        const struct select_message *m = &s->gets[i];
        const struct exchange_key key = sketch_key(b, op, m->peer);
        const size_t all = (m->end - m->begin) * bytes;
        enum status st = gpu_sync(b, "sketches"); /* the last message's bytes have left the buffer */
        const int64_t start = clock_ns();
        if (!st)
            st = b->exchange_ops->recv(b->exchange, &key, b->host_wire.data, all, b->deadline_ns);
        b->cost.wait_ns += clock_ns() - start;
        b->cost.bytes_received += all;
        if (!st && !sketch_valid(&s->store, b->host_wire.data, all))
            st = ST_CORRUPT;
        if (st) {
            b->failed_peer = m->peer;
            return st;
        }
        int e = 0;
        for (uint32_t k = m->begin; k < m->end && !e; k++) {
            const uint8_t *from = (const uint8_t *)b->host_wire.data + (k - m->begin) * bytes;
            memcpy(sketch_layer(&s->store, s->sent[k], op->layer), from, bytes);
            s->sent[k]->have[sparse_index(s, op->layer)] = 1;
            e = (int)cudaMemcpyAsync((uint8_t *)s->sent[k]->device + at, from, bytes, cudaMemcpyHostToDevice,
                                     b->stream);
        }
        if (e)
            return gpu_status(e, "sketches");
    }
    return ST_OK;
}

int gpu_select(struct backend *b, const struct gpu_op *op)
{
    const struct select *s = b->input->select;
    const struct cuda_kv kv = gpu_kv(b);
    const uint32_t n = (uint32_t)(b->list[SECTION_CHOICES].bytes / sizeof(struct cuda_quest_job));
    int e = s->store.impl->by_row ? 0 : gpu_walk_select(b, op->layer);
    for (uint32_t first = 0; s->store.impl->by_row && first < n && !e; first += ROWS) {
        const struct cuda_quest c = { .jobs = (const struct cuda_quest_job *)gpu_at(b, SECTION_CHOICES) + first,
                                      .n_jobs = n - first < ROWS ? n - first : ROWS,
                                      .own_max = b->own_max,
                                      .sketches = gpu_at(b, SECTION_SKETCHES),
                                      .layer_bytes = s->store.layer_bytes,
                                      .q = b->queries.data,
                                      .scores = b->scores.data,
                                      .lists = b->lists.data,
                                      .leaf_blocks = s->store.spec.by_slot ? s->leaf_blocks : 0 };
        e = cuda_quest_run(&kv, sparse_index(s, op->layer), &c, b->stream);
    }
    if (!e && b->input->attend->n_messages[SEND_QUERIES])
        e = (int)cudaMemcpyAsync(b->host_lists.data, b->lists.data, s->list_words * sizeof(uint64_t),
                                 cudaMemcpyDeviceToHost, b->stream);
    return gpu_status(e, "selection");
}

void gpu_select_lists(const struct backend *b, uint32_t layer, struct cuda_attend *a)
{
    if (!b->selects || !select_layer(b->input->select, layer))
        return;
    a->lists = b->lists.data;
    a->blocks = gpu_at(b, SECTION_BLOCKS);
    a->by_row = b->input->select->store.impl->by_row;
    a->skipped = &b->outcome->skipped;
}

/* ---- choices with queries ---- */

size_t gpu_choices_bytes(const struct backend *b, enum attend_traffic kind, uint32_t message, uint32_t layer)
{
    const bool queries = kind == SEND_QUERIES || kind == RECEIVE_QUERIES;
    return queries && b->selects && select_layer(b->input->select, layer) ? b->input->select->choices[kind][message]
                                                                          : 0;
}

void gpu_choices_put(struct backend *b, uint32_t message, uint8_t *wire)
{
    select_choices_move(b->input->select, b->input->attend, SEND_QUERIES, message, b->host_lists.data, wire);
}

enum status gpu_choices_get(struct backend *b, uint32_t message, uint8_t *wire)
{
    const struct select *s = b->input->select;
    const struct attend_message *m = &b->input->attend->messages[RECEIVE_QUERIES][message];
    int e = 0;
    select_choices_move(s, b->input->attend, RECEIVE_QUERIES, message, b->host_lists.data, wire);
    for (uint32_t r = m->job_begin; r < m->job_end && !e; r++) {
        const struct select_job *job = &s->jobs[b->input->attend->refs[r].job];
        const size_t at = job->at * sizeof(uint64_t), bytes = (size_t)job->n_lists * job->words * sizeof(uint64_t);
        if (job->density)
            e = (int)cudaMemcpyAsync((uint8_t *)b->lists.data + at, (uint8_t *)b->host_lists.data + at, bytes,
                                     cudaMemcpyHostToDevice, b->stream);
    }
    return gpu_status(e, "choices");
}

/* ---- after a step ---- */

enum status gpu_select_end(struct backend *b)
{
    struct select *s = b->input->select;
    if (!active(b))
        return ST_OK;
    for (uint32_t i = 0; i < s->n_seals; i++) {
        struct sketch *sketch = s->seals[i];
        const enum status st = gpu_status(
            (int)cudaMemcpy(sketch->data, sketch->device, b->places.bytes, cudaMemcpyDeviceToHost), "a sketch");
        if (st)
            return st;
        memset(sketch->have, 1, s->store.n_layers);
        sketch->device_ready = true;
    }
    for (uint32_t i = 0; i < s->n_gets; i++)
        for (uint32_t k = s->gets[i].begin; k < s->gets[i].end; k++)
            s->sent[k]->device_ready = true;
    if (!s->store.impl->by_row)
        gpu_walk_end(b);
    return ST_OK;
}
