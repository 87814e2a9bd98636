#define _GNU_SOURCE /* pthread_setname_np */
#include "proto/rpc.h"

#include <stdlib.h>
#include <string.h>

#include <grpc/byte_buffer_reader.h>
#include <grpc/support/alloc.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>

#include "common/clock.h"
#include "common/log.h"
#include "proto/rpc_internal.h"

/* ---- engine ---- */

static void *engine_run(void *arg)
{
    struct rpc_engine *e = arg;
    for (;;) {
        const grpc_event event = grpc_completion_queue_next(e->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (event.type != GRPC_OP_COMPLETE)
            continue;
        struct rpc_tag *tag = event.tag;
        RPC_TAG_ACQUIRE(tag);
        tag->fn(tag, event.success != 0);
    }
}

enum status rpc_engine_start(struct rpc_engine *e, const char *name)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&e->changed, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&e->lock, NULL);
    e->queue = grpc_completion_queue_create_for_next(NULL);
    if (pthread_create(&e->thread, NULL, engine_run, e))
        return ST_NO_MEMORY;
    e->running = true;
    pthread_setname_np(e->thread, name);
    return ST_OK;
}

void rpc_engine_stop(struct rpc_engine *e)
{
    if (!e->queue)
        return;
    grpc_completion_queue_shutdown(e->queue);
    if (e->running) {
        pthread_join(e->thread, NULL);
    } else {
        while (grpc_completion_queue_next(e->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
               GRPC_QUEUE_SHUTDOWN)
            ;
    }
    grpc_completion_queue_destroy(e->queue);
    e->queue = NULL;
    pthread_cond_destroy(&e->changed);
    pthread_mutex_destroy(&e->lock);
}

static void on_core_log(gpr_log_func_args *args)
{
    if (args->severity == GPR_LOG_SEVERITY_ERROR)
        log_warn("grpc: %s", args->message);
    else
        log_debug("grpc: %s", args->message);
}

static void core_log_route(void)
{
    gpr_set_log_function(on_core_log);
}

void rpc_log_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, core_log_route);
}

/* ---- life of a call ---- */

static void on_open(struct rpc_tag *tag, bool ok);
static void on_received(struct rpc_tag *tag, bool ok);
static void on_sent(struct rpc_tag *tag, bool ok);
static void on_closed(struct rpc_tag *tag, bool ok);

#define CALL_OF(tag, field) ((struct rpc_call *)((char *)(tag)-offsetof(struct rpc_call, field)))

enum status rpc_call_new(struct rpc_engine *e, grpc_call *core, bool server, struct rpc_call **call_out)
{
    struct rpc_call *call = calloc(1, sizeof *call);
    if (!call) {
        grpc_call_cancel(core, NULL);
        grpc_call_unref(core);
        return ST_NO_MEMORY;
    }
    call->refs = 1;
    call->engine = e;
    call->server = server;
    call->call = core;
    call->deadline_at_ms = -1;
    pthread_mutex_init(&call->lock, NULL);
    call->on_open.fn = on_open;
    call->on_received.fn = on_received;
    call->on_sent.fn = on_sent;
    call->on_closed.fn = on_closed;
    call->status_details = grpc_empty_slice();
    grpc_metadata_array_init(&call->initial);
    grpc_metadata_array_init(&call->trailing);

    pthread_mutex_lock(&e->lock);
    const bool closing = e->closing;
    if (!closing) {
        call->next = e->calls;
        if (call->next)
            call->next->prev = call;
        e->calls = call;
        e->n_calls++;
    }
    pthread_mutex_unlock(&e->lock);
    if (closing) {
        grpc_call_cancel(core, NULL);
        grpc_call_unref(core);
        call->call = NULL;
        rpc_call_unref(call);
        return ST_CANCELLED;
    }
    *call_out = call;
    return ST_OK;
}

void rpc_call_ref(struct rpc_call *call)
{
    __atomic_add_fetch(&call->refs, 1, __ATOMIC_RELAXED);
}

static void out_drop(struct rpc_call *call)
{
    while (call->out_first) {
        struct rpc_out *out = call->out_first;
        call->out_first = out->next;
        call->out_bytes -= out->bytes;
        grpc_slice_unref(out->slice);
        free(out);
    }
    call->out_last = NULL;
}

void rpc_call_unref(struct rpc_call *call)
{
    if (!call || __atomic_sub_fetch(&call->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    out_drop(call);
    pthread_mutex_destroy(&call->lock);
    free(call->end_message);
    free(call->peer);
    free(call);
}

/* With the lock. A refused batch leaves the call in a state that gRPC does not describe: it is cancelled and its end awaited. */
static bool batch_start(struct rpc_call *call, const grpc_op *ops, size_t n_ops, struct rpc_tag *tag)
{
    RPC_TAG_RELEASE(tag);
    const grpc_call_error error = grpc_call_start_batch(call->call, ops, n_ops, tag, NULL);
    if (error == GRPC_CALL_OK) {
        call->pending++;
        return true;
    }
    log_error("grpc refused a batch: %s", grpc_call_error_to_string(error));
    grpc_call_cancel(call->call, NULL);
    return false;
}

/* With the lock; lets go of it. Ends the call once nothing of it is in flight: here, on the engine's thread, and nowhere else. */
static void call_settle(struct rpc_call *call)
{
    const bool last = call->closed && call->received_all && call->pending == 0 && !call->done;
    if (last)
        call->done = true;
    pthread_mutex_unlock(&call->lock);
    if (!last)
        return;

    if (call->handlers.on_done) {
        if (call->server) {
            call->handlers.on_done(call->user, call, call->cancelled ? RPC_CANCELLED : RPC_OK, "");
        } else {
            char *message = grpc_slice_to_c_string(call->status_details);
            call->handlers.on_done(call->user, call, (enum rpc_code)call->status, message);
            gpr_free(message);
        }
    }
    pthread_mutex_lock(&call->lock);
    grpc_call *core = call->call;
    call->call = NULL;
    pthread_mutex_unlock(&call->lock);
    /* all that is gRPC's goes now: the rest may be kept past grpc_shutdown */
    grpc_metadata_array_destroy(&call->initial);
    grpc_metadata_array_destroy(&call->trailing);
    grpc_slice_unref(call->status_details);
    grpc_call_unref(core);

    struct rpc_engine *e = call->engine;
    pthread_mutex_lock(&e->lock);
    if (call->prev)
        call->prev->next = call->next;
    else
        e->calls = call->next;
    if (call->next)
        call->next->prev = call->prev;
    e->n_calls--;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
    rpc_call_unref(call);
}

void rpc_call_arm(struct rpc_call *call)
{
    pthread_mutex_lock(&call->lock);
    if (call->server) {
        const grpc_op op = { .op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                             .data.recv_close_on_server.cancelled = &call->cancelled };
        call->closed = !batch_start(call, &op, 1, &call->on_closed);
    } else {
        const grpc_op open[] = {
            { .op = GRPC_OP_SEND_INITIAL_METADATA,
              .flags = call->wait_ready ? GRPC_INITIAL_METADATA_WAIT_FOR_READY : 0,
              .data.send_initial_metadata = { .count = call->engine->n_headers, .metadata = &call->engine->header } },
            { .op = GRPC_OP_RECV_INITIAL_METADATA, .data.recv_initial_metadata.recv_initial_metadata = &call->initial },
        };
        const grpc_op end = { .op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                              .data.recv_status_on_client = { .trailing_metadata = &call->trailing,
                                                              .status = &call->status,
                                                              .status_details = &call->status_details } };
        batch_start(call, open, 2, &call->on_open);
        call->closed = !batch_start(call, &end, 1, &call->on_closed);
    }
    pthread_mutex_unlock(&call->lock);
}

static void receive_next(struct rpc_call *call)
{
    const grpc_op op = { .op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &call->incoming };
    call->incoming = NULL;
    call->received_all = !batch_start(call, &op, 1, &call->on_received);
}

void rpc_call_receive(struct rpc_call *call)
{
    pthread_mutex_lock(&call->lock);
    receive_next(call);
    pthread_mutex_unlock(&call->lock);
}

/* ---- tags ---- */

static void on_open(struct rpc_tag *tag, bool ok)
{
    (void)ok; /* the status says it too */
    struct rpc_call *call = CALL_OF(tag, on_open);
    pthread_mutex_lock(&call->lock);
    call->pending--;
    call_settle(call);
}

static void on_received(struct rpc_tag *tag, bool ok)
{
    struct rpc_call *call = CALL_OF(tag, on_received);
    grpc_byte_buffer *buffer = ok ? call->incoming : NULL;
    pthread_mutex_lock(&call->lock);
    const bool closed = call->closed;
    pthread_mutex_unlock(&call->lock);

    bool more = buffer != NULL;
    if (buffer) {
        grpc_byte_buffer_reader reader;
        if (grpc_byte_buffer_reader_init(&reader, buffer)) {
            const grpc_slice slice = grpc_byte_buffer_reader_readall(&reader);
            if (call->handlers.on_message)
                call->handlers.on_message(call->user, call, GRPC_SLICE_START_PTR(slice), GRPC_SLICE_LENGTH(slice));
            grpc_slice_unref(slice);
            grpc_byte_buffer_reader_destroy(&reader);
        } else {
            rpc_call_cancel(call);
        }
        grpc_byte_buffer_destroy(buffer);
    } else if (call->server && !closed && call->handlers.on_half_close) {
        call->handlers.on_half_close(call->user, call);
    }
    pthread_mutex_lock(&call->lock);
    call->pending--;
    if (more)
        receive_next(call);
    else
        call->received_all = true;
    call_settle(call);
}

/*
 * With the lock. At most one send is in flight. What can go together goes in one batch: a server's first message takes its headers along, the last one
 * the status.
 */
static void send_next(struct rpc_call *call)
{
    if (call->sending || call->closed || !call->call)
        return;
    grpc_op ops[3];
    size_t n_ops = 0;
    memset(ops, 0, sizeof ops);
    struct rpc_out *out = call->out_first;
    const bool end = call->end_wanted && !call->end_sent && (!out || out == call->out_last);
    if (!out && !end)
        return;
    if (call->server && !call->initial_sent)
        ops[n_ops++].op = GRPC_OP_SEND_INITIAL_METADATA;
    grpc_byte_buffer *buffer = NULL;
    if (out) {
        buffer = grpc_raw_byte_buffer_create(&out->slice, 1);
        ops[n_ops].op = GRPC_OP_SEND_MESSAGE;
        ops[n_ops++].data.send_message.send_message = buffer;
    }
    grpc_slice details = grpc_empty_slice();
    if (end && call->server) {
        details = grpc_slice_from_copied_string(call->end_message ? call->end_message : "");
        ops[n_ops].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        ops[n_ops].data.send_status_from_server.status = (grpc_status_code)call->end_code;
        ops[n_ops++].data.send_status_from_server.status_details = &details;
    } else if (end) {
        ops[n_ops++].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    }
    if (batch_start(call, ops, n_ops, &call->on_sent)) {
        call->sending = true;
        call->initial_sent = true;
        call->end_sent = end;
        if (out) {
            call->out_first = out->next;
            if (!out->next)
                call->out_last = NULL;
            call->out_sending = out;
        }
    } else {
        call->end_wanted = call->end_sent = true;
        out_drop(call);
    }
    grpc_slice_unref(details);
    grpc_byte_buffer_destroy(buffer);
}

static void on_sent(struct rpc_tag *tag, bool ok)
{
    struct rpc_call *call = CALL_OF(tag, on_sent);
    pthread_mutex_lock(&call->lock);
    call->pending--;
    call->sending = false;
    struct rpc_out *out = call->out_sending;
    if (out) {
        call->out_sending = NULL;
        call->out_bytes -= out->bytes;
        grpc_slice_unref(out->slice);
        free(out);
    }
    if (ok)
        send_next(call);
    else
        out_drop(call); /* the call is over; its end comes by on_closed */
    call_settle(call);
}

static void on_closed(struct rpc_tag *tag, bool ok)
{
    struct rpc_call *call = CALL_OF(tag, on_closed);
    pthread_mutex_lock(&call->lock);
    call->pending--;
    call->closed = true;
    if (!ok && call->server)
        call->cancelled = 1;
    out_drop(call);
    call_settle(call);
}

/* ---- the caller's side ---- */

size_t rpc_call_send(struct rpc_call *call, const uint8_t *data, size_t bytes)
{
    struct rpc_out *out = malloc(sizeof *out);
    if (!out) {
        rpc_call_cancel(call);
        return 0;
    }
    out->next = NULL;
    out->bytes = bytes ? bytes : 1; /* an empty message must not look like an ended call */
    out->slice = grpc_slice_malloc(bytes);
    if (bytes)
        memcpy(GRPC_SLICE_START_PTR(out->slice), data, bytes);

    size_t queued = 0;
    pthread_mutex_lock(&call->lock);
    if (call->call && !call->closed && !call->end_wanted) {
        if (call->out_last)
            call->out_last->next = out;
        else
            call->out_first = out;
        call->out_last = out;
        call->out_bytes += out->bytes;
        out = NULL;
        queued = call->out_bytes;
        send_next(call);
    }
    pthread_mutex_unlock(&call->lock);
    if (out) {
        grpc_slice_unref(out->slice);
        free(out);
    }
    return queued;
}

void rpc_call_finish(struct rpc_call *call, enum rpc_code code, const char *message)
{
    char *copy = message && *message ? strdup(message) : NULL;
    pthread_mutex_lock(&call->lock);
    if (call->server && !call->end_wanted) {
        call->end_wanted = true;
        call->end_code = code;
        call->end_message = copy;
        copy = NULL;
        send_next(call);
    }
    pthread_mutex_unlock(&call->lock);
    free(copy);
}

void rpc_call_half_close(struct rpc_call *call)
{
    pthread_mutex_lock(&call->lock);
    if (!call->server && !call->end_wanted) {
        call->end_wanted = true;
        send_next(call);
    }
    pthread_mutex_unlock(&call->lock);
}

void rpc_call_cancel(struct rpc_call *call)
{
    pthread_mutex_lock(&call->lock);
    if (call->call && !call->done)
        grpc_call_cancel(call->call, NULL);
    pthread_mutex_unlock(&call->lock);
}

int64_t rpc_call_deadline_ms(const struct rpc_call *call)
{
    if (call->deadline_at_ms < 0)
        return -1;
    const int64_t left = call->deadline_at_ms - clock_ms();
    return left > 0 ? left : 0;
}

char *rpc_call_peer(struct rpc_call *call)
{
    if (call->peer)
        return strdup(call->peer);
    char *copy = NULL;
    pthread_mutex_lock(&call->lock);
    if (call->call) {
        char *peer = grpc_call_get_peer(call->call);
        copy = strdup(peer ? peer : "");
        gpr_free(peer);
    }
    pthread_mutex_unlock(&call->lock);
    return copy ? copy : strdup("");
}
