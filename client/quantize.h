#ifndef LONGSPAN_CLIENT_QUANTIZE_H
#define LONGSPAN_CLIENT_QUANTIZE_H

/*
 * Weights of a model quantized by LeanQuant (model/leanquant.h) over a text: the model runs on its tokens layer by layer, in bf16 activations, every
 * matrix on what the quantized ones before it make; q, k and v, then the output of attention, gate and up, then down. Embedding and output matrix stay.
 */

#include "model/pack.h"

#ifdef __cplusplus
extern "C" {
#endif

struct quantize;
/*
 * m: borrowed. text: as many tokens of it as make whole sequences of 256, up to 32 sequences spread over it. threads: 0: one a core. ST_INVALID: a text of less than four
 * sequences; ST_NO_MEMORY, those of tokenizers.
 */
enum status quantize_new(const struct model *m, const char *flag, const char *text, size_t bytes, uint32_t threads,
                         struct quantize **q_out, struct error *err);
void quantize_free(struct quantize *q);
/* The same over the text of a file, entered into what pack_write takes. flag: what names it on the command line, for errors. *q_out must outlive the options. */
enum status quantize_options(const struct model *m, const char *flag, const char *path, struct pack_options *options,
                             struct quantize **q_out, struct error *err);
/* What a pack's header says of it: a JSON object's text, borrowed. */
const char *quantize_record(const struct quantize *q);
/* quantize of struct pack_options, ctx: a struct quantize. Layers in ascending order; earlier ones are quantized on the way. */
enum status quantize_rows(void *ctx, const struct model_tensor *t, enum weight_codec codec, const uint8_t **rows_out,
                          struct error *err);

#ifdef __cplusplus
}
#endif
#endif
