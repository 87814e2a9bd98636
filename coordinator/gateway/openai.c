#include "coordinator/gateway/openai_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * The last key of the outermost object that ends before `end`: where a text stops being JSON, it names the field for the person who looks for the fault.
 */
static void key_before(const char *body, size_t end, char out[64])
{
    size_t depth = 0, from = 0, to = 0;
    for (size_t i = 0; i < end; i++) {
        const char c = body[i];
        if (c == '"') {
            from = i + 1;
            for (i++; i < end && body[i] != '"'; i++)
                i += body[i] == '\\';
            to = i < end ? i : end;
        } else if (c == ':' && depth == 1 && to > from) {
            snprintf(out, 64, "%.*s", (int)(to - from < 60 ? to - from : 60), body + from);
        }
        depth += c == '{' || c == '[';
        depth -= depth && (c == '}' || c == ']');
    }
}

static enum status bad_json(const char *body, size_t bytes, const json_error_t *e, struct refusal *r)
{
    char field[64] = "";
    const char *text = e->text, *quote = strstr(text, "near '\"");
    if (json_error_code(e) == json_error_duplicate_key && quote) {
        snprintf(field, sizeof field, "%.60s", quote + 7);
        field[strcspn(field, "\"")] = 0;
    } else {
        const size_t at = e->position > 0 ? (size_t)e->position : 0;
        key_before(body, at < bytes ? at : bytes, field);
    }
    return refuse_code(r, ST_INVALID, field, "invalid_json", "the body is not valid JSON: %s (line %d, column %d%s%s)",
                       text, e->line, e->column, *field ? ", at " : "", field);
}

static void tree_free(void *root)
{
    json_decref(root);
}

size_t openai_values(const char *body, size_t bytes)
{
    size_t n = 0;
    bool quoted = false;
    for (size_t i = 0; i < bytes; i++) {
        const char c = body[i];
        if (c == '"')
            quoted = !quoted;
        else if (c == '\\' && quoted)
            i++;
        else if (!quoted)
            n += c == ',' || c == '[' || c == '{' || c == ':';
    }
    return n;
}

enum status openai_parse(enum openai_kind kind, const char *body, size_t bytes, size_t values_max, struct want *w,
                         struct refusal *r)
{
    json_error_t e;
    if (bytes > values_max && openai_values(body, bytes) > values_max)
        return refuse_code(r, ST_TOO_LARGE, kind == OPENAI_CHAT ? "messages" : "prompt", "context_length_exceeded",
                           "the body has more than %zu values, and this server's context holds fewer tokens",
                           values_max);
    json_t *root = json_loadb(body, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (!root)
        return bad_json(body, bytes, &e, r);
    w->source = root;
    w->source_free = tree_free;
    if (!json_is_object(root))
        return refuse(r, ST_INVALID, "", "the body must be a JSON object");
    struct openai_parse p = { .w = w, .r = r, .kind = kind, .values_left = values_max };
    return openai_read_fields(&p, root);
}

struct openai_body *openai_body_new(size_t bytes, size_t values_max)
{
    struct openai_body *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    b->data = malloc(bytes + 1);
    b->bytes = bytes;
    b->values_max = values_max;
    if (!b->data) {
        free(b);
        return NULL;
    }
    return b;
}

void openai_body_free(void *body)
{
    struct openai_body *b = body;
    if (!b)
        return;
    free(b->data);
    free(b);
}

/* The body gives way to the tree made of it. */
static enum status parse_body(enum openai_kind kind, struct want *w, struct refusal *r)
{
    struct openai_body *body = w->source;
    w->source = NULL;
    w->source_free = NULL;
    const enum status st = openai_parse(kind, body->data, body->bytes, body->values_max, w, r);
    openai_body_free(body);
    return st;
}

enum status openai_parse_completion(struct want *w, struct refusal *r)
{
    return parse_body(OPENAI_COMPLETION, w, r);
}

enum status openai_parse_chat(struct want *w, struct refusal *r)
{
    return parse_body(OPENAI_CHAT, w, r);
}

enum status openai_parse_tokenize(struct want *w, struct refusal *r)
{
    return parse_body(OPENAI_TOKENIZE, w, r);
}

enum status openai_parse_detokenize(struct want *w, struct refusal *r)
{
    return parse_body(OPENAI_DETOKENIZE, w, r);
}
