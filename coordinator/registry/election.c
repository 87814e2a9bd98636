#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "coordinator/registry/registry.h"

/*
 * grant a lease -> put the key if it is absent, with the lease -> lead, keeping the lease -> lost: from the beginning. Who finds the key there waits for its
 * removal. Answers of an earlier round are told apart by its number.
 */
enum stage { STAGE_GRANT, STAGE_PUT, STAGE_WAIT, STAGE_LEAD };
enum { RETRY_MS = 200 };

struct registry_election {
    struct registry *r;
    struct registry_election_config config;
    char *key, *value;
    enum stage stage;
    bool stopped;
    uint32_t asked; /* answers still to come: they hold the memory */
    uint64_t lease, token, watch;
    uint64_t removed;         /* revision of the key's last removal that we were told of */
    bool defers;              /* the store was away, or began anew: who led may go on, if it comes back first */
    bool waited;              /* another led, the last time we knew */
    bool keeping;             /* an answer to a keep is still to come */
    int64_t sent_ms, kept_ms; /* when the last keep was sent; the last that was answered well */
    struct loop_timer *timer; /* keeps the lease; tries again */
};

static void begin(struct registry_election *e);
static void try_put(struct registry_election *e, enum registry_compare compare, uint64_t at);

static void election_free(struct registry_election *e)
{
    if (!e->stopped || e->asked)
        return;
    loop_timer_free(e->timer);
    free(e->key);
    free(e->value);
    free(e);
}

/* What an answer needs first: false, it is of no interest any more. */
static bool answered(struct registry_election *e)
{
    e->asked--;
    if (!e->stopped)
        return true;
    election_free(e);
    return false;
}

static void again_later(struct registry_election *e, enum stage stage)
{
    e->stage = stage;
    loop_timer_set(e->timer, RETRY_MS);
}

static void lose(struct registry_election *e, const char *why)
{
    const bool led = e->stage == STAGE_LEAD;
    if (e->lease)
        e->r->ops->lease_revoke(e->r, e->lease, NULL, NULL);
    e->lease = 0;
    again_later(e, STAGE_GRANT);
    if (led)
        e->config.lost(e->config.ctx, why);
}

static void win(struct registry_election *e, uint64_t token)
{
    e->stage = STAGE_LEAD;
    e->waited = false;
    e->token = token;
    loop_timer_set(e->timer, e->config.ttl_ms / 3);
    e->config.won(e->config.ctx, token);
}

static bool is_own(const struct registry_election *e, const struct registry_item *item)
{
    return item->bytes == strlen(e->value) && !memcmp(item->value, e->value, item->bytes);
}

static void on_put(void *ctx, const struct registry_answer *a)
{
    struct registry_election *e = ctx;
    if (!answered(e) || e->stage != STAGE_PUT)
        return;
    switch (a->status) {
    case ST_OK:
        win(e, a->revision);
        return;
    case ST_STALE:
        /* ours, if an answer to an earlier try was lost on the way */
        if (a->n_items && a->items[0].lease == e->lease) {
            win(e, a->items[0].revision);
            return;
        }
        /* what we led under before, its lease about to end: nobody else gets it in between */
        if (a->n_items && is_own(e, &a->items[0])) {
            try_put(e, REGISTRY_AT, a->items[0].revision);
            return;
        }
        /* it went before we could wait for that */
        if (!a->n_items || a->items[0].revision < e->removed) {
            again_later(e, STAGE_PUT);
            return;
        }
        e->stage = STAGE_WAIT;
        e->waited = true;
        loop_timer_set(e->timer, e->config.ttl_ms / 3);
        if (e->config.follows)
            e->config.follows(e->config.ctx, &a->items[0]);
        return;
    case ST_NOT_FOUND:
        e->defers = e->waited;
        again_later(e, STAGE_GRANT);
        return;
    default:
        again_later(e, STAGE_PUT);
    }
}

static void try_put(struct registry_election *e, enum registry_compare compare, uint64_t at)
{
    const struct registry_put put = {
        .key = e->key, .value = e->value, .bytes = strlen(e->value), .lease = e->lease, .compare = compare, .at = at
    };
    e->stage = STAGE_PUT;
    loop_timer_set(e->timer, -1);
    e->asked++;
    e->r->ops->put(e->r, &put, on_put, e);
}

static void on_grant(void *ctx, const struct registry_answer *a)
{
    struct registry_election *e = ctx;
    if (!answered(e))
        return;
    if (a->status) {
        again_later(e, STAGE_GRANT);
        return;
    }
    /* The store was away meanwhile: the lease may have run since it was asked for, and would be taken for lost at the first look. Now another comes at once. */
    if (clock_ms() - e->kept_ms > e->config.ttl_ms / 2) {
        e->r->ops->lease_revoke(e->r, a->lease, NULL, NULL);
        begin(e);
        return;
    }
    e->lease = a->lease;
    if (!e->defers) {
        try_put(e, REGISTRY_ABSENT, 0);
        return;
    }
    e->defers = e->waited = false; /* once: our lease may end meanwhile */
    e->stage = STAGE_PUT;
    loop_timer_set(e->timer, e->config.ttl_ms); /* long enough for a loaded host to find its way back */
}

static void begin(struct registry_election *e)
{
    e->stage = STAGE_GRANT;
    e->kept_ms = clock_ms(); /* the lease runs from now at the earliest */
    e->asked++;
    e->r->ops->lease_grant(e->r, e->config.ttl_ms, on_grant, e);
}

static void on_keep(void *ctx, const struct registry_answer *a)
{
    struct registry_election *e = ctx;
    if (!answered(e))
        return;
    e->keeping = false;
    if (!a->status)
        e->kept_ms = e->sent_ms;
    if (a->status != ST_NOT_FOUND || (e->stage != STAGE_LEAD && e->stage != STAGE_WAIT))
        return;
    e->defers = e->stage == STAGE_WAIT;
    lose(e, "the lease has ended");
}

/* A leader that does not hear from the store in time has to take it that another leads by now. */
static void keep(struct registry_election *e)
{
    if (clock_ms() - e->kept_ms > e->config.ttl_ms) {
        e->defers = e->stage != STAGE_LEAD;
        lose(e, "the registry does not answer");
        return;
    }
    loop_timer_set(e->timer, e->config.ttl_ms / 3);
    if (e->keeping)
        return;
    e->keeping = true;
    e->sent_ms = clock_ms();
    e->asked++;
    e->r->ops->lease_keep(e->r, e->lease, on_keep, e);
}

static void on_timer(void *arg)
{
    struct registry_election *e = arg;
    switch (e->stage) {
    case STAGE_GRANT:
        begin(e);
        return;
    case STAGE_PUT:
        try_put(e, REGISTRY_ABSENT, 0);
        return;
    case STAGE_WAIT:
    case STAGE_LEAD:
        keep(e);
        return;
    }
}

static void on_change(void *ctx, enum registry_change change, const struct registry_item *item)
{
    struct registry_election *e = ctx;
    if (e->stopped || change == REGISTRY_SYNCED || strcmp(item->key, e->key) != 0)
        return;
    if (change == REGISTRY_REMOVED)
        e->removed = item->revision;
    if (e->stage == STAGE_LEAD && (change == REGISTRY_REMOVED ? item->revision > e->token : item->lease != e->lease))
        lose(e, "the leader's key is gone");
    else if (e->stage == STAGE_WAIT && change == REGISTRY_REMOVED)
        try_put(e, REGISTRY_ABSENT, 0);
}

enum status registry_election_start(struct registry *r, const struct registry_election_config *config,
                                    struct registry_election **election_out)
{
    struct registry_election *e = calloc(1, sizeof *e);
    if (!e)
        return ST_NO_MEMORY;
    e->r = r;
    e->config = *config;
    e->value = strdup(config->value);
    e->timer = loop_timer_new(r->loop, on_timer, e);
    const size_t n = strlen(config->name) + sizeof "election/";
    e->key = malloc(n);
    if (!e->key || !e->value || !e->timer) {
        e->stopped = true;
        election_free(e);
        return ST_NO_MEMORY;
    }
    snprintf(e->key, n, "election/%s", config->name);
    e->watch = r->ops->watch(r, e->key, on_change, e);
    begin(e);
    *election_out = e;
    return ST_OK;
}

bool registry_election_leads(const struct registry_election *e)
{
    return e->stage == STAGE_LEAD;
}

/* Answers that are still to come would never be: they are dropped by close, or end here when they do come. */
void registry_election_stop(struct registry_election *e)
{
    if (!e)
        return;
    e->stopped = true;
    loop_timer_set(e->timer, -1);
    e->r->ops->unwatch(e->r, e->watch);
    if (e->lease)
        e->r->ops->lease_revoke(e->r, e->lease, NULL, NULL);
    election_free(e);
}
