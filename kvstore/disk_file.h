#ifndef LONGSPAN_KVSTORE_DISK_FILE_H
#define LONGSPAN_KVSTORE_DISK_FILE_H

/*
 * A KV block as a file of the disk tier (kvstore/disk.h). Header, little endian: u32 magic, u32 version, u8[16] fingerprint of what blocks are made with,
 * u8[16] content id, u32 position of its first row / 64, u32 zero, u64 bytes behind the header, u64 checksum64 of these, u64 checksum64 of the header before
 * it. Then the contents: a block's wire form and its sketches', which have sums of their own.
 */

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { KV_DISK_HEADER = 72 };

/* Fills in the header before contents that are there: file [bytes], bytes > KV_DISK_HEADER. */
void kv_disk_file_seal(uint8_t *file, size_t bytes, const struct digest *fingerprint, const struct digest *id,
                       uint32_t position);
/*
 * Is the header [KV_DISK_HEADER] that of a file of so many bytes, with this fingerprint and id? ST_CORRUPT: err says what is not so. The contents are not looked at.
 */
enum status kv_disk_header_check(const uint8_t *header, uint64_t file_bytes, const struct digest *fingerprint,
                                 const struct digest *id, uint32_t *position_out, struct error *err);
/* The same of a whole file, contents too. */
enum status kv_disk_file_check(const uint8_t *file, size_t bytes, const struct digest *fingerprint,
                               const struct digest *id, uint32_t *position_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
