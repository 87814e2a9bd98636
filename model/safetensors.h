#ifndef LONGSPAN_MODEL_SAFETENSORS_H
#define LONGSPAN_MODEL_SAFETENSORS_H

/*
 * The safetensors container: a JSON header that names tensors, and their bytes. Parses bytes in memory and points into them.
 * Source: the format's description in huggingface/safetensors.
 */

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SAFETENSORS_DIMS_MAX = 8 };

struct safetensor {
    const char *name;
    const char *dtype;                   /* "BF16" ... */
    uint32_t n_dims;                     /* 0: one element */
    uint64_t dims[SAFETENSORS_DIMS_MAX]; /* slowest first */
    const uint8_t *data;                 /* at any alignment */
    uint64_t bytes;
};

struct safetensors {
    struct safetensor *tensors; /* by place in the file */
    uint32_t n_tensors;
    json_t *header; /* holds the names */
};

/*
 * where: the file's name. data is borrowed until safetensors_free. ST_CORRUPT: malformed, holes or overlaps included; ST_UNSUPPORTED:
 * a dtype whose size is not known.
 */
enum status safetensors_parse(const void *data, size_t bytes, const char *where, struct safetensors *s_out,
                              struct error *err);
/* Forgives a zeroed struct. */
void safetensors_free(struct safetensors *s);

#ifdef __cplusplus
}
#endif
#endif
