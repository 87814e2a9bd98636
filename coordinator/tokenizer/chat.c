#define _GNU_SOURCE /* strptime, timegm */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/internal.h"
#include "coordinator/tokenizer/tokenizer.h"

enum { RENDER_BYTES_MAX = 256 << 20, VARIABLES_MAX = 64 };

/* ---- building ---- */

static char *text_copy(const char *text, size_t bytes)
{
    char *copy = malloc(bytes + 1);
    if (copy) {
        memcpy(copy, text, bytes);
        copy[bytes] = '\0';
    }
    return copy;
}

enum status chat_init(struct tokenizer *t)
{
    const struct model_vocab *v = t->vocab;
    if (v->kind == MODEL_VOCAB_BYTES)
        return ST_OK;
    if (t->bos >= 0 && !(t->bos_text = text_copy(v->tokens[t->bos].text, v->tokens[t->bos].bytes)))
        return ST_NO_MEMORY;
    if (v->eos_text && !(t->eos_text = text_copy(v->eos_text, strlen(v->eos_text))))
        return ST_NO_MEMORY;
    if (!v->chat_template) {
        error_set(&t->chat_error, ST_UNSUPPORTED, "the model has no chat template");
        return ST_OK;
    }
    struct error why = { 0 };
    const enum status st = jinja_template_new(v->chat_template, strlen(v->chat_template), &t->chat, &why);
    if (st == ST_NO_MEMORY)
        return st;
    if (st)
        error_set(&t->chat_error, ST_UNSUPPORTED, "the model's chat template cannot be evaluated: %s", why.text);
    return ST_OK;
}

void chat_deinit(struct tokenizer *t)
{
    jinja_template_free(t->chat);
    free(t->own_template);
    free(t->bos_text);
    free(t->eos_text);
}

enum status tokenizer_set_date(struct tokenizer *t, const char *date, struct error *err)
{
    struct tm day = { 0 };
    time_t moment = time(NULL);
    if (strcmp(date, "none") == 0) {
        t->has_now = false;
        return ST_OK;
    }
    if (strcmp(date, "start") != 0) {
        const char *end = strptime(date, "%Y-%m-%d", &day);
        const int asked = day.tm_mday;
        moment = end && !*end && strlen(date) == 10 ? timegm(&day) : -1;
        moment = asked == day.tm_mday ? moment : -1; /* the 30th of February */
    }
    if (moment == -1 || !gmtime_r(&moment, &day))
        return error_set(err, ST_INVALID, "template-date: \"%.40s\" is none of start, none, YYYY-MM-DD", date);
    t->now = day;
    t->has_now = true;
    return ST_OK;
}

enum status tokenizer_set_template(struct tokenizer *t, const char *text, size_t bytes, struct error *err)
{
    struct jinja_template *chat = NULL;
    struct error why = { 0 };
    if (memchr(text, 0, bytes))
        return error_set(err, ST_INVALID, "chat-template: holds a NUL character");
    const enum status st = jinja_template_new(text, bytes, &chat, &why);
    if (st)
        return error_set(err, st, "chat-template: %s", *why.text ? why.text : status_text(st));
    char *own = text_copy(text, bytes);
    if (!own) {
        jinja_template_free(chat);
        return error_set(err, ST_NO_MEMORY, "out of memory");
    }
    jinja_template_free(t->chat);
    free(t->own_template);
    t->chat = chat;
    t->own_template = own;
    t->chat_error = (struct error){ 0 };
    return ST_OK;
}

const char *chat_template(const struct tokenizer *t)
{
    return !t->chat ? NULL : t->own_template ? t->own_template : t->vocab->chat_template;
}

const char *chat_refusal(const struct tokenizer *t)
{
    return t->chat_error.status ? t->chat_error.text : NULL;
}

bool chat_reads(const struct tokenizer *t, const char *variable)
{
    return t->chat && jinja_template_names(t->chat, variable);
}

/* ---- what may come in ---- */

static enum status check_message(const json_t *m, size_t i, struct error *err)
{
    static const char *const roles[] = { "system", "developer", "user", "assistant", "tool", "function", "ipython" };
    if (!json_is_object(m))
        return error_set(err, ST_INVALID, "messages[%zu]: must be an object", i);
    const json_t *role = json_object_get(m, "role");
    if (!json_is_string(role))
        return error_set(err, ST_INVALID, "messages[%zu].role: must be a string", i);
    const char *text = json_string_value(role);
    for (size_t k = 0; k < sizeof roles / sizeof roles[0]; k++) {
        if (strcmp(text, roles[k]) == 0 && strlen(text) == json_string_length(role))
            return ST_OK;
    }
    return error_set(err, ST_INVALID,
                     "messages[%zu].role: \"%.40s\" is not one of system, developer, user, assistant, tool", i, text);
}

static enum status check_input(const struct tokenizer *t, const struct chat_input *in, struct error *err)
{
    const size_t n = json_array_size(in->messages);
    enum status st = ST_OK;
    if (t->chat_error.status)
        return error_set(err, t->chat_error.status, "%s", t->chat_error.text);
    if (n == 0)
        return error_set(err, ST_INVALID, "messages: there is none");
    for (size_t i = 0; !st && i < n; i++)
        st = check_message(json_array_get(in->messages, i), i, err);
    if (st)
        return st;
    if (in->tools && !json_is_array(in->tools))
        return error_set(err, ST_INVALID, "tools: must be an array");
    if (json_array_size(in->tools) > 0 && !chat_reads(t, "tools"))
        return error_set(err, ST_UNSUPPORTED, "tools: the chat template of this model takes none");
    if (in->kwargs && !json_is_object(in->kwargs))
        return error_set(err, ST_INVALID, "chat_template_kwargs: must be an object");
    return ST_OK;
}

struct variables {
    struct jinja_variable list[VARIABLES_MAX];
    size_t n;
};

static enum status add_kwargs(struct variables *v, const json_t *kwargs, struct error *err)
{
    const size_t n_own = v->n;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)kwargs, key, value)
    {
        for (size_t i = 0; i < n_own; i++) {
            if (strcmp(v->list[i].name, key) == 0)
                return error_set(err, ST_INVALID, "chat_template_kwargs: %s may not be set", key);
        }
        if (v->n == VARIABLES_MAX)
            return error_set(err, ST_INVALID, "chat_template_kwargs: more than %zu variables", VARIABLES_MAX - n_own);
        v->list[v->n++] = (struct jinja_variable){ .name = key, .json = value };
    }
    return ST_OK;
}

/* As `transformers` passes them: tools and documents are none when there are none; a token that the model lacks is not defined. */
static enum status render(const struct tokenizer *t, const struct chat_input *in, struct jinja_output *out,
                          struct error *err)
{
    struct variables v = { .list = { { .name = "messages", .json = in->messages },
                                     { .name = "tools", .json = in->tools },
                                     { .name = "documents" },
                                     { .name = "add_generation_prompt", .flag = &in->generation_prompt } },
                           .n = 4 };
    const struct {
        const char *name, *text;
    } tokens[] = { { "bos_token", t->bos_text }, { "eos_token", t->eos_text } };
    for (int i = 0; i < 2; i++) {
        if (tokens[i].text)
            v.list[v.n++] = (struct jinja_variable){ .name = tokens[i].name, .text = tokens[i].text };
    }
    enum status st = add_kwargs(&v, in->kwargs, err);
    if (st)
        return st;
    const struct jinja_input input = {
        .variables = v.list, .n_variables = v.n, .now = t->has_now ? &t->now : NULL, .memory_max = RENDER_BYTES_MAX
    };
    struct error why = { 0 };
    st = jinja_render(t->chat, &input, out, &why);
    if (st == ST_TOO_LARGE) /* work, not tokens */
        st = ST_INVALID;
    return st ? error_set(err, st, "%s", *why.text ? why.text : status_text(st)) : ST_OK;
}

/* Contents with a line end between two; nothing is said of roles, and there is no generation prompt. */
static enum status render_bytes(const struct chat_input *in, char **text_out, size_t *bytes_out, struct error *err)
{
    const size_t n = json_array_size(in->messages);
    size_t bytes = n;
    for (size_t i = 0; i < n; i++) {
        const json_t *content = json_object_get(json_array_get(in->messages, i), "content");
        if (content && !json_is_string(content) && !json_is_null(content))
            return error_set(err, ST_INVALID, "messages[%zu].content: must be a string", i);
        bytes += json_string_length(content);
    }
    char *text = malloc(bytes + 1);
    if (!text)
        return ST_NO_MEMORY;
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *content = json_object_get(json_array_get(in->messages, i), "content");
        if (i > 0)
            text[at++] = '\n';
        if (json_string_length(content) > 0)
            memcpy(text + at, json_string_value(content), json_string_length(content));
        at += json_string_length(content);
    }
    text[at] = '\0';
    *text_out = text;
    *bytes_out = at;
    return ST_OK;
}

/* ---- to tokens ---- */

/* A stretch of the text that the template wrote itself. */
struct stretch {
    size_t from, to;
};

struct rendered {
    char *text;
    size_t bytes;
    struct stretch *own;
    size_t n_own;
};

static void rendered_deinit(struct rendered *d)
{
    free(d->text);
    free(d->own);
}

static enum status rendered_join(const struct jinja_output *out, struct rendered *d)
{
    d->text = malloc(out->bytes + 1);
    d->own = malloc((out->n_parts + 1) * sizeof *d->own);
    if (!d->text || !d->own)
        return ST_NO_MEMORY;
    for (size_t i = 0; i < out->n_parts; i++) {
        const struct jinja_part *p = &out->parts[i];
        memcpy(d->text + d->bytes, p->text, p->bytes);
        if (!p->foreign && d->n_own > 0 && d->own[d->n_own - 1].to == d->bytes)
            d->own[d->n_own - 1].to += p->bytes;
        else if (!p->foreign)
            d->own[d->n_own++] = (struct stretch){ d->bytes, d->bytes + p->bytes };
        d->bytes += p->bytes;
    }
    d->text[d->bytes] = '\0';
    return ST_OK;
}

static enum status chat_text(const struct tokenizer *t, const struct chat_input *in, struct rendered *d,
                             struct error *err)
{
    enum status st = check_input(t, in, err);
    if (st)
        return st;
    if (!t->chat)
        return render_bytes(in, &d->text, &d->bytes, err);
    struct jinja_output out = { 0 };
    st = render(t, in, &out, err);
    if (!st)
        st = rendered_join(&out, d);
    jinja_output_free(&out);
    return st;
}

/*
 * Control tokens are looked for in the template's own stretches alone. What is between two of them is encoded in one piece, whoever wrote it,
 * as the whole rendered text would be (a token may hold the words of both).
 */
static enum status encode(const struct tokenizer *t, const struct rendered *d, struct bpe_run *run)
{
    const uint8_t *const text = (const uint8_t *)d->text, *done = text;
    enum status st = ST_OK;
    for (size_t i = 0; i < d->n_own && !st; i++) {
        const uint8_t *p = text + d->own[i].from, *end = text + d->own[i].to, *from, *to;
        while (!st && p < end) {
            const int32_t id = added_find(t->added, p, end, true, &from, &to);
            if (id < 0)
                break;
            p = to;
            if (!tokenizer_is_control(t, id))
                continue;
            st = tokenizer_append(t, done, (size_t)(from - done), false, done == text, run);
            if (!st)
                st = bpe_run_add(run, id);
            done = to;
        }
    }
    return st ? st : tokenizer_append(t, done, (size_t)(text + d->bytes - done), false, done == text, run);
}

enum status chat_encode_json(const struct tokenizer *t, const struct chat_input *in, size_t ids_max, int32_t **ids_out,
                             size_t *n_out, struct error *err)
{
    struct rendered d = { 0 };
    struct bpe_run run = { .ids_max = ids_max };
    enum status st = chat_text(t, in, &d, err);
    if (!st)
        st = bpe_run_reserve(&run, d.bytes / 4 + 1);
    if (!st)
        st = encode(t, &d, &run);
    if (!st)
        bpe_run_take(&run, ids_out, n_out);
    else if (st == ST_TOO_LARGE)
        error_set(err, st, "messages: more than %zu tokens", ids_max);
    bpe_run_deinit(&run);
    rendered_deinit(&d);
    return st;
}

enum status chat_render_json(const struct tokenizer *t, const struct chat_input *in, char **text_out, size_t *bytes_out,
                             struct error *err)
{
    struct rendered d = { 0 };
    const enum status st = chat_text(t, in, &d, err);
    if (!st) {
        *text_out = d.text;
        *bytes_out = d.bytes;
        d.text = NULL;
    }
    rendered_deinit(&d);
    return st;
}
