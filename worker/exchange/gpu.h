#ifndef LONGSPAN_WORKER_EXCHANGE_GPU_H
#define LONGSPAN_WORKER_EXCHANGE_GPU_H

/*
 * Links: messages from one GPU's memory to that of another GPU of the same host, launched on a stream. Beside every exchange's messages through
 * hosts, which carry all else and are the way where no link can be. A method is a table here; who makes links (worker/cuda/links.c) brings
 * both ends to agree through the exchange: each tells its offer, both make the link, and it is used once both said that they have it.
 *
 * Both ends issue the same messages of a link in the same order, of lengths that both know; at most two of a direction are unread. Device work that
 * waits ends by abort and after a bounded time; it then writes enum peer_failure (kernels/cuda/peer.h) to the failure word, and what is launched after it
 * does nothing.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { GPU_OFFER_BYTES = 192 };

struct gpu_method; /* a method's state, of one worker */

struct gpu_method_config {
    uint16_t self;            /* worker id */
    size_t message_bytes_max; /* longer messages need no link */
    uint32_t *failed;         /* on the device; 0 */
};

/* Which message: step is on the device and differs from step to step, so that a replayed graph's messages are told apart. */
struct gpu_message {
    const uint64_t *step;
    uint32_t which;
};

struct exchange_gpu_ops {
    const char *name;
    bool graphs; /* sends and receives may be captured and replayed */
    /* On the current device, which stays. ST_UNSUPPORTED: not on this host, or not in this build. */
    enum status (*open)(const struct gpu_method_config *config, struct gpu_method **method_out, struct error *err);
    /* Nothing of it runs any more. Accepts NULL. */
    void (*close)(struct gpu_method *m);
    /* What the peer must know to make the link (anew). Nothing of the link runs at this end. false: no link can be made. */
    bool (*offer)(struct gpu_method *m, uint16_t peer, uint8_t offer_out[GPU_OFFER_BYTES]);
    /* Nothing of the link runs at either end; the other end calls it, too. An earlier link to that peer is gone, whatever is returned. */
    enum status (*link)(struct gpu_method *m, uint16_t peer, const uint8_t mine[GPU_OFFER_BYTES],
                        const uint8_t theirs[GPU_OFFER_BYTES], int64_t deadline_ns);
    /* Whether a message of so many bytes goes by the link; both ends answer alike. */
    bool (*fits)(const struct gpu_method *m, uint16_t peer, bool sending, size_t bytes);
    /* Launch; data: on the device, 16-byte aligned. -> cudaError_t. May be put off until flush: a message's bytes stay until then. */
    int (*send)(struct gpu_method *m, uint16_t peer, const struct gpu_message *which, const void *data, size_t bytes,
                void *stream);
    int (*receive)(struct gpu_method *m, uint16_t peer, const struct gpu_message *which, void *data_out, size_t bytes,
                   void *stream);
    int (*flush)(struct gpu_method *m, void *stream); /* launches what was put off, side by side; NULL: nothing is */
    /* Device work that waits ends soon; until reset, so does all that is launched. */
    void (*abort)(struct gpu_method *m);
    /* Nothing runs. All links are gone until they are made again. */
    void (*reset)(struct gpu_method *m);
};

/* In builds with CUDA. */
extern const struct exchange_gpu_ops exchange_gpu_peer; /* memory of the peer's GPU, mapped here */
extern const struct exchange_gpu_ops exchange_gpu_nccl; /* NCCL, eager; libnccl.so.2 is opened when it is asked for */

#ifdef __cplusplus
}
#endif
#endif
