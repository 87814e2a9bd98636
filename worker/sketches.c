#include "worker/sketches.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/hash.h"
#include "common/rng.h"
#include "model/calibration.h"

enum { SKETCH_MAGIC = 0x3253534c /* "LSS2" */, SKETCH_HEADER = 32, BUCKETS_FIRST = 1024 };

enum status sketches_init(struct sketches *all, const struct selector_impl *impl, const struct selector_spec *spec,
                          const struct selector_shape *shape, uint32_t n_model_layers)
{
    *all = (struct sketches){ .impl = impl, .spec = *spec, .shape = *shape };
    if (!impl)
        return ST_OK;
    all->n_layers = n_model_layers > spec->dense_layers ? n_model_layers - spec->dense_layers : 0;
    all->layer_bytes = impl->windowed ? 0 : impl->sketch_bytes(shape);
    all->buckets = calloc(BUCKETS_FIRST, sizeof(struct sketch *));
    all->n_buckets = BUCKETS_FIRST;
    return all->buckets ? ST_OK : ST_NO_MEMORY;
}

enum status sketches_calibrate(struct sketches *all, const struct calibration *c, uint32_t n_model_layers,
                               struct error *err)
{
    const uint32_t heads = all->shape.n_kv_heads, n = selector_labels(all->shape.head_dim),
                   dims[3] = { n_model_layers, heads, n };
    const void *data;
    const enum status st = calibration_array(c, "channels", CALIBRATION_U8, 3, dims, NULL, &data, err);
    if (st)
        return st;
    for (uint32_t i = 0; i < n_model_layers * heads; i++) {
        const uint8_t *row = (const uint8_t *)data + (size_t)i * n;
        for (uint32_t k = 0; k < n; k++)
            if (row[k] >= all->shape.head_dim || (k && row[k] <= row[k - 1]))
                return error_set(err, ST_INVALID,
                                 "selector %s: calibration: array channels: layer %u, KV head %u: channels ascend and "
                                 "are below %u",
                                 all->spec.name, i / heads, i % heads, all->shape.head_dim);
    }
    const size_t bytes = (size_t)n_model_layers * heads * n;
    uint8_t *copy = malloc(bytes);
    if (!copy)
        return error_set(err, ST_NO_MEMORY, "no memory for %zu channels", bytes);
    memcpy(copy, data, bytes);
    free(all->channels);
    all->channels = copy;
    return ST_OK;
}

static void counted_free(struct sketches *all, void *p)
{
    size_t *memory = p;
    if (!p)
        return;
    memory -= 8;
    atomic_fetch_sub_explicit(&all->bytes, *memory, memory_order_relaxed);
    free(memory);
}

void *sketch_alloc(struct sketches *all, size_t bytes)
{
    const size_t header = 8 * sizeof(size_t), room = (bytes + header + 63) / 64 * 64;
    size_t *memory = aligned_alloc(64, room);
    if (!memory)
        return NULL;
    memset(memory, 0, room);
    *memory = bytes;
    atomic_fetch_add_explicit(&all->bytes, bytes, memory_order_relaxed);
    return memory + 8;
}

static void sketch_free(struct sketches *all, struct sketch *s)
{
    for (uint32_t i = 0; i < all->n_layers; i++) {
        counted_free(all, s->weights ? s->weights[i] : NULL);
        counted_free(all, s->lists ? s->lists[i] : NULL);
    }
    if (all->device_free)
        all->device_free(all->device_ctx, s, true);
    counted_free(all, s->weights);
    counted_free(all, s->lists);
    counted_free(all, s->walk);
    counted_free(all, s->data);
    counted_free(all, s->have);
    counted_free(all, s->queries);
    counted_free(all, s);
}

void sketches_deinit(struct sketches *all)
{
    for (uint32_t i = 0; i < all->n_buckets; i++) {
        while (all->buckets[i]) {
            struct sketch *s = all->buckets[i];
            all->buckets[i] = s->next;
            sketch_free(all, s);
        }
    }
    free(all->buckets);
    free(all->channels);
    memset(all, 0, sizeof *all);
}

static struct sketch **place(const struct sketches *all, kv_handle handle)
{
    struct sketch **at = &all->buckets[mix64(handle) & (all->n_buckets - 1)];
    while (*at && (*at)->handle != handle)
        at = &(*at)->next;
    return at;
}

struct sketch *sketch_find(const struct sketches *all, kv_handle handle)
{
    return all->impl ? *place(all, handle) : NULL;
}

static void grow(struct sketches *all)
{
    struct sketch **buckets = calloc(2 * (size_t)all->n_buckets, sizeof(struct sketch *));
    if (!buckets)
        return; /* longer chains, nothing worse */
    for (uint32_t i = 0; i < all->n_buckets; i++) {
        while (all->buckets[i]) {
            struct sketch *s = all->buckets[i], **to = &buckets[mix64(s->handle) & (2 * all->n_buckets - 1)];
            all->buckets[i] = s->next;
            s->next = *to;
            *to = s;
        }
    }
    free(all->buckets);
    all->buckets = buckets;
    all->n_buckets *= 2;
}

struct sketch *sketch_open(struct sketches *all, kv_handle handle)
{
    struct sketch **at = place(all, handle);
    if (*at)
        return *at;
    if (all->n >= all->n_buckets && all->n_buckets < 1u << 28) {
        grow(all);
        at = place(all, handle);
    }
    struct sketch *s = sketch_alloc(all, sizeof *s);
    if (!s)
        return NULL;
    s->handle = handle;
    *at = s;
    all->n++;
    return s;
}

static void free_unless_used(struct sketches *all, struct sketch *s)
{
    if (s->refs || s->held)
        return;
    *place(all, s->handle) = s->next;
    all->n--;
    sketch_free(all, s);
}

void sketch_ref(struct sketch *s)
{
    s->refs++;
}

void sketch_unref(struct sketches *all, struct sketch *s)
{
    s->refs--;
    free_unless_used(all, s);
}

void sketch_hold(struct sketch *s)
{
    s->held = true;
}

void sketch_drop(struct sketches *all, kv_handle handle)
{
    struct sketch *s = sketch_find(all, handle);
    if (!s)
        return;
    s->held = false;
    if (all->impl->at_owners) { /* who has the block has the sketch */
        counted_free(all, s->data);
        counted_free(all, s->have);
        s->data = s->have = NULL;
    }
    free_unless_used(all, s);
}

bool sketch_take(struct sketches *all, struct sketch *s)
{
    if (!s->have)
        s->have = sketch_alloc(all, all->n_layers);
    if (!s->data)
        s->data = sketch_alloc(all, all->n_layers * all->layer_bytes);
    return s->have && s->data;
}

bool sketch_take_queries(struct sketches *all, struct sketch *s)
{
    if (all->device_queries)
        return true;
    if (!s->queries)
        s->queries = sketch_alloc(all, (size_t)all->n_layers * KV_BLOCK * all->shape.head_dim * sizeof *s->queries);
    return s->queries != NULL;
}

void sketch_commit(struct sketches *all, struct sketch *s)
{
    if (all->device_free)
        all->device_free(all->device_ctx, s, false);
    counted_free(all, s->queries);
    s->queries = NULL;
}

bool sketch_complete(const struct sketches *all, const struct sketch *s)
{
    for (uint32_t i = 0; s && s->have && i < all->n_layers; i++)
        if (!s->have[i])
            return false;
    return s && s->have;
}

/* ---- wire ---- */

size_t sketch_wire_bytes(const struct sketches *all)
{
    return all->layer_bytes ? SKETCH_HEADER + all->n_layers * all->layer_bytes : 0;
}

static uint64_t wire_sum(const uint8_t *data, size_t payload)
{
    return mix64(checksum64(data, SKETCH_HEADER - 8)) ^ checksum64(data + SKETCH_HEADER, payload);
}

enum status sketch_export(const struct sketches *all, kv_handle handle, uint8_t *out)
{
    const struct sketch *s = sketch_find(all, handle);
    const size_t payload = all->n_layers * all->layer_bytes;
    const uint32_t fields[] = { SKETCH_MAGIC, (uint32_t)all->layer_bytes }, tail[] = { all->n_layers, 0 };
    if (!sketch_complete(all, s))
        return ST_NOT_FOUND;
    memcpy(out, fields, 8);
    memcpy(out + 8, &handle, 8);
    memcpy(out + 16, tail, 8);
    memcpy(out + SKETCH_HEADER, s->data, payload);
    const uint64_t sum = wire_sum(out, payload);
    memcpy(out + 24, &sum, 8);
    return ST_OK;
}

enum status sketch_rename(const struct sketches *all, uint8_t *data, size_t bytes, kv_handle handle, struct error *err)
{
    const size_t payload = all->n_layers * all->layer_bytes;
    uint64_t sum;
    if (bytes != sketch_wire_bytes(all))
        return error_set(err, ST_CORRUPT, "sketch: %zu bytes, %zu wanted", bytes, sketch_wire_bytes(all));
    memcpy(&sum, data + 24, 8);
    if (sum != wire_sum(data, payload))
        return error_set(err, ST_CORRUPT, "sketch: checksum");
    memcpy(data + 8, &handle, 8);
    sum = wire_sum(data, payload);
    memcpy(data + 24, &sum, 8);
    return ST_OK;
}

bool sketch_valid(const struct sketches *all, const uint8_t *data, size_t bytes)
{
    for (size_t at = 0; at + all->layer_bytes <= bytes; at += all->layer_bytes)
        if (!all->impl->valid(&all->shape, data + at))
            return false;
    return true;
}

enum status sketch_import(struct sketches *all, const uint8_t *data, size_t bytes, kv_handle handle, struct error *err)
{
    const size_t payload = all->n_layers * all->layer_bytes;
    if (bytes != sketch_wire_bytes(all))
        return error_set(err, ST_CORRUPT, "sketch of block %" PRIx64 ": %zu bytes, %zu wanted", handle, bytes,
                         sketch_wire_bytes(all));
    struct reader r = reader_of(data, bytes);
    const uint32_t magic = reader_u32(&r), layer_bytes = reader_u32(&r);
    const uint64_t named = reader_u64(&r);
    const uint32_t layers = reader_u32(&r), zero = reader_u32(&r);
    const uint64_t sum = reader_u64(&r);
    if (magic != SKETCH_MAGIC || zero)
        return error_set(err, ST_CORRUPT, "sketch of block %" PRIx64 ": magic %08x", handle, magic);
    if (layer_bytes != all->layer_bytes || layers != all->n_layers)
        return error_set(err, ST_CORRUPT, "sketch of block %" PRIx64 ": %u layers of %u bytes, here %u of %zu", handle,
                         layers, layer_bytes, all->n_layers, all->layer_bytes);
    if (named != handle)
        return error_set(err, ST_CORRUPT, "sketch of block %" PRIx64 " with block %" PRIx64, named, handle);
    if (sum != wire_sum(data, payload))
        return error_set(err, ST_CORRUPT, "sketch of block %" PRIx64 ": checksum", handle);
    if (!sketch_valid(all, data + SKETCH_HEADER, payload))
        return error_set(err, ST_CORRUPT,
                         "sketch of block %" PRIx64 " is none: a number is not finite, or a channel is beyond the head",
                         handle);
    struct sketch *s = sketch_open(all, handle);
    if (!s || !sketch_take(all, s))
        return error_set(err, ST_NO_MEMORY, "no memory for the sketch of block %" PRIx64, handle);
    if (!sketch_complete(all, s))
        memcpy(s->data, data + SKETCH_HEADER, payload);
    memset(s->have, 1, all->n_layers);
    return ST_OK;
}
