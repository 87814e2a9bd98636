/* kv_pool_import: a block from a peer, into a pool whose parts may be spilled, or one whose parts all fit. And kv_disk_file_check: the file of a block. */
/* fuzz-libs: longspan_kvstore */
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"
#include "kvstore/disk_file.h"
#include "kvstore/kvstore.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const struct kv_layout layout = { 2, 1, 64, 5 };
enum { SPILL = 64, MARK = 63 };

/* Most mutations die at a checksum: with bit 0 of the first byte set, the sums are put right first, so that what lies behind is reached. */
static void repair(uint8_t *wire, size_t bytes, bool spills)
{
    const size_t header = kv_header_bytes(&layout);
    size_t spilled = header + layout.n_layers * 128;
    if (bytes < spilled)
        return;
    for (size_t l = 0; l < layout.n_layers && bytes - header >= (l + 1) * 128; l++) {
        uint64_t sum = checksum64(wire + header + l * 128, 128);
        for (uint32_t p = 0; p < 2 && spills; p++)
            if (wire[header + l * 128 + p * 64 + MARK] && bytes - spilled >= SPILL) {
                sum = mix64(sum ^ checksum64(wire + spilled, SPILL));
                spilled += SPILL;
            }
        memcpy(wire + 48 + 8 * l, &sum, 8);
    }
    const uint64_t own = checksum64(wire, header - 8);
    memcpy(wire + header - 8, &own, 8);
}

/* As a file of the disk tier; then as the contents of one whose own sums are right, which are renamed before they are taken. */
static void disk_file(struct kv_pool *pool, const uint8_t *data, size_t bytes)
{
    const struct digest print = { { 'p' } };
    struct digest id = { { 'i' } };
    uint8_t *file = malloc(bytes + KV_DISK_HEADER), *wire = file + KV_DISK_HEADER;
    uint32_t position;
    kv_handle handle;
    memcpy(file, data, bytes);
    if (!kv_disk_file_check(file, bytes, &print, &id, &position, NULL) && bytes <= KV_DISK_HEADER)
        abort();
    memcpy(wire, data, bytes);
    kv_disk_file_seal(file, bytes + KV_DISK_HEADER, &print, &id, 7);
    if (bytes && (kv_disk_file_check(file, bytes + KV_DISK_HEADER, &print, &id, &position, NULL) || position != 7))
        abort();
    if (bytes >= kv_header_bytes(&layout))
        memcpy(id.byte, wire + 24, sizeof id.byte);
    if (!kv_wire_rename(&layout, wire, bytes, &id, 42, NULL) &&
        !kv_pool_import(pool, wire, bytes, &handle, &position, &id, NULL)) {
        if (handle != 42)
            abort();
        kv_pool_drop(pool, handle);
    }
    free(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct kv_pool *pools[2];
    if (!pools[0] && (kv_pool_new(&layout, 2, &pools[0], NULL) || kv_pool_new(&layout, 2, &pools[1], NULL) ||
                      kv_pool_spill_new(pools[1], SPILL, MARK, NULL)))
        abort();
    if (!bytes)
        return 0;
    const bool spills = data[0] & 2;
    struct kv_pool *pool = pools[spills];
    uint8_t *wire = malloc(bytes);
    memcpy(wire, data + 1, bytes - 1);
    if (data[0] & 1)
        repair(wire, bytes - 1, spills);
    for (int turn = 0; turn < 2; turn++) {
        kv_handle handle = 0;
        uint32_t position;
        struct digest id;
        struct error err = { 0 };
        const enum status st = kv_pool_import(pool, wire, bytes - 1, &handle, &position, &id, &err);
        if ((st == ST_OK || st == ST_EXISTS) != (kv_pool_find(pool, handle) != UINT32_MAX))
            abort();
        if (turn)
            kv_pool_drop(pool, handle);
    }
    disk_file(pool, wire, bytes - 1);
    free(wire);
    return 0;
}
