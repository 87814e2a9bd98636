#define _GNU_SOURCE /* memmem */
#include <string.h>

#include "coordinator/tokenizer/jinja/value.h"
#include "coordinator/tokenizer/unicode.h"

struct jinja_value jinja_text_new(struct jinja_run *r)
{
    struct jinja_text *t = jinja_new(r, 1, sizeof *t);
    return t ? (struct jinja_value){ .kind = JINJA_IS_TEXT, .text = t } : jinja_undefined("");
}

struct jinja_value jinja_text_of(struct jinja_run *r, const char *text, size_t bytes, bool foreign)
{
    struct {
        struct jinja_text t;
        struct jinja_part part;
    } *both = jinja_new(r, 1, sizeof *both);
    if (!both)
        return jinja_undefined("");
    both->part = (struct jinja_part){ text, bytes, foreign };
    both->t = (struct jinja_text){ .bytes = bytes, .n_parts = bytes > 0, .parts = &both->part };
    return (struct jinja_value){ .kind = JINJA_IS_TEXT, .text = &both->t };
}

struct jinja_value jinja_text_copy(struct jinja_run *r, const char *text, size_t bytes, bool foreign)
{
    char *copy = jinja_new(r, bytes + 1, 1);
    if (!copy)
        return jinja_undefined("");
    if (bytes > 0)
        memcpy(copy, text, bytes);
    const struct jinja_value v = jinja_text_of(r, copy, bytes, foreign);
    if (!r->st)
        v.text->flat = copy;
    return v;
}

void jinja_text_add(struct jinja_run *r, struct jinja_text *to, size_t *cap, const char *text, size_t bytes,
                    bool foreign)
{
    if (bytes == 0 || !jinja_steps(r, 1))
        return;
    if (bytes > r->in->memory_max - to->bytes) {
        jinja_fail(r, ST_TOO_LARGE, "it writes more than %zu bytes", r->in->memory_max);
        return;
    }
    if (to->n_parts == *cap) {
        const size_t more = *cap ? *cap * 2 : 8;
        struct jinja_part *grown = jinja_new(r, more, sizeof *grown);
        if (!grown)
            return;
        if (to->n_parts > 0)
            memcpy(grown, to->parts, to->n_parts * sizeof *grown);
        to->parts = grown;
        *cap = more;
    }
    to->parts[to->n_parts++] = (struct jinja_part){ text, bytes, foreign };
    to->bytes += bytes;
    to->flat = NULL;
}

void jinja_text_add_text(struct jinja_run *r, struct jinja_text *to, size_t *cap, const struct jinja_text *from)
{
    for (size_t i = 0; i < from->n_parts && !r->st; i++)
        jinja_text_add(r, to, cap, from->parts[i].text, from->parts[i].bytes, from->parts[i].foreign);
}

/* The parts then point into the one piece, so that what is cut from it needs no copy of its own. */
const char *jinja_flat(struct jinja_run *r, struct jinja_text *t)
{
    if (t->flat)
        return t->flat;
    if (t->n_parts < 2)
        return t->flat = t->n_parts ? t->parts[0].text : "";
    char *flat = jinja_steps(r, t->bytes / 64) ? jinja_new(r, t->bytes, 1) : NULL;
    if (!flat)
        return "";
    size_t at = 0;
    for (size_t i = 0; i < t->n_parts; i++) {
        memcpy(flat + at, t->parts[i].text, t->parts[i].bytes);
        t->parts[i].text = flat + at;
        at += t->parts[i].bytes;
    }
    t->flat = flat;
    return flat;
}

struct jinja_value jinja_text_part(struct jinja_run *r, struct jinja_text *t, size_t from, size_t to)
{
    const struct jinja_value v = jinja_text_new(r);
    size_t at = 0, cap = 0;
    if (r->st)
        return v;
    for (size_t i = 0; i < t->n_parts && at < to; i++) {
        const struct jinja_part *p = &t->parts[i];
        const size_t begin = from > at ? from - at : 0, end = to - at < p->bytes ? to - at : p->bytes;
        if (begin < end)
            jinja_text_add(r, v.text, &cap, p->text + begin, end - begin, p->foreign);
        at += p->bytes;
    }
    return v;
}

bool jinja_text_is(struct jinja_run *r, struct jinja_value v, const char *text)
{
    const size_t n = strlen(text);
    return v.kind == JINJA_IS_TEXT && v.text->bytes == n && memcmp(jinja_flat(r, v.text), text, n) == 0 && !r->st;
}

bool jinja_text_foreign(const struct jinja_text *t)
{
    for (size_t i = 0; i < t->n_parts; i++) {
        if (t->parts[i].foreign)
            return true;
    }
    return false;
}

struct jinja_value jinja_concat(struct jinja_run *r, struct jinja_value a, struct jinja_value b)
{
    const struct jinja_value v = jinja_text_new(r);
    if (r->st)
        return v;
    const size_t n = a.text->n_parts + b.text->n_parts;
    size_t cap = n;
    v.text->parts = n > 0 ? jinja_new(r, n, sizeof *v.text->parts) : NULL;
    jinja_text_add_text(r, v.text, &cap, a.text);
    jinja_text_add_text(r, v.text, &cap, b.text);
    return v;
}

size_t jinja_find(struct jinja_run *r, struct jinja_text *text, size_t from, const char *needle, size_t bytes)
{
    const char *flat = jinja_flat(r, text);
    if (r->st || from > text->bytes || bytes > text->bytes - from)
        return SIZE_MAX;
    if (bytes == 0)
        return from;
    const char *p = memmem(flat + from, text->bytes - from, needle, bytes);
    jinja_steps(r, (p ? (size_t)(p - flat) - from : text->bytes - from) / 64);
    return p ? (size_t)(p - flat) : SIZE_MAX;
}

/* What Python's str.isspace() says of a character. */
static bool is_space(uint32_t point)
{
    return text_class_of(point) == TEXT_SPACE || (point >= 0x1C && point <= 0x1F);
}

static bool is_stripped(uint32_t point, const char *set, size_t set_bytes)
{
    uint32_t one;
    if (!set)
        return is_space(point);
    const uint8_t *p = (const uint8_t *)set, *end = p + set_bytes;
    for (; p < end; p += utf8_next(p, end, &one)) {
        utf8_next(p, end, &one);
        if (one == point)
            return true;
    }
    return false;
}

/* The character that ends at `end`. */
static const uint8_t *previous(const uint8_t *begin, const uint8_t *end, uint32_t *point_out)
{
    const uint8_t *p = end - 1;
    while (p > begin && end - p < 4 && (*p & 0xC0) == 0x80)
        p--;
    if (p + utf8_next(p, end, point_out) == end)
        return p;
    *point_out = UTF8_BAD;
    return end - 1;
}

struct jinja_value jinja_strip(struct jinja_run *r, struct jinja_text *t, struct jinja_text *set, bool left, bool right)
{
    const uint8_t *begin = (const uint8_t *)jinja_flat(r, t), *end, *from, *to;
    const char *characters = set ? jinja_flat(r, set) : NULL;
    const size_t n = set ? set->bytes : 0;
    uint32_t point;
    if (r->st)
        return jinja_undefined("");
    from = begin;
    to = end = begin + t->bytes;
    while (left && from < end) {
        const uint32_t bytes = utf8_next(from, end, &point);
        if (!is_stripped(point, characters, n))
            break;
        from += bytes;
    }
    while (right && to > from) {
        const uint8_t *p = previous(from, to, &point);
        if (!is_stripped(point, characters, n))
            break;
        to = p;
    }
    jinja_steps(r, (t->bytes - (size_t)(to - from)) * (n + 1) / 16);
    return jinja_text_part(r, t, (size_t)(from - begin), (size_t)(to - begin));
}

size_t jinja_points(struct jinja_run *r, struct jinja_text *t)
{
    size_t n = 0;
    if (!jinja_steps(r, t->bytes / 64))
        return 0;
    for (size_t i = 0; i < t->n_parts; i++) {
        const struct jinja_part *p = &t->parts[i];
        for (size_t k = 0; k < p->bytes; k++)
            n += ((unsigned char)p->text[k] & 0xC0) != 0x80;
    }
    return n;
}

size_t jinja_point_at(struct jinja_run *r, struct jinja_text *t, size_t i)
{
    const char *flat = jinja_flat(r, t);
    size_t at = 0;
    if (r->st)
        return 0;
    for (; at < t->bytes; at++) {
        if (((unsigned char)flat[at] & 0xC0) != 0x80 && i-- == 0)
            break;
    }
    jinja_steps(r, at / 64);
    return at;
}
