#include "worker/step.h"

static const struct backend_part qkv[] = {
    { .weight = MODEL_ATTN_Q, .out = TENSOR_Q },
    { .weight = MODEL_ATTN_K, .out = TENSOR_K },
    { .weight = MODEL_ATTN_V, .out = TENSOR_V },
};
static const struct backend_part qkv_bias[] = {
    { .weight = MODEL_ATTN_Q, .out = TENSOR_Q, .bias = MODEL_ATTN_Q_BIAS },
    { .weight = MODEL_ATTN_K, .out = TENSOR_K, .bias = MODEL_ATTN_K_BIAS },
    { .weight = MODEL_ATTN_V, .out = TENSOR_V, .bias = MODEL_ATTN_V_BIAS },
};
static const struct backend_part attn_out[] = { { .weight = MODEL_ATTN_OUT, .out = TENSOR_X } };
static const struct backend_part gate_up[] = {
    { .weight = MODEL_FFN_GATE, .out = TENSOR_GATE },
    { .weight = MODEL_FFN_UP, .out = TENSOR_UP },
};
static const struct backend_part down[] = { { .weight = MODEL_FFN_DOWN, .out = TENSOR_X } };

/*
 * Local work comes first: queries travel meanwhile, in both directions. Nothing waits in a circle: storing keys needs nothing from outside, a query
 * only the rows' own projection, and where it is sparse, sketches, an answer only queries.
 */
static void attention(const struct backend_ops *ops, struct backend *b, uint32_t layer, const struct step_input *input)
{
    const struct attend *a = input->attend;
    const struct select *s = input->select && select_layer(input->select, layer) ? input->select : NULL;
    if (s && input->n_rows)
        ops->sketch(b, layer);
    if (s && s->n_gets && s->awaited)
        ops->sketch_receive(b, layer);
    const bool spread = s && s->spread; /* lists are made of what readers say of the queries */
    if (s && s->n_units && !spread)
        ops->select(b, layer);
    if (a->n_messages[SEND_QUERIES])
        ops->send(b, layer, SEND_QUERIES);
    if (spread && a->n_messages[RECEIVE_QUERIES])
        ops->receive(b, layer, RECEIVE_QUERIES);
    if (spread)
        ops->select(b, layer);
    if (a->n_local)
        ops->attend(b, layer, true);
    if (a->n_messages[RECEIVE_QUERIES]) {
        if (!spread)
            ops->receive(b, layer, RECEIVE_QUERIES);
        ops->attend(b, layer, false);
        ops->send(b, layer, SEND_NODES);
    }
    if (a->n_messages[RECEIVE_NODES])
        ops->receive(b, layer, RECEIVE_NODES);
    if (s && s->n_gets && !s->awaited)
        ops->sketch_receive(b, layer);
    if (a->n_local)
        ops->attend_finish(b);
}

void step_record(const struct backend_ops *ops, struct backend *b, const struct model_config *model,
                 const struct step_input *input)
{
    const bool rows = input->n_rows > 0;
    if (rows)
        ops->embed(b);
    for (uint32_t layer = 0; layer < model->n_layers; layer++) {
        if (rows) {
            ops->norm(b, TENSOR_X, MODEL_ATTN_NORM, layer, TENSOR_H);
            ops->linear(b, TENSOR_H, layer, model->qkv_bias ? qkv_bias : qkv, 3, false);
            if (model->qk_norm) {
                ops->norm_heads(b, TENSOR_Q, MODEL_ATTN_Q_NORM, layer);
                ops->norm_heads(b, TENSOR_K, MODEL_ATTN_K_NORM, layer);
            }
            ops->rope_store(b, layer);
            if (input->n_seals)
                ops->seal(b, layer);
        }
        attention(ops, b, layer, input);
        if (rows) {
            ops->linear(b, TENSOR_A, layer, attn_out, 1, true);
            ops->norm(b, TENSOR_X, MODEL_FFN_NORM, layer, TENSOR_H);
            ops->linear(b, TENSOR_H, layer, gate_up, 2, false);
            ops->silu_mul(b);
            ops->linear(b, TENSOR_F, layer, down, 1, true);
        }
    }
    if (input->n_asks)
        ops->answer(b);
}
