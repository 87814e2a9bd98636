#include "kernels/selector.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/selector.h"

#define QUEST(variant_needs, variant_score)                                                                            \
    {                                                                                                                  \
        .name = "quest", .needs = (variant_needs), .by_row = true, .prompt_dense = true,                               \
        .sketch_bytes = selector_quest_bytes, .sketch = selector_quest_sketch, .valid = selector_quest_valid,          \
        .score = (variant_score)                                                                                       \
    }
#define LABELS(variant_needs, variant_score)                                                                           \
    {                                                                                                                  \
        .name = "double-sparsity", .needs = (variant_needs), .by_row = true, .calibrated = true, .prompt_dense = true, \
        .sketch_bytes = selector_labels_bytes, .sketch = selector_labels_sketch, .valid = selector_labels_valid,       \
        .score = (variant_score)                                                                                       \
    }
#define SOCKET(variant_needs, isa)                                                                                     \
    {                                                                                                                  \
        .name = "socket", .needs = (variant_needs), .by_row = true, .at_owners = true, .prompt_dense = true,           \
        .blocks_max = SELECTOR_OWNED_BLOCKS, .sketch_bytes = selector_socket_bytes,                                    \
        .sketch = selector_socket_sketch_##isa, .valid = selector_socket_valid, .score = selector_socket_score_##isa   \
    }

const struct selector_impl selector_impls[] = {
    QUEST(CPU_AVX512, selector_quest_score_avx512),
    QUEST(CPU_AVX2, selector_quest_score_avx2),
    QUEST(0, selector_quest_score_c),
    LABELS(CPU_AVX512, selector_labels_score_avx512),
    LABELS(CPU_AVX2, selector_labels_score_avx2),
    LABELS(0, selector_labels_score_c),
    SOCKET(CPU_AVX512 | CPU_VBMI2, vbmi2),
    SOCKET(CPU_AVX2, avx2),
    SOCKET(0, c),
    { .name = "sketch-walk",
      .blocks_max = SELECTOR_WALK_BLOCKS,
      .sketch_bytes = selector_walk_bytes,
      .sketch = selector_walk_sketch,
      .valid = selector_walk_valid,
      .logits = selector_walk_logits_c,
      .weights = selector_walk_weights_c },
    { .name = "streaming", .windowed = true },
};
const uint32_t n_selector_impls = sizeof selector_impls / sizeof selector_impls[0];

const struct selector_impl *selector_find(const char *name, uint32_t caps)
{
    for (uint32_t i = 0; i < n_selector_impls; i++)
        if (!strcmp(selector_impls[i].name, name) && !(selector_impls[i].needs & ~caps))
            return &selector_impls[i];
    return NULL;
}

void selector_q_mean(const struct selector_shape *shape, const float *q, float *out)
{
    const uint32_t dim = shape->head_dim;
    for (uint32_t d = 0; d < dim; d++) {
        float sum = 0;
        for (uint32_t h = 0; h < shape->n_heads; h++) {
            const float x = q[(size_t)h * dim + d];
            sum += shape->open == KV_F32 ? x : bf16_to_f32(f32_to_bf16(x));
        }
        out[d] = sum / (float)shape->n_heads;
    }
}

void selector_walk(const uint16_t *const *w, uint32_t n, const float *r, float *r_out)
{
    float most = 0;
    for (uint32_t i = 0; i < n; i++)
        most = r[i] > most ? r[i] : most;
    memset(r_out, 0, n * sizeof *r_out);
    for (uint32_t i = 0; i < n; i++) {
        const float x = most > 0 ? r[i] / most : 0;
        if (x == 0) /* adds +0 to sums that are not negative */
            continue;
        for (uint32_t j = 0; j <= i; j++)
            r_out[j] += x * bf16_to_f32(w[i][j]);
    }
}

void selector_walk_scores(const float *walk, const float *logits, uint32_t n, float *scores_out)
{
    float most = -INFINITY;
    for (uint32_t j = 0; j < n; j++)
        most = logits[j] > most ? logits[j] : most;
    for (uint32_t j = 0; j < n; j++)
        scores_out[j] = walk[j] > 0 ? walk[j] : logits[j] - most - 1;
}

/* ---- budget and choice ---- */

uint32_t selector_budget(uint32_t own, uint32_t density)
{
    const uint64_t visible = (uint64_t)own + 1;
    const uint64_t wanted = (visible * density + SELECTOR_DENSITY_ONE - 1) / SELECTOR_DENSITY_ONE;
    const uint64_t least = visible < SELECTOR_FORCED ? visible : SELECTOR_FORCED;
    return (uint32_t)(wanted < least ? least : wanted > visible ? visible : wanted);
}

uint32_t selector_order(float score)
{
    uint32_t u;
    score += 0.0f;
    if (score != score)
        return 0;
    memcpy(&u, &score, sizeof u);
    return u >> 31 ? ~u : u | 0x80000000u;
}

/* The k-th highest of n keys, 1 <= k <= n: digit by digit. above_out: how many are higher. */
static uint32_t threshold(const uint32_t *keys, uint32_t n, uint32_t k, uint32_t *above_out)
{
    static const uint32_t shifts[] = { 21, 10, 0 }, bits[] = { 11, 11, 10 };
    uint32_t found = 0, mask = 0, above = 0;
    for (int pass = 0; pass < 3; pass++) {
        uint32_t count[1 << 11] = { 0 };
        const uint32_t n_digits = 1u << bits[pass], digits = n_digits - 1;
        for (uint32_t i = 0; i < n; i++)
            if ((keys[i] & mask) == found)
                count[keys[i] >> shifts[pass] & digits]++;
        uint32_t digit = digits;
        while (above + count[digit] < k)
            above += count[digit--];
        found |= digit << shifts[pass];
        mask |= digits << shifts[pass];
    }
    *above_out = above;
    return found;
}

/* Sets the bits of the k best of n blocks. blocks ascending. */
static void top(const uint32_t *keys, const uint32_t *blocks, uint32_t n, uint32_t k, uint64_t *list)
{
    uint32_t above, at;
    if (!k)
        return;
    at = threshold(keys, n, k, &above);
    uint32_t ties = k - above;
    for (uint32_t i = 0; i < n; i++) {
        if (keys[i] < at || (keys[i] == at && !ties))
            continue;
        ties -= keys[i] == at;
        list[blocks[i] / 64] |= (uint64_t)1 << (blocks[i] % 64);
    }
}

static void set(uint64_t *list, uint32_t block)
{
    list[block / 64] |= (uint64_t)1 << (block % 64);
}

/* Each slot has what the budget, dealt evenly over the blocks in the order of slots, gives to its own. */
static void top_by_slot(const struct selector_choice *c, const float *scores, uint32_t budget, uint32_t *keys,
                        uint32_t *blocks, uint64_t *list)
{
    const uint32_t first = 1, end = c->own - 2, all = end - first;
    uint64_t before = 0, given = 0;
    for (uint32_t slot = 0; slot < SELECTOR_SLOTS; slot++) {
        uint32_t n = 0;
        for (uint32_t leaf = slot; leaf * c->leaf_blocks < end; leaf += SELECTOR_SLOTS) {
            for (uint32_t b = leaf * c->leaf_blocks; b < (leaf + 1) * c->leaf_blocks && b < end; b++) {
                if (b < first)
                    continue;
                keys[n] = selector_order(scores[b]);
                blocks[n++] = b;
            }
        }
        before += n;
        const uint64_t share = before * budget / all;
        top(keys, blocks, n, (uint32_t)(share - given), list);
        given = share;
    }
}

void selector_choose(const struct selector_choice *choice, const float *scores, uint32_t *scratch, uint64_t *list_out)
{
    const uint32_t own = choice->own, n = own + 1, words = selector_words(own);
    memset(list_out, 0, words * sizeof *list_out);
    if (selector_reads_all(own, choice->density)) {
        memset(list_out, 0xFF, words * sizeof *list_out);
        if (n % 64)
            list_out[words - 1] = ((uint64_t)1 << (n % 64)) - 1;
        return;
    }
    set(list_out, 0);
    for (uint32_t b = own - 2; b <= own; b++)
        set(list_out, b);
    const uint32_t budget = selector_budget(own, choice->density) - SELECTOR_FORCED;
    uint32_t *keys = scratch, *blocks = scratch + own;
    if (choice->by_slot) {
        top_by_slot(choice, scores, budget, keys, blocks, list_out);
        return;
    }
    for (uint32_t b = 1; b < own - 2; b++) {
        keys[b - 1] = selector_order(scores[b]);
        blocks[b - 1] = b;
    }
    top(keys, blocks, own - 3, budget, list_out);
}

void selector_window(uint32_t own, uint32_t window, uint64_t *list_out)
{
    memset(list_out, 0, selector_words(own) * sizeof *list_out);
    set(list_out, 0);
    for (uint32_t b = own < window ? 0 : own - window; b <= own; b++)
        set(list_out, b);
}
