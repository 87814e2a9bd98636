#ifndef LONGSPAN_KERNELS_KERNELS_H
#define LONGSPAN_KERNELS_KERNELS_H

/*
 * The face of kernels/: math on buffers of the CPU. No I/O, no allocation, no mutable globals. An op has one signature; a variant is one
 * ISA's way of computing it; the `_c` variant is f32 C without tricks and defines it. Variants are found once, at set-up.
 *
 * The identity contract: which variant runs, its tiles and the order of every sum depend on (n_in, n_out, codec) or on positions inside a
 * block, never on the number of rows or on who computes them beside it. A row's bits are the same alone and in company.
 * Sums start at +0.0. Built with -ffp-contract=off; fused multiply-adds only where a variant writes them out. FTZ and DAZ are set by the
 * caller's threads (cpu_thread_init).
 *
 * Buffers are 64-byte aligned unless said. Nothing outside the stated extents is read or written.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "model/model.h" /* enum weight_codec */

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the processor (cpu/cpu.c) ---- */

enum cpu_cap {
    CPU_AVX2 = 1 << 0,   /* with FMA, F16C, BMI2 */
    CPU_AVX512 = 1 << 1, /* F, BW, VL, DQ, VBMI not needed */
    CPU_VBMI2 = 1 << 3,  /* VBMI and VBMI2, beside AVX512 */
    CPU_AMX = 1 << 2,    /* AMX tiles, bf16 and int8; the permission was granted; with AVX512_BF16 */
};

/*
 * What this process may use. The first call asks the kernel for AMX permission; make it before threads start. The environment variable
 * LONGSPAN_ISA=c|avx2|avx512|amx lowers it (an unknown value: logged, ignored; one that the machine lacks: the best below it).
 */
uint32_t cpu_caps(void);
/* "c", "avx2", "avx512", "amx": the best of caps */
const char *cpu_caps_name(uint32_t caps);
/* Sets flush-to-zero and denormals-are-zero for the calling thread. Kernels that use AMX tiles load their own palette. */
void cpu_thread_init(void);

enum dtype { DTYPE_F32, DTYPE_BF16 };

static inline size_t dtype_bytes(enum dtype t)
{
    return t == DTYPE_F32 ? 4 : 2;
}

static inline float bf16_to_f32(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } v = { (uint32_t)h << 16 };
    return v.f;
}

/* Nearest even; NaN stays NaN. */
static inline uint16_t f32_to_bf16(float f)
{
    union {
        float f;
        uint32_t u;
    } v = { f };
    if ((v.u & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)((v.u >> 16) | 0x40);
    return (uint16_t)((v.u + 0x7FFFu + ((v.u >> 16) & 1u)) >> 16);
}

/* ---- linear: y = x W^T over coded weights (cpu/linear_*.c) ---- */

struct df11_code;

struct linear_shape {
    uint32_t n_out, n_in;
    enum weight_codec codec;
    enum dtype x; /* activations */
    /* Of LOSSLESS_FAST only: bits of a class, 3 or 4, and bytes for a group's escapes, a multiple of 64 (model/lossless.h). */
    uint32_t class_bits, escape_room;
    /* Of DF11 only: the code, kept, and bytes for a group's stream, a multiple of 64 (model/df11.h). */
    const struct df11_code *df11;
    uint32_t stream_room;
};

/*
 * Packed weights are made of row groups of LINEAR_GROUP outputs, each group contiguous over all of n_in, so that a run over outputs is one
 * stream of memory. The last group is padded.
 */
enum { LINEAR_GROUP = 16 };

struct linear_args {
    const struct linear_shape *shape;
    const void *packed;
    const void *
        x; /* [n_rows][x_stride] of shape->x; x_stride in elements; rows 64-byte aligned, zeros from n_in to the next 32 */
    size_t x_stride;
    uint32_t n_rows;
    uint32_t out_begin, out_end; /* which outputs: multiples of LINEAR_GROUP, out_end may be n_out */
    float *y;                    /* [n_rows][y_stride]; y[r][o] is written for o in the range */
    size_t y_stride;
    bool accumulate; /* y += the finished sum, instead of y = */
    void *scratch;   /* scratch_bytes(shape, n_rows), private to the calling thread; NULL if 0 */
};

struct linear_impl {
    const char *name;
    uint32_t needs; /* enum cpu_cap */
    bool (*accepts)(const struct linear_shape *shape);
    size_t (*group_bytes)(const struct linear_shape *shape); /* a multiple of 64 */
    /*
     * rows[i]: stored row of output group * LINEAR_GROUP + i in shape->codec, NULL past n_out. Groups may be packed in parallel. Rows of
     * LOSSLESS_FAST and DF11 are bf16, and need no more than escape_room escapes, or stream_room bytes.
     */
    void (*pack)(const struct linear_shape *shape, const void *const rows[LINEAR_GROUP], void *group_out);
    size_t (*scratch_bytes)(const struct linear_shape *shape, uint32_t n_rows);
    void (*run)(const struct linear_args *args);
    float rtol; /* of ||dy|| / ||y|| against _c */
};

/* Best first, `c` last. */
extern const struct linear_impl linear_impls[];
extern const uint32_t n_linear_impls;
/* The first variant whose needs are in caps and that accepts; never NULL: `c` accepts every shape. */
const struct linear_impl *linear_find(const struct linear_shape *shape, uint32_t caps);
size_t linear_packed_bytes(const struct linear_impl *impl, const struct linear_shape *shape);

struct lossless_group;
/*
 * What pack makes of a group of LOSSLESS_FAST, from its stored form. The group has passed lossless_check, has the shape's class_bits and n_in, and no
 * more escapes than there is room.
 */
void linear_pack_lossless(const struct linear_shape *shape, const struct lossless_group *group, void *group_out);

struct df11_group;
/* Likewise of DF11: the group has passed df11_check, has the shape's code and n_in, and a stream for which there is room. */
void linear_pack_df11(const struct linear_shape *shape, const struct df11_group *group, void *group_out);

/* ---- attention over blocks of KV (cpu/attn_*.c) ---- */

enum { KV_BLOCK = 64, ATTN_ROWS = 16 };

/* Codec of keys and values in a block. Open blocks are BF16 (F32 under float32 precision); sealing makes the codec's form. */
enum kv_codec {
    KV_BF16,
    KV_F32,
    KV_INT8,
    KV_INT4_ROT,
    KV_FP8,
    KV_KIVI4,
    KV_KIVI2,
    KV_BF16_LOSSLESS,
    KV_CQ_2B,
    KV_CQ_1B,
    KV_NOMAD,
    KV_CODECS
};

/*
 * Codecs with a calibration: what a part is coded by was learned from the model (model/calibration.h), and is made into a book for the keys, or the values, of
 * a KV head in a layer.
 */
struct calibration;
struct attn_shape;
struct kv_calibrated {
    /* Is it one of this codec for heads of this shape? ST_NOT_FOUND, ST_INVALID: err names what is not. */
    enum status (*check)(const struct attn_shape *shape, uint32_t n_layers, uint32_t n_kv_heads,
                         const struct calibration *c, struct error *err);
    size_t (*book_bytes)(const struct attn_shape *shape); /* of one part; a multiple of 64 */
    /* c has passed check. book_out: 64-byte aligned */
    void (*book)(const struct attn_shape *shape, const struct calibration *c, uint32_t layer, uint32_t kv_head,
                 bool values, void *book_out);
};

/* Angles of a block's positions: position j of it is turned by the first one's angles and by those of j. Each cos, then sin. */
struct kv_angles {
    const float *first[2]; /* [head_dim / 2] */
    const float *step[2];  /* [head_dim / 2][KV_BLOCK], times the model's rope_scale */
    float unscale;         /* 1 / rope_scale^2: what turning back with the same angles is multiplied by */
};

struct kv_book {
    const void *data;
    bool values;
    const struct kv_angles *angles;
};

/* kernels/kv.c: the codecs by name. */
struct kv_codec_info {
    const char *name;
    uint32_t version;   /* of its rule and its layout: what decides bits */
    enum kv_codec open; /* form of an open block; the codec itself: sealing changes nothing */
    uint32_t granule;   /* positions that are coded together: fewer can not be read, or coded, by themselves */
    const struct kv_calibrated *calibrated; /* NULL: it needs no calibration */
    bool row_classes; /* rows of prompts read sealed blocks expanded, generated rows as they are: their bits differ */
};
extern const struct kv_codec_info kv_codecs[KV_CODECS];
/* A codec that a user may name, for activations in float32 or bf16. ST_INVALID: there is none (err lists them); ST_UNSUPPORTED: not with that precision. */
enum status kv_codec_find(const char *name, bool float32, enum kv_codec *codec_out, struct error *err);

struct attn_shape {
    uint32_t head_dim; /* a multiple of 2; variants ask for 16 or 32 */
    enum kv_codec codec;
    float scale; /* of q.k, 1 / sqrt(head_dim) */
    /* Of calibrated codecs: to seal and to pack queries, those of keys and of values, [2]; to expand, that of the part. NULL elsewhere. */
    const struct kv_book *books;
};

/*
 * A tile of up to ATTN_ROWS query vectors of one KV head (rows x the heads of its group, in any mix) and their partials. Each vector by
 * itself: its bits do not depend on its neighbours or on its place in the tile.
 * Partials, unit stride: m [ATTN_ROWS], l [ATTN_ROWS], o [ATTN_ROWS][head_dim], f32, one after the other. Empty is (-inf, 0, 0).
 */
static inline size_t attn_partial_floats(uint32_t head_dim)
{
    return ATTN_ROWS * (2 + (size_t)head_dim);
}

struct attn_impl {
    const char *name;
    uint32_t needs;
    bool (*accepts)(const struct attn_shape *shape);
    /*
     * Bytes of one block's keys (and, as many, values) of one KV head in one layer: KV_BLOCK positions; a multiple of 64.
     * The layout is the codec's, the same for all variants of it, so that workers of different ISA can exchange blocks. Values lie right behind keys
     * (of nomad both are one run of two parts, keys the shorter piece of it):
     *   BF16  keys   [head_dim/2][KV_BLOCK][2]  (channel pairs of a position side by side: AMX's B operand for q k^T)
     *         values [KV_BLOCK/2][head_dim][2]  (position pairs of a channel side by side: AMX's B operand for p v)
     *   F32   keys   [head_dim][KV_BLOCK], values [KV_BLOCK][head_dim]
     *   coded blocks: kernels/cpu/kv.h, kernels/cpu/kv_expand.h
     */
    size_t (*part_bytes)(const struct attn_shape *shape);
    /* Writes one position of an open block, rounding to the codec. k, v [head_dim] f32 after RoPE. Unwritten positions must be zeros. */
    void (*store)(const struct attn_shape *shape, uint32_t offset, const float *k, const float *v, void *k_part,
                  void *v_part);
    /* Packs n <= ATTN_ROWS query vectors, q[i] [head_dim] f32, into a tile of q_tile_bytes; rounds to bf16 for BF16. The rest is zeros. */
    size_t (*q_tile_bytes)(const struct attn_shape *shape);
    void (*pack_q)(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile);
    /*
     * The partial of the tile's n vectors over one block; vector i sees positions 0 .. visible[i]-1 of it (0: empty partial). The rest of
     * the tile is not written.  s = scale q.k, m = max s, p = exp(s - m), l = sum p (in f32 before p is rounded), o = sum p v.
     * next_k_part: keys of the block that this thread will read next from memory, to be brought nearer meanwhile; NULL: unknown, or this
     * block is read again before.
     */
    void (*block)(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                  const void *k_part, const void *v_part, const void *next_k_part, float *partial_out);
    /* a = merge(a, b), each of n vectors by itself: m = max, l and o rescaled by exp(m_i - m). Beside an empty side (l == 0) the other's bits
       are returned by choice, not by arithmetic. */
    void (*merge)(const struct attn_shape *shape, uint32_t n, float *a, const float *b);
    float rtol; /* ||do|| / ||o|| against _c on the same stored block */
    /*
     * Coded blocks (the codec's open form is another; store is NULL): writes the codec's form of a full open block's keys and values, every byte
     * of it. The same bits in every variant. false: not finite; nothing may be read of it. Parts may be spilled (kernels/kv_spill.h).
     */
    bool (*seal)(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part, void *v_part);
    /*
     * Outputs of coded blocks are in a rotated basis. Turns o of n vectors of a partial into that basis, or back (it is its own inverse). NULL: both are
     * the same.
     */
    void (*rotate)(const struct attn_shape *shape, uint32_t n, float *partial);
    /*
     * Codecs that are attended in their open form: makes a part of keys, or of values, what it was before sealing, but for what sealing lost; the same bits
     * in every variant. pack_q, block and merge are NULL: they are the open form's; or else rows of prompts attend what this makes, and generated rows what
     * seal wrote (struct kv_codec_info: row_classes). next_part: as next_k_part of block. NULL: block reads what seal wrote.
     */
    void (*expand)(const struct attn_shape *shape, const void *part, const void *next_part, void *open_out);
};

extern const struct attn_impl attn_impls[]; /* of open forms */
extern const uint32_t n_attn_impls;
extern const struct attn_impl coded_impls[]; /* of coded blocks */
extern const uint32_t n_coded_impls;
const struct attn_impl *attn_find(const struct attn_shape *shape,
                                  uint32_t caps); /* NULL: no variant takes this head_dim */

/* ---- row operations (cpu/rows_*.c) ---- */

/* A table of variants: all or nothing, so that one name says what ran. Row strides are in elements. */
struct row_impl {
    const char *name;
    uint32_t needs;
    /* out[i] = x[i] * w[i] / sqrt(mean(x^2) + eps), to out_type; out[n..pad) = 0. x [n] f32. out may be x (F32). Any alignment. */
    void (*rmsnorm)(const float *x, const float *w, uint32_t n, float eps, enum dtype out_type, void *out,
                    uint32_t pad);
    /* x[i] += b[i]. The same bits in every variant. Any alignment. */
    void (*add)(float *x, const float *b, uint32_t n);
    /* Rotates n_heads vectors of head_dim in place: pairs (i, i + D/2) by cos[i], sin[i]. */
    void (*rope)(float *x, uint32_t n_heads, uint32_t head_dim, const float *cos, const float *sin);
    /* out[i] = silu(gate[i]) * up[i]; out[n..pad) = 0 */
    void (*silu_mul)(const float *gate, const float *up, uint32_t n, enum dtype out_type, void *out, uint32_t pad);
    /* out = o / l for one vector; *finite is set to false if l or any o is not finite or l <= 0. */
    void (*attn_finish)(const float *o, float l, uint32_t head_dim, enum dtype out_type, void *out, bool *finite);
    /* Largest logit (lowest index on ties; NaN is never chosen) and sum of exp(x - max), in a fixed order. */
    void (*logit_max_sum)(const float *x, uint32_t n, uint32_t *argmax_out, float *max_out, float *sum_out);
};
extern const struct row_impl row_impls[];
extern const uint32_t n_row_impls;
const struct row_impl *row_find(uint32_t caps);

/*
 * Chooses a token. A function of (logits, params, position) alone: Gumbel-max with counter-based numbers (rng_at(seed, position, token)).
 * temperature 0: the largest logit. Order of filters: min_p (0: off; tokens less probable than min_p times the most probable go), top_k (0: off),
 * then top_p (1: off) of what is left, of probabilities after temperature.
 * logprob: natural logarithm of a token's probability before edits, temperature and filters.
 */
struct sample_params {
    float temperature, top_p;
    uint32_t top_k;
    uint64_t seed;
    float min_p;
};
struct sample_edit {
    uint32_t token;
    float add;
};
/*
 * Changes of one row's logits before the choice, in this order: logits of tokens in `repeated` are divided by repetition if positive, else multiplied
 * with it; then adds; then what is not in `allowed` can not be chosen. Sets are bit t % 8 of byte t / 8; a NULL set of repeated is empty, of allowed is
 * everything; bits that a set lacks are 0. adds: tokens ascending, below n. At least one token below n must be allowed. Finite numbers; a sum
 * beyond float32 stays at its largest.
 */
struct sample_edits {
    uint32_t n_adds, repeated_bytes, allowed_bytes;
    const struct sample_edit *adds;
    float repetition; /* above 0 */
    const uint8_t *repeated, *allowed;
};
struct sample_top {
    uint32_t token;
    float logprob;
};
/* edits: NULL for none. scratch: sample_scratch_bytes(n). top_out [n_top], best first, ties to the lower token. target: a token whose logprob is wanted too, or -1. */
struct sample_result {
    uint32_t token;
    float logprob;
    float target_logprob;
    bool finite; /* false: a logit was NaN or infinite; the rest is not to be used */
};
void sample_row(const struct row_impl *rows, const float *logits, uint32_t n, const struct sample_params *params,
                const struct sample_edits *edits, uint32_t position, int32_t target, uint32_t n_top,
                struct sample_top *top_out, void *scratch, struct sample_result *result_out);
size_t sample_scratch_bytes(uint32_t n);

#ifdef __cplusplus
}
#endif
#endif
