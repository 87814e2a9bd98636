#ifndef LONGSPAN_PROTO_CONTROL_H
#define LONGSPAN_PROTO_CONTROL_H

/*
 * The control stream: one bidirectional gRPC call ("/longspan.v1.Control/Attach") from each worker to the coordinator. Order: hello up,
 * welcome down, progress up while the model loads, inventory and ready up; then members, plans, copies down and results, copied up; heartbeats both ways.
 * Plain structs here; protobuf (control.proto) on the wire. Decoded messages are one allocation, freed by free().
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "proto/plan.h"
#include "proto/token.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CONTROL_VERSION = 7, CONTROL_BLOCKS_MAX = 4096 };

/* With this UNAVAILABLE a coordinator ends its streams in order. */
#define CONTROL_STOPS "the coordinator stops"

enum control_kind {
    /* worker to coordinator */
    CONTROL_HELLO,
    CONTROL_PROGRESS,
    CONTROL_READY,
    CONTROL_HEARTBEAT,
    CONTROL_RESULT,
    CONTROL_ABORT,
    CONTROL_COPIED,
    /* coordinator to worker */
    CONTROL_WELCOME,
    CONTROL_MEMBERS,
    CONTROL_PLAN,
    CONTROL_FENCE,
    CONTROL_COPY,
    CONTROL_STOP,
    CONTROL_INVENTORY, /* up */
    CONTROL_NAMES,     /* down */
    CONTROL_STORED,    /* up, after ready */
    CONTROL_GONE,      /* up */
};

struct control_hello {
    uint32_t version; /* CONTROL_VERSION */
    uint32_t pid;
    const char *host;
    const char *device;    /* "cpu", "cuda:0" */
    const char *transport; /* "ucx", "local" */
    uint32_t n_threads;
    uint64_t term; /* the highest of a coordinator that it has obeyed; 0: none */
};

/* What the worker is to serve. */
struct control_welcome {
    uint16_t worker_id;
    const char *model;       /* spec for model_open */
    const char *precision;   /* "bf16", "float32" */
    const char *kv_codec;    /* kv_codec_find */
    const char *calibration; /* its calibration's digest, in hexadecimal; "": it needs none */
    const char *selector;    /* "dense" */
    uint32_t positions_max;  /* longest context served */
    uint32_t step_rows_max;
    uint32_t heartbeat_ms;
    uint32_t silence_ms; /* a side that hears nothing for so long gives the other up */
    uint64_t
        term; /* of this coordinator: ascends from leader to leader. A worker refuses a lower one than it has seen */
};

struct control_progress {
    float fraction; /* of loading */
};

struct control_ready {
    const char *fingerprint; /* ISA, variant table, build constants: equal ones give equal bits */
    uint8_t model_digest[16];
    uint32_t leaf_blocks;
    uint32_t n_blocks; /* pool */
    uint64_t block_bytes;
    uint32_t open_blocks; /* places for blocks whose rows are not sealed and committed; 0: as many as the pool has */
    uint64_t weight_bytes, pool_bytes;
    const uint8_t *address; /* exchange address */
    uint32_t address_bytes;
    uint8_t secret[TOKEN_SECRET_BYTES]; /* of its exchange: proto/token.h */
};

struct control_heartbeat {
    uint64_t sequence; /* ascends by 1 */
    uint64_t plans_done;
    uint32_t blocks_used;
    uint64_t resident_bytes, sketch_bytes;
    uint64_t bytes_sent, bytes_received; /* exchange, since start */
    uint64_t work;                       /* changes while a step computes, not while it waits for a peer */
    uint64_t dropped;                    /* messages of peers that were refused */
    bool leaving;                        /* it was told to end: nothing new, and stop when it is not needed any more */
    uint32_t waits_ms; /* for how long its step has waited for one message of a peer; 0: it does not */
    struct control_disk {
        uint64_t blocks, bytes, written, read, evicted, dropped, failed, refused;
    } disk; /* as kv_disk_stats; zeros: it has no disk tier */
};

/* The worker gave up this epoch of the group; peer: the worker it blames, or UINT16_MAX. */
struct control_abort {
    uint32_t group;
    uint64_t epoch, plan;
    uint16_t peer;
    const char *reason;
};

/* The block is here now (or is not: status): sent by the destination of a copy. */
struct control_copied {
    kv_handle handle;
    uint16_t source;
    int32_t status; /* enum status */
};

struct control_member {
    uint16_t id;
    const uint8_t *address;
    uint32_t address_bytes;
    struct digest token; /* of messages from the receiver of this list to the member */
};
/* Peers a worker may exchange with; replaces the list before. */
struct control_members {
    uint32_t n_members;
    const struct control_member *members;
    uint64_t roster; /* ascends from list to list */
};

/* Plans of the group with a lower epoch are refused from now on; what runs of them is abandoned. */
struct control_fence {
    uint32_t group;
    uint64_t epoch;
};

/*
 * Send a sealed block to a peer, after all plans received before this message have run. destination: the receiver itself: it reads the block of this id from its
 * disk, under this handle, and says copied as if it had come from itself.
 */
struct control_copy {
    kv_handle handle;
    uint16_t destination;
    uint32_t position; /* number of the block in its sequence */
    uint8_t id[16];    /* content id */
};

/* A sealed and committed block. */
struct control_block {
    kv_handle handle;
    uint32_t position; /* number of the block in its sequence */
    uint8_t id[16];    /* content id */
};
/*
 * names: what blocks of this worker are, so that it can say so to a coordinator that comes after this one. inventory: what it still holds of such, in as many
 * messages as it takes, before ready; epoch: no plan of a higher one has come. stored: blocks that its disk has, all of them after ready, later what is new; gone: it
 * has them no more; handles of both are 0.
 */
struct control_blocks {
    uint64_t epoch;
    uint32_t n_blocks; /* CONTROL_BLOCKS_MAX at most */
    const struct control_block *blocks;
};

struct control_message {
    enum control_kind kind;
    union {
        struct control_hello hello;
        struct control_progress progress;
        struct control_ready ready;
        struct control_heartbeat heartbeat;
        struct result *result; /* decoded: inside the same allocation */
        struct control_abort abort;
        struct control_copied copied;
        struct control_welcome welcome;
        struct control_members members;
        struct plan *plan; /* decoded: inside the same allocation */
        struct control_fence fence;
        struct control_copy copy;
        struct control_blocks blocks; /* inventory, names, stored, gone */
    } as;
};

/* bytes_out: malloc'd. */
enum status control_encode(const struct control_message *message, uint8_t **bytes_out, size_t *n_out);
/* Checks all that plan_decode and result_decode check, and every length, range and string (NUL-terminated, valid UTF-8, bounded). */
enum status control_decode(const uint8_t *bytes, size_t n, struct control_message **message_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
