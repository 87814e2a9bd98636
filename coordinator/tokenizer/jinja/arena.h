#ifndef LONGSPAN_COORDINATOR_TOKENIZER_JINJA_ARENA_H
#define LONGSPAN_COORDINATOR_TOKENIZER_JINJA_ARENA_H

/* Memory that is freed whole, up to a limit. */

#include <stddef.h>

#include "common/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct jinja_arena_block;

/* Zero-initialised with bytes_max set. */
struct jinja_arena {
    struct jinja_arena_block *blocks;
    size_t left;
    size_t bytes, bytes_max;
    enum status st; /* why the last call gave NULL: ST_TOO_LARGE or ST_NO_MEMORY */
};

/* n * bytes zeroed bytes, aligned for anything; NULL: over the limit, or there is no memory. */
void *jinja_alloc(struct jinja_arena *a, size_t n, size_t bytes);
void jinja_arena_deinit(struct jinja_arena *a);
/* Frees what is taken out of an arena by copying its `blocks`. */
void jinja_blocks_free(struct jinja_arena_block *blocks);

#ifdef __cplusplus
}
#endif
#endif
