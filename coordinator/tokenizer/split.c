#include "coordinator/tokenizer/split.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/split_match.h"
#include "coordinator/tokenizer/split_regex.h"
#include "coordinator/tokenizer/unicode.h"

enum step_kind { STEP_DIGITS, STEP_GPT2, STEP_LLAMA3, STEP_REGEX };

struct split_step {
    enum step_kind kind;
    uint32_t number; /* DIGITS: individual; LLAMA3: numbers in one piece */
    bool keep_gaps;  /* REGEX */
    struct split_regex *regex;
};

struct splitter {
    struct split_step steps[SPLIT_STEPS_MAX];
    uint32_t n_steps;
};

struct split_run {
    const struct splitter *s;
    struct split_regex_run *regex[SPLIT_STEPS_MAX];
    split_piece_fn *fn;
    void *arg;
};

struct splitter *splitter_new(void)
{
    return calloc(1, sizeof(struct splitter));
}

void splitter_free(struct splitter *s)
{
    if (!s)
        return;
    for (uint32_t i = 0; i < s->n_steps; i++)
        split_regex_free(s->steps[i].regex);
    free(s);
}

static enum status add_step(struct splitter *s, const struct split_step *step, struct error *err)
{
    if (s->n_steps == SPLIT_STEPS_MAX)
        return error_set(err, ST_UNSUPPORTED, "pre_tokenizer: more than %d steps", SPLIT_STEPS_MAX);
    s->steps[s->n_steps++] = *step;
    return ST_OK;
}

enum status splitter_add_digits(struct splitter *s, bool individual, struct error *err)
{
    return add_step(s, &(struct split_step){ .kind = STEP_DIGITS, .number = individual }, err);
}

enum status splitter_add_gpt2(struct splitter *s, struct error *err)
{
    return add_step(s, &(struct split_step){ .kind = STEP_GPT2 }, err);
}

static bool same_text(const char *pattern, size_t bytes, const char *known)
{
    return strlen(known) == bytes && memcmp(pattern, known, bytes) == 0;
}

enum status splitter_add_pattern(struct splitter *s, const char *pattern, size_t bytes, bool literal, bool keep_gaps,
                                 struct error *err)
{
    if (!literal && same_text(pattern, bytes, SPLIT_PATTERN_GPT2))
        return splitter_add_gpt2(s, err);
    if (!literal && same_text(pattern, bytes, SPLIT_PATTERN_LLAMA3))
        return add_step(s, &(struct split_step){ .kind = STEP_LLAMA3, .number = 3 }, err);
    if (!literal && same_text(pattern, bytes, SPLIT_PATTERN_QWEN2))
        return add_step(s, &(struct split_step){ .kind = STEP_LLAMA3, .number = 1 }, err);
    struct split_step step = { .kind = STEP_REGEX, .keep_gaps = keep_gaps };
    enum status st = split_regex_new(pattern, bytes, literal, &step.regex, err);
    if (st)
        return st;
    st = add_step(s, &step, err);
    if (st)
        split_regex_free(step.regex);
    return st;
}

enum status splitter_named(const char *pre, struct splitter **splitter_out, struct error *err)
{
    static const struct {
        const char *name;
        bool digits, llama3;
        uint32_t numbers; /* LLAMA3: in one piece */
    } rules[] = {
        { "smollm", true, false, 0 },   { "gpt-2", false, false, 0 },    { "gpt2", false, false, 0 },
        { "qwen2", false, true, 1 },    { "llama-bpe", false, true, 3 }, { "llama3", false, true, 3 },
        { "llama-v3", false, true, 3 },
    };
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        if (strcmp(pre, rules[i].name) != 0)
            continue;
        struct splitter *s = splitter_new();
        if (!s)
            return ST_NO_MEMORY;
        if (rules[i].digits)
            s->steps[s->n_steps++] = (struct split_step){ .kind = STEP_DIGITS, .number = 1 };
        s->steps[s->n_steps++] =
            (struct split_step){ .kind = rules[i].llama3 ? STEP_LLAMA3 : STEP_GPT2, .number = rules[i].numbers };
        *splitter_out = s;
        return ST_OK;
    }
    return error_set(err, ST_UNSUPPORTED, "tokenizer.ggml.pre: pre-tokenizer \"%.60s\" is not supported", pre);
}

/* ---- running ---- */

static enum status run_step(struct split_run *r, uint32_t step, const uint8_t *p, const uint8_t *end);

/* Bytes of text that stand for `bytes` bytes of its repaired copy, in which each bad byte became the three of U+FFFD. */
static const uint8_t *repaired_advance(const uint8_t *p, const uint8_t *end, size_t bytes)
{
    while (bytes > 0 && p < end) {
        uint32_t point;
        const uint32_t n = utf8_next(p, end, &point);
        const size_t stands_for = point == UTF8_BAD ? 3 : n;
        bytes -= stands_for < bytes ? stands_for : bytes;
        p += n;
    }
    return p;
}

/* PCRE2 wants valid UTF-8. *bytes_out: of the copy; NULL: no memory */
static uint8_t *repaired_copy(const uint8_t *p, const uint8_t *end, size_t *bytes_out)
{
    uint8_t *copy = malloc((size_t)(end - p) * 3), *at = copy;
    while (copy && p < end) {
        uint32_t point;
        const uint32_t n = utf8_next(p, end, &point);
        at += utf8_put(point == UTF8_BAD ? 0xFFFD : point, at);
        p += n;
    }
    *bytes_out = (size_t)(at - copy);
    return copy;
}

static enum status run_regex(struct split_run *r, uint32_t step, const uint8_t *p, const uint8_t *end)
{
    const struct split_step *what = &r->s->steps[step];
    if (!r->regex[step] && !(r->regex[step] = split_regex_run_new(what->regex)))
        return ST_NO_MEMORY;
    const bool valid = utf8_valid(p, (size_t)(end - p));
    const uint8_t *subject = p;
    size_t bytes = (size_t)(end - p), at = 0;
    uint8_t *copy = NULL;
    if (!valid && !(subject = copy = repaired_copy(p, end, &bytes)))
        return ST_NO_MEMORY;
    enum status st = ST_OK;
    while (!st && p < end) {
        size_t start, stop;
        st = split_regex_next(r->regex[step], subject, bytes, at, &start, &stop);
        if (st == ST_NOT_FOUND) {
            start = stop = bytes;
            st = ST_OK;
        }
        if (st)
            break;
        const uint8_t *from = valid ? p + (start - at) : repaired_advance(p, end, start - at);
        const uint8_t *to = valid ? from + (stop - start) : repaired_advance(from, end, stop - start);
        if (from > p && what->keep_gaps)
            st = run_step(r, step + 1, p, from);
        if (!st && to > from)
            st = run_step(r, step + 1, from, to);
        p = to;
        at = stop;
    }
    free(copy);
    return st;
}

static enum status run_step(struct split_run *r, uint32_t step, const uint8_t *p, const uint8_t *end)
{
    if (step == r->s->n_steps)
        return r->fn(r->arg, p, (size_t)(end - p));
    const struct split_step *what = &r->s->steps[step];
    if (what->kind == STEP_REGEX)
        return run_regex(r, step, p, end);
    enum status st = ST_OK;
    while (!st && p < end) {
        const uint8_t *to = what->kind == STEP_DIGITS ? split_match_digits(p, end, (int)what->number)
                            : what->kind == STEP_GPT2 ? split_match_gpt2(p, end)
                                                      : split_match_llama3(p, end, what->number);
        st = run_step(r, step + 1, p, to);
        p = to;
    }
    return st;
}

enum status splitter_run(const struct splitter *s, const uint8_t *text, size_t bytes, split_piece_fn *fn, void *arg)
{
    struct split_run r = { .s = s, .fn = fn, .arg = arg };
    const enum status st = bytes > 0 ? run_step(&r, 0, text, text + bytes) : ST_OK;
    for (uint32_t i = 0; i < s->n_steps; i++)
        split_regex_run_free(r.regex[i]);
    return st;
}
