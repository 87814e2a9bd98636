/* fuzz-libs: longspan_kvstore longspan_common */
/* Files of the disk tier as they may lie on a disk: the file's own header and sums, then the block's wire form in them as it would be taken. */
#include <stdlib.h>
#include <string.h>

#include "kvstore/disk_file.h"
#include "kvstore/kvstore.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct kv_layout layout = { 2, 1, 64, 3 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct digest print = { { 'p' } }, id = { { 'i' } };
    static struct kv_pool *pool;
    struct error err = { 0 };
    uint32_t position;
    if (!pool && kv_pool_new(&layout, 4, &pool, &err))
        abort();
    uint8_t *file = malloc(size + KV_DISK_HEADER);
    if (!file)
        return 0;
    memcpy(file, data, size);
    if (!kv_disk_file_check(file, size, &print, &id, &position, &err) && size <= KV_DISK_HEADER)
        abort();
    /* With sums that are right, and any contents. */
    memcpy(file + KV_DISK_HEADER, data, size);
    if (size) {
        kv_disk_file_seal(file, size + KV_DISK_HEADER, &print, &id, 7);
        if (kv_disk_file_check(file, size + KV_DISK_HEADER, &print, &id, &position, &err) || position != 7)
            abort();
        uint8_t *wire = file + KV_DISK_HEADER;
        kv_handle handle;
        struct digest name;
        const size_t header = kv_header_bytes(&layout);
        if (size >= header) { /* as if the header's own sum were right */
            const uint64_t own = checksum64(wire, header - 8);
            memcpy(wire + header - 8, &own, 8);
        }
        memcpy(name.byte, size >= 40 ? wire + 24 : id.byte, sizeof name.byte);
        if (!kv_wire_rename(&layout, wire, size, &name, 42, &err) &&
            !kv_pool_import(pool, wire, size, &handle, &position, &name, &err)) {
            if (handle != 42)
                abort();
            kv_pool_drop(pool, handle);
        }
    }
    free(file);
    return 0;
}
