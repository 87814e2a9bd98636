#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/commands.h"
#include "client/eval/configs.h"
#include "client/eval/score.h"
#include "client/eval_run.h"
#include "client/interrupt.h"
#include "client/settings.h"
#include "client/terminal.h"
#include "common/file.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "model/pack.h"

enum { TEXT_BYTES_MAX = 1 << 28, LENGTH_DEFAULT = 8192, LENGTH_QUICK = 4096, WINDOWS = 8, WINDOWS_QUICK = 2 };

struct eval {
    struct settings settings;
    struct eval_config configs[EVAL_CONFIGS_MAX];
    uint32_t n_configs;
    uint64_t seed;
    char directory[64]; /* packs made for this; "": none yet */
    char model_name[128];
    struct eval_windows windows;
    int32_t *tokens;        /* [n_windows][length] */
    float *baseline, *rows; /* [n_windows][EVAL_ROWS][n_vocab] */
    json_t *results;
};

/* ---- what is asked for ---- */

/* The settings of a configuration, but for its weights; every name passes the checks that the flags pass. */
static enum status config_settings(const struct eval *e, const struct eval_config *c, struct settings *s,
                                   struct error *err)
{
    char whole[SELECTOR_TEXT];
    enum pack_weights weights;
    enum status st;
    *s = e->settings;
    s->json = true;
    if ((st = config_set(settings_fields, s, "kv-codec", c->kv_codec, "--configs: kv-codec", err)) ||
        (st = config_set(settings_fields, s, "selector", c->selector, "--configs: selector", err)) ||
        (st = settings_selector(s, whole, err)))
        return st;
    if (c->weights[0] && !pack_weights_parse(c->weights, &weights))
        return error_set(err, ST_INVALID, "--configs: weights: '%s' is none of bf16, lossless-fast, as-is", c->weights);
    return ST_OK;
}

static enum status read_seed(struct eval *e, struct error *err)
{
    const char *text = e->settings.seed;
    char *end;
    e->seed = strtoull(text, &end, 10);
    if (text[0] && (*end || text[0] < '0' || text[0] > '9'))
        return error_set(err, ST_INVALID, "--seed: '%s' is not a whole number", text);
    return ST_OK;
}

static enum status check(struct eval *e, struct error *err)
{
    struct settings s;
    enum status st = read_seed(e, err);
    if (!st && !e->settings.text_file[0])
        st = error_set(err, ST_INVALID, "--text FILE is missing: a plain text of at least one window");
    if (!st)
        st = eval_configs_parse(e->settings.configs, e->configs, &e->n_configs, err);
    for (uint32_t i = 0; i < e->n_configs && !st; i++)
        st = config_settings(e, &e->configs[i], &s, err);
    return st;
}

/* ---- the text ---- */

static enum status tokenize(const struct model *m, const char *text, size_t bytes, int32_t **ids_out, size_t *n_out,
                            struct error *err)
{
    struct tokenizer *t;
    enum status st = tokenizer_new(m, &t, err);
    if (st)
        return st;
    st = tokenizer_encode(t, text, bytes, false, bytes + 1, ids_out, n_out);
    tokenizer_free(t);
    return st ? error_set(err, st, "--text: the text cannot be tokenized: %s", status_text(st)) : ST_OK;
}

/* Windows at places drawn by the seed, each begun as prompts of this model are. */
static enum status cut_windows(struct eval *e, const struct model_config *c, const int32_t *ids, size_t n,
                               struct error *err)
{
    const struct settings *s = &e->settings;
    const uint32_t begin = c->add_bos && c->bos >= 0, wanted = s->quick ? LENGTH_QUICK : LENGTH_DEFAULT;
    uint64_t length = s->length ? s->length : wanted;
    if (!s->length && length > c->positions_max)
        length = c->positions_max;
    if (!s->length && length > n + begin)
        length = n + begin;
    if (length > n + begin)
        return error_set(err, ST_INVALID, "--text: %zu tokens, fewer than the %llu of a window (--length)", n,
                         (unsigned long long)length);
    if (length > c->positions_max || length < 2 * EVAL_ROWS)
        return error_set(err, ST_INVALID, "--length: %llu tokens (%d to %u, the model's context)",
                         (unsigned long long)length, 2 * EVAL_ROWS, c->positions_max);
    e->windows = (struct eval_windows){ .n_windows = s->quick ? WINDOWS_QUICK : WINDOWS,
                                        .length = (uint32_t)length,
                                        .n_vocab = c->n_vocab };
    const size_t floats = (size_t)e->windows.n_windows * EVAL_ROWS * c->n_vocab;
    e->tokens = malloc(e->windows.n_windows * length * sizeof *e->tokens);
    e->baseline = malloc(floats * sizeof *e->baseline);
    e->rows = malloc(floats * sizeof *e->rows);
    if (!e->tokens || !e->baseline || !e->rows)
        return error_set(err, ST_NO_MEMORY, "no memory for %zu logits", floats);
    for (uint32_t i = 0; i < e->windows.n_windows; i++) {
        int32_t *to = e->tokens + i * length;
        to[0] = c->bos;
        memcpy(to + begin, ids + eval_window_at(e->seed, i, n, length - begin), (length - begin) * sizeof *to);
    }
    e->windows.tokens = e->tokens;
    return ST_OK;
}

static enum status read_windows(struct eval *e, struct error *err)
{
    struct model *m;
    char *text;
    int32_t *ids = NULL;
    size_t bytes, n;
    enum status st = file_read(e->settings.text_file, TEXT_BYTES_MAX, &text, &bytes, err);
    if (st)
        return st;
    st = model_open(e->settings.model, &m, err);
    if (!st) {
        snprintf(e->model_name, sizeof e->model_name, "%s", model_config(m)->name);
        st = tokenize(m, text, bytes, &ids, &n, err);
        if (!st)
            st = cut_windows(e, model_config(m), ids, n, err);
        model_close(m);
    }
    free(ids);
    free(text);
    return st;
}

/* ---- one configuration ---- */

/* The model as a pack of these weights, made once. */
static enum status use_pack(struct eval *e, const char *name, struct settings *s, struct error *err)
{
    struct pack_options options = { .weights = PACK_BF16 };
    struct model *m;
    char path[128];
    enum status st;
    if (!e->directory[0]) {
        const char *base = getenv("TMPDIR");
        snprintf(e->directory, sizeof e->directory, "%.40s/longspan-eval-XXXXXX", base && base[0] ? base : "/tmp");
        if (!mkdtemp(e->directory)) {
            e->directory[0] = 0;
            return error_set(err, ST_IO, "no directory for packs can be made under %s", base ? base : "/tmp");
        }
    }
    pack_weights_parse(name, &options.weights);
    snprintf(path, sizeof path, "%s/%s", e->directory, name);
    if (!file_exists(path)) {
        if ((st = model_open(s->model, &m, err)))
            return st;
        st = pack_write(m, path, &options, NULL, err);
        model_close(m);
        if (st)
            return st;
    }
    snprintf(s->model, sizeof s->model, "%s", path);
    return ST_OK;
}

static json_t *number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static enum status run_config(struct eval *e, uint32_t i, struct error *err)
{
    const struct eval_windows *w = &e->windows;
    const struct eval_config *c = &e->configs[i];
    float *rows = i ? e->rows : e->baseline;
    struct eval_figures f = { 0 };
    struct eval_score score = { 0 };
    struct settings s;
    enum status st = config_settings(e, c, &s, err);
    s.positions_max = w->length;
    if (!st && c->weights[0])
        st = use_pack(e, c->weights, &s, err);
    if (!st)
        st = eval_run(&s, w, rows, &f, err);
    if (st)
        return st;
    for (uint32_t k = 0; k < w->n_windows; k++)
        for (uint32_t r = 0; r < EVAL_ROWS; r++) {
            const size_t at = ((size_t)k * EVAL_ROWS + r) * w->n_vocab;
            const int32_t next = w->tokens[(size_t)k * w->length + w->length - EVAL_ROWS + r];
            eval_score_add(&score, rows + at, e->baseline + at, w->n_vocab, (uint32_t)next);
        }
    const struct eval_means means = eval_score_means(&score);
    /* sketches are a selector's; what one keeps for a token is told by nobody yet but for dense, which keeps none */
    json_t *row =
        json_pack("{s:s, s:o, s:o, s:o, s:I, s:o, s:I, s:o, s:o}", "config", c->text, "ppl", number(means.ppl), "kl",
                  number(means.kl), "top1", number(means.top1), "kv_bytes_per_token", (json_int_t)f.kv_bytes_per_token,
                  "sketch_bytes_per_token", strcmp(c->selector, "dense") ? json_null() : json_integer(0), "peak_bytes",
                  (json_int_t)f.peak_bytes, "prefill_tps", number(f.prefill_tps), "decode_tps", number(f.decode_tps));
    return row && !json_array_append_new(e->results, row) ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory");
}

/* ---- what came out ---- */

static void print_table(const struct eval *e)
{
    const json_t *row;
    size_t i;
    printf("%s: the last %d of %u tokens, %u windows; kl and top1 against the first row\n\n", e->model_name, EVAL_ROWS,
           e->windows.length, e->windows.n_windows);
    printf(
        "| config | ppl | kl | top1 | KV bytes/token | sketch bytes/token | peak MiB | prefill tok/s | decode tok/s |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    json_array_foreach(e->results, i, row)
    {
        const json_t *sketch = json_object_get(row, "sketch_bytes_per_token");
        char sketch_text[24] = "?";
        if (json_is_integer(sketch))
            snprintf(sketch_text, sizeof sketch_text, "%lld", (long long)json_integer_value(sketch));
        printf("| %s | %.4f | %.3g | %.4f | %lld | %s | %.0f | %.1f | %.1f |\n",
               json_string_value(json_object_get(row, "config")), json_number_value(json_object_get(row, "ppl")),
               json_number_value(json_object_get(row, "kl")), json_number_value(json_object_get(row, "top1")),
               (long long)json_integer_value(json_object_get(row, "kv_bytes_per_token")), sketch_text,
               (double)json_integer_value(json_object_get(row, "peak_bytes")) / 0x1p20,
               json_number_value(json_object_get(row, "prefill_tps")),
               json_number_value(json_object_get(row, "decode_tps")));
    }
}

static void print_json(const struct eval *e)
{
    json_t *o = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:O}", "model", e->model_name, "text", e->settings.text_file,
                          "seed", (json_int_t)e->seed, "length", (json_int_t)e->windows.length, "windows",
                          (json_int_t)e->windows.n_windows, "rows_scored", (json_int_t)e->windows.n_windows * EVAL_ROWS,
                          "rows", e->results);
    char *text = o ? json_dumps(o, JSON_INDENT(2)) : NULL;
    if (text)
        puts(text);
    free(text);
    json_decref(o);
}

static enum status evaluate(struct eval *e, struct error *err)
{
    enum status st = read_windows(e, err);
    for (uint32_t i = 0; i < e->n_configs && !st; i++) {
        terminal_bar("eval", (float)i / (float)e->n_configs);
        st = run_config(e, i, err);
        if (st && !interrupted())
            fprintf(stderr, "longspan: configuration %s:\n", e->configs[i].text);
    }
    terminal_bar_end();
    if (!st && e->settings.json)
        print_json(e);
    else if (!st)
        print_table(e);
    return st;
}

int command_eval(int argc, char **argv)
{
    static struct eval e;
    struct error err = { 0 };
    const char *prompt, *positional;
    if (!settings_read(
            &e.settings, SCOPE_EVAL,
            "usage: longspan eval --model MODEL --configs CODEC:SELECTOR[@DENSITY][:WEIGHTS],... --text FILE "
            "[--length N] [--seed S] [--quick] [--json]",
            argc, argv, &prompt, &positional))
        return 2;
    if (positional || check(&e, &err)) {
        fprintf(stderr, "longspan: %s\n", positional ? "eval takes flags only" : err.text);
        return 2;
    }
    interrupt_catch();
    e.results = json_array();
    const enum status st = e.results ? evaluate(&e, &err) : ST_NO_MEMORY;
    if (st)
        fprintf(stderr, "longspan: %s\n", err.text[0] ? err.text : status_text(st));
    if (e.directory[0])
        file_remove_tree(e.directory, NULL);
    json_decref(e.results);
    free(e.tokens);
    free(e.baseline);
    free(e.rows);
    return st ? 1 : 0;
}
