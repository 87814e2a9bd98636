#include "worker/cpu/lossless.h"

#include <stdio.h>
#include <stdlib.h>

#include "worker/cpu/cpu.h"

static uint32_t round_64(uint32_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* ---- from rows: how many escapes there are, and how many in a group at most ---- */

struct counts {
    uint64_t escapes[2]; /* at 3 and at 4 bits */
    uint32_t most[2];
};

struct count_job {
    const struct model_tensor *tensor;
    struct counts *counts; /* [n_members] */
    uint8_t *scratch;      /* [n_members][LOSSLESS_OUTS] rows */
    size_t row_room;
};

static void count_groups(void *ctx, uint32_t member, uint32_t n_members)
{
    const struct count_job *job = ctx;
    const struct model_tensor *t = job->tensor;
    uint8_t *scratch = job->scratch + (size_t)member * LOSSLESS_OUTS * job->row_room;
    struct counts mine = { 0 };
    uint32_t begin, end;
    team_share(lossless_groups(t->n_rows), member, n_members, &begin, &end);
    for (uint32_t g = begin; g < end; g++) {
        const uint16_t *rows[LOSSLESS_OUTS];
        for (uint32_t i = 0; i < LOSSLESS_OUTS; i++) {
            const uint32_t row = g * LOSSLESS_OUTS + i;
            rows[i] = row < t->n_rows ? model_tensor_row(t, row, scratch + i * job->row_room) : NULL;
        }
        for (uint32_t k = 0; k < 2; k++) {
            const uint32_t n = lossless_count(rows, t->n_cols, 3 + k);
            mine.escapes[k] += n;
            mine.most[k] = n > mine.most[k] ? n : mine.most[k];
        }
    }
    job->counts[member] = mine;
}

static enum status count_rows(struct team *team, uint32_t n_threads, const struct model_tensor *t,
                              struct counts *counts_out, struct error *err)
{
    const size_t row_room = (t->row_bytes + 63) / 64 * 64;
    struct count_job job = { t, calloc(n_threads, sizeof *job.counts), cpu_alloc(n_threads * LOSSLESS_OUTS * row_room),
                             row_room };
    struct counts all = { 0 };
    if (job.counts && job.scratch)
        team_run(team, count_groups, &job);
    for (uint32_t i = 0; job.counts && job.scratch && i < n_threads; i++)
        for (uint32_t k = 0; k < 2; k++) {
            all.escapes[k] += job.counts[i].escapes[k];
            all.most[k] = job.counts[i].most[k] > all.most[k] ? job.counts[i].most[k] : all.most[k];
        }
    const enum status st =
        job.counts && job.scratch ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory to count weights");
    free(job.counts);
    free(job.scratch);
    if (!st)
        *counts_out = all;
    return st;
}

/* ---- from a pack ---- */

static enum status most_escapes(const struct model_tensor *t, uint32_t *most_out, struct error *err)
{
    const struct lossless_tensor *l = t->lossless;
    const uint64_t limit = (uint64_t)lossless_blocks(l->n_cols) * LOSSLESS_WEIGHTS;
    const uint32_t n_groups = lossless_groups(l->n_rows);
    uint32_t most = 0;
    bool good = l->starts[0] == 0 && l->starts[n_groups] == l->n_escapes;
    for (uint32_t g = 0; g < n_groups && good; g++) {
        good = l->starts[g + 1] >= l->starts[g] && l->starts[g + 1] - l->starts[g] <= limit;
        if (good && l->starts[g + 1] - l->starts[g] > most)
            most = (uint32_t)(l->starts[g + 1] - l->starts[g]);
    }
    if (!good)
        return error_set(err, ST_CORRUPT, "%s: tensor kind %d of layer %u: starts of the groups' escapes do not fit",
                         model_config(t->model)->name, (int)t->kind, t->layer);
    *most_out = most;
    return ST_OK;
}

enum status cpu_lossless_begin(struct team *team, uint32_t n_threads, const struct model_tensor *t,
                               struct linear_shape *shape, struct cpu_lossless *job_out, struct error *err)
{
    struct counts counts;
    uint32_t bits, most = 0;
    enum status st;
    job_out->tensor = t;
    atomic_init(&job_out->first_bad, lossless_groups(t->n_rows));
    if (t->lossless) {
        bits = t->lossless->class_bits;
        st = most_escapes(t, &most, err);
    } else {
        st = count_rows(team, n_threads, t, &counts, err);
        if (st)
            return st;
        bits = lossless_choose((uint64_t)t->n_rows * t->n_cols, counts.escapes[0], counts.escapes[1]);
        most = bits ? counts.most[bits - 3] : 0;
    }
    if (st)
        return st;
    shape->class_bits = bits;
    shape->escape_room = round_64(most);
    /* all groups have the room that the one with most escapes needs */
    struct linear_shape plain = *shape;
    plain.codec = WEIGHT_BF16;
    const struct linear_impl *c = &linear_impls[n_linear_impls - 1];
    if (!bits || c->group_bytes(shape) > c->group_bytes(&plain))
        *shape = plain;
    return ST_OK;
}

bool cpu_lossless_pack(struct cpu_lossless *job, const struct linear_shape *shape, uint32_t group, void *group_out)
{
    if (!job->tensor->lossless)
        return false;
    const struct lossless_group g = lossless_group_at(job->tensor->lossless, group);
    if (lossless_check(&g, "", group, NULL)) {
        uint32_t seen = atomic_load(&job->first_bad);
        while (group < seen && !atomic_compare_exchange_weak(&job->first_bad, &seen, group))
            ;
        return true;
    }
    if (shape->codec != WEIGHT_LOSSLESS_FAST)
        return false;
    linear_pack_lossless(shape, &g, group_out);
    return true;
}

enum status cpu_lossless_end(const struct cpu_lossless *job, struct error *err)
{
    const struct model_tensor *t = job->tensor;
    const uint32_t bad = atomic_load(&job->first_bad);
    char where[192];
    if (bad == lossless_groups(t->n_rows))
        return ST_OK;
    snprintf(where, sizeof where, "%s: tensor kind %d of layer %u", model_config(t->model)->name, (int)t->kind,
             t->layer);
    const struct lossless_group g = lossless_group_at(t->lossless, bad);
    return lossless_check(&g, where, bad, err);
}
