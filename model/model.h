#ifndef LONGSPAN_MODEL_MODEL_H
#define LONGSPAN_MODEL_MODEL_H

/*
 * What a model is, wherever it comes from: a configuration, a vocabulary and tensors by kind and layer. Sources: GGUF files, Hugging Face
 * directories, random weights, the constructed copying model. Files are hostile until checked: every refusal names file and field.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MODEL_HEAD_DIM_MAX = 256, MODEL_EOS_MAX = 8 };

/*
 * How the elements of a stored weight row are coded. Layouts: the GGUF types of the same names; F32, F16, BF16 are plain arrays. LOSSLESS_FAST and
 * DF11 code groups of 16 rows together (model/lossless.h, model/df11.h); their rows come as BF16. Q4_Z is what GPTQ and AWQ checkpoints become: as Q4_1, with the
 * zero point as f16 in the minimum's place, so that an element is (q - z) d. LEANQUANT_n: a row is its grid of 2^n bf16, then n bits an element, lowest first.
 */
enum weight_codec {
    WEIGHT_F32,
    WEIGHT_F16,
    WEIGHT_BF16,
    WEIGHT_Q8_0,
    WEIGHT_Q4_0,
    WEIGHT_Q4_1,
    WEIGHT_Q5_0,
    WEIGHT_Q5_1,
    WEIGHT_Q4_K,
    WEIGHT_Q5_K,
    WEIGHT_Q6_K,
    WEIGHT_LOSSLESS_FAST,
    WEIGHT_DF11,
    WEIGHT_Q4_Z,
    WEIGHT_LEANQUANT_4,
    WEIGHT_LEANQUANT_3,
    WEIGHT_LEANQUANT_2,
    WEIGHT_CODECS
};

const char *weight_codec_name(enum weight_codec codec);
/* Elements that are coded together (1, 32 or 256), and the bytes they take (not of LEANQUANT). A row's length is a multiple of the block. */
uint32_t weight_codec_block(enum weight_codec codec);
size_t weight_codec_block_bytes(enum weight_codec codec);
size_t weight_row_bytes(enum weight_codec codec, uint32_t n_cols);
/* Expands one stored row to float32: each element is rounded once, as ggml's own expansion does. */
void weight_row_f32(enum weight_codec codec, const void *row, uint32_t n_cols, float *out);

/* Bits of an element's code of LEANQUANT_n; of other codecs 0. */
static inline uint32_t weight_grid_bits(enum weight_codec codec)
{
    return codec >= WEIGHT_LEANQUANT_4 && codec <= WEIGHT_LEANQUANT_2 ? 4 - (uint32_t)(codec - WEIGHT_LEANQUANT_4) : 0;
}

/* Code of element i of such a row; put: where all its bits are zeros. */
static inline uint32_t weight_grid_code(uint32_t bits, const uint8_t *row, size_t i)
{
    const uint8_t *codes = row + ((size_t)2 << bits) + i * bits / 8;
    const uint32_t at = (uint32_t)(i * bits % 8);
    return (uint32_t)(codes[0] | (at + bits > 8 ? codes[1] << 8 : 0)) >> at & ((1u << bits) - 1);
}

static inline void weight_grid_put(uint32_t bits, uint8_t *row, size_t i, uint32_t code)
{
    uint8_t *codes = row + ((size_t)2 << bits) + i * bits / 8;
    const uint32_t at = (uint32_t)(i * bits % 8);
    codes[0] = (uint8_t)(codes[0] | code << at);
    if (at + bits > 8)
        codes[1] = (uint8_t)(codes[1] | code >> (8 - at));
}

/* The parts of one stored block of Q5_0, Q5_1 (32 elements) or Q4_K, Q5_K, Q6_K (256), for who packs them anew. */
struct weight_parts {
    uint16_t d, m;     /* f16; m: of Q5_1 the minimum, of Q4_K and Q5_K what min is multiplied by, else 0 */
    uint8_t code[256]; /* 0 .. 15, 31 or 63, in order of the elements */
    int8_t scale[16];  /* Q4_K, Q5_K: of 8 runs of 32 elements, 0 .. 63; Q6_K: of 16 runs of 16, signed */
    uint8_t min[8];    /* Q4_K, Q5_K: likewise, 0 .. 63 */
};

/*
 * An element of code q in run i is   Q5_0 (q - 16) d   Q5_1 q d + m   Q4_K, Q5_K q (d scale[i]) - m min[i]   Q6_K (q - 32) (d scale[i]).
 * block: at any alignment.
 */
void weight_block_parts(enum weight_codec codec, const void *block, struct weight_parts *parts_out);

/*
 * Llama family: RMSNorm, RoPE (half-split pairs i, i + D/2), grouped-query attention, SwiGLU. Llama, Mistral, Qwen2 (biases of q, k, v) and
 * Qwen3 (each head of q and k normed) are this with other flags.
 */
struct model_config {
    char architecture[32];
    char name[128]; /* what /v1/models shows */
    uint32_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, n_vocab;
    uint32_t positions_max; /* the longest context the model was made for */
    float rms_eps;
    bool tied_output; /* the output matrix is the embedding */
    bool qkv_bias;    /* vectors are added to q, k and v after their products */
    bool qk_norm;     /* each head of q and k goes through an RMS norm of head_dim before RoPE */
    /* [head_dim / 2] radians a position, all RoPE scaling applied; 0: not rotated */
    double inv_freq[MODEL_HEAD_DIM_MAX / 2];
    double rope_scale;  /* cos and sin are multiplied with it: YaRN's attention factor, else 1 */
    char rope_name[32]; /* "default", "linear", "yarn", "llama3", "constructed" ... for the log */
    int32_t bos;        /* -1: none */
    bool add_bos;       /* raw prompts start with bos */
    int32_t eos[MODEL_EOS_MAX];
    uint32_t n_eos;
};

enum model_tensor_kind {
    MODEL_EMBEDDING,   /* [n_vocab][d_model] */
    MODEL_OUTPUT_NORM, /* [1][d_model] */
    MODEL_OUTPUT,      /* [n_vocab][d_model]; absent (ST_NOT_FOUND) when tied_output */
    MODEL_ATTN_NORM,   /* [1][d_model] */
    MODEL_ATTN_Q,      /* [n_heads * head_dim][d_model], rows in half-split RoPE order */
    MODEL_ATTN_K,      /* [n_kv_heads * head_dim][d_model], likewise */
    MODEL_ATTN_V,      /* [n_kv_heads * head_dim][d_model] */
    MODEL_ATTN_OUT,    /* [d_model][n_heads * head_dim] */
    MODEL_FFN_NORM,    /* [1][d_model] */
    MODEL_FFN_GATE,    /* [d_ff][d_model] */
    MODEL_FFN_UP,      /* [d_ff][d_model] */
    MODEL_FFN_DOWN,    /* [d_model][d_ff] */
    MODEL_ATTN_Q_BIAS, /* [1][n_heads * head_dim], in the rows' order; these three with qkv_bias only */
    MODEL_ATTN_K_BIAS, /* [1][n_kv_heads * head_dim] */
    MODEL_ATTN_V_BIAS, /* [1][n_kv_heads * head_dim] */
    MODEL_ATTN_Q_NORM, /* [1][head_dim]; these two with qk_norm only */
    MODEL_ATTN_K_NORM, /* [1][head_dim] */
    MODEL_TENSOR_KINDS
};

struct model;
struct lossless_tensor;
struct df11_tensor;

/* One tensor, borrowed from the model. Plain data; rows are read by model_tensor_row only. */
struct model_tensor {
    enum weight_codec codec;
    uint32_t n_rows, n_cols;
    const struct model *model;
    enum model_tensor_kind kind;
    uint32_t layer;
    const void *data; /* stored rows, or NULL where rows are made on demand */
    size_t row_bytes;
    /* head size if the file holds q/k rows as adjacent RoPE pairs (undone by model_tensor_row), else 0 */
    uint32_t interleaved_dim;
    uint64_t stored_bytes; /* of all rows, as the source holds them */
    /* Of packs: what its header says of the stored bytes, and those; and of LOSSLESS_FAST and DF11 the coded groups. NULL elsewhere. */
    const struct digest *checksum;
    const void *stored;
    const struct lossless_tensor *lossless;
    const struct df11_tensor *df11;
};

/*
 * spec: a GGUF file (of a split set: the first), a directory with one of these or with Hugging Face files or a pack, "constructed:copy[:POSITIONS]",
 * or "random:SHAPE[:LAYERS[:SEED]]" (SHAPE: llama-3.1-8b, llama-3.2-1b, smollm2-135m, mistral-7b, qwen2.5-7b, qwen3-8b or tiny, and key=value
 * pairs, all joined by commas: layers, d, heads, kv, head_dim, ff, vocab, positions, theta, tied, qkv_bias, qk_norm, codec). Refuses by name
 * what it cannot compute exactly. Errors:
 * ST_NOT_FOUND, ST_INVALID (a wrong or ambiguous spec), ST_CORRUPT (malformed), ST_UNSUPPORTED, ST_TOO_LARGE, ST_NO_MEMORY, ST_IO.
 */
enum status model_open(const char *spec, struct model **model_out, struct error *err);
void model_close(struct model *m);

const struct model_config *model_config(const struct model *m);
/* Of configuration, tensors and vocabulary: workers that differ in it do not serve together. */
struct digest model_digest(const struct model *m);
enum status model_tensor(const struct model *m, enum model_tensor_kind kind, uint32_t layer,
                         struct model_tensor *tensor_out);
/* One row in the tensor's codec: in the mapped file, or made in scratch (row_bytes, 64-byte aligned). Any thread. Cannot fail. */
const void *model_tensor_row(const struct model_tensor *t, uint32_t row, void *scratch);
/*
 * Reads the stored bytes and compares their checksum, where the source has one (packs): ST_CORRUPT. Workers do so as they load; rows of a tensor that was
 * not checked are read safely, but may be wrong.
 */
enum status model_tensor_check(const struct model_tensor *t, struct error *err);
/* Bytes of all stored tensors: the weights' share of memory. */
uint64_t model_weight_bytes(const struct model *m);
/*
 * Lets mapped files leave the resident set: for who has packed the rows that he read. Reading again is no error, only slower. model_open
 * does so after it made the digest.
 */
void model_drop_pages(const struct model *m);

enum model_vocab_kind { MODEL_VOCAB_BYTES, MODEL_VOCAB_BPE, MODEL_VOCAB_SENTENCEPIECE };
enum model_token_type {
    MODEL_TOKEN_NORMAL = 1,
    MODEL_TOKEN_UNKNOWN = 2,
    MODEL_TOKEN_CONTROL = 3,
    MODEL_TOKEN_USER = 4,
    MODEL_TOKEN_UNUSED = 5,
    MODEL_TOKEN_BYTE = 6
};

struct model_token {
    /*
     * BPE: in the byte-level alphabet for NORMAL tokens; SENTENCEPIECE: as it stands, with U+2581 for spaces, and BYTE tokens "<0x0A>";
     * as it stands for CONTROL and USER; not NUL-terminated
     */
    const char *text;
    uint32_t bytes;
    uint8_t type; /* enum model_token_type */
};

struct model_merge {
    const char *left, *right; /* not NUL-terminated */
    uint32_t left_bytes, right_bytes;
};

/*
 * Borrowed from the model. BYTES: token i < 256 is byte i, no merges, no template. SENTENCEPIECE: BPE over characters; one that has no token is
 * its bytes' BYTE tokens. What joins is told by scores, or else by merges.
 */
struct model_vocab {
    enum model_vocab_kind kind;
    const struct model_token *tokens;
    uint32_t n_tokens;
    const struct model_merge *merges; /* by rank */
    uint32_t n_merges;
    const float *scores;        /* [n_tokens] of SENTENCEPIECE, the highest joins first; or NULL */
    bool space_prefix;          /* with scores: texts are encoded as if a space stood before them */
    const char *pre;            /* pre-tokenizer: a GGUF name (smollm, llama-bpe, gpt-2), or NULL: see tokenizer_json */
    const char *tokenizer_json; /* the whole tokenizer.json of a Hugging Face directory, or NULL */
    size_t tokenizer_json_bytes;
    bool ignore_merges;
    const char *chat_template; /* the model's Jinja text, or NULL */
    const char *eos_text;      /* what templates know as eos_token, or NULL */
};
const struct model_vocab *model_vocab(const struct model *m);

#ifdef __cplusplus
}
#endif
#endif
