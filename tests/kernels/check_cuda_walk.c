/*
 * Sketch-walk on the GPU: sketches, weights, and the lists of several layers and rows are the processor's, bit for bit, over random shapes. Skips (77)
 * where no GPU is that can run it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/sketch_walk.h"
#include "kernels/kernels.h"
#include "kernels/selector.h"
#include "tests/kernels/check.h"
#include "tests/kernels/cuda_scene.h"

enum { BLOCKS_MAX = 700, LAYERS_MAX = 4, JOBS = 3, SKETCHES = 6 };

static const struct selector_impl *method(void)
{
    return selector_find("sketch-walk", 0);
}

/* Rows one by one, with their queries, then the sketch of their block. */
static void check_sketch(struct check *ck)
{
    struct cuda_scene s = { 0 };
    const uint32_t d = check_below(ck, 2) ? 64 : 128, n_kv = check_between(ck, 1, 4), group = check_between(ck, 1, 4),
                   n = check_between(ck, 1, SKETCHES), n_layers = check_between(ck, 1, 3),
                   layer = check_below(ck, n_layers), h = n_kv * group, n_rows = n * 64;
    struct cuda_kv kv = { .part_bytes = (size_t)128 * d,
                          .layer_bytes = (size_t)256 * d * n_kv,
                          .block_bytes = (size_t)256 * d * n_kv * n_layers,
                          .n_heads = h,
                          .n_kv_heads = n_kv,
                          .head_dim = d };
    const struct selector_shape shape = { h, n_kv, d, KV_BF16 };
    const struct attn_shape open = { d, KV_BF16, 1, NULL };
    const struct attn_impl *it = attn_find(&open, 0);
    const size_t part = it->part_bytes(&open), each = method()->sketch_bytes(&shape),
                 means_floats = cuda_walk_means_floats(n_layers, d);
    uint8_t *pool = check_buffer(ck, n * kv.block_bytes), *parts = check_buffer(ck, n_kv * 2 * part),
            *want = check_buffer(ck, each), *got = check_buffer(ck, n * n_layers * each);
    uint16_t *q = check_buffer(ck, (size_t)n_rows * h * d * 2);
    float *row = check_buffer(ck, (size_t)h * d * 4), *means = check_buffer(ck, (size_t)64 * d * 4);
    struct cuda_walk_row *rows = check_buffer(ck, n_rows * sizeof *rows);
    struct cuda_walk_sketch jobs[SKETCHES];
    check_begin(ck, "sketch", "cuda", 0);
    check_context(ck, "head_dim %u, %u x %u heads, %u blocks", d, n_kv, group, n);
    if (each != CUDA_WALK_BYTES)
        check_fail(ck, "a sketch has %zu bytes", each);
    for (size_t i = 0; i < n * kv.block_bytes / 2; i++)
        ((uint16_t *)(void *)pool)[i] = f32_to_bf16(check_normal(ck));
    for (size_t i = 0; i < (size_t)n_rows * h * d; i++)
        q[i] = f32_to_bf16(check_normal(ck));
    float *all = cuda_scene_take(&s, n * means_floats * 4);
    uint8_t *sketches = cuda_scene_take(&s, n * n_layers * each);
    for (uint32_t r = 0; r < n_rows; r++)
        rows[r] = (struct cuda_walk_row){ all + r / 64 * means_floats, r % 64, 0 };
    for (uint32_t i = 0; i < n; i++)
        jobs[i] = (struct cuda_walk_sketch){ n - 1 - i, 0, all + i * means_floats, sketches + i * n_layers * each };
    kv.pool = cuda_scene_put(&s, pool, n * kv.block_bytes);
    CUDA(cuda_walk_means(&kv, layer, cuda_scene_put(&s, q, (size_t)n_rows * h * d * 2),
                         cuda_scene_put(&s, rows, n_rows * sizeof *rows), n_rows, NULL));
    CUDA(cuda_walk_sketch(&kv, layer, each, layer, cuda_scene_put(&s, jobs, n * sizeof *jobs), n, NULL));
    cuda_scene_get(got, sketches, n * n_layers * each);
    for (uint32_t b = 0; b < n; b++) {
        const void *keys[4];
        for (uint32_t p = 0; p < 64; p++) {
            for (size_t i = 0; i < (size_t)h * d; i++)
                row[i] = bf16_to_f32(q[((size_t)b * 64 + p) * h * d + i]);
            selector_q_mean(&shape, row, means + (size_t)p * d);
        }
        for (uint32_t j = 0; j < n_kv; j++) {
            const uint8_t *from = pool + (n - 1 - b) * kv.block_bytes + layer * kv.layer_bytes + 2 * j * kv.part_bytes;
            float zero[128] = { 0 }, k[128];
            for (uint32_t p = 0; p < 64; p++) {
                for (uint32_t i = 0; i < d; i++)
                    k[i] = bf16_to_f32(*(const uint16_t *)(const void *)(from + i / 64 * 8192 + p * 128 +
                                                                         ((i % 64 / 8) ^ (p & 7)) * 16 + i % 8 * 2));
                it->store(&open, p, k, zero, parts + 2 * j * part, parts + (2 * j + 1) * part);
            }
            keys[j] = parts + 2 * j * part;
        }
        method()->sketch(&shape, &(struct selector_block){ .k_parts = keys, .q_means = means }, want);
        check_same(ck, "sketch", got + (b * n_layers + layer) * each, want, each);
    }
    cuda_scene_free(&s);
}

struct walks {
    uint32_t n, n_layers;
    size_t each, row;
    float *sketches;   /* [n][n_layers][2 x 64] */
    uint16_t *weights; /* [n][n_layers][row], the reference's */
    const void **at;
    const uint16_t **rows;
};

/* Weights of all blocks on both sides, layer by layer. device: [n][n_layers][row] */
static void check_weights(struct check *ck, struct cuda_scene *s, const struct cuda_kv *kv, const struct walks *w,
                          const uint8_t *const *pointers, uint16_t *device)
{
    const struct selector_shape shape = { kv->n_heads, kv->n_kv_heads, kv->head_dim, KV_BF16 };
    struct cuda_walk_weights *jobs = check_buffer(ck, w->n * sizeof *jobs);
    uint16_t *got = check_buffer(ck, w->n * w->n_layers * w->row * 2);
    float *logits = check_buffer(ck, w->n * 4);
    for (uint32_t b = 0; b < w->n; b++)
        jobs[b] = (struct cuda_walk_weights){ b, 0, device + b * w->n_layers * w->row };
    const struct cuda_walk_weights *where = cuda_scene_put(s, jobs, w->n * sizeof *jobs);
    for (uint32_t layer = 0; layer < w->n_layers; layer++) {
        CUDA(cuda_walk_weights(kv, pointers, w->each, layer, where, w->n, NULL));
        for (uint32_t b = 0; b < w->n; b++)
            w->at[b] = w->sketches + (b * w->n_layers + layer) * (w->each / 4);
        for (uint32_t b = 0; b < w->n; b++)
            method()->weights(&shape, w->at, b, logits, w->weights + (b * w->n_layers + layer) * w->row);
    }
    cuda_scene_get(got, device, w->n * w->n_layers * w->row * 2);
    for (size_t i = 0; i < (size_t)w->n * w->n_layers; i++) {
        const uint32_t b = (uint32_t)(i / w->n_layers), layer = (uint32_t)(i % w->n_layers);
        check_same(ck, "weights", got + b * w->n_layers * w->row + layer * cuda_walk_room(b), w->weights + i * w->row,
                   (b + 1) * 2);
    }
}

/* The reference's list of a row of block `own` in each layer. */
static void reference_lists(struct check *ck, const struct cuda_kv *kv, const struct walks *w,
                            const struct selector_choice *choice, uint32_t words, uint64_t *lists_out)
{
    const struct selector_shape shape = { kv->n_heads, kv->n_kv_heads, kv->head_dim, KV_BF16 };
    const uint32_t n = choice->own;
    float *r = check_buffer(ck, n * 4), *next = check_buffer(ck, n * 4), *logits = check_buffer(ck, n * 4);
    uint32_t *scratch = check_buffer(ck, (size_t)2 * n * 4);
    for (uint32_t layer = 0; layer < w->n_layers; layer++) {
        for (uint32_t b = 0; b < n; b++) {
            w->at[b] = w->sketches + (b * w->n_layers + layer) * (w->each / 4);
            w->rows[b] = w->weights + (b * w->n_layers + layer) * w->row;
        }
        if (layer)
            selector_walk(w->rows, n, r, next);
        for (uint32_t j = 0; j < n; j++)
            r[j] = layer ? next[j] : bf16_to_f32(w->rows[n - 1][j]);
        method()->logits(&shape, w->at, n - 1, logits);
        selector_walk_scores(r, logits, n, next);
        memset(lists_out + (size_t)layer * words, 0, words * 8);
        selector_choose(choice, next, scratch, lists_out + (size_t)layer * words);
    }
}

static void check_walk(struct check *ck)
{
    struct cuda_scene s = { 0 };
    const uint32_t d = check_below(ck, 2) ? 64 : 128, most = check_between(ck, 8, check_below(ck, 2) ? 80 : BLOCKS_MAX),
                   n_jobs = check_between(ck, 1, JOBS), words = selector_words(most) + check_below(ck, 2),
                   room = most + check_below(ck, 50);
    const struct cuda_kv kv = { .n_heads = 4, .n_kv_heads = 2, .head_dim = d };
    const bool by_slot = check_below(ck, 3) == 0;
    struct walks w = {
        .n = most, .n_layers = check_between(ck, 1, LAYERS_MAX), .each = CUDA_WALK_BYTES, .row = cuda_walk_room(most)
    };
    w.sketches = check_buffer(ck, most * w.n_layers * w.each);
    w.weights = check_buffer(ck, most * w.n_layers * w.row * 2);
    w.at = check_buffer(ck, most * sizeof *w.at);
    w.rows = check_buffer(ck, most * sizeof *w.rows);
    uint64_t *want = check_buffer(ck, (size_t)w.n_layers * words * 8),
             *got = check_buffer(ck, (size_t)w.n_layers * JOBS * words * 8);
    const uint8_t **pointers = check_buffer(ck, most * sizeof *pointers);
    const uint16_t **rows = check_buffer(ck, most * sizeof *rows);
    struct selector_choice choice[JOBS];
    struct cuda_quest_job jobs[JOBS];
    check_begin(ck, "walk", "cuda", 0);
    check_context(ck, "head_dim %u, %u blocks, %u layers, %u rows%s", d, most, w.n_layers, n_jobs,
                  by_slot ? ", by slot" : "");
    const float size = check_below(ck, 2) ? 3.0f : 0.5f; /* of large ones most weights vanish */
    for (size_t i = 0; i < (size_t)most * w.n_layers * w.each / 4; i++)
        w.sketches[i] = size * check_normal(ck);
    uint8_t *sketches = cuda_scene_put(&s, w.sketches, most * w.n_layers * w.each);
    uint16_t *weights = cuda_scene_take(&s, most * w.n_layers * w.row * 2);
    for (uint32_t b = 0; b < most; b++) {
        pointers[b] = sketches + b * w.n_layers * w.each;
        rows[b] = weights + b * w.n_layers * w.row;
    }
    const uint8_t *const *there = cuda_scene_put(&s, pointers, most * sizeof *pointers);
    check_weights(ck, &s, &kv, &w, there, weights);
    for (uint32_t k = 0; k < n_jobs; k++) {
        const uint32_t own = k ? check_between(ck, 1, most) : most;
        choice[k] = (struct selector_choice){
            .own = own, .density = check_between(ck, 1000, 700000), .leaf_blocks = 16, .by_slot = by_slot
        };
        jobs[k] = (struct cuda_quest_job){
            .own = own, .budget = selector_budget(own, choice[k].density), .list = k * words, .words = words
        };
    }
    const struct cuda_walk c = { .choose = { .jobs = cuda_scene_put(&s, jobs, sizeof jobs),
                                             .n_jobs = n_jobs,
                                             .own_max = room,
                                             .sketches = there,
                                             .layer_bytes = w.each,
                                             .scores = cuda_scene_take(&s, (size_t)JOBS * room * 4),
                                             .lists = cuda_scene_take(&s, (size_t)JOBS * words * 8),
                                             .leaf_blocks = by_slot ? 16 : 0 },
                                 .weights = cuda_scene_put(&s, rows, most * sizeof *rows),
                                 .walk = cuda_scene_take(&s, (size_t)2 * JOBS * room * 4) };
    /* lists are kept, and come back with zeros behind them */
    struct cuda_walk_kept made[JOBS], there_again[JOBS];
    uint64_t *kept = cuda_scene_take(&s, (size_t)JOBS * LAYERS_MAX * (CUDA_WALK_BLOCKS / 64) * 8);
    for (uint32_t k = 0; k < n_jobs; k++) {
        made[k] = (struct cuda_walk_kept){ kept + (size_t)k * LAYERS_MAX * (CUDA_WALK_BLOCKS / 64), k * words, words,
                                           selector_words(choice[k].own), 1 };
        there_again[k] = made[k];
        there_again[k].made = 0;
    }
    const struct cuda_walk_kept *to = cuda_scene_put(&s, made, n_jobs * sizeof *made),
                                *from = cuda_scene_put(&s, there_again, n_jobs * sizeof *made);
    for (uint32_t layer = 0; layer < w.n_layers; layer++) {
        CUDA(cuda_walk_run(&kv, layer, &c, NULL));
        CUDA(cuda_walk_keep(layer, c.choose.lists, to, n_jobs, NULL));
    }
    for (uint32_t layer = 0; layer < w.n_layers; layer++) {
        CUDA(cudaMemset(c.choose.lists, 0xA5, (size_t)n_jobs * words * 8));
        CUDA(cuda_walk_keep(layer, c.choose.lists, from, n_jobs, NULL));
        cuda_scene_get(got + (size_t)layer * JOBS * words, c.choose.lists, (size_t)n_jobs * words * 8);
    }
    for (uint32_t k = 0; k < n_jobs; k++) {
        reference_lists(ck, &kv, &w, &choice[k], words, want);
        for (uint32_t layer = 0; layer < w.n_layers; layer++)
            check_same(ck, "list", got + ((size_t)layer * JOBS + k) * words, want + (size_t)layer * words, words * 8);
    }
    cuda_scene_free(&s);
}

int main(int argc, char **argv)
{
    static const struct check_op ops[] = { { "sketch", check_sketch, 15 }, { "walk", check_walk, 25 } };
    struct cuda_device device;
    char text[256];
    if (cuda_device_find(&device, text, sizeof text)) {
        fprintf(stderr, "check_cuda_walk: skipped: %s\n", text);
        return 77;
    }
    return check_main(argc, argv, ops, sizeof ops / sizeof *ops);
}
