#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <event2/event.h>

#include "client/bench/ask.h"
#include "client/bench/options.h"
#include "client/bench/report.h"
#include "client/bench/runner.h"
#include "client/commands.h"
#include "client/interrupt.h"
#include "client/local.h"
#include "client/settings.h"
#include "common/file.h"

enum { CLOSED_DEFAULT = 8, OPEN_MAX = 4096, REQUESTS_DEFAULT = 100, KEY_BYTES_MAX = 1024 };

struct bench {
    struct bench_options o;
    struct bench_numbers n;
    struct trace trace;
    struct prompts prompts;
    struct event_base *base;
    struct http_client *client;
    char *head;
};

static enum status read_key(const char *path, char key[KEY_BYTES_MAX + 1], struct error *err)
{
    char *text;
    size_t bytes;
    key[0] = 0;
    if (!path[0])
        return ST_OK;
    const enum status st = file_read(path, KEY_BYTES_MAX, &text, &bytes, err);
    if (st)
        return st;
    snprintf(key, KEY_BYTES_MAX + 1, "%.*s", (int)strcspn(text, "\r\n"), text);
    free(text);
    for (const char *c = key; *c; c++)
        if (*c <= ' ' || *c > '~')
            return error_set(err, ST_INVALID, "--api-key-file: %s: a character that no key has", path);
    return ST_OK;
}

static enum status read_extra(const char *text, double density, json_t **extra_out, struct error *err)
{
    static const char *const ours[] = { "prompt", "messages", "max_tokens", "stream" };
    *extra_out = NULL;
    if (!text[0] && density <= 0)
        return ST_OK;
    if (!text[0])
        text = "{}";
    json_t *extra = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    if (!json_is_object(extra)) {
        json_decref(extra);
        return error_set(err, ST_INVALID, "--extra-body: not a JSON object");
    }
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (json_object_get(extra, ours[i])) {
            json_decref(extra);
            return error_set(err, ST_INVALID, "--extra-body: '%s' is set by bench itself", ours[i]);
        }
    if (density > 0 && json_object_set_new(extra, "density", json_real(density))) {
        json_decref(extra);
        return error_set(err, ST_NO_MEMORY, "no memory");
    }
    *extra_out = extra;
    return ST_OK;
}

static bool is_chat(const struct bench *b)
{
    return !strcmp(b->o.api, "chat");
}

/* Every stream has a descriptor. */
static void raise_descriptors(void)
{
    struct rlimit limit;
    if (!getrlimit(RLIMIT_NOFILE, &limit)) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static enum status connect_to(struct bench *b, struct error *err)
{
    char key[KEY_BYTES_MAX + 1];
    json_t *extra;
    struct event_config *config = event_config_new();
    if (config)
        event_config_set_flag(config, EVENT_BASE_FLAG_PRECISE_TIMER);
    b->base = config ? event_base_new_with_config(config) : NULL;
    if (config)
        event_config_free(config);
    if (!b->base)
        return error_set(err, ST_NO_MEMORY, "no memory");
    enum status st = read_key(b->o.api_key_file, key, err);
    if (!st)
        st = read_extra(b->o.extra_body, b->n.density, &extra, err);
    if (st)
        return st;
    st = http_client_new(b->base, b->o.url, key, b->o.tls_ca, &b->client, err);
    const struct asker asker = { b->base, b->client, interrupted };
    if (!st && !b->o.model[0])
        st = ask_model(&asker, b->o.model, sizeof b->o.model, err);
    if (!st && !(b->head = exchange_head(b->o.model, b->n.temperature, b->o.ignore_eos, extra)))
        st = error_set(err, ST_NO_MEMORY, "no memory");
    json_decref(extra);
    return st;
}

static enum status make_prompts(struct bench *b, struct error *err)
{
    const struct asker asker = { b->base, b->client, interrupted };
    bool exact = true;
    b->prompts = (struct prompts){ .seed = b->o.seed,
                                   .text = is_chat(b) || !strcmp(b->o.prompts, "text"),
                                   .prefix_tokens = b->o.prefix_tokens,
                                   .block_tokens = b->o.trace_block_tokens,
                                   .id_low = b->n.id_low,
                                   .id_high = b->n.id_high };
    if (!b->prompts.text)
        return ST_OK;
    const enum status st = ask_words(&asker, &b->prompts, &exact, err);
    if (!st && !exact)
        fprintf(stderr, "longspan: the server has no /tokenize: prompts may be longer than asked for\n");
    return st;
}

static struct workload_config workload_of(const struct bench *b)
{
    const bool traced = b->o.trace[0];
    return (struct workload_config){
        .seed = b->o.seed,
        .input = b->n.input,
        .output = b->n.output,
        .input_max = b->o.input_tokens_max,
        .output_max = b->o.output_tokens_max,
        .rate = b->n.rate,
        .trace = traced ? &b->trace : NULL,
        .trace_scale = b->n.trace_scale,
        .requests_max = b->o.requests || traced || b->o.duration_s ? b->o.requests : REQUESTS_DEFAULT,
    };
}

static struct runner_config runner_of(const struct bench *b, const struct prompts *prompts)
{
    const bool open = b->n.rate > 0 || b->o.trace[0];
    return (struct runner_config){
        .base = b->base,
        .client = b->client,
        .prompts = prompts,
        .head = b->head,
        .chat = is_chat(b),
        .timeout_ms = b->o.timeout_s * 1000,
        .concurrency = b->o.concurrency ? b->o.concurrency
                       : open           ? OPEN_MAX
                                        : CLOSED_DEFAULT,
        .stop = interrupted,
        .progress = isatty(STDERR_FILENO),
        .what = "load",
    };
}

/* Other prompts than those measured, so that the cache knows none of these; in a closed loop, whatever comes after. */
static enum status warm_up(struct bench *b, struct error *err)
{
    struct workload w = { .config = workload_of(b) };
    struct prompts prompts = b->prompts;
    struct runner_config config = runner_of(b, &prompts);
    struct result result = { 0 };
    if (!b->o.warmup)
        return ST_OK;
    w.config.seed = prompts.seed = ~(uint64_t)b->o.seed;
    w.config.rate = 0;
    w.config.requests_max = b->o.warmup;
    w.config.trace_scale = 1e12; /* all at once */
    config.concurrency = b->o.concurrency && b->o.concurrency < b->o.warmup ? b->o.concurrency : CLOSED_DEFAULT;
    config.what = "warm-up";
    const enum status st = runner_run(&config, &w, &result, err);
    const char *fault = "";
    size_t n_failed = 0;
    for (size_t i = 0; i < result.n; i++)
        if (result.records[i].error) {
            fault = result.records[i].error;
            n_failed++;
        }
    if (!st && n_failed)
        fprintf(stderr, "longspan: %zu of %zu requests of the warm-up failed: %s\n", n_failed, result.n, fault);
    result_free(&result);
    return st;
}

static json_t *options_json(const struct bench_options *o)
{
    json_t *options = json_object();
    for (const struct config_field *f = bench_fields; f->key; f++) {
        char value[5000];
        config_value(f, o, value, sizeof value);
        json_object_set_new(options, f->key, json_string(value));
    }
    return options;
}

static enum status write_json(const struct bench *b, const struct summary *s, const struct result *r, struct error *err)
{
    json_t *options = options_json(&b->o), *all = report_json(s, r->records, r->n, options);
    const bool plain = !strcmp(b->o.json, "-");
    enum status st = ST_OK;
    FILE *out = plain ? stdout : fopen(b->o.json, "we");
    if (!out || !all || json_dumpf(all, out, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) < 0 || fputc('\n', out) < 0)
        st = error_set(err, ST_IO, "--json: %s cannot be written: %s", b->o.json, strerror(errno));
    if (out && !plain && fclose(out) && !st)
        st = error_set(err, ST_IO, "--json: %s cannot be written: %s", b->o.json, strerror(errno));
    json_decref(all);
    json_decref(options);
    return st;
}

static enum status write_svg(const struct bench *b, const struct summary *s, const struct result *r, struct error *err)
{
    FILE *out = fopen(b->o.svg, "we");
    enum status st = out ? report_svg(s, r->records, r->n, out) : ST_IO;
    if (out && fclose(out) && !st)
        st = ST_IO;
    return st ? error_set(err, st, "--svg: %s cannot be written: %s", b->o.svg, strerror(errno)) : ST_OK;
}

static enum status tell(const struct bench *b, const struct workload *w, const struct result *r, struct error *err)
{
    struct summary s;
    enum status st = summary_make(r->records, r->n, b->n.slo_ttft_ms, b->n.slo_tpot_ms, &s);
    if (st)
        return error_set(err, st, "no memory");
    if (strcmp(b->o.json, "-") != 0)
        report_table(&s, r->records, r->n, stdout);
    fflush(stdout);
    if (w->n_cut)
        fprintf(stderr, "longspan: %llu requests were longer and were cut\n", (unsigned long long)w->n_cut);
    if (b->o.json[0])
        st = write_json(b, &s, r, err);
    if (!st && b->o.svg[0])
        st = write_svg(b, &s, r, err);
    if (!st && s.n && !s.n_ok && !r->stopped)
        st = error_set(err, ST_PEER, "no request was answered");
    return st;
}

static enum status measure(struct bench *b, struct error *err)
{
    struct workload w = { .config = workload_of(b) };
    struct runner_config config = runner_of(b, &b->prompts);
    struct result result = { 0 };
    struct error told = { 0 };
    config.duration_ms = (uint64_t)b->o.duration_s * 1000;
    enum status st = runner_run(&config, &w, &result, err);
    const enum status also = result.records ? tell(b, &w, &result, &told) : ST_OK;
    result_free(&result);
    if (!st && also)
        *err = told;
    return st ? st : also;
}

static enum status run(struct bench *b, struct error *err)
{
    enum status st = ST_OK;
    if (b->o.trace[0])
        st = trace_open(b->o.trace, b->n.trace_format, b->o.requests, &b->trace, err);
    if (!st && b->trace.n_skipped)
        fprintf(stderr, "longspan: %zu requests of the trace had failed when it was made: left out\n",
                b->trace.n_skipped);
    if (!st)
        st = connect_to(b, err);
    if (!st)
        st = make_prompts(b, err);
    if (!st)
        st = warm_up(b, err);
    if (!st && !interrupted())
        st = measure(b, err);
    free(b->head);
    http_client_free(b->client);
    if (b->base)
        event_base_free(b->base);
    trace_close(&b->trace);
    return st;
}

/* ---- a cluster of its own ---- */

static enum status run_local(const char *address, const struct settings *s, const void *arg, struct error *err)
{
    struct bench *b = *(struct bench *const *)arg;
    (void)address;
    snprintf(b->o.url, sizeof b->o.url, "http://%s", s->http);
    b->o.model[0] = 0; /* it is asked what it calls it */
    return run(b, err);
}

/* The cluster's settings: their defaults, a file, what the flags say. */
static enum status local_settings(const struct bench_options *o, struct settings *s, struct error *err)
{
    const struct {
        const char *key, *value;
    } flags[] = { { "model", o->model }, { "kv-codec", o->kv_codec }, { "selector", o->selector } };
    char whole[SELECTOR_TEXT];
    enum status st = config_defaults(settings_fields, s, err);
    if (!st && o->settings[0])
        st = config_file(settings_fields, s, o->settings, err);
    for (size_t i = 0; i < sizeof flags / sizeof *flags && !st; i++)
        if (flags[i].value[0])
            st = config_set(settings_fields, s, flags[i].key, flags[i].value, "bench", err);
    if (o->workers)
        s->workers = o->workers;
    return st ? st : settings_selector(s, whole, err);
}

int command_bench(int argc, char **argv)
{
    struct bench b = { 0 }, *arg = &b;
    struct settings s;
    struct error err = { 0 };
    if (!bench_options_read(&b.o,
                            "usage: longspan bench [--url http://HOST:PORT | --local] [--concurrency N | --rate R | "
                            "--trace FILE] [flags]",
                            argc, argv))
        return 2;
    if (bench_options_check(&b.o, &b.n, &err) || (b.o.local && local_settings(&b.o, &s, &err))) {
        fprintf(stderr, "longspan: %s\n", err.text);
        return 2;
    }
    raise_descriptors();
    interrupt_catch();
    const enum status st = b.o.local ? local_run(&s, false, run_local, &arg, &err) : run(&b, &err);
    if (st && !(st == ST_CANCELLED && interrupted()))
        fprintf(stderr, "longspan: %s\n", err.text[0] ? err.text : status_text(st));
    return st ? 1 : 0;
}
