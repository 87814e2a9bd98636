#ifndef LONGSPAN_KVSTORE_DISK_H
#define LONGSPAN_KVSTORE_DISK_H

/*
 * The disk tier: sealed blocks by content id, a file each (kvstore/disk_file.h), in a folder that one process has at a time; what was used least recently goes
 * when the bound is reached. A thread of its own reads and writes, so nobody who calls waits for a disk. What cannot be written, read or believed is counted,
 * logged once in a while, and forgotten: a tier that fails holds nothing, and is never wrong. Files are not synced: what a crash of the machine tears is
 * found by its sums.
 *
 * All functions may be called by any thread; kv_disk_close once all others have returned.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"
#include "common/hash.h"
#include "kvstore/disk_file.h"

#ifdef __cplusplus
extern "C" {
#endif

struct kv_disk;

/* How files are written and read: as read(2) and write(2). Tests bring their own. */
struct kv_disk_io {
    ssize_t (*write)(int fd, const void *data, size_t bytes);
    ssize_t (*read)(int fd, void *data, size_t bytes);
};

struct kv_disk_config {
    const char *
        dir; /* made where it is not there; the first of its sub-folders 0 .. KV_DISK_FOLDERS - 1 that no process has is taken and locked */
    uint64_t bytes_max; /* of files, each rounded up to 4096 */
    uint64_t
        queue_bytes_max; /* that wait to be written, or were read and not taken yet; what comes beyond is not written. 0: 64 MiB */
    size_t contents_bytes_max;   /* of a block; longer files are refused */
    struct digest fingerprint;   /* of all that decides what files mean; files of another are removed */
    const struct kv_disk_io *io; /* kept; NULL: the system's */
    void (*on_event)(void *ctx); /* on the tier's thread: kv_disk_next has something. May be NULL */
    void *ctx;
};
enum { KV_DISK_FOLDERS = 64 };

/*
 * Takes a folder, looks what is in it, starts the thread. Files of blocks that are not sound, or of others' fingerprints, are removed and counted as refused; what is
 * not named like a block's file stays as it is. ST_IO, ST_BUSY (other processes have all folders), ST_INVALID: err names the path.
 */
enum status kv_disk_open(const struct kv_disk_config *config, struct kv_disk **disk_out, struct error *err);
/* What waits is written first, for a few seconds at most. NULL: nothing. */
void kv_disk_close(struct kv_disk *disk);

/*
 * Would a block of so many bytes be written? ST_EXISTS: it is there, and counts as used; ST_BUSY: too many wait (counted as dropped); ST_TOO_LARGE.
 * wait_ms: for so long until fewer wait; KV_DISK_AHEAD: it is in no hurry, so half of the queue is kept for others, it is not counted as dropped, nor as used.
 */
enum { KV_DISK_AHEAD = -1 };
enum status kv_disk_wants(struct kv_disk *disk, const struct digest *id, size_t contents_bytes, int32_t wait_ms);
/* Writes it. file: malloc'd, taken; its contents lie behind KV_DISK_HEADER bytes, which are filled in here. bytes: all of it. */
void kv_disk_put(struct kv_disk *disk, const struct digest *id, uint32_t position, uint8_t *file, size_t bytes);
/*
 * Reads it: an event of this tag says what came of it. ST_NOT_FOUND: it is not there. ST_BUSY: too many are asked for.
 */
enum status kv_disk_get(struct kv_disk *disk, const struct digest *id, uint64_t tag);
/* What was read of it was no block after all: it goes, and counts as refused. */
void kv_disk_refuse(struct kv_disk *disk, const struct digest *id);

enum kv_disk_event_kind {
    KV_DISK_STORED, /* it can be read from now on */
    KV_DISK_GONE,   /* and now no more */
    KV_DISK_READ,
};
struct kv_disk_event {
    enum kv_disk_event_kind kind;
    struct digest id;
    uint32_t position;
    uint64_t tag; /* READ */
    enum status status;
    uint8_t *file; /* READ that is ST_OK: the caller's to free(); contents behind KV_DISK_HEADER bytes */
    size_t bytes;
};
/* The next event, in order. false: there is none. */
bool kv_disk_next(struct kv_disk *disk, struct kv_disk_event *event_out);
/* Nobody waits any more for what was asked for. */
void kv_disk_cancel(struct kv_disk *disk);

struct kv_disk_block {
    struct digest id;
    uint32_t position;
};
/* All that can be read; events STORED and GONE from before are dropped. blocks_out: malloc'd. ST_NO_MEMORY. */
enum status kv_disk_list(struct kv_disk *disk, struct kv_disk_block **blocks_out, uint32_t *n_out);

struct kv_disk_stats {
    uint64_t blocks, bytes;
    uint64_t written, read; /* blocks, since it was opened */
    uint64_t evicted;       /* for room */
    uint64_t dropped;       /* not written: too many waited */
    uint64_t failed;        /* reads and writes that did not succeed */
    uint64_t refused;       /* files that were not what they should be */
};
void kv_disk_stats(struct kv_disk *disk, struct kv_disk_stats *stats_out);
/* The folder that was taken. */
const char *kv_disk_folder(const struct kv_disk *disk);

#ifdef __cplusplus
}
#endif
#endif
