/*
 * A thread's stacks of returns are interned, so equal ones have equal numbers. What has grown too large is made anew from the states of the matchers that
 * live.
 */
#include "coordinator/grammar/states.h"

#include <stdlib.h>
#include <string.h>

#include "common/rng.h"

enum { NO_FRAME = 0, FRAMES_MAX = 1 << 18, THREADS_TOTAL_MAX = 1 << 22, THREADS_IDLE = 1 << 17 };

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

/* All that the threads added lead to without a byte; a state's number, STATE_DEAD if nothing, STATE_UNKNOWN if there is no memory. */
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
        return STATE_UNKNOWN;
    if (kept > GRAMMAR_THREADS_MAX || g->n_seen > 8 * GRAMMAR_THREADS_MAX)
        g->limited = true;
    if (!kept || kept > GRAMMAR_THREADS_MAX)
        return STATE_DEAD;
    qsort(g->work, kept, sizeof *g->work, by_thread);
    if (!grow(&g->threads, &g->threads_room, g->n_threads + kept, sizeof *g->threads) ||
        !grow(&g->states, &g->states_room, g->n_states + 1, sizeof *g->states))
        return STATE_UNKNOWN;
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

uint32_t state_step(struct grammar *g, uint32_t state, uint8_t byte)
{
    struct state *s = &g->states[state];
    if (!s->next && !(s->next = calloc(256, sizeof *s->next)))
        return STATE_UNKNOWN;
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

/* ---- grammars ---- */

uint32_t state_first(struct grammar *g)
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
        !grow(&g->states, &g->states_room, STATE_FIRST, sizeof *g->states))
        return false;
    g->frames[0] = (struct frame){ 0 };
    memset(g->states, 0, STATE_FIRST * sizeof *g->states);
    g->n_frames = 1;
    g->n_states = STATE_FIRST;
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
    if (!tables_begin(g) || state_first(g) == STATE_UNKNOWN) {
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

void states_rest(struct grammar *g)
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
                return STATE_UNKNOWN;
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
        ok = (m->state = unspell(g, &all[i])) >= STATE_FIRST;
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

bool states_ready(struct grammar *g)
{
    return !g->no_memory && (!too_large(g) || renew(g));
}
