#include "client/eval/configs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"

static enum status take(const char *from, size_t bytes, char *out, size_t room, const char *whole, struct error *err)
{
    if (bytes == 0 || bytes >= room)
        return error_set(err, ST_INVALID, "--configs: '%s' is not CODEC:SELECTOR[@DENSITY][:WEIGHTS]", whole);
    memcpy(out, from, bytes);
    out[bytes] = 0;
    return ST_OK;
}

/* What follows the codec: +w and a number below 2^24, +late. */
static enum status take_variant(struct eval_config *c, struct error *err)
{
    char *at = strchr(c->kv_codec, '+');
    c->varied = at != NULL;
    if (at)
        *at++ = 0;
    for (char *next; at; at = next) {
        if ((next = strchr(at, '+')))
            *next++ = 0;
        char *end = at;
        const unsigned long n = at[0] == 'w' && at[1] >= '0' && at[1] <= '9' ? strtoul(at + 1, &end, 10) : 0;
        if (!strcmp(at, "late"))
            c->late = true;
        else if (end > at && !*end && n < 1 << 24)
            c->window = (uint32_t)n;
        else
            return error_set(err, ST_INVALID, "--configs: '%s': behind a codec's + stands wN or late, not '%s'",
                             c->text, at);
    }
    return c->kv_codec[0] ? ST_OK : error_set(err, ST_INVALID, "--configs: '%s': no codec before +", c->text);
}

static enum status parse_one(const char *text, size_t bytes, struct eval_config *c, struct error *err)
{
    char shown[sizeof c->text];
    snprintf(shown, sizeof shown, "%.*s", (int)(bytes < sizeof shown ? bytes : sizeof shown - 1), text);
    *c = (struct eval_config){ 0 };
    const char *end = text + bytes, *first = memchr(text, ':', bytes);
    if (!first)
        return error_set(err, ST_INVALID, "--configs: '%s' is not CODEC:SELECTOR[@DENSITY][:WEIGHTS]", shown);
    const char *second = memchr(first + 1, ':', (size_t)(end - first - 1)), *stop = second ? second : end;
    enum status st = take(text, bytes, c->text, sizeof c->text, shown, err);
    if (!st)
        st = take(text, (size_t)(first - text), c->kv_codec, sizeof c->kv_codec, shown, err);
    if (!st)
        st = take_variant(c, err);
    if (!st)
        st = take(first + 1, (size_t)(stop - first - 1), c->selector, sizeof c->selector, shown, err);
    if (!st && second)
        st = take(second + 1, (size_t)(end - second - 1), c->weights, sizeof c->weights, shown, err);
    return st;
}

enum status eval_configs_parse(const char *text, struct eval_config *configs_out, uint32_t *n_out, struct error *err)
{
    uint32_t n = 0;
    for (const char *at = text;;) {
        const size_t bytes = strcspn(at, ",");
        if (n == EVAL_CONFIGS_MAX)
            return error_set(err, ST_INVALID, "--configs: more than %d", EVAL_CONFIGS_MAX);
        const enum status st = parse_one(at, bytes, &configs_out[n++], err);
        if (st)
            return st;
        if (!at[bytes])
            break;
        at += bytes + 1;
    }
    *n_out = n;
    return ST_OK;
}

static enum status parse_task(const char *text, size_t bytes, struct eval_wanted *w, struct error *err)
{
    char name[sizeof w->text], *end, *at;
    *w = (struct eval_wanted){ 0 };
    snprintf(name, sizeof name, "%.*s", (int)(bytes < sizeof name ? bytes : sizeof name - 1), text);
    memcpy(w->text, name, sizeof name);
    if ((at = strchr(name, '@'))) {
        *at++ = 0;
        const unsigned long n = strtoul(at, &end, 10);
        if (*at < '0' || *at > '9' || *end || n < 256 || n > 1 << 24)
            return error_set(err, ST_INVALID, "--tasks: '%s': a length from 256 to %d is wanted behind @", w->text,
                             1 << 24);
        w->length = (uint32_t)n;
    }
    w->task = eval_task_find(name);
    return w->task ? ST_OK : error_set(err, ST_INVALID, "--tasks: there is no task '%s'", name);
}

enum status eval_tasks_parse(const char *text, struct eval_wanted *wanted_out, uint32_t *n_out, struct error *err)
{
    uint32_t n = 0;
    for (const char *at = text; *text;) {
        const size_t bytes = strcspn(at, ",");
        if (n == EVAL_TASKS_MAX)
            return error_set(err, ST_INVALID, "--tasks: more than %d", EVAL_TASKS_MAX);
        const enum status st = parse_task(at, bytes, &wanted_out[n], err);
        if (st)
            return st;
        for (uint32_t i = 0; i < n; i++)
            if (!strcmp(wanted_out[i].text, wanted_out[n].text))
                return error_set(err, ST_INVALID, "--tasks: '%s' twice", wanted_out[n].text);
        n++;
        if (!at[bytes])
            break;
        at += bytes + 1;
    }
    *n_out = n;
    return ST_OK;
}

uint64_t eval_window_at(uint64_t seed, uint32_t i, uint64_t n_tokens, uint64_t length)
{
    return rng_at(seed, i, 0) % (n_tokens - length + 1);
}
