/* fuzz-libs: longspan_model */
/* A GGUF file of any bytes: a named refusal, or a model whose rows, words and merges can all be read. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/gguf_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void touch(const struct model *m)
{
    volatile uint8_t sink = 0;
    const struct model_vocab *v = model_vocab(m);
    struct model_tensor t;
    for (uint32_t i = 0; i < v->n_tokens; i++)
        if (v->tokens[i].bytes)
            sink ^= (uint8_t)v->tokens[i].text[v->tokens[i].bytes - 1];
    for (uint32_t i = 0; i < v->n_merges; i++)
        sink ^= (uint8_t)(v->merges[i].left[0] ^ v->merges[i].right[v->merges[i].right_bytes - 1]);
    for (int k = 0; k < MODEL_TENSOR_KINDS; k++) {
        if (model_tensor(m, (enum model_tensor_kind)k, model_config(m)->n_layers - 1, &t) &&
            model_tensor(m, (enum model_tensor_kind)k, 0, &t))
            continue;
        uint8_t *scratch = malloc(t.row_bytes);
        float *row = malloc(t.n_cols * sizeof *row);
        weight_row_f32(t.codec, model_tensor_row(&t, t.n_rows - 1, scratch), t.n_cols, row);
        free(scratch);
        free(row);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct model *m = NULL;
    struct error err = { 0 };
    const enum status st = gguf_model_open_bytes(data, bytes, &m, &err);
    if (st && (err.status != st || !err.text[0]))
        abort();
    if (st)
        return 0;
    touch(m);
    model_close(m);
    return 0;
}
