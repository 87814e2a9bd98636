#include "coordinator/gateway/grammar_cache.h"

#include <jansson.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"

struct entry {
    struct digest key;
    struct grammar *grammar;
    uint64_t used;
};

struct grammar_cache {
    const struct tokenizer *tokenizer;
    uint32_t n_tokens, n;
    struct vocabulary *vocabulary; /* made at the first use: it takes a tenth of a second */
    struct entry entries[GRAMMAR_CACHE_MAX];
    uint64_t clock;
    atomic_uint made;
};

struct grammar_cache *grammar_cache_new(const struct tokenizer *tokenizer, uint32_t n_tokens)
{
    struct grammar_cache *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->tokenizer = tokenizer;
    c->n_tokens = n_tokens;
    return c;
}

void grammar_cache_free(struct grammar_cache *c)
{
    if (!c)
        return;
    for (uint32_t i = 0; i < c->n; i++)
        grammar_unref(c->entries[i].grammar);
    vocabulary_free(c->vocabulary);
    free(c);
}

uint32_t grammar_cache_made(const struct grammar_cache *c)
{
    return atomic_load(&c->made);
}

bool grammar_wanted(const struct want *w)
{
    return w->tools || w->json_schema || w->json_object;
}

/* ---- what makes two requests the same ---- */

/* false: no memory */
static bool add_json(struct hasher *h, const json_t *value)
{
    char *text = value ? json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17)) : NULL;
    hasher_add_u64(h, value != NULL);
    hasher_add_text(h, text ? text : "");
    free(text);
    return !value || text;
}

static bool key_of(const struct want *w, const struct tools *tools, struct digest *key_out)
{
    struct hasher *h = hasher_new();
    const bool ok = add_json(h, w->json_schema) && add_json(h, tools ? w->tools : NULL);
    hasher_add_u64(h, w->json_object);
    if (tools) {
        hasher_add_u64(h, w->tool_choice);
        hasher_add_text(h, w->tool_choice == WANT_TOOL_NAMED ? w->tool_name : "");
        hasher_add_u64(h, w->one_tool_call);
    }
    *key_out = hasher_end(h);
    return ok;
}

/* ---- making ---- */

static const char *token_bytes(void *ctx, uint32_t token, size_t *n_out)
{
    return tokenizer_token_bytes(ctx, (int32_t)token, false, n_out);
}

static enum status vocabulary_need(struct grammar_cache *c, struct refusal *r)
{
    if (!c->vocabulary)
        c->vocabulary = vocabulary_new(c->n_tokens, token_bytes, (void *)(uintptr_t)c->tokenizer);
    return c->vocabulary ? ST_OK : refuse(r, ST_NO_MEMORY, "", "out of memory");
}

static enum status make(const struct want *w, const struct tools *tools, struct grammar **grammar_out,
                        struct refusal *r)
{
    struct error err = { 0 };
    const enum status st = tools            ? tools_grammar(tools, w, grammar_out, &err)
                           : w->json_schema ? grammar_of_schema(w->json_schema, w->schema_field, grammar_out, &err)
                                            : grammar_of_object(grammar_out, &err);
    if (!st)
        return ST_OK;
    const bool by_tools = tools && strncmp(err.text, "response_format", 15) != 0;
    return refuse(r, st, by_tools ? "tools" : w->own_schema ? "json_schema" : "response_format", "%s", err.text);
}

/* In the place of the one that was longest not asked for. */
static void keep(struct grammar_cache *c, const struct digest *key, struct grammar *g)
{
    struct entry *e = &c->entries[0];
    for (uint32_t i = 1; i < c->n; i++)
        e = c->entries[i].used < e->used ? &c->entries[i] : e;
    if (c->n < GRAMMAR_CACHE_MAX)
        e = &c->entries[c->n++];
    else
        grammar_unref(e->grammar);
    *e = (struct entry){ *key, grammar_ref(g), ++c->clock };
}

enum status grammar_cache_get(struct grammar_cache *c, const struct want *w, const struct tools *tools,
                              struct grammar **grammar_out, const struct vocabulary **vocabulary_out, struct refusal *r)
{
    *grammar_out = NULL;
    if (tools && !tools_held(tools))
        return ST_OK;
    if (vocabulary_need(c, r))
        return r->status;
    *vocabulary_out = c->vocabulary;
    struct digest key;
    if (!key_of(w, tools, &key))
        return refuse(r, ST_NO_MEMORY, "", "out of memory");
    for (uint32_t i = 0; i < c->n; i++) {
        struct entry *e = &c->entries[i];
        if (memcmp(&e->key, &key, sizeof key) != 0)
            continue;
        e->used = ++c->clock;
        *grammar_out = grammar_ref(e->grammar);
        return ST_OK;
    }
    if (make(w, tools, grammar_out, r))
        return r->status;
    atomic_fetch_add(&c->made, 1);
    keep(c, &key, *grammar_out);
    return ST_OK;
}
