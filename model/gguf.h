#ifndef LONGSPAN_MODEL_GGUF_H
#define LONGSPAN_MODEL_GGUF_H

/*
 * The GGUF container, versions 2 and 3, little endian: keys with values, and tensors. Parses bytes in memory and points into them; every
 * size is checked against them before it is used. Source: the GGUF specification of ggml.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPES
};

struct gguf_text {
    const char *text; /* not NUL-terminated */
    size_t bytes;
};

struct gguf_key {
    struct gguf_text name;
    enum gguf_type type, element; /* element: of arrays */
    uint64_t n;                   /* elements of an array, else 1 */
    const uint8_t *data;          /* the value; the first element of an array; the length field of a string */
    size_t bytes;
};

struct gguf_tensor {
    struct gguf_text name;
    uint32_t n_dims;
    uint64_t dims[4]; /* slowest first: [rows][cols], the reverse of the file's order */
    uint32_t type;    /* ggml's number */
    const uint8_t *data;
    uint64_t bytes;
};

struct gguf {
    const char *where; /* the file, for errors; borrowed */
    struct gguf_key *keys;
    uint32_t n_keys;
    struct gguf_tensor *tensors;
    uint32_t n_tensors;
    uint32_t *by_name; /* keys sorted by name */
};

/*
 * where: the file's name, borrowed. data is borrowed until gguf_free. ST_CORRUPT: malformed; ST_UNSUPPORTED: another version, big
 * endian, or a tensor type that no reader here knows.
 */
enum status gguf_parse(const void *data, size_t bytes, const char *where, struct gguf *gguf_out, struct error *err);
/* Forgives a zeroed struct. */
void gguf_free(struct gguf *g);

/* NULL: there is none. */
const struct gguf_key *gguf_find(const struct gguf *g, const char *name);

/*
 * Typed values. Integers of every width are accepted where they fit and are not negative. If the key is absent the output is left
 * alone and *found_out (may be NULL) says so; with found_out NULL an absent key is refused by name.
 */
enum status gguf_u32(const struct gguf *g, const char *name, uint32_t *value_out, bool *found_out, struct error *err);
enum status gguf_f64(const struct gguf *g, const char *name, double *value_out, bool *found_out, struct error *err);
enum status gguf_bool(const struct gguf *g, const char *name, bool *value_out, bool *found_out, struct error *err);
enum status gguf_string(const struct gguf *g, const char *name, struct gguf_text *value_out, bool *found_out,
                        struct error *err);
/* An array of this element type; absent is refused unless found_out is given. */
enum status gguf_array(const struct gguf *g, const char *name, enum gguf_type element, const struct gguf_key **key_out,
                       bool *found_out, struct error *err);
/* The next string of an array of strings: *at starts as key->data, and stays inside (the parser walked it). */
struct gguf_text gguf_next_string(const uint8_t **at);
/* The i-th number of a value or an array of integers, sign-extended. false: of floats, or over int64. */
bool gguf_integer(const struct gguf_key *k, uint64_t i, int64_t *value_out);

/* ggml's name of a tensor type, or NULL. */
const char *gguf_tensor_type_name(uint32_t type);
bool gguf_text_is(struct gguf_text t, const char *text);

#ifdef __cplusplus
}
#endif
#endif
