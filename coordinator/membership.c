#include "coordinator/membership.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include <jansson.h>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/registry/registry.h"

enum { TTL_MS = 5000, WORKERS_MAX = PLAN_WORKERS_MAX };

struct entry {
    uint16_t id;
    char *value; /* JSON */
};

struct membership {
    void (*leads)(void *ctx, uint64_t token);
    void (*follows)(void *ctx, const char *leader, size_t bytes);
    void *ctx;
    char *value; /* who we are: of this process alone */
    struct registry *registry;
    struct registry_election *election;
    struct loop_timer *timer;
    uint32_t ttl_ms;
    uint64_t lease; /* 0: none */
    bool asked;     /* a grant or keep is under way */
    bool dirty;     /* a write failed: what the registry holds under this lease is not known */
    bool led, failed, stopping;
    struct entry entries[WORKERS_MAX];
    uint32_t n_entries;
};

/* Said once when it begins to fail and once when it works again. */
static void note(struct membership *m, const struct registry_answer *answer)
{
    const bool failed = answer->status != ST_OK && answer->status != ST_NOT_FOUND;
    if (failed && !m->failed && !m->stopping)
        log_warn("registry: %s: %s; serving goes on", status_text(answer->status), answer->message);
    if (!failed && m->failed)
        log_info("registry: it answers again");
    m->failed = failed;
}

static void on_written(void *ctx, const struct registry_answer *answer)
{
    struct membership *m = ctx;
    note(m, answer);
    m->dirty = m->dirty || (answer->status && answer->status != ST_NOT_FOUND);
    if (answer->status == ST_NOT_FOUND)
        m->lease = 0; /* it ended meanwhile; the next tick takes another and writes all again */
}

static void entry_key(uint16_t id, char key_out[32])
{
    snprintf(key_out, 32, "worker/%u", id);
}

static void entry_write(struct membership *m, const struct entry *e)
{
    char key[32];
    if (!m->lease)
        return;
    entry_key(e->id, key);
    const struct registry_put put = { .key = key, .value = e->value, .bytes = strlen(e->value), .lease = m->lease };
    m->registry->ops->put(m->registry, &put, on_written, m);
}

static void on_granted(void *ctx, const struct registry_answer *answer)
{
    struct membership *m = ctx;
    m->asked = false;
    note(m, answer);
    if (answer->status)
        return;
    m->lease = answer->lease;
    for (uint32_t i = 0; i < m->n_entries; i++)
        entry_write(m, &m->entries[i]);
}

static void on_kept(void *ctx, const struct registry_answer *answer)
{
    struct membership *m = ctx;
    m->asked = false;
    note(m, answer);
    if (answer->status == ST_NOT_FOUND)
        m->lease = 0;
    if (answer->status || !m->dirty)
        return;
    /* it answers again: all is written anew, under another lease, and what should not be there goes with the old one */
    m->registry->ops->lease_revoke(m->registry, m->lease, NULL, NULL);
    m->lease = 0;
    m->dirty = false;
    loop_timer_set(m->timer, 0);
}

static void on_tick(void *arg)
{
    struct membership *m = arg;
    if (!m->asked) {
        m->asked = true;
        if (m->lease)
            m->registry->ops->lease_keep(m->registry, m->lease, on_kept, m);
        else
            m->registry->ops->lease_grant(m->registry, m->ttl_ms, on_granted, m);
    }
    loop_timer_set(m->timer, m->ttl_ms / 4);
}

static void on_won(void *ctx, uint64_t token)
{
    struct membership *m = ctx;
    m->led = true;
    log_info("registry: this coordinator leads (token %llu)", (unsigned long long)token);
    if (m->leads)
        m->leads(m->ctx, token);
}

static void on_follows(void *ctx, const struct registry_item *leader)
{
    const struct membership *m = ctx;
    const bool own = leader->bytes == strlen(m->value) && !memcmp(leader->value, m->value, leader->bytes);
    if (m->follows && !own) /* what we wrote under a lease that we could not keep is still there for a while */
        m->follows(m->ctx, (const char *)leader->value, leader->bytes);
}

static void on_lost(void *ctx, const char *why)
{
    (void)ctx;
    log_warn("registry: the lead is lost (%s); what runs goes on", why);
}

static uint64_t instance_draw(void)
{
    uint64_t n;
    return getrandom(&n, sizeof n, 0) == (ssize_t)sizeof n ? n : (uint64_t)clock_ns();
}

static enum status election_begin(struct membership *m, const struct membership_config *config)
{
    char instance[17];
    snprintf(instance, sizeof instance, "%016llx", (unsigned long long)instance_draw());
    json_t *json = json_pack("{s:s, s:i, s:s, s:s, s:s, s:s}", "instance", instance, "pid", (int)getpid(), "http",
                             config->http, "grpc", config->grpc, "control", config->control, "model", config->model);
    if (json)
        m->value = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    if (!m->value)
        return ST_NO_MEMORY;
    const struct registry_election_config election = { .name = "coordinator",
                                                       .value = m->value,
                                                       .ttl_ms = m->ttl_ms,
                                                       .won = on_won,
                                                       .lost = on_lost,
                                                       .follows = on_follows,
                                                       .ctx = m };
    return registry_election_start(m->registry, &election, &m->election);
}

enum status membership_start(const struct membership_config *config, struct membership **membership_out,
                             struct error *err)
{
    struct membership *m = calloc(1, sizeof *m);
    if (!m)
        return error_set(err, ST_NO_MEMORY, "registry: out of memory");
    m->ttl_ms = config->ttl_ms ? config->ttl_ms : TTL_MS;
    m->leads = config->leads;
    m->follows = config->follows;
    m->ctx = config->ctx;
    enum status st = registry_open(config->registry, config->tls, config->loop, &m->registry, err);
    if (st == ST_OK) {
        m->timer = loop_timer_new(config->loop, on_tick, m);
        st = m->timer ? election_begin(m, config) : ST_NO_MEMORY;
        if (st)
            error_set(err, st, "registry: %s", status_text(st));
    }
    if (st) {
        membership_stop(m);
        return st;
    }
    loop_timer_set(m->timer, 0);
    *membership_out = m;
    return ST_OK;
}

bool membership_led(const struct membership *m)
{
    return m->led;
}

struct registry *membership_registry(struct membership *m)
{
    return m->registry;
}

static struct entry *entry_find(struct membership *m, uint16_t id)
{
    for (uint32_t i = 0; i < m->n_entries; i++)
        if (m->entries[i].id == id)
            return &m->entries[i];
    return NULL;
}

static void entry_remove(struct membership *m, struct entry *e)
{
    char key[32];
    entry_key(e->id, key);
    m->registry->ops->remove(m->registry, key, REGISTRY_ANY, 0, on_written, m);
    free(e->value);
    *e = m->entries[--m->n_entries];
}

void membership_worker(struct membership *m, const struct gateway_worker *w)
{
    struct entry *e = entry_find(m, w->id);
    if (e)
        entry_remove(m, e);
    if (!strcmp(w->state, "lost") || m->n_entries == WORKERS_MAX)
        return;
    json_t *json = json_pack("{s:i, s:s, s:s, s:i}", "pid", (int)w->pid, "address", w->address, "fingerprint",
                             w->fingerprint, "n_blocks", (int)w->n_blocks);
    char *value = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    if (!value)
        return;
    m->entries[m->n_entries] = (struct entry){ w->id, value };
    entry_write(m, &m->entries[m->n_entries++]);
}

void membership_stop(struct membership *m)
{
    if (!m)
        return;
    m->stopping = true;
    loop_timer_free(m->timer);
    registry_election_stop(m->election);
    if (m->lease)
        m->registry->ops->lease_revoke(m->registry, m->lease, NULL, NULL); /* the entries go with it */
    registry_close(m->registry);
    for (uint32_t i = 0; i < m->n_entries; i++)
        free(m->entries[i].value);
    free(m->value);
    free(m);
}
