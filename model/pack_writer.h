#ifndef LONGSPAN_MODEL_PACK_WRITER_H
#define LONGSPAN_MODEL_PACK_WRITER_H

/* What the writing of a pack's files (pack_write.c) and of its tensors (pack_tensor.c) share. */

#include <stdio.h>

#include "model/pack_format.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { PACK_PATH_BYTES = 4096 };

/*
 * An attempt. Tensors are written one after the other; what has reached the disk is entered in the journal, a line each, so that an attempt that
 * follows begins behind the last line whose bytes are what it says.
 */
struct pack {
    const struct model *m;
    const struct pack_options *options;
    char out[PACK_PATH_BYTES - 16], partial[PACK_PATH_BYTES - 16];
    int lock;             /* the directory, held under flock */
    int weights;          /* weights.bin */
    FILE *journal;        /* appended to */
    json_t *header;       /* pack.json without tensors */
    json_t *tensors;      /* entries that are done */
    size_t n_entered;     /* of these, in the journal */
    uint64_t at, synced;  /* bytes of weights.bin written, and known to be on the disk */
    uint64_t done, total; /* weights, for progress */
    uint8_t *vocabulary;
    size_t vocabulary_bytes;
    struct hasher *hasher; /* of the tensor that is being written */
    uint8_t *buffer;       /* [BUFFER_BYTES] not yet written */
    size_t buffered;
    struct error *err;
};

/* Bytes of weights.bin. data NULL: zeros, which belong to no tensor's checksum if hasher is NULL */
enum status pack_put(struct pack *p, const void *data, size_t bytes);
/* Zeros up to an offset. */
enum status pack_put_to(struct pack *p, uint64_t offset);
enum status pack_no_memory(struct pack *p);
/* Writes one tensor as the options have it, and enters it in p->tensors. */
enum status pack_write_tensor(struct pack *p, const struct model_tensor *t);

#ifdef __cplusplus
}
#endif
#endif
