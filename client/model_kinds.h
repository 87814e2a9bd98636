#ifndef LONGSPAN_CLIENT_MODEL_KINDS_H
#define LONGSPAN_CLIENT_MODEL_KINDS_H

/* A model's tensors by kind: codecs, sizes, bits per weight. What `model` and `pack` show. */

#include <jansson.h>

#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* [{kind, codec, weights, bytes, bits_per_weight}]; weights_out: of all kinds; may be NULL. */
json_t *model_kinds_describe(const struct model *m, uint64_t *weights_out);
/* As a table on standard output. */
void model_kinds_print(const json_t *kinds);

#ifdef __cplusplus
}
#endif
#endif
