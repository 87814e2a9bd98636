#include "common/text.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"

void text_free(struct text *t)
{
    free(t->data);
    *t = (struct text){ 0 };
}

/* Room for bytes more; NULL (and bad) if there is none. */
static char *text_room(struct text *t, size_t bytes)
{
    size_t need;
    if (t->bad || !size_add(t->n, bytes, &need))
        goto bad;
    if (need > t->room) {
        size_t room = t->room ? t->room : 256;
        while (room < need)
            if (!size_mul(room, 2, &room))
                goto bad;
        char *data = realloc(t->data, room);
        if (!data)
            goto bad;
        t->data = data;
        t->room = room;
    }
    return t->data + t->n;
bad:
    t->bad = true;
    return NULL;
}

void text_add(struct text *t, const void *data, size_t bytes)
{
    char *at = bytes ? text_room(t, bytes) : NULL;
    if (!at)
        return;
    memcpy(at, data, bytes);
    t->n += bytes;
}

void text_str(struct text *t, const char *s)
{
    text_add(t, s, strlen(s));
}

const char *text_terminated(struct text *t)
{
    char *at = text_room(t, 1);
    if (!at)
        return NULL;
    *at = '\0';
    return t->data;
}

void text_printf(struct text *t, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    const int n = vsnprintf(NULL, 0, format, args);
    char *at = n >= 0 ? text_room(t, (size_t)n + 1) : NULL;
    if (at) {
        vsnprintf(at, (size_t)n + 1, format, again);
        t->n += (size_t)n;
    }
    va_end(again);
    va_end(args);
}

size_t text_char(const char *data, size_t bytes)
{
    const unsigned char *p = (const unsigned char *)data;
    if (!bytes)
        return 0;
    if (p[0] < 0x80)
        return 1;
    const size_t n = p[0] >= 0xF0 ? 4 : p[0] >= 0xE0 ? 3 : 2;
    if (p[0] < 0xC2 || p[0] > 0xF4 || n > bytes)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xC0) != 0x80)
            return 0;
    /* overlong forms, surrogates, beyond U+10FFFF */
    if ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] > 0x9F) || (p[0] == 0xF0 && p[1] < 0x90) ||
        (p[0] == 0xF4 && p[1] > 0x8F))
        return 0;
    return n;
}

bool text_valid(const char *data, size_t bytes)
{
    for (size_t i = 0, c; i < bytes; i += c)
        if (!(c = text_char(data + i, bytes - i)))
            return false;
    return true;
}

/* What must be escaped: the length of the plain run is found first, so that long texts are copied in long pieces. */
static size_t plain_run(const char *data, size_t bytes)
{
    size_t i = 0;
    while (i < bytes) {
        const unsigned char c = (unsigned char)data[i];
        if (c < 0x20 || c == '"' || c == '\\' || c == 0x7F)
            break;
        if (c < 0x80) {
            i++;
            continue;
        }
        const size_t n = text_char(data + i, bytes - i);
        if (!n)
            break;
        i += n;
    }
    return i;
}

static void json_escape(struct text *t, unsigned char c)
{
    static const char named[] = "b"
                                "t"
                                "n"
                                "\0"
                                "f"
                                "r";
    if (c >= 0x80)
        text_str(t, "\xEF\xBF\xBD");
    else if (c == '"' || c == '\\')
        text_printf(t, "\\%c", c);
    else if (c >= 8 && c <= 13 && named[c - 8])
        text_printf(t, "\\%c", named[c - 8]);
    else
        text_printf(t, "\\u%04x", c);
}

void text_json(struct text *t, const char *data, size_t bytes)
{
    text_add(t, "\"", 1);
    for (size_t i = 0; i < bytes;) {
        const size_t n = plain_run(data + i, bytes - i);
        text_add(t, data + i, n);
        i += n;
        if (i < bytes)
            json_escape(t, (unsigned char)data[i++]);
    }
    text_add(t, "\"", 1);
}

void text_json_str(struct text *t, const char *s)
{
    text_json(t, s, strlen(s));
}

void text_utf8(struct text *t, const char *data, size_t bytes)
{
    for (size_t i = 0; i < bytes;) {
        size_t n = 0;
        for (size_t c; i + n < bytes && (c = text_char(data + i + n, bytes - i - n)); n += c)
            ;
        text_add(t, data + i, n);
        i += n;
        if (i < bytes) {
            text_str(t, "\xEF\xBF\xBD");
            i++;
        }
    }
}

void text_float(struct text *t, float value)
{
    if (isnan(value))
        text_str(t, "null");
    else if (isinf(value))
        text_str(t, value < 0 ? "-9999.0" : "9999.0");
    else
        text_printf(t, value == truncf(value) && fabsf(value) < 1e6f ? "%.1f" : "%.9g", (double)value);
}
