/*
 * The CPU backend: operations are records in a list; run walks the list on a team of threads, all members through each operation, a barrier
 * after each. Member 0 makes the exchanges.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "model/rope.h"
#include "worker/cpu/cpu.h"

void cpu_fail(struct backend *b, enum status st, uint16_t peer)
{
    int none = ST_OK;
    if (atomic_compare_exchange_strong(&b->failed, &none, st))
        b->failed_peer = peer;
}

/* ---- open and close ---- */

static void cpu_close(struct backend *b)
{
    if (!b)
        return;
    cpu_weights_free(b);
    cpu_books_free(b);
    team_free(b->team);
    for (int i = 0; i < TENSORS; i++)
        free(b->tensor[i].data);
    for (uint32_t i = 0; b->members && i < b->n_threads; i++) {
        free(b->members[i].linear_scratch);
        free(b->members[i].stack);
        free(b->members[i].queries);
        free(b->members[i].q_tiles);
        free(b->members[i].open_q_tiles);
        if (b->members[i].expanded)
            free(b->members[i].expanded->data);
        free(b->members[i].expanded);
        free(b->members[i].sample_scratch);
        free(b->members[i].row_scratch);
        free(b->members[i].select);
    }
    free(b->members);
    free(b->cos);
    free(b->sin);
    free(b->logits);
    free(b->logit_rows);
    free(b->ops);
    free(b->units);
    free(b->lists);
    cpu_owners_free(b);
    free(b->store);
    free(b->scratch);
    free(b->window);
    free(b->wire);
    step_answers_free(&b->answers);
    free(b);
}

static bool tensors_alloc(struct backend *b)
{
    const struct model_config *c = b->config;
    const enum dtype act = b->float32 ? DTYPE_F32 : DTYPE_BF16;
    const struct cpu_tensor shapes[TENSORS] = {
        [TENSOR_X] = { .width = c->d_model, .type = DTYPE_F32 },
        [TENSOR_H] = { .width = c->d_model, .type = act },
        [TENSOR_Q] = { .width = (size_t)c->n_heads * c->head_dim, .type = DTYPE_F32 },
        [TENSOR_K] = { .width = (size_t)c->n_kv_heads * c->head_dim, .type = DTYPE_F32 },
        [TENSOR_V] = { .width = (size_t)c->n_kv_heads * c->head_dim, .type = DTYPE_F32 },
        [TENSOR_A] = { .width = (size_t)c->n_heads * c->head_dim, .type = act },
        [TENSOR_GATE] = { .width = c->d_ff, .type = DTYPE_F32 },
        [TENSOR_UP] = { .width = c->d_ff, .type = DTYPE_F32 },
        [TENSOR_F] = { .width = c->d_ff, .type = act },
    };
    for (int i = 0; i < TENSORS; i++) {
        struct cpu_tensor *t = &b->tensor[i];
        *t = shapes[i];
        t->stride = (t->width + 31) / 32 * 32;
        if (t->stride * dtype_bytes(t->type) % 2048 == 0) /* rows of a tile would fall into a few sets of the cache */
            t->stride += 32;
        const size_t bytes = b->rows_max * t->stride * dtype_bytes(t->type);
        t->data = cpu_alloc(bytes);
        if (!t->data)
            return false;
        if (t->stride != t->width)
            memset(t->data, 0, bytes); /* the padding of products' inputs is read */
    }
    return true;
}

static size_t linear_scratch_bytes(const struct backend *b)
{
    size_t most = b->weights.output.impl->scratch_bytes(&b->weights.output.shape, CPU_LOGIT_ROWS);
    for (int kind = 0; kind < MODEL_TENSOR_KINDS; kind++) {
        const struct cpu_weight *w = &b->weights.layers[0].weight[kind];
        for (uint32_t layer = 0; w->impl && layer < b->config->n_layers; layer++) {
            w = &b->weights.layers[layer].weight[kind];
            const size_t bytes = w->impl->scratch_bytes(&w->shape, b->rows_max);
            most = bytes > most ? bytes : most;
        }
    }
    return most;
}

static bool members_alloc(struct backend *b)
{
    const struct model_config *c = b->config;
    const struct cpu_reader *of[] = { &b->reader[ROW_PROMPT], &b->reader[ROW_GENERATED] };
    const size_t linear = linear_scratch_bytes(b),
                 tile = of[0]->q_tile_bytes > of[1]->q_tile_bytes ? of[0]->q_tile_bytes : of[1]->q_tile_bytes;
    for (uint32_t i = 0; i < b->n_threads; i++) {
        struct cpu_member *m = &b->members[i];
        m->linear_scratch = cpu_alloc(linear);
        m->stack = cpu_alloc((size_t)CPU_STACK * CPU_UNIT_TILES * b->partial_floats * sizeof(float));
        m->queries = cpu_alloc((size_t)ATTN_ROWS * c->head_dim * sizeof(float));
        m->q_tiles = cpu_alloc(CPU_LEAF_TILES * tile);
        m->sample_scratch = cpu_alloc(sample_scratch_bytes(c->n_vocab));
        m->row_scratch = cpu_alloc(b->weights.embedding.row_bytes);
        if (!m->linear_scratch || !m->stack || !m->queries || !m->q_tiles || !m->sample_scratch || !m->row_scratch)
            return false;
        if (of[0]->expands || of[1]->expands) {
            m->expanded = calloc(1, sizeof *m->expanded);
            if (!m->expanded || !(m->expanded->data = cpu_alloc(2 * b->open_part_bytes)))
                return false;
        }
        if (of[0]->attn == b->open && of[1]->attn == b->open)
            continue;
        m->open_q_tiles = cpu_alloc(CPU_UNIT_TILES * b->open_q_tile_bytes);
        if (!m->open_q_tiles)
            return false;
    }
    if (!b->in_place) {
        b->scratch = cpu_alloc((size_t)(b->rows_max / KV_BLOCK + 1) * c->n_kv_heads * 2 * b->open_part_bytes);
        if (!b->scratch)
            return false;
    }
    const size_t angles = (size_t)b->rows_max * (c->head_dim / 2) * sizeof(float);
    b->cos = cpu_alloc(angles);
    b->sin = cpu_alloc(angles);
    b->logits = cpu_alloc((size_t)CPU_LOGIT_ROWS * c->n_vocab * sizeof(float));
    b->logit_rows = cpu_alloc(CPU_LOGIT_ROWS * b->tensor[TENSOR_H].stride * dtype_bytes(b->tensor[TENSOR_H].type));
    return b->cos && b->sin && b->logits && b->logit_rows;
}

static struct cpu_reader reader_of(const struct backend *b, bool expands)
{
    struct cpu_reader r = { b->coded, b->coded_shape, 0, expands };
    if (expands) {
        r.attn = b->open;
        r.shape = b->open_shape;
    }
    r.q_tile_bytes = (r.attn->q_tile_bytes(&r.shape) + 63) / 64 * 64;
    return r;
}

static enum status attention_find(struct backend *b, struct error *err)
{
    const struct model_config *c = b->config;
    const float scale = 1 / sqrtf((float)c->head_dim);
    b->coded_shape = (struct attn_shape){ c->head_dim, b->codec, scale, NULL };
    b->open_shape = (struct attn_shape){ c->head_dim, kv_codecs[b->codec].open, scale, NULL };
    b->in_place = b->coded_shape.codec == b->open_shape.codec;
    b->coded = attn_find(&b->coded_shape, b->caps);
    b->open = attn_find(&b->open_shape, b->caps);
    if (!b->open)
        return error_set(err, ST_UNSUPPORTED, "no attention kernel takes head_dim %u", c->head_dim);
    if (!b->coded)
        return error_set(err, ST_UNSUPPORTED, "kv-codec %s takes no heads of %u channels", kv_codecs[b->codec].name,
                         c->head_dim);
    b->reader[ROW_PROMPT] = reader_of(b, b->coded->expand != NULL);
    b->reader[ROW_GENERATED] = reader_of(b, !b->coded->block);
    b->part_bytes = b->coded->part_bytes(&b->coded_shape);
    b->spill = kv_spill_of(&b->coded_shape);
    b->open_part_bytes = b->open->part_bytes(&b->open_shape);
    b->open_q_tile_bytes = (b->open->q_tile_bytes(&b->open_shape) + 63) / 64 * 64;
    b->partial_floats = attn_partial_floats(c->head_dim);
    return ST_OK;
}

static enum status open_parts(struct backend *b, const struct calibration *calibration,
                              void (*progress)(void *ctx, float fraction), void *ctx, struct error *err)
{
    b->members = calloc(b->n_threads, sizeof *b->members);
    if (!b->members || team_new(b->n_threads, &b->team))
        return error_set(err, ST_NO_MEMORY, "no memory for %u threads", b->n_threads);
    b->rows = row_find(b->float32 ? 0 : b->caps);
    enum status st = attention_find(b, err);
    if (st)
        return st;
    st = cpu_books_open(b, calibration, err);
    if (st)
        return st;
    st = cpu_weights_load(b, progress, ctx, err);
    if (st)
        return st;
    if (!tensors_alloc(b) || !members_alloc(b))
        return error_set(err, ST_NO_MEMORY, "no memory for the activations of %u rows", b->rows_max);
    return ST_OK;
}

static enum status cpu_open(const struct backend_config *config, const struct model *model,
                            void (*progress)(void *ctx, float fraction), void *ctx, struct backend **backend_out,
                            struct error *err)
{
    struct backend *b = calloc(1, sizeof *b);
    if (!b)
        return error_set(err, ST_NO_MEMORY, "no memory");
    b->model = model;
    b->config = model_config(model);
    b->caps = config->float32 ? 0 : cpu_caps();
    b->n_threads = config->n_threads ? config->n_threads : 1;
    b->rows_max = config->step_rows_max > CPU_LOGIT_ROWS ? config->step_rows_max : CPU_LOGIT_ROWS;
    b->float32 = config->float32;
    b->ops_done = config->ops_done;
    b->tap = config->tap;
    b->codec = config->float32 ? KV_F32 : config->kv_codec;
    const enum status st = open_parts(b, config->calibration, progress, ctx, err);
    if (st) {
        cpu_close(b);
        return st;
    }
    *backend_out = b;
    return ST_OK;
}

/* ---- what it is ---- */

/*
 * Everything that may change a bit: the variant of each op and codec, the leaf, and the rotation angles, which come from libm.
 */
static void cpu_fingerprint(const struct backend *b, char *text_out, size_t bytes)
{
    const struct model_config *c = b->config;
    struct hasher *h = hasher_new();
    for (uint32_t layer = 0; layer < c->n_layers; layer++)
        for (int kind = 0; kind < MODEL_TENSOR_KINDS; kind++)
            if (b->weights.layers[layer].weight[kind].impl)
                hasher_add_text(h, b->weights.layers[layer].weight[kind].impl->name);
    hasher_add_text(h, b->weights.output.impl->name);
    hasher_add_text(h,
                    b->reader[ROW_GENERATED].attn->name); /* what expands is not in it: all variants write the same */
    hasher_add_text(h, b->open->name);
    hasher_add_text(h, kv_codecs[b->codec].name);
    hasher_add_u64(h, kv_codecs[b->codec].version);
    if (b->books.data)
        hasher_add(h, b->books.digest.byte, sizeof b->books.digest.byte);
    hasher_add_text(h, b->rows->name);
    rope_hash(c->inv_freq, c->head_dim, c->rope_scale, h);
    char digest[33];
    const struct digest d = hasher_end(h);
    digest_text(&d, digest);
    snprintf(text_out, bytes, "cpu/%s/%s/leaf%d/%.8s", b->float32 ? "float32" : "bf16", cpu_caps_name(b->caps),
             CPU_LEAF_BLOCKS * KV_BLOCK, digest);
}

static uint64_t cpu_weight_bytes(const struct backend *b)
{
    return b->weights.bytes;
}

static void cpu_kv_layout(const struct backend *b, struct kv_layout *layout_out)
{
    *layout_out = (struct kv_layout){
        .n_layers = b->config->n_layers,
        .n_kv_heads = b->config->n_kv_heads,
        .part_bytes = b->part_bytes,
        .version = kv_codecs[b->codec].version,
    };
}

static struct kv_spill cpu_kv_spill(const struct backend *b)
{
    return b->spill;
}

static size_t cpu_open_part_bytes(const struct backend *b)
{
    return b->in_place ? 0 : b->open_part_bytes;
}

/* ---- recording ---- */

static struct cpu_op *record(struct backend *b, cpu_op_fn *fn)
{
    static struct cpu_op spare;
    if (b->n_ops == b->ops_room) {
        const uint32_t room = b->ops_room ? b->ops_room * 2 : 256;
        struct cpu_op *ops = realloc(b->ops, room * sizeof *ops);
        if (!ops) {
            b->overflow = true;
            return &spare;
        }
        b->ops = ops;
        b->ops_room = room;
    }
    struct cpu_op *op = &b->ops[b->n_ops++];
    memset(op, 0, sizeof *op);
    op->fn = fn;
    return op;
}

static void angles(struct backend *b)
{
    const uint32_t half = b->config->head_dim / 2;
    const double scale = b->config->rope_scale;
    for (uint32_t r = 0; r < b->input->n_rows; r++) {
        for (uint32_t i = 0; i < half; i++) {
            const double angle = (double)b->input->rows[r].pos * b->config->inv_freq[i];
            b->cos[(size_t)r * half + i] = (float)(cos(angle) * scale);
            b->sin[(size_t)r * half + i] = (float)(sin(angle) * scale);
        }
    }
}

static enum status cpu_begin(struct backend *b, const struct step_input *input)
{
    const struct attend *a = input->attend;
    const size_t query = (size_t)b->config->n_heads * b->config->head_dim * (b->float32 ? 4 : 2);
    if (input->n_rows > b->rows_max)
        return ST_TOO_LARGE;
    b->input = input;
    b->n_ops = 0;
    b->overflow = false;
    if (!cpu_units_build(b) || !step_answers_reserve(&b->answers, input, b->config->n_vocab) ||
        !cpu_reserve(&b->window, &b->window_room, a->n_remote_rows * query) ||
        !cpu_reserve(&b->wire, &b->wire_room, attend_message_max(a)) || !cpu_select_reserve(b))
        return ST_NO_MEMORY;
    angles(b);
    return ST_OK;
}

static void record_embed(struct backend *b)
{
    record(b, cpu_embed);
}

static void record_norm(struct backend *b, enum tensor in, enum model_tensor_kind weight, uint32_t layer,
                        enum tensor out)
{
    struct cpu_op *op = record(b, cpu_norm);
    op->in = in;
    op->kind = weight;
    op->layer = layer;
    op->out = out;
}

static void record_linear(struct backend *b, enum tensor in, uint32_t layer, const struct backend_part *parts,
                          uint32_t n_parts, bool accumulate)
{
    struct cpu_op *op = record(b, cpu_linear);
    op->in = in;
    op->layer = layer;
    op->n_parts = n_parts;
    memcpy(op->parts, parts, n_parts * sizeof *parts);
    op->flag = accumulate;
}

static void record_norm_heads(struct backend *b, enum tensor tensor, enum model_tensor_kind weight, uint32_t layer)
{
    struct cpu_op *op = record(b, cpu_norm_heads);
    op->out = tensor;
    op->kind = weight;
    op->layer = layer;
}

static void record_rope_store(struct backend *b, uint32_t layer)
{
    record(b, cpu_rope_store)->layer = layer;
}

static void record_seal(struct backend *b, uint32_t layer)
{
    if (b->coded->seal)
        record(b, cpu_seal)->layer = layer;
}

static void record_sketch(struct backend *b, uint32_t layer)
{
    const struct select *s = b->input->select;
    if (!select_sketches(s))
        return;
    if (!s->store.impl->by_row)
        record(b, cpu_sketch_queries)->layer = layer;
    if (s->n_seals)
        record(b, cpu_sketch_make)->layer = layer;
    if (s->n_sends)
        record(b, cpu_sketch_send)->layer = layer;
}

static void record_sketch_receive(struct backend *b, uint32_t layer)
{
    record(b, cpu_sketch_receive)->layer = layer;
}

static void record_select(struct backend *b, uint32_t layer)
{
    if (b->input->select->spread) {
        record(b, cpu_owners_score)->layer = layer;
        record(b, cpu_owners_choose)->layer = layer;
        record(b, cpu_owners_lists)->layer = layer;
        return;
    }
    if (select_sketches(b->input->select) && !b->input->select->store.impl->by_row)
        record(b, cpu_select_weights)->layer = layer;
    record(b, cpu_select)->layer = layer;
}

static void record_traffic(struct backend *b, cpu_op_fn *fn, uint32_t layer, enum attend_traffic what)
{
    struct cpu_op *op = record(b, fn);
    op->layer = layer;
    op->kind = what;
}

static void record_send(struct backend *b, uint32_t layer, enum attend_traffic what)
{
    record_traffic(b, cpu_send, layer, what);
}

static void record_receive(struct backend *b, uint32_t layer, enum attend_traffic what)
{
    record_traffic(b, cpu_receive, layer, what);
}

static void record_attend(struct backend *b, uint32_t layer, bool local)
{
    struct cpu_op *op = record(b, cpu_attend);
    op->layer = layer;
    op->flag = local;
    if (!local)
        record(b, cpu_attend_join);
}

static void record_attend_finish(struct backend *b)
{
    record(b, cpu_attend_finish);
}

static void record_silu_mul(struct backend *b)
{
    record(b, cpu_silu_mul);
}

static void record_answer(struct backend *b)
{
    static cpu_op_fn *const stages[] = { cpu_answer_norm, cpu_answer_logits, cpu_answer_sample };
    for (uint32_t begin = 0; begin < b->input->n_asks; begin += CPU_LOGIT_ROWS) {
        const uint32_t left = b->input->n_asks - begin;
        for (int i = 0; i < 3; i++) {
            struct cpu_op *op = record(b, stages[i]);
            op->begin = begin;
            op->end = begin + (left < CPU_LOGIT_ROWS ? left : CPU_LOGIT_ROWS);
        }
    }
}

/* ---- running ---- */

/*
 * Member 0 alone says where the list ends early, before it comes to that operation's barrier: a member that is slow to leave the barrier must
 * not mistake a failure of the next operation for one of this, or members would part.
 */
static void run_list(void *ctx, uint32_t member, uint32_t n_members)
{
    struct backend *b = ctx;
    for (uint32_t i = 0; i < b->n_ops; i++) {
        b->ops[i].fn(b, &b->ops[i], member, n_members);
        if (member == 0 && atomic_load(&b->failed))
            atomic_store(&b->stop_at, i);
        if (member == 0 && b->ops_done)
            atomic_fetch_add_explicit(b->ops_done, 1, memory_order_relaxed);
        team_barrier(b->team);
        if (atomic_load(&b->stop_at) <= i)
            return;
    }
}

static enum status cpu_run(struct backend *b, const struct exchange_ops *exchange_ops, struct exchange *exchange,
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
    atomic_store(&b->parts_skipped, 0);
    atomic_store(&b->failed, ST_OK);
    atomic_store(&b->stop_at, UINT32_MAX);
    const int64_t start = clock_ns();
    team_run(b->team, run_list, b);
    b->cost.busy_ns = clock_ns() - start - b->cost.wait_ns;
    const uint64_t part = 2 * (uint64_t)b->part_bytes * b->config->n_layers;
    const uint64_t open = 2 * (uint64_t)b->open_part_bytes * b->config->n_layers * b->open_read;
    b->cost.kv_bytes_read = b->parts_read * part + open - 2 * (uint64_t)b->part_bytes * atomic_load(&b->parts_skipped);
    b->cost.kv_bytes_dense = b->parts_dense * part + open;
    *answers_out = b->answers.list;
    *cost_out = b->cost;
    *peer_out = b->failed_peer;
    return (enum status)atomic_load(&b->failed);
}

const struct backend_ops backend_cpu = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .fingerprint = cpu_fingerprint,
    .weight_bytes = cpu_weight_bytes,
    .kv_layout = cpu_kv_layout,
    .kv_spill = cpu_kv_spill,
    .open_part_bytes = cpu_open_part_bytes,
    .leaf_blocks = CPU_LEAF_BLOCKS,
    .begin = cpu_begin,
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
    .run = cpu_run,
};
