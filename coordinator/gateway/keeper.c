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
    struct keeper *keeper;
    struct text data;
    struct error err;
    enum status status;
};

struct keeper *keeper_open(const char *path, const struct digest *context)
{
    struct keeper *k = calloc(1, sizeof *k);
    if (!k || snprintf(k->path, sizeof k->path, "%s", path) >= (int)sizeof k->path) {
        free(k);
        return NULL;
    }
    k->refs = 1;
    if (journal_open(k->path, context, &k->before))
        k->before = NULL;
    for (uint32_t i = 0; k->before && i < k->before->n; i++)
        k->written[i] = k->before->told[i].n; /* the last token is written again */
    return k;
}

const struct generation_told *keeper_told(const struct keeper *k, uint32_t *n_out)
{
    *n_out = k->before ? k->before->n : 0;
    return k->before ? k->before->told : NULL;
}

static void keeper_unref(struct keeper *k)
{
    if (--k->refs)
        return;
    journal_free(k->before);
    free(k);
}

void keeper_close(struct keeper *k)
{
    if (k)
        keeper_unref(k);
}

static void piece_write(void *arg)
{
    struct write *w = arg;
    w->status = journal_append(w->keeper->path, w->data.data, w->data.n, &w->err);
}

static void piece_written(void *arg)
{
    struct write *w = arg;
    struct keeper *k = w->keeper;
    k->writing = false;
    if (w->status && !k->failed)
        log_error("%s; after a crash this answer goes on from what was written", w->err.text);
    k->failed = w->status != ST_OK;
    text_free(&w->data);
    free(w);
    keeper_unref(k);
}

void keeper_note(struct keeper *k, struct helper *helper, const struct generation *g)
{
    const int64_t now = clock_ms();
    if (k->writing || k->failed || g->n_sampled <= k->written[g->index] || now - k->at_ms[g->index] < EVERY_MS)
        return;
    struct write *w = calloc(1, sizeof *w);
    if (!w)
        return;
    w->keeper = k;
    k->at_ms[g->index] = now;
    journal_add(g, k->written[g->index], &w->data);
    if (w->data.bad || helper_run(helper, piece_write, piece_written, w)) {
        text_free(&w->data);
        free(w);
        return;
    }
    k->refs++;
    k->writing = true;
    k->written[g->index] = g->n_sampled;
}
