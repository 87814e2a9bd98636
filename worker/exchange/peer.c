/* Links through peer memory: each end owns the window that it receives in, and maps the other's. */
#include "worker/exchange/gpu.h"

#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "kernels/cuda/peer.h"
#include "worker/exchange/exchange.h"

/* What waits on the device has the host's word to end by; this is for a host that says nothing any more. */
static const uint64_t wait_ns = 120ull * 1000000000;

struct end {
    uint16_t peer;
    bool up;
    struct peer_lane in, out; /* windows stay over links; out.window NULL: none is mapped */
    uint8_t handle[PEER_HANDLE_BYTES], theirs[PEER_HANDLE_BYTES];
};

struct gpu_method {
    struct gpu_method_config config;
    struct peer_wait wait;
    volatile uint32_t *abort_word;
    size_t n_ends;
    struct end ends[EXCHANGE_PEERS_MAX];
};

/* What travels: a window's handle and the longest message that it takes. */
struct offer {
    uint8_t handle[PEER_HANDLE_BYTES];
    uint64_t capacity;
};

static struct end *end_find(const struct gpu_method *m, uint16_t peer)
{
    for (size_t i = 0; i < m->n_ends; i++)
        if (m->ends[i].peer == peer)
            return (struct end *)(uintptr_t)&m->ends[i];
    return NULL;
}

static void peer_close(struct gpu_method *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->n_ends; i++) {
        struct end *e = &m->ends[i];
        if (e->out.window)
            peer_window_close(e->out.window);
        if (e->in.window)
            peer_window_free(e->in.window);
        cudaFree(e->in.counts);
        cudaFree(e->out.counts);
    }
    cudaFreeHost((void *)(uintptr_t)m->abort_word);
    free(m);
}

static enum status peer_open(const struct gpu_method_config *config, struct gpu_method **method_out, struct error *err)
{
    struct gpu_method *m = calloc(1, sizeof *m);
    void *word = NULL, *mapped = NULL;
    if (!m)
        return error_set(err, ST_NO_MEMORY, "exchange peer: no memory");
    m->config = *config;
    if (cudaHostAlloc(&word, sizeof(uint32_t), cudaHostAllocMapped) || cudaHostGetDevicePointer(&mapped, word, 0)) {
        cudaGetLastError();
        cudaFreeHost(word);
        free(m);
        return error_set(err, ST_NO_MEMORY, "exchange peer: no host memory that the GPU sees");
    }
    m->abort_word = word;
    *m->abort_word = 0;
    m->wait = (struct peer_wait){ .abort_word = mapped, .timeout_ns = wait_ns, .failed = config->failed };
    *method_out = m;
    return ST_OK;
}

/* The window that a peer writes into; made once. */
static struct end *end_of(struct gpu_method *m, uint16_t peer)
{
    struct end *e = end_find(m, peer);
    if (e)
        return e->in.window ? e : NULL;
    if (m->n_ends == EXCHANGE_PEERS_MAX)
        return NULL;
    e = &m->ends[m->n_ends++];
    *e = (struct end){ .peer = peer };
    e->in.capacity = m->config.message_bytes_max;
    if (peer_window_new(e->in.capacity, &e->in.window, e->handle) ||
        cudaMalloc((void **)&e->in.counts, peer_chunks(e->in.capacity) * sizeof(uint32_t))) {
        cudaGetLastError();
        if (e->in.window)
            peer_window_free(e->in.window);
        e->in = (struct peer_lane){ 0 };
        m->n_ends--;
        return NULL;
    }
    return e;
}

static bool peer_offer(struct gpu_method *m, uint16_t peer, uint8_t offer_out[GPU_OFFER_BYTES])
{
    struct end *e = end_of(m, peer);
    if (!e)
        return false;
    struct offer o = { .capacity = e->in.capacity };
    memcpy(o.handle, e->handle, sizeof o.handle);
    memset(offer_out, 0, GPU_OFFER_BYTES);
    memcpy(offer_out, &o, sizeof o);
    e->up = false;
    return true;
}

/* Maps the peer's window, unless it is the one that is mapped. */
static bool end_map(struct end *e, const struct offer *theirs)
{
    const size_t counts = peer_chunks(theirs->capacity) * sizeof(uint32_t);
    if (e->out.window && e->out.capacity == theirs->capacity && !memcmp(e->theirs, theirs->handle, sizeof e->theirs))
        return true;
    if (e->out.window)
        peer_window_close(e->out.window);
    cudaFree(e->out.counts);
    e->out = (struct peer_lane){ .capacity = theirs->capacity };
    if (peer_window_open(theirs->handle, &e->out.window)) {
        e->out.window = NULL;
        return false;
    }
    memcpy(e->theirs, theirs->handle, sizeof e->theirs);
    return !cudaMalloc((void **)&e->out.counts, counts);
}

static enum status peer_link(struct gpu_method *m, uint16_t peer, const uint8_t mine[GPU_OFFER_BYTES],
                             const uint8_t theirs[GPU_OFFER_BYTES], int64_t deadline_ns)
{
    const size_t capacity_max = (size_t)1 << 30;
    struct end *e = end_find(m, peer);
    struct offer o;
    (void)mine;
    (void)deadline_ns;
    memcpy(&o, theirs, sizeof o);
    if (!e || !o.capacity || o.capacity > capacity_max)
        return ST_UNSUPPORTED;
    e->up = false;
    if (!end_map(e, &o)) {
        cudaGetLastError();
        return ST_UNSUPPORTED;
    }
    if (cudaMemset(e->in.window, 0, peer_window_bytes(e->in.capacity)) ||
        cudaMemset(e->in.counts, 0, peer_chunks(e->in.capacity) * sizeof(uint32_t)) ||
        cudaMemset(e->out.counts, 0, peer_chunks(e->out.capacity) * sizeof(uint32_t)) || cudaDeviceSynchronize()) {
        cudaGetLastError();
        return ST_INTERNAL;
    }
    e->up = true;
    return ST_OK;
}

static bool peer_fits(const struct gpu_method *m, uint16_t peer, bool sending, size_t bytes)
{
    const struct end *e = end_find(m, peer);
    return e && e->up && bytes % 8 == 0 && bytes <= (sending ? e->out.capacity : e->in.capacity);
}

static struct peer_wait wait_of(const struct gpu_method *m, uint16_t peer)
{
    struct peer_wait w = m->wait;
    w.who = peer;
    return w;
}

static int link_send(struct gpu_method *m, uint16_t peer, const struct gpu_message *which, const void *data,
                     size_t bytes, void *stream)
{
    const struct end *e = end_find(m, peer);
    const struct peer_wait wait = wait_of(m, peer);
    const struct peer_key key = { which->step, which->which };
    return e && e->up ? peer_send(&e->out, &key, data, bytes, &wait, stream) : (int)cudaErrorInvalidValue;
}

static int link_receive(struct gpu_method *m, uint16_t peer, const struct gpu_message *which, void *data_out,
                        size_t bytes, void *stream)
{
    const struct end *e = end_find(m, peer);
    const struct peer_wait wait = wait_of(m, peer);
    const struct peer_key key = { which->step, which->which };
    return e && e->up ? peer_receive(&e->in, &key, data_out, bytes, &wait, stream) : (int)cudaErrorInvalidValue;
}

static void peer_abort(struct gpu_method *m)
{
    *m->abort_word = 1;
}

static void peer_reset(struct gpu_method *m)
{
    for (size_t i = 0; i < m->n_ends; i++)
        m->ends[i].up = false;
    *m->abort_word = 0;
}

const struct exchange_gpu_ops exchange_gpu_peer = {
    .name = "peer",
    .graphs = true,
    .open = peer_open,
    .close = peer_close,
    .offer = peer_offer,
    .link = peer_link,
    .fits = peer_fits,
    .send = link_send,
    .receive = link_receive,
    .abort = peer_abort,
    .reset = peer_reset,
};
