#include "coordinator/gateway/edits.h"

#include <stdlib.h>
#include <string.h>

/* What is the same for all choices of a request. */
struct base {
    uint32_t refs;
    float presence, frequency, repetition;
    uint32_t min_tokens, n_vocab, set_bytes;
    uint8_t *prompt; /* set of the prompt's tokens; NULL if nothing asks for it */
    struct plan_edit *bias;
    size_t n_bias;
    int32_t *eos;
    size_t n_eos;
    struct grammar *grammar; /* NULL: none */
    const char *field;       /* that asked for it */
    const struct vocabulary *vocabulary;
    const struct tokenizer *tokenizer;
};

/* One token that is, or may be, edited: bias, and how often it was generated. */
struct item {
    uint32_t token, count;
    float bias;
    bool eos;
};

struct edits {
    struct base *base;
    struct item *items; /* ascending tokens */
    size_t n, room;
    uint8_t *repeated;
    struct plan_edit *adds;  /* [room] */
    struct matcher *matcher; /* of the grammar */
    uint8_t *allowed;
    struct plan_edits out;
};

static void base_unref(struct base *b)
{
    if (!b || --b->refs)
        return;
    free(b->prompt);
    free(b->bias);
    free(b->eos);
    grammar_unref(b->grammar);
    free(b);
}

void edits_free(struct edits *e)
{
    if (!e)
        return;
    matcher_free(e->matcher);
    base_unref(e->base);
    free(e->allowed);
    free(e->items);
    free(e->repeated);
    free(e->adds);
    free(e);
}

static bool room_for(struct edits *e, size_t n)
{
    if (n <= e->room)
        return true;
    const size_t room = n + n / 2 + 16;
    struct item *items = realloc(e->items, room * sizeof *items);
    if (items)
        e->items = items;
    struct plan_edit *adds = realloc(e->adds, room * sizeof *adds);
    if (adds)
        e->adds = adds;
    if (!items || !adds)
        return false;
    e->room = room;
    return true;
}

/* The token's item, made if it is not there. NULL: no memory. */
static struct item *item_of(struct edits *e, uint32_t token)
{
    size_t low = 0, high = e->n;
    while (low < high) {
        const size_t mid = (low + high) / 2;
        if (e->items[mid].token < token)
            low = mid + 1;
        else
            high = mid;
    }
    if (low < e->n && e->items[low].token == token)
        return &e->items[low];
    if (!room_for(e, e->n + 1))
        return NULL;
    memmove(e->items + low + 1, e->items + low, (e->n++ - low) * sizeof *e->items);
    e->items[low] = (struct item){ .token = token };
    return &e->items[low];
}

static inline void set_add(uint8_t *set, uint32_t token)
{
    set[token / 8] |= (uint8_t)(1u << (token % 8));
}

/* What may come next. */
static enum status allow(struct edits *e, struct refusal *r)
{
    const struct base *b = e->base;
    uint32_t n = 0;
    const enum status st = matcher_mask(e->matcher, e->allowed, &n);
    if (st == ST_TOO_LARGE)
        return refuse(r, ST_TOO_LARGE, b->field, "%s: the schema has too many states", b->field);
    if (st)
        return refuse(r, st, "", "out of memory");
    for (size_t i = 0; i < b->n_eos && matcher_may_end(e->matcher); i++, n++)
        set_add(e->allowed, (uint32_t)b->eos[i]);
    if (!n && !matcher_may_end(e->matcher))
        return refuse(r, ST_INTERNAL, b->field, "%s: no token of the vocabulary can come next", b->field);
    return ST_OK;
}

static struct edits *edits_of(struct base *b, struct refusal *r)
{
    struct edits *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    e->base = b;
    b->refs++;
    if (b->prompt) {
        e->repeated = malloc(b->set_bytes);
        if (!e->repeated)
            goto fail;
        memcpy(e->repeated, b->prompt, b->set_bytes);
    }
    for (size_t i = 0; i < b->n_bias; i++) {
        struct item *item = item_of(e, b->bias[i].token);
        if (!item)
            goto fail;
        item->bias = b->bias[i].add;
    }
    for (size_t i = 0; b->min_tokens && i < b->n_eos; i++) {
        struct item *item = item_of(e, (uint32_t)b->eos[i]);
        if (!item)
            goto fail;
        item->eos = true;
    }
    if (!b->grammar)
        return e;
    e->allowed = calloc(b->set_bytes + 1, 1);
    e->matcher = matcher_new(b->grammar, b->vocabulary);
    if (e->allowed && e->matcher && allow(e, r) == ST_OK)
        return e;
fail:
    edits_free(e);
    return NULL;
}

static bool base_fill(struct base *b, const struct edits_start *start)
{
    const struct want *w = start->want;
    b->presence = w->presence_penalty;
    b->frequency = w->frequency_penalty;
    b->repetition = w->repetition_penalty;
    b->min_tokens = w->min_tokens;
    b->n_vocab = start->n_vocab;
    b->set_bytes = (start->n_vocab + 7) / 8;
    b->bias = calloc(w->n_bias + 1, sizeof *b->bias);
    b->eos = calloc(start->n_eos + 1, sizeof *b->eos);
    if (!b->bias || !b->eos)
        return false;
    b->n_bias = w->n_bias;
    if (w->n_bias)
        memcpy(b->bias, w->bias, w->n_bias * sizeof *b->bias);
    b->n_eos = start->n_eos;
    if (start->n_eos)
        memcpy(b->eos, start->eos, start->n_eos * sizeof *b->eos);
    if (b->repetition == 1)
        return true;
    b->prompt = calloc(b->set_bytes, 1);
    for (size_t i = 0; b->prompt && i < start->n_prompt; i++)
        if (start->prompt[i] >= 0 && (uint32_t)start->prompt[i] < start->n_vocab)
            set_add(b->prompt, (uint32_t)start->prompt[i]);
    return b->prompt;
}

static bool edits_nothing(const struct edits_start *start)
{
    const struct want *w = start->want;
    return !start->grammar && !w->n_bias && !w->min_tokens && w->presence_penalty == 0 && w->frequency_penalty == 0 &&
           w->repetition_penalty == 1;
}

enum status edits_new(const struct edits_start *start, struct edits **edits_out, struct refusal *r)
{
    *edits_out = NULL;
    for (size_t i = 0; i < start->want->n_bias; i++)
        if (start->want->bias[i].token >= start->n_vocab)
            return refuse(r, ST_INVALID, "logit_bias", "logit_bias: %u is not in the vocabulary of %u tokens",
                          start->want->bias[i].token, start->n_vocab);
    if (edits_nothing(start))
        return ST_OK;
    struct base *b = calloc(1, sizeof *b);
    if (!b)
        return refuse(r, ST_NO_MEMORY, "", "out of memory");
    b->refs = 1;
    b->grammar = start->grammar ? grammar_ref(start->grammar) : NULL;
    b->vocabulary = start->vocabulary;
    b->field = start->want->tools ? "tools" : "response_format";
    b->tokenizer = start->tokenizer;
    if (base_fill(b, start))
        *edits_out = edits_of(b, r);
    base_unref(b);
    return *edits_out ? ST_OK : refuse(r, ST_NO_MEMORY, "", "out of memory");
}

struct edits *edits_again(const struct edits *e)
{
    struct refusal r = { 0 };
    return edits_of(e->base, &r);
}

bool edits_history(const struct edits *e)
{
    return e->matcher || e->base->presence != 0 || e->base->frequency != 0 || e->base->repetition != 1;
}

bool edits_ended(const struct edits *e)
{
    return e->matcher && matcher_must_end(e->matcher);
}

static enum status follow(struct edits *e, int32_t token, struct refusal *r)
{
    size_t n = 0;
    const char *bytes = tokenizer_token_bytes(e->base->tokenizer, token, false, &n);
    const enum status st = matcher_push(e->matcher, bytes, n);
    if (st == ST_INVALID)
        return refuse(r, ST_INTERNAL, e->base->field, "%s: token %d is not what was allowed", e->base->field,
                      (int)token);
    if (st)
        return refuse(r, st, "", "out of memory");
    return allow(e, r);
}

enum status edits_push(struct edits *e, int32_t token, struct refusal *r)
{
    const struct base *b = e->base;
    if (token < 0 || (uint32_t)token >= b->n_vocab)
        return ST_OK;
    if (e->matcher && follow(e, token, r))
        return r->status;
    if (e->repeated)
        set_add(e->repeated, (uint32_t)token);
    if (b->presence == 0 && b->frequency == 0)
        return ST_OK;
    struct item *item = item_of(e, (uint32_t)token);
    if (!item)
        return refuse(r, ST_NO_MEMORY, "", "out of memory");
    item->count++;
    return ST_OK;
}

static float add_of(const struct base *b, const struct item *item, uint32_t n)
{
    enum { LEAST = -1000000 }; /* as low as plans carry: never sampled while there is anything else */
    if (item->eos && n < b->min_tokens)
        return LEAST;
    const float add = item->bias - (item->count ? b->presence : 0) - b->frequency * (float)item->count;
    return add < LEAST ? LEAST : add > -LEAST ? -LEAST : add;
}

const struct plan_edits *edits_at(struct edits *e, uint32_t n)
{
    const struct base *b = e->base;
    uint32_t n_adds = 0;
    for (size_t i = 0; i < e->n; i++) {
        const float add = add_of(b, &e->items[i], n);
        if (add != 0)
            e->adds[n_adds++] = (struct plan_edit){ e->items[i].token, add };
    }
    e->out = (struct plan_edits){ .n_adds = n_adds,
                                  .adds = e->adds,
                                  .repetition = b->repetition,
                                  .repeated = e->repeated,
                                  .repeated_bytes = e->repeated ? b->set_bytes : 0,
                                  .allowed = e->allowed,
                                  .allowed_bytes = e->allowed ? b->set_bytes : 0 };
    return e->out.n_adds || e->out.repeated || e->out.allowed ? &e->out : NULL;
}
