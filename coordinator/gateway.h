#ifndef LONGSPAN_COORDINATOR_GATEWAY_H
#define LONGSPAN_COORDINATOR_GATEWAY_H

/*
 * What clients touch: OpenAI-compatible HTTP (gateway/http*.c) and gRPC longspan.v1.Inference, longspan.v1.Cluster, grpc.health.v1
 * (gateway/grpc*.c). Both turn a request into one struct generation (gateway/generation.c), which tokenizes, submits, watches stop strings, and streams
 * text back. All on the loop's thread but parsing and tokenizing of large bodies.
 */

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/loop.h"
#include "coordinator/sched.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "model/model.h"
#include "proto/rpc.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What status and health answers show of a worker; kept by the control server. */
struct gateway_worker {
    uint16_t id;
    uint32_t pid;
    char address[128]; /* of its control connection */
    char device[32];   /* "cpu", "cuda" */
    char host[64];
    char state[16]; /* "connecting", "loading", "ready", "draining", "drained", "lost" */
    float load_fraction;
    char fingerprint[128];
    uint32_t blocks, n_blocks;
    uint64_t block_bytes, weight_bytes, pool_bytes, resident_bytes, sketch_bytes, bytes_sent, bytes_received;
    uint64_t dropped; /* messages of other workers that it refused */
    struct control_disk disk;
    /* of a ready one: */
    uint32_t blocks_cached, sequences, group; /* sequences whose home it is */
    uint64_t leaves,
        epoch;           /* begun leaves of running requests that it reads; of its group, the term in the upper half */
    int64_t step_age_ms; /* since its last step; -1: none yet */
};

/* What plans of it must be of. */
static inline uint64_t gateway_worker_term(const struct gateway_worker *w)
{
    return w->epoch >> 32;
}
static inline uint64_t gateway_worker_epoch(const struct gateway_worker *w)
{
    return w->epoch & UINT32_MAX;
}

#define GATEWAY_OPERATOR "operator" /* the tenant whose API keys may change what workers do */

struct gateway_config {
    const char *http; /* "127.0.0.1:8080"; port 0: any */
    const char *grpc;
    const struct tls *tls;   /* of both; NULL: in clear; kept */
    const struct keys *keys; /* who may call; NULL: everybody; kept */
    size_t body_bytes_max;   /* 64 MiB */
    uint32_t requests_max;   /* open at once; more get 429 */
    uint32_t n_max;
    uint32_t grace_ms; /* of gateway_drain */
    struct loop *loop; /* all kept */
    struct sched *sched;
    const struct model *model;
    const struct tokenizer *tokenizer;
    const char *model_name; /* shown by /v1/models; "default", "" and this name are accepted */
    uint32_t positions_max;
    uint32_t max_tokens_default; /* of a request that names none (completions: always 16); 0: the rest of the context */
    uint32_t ping_ms;            /* a silent event stream gets a comment so often; 0: 10 s */
    const char *precision, *kv_codec, *selector; /* shown by Cluster/Status; NULL: bf16, bf16, dense */
    /* -> number of workers written. */
    uint32_t (*workers)(void *ctx, struct gateway_worker *workers_out, uint32_t max);
    bool (*ready)(void *ctx); /* enough workers are ready to serve, and steps go on */
    /* For how long nothing has gone on although there is work; 0: all is well. NULL: never told. */
    int64_t (*stalled_ms)(void *ctx);
    /* "leader", "standby" or "alone"; NULL: alone. */
    const char *(*role)(void *ctx);
    /*
     * Nothing new goes to the worker, and what runs there goes to others; undo: it is as before. ST_NOT_FOUND: there is no such worker that is ready; ST_STALE: it
     * cannot be done, err says why. NULL, as the next: nobody may ask.
     */
    enum status (*drain)(void *ctx, uint16_t worker, bool undo, struct error *err);
    void (*rebalance)(void *ctx); /* evens leaves out, in the background */
    void (*kick)(void *ctx);      /* something was submitted or cancelled: run the scheduler soon */
    void *ctx;
    const char *resumes; /* folder for answers that can be taken up again (gateway/resume.h); NULL or "": none can */
    struct digest resumes_context; /* all that decides what is generated */
    uint32_t resume_grace_ms, resume_keep_s;
    uint64_t resume_bytes_max;
    /* Served on the gRPC port as well; kept. */
    const struct rpc_method *methods;
    size_t n_methods;
};

#define GATEWAY_VERSION "0.1.0" /* said by Cluster/Status */

struct gateway;
enum status gateway_start(const struct gateway_config *config, struct gateway **gateway_out, struct error *err);
uint16_t gateway_http_port(const struct gateway *g);
uint16_t gateway_grpc_port(const struct gateway *g);
/* Connections from now on are made with these (copied), those that are there stay; it was started with TLS. Other than ST_OK: all is as before, err says why. */
enum status gateway_tls(struct gateway *g, const struct tls *tls, struct error *err);
/* Another coordinator leads, or none yet: requests are refused with why (503, Retry-After; gRPC: UNAVAILABLE). NULL: this one does. */
void gateway_standby(struct gateway *g, const char *why);
/* No new requests (503), running ones get grace_ms on the loop, then end. Loop thread. gateway_free when gateway_idle. */
void gateway_drain(struct gateway *g);
bool gateway_idle(const struct gateway *g);
/* While it drains: once all that is left can be taken up again (gateway/resume.h), it ends, and its clients come back to who leads next. */
void gateway_hand_over(struct gateway *g);
/* For those who make requests of their own (jobs): what generations run on, what answers are labelled with. Valid as long as the gateway. */
struct generation_host;
struct generation_host *gateway_host(struct gateway *g);
const char *gateway_fingerprint(const struct gateway *g);
const struct gateway_config *gateway_config_of(const struct gateway *g);
void gateway_free(struct gateway *g);

#ifdef __cplusplus
}
#endif
#endif
