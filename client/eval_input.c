#include "client/eval_input.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/rng.h"
#include "coordinator/tokenizer/tokenizer.h"

enum {
    TEXT_BYTES_MAX = 1 << 28,
    LENGTH_DEFAULT = 8192,
    LENGTH_QUICK = 4096,
    WINDOWS = 8,
    WINDOWS_QUICK = 2,
    SAMPLES = 20,
    SAMPLES_QUICK = 4,
    FILES_MAX = 64,
    BYTES_PER_TOKEN = 16 /* of ordinary text in any vocabulary: more than there are */
};

/* One file, or those of the corpus by name. */
struct sources {
    struct {
        char name[256], *text;
        size_t bytes;
    } file[FILES_MAX];
    uint32_t n;
    bool corpus;
};

static void sources_free(struct sources *s)
{
    for (uint32_t i = 0; i < s->n; i++)
        free(s->file[i].text);
    s->n = 0;
}

struct reading {
    const struct settings *settings;
    uint64_t seed;
    const struct model_config *model;
    struct tokenizer *tokenizer;
    struct sources sources;
    struct eval_input *out;
};

/* ---- texts ---- */

static int is_text(const struct dirent *e)
{
    const size_t n = strlen(e->d_name);
    return n > 4 && n < 256 && e->d_name[0] != '.' && !strcmp(e->d_name + n - 4, ".txt");
}

static enum status read_corpus(const char *directory, struct sources *out, struct error *err)
{
    struct dirent **list;
    enum status st = ST_OK;
    const int n = scandir(directory, &list, is_text, alphasort);
    if (n <= 0) {
        if (n == 0)
            free(list);
        return error_set(err, ST_NOT_FOUND,
                         "--corpus: %s: no *.txt there (scripts/corpus.sh gathers some; --text FILE takes any)",
                         directory);
    }
    for (int i = 0; i < n; i++) {
        char path[1400];
        snprintf(path, sizeof path, "%s/%s", directory, list[i]->d_name);
        if (!st && out->n == FILES_MAX)
            st = error_set(err, ST_TOO_LARGE, "--corpus: %s: more than %d files", directory, FILES_MAX);
        if (!st) {
            snprintf(out->file[out->n].name, sizeof out->file[0].name, "%s", list[i]->d_name);
            st = file_read(path, TEXT_BYTES_MAX, &out->file[out->n].text, &out->file[out->n].bytes, err);
            out->n += !st;
        }
        free(list[i]);
    }
    free(list);
    out->corpus = true;
    return st;
}

static enum status read_sources(struct reading *r, struct error *err)
{
    const struct settings *s = r->settings;
    struct sources *to = &r->sources;
    enum status st;
    if (s->text_file[0]) {
        st = file_read(s->text_file, TEXT_BYTES_MAX, &to->file[0].text, &to->file[0].bytes, err);
        to->n = !st;
    } else {
        st = read_corpus(s->corpus, to, err);
    }
    for (uint32_t i = 0; i < to->n && !st; i++)
        if (!to->file[i].bytes)
            st = error_set(err, ST_INVALID, "%s%s%s: no text in it", s->text_file[0] ? s->text_file : s->corpus,
                           s->text_file[0] ? "" : "/", to->file[i].name);
    snprintf(r->out->text_name, sizeof r->out->text_name, "%s", s->text_file[0] ? s->text_file : s->corpus);
    return st;
}

static enum status encode(const struct reading *r, const char *text, size_t bytes, int32_t **ids_out, size_t *n_out,
                          struct error *err)
{
    const enum status st = tokenizer_encode(r->tokenizer, text, bytes, false, bytes + 1, ids_out, n_out);
    return st ? error_set(err, st, "--text: the text cannot be tokenized: %s", status_text(st)) : ST_OK;
}

/* ---- windows ---- */

/* Tokens that prompts of this model begin with. */
static uint32_t n_begin(const struct reading *r)
{
    return r->model->add_bos && r->model->bos >= 0;
}

static enum status check_length(struct reading *r, uint64_t length, struct error *err)
{
    const struct settings *s = r->settings;
    if (length > r->model->positions_max || length < 2 * EVAL_ROWS)
        return error_set(err, ST_INVALID, "--length: %llu tokens (%d to %u, the model's context)",
                         (unsigned long long)length, 2 * EVAL_ROWS, r->model->positions_max);
    struct eval_windows *w = &r->out->windows;
    *w = (struct eval_windows){ .n_windows = s->quick ? WINDOWS_QUICK : WINDOWS,
                                .length = (uint32_t)length,
                                .n_vocab = r->model->n_vocab };
    r->out->tokens = malloc(w->n_windows * length * sizeof *r->out->tokens);
    w->tokens = r->out->tokens;
    return r->out->tokens ? ST_OK
                          : error_set(err, ST_NO_MEMORY, "no memory for %llu tokens", (unsigned long long)length);
}

static uint64_t length_wanted(const struct reading *r)
{
    const struct settings *s = r->settings;
    const uint64_t usual = s->quick ? LENGTH_QUICK : LENGTH_DEFAULT;
    return s->length ? s->length : usual < r->model->positions_max ? usual : r->model->positions_max;
}

static void set_window(struct reading *r, uint32_t i, const int32_t *ids)
{
    const struct eval_windows *w = &r->out->windows;
    int32_t *to = r->out->tokens + (size_t)i * w->length;
    to[0] = r->model->bos;
    memcpy(to + n_begin(r), ids, (w->length - n_begin(r)) * sizeof *to);
}

/* ---- what calibrations are made from ---- */

/* Room for sequences beside the windows. */
static enum status held_out_alloc(struct reading *r, struct error *err)
{
    r->out->held_out = malloc((size_t)EVAL_HELD_OUT_MAX * EVAL_HELD_OUT * sizeof(int32_t));
    return r->out->held_out ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory");
}

static void hold_out(struct reading *r, const int32_t *ids)
{
    int32_t *to = r->out->held_out + (size_t)r->out->n_held_out++ * EVAL_HELD_OUT;
    to[0] = r->model->bos;
    memcpy(to + n_begin(r), ids, (EVAL_HELD_OUT - n_begin(r)) * sizeof *to);
}

/* Whether [a, a + a_size) and [b, b + b_size) share something. */
static bool overlaps(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
    return a < b + b_size && b < a + a_size;
}

/* Of n tokens of one text, evenly apart but for the windows. */
static enum status hold_out_of_text(struct reading *r, const int32_t *ids, uint64_t n, uint64_t window,
                                    struct error *err)
{
    const uint64_t own = EVAL_HELD_OUT - n_begin(r), places = n / own;
    const enum status st = held_out_alloc(r, err);
    uint64_t there = 0, taken = 0;
    for (int pass = 0; pass < 2 && !st; pass++)
        for (uint64_t p = 0, seen = 0; p < places; p++) {
            bool scored = false;
            for (uint32_t i = 0; i < r->out->windows.n_windows; i++)
                scored = scored || overlaps(p * own, own, eval_window_at(r->seed, i, n, window), window);
            if (scored)
                continue;
            if (pass == 0)
                there++;
            else if (seen++ * EVAL_HELD_OUT_MAX >= taken * there && taken < EVAL_HELD_OUT_MAX) {
                hold_out(r, ids + p * own);
                taken++;
            }
        }
    return st;
}

/* Of one text: cut from its tokens at places that the seed draws. */
static enum status cut_text(struct reading *r, struct error *err)
{
    int32_t *ids = NULL;
    size_t n;
    uint64_t length = length_wanted(r);
    enum status st = encode(r, r->sources.file[0].text, r->sources.file[0].bytes, &ids, &n, err);
    if (st)
        return st;
    if (!r->settings->length && length > n + n_begin(r))
        length = n + n_begin(r);
    if (length > n + n_begin(r))
        st = error_set(err, ST_INVALID, "--text: %zu tokens, fewer than the %llu of a window (--length)", n,
                       (unsigned long long)length);
    if (!st)
        st = check_length(r, length, err);
    for (uint32_t i = 0; !st && i < r->out->windows.n_windows; i++)
        set_window(r, i, ids + eval_window_at(r->seed, i, n, length - n_begin(r)));
    if (!st)
        st = hold_out_of_text(r, ids, n, length - n_begin(r), err);
    free(ids);
    return st;
}

/* Sequences of one file, from places that are evenly apart; in all as many as files before it and this one may have together. */
static enum status hold_out_of_file(struct reading *r, const struct sources *from, uint32_t f, struct error *err)
{
    enum { BYTES = EVAL_HELD_OUT * BYTES_PER_TOKEN };
    const uint32_t wanted = EVAL_HELD_OUT_MAX * (f + 1) / from->n - r->out->n_held_out;
    const size_t bytes = from->file[f].bytes, size = BYTES < bytes ? BYTES : bytes,
                 apart = wanted > 1 ? (bytes - size) / (wanted - 1) : 0;
    enum status st = ST_OK;
    for (uint32_t i = 0; i < (apart ? wanted : 1) && !st; i++) {
        int32_t *ids = NULL;
        size_t n = 0;
        st = encode(r, from->file[f].text + i * apart, size, &ids, &n, err);
        if (!st && n + n_begin(r) >= EVAL_HELD_OUT)
            hold_out(r, ids);
        free(ids);
    }
    return st;
}

/* Of CORPUS/held-out, which no window of any seed is cut from. ST_NOT_FOUND: there is none. */
static enum status hold_out_apart(struct reading *r, struct error *err)
{
    struct sources from = { .n = 0 };
    char directory[1200];
    snprintf(directory, sizeof directory, "%s/held-out", r->settings->corpus);
    if (!file_exists(directory))
        return ST_NOT_FOUND;
    enum status st = read_corpus(directory, &from, err);
    if (!st)
        st = held_out_alloc(r, err);
    for (uint32_t f = 0; f < from.n && !st; f++)
        st = hold_out_of_file(r, &from, f, err);
    if (!st)
        snprintf(r->out->held_out_name, sizeof r->out->held_out_name, "%s", directory);
    sources_free(&from);
    return st;
}

/* Of the corpus: from places that the seed draws, where no window of the file is. windows_at: their first bytes; room: bytes of each */
static enum status hold_out_of_corpus(struct reading *r, const size_t *windows_at, size_t room, struct error *err)
{
    enum { BYTES = EVAL_HELD_OUT * BYTES_PER_TOKEN, TRIES = 4 * EVAL_HELD_OUT_MAX };
    enum status st = held_out_alloc(r, err);
    for (uint32_t k = 0; k < TRIES && r->out->n_held_out < EVAL_HELD_OUT_MAX && !st; k++) {
        const uint32_t f = k % r->sources.n;
        const size_t bytes = r->sources.file[f].bytes, size = BYTES < bytes ? BYTES : bytes,
                     at = (size_t)eval_window_at(r->seed, r->out->windows.n_windows + k, bytes, size);
        bool scored = false;
        for (uint32_t i = f; i < r->out->windows.n_windows; i += r->sources.n)
            scored = scored || overlaps(at, size, windows_at[i], room);
        int32_t *ids = NULL;
        size_t n = 0;
        if (!scored)
            st = encode(r, r->sources.file[f].text + at, size, &ids, &n, err);
        if (n + n_begin(r) >= EVAL_HELD_OUT)
            hold_out(r, ids);
        free(ids);
    }
    return st;
}

/* Of the corpus: files in turn, at places that the seed draws, from the beginning of a line. */
static enum status cut_corpus(struct reading *r, struct error *err)
{
    const uint64_t length = length_wanted(r);
    size_t windows_at[WINDOWS] = { 0 };
    enum status st = check_length(r, length, err);
    for (uint32_t i = 0; !st && i < r->out->windows.n_windows; i++) {
        const uint32_t f = i % r->sources.n;
        const char *text = r->sources.file[f].text;
        const size_t bytes = r->sources.file[f].bytes, room = length * BYTES_PER_TOKEN;
        size_t from = room < bytes ? (size_t)eval_window_at(r->seed, i, bytes, room) : 0, n = 0;
        while (from > 0 && text[from - 1] != '\n')
            from--;
        int32_t *ids = NULL;
        st = encode(r, text + from, bytes - from < room ? bytes - from : room, &ids, &n, err);
        if (!st && n + n_begin(r) < length)
            st = error_set(err, ST_INVALID, "--corpus: %s: %zu tokens, fewer than the %llu of a window (--length)",
                           r->sources.file[f].name, n, (unsigned long long)length);
        if (!st)
            set_window(r, i, ids);
        windows_at[i] = from;
        free(ids);
    }
    if (!st)
        st = hold_out_apart(r, err);
    return st == ST_NOT_FOUND ? hold_out_of_corpus(r, windows_at, length * BYTES_PER_TOKEN, err) : st;
}

/* ---- samples ---- */

static enum status encode_question(struct reading *r, struct eval_sample *s, bool plain, struct error *err)
{
    size_t n;
    if (plain) { /* the constructed model's tokens are bytes */
        s->n_tokens = (uint32_t)s->question.bytes;
        if (!(s->tokens = malloc((s->n_tokens + 1) * sizeof *s->tokens)))
            return error_set(err, ST_NO_MEMORY, "no memory");
        for (uint32_t i = 0; i < s->n_tokens; i++)
            s->tokens[i] = (uint8_t)s->question.prompt[i];
        return ST_OK;
    }
    int32_t *ids;
    const enum status st = encode(r, s->question.prompt, s->question.bytes, &ids, &n, err);
    if (st)
        return st;
    s->tokens = malloc((n + 1) * sizeof *ids);
    if (s->tokens) {
        s->tokens[0] = r->model->bos;
        memcpy(s->tokens + n_begin(r), ids, n * sizeof *ids);
        s->n_tokens = (uint32_t)n + n_begin(r);
    }
    free(ids);
    return s->tokens ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory");
}

static void drop(struct eval_sample *s)
{
    free(s->question.prompt);
    free(s->tokens);
    *s = (struct eval_sample){ 0 };
}

/* fits_out: the prompt and its answer take at most so many tokens as are wanted. */
static enum status make_sample(struct reading *r, const struct eval_task *t, const struct eval_draw *draw,
                               struct eval_sample *s, bool *fits_out, struct error *err)
{
    const enum status st = eval_task_make(t, draw, &s->question);
    if (st)
        return error_set(err, st, "no memory");
    *fits_out = false;
    if (s->question.bytes > TEXT_BYTES_MAX)
        return ST_OK;
    const enum status coded = encode_question(r, s, eval_task_constructed(t), err);
    *fits_out = !coded && s->n_tokens + s->question.max_new <= draw->length;
    return coded;
}

/* With as much filler as fits: bounds by doubling, then by halves. */
static enum status fit_sample(struct reading *r, const struct eval_wanted *w, uint32_t length, uint32_t number,
                              struct eval_sample *out, struct error *err)
{
    const struct sources *from = &r->sources;
    struct eval_draw draw = { r->seed, number, 1, length, from->file[0].text, from->file[0].bytes };
    uint32_t low = 0, high = 1; /* fits, does not */
    enum status st = ST_OK;
    struct eval_sample s = { 0 };
    bool fits = true;
    for (; !st && fits && high < 1u << 30; high *= 2) {
        draw.filler = high;
        st = make_sample(r, w->task, &draw, &s, &fits, err);
        drop(&s);
        if (!st && fits)
            low = high;
        else
            break;
    }
    while (!st && high - low > 1 + low / 200) {
        draw.filler = low + (high - low) / 2;
        st = make_sample(r, w->task, &draw, &s, &fits, err);
        drop(&s);
        *(fits ? &low : &high) = draw.filler;
    }
    if (!st && !low)
        return error_set(err, ST_INVALID, "--tasks: %s does not fit into %u tokens", w->text, length);
    draw.filler = low;
    if (!st)
        st = make_sample(r, w->task, &draw, out, &fits, err);
    return st;
}

static enum status make_samples(struct reading *r, const struct eval_wanted *wanted, uint32_t n_wanted,
                                bool constructed, struct error *err)
{
    const struct settings *s = r->settings;
    struct eval_input *to = r->out;
    const uint32_t n = s->samples ? s->samples : s->quick ? SAMPLES_QUICK : SAMPLES;
    struct eval_sample *all = calloc((size_t)n_wanted * n + 1, sizeof *all);
    uint32_t *count = constructed ? &to->n_copies : &to->n_samples,
             *positions = constructed ? &to->copy_positions : &to->positions_max;
    *(constructed ? &to->copies : &to->samples) = all;
    if (!all)
        return error_set(err, ST_NO_MEMORY, "no memory");
    for (uint32_t t = 0; t < n_wanted; t++) {
        const uint32_t length = wanted[t].length ? wanted[t].length : to->windows.length;
        if (eval_task_constructed(wanted[t].task) != constructed)
            continue;
        if (!constructed && length > r->model->positions_max)
            return error_set(err, ST_INVALID, "--tasks: %s: the model's context is %u", wanted[t].text,
                             r->model->positions_max);
        *positions = length > *positions ? length : *positions;
        for (uint32_t i = 0; i < n; i++) {
            const enum status st = fit_sample(r, &wanted[t], length, i, &all[*count], err);
            all[*count].task = t;
            *count += 1;
            if (st)
                return st;
        }
    }
    return ST_OK;
}

enum status eval_input_read(const struct settings *s, uint64_t seed, const struct eval_wanted *wanted,
                            uint32_t n_wanted, struct eval_input *out, struct error *err)
{
    struct reading r = { .settings = s, .seed = seed, .out = out };
    struct model *m = NULL;
    *out = (struct eval_input){ 0 };
    enum status st = read_sources(&r, err);
    if (!st)
        st = model_open(s->model, &m, err);
    if (!st) {
        r.model = model_config(m);
        snprintf(out->model_name, sizeof out->model_name, "%s", r.model->name);
        st = tokenizer_new(m, &r.tokenizer, err);
    }
    if (!st) {
        snprintf(out->held_out_name, sizeof out->held_out_name, "%s", out->text_name);
        st = r.sources.corpus ? cut_corpus(&r, err) : cut_text(&r, err);
    }
    out->positions_max = out->windows.length;
    if (!st)
        st = make_samples(&r, wanted, n_wanted, false, err);
    if (!st)
        st = make_samples(&r, wanted, n_wanted, true, err);
    tokenizer_free(r.tokenizer);
    model_close(m);
    sources_free(&r.sources);
    return st;
}

/* Pieces of so many tokens are compared: text that is shared by chance or custom is shorter. */
enum { PIECE = 128 };

static int compare_pieces(const void *a, const void *b)
{
    return memcmp(*(const int32_t *const *)a, *(const int32_t *const *)b, PIECE * sizeof(int32_t));
}

enum status eval_input_apart(const struct eval_input *input, const int32_t *tokens, uint64_t n, struct error *err)
{
    const struct eval_windows *w = &input->windows;
    const uint32_t each = w->length / PIECE, all = each * w->n_windows;
    const int32_t **pieces = malloc(all * sizeof *pieces), *const *found = NULL;
    if (!pieces)
        return error_set(err, ST_NO_MEMORY, "no memory");
    for (uint32_t i = 0; i < all; i++)
        pieces[i] = w->tokens + (size_t)(i / each) * w->length + (size_t)(i % each) * PIECE;
    qsort(pieces, all, sizeof *pieces, compare_pieces);
    for (uint64_t i = 0; i + PIECE <= n && !found; i++) {
        const int32_t *at = tokens + i;
        found = bsearch(&at, pieces, all, sizeof *pieces, compare_pieces);
    }
    const uint64_t place = found ? (uint64_t)(*found - w->tokens) : 0;
    const bool apart = !found;
    free(pieces);
    return apart ? ST_OK
                 : error_set(err, ST_INVALID, "window %llu is scored and was learned from, at its token %llu",
                             (unsigned long long)(place / w->length), (unsigned long long)(place % w->length));
}

void eval_input_free(struct eval_input *input)
{
    for (uint32_t i = 0; i < input->n_samples; i++)
        drop(&input->samples[i]);
    for (uint32_t i = 0; i < input->n_copies; i++)
        drop(&input->copies[i]);
    free(input->samples);
    free(input->copies);
    free(input->tokens);
    free(input->held_out);
    *input = (struct eval_input){ 0 };
}
