#ifndef LONGSPAN_KERNELS_SELECTOR_H
#define LONGSPAN_KERNELS_SELECTOR_H

/*
 * Sparse attention: who picks the blocks of KV that take part. A selector makes a sketch of every complete block and layer, scores sketches, and
 * a budget says how many of the best are read. One file a method (cpu/selector_*.c) behind one table. All sums run in the order that is said
 * here, all exponentials are exp_f32(), and every variant of a method gives the same bits: a choice never depends on the ISA.
 *
 * Sources: quest: arXiv:2406.10774, block bounds of the keys by channel. double-sparsity: arXiv:2408.07092, some channels of every key, in 4 bits.
 * socket: arXiv:2602.06283, soft hashing of keys. Both score positions; a block is read whole and has the score of its best position, so that its list
 * is what the best positions bring along, best first, until the budget is read. streaming: arXiv:2309.17453, the first block and a window. sketch-walk: a project variant of Sketch&Walk (arXiv:2602.07397): all rows
 * of block c share one list, made from the sketches of the blocks before c alone, so that prefill and decode, any chunk and any
 * replay choose alike. Causal softmax, temperature 1 / sqrt(head_dim), sharpening 8.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    SELECTOR_DENSITY_ONE = 1000000, /* densities are integers in millionths: no rounding mode decides a budget */
    SELECTOR_FORCED = 4,            /* block 0, the two blocks before the row's own, its own */
    SELECTOR_SLOTS = 64,            /* slot = leaf mod slots, for choices by slot */
    SELECTOR_WALK_BLOCKS = 4096,    /* the longest walk */
    SELECTOR_OWNERS_MAX = 64,       /* who have blocks of a sequence */
    SELECTOR_OWNED_BLOCKS = 65535,  /* of an owner, as they are counted */
    SELECTOR_WALK_DIM =
        64, /* coordinates of a walk sketch's half, or head_dim rounded up to a power of two if that is less */
};

struct selector_shape {
    uint32_t n_heads, n_kv_heads, head_dim; /* head_dim even, at most 256 */
    enum kv_codec open;                     /* of the blocks that sketches are made from: KV_BF16 or KV_F32 */
};

/* What a sketch is made of: one complete open block in one layer, parts as struct attn_impl lays out codec `open`. */
struct selector_block {
    const void *const *k_parts, *const *v_parts; /* [n_kv_heads] */
    /* [KV_BLOCK][head_dim] f32: of each position the mean over heads of its rounded queries (selector_q_mean), read only where the method has a
       query half (by block) */
    const float *q_means;
    /* double-sparsity: of each KV head the channels to keep, [n_kv_heads][selector_labels(head_dim)] ascending; NULL: chosen from the block's own keys */
    const uint8_t *channels;
};

struct selector_impl {
    const char *name;
    uint32_t needs;  /* enum cpu_cap */
    bool by_row;     /* a list a row and KV head, from the row's own query; else a list a block, from sketches alone */
    bool at_owners;  /* by row: sketches are too large to travel: who reads a block scores it */
    bool windowed;   /* a list a block, from positions alone: sketch_bytes is 0, and the rest is NULL */
    bool calibrated; /* channels of a calibration may be named: selector_block.channels */
    bool prompt_dense;   /* by default prompt rows read all */
    uint32_t blocks_max; /* longer contexts are refused: they can not be walked, or counted; 0: any */
    /* Of one block and layer; a multiple of 4. */
    size_t (*sketch_bytes)(const struct selector_shape *shape);
    void (*sketch)(const struct selector_shape *shape, const struct selector_block *block, void *sketch_out);
    /* Of what came from outside: a sketch that may be scored, its numbers finite. */
    bool (*valid)(const struct selector_shape *shape, const void *sketch);
    /*
     * by_row: scores of n blocks for KV heads head_begin .. head_end - 1 of a row: the best of each one's group of n_heads / n_kv_heads queries, which are
     * q[0 ..], head after head, [head_dim] each (rounded as attention rounds them). scores_out [head_end - head_begin][n].
     */
    void (*score)(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end, const float *const *q,
                  const void *const *sketches, uint32_t n, float *scores_out);
    /* !by_row: logits_out[j] = <query half of block, key half of j> / sqrt(head_dim) for j <= block: what softmax is made of. */
    void (*logits)(const struct selector_shape *shape, const void *const *sketches, uint32_t block, float *logits_out);
    /*
     * !by_row: row `block` of the walk's weights, W[block][0 .. block] in bf16: softmax(a)^8 of the logits a.
     * logits: scratch of block + 1 floats.
     */
    void (*weights)(const struct selector_shape *shape, const void *const *sketches, uint32_t block, float *logits,
                    uint16_t *w_out);
};

/* Best variant first, the reference last, method after method. */
extern const struct selector_impl selector_impls[];
extern const uint32_t n_selector_impls;
/* The first variant of a method that caps allow; NULL: no such method ("dense" is none: nothing is picked). */
const struct selector_impl *selector_find(const char *name, uint32_t caps);

/* Channels of a key that double-sparsity keeps, of head_dim: an eighth, at least 4, if there are as many. */
static inline uint32_t selector_labels(uint32_t head_dim)
{
    const uint32_t n = head_dim / 8 < 4 ? 4 : head_dim / 8;
    return n < head_dim ? n : head_dim;
}

/* The n channels of the greatest importance [head_dim], ascending; ties to the lower. n: 1 .. head_dim. channels_out [n] */
void selector_channels(const float *importance, uint32_t head_dim, uint32_t n, uint8_t *channels_out);

/* out [head_dim]: the mean over heads of a row's queries q [n_heads][head_dim], each rounded as attention rounds it; heads ascending. */
void selector_q_mean(const struct selector_shape *shape, const float *q, float *out);

/*
 * The walk through one layer: r_out[j] = sum over i >= j, ascending, of (r[i] / max r) w[i][j], for j < n. The rescaling changes no choice, and without it
 * the numbers underflow after a few layers. w[i]: row i of the weights, [i + 1] bf16. In the first layer the walk is row n - 1 of the weights
 * itself. r_out is not r.
 */
void selector_walk(const uint16_t *const *w, uint32_t n, const float *r, float *r_out);

/*
 * Scores of blocks 0 .. n - 1 from where the walk is and the logits of the block n - 1 that it started from: walk[j], and where that is 0, which the walk
 * does not reach or f32 does not hold, logits[j] - max - 1: below all that is reached, in the order of the logits. scores_out may be either.
 */
void selector_walk_scores(const float *walk, const float *logits, uint32_t n, float *scores_out);

/* How many blocks a row of block `own` reads, its own included: ceil(density (own + 1)), at least the forced ones, at most all. */
uint32_t selector_budget(uint32_t own, uint32_t density);

struct selector_choice {
    uint32_t own;         /* block of the row */
    uint32_t density;     /* millionths, 1 .. SELECTOR_DENSITY_ONE */
    uint32_t leaf_blocks; /* by slot: blocks a leaf */
    bool by_slot; /* scope local: each slot has its share of the budget, by the blocks it has; else the best of all */
};
/* Words of a list over blocks 0 .. own. */
static inline uint32_t selector_words(uint32_t own)
{
    return own / 64 + 1;
}
static inline bool selector_has(const uint64_t *list, uint32_t block)
{
    return list[block / 64] >> (block % 64) & 1;
}
/* Is everything read, whatever the scores are? */
static inline bool selector_reads_all(uint32_t own, uint32_t density)
{
    return selector_budget(own, density) > own;
}
/*
 * list_out [selector_words(own)]: bit c set: block c is read. The forced blocks, and the highest scores [own] among the rest: ties to the lower block, -0 is
 * +0, NaN is lowest. scratch [2 own] words. scores may be NULL if all is read.
 */
void selector_choose(const struct selector_choice *choice, const float *scores, uint32_t *scratch, uint64_t *list_out);

/* list_out [selector_words(own)]: block 0, the `window` blocks before the row's own, and its own. */
void selector_window(uint32_t own, uint32_t window, uint64_t *list_out);

/* A number that orders as the score does; -0 is +0, NaN is lowest. */
uint32_t selector_order(float score);

/* ---- the best of what several owners have (selector_merge.c) ---- */

/*
 * The k-th highest of all owners' keys (selector_order of scores), exactly, in two rounds. Each tells its lowest and highest key, and how many of them are
 * in each of 16 to 256 equal parts between (n keys: 2 bytes for about four of them). From all of these follows a range that the k-th key is in; each then gives
 * the keys in its own parts that the range touches, with their blocks. How many these are is known from the counts.
 * Counts: u32 lowest, u32 highest, u16 [parts]. 1 <= n < 2^16, 1 <= k <= keys in all.
 */
struct selector_range {
    uint32_t low, high;
};
struct selector_pair {
    uint32_t key, block;
};
size_t selector_counts_bytes(uint32_t n); /* 0 for none */
void selector_counts(const uint32_t *keys, uint32_t n, uint8_t *counts_out);
/* Of what came from outside: they are of n keys. */
bool selector_counts_valid(const uint8_t *counts, uint32_t n);
/* counts, n [n_owners], at most SELECTOR_OWNERS_MAX */
struct selector_range selector_range_of(const uint8_t *const *counts, const uint32_t *n, uint32_t n_owners, uint32_t k);
/* How many of an owner's keys are in the parts that the range touches; above_out: in parts above. */
uint32_t selector_range_count(const uint8_t *counts, uint32_t n, struct selector_range range, uint32_t *above_out);
/* These keys, in their order, `block` being their place among the owner's n; counts are those of keys. -> how many */
uint32_t selector_range_take(const uint8_t *counts, const uint32_t *keys, uint32_t n, struct selector_range range,
                             struct selector_pair *pairs_out);
/* Of what came from outside: all are of parts that the range touches. */
bool selector_pairs_valid(const uint8_t *counts, uint32_t n, struct selector_range range,
                          const struct selector_pair *pairs, uint32_t n_pairs);
/* The k-th best of all pairs, less those that are above; changes their order. */
struct selector_pair selector_cut(struct selector_pair *pairs, uint32_t n, uint32_t k);
/* Is a block with this key chosen, the last that is being `cut`? */
static inline bool selector_chosen(struct selector_pair cut, uint32_t key, uint32_t block)
{
    return key > cut.key || (key == cut.key && block <= cut.block);
}

/* ---- what a deployment says (selector_spec.c) ---- */

enum {
    SELECTOR_TEXT = 128,
    SELECTOR_DENSITY_DEFAULT = 200000,
    SELECTOR_DENSE_LAYERS = 2, /* the first layers attend everywhere; of streaming none do */
    SELECTOR_WINDOW_DEFAULT = 1024,
    SELECTOR_WINDOW_MAX = 1 << 24,
};

struct selector_spec {
    char name[16];    /* "dense": nothing is picked, and the rest means nothing */
    uint32_t density; /* millionths; of streaming the least there is, which says no more than that rows are sparse */
    uint32_t window;  /* streaming: positions before a row's block, a multiple of KV_BLOCK; else 0 */
    uint32_t dense_layers; /* layers 0 .. dense_layers - 1 are dense */
    bool by_slot;          /* scope=local, else global */
    bool prompt;           /* prompt=sparse: prompt rows are sparse too; the default of sketch-walk and streaming */
    char channels
        [33]; /* double-sparsity: digest of the calibration that says which channels are kept; "": each block's own keys */
};

/*
 * "dense", or NAME[@DENSITY][,layers=N][,scope=global|local][,prompt=dense|sparse], or streaming[@WINDOW] and the same options; of double-sparsity also
 * channels=DIGEST: flags, the configuration that workers are sent, and the context of block ids are this text. ST_INVALID: err says what is wrong.
 */
enum status selector_parse(const char *text, struct selector_spec *spec_out, struct error *err);
/* All of it, so that equal specs are equal texts. */
void selector_text(const struct selector_spec *spec, char text_out[SELECTOR_TEXT]);
/* "dense, quest, .. and streaming": what there is, for messages. */
const char *selector_names(void);
/* Decimal text above 0 and at most 1, six decimals at most -> millionths. */
bool selector_density_parse(const char *text, size_t n, uint32_t *density_out);
/* The nearest millionth, at least one; false: not above 0 and at most 1. */
bool selector_density_of(double density, uint32_t *density_out);

#ifdef __cplusplus
}
#endif
#endif
