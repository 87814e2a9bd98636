#ifndef LONGSPAN_COORDINATOR_JOBS_BLOBS_H
#define LONGSPAN_COORDINATOR_JOBS_BLOBS_H

/*
 * What is too large for the registry: prompts and outputs of jobs, one file each in a directory, "ID-DIGEST". Written beside, synced and renamed, so that a
 * file is whole or not there; read with its digest checked. They take the disk's time: not on the loop.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

/* id: letters, digits and '-'. When it returns ST_OK the blob outlives a crash of the machine. digest_out: 32 hex digits. ST_IO: err names the file. */
enum status blob_write(const char *dir, const char *id, const void *data, size_t bytes, char digest_out[33],
                       struct error *err);
/* data_out: malloc'd, NUL-terminated (not counted). ST_NOT_FOUND, ST_IO, ST_CORRUPT (it has other bytes than its name says). */
enum status blob_read(const char *dir, const char *id, const char *digest, uint64_t bytes, char **data_out,
                      struct error *err);
/* One that is not there is removed already. */
void blob_remove(const char *dir, const char *id, const char *digest);
void blob_name(const char *id, const char *digest, char name_out[128]);
/* Removes every file that wanted says no to, unfinished ones too. -> how many */
size_t blobs_sweep(const char *dir, bool (*wanted)(void *ctx, const char *name), void *ctx);

#ifdef __cplusplus
}
#endif
#endif
