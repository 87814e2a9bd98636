#include "worker/cuda/links.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cuda_runtime_api.h>

#include "common/clock.h"
#include "common/log.h"
#include "kernels/cuda/peer.h"
#include "worker/exchange/gpu.h"

/* Keys that no message of a layer has. */
enum { LAYER_OFFER = UINT16_MAX, LAYER_AGREED = UINT16_MAX - 1, LAYER_WATCH = UINT16_MAX - 2, HOST_BYTES = 40 };

static const size_t link_bytes_max = (size_t)64 << 20;
static const int64_t give_up_ns = 20ll * 1000000000; /* after an abort */

/* What two workers tell each other first. */
struct offer {
    char method[16];
    char host[HOST_BYTES];
    uint8_t gpu[16];
    uint64_t able; /* 0: no link can be made here */
    uint8_t offer[GPU_OFFER_BYTES];
};

struct link {
    uint16_t peer;
    bool up;
    uint32_t group;
    uint64_t epoch;
    struct offer mine, theirs;
};

struct gpu_links {
    const struct exchange_gpu_ops *ops;
    struct gpu_method *method; /* NULL: there is none here */
    char host[HOST_BYTES];
    uint8_t gpu[16];
    uint64_t *step, *host_step;     /* the latter pinned */
    uint32_t *failed, *host_failed; /* likewise */
    struct link links[EXCHANGE_PEERS_MAX];
    size_t n_links;
    struct gpu_buffer wire;
    /* this step */
    bool in_use, aborted;
    uint32_t n_plain; /* messages that go through hosts */
    enum status st;   /* why it was aborted */
    uint16_t peer;
};

static const struct attend_message *message(const struct backend *b, int kind, uint32_t i)
{
    return &b->input->attend->messages[kind][i];
}

/* ---- life ---- */

static bool host_name(char out[HOST_BYTES])
{
    const int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    memset(out, 0, HOST_BYTES);
    const ssize_t n = fd < 0 ? -1 : read(fd, out, HOST_BYTES - 1);
    if (fd >= 0)
        close(fd);
    return n > 0;
}

static void method_open(struct gpu_links *l, const struct exchange_gpu_ops *ops, uint16_t self, size_t bytes)
{
    struct cudaDeviceProp device;
    struct error err = { 0 };
    const struct gpu_method_config config = { .self = self, .message_bytes_max = bytes, .failed = l->failed };
    if (!ops->open)
        return;
    if (!host_name(l->host) || cudaGetDeviceProperties(&device, 0)) {
        cudaGetLastError();
        log_warn("exchange %s: no name of this host or its GPU: messages go through hosts", ops->name);
        return;
    }
    memcpy(l->gpu, device.uuid.bytes, sizeof l->gpu);
    if (ops->open(&config, &l->method, &err))
        log_warn("%s: messages go through hosts", err.text);
}

/* A step's longest partials, as far as links are for them. */
static size_t longest(const struct backend *b)
{
    const size_t row = (size_t)b->config->n_heads * (b->config->head_dim + 2) * sizeof(float),
                 bytes = 2 * b->rows_max * row;
    return (bytes < link_bytes_max ? bytes : link_bytes_max) / 4096 * 4096 + 4096;
}

static enum status links_new(struct backend *b)
{
    struct gpu_links *l = calloc(1, sizeof *l);
    if (!l)
        return ST_NO_MEMORY;
    b->links = l;
    l->ops = b->exchange_ops->gpu;
    const int e = cudaMalloc((void **)&l->step, sizeof *l->step) ||
                  cudaMalloc((void **)&l->failed, sizeof *l->failed) || cudaMemset(l->failed, 0, sizeof *l->failed) ||
                  cudaMallocHost((void **)&l->host_step, sizeof *l->host_step) ||
                  cudaMallocHost((void **)&l->host_failed, sizeof *l->host_failed);
    if (e) {
        gpu_links_free(b);
        return gpu_status((int)cudaErrorMemoryAllocation, "links");
    }
    method_open(l, l->ops, exchange_self(b->exchange), longest(b));
    return ST_OK;
}

void gpu_links_free(struct backend *b)
{
    struct gpu_links *l = b->links;
    if (!l)
        return;
    if (l->method)
        l->ops->close(l->method);
    cudaFree(l->step);
    cudaFree(l->failed);
    cudaFree(l->wire.data);
    cudaFreeHost(l->host_step);
    cudaFreeHost(l->host_failed);
    free(l);
    b->links = NULL;
}

/* ---- agreement ---- */

static struct link *link_find(struct gpu_links *l, uint16_t peer)
{
    for (size_t i = 0; i < l->n_links; i++)
        if (l->links[i].peer == peer)
            return &l->links[i];
    return NULL;
}

static struct exchange_key key_of(const struct backend *b, uint32_t layer, uint16_t peer)
{
    struct exchange_key key = b->input->key;
    key.layer = (uint16_t)layer;
    key.phase = PHASE_QUERY;
    key.peer = peer;
    return key;
}

static enum status tell(struct backend *b, uint32_t layer, uint16_t peer, const void *data, size_t bytes)
{
    const struct exchange_key key = key_of(b, layer, peer);
    const struct iovec part = { (void *)(uintptr_t)data, bytes };
    const enum status st = b->exchange_ops->send(b->exchange, &key, &part, 1);
    if (st)
        b->failed_peer = peer;
    return st;
}

static enum status hear(struct backend *b, uint32_t layer, uint16_t peer, void *out, size_t bytes)
{
    const struct exchange_key key = key_of(b, layer, peer);
    const enum status st = b->exchange_ops->recv(b->exchange, &key, out, bytes, b->deadline_ns);
    if (st)
        b->failed_peer = peer;
    return st;
}

static enum status offer_tell(struct backend *b, struct link *link)
{
    struct gpu_links *l = b->links;
    struct offer *o = &link->mine;
    memset(o, 0, sizeof *o);
    snprintf(o->method, sizeof o->method, "%s", l->ops->name);
    memcpy(o->host, l->host, sizeof o->host);
    memcpy(o->gpu, l->gpu, sizeof o->gpu);
    o->able = l->method && l->ops->offer(l->method, link->peer, o->offer);
    return tell(b, LAYER_OFFER, link->peer, o, sizeof *o);
}

/* Two workers on one GPU would wait in each other's time slices. */
static bool offers_match(const struct offer *a, const struct offer *b)
{
    return a->able && b->able && !memcmp(a->method, b->method, sizeof a->method) &&
           !memcmp(a->host, b->host, sizeof a->host) && memcmp(a->gpu, b->gpu, sizeof a->gpu) != 0;
}

/* All offers are told before one is awaited, all links of a pair's lower worker are made in one order: nobody waits in a circle. */
static enum status agree(struct backend *b, struct link *const *fresh, size_t n)
{
    struct gpu_links *l = b->links;
    uint64_t made[EXCHANGE_PEERS_MAX], other = 0;
    enum status st = ST_OK;
    for (size_t i = 0; i < n && !st; i++)
        st = offer_tell(b, fresh[i]);
    for (size_t i = 0; i < n && !st; i++)
        st = hear(b, LAYER_OFFER, fresh[i]->peer, &fresh[i]->theirs, sizeof fresh[i]->theirs);
    for (size_t i = 0; i < n && !st; i++) {
        const struct link *link = fresh[i];
        made[i] = offers_match(&link->mine, &link->theirs) &&
                  !l->ops->link(l->method, link->peer, link->mine.offer, link->theirs.offer, b->deadline_ns);
        st = tell(b, LAYER_AGREED, link->peer, &made[i], sizeof made[i]);
    }
    for (size_t i = 0; i < n && !st; i++) {
        st = hear(b, LAYER_AGREED, fresh[i]->peer, &other, sizeof other);
        fresh[i]->up = !st && made[i] && other == 1;
        if (!st)
            log_info("exchange: messages to and from the GPU of worker %u go %s", fresh[i]->peer,
                     !fresh[i]->up    ? "through hosts"
                     : l->ops->graphs ? "by peer memory"
                                      : "by NCCL");
    }
    return st;
}

/* The peers of a step that no link of this epoch is known of, ascending. */
static size_t fresh_links(struct backend *b, struct link **fresh)
{
    struct gpu_links *l = b->links;
    const struct exchange_key *key = &b->input->key;
    bool wanted[EXCHANGE_PEERS_MAX] = { 0 };
    size_t n = 0;
    for (int kind = 0; kind < ATTEND_TRAFFICS; kind++)
        for (uint32_t i = 0; i < b->input->attend->n_messages[kind]; i++) {
            const uint16_t peer = message(b, kind, i)->peer;
            struct link *link = link_find(l, peer);
            if (!link && l->n_links < EXCHANGE_PEERS_MAX) {
                link = &l->links[l->n_links++];
                *link = (struct link){ .peer = peer, .group = ~key->group };
            }
            if (link && (link->group != key->group || link->epoch != key->epoch))
                wanted[link - l->links] = true;
        }
    for (uint32_t peer = 0; peer <= UINT16_MAX; peer++) {
        struct link *link = n < EXCHANGE_PEERS_MAX ? link_find(l, (uint16_t)peer) : NULL;
        if (!link || !wanted[link - l->links])
            continue;
        link->up = false;
        link->group = key->group;
        link->epoch = key->epoch;
        fresh[n++] = link;
    }
    return n;
}

static uint64_t mixed(uint64_t x, uint64_t y)
{
    x = (x ^ y) * 0x9E3779B97F4A7C15u;
    return x ^ x >> 29;
}

static bool fits(const struct backend *b, int kind, uint32_t i)
{
    struct gpu_links *l = b->links;
    const struct attend_message *m = message(b, kind, i);
    const struct link *link = link_find(l, m->peer);
    if (kind <= RECEIVE_QUERIES && b->selects && b->input->select->choices[kind][i]) /* choices go behind, by hosts */
        return false;
    return link && link->up && l->ops->fits(l->method, m->peer, kind == SEND_QUERIES || kind == SEND_NODES, m->bytes);
}

static size_t placed(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

enum status gpu_links_prepare(struct backend *b)
{
    struct link *fresh[EXCHANGE_PEERS_MAX];
    const struct attend *a = b->input->attend;
    size_t bytes = 0;
    uint32_t n = 0, linked = 0;
    for (int kind = 0; kind < ATTEND_TRAFFICS; kind++)
        n += a->n_messages[kind];
    if (b->links)
        b->links->in_use = false;
    if (!n || !b->exchange_ops->gpu)
        return ST_OK;
    enum status st = b->links ? ST_OK : links_new(b);
    if (st)
        return st;
    struct gpu_links *l = b->links;
    const size_t n_fresh = fresh_links(b, fresh);
    st = n_fresh ? agree(b, fresh, n_fresh) : ST_OK;
    if (st) { /* who was left in the middle agrees anew, in the next epoch */
        for (size_t i = 0; i < n_fresh; i++)
            fresh[i]->group = ~b->input->key.group;
        return st;
    }
    for (int kind = 0; kind < ATTEND_TRAFFICS; kind++)
        for (uint32_t i = 0; i < a->n_messages[kind]; i++)
            if (fits(b, kind, i)) {
                bytes += placed(message(b, kind, i)->bytes);
                linked++;
            }
    l->n_plain = n - linked;
    *l->host_step = mixed(mixed(mixed(0, b->input->key.epoch), b->input->key.plan), b->input->key.group);
    l->aborted = false;
    l->st = ST_OK;
    l->peer = UINT16_MAX;
    l->in_use = linked > 0;
    return bytes ? gpu_reserve(b, &l->wire, bytes, false) : ST_OK;
}

/* ---- a step's messages ---- */

static bool any_message(const struct attend *a)
{
    for (int kind = 0; kind < ATTEND_TRAFFICS; kind++)
        if (a->n_messages[kind])
            return true;
    return false;
}

bool gpu_links_graph(const struct backend *b)
{
    const struct gpu_links *l = b->links;
    return !any_message(b->input->attend) || (l && l->in_use && !l->n_plain && l->ops->graphs);
}

/* Everything that the launches of messages and of what they are for take from the plan. */
uint64_t gpu_links_key(const struct backend *b)
{
    const struct attend *a = b->input->attend;
    uint64_t key = 0;
    if (!any_message(a))
        return 0;
    struct hasher *h = hasher_new();
    for (int kind = 0; kind < ATTEND_TRAFFICS; kind++) {
        hasher_add(h, &a->n_messages[kind], sizeof a->n_messages[kind]);
        for (uint32_t i = 0; i < a->n_messages[kind]; i++) {
            const struct attend_message *m = message(b, kind, i);
            const uint64_t one[] = { m->peer, m->bytes, m->job_begin, m->job_end };
            hasher_add(h, one, sizeof one);
        }
    }
    for (uint32_t r = 0; r < a->n_refs; r++) {
        const struct attend_ref *ref = &a->refs[r];
        const uint64_t one[] = { ref->job, ref->item, ref->n_items, ref->offset };
        hasher_add(h, one, sizeof one);
    }
    for (uint32_t j = 0; j < a->n_jobs; j++) {
        const struct attend_job *job = &a->jobs[j];
        const uint64_t one[] = { job->row, job->n_rows, job->n_tiles, job->store, job->n_items, job->n_nodes };
        hasher_add(h, one, sizeof one);
        for (uint32_t k = 0; k < job->n_nodes; k++)
            hasher_add(h, &a->code.v[a->nodes[job->node + k].begin], sizeof *a->code.v);
    }
    for (int list = SECTION_UNITS; list < SECTION_UNITS_END; list++) {
        const uint64_t one[] = { b->list[list].bytes > 0, (list - SECTION_UNITS) % 2 == 1 ? b->list[list].bytes : 0 };
        hasher_add(h, one, sizeof one);
    }
    for (int list = SECTION_JOINS; list < SECTION_JOINS_END; list++)
        hasher_add(h, &b->list[list].bytes, sizeof b->list[list].bytes);
    const uint64_t link = b->links ? b->links->links[0].epoch : 0;
    hasher_add(h, &link, sizeof link);
    const struct digest d = hasher_end(h);
    memcpy(&key, d.byte, sizeof key);
    return key;
}

enum status gpu_links_begin(struct backend *b)
{
    struct gpu_links *l = b->links;
    if (!l || !l->in_use)
        return ST_OK;
    return gpu_status((int)cudaMemcpyAsync(l->step, l->host_step, sizeof *l->step, cudaMemcpyHostToDevice, b->stream),
                      "links");
}

enum status gpu_links_end(struct backend *b)
{
    struct gpu_links *l = b->links;
    if (!l || !l->in_use)
        return ST_OK;
    int e = gpu_links_flush(b);
    if (!e)
        e = (int)cudaMemcpyAsync(l->host_failed, l->failed, sizeof *l->failed, cudaMemcpyDeviceToHost, b->stream);
    return gpu_status(e, "links");
}

bool gpu_links_take(const struct backend *b, enum attend_traffic kind, uint32_t i)
{
    return b->links && b->links->in_use && fits(b, kind, i);
}

void *gpu_links_place(const struct backend *b, enum attend_traffic kind, uint32_t i)
{
    size_t at = 0;
    for (int k = 0; k <= (int)kind; k++) {
        const uint32_t n = k < (int)kind ? b->input->attend->n_messages[k] : i;
        for (uint32_t j = 0; j < n; j++)
            at += fits(b, k, j) ? placed(message(b, k, j)->bytes) : 0;
    }
    return (uint8_t *)b->links->wire.data + at;
}

static struct gpu_message which_of(const struct backend *b, uint32_t layer, enum attend_traffic kind)
{
    const bool query = kind == SEND_QUERIES || kind == RECEIVE_QUERIES;
    return (struct gpu_message){ b->links->step, layer * PHASES + (query ? PHASE_QUERY : PHASE_PARTIAL) };
}

int gpu_links_send(struct backend *b, uint32_t layer, enum attend_traffic kind, uint32_t i, const void *from)
{
    const struct attend_message *m = message(b, kind, i);
    const struct gpu_message which = which_of(b, layer, kind);
    return b->links->ops->send(b->links->method, m->peer, &which, from, m->bytes, b->stream);
}

int gpu_links_receive(struct backend *b, uint32_t layer, enum attend_traffic kind, uint32_t i, void *to)
{
    const struct attend_message *m = message(b, kind, i);
    const struct gpu_message which = which_of(b, layer, kind);
    return b->links->ops->receive(b->links->method, m->peer, &which, to, m->bytes, b->stream);
}

int gpu_links_flush(struct backend *b)
{
    const struct gpu_links *l = b->links;
    return l && l->in_use && l->ops->flush ? l->ops->flush(l->method, b->stream) : 0;
}

/* ---- watching ---- */

void gpu_links_abort(struct backend *b)
{
    struct gpu_links *l = b->links;
    if (!l || !l->in_use || l->aborted)
        return;
    l->aborted = true;
    l->ops->abort(l->method);
}

/* Why what the device waits for will not come; ST_OK: it may. */
static enum status looked(struct backend *b, uint16_t *peer_out)
{
    struct gpu_links *l = b->links;
    for (size_t i = 0; i < l->n_links; i++) {
        const struct exchange_key key = key_of(b, LAYER_WATCH, l->links[i].peer);
        *peer_out = l->links[i].peer;
        /* nobody sends this: there is something to receive only if its sender or its epoch is gone */
        if (l->links[i].up && b->exchange_ops->ready(b->exchange, &key)) {
            const enum status st = b->exchange_ops->recv(b->exchange, &key, NULL, 0, clock_ns());
            return st ? st : ST_PROTOCOL;
        }
    }
    *peer_out = UINT16_MAX;
    return clock_ns() >= b->deadline_ns ? ST_TIMEOUT : ST_OK;
}

void gpu_links_watch(struct backend *b)
{
    struct gpu_links *l = b->links;
    int64_t until = 0;
    if (!l || !l->in_use)
        return;
    while (cudaStreamQuery(b->stream) == cudaErrorNotReady) {
        if (!l->aborted) {
            l->st = looked(b, &l->peer);
            if (l->st)
                gpu_links_abort(b);
        }
        if (l->aborted && !until)
            until = clock_ns() + give_up_ns;
        if (until && clock_ns() > until) {
            log_error("cuda: the device does not end its waits");
            return;
        }
    }
}

static enum status failure_status(struct gpu_links *l, uint16_t *peer_out)
{
    const uint32_t failure = *l->host_failed & 255, who = *l->host_failed >> 8;
    if (!failure)
        return ST_OK;
    *peer_out = who <= UINT16_MAX ? (uint16_t)who : UINT16_MAX;
    switch (failure) {
    case PEER_FAILED_TIME:
        return ST_TIMEOUT;
    case PEER_FAILED_ABORT:
        return l->st ? l->st : ST_PEER;
    case PEER_FAILED_CHECKSUM:
        return ST_CORRUPT;
    default:
        return ST_PROTOCOL;
    }
}

enum status gpu_links_finish(struct backend *b, enum status st)
{
    struct gpu_links *l = b->links;
    uint16_t peer = UINT16_MAX;
    if (!l || !l->in_use)
        return st;
    l->in_use = false;
    /* a step that went well has brought it (gpu_links_end) */
    if (st && cudaMemcpy(l->host_failed, l->failed, sizeof *l->failed, cudaMemcpyDeviceToHost)) {
        cudaGetLastError();
        *l->host_failed = 0;
    }
    const enum status failed = failure_status(l, &peer);
    if (!st || l->st) {
        st = l->st ? l->st : failed ? failed : st;
        b->failed_peer = l->peer != UINT16_MAX ? l->peer : st ? peer : b->failed_peer;
    }
    if (!st)
        return ST_OK;
    l->ops->reset(l->method);
    l->n_links = 0;
    gpu_status((int)cudaMemset(l->failed, 0, sizeof *l->failed), "links");
    gpu_graphs_drop(b);
    return st;
}
