#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/calibrate_make.h"
#include "client/commands.h"
#include "client/eval/report.h"
#include "client/eval_input.h"
#include "client/eval_run.h"
#include "client/eval_solo.h"
#include "client/interrupt.h"
#include "client/quantize.h"
#include "client/settings.h"
#include "client/terminal.h"
#include "common/clock.h"
#include "common/file.h"
#include "model/pack.h"

/* Rows whose mean counts once in an interval; and the dense layers that the constructed model's looking back takes. */
enum { BATCH_ROWS = 16, BATCHES = EVAL_ROWS / BATCH_ROWS, COPY_DENSE_LAYERS = 3 };
/* Nobody waits for a cluster of eval's: a step may take long. */
enum { STEP_DEADLINE_MS = 600000, SILENCE_MS = 60000 };

struct eval {
    struct settings settings;
    struct eval_config configs[EVAL_CONFIGS_MAX];
    struct eval_variant variants[EVAL_CONFIGS_MAX]; /* of those that are not offered */
    struct eval_wanted wanted[EVAL_TASKS_MAX];
    uint32_t n_configs, n_wanted;
    uint64_t seed;
    char directory[64]; /* packs made for this; "": none yet */
    struct eval_input input;
    float *baseline, *rows; /* [n_windows][EVAL_ROWS][n_vocab] */
    float *scores;          /* [n_samples + n_copies] */
    struct eval_progress progress;
    struct eval_report report;
};

/* ---- what is asked for ---- */

static bool is_offered(const struct eval_config *c)
{
    return !c->varied && !kv_form_find(c->kv_codec);
}

/* The settings of a configuration, but for its weights; every name passes the checks that the flags pass. */
static enum status config_settings(const struct eval *e, const struct eval_config *c, struct settings *s,
                                   struct error *err)
{
    char whole[SELECTOR_TEXT];
    enum pack_weights weights;
    enum status st;
    *s = e->settings;
    s->json = true;
    s->step_deadline_ms = STEP_DEADLINE_MS;
    s->silence_ms = SILENCE_MS;
    const char *codec = kv_form_find(c->kv_codec) ? "bf16" : c->kv_codec;
    if ((st = config_set(settings_fields, s, "kv-codec", codec, "--configs: kv-codec", err)) ||
        (st = config_set(settings_fields, s, "selector", c->selector, "--configs: selector", err)) ||
        (st = settings_selector(s, whole, err)))
        return st;
    if (c->weights[0] && !pack_weights_parse(c->weights, &weights))
        return error_set(err, ST_INVALID,
                         "--configs: weights: '%s' is none of bf16, lossless-fast, df11, leanquant-4, -3, -2, as-is",
                         c->weights);
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
    if (!st)
        st = eval_configs_parse(e->settings.configs, e->configs, &e->n_configs, err);
    if (!st)
        st = eval_tasks_parse(e->settings.tasks, e->wanted, &e->n_wanted, err);
    for (uint32_t i = 0; i < e->n_configs && !st; i++) {
        st = config_settings(e, &e->configs[i], &s, err);
        if (!st && !is_offered(&e->configs[i]))
            st = eval_variant_read(&e->configs[i], &s, &e->variants[i], err);
    }
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
        struct quantize *quantize = NULL;
        if (pack_weights_calibrated(options.weights))
            st = quantize_options(m, "--calibration-text", s->calibration_text, &options, &quantize, err);
        if (!st)
            st = pack_write(m, path, &options, NULL, err);
        quantize_free(quantize);
        model_close(m);
        if (st)
            return st;
    }
    snprintf(s->model, sizeof s->model, "%s", path);
    return ST_OK;
}

static void score_windows(const struct eval *e, const float *rows, struct eval_row *row)
{
    const struct eval_windows *w = &e->input.windows;
    struct eval_score batches[EVAL_BATCHES_MAX] = { 0 };
    for (uint32_t k = 0; k < w->n_windows; k++)
        for (uint32_t r = 0; r < EVAL_ROWS; r++) {
            const size_t at = ((size_t)k * EVAL_ROWS + r) * w->n_vocab;
            const int32_t next = w->tokens[(size_t)k * w->length + w->length - EVAL_ROWS + r];
            eval_score_add(&batches[k * BATCHES + r / BATCH_ROWS], rows + at, e->baseline + at, w->n_vocab,
                           (uint32_t)next);
        }
    row->quality = eval_quality(batches, w->n_windows * BATCHES);
}

static void score_tasks(const struct eval_sample *samples, const float *scores, uint32_t n, struct eval_row *row)
{
    double sum[EVAL_TASKS_MAX] = { 0 };
    uint32_t count[EVAL_TASKS_MAX] = { 0 };
    for (uint32_t i = 0; i < n; i++) {
        sum[samples[i].task] += (double)scores[i];
        count[samples[i].task]++;
    }
    for (uint32_t t = 0; t < EVAL_TASKS_MAX; t++)
        if (count[t])
            row->tasks[t] = eval_estimate_share(sum[t], count[t]);
}

/* Exact retrieval, by a cluster of the constructed model with the same codec and selector. */
static enum status run_copies(struct eval *e, const struct settings *of, struct eval_row *row, struct error *err)
{
    const struct eval_input *in = &e->input;
    const struct eval_job job = { .samples = in->copies, .n_samples = in->n_copies, .progress = e->progress };
    float *scores = e->scores + in->n_samples;
    struct eval_figures figures = { 0 };
    struct settings s = *of;
    snprintf(s.model, sizeof s.model, "constructed:copy:%u", in->copy_positions);
    snprintf(s.selector_channels, sizeof s.selector_channels, "block"); /* it has no calibration */
    s.positions_max = in->copy_positions;
    if (strtoul(s.selector_dense_layers, NULL, 10) < COPY_DENSE_LAYERS) /* "default" too */
        snprintf(s.selector_dense_layers, sizeof s.selector_dense_layers, "%d", COPY_DENSE_LAYERS);
    const enum status st = eval_run(&s, &job, NULL, scores, &figures, err);
    e->progress.done += eval_job_tokens(&job);
    if (!st)
        score_tasks(in->copies, scores, in->n_copies, row);
    return st;
}

/* ---- calibrations ---- */

static enum status calibrate_here(const struct eval *e, const struct settings *s, const char *selector,
                                  struct error *err)
{
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    static struct calibrate_made made;
    const struct calibrate_wanted wanted = {
        .model_spec = s->model,
        .kv_codec = s->kv_codec,
        .selector = selector,
        .method = CALIBRATE_ATTENTION,
        .text = { e->input.held_out, e->input.n_held_out, EVAL_HELD_OUT },
        .n_threads = s->threads  ? s->threads
                     : cores > 1 ? (uint32_t)cores
                                 : 1,
        .seed = 1,
    };
    const enum status st = calibrate_make(&wanted, &made, err);
    if (!st)
        fprintf(stderr, "longspan: eval: %s, by %s, of %u tokens of %s that are not scored\n", made.path,
                selector ? "mean |q k|" : "attention weights", e->input.n_held_out * EVAL_HELD_OUT,
                e->input.held_out_name);
    return st;
}

/* In a process of its own, since this one forks and must have no threads. selector: whose channels; NULL: the codec's books */
static enum status calibrate_apart(struct eval *e, const struct settings *s, const char *selector, struct error *err)
{
    const char *whose = selector ? selector : s->kv_codec;
    const int64_t begun_ms = clock_ms();
    struct error why = { 0 };
    int how = 0;
    fprintf(stderr, "longspan: eval: there is no calibration of %s for this model: making it\n", whose);
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0) {
        const enum status made = calibrate_here(e, s, selector, &why);
        if (made)
            fprintf(stderr, "longspan: eval: %s\n", why.text[0] ? why.text : status_text(made));
        _exit(made ? 1 : 0);
    }
    while (pid > 0 && waitpid(pid, &how, 0) < 0 && errno == EINTR)
        if (interrupted())
            kill(pid, SIGTERM);
    e->progress.begun_ms += clock_ms() - begun_ms; /* not counted */
    if (pid < 0 || !WIFEXITED(how) || WEXITSTATUS(how))
        return error_set(err, ST_INTERNAL, "no calibration of %s could be made", whose);
    return ST_OK;
}

/* What windows hold must not be what a calibration was learned from. Files that were made before they had their tokens are taken as they are. */
static enum status check_apart(const struct eval *e, const char *path, struct error *err)
{
    const uint32_t any[2] = { 0 };
    struct calibration *c;
    struct error why = { 0 };
    const void *tokens;
    uint32_t dims[2];
    enum status st = calibration_open(path, &c, err);
    if (st)
        return st;
    if (!calibration_array(c, "tokens", CALIBRATION_I32, 2, any, dims, &tokens, &why))
        st = eval_input_apart(&e->input, tokens, (uint64_t)dims[0] * dims[1], &why);
    calibration_close(c);
    return st ? error_set(err, st,
                          "%s: %s: take other text, or another calibration (--calibration, longspan calibrate)", path,
                          why.text)
              : ST_OK;
}

/* The same of the codec's that these settings would use. */
static enum status check_codec_apart(const struct eval *e, const struct settings *s, struct error *err)
{
    char path[CALIBRATION_PATH], digest[33];
    struct model *m;
    enum status st = settings_calibration(s, digest, err);
    if (st || !digest[0])
        return st;
    if (s->calibration[0])
        return check_apart(e, s->calibration, err);
    if ((st = model_open(s->model, &m, err)))
        return st;
    const struct digest model = model_digest(m);
    model_close(m);
    st = calibration_find(s->model, s->kv_codec, &model, path, err);
    return st ? st : check_apart(e, path, err);
}

/* The codec's calibration, made if there is none. */
static enum status calibrate(struct eval *e, const struct settings *s, struct error *err)
{
    char digest[33];
    struct error why = { 0 };
    const enum status st = settings_calibration(s, digest, &why);
    if (st != ST_NOT_FOUND) {
        *err = why;
        return st;
    }
    if (!e->input.n_held_out)
        return error_set(err, ST_NOT_FOUND, "%s; the text is too short to make it from what is not scored", why.text);
    return calibrate_apart(e, s, NULL, err);
}

/* The selector's, made where it takes one and nothing else was said, and the model is of files, or it was asked for. */
static enum status calibrate_channels_of(struct eval *e, struct settings *s, struct error *err)
{
    char text[SELECTOR_TEXT], directory[CALIBRATION_PATH];
    struct selector_spec spec;
    struct error why = { 0 };
    const bool asked = strcmp(s->selector_channels, "default") != 0;
    if (!asked && (!e->input.n_held_out || calibration_directory(s->model, directory, NULL)))
        return ST_OK;
    if (!asked)
        snprintf(s->selector_channels, sizeof s->selector_channels, "calibrated");
    enum status st = settings_selector(s, text, err);
    if (st || (st = selector_parse(text, &spec, err)))
        return st;
    st = settings_channels(s, text, &why);
    if (st != ST_NOT_FOUND || settings_channels_file(s)[0]) {
        *err = why;
        return st;
    }
    if (!e->input.n_held_out)
        return error_set(err, ST_NOT_FOUND, "%s; the text is too short to make it from what is not scored", why.text);
    return calibrate_apart(e, s, spec.name, err);
}

static enum status run_config(struct eval *e, uint32_t i, struct error *err)
{
    const struct eval_input *in = &e->input;
    const struct eval_config *c = &e->configs[i];
    const bool offered = is_offered(c);
    const struct eval_job job = { &in->windows, in->samples, offered ? in->n_samples : 0, e->progress,
                                  offered ? NULL : &e->variants[i] };
    float *rows = i ? e->rows : e->baseline;
    struct eval_figures f = { 0 };
    struct eval_row *row = &e->report.rows[i];
    struct settings s, packed;
    enum status st = config_settings(e, c, &s, err);
    s.positions_max = in->positions_max;
    packed = s;
    if (!st && c->weights[0])
        st = use_pack(e, c->weights, &packed, err);
    if (!st)
        st = calibrate(e, &packed, err);
    if (!st)
        st = check_codec_apart(e, &packed, err);
    if (!st)
        st = calibrate_channels_of(e, &packed, err);
    if (!st)
        st = eval_run(&packed, &job, rows, e->scores, &f, err);
    e->progress.done += eval_job_tokens(&job);
    if (st)
        return st;
    *row = (struct eval_row){ .config = c->text,
                              .offered = offered,
                              .kv_bytes_per_token = f.kv_bytes_per_token,
                              .sketch_bytes_per_token = f.sketch_bytes_per_token,
                              .peak_bytes = f.peak_bytes,
                              .prefill_tps = f.prefill_tps,
                              .decode_tps = f.decode_tps };
    score_windows(e, rows, row);
    for (uint32_t t = 0; t < EVAL_TASKS_MAX && !offered; t++)
        row->tasks[t] = (struct eval_estimate){ NAN, NAN, NAN };
    if (offered)
        score_tasks(in->samples, e->scores, in->n_samples, row);
    return in->n_copies && offered ? run_copies(e, &s, row, err) : ST_OK;
}

/* ---- all of them ---- */

static enum status begin(struct eval *e, struct error *err)
{
    const struct eval_input *in = &e->input;
    const enum status st = eval_input_read(&e->settings, e->seed, e->wanted, e->n_wanted, &e->input, err);
    if (st)
        return st;
    const struct eval_windows *w = &in->windows;
    const size_t floats = (size_t)w->n_windows * EVAL_ROWS * w->n_vocab;
    const struct eval_job own = { .windows = w, .samples = in->samples, .n_samples = in->n_samples },
                          copies = { .samples = in->copies, .n_samples = in->n_copies };
    e->baseline = malloc(floats * sizeof *e->baseline);
    e->rows = malloc(floats * sizeof *e->rows);
    e->scores = malloc((in->n_samples + in->n_copies + 1) * sizeof *e->scores);
    if (!e->baseline || !e->rows || !e->scores)
        return error_set(err, ST_NO_MEMORY, "no memory for %zu logits", floats);
    e->progress.all = e->n_configs * (eval_job_tokens(&own) + eval_job_tokens(&copies));
    e->progress.begun_ms = clock_ms();
    struct eval_report *r = &e->report;
    r->model = in->model_name;
    r->text = in->text_name;
    r->held_out = in->held_out_name;
    r->seed = e->seed;
    r->length = w->length;
    r->n_windows = w->n_windows;
    r->rows_scored = w->n_windows * EVAL_ROWS;
    r->n_samples = e->n_wanted ? (in->n_samples + in->n_copies) / e->n_wanted : 0;
    r->wanted = e->wanted;
    r->n_wanted = e->n_wanted;
    r->n_configs = e->n_configs;
    return ST_OK;
}

/* A line of what has ended; the table is standard output's. */
static void tell_progress(const struct eval *e, uint32_t i)
{
    const struct eval_progress *p = &e->progress;
    const int64_t took_ms = clock_ms() - p->begun_ms;
    if (i + 1 < e->n_configs)
        fprintf(stderr, "longspan: eval: %u of %u configurations after %lld s, about %.0f s more\n", i + 1,
                e->n_configs, (long long)took_ms / 1000, (double)took_ms * (p->all / p->done - 1) / 1000);
    else
        fprintf(stderr, "longspan: eval: %u configurations in %lld s\n", e->n_configs, (long long)took_ms / 1000);
}

static enum status write_svg(const struct eval *e, struct error *err)
{
    FILE *out = fopen(e->settings.svg, "we");
    enum status st = out ? eval_svg(&e->report, out) : ST_IO;
    if (out && fclose(out) && !st)
        st = ST_IO;
    return st ? error_set(err, st, "--svg: %s cannot be written: %s", e->settings.svg, strerror(errno)) : ST_OK;
}

static enum status print_json(const struct eval *e, struct error *err)
{
    json_t *o = eval_json(&e->report);
    char *text = o ? json_dumps(o, JSON_INDENT(2)) : NULL;
    if (text)
        puts(text);
    free(text);
    json_decref(o);
    return text ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory");
}

/* What there is is told, whether or not all of it was reached. */
static enum status evaluate(struct eval *e, struct error *err)
{
    const struct settings *s = &e->settings;
    struct error also = { 0 };
    enum status st = begin(e, err), told = ST_OK;
    if (st)
        return st;
    if (!s->json)
        eval_table_begin(&e->report, stdout);
    for (uint32_t i = 0; i < e->n_configs && !st; i++) {
        st = run_config(e, i, err);
        terminal_bar_end();
        if (st && !interrupted())
            fprintf(stderr, "longspan: configuration %s:\n", e->configs[i].text);
        if (st)
            break;
        e->report.n_rows++;
        if (!s->json)
            eval_table_row(&e->report, i, stdout);
        tell_progress(e, i);
    }
    if (s->json)
        told = print_json(e, &also);
    if (s->svg[0] && e->report.n_rows && !told)
        told = write_svg(e, &also);
    if (!st && told)
        *err = also;
    return st ? st : told;
}

int command_eval(int argc, char **argv)
{
    static struct eval e;
    struct error err = { 0 };
    const char *prompt, *positional;
    if (!settings_read(
            &e.settings, SCOPE_EVAL,
            "usage: longspan eval --model MODEL --configs CODEC:SELECTOR[@DENSITY][:WEIGHTS],... [--length N] "
            "[--seed S] [--text FILE] [--tasks NAME,...] [--quick] [--json] [--svg FILE]",
            argc, argv, &prompt, &positional))
        return 2;
    if (positional || check(&e, &err)) {
        fprintf(stderr, "longspan: %s\n", positional ? "eval takes flags only" : err.text);
        return 2;
    }
    interrupt_catch();
    const enum status st = evaluate(&e, &err);
    if (st)
        fprintf(stderr, "longspan: %s\n", err.text[0] ? err.text : status_text(st));
    if (e.directory[0])
        file_remove_tree(e.directory, NULL);
    eval_input_free(&e.input);
    free(e.baseline);
    free(e.rows);
    free(e.scores);
    return st ? 1 : 0;
}
