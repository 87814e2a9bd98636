#include "coordinator/tokenizer/split_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

struct split_regex {
    pcre2_code *code;
};

struct split_regex_run {
    const pcre2_code *code;
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

/* ---- from Oniguruma's dialect to PCRE2's ---- */

enum { PATTERN_BYTES_MAX = 65536 };

/* \s in Oniguruma is White_Space; PCRE2's adds U+180E. */
#define SPACE_SET "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

struct translation {
    const char *at, *end;
    bool in_class;
    char *out;
    size_t n, cap;
    struct error *err;
};

static enum status refuse(struct translation *t, const char *what, const char *at, size_t bytes)
{
    return error_set(t->err, ST_UNSUPPORTED, "pre_tokenizer: pattern: %s \"%.*s\" is not supported", what, (int)bytes,
                     at);
}

/* The output was sized for the longest translation of each byte. */
static void put(struct translation *t, const char *text, size_t bytes)
{
    memcpy(t->out + t->n, text, bytes);
    t->n += bytes;
}

static void put_text(struct translation *t, const char *text)
{
    put(t, text, strlen(text));
}

/* \p{...}: categories mean the same; a script's name means script extensions in PCRE2 unless told otherwise. */
static enum status translate_property(struct translation *t, const char *escape)
{
    const char *close = t->at < t->end && *t->at == '{' ? memchr(t->at, '}', (size_t)(t->end - t->at)) : NULL;
    if (!close)
        return refuse(t, "escape", escape, (size_t)(t->at - escape));
    const char *name = t->at + 1;
    const bool negated = name < close && *name == '^';
    name += negated;
    const size_t n = (size_t)(close - name);
    for (size_t i = 0; i < n; i++) {
        if (!isalpha((unsigned char)name[i]) && name[i] != '_')
            return refuse(t, "property", escape, (size_t)(close + 1 - escape));
    }
    if (n == 0 || n > 64)
        return refuse(t, "property", escape, (size_t)(close + 1 - escape));
    put(t, escape, 2);
    put_text(t, negated ? "{^" : "{");
    if (n > 2)
        put_text(t, "sc:");
    put(t, name, n);
    put_text(t, "}");
    t->at = close + 1;
    return ST_OK;
}

static enum status translate_unicode_escape(struct translation *t, const char *escape)
{
    const size_t left = (size_t)(t->end - t->at);
    for (size_t i = 0; i < 4; i++) {
        if (i >= left || !isxdigit((unsigned char)t->at[i]))
            return refuse(t, "escape", escape, 2);
    }
    put_text(t, "\\x{");
    put(t, t->at, 4);
    put_text(t, "}");
    t->at += 4;
    return ST_OK;
}

static enum status translate_escape(struct translation *t)
{
    const char *escape = t->at;
    if (t->end - escape < 2)
        return refuse(t, "a pattern ending in", escape, 1);
    const char c = escape[1];
    t->at += 2;
    switch (c) {
    case 's':
        put_text(t, t->in_class ? SPACE_SET : "[" SPACE_SET "]");
        return ST_OK;
    case 'S':
        if (t->in_class)
            return refuse(t, "escape in a set", escape, 2);
        put_text(t, "[^" SPACE_SET "]");
        return ST_OK;
    case 'v':
        put_text(t, "\\x0b");
        return ST_OK;
    case 'u':
        return translate_unicode_escape(t, escape);
    case 'p':
    case 'P':
        return translate_property(t, escape);
    case 'x': /* \xHH is a byte in one dialect, a code point in the other */
        if (t->at == t->end || *t->at != '{')
            return refuse(t, "escape", escape, 2);
        put(t, escape, 2);
        return ST_OK;
    case 'd':
    case 'D':
    case 'r':
    case 'n':
    case 't':
    case 'f':
    case 'a':
    case 'e':
        put(t, escape, 2);
        return ST_OK;
    default:
        if (isalnum((unsigned char)c) || (unsigned char)c >= 0x80)
            return refuse(t, "escape", escape, 2);
        put(t, escape, 2);
        return ST_OK;
    }
}

static bool starts(const struct translation *t, const char *text)
{
    const size_t n = strlen(text);
    return (size_t)(t->end - t->at) >= n && memcmp(t->at, text, n) == 0;
}

static enum status translate_in_class(struct translation *t)
{
    if (*t->at == '[')
        return refuse(t, "a set in a set", t->at, 1);
    if (starts(t, "&&"))
        return refuse(t, "set operator", t->at, 2);
    if (*t->at == ']')
        t->in_class = false;
    put(t, t->at++, 1);
    return ST_OK;
}

static enum status translate_class_start(struct translation *t)
{
    put(t, t->at++, 1);
    if (t->at < t->end && *t->at == '^')
        put(t, t->at++, 1);
    if (t->at < t->end && *t->at == ']')
        return refuse(t, "a set beginning with", t->at, 1);
    t->in_class = true;
    return ST_OK;
}

static enum status translate_group(struct translation *t)
{
    static const char *const known[] = { "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:" };
    if (starts(t, "(*"))
        return refuse(t, "verb", t->at, 2);
    if (!starts(t, "(?")) {
        put(t, t->at++, 1);
        return ST_OK;
    }
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (starts(t, known[i])) {
            put_text(t, known[i]);
            t->at += strlen(known[i]);
            return ST_OK;
        }
    }
    const size_t left = (size_t)(t->end - t->at);
    return refuse(t, "group", t->at, left < 4 ? left : 4);
}

/* {n,m}: a plus after it is greedy in one dialect and possessive in the other; {,m} is a count in one only. */
static enum status translate_count(struct translation *t)
{
    const char *close = memchr(t->at, '}', (size_t)(t->end - t->at));
    const size_t n = close ? (size_t)(close + 1 - t->at) : 1;
    if (!close || !isdigit((unsigned char)t->at[1]) || (close + 1 < t->end && close[1] == '+'))
        return refuse(t, "count", t->at, n < 16 ? n : 16);
    put(t, t->at, n);
    t->at += n;
    return ST_OK;
}

static enum status translate_one(struct translation *t)
{
    if (*t->at == '\\')
        return translate_escape(t);
    if (t->in_class)
        return translate_in_class(t);
    switch (*t->at) {
    case '[':
        return translate_class_start(t);
    case '(':
        return translate_group(t);
    case '{':
        return translate_count(t);
    default:
        put(t, t->at++, 1);
        return ST_OK;
    }
}

static enum status translate(const char *pattern, size_t bytes, char **out, size_t *n_out, struct error *err)
{
    /* the longest expansion of a byte is half of "\s" outside a set */
    const size_t cap = bytes * (sizeof SPACE_SET + 4) + 16;
    struct translation t = { .at = pattern, .end = pattern + bytes, .out = malloc(cap), .cap = cap, .err = err };
    if (!t.out)
        return ST_NO_MEMORY;
    enum status st = ST_OK;
    while (!st && t.at < t.end)
        st = translate_one(&t);
    if (st) {
        free(t.out);
        return st;
    }
    *out = t.out;
    *n_out = t.n;
    return ST_OK;
}

/* ---- compiling and matching ---- */

static enum status compile(const char *pattern, size_t bytes, bool literal, pcre2_code **code_out, struct error *err)
{
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context)
        return ST_NO_MEMORY;
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    const uint32_t dialect = PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    const uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : dialect);
    int code_error;
    size_t offset;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, bytes, options, &code_error, &offset, context);
    pcre2_compile_context_free(context);
    if (!code) {
        PCRE2_UCHAR why[128];
        pcre2_get_error_message(code_error, why, sizeof why);
        return error_set(err, ST_UNSUPPORTED, "pre_tokenizer: pattern: %s, before \"%.*s\"", (const char *)why,
                         (int)(bytes - offset < 40 ? bytes - offset : 40), pattern + offset);
    }
    uint32_t empty = 0;
    pcre2_pattern_info(code, PCRE2_INFO_MATCHEMPTY, &empty);
    if (empty) {
        pcre2_code_free(code);
        return error_set(err, ST_UNSUPPORTED, "pre_tokenizer: a pattern that can match nothing is not supported");
    }
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* without it matching is slower, no more */
    *code_out = code;
    return ST_OK;
}

enum status split_regex_new(const char *pattern, size_t bytes, bool literal, struct split_regex **regex_out,
                            struct error *err)
{
    if (bytes == 0 || bytes > PATTERN_BYTES_MAX)
        return error_set(err, ST_UNSUPPORTED, "pre_tokenizer: a pattern of %zu bytes is not supported", bytes);
    struct split_regex *r = calloc(1, sizeof *r);
    if (!r)
        return ST_NO_MEMORY;
    enum status st;
    if (literal) {
        st = compile(pattern, bytes, true, &r->code, err);
    } else {
        char *text;
        size_t n;
        st = translate(pattern, bytes, &text, &n, err);
        if (!st) {
            st = compile(text, n, false, &r->code, err);
            free(text);
        }
    }
    if (st) {
        split_regex_free(r);
        return st;
    }
    *regex_out = r;
    return ST_OK;
}

void split_regex_free(struct split_regex *r)
{
    if (!r)
        return;
    pcre2_code_free(r->code);
    free(r);
}

struct split_regex_run *split_regex_run_new(const struct split_regex *r)
{
    struct split_regex_run *run = calloc(1, sizeof *run);
    if (!run)
        return NULL;
    run->code = r->code;
    run->data = pcre2_match_data_create(1, NULL);
    run->context = pcre2_match_context_create(NULL);
    run->stack = pcre2_jit_stack_create(32 * 1024, 8 * 1024 * 1024, NULL); /* NULL without JIT */
    if (!run->data || !run->context) {
        split_regex_run_free(run);
        return NULL;
    }
    if (run->stack)
        pcre2_jit_stack_assign(run->context, NULL, run->stack);
    return run;
}

void split_regex_run_free(struct split_regex_run *run)
{
    if (!run)
        return;
    pcre2_jit_stack_free(run->stack);
    pcre2_match_context_free(run->context);
    pcre2_match_data_free(run->data);
    free(run);
}

enum status split_regex_next(struct split_regex_run *run, const uint8_t *text, size_t bytes, size_t from,
                             size_t *start_out, size_t *end_out)
{
    const uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    int rc = pcre2_match(run->code, text, bytes, from, options, run->data, run->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(run->code, text, bytes, from, options | PCRE2_NO_JIT, run->data, run->context);
    if (rc == PCRE2_ERROR_NOMATCH)
        return ST_NOT_FOUND;
    if (rc == PCRE2_ERROR_NOMEMORY)
        return ST_NO_MEMORY;
    if (rc < 0)
        return ST_TOO_LARGE;
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(run->data);
    *start_out = span[0];
    *end_out = span[1];
    return ST_OK;
}
