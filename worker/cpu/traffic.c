#include <math.h>
#include <string.h>

#include "common/clock.h"
#include "worker/cpu/cpu.h"

/* Queries of a local job's rows, rounded as pack_q rounds them, so that readers here and elsewhere see one query. */
static void put_queries(struct backend *b, const struct attend_job *job, uint8_t *to)
{
    const size_t width = (size_t)b->config->n_heads * b->config->head_dim;
    for (uint32_t r = 0; r < job->n_rows; r++) {
        const float *q =
            (const float *)(const void *)b->tensor[TENSOR_Q].data + (job->row + r) * b->tensor[TENSOR_Q].stride;
        if (b->float32) {
            memcpy(to + r * width * 4, q, width * 4);
            continue;
        }
        uint16_t *out = (uint16_t *)(void *)to + r * width;
        for (size_t i = 0; i < width; i++)
            out[i] = f32_to_bf16(q[i]);
    }
}

static void get_queries(struct backend *b, const struct attend_job *job, const uint8_t *from)
{
    const size_t row = (size_t)b->config->n_heads * b->config->head_dim * (b->float32 ? 4 : 2);
    memcpy(b->window + job->row * row, from, job->n_rows * row);
}

/*
 * A node on the wire: [n_rows][n_heads][m, l, o[head_dim]] float32. Rows are in the job's order, so vectors of a tile stand group by group.
 */
static void put_node(struct backend *b, const struct attend_job *job, uint32_t item, float *to)
{
    const struct model_config *c = b->config;
    const uint32_t group = c->n_heads / c->n_kv_heads;
    for (uint32_t head = 0; head < c->n_kv_heads; head++) {
        for (uint32_t tile = 0; tile < job->n_tiles; tile++) {
            const float *p = cpu_store_tile(b, job, item, head, tile);
            const uint32_t n = cpu_tile_vectors(b, job, tile);
            for (uint32_t i = 0; i < n; i++) {
                const uint32_t v = tile * ATTN_ROWS + i;
                float *out = to + ((size_t)(v / group) * c->n_heads + head * group + v % group) * (c->head_dim + 2);
                out[0] = p[i];
                out[1] = p[ATTN_ROWS + i];
                memcpy(out + 2, p + 2 * ATTN_ROWS + i * c->head_dim, c->head_dim * sizeof(float));
            }
        }
    }
}

/* What came must be a partial: l finite, 0 exactly when m is -inf, o finite. */
static bool partial_valid(const float *v, uint32_t head_dim)
{
    float zero = 0;
    for (uint32_t d = 0; d < head_dim; d++)
        zero += v[2 + d] * 0;
    if (zero != 0 || !isfinite(v[1]) || v[1] < 0)
        return false;
    return (v[1] == 0) == (v[0] == -INFINITY) && !isnan(v[0]) && v[0] != INFINITY;
}

static bool get_node(struct backend *b, const struct attend_job *job, uint32_t item, const float *from)
{
    const struct model_config *c = b->config;
    const uint32_t group = c->n_heads / c->n_kv_heads;
    for (uint32_t head = 0; head < c->n_kv_heads; head++) {
        for (uint32_t tile = 0; tile < job->n_tiles; tile++) {
            float *p = cpu_store_tile(b, job, item, head, tile);
            const uint32_t n = cpu_tile_vectors(b, job, tile);
            for (uint32_t i = 0; i < n; i++) {
                const uint32_t v = tile * ATTN_ROWS + i;
                const float *in =
                    from + ((size_t)(v / group) * c->n_heads + head * group + v % group) * (c->head_dim + 2);
                if (!partial_valid(in, c->head_dim))
                    return false;
                p[i] = in[0];
                p[ATTN_ROWS + i] = in[1];
                memcpy(p + 2 * ATTN_ROWS + i * c->head_dim, in + 2, c->head_dim * sizeof(float));
            }
        }
    }
    return true;
}

static struct exchange_key message_key(const struct backend *b, const struct cpu_op *op, uint16_t peer)
{
    struct exchange_key key = b->input->key;
    key.layer = (uint16_t)op->layer;
    key.phase = op->kind == SEND_QUERIES || op->kind == RECEIVE_QUERIES ? PHASE_QUERY : PHASE_PARTIAL;
    key.peer = peer;
    return key;
}

/* Sizes in floats of one node of a job. */
static size_t node_floats(const struct backend *b, const struct attend_job *job)
{
    return (size_t)job->n_rows * b->config->n_heads * (b->config->head_dim + 2);
}

void cpu_send(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    (void)n_members;
    const struct attend *a = b->input->attend;
    for (uint32_t i = 0; member == 0 && i < a->n_messages[op->kind]; i++) {
        const struct attend_message *m = &a->messages[op->kind][i];
        for (uint32_t r = m->job_begin; r < m->job_end; r++) {
            const struct attend_ref *ref = &a->refs[r];
            const struct attend_job *job = &a->jobs[ref->job];
            if (op->kind == SEND_QUERIES)
                put_queries(b, job, b->wire + ref->offset);
            else
                for (uint32_t k = 0; k < job->n_nodes; k++) /* a joined node stands where its leftmost item was */
                    put_node(b, job, a->code.v[a->nodes[job->node + k].begin],
                             (float *)(void *)(b->wire + ref->offset) + k * node_floats(b, job));
        }
        const size_t choices = op->kind == SEND_QUERIES ? cpu_choices_bytes(b, op->kind, i, op->layer) : 0;
        if (choices)
            cpu_choices_put(b, i, b->wire + m->bytes);
        const struct exchange_key key = message_key(b, op, m->peer);
        const struct iovec part = { b->wire, m->bytes + choices };
        const enum status st = b->exchange_ops->send(b->exchange, &key, &part, 1);
        if (st) {
            cpu_fail(b, st, m->peer);
            return;
        }
        b->cost.bytes_sent += m->bytes + choices;
    }
}

void cpu_receive(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    (void)n_members;
    const struct attend *a = b->input->attend;
    for (uint32_t i = 0; member == 0 && i < a->n_messages[op->kind]; i++) {
        const struct attend_message *m = &a->messages[op->kind][i];
        const struct exchange_key key = message_key(b, op, m->peer);
        const size_t choices = op->kind == RECEIVE_QUERIES ? cpu_choices_bytes(b, op->kind, i, op->layer) : 0;
        const int64_t start = clock_ns();
        enum status st = b->exchange_ops->recv(b->exchange, &key, b->wire, m->bytes + choices, b->deadline_ns);
        b->cost.wait_ns += clock_ns() - start;
        b->cost.bytes_received += m->bytes + choices;
        if (!st && choices)
            cpu_choices_get(b, i, b->wire + m->bytes);
        for (uint32_t r = m->job_begin; r < m->job_end && !st; r++) {
            const struct attend_ref *ref = &a->refs[r];
            const struct attend_job *job = &a->jobs[ref->job];
            if (op->kind == RECEIVE_QUERIES)
                get_queries(b, job, b->wire + ref->offset);
            else if (!get_node(b, job, ref->item, (const float *)(const void *)(b->wire + ref->offset)))
                st = ST_CORRUPT;
        }
        if (st) {
            cpu_fail(b, st, m->peer);
            return;
        }
    }
}
