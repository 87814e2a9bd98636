/* kv_pool_import: a block from a peer. */
/* fuzz-libs: longspan_kvstore */
#include <stdlib.h>
#include <string.h>

#include "kvstore/kvstore.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const struct kv_layout layout = { 2, 1, 64, 5 };

/* Most mutations die at a checksum: with bit 0 of the first byte set, the sums are put right first, so that what lies behind is reached. */
static void repair(uint8_t *wire, size_t bytes)
{
    const size_t header = kv_header_bytes(&layout);
    if (bytes < header)
        return;
    for (size_t l = 0; l < layout.n_layers && bytes - header >= (l + 1) * 128; l++) {
        const uint64_t sum = checksum64(wire + header + l * 128, 128);
        memcpy(wire + 48 + 8 * l, &sum, 8);
    }
    const uint64_t own = checksum64(wire, header - 8);
    memcpy(wire + header - 8, &own, 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct kv_pool *pool;
    if (!pool && kv_pool_new(&layout, 2, &pool, NULL))
        abort();
    if (!bytes)
        return 0;
    uint8_t *wire = malloc(bytes);
    memcpy(wire, data + 1, bytes - 1);
    if (data[0] & 1)
        repair(wire, bytes - 1);
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
    free(wire);
    return 0;
}
