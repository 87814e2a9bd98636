#include "coordinator/gateway/want.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "common/bytes.h"
#include "common/hash.h"
#include "proto/plan.h"

struct want_block {
    struct want_block *next;
    max_align_t data[];
};

static void refuse_va(struct refusal *r, enum status st, const char *field, const char *code, const char *format,
                      va_list args)
{
    if (!r || r->status != ST_OK)
        return;
    r->status = st;
    snprintf(r->field, sizeof r->field, "%s", field ? field : "");
    snprintf(r->code, sizeof r->code, "%s", code);
    vsnprintf(r->message, sizeof r->message, format, args);
}

enum status refuse(struct refusal *r, enum status st, const char *field, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    refuse_va(r, st, field, st == ST_UNSUPPORTED ? "unsupported_value" : "", format, args);
    va_end(args);
    return st;
}

enum status refuse_code(struct refusal *r, enum status st, const char *field, const char *code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    refuse_va(r, st, field, code, format, args);
    va_end(args);
    return st;
}

void want_init(struct want *w)
{
    *w = (struct want){ .temperature = 1, .top_p = 1, .repetition_penalty = 1, .n = 1 };
}

void want_drop_source(struct want *w)
{
    if (w->source_free)
        w->source_free(w->source);
    w->source = NULL;
    w->source_free = NULL;
    for (struct want_block *b = w->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    w->blocks = NULL;
    w->text = w->model = NULL;
    w->tokens = w->forced = NULL;
    w->messages = w->tools = w->template_args = NULL;
    w->tool_name = NULL;
    w->bias = NULL;
    w->json_schema = NULL;
    json_decref(w->own_schema);
    json_decref(w->own_messages);
    w->own_schema = w->own_messages = NULL;
    w->n_bias = w->n_stops = 0;
}

void want_free(struct want *w)
{
    want_drop_source(w);
}

void *want_alloc(struct want *w, size_t n, size_t bytes)
{
    size_t size;
    if (!size_mul(n, bytes, &size) || !size_add(size, sizeof(struct want_block), &size))
        return NULL;
    struct want_block *b = calloc(1, size);
    if (!b)
        return NULL;
    b->next = w->blocks;
    w->blocks = b;
    return b->data;
}

static enum status too_long(const char *field, uint32_t positions_max, struct refusal *r)
{
    return refuse_code(r, ST_TOO_LARGE, field, "context_length_exceeded",
                       "%s: the prompt has more tokens than the context of this server holds: %u", field,
                       positions_max);
}

static enum status tokenize_ids(const struct want *w, uint32_t n_vocab, uint32_t positions_max, int32_t **ids_out,
                                size_t *n_out, struct refusal *r)
{
    if (w->n_tokens > positions_max)
        return too_long("prompt", positions_max, r);
    for (size_t i = 0; i < w->n_tokens; i++)
        if (w->tokens[i] < 0 || (uint32_t)w->tokens[i] >= n_vocab)
            return refuse(r, ST_INVALID, "prompt", "prompt: token %zu is %d, the vocabulary has 0 .. %u", i,
                          (int)w->tokens[i], n_vocab - 1);
    int32_t *ids = malloc((w->n_tokens + 1) * sizeof *ids);
    if (!ids)
        return refuse(r, ST_NO_MEMORY, "", "out of memory");
    if (w->n_tokens)
        memcpy(ids, w->tokens, w->n_tokens * sizeof *ids);
    *ids_out = ids;
    *n_out = w->n_tokens;
    return ST_OK;
}

static enum status tokenize_text(const struct want *w, const struct tokenizer *t, const struct model_config *config,
                                 uint32_t positions_max, int32_t **ids_out, size_t *n_out, struct refusal *r)
{
    size_t n = 0;
    int32_t *ids = NULL;
    const enum status st = tokenizer_encode(t, w->text, w->text_bytes, false, positions_max, &ids, &n);
    if (st == ST_TOO_LARGE)
        return too_long("prompt", positions_max, r);
    if (st)
        return refuse(r, st, "prompt", "prompt: %s", status_text(st));
    if (config->add_bos && config->bos >= 0 && !w->no_specials) {
        int32_t *more = realloc(ids, (n + 1) * sizeof *more);
        if (!more) {
            free(ids);
            return refuse(r, ST_NO_MEMORY, "", "out of memory");
        }
        ids = more;
        memmove(ids + 1, ids, n * sizeof *ids);
        ids[0] = config->bos;
        n++;
    }
    *ids_out = ids;
    *n_out = n;
    return ST_OK;
}

/* A template that shows no calls would drop them in silence. */
static enum status check_calls_shown(const struct want *w, const struct tokenizer *t, struct refusal *r)
{
    const char *template = chat_template(t);
    if (template && strstr(template, "tool_calls"))
        return ST_OK;
    for (size_t i = 0; i < json_array_size(w->messages); i++)
        if (json_object_get(json_array_get(w->messages, i), "tool_calls"))
            return refuse(r, ST_UNSUPPORTED, "messages",
                          "messages[%zu].tool_calls: the chat template of this model shows none", i);
    return ST_OK;
}

/* What the tokenizer says begins with the field at fault, or it is the template's own exception. */
static enum status chat_refused(enum status st, const struct error *err, struct refusal *r)
{
    static const char *const fields[] = { "tools", "chat_template_kwargs", "messages" };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (!strncmp(err->text, fields[i], strlen(fields[i])))
            return refuse(r, st, fields[i], "%s", err->text);
    return refuse(r, st, "messages", "messages: %s", *err->text ? err->text : status_text(st));
}

static enum status tokenize_chat(const struct want *w, const struct tokenizer *t, uint32_t positions_max,
                                 int32_t **ids_out, size_t *n_out, struct refusal *r)
{
    struct error err = { 0 };
    const struct chat_input in = { .messages = w->messages,
                                   .tools = w->tools,
                                   .kwargs = w->template_args,
                                   .generation_prompt = !w->no_generation_prompt };
    enum status st = check_calls_shown(w, t, r);
    if (st)
        return st;
    st = chat_encode_json(t, &in, positions_max, ids_out, n_out, &err);
    if (st == ST_TOO_LARGE)
        return too_long("messages", positions_max, r);
    return st ? chat_refused(st, &err, r) : ST_OK;
}

enum status want_tokenize(const struct want *w, const struct tokenizer *t, const struct model *m,
                          uint32_t positions_max, int32_t **ids_out, size_t *n_out, struct refusal *r)
{
    const struct model_config *config = model_config(m);
    int32_t *ids = NULL;
    size_t n = 0;
    enum status st = ST_INVALID;
    switch (w->kind) {
    case WANT_PROMPT_TEXT:
        st = tokenize_text(w, t, config, positions_max, &ids, &n, r);
        break;
    case WANT_PROMPT_TOKENS:
        st = tokenize_ids(w, config->n_vocab, positions_max, &ids, &n, r);
        break;
    case WANT_PROMPT_CHAT:
        st = tokenize_chat(w, t, positions_max, &ids, &n, r);
        break;
    }
    if (st)
        return st;
    if (n > positions_max) {
        free(ids);
        return too_long("prompt", positions_max, r);
    }
    *ids_out = ids;
    *n_out = n;
    return ST_OK;
}

enum status want_set_temperature(struct want *w, double value, struct refusal *r)
{
    if (!(value >= 0 && value <= 2))
        return refuse(r, ST_INVALID, "temperature", "temperature must be between 0 and 2");
    w->temperature = (float)value;
    return ST_OK;
}

enum status want_set_top_p(struct want *w, double value, struct refusal *r)
{
    if (!(value > 0 && value <= 1))
        return refuse(r, ST_INVALID, "top_p", "top_p must be above 0 and at most 1");
    w->top_p = (float)value > 0 ? (float)value : 1e-38f;
    return ST_OK;
}

enum status want_set_top_k(struct want *w, int64_t value, struct refusal *r)
{
    if (value < -1 || value > INT32_MAX)
        return refuse(r, ST_INVALID, "top_k", "top_k must be between 1 and %d, or 0 or -1 for all", INT32_MAX);
    w->top_k = value > 0 ? (uint32_t)value : 0;
    return ST_OK;
}

enum status want_set_min_p(struct want *w, double value, struct refusal *r)
{
    if (!(value >= 0 && value <= 1))
        return refuse(r, ST_INVALID, "min_p", "min_p must be between 0 and 1");
    w->min_p = (float)value;
    return ST_OK;
}

enum status want_set_density(struct want *w, double value, struct refusal *r)
{
    if (!(value > 0 && value <= 1))
        return refuse(r, ST_INVALID, "density", "density must be above 0 and at most 1");
    const uint32_t density = (uint32_t)(value * PLAN_DENSITY_ONE + 0.5);
    w->density = density ? density : 1;
    return ST_OK;
}

enum status want_set_presence_penalty(struct want *w, double value, struct refusal *r)
{
    if (!(value >= -2 && value <= 2))
        return refuse(r, ST_INVALID, "presence_penalty", "presence_penalty must be between -2 and 2");
    w->presence_penalty = (float)value;
    return ST_OK;
}

enum status want_set_frequency_penalty(struct want *w, double value, struct refusal *r)
{
    if (!(value >= -2 && value <= 2))
        return refuse(r, ST_INVALID, "frequency_penalty", "frequency_penalty must be between -2 and 2");
    w->frequency_penalty = (float)value;
    return ST_OK;
}

enum status want_set_repetition_penalty(struct want *w, double value, struct refusal *r)
{
    if (!(value >= 0.01 && value <= 100))
        return refuse(r, ST_INVALID, "repetition_penalty", "repetition_penalty must be between 0.01 and 100");
    w->repetition_penalty = (float)value;
    return ST_OK;
}

enum status want_set_min_tokens(struct want *w, int64_t value, struct refusal *r)
{
    if (value < 0 || value > PLAN_POSITIONS_MAX)
        return refuse(r, ST_INVALID, "min_tokens", "min_tokens must be between 0 and %d", PLAN_POSITIONS_MAX);
    w->min_tokens = (uint32_t)value;
    return ST_OK;
}

enum status want_set_n(struct want *w, int64_t value, struct refusal *r)
{
    if (value < 1 || value > WANT_CHOICES_MAX)
        return refuse(r, ST_INVALID, "n", "n must be between 1 and %d", WANT_CHOICES_MAX);
    w->n = (uint32_t)value;
    return ST_OK;
}

static int by_token(const void *a, const void *b)
{
    const uint32_t i = ((const struct plan_edit *)a)->token, j = ((const struct plan_edit *)b)->token;
    return i < j ? -1 : i > j;
}

enum status want_set_bias(struct want *w, struct plan_edit *bias, size_t n, struct refusal *r)
{
    if (n > WANT_BIAS_MAX)
        return refuse(r, ST_INVALID, "logit_bias", "logit_bias: at most %d tokens", WANT_BIAS_MAX);
    if (n)
        qsort(bias, n, sizeof *bias, by_token);
    for (size_t i = 0; i < n; i++) {
        if (!(bias[i].add >= -100 && bias[i].add <= 100))
            return refuse(r, ST_INVALID, "logit_bias", "logit_bias: the value of token %u must be between -100 and 100",
                          bias[i].token);
        if (i && bias[i].token == bias[i - 1].token)
            return refuse(r, ST_INVALID, "logit_bias", "logit_bias: token %u is there twice", bias[i].token);
    }
    w->bias = bias;
    w->n_bias = n;
    return ST_OK;
}

enum status want_check(const struct want *w, struct refusal *r)
{
    if (w->has_max_tokens && w->min_tokens > w->max_tokens)
        return refuse(r, ST_INVALID, "min_tokens", "min_tokens is more than max_tokens");
    if (w->n_forced && (w->json_object || w->json_schema))
        return refuse(r, ST_UNSUPPORTED, "forced_token_ids", "forced_token_ids are not supported with response_format");
    if (w->n == 1)
        return ST_OK;
    const char *what = w->has_max_tokens && !w->max_tokens ? "max_tokens 0"
                       : w->score                          ? "log-probabilities of the prompt"
                       : w->logits                         ? "logits"
                       : w->n_forced                       ? "forced_token_ids"
                                                           : NULL;
    return what ? refuse(r, ST_UNSUPPORTED, "n", "n must be 1 with %s", what) : ST_OK;
}

enum status want_set_top(struct want *w, const char *field, int64_t value, struct refusal *r)
{
    if (value < 0 || value > PLAN_TOP_MAX)
        return refuse(r, ST_INVALID, field, "%s must be between 0 and %d", field, PLAN_TOP_MAX);
    w->n_top = (uint8_t)value;
    return ST_OK;
}

enum status want_set_max_tokens(struct want *w, const char *field, int64_t value, struct refusal *r)
{
    if (value < 0)
        return refuse(r, ST_INVALID, field, "%s must not be negative", field);
    /* a prompt has one token at least, so this can never fit: said when the prompt's length is known */
    w->max_tokens = value < PLAN_POSITIONS_MAX ? (uint32_t)value : (uint32_t)PLAN_POSITIONS_MAX;
    w->has_max_tokens = true;
    return ST_OK;
}

enum status want_set_timeout(struct want *w, double seconds, struct refusal *r)
{
    if (!(seconds > 0 && seconds * 1000 <= WANT_TIMEOUT_MS_MAX))
        return refuse(r, ST_INVALID, "timeout", "timeout must be above 0 and at most %d seconds",
                      WANT_TIMEOUT_MS_MAX / 1000);
    w->timeout_ms = seconds * 1000 < 1 ? 1 : (int64_t)(seconds * 1000);
    return ST_OK;
}

enum status want_set_priority(struct want *w, int64_t value, struct refusal *r)
{
    if (value < INT32_MIN || value > INT32_MAX)
        return refuse(r, ST_INVALID, "priority", "priority must be between %d and %d", INT32_MIN, INT32_MAX);
    w->priority = (int32_t)value;
    return ST_OK;
}

void want_add_salt(struct want *w, const char *what, const void *salt, size_t bytes)
{
    struct hasher *h = hasher_new();
    hasher_add(h, w->salt.byte, sizeof w->salt.byte);
    hasher_add_text(h, what);
    hasher_add(h, salt, bytes);
    w->salt = hasher_end(h);
    w->salted = true;
}

void want_set_tenant(struct want *w, const char *name, size_t bytes)
{
    if (w->tenant[0] || !bytes)
        return;
    if (bytes <= WANT_TENANT_MAX && !memchr(name, 0, bytes)) {
        memcpy(w->tenant, name, bytes);
        w->tenant[bytes] = 0;
        return;
    }
    char text[33];
    struct hasher *h = hasher_new();
    hasher_add(h, name, bytes);
    const struct digest d = hasher_end(h);
    digest_text(&d, text);
    snprintf(w->tenant, sizeof w->tenant, "#%s", text);
}

enum status want_add_stop(struct want *w, const char *data, size_t bytes, struct refusal *r)
{
    if (w->n_stops == STOP_MAX)
        return refuse(r, ST_INVALID, "stop", "stop: at most %d strings", STOP_MAX);
    if (!bytes || bytes > STOP_BYTES_MAX)
        return refuse(r, ST_INVALID, "stop", "stop: strings must have 1 to %d bytes", STOP_BYTES_MAX);
    w->stops[w->n_stops++] = (struct stop_string){ data, bytes };
    return ST_OK;
}
