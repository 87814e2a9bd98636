/*
 * Links by NCCL: a communicator of two for each peer, made anew for each epoch of a group. The library is opened when it is asked for, so that a program
 * needs none. Sends and receives are put off and go as one group: those of a group wait for each other's peers side by side, so that two workers
 * which send to each other first, both, do not wait for ever. Nothing is captured: these are launches of NCCL's own.
 */
#include "worker/exchange/gpu.h"

#ifndef LONGSPAN_NCCL

static enum status nccl_open(const struct gpu_method_config *config, struct gpu_method **method_out, struct error *err)
{
    (void)config;
    (void)method_out;
    return error_set(err, ST_UNSUPPORTED, "exchange nccl: this build has none, NCCL's header was not there");
}

const struct exchange_gpu_ops exchange_gpu_nccl = { .name = "nccl", .open = nccl_open };

#else

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "common/clock.h"
#include "common/log.h"
#include "worker/exchange/exchange.h"

#define FUNCTIONS(X)                                                                                                   \
    X(GetUniqueId)                                                                                                     \
    X(CommInitRankConfig)                                                                                              \
    X(CommGetAsyncError)                                                                                               \
    X(CommAbort)                                                                                                       \
    X(Send)                                                                                                            \
    X(Recv)                                                                                                            \
    X(GroupStart)                                                                                                      \
    X(GroupEnd)                                                                                                        \
    X(GetErrorString)

struct library {
    void *handle;
#define FIELD(name) __typeof__(&nccl##name) name;
    FUNCTIONS(FIELD)
#undef FIELD
};

struct end {
    uint16_t peer;
    ncclComm_t comm; /* NULL: none */
};

/* A message that waits for its group. */
struct pending {
    struct end *end;
    void *data;
    size_t bytes;
    bool sending;
};

enum { PENDING_MAX = 4 * EXCHANGE_PEERS_MAX, GREETING = 128 };

struct gpu_method {
    struct gpu_method_config config;
    struct library nccl;
    cudaStream_t stream; /* of greetings */
    uint8_t *greeting;   /* on the device: [2][GREETING] */
    size_t n_ends, n_pending;
    struct end ends[EXCHANGE_PEERS_MAX];
    struct pending pending[PENDING_MAX];
};

static const int64_t launch_ns = 10ll * 1000000000; /* a group that NCCL does not get to launch */

static struct end *end_find(const struct gpu_method *m, uint16_t peer)
{
    for (size_t i = 0; i < m->n_ends; i++)
        if (m->ends[i].peer == peer)
            return (struct end *)(uintptr_t)&m->ends[i];
    return NULL;
}

static void end_abort(struct gpu_method *m, struct end *e)
{
    if (e->comm)
        m->nccl.CommAbort(e->comm);
    e->comm = NULL;
}

static void ends_abort(struct gpu_method *m)
{
    for (size_t i = 0; i < m->n_ends; i++)
        end_abort(m, &m->ends[i]);
    m->n_pending = 0;
}

static void nccl_close(struct gpu_method *m)
{
    if (!m)
        return;
    ends_abort(m);
    if (m->stream)
        cudaStreamDestroy(m->stream);
    cudaFree(m->greeting);
    free(m); /* the library stays: its threads may still end */
}

static bool library_open(struct library *l, struct error *err)
{
    /* multicast between GPUs is a state of the whole host; two ranks need none */
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    l->handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!l->handle) {
        error_set(err, ST_UNSUPPORTED, "exchange nccl: %s", dlerror());
        return false;
    }
#define LOOK_UP(name)                                                                                                  \
    *(void **)&l->name = dlsym(l->handle, "nccl" #name);                                                               \
    if (!l->name) {                                                                                                    \
        error_set(err, ST_UNSUPPORTED, "exchange nccl: libnccl.so.2 has no nccl" #name);                               \
        return false;                                                                                                  \
    }
    FUNCTIONS(LOOK_UP)
#undef LOOK_UP
    return true;
}

static enum status nccl_open(const struct gpu_method_config *config, struct gpu_method **method_out, struct error *err)
{
    struct gpu_method *m = calloc(1, sizeof *m);
    if (!m)
        return error_set(err, ST_NO_MEMORY, "exchange nccl: no memory");
    m->config = *config;
    if (!library_open(&m->nccl, err)) {
        free(m);
        return ST_UNSUPPORTED;
    }
    if (cudaStreamCreateWithFlags(&m->stream, cudaStreamNonBlocking) ||
        cudaMalloc((void **)&m->greeting, 2 * GREETING) || cudaMemset(m->greeting, 0, 2 * GREETING)) {
        cudaGetLastError();
        nccl_close(m);
        return error_set(err, ST_NO_MEMORY, "exchange nccl: no GPU memory");
    }
    *method_out = m;
    return ST_OK;
}

/* The name under which two ranks meet is made by the lower of them. */
static bool nccl_offer(struct gpu_method *m, uint16_t peer, uint8_t offer_out[GPU_OFFER_BYTES])
{
    struct end *e = end_find(m, peer);
    ncclUniqueId id;
    _Static_assert(sizeof id <= GPU_OFFER_BYTES, "an offer holds it");
    if (!e && m->n_ends == EXCHANGE_PEERS_MAX)
        return false;
    if (!e)
        m->ends[m->n_ends++] = (struct end){ .peer = peer };
    memset(offer_out, 0, GPU_OFFER_BYTES);
    if (m->config.self > peer)
        return true;
    if (m->nccl.GetUniqueId(&id))
        return false;
    memcpy(offer_out, &id, sizeof id);
    return true;
}

static void nap(void)
{
    const struct timespec t = { .tv_nsec = 200000 };
    nanosleep(&t, NULL);
}

/* Until what was begun on a communicator that does not block is done. */
static ncclResult_t settle(const struct gpu_method *m, ncclComm_t comm, int64_t deadline_ns)
{
    ncclResult_t r = ncclInProgress;
    while (!m->nccl.CommGetAsyncError(comm, &r) && r == ncclInProgress && clock_ns() < deadline_ns)
        nap();
    return r;
}

/*
 * Both ranks send and receive once: NCCL makes the connections of a pair when they first exchange, both directions together, and refuses it where one
 * side's first group has both and the other's one.
 */
static ncclResult_t greet(struct gpu_method *m, const struct end *e, int64_t deadline_ns)
{
    const int other = m->config.self < e->peer ? 1 : 0;
    ncclResult_t r = m->nccl.GroupStart();
    if (!r)
        r = m->nccl.Send(m->greeting, GREETING, ncclUint8, other, e->comm, m->stream);
    if (r == ncclSuccess || r == ncclInProgress)
        r = m->nccl.Recv(m->greeting + GREETING, GREETING, ncclUint8, other, e->comm, m->stream);
    const ncclResult_t ended = m->nccl.GroupEnd();
    r = r == ncclSuccess || r == ncclInProgress ? ended : r;
    if (r == ncclSuccess || r == ncclInProgress)
        r = settle(m, e->comm, deadline_ns);
    while (!r && cudaStreamQuery(m->stream) == cudaErrorNotReady) {
        if (clock_ns() >= deadline_ns)
            return ncclInProgress;
        nap();
    }
    return r;
}

static enum status nccl_link(struct gpu_method *m, uint16_t peer, const uint8_t mine[GPU_OFFER_BYTES],
                             const uint8_t theirs[GPU_OFFER_BYTES], int64_t deadline_ns)
{
    struct end *e = end_find(m, peer);
    const bool first = m->config.self < peer;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId id;
    if (!e)
        return ST_UNSUPPORTED;
    end_abort(m, e);
    config.blocking = 0;
    memcpy(&id, first ? mine : theirs, sizeof id);
    ncclResult_t r = m->nccl.CommInitRankConfig(&e->comm, 2, id, first ? 0 : 1, &config);
    if (r == ncclSuccess || r == ncclInProgress)
        r = settle(m, e->comm, deadline_ns);
    if (r == ncclSuccess)
        r = greet(m, e, deadline_ns);
    if (r == ncclSuccess)
        return ST_OK;
    log_warn("exchange nccl: no communicator with worker %u: %s", peer, m->nccl.GetErrorString(r));
    end_abort(m, e);
    return r == ncclInProgress ? ST_TIMEOUT : ST_UNSUPPORTED;
}

static bool nccl_fits(const struct gpu_method *m, uint16_t peer, bool sending, size_t bytes)
{
    const struct end *e = end_find(m, peer);
    (void)sending;
    return e && e->comm && bytes;
}

static int put_off(struct gpu_method *m, uint16_t peer, void *data, size_t bytes, bool sending)
{
    struct end *e = end_find(m, peer);
    if (!e || !e->comm || m->n_pending == PENDING_MAX)
        return (int)cudaErrorInvalidValue;
    m->pending[m->n_pending++] = (struct pending){ e, data, bytes, sending };
    return 0;
}

static int nccl_send(struct gpu_method *m, uint16_t peer, const struct gpu_message *which, const void *data,
                     size_t bytes, void *stream)
{
    (void)which;
    (void)stream;
    return put_off(m, peer, (void *)(uintptr_t)data, bytes, true);
}

static int nccl_receive(struct gpu_method *m, uint16_t peer, const struct gpu_message *which, void *data_out,
                        size_t bytes, void *stream)
{
    (void)which;
    (void)stream;
    return put_off(m, peer, data_out, bytes, false);
}

static int nccl_flush(struct gpu_method *m, void *stream)
{
    const int64_t deadline_ns = clock_ns() + launch_ns;
    if (!m->n_pending)
        return 0;
    ncclResult_t r = m->nccl.GroupStart();
    for (size_t i = 0; i < m->n_pending && !r; i++) {
        const struct pending *p = &m->pending[i];
        const int other = m->config.self < p->end->peer ? 1 : 0;
        r = p->sending ? m->nccl.Send(p->data, p->bytes, ncclUint8, other, p->end->comm, (cudaStream_t)stream)
                       : m->nccl.Recv(p->data, p->bytes, ncclUint8, other, p->end->comm, (cudaStream_t)stream);
        r = r == ncclInProgress ? ncclSuccess : r;
    }
    const ncclResult_t ended = m->nccl.GroupEnd();
    r = r ? r : ended;
    for (size_t i = 0; i < m->n_pending && (r == ncclSuccess || r == ncclInProgress); i++)
        r = settle(m, m->pending[i].end->comm, deadline_ns);
    m->n_pending = 0;
    if (r)
        log_error("exchange nccl: %s", m->nccl.GetErrorString(r));
    return r ? (int)cudaErrorUnknown : 0;
}

const struct exchange_gpu_ops exchange_gpu_nccl = {
    .name = "nccl",
    .open = nccl_open,
    .close = nccl_close,
    .offer = nccl_offer,
    .link = nccl_link,
    .fits = nccl_fits,
    .send = nccl_send,
    .receive = nccl_receive,
    .flush = nccl_flush,
    .abort = ends_abort,
    .reset = ends_abort,
};

#endif
