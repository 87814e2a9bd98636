#include "kvstore/kvstore.h"

#include <inttypes.h>
#include <string.h>

#include "common/bytes.h"
#include "kvstore/pool.h"
#include "proto/plan.h"

/*
 * Header, little endian: u32 magic, u32 layout version, u64 handle, u32 position, u32 layers, u8[16] content id, u64 payload bytes,
 * u64[layers] checksums of the layers, u64 checksum of the header before it (a flipped handle would file good bytes under a wrong name).
 */
enum { KV_MAGIC = 0x3256534c /* "LSV2" */, HEADER_FIXED = 48, HEADER_HANDLE = 8, HEADER_ID = 24 };

size_t kv_header_bytes(const struct kv_layout *layout)
{
    return HEADER_FIXED + ((size_t)layout->n_layers + 1) * 8;
}

struct writer {
    uint8_t *at;
};

static void put(struct writer *w, const void *data, size_t bytes)
{
    memcpy(w->at, data, bytes);
    w->at += bytes;
}

enum status kv_pool_export(struct kv_pool *pool, kv_handle handle, uint32_t position, const struct digest *id,
                           void *header_out, struct iovec parts_out[KV_WIRE_PARTS])
{
    const uint32_t slot = kv_pool_find(pool, handle);
    if (slot == UINT32_MAX)
        return ST_NOT_FOUND;
    const size_t header_bytes = kv_header_bytes(&pool->layout);
    const uint64_t *sums = kv_pool_sums(pool, slot);
    uint8_t *payload = pool->ops ? kv_pool_copy(pool, slot) : kv_pool_payload(pool, slot);
    if (!sums || !payload)
        return ST_IO;
    const enum status st = kv_spills_copy(pool, slot, &parts_out[2]);
    if (st)
        return st;
    const uint32_t magic = KV_MAGIC;
    const uint64_t payload_bytes = pool->block_bytes + parts_out[2].iov_len;
    struct writer w = { header_out };
    put(&w, &magic, 4);
    put(&w, &pool->layout.version, 4);
    put(&w, &handle, 8);
    put(&w, &position, 4);
    put(&w, &pool->layout.n_layers, 4);
    put(&w, id->byte, sizeof id->byte);
    put(&w, &payload_bytes, 8);
    put(&w, sums, 8 * (size_t)pool->layout.n_layers);
    const uint64_t own = checksum64(header_out, header_bytes - 8);
    put(&w, &own, 8);
    parts_out[0] = (struct iovec){ header_out, header_bytes };
    parts_out[1] = (struct iovec){ payload, pool->block_bytes };
    return ST_OK;
}

struct block_header {
    uint32_t magic, version, position, n_layers;
    kv_handle handle;
    struct digest id;
    uint64_t payload_bytes, sum;
    const uint8_t *sums; /* u64[n_layers], unaligned */
};

static enum status header_read(const struct kv_pool *pool, const uint8_t *data, size_t bytes, struct block_header *h,
                               struct error *err)
{
    const size_t header_bytes = kv_header_bytes(&pool->layout);
    if (bytes < header_bytes)
        return error_set(err, ST_CORRUPT, "kv block: %zu bytes, its header takes %zu", bytes, header_bytes);
    struct reader r = reader_of(data, header_bytes);
    h->magic = reader_u32(&r);
    h->version = reader_u32(&r);
    h->handle = reader_u64(&r);
    h->position = reader_u32(&r);
    h->n_layers = reader_u32(&r);
    memcpy(h->id.byte, reader_take(&r, sizeof h->id.byte), sizeof h->id.byte);
    h->payload_bytes = reader_u64(&r);
    if (h->magic != KV_MAGIC)
        return error_set(err, ST_CORRUPT, "kv block: magic %08x", h->magic);
    if (h->version != pool->layout.version)
        return error_set(err, ST_CORRUPT, "kv block: layout version %u, here %u", h->version, pool->layout.version);
    if (h->n_layers != pool->layout.n_layers)
        return error_set(err, ST_CORRUPT, "kv block: %u layers, here %u", h->n_layers, pool->layout.n_layers);
    h->sums = reader_take(&r, 8 * (size_t)h->n_layers);
    h->sum = reader_u64(&r);
    if (h->sum != checksum64(data, header_bytes - 8))
        return error_set(err, ST_CORRUPT, "kv block: checksum of the header");
    if (!h->handle)
        return error_set(err, ST_CORRUPT, "kv block: handle 0");
    if (h->position >= PLAN_POSITIONS_MAX / PLAN_BLOCK)
        return error_set(err, ST_CORRUPT, "kv block %" PRIx64 ": position %u", h->handle, h->position);
    const bool exact = !pool->spills.part_bytes;
    if (h->payload_bytes != bytes - header_bytes || h->payload_bytes < pool->block_bytes ||
        (exact && h->payload_bytes > pool->block_bytes))
        return error_set(err, ST_CORRUPT, "kv block %" PRIx64 ": payload of %" PRIu64 " bytes, %zu came, %zu wanted",
                         h->handle, h->payload_bytes, bytes - header_bytes, pool->block_bytes);
    return ST_OK;
}

enum status kv_wire_rename(const struct kv_layout *layout, uint8_t *data, size_t bytes, const struct digest *id,
                           kv_handle handle, struct error *err)
{
    const size_t header_bytes = kv_header_bytes(layout);
    uint64_t own;
    if (bytes < header_bytes)
        return error_set(err, ST_CORRUPT, "kv block: %zu bytes, its header takes %zu", bytes, header_bytes);
    memcpy(&own, data + header_bytes - 8, 8);
    if (own != checksum64(data, header_bytes - 8) || memcmp(data + HEADER_ID, id->byte, sizeof id->byte) != 0)
        return error_set(err, ST_CORRUPT, "kv block: its header is not that of the block that was kept");
    memcpy(data + HEADER_HANDLE, &handle, 8);
    own = checksum64(data, header_bytes - 8);
    memcpy(data + header_bytes - 8, &own, 8);
    return ST_OK;
}

static uint64_t sum_at(const struct block_header *h, uint32_t layer)
{
    uint64_t sum;
    memcpy(&sum, h->sums + 8 * (size_t)layer, 8);
    return sum;
}

/* A layer's spilled parts, which follow the payload one behind the other, are added to its checksum. false: more are marked than came. */
static bool spilled_sum(const struct kv_pool *pool, const uint8_t *layer, struct reader *spilled, uint64_t *sum)
{
    const size_t bytes = pool->spills.part_bytes;
    for (uint32_t p = 0; bytes && p < 2 * pool->layout.n_kv_heads; p++) {
        if (!kv_spills_marked(pool, layer, p))
            continue;
        const uint8_t *part = reader_take(spilled, bytes);
        if (!part)
            return false;
        *sum = kv_spills_sum_next(*sum, part, bytes);
    }
    return true;
}

static enum status payload_check(const struct kv_pool *pool, const struct block_header *h, const uint8_t *payload,
                                 struct error *err)
{
    struct reader spilled = reader_of(payload + pool->block_bytes, h->payload_bytes - pool->block_bytes);
    for (uint32_t l = 0; l < h->n_layers; l++) {
        const uint8_t *layer = payload + l * pool->layer_bytes;
        uint64_t sum = checksum64(layer, pool->layer_bytes);
        if (!spilled_sum(pool, layer, &spilled, &sum))
            return error_set(err, ST_CORRUPT, "kv block %" PRIx64 ": more parts of layer %u are spilled than came",
                             h->handle, l);
        if (sum != sum_at(h, l))
            return error_set(err, ST_CORRUPT, "kv block %" PRIx64 ": checksum of layer %u", h->handle, l);
    }
    if (reader_left(&spilled))
        return error_set(err, ST_CORRUPT, "kv block %" PRIx64 ": %zu bytes behind its last part", h->handle,
                         reader_left(&spilled));
    return ST_OK;
}

static enum status copy_compare(struct kv_pool *pool, const struct block_header *h, uint32_t slot, struct error *err)
{
    const uint64_t *sums = kv_pool_sums(pool, slot);
    if (!sums)
        return error_set(err, ST_IO, "kv block %" PRIx64 ": the one here can not be read", h->handle);
    for (uint32_t l = 0; l < h->n_layers; l++) {
        if (sums[l] != sum_at(h, l))
            return error_set(err, ST_CORRUPT, "kv block %" PRIx64 ": differs from the one here in layer %u", h->handle,
                             l);
    }
    return ST_EXISTS;
}

enum status kv_pool_import(struct kv_pool *pool, const uint8_t *data, size_t bytes, kv_handle *handle_out,
                           uint32_t *position_out, struct digest *id_out, struct error *err)
{
    struct block_header h;
    enum status st = header_read(pool, data, bytes, &h, err);
    if (st)
        return st;
    const uint8_t *payload = data + kv_header_bytes(&pool->layout);
    st = payload_check(pool, &h, payload, err);
    if (st)
        return st;
    uint32_t slot = kv_pool_find(pool, h.handle);
    if (slot != UINT32_MAX) {
        st = copy_compare(pool, &h, slot, err);
        if (st != ST_EXISTS)
            return st;
    } else {
        bool fresh;
        st = kv_pool_take(pool, h.handle, &slot, &fresh);
        if (st)
            return error_set(err, st, "kv block %" PRIx64 ": the pool of %u blocks is full", h.handle, pool->n_blocks);
        if (!pool->ops) {
            memcpy(kv_pool_payload(pool, slot), payload, pool->block_bytes);
            kv_spills_put(pool, slot, payload + pool->block_bytes);
        } else if (!pool->ops->write(kv_pool_payload(pool, slot), payload, pool->block_bytes)) {
            kv_pool_drop(pool, h.handle);
            return error_set(err, ST_IO, "kv block %" PRIx64 ": can not be written", h.handle);
        }
        memcpy(pool->sums + (size_t)slot * h.n_layers, h.sums, 8 * (size_t)h.n_layers);
        pool->slots[slot].summed = true;
    }
    *handle_out = h.handle;
    *position_out = h.position;
    *id_out = h.id;
    return st;
}
