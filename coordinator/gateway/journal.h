#ifndef LONGSPAN_COORDINATOR_GATEWAY_JOURNAL_H
#define LONGSPAN_COORDINATOR_GATEWAY_JOURNAL_H

/*
 * What was generated for one request so far, in a file that only grows: token, log-probability and alternatives, by choice. Who takes the request up again
 * after a crash goes on behind it. Not synced: what a crash of the machine takes is generated again, from the same seed. The disk's time is not the loop's: calls
 * with a path are made beside it.
 */

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/hash.h"
#include "coordinator/gateway/generation.h"
#include "common/text.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { JOURNAL_BYTES_MAX = 256 << 20 };

struct journal {
    struct generation_told told[WANT_CHOICES_MAX];
    uint32_t n;   /* choices of which there is something */
    size_t bytes; /* of the file that were good: a torn end is not */
    struct result_row *rows;
    struct result_top *tops;
};

/* A new file's first bytes. context: all that decides what a token means and how it comes (model, precision, ...). */
void journal_begin(const struct digest *context, struct text *out);
/* Tokens from .. n_sampled - 1 of g. */
void journal_add(const struct generation *g, size_t from, struct text *out);
/*
 * Anything may stand in data. The last token of each choice is left out: it may have been the one that ended it, and is generated again. ST_CORRUPT: no journal of
 * that context; a record that is torn or wrong ends it. ST_NO_MEMORY.
 */
enum status journal_read(const void *data, size_t bytes, const struct digest *context, struct journal **journal_out);
void journal_free(struct journal *j);

/* Reads the file and cuts its torn end off; ST_NOT_FOUND, ST_CORRUPT: there is none to go on with, and a new one is begun. */
enum status journal_open(const char *path, const struct digest *context, struct journal **journal_out);
/* All of it, or, where there is no room, none. ST_IO: err names the file. */
enum status journal_append(const char *path, const void *data, size_t bytes, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
