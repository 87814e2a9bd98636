#ifndef LONGSPAN_KERNELS_CUDA_CUDA_H
#define LONGSPAN_KERNELS_CUDA_CUDA_H

/*
 * Kernels for one GPU of compute capability 9.0. Launchers only: they take a stream (cudaStream_t), never synchronise, and return a cudaError_t
 * as an int (0: well). All pointers are the device's. The identity contract of kernels/kernels.h holds here as well: a row's bits never depend on
 * its neighbours, on the number of rows, or on how work is split; the order of every sum follows from (n_in, n_out) or from positions.
 *
 * Inputs of products ("tiled" rows) are bf16, [n][cap][64] with n = 2 ceil(n_in / 128): a run of 64 inputs of all rows, then the next; inside a
 * row's 128 bytes the 16-byte chunk c stands at c ^ (row & 7). cap: a multiple of 128. Inputs past n_in must be zeros.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CUDA_LEAF_BLOCKS = 16, /* blocks of a leaf: 1024 positions */
    CUDA_ROWS_STEP = 128,  /* row capacities are multiples of it */
    CUDA_ROWS_FEW = 64,    /* products of at most so many rows stream weights; above, tiles of rows and outputs */
    CUDA_TILE = 64,        /* outputs, and inputs, of a weight tile */
    CUDA_SEGMENT = 1024,   /* inputs that are summed in one chain; chains join in order */
    CUDA_UNIT_TILES = 4,   /* ATTN_ROWS vectors each, of a narrow unit of attention */
    CUDA_WIDE_TILES = 8,   /* of a wide one */
    CUDA_STACK = 40,       /* partials a program of leaves may stack */
    CUDA_SCRATCH = 1 << 30 /* slots from here on are of cuda_kv.scratch */
};

static inline size_t cuda_tiled_bytes(uint32_t cap, uint32_t width)
{
    return ((size_t)width + 127) / 128 * cap * 256;
}

/* ---- products ---- */

/* Bytes of a packed matrix: [ceil(n_out / 64)][2 ceil(n_in / 128)] tiles of 64 x 64 bf16, rows of 128 bytes with chunks at c ^ (row & 7). */
static inline size_t cuda_packed_bytes(uint32_t n_out, uint32_t n_in)
{
    return ((size_t)n_out + 63) / 64 * (((size_t)n_in + 127) / 128) * 16384;
}
/* On the host: rows[i] is bf16 row of output 64 t + i (NULL past n_out); writes that row of tiles, cuda_packed_bytes(64, n_in). */
void cuda_pack_tiles(const uint16_t *const rows[64], uint32_t n_in, void *tiles_out);

struct cuda_part {
    const void *packed; /* cuda_packed_bytes */
    float *y;           /* [n_rows][y_stride] */
    const float *bias;  /* [n_out], added after the sum; NULL: none */
    uint32_t n_out, y_stride;
};
struct cuda_linear {
    const void *x; /* tiled */
    uint32_t cap, n_rows, n_in;
    struct cuda_part part[3];
    uint32_t n_parts;
    bool accumulate;    /* y += */
    float *partials;    /* cuda_linear_partials floats */
    uint32_t *counters; /* [sum of ceil(n_out / 64)], zeros before and after */
};
/*
 * y = x W^T (+ bias) (+ y). Each output: chains of CUDA_SEGMENT inputs on the tensor cores (wgmma m64nXk16, weights as the 64-row operand,
 * inputs ascending), chains added in order from the first.
 */
int cuda_linear_run(const struct cuda_linear *l, void *stream);
static inline size_t cuda_linear_partials(uint32_t n_out, uint32_t n_in)
{
    return ((size_t)n_out + 63) / 64 * 64 * (((size_t)n_in + CUDA_SEGMENT - 1) / CUDA_SEGMENT) * CUDA_ROWS_FEW;
}

/* ---- rows ---- */

/* out (tiled) = x w / sqrt(mean x^2 + eps). x [n_rows][n]; row r reads x row which[r], or r if which is NULL */
int cuda_norm(const float *x, const uint32_t *which, const float *w, uint32_t n_rows, uint32_t n, float eps, void *out,
              uint32_t cap, void *stream);
/* Each head of x [n_rows][n_heads][head_dim] in place. */
int cuda_norm_heads(float *x, const float *w, uint32_t n_rows, uint32_t n_heads, uint32_t head_dim, float eps,
                    void *stream);
/* out (tiled) = silu(gate) up */
int cuda_silu_mul(const float *gate, const float *up, uint32_t n_rows, uint32_t n, void *out, uint32_t cap,
                  void *stream);

/*
 * Keys and values of a block, of one KV head in one layer: a part is [head_dim / 64][64 positions][64] bf16, 16-byte chunks at
 * c ^ (position & 7); values stand right behind the keys. head_dim 64 or 128.
 */
struct cuda_kv {
    uint8_t *pool;
    uint8_t *scratch; /* blocks of which one layer at a time is kept, layer_bytes each: slots CUDA_SCRATCH .. */
    size_t block_bytes, layer_bytes, part_bytes; /* strides of a slot, a layer, keys or values of a head */
    uint32_t n_heads, n_kv_heads, head_dim;
};
struct cuda_row {
    uint32_t slot, offset; /* of its own block, position in it */
};
/*
 * Rotates q and k by half-split pairs; q_out [n_rows][n_heads][head_dim] bf16; k and v enter the rows' own blocks. cosines, sines
 * [n_rows][head_dim / 2].
 */
int cuda_rope_store(const struct cuda_kv *kv, uint32_t layer, const float *q, const float *k, const float *v,
                    const float *cosines, const float *sines, const struct cuda_row *rows, uint32_t n_rows, void *q_out,
                    void *stream);

/* ---- attention ---- */

/*
 * Partials as kernels/kernels.h has them, in tiles of ATTN_ROWS vectors, but m and the scores are in powers of two: p = 2^(scale log2(e) q.k - m).
 * Order: the positions of a leaf one block after the other (a running maximum; l and o rescaled when it grows); leaves as the program says.
 */
enum cuda_sees {
    CUDA_SEES_POSITIONS, /* the first `seen` positions */
    CUDA_SEES_BEFORE,    /* of these, the blocks before the vector's own, in which the last of them is */
    CUDA_SEES_OWN        /* of these, its own block */
};
struct cuda_unit {
    uint32_t slot, n_blocks;    /* of cuda_attend.slots; without blocks, partials are empty */
    uint32_t merges;            /* of cuda_attend.merges: an entry a leaf, how many partials of the stack it closes */
    uint32_t head;              /* KV head */
    uint32_t row;               /* q row of the job's vector 0 */
    uint32_t vector, n_vectors; /* first vector of the unit; of the job */
    /*
     * Of vector v, seen = visible + v / group + 1, modulo 2^32. CUDA_SEES_POSITIONS: UINT32_MAX is all. CUDA_SEES_OWN: the vector's block is one of
     * the unit's.
     */
    uint32_t visible;
    uint32_t sees;  /* enum cuda_sees */
    uint32_t store; /* first tile it writes */
    /* Lists of its job from word `list` of cuda_attend.lists on, `words` each; 0 words: all is read. position: in its block, of the job's first row. */
    uint32_t list, words, position;
};
struct cuda_attend {
    const struct cuda_unit *units;
    const uint32_t *n_units; /* on the device */
    const uint32_t *slots;
    const uint8_t *merges;
    const void *q; /* [rows][n_heads][head_dim] bf16 */
    /*
     * Sparse attention: vectors read the blocks whose bits their lists have, as if they saw nothing of others. A list a row and KV head, the heads of a row
     * together (by_row); or one for all rows of a block. NULL: all is read.
     */
    const uint64_t *lists;
    const uint32_t *blocks; /* beside slots: number of the block in its sequence */
    uint32_t by_row;
    unsigned long long *
        skipped; /* blocks that units with lists did not read are added; of coded units, as their first vectors choose */
    float *store; /* tiles of 16 (2 + head_dim) floats */
    float *stack; /* cuda_stack_floats for the deepest program */
    uint32_t depth;
    float scale;
};
size_t cuda_stack_floats(uint32_t head_dim, uint32_t depth, uint32_t n_processors);
/* wide: units of CUDA_WIDE_TILES tiles, one after the other; else of CUDA_UNIT_TILES. grid: blocks to launch. */
int cuda_attend_run(const struct cuda_kv *kv, uint32_t layer, const struct cuda_attend *a, bool wide, uint32_t grid,
                    void *stream);

/* Joins the items of one job, tile by tile, in levels: merges of a level touch different items. In place, into the first of each pair. */
struct cuda_join {
    uint32_t store, n_tiles, n_vectors; /* of the job */
    uint32_t level, n_levels;           /* of cuda_joins.levels: [n_levels + 1] borders into pairs */
    uint32_t n_items;
    uint32_t row;   /* home row of vector 0 */
    uint32_t item;  /* where the result stands */
    uint32_t first; /* blocks of the launch before this job's */
};
enum { CUDA_JOIN_FEW = 8 }; /* so many items join where they stand, more in shared memory */

struct cuda_joins {
    const struct cuda_join *joins;
    uint32_t n_joins, n_blocks; /* n_blocks: sum of n_kv_heads * n_tiles */
    uint32_t items_max;         /* no job has more; decides how they join, not what comes of it */
    const uint32_t *levels;
    const uint32_t *pairs; /* (into, from) */
    float *store;
    void *out; /* tiled, o / l; NULL: only joined */
    uint32_t cap;
    uint32_t *failed; /* set to 1 if a result is not finite or empty */
};
int cuda_join_run(const struct cuda_kv *kv, const struct cuda_joins *j, void *stream);

/*
 * Wire form of a node: [n_rows][n_heads][m, l, o[head_dim]]. to_wire: from the store, else into it. failed: set to 1 if what comes from the wire is no
 * partial (kernels/kernels.h); NULL: not looked at.
 */
int cuda_node_copy(const struct cuda_kv *kv, float *store, uint32_t first_tile, uint32_t n_tiles, uint32_t n_rows,
                   float *wire, bool to_wire, uint32_t *failed, void *stream);

/* ---- the device ---- */

struct cuda_device {
    char name[256];
    int major, minor, processors;
    size_t memory;
};
/* Reason in text_out if the first GPU cannot run these kernels (no driver, none there, not of compute capability 9.0): -1; else 0. */
int cuda_device_find(struct cuda_device *device_out, char *text_out, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
