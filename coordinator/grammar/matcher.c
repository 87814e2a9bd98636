/* Following a text through a grammar's states, and which words of a vocabulary may come next. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar/states.h"

/* What one walk over the vocabulary may cost: nodes looked at in new states (a second, about), and states. */
enum { WALK_WORK_MAX = 1 << 25, WALK_STATES_MAX = 4 * GRAMMAR_STATES_MAX };

/* ---- plain characters ---- */

/* After every byte of low .. high, and `more` bytes of 0x80 .. 0xBF: the one state that all lead to. STATE_DEAD: several, or none. */
static uint32_t step_all(struct grammar *g, uint32_t state, uint8_t low, uint8_t high, int more)
{
    const uint32_t next = state_step(g, state, low);
    for (uint32_t b = low + 1u; b <= high && next >= STATE_FIRST; b++)
        if (state_step(g, state, (uint8_t)b) != next)
            return STATE_DEAD;
    return next < STATE_FIRST || !more ? next : step_all(g, next, 0x80, 0xBF, more - 1);
}

/* In most strings it makes no difference which characters come, and words of them need not be walked one by one. */
static uint32_t step_plain(struct grammar *g, uint32_t state)
{
    static const struct {
        uint8_t low, high, second_low, second_high;
        int more;
    } kinds[] = { { ' ', '!', 0, 0, 0 },         { '#', '[', 0, 0, 0 },         { ']', '~', 0, 0, 0 },
                  { 0xC2, 0xDF, 0x80, 0xBF, 0 }, { 0xE0, 0xE0, 0xA0, 0xBF, 1 }, { 0xE1, 0xEC, 0x80, 0xBF, 1 },
                  { 0xED, 0xED, 0x80, 0x9F, 1 }, { 0xEE, 0xEF, 0x80, 0xBF, 1 }, { 0xF0, 0xF0, 0x90, 0xBF, 2 },
                  { 0xF1, 0xF3, 0x80, 0xBF, 2 }, { 0xF4, 0xF4, 0x80, 0x8F, 2 } };
    uint32_t all = STATE_UNKNOWN;
    if (g->states[state].plain)
        return g->states[state].plain;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds && all != STATE_DEAD; i++) {
        uint32_t next = step_all(g, state, kinds[i].low, kinds[i].high, 0);
        if (next >= STATE_FIRST && kinds[i].second_high)
            next = step_all(g, next, kinds[i].second_low, kinds[i].second_high, kinds[i].more);
        if (next == STATE_UNKNOWN)
            return STATE_UNKNOWN;
        all = next == STATE_DEAD || (all && all != next) ? STATE_DEAD : next;
    }
    return g->states[state].plain = all;
}

/* How many plain characters may come next, whichever they are; at most as many as the vocabulary asks about. */
static uint32_t plain_run(struct grammar *g, uint32_t state)
{
    uint32_t n = 0;
    while (n < VOCABULARY_PLAIN_MAX && g->n_states <= WALK_STATES_MAX) {
        const uint32_t next = step_plain(g, state);
        if (next < STATE_FIRST)
            return n;
        if (next == state)
            return VOCABULARY_PLAIN_MAX;
        state = next;
        n++;
    }
    return n;
}

/* ---- matchers ---- */

struct matcher *matcher_new(struct grammar *g, const struct vocabulary *v)
{
    struct matcher *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->path = malloc((v->longest + 1) * sizeof *m->path);
    m->state = m->path && !g->no_memory ? state_first(g) : STATE_UNKNOWN;
    if (m->state == STATE_UNKNOWN) {
        free(m->path);
        free(m);
        return NULL;
    }
    m->grammar = grammar_ref(g);
    m->vocabulary = v;
    m->next = g->matchers;
    m->link = &g->matchers;
    if (m->next)
        m->next->link = &m->next;
    g->matchers = m;
    return m;
}

void matcher_free(struct matcher *m)
{
    if (!m)
        return;
    *m->link = m->next;
    if (m->next)
        m->next->link = m->link;
    if (!m->grammar->matchers)
        states_rest(m->grammar);
    grammar_unref(m->grammar);
    free(m->path);
    free(m);
}

enum status matcher_push(struct matcher *m, const char *bytes, size_t n)
{
    struct grammar *g = m->grammar;
    if (!states_ready(g))
        return ST_NO_MEMORY;
    uint32_t state = m->state;
    for (size_t i = 0; i < n && state >= STATE_FIRST; i++)
        state = state_step(g, state, (uint8_t)bytes[i]);
    if (state < STATE_FIRST)
        return state == STATE_DEAD ? ST_INVALID : ST_NO_MEMORY;
    m->state = state;
    return ST_OK;
}

bool matcher_may_end(const struct matcher *m)
{
    return m->state >= STATE_FIRST && m->grammar->states[m->state].end;
}

bool matcher_must_end(const struct matcher *m)
{
    return matcher_may_end(m) && m->grammar->states[m->state].n == 1;
}

/* A word, along a path of states that it shares `shared` bytes of with the word before; *alive: bytes of that that led somewhere. */
static enum status walk_word(struct matcher *m, const struct word *w, uint32_t shared, uint32_t *alive, uint8_t *set,
                             uint32_t *n_out)
{
    struct grammar *g = m->grammar;
    if (shared > *alive)
        return ST_OK; /* it leaves the path where the one before did */
    *alive = shared;
    while (*alive < w->n) {
        const uint32_t next = state_step(g, m->path[*alive], w->bytes[*alive]);
        if (next == STATE_UNKNOWN)
            return ST_NO_MEMORY;
        if (g->spent > WALK_WORK_MAX || g->n_states > WALK_STATES_MAX)
            return ST_TOO_LARGE;
        if (next == STATE_DEAD)
            return ST_OK;
        m->path[++*alive] = next;
    }
    set[w->token / 8] |= (uint8_t)(1u << (w->token % 8));
    (*n_out)++;
    return ST_OK;
}

/* Along the sorted words; where plain characters may come, words of them are taken together, and the rest is walked. */
static enum status walk(struct matcher *m, uint8_t *set, uint32_t *n_out)
{
    struct grammar *g = m->grammar;
    const struct vocabulary *v = m->vocabulary;
    enum status st = ST_OK;
    uint32_t alive = 0;
    m->path[0] = m->state;
    g->spent = 0;
    const struct word_level *level = vocabulary_level(v, plain_run(g, m->state));
    if (level) {
        memcpy(set, level->set, vocabulary_set_bytes(v));
        *n_out = level->n_set;
    }
    const uint32_t n = level ? level->n_rest : v->n_words;
    for (uint32_t i = 0; i < n && !st; i++) {
        const struct word *w = &v->words[level ? level->rest[i].word : i];
        st = walk_word(m, w, level ? level->rest[i].shared : w->shared, &alive, set, n_out);
    }
    return st;
}

static void masks_drop(struct grammar *g)
{
    for (uint32_t i = STATE_FIRST; i < g->n_states; i++) {
        free(g->states[i].mask);
        g->states[i].mask = NULL;
    }
    g->n_masks = 0;
}

enum status matcher_mask(struct matcher *m, uint8_t *set_out, uint32_t *n_out)
{
    struct grammar *g = m->grammar;
    const uint32_t bytes = vocabulary_set_bytes(m->vocabulary);
    if (!states_ready(g))
        return ST_NO_MEMORY;
    if (g->vocabulary != m->vocabulary || g->n_masks >= GRAMMAR_MASKS_MAX)
        masks_drop(g);
    g->vocabulary = m->vocabulary;
    if (!g->states[m->state].mask) {
        uint32_t n = 0;
        uint8_t *mask = calloc(bytes + 1, 1);
        const enum status st = mask ? walk(m, mask, &n) : ST_NO_MEMORY;
        if (st) {
            free(mask);
            return st;
        }
        g->states[m->state].mask = mask;
        g->states[m->state].n_allowed = n;
        g->n_masks++;
    }
    memcpy(set_out, g->states[m->state].mask, bytes);
    *n_out = g->states[m->state].n_allowed;
    return !*n_out && g->limited && !matcher_may_end(m) ? ST_TOO_LARGE : ST_OK;
}
