#ifndef LONGSPAN_KVSTORE_DISK_FOLDER_H
#define LONGSPAN_KVSTORE_DISK_FOLDER_H

/* Inside kvstore: the disk tier's folder and its files. Others use disk.h. */

#include "kvstore/disk.h"

#ifdef __cplusplus
extern "C" {
#endif

struct kv_folder {
    int fd, lock; /* -1: not open */
    char path[1100];
    struct kv_disk_io io;
    struct digest fingerprint;
    uint64_t file_bytes_max;
};

/* A file that is what it should be, as far as its header says. */
struct kv_folder_file {
    struct digest id;
    uint32_t position;
    uint64_t bytes;
    int64_t used_ns; /* when it was used last */
};

enum status kv_folder_open(const struct kv_disk_config *config, struct kv_folder *folder, struct error *err);
void kv_folder_close(struct kv_folder *folder);
/*
 * What is there, used longest ago first; files_out: malloc'd. What is named like a block's file and is not sound, and what was not written to its end, is removed.
 * refused_out: how many of the former. ST_IO, ST_NO_MEMORY.
 */
enum status kv_folder_scan(const struct kv_folder *folder, struct kv_folder_file **files_out, uint32_t *n_out,
                           uint32_t *refused_out, struct error *err);
/* The file is there whole, or not at all. ST_IO. */
enum status kv_folder_write(const struct kv_folder *folder, const struct digest *id, const uint8_t *file, size_t bytes,
                            struct error *err);
/* A whole file, checked; file_out: malloc'd. ST_NOT_FOUND, ST_IO, ST_CORRUPT, ST_NO_MEMORY. */
enum status kv_folder_read(const struct kv_folder *folder, const struct digest *id, uint8_t **file_out,
                           size_t *bytes_out, uint32_t *position_out, struct error *err);
void kv_folder_remove(const struct kv_folder *folder, const struct digest *id);

#ifdef __cplusplus
}
#endif
#endif
