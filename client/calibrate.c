#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/calibrate_make.h"
#include "client/commands.h"
#include "client/interrupt.h"
#include "client/terminal.h"
#include "common/config.h"
#include "common/file.h"
#include "coordinator/tokenizer/tokenizer.h"

enum { TEXT_BYTES_MAX = 1 << 28 };

struct options {
    char config[1024], model[1024], kv_codec[16], selector[24], text[1024], method[16], weights[1024], out[1024];
    uint32_t tokens, sequence, seed, threads;
    bool json;
};

#define TEXT(field)  offsetof(struct options, field), sizeof(((struct options *)0)->field)
#define PLAIN(field) offsetof(struct options, field), 0

/* clang-format off */
static const struct config_field fields[] = {
    { "config", "", CONFIG_TEXT, TEXT(config), 0, 0, NULL, 1, "file of these settings (YAML); flags win" },
    { "model", "models/smollm2-135m-instruct", CONFIG_TEXT, TEXT(model), 0, 0, NULL, 1, "the model, as up takes it" },
    { "kv-codec", "cq-2b", CONFIG_CHOICE, TEXT(kv_codec), 0, 0, "cq-2b|cq-1b|nomad", 1, "whose codebooks are learned" },
    { "selector", "none", CONFIG_CHOICE, TEXT(selector), 0, 0, "none|double-sparsity", 1, "whose channels are learned, instead of codebooks: by |q k|" },
    { "text", "", CONFIG_TEXT, TEXT(text), 0, 0, NULL, 1, "file of plain text that the model is run over: as mixed as what will be served" },
    { "tokens", "16384", CONFIG_U32, PLAIN(tokens), 256, 1 << 22, NULL, 1, "how many of it, in sequences that are spread over the text" },
    { "sequence", "1024", CONFIG_U32, PLAIN(sequence), CALIBRATE_SEQUENCE_MIN, CALIBRATE_SEQUENCE_MAX, NULL, 1, "tokens of a sequence" },
    { "method", "attention", CONFIG_CHOICE, TEXT(method), 0, 0, "attention|kmeans", 1, "what an error counts: by attention weights, an approximation of Fisher weights; or the same everywhere" },
    { "weights", "", CONFIG_TEXT, TEXT(weights), 0, 0, NULL, 1, "file of Fisher weights (scripts/fisher.py makes it), whose tokens are used instead of --text" },
    { "out", "", CONFIG_TEXT, TEXT(out), 0, 0, NULL, 1, "the file; none: MODEL/calibration/CODEC-DIGEST" },
    { "seed", "1", CONFIG_U32, PLAIN(seed), 0, UINT32_MAX, NULL, 1, "of the first centroids" },
    { "threads", "0", CONFIG_U32, PLAIN(threads), 0, 1024, NULL, 1, "0: one a core" },
    { "json", "false", CONFIG_BOOL, PLAIN(json), 0, 0, NULL, 1, "as JSON" },
    { 0 },
};
/* clang-format on */

static const char usage[] = "usage: longspan calibrate --model DIR (--kv-codec CODEC | --selector SELECTOR) --text "
                            "FILE [--tokens N] [--method M] "
                            "[--weights FILE]";

/* The file that flags name, and then the flags once more. */
static enum status read_all(struct options *o, int argc, char **argv, int *index, struct error *err)
{
    enum status st = config_defaults(fields, o, err);
    if (st)
        return st;
    struct options flags_only = *o;
    st = config_flags(fields, &flags_only, 1, argc, argv, index, err);
    if (!st && flags_only.config[0])
        st = config_file(fields, o, flags_only.config, err);
    *index = 1;
    return st ? st : config_flags(fields, o, 1, argc, argv, index, err);
}

static bool read_options(struct options *o, int argc, char **argv)
{
    struct error err = { 0 };
    int index = 1;
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            printf("%s\n\n", usage);
            config_help(fields, 1, stdout);
            exit(0);
        }
    enum status st = read_all(o, argc, argv, &index, &err);
    if (!st && index < argc)
        st = error_set(&err, ST_INVALID, "calibrate takes no argument '%s'", argv[index]);
    if (!st && !o->text[0] == !o->weights[0])
        st = error_set(&err, ST_INVALID, "either --text or --weights is wanted");
    if (!st && !strcmp(o->selector, "none"))
        o->selector[0] = 0;
    else if (!st && o->weights[0])
        st = error_set(&err, ST_INVALID, "--weights: of selector %s only --text is looked at", o->selector);
    if (st)
        fprintf(stderr, "longspan: %s\n%s (--help shows the flags)\n", err.text, usage);
    return !st;
}

static void show_progress(void *ctx, const char *what, float fraction)
{
    (void)ctx;
    terminal_bar(what, fraction);
}

static bool is_stopped(void *ctx)
{
    (void)ctx;
    return interrupted();
}

/* Sequences of the text, evenly apart; as many as are wanted, or as it has. */
static enum status cut(const struct options *o, const struct model_config *c, const int32_t *ids, size_t n,
                       struct calibrate_text *out, struct error *err)
{
    const uint32_t begin = c->add_bos && c->bos >= 0, own = o->sequence - begin,
                   wanted = (o->tokens + o->sequence - 1) / o->sequence;
    const size_t there = n / own;
    if (o->sequence > c->positions_max)
        return error_set(err, ST_INVALID, "--sequence: %u tokens, the model's context is %u", o->sequence,
                         c->positions_max);
    if (!there)
        return error_set(err, ST_INVALID, "--text: %zu tokens, fewer than a sequence (%u)", n, o->sequence);
    const uint32_t n_sequences = wanted < there ? wanted : (uint32_t)there;
    int32_t *to = malloc((size_t)n_sequences * o->sequence * sizeof *to);
    if (!to)
        return error_set(err, ST_NO_MEMORY, "no memory");
    for (uint32_t i = 0; i < n_sequences; i++) {
        int32_t *at = to + (size_t)i * o->sequence;
        at[0] = c->bos;
        memcpy(at + begin, ids + (n_sequences > 1 ? (n - own) / (n_sequences - 1) * i : 0), own * sizeof *ids);
    }
    *out = (struct calibrate_text){ to, n_sequences, o->sequence };
    return ST_OK;
}

static enum status read_text(const struct options *o, struct calibrate_text *out, struct error *err)
{
    struct model *m = NULL;
    struct tokenizer *tokenizer = NULL;
    char *text = NULL;
    int32_t *ids = NULL;
    size_t bytes, n;
    enum status st = file_read(o->text, TEXT_BYTES_MAX, &text, &bytes, err);
    if (!st)
        st = model_open(o->model, &m, err);
    if (!st)
        st = tokenizer_new(m, &tokenizer, err);
    if (!st && (st = tokenizer_encode(tokenizer, text, bytes, false, bytes + 1, &ids, &n)))
        st = error_set(err, st, "--text: the text cannot be tokenized: %s", status_text(st));
    if (!st)
        st = cut(o, model_config(m), ids, n, out, err);
    free(ids);
    free(text);
    tokenizer_free(tokenizer);
    model_close(m);
    return st;
}

static enum status print(const struct options *o, const struct calibrate_made *made, struct error *err)
{
    char digest[33];
    const struct calibration_origin *from = &made->origin;
    digest_text(&made->digest, digest);
    const bool values = !isnan(made->lost[1]);
    if (!o->json && o->selector[0]) {
        printf("%s: channels of %s by mean |q k|, %llu tokens in sequences of %u; they hold %.2f %% of it\n",
               made->path, from->codec, (unsigned long long)from->tokens, from->sequence, 100 * made->held);
        return ST_OK;
    }
    if (!o->json) {
        printf("%s: %s by %s, %llu tokens in sequences of %u, seed %llu; squares lost: keys %.2f %%", made->path,
               from->codec, from->method, (unsigned long long)from->tokens, from->sequence,
               (unsigned long long)from->seed, 100 * made->lost[0]);
        if (values)
            printf(", values %.2f %%", 100 * made->lost[1]);
        puts(strcmp(from->method, "kmeans") ? " (weighted)" : "");
        return ST_OK;
    }
    json_t *all = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:f, s:o}", "out", made->path, "digest",
                            digest, "codec", from->codec, "method", from->method, "model", from->model, "text",
                            from->text, "weights", from->weights, "tokens", (json_int_t)from->tokens, "sequence",
                            (json_int_t)from->sequence, "seed", (json_int_t)from->seed, "keys_lost", made->lost[0],
                            "values_lost", values ? json_real(made->lost[1]) : json_null());
    if (o->selector[0] && all) {
        json_object_del(all, "keys_lost");
        json_object_del(all, "values_lost");
        json_object_set_new(all, "held", json_real(made->held));
    }
    char *text = all ? json_dumps(all, JSON_INDENT(2)) : NULL;
    if (text)
        puts(text);
    free(text);
    json_decref(all);
    return text ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory");
}

int command_calibrate(int argc, char **argv)
{
    struct options o;
    struct error err = { 0 };
    struct calibrate_text text = { 0 };
    static struct calibrate_made made;
    if (!read_options(&o, argc, argv))
        return 2;
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    interrupt_catch();
    enum status st = o.text[0] ? read_text(&o, &text, &err) : ST_OK;
    const struct calibrate_wanted wanted = { .model_spec = o.model,
                                             .kv_codec = o.kv_codec,
                                             .selector = o.selector,
                                             .method = o.weights[0]                    ? CALIBRATE_FISHER
                                                       : strcmp(o.method, "attention") ? CALIBRATE_KMEANS
                                                                                       : CALIBRATE_ATTENTION,
                                             .weights = o.weights,
                                             .text = text,
                                             .n_threads = o.threads   ? o.threads
                                                          : cores > 1 ? (uint32_t)cores
                                                                      : 1,
                                             .seed = o.seed,
                                             .out = o.out,
                                             .events = { show_progress, is_stopped, NULL } };
    if (!st)
        st = calibrate_make(&wanted, &made, &err);
    terminal_bar_end();
    if (!st)
        st = print(&o, &made, &err);
    if (st)
        fprintf(stderr, "longspan: %s\n", err.text[0] ? err.text : status_text(st));
    free((void *)(uintptr_t)text.ids);
    return st ? 1 : 0;
}
