#include "coordinator/gateway/keeper.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"

enum { EVERY_MS = 250 };

struct keeper {
    char path[KEEPER_PATH_MAX];
    struct journal *before; /* NULL: nothing was there */
    uint32_t refs;          /* the run, writes under way */
    bool writing, failed;
    size_t written[WANT_CHOICES_MAX]; /* tokens */
    int64_t at_ms[WANT_CHOICES_MAX];
};

/* A piece on its way to the disk. */
struct write {
    struct keeper *journal;
    struct text data;
    struct error err;
    enum status status;
};

struct keeper *keeper_open(const char *path, const struct digest *context)
{
    struct keeper *j = calloc(1, sizeof *j);
    if (!j || snprintf(j->path, sizeof j->path, "%s", path) >= (int)sizeof j->path) {
        free(j);
        return NULL;
    }
    j->refs = 1;
    if (journal_open(j->path, context, &j->before))
        j->before = NULL;
    for (uint32_t i = 0; j->before && i < j->before->n; i++)
        j->written[i] = j->before->told[i].n; /* the last token is written again */
    return j;
}

const struct generation_told *keeper_told(const struct keeper *j, uint32_t *n_out)
{
    *n_out = j->before ? j->before->n : 0;
    return j->before ? j->before->told : NULL;
}

static void journal_unref(struct keeper *j)
{
    if (--j->refs)
        return;
    journal_free(j->before);
    free(j);
}

void keeper_close(struct keeper *j)
{
    if (j)
        journal_unref(j);
}

static void piece_write(void *arg)
{
    struct write *w = arg;
    w->status = journal_append(w->journal->path, w->data.data, w->data.n, &w->err);
}

static void piece_written(void *arg)
{
    struct write *w = arg;
    struct keeper *j = w->journal;
    j->writing = false;
    if (w->status && !j->failed)
        log_error("%s; after a crash this answer goes on from what was written", w->err.text);
    j->failed = w->status != ST_OK;
    text_free(&w->data);
    free(w);
    journal_unref(j);
}

void keeper_note(struct keeper *j, struct helper *helper, const struct generation *g)
{
    const int64_t now = clock_ms();
    if (j->writing || j->failed || g->n_sampled <= j->written[g->index] || now - j->at_ms[g->index] < EVERY_MS)
        return;
    struct write *w = calloc(1, sizeof *w);
    if (!w)
        return;
    w->journal = j;
    j->at_ms[g->index] = now;
    journal_add(g, j->written[g->index], &w->data);
    if (w->data.bad || helper_run(helper, piece_write, piece_written, w)) {
        text_free(&w->data);
        free(w);
        return;
    }
    j->refs++;
    j->writing = true;
    j->written[g->index] = g->n_sampled;
}
