#include "worker/worker.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "model/calibration.h"
#include "worker/internal.h"

struct mail {
    struct control_message *message;
    struct mail *next;
};

struct outgoing {
    struct worker *worker;
    uint32_t slot;
    uint8_t header[];
};

/* ---- blocks between workers ---- */

static void on_block(void *ctx, uint16_t source, const uint8_t *data, size_t bytes)
{
    struct worker *w = ctx;
    struct error err = { 0 };
    struct control_copied copied = { .source = source };
    struct digest id;
    uint32_t position;
    const size_t sketch = sketch_wire_bytes(&w->select.store), block = bytes > sketch ? bytes - sketch : 0;
    enum status st = kv_pool_import(w->pool, data, block, &copied.handle, &position, &id, &err);
    if (st == ST_EXISTS)
        st = ST_OK;
    if (!st)
        kv_pool_name(w->pool, copied.handle, position, &id);
    if (!st && sketch) {
        st = sketch_import(&w->select.store, data + block, sketch, copied.handle, &err);
        if (!st)
            sketch_hold(sketch_find(&w->select.store, copied.handle));
    }
    if (st)
        log_warn("block from worker %u refused: %s", source, err.text);
    copied.status = st;
    if (copied.handle)
        w->config.on_copied(w->config.ctx, &copied);
}

static void on_sent(void *ctx, enum status st)
{
    struct outgoing *out = ctx;
    (void)st; /* the destination acknowledges to the coordinator, or does not */
    kv_pool_unpin(out->worker->pool, out->slot);
    free(out);
}

static void copy_run(struct worker *w, const struct control_copy *copy)
{
    const size_t header = kv_header_bytes(&w->layout), sketch = sketch_wire_bytes(&w->select.store);
    struct outgoing *out = malloc(sizeof *out + header + sketch);
    struct iovec parts[KV_WIRE_PARTS + 1];
    size_t n_parts = KV_WIRE_PARTS;
    struct digest id;
    memcpy(id.byte, copy->id, sizeof id.byte);
    if (!out)
        return;
    *out = (struct outgoing){ w, kv_pool_find(w->pool, copy->handle) };
    if (out->slot == UINT32_MAX || kv_pool_export(w->pool, copy->handle, copy->position, &id, out->header, parts) ||
        (sketch && sketch_export(&w->select.store, copy->handle, out->header + header))) {
        log_warn("block %llu is not here to be copied to worker %u", (unsigned long long)copy->handle,
                 copy->destination);
        free(out);
        return;
    }
    kv_pool_pin(w->pool, out->slot);
    if (!parts[n_parts - 1].iov_len) /* nothing was spilled */
        n_parts--;
    if (sketch)
        parts[n_parts++] = (struct iovec){ out->header + header, sketch };
    if (w->config.exchange_ops->send_block(w->exchange, copy->destination, parts, n_parts, on_sent, out))
        on_sent(out, ST_PEER);
}

static void members_take(struct worker *w, const struct control_members *members)
{
    struct exchange_peer peers[PLAN_WORKERS_MAX];
    struct error err = { 0 };
    size_t n = 0;
    for (uint32_t i = 0; i < members->n_members && n < PLAN_WORKERS_MAX; i++)
        if (members->members[i].id != w->config.exchange.self)
            peers[n++] = (struct exchange_peer){ members->members[i].id, members->members[i].address,
                                                 members->members[i].address_bytes, members->members[i].token };
    exchange_roster(w->exchange, members->roster);
    if (w->config.exchange_ops->peers_set(w->exchange, peers, n, &err))
        log_error("members: %s", err.text);
}

static void names_take(struct worker *w, const struct control_blocks *names)
{
    for (uint32_t i = 0; i < names->n_blocks; i++) {
        struct digest id;
        memcpy(id.byte, names->blocks[i].id, sizeof id.byte);
        kv_pool_name(w->pool, names->blocks[i].handle, names->blocks[i].position, &id);
    }
}

/* ---- the step thread ---- */

static struct control_message *mail_take(struct worker *w, bool *quit)
{
    pthread_mutex_lock(&w->lock);
    struct mail *mail = w->first;
    if (mail) {
        w->first = mail->next;
        if (!w->first)
            w->last = &w->first;
    }
    *quit = w->quit;
    pthread_mutex_unlock(&w->lock);
    struct control_message *message = mail ? mail->message : NULL;
    free(mail);
    return message;
}

static void stats_refresh(struct worker *w)
{
    struct exchange_stats x;
    struct kv_pool_stats pool;
    w->config.exchange_ops->stats(w->exchange, &x);
    kv_pool_stats(w->pool, &pool);
    atomic_store(&w->bytes_sent, x.bytes_sent);
    atomic_store(&w->bytes_received, x.bytes_received);
    atomic_store(&w->dropped, x.dropped);
    atomic_store(&w->blocks_used, pool.used);
    if (pool.n_spilled && !w->spill_said)
        log_info("keys and values that the KV codec has no room for: what spills takes memory beside the pool, up to "
                 "%zu bytes a block of %zu",
                 pool.spill_bytes, pool.block_bytes);
    w->spill_said |= pool.n_spilled != 0;
}

static void mail_run(struct worker *w, const struct control_message *message)
{
    switch (message->kind) {
    case CONTROL_PLAN:
        worker_run(w, message->as.plan);
        atomic_fetch_add(&w->plans_done, 1);
        break;
    case CONTROL_COPY:
        if (message->as.copy.destination == w->config.exchange.self)
            worker_disk_load(w, &message->as.copy);
        else
            copy_run(w, &message->as.copy);
        break;
    case CONTROL_MEMBERS:
        members_take(w, &message->as.members);
        break;
    case CONTROL_NAMES:
        names_take(w, &message->as.blocks);
        break;
    case CONTROL_FENCE:
        worker_fence(w, message->as.fence.group, message->as.fence.epoch);
        break;
    default:
        log_warn("message of kind %d is not for a worker", (int)message->kind);
    }
    w->config.exchange_ops->progress(w->exchange);
    worker_disk_run(w);
    stats_refresh(w);
}

static void *step_thread(void *arg)
{
    struct worker *w = arg;
    bool quit = false;
    cpu_thread_init();
    for (;;) {
        struct control_message *message = mail_take(w, &quit);
        if (message) {
            if (!quit)
                mail_run(w, message);
            free(message);
            continue;
        }
        if (quit)
            break;
        w->config.exchange_ops->sleep(w->exchange, w->wake, 100);
        uint64_t n;
        if (read(w->wake, &n, sizeof n) < 0 && errno != EAGAIN)
            log_error("eventfd: %s", strerror(errno));
        worker_disk_run(w);
        stats_refresh(w);
    }
    return NULL;
}

enum status worker_post(struct worker *w, struct control_message *message)
{
    struct mail *mail = malloc(sizeof *mail);
    if (!mail)
        return ST_NO_MEMORY;
    if (message->kind == CONTROL_FENCE && message->as.fence.epoch)
        w->config.exchange_ops->abort(w->exchange, message->as.fence.group, message->as.fence.epoch - 1);
    *mail = (struct mail){ message, NULL };
    pthread_mutex_lock(&w->lock);
    *w->last = mail;
    w->last = &mail->next;
    pthread_mutex_unlock(&w->lock);
    const uint64_t one = 1;
    if (write(w->wake, &one, sizeof one) < 0)
        log_error("eventfd: %s", strerror(errno));
    return ST_OK;
}

/* ---- life ---- */

/* Of a block's payload on its way, at most. */
static size_t pool_block_bytes(const struct worker *w)
{
    struct kv_pool_stats pool;
    kv_pool_stats(w->pool, &pool);
    return pool.block_bytes + pool.spill_bytes;
}

/* Addresses for what the backend's codec can not make fit, if there is such. */
static enum status spill_open(struct worker *w, struct error *err)
{
    const struct kv_spill spill = w->ops->kv_spill ? w->ops->kv_spill(w->backend) : (struct kv_spill){ 0 };
    return spill.bytes ? kv_pool_spill_new(w->pool, spill.bytes, spill.mark, err) : ST_OK;
}

uint64_t worker_open_blocks(uint64_t kv_bytes, uint64_t open_bytes)
{
    enum { OPEN_MIN = 16, OPEN_MAX = 512 };
    const uint64_t n = open_bytes ? kv_bytes / 8 / open_bytes : 0;
    return !open_bytes ? 0 : n < OPEN_MIN ? OPEN_MIN : n > OPEN_MAX ? OPEN_MAX : n;
}

static enum status pool_open(struct worker *w, struct error *err)
{
    const struct worker_config *c = &w->config;
    struct kv_layout open = w->layout;
    size_t block_bytes, open_bytes = 0;
    uint64_t n_blocks = c->n_blocks, n_open = 0;
    open.part_bytes = w->ops->open_part_bytes(w->backend);
    if (!kv_layout_block_bytes(&w->layout, &block_bytes) ||
        (open.part_bytes && !kv_layout_block_bytes(&open, &open_bytes)))
        return error_set(err, ST_TOO_LARGE, "a KV block of this model does not fit in memory");
    if (open_bytes)
        n_open = c->n_blocks ? c->open_blocks : worker_open_blocks(c->kv_bytes, open_bytes);
    if (!c->n_blocks)
        n_blocks = c->kv_bytes > n_open * open_bytes ? (c->kv_bytes - n_open * open_bytes) / block_bytes : 0;
    if (n_blocks < 2 || n_blocks >= UINT32_MAX)
        return error_set(
            err, ST_INVALID,
            "kv-bytes %llu: blocks of this model take %zu bytes, at least 2 are needed, and %zu for open ones",
            (unsigned long long)c->kv_bytes, block_bytes, (size_t)n_open * open_bytes);
    enum status st = kv_pool_new_in(&w->layout, (uint32_t)n_blocks, w->ops->kv_memory, &w->pool, err);
    if (!st)
        st = spill_open(w, err);
    return st ? st : open_blocks_init(&w->open, w->pool, open.part_bytes, (uint32_t)n_open, err);
}

static enum status selector_known(const struct worker *w, const char *text, struct error *err)
{
    const char *const *has = w->ops->selectors;
    const size_t n = strcspn(text, "@,");
    if (!has || !strcmp(text, "dense"))
        return ST_OK;
    for (size_t i = 0; has[i]; i++)
        if (strlen(has[i]) == n && !strncmp(has[i], text, n))
            return ST_OK;
    return error_set(err, ST_UNSUPPORTED, "device %s has no selector %.*s: there are dense, %s and %s", w->ops->name,
                     (int)n, text, has[0], has[1]);
}

/* The calibration that the selector's text names: of this selector, model and digest. */
static enum status channels_open(struct worker *w, struct error *err)
{
    const struct selector_spec *spec = &w->select.store.spec;
    const struct calibration *c = w->config.channels;
    const struct digest model = model_digest(w->model);
    char of[33], is[33];
    if (!spec->channels[0])
        return ST_OK;
    if (!c)
        return error_set(err, ST_INVALID, "selector %s: calibration %s is served, and none is here", spec->name,
                         spec->channels);
    digest_text(&model, of);
    digest_text(calibration_digest(c), is);
    if (strcmp(calibration_origin(c)->codec, spec->name) != 0 || strcmp(calibration_origin(c)->model, of) != 0 ||
        strcmp(is, spec->channels) != 0)
        return error_set(err, ST_INVALID, "selector %s: calibration %s of %s and model %s is not %s of model %s",
                         spec->name, is, calibration_origin(c)->codec, calibration_origin(c)->model, spec->channels,
                         of);
    return sketches_calibrate(&w->select.store, c, model_config(w->model)->n_layers, err);
}

static enum status selector_open(struct worker *w, struct error *err)
{
    const struct model_config *c = model_config(w->model);
    const struct selector_shape shape = { .n_heads = c->n_heads,
                                          .n_kv_heads = c->n_kv_heads,
                                          .head_dim = c->head_dim,
                                          .open = w->config.float32 ? KV_F32 : KV_BF16 };
    const char *text = w->config.selector ? w->config.selector : "dense";
    enum status st = selector_known(w, text, err);
    if (st)
        return st;
    st = select_init(&w->select, text, &shape, c->n_layers, w->config.positions_max, w->ops->leaf_blocks,
                     w->config.float32 ? 0 : cpu_caps(), err);
    w->select.store.device_queries = w->ops->kv_memory != NULL;
    return st ? st : channels_open(w, err);
}

static enum status exchange_start(struct worker *w, struct error *err)
{
    const enum status st = w->config.exchange_ops->open(&w->config.exchange, &w->exchange, err);
    if (!st)
        w->address_bytes = w->config.exchange_ops->address(w->exchange, w->address);
    return st;
}

static enum status open_parts(struct worker *w, struct error *err)
{
    const struct worker_config *c = &w->config;
    const struct backend_config backend = { .n_threads = c->n_threads,
                                            .step_rows_max = c->step_rows_max,
                                            .float32 = c->float32,
                                            .kv_codec = c->kv_codec,
                                            .calibration = c->calibration,
                                            .tap = c->tap,
                                            .ops_done = &w->ops_done };
    w->ops = backend_find(c->device);
    if (!w->ops)
        return error_set(err, ST_UNSUPPORTED, "device %s: this build has no such backend", c->device);
    enum status st = w->ops->open(&backend, w->model, c->on_progress, c->ctx, &w->backend, err);
    if (st)
        return st;
    w->ops->fingerprint(w->backend, w->fingerprint, sizeof w->fingerprint);
    w->ops->kv_layout(w->backend, &w->layout);
    st = selector_open(w, err);
    if (st)
        return st;
    st = pool_open(w, err);
    if (!st)
        st = worker_disk_open(w, err);
    if (st)
        return st;
    w->config.exchange.on_block = on_block;
    w->config.exchange.waits_since_ms = &w->waits_since_ms;
    w->config.exchange.ctx = w;
    if (!w->config.exchange.message_bytes_max)
        w->config.exchange.message_bytes_max = pool_block_bytes(w) + kv_header_bytes(&w->layout) + (1u << 28);
    return exchange_start(w, err);
}

static enum status thread_start(struct worker *w, struct error *err)
{
    w->quit = false;
    w->started = !pthread_create(&w->thread, NULL, step_thread, w);
    return w->started ? ST_OK : error_set(err, ST_NO_MEMORY, "no thread");
}

/* What runs is abandoned, what waits is dropped. */
static void thread_stop(struct worker *w)
{
    if (w->started) {
        const uint64_t one = 1;
        pthread_mutex_lock(&w->lock);
        w->quit = true;
        pthread_mutex_unlock(&w->lock);
        if (write(w->wake, &one, sizeof one) < 0)
            log_error("eventfd: %s", strerror(errno));
        w->config.exchange_ops->abort(w->exchange, atomic_load(&w->running_group),
                                      UINT64_MAX - 1); /* a step that waits ends */
        pthread_join(w->thread, NULL);
    }
    w->started = false;
    bool quit;
    for (struct control_message *m; (m = mail_take(w, &quit));)
        free(m);
}

/* As a plan would say it that drops all that has no name, and forgets all sequences. */
static enum status forget_all(struct worker *w, struct error *err)
{
    struct plan plan = { .leaf_blocks = w->ops->leaf_blocks };
    kv_handle *drops = NULL;
    uint64_t *forgets = NULL;
    enum status st = kv_pool_nameless(w->pool, &drops, &plan.n_drops);
    if (!st)
        st = sequences_ids(w->sequences, &forgets, &plan.n_forgets);
    plan.drops = drops;
    plan.forgets = forgets;
    if (!st)
        st = worker_take(w, &plan, err);
    if (!st)
        st = select_take(&w->select, &plan, w->config.exchange.self, NULL, err);
    free(drops);
    free(forgets);
    return st ? error_set(err, st, "no memory to forget what the coordinator said") : ST_OK;
}

enum status worker_pause(struct worker *w, struct error *err)
{
    thread_stop(w);
    worker_disk_pause(w);
    w->config.exchange_ops->close(w->exchange); /* blocks on their way out are let go */
    w->exchange = NULL;
    w->n_fences = 0; /* the next one's epochs are higher, or it is not obeyed */
    return forget_all(w, err);
}

enum status worker_resume(struct worker *w, uint16_t self, void *ctx, struct error *err)
{
    w->config.ctx = ctx;
    w->config.exchange.self = self;
    const enum status st = exchange_start(w, err);
    return st ? st : thread_start(w, err);
}

enum status worker_inventory(const struct worker *w, struct kv_named **blocks_out, uint32_t *n_out, uint64_t *epoch_out)
{
    *epoch_out = w->epoch;
    return kv_pool_named(w->pool, blocks_out, n_out);
}

enum status worker_new(const struct worker_config *config, const struct model *model, struct worker **worker_out,
                       struct error *err)
{
    struct worker *w = calloc(1, sizeof *w);
    if (!w)
        return error_set(err, ST_NO_MEMORY, "no memory");
    w->config = *config;
    w->model = model;
    w->digest = model_digest(model);
    w->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    w->last = &w->first;
    pthread_mutex_init(&w->lock, NULL);
    w->sequences = sequences_new();
    w->rows = malloc(config->step_rows_max * sizeof *w->rows);
    w->seals = malloc(config->step_rows_max * sizeof *w->seals);
    enum status st = w->wake < 0 || !w->sequences || !w->rows || !w->seals ? error_set(err, ST_NO_MEMORY, "no memory")
                                                                           : open_parts(w, err);
    if (!st)
        st = thread_start(w, err);
    if (st) {
        worker_free(w);
        return st;
    }
    *worker_out = w;
    return ST_OK;
}

void worker_free(struct worker *w)
{
    if (!w)
        return;
    thread_stop(w);
    if (w->exchange)
        w->config.exchange_ops->close(w->exchange);
    worker_disk_close(w);
    open_blocks_deinit(&w->open);
    kv_pool_free(w->pool);
    select_deinit(&w->select); /* the backend takes its copies of sketches back */
    if (w->backend)
        w->ops->close(w->backend);
    sequences_free(w->sequences);
    attend_free(&w->attend);
    free(w->rows);
    free(w->seals);
    free(w->asks);
    free(w->plan_sequences);
    if (w->wake >= 0)
        close(w->wake);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

void worker_ready(const struct worker *w, struct control_ready *ready_out)
{
    struct kv_pool_stats pool;
    kv_pool_stats(w->pool, &pool);
    *ready_out = (struct control_ready){
        .fingerprint = w->fingerprint,
        .leaf_blocks = w->ops->leaf_blocks,
        .n_blocks = pool.n_blocks,
        .block_bytes = pool.block_bytes,
        .weight_bytes = w->ops->weight_bytes(w->backend),
        .open_blocks = pool.n_rows,
        .pool_bytes = (uint64_t)pool.n_blocks * pool.block_bytes + (uint64_t)pool.n_rows * pool.rows_bytes,
        .address = w->address,
        .address_bytes = (uint32_t)w->address_bytes,
    };
    memcpy(ready_out->model_digest, w->digest.byte, sizeof ready_out->model_digest);
    memcpy(ready_out->secret, exchange_secret(w->exchange), sizeof ready_out->secret);
}

void *worker_part(struct worker *w, kv_handle handle, uint32_t layer, uint32_t kv_head)
{
    const uint32_t slot = kv_pool_find(w->pool, handle);
    if (slot == UINT32_MAX || w->ops->kv_memory || layer >= w->layout.n_layers || kv_head >= w->layout.n_kv_heads)
        return NULL;
    return kv_pool_part(w->pool, slot, layer, kv_head);
}

void worker_stats(const struct worker *w, struct worker_stats *stats_out)
{
    const int64_t since = atomic_load(&w->waits_since_ms), waits = since ? clock_ms() - since : 0;
    struct kv_disk_stats disk = { 0 };
    if (w->disk)
        kv_disk_stats(w->disk, &disk);
    *stats_out = (struct worker_stats){
        .plans_done = atomic_load(&w->plans_done),
        .bytes_sent = atomic_load(&w->bytes_sent),
        .bytes_received = atomic_load(&w->bytes_received),
        .blocks_used = atomic_load(&w->blocks_used),
        .sketch_bytes = atomic_load(&w->select.store.bytes),
        .work = atomic_load(&w->plans_done) + atomic_load(&w->ops_done),
        .dropped = atomic_load(&w->dropped),
        .waits_ms = waits > 0 ? (uint32_t)waits : 0,
        .disk = disk,
    };
}
