#include "proto/control.h"

#include <stdlib.h>
#include <string.h>

#include "proto/wire.h"

typedef Longspan__V1__ControlMessage message_wire;

/* ---- to the wire ---- */

static char *text_of(const char *text)
{
    return (char *)(uintptr_t)(text ? text : ""); /* packing only reads */
}

static ProtobufCBinaryData bytes_of(const void *data, size_t n)
{
    const ProtobufCBinaryData b = { n, (uint8_t *)(uintptr_t)data };
    return b;
}

/* A reason comes from anywhere (file names, peers): what the other side would refuse is replaced. */
static char *reason_of(const char *reason, struct wire_arena *arena)
{
    const size_t n = strnlen(reason ? reason : "", WIRE_REASON_MAX);
    char *copy = wire_take(arena, n + 1);
    if (!copy)
        return NULL;
    memcpy(copy, reason ? reason : "", n);
    copy[n] = '\0';
    if (wire_text(copy, WIRE_REASON_MAX, "reason", NULL))
        for (size_t i = 0; i < n; i++)
            if ((uint8_t)copy[i] >= 0x80)
                copy[i] = '?';
    return copy;
}

/* One part of the union: its message lives in the arena. */
#define PART(type, TYPE, field, FIELD)                                                                                 \
    Longspan__V1__##type *w = wire_take(arena, sizeof *w);                                                             \
    if (!w)                                                                                                            \
        return ST_NO_MEMORY;                                                                                           \
    *w = (Longspan__V1__##type)LONGSPAN__V1__##TYPE##__INIT;                                                           \
    out->field = w;                                                                                                    \
    out->kind_case = LONGSPAN__V1__CONTROL_MESSAGE__KIND_##FIELD

static enum status hello_to_wire(const struct control_hello *h, struct wire_arena *arena, message_wire *out)
{
    PART(ControlHello, CONTROL_HELLO, hello, HELLO);
    w->version = h->version;
    w->pid = h->pid;
    w->host = text_of(h->host);
    w->device = text_of(h->device);
    w->transport = text_of(h->transport);
    w->n_threads = h->n_threads;
    w->term = h->term;
    return ST_OK;
}

static enum status welcome_to_wire(const struct control_welcome *m, struct wire_arena *arena, message_wire *out)
{
    PART(ControlWelcome, CONTROL_WELCOME, welcome, WELCOME);
    w->worker_id = m->worker_id;
    w->model = text_of(m->model);
    w->precision = text_of(m->precision);
    w->kv_codec = text_of(m->kv_codec);
    w->calibration = text_of(m->calibration);
    w->selector = text_of(m->selector);
    w->positions_max = m->positions_max;
    w->step_rows_max = m->step_rows_max;
    w->heartbeat_ms = m->heartbeat_ms;
    w->silence_ms = m->silence_ms;
    w->term = m->term;
    return ST_OK;
}

static enum status progress_to_wire(const struct control_progress *p, struct wire_arena *arena, message_wire *out)
{
    PART(ControlProgress, CONTROL_PROGRESS, progress, PROGRESS);
    w->fraction = p->fraction;
    return ST_OK;
}

static enum status ready_to_wire(const struct control_ready *r, struct wire_arena *arena, message_wire *out)
{
    PART(ControlReady, CONTROL_READY, ready, READY);
    w->fingerprint = text_of(r->fingerprint);
    w->model_digest = bytes_of(r->model_digest, sizeof r->model_digest);
    w->leaf_blocks = r->leaf_blocks;
    w->n_blocks = r->n_blocks;
    w->block_bytes = r->block_bytes;
    w->open_blocks = r->open_blocks;
    w->weight_bytes = r->weight_bytes;
    w->pool_bytes = r->pool_bytes;
    w->address = bytes_of(r->address, r->address_bytes);
    w->secret = bytes_of(r->secret, sizeof r->secret);
    return ST_OK;
}

static enum status heartbeat_to_wire(const struct control_heartbeat *h, struct wire_arena *arena, message_wire *out)
{
    PART(ControlHeartbeat, CONTROL_HEARTBEAT, heartbeat, HEARTBEAT);
    w->sequence = h->sequence;
    w->plans_done = h->plans_done;
    w->blocks_used = h->blocks_used;
    w->resident_bytes = h->resident_bytes;
    w->sketch_bytes = h->sketch_bytes;
    w->bytes_sent = h->bytes_sent;
    w->bytes_received = h->bytes_received;
    w->work = h->work;
    w->dropped = h->dropped;
    w->leaving = h->leaving;
    w->waits_ms = h->waits_ms;
    w->disk_blocks = h->disk.blocks;
    w->disk_bytes = h->disk.bytes;
    w->disk_written = h->disk.written;
    w->disk_read = h->disk.read;
    w->disk_evicted = h->disk.evicted;
    w->disk_dropped = h->disk.dropped;
    w->disk_failed = h->disk.failed;
    w->disk_refused = h->disk.refused;
    return ST_OK;
}

static enum status abort_to_wire(const struct control_abort *a, struct wire_arena *arena, message_wire *out)
{
    PART(ControlAbort, CONTROL_ABORT, abort, ABORT);
    w->group = a->group;
    w->epoch = a->epoch;
    w->plan = a->plan;
    w->peer = a->peer;
    w->reason = reason_of(a->reason, arena);
    return w->reason ? ST_OK : ST_NO_MEMORY;
}

static enum status copied_to_wire(const struct control_copied *c, struct wire_arena *arena, message_wire *out)
{
    PART(ControlCopied, CONTROL_COPIED, copied, COPIED);
    w->handle = c->handle;
    w->source = c->source;
    w->status = c->status;
    return ST_OK;
}

static enum status members_to_wire(const struct control_members *m, struct wire_arena *arena, message_wire *out)
{
    PART(ControlMembers, CONTROL_MEMBERS, members, MEMBERS);
    w->n_members = m->n_members;
    w->roster = m->roster;
    w->members = wire_take(arena, m->n_members * sizeof *w->members);
    Longspan__V1__ControlMember *items = wire_take(arena, m->n_members * sizeof *items);
    if (!w->members || !items)
        return ST_NO_MEMORY;
    for (uint32_t i = 0; i < m->n_members; i++) {
        items[i] = (Longspan__V1__ControlMember)LONGSPAN__V1__CONTROL_MEMBER__INIT;
        items[i].id = m->members[i].id;
        items[i].address = bytes_of(m->members[i].address, m->members[i].address_bytes);
        items[i].token = bytes_of(m->members[i].token.byte, sizeof m->members[i].token.byte);
        w->members[i] = &items[i];
    }
    return ST_OK;
}

static enum status fence_to_wire(const struct control_fence *f, struct wire_arena *arena, message_wire *out)
{
    PART(ControlFence, CONTROL_FENCE, fence, FENCE);
    w->group = f->group;
    w->epoch = f->epoch;
    return ST_OK;
}

static enum status copy_to_wire(const struct control_copy *c, struct wire_arena *arena, message_wire *out)
{
    PART(ControlCopy, CONTROL_COPY, copy, COPY);
    w->handle = c->handle;
    w->destination = c->destination;
    w->position = c->position;
    w->id = bytes_of(c->id, sizeof c->id);
    return ST_OK;
}

static enum status plan_part(const struct plan *plan, struct wire_arena *arena, message_wire *out)
{
    PART(ControlPlan, CONTROL_PLAN, plan, PLAN);
    return plan_to_wire(plan, arena, w);
}

static enum status result_part(const struct result *result, struct wire_arena *arena, message_wire *out)
{
    PART(ControlResult, CONTROL_RESULT, result, RESULT);
    return result_to_wire(result, arena, w);
}

static enum status stop_to_wire(struct wire_arena *arena, message_wire *out)
{
    PART(ControlStop, CONTROL_STOP, stop, STOP);
    return ST_OK;
}

static enum status blocks_fill(const struct control_blocks *b, struct wire_arena *arena, Longspan__V1__ControlBlocks *w)
{
    const uint32_t n = b->n_blocks;
    uint8_t *ids = wire_take(arena, (size_t)n * 16);
    w->epoch = b->epoch;
    w->handles = wire_take(arena, n * sizeof *w->handles);
    w->positions = wire_take(arena, n * sizeof *w->positions);
    if (!ids || !w->handles || !w->positions)
        return ST_NO_MEMORY;
    w->n_handles = w->n_positions = n;
    w->ids = bytes_of(ids, (size_t)n * 16);
    for (uint32_t i = 0; i < n; i++) {
        w->handles[i] = b->blocks[i].handle;
        w->positions[i] = b->blocks[i].position;
        memcpy(ids + (size_t)i * 16, b->blocks[i].id, 16);
    }
    return ST_OK;
}

static enum status inventory_to_wire(const struct control_blocks *b, struct wire_arena *arena, message_wire *out)
{
    PART(ControlBlocks, CONTROL_BLOCKS, inventory, INVENTORY);
    return blocks_fill(b, arena, w);
}

static enum status names_to_wire(const struct control_blocks *b, struct wire_arena *arena, message_wire *out)
{
    PART(ControlBlocks, CONTROL_BLOCKS, names, NAMES);
    return blocks_fill(b, arena, w);
}

static enum status stored_to_wire(const struct control_blocks *b, struct wire_arena *arena, message_wire *out)
{
    PART(ControlBlocks, CONTROL_BLOCKS, stored, STORED);
    return blocks_fill(b, arena, w);
}

static enum status gone_to_wire(const struct control_blocks *b, struct wire_arena *arena, message_wire *out)
{
    PART(ControlBlocks, CONTROL_BLOCKS, gone, GONE);
    return blocks_fill(b, arena, w);
}

static enum status message_to_wire(const struct control_message *m, struct wire_arena *arena, message_wire *out)
{
    switch (m->kind) {
    case CONTROL_HELLO:
        return hello_to_wire(&m->as.hello, arena, out);
    case CONTROL_PROGRESS:
        return progress_to_wire(&m->as.progress, arena, out);
    case CONTROL_READY:
        return ready_to_wire(&m->as.ready, arena, out);
    case CONTROL_HEARTBEAT:
        return heartbeat_to_wire(&m->as.heartbeat, arena, out);
    case CONTROL_RESULT:
        return result_part(m->as.result, arena, out);
    case CONTROL_ABORT:
        return abort_to_wire(&m->as.abort, arena, out);
    case CONTROL_COPIED:
        return copied_to_wire(&m->as.copied, arena, out);
    case CONTROL_WELCOME:
        return welcome_to_wire(&m->as.welcome, arena, out);
    case CONTROL_MEMBERS:
        return members_to_wire(&m->as.members, arena, out);
    case CONTROL_PLAN:
        return plan_part(m->as.plan, arena, out);
    case CONTROL_FENCE:
        return fence_to_wire(&m->as.fence, arena, out);
    case CONTROL_COPY:
        return copy_to_wire(&m->as.copy, arena, out);
    case CONTROL_STOP:
        return stop_to_wire(arena, out);
    case CONTROL_INVENTORY:
        return inventory_to_wire(&m->as.blocks, arena, out);
    case CONTROL_NAMES:
        return names_to_wire(&m->as.blocks, arena, out);
    case CONTROL_STORED:
        return stored_to_wire(&m->as.blocks, arena, out);
    case CONTROL_GONE:
        return gone_to_wire(&m->as.blocks, arena, out);
    }
    return ST_INVALID;
}

enum status control_encode(const struct control_message *message, uint8_t **bytes_out, size_t *n_out)
{
    struct wire_arena arena;
    message_wire wire = LONGSPAN__V1__CONTROL_MESSAGE__INIT;
    wire_arena_init(&arena, SIZE_MAX);
    enum status st = message_to_wire(message, &arena, &wire);
    if (st == ST_OK)
        st = wire_pack(&wire.base, bytes_out, n_out);
    wire_arena_deinit(&arena);
    return st;
}

/* ---- from the wire: one allocation ---- */

/*
 * Walked twice by the same code: with room NULL it adds up the size, then it fills. So the two cannot differ.
 */
struct pour {
    struct wire_size size;
    struct wire_room *room;
};

static void *pour_bytes(struct pour *p, const void *data, size_t n)
{
    wire_size_add(&p->size, n, 1);
    if (!p->room)
        return NULL;
    void *to = wire_room_take(p->room, n, 1);
    if (n)
        memcpy(to, data, n);
    return to;
}

static const char *pour_text(struct pour *p, const char *text)
{
    return pour_bytes(p, text, strlen(text) + 1);
}

static void members_pour(struct pour *p, const Longspan__V1__ControlMembers *w, struct control_members *m)
{
    wire_size_add(&p->size, w->n_members, sizeof(struct control_member));
    struct control_member *items = p->room ? wire_room_take(p->room, w->n_members, sizeof *items) : NULL;
    for (size_t i = 0; i < w->n_members; i++) {
        const ProtobufCBinaryData *address = &w->members[i]->address;
        const uint8_t *copy = pour_bytes(p, address->data, address->len);
        if (items)
            items[i] = (struct control_member){ .id = (uint16_t)w->members[i]->id,
                                                .address = copy,
                                                .address_bytes = (uint32_t)address->len };
        if (items)
            memcpy(items[i].token.byte, w->members[i]->token.data, sizeof items[i].token.byte);
    }
    *m = (struct control_members){ (uint32_t)w->n_members, items, w->roster };
}

static void ready_pour(struct pour *p, const Longspan__V1__ControlReady *w, struct control_ready *r)
{
    *r = (struct control_ready){
        .fingerprint = pour_text(p, w->fingerprint),
        .leaf_blocks = w->leaf_blocks,
        .n_blocks = w->n_blocks,
        .block_bytes = w->block_bytes,
        .open_blocks = w->open_blocks,
        .weight_bytes = w->weight_bytes,
        .pool_bytes = w->pool_bytes,
        .address = pour_bytes(p, w->address.data, w->address.len),
        .address_bytes = (uint32_t)w->address.len,
    };
    memcpy(r->model_digest, w->model_digest.data, sizeof r->model_digest);
    memcpy(r->secret, w->secret.data, sizeof r->secret);
}

static void welcome_pour(struct pour *p, const Longspan__V1__ControlWelcome *w, struct control_welcome *m)
{
    *m = (struct control_welcome){
        .worker_id = (uint16_t)w->worker_id,
        .model = pour_text(p, w->model),
        .precision = pour_text(p, w->precision),
        .kv_codec = pour_text(p, w->kv_codec),
        .calibration = pour_text(p, w->calibration),
        .selector = pour_text(p, w->selector),
        .positions_max = w->positions_max,
        .step_rows_max = w->step_rows_max,
        .heartbeat_ms = w->heartbeat_ms,
        .silence_ms = w->silence_ms,
        .term = w->term,
    };
}

static void copy_pour(const Longspan__V1__ControlCopy *w, struct control_copy *c)
{
    *c = (struct control_copy){ .handle = w->handle, .destination = (uint16_t)w->destination, .position = w->position };
    memcpy(c->id, w->id.data, sizeof c->id);
}

static void blocks_pour(struct pour *p, const Longspan__V1__ControlBlocks *w, struct control_blocks *b)
{
    wire_size_add(&p->size, w->n_handles, sizeof(struct control_block));
    struct control_block *items = p->room ? wire_room_take(p->room, w->n_handles, sizeof *items) : NULL;
    for (size_t i = 0; items && i < w->n_handles; i++) {
        items[i] = (struct control_block){ .handle = w->handles[i], .position = w->positions[i] };
        memcpy(items[i].id, w->ids.data + 16 * i, 16);
    }
    *b = (struct control_blocks){ w->epoch, (uint32_t)w->n_handles, items };
}

static void plan_pour(struct pour *p, const Longspan__V1__ControlPlan *w, struct plan **plan)
{
    plan_wire_size(w, &p->size);
    *plan = p->room ? plan_wire_fill(w, p->room) : NULL;
}

static void result_pour(struct pour *p, const Longspan__V1__ControlResult *w, struct result **result)
{
    result_wire_size(w, &p->size);
    *result = p->room ? result_wire_fill(w, p->room) : NULL;
}

static void message_pour(struct pour *p, const message_wire *w, struct control_message *m)
{
    switch (w->kind_case) {
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_HELLO:
        m->kind = CONTROL_HELLO;
        m->as.hello = (struct control_hello){
            .version = w->hello->version,
            .pid = w->hello->pid,
            .host = pour_text(p, w->hello->host),
            .device = pour_text(p, w->hello->device),
            .transport = pour_text(p, w->hello->transport),
            .n_threads = w->hello->n_threads,
            .term = w->hello->term,
        };
        break;
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_PROGRESS:
        m->kind = CONTROL_PROGRESS;
        m->as.progress = (struct control_progress){ w->progress->fraction };
        break;
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_READY:
        m->kind = CONTROL_READY;
        ready_pour(p, w->ready, &m->as.ready);
        break;
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_HEARTBEAT:
        m->kind = CONTROL_HEARTBEAT;
        m->as.heartbeat = (struct control_heartbeat){
            .sequence = w->heartbeat->sequence,
            .plans_done = w->heartbeat->plans_done,
            .blocks_used = w->heartbeat->blocks_used,
            .resident_bytes = w->heartbeat->resident_bytes,
            .sketch_bytes = w->heartbeat->sketch_bytes,
            .bytes_sent = w->heartbeat->bytes_sent,
            .bytes_received = w->heartbeat->bytes_received,
            .work = w->heartbeat->work,
            .dropped = w->heartbeat->dropped,
            .leaving = w->heartbeat->leaving,
            .waits_ms = w->heartbeat->waits_ms,
            .disk = { .blocks = w->heartbeat->disk_blocks,
                      .bytes = w->heartbeat->disk_bytes,
                      .written = w->heartbeat->disk_written,
                      .read = w->heartbeat->disk_read,
                      .evicted = w->heartbeat->disk_evicted,
                      .dropped = w->heartbeat->disk_dropped,
                      .failed = w->heartbeat->disk_failed,
                      .refused = w->heartbeat->disk_refused },
        };
        break;
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_RESULT:
        m->kind = CONTROL_RESULT;
        result_pour(p, w->result, &m->as.result);
        break;
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_ABORT:
        m->kind = CONTROL_ABORT;
        m->as.abort = (struct control_abort){
            .group = w->abort->group,
            .epoch = w->abort->epoch,
            .plan = w->abort->plan,
            .peer = (uint16_t)w->abort->peer,
            .reason = pour_text(p, w->abort->reason),
        };
        break;
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_COPIED:
        m->kind = CONTROL_COPIED;
        m->as.copied = (struct control_copied){ w->copied->handle, (uint16_t)w->copied->source, w->copied->status };
        break;
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_WELCOME:
        m->kind = CONTROL_WELCOME;
        welcome_pour(p, w->welcome, &m->as.welcome);
        break;
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_MEMBERS:
        m->kind = CONTROL_MEMBERS;
        members_pour(p, w->members, &m->as.members);
        break;
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_PLAN:
        m->kind = CONTROL_PLAN;
        plan_pour(p, w->plan, &m->as.plan);
        break;
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_FENCE:
        m->kind = CONTROL_FENCE;
        m->as.fence = (struct control_fence){ w->fence->group, w->fence->epoch };
        break;
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_COPY:
        m->kind = CONTROL_COPY;
        copy_pour(w->copy, &m->as.copy);
        break;
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_INVENTORY:
        m->kind = CONTROL_INVENTORY;
        blocks_pour(p, w->inventory, &m->as.blocks);
        break;
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_NAMES:
        m->kind = CONTROL_NAMES;
        blocks_pour(p, w->names, &m->as.blocks);
        break;
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_STORED:
        m->kind = CONTROL_STORED;
        blocks_pour(p, w->stored, &m->as.blocks);
        break;
    case LONGSPAN__V1__CONTROL_MESSAGE__KIND_GONE:
        m->kind = CONTROL_GONE;
        blocks_pour(p, w->gone, &m->as.blocks);
        break;
    default: /* control_wire_check has let nothing else pass */
        m->kind = CONTROL_STOP;
        break;
    }
}

static enum status message_build(const message_wire *w, struct control_message **message_out, struct error *err)
{
    struct control_message head;
    struct pour p = { 0 };
    wire_size_add(&p.size, 1, sizeof head);
    memset(&head, 0, sizeof head);
    message_pour(&p, w, &head);
    struct wire_room room = { p.size.bad ? NULL : malloc(p.size.bytes) };
    if (!room.at)
        return error_set(err, ST_NO_MEMORY, "control message: out of memory");
    p.room = &room;
    struct control_message *m = wire_room_take(&room, 1, sizeof *m);
    memset(m, 0, sizeof *m);
    message_pour(&p, w, m);
    *message_out = m;
    return ST_OK;
}

enum status control_decode(const uint8_t *bytes, size_t n, struct control_message **message_out, struct error *err)
{
    struct wire_arena arena;
    wire_arena_init(&arena, wire_unpack_max(n));
    enum status st;
    const message_wire *w = longspan__v1__control_message__unpack(&arena.allocator, n, bytes);
    if (!w)
        st = error_set(err, ST_CORRUPT, "control message: malformed, of %zu bytes", n);
    else
        st = control_wire_check(w, &arena, err);
    if (st == ST_OK)
        st = message_build(w, message_out, err);
    wire_arena_deinit(&arena);
    return st;
}
