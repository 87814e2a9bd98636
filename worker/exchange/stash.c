#include "worker/exchange/stash.h"

#include <assert.h>
#include <string.h>

#include "common/rng.h"

void stash_init(struct stash *s, size_t bytes_max, uint64_t seed)
{
    memset(s, 0, sizeof *s);
    s->bytes_max = bytes_max;
    s->seed = seed;
}

static bool everything(void *ctx, const struct message_header *h)
{
    (void)ctx;
    (void)h;
    return true;
}

void stash_deinit(struct stash *s)
{
    stash_purge(s, everything, NULL);
    for (int i = 0; i < STASH_CLASSES; i++) {
        for (struct message *m = s->spare[i], *next; m; m = next) {
            next = m->next;
            message_free(m);
        }
        s->spare[i] = NULL;
    }
}

static int class_of(size_t bytes)
{
    int i = 0;
    while (i < STASH_CLASSES && (size_t)STASH_CLASS_MIN << i < bytes)
        i++;
    return i;
}

/* What a message of so many bytes really takes. */
static size_t cost(size_t payload_bytes)
{
    const int i = class_of(payload_bytes);
    return (i < STASH_CLASSES ? (size_t)STASH_CLASS_MIN << i : payload_bytes) + sizeof(struct message) + 64;
}

bool stash_reserve(struct stash *s, size_t payload_bytes)
{
    if (payload_bytes > s->bytes_max || cost(payload_bytes) > s->bytes_max - s->bytes)
        return false;
    s->bytes += cost(payload_bytes);
    return true;
}

void stash_release(struct stash *s, size_t payload_bytes)
{
    assert(s->bytes >= cost(payload_bytes));
    s->bytes -= cost(payload_bytes);
}

/* The seed is ours alone, so that no peer can aim at one bucket. */
static size_t bucket_of(const struct stash *s, uint64_t epoch, uint64_t plan, uint32_t group, uint16_t layer,
                        uint8_t phase, uint16_t source)
{
    const uint64_t low = (uint64_t)group << 32 | (uint64_t)layer << 16 | source;
    return (mix64(mix64(mix64(s->seed ^ epoch) ^ plan) ^ low) + phase) % STASH_BUCKETS;
}

static struct message **place_of(const struct stash *s, const struct exchange_key *key)
{
    const size_t b = bucket_of(s, key->epoch, key->plan, key->group, key->layer, key->phase, key->peer);
    struct message **at = (struct message **)&s->buckets[b];
    while (*at && !message_has_key(&(*at)->header, key))
        at = &(*at)->next;
    return at;
}

bool message_has_key(const struct message_header *h, const struct exchange_key *key)
{
    return h->step.epoch == key->epoch && h->step.plan == key->plan && h->step.group == key->group &&
           h->step.layer == key->layer && h->step.phase == key->phase && h->source == key->peer;
}

bool stash_put(struct stash *s, struct message *m)
{
    const struct message_header *h = &m->header;
    const struct exchange_key key = { h->step.epoch, h->step.plan,  h->step.group,
                                      h->step.layer, h->step.phase, h->source };
    struct message **at = place_of(s, &key);
    if (*at)
        return false;
    m->next = NULL;
    *at = m;
    s->n++;
    return true;
}

struct message *stash_take(struct stash *s, const struct exchange_key *key)
{
    struct message **at = place_of(s, key), *m = *at;
    if (!m)
        return NULL;
    *at = m->next;
    s->n--;
    stash_release(s, m->header.payload_bytes);
    return m;
}

bool stash_has(const struct stash *s, const struct exchange_key *key)
{
    return s->n && *place_of(s, key);
}

void stash_purge(struct stash *s, bool (*gone)(void *ctx, const struct message_header *h), void *ctx)
{
    for (size_t b = 0; s->n && b < STASH_BUCKETS; b++) {
        for (struct message **at = &s->buckets[b]; *at;) {
            struct message *m = *at;
            if (!gone(ctx, &m->header)) {
                at = &m->next;
                continue;
            }
            *at = m->next;
            s->n--;
            stash_release(s, m->header.payload_bytes);
            stash_message_free(s, m);
        }
    }
}

struct message *stash_message_new(struct stash *s, size_t payload_bytes)
{
    const int i = class_of(payload_bytes);
    if (i == STASH_CLASSES)
        return message_new(payload_bytes);
    struct message *m = s->spare[i];
    if (!m)
        return message_new((size_t)STASH_CLASS_MIN << i);
    s->spare[i] = m->next;
    s->spare_bytes -= m->capacity;
    m->next = NULL;
    m->owner = NULL;
    return m;
}

void stash_message_free(struct stash *s, struct message *m)
{
    if (!m)
        return;
    const int i = class_of(m->capacity);
    if (i == STASH_CLASSES || m->capacity != (size_t)STASH_CLASS_MIN << i ||
        s->spare_bytes + m->capacity > STASH_SPARE_MAX) {
        message_free(m);
        return;
    }
    m->next = s->spare[i];
    s->spare[i] = m;
    s->spare_bytes += m->capacity;
}
