#ifndef LONGSPAN_COMMON_FILE_H
#define LONGSPAN_COMMON_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A file mapped read-only. bytes may be 0, then data is NULL. */
struct file_map {
    const uint8_t *data;
    size_t bytes;
};

/* Errors: ST_NOT_FOUND, ST_IO; err names the path. */
enum status file_map_open(const char *path, struct file_map *map_out, struct error *err);
void file_map_close(struct file_map *map);

/* Reads a whole file of at most bytes_max bytes; the result is NUL-terminated (not counted) and the caller's to free(). */
enum status file_read(const char *path, size_t bytes_max, char **text_out, size_t *bytes_out, struct error *err);
/* Writes path.tmp, syncs, renames: the file is either the old or the new. */
enum status file_write_atomic(const char *path, const void *data, size_t bytes, struct error *err);
/* mkdir -p, mode 0700 for what it makes. */
enum status file_mkdirs(const char *path, struct error *err);
/* rm -r; does not follow links, and goes on past what cannot be removed. Errors: ST_NOT_FOUND, ST_IO. */
enum status file_remove_tree(const char *path, struct error *err);
int file_exists(const char *path);
int file_is_dir(const char *path);

#ifdef __cplusplus
}
#endif
#endif
