/* A fake worker: no arithmetic, but all the rules about which rows may see what, where. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/sched/state.h"
#include "tests/sim/sim.h"

enum { BLOCKS_MAX = 4096, SEQS_MAX = 512, TABLE_MAX = 512, SAMPLED = 16 };

struct held {
    kv_handle handle;
    uint32_t position, pins;
    bool valid[PLAN_BLOCK];
    int32_t tokens[PLAN_BLOCK];
    bool stray;                        /* came after it was given up; goes with the next drop */
    bool open;                         /* has a place for open rows */
    uint64_t seq;                      /* whose they are */
    uint64_t before, hash[PLAN_BLOCK]; /* of all tokens before the block; up to each position */
    bool named;
    struct digest id;
};

struct known {
    uint64_t id;
    uint32_t n_table, n_readers, committed;
    kv_handle table[TABLE_MAX];
    uint16_t readers[TABLE_MAX];
    uint32_t sampled_pos[SAMPLED];
    int32_t sampled[SAMPLED];
};

struct queued {
    struct control_message *m;
    struct queued *next;
};

enum phase { IDLE, AT_BARRIER, STEPPING };

struct sim_worker {
    uint16_t id;
    struct sim_link link;
    uint32_t n_blocks;
    struct held *blocks[BLOCKS_MAX];
    uint32_t n_held;
    struct known *seqs[SEQS_MAX];
    uint32_t n_seqs;
    struct queued *queue, **queue_end;
    enum phase phase;
    int64_t since, done_at;
    uint64_t fenced; /* plans of lower epochs are refused */
    struct result *result;
    float *logits; /* inside result */
    struct sim_disk disk;
};

/* In a chunk of one allocation: what a copy carries. */
struct parcel {
    uint16_t source;
    struct held block;
    bool lost, refused, late, disk;
};

struct sim_worker *sim_worker_new(struct sim *sim, uint16_t id, uint32_t n_blocks)
{
    struct sim_worker *w = calloc(1, sizeof *w);
    (void)sim;
    assert(n_blocks <= BLOCKS_MAX);
    w->id = id;
    w->n_blocks = n_blocks;
    w->link.alive = w->link.known = true;
    w->queue_end = &w->queue;
    return w;
}

static void worker_clear(struct sim_worker *w)
{
    sim_disk_free(&w->disk);
    while (w->n_held)
        free(w->blocks[--w->n_held]);
    while (w->n_seqs)
        free(w->seqs[--w->n_seqs]);
    for (struct queued *q = w->queue, *next; q; q = next) {
        next = q->next;
        free(q->m);
        free(q);
    }
    w->queue = NULL;
    w->queue_end = &w->queue;
    free(w->result);
    w->result = NULL;
}

void sim_worker_free(struct sim_worker *w)
{
    if (!w)
        return;
    worker_clear(w);
    free(w);
}

struct sim_link *sim_worker_link(struct sim_worker *w)
{
    return &w->link;
}

uint32_t sim_worker_blocks(const struct sim_worker *w)
{
    return w->n_held;
}

uint32_t sim_worker_stored(const struct sim_worker *w)
{
    return w->disk.n;
}

uint32_t sim_worker_sequences(const struct sim_worker *w)
{
    return w->n_seqs;
}

static struct held *find(const struct sim_worker *w, kv_handle handle)
{
    for (uint32_t i = 0; i < w->n_held; i++) {
        if (w->blocks[i]->handle == handle)
            return w->blocks[i];
    }
    return NULL;
}

static struct held *take(struct sim *sim, struct sim_worker *w, kv_handle handle, uint32_t position)
{
    /* A stray may hold room that the coordinator has promised; it hears of it and has it dropped. */
    uint32_t strays = 0;
    for (uint32_t i = 0; i < w->n_held; i++)
        strays += w->blocks[i]->stray;
    if (w->n_held >= w->n_blocks + strays)
        sim_wrong(sim, "worker %u: no room for block %llu, all %u are taken", w->id, (unsigned long long)handle,
                  w->n_blocks);
    struct held *b = calloc(1, sizeof *b);
    b->handle = handle;
    b->position = position;
    return w->blocks[w->n_held++] = b;
}

static void drop(struct sim *sim, struct sim_worker *w, kv_handle handle)
{
    for (uint32_t i = 0; i < w->n_held; i++) {
        if (w->blocks[i]->handle != handle)
            continue;
        if (w->blocks[i]->pins)
            sim_wrong(sim, "worker %u: block %llu is dropped while it is sent", w->id, (unsigned long long)handle);
        if (sim->options.disk_blocks && w->blocks[i]->named)
            sim_disk_put(sim, w, &w->disk, &w->blocks[i]->id, w->blocks[i]->position, w->blocks[i],
                         sizeof *w->blocks[i]);
        free(w->blocks[i]);
        w->blocks[i] = w->blocks[--w->n_held];
        return;
    }
}

void sim_worker_named(struct sim_worker *w, const struct control_block *block)
{
    struct held *b = find(w, block->handle);
    if (!b)
        return;
    b->named = true;
    memcpy(b->id.byte, block->id, sizeof b->id.byte);
}

static struct known *known(const struct sim_worker *w, uint64_t id)
{
    for (uint32_t i = 0; i < w->n_seqs; i++) {
        if (w->seqs[i]->id == id)
            return w->seqs[i];
    }
    return NULL;
}

static void forget(struct sim_worker *w, uint64_t id)
{
    for (uint32_t i = 0; i < w->n_seqs; i++) {
        if (w->seqs[i]->id == id) {
            free(w->seqs[i]);
            w->seqs[i] = w->seqs[--w->n_seqs];
            return;
        }
    }
}

static void learn(struct sim *sim, struct sim_worker *w, const struct plan_seq *seq)
{
    struct known *k = known(w, seq->id);
    if (!k && !seq->fresh)
        sim_wrong(sim, "worker %u: sequence %llu is unknown and not fresh", w->id, (unsigned long long)seq->id);
    if (!k) {
        assert(w->n_seqs < SEQS_MAX);
        k = calloc(1, sizeof *k);
        k->id = seq->id;
        w->seqs[w->n_seqs++] = k;
    }
    if (seq->fresh) {
        k->n_table = k->n_readers = 0;
        memset(k->sampled_pos, 0xff, sizeof k->sampled_pos);
    }
    if (seq->table_from > k->n_table || seq->reader_from > k->n_readers)
        sim_wrong(sim, "worker %u: sequence %llu: table from %u of %u, readers from %u of %u", w->id,
                  (unsigned long long)seq->id, seq->table_from, k->n_table, seq->reader_from, k->n_readers);
    assert(seq->table_from + seq->n_table <= TABLE_MAX);
    for (uint32_t i = 0; i < seq->n_table; i++)
        k->table[seq->table_from + i] = seq->table[i];
    if (seq->committed < k->committed)
        sim_wrong(sim, "worker %u: sequence %llu: committed were %u positions, now %u", w->id,
                  (unsigned long long)seq->id, k->committed, seq->committed);
    k->committed = seq->committed;
    k->n_table = seq->n_table + seq->table_from > k->n_table ? seq->n_table + seq->table_from : k->n_table;
    for (uint32_t i = 0; i < seq->n_readers; i++)
        k->readers[seq->reader_from + i] = seq->readers[i];
    if (seq->reader_from + seq->n_readers > k->n_readers)
        k->n_readers = seq->reader_from + seq->n_readers;
}

/* ---- open rows: the rule of worker/open.h ---- */

static void open_release(struct sim_worker *w)
{
    for (uint32_t i = 0; i < w->n_held; i++) {
        struct held *b = w->blocks[i];
        const struct known *k = b->open ? known(w, b->seq) : NULL;
        b->open = k && k->committed / PLAN_BLOCK <= b->position;
    }
}

static bool runs_join(const struct plan_run *a, const struct plan_run *b)
{
    return a->seq == b->seq && a->home == b->home && a->pos + a->n_rows == b->pos;
}

/* The run comes to position pos of block b: are the rows before it still open, and is there a place for those that will be asked for later? */
static void open_take(struct sim *sim, struct sim_worker *w, const struct plan *plan, const struct plan_run *run,
                      struct held *b, uint32_t pos)
{
    const struct plan_run *first = run, *last = run;
    while (first > plan->runs && runs_join(first - 1, first))
        first--;
    while (last + 1 < plan->runs + plan->n_runs && runs_join(last, last + 1))
        last++;
    const uint32_t begin = b->position * PLAN_BLOCK;
    if (b->open || (first->pos <= begin && last->pos + last->n_rows >= begin + PLAN_BLOCK))
        return;
    if (pos % PLAN_BLOCK && first->pos > begin)
        sim_wrong(sim, "worker %u: sequence %llu row %u: the open rows before it are gone", w->id,
                  (unsigned long long)plan->seqs[run->seq].id, pos);
    uint32_t n = 0;
    for (uint32_t i = 0; i < w->n_held; i++)
        n += w->blocks[i]->open;
    if (sim->options.open_blocks && n >= sim->options.open_blocks)
        sim_wrong(sim, "worker %u: no place for open block %llu, all %u are taken", w->id,
                  (unsigned long long)b->handle, n);
    b->open = true;
    b->seq = plan->seqs[run->seq].id;
}

/* ---- a step ---- */

static struct sim_worker *member(struct sim *sim, const struct plan *plan, uint16_t id)
{
    for (uint32_t i = 0; i < plan->n_members; i++) {
        if (plan->members[i] == id)
            return sim->workers[id];
    }
    sim_wrong(sim, "plan %llu: worker %u is no member", (unsigned long long)plan->number, id);
}

/* Blocks before block `own` beside block 0 that its rows see, by the selector's window: all, or so many. */
static uint32_t window_of(const struct sim *sim, const struct plan *plan, const struct plan_run *run)
{
    const struct sched_config *c = &sim->options.config;
    const uint32_t density = plan->seqs[run->seq].density;
    const bool sparse = density && density < PLAN_DENSITY_ONE && (run->cls == ROW_GENERATED || c->prompt_sparse);
    return c->window && sparse ? c->window / PLAN_BLOCK : UINT32_MAX;
}

/*
 * The hash of all that a row at the start of block `own` sees, checked block by block at its reader. Before a window it is told by the block behind: what is
 * not seen may be gone.
 */
static uint64_t see(struct sim *sim, const struct plan *plan, const struct plan_run *run, const struct known *k,
                    uint32_t own)
{
    uint64_t hash = sim_hash(0, 0);
    const uint32_t own_leaf = own / plan->leaf_blocks, window = window_of(sim, plan, run);
    bool passed = false;
    for (uint32_t c = 0; c < own; c++) {
        if (c && own - c > window) {
            passed = true;
            continue;
        }
        const uint32_t leaf = c / plan->leaf_blocks;
        const uint16_t reader = leaf == own_leaf ? run->home : k->readers[leaf];
        const struct held *b = find(member(sim, plan, reader), k->table[c]);
        if (!b)
            sim_wrong(sim, "sequence %llu row %u: block %u (%llu) is not at its reader, worker %u",
                      (unsigned long long)k->id, run->pos, c, (unsigned long long)k->table[c], reader);
        hash = passed ? b->before : hash;
        passed = false;
        if (b->position != c || b->before != hash)
            sim_wrong(sim, "sequence %llu row %u: block %u at worker %u is of other tokens", (unsigned long long)k->id,
                      run->pos, c, reader);
        for (uint32_t i = 0; i < PLAN_BLOCK; i++) {
            if (!b->valid[i])
                sim_wrong(sim, "sequence %llu row %u: block %u at worker %u lacks position %u",
                          (unsigned long long)k->id, run->pos, c, reader, i);
        }
        hash = b->hash[PLAN_BLOCK - 1];
        sim->n_shipped_rows += reader != run->home;
    }
    return hash;
}

static void answer(struct sim *sim, struct sim_worker *home, const struct plan *plan, const struct plan_run *run,
                   uint32_t i, uint64_t hash, struct known *k)
{
    const bool last = i == run->n_rows - 1;
    const bool scored = (run->want & WANT_SCORE) && run->targets[i] >= 0;
    const bool sampled = (run->want & WANT_SAMPLE) && last;
    if (sampled) {
        k->sampled_pos[(run->pos + i) % SAMPLED] = run->pos + i;
        k->sampled[(run->pos + i) % SAMPLED] = sim_token(hash);
    }
    if (!scored && !sampled && !(run->want & WANT_LOGITS))
        return;
    struct result_row *rows = (struct result_row *)home->result->rows;
    struct result_row *row = &rows[home->result->n_rows++];
    *row = (struct result_row){ .seq = plan->seqs[run->seq].id, .pos = run->pos + i, .token = -1 };
    if (sampled) {
        row->token = sim_token(hash);
        row->logprob = sim_logprob(hash, row->token);
    }
    if (scored)
        row->target_logprob = sim_logprob(hash, run->targets[i]);
    if (run->want & WANT_LOGITS) {
        row->n_logits = 2;
        row->logits = memcpy(home->logits + 2 * (home->result->n_rows - 1), &hash, sizeof hash);
    }
    sim->n_rows++;
}

static void run_rows(struct sim *sim, const struct plan *plan, const struct plan_run *run)
{
    struct sim_worker *home = member(sim, plan, run->home);
    struct known *k = known(home, plan->seqs[run->seq].id);
    const uint32_t own_leaf = run->pos / PLAN_BLOCK / plan->leaf_blocks;
    if ((run->pos + run->n_rows - 1) / PLAN_BLOCK >= k->n_table || own_leaf >= k->n_readers)
        sim_wrong(sim, "sequence %llu row %u: the table ends at block %u", (unsigned long long)k->id, run->pos,
                  k->n_table);
    if (k->readers[own_leaf] != run->home)
        sim_wrong(sim, "sequence %llu row %u: home is worker %u, reader of its own leaf worker %u",
                  (unsigned long long)k->id, run->pos, run->home, k->readers[own_leaf]);
    uint64_t hash = see(sim, plan, run, k, run->pos / PLAN_BLOCK);
    for (uint32_t i = 0; i < run->n_rows; i++) {
        const uint32_t pos = run->pos + i, offset = pos % PLAN_BLOCK;
        struct held *b = find(home, k->table[pos / PLAN_BLOCK]);
        if (!b) {
            if (offset)
                sim_wrong(sim, "sequence %llu row %u: its open block is not at home %u", (unsigned long long)k->id, pos,
                          run->home);
            b = take(sim, home, k->table[pos / PLAN_BLOCK], pos / PLAN_BLOCK);
        }
        if (!i || !offset)
            open_take(sim, home, plan, run, b, pos);
        if (!offset)
            b->before = hash;
        if (i == 0 && offset) {
            if (b->before != hash)
                sim_wrong(sim, "sequence %llu row %u: its open block is of other tokens", (unsigned long long)k->id,
                          pos);
            for (uint32_t j = 0; j < offset; j++) {
                if (!b->valid[j])
                    sim_wrong(sim, "sequence %llu row %u: position %u before it was not computed",
                              (unsigned long long)k->id, pos, pos - offset + j);
            }
            hash = b->hash[offset - 1];
        }
        int32_t token = run->tokens[i];
        if (token < 0) {
            if (i || !pos || k->sampled_pos[(pos - 1) % SAMPLED] != pos - 1)
                sim_wrong(sim, "sequence %llu row %u: worker %u did not sample the token before",
                          (unsigned long long)k->id, pos, run->home);
            token = k->sampled[(pos - 1) % SAMPLED];
        }
        hash = sim_hash(hash, token);
        b->valid[offset] = true;
        b->tokens[offset] = token;
        b->hash[offset] = hash;
        answer(sim, home, plan, run, i, hash, k);
    }
}

/* What the rows of the worker that has most of them cost: others wait for its queries. */
static int64_t rows_ms(const struct sim *sim, const struct plan *plan)
{
    uint32_t most = 0;
    for (uint32_t m = 0; m < plan->n_members && sim->options.row_us; m++) {
        uint32_t rows = 0;
        for (uint32_t i = 0; i < plan->n_runs; i++)
            rows += plan->runs[i].home == plan->members[m] ? plan->runs[i].n_rows : 0;
        most = rows > most ? rows : most;
    }
    return (int64_t)most * sim->options.row_us / 1000;
}

static void step(struct sim *sim, const struct plan *plan)
{
    const int64_t ms = rows_ms(sim, plan);
    uint32_t n_rows = 0;
    for (uint32_t i = 0; i < plan->n_runs; i++)
        n_rows += plan->runs[i].n_rows;
    for (uint32_t i = 0; i < plan->n_members; i++) {
        struct sim_worker *w = sim->workers[plan->members[i]];
        w->phase = STEPPING;
        w->done_at = sim->now + 1 + sim_draw(sim, sim->options.step_max_ms) + ms;
        w->result = calloc(1, sizeof *w->result + n_rows * (sizeof(struct result_row) + sizeof(uint64_t)));
        *w->result = (struct result){ .epoch = plan->epoch,
                                      .number = plan->number,
                                      .group = plan->group,
                                      .rows = (struct result_row *)(w->result + 1),
                                      .busy_us = 1000 + (uint64_t)ms * 1000,
                                      .bytes_sent = 100,
                                      .bytes_received = 100 };
        w->logits = (float *)(w->result->rows + n_rows);
        sim_post(sim, w->done_at, SIM_WAKE, w->id, NULL);
    }
    for (uint32_t i = 0; i < plan->n_runs; i++)
        run_rows(sim, plan, &plan->runs[i]);
    sim->n_steps++;
    sim->n_spread_steps += plan->n_members > 1;
}

/* The step is given up somewhere in the middle: rows of its own are half written. */
static void abandon(struct sim *sim, struct sim_worker *w)
{
    const struct plan *plan = w->queue->m->as.plan;
    sim->n_vain++;
    for (uint32_t i = 0; i < plan->n_runs && w->phase == AT_BARRIER; i++) {
        const struct plan_run *run = &plan->runs[i];
        const struct known *k = known(w, plan->seqs[run->seq].id);
        for (uint32_t j = 0; j < run->n_rows && run->home == w->id && sim_draw(sim, 4); j++) {
            const uint32_t pos = run->pos + j;
            struct held *b = find(w, k->table[pos / PLAN_BLOCK]);
            if (!b)
                b = take(sim, w, k->table[pos / PLAN_BLOCK], pos / PLAN_BLOCK);
            if (!j || pos % PLAN_BLOCK == 0)
                open_take(sim, w, plan, run, b, pos);
            b->valid[pos % PLAN_BLOCK] = false;
        }
    }
    free(w->result);
    w->result = NULL;
    w->phase = IDLE;
}

static void queue_pop(struct sim_worker *w)
{
    struct queued *q = w->queue;
    w->queue = q->next;
    if (!w->queue)
        w->queue_end = &w->queue;
    free(q->m);
    free(q);
}

/* Two members do not reach each other: they wait in vain. */
static bool cut_between(const struct sim *sim, const struct plan *plan)
{
    uint32_t ends = 0;
    for (uint32_t i = 0; i < plan->n_members && sim->now < sim->cut_until; i++)
        ends += plan->members[i] == sim->cut[0] || plan->members[i] == sim->cut[1];
    return ends == 2;
}

static void plan_begin(struct sim *sim, struct sim_worker *w, const struct plan *plan)
{
    for (uint32_t i = 0; i < plan->n_drops; i++)
        drop(sim, w, plan->drops[i]);
    for (uint32_t i = 0; i < plan->n_forgets; i++)
        forget(w, plan->forgets[i]);
    for (uint32_t i = 0; i < plan->n_seqs; i++)
        learn(sim, w, &plan->seqs[i]);
    open_release(w);
    w->phase = AT_BARRIER;
    w->since = sim->now;
    sim->n_plans++;
    sim_post(sim, sim->now + plan->deadline_ms, SIM_WAKE, w->id, NULL);
    for (uint32_t i = 0; i < plan->n_members; i++) {
        const struct sim_worker *peer = sim->workers[plan->members[i]];
        if (peer->phase != AT_BARRIER || !peer->queue || peer->queue->m->as.plan->epoch != plan->epoch ||
            peer->queue->m->as.plan->number != plan->number)
            return;
    }
    if (!plan->n_runs || !cut_between(sim, plan))
        step(sim, plan);
}

static void give_up(struct sim *sim, struct sim_worker *w, const struct plan *plan)
{
    struct control_message m = { .kind = CONTROL_ABORT };
    uint16_t peer = UINT16_MAX;
    for (uint32_t i = 0; i < plan->n_members; i++) {
        const struct sim_worker *p = sim->workers[plan->members[i]];
        if (p->phase != AT_BARRIER || p->queue->m->as.plan->number != plan->number)
            peer = plan->members[i];
    }
    if (peer == UINT16_MAX) /* all are here and nothing goes on: the link is cut */
        peer = sim->cut[w->id == sim->cut[0]];
    m.as.abort = (struct control_abort){
        .group = plan->group, .epoch = plan->epoch, .plan = plan->number, .peer = peer, .reason = "waited too long"
    };
    w->fenced = plan->epoch + 1;
    sim->n_aborts++;
    abandon(sim, w);
    queue_pop(w);
    sim_up(sim, w, sim_message_copy(sim, &m));
}

static void send_block(struct sim *sim, struct sim_worker *w, const struct control_copy *copy)
{
    struct held *b = find(w, copy->handle);
    if (!b)
        sim_wrong(sim, "worker %u: block %llu is to be copied and is not here", w->id,
                  (unsigned long long)copy->handle);
    for (uint32_t i = 0; i < PLAN_BLOCK; i++) {
        if (!b->valid[i])
            sim_wrong(sim, "worker %u: block %llu is to be copied and is not sealed", w->id,
                      (unsigned long long)copy->handle);
    }
    if (copy->position != b->position)
        sim_wrong(sim, "worker %u: copy of block %llu says position %u", w->id, (unsigned long long)copy->handle,
                  copy->position);
    struct parcel *p = calloc(1, sizeof *p);
    p->source = w->id;
    p->block = *b;
    p->block.pins = 0;
    p->block.open = p->block.stray = false;
    if (sim_draw(sim, 1000) < sim->options.copy_faults) {
        bool *const faults[] = { &p->lost, &p->refused, &p->late };
        *faults[sim_draw(sim, 3)] = true;
    }
    if (!p->lost && !p->late)
        b->pins++;
    sim->n_copies++;
    if (p->late)
        sim_post(sim, sim->now + 6 * (int64_t)sim->options.config.step_deadline_ms, SIM_COPY, copy->destination, p);
    else
        sim_post(sim, sim->now + 1 + sim_draw(sim, 4 * sim->options.delay_max_ms + 1), SIM_COPY, copy->destination, p);
}

/* From its disk, under the handle that the coordinator says. */
static void load_block(struct sim *sim, struct sim_worker *w, const struct control_copy *copy)
{
    struct control_message m = { .kind = CONTROL_COPIED, .as.copied = { copy->handle, w->id, ST_NOT_FOUND } };
    struct digest id;
    memcpy(id.byte, copy->id, sizeof id.byte);
    const struct held *stored = sim_disk_get(&w->disk, &id);
    const uint32_t fault = sim_draw(sim, 1000) < sim->options.copy_faults ? 1 + sim_draw(sim, 3) : 0;
    if (!stored || fault == 1) {
        if (stored)
            m.as.copied.status = ST_CORRUPT;
        sim_disk_lose(sim, w, &w->disk, &id);
        sim_up(sim, w, sim_message_copy(sim, &m));
        return;
    }
    if (copy->position != stored->position || find(w, copy->handle))
        sim_wrong(sim, "worker %u: block %llu at %u is to come from the disk, where it is at %u", w->id,
                  (unsigned long long)copy->handle, copy->position, stored->position);
    struct parcel *p = calloc(1, sizeof *p);
    p->source = w->id;
    p->disk = true;
    p->block = *stored;
    p->block.handle = copy->handle;
    p->block.pins = 0;
    p->block.open = p->block.stray = false;
    p->lost = fault == 2;
    p->late = fault == 3;
    sim->n_loads++;
    sim_post(sim, sim->now + (p->late ? 2 * SCHED_LOAD_MS : 1 + (int64_t)sim_draw(sim, 30)), SIM_COPY, w->id, p);
}

void sim_worker_copy(struct sim *sim, struct sim_worker *w, void *block)
{
    struct parcel *p = block;
    struct control_message m = { .kind = CONTROL_COPIED };
    struct held *from = sim->workers[p->source]->link.alive ? find(sim->workers[p->source], p->block.handle) : NULL;
    if (from && !p->lost && !p->late && !p->disk)
        from->pins--;
    if (w && w->link.alive && !p->lost) {
        m.as.copied = (struct control_copied){ .handle = p->block.handle, .source = p->source };
        /* What comes after it was given up may find its room taken: the pool refuses it then. */
        if (p->refused || (p->late && w->n_held >= w->n_blocks && !find(w, p->block.handle))) {
            m.as.copied.status = ST_BUSY;
        } else if (!find(w, p->block.handle)) {
            struct held *b = take(sim, w, p->block.handle, p->block.position);
            *b = p->block;
            b->stray = p->late;
        }
        sim_up(sim, w, sim_message_copy(sim, &m));
    }
    free(p);
}

void sim_worker_receive(struct sim *sim, struct sim_worker *w, void *message)
{
    struct control_message *m = message;
    if (m->kind == CONTROL_STOP || !w->link.alive) {
        free(m);
        if (w->link.alive)
            sim_worker_die(sim, w);
        return;
    }
    if (m->kind == CONTROL_FENCE && m->as.fence.epoch > w->fenced) {
        w->fenced = m->as.fence.epoch;
        if (w->phase != IDLE && w->queue->m->as.plan->epoch < w->fenced) {
            abandon(sim, w);
            queue_pop(w);
        }
    }
    if (m->kind == CONTROL_PLAN || m->kind == CONTROL_COPY) {
        struct queued *q = calloc(1, sizeof *q);
        q->m = m;
        *w->queue_end = q;
        w->queue_end = &q->next;
    } else {
        free(m);
    }
    sim_worker_wake(sim, w);
}

static void result_send(struct sim *sim, struct sim_worker *w)
{
    struct control_message m = { .kind = CONTROL_RESULT, .as.result = w->result };
    sim_up(sim, w, sim_message_copy(sim, &m));
    free(w->result);
    w->result = NULL;
    w->phase = IDLE;
}

void sim_worker_wake(struct sim *sim, struct sim_worker *w)
{
    if (!w->link.alive || sim->now < w->link.hung_until)
        return;
    for (;;) {
        if (w->phase == STEPPING && sim->now >= w->done_at) {
            result_send(sim, w);
            queue_pop(w);
        } else if (w->phase == AT_BARRIER && sim->now >= w->since + w->queue->m->as.plan->deadline_ms) {
            give_up(sim, w, w->queue->m->as.plan);
        } else if (w->phase == IDLE && w->queue) {
            const struct control_message *m = w->queue->m;
            if (m->kind == CONTROL_COPY) {
                if (m->as.copy.destination == w->id)
                    load_block(sim, w, &m->as.copy);
                else
                    send_block(sim, w, &m->as.copy);
                queue_pop(w);
            } else if (m->as.plan->epoch < w->fenced) {
                queue_pop(w); /* refused */
            } else {
                w->fenced = m->as.plan->epoch;
                plan_begin(sim, w, m->as.plan);
                if (w->phase == AT_BARRIER)
                    return;
            }
        } else {
            return;
        }
    }
}

void sim_worker_die(struct sim *sim, struct sim_worker *w)
{
    (void)sim;
    w->link.alive = false;
    w->phase = IDLE;
    worker_clear(w);
}
