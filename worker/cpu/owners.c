/*
 * Lists of what several owners score: who reads a block scores it, and the home finds where to cut from counts, and from the keys that lie in the range
 * that these leave (kernels/selector.h). Between workers each round is sent before it is waited for, so nobody waits in a circle.
 */
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "worker/cpu/cpu.h"

/* What is known of a list, at its home or at a reader. */
struct list {
    struct selector_range range;
    struct selector_pair cut;
};

struct cpu_owners {
    uint32_t *keys;                     /* of jobs' lists: struct select_job says where */
    struct list *lists;                 /* [n_lists] */
    uint8_t *told, *asked;              /* counts of voices */
    struct selector_pair **told_pairs;  /* [n_told], into pairs */
    uint32_t *told_n_pairs;             /* [n_told] */
    struct selector_pair *pairs, *list; /* all that came; of one list */
    uint8_t *own_counts;                /* of what is here of each list: [n_lists][OWN_COUNTS] */
    size_t keys_room, lists_room, told_room, asked_room, told_pairs_room, told_n_pairs_room, pairs_room, list_room,
        own_counts_room;
};

enum { OWN_COUNTS = 8 + 2 * 256 };

bool cpu_owners_reserve(struct backend *b)
{
    const struct select *s = b->input->select;
    if (!b->owners)
        b->owners = calloc(1, sizeof *b->owners);
    struct cpu_owners *o = b->owners;
    return o && cpu_reserve(&o->keys, &o->keys_room, s->n_keys * sizeof *o->keys) &&
           cpu_reserve(&o->lists, &o->lists_room, s->n_lists * sizeof *o->lists) &&
           cpu_reserve(&o->told, &o->told_room, s->told_bytes) &&
           cpu_reserve(&o->asked, &o->asked_room, s->asked_bytes) &&
           cpu_reserve(&o->told_pairs, &o->told_pairs_room, s->n_told * sizeof *o->told_pairs) &&
           cpu_reserve(&o->told_n_pairs, &o->told_n_pairs_room, s->n_told * sizeof *o->told_n_pairs) &&
           cpu_reserve(&o->own_counts, &o->own_counts_room, (size_t)s->n_lists * OWN_COUNTS);
}

void cpu_owners_free(struct backend *b)
{
    if (!b->owners)
        return;
    free(b->owners->keys);
    free(b->owners->lists);
    free(b->owners->told);
    free(b->owners->asked);
    free(b->owners->told_pairs);
    free(b->owners->told_n_pairs);
    free(b->owners->pairs);
    free(b->owners->list);
    free(b->owners->own_counts);
    free(b->owners);
}

/* ---- scores ---- */

static const uint32_t *keys_of(const struct backend *b, const struct select_job *job, uint32_t index)
{
    return b->owners->keys + job->keys + (size_t)index * (job->scope_end - job->scope_begin);
}

/* The keys of one row's lists. */
static void score_row(struct backend *b, uint32_t j, uint32_t row, uint32_t layer, uint32_t member)
{
    const struct select *s = b->input->select;
    const struct model_config *c = b->config;
    const struct select_job *job = &s->jobs[j];
    const struct attend_job *run = &b->input->attend->jobs[j];
    const uint32_t heads = c->n_kv_heads, group = c->n_heads / heads, own = (run->pos + row) / KV_BLOCK,
                   n = select_wanted(job, own) ? select_scope_count(s, job, own) : 0;
    const void **pointers;
    const float **q;
    float *queries, *scores;
    if (!n)
        return;
    cpu_select_scratch(b, member, &pointers, &q, &queries, &scores);
    for (uint32_t i = 0; i < n; i++) {
        const struct sketch *sketch = s->scope[job->scope_begin + i].sketch;
        if (!sketch->have || !sketch->have[layer - s->store.spec.dense_layers]) {
            cpu_fail(b, ST_NOT_FOUND, UINT16_MAX);
            return;
        }
        pointers[i] = sketch_layer(&s->store, sketch, layer);
    }
    for (uint32_t i = 0; i < c->n_heads; i++) {
        float *to = queries + (size_t)i * c->head_dim;
        const float *from = cpu_query_vector(b, run, i / group, row * group + i % group, to);
        for (uint32_t d = 0; d < c->head_dim; d++) /* as attention rounds them */
            to[d] = b->float32 ? from[d] : bf16_to_f32(f32_to_bf16(from[d]));
        q[i] = to;
    }
    s->store.impl->score(&s->store.shape, 0, heads, q, pointers, n, scores);
    for (uint32_t head = 0; head < heads; head++) {
        uint32_t *keys = b->owners->keys + (keys_of(b, job, row * heads + head) - b->owners->keys);
        for (uint32_t i = 0; i < n; i++)
            keys[i] = selector_order(scores[(size_t)head * n + i]);
    }
}

void cpu_owners_score(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    const struct attend *a = b->input->attend;
    for (uint32_t j = 0, at = 0; j < a->n_jobs; j++)
        for (uint32_t row = 0; b->input->select->jobs[j].density && row < a->jobs[j].n_rows; row++, at++)
            if (at % n_members == member)
                score_row(b, j, row, op->layer, member);
}

/* ---- messages ---- */

static struct exchange_key key_of(const struct backend *b, uint32_t layer, enum exchange_phase phase, uint16_t peer)
{
    struct exchange_key key = b->input->key;
    key.layer = (uint16_t)layer;
    key.phase = (uint8_t)phase;
    key.peer = peer;
    return key;
}

/* What stands in b->wire. */
static bool tell(struct backend *b, uint32_t layer, enum exchange_phase phase, uint16_t peer, const void *data,
                 size_t bytes)
{
    const struct exchange_key key = key_of(b, layer, phase, peer);
    const struct iovec part = { (void *)(uintptr_t)data, bytes };
    const enum status st = b->exchange_ops->send(b->exchange, &key, &part, 1);
    b->cost.bytes_sent += bytes;
    if (st)
        cpu_fail(b, st, peer);
    return !st;
}

static bool hear(struct backend *b, uint32_t layer, enum exchange_phase phase, uint16_t peer, void *data, size_t bytes)
{
    const struct exchange_key key = key_of(b, layer, phase, peer);
    const int64_t start = clock_ns();
    const enum status st = b->exchange_ops->recv(b->exchange, &key, data, bytes, b->deadline_ns);
    b->cost.wait_ns += clock_ns() - start;
    b->cost.bytes_received += bytes;
    if (st)
        cpu_fail(b, st, peer);
    return !st;
}

static bool wire_room(struct backend *b, size_t bytes)
{
    if (cpu_reserve(&b->wire, &b->wire_room, bytes))
        return true;
    cpu_fail(b, ST_NO_MEMORY, UINT16_MAX);
    return false;
}

static struct list *list_of(const struct backend *b, const struct select_voice *v)
{
    return &b->owners->lists[b->input->select->jobs[v->job].first + v->index];
}

static size_t talk_counts(const struct select_voice *voices, const struct select_talk *t)
{
    const struct select_voice *last = &voices[t->end - 1];
    return last->at + selector_counts_bytes(last->n) - voices[t->begin].at;
}

/* ---- rounds ---- */

static bool round_counts(struct backend *b, uint32_t layer)
{
    const struct select *s = b->input->select;
    struct cpu_owners *o = b->owners;
    for (uint32_t i = 0; i < s->n_asked; i++)
        selector_counts(keys_of(b, &s->jobs[s->asked[i].job], s->asked[i].index), s->asked[i].n,
                        o->asked + s->asked[i].at);
    for (uint32_t i = 0; i < s->n_homes; i++) {
        const struct select_talk *t = &s->homes[i];
        if (!tell(b, layer, PHASE_COUNTS, t->peer, o->asked + s->asked[t->begin].at, talk_counts(s->asked, t)))
            return false;
    }
    for (uint32_t i = 0; i < s->n_owners; i++) {
        const struct select_talk *t = &s->owners[i];
        if (!hear(b, layer, PHASE_COUNTS, t->peer, o->told + s->told[t->begin].at, talk_counts(s->told, t)))
            return false;
        for (uint32_t k = t->begin; k < t->end; k++) {
            if (!selector_counts_valid(o->told + s->told[k].at, s->told[k].n)) {
                cpu_fail(b, ST_CORRUPT, t->peer);
                return false;
            }
        }
    }
    return true;
}

/* Lists that are made here: those of local jobs. fn of each that chooses: blocks scored here, and wanted. */
static bool each_local(struct backend *b, bool (*fn)(struct backend *b, const struct select_job *job, uint32_t index,
                                                     uint32_t n, uint32_t wanted))
{
    const struct select *s = b->input->select;
    for (uint32_t u = 0; u < s->n_units; u++) {
        const struct select_job *job = &s->jobs[s->units[u].job];
        const uint32_t own = s->units[u].own, wanted = select_wanted(job, own);
        if (wanted && !fn(b, job, s->units[u].index, select_scope_count(s, job, own), wanted))
            return false;
    }
    return true;
}

static bool range_find(struct backend *b, const struct select_job *job, uint32_t index, uint32_t n, uint32_t wanted)
{
    const struct select *s = b->input->select;
    const uint32_t list = job->first + index;
    uint8_t *own = b->owners->own_counts + (size_t)list * OWN_COUNTS;
    const uint8_t *counts[SELECTOR_OWNERS_MAX];
    uint32_t ns[SELECTOR_OWNERS_MAX], owners = 0;
    if (n) {
        selector_counts(keys_of(b, job, index), n, own);
        counts[owners] = own;
        ns[owners++] = n;
    }
    for (uint32_t v = s->voices[list]; v != UINT32_MAX && owners < SELECTOR_OWNERS_MAX; v = s->told[v].next) {
        counts[owners] = b->owners->told + s->told[v].at;
        ns[owners++] = s->told[v].n;
    }
    b->owners->lists[list].range = selector_range_of(counts, ns, owners, wanted);
    return true;
}

/* From home to owners and back: 8 bytes a voice. */
static bool round_eights(struct backend *b, uint32_t layer, enum exchange_phase phase, size_t at)
{
    const struct select *s = b->input->select;
    for (uint32_t i = 0; i < s->n_owners; i++) {
        const struct select_talk *t = &s->owners[i];
        const size_t bytes = (size_t)(t->end - t->begin) * 8;
        if (!wire_room(b, bytes))
            return false;
        for (uint32_t k = t->begin; k < t->end; k++)
            memcpy(b->wire + (size_t)(k - t->begin) * 8, (const uint8_t *)list_of(b, &s->told[k]) + at, 8);
        if (!tell(b, layer, phase, t->peer, b->wire, bytes))
            return false;
    }
    for (uint32_t i = 0; i < s->n_homes; i++) {
        const struct select_talk *t = &s->homes[i];
        const size_t bytes = (size_t)(t->end - t->begin) * 8;
        if (!wire_room(b, bytes) || !hear(b, layer, phase, t->peer, b->wire, bytes))
            return false;
        for (uint32_t k = t->begin; k < t->end; k++)
            memcpy((uint8_t *)list_of(b, &s->asked[k]) + at, b->wire + (size_t)(k - t->begin) * 8, 8);
    }
    return true;
}

/* Blocks of a job's scope, as pairs have them: a range of n. */
static uint32_t pairs_take(struct backend *b, const struct select_job *job, uint32_t index, uint32_t n,
                           const uint8_t *counts, struct selector_pair *out)
{
    const struct select *s = b->input->select;
    const struct list *list = &b->owners->lists[job->first + index];
    const uint32_t some = selector_range_take(counts, keys_of(b, job, index), n, list->range, out);
    for (uint32_t i = 0; i < some; i++)
        out[i].block = s->scope[job->scope_begin + out[i].block].block;
    return some;
}

static bool pairs_send(struct backend *b, uint32_t layer)
{
    const struct select *s = b->input->select;
    for (uint32_t i = 0; i < s->n_homes; i++) {
        const struct select_talk *t = &s->homes[i];
        size_t room = 0;
        uint32_t n = 0;
        for (uint32_t k = t->begin; k < t->end; k++)
            room += s->asked[k].n;
        if (!wire_room(b, room * sizeof(struct selector_pair)))
            return false;
        struct selector_pair *out = (struct selector_pair *)(void *)b->wire;
        for (uint32_t k = t->begin; k < t->end; k++) {
            const struct select_voice *v = &s->asked[k];
            n += pairs_take(b, &s->jobs[v->job], v->index, v->n, b->owners->asked + v->at, out + n);
        }
        if (!tell(b, layer, PHASE_PAIRS, t->peer, b->wire, n * sizeof *out))
            return false;
    }
    return true;
}

/* How many come follows from the counts. */
static bool pairs_receive(struct backend *b, uint32_t layer)
{
    const struct select *s = b->input->select;
    struct cpu_owners *o = b->owners;
    size_t all = 0;
    uint32_t above;
    for (uint32_t k = 0; k < s->n_told; k++) {
        o->told_n_pairs[k] =
            selector_range_count(o->told + s->told[k].at, s->told[k].n, list_of(b, &s->told[k])->range, &above);
        all += o->told_n_pairs[k];
    }
    if (!cpu_reserve(&o->pairs, &o->pairs_room, all * sizeof *o->pairs)) {
        cpu_fail(b, ST_NO_MEMORY, UINT16_MAX);
        return false;
    }
    struct selector_pair *to = o->pairs;
    for (uint32_t i = 0; i < s->n_owners; i++) {
        const struct select_talk *t = &s->owners[i];
        uint32_t n = 0;
        for (uint32_t k = t->begin; k < t->end; k++) {
            o->told_pairs[k] = to + n;
            n += o->told_n_pairs[k];
        }
        if (!hear(b, layer, PHASE_PAIRS, t->peer, to, n * sizeof *to))
            return false;
        for (uint32_t k = t->begin; k < t->end; k++) {
            if (!selector_pairs_valid(o->told + s->told[k].at, s->told[k].n, list_of(b, &s->told[k])->range,
                                      o->told_pairs[k], o->told_n_pairs[k])) {
                cpu_fail(b, ST_CORRUPT, t->peer);
                return false;
            }
        }
        to += n;
    }
    return true;
}

static bool cut_find(struct backend *b, const struct select_job *job, uint32_t index, uint32_t n, uint32_t wanted)
{
    const struct select *s = b->input->select;
    struct cpu_owners *o = b->owners;
    const uint32_t list = job->first + index;
    const uint8_t *own = o->own_counts + (size_t)list * OWN_COUNTS;
    size_t room = n;
    for (uint32_t v = s->voices[list]; v != UINT32_MAX; v = s->told[v].next)
        room += o->told_n_pairs[v];
    if (!cpu_reserve(&o->list, &o->list_room, room * sizeof *o->list)) {
        cpu_fail(b, ST_NO_MEMORY, UINT16_MAX);
        return false;
    }
    uint32_t above = 0, more = 0, pairs = 0;
    if (n) {
        selector_range_count(own, n, o->lists[list].range, &above);
        pairs = pairs_take(b, job, index, n, own, o->list);
    }
    for (uint32_t v = s->voices[list]; v != UINT32_MAX; v = s->told[v].next, above += more) {
        selector_range_count(o->told + s->told[v].at, s->told[v].n, o->lists[list].range, &more);
        memcpy(o->list + pairs, o->told_pairs[v], o->told_n_pairs[v] * sizeof *o->list);
        pairs += o->told_n_pairs[v];
    }
    o->lists[list].cut = selector_cut(o->list, pairs, wanted - above);
    return true;
}

void cpu_owners_choose(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    const uint32_t layer = op->layer;
    (void)n_members;
    if (member)
        return;
    /* What fails has been said by cpu_fail. */
    (void)(round_counts(b, layer) && each_local(b, range_find) &&
           round_eights(b, layer, PHASE_RANGES, offsetof(struct list, range)) && pairs_send(b, layer) &&
           pairs_receive(b, layer) && each_local(b, cut_find) &&
           round_eights(b, layer, PHASE_CUTS, offsetof(struct list, cut)));
}

/* ---- lists ---- */

static void list_make(struct backend *b, uint32_t j, uint32_t index)
{
    const struct select *s = b->input->select;
    const struct select_job *job = &s->jobs[j];
    const struct attend_job *run = &b->input->attend->jobs[j];
    const uint32_t own = (run->pos + index / b->config->n_kv_heads) / KV_BLOCK;
    const struct selector_pair cut = b->owners->lists[job->first + index].cut;
    uint64_t *list = b->lists + job->at + (size_t)index * job->words;
    memset(list, 0, job->words * sizeof *list);
    selector_window(own, selector_reads_all(own, job->density) ? own : 2, list); /* all, or those that are forced */
    const uint32_t n = select_wanted(job, own) ? select_scope_count(s, job, own) : 0;
    const uint32_t *keys = keys_of(b, job, index);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t block = s->scope[job->scope_begin + i].block;
        list[block / 64] |= (uint64_t)selector_chosen(cut, keys[i], block) << (block % 64);
    }
}

void cpu_owners_lists(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members)
{
    const struct select *s = b->input->select;
    (void)op;
    for (uint32_t j = 0, at = 0; j < b->input->attend->n_jobs; j++)
        for (uint32_t i = 0; s->jobs[j].density && i < s->jobs[j].n_lists; i++, at++)
            if (at % n_members == member)
                list_make(b, j, i);
}
