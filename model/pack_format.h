#ifndef LONGSPAN_MODEL_PACK_FORMAT_H
#define LONGSPAN_MODEL_PACK_FORMAT_H

/* What the writer and the reader of packs share. */

#include <jansson.h>

#include "common/hash.h"
#include "model/lossless.h"
#include "model/pack.h"
#include "model/source.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How the parts of a tensor in lossless-fast follow each other: offsets from its first byte, and its bytes. */
struct pack_parts {
    uint64_t records, starts, escapes, bytes; /* planes begin at 0 */
};
/* false: it does not fit 64 bits. */
bool pack_parts(uint32_t n_rows, uint32_t n_cols, uint32_t class_bits, uint64_t n_escapes,
                struct pack_parts *parts_out);

/* Likewise of df11: its code lengths begin at 0. */
struct pack_df11_parts {
    uint64_t signs, offsets, starts, stream, bytes;
};
bool pack_df11_parts(uint32_t n_rows, uint32_t n_cols, uint64_t stream_bytes, struct pack_df11_parts *parts_out);

/* The digest of a header: of its canonical text without the key "checksum". */
struct digest pack_header_digest(const json_t *header);
/* 32 hexadecimal digits; false: they are not. */
bool pack_digest_parse(const char *text, struct digest *digest_out);

/* Reads header and files into an empty model and finishes it. where: of the header, for errors. */
enum status pack_fill(struct model *m, const struct pack_bytes *bytes, const char *where, struct error *err);

/* The name of the source and the weights of the pack in a directory; ST_NOT_FOUND: there is none. buffers of 128 bytes */
enum status pack_identify(const char *directory, char *source_out, char *weights_out, struct error *err);

/* pack.json without tensors and checksum, and vocabulary.bin (malloc'd) of a model. NULL: no memory. */
json_t *pack_describe(const struct model *m, enum pack_weights weights, uint8_t **vocabulary_out,
                      size_t *vocabulary_bytes_out);

#ifdef __cplusplus
}
#endif
#endif
