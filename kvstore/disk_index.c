#include "kvstore/disk_index.h"

#include <stdlib.h>
#include <string.h>

#include "common/rng.h"

enum { BUCKETS_MIN = 1024, PAGE = 4096 };

bool kv_index_init(struct kv_index *x)
{
    *x = (struct kv_index){ .n_buckets = BUCKETS_MIN, .buckets = calloc(BUCKETS_MIN, sizeof(struct kv_index_entry *)) };
    return x->buckets != NULL;
}

void kv_index_deinit(struct kv_index *x)
{
    for (uint32_t i = 0; x->buckets && i < x->n_buckets; i++) {
        for (struct kv_index_entry *e = x->buckets[i], *next; e; e = next) {
            next = e->next;
            free(e);
        }
    }
    free(x->buckets);
    *x = (struct kv_index){ 0 };
}

static struct kv_index_entry **place_of(const struct kv_index *x, const struct digest *id)
{
    uint64_t word;
    memcpy(&word, id->byte, sizeof word);
    struct kv_index_entry **at = &x->buckets[mix64(word) & (x->n_buckets - 1)];
    while (*at && memcmp(&(*at)->id, id, sizeof *id) != 0)
        at = &(*at)->next;
    return at;
}

struct kv_index_entry *kv_index_find(const struct kv_index *x, const struct digest *id)
{
    return *place_of(x, id);
}

static void rehash(struct kv_index *x)
{
    struct kv_index_entry **old = x->buckets, **more = calloc(2 * (size_t)x->n_buckets, sizeof *more);
    const uint32_t n = x->n_buckets;
    if (!more)
        return; /* slower, not wrong */
    x->buckets = more;
    x->n_buckets *= 2;
    for (uint32_t i = 0; i < n; i++) {
        for (struct kv_index_entry *e = old[i], *next; e; e = next) {
            next = e->next;
            struct kv_index_entry **at = place_of(x, &e->id);
            e->next = NULL;
            *at = e;
        }
    }
    free(old);
}

struct kv_index_entry *kv_index_add(struct kv_index *x, const struct digest *id, uint32_t position, uint64_t bytes)
{
    if (x->n_entries >= x->n_buckets)
        rehash(x);
    struct kv_index_entry *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    *e = (struct kv_index_entry){ .id = *id, .position = position, .bytes = (bytes + PAGE - 1) / PAGE * PAGE };
    *place_of(x, id) = e;
    x->n_entries++;
    return e;
}

static void order_remove(struct kv_index *x, struct kv_index_entry *e)
{
    *(e->older ? &e->older->newer : &x->oldest) = e->newer;
    *(e->newer ? &e->newer->older : &x->newest) = e->older;
    e->newer = e->older = NULL;
}

static void order_push(struct kv_index *x, struct kv_index_entry *e)
{
    e->older = x->newest;
    e->newer = NULL;
    *(x->newest ? &x->newest->newer : &x->oldest) = e;
    x->newest = e;
}

void kv_index_ready(struct kv_index *x, struct kv_index_entry *e)
{
    e->ready = true;
    order_push(x, e);
    x->bytes += e->bytes;
    x->n_ready++;
}

void kv_index_used(struct kv_index *x, struct kv_index_entry *e)
{
    if (!e->ready)
        return;
    order_remove(x, e);
    order_push(x, e);
}

void kv_index_remove(struct kv_index *x, struct kv_index_entry *e)
{
    struct kv_index_entry **at = place_of(x, &e->id);
    *at = e->next;
    if (e->ready) {
        order_remove(x, e);
        x->bytes -= e->bytes;
        x->n_ready--;
    }
    x->n_entries--;
    free(e);
}
