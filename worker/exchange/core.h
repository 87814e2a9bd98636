#ifndef LONGSPAN_WORKER_EXCHANGE_CORE_H
#define LONGSPAN_WORKER_EXCHANGE_CORE_H

/*
 * What every transport shares: peers, arrival, waiting. A transport embeds struct exchange as its first member, moves bytes, and reports
 * what arrived; the rest of exchange.h is done here.
 */

#include "proto/token.h"
#include "worker/exchange/gate.h"
#include "worker/exchange/message.h"
#include "worker/exchange/stash.h"

#ifdef __cplusplus
extern "C" {
#endif

/* HEARD: it has our address and sends, but we were not told of it yet (the roster reaches workers at different moments). */
enum peer_state { PEER_HEARD, PEER_UP, PEER_DOWN };

struct peer {
    uint16_t id;
    enum peer_state state;
    uint64_t instance;
    /*
     * One side may drop the other and be told of it again, and the other never notice the first, yet its connection is dead. So links are numbered:
     * who connects anew counts on and says hello; who hears of a higher number connects anew, too, and takes it over.
     */
    uint32_t link, relink;    /* relink != 0: to be connected anew, by the transport's progress */
    bool forgotten;           /* down by exchange_peer_forget: only exchange_peer_put brings it back */
    uint64_t dropped;         /* messages of it that were not kept */
    struct message *assembly; /* a block that is coming in pieces; away while a piece is being written */
    uint64_t assembly_number, assembly_have;
    uint64_t block_number; /* of the last block sent to it */
    struct digest token;   /* that messages to it show */
    uint64_t named;        /* the last roster that it was of */
    struct digest seen;    /* the token that it showed last, */
    uint64_t seen_roster;  /* and its roster; 0: none yet */
};

struct transport {
    /* Moves what can move; how many things did. May call exchange_*arrived. Never waits. */
    unsigned (*progress)(struct exchange *x);
    /*
     * The owner is about to sleep on fd: for how long at most (ns), since not all that a transport waits for wakes it. 0: something came meanwhile,
     * do not sleep.
     */
    int64_t (*arm)(struct exchange *x);
    int fd; /* -1: the waker alone */
};

/* A call back that waits to be made outside the transport's own code. */
struct sent {
    struct sent *next;
    void (*fn)(void *ctx, enum status st);
    void *ctx;
    enum status st;
};

struct exchange {
    struct exchange_config config;
    struct transport transport;
    uint64_t instance; /* random, != 0 */
    uint8_t secret[TOKEN_SECRET_BYTES];
    uint64_t roster; /* the last that we were told */
    struct gate gate;
    struct waker *waker; /* owned by the transport */
    struct stash stash;
    struct peer peers[EXCHANGE_PEERS_MAX];
    size_t n_peers;
    struct {
        bool active, done;
        enum status st;
        struct exchange_key key;
        void *data_out;
        size_t bytes;
    } wait;
    struct message *blocks, **blocks_end; /* whole ones, for on_block */
    struct sent *sent, **sent_end;        /* for on_sent */
    bool calling_back;
    uint64_t strangers; /* dropped messages that name no peer */
    unsigned busy_arms; /* refused in a row */
    struct exchange_stats stats;
};

/* config is copied, with its defaults filled in. */
enum status exchange_init(struct exchange *x, const struct exchange_config *config, const struct transport *transport,
                          struct waker *waker, struct error *err);
void exchange_deinit(struct exchange *x);

/* NULL: never heard of. */
struct peer *exchange_peer(struct exchange *x, uint16_t id);
/*
 * The entry for a peer at this address (a new one, or that of its id), PEER_UP, what an earlier life of it sent forgotten; NULL: too many.
 * The transport has ended its connection to the earlier life before. Entries do not move. If its link is over 1, say hello.
 */
struct peer *exchange_peer_put(struct exchange *x, uint16_t id, uint64_t instance);
/* Reads the address of a peer to be set, and checks that it is that peer's. ST_PROTOCOL. */
enum status exchange_peer_address(const struct exchange *x, const struct exchange_peer *peer,
                                  struct peer_address *a_out, struct error *err);
/* The transport connects it anew now, as p->relink asks. */
void exchange_peer_relink(struct peer *p);
/* The peer failed: waits for it end. Its messages that are here stay. Logged once with the cause; in_order: it said
   that it goes, which is no cause for a warning. */
void exchange_peer_down(struct exchange *x, struct peer *p, const char *why, bool in_order);
/* And what it sent is forgotten. */
void exchange_peer_forget(struct exchange *x, struct peer *p);

/* It was named: with this token, in the roster of now. After exchange_peer_put. */
void exchange_peer_named(struct exchange *x, struct peer *p, const struct exchange_peer *peer);

/* ---- arrival: header_read, then genuine, then admit, then one of the arrived ---- */

/* Whether the message shows the right token, if tokens are asked for, and its bytes are those that were sent. Nothing else of it was looked at before.
   Counts and logs a refusal. */
bool exchange_genuine(struct exchange *x, const struct message_header *h, const void *payload);

/* Whether the message is wanted: not if of an epoch that is over, of a wrong life, too long, unawaited without room. Counts and logs a refusal. */
bool exchange_admit(struct exchange *x, const struct message_header *h);
/* Counts a message that made no sense. source: as it claims, or UINT16_MAX. */
void exchange_garbage(struct exchange *x, uint16_t source, const char *why);
/* An admitted message whose bytes are borrowed. */
void exchange_arrived(struct exchange *x, const struct message_header *h, const void *payload);
/* An admitted one with a header, in memory of stash_message_new; taken. MESSAGE_BLOCK: whole. */
void exchange_arrived_message(struct exchange *x, struct message *m);
/* If recv waits for this message: its answer, and the wait is over. The bytes are copied, the reservation stays the caller's. */
bool exchange_answer(struct exchange *x, const struct message_header *h, const void *payload);
/* An admitted one whose bytes never came. */
void exchange_lost(struct exchange *x, const struct message_header *h);
/*
 * An admitted piece of a block: the block that it goes to, at payload + offset, or NULL (counted: it does not follow the piece before). The block is
 * the caller's until it gives it back, with ok if the piece's bytes are there.
 */
struct message *exchange_piece_begin(struct exchange *x, const struct message_header *h);
void exchange_piece_end(struct exchange *x, const struct message_header *h, struct message *m, bool ok);

/* An admitted BYE: whether it ends the link of now. */
bool exchange_bye_counts(struct exchange *x, const struct message_header *h);

/* Calls fn(ctx, st) soon, from progress. No memory: calls it now. */
void exchange_sent_later(struct exchange *x, void (*fn)(void *ctx, enum status st), void *ctx, enum status st);

/* Fills in all but kind-specific fields of a header to a peer. */
struct message_header exchange_header(const struct exchange *x, const struct peer *to, enum message_kind kind,
                                      size_t payload_bytes);
struct message_header exchange_step_header(const struct exchange *x, const struct peer *to,
                                           const struct exchange_key *key, size_t payload_bytes);
bool iovec_bytes(const struct iovec *parts, size_t n_parts, size_t *bytes_out);
void iovec_gather(const struct iovec *parts, size_t n_parts, uint8_t *out);

/* ---- operations of the table ---- */

unsigned exchange_progress_all(struct exchange *x);
void exchange_progress(struct exchange *x);
enum status exchange_recv(struct exchange *x, const struct exchange_key *key, void *data_out, size_t bytes,
                          int64_t deadline_ns);
bool exchange_ready(struct exchange *x, const struct exchange_key *key);
void exchange_sleep(struct exchange *x, int fd, int timeout_ms);
void exchange_fence(struct exchange *x, uint32_t group, uint64_t epoch);
void exchange_abort(struct exchange *x, uint32_t group, uint64_t epoch);
void exchange_stats(const struct exchange *x, struct exchange_stats *stats_out);

#ifdef __cplusplus
}
#endif
#endif
