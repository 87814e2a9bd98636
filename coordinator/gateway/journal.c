#include "coordinator/gateway/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/file.h"

/*
 * "LSJRNL02" context[16], then records: u32 bytes, u32 sum, payload: u8 choice, u32 first token, u32 n, n x (i32 token, f32 logprob, u8 n_top, n_top x (u32, f32)).
 * Little endian.
 */
static const char magic[8] = "LSJRNL02";
enum { HEAD_BYTES = 24, ROW_BYTES = 9, TOP_BYTES = 8, RECORD_BYTES_MAX = 64 << 20 };

static uint32_t sum_of(const void *data, size_t bytes)
{
    return (uint32_t)checksum64(data, bytes);
}

/* ---- writing ---- */

static void add_u32(struct text *out, uint32_t v)
{
    text_add(out, (const char *)&v, sizeof v);
}

static void add_f32(struct text *out, float v)
{
    text_add(out, (const char *)&v, sizeof v);
}

static void add_u8(struct text *out, uint8_t v)
{
    text_add(out, (const char *)&v, 1);
}

void journal_begin(const struct digest *context, struct text *out)
{
    text_add(out, magic, sizeof magic);
    text_add(out, (const char *)context->byte, sizeof context->byte);
}

void journal_add(const struct generation *g, size_t from, struct text *out)
{
    struct text payload = { 0 };
    if (from >= g->n_sampled)
        return;
    add_u8(&payload, (uint8_t)g->index);
    add_u32(&payload, (uint32_t)from);
    add_u32(&payload, (uint32_t)(g->n_sampled - from));
    for (size_t i = from; i < g->n_sampled; i++) {
        const struct generation_token *t = &g->tokens[i];
        add_u32(&payload, (uint32_t)t->id);
        add_f32(&payload, t->logprob);
        add_u8(&payload, t->n_top);
        for (uint32_t k = 0; k < t->n_top; k++) {
            add_u32(&payload, g->tops[t->top_from + k].token);
            add_f32(&payload, g->tops[t->top_from + k].logprob);
        }
    }
    out->bad = out->bad || payload.bad;
    if (!payload.bad) {
        add_u32(out, (uint32_t)payload.n);
        add_u32(out, sum_of(payload.data, payload.n));
        text_add(out, payload.data, payload.n);
    }
    text_free(&payload);
}

/* ---- reading ---- */

/* Rows of one choice, gathered as records come. */
struct column {
    struct result_row *rows; /* top: index into the tops + 1, until all are here */
    size_t n, room;
};

struct gather {
    struct column columns[WANT_CHOICES_MAX];
    struct result_top *tops;
    size_t n_tops, tops_room;
};

static bool room_for(void *items, size_t *room, size_t n, size_t size)
{
    void **at = items;
    if (n <= *room)
        return true;
    void *more = realloc(*at, 2 * n * size);
    if (!more)
        return false;
    *at = more;
    *room = 2 * n;
    return true;
}

static enum status row_read(struct gather *all, struct reader *r, struct result_row *row)
{
    *row = (struct result_row){ .token = (int32_t)reader_u32(r), .logprob = reader_f32(r), .n_top = reader_u8(r) };
    if (r->bad || row->token < 0 || isnan(row->logprob) || row->n_top > PLAN_TOP_MAX ||
        reader_left(r) < (size_t)row->n_top * TOP_BYTES)
        return ST_CORRUPT;
    if (!room_for(&all->tops, &all->tops_room, all->n_tops + row->n_top, sizeof *all->tops))
        return ST_NO_MEMORY;
    row->pos = (uint32_t)all->n_tops; /* until the tops have their place */
    for (uint32_t i = 0; i < row->n_top; i++) {
        const uint32_t token = reader_u32(r);
        all->tops[all->n_tops++] = (struct result_top){ token, reader_f32(r) };
    }
    return ST_OK;
}

static enum status record_read(struct gather *all, const uint8_t *data, size_t bytes)
{
    struct reader r = reader_of(data, bytes);
    const uint8_t choice = reader_u8(&r);
    const uint32_t first = reader_u32(&r), n = reader_u32(&r);
    if (r.bad || choice >= WANT_CHOICES_MAX || first > all->columns[choice].n || n > reader_left(&r) / ROW_BYTES)
        return ST_CORRUPT;
    struct column *c = &all->columns[choice];
    if (!room_for(&c->rows, &c->room, c->n + n, sizeof *c->rows))
        return ST_NO_MEMORY;
    for (uint32_t i = 0; i < n;
         i++) { /* behind those that are there: a record that is wrong further on changes nothing */
        const enum status st = row_read(all, &r, &c->rows[c->n + i]);
        if (st)
            return st;
    }
    if (reader_left(&r))
        return ST_CORRUPT;
    if (n)
        memmove(c->rows + first, c->rows + c->n, n * sizeof *c->rows); /* what it says again is as it says now */
    c->n = (size_t)first + n;
    return ST_OK;
}

/* Records up to the first that is not whole. -> bytes that were good */
static enum status records_read(struct gather *all, const uint8_t *data, size_t bytes, size_t *good_out)
{
    struct reader r = reader_of(data, bytes);
    *good_out = 0;
    while (reader_left(&r) >= 8) {
        const uint32_t n = reader_u32(&r), sum = reader_u32(&r);
        const uint8_t *payload = n <= RECORD_BYTES_MAX ? reader_take(&r, n) : NULL;
        if (!payload || sum_of(payload, n) != sum)
            return ST_OK;
        const enum status st = record_read(all, payload, n);
        if (st)
            return st == ST_CORRUPT ? ST_OK : st;
        *good_out += 8 + n;
    }
    return ST_OK;
}

static enum status gather_join(struct gather *all, struct journal *j)
{
    size_t n = 0, at = 0;
    for (uint32_t i = 0; i < WANT_CHOICES_MAX; i++)
        n += all->columns[i].n;
    j->rows = calloc(n + 1, sizeof *j->rows);
    if (!j->rows)
        return ST_NO_MEMORY;
    j->tops = all->tops;
    all->tops = NULL;
    for (uint32_t i = 0; i < WANT_CHOICES_MAX; i++) {
        const struct column *c = &all->columns[i];
        if (!c->n)
            continue;
        j->told[i] = (struct generation_told){ j->rows + at, c->n - 1 };
        j->n = i + 1;
        for (size_t k = 0; k < c->n; k++) {
            struct result_row *row = &j->rows[at++];
            *row = c->rows[k];
            row->top = row->n_top ? j->tops + row->pos : NULL;
            row->pos = 0;
        }
    }
    return ST_OK;
}

enum status journal_read(const void *data, size_t bytes, const struct digest *context, struct journal **journal_out)
{
    const uint8_t *at = data;
    if (bytes < HEAD_BYTES || memcmp(at, magic, sizeof magic) != 0 ||
        memcmp(at + sizeof magic, context->byte, sizeof context->byte) != 0)
        return ST_CORRUPT;
    struct gather *all = calloc(1, sizeof *all);
    struct journal *j = calloc(1, sizeof *j);
    size_t good = 0;
    enum status st = all && j ? records_read(all, at + HEAD_BYTES, bytes - HEAD_BYTES, &good) : ST_NO_MEMORY;
    if (!st)
        st = gather_join(all, j);
    for (uint32_t i = 0; all && i < WANT_CHOICES_MAX; i++)
        free(all->columns[i].rows);
    if (all)
        free(all->tops);
    free(all);
    if (st) {
        journal_free(j);
        return st;
    }
    j->bytes = HEAD_BYTES + good;
    *journal_out = j;
    return ST_OK;
}

void journal_free(struct journal *j)
{
    if (!j)
        return;
    free(j->rows);
    free(j->tops);
    free(j);
}

/* ---- files ---- */

enum status journal_append(const char *path, const void *data, size_t bytes, struct error *err)
{
    const int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    struct stat before;
    if (fd < 0 || fstat(fd, &before) < 0) {
        error_set(err, ST_IO, "%s: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return ST_IO;
    }
    size_t done = 0;
    while (done < bytes) {
        const ssize_t n = write(fd, (const char *)data + done, bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        done += (size_t)n;
    }
    enum status st = ST_OK;
    if (done < bytes) {
        st = error_set(err, ST_IO, "%s: %s", path, strerror(errno));
        if (ftruncate(fd, before.st_size) < 0)
            error_set(err, ST_IO, "%s: %s", path, strerror(errno)); /* what follows the torn record is not found */
    }
    close(fd);
    return st;
}

enum status journal_open(const char *path, const struct digest *context, struct journal **journal_out)
{
    char *data = NULL;
    size_t bytes = 0;
    struct text head = { 0 };
    enum status st = file_read(path, JOURNAL_BYTES_MAX, &data, &bytes, NULL);
    if (!st)
        st = journal_read(data, bytes, context, journal_out);
    free(data);
    if (!st) {
        if ((*journal_out)->bytes < bytes && truncate(path, (off_t)(*journal_out)->bytes) < 0)
            st = ST_IO;
        if (!st)
            return ST_OK;
        journal_free(*journal_out);
        *journal_out = NULL;
    }
    unlink(path);
    journal_begin(context, &head);
    if (!head.bad)
        journal_append(path, head.data, head.n, NULL);
    text_free(&head);
    return st;
}
