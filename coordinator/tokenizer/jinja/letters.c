#include "coordinator/tokenizer/jinja/letters.h"

#include <string.h>

#include <utf8proc.h>

#include "coordinator/tokenizer/unicode.h"

static bool is_letter(uint32_t point)
{
    const utf8proc_category_t c = point < 0x110000 ? utf8proc_category((utf8proc_int32_t)point) : 0;
    return c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LL || c == UTF8PROC_CATEGORY_LT;
}

static uint32_t in_case(uint32_t point, enum jinja_case how, bool first, bool in_word)
{
    if (point >= 0x110000)
        return point;
    const utf8proc_int32_t p = (utf8proc_int32_t)point;
    switch (how) {
    case JINJA_UPPER:
        return (uint32_t)utf8proc_toupper(p);
    case JINJA_LOWER:
        return (uint32_t)utf8proc_tolower(p);
    case JINJA_TITLE:
        return (uint32_t)(in_word ? utf8proc_tolower(p) : utf8proc_totitle(p));
    case JINJA_CAPITALIZE:
        break;
    }
    return (uint32_t)(first ? utf8proc_totitle(p) : utf8proc_tolower(p));
}

struct jinja_value jinja_letters(struct jinja_run *r, struct jinja_text *t, enum jinja_case how)
{
    const struct jinja_value out = jinja_text_new(r);
    size_t cap = 0;
    bool in_word = false, first = true;
    if (!jinja_steps(r, t->bytes / 8))
        return out;
    for (size_t i = 0; i < t->n_parts && !r->st; i++) {
        const uint8_t *p = (const uint8_t *)t->parts[i].text, *end = p + t->parts[i].bytes;
        size_t size = 0;
        uint8_t *copy = jinja_new(r, t->parts[i].bytes, 4); /* no case of a character takes more than four bytes */
        while (copy && p < end) {
            uint32_t point;
            const uint32_t n = utf8_next(p, end, &point);
            if (point == UTF8_BAD)
                copy[size++] = *p;
            else
                size += utf8_put(in_case(point, how, first, in_word), copy + size);
            in_word = is_letter(point);
            first = false;
            p += n;
        }
        if (copy)
            jinja_text_add(r, out.text, &cap, (const char *)copy, size, t->parts[i].foreign);
    }
    return out;
}

struct jinja_value jinja_items(struct jinja_run *r, struct jinja_value v)
{
    const struct jinja_value list = jinja_list(r, JINJA_IS_LIST, v.dict->n);
    for (size_t i = 0; i < v.dict->n && !r->st; i++) {
        const struct jinja_value pair = jinja_list(r, JINJA_IS_TUPLE, 2);
        jinja_list_add(r, pair, v.dict->entries[i].key);
        jinja_list_add(r, pair, v.dict->entries[i].value);
        jinja_list_add(r, list, pair);
    }
    return list;
}
