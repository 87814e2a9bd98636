/*
 * The CUDA backend: operations are records in a list, as the CPU's; run launches them on a stream, in order. A step of few rows whose messages
 * go from GPU to GPU, if it has any, is captured as a graph once, and replayed as long as its shape stays.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "common/clock.h"
#include "common/log.h"
#include "worker/cuda/links.h"

/* ---- recording ---- */

static struct gpu_op *record(struct backend *b, gpu_op_fn *fn)
{
    static struct gpu_op spare;
    if (b->n_ops == b->ops_room) {
        const uint32_t room = b->ops_room ? b->ops_room * 2 : 256;
        struct gpu_op *ops = realloc(b->ops, room * sizeof *ops);
        if (!ops) {
            b->overflow = true;
            return &spare;
        }
        b->ops = ops;
        b->ops_room = room;
    }
    struct gpu_op *op = &b->ops[b->n_ops++];
    *op = (struct gpu_op){ .fn = fn };
    return op;
}

static size_t choices_most(const struct backend *b)
{
    size_t most = 0;
    for (int kind = SEND_QUERIES; kind <= RECEIVE_QUERIES && b->selects; kind++)
        for (uint32_t i = 0; i < b->input->attend->n_messages[kind]; i++)
            most = b->input->select->choices[kind][i] > most ? b->input->select->choices[kind][i] : most;
    return most;
}

static enum status gpu_begin(struct backend *b, const struct step_input *input)
{
    const struct attend *a = input->attend;
    const size_t wire = attend_message_max(a);
    if (input->n_rows > b->rows_max)
        return ST_TOO_LARGE;
    if (a->n_leaves) /* reads_apart is this backend's wish */
        return ST_INTERNAL;
    b->input = input;
    b->n_ops = 0;
    b->overflow = false;
    if (!step_answers_reserve(&b->answers, input, b->config->n_vocab))
        return ST_NO_MEMORY;
    enum status st = gpu_sync(b, "step before"); /* an abandoned one may still read the arena */
    if (!st)
        st = gpu_select_begin(b);
    if (!st && wire)
        st = gpu_reserve(b, &b->wire, wire, false);
    if (!st && wire)
        st = gpu_reserve(b, &b->host_wire, wire + choices_most(b), true);
    return st ? st : gpu_arena_build(b);
}

static void record_embed(struct backend *b)
{
    record(b, gpu_embed);
}

static void record_norm(struct backend *b, enum tensor in, enum model_tensor_kind weight, uint32_t layer,
                        enum tensor out)
{
    struct gpu_op *op = record(b, gpu_norm);
    op->in = in;
    op->kind = weight;
    op->layer = layer;
    op->out = out;
}

static void record_linear(struct backend *b, enum tensor in, uint32_t layer, const struct backend_part *parts,
                          uint32_t n_parts, bool accumulate)
{
    struct gpu_op *op = record(b, gpu_linear);
    op->in = in;
    op->layer = layer;
    op->n_parts = n_parts;
    memcpy(op->parts, parts, n_parts * sizeof *parts);
    op->flag = accumulate;
}

static void record_norm_heads(struct backend *b, enum tensor tensor, enum model_tensor_kind weight, uint32_t layer)
{
    struct gpu_op *op = record(b, gpu_norm_heads);
    op->out = tensor;
    op->kind = weight;
    op->layer = layer;
}

static void record_rope_store(struct backend *b, uint32_t layer)
{
    record(b, gpu_rope_store)->layer = layer;
}

static void record_seal(struct backend *b, uint32_t layer)
{
    if (b->open_part_bytes)
        record(b, gpu_seal)->layer = layer;
}

static void record_sketch(struct backend *b, uint32_t layer)
{
    if (b->input->select->n_seals || !b->input->select->store.impl->by_row)
        record(b, gpu_sketch)->layer = layer;
    if (b->input->select->n_sends)
        record(b, gpu_sketch_send)->layer = layer;
}

static void record_sketch_receive(struct backend *b, uint32_t layer)
{
    record(b, gpu_sketch_receive)->layer = layer;
}

static void record_select(struct backend *b, uint32_t layer)
{
    record(b, gpu_select)->layer = layer;
}

static void record_send(struct backend *b, uint32_t layer, enum attend_traffic what)
{
    struct gpu_op *op = record(b, gpu_send);
    op->layer = layer;
    op->kind = what;
}

static void record_receive(struct backend *b, uint32_t layer, enum attend_traffic what)
{
    struct gpu_op *op = record(b, gpu_receive);
    op->layer = layer;
    op->kind = what;
}

static void record_attend(struct backend *b, uint32_t layer, bool local)
{
    struct gpu_op *op = record(b, gpu_attend);
    op->layer = layer;
    op->flag = local;
    if (!local)
        record(b, gpu_attend_join);
}

static void record_attend_finish(struct backend *b)
{
    record(b, gpu_attend_finish);
}

static void record_silu_mul(struct backend *b)
{
    record(b, gpu_silu_mul);
}

static void record_answer(struct backend *b)
{
    for (uint32_t begin = 0; begin < b->input->n_asks; begin += GPU_LOGIT_ROWS) {
        const uint32_t left = b->input->n_asks - begin;
        struct gpu_op *op = record(b, gpu_answer);
        op->begin = begin;
        op->end = begin + (left < GPU_LOGIT_ROWS ? left : GPU_LOGIT_ROWS);
    }
}

/* ---- running ---- */

static enum status run_begin(struct backend *b)
{
    int e = (int)cudaMemcpyAsync(b->arena.data, b->host_arena.data, b->arena_bytes, cudaMemcpyHostToDevice, b->stream);
    if (!e)
        e = (int)cudaMemsetAsync(b->outcome, 0, sizeof *b->outcome, b->stream);
    const enum status st = gpu_status(e, "a step's plan");
    return st ? st : gpu_links_begin(b);
}

static enum status run_end(struct backend *b)
{
    const enum status st = gpu_links_end(b);
    if (st)
        return st;
    return gpu_status(
        (int)cudaMemcpyAsync(b->host_outcome, b->outcome, sizeof *b->outcome, cudaMemcpyDeviceToHost, b->stream),
        "a step's end");
}

static enum status run_eager(struct backend *b)
{
    enum status st = run_begin(b);
    for (uint32_t i = 0; i < b->n_ops && !st; i++) {
        const struct gpu_op *op = &b->ops[i];
        st = (enum status)op->fn(b, op);
        if (!st && op->fn == gpu_answer) {
            st = gpu_sync(b, "logits");
            if (!st)
                st = gpu_sample(b, op->begin, op->end);
        }
    }
    if (!st)
        st = run_end(b);
    if (st)
        gpu_links_abort(b);
    const enum status synced = gpu_sync(b, "a step");
    return st ? st : synced;
}

/* Captures what run_eager would launch; exec NULL if it can not be. */
static void *capture(struct backend *b)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    if (cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal))
        return NULL;
    enum status st = run_begin(b);
    for (uint32_t i = 0; i < b->n_ops && !st; i++)
        st = (enum status)b->ops[i].fn(b, &b->ops[i]);
    if (!st)
        st = run_end(b);
    if (cudaStreamEndCapture(b->stream, &graph) || st || cudaGraphInstantiate(&exec, graph, 0))
        exec = NULL;
    if (graph)
        cudaGraphDestroy(graph);
    cudaGetLastError();
    return exec;
}

/* The graph of a step of this shape; made if there is none. NULL: it can not be. */
static void *graph_of(struct backend *b)
{
    const uint64_t key = (gpu_arena_key(b) ^ gpu_links_key(b)) | 1;
    struct gpu_graph *oldest = &b->graphs[0];
    for (int i = 0; i < GPU_GRAPHS; i++) {
        struct gpu_graph *g = &b->graphs[i];
        if (g->key == key) {
            g->used = ++b->clock;
            return g->exec;
        }
        if (g->used < oldest->used)
            oldest = g;
    }
    void *exec = capture(b);
    if (!exec)
        log_debug("cuda: a step of %u rows is no graph", b->input->n_rows);
    if (oldest->exec)
        cudaGraphExecDestroy(oldest->exec);
    *oldest = (struct gpu_graph){ key, ++b->clock, exec };
    return exec;
}

/* Sketches go through hosts. */
static bool exchanges(const struct backend *b)
{
    const struct select *s = b->input->select;
    return !gpu_links_graph(b) || (s && select_active(s) && (s->n_sends || s->n_gets));
}

static enum status run_list(struct backend *b)
{
    const uint32_t n_asks = b->input->n_asks;
    void *exec = NULL;
    if (b->input->n_rows <= CUDA_ROWS_FEW && n_asks <= GPU_LOGIT_ROWS && !exchanges(b))
        exec = graph_of(b);
    if (!exec)
        return run_eager(b);
    enum status st = gpu_status((int)cudaGraphLaunch(exec, b->stream), "a step");
    if (!st)
        st = gpu_sync(b, "a step");
    return st || !n_asks ? st : gpu_sample(b, 0, n_asks);
}

static enum status gpu_run(struct backend *b, const struct exchange_ops *exchange_ops, struct exchange *exchange,
                           int64_t deadline_ns, const struct step_answer **answers_out, struct step_cost *cost_out,
                           uint16_t *peer_out)
{
    if (b->overflow)
        return ST_NO_MEMORY;
    b->exchange_ops = exchange_ops;
    b->exchange = exchange;
    b->deadline_ns = deadline_ns;
    b->cost = (struct step_cost){ 0 };
    b->failed_peer = UINT16_MAX;
    atomic_store(&b->bad_row, 0);
    const int64_t start = clock_ns();
    gpu_traffic_count(b, &b->cost);
    enum status st = gpu_links_prepare(b);
    if (!st)
        st = run_list(b);
    st = gpu_links_finish(b, st);
    if (!st && b->host_outcome->failed)
        st = ST_CORRUPT;
    if (!st)
        st = gpu_select_end(b);
    b->cost.busy_ns = clock_ns() - start - b->cost.wait_ns;
    b->cost.kv_bytes_dense =
        (b->parts_read * b->part_bytes + b->open_read * b->open_part_bytes) * 2 * b->config->n_layers;
    b->cost.kv_bytes_read = b->cost.kv_bytes_dense - 2 * b->part_bytes * (st ? 0 : b->host_outcome->skipped);
    *answers_out = b->answers.list;
    *cost_out = b->cost;
    *peer_out = b->failed_peer;
    return st;
}

const struct backend_ops backend_cuda = {
    .name = "cuda",
    .open = gpu_open,
    .close = gpu_close,
    .fingerprint = gpu_fingerprint,
    .weight_bytes = gpu_weight_bytes,
    .kv_layout = gpu_kv_layout,
    .open_part_bytes = gpu_open_part_bytes,
    .kv_memory = &gpu_pool_memory,
    .leaf_blocks = CUDA_LEAF_BLOCKS,
    .n_parts = GPU_PARTS,
    .reads_apart = true,
    .selectors = (const char *const[]){ "quest", "sketch-walk", NULL },
    .begin = gpu_begin,
    .embed = record_embed,
    .norm = record_norm,
    .linear = record_linear,
    .norm_heads = record_norm_heads,
    .rope_store = record_rope_store,
    .seal = record_seal,
    .sketch = record_sketch,
    .sketch_receive = record_sketch_receive,
    .select = record_select,
    .send = record_send,
    .receive = record_receive,
    .attend = record_attend,
    .attend_finish = record_attend_finish,
    .silu_mul = record_silu_mul,
    .answer = record_answer,
    .run = gpu_run,
};
