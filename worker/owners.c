/* Where sketches stay with owners: what is scored here, for whom, and who says what of which list. */
#include "worker/select.h"

/* Blocks of a leaf, but for block 0, that rows of block own choose among. */
static uint32_t leaf_count(const struct select *s, uint32_t leaf, uint32_t own)
{
    const uint32_t begin = leaf ? leaf * s->leaf_blocks : 1, end = (leaf + 1) * s->leaf_blocks, most = own - 2;
    return most <= begin ? 0 : (end < most ? end : most) - begin;
}

/* Of a part of a message. */
static uint32_t ref_count(const struct select *s, const struct select_ref *ref, uint32_t own)
{
    uint32_t n = 0;
    for (uint32_t l = ref->leaf_begin; l < ref->leaf_end; l++)
        n += leaf_count(s, s->leaves.v[l], own);
    return n;
}

uint32_t select_scope_count(const struct select *s, const struct select_job *job, uint32_t own)
{
    uint32_t low = job->scope_begin, high = job->scope_end;
    while (low < high) { /* the first block that is forced */
        const uint32_t middle = low + (high - low) / 2;
        if (s->scope[middle].block < own - 2)
            low = middle + 1;
        else
            high = middle;
    }
    return low - job->scope_begin;
}

struct build {
    struct select *s;
    const struct plan *plan;
    const struct attend *attend;
    const struct select_lookup *handles;
    uint32_t n_kv_heads;
    struct error *err;
};

static uint32_t own_of(const struct build *b, uint32_t job, uint32_t index)
{
    return (b->attend->jobs[job].pos + index / b->n_kv_heads) / PLAN_BLOCK;
}

/* Block 0 and those that no row of the job chooses among are left out. */
static enum status scope_add(const struct build *b, uint32_t j, uint32_t leaf)
{
    struct select *s = b->s;
    const uint32_t last = own_of(b, j, s->jobs[j].n_lists - 1), seq = b->plan->runs[b->attend->jobs[j].run].seq;
    const uint32_t begin = leaf ? leaf * s->leaf_blocks : 1, n = last < 3 ? 0 : leaf_count(s, leaf, last);
    if (!select_reserve(&s->scope, &s->scope_room, s->n_scope + n, sizeof *s->scope))
        return ST_NO_MEMORY;
    for (uint32_t c = begin; c < begin + n; c++) {
        const struct sketch *sketch = sketch_find(&s->store, b->handles->handle(b->handles->ctx, seq, c));
        if (!sketch)
            return error_set(b->err, ST_NOT_FOUND, "plan %llu: block %u is read here, but has no sketch",
                             (unsigned long long)b->plan->number, c);
        s->scope[s->n_scope++] = (struct select_scope){ c, sketch };
    }
    return ST_OK;
}

static enum status scope_local(const struct build *b, uint32_t j, uint16_t self, const struct attend_lookup *at)
{
    const uint32_t leaf = b->s->jobs[j].own / b->s->leaf_blocks;
    const uint16_t *readers = at->readers(at->ctx, b->plan->runs[b->attend->jobs[j].run].seq, leaf);
    enum status st = ST_OK;
    for (uint32_t l = 0; l <= leaf && !st; l++)
        if (l == leaf || readers[l] == self)
            st = scope_add(b, j, l);
    return st;
}

static enum status scope_remote(const struct build *b, uint32_t j)
{
    enum status st = ST_OK;
    for (uint32_t i = 0; i < b->attend->n_messages[RECEIVE_QUERIES]; i++) {
        const struct attend_message *m = &b->attend->messages[RECEIVE_QUERIES][i];
        for (uint32_t r = m->job_begin; r < m->job_end; r++)
            for (uint32_t l = b->s->refs[r].leaf_begin; b->attend->refs[r].job == j && l < b->s->refs[r].leaf_end; l++)
                if (!st)
                    st = scope_add(b, j, b->s->leaves.v[l]);
    }
    return st;
}

/* Of each message of queries the lists that its reader has something to say of. */
static enum status talks_build(const struct build *b, enum attend_traffic kind)
{
    struct select *s = b->s;
    const bool home = kind == SEND_QUERIES;
    struct select_voice **voices = home ? &s->told : &s->asked;
    struct select_talk **talks = home ? &s->owners : &s->homes;
    uint32_t *n = home ? &s->n_told : &s->n_asked, *n_talks = home ? &s->n_owners : &s->n_homes;
    size_t *bytes = home ? &s->told_bytes : &s->asked_bytes;
    for (uint32_t i = 0; i < b->attend->n_messages[kind]; i++) {
        const struct attend_message *m = &b->attend->messages[kind][i];
        const uint32_t begin = *n;
        for (uint32_t r = m->job_begin; r < m->job_end; r++) {
            const uint32_t j = b->attend->refs[r].job;
            const struct select_job *job = &s->jobs[j];
            if (!select_reserve(voices, home ? &s->told_room : &s->asked_room, *n + job->n_lists, sizeof **voices))
                return ST_NO_MEMORY;
            for (uint32_t k = 0; job->density && k < job->n_lists; k++) {
                const uint32_t own = own_of(b, j, k);
                const uint32_t count = select_wanted(job, own) ? ref_count(s, &s->refs[r], own) : 0;
                if (!count)
                    continue;
                (*voices)[*n] = (struct select_voice){ j, k, own, count, s->voices[job->first + k], *bytes };
                s->voices[job->first + k] = (*n)++;
                *bytes += selector_counts_bytes(count);
            }
        }
        if (*n == begin)
            continue;
        if (!select_reserve(talks, home ? &s->owners_room : &s->homes_room, *n_talks + 1, sizeof **talks))
            return ST_NO_MEMORY;
        (*talks)[(*n_talks)++] = (struct select_talk){ m->peer, begin, *n };
    }
    return ST_OK;
}

enum status select_owners_build(struct select *s, const struct plan *plan, uint16_t self, const struct attend *attend,
                                uint32_t n_kv_heads, const struct attend_lookup *at,
                                const struct select_lookup *handles, struct error *err)
{
    const struct build b = { s, plan, attend, handles, n_kv_heads, err };
    s->spread = s->sparse && (attend->n_messages[SEND_QUERIES] || attend->n_messages[RECEIVE_QUERIES]);
    s->n_scope = s->n_told = s->n_asked = s->n_owners = s->n_homes = s->n_lists = 0;
    s->n_keys = s->told_bytes = s->asked_bytes = 0;
    for (uint32_t j = 0; j < attend->n_jobs && s->spread; j++) {
        struct select_job *job = &s->jobs[j];
        job->scope_begin = s->n_scope;
        const enum status st = !job->density           ? ST_OK
                               : attend->jobs[j].local ? scope_local(&b, j, self, at)
                                                       : scope_remote(&b, j);
        if (st)
            return st == ST_NO_MEMORY ? error_set(err, st, "no memory for a plan") : st;
        const uint32_t own = job->density ? own_of(&b, j, job->n_lists - 1) : 0;
        job->scope_end = s->n_scope;
        job->first = s->n_lists;
        job->keys = s->n_keys;
        s->n_lists += job->n_lists;
        s->n_keys += (size_t)job->n_lists * (job->scope_end - job->scope_begin);
        s->own_max = own > s->own_max ? own : s->own_max;
    }
    if (!s->spread)
        return ST_OK;
    if (!select_reserve(&s->voices, &s->voices_room, s->n_lists, sizeof *s->voices))
        return error_set(err, ST_NO_MEMORY, "no memory for a plan");
    for (uint32_t i = 0; i < s->n_lists; i++)
        s->voices[i] = UINT32_MAX;
    enum status st = talks_build(&b, SEND_QUERIES);
    if (!st)
        st = talks_build(&b, RECEIVE_QUERIES);
    return st ? error_set(err, st, "no memory for a plan") : ST_OK;
}
