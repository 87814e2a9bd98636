#ifndef LONGSPAN_MODEL_CALIBRATION_H
#define LONGSPAN_MODEL_CALIBRATION_H

/*
 * A calibration: what a method learned from a model's activations over some text, as named arrays, with what it was learned from. One file, little endian:
 *
 *   "LSCALIB\n", u32 version, u32 header_bytes, digest [16] of all that follows
 *   header (JSON): {"codec", "method", "model", "text", "weights", "tokens", "sequence", "seed", "arrays": [{"name", "type", "shape": [..]}, ..]}
 *   each array at the next multiple of 64 bytes of the file, zeros between
 *
 * Those that calibrate makes have an array more, tokens i32 [sequences][length]: what they were learned from.
 *
 * Calibrations of a model lie in MODEL/calibration/<codec>-<first 16 digits of the digest>; MODEL is a directory, or the one a GGUF file lies in. Files are
 * hostile until checked: refusals name file and field; numbers are finite.
 */

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CALIBRATION_VERSION = 1, CALIBRATION_DIMS_MAX = 6, CALIBRATION_ARRAYS_MAX = 64, CALIBRATION_PATH = 1200 };

/* What it was learned from. Texts are "" where there is nothing to say. */
struct calibration_origin {
    char codec[32];  /* whose it is, by the codec's or selector's name; "weights": those of tokens, for others to use */
    char method[64]; /* how: "kmeans", "attention", "fisher" ... */
    char model[33];  /* digest of the model */
    char text[33];   /* digest of the token ids */
    char weights[33];  /* digest of the file of weights that were used */
    uint64_t tokens;   /* how many vectors each codebook was learned from */
    uint32_t sequence; /* tokens of a sequence */
    uint64_t seed;
};

enum calibration_type { CALIBRATION_F32, CALIBRATION_BF16, CALIBRATION_U8, CALIBRATION_I32, CALIBRATION_TYPES };

/* Say [n_layers][n_kv_heads][groups][centroids][channels]. The first dimension changes slowest. */
struct calibration_array {
    char name[32];
    enum calibration_type type;
    uint32_t n_dims, dims[CALIBRATION_DIMS_MAX]; /* each 1 or more */
    const void *data;
};

/*
 * Writes the file, whole or not at all. path: where; or NULL and directory: <codec>-<digest> in there (made if it is absent), which path_out
 * [CALIBRATION_PATH] tells. digest_out, path_out may be NULL. ST_INVALID, ST_TOO_LARGE, ST_IO, ST_NO_MEMORY.
 */
enum status calibration_write(const char *path, const char *directory, const struct calibration_origin *origin,
                              const struct calibration_array *arrays, uint32_t n_arrays, struct digest *digest_out,
                              char *path_out, struct error *err);

struct calibration;
/* Checks everything. ST_NOT_FOUND, ST_IO, ST_CORRUPT, ST_UNSUPPORTED (another version), ST_NO_MEMORY. */
enum status calibration_open(const char *path, struct calibration **calibration_out, struct error *err);
/* The same of bytes at a multiple of 64, which must outlive it. where: for errors */
enum status calibration_open_bytes(const void *data, size_t bytes, const char *where,
                                   struct calibration **calibration_out, struct error *err);
void calibration_close(struct calibration *c);

const struct calibration_origin *calibration_origin(const struct calibration *c);
const struct digest *calibration_digest(const struct calibration *c);
/*
 * The data of an array, 64-byte aligned, borrowed. ST_NOT_FOUND: there is none of this name; ST_INVALID: it has another type or shape (dims [n_dims]; 0: any,
 * and dims_out [n_dims], which may be NULL, tells what it is).
 */
enum status calibration_array(const struct calibration *c, const char *name, enum calibration_type type,
                              uint32_t n_dims, const uint32_t *dims, uint32_t *dims_out, const void **data_out,
                              struct error *err);

/* The directory that calibrations of a model lie in: directory_out [CALIBRATION_PATH]. ST_INVALID: the spec names no files (random:, constructed:). */
enum status calibration_directory(const char *model_spec, char *directory_out, struct error *err);
/*
 * The one calibration of a codec for this model in its directory: path_out [CALIBRATION_PATH]. ST_NOT_FOUND: there is none, err says which command makes it;
 * ST_INVALID: there are several, err names two.
 */
enum status calibration_find(const char *model_spec, const char *codec, const struct digest *model, char *path_out,
                             struct error *err);

struct calibration_wanted {
    const char *model_spec;
    const char *path;    /* of the file; NULL or "": the one in the model's directory */
    const char *codec;   /* whose */
    struct digest model; /* of which model */
    const char *digest;  /* the calibration's, 32 digits; NULL or "": any */
    const char *flag;    /* what its name is a value of, for messages: "selector"; NULL: "kv-codec" */
};
/* Finds, opens and compares. Errors of calibration_find and calibration_open; ST_INVALID: it is one of another codec, model or digest. */
enum status calibration_open_wanted(const struct calibration_wanted *wanted, struct calibration **calibration_out,
                                    struct error *err);

#ifdef __cplusplus
}
#endif
#endif
