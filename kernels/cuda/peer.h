#ifndef LONGSPAN_KERNELS_CUDA_PEER_H
#define LONGSPAN_KERNELS_CUDA_PEER_H

/*
 * Messages between the GPUs of one host, written straight into the receiver's memory. A lane leads from one process to another; its window is
 * the receiver's memory, mapped by the sender through a handle that travels by other ways. Both ends are kernels: they can stand in a graph,
 * which is replayed without the host.
 *
 * Form: chunks of PEER_CHUNK bytes, each with a trailer (its length, its checksum, its key). Every 8 bytes that are written carry 4 of the message and the
 * message's number, so that they are valid as soon as they are seen: no fence, and no flag behind the data. Messages take the two halves of the
 * window in turn.
 *
 * Rule: at most two messages of a lane may be unread. A step keeps it, since every message is answered (also by "nothing") before the next is
 * sent. Sizes are known to both sides from the plan.
 *
 * Waits are bounded: by the host's abort word and by time. Who fails says so in *failed, once; what is launched later with the same word returns
 * at once, so that a replayed graph runs out.
 */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { PEER_CHUNK = 8192, PEER_HANDLE_BYTES = 64 };

enum peer_failure {
    PEER_FAILED_NOT,
    PEER_FAILED_TIME,
    PEER_FAILED_ABORT,
    PEER_FAILED_LENGTH,   /* the trailer has another length than was expected */
    PEER_FAILED_CHECKSUM, /* sum of (2 i + 1) word_i modulo 2^32 over a chunk's words */
    PEER_FAILED_KEY,      /* a message of another step, or of another place in it */
};

/* What a message is, equal at both ends. */
struct peer_key {
    const uint64_t *step; /* on the device, so that a replayed graph's messages are those of its step; NULL: 0 */
    uint32_t which;       /* place in the step */
};

/* One end of a lane. Pointers are this device's. */
struct peer_lane {
    void
        *window; /* peer_window_bytes(capacity), zeros before the first message: the receiver's memory, at either end */
    uint32_t *counts; /* [peer_chunks(capacity)], zeros before the first message: this end's own */
    size_t capacity;  /* of a message, bytes */
};

static inline size_t peer_chunks(size_t bytes)
{
    return bytes ? (bytes + PEER_CHUNK - 1) / PEER_CHUNK : 1;
}
static inline size_t peer_window_bytes(size_t capacity)
{
    return 2 * peer_chunks(capacity) * (2 * PEER_CHUNK + 32);
}

struct peer_wait {
    const volatile uint32_t *abort_word; /* the host's, mapped: not 0 ends the wait */
    uint64_t timeout_ns;
    uint32_t *failed; /* on the device: enum peer_failure | who << 8 */
    uint32_t who;     /* the lane's name in it, below 2^24 */
};

/* data: 16-byte aligned; bytes: a multiple of 8, at most the capacity (else cudaErrorInvalidValue). */
int peer_send(const struct peer_lane *lane, const struct peer_key *key, const void *data, size_t bytes,
              const struct peer_wait *wait, void *stream);
int peer_receive(const struct peer_lane *lane, const struct peer_key *key, void *data_out, size_t bytes,
                 const struct peer_wait *wait, void *stream);

/* Memory of this process that another process on the host may map; zeroed. */
int peer_window_new(size_t capacity, void **window_out, uint8_t handle_out[PEER_HANDLE_BYTES]);
void peer_window_free(void *window);
/* Another process's window. Close it before its owner frees it. */
int peer_window_open(const uint8_t handle[PEER_HANDLE_BYTES], void **window_out);
void peer_window_close(void *window);

#ifdef __cplusplus
}
#endif
#endif
