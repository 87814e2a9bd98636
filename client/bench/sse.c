#include "client/bench/sse.h"

#include <stdlib.h>
#include <string.h>

static enum status append(char **to, size_t *bytes, size_t *room, size_t max, const char *data, size_t n,
                          struct error *err)
{
    if (n > max || *bytes > max - n)
        return error_set(err, ST_TOO_LARGE, "an event of over %zu bytes", max);
    if (*bytes + n + 1 > *room) {
        const size_t want = (*bytes + n + 1) * 2;
        char *bigger = realloc(*to, want);
        if (!bigger)
            return error_set(err, ST_NO_MEMORY, "no memory");
        *to = bigger;
        *room = want;
    }
    memcpy(*to + *bytes, data, n);
    *bytes += n;
    (*to)[*bytes] = 0;
    return ST_OK;
}

static enum status whole_line(struct sse *s, sse_event_fn *on_event, void *user, struct error *err)
{
    const char *line = s->line_bytes ? s->line : "";
    size_t n = s->line_bytes;
    s->line_bytes = 0;
    if (!n) { /* an empty line sends the event */
        if (s->has_data)
            on_event(user, s->data_bytes ? s->data : "", s->data_bytes);
        s->data_bytes = 0;
        s->has_data = false;
        return ST_OK;
    }
    if (n < 4 || memcmp(line, "data", 4) != 0 || (n > 4 && line[4] != ':'))
        return ST_OK;
    line += n > 4 ? 5 : 4;
    n -= n > 4 ? 5 : 4;
    if (n && line[0] == ' ') {
        line++;
        n--;
    }
    enum status st = ST_OK;
    if (s->has_data)
        st = append(&s->data, &s->data_bytes, &s->data_room, s->event_max, "\n", 1, err);
    s->has_data = true;
    return st ? st : append(&s->data, &s->data_bytes, &s->data_room, s->event_max, line, n, err);
}

/* Lines end in LF, CR or CR LF. */
enum status sse_feed(struct sse *s, const char *data, size_t bytes, sse_event_fn *on_event, void *user,
                     struct error *err)
{
    enum status st = ST_OK;
    size_t at = 0;
    while (!st && at < bytes) {
        if (s->after_cr && data[at] == '\n') {
            s->after_cr = false;
            at++;
            continue;
        }
        s->after_cr = false;
        size_t n = 0;
        while (at + n < bytes && data[at + n] != '\n' && data[at + n] != '\r')
            n++;
        st = append(&s->line, &s->line_bytes, &s->line_room, s->event_max, data + at, n, err);
        at += n;
        if (st || at == bytes)
            break;
        s->after_cr = data[at++] == '\r';
        st = whole_line(s, on_event, user, err);
    }
    return st;
}

void sse_free(struct sse *s)
{
    const size_t event_max = s->event_max;
    free(s->line);
    free(s->data);
    *s = (struct sse){ .event_max = event_max };
}
