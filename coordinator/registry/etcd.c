#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/registry/etcd_internal.h"

/*
 * An operation is a few calls, each with a short deadline, tried again at the next member until the operation's own time is over. A try whose answer
 * is lost may have been carried out, even later than the next one; so every write is a transaction on the revision of the key's last write (REGISTRY_ANY reads
 * that first): it can be carried out once only. A repeated write that finds the key written with its own value and lease, since it began, was carried
 * out by an earlier try; those who contend for a key write values or leases that differ.
 */
enum { TRY_MS = 1000, OPERATION_MS = 3500, CLOSE_MS = 1500 };

enum kind { KIND_PUT, KIND_REMOVE, KIND_LIST, KIND_GRANT, KIND_KEEP, KIND_REVOKE };

struct etcd_op {
    struct etcd_op *next;
    struct etcd *e;
    enum kind kind;
    struct registry_put put; /* key and value: one allocation, at put.key; lease: also of lease operations */
    bool exact, started;
    uint32_t ttl_ms;
    registry_done *done;
    void *ctx;
    int64_t until_ms;
    struct loop_timer *timer;
    struct etcd_call *call;
    bool replied;   /* the call's one message has come */
    bool at_known;  /* the revision that the write is compared with */
    bool uncertain; /* an earlier try may have been carried out */
    uint64_t at, base;
    /* the answer */
    enum status status;
    struct error err;
    uint64_t revision, page_revision;
    struct store_items items;
};

static struct etcd *self(struct registry *r)
{
    return (struct etcd *)r; /* its first member */
}

void etcd_no_memory(void)
{
    fputs("out of memory in the registry\n", stderr);
    abort();
}

void etcd_revision_seen(struct etcd *e, uint64_t revision)
{
    if (revision > e->revision)
        e->revision = revision;
}

/* ---- order: what touches the same key or lease goes one after the other ---- */

static bool covers(const struct etcd_op *list, const struct etcd_op *op)
{
    return list->exact ? !strcmp(list->put.key, op->put.key)
                       : !strncmp(list->put.key, op->put.key, strlen(list->put.key));
}

static bool conflict(const struct etcd_op *a, const struct etcd_op *b)
{
    const bool a_writes = a->kind == KIND_PUT || a->kind == KIND_REMOVE;
    const bool b_writes = b->kind == KIND_PUT || b->kind == KIND_REMOVE;
    if (a->put.lease && a->put.lease == b->put.lease && (a->kind == KIND_REVOKE || b->kind == KIND_REVOKE))
        return true;
    if (a_writes && b_writes)
        return !strcmp(a->put.key, b->put.key);
    return (a->kind == KIND_LIST && b_writes && covers(a, b)) || (b->kind == KIND_LIST && a_writes && covers(b, a));
}

static void op_send(struct etcd_op *op);

static void ops_start(struct etcd *e)
{
    for (struct etcd_op *op = e->first; op; op = op->next) {
        bool blocked = op->started;
        for (const struct etcd_op *before = e->first; before != op && !blocked; before = before->next)
            blocked = conflict(before, op);
        if (blocked)
            continue;
        op->started = true;
        op_send(op);
    }
}

/* ---- the end of an operation ---- */

static void op_free(struct etcd_op *op)
{
    etcd_call_drop(op->call);
    loop_timer_free(op->timer);
    store_items_free(&op->items);
    free((char *)(uintptr_t)op->put.key);
    free(op);
}

static void op_end(struct etcd_op *op, enum status st)
{
    struct etcd *e = op->e;
    struct etcd_op **link = &e->first;
    while (*link != op)
        link = &(*link)->next;
    if (!(*link = op->next))
        e->last = link;
    if (st == ST_STALE)
        error_set(&op->err, st, "registry: '%s' is not as expected", op->put.key);
    else if (st)
        error_set(&op->err, st, "registry: etcd: %s", status_text(st));
    const struct registry_answer answer = { .status = st,
                                            .message = st ? op->err.text : "",
                                            .revision = op->revision,
                                            .lease = op->kind == KIND_GRANT && !st ? op->put.lease : 0,
                                            .n_items = op->items.n,
                                            .items = op->items.items };
    if (op->done)
        op->done(op->ctx, &answer);
    op_free(op);
    if (!e->over)
        ops_start(e);
}

/* ---- tries ---- */

static void op_again(struct etcd_op *op, enum rpc_code code, const char *text)
{
    const bool late = clock_ms() + ETCD_BACKOFF_MS >= op->until_ms;
    op->uncertain = true;
    if (late || op->e->closing) {
        const enum status st = code == RPC_DEADLINE_EXCEEDED ? ST_TIMEOUT : ST_PEER;
        error_set(&op->err, st, "registry: etcd does not answer: %s", text);
        op_end(op, st);
        return;
    }
    loop_timer_set(op->timer, ETCD_BACKOFF_MS);
}

static void op_refused(struct etcd_op *op, enum rpc_code code, const char *text)
{
    /* our number for the lease: an earlier try has granted it */
    if (op->kind == KIND_GRANT && code == RPC_FAILED_PRECONDITION && op->uncertain) {
        op_end(op, ST_OK);
        return;
    }
    if (op->kind == KIND_REVOKE && code == RPC_NOT_FOUND && op->uncertain) {
        op_end(op, ST_OK);
        return;
    }
    /* a list whose revision was compacted between two pages begins again */
    if (op->kind == KIND_LIST && code == RPC_OUT_OF_RANGE && op->page_revision) {
        store_items_free(&op->items);
        op->page_revision = 0;
        op_again(op, code, text);
        return;
    }
    const enum status st = code == RPC_NOT_FOUND ? ST_NOT_FOUND : code == RPC_INVALID_ARGUMENT ? ST_INVALID : ST_IO;
    error_set(&op->err, st, "registry: etcd: %s (code %d)", text, (int)code);
    op_end(op, st);
}

static void on_end(struct etcd_op *op, enum rpc_code code, const char *text)
{
    struct etcd_call *call = op->call;
    op->call = NULL;
    if (code == RPC_OK)
        op_again(op, RPC_UNAVAILABLE, "an answer without a message");
    else if (!etcd_code_passes(code))
        op_refused(op, code, text);
    else {
        if (code != RPC_RESOURCE_EXHAUSTED)
            etcd_call_blame(call, text);
        op_again(op, code, text);
    }
}

/* ---- answers ---- */

/* The key is not as the write expects: because an earlier try has made it so? */
static bool carried_out(const struct etcd_op *op)
{
    if (!op->uncertain)
        return false;
    if (op->kind == KIND_REMOVE)
        return !op->items.n;
    const struct registry_item *is = op->items.n ? &op->items.items[0] : NULL;
    return is && is->revision > op->base && is->lease == op->put.lease && is->bytes == op->put.bytes &&
           !memcmp(is->value, op->put.value, is->bytes);
}

/* The key as it is before a write of REGISTRY_ANY: no earlier try can be carried out any more. */
static void on_read(struct etcd_op *op, uint64_t revision)
{
    op->at = op->items.n ? op->items.items[0].revision : 0;
    op->base = revision;
    op->at_known = true;
    op->uncertain = false;
    op->revision = revision;
    store_items_free(&op->items);
    if (op->kind == KIND_REMOVE && !op->at)
        op_end(op, ST_OK);
    else
        op_send(op);
}

static void on_written(struct etcd_op *op, bool done, uint64_t revision)
{
    op->revision = revision;
    if (done || carried_out(op)) {
        if (!done && op->items.n)
            op->revision = op->items.items[0].revision;
        store_items_free(&op->items);
        op_end(op, ST_OK);
    } else if (op->put.compare == REGISTRY_ANY) {
        /* another writer came between: its revision is the one to compare with now */
        on_read(op, revision);
    } else {
        op_end(op, ST_STALE);
    }
}

static void on_page(struct etcd_op *op, size_t n_before, uint64_t revision, bool more)
{
    if (!op->page_revision)
        op->revision = op->page_revision = revision;
    if (more && op->items.n == n_before)
        op_end(op, ST_CORRUPT); /* a page of keys that are none of ours: it could not be said where to go on */
    else if (more)
        op_send(op);
    else
        op_end(op, ST_OK);
}

static enum status take_message(struct etcd_op *op, const struct etcd_reply *reply)
{
    struct etcd *e = op->e;
    const size_t n_before = op->items.n;
    uint64_t revision = 0;
    bool flag = false;
    enum status st;
    switch (op->kind) {
    case KIND_PUT:
    case KIND_REMOVE:
        st = op->at_known ? etcd_read_write(reply->data, reply->bytes, e->ns, &flag, &op->items, &revision)
                          : etcd_read_range(reply->data, reply->bytes, e->ns, &op->items, &revision, &flag);
        etcd_revision_seen(e, revision);
        if (!st && op->at_known)
            on_written(op, flag, revision);
        else if (!st)
            on_read(op, revision);
        return st;
    case KIND_LIST:
        st = etcd_read_range(reply->data, reply->bytes, e->ns, &op->items, &revision, &flag);
        etcd_revision_seen(e, revision);
        if (!st)
            on_page(op, n_before, revision, flag);
        return st;
    case KIND_KEEP:
        st = etcd_read_keep(reply->data, reply->bytes, &flag);
        if (!st && flag)
            error_set(&op->err, ST_NOT_FOUND, "registry: the lease has ended");
        if (!st)
            op_end(op, flag ? ST_NOT_FOUND : ST_OK);
        return st;
    default:
        op_end(op, ST_OK);
        return ST_OK;
    }
}

static void on_reply(void *ctx, const struct etcd_reply *reply)
{
    struct etcd_op *op = ctx;
    if (!reply->data) {
        on_end(op, reply->code, reply->text);
        return;
    }
    /* what it says is enough; its status is not waited for */
    etcd_call_drop(op->call);
    op->call = NULL;
    const enum status st = take_message(op, reply);
    if (st) {
        error_set(&op->err, st, "registry: etcd: an answer of %zu bytes cannot be read", reply->bytes);
        op_end(op, st);
    }
}

/* ---- requests ---- */

static struct etcd_packed op_pack(const struct etcd_op *op, const char **path_out)
{
    const char *after =
        op->kind == KIND_LIST && op->page_revision && op->items.n ? op->items.items[op->items.n - 1].key : NULL;
    const struct etcd_key key = {
        .ns = op->e->ns, .key = op->put.key, .after = after, .exact = op->exact || op->kind != KIND_LIST
    };
    switch (op->kind) {
    case KIND_PUT:
    case KIND_REMOVE:
        *path_out = op->at_known ? "/etcdserverpb.KV/Txn" : "/etcdserverpb.KV/Range";
        return op->at_known ? etcd_write(&key, &op->put, op->at) : etcd_range(&key, 0);
    case KIND_LIST:
        *path_out = "/etcdserverpb.KV/Range";
        return etcd_range(&key, op->page_revision);
    case KIND_GRANT:
        *path_out = "/etcdserverpb.Lease/LeaseGrant";
        return etcd_grant(op->put.lease, op->ttl_ms);
    case KIND_KEEP:
        *path_out = "/etcdserverpb.Lease/LeaseKeepAlive";
        return etcd_keep(op->put.lease);
    default:
        *path_out = "/etcdserverpb.Lease/LeaseRevoke";
        return etcd_revoke(op->put.lease);
    }
}

static void op_send(struct etcd_op *op)
{
    const int64_t left = op->until_ms - clock_ms();
    const char *path;
    if (op->status) {
        loop_timer_set(op->timer, 0); /* refused when it was asked: nothing is answered inside the call */
        return;
    }
    if (left <= 0) {
        loop_timer_set(op->timer, 0);
        op->status = error_set(&op->err, ST_TIMEOUT, "registry: etcd does not answer");
        return;
    }
    struct etcd_packed packed = op_pack(op, &path);
    if (!packed.data)
        etcd_no_memory();
    op->call = etcd_call_start(op->e->net, path, (uint32_t)(left < TRY_MS ? left : TRY_MS), packed.data, packed.bytes,
                               on_reply, op);
    etcd_packed_free(&packed);
    if (!op->call) {
        op->status = error_set(&op->err, ST_NO_MEMORY, "registry: etcd: no call can be made");
        loop_timer_set(op->timer, 0);
    }
}

static void on_timer(void *arg)
{
    struct etcd_op *op = arg;
    if (op->status)
        op_end(op, op->status);
    else
        op_send(op);
}

/* ---- the face ---- */

static struct etcd_op *op_new(struct registry *r, enum kind kind, registry_done *done, void *ctx)
{
    struct etcd_op *op = calloc(1, sizeof *op);
    if (!op || !(op->timer = loop_timer_new(r->loop, on_timer, op)))
        etcd_no_memory();
    op->e = self(r);
    op->kind = kind;
    op->done = done;
    op->ctx = ctx;
    op->until_ms = clock_ms() + OPERATION_MS;
    op->base = op->e->revision;
    return op;
}

static void op_key(struct etcd_op *op, const char *key, const void *value, size_t bytes, bool may_be_empty)
{
    const size_t n = strlen(key);
    if (n > REGISTRY_KEY_MAX || (!n && !may_be_empty))
        op->status = error_set(&op->err, ST_INVALID, "registry: a key has 1 to %d bytes", REGISTRY_KEY_MAX);
    else if (bytes > REGISTRY_VALUE_MAX)
        op->status = error_set(&op->err, ST_INVALID, "registry: the value of '%s' has %zu bytes, at most %d are kept",
                               key, bytes, REGISTRY_VALUE_MAX);
    const size_t kept = op->status ? 0 : bytes;
    char *data = malloc(n + 1 + kept);
    if (!data)
        etcd_no_memory();
    memcpy(data, key, n + 1);
    if (kept)
        memcpy(data + n + 1, value, kept);
    op->put.key = data;
    op->put.bytes = kept;
    op->put.value = op->kind == KIND_PUT ? data + n + 1 : NULL;
}

static void op_add(struct etcd_op *op)
{
    struct etcd *e = op->e;
    if (!op->put.key)
        op_key(op, "", NULL, 0, true);
    op->at = op->put.compare == REGISTRY_AT ? op->put.at : 0;
    op->at_known = op->put.compare != REGISTRY_ANY;
    *e->last = op;
    e->last = &op->next;
    ops_start(e);
}

static void etcd_put(struct registry *r, const struct registry_put *put, registry_done *done, void *ctx)
{
    struct etcd_op *op = op_new(r, KIND_PUT, done, ctx);
    op->put = *put;
    op_key(op, put->key, put->value, put->bytes, false);
    op_add(op);
}

static void etcd_remove(struct registry *r, const char *key, enum registry_compare compare, uint64_t at,
                        registry_done *done, void *ctx)
{
    struct etcd_op *op = op_new(r, KIND_REMOVE, done, ctx);
    op->put.compare = compare;
    op->put.at = at;
    op_key(op, key, NULL, 0, false);
    op_add(op);
}

static void etcd_list(struct registry *r, const char *prefix, bool exact, registry_done *done, void *ctx)
{
    struct etcd_op *op = op_new(r, KIND_LIST, done, ctx);
    op->exact = exact;
    op_key(op, prefix, NULL, 0, !exact);
    op_add(op);
}

/* The number is ours, so that a grant can be repeated: 62 random bits, never 0. */
static void etcd_lease_grant(struct registry *r, uint32_t ttl_ms, registry_done *done, void *ctx)
{
    struct etcd_op *op = op_new(r, KIND_GRANT, done, ctx);
    op->ttl_ms = ttl_ms;
    if (getrandom(&op->put.lease, sizeof op->put.lease, 0) != (ssize_t)sizeof op->put.lease)
        op->status = error_set(&op->err, ST_IO, "registry: no random numbers");
    op->put.lease = (op->put.lease >> 2) | 1;
    if (ttl_ms < REGISTRY_TTL_MIN_MS || ttl_ms > REGISTRY_TTL_MAX_MS)
        op->status = error_set(&op->err, ST_INVALID, "registry: a lease lasts %d to %d ms", REGISTRY_TTL_MIN_MS,
                               REGISTRY_TTL_MAX_MS);
    op_add(op);
}

static void lease_op(struct registry *r, enum kind kind, uint64_t lease, registry_done *done, void *ctx)
{
    struct etcd_op *op = op_new(r, kind, done, ctx);
    op->put.lease = lease;
    if (!lease || lease > INT64_MAX)
        op->status = error_set(&op->err, ST_NOT_FOUND, "registry: there is no such lease");
    op_add(op);
}

static void etcd_lease_keep(struct registry *r, uint64_t lease, registry_done *done, void *ctx)
{
    lease_op(r, KIND_KEEP, lease, done, ctx);
}

static void etcd_lease_revoke(struct registry *r, uint64_t lease, registry_done *done, void *ctx)
{
    lease_op(r, KIND_REVOKE, lease, done, ctx);
}

static void on_moved(void *ctx)
{
    etcd_watches_move(ctx);
}

/* The loop does not run any more, nor do timers: what waits for one goes on now. */
static void timers_run(struct etcd *e)
{
    for (struct etcd_op *op = e->first; op;) {
        if (op->started && !op->call) {
            on_timer(op);
            op = e->first;
        } else {
            op = op->next;
        }
    }
}

/* What is under way may end, for a while; then the rest is told that it did not. */
static void etcd_close(struct registry *r)
{
    struct etcd *e = self(r);
    const int64_t until = clock_ms() + CLOSE_MS;
    e->closing = true;
    do
        timers_run(e);
    while (e->first && etcd_net_wait(e->net, until));
    e->over = true;
    while (e->first)
        op_end(e->first, e->first->status ? e->first->status : ST_TIMEOUT);
    etcd_watches_free(e);
    etcd_net_close(e->net);
    free(e);
}

static const struct registry_ops etcd_ops = { .put = etcd_put,
                                              .remove = etcd_remove,
                                              .list = etcd_list,
                                              .lease_grant = etcd_lease_grant,
                                              .lease_keep = etcd_lease_keep,
                                              .lease_revoke = etcd_lease_revoke,
                                              .watch = etcd_watch_start,
                                              .unwatch = etcd_watch_stop,
                                              .close = etcd_close };

/* "A:P[,A:P...][/NAMESPACE]" */
enum status registry_etcd_open(const char *spec, const struct tls *tls, struct loop *loop,
                               struct registry **registry_out, struct error *err)
{
    const char *slash = strchr(spec, '/');
    const char *ns = slash ? slash + 1 : "longspan";
    const size_t n = strlen(ns);
    if (!n || n > ETCD_NAMESPACE_MAX || ns[n - 1] == '/')
        return error_set(err, ST_INVALID, "registry etcd: a namespace has 1 to %d bytes and does not end in '/'",
                         ETCD_NAMESPACE_MAX);
    struct etcd *e = calloc(1, sizeof *e);
    char *addresses = strndup(spec, slash ? (size_t)(slash - spec) : strlen(spec));
    enum status st = e && addresses ? ST_OK : error_set(err, ST_NO_MEMORY, "registry: out of memory");
    if (!st) {
        e->base = (struct registry){ &etcd_ops, loop };
        e->last = &e->first;
        snprintf(e->ns, sizeof e->ns, "%s/", ns);
        st = etcd_net_open(addresses, tls, loop, on_moved, e, &e->net, err);
    }
    free(addresses);
    if (st) {
        free(e);
        return st;
    }
    *registry_out = &e->base;
    return ST_OK;
}
