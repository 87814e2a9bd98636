#include "worker/cpu/df11.h"

#include <stdio.h>
#include <stdlib.h>

#include "worker/cpu/cpu.h"

static uint64_t round_64(uint64_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* ---- from rows: their exponents, and then the longest stream ---- */

struct member_sums {
    uint64_t counts[256];
    size_t longest;
};

struct count_job {
    const struct model_tensor *tensor;
    const struct df11_code *code; /* NULL: counting exponents */
    struct member_sums *sums;     /* [n_members] */
    uint8_t *scratch;             /* [n_members][DF11_OUTS] rows */
    size_t row_room;
};

static void count_groups(void *ctx, uint32_t member, uint32_t n_members)
{
    const struct count_job *job = ctx;
    const struct model_tensor *t = job->tensor;
    struct member_sums *mine = &job->sums[member];
    uint8_t *scratch = job->scratch + (size_t)member * DF11_OUTS * job->row_room;
    uint32_t begin, end;
    team_share(df11_groups(t->n_rows), member, n_members, &begin, &end);
    for (uint32_t g = begin; g < end; g++) {
        const uint16_t *rows[DF11_OUTS];
        for (uint32_t i = 0; i < DF11_OUTS; i++) {
            const uint32_t row = g * DF11_OUTS + i;
            rows[i] = row < t->n_rows ? model_tensor_row(t, row, scratch + i * job->row_room) : NULL;
            if (rows[i] && !job->code)
                df11_count(rows[i], t->n_cols, mine->counts);
        }
        const size_t bytes = job->code ? df11_stream_bytes(job->code, rows, t->n_cols) : 0;
        mine->longest = bytes > mine->longest ? bytes : mine->longest;
    }
}

static enum status learn(struct team *team, uint32_t n_threads, const struct model_tensor *t, struct df11_code *code,
                         size_t *longest_out, struct error *err)
{
    struct count_job job = { .tensor = t,
                             .sums = calloc(n_threads, sizeof *job.sums),
                             .row_room = (t->row_bytes + 63) / 64 * 64 };
    uint64_t counts[256] = { 0 };
    size_t longest = 0;
    job.scratch = cpu_alloc(n_threads * DF11_OUTS * job.row_room);
    bool good = job.sums && job.scratch;
    if (good) {
        team_run(team, count_groups, &job);
        for (uint32_t i = 0; i < n_threads; i++)
            for (uint32_t e = 0; e < 256; e++)
                counts[e] += job.sums[i].counts[e];
        good = df11_code_best(counts, code);
    }
    if (good) {
        job.code = code;
        team_run(team, count_groups, &job);
        for (uint32_t i = 0; i < n_threads; i++)
            longest = job.sums[i].longest > longest ? job.sums[i].longest : longest;
    }
    free(job.sums);
    free(job.scratch);
    *longest_out = longest;
    return good ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory to count weights");
}

/* ---- from a pack ---- */

static void name_tensor(const struct model_tensor *t, char out[192])
{
    snprintf(out, 192, "%s: tensor kind %d of layer %u", model_config(t->model)->name, (int)t->kind, t->layer);
}

static enum status longest_stream(const struct model_tensor *t, size_t *longest_out, struct error *err)
{
    const struct df11_tensor *d = t->df11;
    const uint64_t limit = ((uint64_t)df11_blocks(d->n_cols) * DF11_WEIGHTS * DF11_BITS + 7) / 8;
    const uint32_t n_groups = df11_groups(d->n_rows);
    uint64_t longest = 0;
    char where[192];
    bool good = d->starts[0] == 0 && d->starts[n_groups] == d->stream_bytes;
    for (uint32_t g = 0; g < n_groups && good; g++) {
        const uint64_t bytes = d->starts[g + 1] - d->starts[g];
        good = d->starts[g + 1] >= d->starts[g] && bytes <= limit;
        longest = bytes > longest ? bytes : longest;
    }
    name_tensor(t, where);
    if (!good)
        return error_set(err, ST_CORRUPT, "%s: starts of the groups' streams do not fit", where);
    *longest_out = (size_t)longest;
    return ST_OK;
}

enum status cpu_df11_begin(struct team *team, uint32_t n_threads, const struct model_tensor *t,
                           struct linear_shape *shape, struct df11_code *code, struct cpu_df11 *job_out,
                           struct error *err)
{
    const struct linear_impl *c = &linear_impls[n_linear_impls - 1];
    struct linear_shape plain = *shape;
    size_t longest = 0;
    enum status st;
    job_out->tensor = t;
    atomic_init(&job_out->first_bad, df11_groups(t->n_rows));
    if (t->df11) {
        *code = *t->df11->code;
        st = longest_stream(t, &longest, err);
    } else {
        st = learn(team, n_threads, t, code, &longest, err);
    }
    if (st)
        return st;
    shape->df11 = code;
    shape->stream_room = (uint32_t)round_64(longest);
    plain.codec = WEIGHT_BF16;
    if (c->group_bytes(shape) > c->group_bytes(&plain)) /* all groups have the room that the longest stream needs */
        *shape = plain;
    return ST_OK;
}

bool cpu_df11_pack(struct cpu_df11 *job, const struct linear_shape *shape, uint32_t group, void *group_out)
{
    if (!job->tensor->df11)
        return false;
    const struct df11_group g = df11_group_at(job->tensor->df11, group);
    if (df11_check(&g, "", group, NULL)) {
        uint32_t seen = atomic_load(&job->first_bad);
        while (group < seen && !atomic_compare_exchange_weak(&job->first_bad, &seen, group))
            ;
        return true;
    }
    if (shape->codec != WEIGHT_DF11)
        return false;
    linear_pack_df11(shape, &g, group_out);
    return true;
}

enum status cpu_df11_end(const struct cpu_df11 *job, struct error *err)
{
    const struct model_tensor *t = job->tensor;
    const uint32_t bad = atomic_load(&job->first_bad);
    char where[192];
    if (bad == df11_groups(t->n_rows))
        return ST_OK;
    name_tensor(t, where);
    const struct df11_group g = df11_group_at(t->df11, bad);
    return df11_check(&g, where, bad, err);
}
