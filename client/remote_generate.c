/*
 * Generate, gone on with where its connection is lost. Each request has a key of its own, so sent again it means the same answer, and says how far that has come, so
 * nothing is lost or told twice, whether the coordinator came back or another took over.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "client/remote.h"
#include "client/terminal.h"
#include "common/clock.h"

static const char method[] = "/longspan.v1.Inference/Generate";

enum {
    PAUSE_MS = 200,
    SHORT_MS = 3000, /* for a server to be found at first, where there are several */
    TAKEN_MS = 1000, /* who keeps a call for so long was there */
    ABANDON_MS = 2000,
};

struct generating {
    const struct remote_events *events;
    char key[33];
    char *place; /* of the last message; NULL: none yet */
    bool heard;  /* on this call a message came, */
    bool placed; /* and what came can be gone on behind */
    bool bad;
};

static bool on_message(void *ctx, const uint8_t *data, size_t bytes)
{
    struct generating *g = ctx;
    Longspan__V1__GenerateResponse *response = longspan__v1__generate_response__unpack(NULL, bytes, data);
    if (!response) {
        g->bad = true;
        return false;
    }
    g->heard = true;
    g->placed = response->place[0] != 0;
    if (g->placed) {
        free(g->place);
        g->place = strdup(response->place);
        g->bad = !g->place;
    }
    const bool more = !g->bad && g->events->on_response(g->events->ctx, response);
    longspan__v1__generate_response__free_unpacked(response, NULL);
    return more;
}

static bool stopped(void *ctx)
{
    const struct generating *g = ctx;
    return g->events->interrupted && g->events->interrupted(g->events->ctx);
}

static bool key_draw(char key_out[33])
{
    uint8_t bytes[16];
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        return false;
    for (size_t i = 0; i < sizeof bytes; i++)
        snprintf(key_out + 2 * i, 3, "%02x", bytes[i]);
    return true;
}

/* Its client leaves for good: else it would go on for a while. */
static void abandon(struct remote *r, Longspan__V1__GenerateRequest *q)
{
    struct error ignored = { 0 };
    uint8_t *reply = NULL;
    size_t bytes;
    q->abandon = true;
    q->resume_from = (char *)(uintptr_t) "";
    if (!remote_unary(r, method, ABANDON_MS, &q->base, &reply, &bytes, NULL, &ignored))
        free(reply);
}

/* What is to be done about a call that ended with UNAVAILABLE. */
struct patience {
    int64_t began_ms, end_ms;
    uint32_t tries;
    bool known, said; /* a server has had the request; the terminal was told */
};

/* false: it is given up */
static bool again(const struct remote *r, struct generating *g, struct patience *p, const struct error *err)
{
    const int64_t now = clock_ms();
    if (g->heard && !g->placed)
        return false; /* a server that keeps no answers */
    if (g->heard || (!p->known && now - p->began_ms >= TAKEN_MS)) {
        p->known = true;
        p->said = false;
        p->end_ms = now + remote_retry_ms(r);
    }
    if (p->known && !p->said) {
        terminal_bar_end();
        fprintf(stderr, "longspan: %s; trying again\n", err->text);
        p->said = true;
    }
    if (++p->tries >= remote_servers(r) && now >= p->end_ms)
        return false;
    nanosleep(&(struct timespec){ .tv_nsec = PAUSE_MS * 1000000L }, NULL);
    return !stopped(g);
}

static enum status generate(struct remote *r, Longspan__V1__GenerateRequest *q, struct generating *g, struct error *err)
{
    const struct remote_stream stream = { .on_message = on_message, .interrupted = stopped, .ctx = g };
    struct patience p = { .end_ms = clock_ms() + (remote_servers(r) > 1 ? SHORT_MS : 0) };
    for (;;) {
        enum rpc_code code = RPC_OK;
        p.began_ms = clock_ms();
        g->heard = false;
        q->resume_from = g->place ? g->place : (char *)(uintptr_t) "";
        *err = (struct error){ 0 };
        const enum status st = remote_stream(r, method, &q->base, &stream, &code, err);
        if (g->bad)
            return error_set(err, ST_PROTOCOL, "a message of the answer cannot be read");
        if (q->idempotency_key[0] && st == ST_PEER && code == RPC_UNAVAILABLE && again(r, g, &p, err))
            continue;
        if (q->idempotency_key[0] && stopped(g))
            abandon(r, q);
        return st;
    }
}

enum status remote_generate(struct remote *r, const Longspan__V1__GenerateRequest *request,
                            const struct remote_events *events, struct error *err)
{
    struct generating g = { .events = events };
    Longspan__V1__GenerateRequest q = *request;
    if (!q.logits && !q.idempotency_key[0] && remote_retry_ms(r) && key_draw(g.key))
        q.idempotency_key = g.key;
    const enum status st = generate(r, &q, &g, err);
    free(g.place);
    return st;
}
