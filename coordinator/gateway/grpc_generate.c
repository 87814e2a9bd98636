#include "coordinator/gateway/grpc_generate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/gateway/choices.h"

enum {
    QUEUED_BYTES_MAX = 8 << 20,         /* for a client that does not read */
    QUEUED_LOGITS_BYTES_MAX = 1u << 30, /* logit rows come by the hundred; only tests and tools ask for them */
    GRACE_LOOK_MS = 200,
};

static const char method[] = "/longspan.v1.Inference/Generate";

/* What a client was told of one choice. */
struct told {
    struct grpc_told is;
    bool caught; /* what was told on earlier calls is behind us */
    bool ended;
};

struct grpc_generate {
    struct grpc_generates *all;
    struct rpc_call *rpc;        /* NULL: the client has gone */
    struct grpc_generate **slot; /* likewise */
    struct grpc_generate *next;  /* those with a name */
    char name[48];               /* the request's id; "": none */
    struct grpc_source *source;  /* until the journal is open */
    struct grpc_again *again;    /* NULL: no key */
    const char *owner;
    uint64_t seed;
    struct keeper *keeper;
    bool opening, gone; /* gone: to be freed when the journal is open */
    struct resume from;
    struct told *told; /* [n], from the first news on */
    uint32_t n;
    struct loop_timer *grace;
    int64_t grace_until_ms;
    struct choices *choices;
};

/* ---- the end ---- */

static void release(struct grpc_generate *g)
{
    keeper_close(g->keeper);
    free(g->source);
    free(g->again);
    free(g->told);
    free(g);
}

/* Leaves its call and the list. Memory goes later if the journal is being opened for it. */
static void generate_free(struct grpc_generate *g)
{
    struct grpc_generate **link = &g->all->named;
    while (*link && *link != g)
        link = &(*link)->next;
    if (*link)
        *link = g->next;
    if (g->slot)
        *g->slot = NULL;
    g->slot = NULL;
    g->rpc = NULL;
    loop_timer_free(g->grace);
    g->grace = NULL;
    g->gone = true;
    if (!g->opening)
        release(g);
}

/* Its choices have ended. */
static void finish(struct grpc_generate *g, enum rpc_code code, const char *message)
{
    if (g->rpc)
        rpc_call_finish(g->rpc, code, message);
    generate_free(g);
}

void grpc_generate_end(struct grpc_generate *g, enum rpc_code code, const char *message)
{
    if (g->choices)
        choices_cancel(g->choices);
    g->choices = NULL;
    finish(g, code, message);
}

/* ---- what is told ---- */

bool grpc_generate_send(struct rpc_call *rpc, struct text *body, size_t queued_max)
{
    if (body->bad) {
        text_free(body);
        rpc_call_finish(rpc, RPC_INTERNAL, "out of memory");
        return false;
    }
    const size_t queued = rpc_call_send(rpc, (const uint8_t *)body->data, body->n);
    text_free(body);
    if (queued <= queued_max)
        return true;
    log_warn("grpc: a client reads too slowly: %zu bytes wait for it; dropped", queued);
    rpc_call_cancel(rpc);
    return false;
}

/* How far the client has been told. */
static void write_place(const struct grpc_generate *g, struct text *body)
{
    struct resume all = { .n = g->n };
    for (uint32_t i = 0; i < g->n; i++) {
        const struct told *t = &g->told[i];
        if (!t->caught) { /* nothing new yet */
            all.places[i] = g->from.places[i];
            continue;
        }
        all.places[i] = (struct resume_place){
            .tokens = (uint32_t)t->is.tokens,
            .text = (uint32_t)t->is.text,
            .scores = (uint32_t)t->is.scores,
            .begun = t->is.echoed || t->is.tokens || t->is.text || t->ended,
            .ended = t->ended,
        };
    }
    grpc_write_place(&all, g->name, body);
}

static void tell(struct grpc_generate *g, const struct generation *choice, struct text *body)
{
    if (g->name[0] && !body->bad)
        write_place(g, body);
    if (!grpc_generate_send(g->rpc, body, choice->want.logits ? QUEUED_LOGITS_BYTES_MAX : QUEUED_BYTES_MAX))
        grpc_generate_end(g, RPC_INTERNAL, ""); /* it has ended already */
}

/* What was asked is known from the first news on. NULL: refused, and gone. */
static struct told *told_of(struct grpc_generate *g, const struct generation *choice)
{
    if (!g->told) {
        g->n = choice->want.n;
        g->told = calloc(g->n, sizeof *g->told);
        if (!g->told) {
            grpc_generate_end(g, RPC_INTERNAL, "out of memory");
            return NULL;
        }
        if (g->from.n && g->from.n != g->n) {
            grpc_generate_end(g, RPC_INVALID_ARGUMENT, "resume_from is of an answer of another number of choices");
            return NULL;
        }
    }
    return &g->told[choice->index];
}

/*
 * Passes over what the client was told on earlier calls, as if it were told now. false: that is not here yet. Tokens, text and scores follow from the request, however
 * they were cut into messages, so what was told ends where it ended. A place inside a character was never given.
 */
static bool catch_up(const struct grpc_generate *g, struct told *t, const struct generation *choice)
{
    const struct resume_place *p = &g->from.places[choice->index];
    if (t->caught)
        return true;
    if (choice->n_text < p->text || choice->n_sampled < p->tokens || choice->n_scored < p->scores ||
        (p->text < choice->n_text && ((unsigned char)choice->text[p->text] & 0xC0) == 0x80))
        return false;
    t->caught = true;
    t->ended = p->ended;
    t->is.echoed = p->begun;
    t->is.tokens = p->tokens;
    t->is.text = p->text;
    t->is.scores = p->scores;
    return true;
}

static void on_output(void *user, struct generation *choice)
{
    struct grpc_generate *g = user;
    if (g->keeper)
        resumes_note(g->all->resumes, g->keeper, choice);
    struct told *t = g->rpc ? told_of(g, choice) : NULL;
    struct text body = { 0 };
    if (!t || !catch_up(g, t, choice) || t->ended)
        return;
    if (grpc_write_output(&t->is, choice, g->all->host->tokenizer, choice->n_sampled > t->is.tokens, &body))
        tell(g, choice, &body);
}

/* Never of an answer with a name. */
static void on_logits(void *user, struct generation *choice, const struct result_row *row)
{
    struct grpc_generate *g = user;
    struct text body = { 0 };
    if (!g->rpc)
        return;
    grpc_write_logits(row, &body);
    tell(g, choice, &body);
}

static void on_done(void *user, struct generation *choice, const struct generation_done *done)
{
    struct grpc_generate *g = user;
    struct told *t = g->rpc ? told_of(g, choice) : NULL;
    struct text body = { 0 };
    if (!t)
        return;
    if (!catch_up(g, t, choice)) {
        grpc_generate_end(g, RPC_INVALID_ARGUMENT, "resume_from is no place of this answer");
        return;
    }
    if (t->ended)
        return;
    t->ended = true;
    grpc_write_done(&t->is, choice, done, g->all->config, &body);
    tell(g, choice, &body);
}

static void on_end(void *user, const struct choices_done *done)
{
    struct grpc_generate *g = user;
    g->choices = NULL;
    finish(g, grpc_code(done->refusal->status), done->refusal->status ? done->refusal->message : "");
}

static const struct choices_events events = {
    .output = on_output, .logits = on_logits, .done = on_done, .end = on_end
};

/* ---- the beginning ---- */

/* With what is known of it, if it has a name. */
static void begin(struct grpc_generate *g)
{
    struct refusal r = { 0 };
    const int64_t deadline = rpc_call_deadline_ms(g->rpc);
    const bool named = g->name[0] != 0;
    uint32_t n_told = 0;
    const struct generation_told *told = g->keeper ? keeper_told(g->keeper, &n_told) : NULL;
    const struct generation_start start = { .id_prefix = "gen-",
                                            .id = named ? g->name : NULL,
                                            .has_seed = named,
                                            .seed = g->seed,
                                            .told = told,
                                            .n_told = n_told,
                                            .source = g->source,
                                            .source_free = free,
                                            .source_bytes = g->source->bytes,
                                            .owner = g->owner,
                                            .timeout_ms = deadline > 0 ? deadline : 0,
                                            .parse = grpc_parse };
    g->source = NULL;
    if (choices_start(g->all->host, &start, &events, g, &g->choices, &r))
        finish(g, grpc_code(r.status), r.message);
}

static void on_opened(void *ctx, struct keeper *k)
{
    struct grpc_generate *g = ctx;
    g->opening = false;
    g->keeper = k;
    if (g->gone)
        release(g); /* the gateway may be gone too */
    else
        begin(g);
}

static bool same_owner(const char *a, const char *b)
{
    return a && b ? !strcmp(a, b) : a == b;
}

/* Names it by its key. What may not be is refused before anything of an answer under way is touched. */
static enum status name_take(struct grpc_generate *g, char journal_out[RESUME_NAME_BYTES + 1], struct refusal *r)
{
    const struct grpc_again *again = g->again;
    const struct digest *asked = &again->asked;
    if (resumes_name(again->key, g->owner, method, asked->byte, sizeof asked->byte, journal_out, &g->seed))
        return refuse(r, ST_INVALID, "idempotency_key", "idempotency_key: 1 to %d printable characters",
                      (int)RESUME_KEY_MAX);
    snprintf(g->name, sizeof g->name, "gen-%s", journal_out);
    if (again->from[0] && (resume_read(again->from, g->name, &g->from) || g->from.usage))
        return refuse(
            r, ST_INVALID, "resume_from",
            "resume_from is no place of the answer to this request (same idempotency_key, all else the same)");
    if (g->all->host->standby[0])
        return refuse(r, ST_CANCELLED, "", "%s", g->all->host->standby);
    if (g->all->host->draining)
        return refuse(r, ST_CANCELLED, "", "the server is shutting down");
    for (const struct grpc_generate *o = g->all->named; o; o = o->next)
        if (!strcmp(o->again->key, again->key) && same_owner(o->owner, g->owner) && strcmp(o->name, g->name) != 0)
            return refuse(r, ST_EXISTS, "idempotency_key",
                          "idempotency_key: another request with this key is under way");
    return ST_OK;
}

/* Another call of the same request, perhaps one that nobody reads any more: the new one goes on. */
static void take_over(struct grpc_generates *all, const char *name)
{
    struct grpc_generate *old = all->named;
    while (old && strcmp(old->name, name) != 0)
        old = old->next;
    if (old)
        grpc_generate_end(old, RPC_ABORTED, "the same request has come again, on another call");
}

static void begin_named(struct grpc_generate *g)
{
    struct refusal r = { 0 };
    char journal[RESUME_NAME_BYTES + 1];
    if (name_take(g, journal, &r)) {
        finish(g, grpc_code(r.status), r.message);
        return;
    }
    take_over(g->all, g->name);
    if (g->again->abandon) {
        finish(g, RPC_OK, "");
        return;
    }
    g->next = g->all->named;
    g->all->named = g;
    g->opening = true;
    if (!resumes_open(g->all->resumes, journal, on_opened, g))
        return;
    g->opening = false;
    finish(g, RPC_RESOURCE_EXHAUSTED, "out of memory");
}

void grpc_generate_begin(struct grpc_generates *all, struct rpc_call *rpc, struct grpc_source *source,
                         struct grpc_again *again, struct grpc_generate **slot)
{
    struct grpc_generate *g = calloc(1, sizeof *g);
    if (!g) {
        free(source);
        free(again);
        rpc_call_finish(rpc, RPC_INTERNAL, "out of memory");
        return;
    }
    *g = (struct grpc_generate){
        .all = all, .rpc = rpc, .slot = slot, .source = source, .again = again, .owner = rpc_call_identity(rpc)
    };
    *slot = g;
    if (again && all->resumes)
        begin_named(g);
    else if (again && again->abandon)
        finish(g, RPC_OK, ""); /* answers end with their calls here */
    else if (again && again->from[0])
        finish(g, RPC_INVALID_ARGUMENT, "resume_from: this server keeps no answers: it has no state directory");
    else
        begin(g);
}

/* ---- without its client ---- */

/* Nobody has come back: it ends. What it has generated stays in the journal. */
static void on_grace(void *arg)
{
    struct grpc_generate *g = arg;
    if (clock_ms() >= g->grace_until_ms || g->all->host->draining)
        grpc_generate_end(g, RPC_CANCELLED, "");
    else
        loop_timer_set(g->grace, GRACE_LOOK_MS);
}

void grpc_generate_leave(struct grpc_generate *g)
{
    const bool stays = g->keeper && !g->all->closed && !g->all->host->draining;
    const uint32_t grace_ms = stays ? resumes_grace_ms(g->all->resumes) : 0;
    g->rpc = NULL;
    g->slot = NULL;
    if (grace_ms)
        g->grace = loop_timer_new(g->all->host->loop, on_grace, g);
    if (!g->grace) {
        grpc_generate_end(g, RPC_CANCELLED, "");
        return;
    }
    g->grace_until_ms = clock_ms() + grace_ms;
    loop_timer_set(g->grace, GRACE_LOOK_MS);
}
