#include <string.h>

#include "worker/cpu/cpu.h"

static void *tensor_row(const struct cpu_tensor *t, uint32_t row)
{
    return t->data + row * t->stride * dtype_bytes(t->type);
}

static float *float_row(const struct cpu_tensor *t, uint32_t row)
{
    return (float *)(void *)t->data + row * t->stride;
}

void cpu_embed(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    (void)op;
    const struct cpu_tensor *x = &b->tensor[TENSOR_X];
    uint32_t begin, end;
    team_share(b->input->n_rows, member, n_members, &begin, &end);
    for (uint32_t r = begin; r < end; r++) {
        const uint32_t token = (uint32_t)b->input->rows[r].token;
        const void *row = model_tensor_row(&b->weights.embedding, token, b->members[member].row_scratch);
        weight_row_f32(b->weights.embedding.codec, row, b->config->d_model, float_row(x, r));
    }
}

void cpu_norm(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    const struct cpu_tensor *in = &b->tensor[op->in], *out = &b->tensor[op->out];
    const float *w = b->weights.layers[op->layer].vector[op->kind];
    uint32_t begin, end;
    team_share(b->input->n_rows, member, n_members, &begin, &end);
    for (uint32_t r = begin; r < end; r++)
        b->rows->rmsnorm(float_row(in, r), w, b->config->d_model, b->config->rms_eps, out->type, tensor_row(out, r),
                         (uint32_t)out->stride);
}

void cpu_norm_heads(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    const struct cpu_tensor *t = &b->tensor[op->out];
    const float *w = b->weights.layers[op->layer].vector[op->kind];
    const uint32_t dim = b->config->head_dim;
    uint32_t begin, end;
    team_share(b->input->n_rows, member, n_members, &begin, &end);
    for (uint32_t r = begin; r < end; r++) {
        float *row = float_row(t, r);
        for (size_t at = 0; at < t->width; at += dim)
            b->rows->rmsnorm(row + at, w, dim, b->config->rms_eps, DTYPE_F32, row + at, dim);
    }
}

/* Outputs begin .. end of a weight's row groups, for all rows. */
static void run_groups(struct backend *b, const struct cpu_weight *w, const void *x, size_t x_stride, uint32_t n_rows,
                       uint32_t group_begin, uint32_t group_end, float *y, size_t y_stride, bool accumulate,
                       uint32_t member)
{
    const uint32_t end = group_end * LINEAR_GROUP;
    const struct linear_args args = {
        .shape = &w->shape,
        .packed = w->packed,
        .x = x,
        .x_stride = x_stride,
        .n_rows = n_rows,
        .out_begin = group_begin * LINEAR_GROUP,
        .out_end = end < w->shape.n_out ? end : w->shape.n_out,
        .y = y,
        .y_stride = y_stride,
        .accumulate = accumulate,
        .scratch = b->members[member].linear_scratch,
    };
    if (args.out_begin < args.out_end)
        w->impl->run(&args);
}

static uint32_t n_groups(const struct cpu_weight *w)
{
    return (w->shape.n_out + LINEAR_GROUP - 1) / LINEAR_GROUP;
}

/* Adds a bias to the outputs that run_groups has just written. */
static void add_bias(struct backend *b, const float *bias, const struct cpu_weight *w, const struct cpu_tensor *out,
                     uint32_t group_begin, uint32_t group_end)
{
    const uint32_t begin = group_begin * LINEAR_GROUP, last = group_end * LINEAR_GROUP,
                   end = last < w->shape.n_out ? last : w->shape.n_out;
    for (uint32_t r = 0; r < b->input->n_rows; r++)
        b->rows->add(float_row(out, r) + begin, bias + begin, end - begin);
}

/* All parts' row groups are one list, of which each member takes an even share. */
void cpu_linear(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    const struct cpu_layer *layer = &b->weights.layers[op->layer];
    const struct cpu_tensor *in = &b->tensor[op->in];
    uint32_t total = 0, first = 0, begin, end;
    for (uint32_t i = 0; i < op->n_parts; i++)
        total += n_groups(&layer->weight[op->parts[i].weight]);
    team_share(total, member, n_members, &begin, &end);
    for (uint32_t i = 0; i < op->n_parts; i++) {
        const struct cpu_weight *w = &layer->weight[op->parts[i].weight];
        const struct cpu_tensor *out = &b->tensor[op->parts[i].out];
        const uint32_t n = n_groups(w), from = begin > first ? begin - first : 0, to = end > first ? end - first : 0;
        first += n;
        if (from >= n || to <= from)
            continue;
        run_groups(b, w, in->data, in->stride, b->input->n_rows, from, to < n ? to : n, (float *)(void *)out->data,
                   out->stride, op->flag, member);
        if (op->parts[i].bias)
            add_bias(b, layer->vector[op->parts[i].bias], w, out, from, to < n ? to : n);
    }
}

void cpu_rope_store(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    const struct model_config *c = b->config;
    uint32_t begin, end;
    team_share(b->input->n_rows, member, n_members, &begin, &end);
    for (uint32_t r = begin; r < end; r++) {
        const struct step_row *row = &b->input->rows[r];
        const float *cosines = b->cos + (size_t)r * (c->head_dim / 2), *sines = b->sin + (size_t)r * (c->head_dim / 2);
        float *k = float_row(&b->tensor[TENSOR_K], r);
        const float *v = float_row(&b->tensor[TENSOR_V], r);
        if (b->tap)
            b->tap->row(b->tap->ctx, op->layer, row->pos, float_row(&b->tensor[TENSOR_Q], r), k, v);
        b->rows->rope(float_row(&b->tensor[TENSOR_Q], r), c->n_heads, c->head_dim, cosines, sines);
        b->rows->rope(k, c->n_kv_heads, c->head_dim, cosines, sines);
        for (uint32_t j = 0; j < c->n_kv_heads; j++) {
            uint8_t *part = cpu_open_part(b, row->slot, row->open, op->layer, j);
            b->open->store(&b->open_shape, row->pos % KV_BLOCK, k + j * c->head_dim, v + j * c->head_dim, part,
                           part + b->open_part_bytes);
        }
    }
}

void cpu_silu_mul(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    (void)op;
    const struct cpu_tensor *f = &b->tensor[TENSOR_F];
    uint32_t begin, end;
    team_share(b->input->n_rows, member, n_members, &begin, &end);
    for (uint32_t r = begin; r < end; r++)
        b->rows->silu_mul(float_row(&b->tensor[TENSOR_GATE], r), float_row(&b->tensor[TENSOR_UP], r), b->config->d_ff,
                          f->type, tensor_row(f, r), (uint32_t)f->stride);
}

void cpu_answer_norm(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    const struct cpu_tensor *h = &b->tensor[TENSOR_H];
    uint32_t begin, end;
    team_share(op->end - op->begin, member, n_members, &begin, &end);
    for (uint32_t i = begin; i < end; i++)
        b->rows->rmsnorm(float_row(&b->tensor[TENSOR_X], b->input->asks[op->begin + i].row), b->weights.output_norm,
                         b->config->d_model, b->config->rms_eps, h->type,
                         b->logit_rows + i * h->stride * dtype_bytes(h->type), (uint32_t)h->stride);
}

void cpu_answer_logits(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    uint32_t begin, end;
    team_share(n_groups(&b->weights.output), member, n_members, &begin, &end);
    run_groups(b, &b->weights.output, b->logit_rows, b->tensor[TENSOR_H].stride, op->end - op->begin, begin, end,
               b->logits, b->config->n_vocab, false, member);
}

void cpu_answer_sample(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    const uint32_t n_vocab = b->config->n_vocab;
    for (uint32_t i = op->begin + member; i < op->end; i += n_members) {
        const struct step_ask *ask = &b->input->asks[i];
        const float *logits = b->logits + (size_t)(i - op->begin) * n_vocab;
        struct step_answer *answer = &b->answers.list[i];
        sample_row(b->rows, logits, n_vocab, &ask->sampling, ask->edited ? &ask->edits : NULL, ask->pos, ask->target,
                   ask->n_top, (struct sample_top *)(uintptr_t)answer->top, b->members[member].sample_scratch,
                   &answer->result);
        if (answer->logits)
            memcpy((float *)(uintptr_t)answer->logits, logits, n_vocab * sizeof(float));
        if (!answer->result.finite)
            cpu_fail(b, ST_CORRUPT, UINT16_MAX);
    }
}
