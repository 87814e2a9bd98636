#ifndef LONGSPAN_MODEL_QUANTIZED_H
#define LONGSPAN_MODEL_QUANTIZED_H

/*
 * Checkpoints of GPTQ (arXiv:2210.17323) and AWQ (arXiv:2306.00978) as they are published: matrices as qweight, qzeros, scales and g_idx, b bits packed in
 * 32-bit words. An element is (q - z) s, with z and s of its group of inputs. GPTQ: 2, 3, 4 or 8 bits along inputs, lowest first, zeros less one unless its
 * format is gptq_v2. AWQ: 4 bits along outputs in the order 0, 2, 4, 6, 1, 3, 5, 7 ("gemm").
 *
 * Rows come in the codec that holds them exactly: Q4_Z up to 4 bits, Q8_0 for 8 bits with zero points of 128; where the groups of a matrix do not follow each other
 * in runs of 32 inputs (desc_act), or 8-bit zero points are others, F16, each element rounded once.
 */

#include <jansson.h>

#include "model/safetensors.h"
#include "model/source.h"

#ifdef __cplusplus
extern "C" {
#endif

enum quantized_method { QUANTIZED_NONE, QUANTIZED_GPTQ, QUANTIZED_AWQ };

struct quantized_config {
    enum quantized_method method;
    uint32_t bits, group; /* inputs that share a scale; 0: all */
    bool zeros_less_one;
};

/* Key quantization_config of a config.json; absent: method NONE. ST_CORRUPT, ST_UNSUPPORTED: named keys. */
enum status quantized_config_parse(const char *text, size_t bytes, const char *where, struct quantized_config *c_out,
                                   struct error *err);

/* One matrix's tensors, in the file. */
struct quantized_matrix {
    const uint8_t *part[4]; /* enum quantized_part; NULL: absent */
    uint64_t part_bytes[4];
    struct quantized_config config;
    uint32_t n_groups;
    bool sorted; /* its groups follow each other */
};

enum quantized_part { QUANTIZED_WEIGHT, QUANTIZED_ZEROS, QUANTIZED_SCALES, QUANTIZED_GROUPS };

/* Is `name` a matrix's part, "....qweight"? Then how many bytes of it name the matrix. */
bool quantized_part_of(const char *name, size_t *stem_out, enum quantized_part *part_out);
/*
 * Enters a part into m->quantized. Refuses types and shapes that do not fit the configuration; where, name: for errors.
 */
enum status quantized_enter(struct model *m, const struct quantized_config *c, enum model_tensor_kind kind,
                            uint32_t layer, enum quantized_part part, const struct safetensor *t, const char *where,
                            const char *name, struct error *err);
/* After all parts: checks that none is missing and that groups are groups, enters tensors, and makes m->recipe. */
enum status quantized_finish(struct model *m, const char *where, struct error *err);
/* Row function of sources that have such matrices. */
const void *quantized_row(const struct model_tensor *t, uint32_t row, void *scratch);

#ifdef __cplusplus
}
#endif
#endif
