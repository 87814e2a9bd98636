#ifndef LONGSPAN_MODEL_SOURCE_H
#define LONGSPAN_MODEL_SOURCE_H

/*
 * Behind model.h: what a source of models (GGUF file, Hugging Face directory, random, constructed) fills in. A source is one file and
 * one row of the table in model.c.
 */

#include <stdio.h>

#include "common/file.h"
#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MODEL_LAYERS_MAX = 4096,
    MODEL_WIDTH_MAX = 1 << 20, /* of d_model, d_ff, heads * head_dim */
    MODEL_VOCAB_MAX = 1 << 24,
};

struct model_source {
    const char *name;
    /* Does the spec name such a model? Looks at the spec, and at what kind of file it names; opens nothing. */
    bool (*takes)(const char *spec);
    /* Fills config, vocab and tensors of an empty model, and calls model_finish. What was made so far is released by model_close. */
    enum status (*open)(struct model *m, const char *spec, struct error *err);
    /* Makes one row in scratch; NULL where every row is stored. */
    const void *(*row)(const struct model_tensor *t, uint32_t row, void *scratch);
};

extern const struct model_source model_source_random, model_source_copy, model_source_pack, model_source_gguf,
    model_source_hf;

struct model_chunk;
struct quantized_matrix;

struct model {
    const struct model_source *source;
    struct model_config config;
    struct model_vocab vocab;
    struct model_tensor *tensors; /* by model_slot; n_rows 0: absent */
    uint32_t n_tensors;
    const char
        *recipe;   /* what rows made on demand depend on, beside configuration and shape; NULL where all are stored */
    uint64_t seed; /* of rows made on demand */
    struct quantized_matrix *quantized; /* by model_slot, of checkpoints that hold such (quantized.h); else NULL */
    struct file_map *maps;
    uint32_t n_maps;
    struct model_chunk *chunks; /* memory of model_alloc */
    uint64_t weight_bytes;
    struct digest digest;
};

/* An empty model of this source; model_close frees it. NULL: no memory. */
struct model *model_new(const struct model_source *source);
/* Zeroed memory that lives as long as the model, 64-byte aligned if bytes >= 64, else 16; NULL: no memory (or an absurd size). */
void *model_alloc(struct model *m, size_t n, size_t size);
void model_chunks_free(struct model *m);
/* A copy of text in the model's memory, with a NUL added. */
char *model_copy_text(struct model *m, const char *text, size_t bytes);
/* Maps a file for the model's life. */
enum status model_map(struct model *m, const char *path, struct file_map *map_out, struct error *err);
/* The printable form of a name that came from outside, cut to fit: for errors and config.name. Returns buffer. */
const char *model_printable(char *buffer, size_t room, const char *text, size_t bytes);

/* Refuses sizes that are zero, absurd, or do not fit each other; where: the file. Everything allocated afterwards relies on it. */
enum status model_config_check(const struct model_config *c, const char *where, struct error *err);
/* Makes the tensor table for config.n_layers, all absent. After model_config_check. */
enum status model_tensors_new(struct model *m, struct error *err);
/* What shape the configuration asks for. */
void model_shape(const struct model_config *c, enum model_tensor_kind kind, uint32_t *n_rows_out, uint32_t *n_cols_out);
/* Its place in the table; kind and layer are in range. */
uint32_t model_slot(enum model_tensor_kind kind, uint32_t layer);
bool model_kind_layered(enum model_tensor_kind kind);
/* Does a model of this configuration have such tensors? Those that it has not are refused, those that it has must be there. */
bool model_kind_present(const struct model_config *c, enum model_tensor_kind kind);
/* For errors: "attn_q". */
const char *model_kind_name(enum model_tensor_kind kind);
/*
 * Enters a tensor. dims: slowest first, n_dims 1 or 2 (extra ones are no harm). Refuses a shape other than the configured one, rows
 * that are not whole blocks and a second tensor of the same place; where and name (of the tensor) are for the error.
 */
enum status model_tensor_set(struct model *m, enum model_tensor_kind kind, uint32_t layer, enum weight_codec codec,
                             const uint64_t *dims, uint32_t n_dims, const void *data, bool interleaved,
                             const char *where, const char *name, struct error *err);
/* Checks that no tensor is missing; sums the bytes; makes the digest. The end of every open. */
enum status model_finish(struct model *m, const char *where, struct error *err);

/* A vocabulary of the 256 bytes; ids from 256 to n_vocab - 1 stand for no text. */
enum status model_vocab_bytes(struct model *m, struct error *err);
/* Adds an end-of-generation id once; ignores ids outside the vocabulary and those that find no room. */
void model_eos_add(struct model_config *c, int64_t id);
/* Adds the control tokens that end a turn in known chat formats, if the model has a chat template. */
void model_eos_add_chat(struct model *m);

struct digest model_digest_make(const struct model *m);

#ifdef __cplusplus
}
#endif
#endif
