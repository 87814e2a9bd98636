/*
 * Quest on the GPU: bounds, scores and choices are the processor's, bit for bit, over random shapes, ties, zeros of both signs and denormal numbers among
 * them. Skips (77) where no GPU is that can run it.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/quest.h"
#include "kernels/kernels.h"
#include "kernels/selector.h"
#include "tests/kernels/check.h"
#include "tests/kernels/cuda_scene.h"

enum { BLOCKS_MAX = 3000 };

/* Bounds of blocks as they come out of the GPU's layout. */
static uint16_t *bound_at(uint8_t *sketch, uint32_t d, uint32_t head, uint32_t channel, uint32_t largest)
{
    return (uint16_t *)(void *)sketch + (size_t)head * 2 * d + channel % 16 * (d / 8) + largest * (d / 16) +
           channel / 16;
}

static void check_sketch(struct check *ck)
{
    struct cuda_scene s = { 0 };
    const uint32_t d = check_below(ck, 2) ? 64 : 128, n_kv = check_between(ck, 1, 4), n = check_between(ck, 1, 20),
                   n_layers = check_between(ck, 1, 2), layer = check_below(ck, n_layers);
    struct cuda_kv kv = { .part_bytes = (size_t)128 * d,
                          .layer_bytes = (size_t)256 * d * n_kv,
                          .block_bytes = (size_t)256 * d * n_kv * n_layers,
                          .n_heads = n_kv,
                          .n_kv_heads = n_kv,
                          .head_dim = d };
    const struct selector_shape shape = { n_kv, n_kv, d, KV_BF16 };
    const struct attn_shape open = { d, KV_BF16, 1, NULL };
    const struct attn_impl *it = attn_find(&open, 0);
    const struct selector_impl *quest = selector_find("quest", 0);
    const size_t part = it->part_bytes(&open), each = cuda_quest_bytes(n_kv, d);
    uint8_t *pool = check_buffer(ck, n * kv.block_bytes), *parts = check_buffer(ck, n_kv * 2 * part),
            *want = check_buffer(ck, each), *got = check_buffer(ck, n * n_layers * each);
    struct cuda_quest_sketch jobs[20];
    check_begin(ck, "sketch", "cuda", 0);
    check_context(ck, "head_dim %u, %u heads, %u blocks", d, n_kv, n);
    for (size_t i = 0; i < n * kv.block_bytes / 2; i++)
        ((uint16_t *)(void *)pool)[i] =
            check_below(ck, 50) ? f32_to_bf16(check_normal(ck)) : (uint16_t)(check_below(ck, 2) << 15);
    uint8_t *sketches = cuda_scene_take(&s, n * n_layers * each);
    for (uint32_t i = 0; i < n; i++)
        jobs[i] = (struct cuda_quest_sketch){ .from = i, .to = sketches + i * n_layers * each };
    kv.pool = cuda_scene_put(&s, pool, n * kv.block_bytes);
    CUDA(cuda_quest_sketch(&kv, layer, each, layer, cuda_scene_put(&s, jobs, n * sizeof *jobs), n, NULL));
    cuda_scene_get(got, sketches, n * n_layers * each);
    for (uint32_t b = 0; b < n; b++) {
        const void *keys[4];
        for (uint32_t j = 0; j < n_kv; j++) {
            const uint8_t *from = pool + b * kv.block_bytes + layer * kv.layer_bytes + 2 * j * kv.part_bytes;
            float zero[128] = { 0 }, k[128];
            for (uint32_t p = 0; p < 64; p++) {
                for (uint32_t i = 0; i < d; i++)
                    k[i] = bf16_to_f32(*(const uint16_t *)(const void *)(from + i / 64 * 8192 + p * 128 +
                                                                         ((i % 64 / 8) ^ (p & 7)) * 16 + i % 8 * 2));
                it->store(&open, p, k, zero, parts + 2 * j * part, parts + (2 * j + 1) * part);
            }
            keys[j] = parts + 2 * j * part;
        }
        quest->sketch(&shape, &(struct selector_block){ .k_parts = keys }, want);
        for (uint32_t j = 0; j < n_kv; j++)
            for (uint32_t i = 0; i < 2 * d; i++)
                check_same(ck, i < d ? "least" : "largest",
                           bound_at(got + (b * n_layers + layer) * each, d, j, i % d, i / d),
                           (const uint16_t *)(const void *)want + j * 2 * d + i, 2);
    }
    cuda_scene_free(&s);
}

enum { JOBS = 3 };

/* Rows of a batch choose as the reference does for each of them. */
static void check_choose(struct check *ck)
{
    struct cuda_scene s = { 0 };
    const uint32_t d = check_below(ck, 2) ? 64 : 128, n_kv = check_between(ck, 1, 3), group = check_between(ck, 1, 6),
                   n_jobs = check_between(ck, 1, JOBS),
                   most = check_between(ck, 40, check_below(ck, 2) ? 200 : BLOCKS_MAX),
                   kinds = check_between(ck, 1, most), words = selector_words(most) + check_below(ck, 2),
                   width = group * n_kv * d;
    const struct cuda_kv kv = { .n_heads = group * n_kv, .n_kv_heads = n_kv, .head_dim = d };
    const struct selector_shape shape = { group * n_kv, n_kv, d, KV_BF16 };
    const struct selector_impl *quest = selector_find("quest", 0);
    const bool by_slot = check_below(ck, 3) == 0,
               tiny = check_below(ck, 5) == 0; /* products about the least normal number */
    const size_t each = cuda_quest_bytes(n_kv, d);
    uint8_t *host = check_buffer(ck, most * each), *plain = check_buffer(ck, most * each);
    uint32_t *scratch = check_buffer(ck, (size_t)2 * most * 4);
    uint16_t *q = check_buffer(ck, (size_t)JOBS * width * 2);
    float *qf = check_buffer(ck, (size_t)JOBS * width * 4), *scores = check_buffer(ck, most * 4),
          *got = check_buffer(ck, (size_t)JOBS * n_kv * most * 4);
    uint64_t *want = check_buffer(ck, words * 8), *lists = check_buffer(ck, (size_t)JOBS * n_kv * words * 8);
    const void **at = check_buffer(ck, most * sizeof *at);
    uint8_t **pointers = check_buffer(ck, most * sizeof *pointers);
    struct selector_choice choice[JOBS];
    struct cuda_quest_job jobs[JOBS];
    check_begin(ck, "choose", "cuda", 0);
    check_context(ck, "head_dim %u, %u x %u heads, %u rows, %u blocks%s%s", d, n_kv, group, n_jobs, most,
                  by_slot ? ", by slot" : "", tiny ? ", tiny" : "");
    for (size_t i = 0; i < (size_t)JOBS * width; i++) {
        const uint32_t zero = check_below(ck, 2) << 15 | (tiny ? i % 128 : 0); /* or denormal */
        q[i] = check_below(ck, 30) ? f32_to_bf16(ldexpf(check_normal(ck), tiny ? -62 : 0)) : (uint16_t)zero;
        qf[i] = bf16_to_f32(q[i]);
    }
    memset(host, 0xFF, most * each);
    uint8_t *sketches = cuda_scene_take(&s, most * each);
    for (uint32_t b = 0; b < most; b++) { /* blocks like others before them tie */
        const uint32_t place = most - 1 - b;
        uint16_t *to = (uint16_t *)(void *)(plain + b * each);
        for (uint32_t i = 0; b < kinds && i < n_kv * 2 * d; i++)
            to[i] = f32_to_bf16(ldexpf(check_normal(ck) + (i % (2 * d) < d ? -2 : 2), tiny ? -64 : 0));
        if (b >= kinds)
            memcpy(to, plain + check_below(ck, kinds) * each, each);
        for (uint32_t i = 0; i < n_kv * 2 * d; i++)
            *bound_at(host + place * each, d, i / (2 * d), i % d, i % (2 * d) / d) = to[i];
        at[b] = to;
        pointers[b] = sketches + place * each;
    }
    CUDA(cudaMemcpy(sketches, host, most * each, cudaMemcpyHostToDevice));
    for (uint32_t k = 0; k < n_jobs; k++) {
        const uint32_t own = k ? check_between(ck, 1, most) : most;
        choice[k] = (struct selector_choice){
            .own = own, .density = check_between(ck, 1000, 700000), .leaf_blocks = 16, .by_slot = by_slot
        };
        jobs[k] = (struct cuda_quest_job){ .row = n_jobs - 1 - k,
                                           .own = own,
                                           .budget = selector_budget(own, choice[k].density),
                                           .list = k * n_kv * words,
                                           .words = words };
    }
    const struct cuda_quest c = { .jobs = cuda_scene_put(&s, jobs, sizeof jobs),
                                  .n_jobs = n_jobs,
                                  .own_max = most,
                                  .sketches = cuda_scene_put(&s, pointers, most * sizeof *pointers),
                                  .layer_bytes = each,
                                  .q = cuda_scene_put(&s, q, (size_t)JOBS * width * 2),
                                  .scores = cuda_scene_take(&s, (size_t)JOBS * n_kv * most * 4),
                                  .lists = cuda_scene_take(&s, (size_t)JOBS * n_kv * words * 8),
                                  .leaf_blocks = by_slot ? 16 : 0 };
    CUDA(cuda_quest_run(&kv, 0, &c, NULL));
    cuda_scene_get(got, c.scores, (size_t)n_jobs * n_kv * most * 4);
    cuda_scene_get(lists, c.lists, (size_t)n_jobs * n_kv * words * 8);
    for (uint32_t k = 0; k < n_jobs; k++)
        for (uint32_t j = 0; j < n_kv; j++) {
            const uint32_t own = choice[k].own;
            const bool all = selector_reads_all(own, choice[k].density);
            const float *queries[6];
            for (uint32_t g = 0; g < group; g++)
                queries[g] = qf + (size_t)jobs[k].row * width + ((size_t)j * group + g) * d;
            quest->score(&shape, j, j + 1, queries, at, own, scores);
            if (!all)
                check_same(ck, "scores", got + ((size_t)k * n_kv + j) * most, scores, own * 4);
            memset(want, 0, words * 8);
            selector_choose(&choice[k], scores, scratch, want);
            check_same(ck, "list", lists + ((size_t)k * n_kv + j) * words, want, words * 8);
        }
    cuda_scene_free(&s);
}

/* A score of a kind: of a bell; of widely different sizes; one of few; what is not finite, and zeros, among others; one far beyond all. */
static float draw_score(struct check *ck, uint32_t kind)
{
    static const float odd[] = { 0.0f, -0.0f, INFINITY, -INFINITY, NAN, -NAN, 1e-42f, 3e38f, -3e38f };
    const float x = check_normal(ck);
    switch (kind) {
    case 0:
        return x;
    case 1:
        return ldexpf(x, (int)check_below(ck, 240) - 120);
    case 2:
        return (float)check_below(ck, 5);
    case 3:
        return check_below(ck, 2) ? odd[check_below(ck, sizeof odd / sizeof *odd)] : x;
    default:
        return check_below(ck, 5000) ? x : 1e30f;
    }
}

/* The choice alone, of scores that no sketch would give. */
static void check_given(struct check *ck)
{
    struct cuda_scene s = { 0 };
    const uint32_t n_lists = check_between(ck, 1, 3), n_jobs = check_between(ck, 1, JOBS), size = check_below(ck, 8),
                   most = size == 0  ? check_between(ck, 49153, 60000)
                          : size < 4 ? check_between(ck, 2000, 20000)
                                     : check_between(ck, 40, 1500),
                   words = selector_words(most), kind = check_below(ck, 5);
    const bool by_slot = check_below(ck, 4) == 0;
    const size_t n_scores = (size_t)n_jobs * n_lists * most, list_bytes = (size_t)n_jobs * n_lists * words * 8;
    float *scores = check_buffer(ck, n_scores * 4);
    uint32_t *scratch = check_buffer(ck, (size_t)2 * most * 4);
    uint64_t *want = check_buffer(ck, words * 8), *lists = check_buffer(ck, list_bytes);
    struct selector_choice choice[JOBS];
    struct cuda_quest_job jobs[JOBS];
    check_begin(ck, "given", "cuda", 0);
    check_context(ck, "%u lists, %u rows, %u blocks, scores of kind %u%s", n_lists, n_jobs, most, kind,
                  by_slot ? ", by slot" : "");
    for (size_t i = 0; i < n_scores; i++)
        scores[i] = draw_score(ck, kind);
    for (uint32_t k = 0; k < n_jobs; k++) {
        const uint32_t own = k ? check_between(ck, 1, most) : most;
        choice[k] = (struct selector_choice){
            .own = own, .density = check_between(ck, 1000, 700000), .leaf_blocks = 16, .by_slot = by_slot
        };
        jobs[k] = (struct cuda_quest_job){
            .own = own, .budget = selector_budget(own, choice[k].density), .list = k * n_lists * words, .words = words
        };
    }
    const struct cuda_quest c = { .jobs = cuda_scene_put(&s, jobs, sizeof jobs),
                                  .n_jobs = n_jobs,
                                  .own_max = most,
                                  .scores = cuda_scene_put(&s, scores, n_scores * 4),
                                  .lists = cuda_scene_take(&s, list_bytes),
                                  .leaf_blocks = by_slot ? 16 : 0 };
    CUDA(cuda_quest_choose(n_lists, &c, NULL));
    cuda_scene_get(lists, c.lists, list_bytes);
    for (uint32_t k = 0; k < n_jobs; k++)
        for (uint32_t j = 0; j < n_lists; j++) {
            memset(want, 0, words * 8);
            selector_choose(&choice[k], scores + ((size_t)k * n_lists + j) * most, scratch, want);
            check_same(ck, "list", lists + ((size_t)k * n_lists + j) * words, want, words * 8);
        }
    cuda_scene_free(&s);
}

int main(int argc, char **argv)
{
    static const struct check_op ops[] = { { "sketch", check_sketch, 15 },
                                           { "choose", check_choose, 40 },
                                           { "given", check_given, 60 } };
    struct cuda_device device;
    char text[256];
    if (cuda_device_find(&device, text, sizeof text)) {
        fprintf(stderr, "check_cuda_quest: skipped: %s\n", text);
        return 77;
    }
    return check_main(argc, argv, ops, sizeof ops / sizeof *ops);
}
