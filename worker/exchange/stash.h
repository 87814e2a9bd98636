#ifndef LONGSPAN_WORKER_EXCHANGE_STASH_H
#define LONGSPAN_WORKER_EXCHANGE_STASH_H

/*
 * Messages that came before they were asked for, by key; and spare message memory. One thread. Room is reserved before a message is in
 * (a rendezvous takes a while), so that what peers send is bounded at any moment.
 */

#include "worker/exchange/gate.h"
#include "worker/exchange/message.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { STASH_BUCKETS = 4096, STASH_CLASSES = 15, STASH_CLASS_MIN = 512, STASH_SPARE_MAX = 32 << 20 };

struct stash {
    struct message *buckets[STASH_BUCKETS];
    size_t bytes, bytes_max; /* reserved and kept */
    size_t n;
    uint64_t seed;
    struct message *spare[STASH_CLASSES]; /* of STASH_CLASS_MIN << i bytes */
    size_t spare_bytes;
};

void stash_init(struct stash *s, size_t bytes_max, uint64_t seed);
void stash_deinit(struct stash *s);

/* Counts a message of so many payload bytes against the bound; false: there is no room. Kept while the message is in the stash. */
bool stash_reserve(struct stash *s, size_t payload_bytes);
void stash_release(struct stash *s, size_t payload_bytes);

/* The message (taken; reserved by the caller) under its header's key. false: that key is there already, nothing is taken. */
bool stash_put(struct stash *s, struct message *m);
/* Takes it out and releases its room, or NULL. source: key->peer. */
struct message *stash_take(struct stash *s, const struct exchange_key *key);
bool stash_has(const struct stash *s, const struct exchange_key *key);
/* Frees what the predicate names. */
void stash_purge(struct stash *s, bool (*gone)(void *ctx, const struct message_header *h), void *ctx);

/* Memory for a message, and back; a cache of some sizes. NULL: no memory. */
struct message *stash_message_new(struct stash *s, size_t payload_bytes);
void stash_message_free(struct stash *s, struct message *m);

bool message_has_key(const struct message_header *h, const struct exchange_key *key);

#ifdef __cplusplus
}
#endif
#endif
