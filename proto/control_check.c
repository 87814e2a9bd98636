/* Is a message from the wire what it may be? Every length, range and text, and the field's name where it is not. */
#include "proto/control.h"
#include "proto/wire.h"

enum {
    NAME_MAX_BYTES = 127, /* device, transport, precision, codec, selector, fingerprint */
    HOST_MAX_BYTES = 255,
    MODEL_MAX_BYTES = 4096,
    ADDRESS_MAX_BYTES = 1024,
    MEMBERS_MAX = 4096,
};

static enum status range(uint64_t value, uint64_t low, uint64_t high, const char *field, struct error *err)
{
    if (value >= low && value <= high)
        return ST_OK;
    return error_set(err, ST_CORRUPT, "%s: %llu, must be %llu to %llu", field, (unsigned long long)value,
                     (unsigned long long)low, (unsigned long long)high);
}

static enum status length(const ProtobufCBinaryData *data, size_t low, size_t high, const char *field,
                          struct error *err)
{
    return range(data->len, low, high, field, err);
}

/* The first refusal wins. */
#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        const enum status st_ = (call);                                                                                \
        if (st_)                                                                                                       \
            return st_;                                                                                                \
    } while (0)

static enum status hello_check(const Longspan__V1__ControlHello *w, struct error *err)
{
    CHECK(wire_text(w->host, HOST_MAX_BYTES, "hello.host", err));
    CHECK(wire_text(w->device, NAME_MAX_BYTES, "hello.device", err));
    CHECK(wire_text(w->transport, NAME_MAX_BYTES, "hello.transport", err));
    return ST_OK;
}

static enum status welcome_check(const Longspan__V1__ControlWelcome *w, struct error *err)
{
    CHECK(range(w->worker_id, 0, UINT16_MAX - 1, "welcome.worker_id", err));
    CHECK(wire_text(w->model, MODEL_MAX_BYTES, "welcome.model", err));
    CHECK(wire_text(w->precision, NAME_MAX_BYTES, "welcome.precision", err));
    CHECK(wire_text(w->kv_codec, NAME_MAX_BYTES, "welcome.kv_codec", err));
    CHECK(wire_text(w->calibration, NAME_MAX_BYTES, "welcome.calibration", err));
    CHECK(wire_text(w->selector, NAME_MAX_BYTES, "welcome.selector", err));
    CHECK(range(w->positions_max, 1, PLAN_POSITIONS_MAX, "welcome.positions_max", err));
    CHECK(range(w->step_rows_max, 1, PLAN_ROWS_MAX, "welcome.step_rows_max", err));
    CHECK(range(w->heartbeat_ms, 1, 3600 * 1000, "welcome.heartbeat_ms", err));
    CHECK(range(w->silence_ms, w->heartbeat_ms, 3600 * 1000, "welcome.silence_ms", err));
    return ST_OK;
}

static enum status ready_check(const Longspan__V1__ControlReady *w, struct error *err)
{
    CHECK(wire_text(w->fingerprint, NAME_MAX_BYTES, "ready.fingerprint", err));
    CHECK(length(&w->model_digest, 16, 16, "ready.model_digest", err));
    CHECK(range(w->leaf_blocks, 1, 4096, "ready.leaf_blocks", err));
    CHECK(range(w->n_blocks, 1, UINT32_MAX - 1, "ready.n_blocks", err));
    CHECK(range(w->block_bytes, 1, (uint64_t)1 << 40, "ready.block_bytes", err));
    CHECK(length(&w->address, 0, ADDRESS_MAX_BYTES, "ready.address", err));
    CHECK(length(&w->secret, TOKEN_SECRET_BYTES, TOKEN_SECRET_BYTES, "ready.secret", err));
    return ST_OK;
}

static enum status members_check(const Longspan__V1__ControlMembers *w, struct error *err)
{
    CHECK(range(w->n_members, 0, MEMBERS_MAX, "members", err));
    for (size_t i = 0; i < w->n_members; i++) {
        CHECK(range(w->members[i]->id, i ? w->members[i - 1]->id + 1 : 0, UINT16_MAX - 1, "members.id", err));
        CHECK(length(&w->members[i]->address, 0, ADDRESS_MAX_BYTES, "members.address", err));
        CHECK(length(&w->members[i]->token, 16, 16, "members.token", err));
    }
    return ST_OK;
}

static enum status abort_check(const Longspan__V1__ControlAbort *w, struct error *err)
{
    CHECK(range(w->peer, 0, UINT16_MAX, "abort.peer", err));
    return wire_text(w->reason, WIRE_REASON_MAX, "abort.reason", err);
}

static enum status copied_check(const Longspan__V1__ControlCopied *w, struct error *err)
{
    CHECK(range(w->handle, 1, UINT64_MAX, "copied.handle", err));
    CHECK(range(w->source, 0, UINT16_MAX - 1, "copied.source", err));
    if (w->status > 0 || w->status < -1000)
        return error_set(err, ST_CORRUPT, "copied.status: %d", w->status);
    return ST_OK;
}

static enum status copy_check(const Longspan__V1__ControlCopy *w, struct error *err)
{
    CHECK(range(w->handle, 1, UINT64_MAX, "copy.handle", err));
    CHECK(range(w->destination, 0, UINT16_MAX - 1, "copy.destination", err));
    CHECK(range(w->position, 0, PLAN_POSITIONS_MAX / PLAN_BLOCK - 1, "copy.position", err));
    return length(&w->id, 16, 16, "copy.id", err);
}

/* Blocks on a disk have no handle. */
static enum status blocks_check(const Longspan__V1__ControlBlocks *w, bool disk, struct error *err)
{
    CHECK(range(w->n_handles, 0, CONTROL_BLOCKS_MAX, "blocks.handles", err));
    CHECK(range(w->n_positions, w->n_handles, w->n_handles, "blocks.positions", err));
    CHECK(length(&w->ids, 16 * w->n_handles, 16 * w->n_handles, "blocks.ids", err));
    for (size_t i = 0; i < w->n_handles; i++) {
        CHECK(range(w->handles[i], disk ? 0 : 1, disk ? 0 : UINT64_MAX - 1, "blocks.handles", err));
        CHECK(range(w->positions[i], 0, PLAN_POSITIONS_MAX / PLAN_BLOCK - 1, "blocks.positions", err));
    }
    return ST_OK;
}

enum status control_wire_check(const Longspan__V1__ControlMessage *w, struct wire_arena *arena, struct error *err)
{
    switch (w->kind_case) {
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_HELLO:
        return hello_check(w->hello, err);
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_PROGRESS:
        if (!(w->progress->fraction >= 0 && w->progress->fraction <= 1))
            return error_set(err, ST_CORRUPT, "progress.fraction: not within 0 and 1");
        return ST_OK;
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_READY:
        return ready_check(w->ready, err);
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_RESULT:
        return result_wire_check(w->result, err);
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_ABORT:
        return abort_check(w->abort, err);
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_COPIED:
        return copied_check(w->copied, err);
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_WELCOME:
        return welcome_check(w->welcome, err);
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_MEMBERS:
        return members_check(w->members, err);
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_PLAN:
        return plan_wire_check(w->plan, arena, err);
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_COPY:
        return copy_check(w->copy, err);
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_INVENTORY:
        return blocks_check(w->inventory, false, err);
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_NAMES:
        return blocks_check(w->names, false, err);
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_STORED:
        return blocks_check(w->stored, true, err);
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_GONE:
        return blocks_check(w->gone, true, err);
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_HEARTBEAT:
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_FENCE:
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_STOP:
        return ST_OK;
    default:
        return error_set(err, ST_CORRUPT, "control message: of no known kind");
    }
}
