#include "coordinator/tokenizer/template.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { TEMPLATE_BYTES_MAX = 1 << 20 };

/* ---- lexing ---- */

struct lexer {
    const char *at, *end;
    char *out; /* room for the longest form of the whole text */
    size_t n;
    bool trim_next;   /* the last tag ended with a dash */
    bool after_block; /* the last tag was {% %} or {# #}: trim_blocks takes one line end after it */
};

static void put(struct lexer *l, const char *text, size_t bytes)
{
    memcpy(l->out + l->n, text, bytes);
    l->n += bytes;
}

static void put_quoted(struct lexer *l, char c)
{
    const char *escape = c == '\n'   ? "\\n"
                         : c == '\t' ? "\\t"
                         : c == '\r' ? "\\r"
                         : c == '"'  ? "\\\""
                         : c == '\\' ? "\\\\"
                                     : NULL;
    if (escape)
        put(l, escape, 2);
    else
        put(l, &c, 1);
}

static bool starts(const struct lexer *l, const char *text)
{
    const size_t n = strlen(text);
    return (size_t)(l->end - l->at) >= n && memcmp(l->at, text, n) == 0;
}

static bool is_tag_start(const char *p, const char *end)
{
    return end - p >= 2 && p[0] == '{' && (p[1] == '{' || p[1] == '%' || p[1] == '#');
}

/* Text up to the next tag, trimmed as Jinja would; what is left of it becomes a line of its own. */
static void lex_text(struct lexer *l)
{
    const char *from = l->at, *to = from;
    while (to < l->end && !is_tag_start(to, l->end))
        to++;
    const bool tag_follows = to < l->end;
    const char *next = to;
    if (l->trim_next) {
        while (from < to && isspace((unsigned char)*from))
            from++;
    } else if (l->after_block && from < to && *from == '\n') {
        from++;
    }
    if (tag_follows && l->end - next > 2 && next[2] == '-') {
        while (to > from && isspace((unsigned char)to[-1]))
            to--;
    } else if (tag_follows && next[1] != '{') { /* lstrip_blocks: blanks between the start of the line and a block */
        const char *line = to;
        while (line > from && (line[-1] == ' ' || line[-1] == '\t'))
            line--;
        if (line == l->at || line[-1] == '\n')
            to = line;
    } else if (!tag_follows && to > from && to[-1] == '\n') { /* the template's last line end is not kept */
        to--;
    }
    if (to > from) {
        put(l, "TEXT \"", 6);
        for (; from < to; from++)
            put_quoted(l, *from);
        put(l, "\"\n", 2);
    }
    l->at = next;
}

static bool lex_string(struct lexer *l)
{
    const char quote = *l->at++;
    put(l, "\"", 1);
    for (;;) {
        if (l->at == l->end)
            return false;
        char c = *l->at++;
        if (c == quote)
            break;
        if (c == '\\') {
            if (l->at == l->end)
                return false;
            c = *l->at++;
            if (!strchr("nrt\\'\"", c) || c == '\0')
                return false;
            c = c == 'n' ? '\n' : c == 'r' ? '\r' : c == 't' ? '\t' : c;
        }
        put_quoted(l, c);
    }
    put(l, "\" ", 2);
    return true;
}

static bool is_word_char(char c)
{
    return isalnum((unsigned char)c) || c == '_';
}

static void lex_word_or_sign(struct lexer *l)
{
    static const char *const signs[] = { "==", "!=", "<=", ">=", "//", "**" };
    size_t n = 1;
    if (is_word_char(*l->at)) {
        while (l->at + n < l->end && is_word_char(l->at[n]))
            n++;
    } else {
        for (size_t i = 0; i < sizeof signs / sizeof signs[0]; i++)
            n = starts(l, signs[i]) ? 2 : n;
    }
    put(l, l->at, n);
    put(l, " ", 1);
    l->at += n;
}

/* {{ ... }} or {% ... %}; false: it does not end, or has what Jinja does not. */
static bool lex_tag(struct lexer *l)
{
    const bool block = l->at[1] == '%';
    const char *close = block ? "%}" : "}}", *dash_close = block ? "-%}" : "-}}";
    int depth = 0;
    put(l, l->at, 2);
    put(l, " ", 1);
    l->at += 2;
    if (l->at < l->end && (*l->at == '-' || *l->at == '+'))
        l->at++;
    for (;;) {
        while (l->at < l->end && isspace((unsigned char)*l->at))
            l->at++;
        if (l->at == l->end)
            return false;
        l->trim_next = starts(l, dash_close);
        if (depth == 0 && (l->trim_next || starts(l, close)))
            break;
        if (*l->at == '\'' || *l->at == '"') {
            if (!lex_string(l))
                return false;
            continue;
        }
        depth += strchr("([{", *l->at) && *l->at ? 1 : strchr(")]}", *l->at) && *l->at ? -1 : 0;
        lex_word_or_sign(l);
    }
    l->at += l->trim_next ? 3 : 2;
    put(l, close, 2);
    put(l, "\n", 1);
    l->after_block = block;
    return true;
}

static bool lex_comment(struct lexer *l)
{
    for (l->at += 2; l->end - l->at >= 2; l->at++) {
        if (l->at[0] != '#' || l->at[1] != '}')
            continue;
        l->trim_next = l->at[-1] == '-';
        l->after_block = true;
        l->at += 2;
        return true;
    }
    return false;
}

static bool lex(struct lexer *l)
{
    while (l->at < l->end) {
        if (!is_tag_start(l->at, l->end)) {
            lex_text(l);
            continue;
        }
        if (!(l->at[1] == '#' ? lex_comment(l) : lex_tag(l)))
            return false;
        if (!is_tag_start(l->at, l->end) && l->at < l->end)
            lex_text(l);
    }
    l->out[l->n] = '\0';
    return true;
}

/* ---- leaving out what never runs ---- */

/* Conditions that are false without tools and with the roles that chats here may have. */
static const char *const never[] = {
    "custom_tools is defined",
    "tools is not none",
    "builtin_tools is defined",
    "builtin_tools is defined or tools is not none",
    "tools is not none and not tools_in_user_message",
    "tools_in_user_message and not tools is none",
    "\"tool_calls\" in message",
    "message . role == \"tool\" or message . role == \"ipython\"",
};

static bool line_is(const char *line, const char *start)
{
    return strncmp(line, start, strlen(start)) == 0;
}

static char *next_line(char *line)
{
    char *end = strchr(line, '\n');
    return end ? end + 1 : line + strlen(line);
}

static bool is_never(const char *line, const char *keyword)
{
    if (!line_is(line, keyword))
        return false;
    const char *condition = line + strlen(keyword);
    for (size_t i = 0; i < sizeof never / sizeof never[0]; i++) {
        const size_t n = strlen(never[i]);
        if (strncmp(condition, never[i], n) == 0 && line_is(condition + n, " %}\n"))
            return true;
    }
    return false;
}

/* The line that ends the branch which the line before `line` began: elif, else or the end of the whole if; NULL: none. */
static char *branch_end(char *line)
{
    int depth = 0;
    for (; *line; line = next_line(line)) {
        if (depth == 0 && (line_is(line, "{% elif ") || line_is(line, "{% else %}") || line_is(line, "{% endif %}")))
            return line;
        if (line_is(line, "{% if ") || line_is(line, "{% for "))
            depth++;
        else if (line_is(line, "{% endif %}") || line_is(line, "{% endfor %}"))
            depth--;
        if (depth < 0)
            return NULL;
    }
    return NULL;
}

static void remove_never(char *form)
{
    char *line = form;
    while (*line) {
        const bool whole = is_never(line, "{% if "), branch = is_never(line, "{% elif ");
        char *end = whole || branch ? branch_end(next_line(line)) : NULL;
        if (!end ||
            (whole &&
             !line_is(end, "{% endif %}"))) { /* an if with other branches stays: nothing that is known has one */
            line = next_line(line);
            continue;
        }
        char *rest = whole ? next_line(end) : end;
        memmove(line, rest, strlen(rest) + 1);
    }
}

enum status template_normal_form(const char *text, char **form_out)
{
    const size_t bytes = strlen(text);
    if (bytes > TEMPLATE_BYTES_MAX)
        return ST_INVALID;
    /* a byte becomes an escape of two, and a word gets a space; a text of one byte its line's ten */
    struct lexer l = { .at = text, .end = text + bytes, .out = malloc(bytes * 10 + 1) };
    if (!l.out)
        return ST_NO_MEMORY;
    if (!lex(&l)) {
        free(l.out);
        return ST_INVALID;
    }
    remove_never(l.out);
    *form_out = l.out;
    return ST_OK;
}
