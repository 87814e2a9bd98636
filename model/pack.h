#ifndef LONGSPAN_MODEL_PACK_H
#define LONGSPAN_MODEL_PACK_H

/*
 * A pack: a directory with everything that a model is, in forms that are read in place.
 *
 *   pack.json            what it is: configuration, vocabulary's flags, tensors with their places and checksums; checksum: of itself
 *   weights.bin          tensors, each at a multiple of 64 bytes
 *   vocabulary.bin       tokens, merges, scores
 *   tokenizer.json, chat_template.jinja    where the model has them
 *
 * A tensor is its rows one after the other in its codec, rows of q and k in our order; or of lossless-fast, each part at a multiple of 64 bytes:
 * planes, records [n_groups][n_blocks] u32, starts [n_groups + 1] u64, escapes (model/lossless.h). Likewise of df11 (model/df11.h): code lengths [256] u8,
 * signs, offsets [n_groups][tiles] u32, starts [n_groups + 1] u64 bytes, stream.
 */

#include <stdbool.h>
#include <stdint.h>

#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { PACK_VERSION = 1, PACK_ALIGN = 64 };

#define PACK_HEADER     "pack.json"
#define PACK_WEIGHTS    "weights.bin"
#define PACK_VOCABULARY "vocabulary.bin"
#define PACK_TOKENIZER  "tokenizer.json"
#define PACK_TEMPLATE   "chat_template.jinja"

/* What `weights` of pack_write may be. */
enum pack_weights {
    PACK_BF16,
    PACK_LOSSLESS_FAST,
    PACK_DF11,
    PACK_LEANQUANT_4,
    PACK_LEANQUANT_3,
    PACK_LEANQUANT_2,
    PACK_AS_IS,
    PACK_WEIGHTS_KINDS
};
const char *pack_weights_name(enum pack_weights weights);
/* "bf16", "lossless-fast", "df11", "leanquant-4" (3, 2) or "as-is"; false: none of them. */
bool pack_weights_parse(const char *name, enum pack_weights *weights_out);
/* Weights that need a calibration: quantize of the options. */
static inline bool pack_weights_calibrated(enum pack_weights weights)
{
    return weights >= PACK_LEANQUANT_4 && weights <= PACK_LEANQUANT_2;
}

struct pack_options {
    enum pack_weights weights;
    /* At most every so often while it works; NULL: no. stop: true ends it with ST_CANCELLED, to be taken up later; NULL: never. */
    void (*progress)(void *ctx, float fraction);
    bool (*stop)(void *ctx);
    void *ctx;
    /*
     * Of calibrated weights only: the rows of a matrix of a layer in this codec, [n_rows][weight_row_bytes], borrowed until the next call; and what the header
     * says of how they were made, the text of a JSON object. Tensors come in ascending order of layers.
     */
    enum status (*quantize)(void *quantize_ctx, const struct model_tensor *t, enum weight_codec codec,
                            const uint8_t **rows_out, struct error *err);
    void *quantize_ctx;
    const char *quantized;
};

/*
 * Writes m as a pack to the directory `out`, by way of `out`.partial: out is nothing, or what it was, or the whole pack. What an attempt that was killed left
 * there is taken up. bf16: matrices in other codecs are rounded to bf16 (what is BF16 stays as it is to the bit); lossless-fast, df11: the same, coded; leanquant-n: matrices of layers quantized, the others bf16;
 * as-is: codecs as they are. Vectors (norms, biases) stay as they are. resumed_out: tensors that an earlier attempt had written; may be NULL.
 * Errors: ST_EXISTS (out holds something else than a finished pack of this model's name and these weights), ST_BUSY (another process is at it),
 * ST_IO (err names the file: a full disk, say), ST_INVALID, ST_NO_MEMORY, ST_CANCELLED.
 */
enum status pack_write(const struct model *m, const char *out, const struct pack_options *options,
                       uint32_t *resumed_out, struct error *err);

/*
 * A model from a pack's files in memory, for fuzzing; memory must outlive it. vocabulary, tokenizer and template as their files have them; the last two may be
 * NULL.
 */
struct pack_bytes {
    const void *header, *weights, *vocabulary, *tokenizer, *chat_template;
    size_t header_bytes, weights_bytes, vocabulary_bytes, tokenizer_bytes, chat_template_bytes;
};
enum status pack_open_bytes(const struct pack_bytes *bytes, struct model **model_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
