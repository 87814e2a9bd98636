/*
 * States are sets of threads, made when they are met. A thread is a node that takes a byte, or the end, and a stack of returns; stacks are interned, so equal
 * ones have equal numbers. What has grown too large is made anew from the states of the matchers that live.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"
#include "coordinator/grammar/program.h"
#include "coordinator/grammar/vocabulary.h"

enum {
    UNKNOWN = 0,
    DEAD = 1,
    FIRST_STATE = 2,
    NO_FRAME = 0,
    FRAMES_MAX = 1 << 18,
    THREADS_TOTAL_MAX = 1 << 22,
    THREADS_IDLE = 1 << 17
};

/* What one walk over the vocabulary may cost: nodes looked at in new states (a second, about), and states. */
enum { WALK_WORK_MAX = 1 << 25, WALK_STATES_MAX = 4 * GRAMMAR_STATES_MAX };

struct frame {
    node_id back;
    uint32_t parent, depth;
};

struct thread {
    node_id at;
    uint32_t frame;
};

struct state {
    uint32_t from, n;   /* threads */
    uint32_t *next;     /* [256], NULL until a byte was tried */
    uint32_t plain;     /* the state after any plain character; DEAD: they lead to several, or nowhere */
    uint8_t *mask;      /* NULL: not made, or given up */
    uint32_t n_allowed; /* in mask */
    bool end;           /* one thread is the end */
};

/* Open addressing over numbers of states, or of frames. */
struct table {
    uint32_t *slots;
    uint32_t room, n;
};

struct grammar {
    atomic_uint refs; /* the rest belongs to the thread of its matchers, while it has any */
    struct program program;
    struct frame *frames; /* [0] is none */
    uint32_t n_frames, frames_room;
    struct thread *threads;
    uint32_t n_threads, threads_room;
    struct state *states;
    uint32_t n_states, states_room;
    struct table frame_table, state_table;
    uint32_t n_masks;
    const struct vocabulary *vocabulary; /* that masks are of */
    struct matcher *matchers;
    /* a closure under way */
    struct thread *work;
    uint32_t n_work, work_room;
    uint64_t *seen; /* of this closure */
    uint32_t n_seen, seen_room;
    uint64_t spent; /* nodes looked at */
    bool limited;   /* a state had too many threads, and was left out */
    bool no_memory;
};

struct matcher {
    struct grammar *grammar;
    const struct vocabulary *vocabulary;
    uint32_t state;
    struct matcher *next, **link;
    uint32_t *path; /* [longest + 1]: a walk's states */
};

static bool grow(void *items, uint32_t *room, uint32_t need, size_t bytes)
{
    void **at = items;
    if (need <= *room)
        return true;
    uint32_t more = *room ? *room : 64;
    while (more < need)
        more *= 2;
    void *p = realloc(*at, more * bytes);
    if (!p)
        return false;
    *at = p;
    *room = more;
    return true;
}

/* ---- tables ---- */

static uint64_t frame_hash(const struct grammar *g, uint32_t i)
{
    return mix64((uint64_t)g->frames[i].back << 32 | g->frames[i].parent);
}

static uint64_t state_hash(const struct grammar *g, uint32_t i)
{
    uint64_t h = g->states[i].n;
    for (uint32_t k = 0; k < g->states[i].n; k++) {
        const struct thread *t = &g->threads[g->states[i].from + k];
        h = mix64(h ^ ((uint64_t)t->at << 32 | t->frame));
    }
    return h;
}

static bool frame_same(const struct grammar *g, uint32_t i, uint32_t j)
{
    return g->frames[i].back == g->frames[j].back && g->frames[i].parent == g->frames[j].parent;
}

static bool state_same(const struct grammar *g, uint32_t i, uint32_t j)
{
    const struct state *a = &g->states[i], *b = &g->states[j];
    return a->n == b->n && !memcmp(g->threads + a->from, g->threads + b->from, a->n * sizeof *g->threads);
}

static bool table_room(struct grammar *g, struct table *t, uint64_t (*hash)(const struct grammar *g, uint32_t i))
{
    if (2 * (t->n + 1) <= t->room)
        return true;
    const struct table old = *t;
    const uint32_t room = old.room ? 2 * old.room : 256;
    uint32_t *slots = calloc(room, sizeof *slots);
    if (!slots)
        return false;
    for (uint32_t i = 0; i < old.room; i++) {
        if (!old.slots[i])
            continue;
        uint32_t at = (uint32_t)hash(g, old.slots[i]) & (room - 1);
        while (slots[at])
            at = (at + 1) & (room - 1);
        slots[at] = old.slots[i];
    }
    free(old.slots);
    t->slots = slots;
    t->room = room;
    return true;
}

/* The number of one that equals `item`, which is `item` itself if it is new. 0: no memory */
static uint32_t table_intern(struct grammar *g, struct table *t, uint32_t item,
                             uint64_t (*hash)(const struct grammar *g, uint32_t i),
                             bool (*same)(const struct grammar *g, uint32_t i, uint32_t j))
{
    if (!table_room(g, t, hash))
        return 0;
    uint32_t at = (uint32_t)hash(g, item) & (t->room - 1);
    for (; t->slots[at]; at = (at + 1) & (t->room - 1))
        if (same(g, t->slots[at], item))
            return t->slots[at];
    t->slots[at] = item;
    t->n++;
    return item;
}

static uint32_t frame_push(struct grammar *g, node_id back, uint32_t parent)
{
    if (!grow(&g->frames, &g->frames_room, g->n_frames + 1, sizeof *g->frames))
        return 0;
    g->frames[g->n_frames] = (struct frame){ back, parent, parent ? g->frames[parent].depth + 1 : 1 };
    const uint32_t i = table_intern(g, &g->frame_table, g->n_frames, frame_hash, frame_same);
    g->n_frames += i == g->n_frames;
    return i;
}

/* ---- closures ---- */

/* Has the closure met it? It is remembered. */
static bool seen(struct grammar *g, struct thread t)
{
    const uint64_t key = ((uint64_t)t.at << 32 | t.frame) + 1;
    if (2 * (g->n_seen + 1) > g->seen_room) {
        const uint32_t room = g->seen_room ? 2 * g->seen_room : 1024;
        uint64_t *more = calloc(room, sizeof *more);
        if (!more) {
            g->no_memory = true;
            return true;
        }
        for (uint32_t i = 0; i < g->seen_room; i++) {
            if (!g->seen[i])
                continue;
            uint32_t at = (uint32_t)mix64(g->seen[i]) & (room - 1);
            while (more[at])
                at = (at + 1) & (room - 1);
            more[at] = g->seen[i];
        }
        free(g->seen);
        g->seen = more;
        g->seen_room = room;
    }
    uint32_t at = (uint32_t)mix64(key) & (g->seen_room - 1);
    for (; g->seen[at]; at = (at + 1) & (g->seen_room - 1))
        if (g->seen[at] == key)
            return true;
    g->seen[at] = key;
    g->n_seen++;
    return false;
}

static void work_add(struct grammar *g, node_id at, uint32_t frame)
{
    const struct thread t = { at, frame };
    const uint32_t depth = frame ? g->frames[frame].depth : 0, need = g->program.nodes[at].need;
    if (need > GRAMMAR_DEPTH_MAX || depth + need > GRAMMAR_DEPTH_MAX || g->n_seen > 8 * GRAMMAR_THREADS_MAX ||
        seen(g, t))
        return;
    if (grow(&g->work, &g->work_room, g->n_work + 1, sizeof *g->work))
        g->work[g->n_work++] = t;
    else
        g->no_memory = true;
}

static void closure_begin(struct grammar *g)
{
    g->n_work = g->n_seen = 0;
    if (g->seen)
        memset(g->seen, 0, g->seen_room * sizeof *g->seen);
}

static int by_thread(const void *a, const void *b)
{
    const struct thread *x = a, *y = b;
    if (x->at != y->at)
        return x->at < y->at ? -1 : 1;
    return x->frame < y->frame ? -1 : x->frame > y->frame;
}

/* All that the threads added lead to without a byte; a state's number, DEAD if nothing, UNKNOWN if there is no memory. */
static uint32_t closure_end(struct grammar *g)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < g->n_work; i++) {
        const struct thread t = g->work[i];
        const struct node *n = &g->program.nodes[t.at];
        uint32_t frame;
        switch (n->op) {
        case OP_SPLIT:
            work_add(g, n->a, t.frame);
            if (n->b != n->a)
                work_add(g, n->b, t.frame);
            break;
        case OP_CALL:
            frame = frame_push(g, n->b, t.frame);
            if (!frame)
                g->no_memory = true;
            else
                work_add(g, n->a, frame);
            break;
        case OP_RETURN:
            if (t.frame)
                work_add(g, g->frames[t.frame].back, g->frames[t.frame].parent);
            break;
        default:
            g->work[kept++] = t; /* never ahead of i */
            break;
        }
    }
    g->spent += g->n_work + g->seen_room / 16;
    if (g->no_memory)
        return UNKNOWN;
    if (kept > GRAMMAR_THREADS_MAX || g->n_seen > 8 * GRAMMAR_THREADS_MAX)
        g->limited = true;
    if (!kept || kept > GRAMMAR_THREADS_MAX)
        return DEAD;
    qsort(g->work, kept, sizeof *g->work, by_thread);
    if (!grow(&g->threads, &g->threads_room, g->n_threads + kept, sizeof *g->threads) ||
        !grow(&g->states, &g->states_room, g->n_states + 1, sizeof *g->states))
        return UNKNOWN;
    memcpy(g->threads + g->n_threads, g->work, kept * sizeof *g->work);
    g->states[g->n_states] =
        (struct state){ .from = g->n_threads, .n = kept, .end = g->work[0].at == NODE_END && !g->work[0].frame };
    const uint32_t i = table_intern(g, &g->state_table, g->n_states, state_hash, state_same);
    if (i == g->n_states) {
        g->n_states++;
        g->n_threads += kept;
    }
    return i;
}

/* The state after a byte: DEAD, or UNKNOWN if there is no memory. */
static uint32_t step(struct grammar *g, uint32_t state, uint8_t byte)
{
    struct state *s = &g->states[state];
    if (!s->next && !(s->next = calloc(256, sizeof *s->next)))
        return UNKNOWN;
    if (s->next[byte])
        return s->next[byte];
    uint32_t low = 0, high = 255; /* bytes that no thread tells from this one */
    closure_begin(g);
    for (uint32_t i = 0; i < s->n; i++) {
        const struct thread t = g->threads[s->from + i];
        const struct node *n = &g->program.nodes[t.at];
        if (n->op != OP_RANGE)
            continue;
        if (byte < n->low) {
            high = high < n->low - 1u ? high : n->low - 1u;
        } else if (byte > n->high) {
            low = low > n->high + 1u ? low : n->high + 1u;
        } else {
            low = low > n->low ? low : n->low;
            high = high < n->high ? high : n->high;
            work_add(g, n->a, t.frame);
        }
    }
    const uint32_t next = closure_end(g);
    for (uint32_t b = low; b <= high; b++)
        g->states[state].next[b] = next; /* the states may have moved */
    return next;
}

/* ---- plain characters ---- */

/* After every byte of low .. high, and `more` bytes of 0x80 .. 0xBF: the one state that all lead to. DEAD: several, or none. */
static uint32_t step_all(struct grammar *g, uint32_t state, uint8_t low, uint8_t high, int more)
{
    const uint32_t next = step(g, state, low);
    for (uint32_t b = low + 1u; b <= high && next >= FIRST_STATE; b++)
        if (step(g, state, (uint8_t)b) != next)
            return DEAD;
    return next < FIRST_STATE || !more ? next : step_all(g, next, 0x80, 0xBF, more - 1);
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
    uint32_t all = UNKNOWN;
    if (g->states[state].plain)
        return g->states[state].plain;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds && all != DEAD; i++) {
        uint32_t next = step_all(g, state, kinds[i].low, kinds[i].high, 0);
        if (next >= FIRST_STATE && kinds[i].second_high)
            next = step_all(g, next, kinds[i].second_low, kinds[i].second_high, kinds[i].more);
        if (next == UNKNOWN)
            return UNKNOWN;
        all = next == DEAD || (all && all != next) ? DEAD : next;
    }
    return g->states[state].plain = all;
}

/* How many plain characters may come next, whichever they are; at most as many as the vocabulary asks about. */
static uint32_t plain_run(struct grammar *g, uint32_t state)
{
    uint32_t n = 0;
    while (n < VOCABULARY_PLAIN_MAX && g->n_states <= WALK_STATES_MAX) {
        const uint32_t next = step_plain(g, state);
        if (next < FIRST_STATE)
            return n;
        if (next == state)
            return VOCABULARY_PLAIN_MAX;
        state = next;
        n++;
    }
    return n;
}

/* ---- grammars ---- */

static uint32_t state_first(struct grammar *g)
{
    closure_begin(g);
    work_add(g, g->program.start, NO_FRAME);
    return closure_end(g);
}

static void states_free(struct grammar *g)
{
    for (uint32_t i = 0; i < g->n_states; i++) {
        free(g->states[i].next);
        free(g->states[i].mask);
    }
    g->n_states = g->n_threads = g->n_masks = 0;
}

/* Numbers 0 and 1 of states, and 0 of frames, mean something else. */
static bool tables_begin(struct grammar *g)
{
    if (!grow(&g->frames, &g->frames_room, 1, sizeof *g->frames) ||
        !grow(&g->states, &g->states_room, FIRST_STATE, sizeof *g->states))
        return false;
    g->frames[0] = (struct frame){ 0 };
    memset(g->states, 0, FIRST_STATE * sizeof *g->states);
    g->n_frames = 1;
    g->n_states = FIRST_STATE;
    g->frame_table.n = g->state_table.n = 0;
    if (g->frame_table.slots)
        memset(g->frame_table.slots, 0, g->frame_table.room * sizeof(uint32_t));
    if (g->state_table.slots)
        memset(g->state_table.slots, 0, g->state_table.room * sizeof(uint32_t));
    return true;
}

struct grammar *grammar_new(struct program *p)
{
    struct grammar *g = calloc(1, sizeof *g);
    if (!g) {
        program_deinit(p);
        return NULL;
    }
    g->program = *p;
    *p = (struct program){ 0 };
    g->refs = 1;
    if (!tables_begin(g) || state_first(g) == UNKNOWN) {
        grammar_unref(g);
        return NULL;
    }
    return g;
}

struct grammar *grammar_ref(struct grammar *g)
{
    atomic_fetch_add(&g->refs, 1);
    return g;
}

/* States, and the room for them. */
static void tables_free(struct grammar *g)
{
    states_free(g);
    free(g->frames);
    free(g->threads);
    free(g->states);
    free(g->frame_table.slots);
    free(g->state_table.slots);
    free(g->work);
    free(g->seen);
    g->frames = NULL;
    g->threads = NULL;
    g->states = NULL;
    g->work = NULL;
    g->seen = NULL;
    g->frame_table = g->state_table = (struct table){ 0 };
    g->frames_room = g->threads_room = g->states_room = g->work_room = g->seen_room = g->n_frames = 0;
}

void grammar_unref(struct grammar *g)
{
    if (!g || atomic_fetch_sub(&g->refs, 1) != 1)
        return;
    tables_free(g);
    program_deinit(&g->program);
    free(g);
}

/* Nobody follows it now: what few states take is kept for the next who does. */
static void grammar_rest(struct grammar *g)
{
    if (g->n_states <= GRAMMAR_STATES_IDLE && g->n_threads <= THREADS_IDLE && !g->no_memory)
        return;
    tables_free(g);
    g->limited = false;
    g->no_memory = !tables_begin(g);
}

/* ---- making them anew ---- */

/* A state's threads with their stacks spelled out: [at, depth, back ...] each, the innermost return last. */
struct spelled {
    uint32_t *words;
    uint32_t n, room;
};

static bool spell(const struct grammar *g, uint32_t state, struct spelled *out)
{
    const struct state *s = &g->states[state];
    for (uint32_t i = 0; i < s->n; i++) {
        const struct thread *t = &g->threads[s->from + i];
        const uint32_t depth = t->frame ? g->frames[t->frame].depth : 0;
        if (!grow(&out->words, &out->room, out->n + 2 + depth, sizeof *out->words))
            return false;
        out->words[out->n] = t->at;
        out->words[out->n + 1] = depth;
        uint32_t at = out->n + 2 + depth;
        for (uint32_t f = t->frame; f; f = g->frames[f].parent)
            out->words[--at] = g->frames[f].back;
        out->n += 2 + depth;
    }
    return true;
}

static uint32_t unspell(struct grammar *g, const struct spelled *from)
{
    closure_begin(g);
    for (uint32_t i = 0; i < from->n;) {
        const uint32_t at = from->words[i], depth = from->words[i + 1];
        uint32_t frame = NO_FRAME;
        for (uint32_t k = 0; k < depth; k++)
            if (!(frame = frame_push(g, from->words[i + 2 + k], frame)))
                return UNKNOWN;
        work_add(g, at, frame);
        i += 2 + depth;
    }
    return closure_end(g);
}

static bool renew(struct grammar *g)
{
    uint32_t n = 0, i = 0;
    for (const struct matcher *m = g->matchers; m; m = m->next)
        n++;
    struct spelled *all = calloc(n + 1, sizeof *all);
    bool ok = all;
    for (const struct matcher *m = g->matchers; m && ok; m = m->next, i++)
        ok = spell(g, m->state, &all[i]);
    if (ok) {
        states_free(g);
        ok = tables_begin(g);
    }
    i = 0;
    for (struct matcher *m = g->matchers; m && ok; m = m->next, i++)
        ok = (m->state = unspell(g, &all[i])) >= FIRST_STATE;
    for (i = 0; all && i < n; i++)
        free(all[i].words);
    free(all);
    g->no_memory = g->no_memory || !ok;
    return ok;
}

static bool too_large(const struct grammar *g)
{
    return g->n_states > GRAMMAR_STATES_MAX || g->n_frames > FRAMES_MAX || g->n_threads > THREADS_TOTAL_MAX;
}

/* ---- matchers ---- */

struct matcher *matcher_new(struct grammar *g, const struct vocabulary *v)
{
    struct matcher *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->path = malloc((v->longest + 1) * sizeof *m->path);
    m->state = m->path && !g->no_memory ? state_first(g) : UNKNOWN;
    if (m->state == UNKNOWN) {
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
        grammar_rest(m->grammar);
    grammar_unref(m->grammar);
    free(m->path);
    free(m);
}

enum status matcher_push(struct matcher *m, const char *bytes, size_t n)
{
    struct grammar *g = m->grammar;
    if (g->no_memory || (too_large(g) && !renew(g)))
        return ST_NO_MEMORY;
    uint32_t state = m->state;
    for (size_t i = 0; i < n && state >= FIRST_STATE; i++)
        state = step(g, state, (uint8_t)bytes[i]);
    if (state < FIRST_STATE)
        return state == DEAD ? ST_INVALID : ST_NO_MEMORY;
    m->state = state;
    return ST_OK;
}

bool matcher_may_end(const struct matcher *m)
{
    return m->state >= FIRST_STATE && m->grammar->states[m->state].end;
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
        const uint32_t next = step(g, m->path[*alive], w->bytes[*alive]);
        if (next == UNKNOWN)
            return ST_NO_MEMORY;
        if (g->spent > WALK_WORK_MAX || g->n_states > WALK_STATES_MAX)
            return ST_TOO_LARGE;
        if (next == DEAD)
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
    for (uint32_t i = FIRST_STATE; i < g->n_states; i++) {
        free(g->states[i].mask);
        g->states[i].mask = NULL;
    }
    g->n_masks = 0;
}

enum status matcher_mask(struct matcher *m, uint8_t *set_out, uint32_t *n_out)
{
    struct grammar *g = m->grammar;
    const uint32_t bytes = vocabulary_set_bytes(m->vocabulary);
    if (g->no_memory || (too_large(g) && !renew(g)))
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
