/* Exchanges: by links between GPUs where there are such; else what goes out is brought to the host, what comes in is taken to the device. */
#include <math.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "common/clock.h"
#include "worker/cuda/links.h"

static struct exchange_key message_key(const struct backend *b, const struct gpu_op *op, uint16_t peer)
{
    struct exchange_key key = b->input->key;
    key.layer = (uint16_t)op->layer;
    key.phase = op->kind == SEND_QUERIES || op->kind == RECEIVE_QUERIES ? PHASE_QUERY : PHASE_PARTIAL;
    key.peer = peer;
    return key;
}

static size_t query_bytes(const struct backend *b)
{
    return (size_t)b->config->n_heads * b->config->head_dim * 2;
}

static size_t node_floats(const struct backend *b, const struct attend_job *job)
{
    return (size_t)job->n_rows * b->config->n_heads * (b->config->head_dim + 2);
}

/* First tile of an item of a job. */
static uint32_t item_tile(const struct backend *b, const struct attend_job *job, uint32_t item)
{
    return b->job_store[job - b->input->attend->jobs] + item * b->config->n_kv_heads * job->n_tiles;
}

/* What came must be a partial: l finite, 0 exactly when m is -inf, o finite. */
static bool partials_valid(const float *v, size_t n, uint32_t head_dim)
{
    for (size_t i = 0; i < n; i++, v += head_dim + 2) {
        float zero = 0;
        for (uint32_t d = 0; d < head_dim; d++)
            zero += v[2 + d] * 0;
        if (zero != 0 || !isfinite(v[1]) || v[1] < 0 || isnan(v[0]) || v[0] == INFINITY ||
            (v[1] == 0) != (v[0] == -INFINITY))
            return false;
    }
    return true;
}

static int put_part(struct backend *b, const struct gpu_op *op, const struct attend_ref *ref, uint8_t *wire)
{
    const struct attend *a = b->input->attend;
    const struct attend_job *job = &a->jobs[ref->job];
    const struct cuda_kv kv = gpu_kv(b);
    uint8_t *to = wire + ref->offset;
    int e = 0;
    if (op->kind == SEND_QUERIES)
        return (int)cudaMemcpyAsync(to, (uint8_t *)b->queries.data + job->row * query_bytes(b),
                                    job->n_rows * query_bytes(b), cudaMemcpyDeviceToDevice, b->stream);
    for (uint32_t k = 0; k < job->n_nodes && !e; k++) /* a joined node stands where its leftmost item was */
        e = cuda_node_copy(&kv, b->store.data, item_tile(b, job, a->code.v[a->nodes[job->node + k].begin]),
                           job->n_tiles, job->n_rows, (float *)(void *)to + k * node_floats(b, job), true, NULL,
                           b->stream);
    return e;
}

static int put_parts(struct backend *b, const struct gpu_op *op, const struct attend_message *m, uint8_t *wire)
{
    int e = 0;
    for (uint32_t r = m->job_begin; r < m->job_end && !e; r++)
        e = put_part(b, op, &b->input->attend->refs[r], wire);
    return e;
}

/* Where the queries of a message stand already, in its order; NULL: in several places. */
static uint8_t *queries_whole(const struct backend *b, const struct gpu_op *op, const struct attend_message *m)
{
    const struct attend_ref *ref = &b->input->attend->refs[m->job_begin];
    const uint32_t row = b->input->attend->jobs[ref->job].row;
    if (m->job_end - m->job_begin != 1 || (op->kind != SEND_QUERIES && op->kind != RECEIVE_QUERIES))
        return NULL;
    return (uint8_t *)b->queries.data + (op->kind == SEND_QUERIES ? row : b->cap + row) * query_bytes(b);
}

static enum status link_send(struct backend *b, const struct gpu_op *op, uint32_t i)
{
    const struct attend_message *m = &b->input->attend->messages[op->kind][i];
    uint8_t *from = queries_whole(b, op, m);
    int e = 0;
    if (!from) {
        from = gpu_links_place(b, op->kind, i);
        e = put_parts(b, op, m, from);
    }
    if (!e)
        e = gpu_links_send(b, op->layer, op->kind, i, from);
    return gpu_status(e, "message to a GPU");
}

static enum status host_send(struct backend *b, const struct gpu_op *op, uint32_t i)
{
    const struct attend_message *m = &b->input->attend->messages[op->kind][i];
    const size_t choices = gpu_choices_bytes(b, op->kind, i, op->layer);
    int e = put_parts(b, op, m, b->wire.data);
    if (!e)
        e = (int)cudaMemcpyAsync(b->host_wire.data, b->wire.data, m->bytes, cudaMemcpyDeviceToHost, b->stream);
    enum status st = gpu_status(e, "message");
    if (!st)
        st = gpu_sync(b, "message");
    if (st)
        return st;
    const struct exchange_key key = message_key(b, op, m->peer);
    if (choices)
        gpu_choices_put(b, i, (uint8_t *)b->host_wire.data + m->bytes);
    const struct iovec part = { b->host_wire.data, m->bytes + choices };
    st = b->exchange_ops->send(b->exchange, &key, &part, 1);
    if (st)
        b->failed_peer = m->peer;
    return st;
}

int gpu_send(struct backend *b, const struct gpu_op *op)
{
    const struct attend *a = b->input->attend;
    enum status st = ST_OK;
    for (uint32_t i = 0; i < a->n_messages[op->kind] && !st; i++)
        st = gpu_links_take(b, op->kind, i) ? link_send(b, op, i) : host_send(b, op, i);
    /* who awaits nothing after this does not come back to it before the next layer */
    if (!st && op->kind == SEND_NODES && !a->n_messages[RECEIVE_NODES])
        st = gpu_status(gpu_links_flush(b), "messages to GPUs");
    return st;
}

static int get_part(struct backend *b, const struct gpu_op *op, const struct attend_ref *ref, uint8_t *wire,
                    uint32_t *failed)
{
    const struct attend_job *job = &b->input->attend->jobs[ref->job];
    const struct cuda_kv kv = gpu_kv(b);
    uint8_t *from = wire + ref->offset;
    if (op->kind == RECEIVE_QUERIES)
        return (int)cudaMemcpyAsync((uint8_t *)b->queries.data + (b->cap + job->row) * query_bytes(b), from,
                                    job->n_rows * query_bytes(b), cudaMemcpyDeviceToDevice, b->stream);
    return cuda_node_copy(&kv, b->store.data, item_tile(b, job, ref->item), job->n_tiles, job->n_rows,
                          (float *)(void *)from, false, failed, b->stream);
}

static enum status host_receive(struct backend *b, const struct gpu_op *op, uint32_t i)
{
    const struct attend *a = b->input->attend;
    const struct attend_message *m = &a->messages[op->kind][i];
    const size_t choices = gpu_choices_bytes(b, op->kind, i, op->layer);
    const struct exchange_key key = message_key(b, op, m->peer);
    /* the last message's bytes have left the buffer */
    enum status st = gpu_sync(b, "message");
    const int64_t start = clock_ns();
    if (!st) {
        st = b->exchange_ops->recv(b->exchange, &key, b->host_wire.data, m->bytes + choices, b->deadline_ns);
        if (st)
            b->failed_peer = m->peer;
    }
    b->cost.wait_ns += clock_ns() - start;
    if (!st && choices)
        st = gpu_choices_get(b, i, (uint8_t *)b->host_wire.data + m->bytes);
    for (uint32_t r = m->job_begin; r < m->job_end && !st && op->kind == RECEIVE_NODES; r++) {
        const struct attend_job *job = &a->jobs[a->refs[r].job];
        const float *node = (const float *)(const void *)((uint8_t *)b->host_wire.data + a->refs[r].offset);
        if (!partials_valid(node, (size_t)job->n_rows * b->config->n_heads, b->config->head_dim)) {
            b->failed_peer = m->peer;
            st = ST_CORRUPT;
        }
    }
    if (st)
        return st;
    int e = (int)cudaMemcpyAsync(b->wire.data, b->host_wire.data, m->bytes, cudaMemcpyHostToDevice, b->stream);
    for (uint32_t r = m->job_begin; r < m->job_end && !e; r++)
        e = get_part(b, op, &a->refs[r], b->wire.data, NULL);
    return gpu_status(e, "message");
}

/* All links' messages are asked for before the first is taken apart. */
static enum status links_receive(struct backend *b, const struct gpu_op *op)
{
    const struct attend *a = b->input->attend;
    int e = 0;
    for (uint32_t i = 0; i < a->n_messages[op->kind] && !e; i++) {
        uint8_t *to = queries_whole(b, op, &a->messages[op->kind][i]);
        if (gpu_links_take(b, op->kind, i))
            e = gpu_links_receive(b, op->layer, op->kind, i, to ? to : gpu_links_place(b, op->kind, i));
    }
    if (!e)
        e = gpu_links_flush(b);
    for (uint32_t i = 0; i < a->n_messages[op->kind] && !e; i++) {
        const struct attend_message *m = &a->messages[op->kind][i];
        const bool apart = gpu_links_take(b, op->kind, i) && !queries_whole(b, op, m);
        for (uint32_t r = m->job_begin; apart && r < m->job_end && !e; r++)
            e = get_part(b, op, &a->refs[r], gpu_links_place(b, op->kind, i), &b->outcome->failed);
    }
    return gpu_status(e, "message of a GPU");
}

int gpu_receive(struct backend *b, const struct gpu_op *op)
{
    const struct attend *a = b->input->attend;
    enum status st = links_receive(b, op);
    for (uint32_t i = 0; i < a->n_messages[op->kind] && !st; i++)
        if (!gpu_links_take(b, op->kind, i))
            st = host_receive(b, op, i);
    return st;
}

void gpu_traffic_count(const struct backend *b, struct step_cost *cost)
{
    const struct attend *a = b->input->attend;
    for (int kind = 0; kind < ATTEND_TRAFFICS; kind++)
        for (uint32_t i = 0; i < a->n_messages[kind]; i++) {
            uint64_t bytes = (uint64_t)a->messages[kind][i].bytes * b->config->n_layers;
            for (uint32_t layer = 0; layer < b->config->n_layers; layer++)
                bytes += gpu_choices_bytes(b, (enum attend_traffic)kind, i, layer);
            if (kind == SEND_QUERIES || kind == SEND_NODES)
                cost->bytes_sent += bytes;
            else
                cost->bytes_received += bytes;
        }
}
