#include "model/pack.h"

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "client/commands.h"
#include "client/interrupt.h"
#include "client/model_kinds.h"
#include "client/quantize.h"
#include "client/settings.h"
#include "client/terminal.h"

static void show_progress(void *ctx, float fraction)
{
    (void)ctx;
    terminal_bar("packing", fraction);
}

static bool stop(void *ctx)
{
    (void)ctx;
    return interrupted();
}

static uint64_t directory_bytes(const char *path)
{
    const struct dirent *entry;
    uint64_t bytes = 0;
    DIR *dir = opendir(path);
    while (dir && (entry = readdir(dir))) {
        char file[2048];
        struct stat info;
        if (snprintf(file, sizeof file, "%s/%s", path, entry->d_name) < (int)sizeof file && !stat(file, &info) &&
            S_ISREG(info.st_mode))
            bytes += (uint64_t)info.st_size;
    }
    if (dir)
        closedir(dir);
    return bytes;
}

static json_t *describe(const struct model *m, const struct settings *s, uint32_t resumed)
{
    uint64_t weights = 0;
    json_t *tensors = model_kinds_describe(m, &weights);
    const uint64_t total = directory_bytes(s->out);
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:f, s:I, s:o}", "out", s->out, "weights", s->weights, "parameters",
                     (json_int_t)weights, "weight_bytes", (json_int_t)model_weight_bytes(m), "directory_bytes",
                     (json_int_t)total, "bits_per_weight", 8 * (double)total / (double)weights, "tensors_resumed",
                     (json_int_t)resumed, "tensors", tensors);
}

static void print_text(const json_t *o)
{
    model_kinds_print(json_object_get(o, "tensors"));
    printf("\n%s: %.1f MiB in all, %.2f bits a weight\n", json_string_value(json_object_get(o, "out")),
           (double)json_integer_value(json_object_get(o, "directory_bytes")) / 0x1p20,
           json_real_value(json_object_get(o, "bits_per_weight")));
}

static enum status pack(const struct settings *s, enum pack_weights weights, struct error *err)
{
    struct pack_options options = { .weights = weights, .progress = s->json ? NULL : show_progress, .stop = stop };
    struct quantize *quantize = NULL;
    struct model *m, *made;
    uint32_t resumed = 0;
    enum status st = model_open(s->model, &m, err);
    if (st)
        return st;
    interrupt_catch();
    if (pack_weights_calibrated(weights))
        st = quantize_options(m, "--text", s->text_file, &options, &quantize, err);
    if (!st)
        st = pack_write(m, s->out, &options, &resumed, err);
    terminal_bar_end();
    quantize_free(quantize);
    model_close(m);
    if (st || (st = model_open(s->out, &made, err)))
        return st;
    json_t *o = describe(made, s, resumed);
    char *text = s->json ? json_dumps(o, JSON_INDENT(2)) : NULL;
    if (text)
        puts(text);
    else
        print_text(o);
    if (resumed && !s->json)
        printf("%u tensors were there from an attempt before\n", resumed);
    free(text);
    json_decref(o);
    model_close(made);
    return ST_OK;
}

int command_pack(int argc, char **argv)
{
    struct settings s;
    struct error err = { 0 };
    const char *prompt, *positional;
    enum pack_weights weights;
    if (!settings_read(&s, SCOPE_PACK,
                       "usage: longspan pack --model MODEL --weights CODEC --out DIR [--text FILE] [--json]", argc,
                       argv, &prompt, &positional))
        return 2;
    if (positional || !s.out[0] || !pack_weights_parse(s.weights, &weights)) {
        fprintf(stderr, "longspan: pack takes --model MODEL, --weights CODEC and --out DIR\n");
        return 2;
    }
    const enum status st = pack(&s, weights, &err);
    if (st)
        fprintf(stderr, "longspan: %s\n", err.text[0] ? err.text : status_text(st));
    return st ? 1 : 0;
}
