/* Exchanges through host memory: what goes out is brought to the host, what comes in is taken to the device. */
#include <math.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "common/clock.h"
#include "worker/cuda/gpu.h"

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

static int put_part(struct backend *b, const struct gpu_op *op, const struct attend_ref *ref)
{
    const struct attend *a = b->input->attend;
    const struct attend_job *job = &a->jobs[ref->job];
    const struct cuda_kv kv = gpu_kv(b);
    uint8_t *to = (uint8_t *)b->wire.data + ref->offset;
    int e = 0;
    if (op->kind == SEND_QUERIES)
        return (int)cudaMemcpyAsync(to, (uint8_t *)b->queries.data + job->row * query_bytes(b),
                                    job->n_rows * query_bytes(b), cudaMemcpyDeviceToDevice, b->stream);
    for (uint32_t k = 0; k < job->n_nodes && !e; k++) /* a joined node stands where its leftmost item was */
        e = cuda_node_copy(&kv, b->store.data, item_tile(b, job, a->code.v[a->nodes[job->node + k].begin]),
                           job->n_tiles, job->n_rows, (float *)(void *)to + k * node_floats(b, job), true, b->stream);
    return e;
}

int gpu_send(struct backend *b, const struct gpu_op *op)
{
    const struct attend *a = b->input->attend;
    for (uint32_t i = 0; i < a->n_messages[op->kind]; i++) {
        const struct attend_message *m = &a->messages[op->kind][i];
        const size_t choices = gpu_choices_bytes(b, op->kind, i, op->layer), bytes = m->bytes + choices;
        int e = 0;
        for (uint32_t r = m->job_begin; r < m->job_end && !e; r++)
            e = put_part(b, op, &a->refs[r]);
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
        const struct iovec part = { b->host_wire.data, bytes };
        st = b->exchange_ops->send(b->exchange, &key, &part, 1);
        if (st) {
            b->failed_peer = m->peer;
            return st;
        }
        b->cost.bytes_sent += bytes;
    }
    return ST_OK;
}

static int get_part(struct backend *b, const struct gpu_op *op, const struct attend_ref *ref)
{
    const struct attend_job *job = &b->input->attend->jobs[ref->job];
    const struct cuda_kv kv = gpu_kv(b);
    uint8_t *from = (uint8_t *)b->wire.data + ref->offset;
    if (op->kind == RECEIVE_QUERIES)
        return (int)cudaMemcpyAsync((uint8_t *)b->queries.data + (b->cap + job->row) * query_bytes(b), from,
                                    job->n_rows * query_bytes(b), cudaMemcpyDeviceToDevice, b->stream);
    return cuda_node_copy(&kv, b->store.data, item_tile(b, job, ref->item), job->n_tiles, job->n_rows,
                          (float *)(void *)from, false, b->stream);
}

int gpu_receive(struct backend *b, const struct gpu_op *op)
{
    const struct attend *a = b->input->attend;
    for (uint32_t i = 0; i < a->n_messages[op->kind]; i++) {
        const struct attend_message *m = &a->messages[op->kind][i];
        const struct exchange_key key = message_key(b, op, m->peer);
        const size_t choices = gpu_choices_bytes(b, op->kind, i, op->layer), bytes = m->bytes + choices;
        /* the last message's bytes have left the buffer */
        enum status st = gpu_sync(b, "message");
        const int64_t start = clock_ns();
        if (!st) {
            st = b->exchange_ops->recv(b->exchange, &key, b->host_wire.data, bytes, b->deadline_ns);
            if (st)
                b->failed_peer = m->peer;
        }
        b->cost.wait_ns += clock_ns() - start;
        b->cost.bytes_received += bytes;
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
            e = get_part(b, op, &a->refs[r]);
        if (e)
            return gpu_status(e, "message");
    }
    return ST_OK;
}
