#include "client/bench/sse.h"

#include <string.h>

static enum status append(struct text *to, size_t max, const char *data, size_t n, struct error *err)
{
    if (n > max || to->n > max - n)
        return error_set(err, ST_TOO_LARGE, "an event of over %zu bytes", max);
    text_add(to, data, n);
    return to->bad ? error_set(err, ST_NO_MEMORY, "no memory") : ST_OK;
}

static enum status send_event(struct sse *s, sse_event_fn *on_event, void *user, struct error *err)
{
    const char *data = text_terminated(&s->data);
    if (!data)
        return error_set(err, ST_NO_MEMORY, "no memory");
    on_event(user, data, s->data.n);
    return ST_OK;
}

static enum status whole_line(struct sse *s, sse_event_fn *on_event, void *user, struct error *err)
{
    const char *line = s->line.data;
    size_t n = s->line.n;
    enum status st = ST_OK;
    s->line.n = 0;
    if (!n) { /* an empty line sends the event */
        if (s->has_data)
            st = send_event(s, on_event, user, err);
        s->data.n = 0;
        s->has_data = false;
        return st;
    }
    if (n < 4 || memcmp(line, "data", 4) != 0 || (n > 4 && line[4] != ':'))
        return ST_OK;
    line += n > 4 ? 5 : 4;
    n -= n > 4 ? 5 : 4;
    if (n && line[0] == ' ') {
        line++;
        n--;
    }
    if (s->has_data)
        st = append(&s->data, s->event_max, "\n", 1, err);
    s->has_data = true;
    return st ? st : append(&s->data, s->event_max, line, n, err);
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
        st = append(&s->line, s->event_max, data + at, n, err);
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
    text_free(&s->line);
    text_free(&s->data);
    *s = (struct sse){ .event_max = event_max };
}
