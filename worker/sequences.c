#include "worker/sequences.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/rng.h"

enum { BUCKETS = 1024 };

struct sequences {
    struct sequence *bucket[BUCKETS];
};

struct sequences *sequences_new(void)
{
    return calloc(1, sizeof(struct sequences));
}

static void sequence_free(struct sequence *s)
{
    free(s->table);
    free(s->slots);
    free(s->readers);
    free(s);
}

void sequences_free(struct sequences *all)
{
    for (int i = 0; all && i < BUCKETS; i++) {
        while (all->bucket[i]) {
            struct sequence *s = all->bucket[i];
            all->bucket[i] = s->next;
            sequence_free(s);
        }
    }
    free(all);
}

static struct sequence **find(struct sequences *all, uint64_t id)
{
    struct sequence **at = &all->bucket[mix64(id) % BUCKETS];
    while (*at && (*at)->id != id)
        at = &(*at)->next;
    return at;
}

const struct sequence *sequence_find(struct sequences *all, uint64_t id)
{
    return *find(all, id);
}

void sequence_forget(struct sequences *all, uint64_t id)
{
    struct sequence **at = find(all, id), *s = *at;
    if (!s)
        return;
    log_debug("request %s sequence %llu is forgotten after %u positions", s->label, (unsigned long long)id,
              s->committed);
    *at = s->next;
    sequence_free(s);
}

enum status sequences_ids(const struct sequences *all, uint64_t **ids_out, uint32_t *n_out)
{
    uint32_t n = 0;
    for (int i = 0; i < BUCKETS; i++)
        for (const struct sequence *s = all->bucket[i]; s; s = s->next)
            n++;
    uint64_t *ids = malloc((n + 1) * sizeof *ids);
    if (!ids)
        return ST_NO_MEMORY;
    *n_out = n;
    for (int i = 0; i < BUCKETS; i++)
        for (const struct sequence *s = all->bucket[i]; s; s = s->next)
            ids[--n] = s->id;
    *ids_out = ids;
    return ST_OK;
}

static bool reserve(void *p, uint32_t *room, uint32_t n, size_t size)
{
    void **at = p;
    if (n <= *room)
        return true;
    const uint32_t bigger = n + n / 2 + 16;
    void *q = realloc(*at, bigger * size);
    if (!q)
        return false;
    *at = q;
    *room = bigger;
    return true;
}

enum status sequence_update(struct sequences *all, const struct plan_seq *said, struct sequence **sequence_out,
                            struct error *err)
{
    struct sequence **at = find(all, said->id), *s = *at;
    if (!s) {
        s = calloc(1, sizeof *s);
        if (!s)
            return error_set(err, ST_NO_MEMORY, "no memory for a sequence");
        s->id = said->id;
        snprintf(s->label, sizeof s->label, "%.*s", (int)said->label_bytes, said->label_bytes ? said->label : "");
        *at = s;
        log_debug("request %s sequence %llu begins: %u positions are there", s->label, (unsigned long long)s->id,
                  said->committed);
    }
    if (said->fresh)
        s->n_table = s->n_readers = 0;
    if (said->table_from > s->n_table || said->reader_from > s->n_readers)
        return error_set(err, ST_PROTOCOL,
                         "sequence %llu: the plan continues at block %u and leaf %u, known are %u and %u",
                         (unsigned long long)said->id, said->table_from, said->reader_from, s->n_table, s->n_readers);
    const uint32_t n_table = said->table_from + said->n_table, n_readers = said->reader_from + said->n_readers;
    if (!reserve(&s->table, &s->table_room, n_table, sizeof *s->table) ||
        !reserve(&s->slots, &s->slots_room, n_table, sizeof *s->slots) ||
        !reserve(&s->readers, &s->readers_room, n_readers, sizeof *s->readers))
        return error_set(err, ST_NO_MEMORY, "no memory for a sequence");
    if (said->n_table) {
        memcpy(s->table + said->table_from, said->table, said->n_table * sizeof *s->table);
        memset(s->slots + said->table_from, 0xff, said->n_table * sizeof *s->slots);
    }
    if (said->n_readers)
        memcpy(s->readers + said->reader_from, said->readers, said->n_readers * sizeof *s->readers);
    s->n_table = n_table > s->n_table ? n_table : s->n_table;
    s->n_readers = n_readers > s->n_readers ? n_readers : s->n_readers;
    s->sampling = said->sampling;
    s->committed = said->committed;
    *sequence_out = s;
    return ST_OK;
}

void sequence_sampled(struct sequence *s, uint32_t pos, int32_t token)
{
    s->sampled[pos % SEQUENCE_SAMPLED].pos = pos;
    s->sampled[pos % SEQUENCE_SAMPLED].token = token;
}

int32_t sequence_token_after(const struct sequence *s, uint32_t pos)
{
    return s->sampled[pos % SEQUENCE_SAMPLED].pos == pos && s->n_table ? s->sampled[pos % SEQUENCE_SAMPLED].token : -1;
}
