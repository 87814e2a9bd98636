#include "coordinator/sched/directory.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"

enum { BUCKETS_MIN = 1024 };

static uint32_t bucket_of_handle(const struct directory *d, kv_handle handle)
{
    return (uint32_t)mix64(handle) & (d->n_buckets - 1);
}

static uint32_t bucket_of_id(const struct directory *d, const struct digest *id)
{
    uint64_t word;
    memcpy(&word, id->byte, sizeof word);
    return (uint32_t)word & (d->n_buckets - 1);
}

void directory_init(struct directory *d)
{
    *d = (struct directory){ .n_buckets = BUCKETS_MIN, .next = 1 };
    d->by_handle = sched_alloc(d->n_buckets, sizeof(struct block *));
    d->by_id = sched_alloc(d->n_buckets, sizeof(struct block *));
}

void directory_deinit(struct directory *d)
{
    for (uint32_t i = 0; i < d->n_buckets; i++) {
        for (struct block *b = d->by_handle[i], *next; b; b = next) {
            next = b->next_handle;
            for (struct copy *c = b->copies, *after; c; c = after) {
                after = c->next;
                free(c);
            }
            free(b);
        }
    }
    for (uint32_t i = 0; i < SCHED_SLOTS; i++)
        outbox_deinit(&d->pools[i].drops);
    free(d->by_handle);
    free(d->by_id);
    *d = (struct directory){ 0 };
}

static void rehash(struct directory *d)
{
    struct block **old = d->by_handle;
    const uint32_t n = d->n_buckets;
    free(d->by_id);
    d->n_buckets *= 2;
    d->by_handle = sched_alloc(d->n_buckets, sizeof(struct block *));
    d->by_id = sched_alloc(d->n_buckets, sizeof(struct block *));
    for (uint32_t i = 0; i < n; i++) {
        for (struct block *b = old[i], *next; b; b = next) {
            next = b->next_handle;
            struct block **bucket = &d->by_handle[bucket_of_handle(d, b->handle)];
            b->next_handle = *bucket;
            *bucket = b;
            if (b->indexed) {
                bucket = &d->by_id[bucket_of_id(d, &b->id)];
                b->next_id = *bucket;
                *bucket = b;
            }
        }
    }
    free(old);
}

struct block *directory_block(const struct directory *d, kv_handle handle)
{
    struct block *b = d->by_handle[bucket_of_handle(d, handle)];
    while (b && b->handle != handle)
        b = b->next_handle;
    return b;
}

struct block *directory_find(const struct directory *d, const struct digest *id)
{
    struct block *b = d->by_id[bucket_of_id(d, id)];
    while (b && memcmp(&b->id, id, sizeof *id) != 0)
        b = b->next_id;
    return b;
}

struct copy *directory_copy_at(const struct block *b, uint8_t slot)
{
    struct copy *c = b->copies;
    while (c && c->slot != slot)
        c = c->next;
    return c;
}

struct copy *directory_source(const struct block *b)
{
    struct copy *c = b->copies;
    while (c && c->state != COPY_READY)
        c = c->next;
    return c;
}

static void unindex(struct directory *d, struct block *b)
{
    if (!b->indexed)
        return;
    struct block **at = &d->by_id[bucket_of_id(d, &b->id)];
    while (*at != b)
        at = &(*at)->next_id;
    *at = b->next_id;
    b->indexed = false;
}

/* A block is found while it can be had; it goes with its last copy. */
static void block_settle(struct directory *d, struct block *b)
{
    if (!b->disks && !directory_source(b))
        unindex(d, b);
    if (b->copies || b->disks)
        return;
    struct block **bucket = &d->by_handle[bucket_of_handle(d, b->handle)];
    while (*bucket != b)
        bucket = &(*bucket)->next_handle;
    *bucket = b->next_handle;
    free(b);
    d->n_blocks--;
}

/* Takes the copy off its block. */
static void copy_remove(struct directory *d, struct copy *c)
{
    struct block *b = c->block;
    struct copy **at = &b->copies;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    free(c);
    block_settle(d, b);
}

static struct copy *copy_new(struct block *b, uint8_t slot, enum copy_state state)
{
    struct copy *c = sched_alloc(1, sizeof *c);
    *c = (struct copy){ .block = b, .next = b->copies, .slot = slot, .state = (uint8_t)state };
    b->copies = c;
    return c;
}

/* ---- pools ---- */

static void cache_push(struct pool *p, struct copy *c)
{
    c->cached = true;
    c->older = p->newest;
    c->newer = NULL;
    *(p->newest ? &p->newest->newer : &p->oldest) = c;
    p->newest = c;
    p->cached++;
}

static void cache_remove(struct pool *p, struct copy *c)
{
    *(c->older ? &c->older->newer : &p->oldest) = c->newer;
    *(c->newer ? &c->newer->older : &p->newest) = c->older;
    c->newer = c->older = NULL;
    c->cached = false;
    p->cached--;
}

void directory_pool_add(struct directory *d, uint8_t slot, uint32_t n_blocks)
{
    assert(!d->pools[slot].live);
    d->pools[slot] = (struct pool){ .live = true, .n_blocks = n_blocks };
}

uint32_t directory_pool_remove(struct directory *d, uint8_t slot)
{
    struct pool *p = &d->pools[slot];
    uint32_t left = 0;
    directory_disk_lost(d, slot);
    for (uint32_t i = 0; i < d->n_buckets; i++) {
        for (struct block *b = d->by_handle[i], *next; b; b = next) {
            next = b->next_handle;
            struct copy *c = directory_copy_at(b, slot);
            if (!c)
                continue;
            assert(!c->refs && !c->transfer);
            const bool ready = c->state == COPY_READY;
            c->state = COPY_DROPPING;
            left += ready && directory_source(b);
            copy_remove(d, c);
        }
    }
    assert(!p->promised);
    outbox_deinit(&p->drops);
    *p = (struct pool){ 0 };
    return left;
}

bool directory_promise(struct directory *d, uint8_t slot, uint32_t n)
{
    struct pool *p = &d->pools[slot];
    if (!p->live || directory_room(d, slot) < n)
        return false;
    while (p->n_blocks - p->named - p->promised < n)
        directory_drop(d, p->oldest);
    p->promised += n;
    return true;
}

void directory_unpromise(struct directory *d, uint8_t slot, uint32_t n)
{
    struct pool *p = &d->pools[slot];
    assert(p->promised >= n);
    p->promised -= n;
}

/* ---- copies ---- */

static void promise_take(struct pool *p)
{
    assert(p->promised > 0);
    p->promised--;
    p->named++;
}

static struct block *block_new(struct directory *d, kv_handle handle, uint32_t position)
{
    if (d->n_blocks >= d->n_buckets)
        rehash(d);
    struct block *b = sched_alloc(1, sizeof *b);
    *b = (struct block){ .handle = handle, .position = position };
    struct block **bucket = &d->by_handle[bucket_of_handle(d, b->handle)];
    b->next_handle = *bucket;
    *bucket = b;
    d->n_blocks++;
    return b;
}

struct copy *directory_open(struct directory *d, uint8_t slot, uint32_t position)
{
    promise_take(&d->pools[slot]);
    struct copy *c = copy_new(block_new(d, d->next++, position), slot, COPY_OPEN);
    c->refs = 1;
    return c;
}

struct copy *directory_incoming(struct directory *d, struct block *b, uint8_t slot)
{
    assert(!directory_copy_at(b, slot));
    promise_take(&d->pools[slot]);
    return copy_new(b, slot, COPY_INCOMING);
}

/* Unless another of its id is that has a copy: one that is on disks alone gives way, with what is there. */
static void block_index(struct directory *d, struct block *b)
{
    struct block *other = b->indexed ? b : directory_find(d, &b->id);
    if (other && (other == b || directory_source(other)))
        return;
    if (other) {
        b->disks = other->disks;
        other->disks = 0;
        block_settle(d, other);
    }
    struct block **bucket = &d->by_id[bucket_of_id(d, &b->id)];
    b->next_id = *bucket;
    *bucket = b;
    b->indexed = true;
}

void directory_commit(struct directory *d, struct copy *c, const struct digest *id, bool share)
{
    struct block *b = c->block;
    assert(c->state == COPY_OPEN);
    c->state = COPY_READY;
    b->id = *id;
    if (share)
        block_index(d, b);
}

/* Nobody refers to a ready copy. */
static void copy_idle(struct directory *d, struct copy *c)
{
    if (c->block->indexed)
        cache_push(&d->pools[c->slot], c);
    else
        directory_drop(d, c);
}

bool directory_adopt(struct directory *d, uint8_t slot, kv_handle handle, uint32_t position, const struct digest *id)
{
    struct pool *p = &d->pools[slot];
    struct block *b = directory_block(d, handle);
    if (p->named + p->promised >= p->n_blocks || handle >= d->next)
        return false;
    if (b && (directory_copy_at(b, slot) || !directory_source(b) || b->position != position ||
              memcmp(&b->id, id, sizeof *id) != 0))
        return false;
    if (!b) {
        b = block_new(d, handle, position);
        b->id = *id;
    }
    struct copy *c = copy_new(b, slot, COPY_READY);
    p->named++;
    block_index(d, b);
    copy_idle(d, c);
    return true;
}

/* ---- disks ---- */

void directory_disk_add(struct directory *d, uint8_t slot, uint32_t position, const struct digest *id)
{
    struct pool *p = &d->pools[slot];
    struct block *b = directory_find(d, id);
    if (b && b->disks >> slot & 1)
        return;
    if (p->on_disk >= DIRECTORY_DISK_MAX)
        return;
    if (!b) {
        b = block_new(d, d->next++, position);
        b->id = *id;
        block_index(d, b);
    }
    b->disks |= (uint64_t)1 << slot;
    p->on_disk++;
}

static void disk_clear(struct directory *d, uint8_t slot, struct block *b)
{
    if (!(b->disks >> slot & 1))
        return;
    b->disks &= ~((uint64_t)1 << slot);
    d->pools[slot].on_disk--;
    block_settle(d, b);
}

void directory_disk_remove(struct directory *d, uint8_t slot, const struct digest *id)
{
    struct block *b = directory_find(d, id);
    if (b)
        disk_clear(d, slot, b);
}

void directory_disk_lost(struct directory *d, uint8_t slot)
{
    for (uint32_t i = 0; d->pools[slot].on_disk && i < d->n_buckets; i++) {
        for (struct block *b = d->by_handle[i], *next; b; b = next) {
            next = b->next_handle;
            disk_clear(d, slot, b);
        }
    }
}

/* ---- copies that come and go ---- */

void directory_arrived(struct directory *d, struct copy *c)
{
    assert(c->state == COPY_INCOMING);
    c->state = COPY_READY;
    if (!c->refs)
        copy_idle(d, c);
}

void directory_ref(struct directory *d, struct copy *c)
{
    assert(c->state != COPY_DROPPING);
    if (c->cached)
        cache_remove(&d->pools[c->slot], c);
    c->refs++;
}

void directory_unref(struct directory *d, struct copy *c)
{
    assert(c->refs > 0 && c->state != COPY_DROPPING);
    if (--c->refs)
        return;
    if (c->state == COPY_READY)
        copy_idle(d, c);
    else if (c->state == COPY_OPEN)
        directory_drop(d, c);
}

void directory_drop(struct directory *d, struct copy *c)
{
    struct pool *p = &d->pools[c->slot];
    assert(!c->refs && c->state != COPY_DROPPING);
    if (c->cached)
        cache_remove(p, c);
    p->named--;
    p->dropping++;
    c->state = COPY_DROPPING;
    c->drops = 1;
    outbox_push(&p->drops, c->block->handle);
    block_settle(d, c->block);
}

void directory_drop_stray(struct directory *d, uint8_t slot, kv_handle handle)
{
    struct pool *p = &d->pools[slot];
    struct block *b = directory_block(d, handle);
    struct copy *c = b ? directory_copy_at(b, slot) : NULL;
    if (c && c->state != COPY_DROPPING)
        return;
    if (b && !c) { /* noted, so that no transfer brings it back before this drop has run */
        c = copy_new(b, slot, COPY_DROPPING);
        p->dropping++;
    }
    if (c)
        c->drops++;
    outbox_push(&p->drops, handle);
}

void directory_forget(struct directory *d, struct copy *c)
{
    assert(c->state == COPY_INCOMING && !c->refs);
    d->pools[c->slot].named--;
    copy_remove(d, c);
}

void directory_dropped(struct directory *d, uint8_t slot, uint32_t n)
{
    struct pool *p = &d->pools[slot];
    for (uint32_t i = 0; i < n; i++) {
        struct block *b = directory_block(d, outbox_pop(&p->drops));
        struct copy *c = b ? directory_copy_at(b, slot) : NULL;
        if (!c || c->state != COPY_DROPPING || --c->drops)
            continue;
        p->dropping--;
        copy_remove(d, c);
    }
}
