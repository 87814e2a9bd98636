#ifndef LONGSPAN_COORDINATOR_REGISTRY_EMBEDDED_STORE_H
#define LONGSPAN_COORDINATOR_REGISTRY_EMBEDDED_STORE_H

/*
 * The file of the embedded registry: an SQLite database in WAL mode with synchronous=FULL, so that what was acknowledged survives a crash of the
 * process and of the machine. One thread uses it. Leases are the caller's; here a lease is a number at a key.
 */

#include "coordinator/registry/registry.h"

#ifdef __cplusplus
extern "C" {
#endif

struct store;

/* Items of one answer, one allocation each; freed by store_items_free. */
struct store_items {
    struct registry_item *items;
    size_t n, room;
};

enum status store_open(const char *path, struct store **store_out, struct error *err);
void store_close(struct store *s);

/*
 * One transaction each. changed: keys written or removed, with their new revisions. ST_STALE: the comparison failed, and found holds the key as
 * it is. Errors: ST_IO, ST_CORRUPT, ST_NO_MEMORY; err has SQLite's words.
 */
enum status store_put(struct store *s, const struct registry_put *put, uint64_t *revision_out,
                      struct store_items *found, struct error *err);
enum status store_remove(struct store *s, const char *key, enum registry_compare compare, uint64_t at,
                         uint64_t *revision_out, bool *removed_out, struct store_items *found, struct error *err);
/* Removes the keys of one lease, or of all leases (lease 0). removed: their keys, with the revision of the removal. */
enum status store_remove_lease(struct store *s, uint64_t lease, struct store_items *removed, struct error *err);
/* A number never given before: for leases. */
enum status store_number(struct store *s, uint64_t *number_out, struct error *err);
enum status store_list(struct store *s, const char *prefix, bool exact, struct store_items *found,
                       uint64_t *revision_out, struct error *err);

bool store_items_add(struct store_items *items, const struct registry_item *item);
void store_items_free(struct store_items *items);

#ifdef __cplusplus
}
#endif
#endif
