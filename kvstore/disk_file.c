#include "kvstore/disk_file.h"

#include <inttypes.h>
#include <string.h>

#include "common/bytes.h"
#include "proto/plan.h"

enum { MAGIC = 0x4456534c /* "LSVD" */, VERSION = 1, AT_BODY_SUM = 56, AT_OWN_SUM = 64 };

void kv_disk_file_seal(uint8_t *file, size_t bytes, const struct digest *fingerprint, const struct digest *id,
                       uint32_t position)
{
    const uint32_t magic = MAGIC, version = VERSION, zero = 0;
    const uint64_t body = bytes - KV_DISK_HEADER, sum = checksum64(file + KV_DISK_HEADER, body);
    memcpy(file, &magic, 4);
    memcpy(file + 4, &version, 4);
    memcpy(file + 8, fingerprint->byte, 16);
    memcpy(file + 24, id->byte, 16);
    memcpy(file + 40, &position, 4);
    memcpy(file + 44, &zero, 4);
    memcpy(file + 48, &body, 8);
    memcpy(file + AT_BODY_SUM, &sum, 8);
    const uint64_t own = checksum64(file, AT_OWN_SUM);
    memcpy(file + AT_OWN_SUM, &own, 8);
}

enum status kv_disk_header_check(const uint8_t *header, uint64_t file_bytes, const struct digest *fingerprint,
                                 const struct digest *id, uint32_t *position_out, struct error *err)
{
    struct reader r = reader_of(header, KV_DISK_HEADER);
    const uint32_t magic = reader_u32(&r), version = reader_u32(&r);
    const uint8_t *made = reader_take(&r, 16), *name = reader_take(&r, 16);
    const uint32_t position = reader_u32(&r), zero = reader_u32(&r);
    const uint64_t body = reader_u64(&r);
    reader_u64(&r);
    const uint64_t own = reader_u64(&r);
    if (magic != MAGIC)
        return error_set(err, ST_CORRUPT, "magic %08x", magic);
    if (version != VERSION)
        return error_set(err, ST_CORRUPT, "version %u, here %d", version, VERSION);
    if (own != checksum64(header, AT_OWN_SUM))
        return error_set(err, ST_CORRUPT, "checksum of the header");
    if (memcmp(made, fingerprint->byte, 16) != 0)
        return error_set(err, ST_CORRUPT, "fingerprint: made by another model, codec, selector or machine");
    if (memcmp(name, id->byte, 16) != 0)
        return error_set(err, ST_CORRUPT, "id: another block's than its name");
    if (position >= PLAN_POSITIONS_MAX / PLAN_BLOCK || zero)
        return error_set(err, ST_CORRUPT, "position %u, then %u", position, zero);
    if (file_bytes <= KV_DISK_HEADER || body != file_bytes - KV_DISK_HEADER)
        return error_set(err, ST_CORRUPT, "%" PRIu64 " bytes, its header says %" PRIu64 " behind it", file_bytes, body);
    *position_out = position;
    return ST_OK;
}

enum status kv_disk_file_check(const uint8_t *file, size_t bytes, const struct digest *fingerprint,
                               const struct digest *id, uint32_t *position_out, struct error *err)
{
    uint32_t position;
    uint64_t sum;
    if (bytes < KV_DISK_HEADER)
        return error_set(err, ST_CORRUPT, "%zu bytes, its header takes %d", bytes, KV_DISK_HEADER);
    const enum status st = kv_disk_header_check(file, bytes, fingerprint, id, &position, err);
    if (st)
        return st;
    memcpy(&sum, file + AT_BODY_SUM, sizeof sum);
    if (sum != checksum64(file + KV_DISK_HEADER, bytes - KV_DISK_HEADER))
        return error_set(err, ST_CORRUPT, "checksum of the contents");
    *position_out = position;
    return ST_OK;
}
