/* Blocks between the pool and the disk tier: those that are dropped and have a name are written, those that the coordinator asks for are read. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "worker/internal.h"

enum {
    TOLD_AT_ONCE = 64,
    AHEAD_BLOCKS = 4,
    AHEAD_PLACES = 256, /* written ahead, and looked at for that, between two messages */
    END_MS = 1500,      /* for blocks in memory when the worker ends: up stops a worker within 2 s */
};

/* The tier's thread has something for the step thread. */
static void wake(void *ctx)
{
    const struct worker *w = ctx;
    const uint64_t one = 1;
    if (write(w->wake, &one, sizeof one) < 0 && errno != EAGAIN)
        log_error("eventfd: %s", strerror(errno));
}

/* Ids say which bits a block has; this says which bytes mean them. */
static struct digest fingerprint_of(const struct worker *w)
{
    struct hasher *h = hasher_new();
    hasher_add_text(h, "longspan kv disk 1");
    hasher_add(h, w->digest.byte, sizeof w->digest.byte);
    hasher_add_text(h, w->fingerprint);
    hasher_add_text(h, w->config.selector ? w->config.selector : "dense");
    hasher_add_u64(h, w->layout.n_layers);
    hasher_add_u64(h, w->layout.n_kv_heads);
    hasher_add_u64(h, w->layout.part_bytes);
    hasher_add_u64(h, w->layout.version);
    return hasher_end(h);
}

enum status worker_disk_open(struct worker *w, struct error *err)
{
    struct kv_pool_stats pool;
    if (!w->config.disk_dir || !w->config.disk_dir[0])
        return ST_OK;
    kv_pool_stats(w->pool, &pool);
    const struct kv_disk_config config = { .dir = w->config.disk_dir,
                                           .bytes_max = w->config.disk_bytes,
                                           .contents_bytes_max = kv_header_bytes(&w->layout) + pool.block_bytes +
                                                                 pool.spill_bytes + sketch_wire_bytes(&w->select.store),
                                           .fingerprint = fingerprint_of(w),
                                           .on_event = wake,
                                           .ctx = w };
    return kv_disk_open(&config, &w->disk, err);
}

/* The beginnings of prefixes first: what is behind a gap is not found. */
static void keep_all(struct worker *w)
{
    const int64_t until = clock_ms() + END_MS;
    struct kv_named *named;
    uint32_t n;
    if (kv_pool_named(w->pool, &named, &n))
        return;
    for (uint32_t i = n; i > 0; i--) {
        const int64_t left = until - clock_ms();
        if (left <= 0) {
            log_info("kv-disk: %u blocks in memory were left when the worker ended", i);
            break;
        }
        worker_disk_keep(w, named[i - 1].handle, (int32_t)left);
    }
    free(named);
}

void worker_disk_close(struct worker *w)
{
    if (!w->disk)
        return;
    keep_all(w);
    kv_disk_close(w->disk);
    w->disk = NULL;
}

/* The block's wire form and sketches, as a file's contents. */
static void put(struct worker *w, const struct kv_named *named)
{
    const size_t header = kv_header_bytes(&w->layout), sketch = sketch_wire_bytes(&w->select.store);
    const uint32_t slot = kv_pool_find(w->pool, named->handle);
    struct iovec parts[KV_WIRE_PARTS];
    uint8_t *wire = malloc(header), *file = NULL;
    kv_pool_pin(w->pool, slot); /* so that what export copies goes with the pin */
    if (wire && !kv_pool_export(w->pool, named->handle, named->position, &named->id, wire, parts)) {
        const size_t block = parts[1].iov_len, spilled = parts[2].iov_len,
                     bytes = KV_DISK_HEADER + header + block + spilled + sketch;
        uint8_t *at = file = malloc(bytes);
        if (file) {
            memcpy(at += KV_DISK_HEADER, wire, header);
            memcpy(at += header, parts[1].iov_base, block);
            at += block;
            if (spilled)
                memcpy(at, parts[2].iov_base, spilled);
            if (!sketch || !sketch_export(&w->select.store, named->handle, at + spilled))
                kv_disk_put(w->disk, &named->id, named->position, file, bytes);
            else
                free(file); /* without its sketches it is of no use */
        }
    }
    kv_pool_unpin(w->pool, slot);
    free(wire);
}

static enum status keep(struct worker *w, const struct kv_named *named, int32_t wait_ms)
{
    struct kv_pool_stats pool;
    kv_pool_stats(w->pool, &pool);
    const enum status st =
        kv_disk_wants(w->disk, &named->id,
                      kv_header_bytes(&w->layout) + pool.block_bytes + sketch_wire_bytes(&w->select.store), wait_ms);
    if (!st)
        put(w, named);
    return st;
}

void worker_disk_keep(struct worker *w, kv_handle handle, int32_t wait_ms)
{
    struct kv_named named;
    if (w->disk && kv_pool_name_of(w->pool, handle, &named))
        keep(w, &named, wait_ms);
}

/*
 * Room for a long prompt is made all at once, by more blocks than the queue takes. So what will leave is written before that, a little at a time, once half of
 * the pool is used.
 */
static void keep_ahead(struct worker *w)
{
    struct kv_pool_stats pool;
    struct kv_named named;
    kv_pool_stats(w->pool, &pool);
    for (int i = 0; i < AHEAD_BLOCKS && pool.used > pool.n_blocks / 2; i++) {
        if (!kv_pool_unmarked(w->pool, AHEAD_PLACES, &w->disk_cursor, &named) ||
            keep(w, &named, KV_DISK_AHEAD) == ST_BUSY)
            return;
        kv_pool_mark(w->pool, named.handle);
    }
}

void worker_disk_load(struct worker *w, const struct control_copy *copy)
{
    struct control_copied copied = { .handle = copy->handle, .source = w->config.exchange.self };
    struct digest id;
    memcpy(id.byte, copy->id, sizeof id.byte);
    copied.status = w->disk ? kv_disk_get(w->disk, &id, copy->handle) : ST_NOT_FOUND;
    if (copied.status)
        w->config.on_copied(w->config.ctx, &copied);
}

/* As a block from a peer, but that its handle is the one that the coordinator says. */
static enum status take(struct worker *w, const struct kv_disk_event *e, struct error *err)
{
    const size_t sketch = sketch_wire_bytes(&w->select.store), contents = e->bytes - KV_DISK_HEADER,
                 block = contents > sketch ? contents - sketch : 0;
    uint8_t *data = e->file + KV_DISK_HEADER;
    kv_handle handle;
    uint32_t position;
    struct digest id;
    enum status st = kv_wire_rename(&w->layout, data, block, &e->id, e->tag, err);
    if (!st && sketch)
        st = sketch_rename(&w->select.store, data + block, sketch, e->tag, err);
    if (!st)
        st = kv_pool_import(w->pool, data, block, &handle, &position, &id, err);
    if (st && st != ST_EXISTS)
        return st;
    kv_pool_name(w->pool, e->tag, position, &id);
    if (!sketch)
        return ST_OK;
    st = sketch_import(&w->select.store, data + block, sketch, e->tag, err);
    if (!st)
        sketch_hold(sketch_find(&w->select.store, e->tag));
    return st;
}

static void read_done(struct worker *w, const struct kv_disk_event *e)
{
    struct control_copied copied = { .handle = e->tag, .source = w->config.exchange.self, .status = e->status };
    struct error err = { 0 };
    if (!e->status) {
        copied.status = take(w, e, &err);
        if (copied.status)
            log_warn("block from the disk refused: %s", err.text);
        if (copied.status == ST_CORRUPT)
            kv_disk_refuse(w->disk, &e->id);
    }
    free(e->file);
    w->config.on_copied(w->config.ctx, &copied);
}

struct telling {
    struct control_block blocks[TOLD_AT_ONCE];
    uint32_t n;
    bool gone;
};

static void tell(struct worker *w, struct telling *t)
{
    const struct control_blocks blocks = { 0, t->n, t->blocks };
    if (t->n && w->config.on_disk)
        w->config.on_disk(w->config.ctx, &blocks, t->gone);
    t->n = 0;
}

void worker_disk_run(struct worker *w)
{
    struct telling t = { .n = 0 };
    struct kv_disk_event e;
    if (!w->disk || !atomic_load(&w->disk_told))
        return;
    while (kv_disk_next(w->disk, &e)) {
        if (e.kind == KV_DISK_READ) {
            tell(w, &t); /* in the order in which it came */
            read_done(w, &e);
            continue;
        }
        const bool gone = e.kind == KV_DISK_GONE;
        if (gone != t.gone || t.n == TOLD_AT_ONCE)
            tell(w, &t);
        t.gone = gone;
        t.blocks[t.n] = (struct control_block){ .position = e.position };
        memcpy(t.blocks[t.n++].id, e.id.byte, sizeof e.id.byte);
    }
    tell(w, &t);
    keep_ahead(w);
}

void worker_disk_pause(struct worker *w)
{
    if (!w->disk)
        return;
    atomic_store(&w->disk_told, false);
    kv_disk_cancel(w->disk);
}

enum status worker_disk_list(struct worker *w, struct kv_disk_block **blocks_out, uint32_t *n_out)
{
    *blocks_out = NULL;
    *n_out = 0;
    return w->disk ? kv_disk_list(w->disk, blocks_out, n_out) : ST_OK;
}

void worker_disk_told(struct worker *w)
{
    atomic_store(&w->disk_told, true);
    if (w->disk)
        wake(w);
}
