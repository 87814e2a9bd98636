#include "client/eval/tasks.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/eval/draw.h"
#include "common/rng.h"
#include "common/text.h"

enum { BLOCK = 64 };
enum haystack { NOISE, ESSAY, NEEDLES };

struct eval_task {
    const char *name;
    bool (*make)(const struct eval_task *t, const struct eval_draw *d, struct eval_question *q);
    uint32_t max_new;
    /* needles */
    enum haystack haystack;
    enum thing key, value;
    uint32_t n_keys, n_values, n_queries;
};

static bool done(struct text *t, struct eval_question *q)
{
    if (!text_terminated(t)) {
        text_free(t);
        q->prompt = NULL;
        return false;
    }
    q->prompt = t->data;
    q->bytes = t->n;
    return true;
}

static void answer(struct eval_question *q, const char text[WORD_BYTES])
{
    snprintf(q->answers[q->n_answers++], EVAL_ANSWER_BYTES, "%.*s", WORD_BYTES - 1, text);
}

/* ---- haystacks ---- */

static const char noise[] = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/* Sentences of the essay, one after the other, from where the sample begins. */
struct reader {
    const char *text;
    size_t bytes, at;
};

static bool ends_sentence(const struct reader *r, size_t i)
{
    const bool last = i + 1 == r->bytes;
    return (strchr(".!?", r->text[i]) && r->text[i] && (last || isspace((unsigned char)r->text[i + 1]))) ||
           (r->text[i] == '\n' && !last && r->text[i + 1] == '\n') || last;
}

static struct reader reader_at(const struct eval_draw *d)
{
    struct reader r = { d->essay, d->essay_bytes, draw_below(d, OF_ESSAY, 0, d->essay_bytes) };
    while (!ends_sentence(&r, r.at))
        r.at++;
    r.at = (r.at + 1) % r.bytes;
    return r;
}

static void next_sentence(struct reader *r, struct text *out)
{
    size_t from = r->at, n = 0;
    while (from + n + 1 < r->bytes && isspace((unsigned char)r->text[from]))
        from++;
    while (from + n + 1 < r->bytes && !ends_sentence(r, from + n))
        n++;
    for (size_t i = 0; i <= n; i++)
        text_add(out, isspace((unsigned char)r->text[from + i]) || !r->text[from + i] ? " " : r->text + from + i, 1);
    text_add(out, " ", 1);
    r->at = (from + n + 1) % r->bytes;
}

static const char *plural(enum thing kind)
{
    return kind == NUMBER ? "numbers" : kind == UUID ? "uuids" : "words";
}

static const char *singular(enum thing kind)
{
    return kind == NUMBER ? "number" : kind == UUID ? "uuid" : "word";
}

static void needle(struct text *t, enum thing kind, const char *key, const char *value)
{
    text_printf(t, "One of the special magic %s for %s is: %s.", plural(kind), key, value);
}

static void filler(const struct eval_task *t, const struct eval_draw *d, uint32_t i, struct reader *r, struct text *out)
{
    char key[WORD_BYTES], value[WORD_BYTES];
    if (t->haystack == ESSAY) {
        next_sentence(r, out);
        return;
    }
    if (t->haystack == NEEDLES) {
        draw_thing(d, t->key, OF_OTHER_KEY, i, key);
        draw_thing(d, t->value, OF_OTHER_VALUE, i, value);
        needle(out, t->value, key, value);
    } else {
        text_add(out, noise, sizeof noise - 1);
    }
    text_add(out, "\n", 1);
}

/* ---- needles ---- */

static void ask_needles(const struct eval_task *t, const char *keys, bool one, struct text *out)
{
    if (one)
        text_printf(out,
                    "\nWhat is the special magic %s for %s mentioned in the provided text? The special magic %s for %s "
                    "mentioned in the provided "
                    "text is",
                    singular(t->value), keys, singular(t->value), keys);
    else
        text_printf(
            out,
            "\nWhat are all the special magic %s for %s mentioned in the provided text? The special magic %s for %s "
            "mentioned in the "
            "provided text are",
            plural(t->value), keys, plural(t->value), keys);
}

static bool make_needles(const struct eval_task *t, const struct eval_draw *d, struct eval_question *q)
{
    char keys[THINGS_MAX][WORD_BYTES], values[THINGS_MAX][WORD_BYTES], asked[THINGS_MAX * (WORD_BYTES + 8)] = "";
    const uint32_t n = t->n_keys * t->n_values;
    const bool one = t->n_queries * t->n_values == 1;
    struct reader reader = t->haystack == ESSAY ? reader_at(d) : (struct reader){ 0 };
    struct text out = { 0 };
    for (uint32_t i = 0; i < n; i++) {
        draw_thing(d, t->key, OF_KEY, i / t->n_values, keys[i]);
        draw_thing(d, t->value, OF_VALUE, i, values[i]);
    }
    if (one)
        text_printf(
            &out,
            "A special magic %s is hidden within the following text. Make sure to memorize it. I will quiz you about "
            "the %s "
            "afterwards.\n",
            singular(t->value), singular(t->value));
    else
        text_printf(
            &out,
            "Some special magic %s are hidden within the following text. Make sure to memorize it. I will quiz you "
            "about the %s "
            "afterwards.\n",
            plural(t->value), plural(t->value));
    for (uint32_t f = 0; f <= d->filler; f++) {
        for (uint32_t i = 0; i < n; i++)
            if (draw_below(d, OF_DEPTH, i, d->filler + 1) == f) {
                needle(&out, t->value, keys[i], values[i]);
                text_add(&out, t->haystack == ESSAY ? " " : "\n", 1);
            }
        if (f < d->filler)
            filler(t, d, f, &reader, &out);
    }
    for (uint32_t i = 0; i < t->n_queries; i++)
        snprintf(asked + strlen(asked), sizeof asked - strlen(asked), "%s%s%s", i ? ", " : "",
                 i && i + 1 == t->n_queries ? "and " : "", keys[i * t->n_values]);
    ask_needles(t, asked, one, &out);
    for (uint32_t i = 0; i < t->n_queries * t->n_values; i++)
        answer(q, values[i]);
    return done(&out, q);
}

/* ---- variable tracking ---- */

enum { CHAIN = 5 };

/* Five letters; the number makes the first two, so no two are equal. */
static void variable(const struct eval_draw *d, enum drawn what, uint32_t i, char out[WORD_BYTES])
{
    const uint64_t r = draw_bits(d, what, 100 + i);
    snprintf(out, WORD_BYTES, "%c%c%c%c%c", 'A' + (int)(r % 26), 'A' + (int)(r / 26 % 26), 'A' + (int)i,
             'A' + (int)(r / 676 % 26), 'A' + (int)(r / 17576 % 26));
}

static void track(const struct eval_draw *d, enum drawn what, uint32_t n_filler, struct text *out,
                  char names[CHAIN][WORD_BYTES])
{
    const unsigned value = 10000 + (unsigned)draw_below(d, what, 0, 90000);
    double depth[CHAIN];
    for (uint32_t i = 0; i < CHAIN; i++) {
        variable(d, what, i, names[i]);
        depth[i] = rng_unit(draw_bits(d, what, 1 + i));
        for (uint32_t k = i; k > 0 && depth[k] < depth[k - 1]; k--) {
            const double t = depth[k];
            depth[k] = depth[k - 1];
            depth[k - 1] = t;
        }
    }
    text_printf(out, "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n");
    uint32_t next = 0;
    for (uint32_t f = 0; f <= n_filler; f++) {
        for (; next < CHAIN && (uint32_t)(depth[next] * (n_filler + 1)) == f; next++) {
            if (next)
                text_printf(out, "VAR %s = VAR %s \n", names[next], names[next - 1]);
            else
                text_printf(out, "VAR %s = %u\n", names[next], value);
        }
        if (f < n_filler) {
            text_add(out, noise, sizeof noise - 1);
            text_add(out, "\n", 1);
        }
    }
    text_printf(
        out,
        "\nQuestion: Find all variables that are assigned the value %u in the text above. Answer: According to the "
        "chain(s) of variable "
        "assignment in the text above, %d variables are assigned the value %u, they are:",
        value, CHAIN, value);
}

static bool make_tracking(const struct eval_task *t, const struct eval_draw *d, struct eval_question *q)
{
    char names[CHAIN][WORD_BYTES];
    struct text out = { 0 };
    (void)t;
    track(d, OF_EXAMPLE, 5, &out, names);
    for (uint32_t i = 0; i < CHAIN; i++)
        text_printf(&out, " %s", names[i]);
    text_printf(&out, "\n\n");
    track(d, OF_VALUE, d->filler, &out, names);
    for (uint32_t i = 0; i < CHAIN; i++)
        answer(q, names[i]);
    return done(&out, q);
}

/* ---- common and frequent words ---- */

/* Numbers 0 .. n_kinds - 1, each count times as often as it says, shuffled. NULL: no memory. */
static uint32_t *shuffled(const struct eval_draw *d, enum drawn what, uint32_t n_kinds,
                          uint32_t (*count)(uint32_t kind, void *arg), void *arg, uint32_t *n_out)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < n_kinds; k++)
        n += count(k, arg);
    uint32_t *all = malloc((n + 1) * sizeof *all), at = 0;
    if (!all)
        return NULL;
    for (uint32_t k = 0; k < n_kinds; k++)
        for (uint32_t i = count(k, arg); i > 0; i--)
            all[at++] = k;
    for (uint32_t i = n; i > 1; i--) {
        const uint32_t j = (uint32_t)draw_below(d, what, i, i), t = all[j];
        all[j] = all[i - 1];
        all[i - 1] = t;
    }
    *n_out = n;
    return all;
}

enum { COMMON = 10 };

struct repeats {
    uint32_t common, others;
};

static uint32_t of_word(uint32_t kind, void *arg)
{
    const struct repeats *r = arg;
    return kind < COMMON ? r->common : r->others;
}

static bool word_list(const struct eval_draw *d, enum drawn what, uint32_t first, uint32_t n_others,
                      struct repeats repeats, struct text *out)
{
    uint32_t n;
    char name[WORD_BYTES];
    uint32_t *order = shuffled(d, what, COMMON + n_others, of_word, &repeats, &n);
    if (!order) {
        out->bad = true;
        return false;
    }
    text_printf(
        out, "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones "
             "that appear most "
             "often.\n");
    for (uint32_t i = 0; i < n; i++) {
        draw_word(d, first + order[i], name);
        text_printf(out, "%u. %s ", i + 1, name);
    }
    text_printf(out,
                "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words that appear "
                "most often in the list "
                "are:");
    free(order);
    return true;
}

static bool make_common(const struct eval_task *t, const struct eval_draw *d, struct eval_question *q)
{
    const bool brief = d->length < 4096;
    struct text out = { 0 };
    (void)t;
    word_list(d, OF_EXAMPLE, 0, brief ? 10 : 20, brief ? (struct repeats){ 3, 1 } : (struct repeats){ 10, 3 }, &out);
    for (uint32_t i = 0; i < COMMON; i++) {
        char name[WORD_BYTES];
        draw_word(d, i, name);
        text_printf(&out, " %u. %s", i + 1, name);
    }
    text_printf(&out, "\n\n");
    word_list(d, OF_SHUFFLE, 100, d->filler, brief ? (struct repeats){ 6, 1 } : (struct repeats){ 30, 3 }, &out);
    for (uint32_t i = 0; i < COMMON; i++) {
        char name[WORD_BYTES];
        draw_word(d, 100 + i, name);
        answer(q, name);
    }
    return done(&out, q);
}

/* By rank: a Zipf law of exponent 2, whose sum is pi^2 / 6. */
static uint32_t of_code(uint32_t kind, void *arg)
{
    const double rank = kind + 1, all = *(const uint32_t *)arg;
    return (uint32_t)(all / (rank * rank * 1.6449340668482264));
}

static void code(const struct eval_draw *d, uint32_t kind, char out[WORD_BYTES])
{
    uint64_t r = draw_bits(d, OF_CODE, kind);
    if (kind == 0) {
        snprintf(out, WORD_BYTES, "...");
        return;
    }
    for (int i = 0; i < 4; i++, r /= 26)
        out[i] = (char)('a' + r % 26);
    out[4] = (char)('a' + kind / 26 % 26); /* no two are equal */
    out[5] = (char)('a' + kind % 26);
    out[6] = 0;
}

static bool make_frequent(const struct eval_task *t, const struct eval_draw *d, struct eval_question *q)
{
    uint32_t n, all = d->filler < 100 ? 100 : d->filler, kinds = d->length / 50 < 10 ? 10 : d->length / 50;
    struct text out = { 0 };
    char name[WORD_BYTES];
    (void)t;
    kinds = kinds > 676 ? 676 : kinds;
    uint32_t *order = shuffled(d, OF_SHUFFLE, kinds, of_code, &all, &n);
    if (!order)
        return false;
    text_printf(&out, "Read the following coded text and track the frequency of each coded word. Find the three most "
                      "frequently appeared coded "
                      "words. ");
    for (uint32_t i = 0; i < n; i++) {
        code(d, order[i], name);
        text_printf(&out, "%s ", name);
    }
    free(order);
    text_printf(
        &out, "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most "
              "frequently appeared words "
              "in the above coded text? Answer: According to the coded text above, the three most frequently appeared "
              "words are:");
    for (uint32_t i = 1; i <= 3; i++) {
        code(d, i, name);
        answer(q, name);
    }
    return done(&out, q);
}

/* ---- InfiniteBench ---- */

static bool make_passkey(const struct eval_task *t, const struct eval_draw *d, struct eval_question *q)
{
    const unsigned key = 10000 + (unsigned)draw_below(d, OF_KEY, 0, 90000);
    const uint64_t at = draw_below(d, OF_DEPTH, 0, d->filler + 1);
    struct text out = { 0 };
    (void)t;
    text_printf(
        &out, "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz "
              "you about the important "
              "information.\n\n");
    for (uint32_t i = 0; i <= d->filler; i++) {
        if (i == at)
            text_printf(&out, "The pass key is %u. Remember it. %u is the pass key.\n", key, key);
        if (i < d->filler)
            text_printf(&out, "%s\n", noise);
    }
    text_printf(&out, "\nWhat is the pass key? The pass key is");
    q->first_number = true;
    snprintf(q->answers[q->n_answers++], EVAL_ANSWER_BYTES, "%u", key);
    return done(&out, q);
}

static bool make_pairs(const struct eval_task *t, const struct eval_draw *d, struct eval_question *q)
{
    const uint64_t asked = draw_below(d, OF_DEPTH, 0, d->filler);
    char key[WORD_BYTES], value[WORD_BYTES];
    struct text out = { 0 };
    (void)t;
    text_printf(&out, "Extract the value corresponding to the specified key in the JSON object below.\n\n{");
    for (uint32_t i = 0; i < d->filler; i++) {
        draw_thing(d, UUID, OF_KEY, i, key);
        draw_thing(d, UUID, OF_VALUE, i, value);
        text_printf(&out, "%s\"%s\": \"%s\"", i ? ", " : "", key, value);
    }
    draw_thing(d, UUID, OF_KEY, asked, key);
    draw_thing(d, UUID, OF_VALUE, asked, value);
    text_printf(&out, "}\n\nKey: \"%s\"\nThe value associated with the specified key is: \"", key);
    answer(q, value);
    return done(&out, q);
}

/* ---- exact retrieval ---- */

enum { KEY_BYTES = 8 };

static void letters(uint64_t seed, uint64_t what, uint64_t i, char first, char out[KEY_BYTES])
{
    uint64_t r = rng_at(seed, what, i);
    for (int k = 0; k < KEY_BYTES; k++, r /= 26)
        out[k] = (char)(first + (char)(r % 26));
}

/*
 * One text for all samples of a seed: each asks for another of its needles. A needle fills a block, and the question shuffles its key through a whole block before
 * it asks: a selector that sees queries one block late has then seen it.
 */
static bool make_copy(const struct eval_task *t, const struct eval_draw *d, struct eval_question *q)
{
    const uint32_t n = d->filler / 2 < 1 ? 1 : d->filler / 2 < THINGS_MAX ? d->filler / 2 : THINGS_MAX;
    const uint32_t asked = d->sample % n, gap = d->filler / n;
    char piece[KEY_BYTES], key[KEY_BYTES], value[KEY_BYTES];
    struct text out = { 0 };
    (void)t;
    for (uint32_t b = 0; b < d->filler; b++) {
        const uint32_t i = b / gap;
        const bool here = i < n && b % gap == (uint32_t)(rng_unit(rng_at(d->seed, OF_DEPTH, i)) * gap);
        for (uint32_t k = 0; k < BLOCK / KEY_BYTES; k++) {
            if (here)
                letters(d->seed, k % 2 ? OF_VALUE : OF_KEY, i, 'A', piece);
            else
                letters(d->seed, OF_ESSAY, (uint64_t)b * BLOCK + k, 'a', piece);
            text_add(&out, piece, KEY_BYTES);
        }
    }
    letters(d->seed, OF_KEY, asked, 'A', key);
    letters(d->seed, OF_VALUE, asked, 'A', value);
    for (uint32_t k = 0; k < BLOCK / KEY_BYTES; k++) {
        memcpy(piece, key, KEY_BYTES);
        for (uint32_t i = KEY_BYTES; i > 1; i--) {
            const uint32_t j =
                (uint32_t)(rng_unit(rng_at(d->seed, OF_SHUFFLE, (uint64_t)asked * 1000 + k * 10 + i)) * i);
            const char c = piece[j];
            piece[j] = piece[i - 1];
            piece[i - 1] = c;
        }
        text_add(&out, piece, KEY_BYTES);
    }
    text_add(&out, key, KEY_BYTES);
    q->exact = true;
    snprintf(q->answers[q->n_answers++], EVAL_ANSWER_BYTES, "%.*s", KEY_BYTES, value);
    return done(&out, q);
}

/* ---- the table ---- */

static const struct eval_task tasks[] = {
    { "niah_single_1", make_needles, 128, NOISE, WORD, NUMBER, 1, 1, 1 },
    { "niah_single_2", make_needles, 128, ESSAY, WORD, NUMBER, 1, 1, 1 },
    { "niah_single_3", make_needles, 128, ESSAY, WORD, UUID, 1, 1, 1 },
    { "niah_multikey_1", make_needles, 128, ESSAY, WORD, NUMBER, 4, 1, 1 },
    { "niah_multikey_2", make_needles, 128, NEEDLES, WORD, NUMBER, 1, 1, 1 },
    { "niah_multikey_3", make_needles, 128, NEEDLES, UUID, UUID, 1, 1, 1 },
    { "niah_multivalue", make_needles, 128, ESSAY, WORD, NUMBER, 1, 4, 1 },
    { "niah_multiquery", make_needles, 128, ESSAY, WORD, NUMBER, 4, 1, 4 },
    { "vt", make_tracking, 30, NOISE, WORD, NUMBER, 0, 0, 0 },
    { "cwe", make_common, 120, NOISE, WORD, NUMBER, 0, 0, 0 },
    { "fwe", make_frequent, 50, NOISE, WORD, NUMBER, 0, 0, 0 },
    { "passkey", make_passkey, 6, NOISE, WORD, NUMBER, 0, 0, 0 },
    { "kv", make_pairs, 50, NOISE, WORD, NUMBER, 0, 0, 0 },
    { "copy", make_copy, KEY_BYTES, NOISE, WORD, NUMBER, 0, 0, 0 },
};

const struct eval_task *eval_task_at(uint32_t i)
{
    return i < sizeof tasks / sizeof *tasks ? &tasks[i] : NULL;
}

const struct eval_task *eval_task_find(const char *name)
{
    for (uint32_t i = 0; eval_task_at(i); i++)
        if (!strcmp(tasks[i].name, name))
            return &tasks[i];
    return NULL;
}

const char *eval_task_name(const struct eval_task *t)
{
    return t->name;
}

bool eval_task_constructed(const struct eval_task *t)
{
    return t->make == make_copy;
}

enum status eval_task_make(const struct eval_task *t, const struct eval_draw *draw, struct eval_question *out)
{
    *out = (struct eval_question){ .max_new = t->max_new };
    return t->make(t, draw, out) ? ST_OK : ST_NO_MEMORY;
}

/* ---- answers ---- */

static bool holds(const char *text, const char *what)
{
    for (; *text; text++) {
        size_t i = 0;
        while (what[i] && tolower((unsigned char)text[i]) == tolower((unsigned char)what[i]))
            i++;
        if (!what[i])
            return true;
    }
    return false;
}

double eval_answer_score(const struct eval_question *q, const char *output)
{
    uint32_t n = 0;
    if (q->exact)
        return strncmp(output, q->answers[0], strlen(q->answers[0])) == 0;
    if (q->first_number) {
        const size_t skip = strcspn(output, "0123456789"), bytes = strspn(output + skip, "0123456789");
        return bytes == strlen(q->answers[0]) && !memcmp(output + skip, q->answers[0], bytes);
    }
    for (uint32_t i = 0; i < q->n_answers; i++)
        n += holds(output, q->answers[i]);
    return q->n_answers ? (double)n / q->n_answers : 0;
}
