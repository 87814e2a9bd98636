/*
 * A scheduler that acts by what the prompt says, linked instead of the real one, so that the gateway is tested alone:
 *   [say TEXT]  generates TEXT and stops      [slow]    a token 'a' each 10 ms
 *   [die N]     fails with ST_PEER after N    [busy]    is refused: the queue is full
 *   [flood]     64 tokens 'x' a millisecond   [wait]    never answers
 * What was told before is not told again. In TEXT, '\2' is token 256. Log-probabilities are functions of position, so that clients can check them.
 */
#ifndef TESTS_FAKE_SCHED_H
#define TESTS_FAKE_SCHED_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/loop.h"
#include "coordinator/sched.h"

struct sched_request {
    struct sched *s;
    struct sched_request *next;
    const struct sched_events *events;
    void *user;
    struct loop_timer *timer;
    int32_t *prompt, *forced;
    struct sched_want want;
    char say[256];
    size_t n_say;
    uint32_t n_out;
    int die_after, period_ms, burst;
    bool wait, ended, scored;
    bool *gone; /* set when it goes, while its token is told */
};

struct sched {
    struct loop *loop;
    struct sched_request *first;
    uint32_t n_running, n_cancelled, n_submitted, retry_ms;
    struct sched_want last;  /* pointers are not valid */
    int32_t last_token;      /* of its prompt */
    struct plan_edits edits; /* of the last row that had any; the first adds beside it */
    struct plan_edit adds[8];
    bool repeated_a; /* 'a' was in the set of repeated */
};

static float fake_logprob(uint32_t i)
{
    return -(float)(i + 1) / 7.0f;
}

static void fake_end(struct sched_request *r, enum finish_reason reason, enum status st, const char *message)
{
    static const struct sched_worker_share shares[] = { { 0, 3, 100, 200 }, { 1, 2, 300, 400 } };
    const struct sched_done done = { .reason = reason,
                                     .status = st,
                                     .message = message,
                                     .prompt_tokens = r->want.n_tokens,
                                     .cached_tokens = 5,
                                     .recomputed_tokens = 3,
                                     .completion_tokens = r->n_out,
                                     .kv_bytes_read = 50,
                                     .kv_bytes_dense = 100,
                                     .n_shares = 2,
                                     .shares = shares,
                                     .queued_ms = 1,
                                     .prefill_ms = 2,
                                     .decode_ms = 3 };
    struct sched *s = r->s;
    if (r->gone)
        *r->gone = true;
    struct sched_request **link = &s->first;
    while (*link != r)
        link = &(*link)->next;
    *link = r->next;
    s->n_running--;
    r->ended = true;
    r->events->done(r->user, &done);
    loop_timer_free(r->timer);
    free(r->prompt);
    free(r->forced);
    free(r);
}

static void fake_top(const struct sched_request *r, uint32_t i, int32_t token, struct result_top *top)
{
    for (uint32_t k = 0; k < r->want.n_top; k++) {
        top[k].token = (uint32_t)(k ? ('A' + (int)k) : token);
        top[k].logprob = fake_logprob(i) - (float)k;
    }
}

static void fake_score(struct sched_request *r)
{
    for (uint32_t i = 0; i + 1 < r->want.n_tokens; i++) {
        struct result_top top[PLAN_TOP_MAX];
        struct result_row row = {
            .pos = i, .token = -1, .target_logprob = fake_logprob(i), .n_top = r->want.n_top, .top = top
        };
        fake_top(r, i, r->prompt[i + 1], top);
        r->events->scored(r->user, i, &row);
    }
}

static void fake_edit(struct sched_request *r)
{
    struct sched *s = r->s;
    const struct plan_edits *e = r->want.edits ? r->events->edit(r->user, r->want.n_tokens + r->n_out) : NULL;
    if (!e)
        return;
    s->edits = *e;
    for (uint32_t i = 0; i < e->n_adds && i < 8; i++)
        s->adds[i] = e->adds[i];
    s->repeated_a = 'a' / 8 < e->repeated_bytes && (e->repeated['a' / 8] >> ('a' % 8) & 1);
}

/* One token; false: the request is gone. */
static bool fake_token(struct sched_request *r)
{
    fake_edit(r);
    struct result_top top[PLAN_TOP_MAX];
    const uint32_t i = r->n_out;
    int32_t token = r->n_say ? (uint8_t)r->say[i % r->n_say] : r->burst ? 'x' : 'a';
    token = token == 2 ? 256 : token;
    if (i < r->want.n_forced)
        token = r->forced[i];
    struct result_row row = {
        .pos = r->want.n_tokens - 1 + i, .token = token, .logprob = fake_logprob(i), .n_top = r->want.n_top, .top = top
    };
    fake_top(r, i, token, top);
    r->n_out++;
    bool gone = false;
    r->gone = &gone;
    r->events->token(r->user, &row);
    if (!gone)
        r->gone = NULL;
    return !gone;
}

static bool fake_step(struct sched_request *r)
{
    if (r->die_after >= 0 && r->n_out >= (uint32_t)r->die_after) {
        fake_end(r, FINISH_ERROR, ST_PEER, "worker 1 (127.0.0.1:4711) was lost: connection reset");
        return false;
    }
    if (r->n_out >= r->want.max_tokens || (r->n_say && r->n_out == r->n_say)) {
        fake_end(r, r->n_say && r->n_out == r->n_say ? FINISH_STOP : FINISH_LENGTH, ST_OK, NULL);
        return false;
    }
    return fake_token(r);
}

static void fake_tick(void *arg)
{
    struct sched_request *r = arg;
    if (r->want.score && !r->scored) {
        r->scored = true;
        fake_score(r);
    }
    loop_timer_set(r->timer, r->period_ms);
    for (int i = 0; i < (r->burst ? r->burst : 1); i++)
        if (!fake_step(r))
            return;
}

static const char *fake_word(const char *text, const char *word)
{
    const char *p = strstr(text, word);
    return p ? p + strlen(word) : NULL;
}

enum status sched_submit(struct sched *s, const struct sched_want *want, const struct sched_events *events, void *user,
                         struct sched_request **request_out, struct error *err)
{
    char text[4096] = "";
    size_t n = 0;
    for (uint32_t i = 0; i < want->n_tokens && n + 1 < sizeof text; i++)
        if (want->tokens[i] > 0 && want->tokens[i] < 256)
            text[n++] = (char)want->tokens[i];
    text[n] = 0;
    s->n_submitted++;
    s->last = *want;
    s->last_token = want->tokens[want->n_tokens - 1];
    const char *busy = fake_word(text, "[busy");
    if (busy) {
        s->retry_ms = (uint32_t)atoi(busy);
        return error_set(err, ST_BUSY, "8 requests wait already");
    }
    struct sched_request *r = calloc(1, sizeof *r);
    r->s = s;
    r->events = events;
    r->user = user;
    r->want = *want;
    r->prompt = malloc(want->n_tokens * sizeof *r->prompt);
    memcpy(r->prompt, want->tokens, want->n_tokens * sizeof *r->prompt);
    r->forced = malloc((want->n_forced + 1) * sizeof *r->forced);
    if (want->n_forced)
        memcpy(r->forced, want->forced, want->n_forced * sizeof *r->forced);
    r->n_out = want->n_told;
    r->die_after = -1;
    const char *p;
    if ((p = fake_word(text, "[say "))) {
        r->n_say = strcspn(p, "]");
        memcpy(r->say, p, r->n_say);
    }
    if ((p = fake_word(text, "[die ")))
        r->die_after = atoi(p);
    if (strstr(text, "[slow]"))
        r->period_ms = 10;
    if (strstr(text, "[flood]")) {
        r->burst = 64;
        r->period_ms = 1;
    }
    r->timer = loop_timer_new(s->loop, fake_tick, r);
    r->next = s->first;
    s->first = r;
    s->n_running++;
    if (!strstr(text, "[wait]"))
        loop_timer_set(r->timer, 0);
    *request_out = r;
    return ST_OK;
}

uint32_t sched_retry_ms(const struct sched *s)
{
    return s->retry_ms;
}

void sched_cancel(struct sched *s, struct sched_request *r, enum finish_reason reason)
{
    s->n_cancelled += reason == FINISH_CANCELLED;
    fake_end(r, reason, ST_OK, NULL);
}

void sched_stats(const struct sched *s, struct sched_stats *stats_out)
{
    *stats_out = (struct sched_stats){ .running = s->n_running, .steps = 7, .requests_cancelled = s->n_cancelled };
}

uint32_t sched_worker_stats(const struct sched *s, struct sched_worker_stats *stats_out, uint32_t max)
{
    (void)s;
    (void)max;
    stats_out[0] =
        (struct sched_worker_stats){ .id = 0, .ready = true, .n_blocks = 100, .blocks_used = 12, .blocks_cached = 4 };
    return 1;
}

uint64_t sched_positions_fit(const struct sched *s)
{
    (void)s;
    return 1 << 20;
}

#endif
