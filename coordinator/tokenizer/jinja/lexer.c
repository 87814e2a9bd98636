#include "coordinator/tokenizer/jinja/lexer.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/unicode.h"

enum { BALANCE_MAX = 256 };

struct lexer {
    struct jinja_arena *arena;
    const char *at, *end;
    uint32_t line;
    bool line_start; /* the last match ended with a line end, or there was none yet */
    struct jinja_token *tokens;
    size_t n, cap;
    struct error *err;
    enum status st;
};

static bool fail(struct lexer *l, enum status st, const char *what)
{
    if (!l->st)
        l->st = error_set(l->err, st, "line %u: %s", l->line, what);
    return false;
}

static struct jinja_token *token_add(struct lexer *l, enum jinja_token_kind kind, const char *text, size_t bytes)
{
    if (l->n == l->cap) {
        const size_t cap = l->cap ? l->cap * 2 : 64;
        struct jinja_token *grown = realloc(l->tokens, cap * sizeof *grown);
        if (!grown) {
            fail(l, ST_NO_MEMORY, "out of memory");
            return NULL;
        }
        l->tokens = grown;
        l->cap = cap;
    }
    char *copy = jinja_alloc(l->arena, bytes + 1, 1);
    if (!copy) {
        fail(l, l->arena->st, "the template takes too much memory");
        return NULL;
    }
    if (bytes > 0)
        memcpy(copy, text, bytes);
    l->tokens[l->n] = (struct jinja_token){ .kind = kind, .line = l->line, .text = copy, .bytes = bytes };
    return &l->tokens[l->n++];
}

static bool starts(const struct lexer *l, const char *text)
{
    const size_t n = strlen(text);
    return (size_t)(l->end - l->at) >= n && memcmp(l->at, text, n) == 0;
}

static bool is_space(char c)
{
    return isspace((unsigned char)c) || (c >= 0x1C && c <= 0x1F);
}

static void advance(struct lexer *l, size_t n)
{
    for (; n > 0; n--, l->at++)
        l->line += *l->at == '\n';
}

static void skip_spaces(struct lexer *l)
{
    while (l->at < l->end && is_space(*l->at))
        advance(l, 1);
}

/* ---- the ends of tags ---- */

/* At a tag's end ("%}", "}}", "#}" with or without a sign): its length with the white space that it takes; 0: no end is here. */
static size_t end_length(const struct lexer *l, const char *close, bool trims_line)
{
    const char *p = l->at;
    const bool dash = p < l->end && *p == '-', plus = p < l->end && *p == '+';
    p += dash || plus;
    if (l->end - p < 2 || memcmp(p, close, 2) != 0 || (plus && !trims_line))
        return 0;
    p += 2;
    if (dash) {
        while (p < l->end && is_space(*p))
            p++;
    } else if (!plus && trims_line && p < l->end && *p == '\n') {
        p++;
    }
    return (size_t)(p - l->at);
}

static void take_end(struct lexer *l, size_t n)
{
    advance(l, n);
    l->line_start = l->at[-1] == '\n';
}

/* ---- text ---- */

/* What is left of text before a tag that begins at l->at: a dash strips it all, lstrip_blocks the blanks since the line's start. */
static size_t text_length(const struct lexer *l, const char *text)
{
    const char *end = l->at, *line;
    const char sign = l->end - l->at > 2 ? l->at[2] : '\0';
    if (l->at == l->end)
        return (size_t)(end - text);
    if (sign == '-') {
        while (end > text && is_space(end[-1]))
            end--;
        return (size_t)(end - text);
    }
    if (sign == '+' || l->at[1] == '{')
        return (size_t)(end - text);
    for (line = end; line > text && line[-1] != '\n'; line--)
        ;
    if (line == text && !l->line_start)
        return (size_t)(end - text);
    for (const char *p = line; p < end; p++) {
        if (!is_space(*p))
            return (size_t)(end - text);
    }
    return (size_t)(line - text);
}

static bool is_tag(const struct lexer *l)
{
    return l->end - l->at >= 2 && l->at[0] == '{' && (l->at[1] == '{' || l->at[1] == '%' || l->at[1] == '#');
}

static void lex_text(struct lexer *l)
{
    const char *from = l->at;
    const uint32_t line = l->line;
    while (l->at < l->end && !is_tag(l))
        advance(l, 1);
    const size_t n = text_length(l, from);
    if (n > 0) {
        struct jinja_token *t = token_add(l, JINJA_TOKEN_TEXT, from, n);
        if (t)
            t->line = line;
    }
}

/* ---- inside tags ---- */

static uint32_t hex_number(const char *p, size_t n, bool *ok)
{
    uint32_t v = 0;
    for (size_t i = 0; i < n; i++) {
        const char c = p[i];
        if (!isxdigit((unsigned char)c)) {
            *ok = false;
            return 0;
        }
        v = v << 4 | (uint32_t)(isdigit((unsigned char)c) ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return v;
}

/* The escape at p (after the backslash): writes what it stands for; the bytes read. 0: none that Python knows. */
static size_t unescape(const char *p, const char *end, char *out, size_t *n_out, bool *ok)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    const char *known = *p ? strchr(from, *p) : NULL;
    uint32_t point = 0;
    size_t n = 0;
    if (*p == '\n')
        return 1;
    if (known) {
        out[(*n_out)++] = to[known - from];
        return 1;
    }
    if (*p >= '0' && *p <= '7') {
        for (; n < 3 && p + n < end && p[n] >= '0' && p[n] <= '7'; n++)
            point = point * 8 + (uint32_t)(p[n] - '0');
    } else if (*p == 'x' || *p == 'u' || *p == 'U') {
        const size_t digits = *p == 'x' ? 2 : *p == 'u' ? 4 : 8;
        if ((size_t)(end - p) <= digits) {
            *ok = false;
            return 1;
        }
        point = hex_number(p + 1, digits, ok);
        n = 1 + digits;
    } else {
        return 0;
    }
    if (point > 0x10FFFF || (point >= 0xD800 && point <= 0xDFFF) || *p == 'N')
        *ok = false;
    else
        *n_out += utf8_put(point, (uint8_t *)out + *n_out);
    return n;
}

static bool lex_string(struct lexer *l)
{
    const char quote = *l->at, *p = l->at + 1;
    while (p < l->end && *p != quote)
        p += *p == '\\' && p + 1 < l->end ? 2 : 1;
    if (p >= l->end)
        return fail(l, ST_INVALID, "a string does not end");
    struct jinja_token *t = token_add(l, JINJA_TOKEN_STRING, l->at + 1, (size_t)(p - l->at - 1));
    if (!t)
        return false;
    /* in place: no escape stands for more bytes than it has */
    char *out = (char *)(uintptr_t)t->text;
    size_t n = 0;
    bool ok = true;
    for (const char *s = l->at + 1; s < p && ok;) {
        size_t used = 0;
        if (*s == '\\' && s + 1 < p)
            used = unescape(s + 1, p, out, &n, &ok);
        if (used == 0)
            out[n++] = *s;
        s += used + 1;
    }
    if (!ok)
        return fail(l, ST_INVALID, "an escape in a string is wrong");
    out[n] = '\0';
    t->bytes = n;
    advance(l, (size_t)(p + 1 - l->at));
    return true;
}

/* Digits with single underscores between them; copied without. */
static size_t digits(const char *p, const char *end, char *out, size_t room)
{
    size_t n = 0, at = 0;
    while (p + at < end && (isdigit((unsigned char)p[at]) ||
                            (p[at] == '_' && at > 0 && p + at + 1 < end && isdigit((unsigned char)p[at + 1])))) {
        if (p[at] != '_' && n + 1 < room)
            out[n++] = p[at];
        at++;
    }
    out[n] = '\0';
    return at;
}

static bool lex_number(struct lexer *l)
{
    char whole[32], rest[64];
    double real = 0;
    const char *p = l->at;
    p += digits(p, l->end, whole, sizeof whole);
    const size_t n_whole = (size_t)(p - l->at);
    bool is_real = false;
    snprintf(rest, sizeof rest, "%s", whole);
    if (l->end - p > 1 && *p == '.' && isdigit((unsigned char)p[1])) {
        const size_t n = strlen(rest);
        rest[n] = '.';
        p += 1 + digits(p + 1, l->end, rest + n + 1, 24);
        is_real = true;
    }
    const char *e = p < l->end && (*p | 0x20) == 'e' ? p + 1 : NULL;
    if (e && e < l->end && (*e == '+' || *e == '-'))
        e++;
    if (e && e < l->end && isdigit((unsigned char)*e)) {
        const size_t n = strlen(rest);
        rest[n] = 'e';
        rest[n + 1] = e[-1] == '-' ? '-' : '+';
        p = e + digits(e, l->end, rest + n + 2, 8);
        is_real = true;
    }
    if (n_whole > 18 || (!is_real && p < l->end && (isalnum((unsigned char)*p) || *p == '_')))
        return fail(l, ST_UNSUPPORTED, "a number of this form is not supported");
    if (is_real)
        real = strtod(rest, NULL);
    struct jinja_token *t = token_add(l, is_real ? JINJA_TOKEN_FLOAT : JINJA_TOKEN_INT, l->at, (size_t)(p - l->at));
    if (!t)
        return false;
    t->integer = strtoll(whole, NULL, 10);
    t->real = real;
    advance(l, (size_t)(p - l->at));
    return true;
}

static bool lex_name_or_op(struct lexer *l)
{
    static const char *const ops[] = { "==", "!=", "<=", ">=", "//", "**", "+", "-", "*", "/", "%", "~", "[",
                                       "]",  "(",  ")",  "{",  "}",  "<",  ">", "=", ".", ":", "|", ",", ";" };
    const char c = *l->at;
    if (isalpha((unsigned char)c) || c == '_') {
        const char *p = l->at;
        while (p < l->end && (isalnum((unsigned char)*p) || *p == '_'))
            p++;
        if (!token_add(l, JINJA_TOKEN_NAME, l->at, (size_t)(p - l->at)))
            return false;
        advance(l, (size_t)(p - l->at));
        return true;
    }
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        if (!starts(l, ops[i]))
            continue;
        if (!token_add(l, JINJA_TOKEN_OP, ops[i], strlen(ops[i])))
            return false;
        advance(l, strlen(ops[i]));
        return true;
    }
    return fail(l, ST_INVALID, "a character that begins nothing in a tag");
}

/* Braces that are open hide the ends of tags: {{ {'a': {}} }} */
static bool lex_expression(struct lexer *l, bool block)
{
    char balance[BALANCE_MAX];
    size_t n_balance = 0;
    for (;;) {
        skip_spaces(l);
        if (l->at == l->end)
            return fail(l, ST_INVALID, "a tag does not end");
        const size_t n_end = n_balance ? 0 : end_length(l, block ? "%}" : "}}", block);
        if (n_end > 0) {
            if (!token_add(l, block ? JINJA_TOKEN_BLOCK_END : JINJA_TOKEN_OUTPUT_END, block ? "%}" : "}}", 2))
                return false;
            take_end(l, n_end);
            return true;
        }
        const char c = *l->at;
        if (c == '(' || c == '[' || c == '{') {
            if (n_balance == BALANCE_MAX)
                return fail(l, ST_UNSUPPORTED, "brackets are nested too deeply");
            balance[n_balance++] = c == '(' ? ')' : c == '[' ? ']' : '}';
        } else if (c == ')' || c == ']' || c == '}') {
            if (n_balance == 0 || balance[--n_balance] != c)
                return fail(l, ST_INVALID, "a bracket is closed that is not open");
        }
        const bool ok = c == '\'' || c == '"'  ? lex_string(l)
                        : c >= '0' && c <= '9' ? lex_number(l)
                                               : lex_name_or_op(l);
        if (!ok)
            return false;
    }
}

/* ---- tags ---- */

static void take_begin(struct lexer *l)
{
    advance(l, 2);
    if (l->at < l->end && (*l->at == '-' || *l->at == '+'))
        advance(l, 1);
    l->line_start = false;
}

static bool lex_comment(struct lexer *l)
{
    take_begin(l);
    for (; l->at < l->end; advance(l, 1)) {
        const size_t n = end_length(l, "#}", true);
        if (n > 0) {
            take_end(l, n);
            return true;
        }
    }
    return fail(l, ST_INVALID, "a comment does not end");
}

/* At "{%": the length of a tag of this one word, with the white space that its end takes (raw leaves a line end alone); 0: it is none. */
static size_t word_tag_length(const struct lexer *l, const char *word, bool trims_line)
{
    struct lexer at = *l;
    const size_t n = strlen(word);
    take_begin(&at);
    skip_spaces(&at);
    if (!starts(&at, word))
        return 0;
    at.at += n;
    skip_spaces(&at);
    const size_t n_end = at.at < at.end ? end_length(&at, "%}", trims_line) : 0;
    return n_end ? (size_t)(at.at - l->at) + n_end : 0;
}

static bool lex_raw(struct lexer *l, size_t n_begin)
{
    take_end(l, n_begin);
    const char *from = l->at;
    while (l->at < l->end) {
        const size_t n = is_tag(l) && l->at[1] == '%' ? word_tag_length(l, "endraw", true) : 0;
        if (n > 0) {
            if (!token_add(l, JINJA_TOKEN_TEXT, from, text_length(l, from)))
                return false;
            take_end(l, n);
            return true;
        }
        advance(l, 1);
    }
    return fail(l, ST_INVALID, "a raw block does not end");
}

static bool lex_tag(struct lexer *l)
{
    const bool block = l->at[1] == '%';
    if (l->at[1] == '#')
        return lex_comment(l);
    const size_t n_raw = block ? word_tag_length(l, "raw", false) : 0;
    if (n_raw > 0)
        return lex_raw(l, n_raw);
    if (!token_add(l, block ? JINJA_TOKEN_BLOCK_BEGIN : JINJA_TOKEN_OUTPUT_BEGIN, l->at, 2))
        return false;
    take_begin(l);
    return lex_expression(l, block);
}

/* Line ends become "\n", and the last one is not kept. */
static size_t normalize_lines(const char *text, size_t bytes, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == '\r')
            i += i + 1 < bytes && text[i + 1] == '\n';
        out[n++] = text[i] == '\r' ? '\n' : text[i];
    }
    return n > 0 && out[n - 1] == '\n' ? n - 1 : n;
}

static void lex_all(struct lexer *l)
{
    while (!l->st && l->at < l->end) {
        lex_text(l);
        if (!l->st && l->at < l->end)
            lex_tag(l);
    }
    if (!l->st)
        token_add(l, JINJA_TOKEN_END, "", 0);
}

enum status jinja_lex(struct jinja_arena *arena, const char *text, size_t bytes, const struct jinja_token **tokens_out,
                      struct error *err)
{
    char *lines = malloc(bytes + 1);
    struct lexer l = { .arena = arena, .line = 1, .line_start = true, .err = err };
    if (!lines)
        return ST_NO_MEMORY;
    l.at = lines;
    l.end = lines + normalize_lines(text, bytes, lines);
    lex_all(&l);
    struct jinja_token *kept = l.st ? NULL : jinja_alloc(arena, l.n, sizeof *kept);
    if (kept)
        memcpy(kept, l.tokens, l.n * sizeof *kept);
    else if (!l.st)
        fail(&l, arena->st, "the template takes too much memory");
    free(l.tokens);
    free(lines);
    if (!l.st)
        *tokens_out = kept;
    return l.st;
}

const char *jinja_token_show(const struct jinja_token *t, char buffer[48])
{
    if (t->kind == JINJA_TOKEN_END)
        return "the template's end";
    if (t->kind == JINJA_TOKEN_TEXT)
        return "text";
    snprintf(buffer, 48, "'%.40s'", t->text);
    return buffer;
}
