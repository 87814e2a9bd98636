#ifndef LONGSPAN_WORKER_EXCHANGE_EXCHANGE_H
#define LONGSPAN_WORKER_EXCHANGE_EXCHANGE_H

/*
 * Messages between workers: queries, partials, sketches of a step, keyed so that each side knows what to expect from the plan; and blocks,
 * which come unasked. Transports stand behind one table: local (workers of one process) and ucx (shared memory, TCP). peer and nccl are ucx with links
 * between GPUs of one host beside it (gpu.h), for workers that have GPUs.
 *
 * One thread owns an exchange (the step thread) and makes all calls but exchange_abort. Everything that arrives is hostile: keys, lengths
 * and sources are checked; what cannot be is dropped, counted and logged once a peer.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/error.h"
#include "common/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { EXCHANGE_ADDRESS_MAX = 1024, EXCHANGE_PEERS_MAX = 64 };

/* counts, ranges, pairs, cuts: what owners and home tell each other before they choose (worker/select.h) */
enum exchange_phase {
    PHASE_SKETCH,
    PHASE_QUERY,
    PHASE_PARTIAL,
    PHASE_COUNTS,
    PHASE_RANGES,
    PHASE_PAIRS,
    PHASE_CUTS,
    PHASES
};

struct exchange_key {
    uint64_t epoch, plan;
    uint32_t group;
    uint16_t layer;
    uint8_t phase; /* enum exchange_phase */
    uint16_t peer; /* worker id: the destination of a send, the source of a receive */
};

struct exchange_peer {
    uint16_t id;
    const uint8_t *address; /* as address of its own exchange gave it */
    size_t address_bytes;
    struct digest token; /* that messages to it show: proto/token.h */
};

/* A block that arrived (kvstore's wire form, header included); data is borrowed for the call. Called from inside progress and waits. */
typedef void exchange_block_fn(void *ctx, uint16_t source, const uint8_t *data, size_t bytes);

struct exchange_config {
    uint16_t self;    /* worker id */
    const char *bind; /* ucx: the address to listen on (an interface is chosen by it), NULL: any; local: ignored */
    uint16_t port_first, port_last; /* ucx over tcp: 0, 0: any */
    const char *lanes;              /* ucx: "shm", "tcp" or NULL: the best that peers share */
    uint32_t spin_us;               /* before yielding, then arming and sleeping; 20 */
    size_t stash_bytes_max;         /* messages that come before they are asked for */
    size_t message_bytes_max;       /* of one received message (blocks included) */
    exchange_block_fn *on_block;
    void *ctx;
    void *hub;   /* local only: the exchange_hub that joins workers of one process */
    bool tokens; /* ucx: messages that show no token of ours are dropped */
    _Atomic int64_t
        *waits_since_ms; /* clock_ms() since when recv waits for its message; 0: it does not. Kept; may be NULL */
};

struct exchange_stats {
    uint64_t bytes_sent, bytes_received, messages_sent, messages_received;
    uint64_t dropped; /* messages of all causes: */
    uint64_t forged;  /* of these, without the right token */
    uint64_t wait_ns; /* in exchange_recv, not progressing anything else */
};

struct exchange;
struct exchange_gpu_ops;

struct exchange_ops {
    const char *name;
    /* How messages between GPUs of one host go, of a worker that has one: both ends agree on it, or they go through hosts. NULL: these are never of
       two processes, and nobody asks. */
    const struct exchange_gpu_ops *gpu;
    /* ucx: ST_INVALID, ST_IO if the address is on no interface that can be used. Any thread may open, one thread at a time use it. */
    enum status (*open)(const struct exchange_config *config, struct exchange **x_out, struct error *err);
    /* Delivers what was sent if peers take it soon (they are then told), at most about 0.7 s. Accepts NULL. */
    void (*close)(struct exchange *x);
    /* What peers need to reach this one. */
    size_t (*address)(const struct exchange *x, uint8_t address_out[EXCHANGE_ADDRESS_MAX]);
    /* Adds or replaces peers; those not named stay. Connects now or at the first send. Address bytes come from outside: ST_PROTOCOL if malformed. */
    enum status (*peers_set)(struct exchange *x, const struct exchange_peer *peers, size_t n, struct error *err);
    /*
     * The coordinator's verdict, or an error: forget its connection (force) and what it sent. It is told, if it can hear: its waits for this one end
     * with ST_PEER, too. peers_set brings it back, with the same address or another.
     */
    void (*peer_drop)(struct exchange *x, uint16_t id);
    /* Queues a message (total length known from the plan) and never waits. The bytes may be reused after it returns: they are copied. ST_PEER,
       ST_NO_MEMORY. */
    enum status (*send)(struct exchange *x, const struct exchange_key *key, const struct iovec *parts, size_t n_parts);
    /* Waits until the message with this key is here and copies it; its length must be bytes exactly (else ST_PROTOCOL). deadline_ns: clock_ns().
       ST_TIMEOUT, ST_PEER, ST_STALE (aborted). Messages for later keys are kept meanwhile. */
    enum status (*recv)(struct exchange *x, const struct exchange_key *key, void *data_out, size_t bytes,
                        int64_t deadline_ns);
    /* Whether recv would return at once. Progresses. */
    bool (*ready)(struct exchange *x, const struct exchange_key *key);
    /*
     * A block (kvstore's wire form) to a peer, in the background; queued until progress moves it. on_sent: its bytes may go (data must stay till then);
     * called once, from progress, a wait or close, if send_block returned ST_OK. ST_PEER: the peer failed; ST_OK says that they left, not that the
     * block was kept. Callbacks may send, but not wait.
     */
    enum status (*send_block)(struct exchange *x, uint16_t peer, const struct iovec *parts, size_t n_parts,
                              void (*on_sent)(void *ctx, enum status st), void *ctx);
    /* Moves what can move without waiting. */
    void (*progress)(struct exchange *x);
    /* Sleeps until something arrives, fd (>= 0) becomes readable or timeout_ms passed. Progresses. For the time between steps. */
    void (*sleep)(struct exchange *x, int fd, int timeout_ms);
    /* Forgets messages of a group's epochs below epoch, and refuses them from now on. */
    void (*fence)(struct exchange *x, uint32_t group, uint64_t epoch);
    /* Any thread: every wait of this group and of epochs up to epoch returns ST_STALE, now and later. */
    void (*abort)(struct exchange *x, uint32_t group, uint64_t epoch);
    void (*stats)(const struct exchange *x, struct exchange_stats *stats_out);
    /* "posix" (shared memory), "tcp", "local": the lane in use to a peer, for tests and status; "" if not connected. */
    const char *(*lane)(const struct exchange *x, uint16_t peer);
};

extern const struct exchange_ops exchange_local;
extern const struct exchange_ops exchange_ucx, exchange_peer_memory, exchange_nccl;
/* The worker id that it was opened with. */
uint16_t exchange_self(const struct exchange *x);
/* What tokens of messages to this one are made of: random, of this exchange alone. */
const uint8_t *exchange_secret(const struct exchange *x);
/*
 * Before peers_set: its peers, and no others, are of this roster (ascending), and their tokens too. Who was told of and is not of it is refused from now on,
 * unless it shows a token of a later one.
 */
void exchange_roster(struct exchange *x, uint64_t roster);

/* "local", "ucx", "peer", "nccl", or NULL */
const struct exchange_ops *exchange_find(const char *name);

/* Joins local exchanges of one process. */
struct exchange_hub;
struct exchange_hub *exchange_hub_new(void);
void exchange_hub_free(struct exchange_hub *hub); /* after all exchanges are closed */

#ifdef __cplusplus
}
#endif
#endif
