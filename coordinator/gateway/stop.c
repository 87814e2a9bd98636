#include "coordinator/gateway/stop.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Knuth, Morris and Pratt: fail[i] is the length of the longest proper border of the first i bytes. */
struct pattern {
    char *data;
    size_t bytes, matched;
    uint16_t *fail;
};

struct stop {
    size_t n, fed;
    struct pattern patterns[STOP_MAX];
};

static void pattern_prepare(struct pattern *p)
{
    p->fail[0] = p->fail[1] = 0;
    size_t k = 0;
    for (size_t i = 1; i < p->bytes; i++) {
        while (k && p->data[k] != p->data[i])
            k = p->fail[k];
        k += p->data[k] == p->data[i];
        p->fail[i + 1] = (uint16_t)k;
    }
}

enum status stop_new(const struct stop_string *strings, size_t n, struct stop **stop_out)
{
    if (n > STOP_MAX)
        return ST_INVALID;
    struct stop *s = calloc(1, sizeof *s);
    if (!s)
        return ST_NO_MEMORY;
    for (; s->n < n; s->n++) {
        struct pattern *p = &s->patterns[s->n];
        p->bytes = strings[s->n].bytes;
        if (!p->bytes || p->bytes > STOP_BYTES_MAX) {
            stop_free(s);
            return ST_INVALID;
        }
        p->data = malloc(p->bytes);
        p->fail = calloc(p->bytes + 1, sizeof *p->fail);
        if (!p->data || !p->fail) {
            s->n++;
            stop_free(s);
            return ST_NO_MEMORY;
        }
        memcpy(p->data, strings[s->n].data, p->bytes);
        pattern_prepare(p);
    }
    *stop_out = s;
    return ST_OK;
}

struct stop *stop_again(const struct stop *s)
{
    struct stop_string strings[STOP_MAX];
    struct stop *again = NULL;
    for (size_t i = 0; i < s->n; i++)
        strings[i] = (struct stop_string){ s->patterns[i].data, s->patterns[i].bytes };
    return stop_new(strings, s->n, &again) ? NULL : again;
}

void stop_free(struct stop *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n; i++) {
        free(s->patterns[i].data);
        free(s->patterns[i].fail);
    }
    free(s);
}

static bool pattern_step(struct pattern *p, char c)
{
    while (p->matched && p->data[p->matched] != c)
        p->matched = p->fail[p->matched];
    p->matched += p->data[p->matched] == c;
    return p->matched == p->bytes;
}

bool stop_push(struct stop *s, const char *data, size_t bytes, size_t *end_out)
{
    if (!s->n) {
        s->fed += bytes;
        return false;
    }
    for (size_t i = 0; i < bytes; i++) {
        s->fed++;
        size_t longest = 0;
        for (size_t k = 0; k < s->n; k++)
            if (pattern_step(&s->patterns[k], data[i]) && s->patterns[k].bytes > longest)
                longest = s->patterns[k].bytes;
        if (longest) {
            *end_out = s->fed - longest;
            return true;
        }
    }
    return false;
}

size_t stop_held(const struct stop *s)
{
    size_t held = 0;
    for (size_t k = 0; k < s->n; k++)
        if (s->patterns[k].matched > held)
            held = s->patterns[k].matched;
    return held;
}
