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

/*
 * The lead is won at a revision of the registry's, and used once a record that no lease takes away says by whom, with a term above all that were used before:
 * "election/term". So a coordinator that lost the lead and wins it again knows whether another led in between, and where a registry began anew
 * (its revisions are low again), the term can be raised above the one that workers have obeyed.
 */
enum { TTL_MS = 5000, AGAIN_MS = 200, WORKERS_MAX = PLAN_WORKERS_MAX };
static const char term_key[] = "election/term";

/* One write of a key is under way at a time: two together may take effect in either order. */
struct entry {
    struct membership *m; /* NULL: free */
    uint16_t id;
    char *value; /* JSON; NULL: to be removed */
    bool writing, again;
};

struct membership {
    void (*leads)(void *ctx, uint64_t term, const char *before);
    void (*follows)(void *ctx, const char *leader, size_t bytes);
    void (*outvoted)(void *ctx, const char *why);
    void *ctx;
    char *value; /* who we are: of this process alone */
    char instance[17];
    char control[256];                /* where workers reach us */
    char before[256];                 /* where they reached who led before; "": that were we, or nobody */
    uint64_t token, term, asked_term; /* of the lead; in use (0: none yet); being written */
    uint64_t higher;                  /* the highest that a worker says it has obeyed */
    bool taking;                      /* the record is read or written */
    struct loop_timer *take_timer;    /* tries again */
    struct registry *registry;
    struct registry_election *election;
    struct loop_timer *timer;
    uint32_t ttl_ms;
    uint64_t lease; /* 0: none */
    bool asked;     /* a grant or keep is under way */
    bool dirty;     /* a write failed: what the registry holds under this lease is not known */
    bool led, failed, stopping;
    struct entry entries[WORKERS_MAX];
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

static void entry_write(struct entry *e);

static void on_written(void *ctx, const struct registry_answer *answer)
{
    struct entry *e = ctx;
    struct membership *m = e->m;
    note(m, answer);
    m->dirty = m->dirty || (answer->status && answer->status != ST_NOT_FOUND);
    if (answer->status == ST_NOT_FOUND)
        m->lease = 0; /* it ended meanwhile; the next tick takes another and writes all again */
    e->writing = false;
    if (m->stopping)
        return;
    if (e->again)
        entry_write(e);
    else if (!e->value)
        *e = (struct entry){ 0 };
}

/* Brings the registry to what the entry says; without a lease it waits for the next. */
static void entry_write(struct entry *e)
{
    struct membership *m = e->m;
    e->again = e->writing;
    if (e->writing || (e->value && !m->lease))
        return;
    char key[32];
    snprintf(key, sizeof key, "worker/%u", e->id);
    e->writing = true;
    if (!e->value) {
        m->registry->ops->remove(m->registry, key, REGISTRY_ANY, 0, on_written, e);
        return;
    }
    const struct registry_put put = { .key = key, .value = e->value, .bytes = strlen(e->value), .lease = m->lease };
    m->registry->ops->put(m->registry, &put, on_written, e);
}

static void on_granted(void *ctx, const struct registry_answer *answer)
{
    struct membership *m = ctx;
    m->asked = false;
    note(m, answer);
    if (answer->status)
        return;
    m->lease = answer->lease;
    for (uint32_t i = 0; i < WORKERS_MAX; i++)
        if (m->entries[i].m)
            entry_write(&m->entries[i]);
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

/* ---- the term ---- */

static void term_read(struct membership *m);

static bool leads_now(const struct membership *m)
{
    return registry_election_leads(m->election);
}

static void outvoted(struct membership *m, const char *why)
{
    if (m->led && m->outvoted && !m->stopping)
        m->outvoted(m->ctx, why);
}

static void take_again(struct membership *m)
{
    m->taking = false;
    if (!m->stopping)
        loop_timer_set(m->take_timer, AGAIN_MS);
}

static void on_take_timer(void *arg)
{
    struct membership *m = arg;
    if (leads_now(m) && !m->taking)
        term_read(m);
}

static void on_term_written(void *ctx, const struct registry_answer *answer)
{
    struct membership *m = ctx;
    if (answer->status) {
        take_again(m); /* stale: by an earlier try of ours, or by another who leads; reading tells */
        return;
    }
    m->taking = false;
    if (!leads_now(m))
        return; /* whoever leads now reads what we wrote */
    m->term = m->asked_term;
    m->led = true;
    log_info("registry: this coordinator leads (token %llu, term %llu)", (unsigned long long)m->token,
             (unsigned long long)m->term);
    if (m->leads)
        m->leads(m->ctx, m->term, m->before);
    if (m->higher >= m->term)
        term_read(m);
}

static void term_write(struct membership *m, uint64_t term, uint64_t revision)
{
    m->asked_term = term;
    json_t *json =
        json_pack("{s:I, s:s, s:s}", "term", (json_int_t)term, "instance", m->instance, "control", m->control);
    char *value = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    if (!value) {
        take_again(m);
        return;
    }
    const struct registry_put put = { .key = term_key,
                                      .value = value,
                                      .bytes = strlen(value),
                                      .compare = revision ? REGISTRY_AT : REGISTRY_ABSENT,
                                      .at = revision };
    m->registry->ops->put(m->registry, &put, on_term_written, m);
    free(value);
}

/* What the record says; 0 and "" where it says nothing that could be. */
static uint64_t term_parse(const struct registry_item *item, char instance_out[17], char control_out[256])
{
    json_t *json = json_loadb((const char *)item->value, item->bytes, 0, NULL);
    const json_int_t term = json_integer_value(json_object_get(json, "term"));
    const char *instance = json_string_value(json_object_get(json, "instance")),
               *control = json_string_value(json_object_get(json, "control"));
    const bool good = term > 0 && (uint64_t)term <= MEMBERSHIP_TERM_MAX && instance && control;
    if (!good)
        log_warn("registry: '%s' holds no term; it is written anew", term_key);
    snprintf(instance_out, 17, "%s", good ? instance : "");
    snprintf(control_out, 256, "%s", good ? control : "");
    json_decref(json);
    return good ? (uint64_t)term : 0;
}

static uint64_t highest(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static void on_term_read(void *ctx, const struct registry_answer *answer)
{
    struct membership *m = ctx;
    char instance[17] = "", control[256] = "";
    uint64_t used = 0;
    if (answer->status) {
        note(m, answer);
        take_again(m);
        return;
    }
    m->taking = false;
    if (!leads_now(m))
        return;
    if (answer->n_items)
        used = term_parse(&answer->items[0], instance, control);
    const bool own = !strcmp(instance, m->instance);
    if (m->led && used > m->term && !own) {
        outvoted(m, "another coordinator has led in between");
        return;
    }
    if (!own) /* what was at our own address is gone */
        snprintf(m->before, sizeof m->before, "%s", strcmp(control, m->control) != 0 ? control : "");
    const uint64_t token = m->token <= MEMBERSHIP_TERM_MAX ? m->token : 0;
    uint64_t term = highest(highest(token, used + 1), m->term + 1);
    if (m->higher >= term) {
        log_warn("registry: a worker has obeyed a coordinator of term %llu, of which the registry knows nothing: it "
                 "has begun "
                 "anew; the term goes on behind that",
                 (unsigned long long)m->higher);
        term = m->higher + 1;
    }
    if (term > MEMBERSHIP_TERM_MAX) {
        log_error("registry: there is no term above %llu", (unsigned long long)m->higher);
        return;
    }
    m->taking = true;
    term_write(m, term, answer->n_items ? answer->items[0].revision : 0);
}

static void term_read(struct membership *m)
{
    m->taking = true;
    m->registry->ops->list(m->registry, term_key, true, on_term_read, m);
}

void membership_higher(struct membership *m, uint64_t term)
{
    if (term > MEMBERSHIP_TERM_MAX)
        return;
    m->higher = highest(m->higher, term);
    if (!m->led || m->higher < m->term || m->taking)
        return;
    if (leads_now(m))
        term_read(m); /* the registry says whether another has led, or has forgotten that one did */
    else
        outvoted(m, "a coordinator of a later term is obeyed, and the registry does not say that this one leads");
}

static void on_won(void *ctx, uint64_t token)
{
    struct membership *m = ctx;
    m->token = token;
    if (!m->taking)
        term_read(m);
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
    struct membership *m = ctx;
    if (m->led)
        log_warn("registry: the lead is lost (%s); what runs goes on", why);
    if (m->led && m->higher >= m->term)
        outvoted(m, "a coordinator of a later term is obeyed, and the registry does not say that this one leads");
}

static uint64_t instance_draw(void)
{
    uint64_t n;
    return getrandom(&n, sizeof n, 0) == (ssize_t)sizeof n ? n : (uint64_t)clock_ns();
}

static enum status election_begin(struct membership *m, const struct membership_config *config)
{
    snprintf(m->instance, sizeof m->instance, "%016llx", (unsigned long long)instance_draw());
    snprintf(m->control, sizeof m->control, "%s", config->control);
    json_t *json = json_pack("{s:s, s:i, s:s, s:s, s:s, s:s}", "instance", m->instance, "pid", (int)getpid(), "http",
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
    m->outvoted = config->outvoted;
    m->ctx = config->ctx;
    enum status st = registry_open(config->registry, config->tls, config->loop, &m->registry, err);
    if (st == ST_OK) {
        m->timer = loop_timer_new(config->loop, on_tick, m);
        m->take_timer = loop_timer_new(config->loop, on_take_timer, m);
        st = m->timer && m->take_timer ? election_begin(m, config) : ST_NO_MEMORY;
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

/* ---- whether it leads still ---- */

struct confirmation {
    struct membership *m;
    void (*done)(void *ctx, bool leads);
    void *ctx;
};

static void on_confirmed(void *ctx, const struct registry_answer *answer)
{
    struct confirmation *c = ctx;
    const struct membership *m = c->m;
    /* the key as we wrote it: nobody else can have led before this was read */
    const bool own = !answer->status && answer->n_items && answer->items[0].revision == m->token &&
                     answer->items[0].bytes == strlen(m->value) &&
                     !memcmp(answer->items[0].value, m->value, answer->items[0].bytes);
    c->done(c->ctx, own && m->led);
    free(c);
}

void membership_confirm(void *membership, void (*done)(void *ctx, bool leads), void *ctx)
{
    struct membership *m = membership;
    struct confirmation *c = malloc(sizeof *c);
    if (!c) {
        fputs("out of memory in the registry\n", stderr);
        abort();
    }
    *c = (struct confirmation){ m, done, ctx };
    m->registry->ops->list(m->registry, "election/coordinator", true, on_confirmed, c);
}

/* The worker's entry, or a free one; NULL: there is none left. */
static struct entry *entry_find(struct membership *m, uint16_t id)
{
    struct entry *room = NULL;
    for (uint32_t i = 0; i < WORKERS_MAX; i++) {
        struct entry *e = &m->entries[i];
        if (e->m && e->id == id)
            return e;
        if (!e->m && !room)
            room = e;
    }
    return room;
}

void membership_worker(struct membership *m, const struct gateway_worker *w)
{
    struct entry *e = entry_find(m, w->id);
    const bool lost = !strcmp(w->state, "lost");
    if (!e || (lost && !e->m))
        return;
    if (lost) {
        free(e->value);
        e->value = NULL;
        entry_write(e);
        return;
    }
    json_t *json = json_pack("{s:i, s:s, s:s, s:i}", "pid", (int)w->pid, "address", w->address, "fingerprint",
                             w->fingerprint, "n_blocks", (int)w->n_blocks);
    char *value = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    if (!value)
        return;
    free(e->value);
    e->m = m;
    e->id = w->id;
    e->value = value;
    entry_write(e);
}

void membership_stop(struct membership *m)
{
    if (!m)
        return;
    m->stopping = true;
    loop_timer_free(m->timer);
    loop_timer_free(m->take_timer);
    registry_election_stop(m->election);
    if (m->lease)
        m->registry->ops->lease_revoke(m->registry, m->lease, NULL, NULL); /* the entries go with it */
    registry_close(m->registry);
    for (uint32_t i = 0; i < WORKERS_MAX; i++)
        free(m->entries[i].value);
    free(m->value);
    free(m);
}
