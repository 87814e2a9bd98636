#include "client/answer.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/remote.h"
#include "client/terminal.h"
#include "common/text.h"

struct answer {
    const struct settings *settings;
    bool (*stop)(void);
    FILE *logits;
    struct text text;
    json_t *tokens, *logprobs, *prompt_logprobs;
    json_t *object; /* the finished answer */
    bool failed;
    struct error err;
};

static enum status read_float(const char *key, const char *text, float low, float high, float *out, struct error *err)
{
    char *end;
    const float v = strtof(text, &end);
    if (end == text || *end || !(v >= low && v <= high))
        return error_set(err, ST_INVALID, "--%s: '%s' is not a number from %g to %g", key, text, (double)low,
                         (double)high);
    *out = v;
    return ST_OK;
}

/* 0 is none: the deployment's would be taken instead. */
static enum status read_density(const char *text, double *out, struct error *err)
{
    char *end;
    const double v = strtod(text, &end);
    if (end == text || *end || !(v > 0 && v <= 1))
        return error_set(err, ST_INVALID, "--density: '%s' is not a number above 0 and at most 1", text);
    *out = v;
    return ST_OK;
}

/* A float32 so that it comes back: nine digits. Infinities, which JSON lacks, as null. */
static json_t *float_json(float v)
{
    char text[32];
    if (!isfinite(v))
        return json_null();
    snprintf(text, sizeof text, "%.9g", (double)v);
    return json_real(strtod(text, NULL));
}

static bool write_logits(struct answer *a, const Longspan__V1__LogitRow *row)
{
    const uint32_t position = row->position;
    return fwrite(&position, sizeof position, 1, a->logits) == 1 &&
           fwrite(row->logits, sizeof(float), row->n_logits, a->logits) == row->n_logits;
}

static const char *finish_text(Longspan__V1__FinishReason reason)
{
    switch (reason) {
    case LONGSPAN__V1__FINISH_REASON__FINISH_REASON_STOP:
        return "stop";
    case LONGSPAN__V1__FINISH_REASON__FINISH_REASON_LENGTH:
        return "length";
    case LONGSPAN__V1__FINISH_REASON__FINISH_REASON_CANCELLED:
        return "cancelled";
    default:
        return "unspecified";
    }
}

static json_t *workers_json(const Longspan__V1__GenerateDone *done)
{
    json_t *list = json_array();
    for (size_t i = 0; i < done->n_workers; i++) {
        const Longspan__V1__WorkerShare *w = done->workers[i];
        json_array_append_new(list, json_pack("{s:i, s:i, s:I, s:I, s:s}", "id", (int)w->id, "blocks", (int)w->blocks,
                                              "bytes_sent", (json_int_t)w->bytes_sent, "bytes_received",
                                              (json_int_t)w->bytes_received, "fingerprint", w->fingerprint));
    }
    return list;
}

static void finish(struct answer *a, const Longspan__V1__GenerateDone *done)
{
    const Longspan__V1__Usage *u = done->usage;
    const Longspan__V1__Timings *t = done->timings;
    const Longspan__V1__KvStats *kv = done->kv;
    if (!u || !t || !kv) {
        a->failed = true;
        error_set(&a->err, ST_PROTOCOL, "the answer lacks its usage");
        return;
    }
    a->object =
        json_pack("{s:s%, s:O, s:O, s:s, s:{s:i, s:i, s:i, s:i}, s:{s:f, s:f, s:f, s:f}, s:f, s:I, s:o}", "text",
                  a->text.n ? a->text.data : "", a->text.n, "tokens", a->tokens, "logprobs", a->logprobs,
                  "finish_reason", finish_text(done->finish_reason), "usage", "prompt_tokens", (int)u->prompt_tokens,
                  "cached_tokens", (int)u->cached_tokens, "completion_tokens", (int)u->completion_tokens,
                  "recomputed_tokens", (int)u->recomputed_tokens, "timings", "queued_ms", t->queued_ms, "prefill_ms",
                  t->prefill_ms, "decode_ms", t->decode_ms, "total_ms", t->total_ms, "density", kv->density,
                  "kv_bytes_per_token", (json_int_t)kv->bytes_per_token, "workers", workers_json(done));
    if (a->object && a->settings->score)
        json_object_set(a->object, "prompt_logprobs", a->prompt_logprobs);
}

static bool on_response(void *ctx, const Longspan__V1__GenerateResponse *r)
{
    struct answer *a = ctx;
    for (size_t i = 0; i < r->n_token_ids; i++)
        json_array_append_new(a->tokens, json_integer(r->token_ids[i]));
    for (size_t i = 0; i < r->n_logprobs; i++)
        json_array_append_new(a->logprobs, float_json(r->logprobs[i]));
    for (size_t i = 0; i < r->n_prompt_logprobs; i++)
        for (size_t k = 0; k < r->prompt_logprobs[i]->n_logprobs; k++)
            json_array_append_new(a->prompt_logprobs, float_json(r->prompt_logprobs[i]->logprobs[k]));
    for (size_t i = 0; i < r->n_logits && a->logits; i++)
        if (!write_logits(a, r->logits[i])) {
            a->failed = true;
            error_set(&a->err, ST_IO, "--dump-logits: %s cannot be written", a->settings->dump_logits);
            return false;
        }
    if (r->progress && r->progress->total > 2048 && !a->settings->json)
        terminal_bar("prefill", (float)r->progress->done / (float)r->progress->total);
    if (r->text && r->text[0]) {
        if (a->settings->json) {
            text_str(&a->text, r->text);
            if (a->text.bad)
                return false;
        } else {
            terminal_bar_end();
            fputs(r->text, stdout);
            fflush(stdout);
        }
    }
    if (r->done)
        finish(a, r->done);
    return true;
}

static bool interrupted(void *ctx)
{
    const struct answer *a = ctx;
    return a->stop && a->stop();
}

/* The settings that are texts because "not given" differs from every number. */
enum status answer_sampling(const struct settings *s, Longspan__V1__GenerateRequest *q, struct error *err)
{
    enum status st = read_float("temperature", s->temperature, 0, 100, &q->temperature, err);
    if (!st)
        st = read_float("top-p", s->top_p, 1e-6f, 1, &q->top_p, err);
    if (!st && s->density[0])
        st = read_density(s->density, &q->density, err);
    if (st)
        return st;
    q->temperature_set_case = LONGSPAN__V1__GENERATE_REQUEST__TEMPERATURE_SET_TEMPERATURE;
    q->top_p_set_case = LONGSPAN__V1__GENERATE_REQUEST__TOP_P_SET_TOP_P;
    q->max_tokens_set_case = LONGSPAN__V1__GENERATE_REQUEST__MAX_TOKENS_SET_MAX_TOKENS;
    q->max_tokens = s->max_tokens;
    q->top_k = s->top_k;
    q->ignore_eos = s->ignore_eos;
    q->score = s->score;
    q->progress = isatty(STDERR_FILENO) && !s->json;
    q->logits = s->dump_logits[0] != 0;
    if (s->seed[0]) {
        char *end;
        q->seed_set_case = LONGSPAN__V1__GENERATE_REQUEST__SEED_SET_SEED;
        q->seed = strtoull(s->seed, &end, 10);
        if (*end || s->seed[0] < '0' || s->seed[0] > '9')
            return error_set(err, ST_INVALID, "--seed: '%s' is not a whole number", s->seed);
    }
    return ST_OK;
}

enum status answer_check(const struct settings *s, struct error *err)
{
    Longspan__V1__GenerateRequest q = LONGSPAN__V1__GENERATE_REQUEST__INIT;
    return answer_sampling(s, &q, err);
}

static enum status ask(struct answer *a, const char *address, const char *prompt, struct error *err)
{
    Longspan__V1__GenerateRequest q = LONGSPAN__V1__GENERATE_REQUEST__INIT;
    Longspan__V1__ChatMessage message = LONGSPAN__V1__CHAT_MESSAGE__INIT, *messages[] = { &message };
    Longspan__V1__Chat chat = LONGSPAN__V1__CHAT__INIT;
    const struct remote_events events = { on_response, interrupted, a };
    struct remote *r;
    enum status st = answer_sampling(a->settings, &q, err);
    if (st)
        return st;
    if (a->settings->raw) {
        q.prompt_case = LONGSPAN__V1__GENERATE_REQUEST__PROMPT_TEXT;
        q.text = (char *)(uintptr_t)prompt;
    } else {
        message.role = (char *)(uintptr_t) "user";
        message.content = (char *)(uintptr_t)prompt;
        chat.n_messages = 1;
        chat.messages = messages;
        q.prompt_case = LONGSPAN__V1__GENERATE_REQUEST__PROMPT_CHAT;
        q.chat = &chat;
    }
    st = remote_open(address, a->settings, &r, err);
    if (st)
        return st;
    st = remote_generate(r, &q, &events, err);
    remote_close(r);
    return st;
}

enum status answer_print(const char *address, const struct settings *s, const char *prompt, bool (*stop)(void),
                         struct error *err)
{
    struct answer a = {
        .settings = s, .stop = stop, .tokens = json_array(), .logprobs = json_array(), .prompt_logprobs = json_array()
    };
    enum status st = ST_OK;
    if (s->dump_logits[0] && !(a.logits = fopen(s->dump_logits, "wbe")))
        st = error_set(err, ST_IO, "--dump-logits: %s cannot be written", s->dump_logits);
    if (!st)
        st = ask(&a, address, prompt, err);
    terminal_bar_end();
    if (a.failed) {
        *err = a.err;
        st = a.err.status;
    }
    if (a.logits && fclose(a.logits) && !st)
        st = error_set(err, ST_IO, "--dump-logits: %s cannot be written", s->dump_logits);
    if (!st && !s->json)
        fputc('\n', stdout);
    if (!st && s->json) {
        char *text = a.object ? json_dumps(a.object, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
        if (text)
            puts(text);
        else
            st = error_set(err, ST_PROTOCOL, "the answer ended early");
        free(text);
    }
    json_decref(a.tokens);
    json_decref(a.logprobs);
    json_decref(a.prompt_logprobs);
    json_decref(a.object);
    text_free(&a.text);
    return st;
}
