#include "worker/select.h"

#include <stdlib.h>
#include <string.h>

#include "common/rng.h"
#include "worker/exchange/exchange.h"

enum { BUCKETS = sizeof((struct select *)0)->bucket / sizeof(struct select_seq *) };

/* ---- life ---- */

enum status select_init(struct select *s, const char *text, const struct selector_shape *shape, uint32_t n_layers,
                        uint32_t positions_max, uint32_t leaf_blocks, uint32_t caps, struct error *err)
{
    struct selector_spec spec;
    memset(s, 0, sizeof *s);
    const enum status st = selector_parse(text, &spec, err);
    if (st)
        return st;
    const struct selector_impl *impl = selector_find(spec.name, caps);
    if (impl && spec.dense_layers >= n_layers)
        return error_set(err, ST_UNSUPPORTED,
                         "selector %s: layers 0 to %u are dense, the model has %u: nothing would be selected "
                         "(selector-dense-layers)",
                         text, spec.dense_layers - 1, n_layers);
    if (impl && impl->blocks_max && positions_max > (uint64_t)impl->blocks_max * PLAN_BLOCK)
        return error_set(err, ST_UNSUPPORTED,
                         "selector %s: contexts are of at most %u positions, not %u (positions-max)", text,
                         impl->blocks_max * PLAN_BLOCK, positions_max);
    s->leaf_blocks = leaf_blocks;
    return sketches_init(&s->store, impl, &spec, shape, n_layers)
               ? error_set(err, ST_NO_MEMORY, "no memory for sketches")
               : ST_OK;
}

void select_deinit(struct select *s)
{
    for (int i = 0; i < BUCKETS; i++) {
        while (s->bucket[i]) {
            struct select_seq *q = s->bucket[i];
            s->bucket[i] = q->next;
            free(q->sketches);
            free(q->device);
            free(q);
        }
    }
    sketches_deinit(&s->store);
    free(s->seqs);
    free(s->rows);
    free(s->seals);
    free(s->jobs);
    free(s->units);
    free(s->refs);
    for (int i = 0; i < ATTEND_TRAFFICS; i++)
        free(s->choices[i]);
    free(s->sends);
    free(s->gets);
    free(s->sent);
    u32_list_free(&s->leaves);
    free(s->scope);
    free(s->told);
    free(s->asked);
    free(s->owners);
    free(s->homes);
    free(s->voices);
    memset(s, 0, sizeof *s);
}

bool select_reserve(void *p, uint32_t *room, uint32_t n, size_t size)
{
    void **at = p;
    if (n <= *room)
        return true;
    void *q = realloc(*at, ((size_t)n + n / 2 + 16) * size);
    if (!q)
        return false;
    *at = q;
    *room = n + n / 2 + 16;
    return true;
}

/* ---- sequences ---- */

static struct select_seq **seq_place(struct select *s, uint64_t id)
{
    struct select_seq **at = &s->bucket[mix64(id) % BUCKETS];
    while (*at && (*at)->id != id)
        at = &(*at)->next;
    return at;
}

static void seq_cut(struct select *s, struct select_seq *q, uint32_t n)
{
    while (q->n > n)
        sketch_unref(&s->store, q->sketches[--q->n]);
    q->n_device = q->n_device < n ? q->n_device : n;
    q->committed = q->committed < n ? q->committed : n;
}

static void seq_forget(struct select *s, uint64_t id)
{
    struct select_seq **at = seq_place(s, id), *q = *at;
    if (!q)
        return;
    *at = q->next;
    for (uint32_t c = q->committed; c < q->n; c++) /* its blocks are committed, or will never be */
        sketch_commit(&s->store, q->sketches[c]);
    seq_cut(s, q, 0);
    free(q->sketches);
    free(q->device);
    free(q);
}

static int member_index(const struct plan *plan, uint16_t id)
{
    for (uint32_t i = 0; i < plan->n_members; i++)
        if (plan->members[i] == id)
            return (int)i;
    return -1;
}

static bool in_cast(const struct plan *plan, const struct plan_seq *seq, uint16_t id)
{
    const int i = member_index(plan, id);
    return i >= 0 && seq->cast >> i & 1;
}

static bool home_of(const struct plan *plan, uint32_t seq, uint16_t id)
{
    for (uint32_t r = 0; r < plan->n_runs; r++)
        if (plan->runs[r].seq == seq && plan->runs[r].home == id)
            return true;
    return false;
}

/* Names the sketches of its table's blocks, as far as the plan's rows need. */
static enum status seq_take(struct select *s, const struct plan *plan, uint32_t i, uint16_t self,
                            const struct select_lookup *at)
{
    const struct plan_seq *said = &plan->seqs[i];
    struct select_seq **place = seq_place(s, said->id), *q = *place;
    s->seqs[i] = NULL;
    if (!in_cast(plan, said, self) && !home_of(plan, i, self)) {
        seq_forget(s, said->id);
        return ST_OK;
    }
    if (!q) {
        q = *place = calloc(1, sizeof *q);
        if (!q)
            return ST_NO_MEMORY;
        q->id = said->id;
    }
    s->seqs[i] = q;
    q->cast = in_cast(plan, said, self);
    /* What a plan says again may be other blocks. Those that it names already are held meanwhile, or they would go and come without what they keep. */
    const uint32_t kept = said->table_from < q->n ? said->table_from : q->n, before = q->n;
    const uint32_t n = said->table_from + said->n_table;
    if (!select_reserve(&q->sketches, &q->room, n > before ? n : before, sizeof *q->sketches))
        return ST_NO_MEMORY;
    for (uint32_t c = kept; c < n; c++) {
        const kv_handle handle = at->handle(at->ctx, i, c);
        if (!handle)
            return ST_PROTOCOL;
        if (c < before && q->sketches[c]->handle == handle)
            continue;
        struct sketch *sketch = sketch_open(&s->store, handle);
        if (!sketch) {
            seq_cut(s, q, c < before ? c : q->n);
            return ST_NO_MEMORY;
        }
        sketch_ref(sketch);
        if (c < before)
            sketch_unref(&s->store, q->sketches[c]);
        q->sketches[c] = sketch;
        q->n_device = q->n_device < c ? q->n_device : c;
        q->n = c + 1 > q->n ? c + 1 : q->n;
    }
    if (said->fresh)
        seq_cut(s, q, n);
    return ST_OK;
}

/* Query means of blocks that will never be made again are needed no more. */
static void seq_commit(struct select *s, struct select_seq *q, uint32_t committed)
{
    const uint32_t blocks = committed / PLAN_BLOCK;
    for (; q->committed < blocks && q->committed < q->n; q->committed++)
        sketch_commit(&s->store, q->sketches[q->committed]);
}

enum status select_take(struct select *s, const struct plan *plan, uint16_t self, const struct select_lookup *at,
                        struct error *err)
{
    if (!select_sketches(s))
        return ST_OK;
    for (uint32_t i = 0; i < plan->n_drops; i++)
        sketch_drop(&s->store, plan->drops[i]);
    for (uint32_t i = 0; i < plan->n_forgets; i++)
        seq_forget(s, plan->forgets[i]);
    enum status st =
        select_reserve(&s->seqs, &s->seqs_room, plan->n_seqs, sizeof(struct select_seq *)) ? ST_OK : ST_NO_MEMORY;
    for (uint32_t i = 0; i < plan->n_seqs && !st; i++) {
        st = seq_take(s, plan, i, self, at);
        if (!st && s->seqs[i])
            seq_commit(s, s->seqs[i], plan->seqs[i].committed);
    }
    return st ? error_set(err, st, "plan %llu: the tables of its sequences", (unsigned long long)plan->number) : ST_OK;
}

/* ---- the step ---- */

static bool run_sparse(const struct select *s, const struct plan *plan, const struct plan_run *run)
{
    const uint32_t density = plan->seqs[run->seq].density;
    return density && density < SELECTOR_DENSITY_ONE && (run->cls == ROW_GENERATED || s->store.spec.prompt);
}

bool select_passed(const struct select *s, const struct plan *plan, const struct plan_run *run, uint32_t c)
{
    const struct selector_spec *spec = &s->store.spec;
    return s->store.impl && s->store.impl->windowed && !spec->dense_layers && run_sparse(s, plan, run) && c &&
           c + spec->window / PLAN_BLOCK < run->pos / PLAN_BLOCK;
}

/* The rows here keep their queries, and the blocks that they complete become sketches. */
static enum status rows_build(struct select *s, const struct plan *plan, uint16_t self, struct error *err)
{
    for (uint32_t r = 0; r < plan->n_runs; r++) {
        const struct plan_run *run = &plan->runs[r];
        const struct select_seq *q = s->seqs[run->seq];
        if (run->home != self)
            continue;
        if (!select_reserve(&s->rows, &s->rows_room, s->n_rows + run->n_rows, sizeof(struct sketch *)) ||
            !select_reserve(&s->seals, &s->seals_room, s->n_seals + run->n_rows / PLAN_BLOCK + 1,
                            sizeof(struct sketch *)))
            return error_set(err, ST_NO_MEMORY, "no memory for the sketches of a plan");
        for (uint32_t pos = run->pos; pos < run->pos + run->n_rows; pos++) {
            const uint32_t c = pos / PLAN_BLOCK;
            const bool seals = pos % PLAN_BLOCK == PLAN_BLOCK - 1;
            if (c >= q->n)
                return error_set(err, ST_PROTOCOL, "plan %llu: position %u has no block",
                                 (unsigned long long)plan->number, pos);
            struct sketch *sketch = q->sketches[c];
            sketch_hold(sketch);
            if ((seals && !sketch_take(&s->store, sketch)) ||
                (!s->store.impl->by_row && !sketch_take_queries(&s->store, sketch)))
                return error_set(err, ST_NO_MEMORY, "no memory for a sketch");
            s->rows[s->n_rows++] = sketch;
            if (seals)
                s->seals[s->n_seals++] = sketch;
        }
    }
    return ST_OK;
}

/* Where each job's lists lie, and which are made here. */
static enum status jobs_build(struct select *s, const struct plan *plan, const struct attend *attend,
                              uint32_t n_kv_heads, struct error *err)
{
    const bool by_row = s->store.impl->by_row;
    s->n_units = 0;
    s->list_words = s->own_max = 0;
    s->sparse = false;
    if (!select_reserve(&s->jobs, &s->jobs_room, attend->n_jobs, sizeof *s->jobs))
        return error_set(err, ST_NO_MEMORY, "no memory for a plan");
    for (uint32_t j = 0; j < attend->n_jobs; j++) {
        const struct attend_job *job = &attend->jobs[j];
        const struct plan_run *run = &plan->runs[job->run];
        struct select_job *out = &s->jobs[j];
        const uint32_t last = (job->pos + job->n_rows - 1) / PLAN_BLOCK;
        *out =
            (struct select_job){ .own = job->pos / PLAN_BLOCK, .seq = select_sketches(s) ? s->seqs[run->seq] : NULL };
        if (!run_sparse(s, plan, run))
            continue;
        if (job->local && select_sketches(s) && (!out->seq->cast || out->seq->n < last + 1))
            return error_set(err, ST_PROTOCOL, "plan %llu: position %u selects where its sketches are not",
                             (unsigned long long)plan->number, job->pos);
        if (s->store.impl->blocks_max && last >= s->store.impl->blocks_max)
            return error_set(err, ST_PROTOCOL, "plan %llu: position %u is beyond the selector's %u blocks",
                             (unsigned long long)plan->number, job->pos, s->store.impl->blocks_max);
        s->sparse = true;
        out->density = plan->seqs[run->seq].density;
        out->n_lists = by_row ? job->n_rows * n_kv_heads : last - out->own + 1;
        out->words = selector_words(last);
        out->at = s->list_words;
        s->list_words += (size_t)out->n_lists * out->words;
        if (!job->local)
            continue;
        if (!select_reserve(&s->units, &s->units_room, s->n_units + out->n_lists, sizeof *s->units))
            return error_set(err, ST_NO_MEMORY, "no memory for a plan");
        for (uint32_t i = 0; i < out->n_lists; i++)
            s->units[s->n_units++] =
                (struct select_unit){ j, i, by_row ? (job->pos + i / n_kv_heads) / PLAN_BLOCK : out->own + i };
        s->own_max = last > s->own_max ? last : s->own_max;
    }
    return ST_OK;
}

/* ---- traffic ---- */

/* Of each message of queries, the receiver's part of the choices. */
static enum status choices_build(struct select *s, const struct plan *plan, uint16_t self, const struct attend *attend,
                                 const struct attend_lookup *at)
{
    s->leaves.n = 0;
    if (!select_reserve(&s->refs, &s->refs_room, attend->n_refs, sizeof *s->refs))
        return ST_NO_MEMORY;
    for (int kind = SEND_QUERIES; kind <= RECEIVE_QUERIES; kind++) {
        if (!select_reserve(&s->choices[kind], &s->choices_room[kind], attend->n_messages[kind], sizeof(size_t)))
            return ST_NO_MEMORY;
        for (uint32_t i = 0; i < attend->n_messages[kind]; i++) {
            const struct attend_message *m = &attend->messages[kind][i];
            const uint16_t reader = kind == SEND_QUERIES ? m->peer : self;
            size_t bytes = 0;
            for (uint32_t r = m->job_begin; r < m->job_end; r++) {
                const struct select_job *job = &s->jobs[attend->refs[r].job];
                const struct plan_run *run = &plan->runs[attend->jobs[attend->refs[r].job].run];
                const uint32_t leaf = job->own / s->leaf_blocks;
                const uint16_t *readers = at->readers(at->ctx, run->seq, leaf);
                s->refs[r] = (struct select_ref){ s->leaves.n, s->leaves.n, bytes };
                for (uint32_t l = 0; job->density && l < leaf; l++)
                    if (readers[l] == reader && u32_list_push(&s->leaves, l))
                        return ST_NO_MEMORY;
                s->refs[r].leaf_end = s->leaves.n;
                if (select_at_owners(s))
                    continue; /* the reader makes them */
                bytes += (size_t)job->n_lists * selector_words((s->leaves.n - s->refs[r].leaf_begin) * s->leaf_blocks) *
                         sizeof(uint64_t);
            }
            s->choices[kind][i] = bytes;
        }
    }
    return ST_OK;
}

static enum status sketch_sent(struct select *s, struct select_message **messages, uint32_t *n, uint32_t *room,
                               uint16_t peer, struct sketch *sketch)
{
    if (!*n || (*messages)[*n - 1].peer != peer) {
        if (!select_reserve(messages, room, *n + 1, sizeof **messages))
            return ST_NO_MEMORY;
        (*messages)[(*n)++] = (struct select_message){ peer, s->n_sent, s->n_sent };
    }
    if (!select_reserve(&s->sent, &s->sent_room, s->n_sent + 1, sizeof *s->sent))
        return ST_NO_MEMORY;
    s->sent[s->n_sent++] = sketch;
    (*messages)[*n - 1].end = s->n_sent;
    return ST_OK;
}

/* Does a row here select among blocks after c of the sequence? */
static bool wanted_here(const struct select *s, const struct plan *plan, uint16_t self, uint32_t seq, uint32_t c)
{
    for (uint32_t r = 0; r < plan->n_runs; r++) {
        const struct plan_run *run = &plan->runs[r];
        if (run->seq == seq && run->home == self && run_sparse(s, plan, run) &&
            (run->pos + run->n_rows - 1) / PLAN_BLOCK > c)
            return true;
    }
    return false;
}

/* Sketches of the blocks that this step completes: from their homes to the cast. */
static enum status sketches_build(struct select *s, const struct plan *plan, uint16_t self)
{
    for (uint32_t m = 0; m < plan->n_members; m++) {
        const uint16_t peer = plan->members[m];
        for (int sends = 1; sends >= 0 && peer != self; sends--) {
            for (uint32_t r = 0; r < plan->n_runs; r++) {
                const struct plan_run *run = &plan->runs[r];
                const struct plan_seq *said = &plan->seqs[run->seq];
                struct select_seq *q = s->seqs[run->seq];
                if (run->home != (sends ? self : peer) || !in_cast(plan, said, sends ? peer : self))
                    continue;
                for (uint32_t pos = run->pos | (PLAN_BLOCK - 1); pos < run->pos + run->n_rows; pos += PLAN_BLOCK) {
                    const uint32_t c = pos / PLAN_BLOCK;
                    if (c >= q->n)
                        return ST_PROTOCOL;
                    if (!sends && !sketch_take(&s->store, q->sketches[c]))
                        return ST_NO_MEMORY;
                    const enum status st =
                        sends ? sketch_sent(s, &s->sends, &s->n_sends, &s->sends_room, peer, q->sketches[c])
                              : sketch_sent(s, &s->gets, &s->n_gets, &s->gets_room, peer, q->sketches[c]);
                    if (st)
                        return st;
                    s->awaited = s->awaited || (!sends && wanted_here(s, plan, self, run->seq, c));
                }
            }
        }
    }
    return ST_OK;
}

enum status select_build(struct select *s, const struct plan *plan, uint16_t self, const struct attend *attend,
                         uint32_t n_kv_heads, const struct attend_lookup *at, const struct select_lookup *handles,
                         struct error *err)
{
    if (!select_active(s))
        return ST_OK;
    s->n_rows = s->n_seals = s->n_sends = s->n_gets = s->n_sent = 0;
    s->awaited = s->spread = false;
    enum status st = select_sketches(s) ? rows_build(s, plan, self, err) : ST_OK;
    if (!st)
        st = jobs_build(s, plan, attend, n_kv_heads, err);
    if (st)
        return st;
    st = choices_build(s, plan, self, attend, at);
    if (!st && select_sketches(s) && !select_at_owners(s))
        st = sketches_build(s, plan, self);
    if (!st && select_at_owners(s))
        return select_owners_build(s, plan, self, attend, n_kv_heads, at, handles, err);
    return st ? error_set(err, st, "plan %llu: the sketches of its blocks", (unsigned long long)plan->number) : ST_OK;
}

/* ---- what a cast lacks ---- */

/*
 * Both sides walk the same blocks: of the plan's fresh sequences that have `cast` in their cast, the committed blocks in leaves that `reader` reads, in
 * order. A want is a bit for each; the answer has the sketches of those whose bit is set, in messages of CATCH_SKETCHES.
 */
enum { CATCH_SKETCHES = 128, CATCH_WANT = 0x8000, CATCH_ANSWER = 0x8001 };

struct walk {
    const struct plan *plan;
    const struct attend_lookup *at;
    uint16_t cast, reader;
    uint32_t leaf_blocks, seq, block;
};

/* false: there are no more */
static bool walk_next(struct walk *w, uint32_t *seq_out, uint32_t *block_out)
{
    for (; w->seq < w->plan->n_seqs; w->seq++, w->block = 0) {
        const struct plan_seq *said = &w->plan->seqs[w->seq];
        const uint32_t n = said->committed / PLAN_BLOCK, leaves = (n + w->leaf_blocks - 1) / w->leaf_blocks;
        if (!said->fresh || !said->density || !n || !in_cast(w->plan, said, w->cast))
            continue;
        const uint16_t *readers = w->at->readers(w->at->ctx, w->seq, leaves);
        for (; readers && w->block < n; w->block++) {
            if (readers[w->block / w->leaf_blocks] != w->reader)
                continue;
            *seq_out = w->seq;
            *block_out = w->block++;
            return true;
        }
    }
    return false;
}

struct catch
{
    struct select *s;
    const struct plan *plan;
    const struct attend_lookup *at;
    const struct exchange_ops *ops;
    struct exchange *exchange;
    struct exchange_key key;
    int64_t deadline_ns;
    uint16_t self;
    uint8_t *buffer; /* a want, or CATCH_SKETCHES sketches */
    size_t sketch_bytes;
    kv_handle *wanted; /* of all peers, one after the other */
    uint32_t n_wanted, wanted_room;
};

static struct walk walk_of(const struct catch *c, uint16_t cast, uint16_t reader)
{
    return (
        struct walk){ .plan = c->plan, .at = c->at, .cast = cast, .reader = reader, .leaf_blocks = c->s->leaf_blocks };
}

static uint32_t walk_blocks(const struct catch *c, uint16_t cast, uint16_t reader)
{
    struct walk w = walk_of(c, cast, reader);
    uint32_t n = 0, seq, block;
    while (walk_next(&w, &seq, &block))
        n++;
    return n;
}

static enum status catch_send(struct catch *c, uint16_t peer, uint32_t layer, size_t bytes)
{
    const struct iovec part = { c->buffer, bytes };
    c->key.peer = peer;
    c->key.layer = (uint16_t)layer;
    return c->ops->send(c->exchange, &c->key, &part, 1);
}

static enum status catch_recv(struct catch *c, uint16_t peer, uint32_t layer, size_t bytes)
{
    c->key.peer = peer;
    c->key.layer = (uint16_t)layer;
    return c->ops->recv(c->exchange, &c->key, c->buffer, bytes, c->deadline_ns);
}

/* Sets the bits of what is lacking here. */
static enum status want_send(struct catch *c, uint16_t peer, uint32_t n)
{
    struct walk w = walk_of(c, c->self, peer);
    uint32_t seq, block, i = 0;
    memset(c->buffer, 0, (n + 7) / 8);
    for (; walk_next(&w, &seq, &block); i++) {
        const struct select_seq *q = c->s->seqs[seq];
        if (block >= q->n)
            return ST_PROTOCOL;
        if (sketch_complete(&c->s->store, q->sketches[block]))
            continue;
        if (!select_reserve(&c->wanted, &c->wanted_room, c->n_wanted + 1, sizeof *c->wanted))
            return ST_NO_MEMORY;
        c->wanted[c->n_wanted++] = q->sketches[block]->handle;
        c->buffer[i / 8] |= (uint8_t)(1u << i % 8);
    }
    return catch_send(c, peer, CATCH_WANT, (n + 7) / 8);
}

/* What the peer asked for, from the pool's blocks. */
static enum status answer_send(struct catch *c, uint16_t peer, uint32_t n, const struct select_lookup *at)
{
    struct walk w = walk_of(c, peer, c->self);
    uint8_t *want = malloc((n + 7) / 8);
    uint32_t seq, block, i = 0, filled = 0, sent = 0;
    enum status st = want ? catch_recv(c, peer, CATCH_WANT, (n + 7) / 8) : ST_NO_MEMORY;
    if (!st)
        memcpy(want, c->buffer, (n + 7) / 8);
    for (; !st && walk_next(&w, &seq, &block); i++) {
        if (!(want[i / 8] >> i % 8 & 1))
            continue;
        st = sketch_export(&c->s->store, at->handle(at->ctx, seq, block), c->buffer + filled * c->sketch_bytes);
        if (!st && ++filled == CATCH_SKETCHES) {
            st = catch_send(c, peer, CATCH_ANSWER + sent++, filled * c->sketch_bytes);
            filled = 0;
        }
    }
    if (!st && filled)
        st = catch_send(c, peer, CATCH_ANSWER + sent, filled * c->sketch_bytes);
    free(want);
    return st;
}

static enum status answer_take(struct catch *c, uint16_t peer, const kv_handle *wanted, uint32_t n, struct error *err)
{
    for (uint32_t done = 0, message = 0; done < n; message++) {
        const uint32_t some = n - done < CATCH_SKETCHES ? n - done : CATCH_SKETCHES;
        enum status st = catch_recv(c, peer, CATCH_ANSWER + message, some * c->sketch_bytes);
        for (uint32_t i = 0; i < some && !st; i++)
            st = sketch_import(&c->s->store, c->buffer + i * c->sketch_bytes, c->sketch_bytes, wanted[done + i], err);
        if (st)
            return st;
        done += some;
    }
    return ST_OK;
}

/* Wants first, then answers to others, then their answers: nobody waits in a circle. */
static enum status catch_run(struct catch *c, const struct select_lookup *handles, uint16_t *peer_out,
                             struct error *err)
{
    uint32_t begin[PLAN_WORKERS_MAX + 1] = { 0 };
    const struct plan *plan = c->plan;
    enum status st = ST_OK;
    for (uint32_t m = 0; m < plan->n_members && !st; m++) {
        const uint16_t peer = plan->members[m];
        const uint32_t n = peer == c->self ? 0 : walk_blocks(c, c->self, peer);
        begin[m] = c->n_wanted;
        *peer_out = peer;
        st = n ? want_send(c, peer, n) : ST_OK;
        begin[m + 1] = c->n_wanted;
    }
    for (uint32_t m = 0; m < plan->n_members && !st; m++) {
        const uint16_t peer = plan->members[m];
        const uint32_t n = peer == c->self ? 0 : walk_blocks(c, peer, c->self);
        *peer_out = peer;
        st = n ? answer_send(c, peer, n, handles) : ST_OK;
    }
    for (uint32_t m = 0; m < plan->n_members && !st; m++) {
        *peer_out = plan->members[m];
        st = answer_take(c, plan->members[m], c->wanted + begin[m], begin[m + 1] - begin[m], err);
    }
    return st;
}

enum status select_catch_up(struct select *s, const struct plan *plan, uint16_t self, const struct attend_lookup *at,
                            const struct select_lookup *handles, const struct exchange_ops *ops,
                            struct exchange *exchange, const struct exchange_key *key, int64_t deadline_ns,
                            uint16_t *peer_out, struct error *err)
{
    struct catch c = { .s = s,
                       .plan = plan,
                       .at = at,
                       .ops = ops,
                       .exchange = exchange,
                       .key = *key,
                       .deadline_ns = deadline_ns,
                       .self = self,
                       .sketch_bytes = sketch_wire_bytes(&s->store) };
    uint32_t most = 0;
    *peer_out = UINT16_MAX;
    for (uint32_t i = 0; i < plan->n_seqs; i++)
        most += plan->seqs[i].fresh ? plan->seqs[i].committed / PLAN_BLOCK : 0;
    if (!select_sketches(s) || select_at_owners(s) || plan->n_members < 2 || !most)
        return ST_OK;
    c.key.phase = PHASE_SKETCH;
    const size_t answer = CATCH_SKETCHES * c.sketch_bytes, want = most / 8 + 1;
    c.buffer = malloc(answer > want ? answer : want);
    enum status st = c.buffer ? catch_run(&c, handles, peer_out, err) : ST_NO_MEMORY;
    free(c.buffer);
    free(c.wanted);
    if (!st)
        *peer_out = UINT16_MAX;
    return st;
}
