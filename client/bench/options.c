#include "client/bench/options.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TEXT(field)  offsetof(struct bench_options, field), sizeof(((struct bench_options *)0)->field)
#define PLAIN(field) offsetof(struct bench_options, field), 0

/* clang-format off */
const struct config_field bench_fields[] = {
    { "config", "", CONFIG_TEXT, TEXT(config), 0, 0, NULL, 1, "file of these settings (YAML); flags win" },
    { "url", "http://127.0.0.1:8080", CONFIG_TEXT, TEXT(url), 0, 0, NULL, 1, "an OpenAI-compatible server: http[s]://HOST[:PORT][/PREFIX]" },
    { "tls-ca", "", CONFIG_TEXT, TEXT(tls_ca), 0, 0, NULL, 1, "of an https server: file (PEM) with who signed its certificate; none: those that the host trusts" },
    { "api", "completions", CONFIG_CHOICE, TEXT(api), 0, 0, "completions|chat", 1, "endpoint" },
    { "model", "", CONFIG_TEXT, TEXT(model), 0, 0, NULL, 1, "name sent; none: the first of /v1/models. With --local: what is served, as longspan up takes it" },
    { "api-key-file", "", CONFIG_TEXT, TEXT(api_key_file), 0, 0, NULL, 1, "file with a bearer token" },
    { "timeout-s", "600", CONFIG_U32, PLAIN(timeout_s), 1, 86400, NULL, 1, "a request that takes longer failed" },
    { "local", "false", CONFIG_BOOL, PLAIN(local), 0, 0, NULL, 1, "start a cluster for this load alone, on this machine, instead of --url" },
    { "workers", "0", CONFIG_U32, PLAIN(workers), 0, 64, NULL, 1, "of that cluster; 0: as up has" },
    { "kv-codec", "", CONFIG_TEXT, TEXT(kv_codec), 0, 0, NULL, 1, "of that cluster: how sealed KV blocks are coded" },
    { "selector", "", CONFIG_TEXT, TEXT(selector), 0, 0, NULL, 1, "of that cluster: NAME[@DENSITY], who picks the KV that takes part" },
    { "settings", "", CONFIG_TEXT, TEXT(settings), 0, 0, NULL, 1, "file (YAML) with more settings of that cluster, as up --config takes it" },

    { "input-tokens", "512", CONFIG_TEXT, TEXT(input_tokens), 0, 0, NULL, 1, "N, LOW-HIGH, normal:MEAN:DEVIATION, lognormal:MEDIAN:SIGMA, exponential:MEAN" },
    { "output-tokens", "128", CONFIG_TEXT, TEXT(output_tokens), 0, 0, NULL, 1, "the same" },
    { "prefix-tokens", "0", CONFIG_U32, PLAIN(prefix_tokens), 0, 1 << 24, NULL, 1, "of the input: so many are the same in all prompts" },
    { "input-tokens-max", "0", CONFIG_U32, PLAIN(input_tokens_max), 0, 1 << 24, NULL, 1, "longer prompts are cut; 0: none" },
    { "output-tokens-max", "0", CONFIG_U32, PLAIN(output_tokens_max), 0, 1 << 24, NULL, 1, "longer answers are cut; 0: none" },
    { "prompts", "auto", CONFIG_CHOICE, TEXT(prompts), 0, 0, "auto|ids|text", 1, "token ids, or text sized by /tokenize; auto: ids, and text for chat" },
    { "token-ids", "1000-30000", CONFIG_TEXT, TEXT(token_ids), 0, 0, NULL, 1, "LOW-HIGH: ids drawn from" },
    { "temperature", "0", CONFIG_TEXT, TEXT(temperature), 0, 0, NULL, 1, "0: greedy" },
    { "density", "", CONFIG_TEXT, TEXT(density), 0, 0, NULL, 1, "share of blocks that sparse attention reads for each request; none: the server's" },
    { "ignore-eos", "true", CONFIG_BOOL, PLAIN(ignore_eos), 0, 0, NULL, 1, "send ignore_eos, so that answers have the length asked for" },
    { "extra-body", "", CONFIG_TEXT, TEXT(extra_body), 0, 0, NULL, 1, "JSON object whose fields are added to every request" },
    { "seed", "1", CONFIG_U32, PLAIN(seed), 0, UINT32_MAX, NULL, 1, "of prompts, lengths and gaps" },

    { "concurrency", "0", CONFIG_U32, PLAIN(concurrency), 0, 4096, NULL, 1, "closed loop: so many open at once (0: 8); open loop: at most so many (0: 4096)" },
    { "rate", "0", CONFIG_TEXT, TEXT(rate), 0, 0, NULL, 1, "open loop: requests a second, Poisson; 0: closed loop" },
    { "requests", "0", CONFIG_U32, PLAIN(requests), 0, 10000000, NULL, 1, "so many; 0: the whole trace, or up to duration-s, or 100" },
    { "duration-s", "0", CONFIG_U32, PLAIN(duration_s), 0, 86400 * 7, NULL, 1, "send no more after; 0: no limit" },
    { "warmup", "0", CONFIG_U32, PLAIN(warmup), 0, 100000, NULL, 1, "requests before, with other prompts, that are not measured" },
    { "trace", "", CONFIG_TEXT, TEXT(trace), 0, 0, NULL, 1, "open loop: a recorded load" },
    { "trace-format", "auto", CONFIG_CHOICE, TEXT(trace_format), 0, 0, "auto|mooncake|burstgpt", 1, "JSON lines or CSV" },
    { "trace-scale", "1", CONFIG_TEXT, TEXT(trace_scale), 0, 0, NULL, 1, "so many times as fast as recorded" },
    { "trace-block-tokens", "512", CONFIG_U32, PLAIN(trace_block_tokens), 1, 1 << 20, NULL, 1, "tokens one of hash_ids stands for" },

    { "slo-ttft-ms", "0", CONFIG_TEXT, TEXT(slo_ttft_ms), 0, 0, NULL, 1, "objective for goodput; 0: none" },
    { "slo-tpot-ms", "0", CONFIG_TEXT, TEXT(slo_tpot_ms), 0, 0, NULL, 1, "objective for goodput; 0: none" },
    { "json", "", CONFIG_TEXT, TEXT(json), 0, 0, NULL, 1, "write everything measured, every request, to this file; -: standard output, instead of the table" },
    { "svg", "", CONFIG_TEXT, TEXT(svg), 0, 0, NULL, 1, "write a plot to this file" },
    { 0 },
};
/* clang-format on */

static enum status read_flags(struct bench_options *o, int argc, char **argv, struct error *err)
{
    int index = 1;
    const enum status st = config_flags(bench_fields, o, 1, argc, argv, &index, err);
    if (!st && index < argc)
        return error_set(err, ST_INVALID, "bench takes no argument '%s'", argv[index]);
    return st;
}

static enum status read_all(struct bench_options *o, int argc, char **argv, struct error *err)
{
    struct bench_options flags_only;
    enum status st = config_defaults(bench_fields, o, err);
    if (st)
        return st;
    flags_only = *o;
    st = read_flags(&flags_only, argc, argv, err);
    if (!st && flags_only.config[0])
        st = config_file(bench_fields, o, flags_only.config, err);
    return st ? st : read_flags(o, argc, argv, err);
}

bool bench_options_read(struct bench_options *o, const char *usage, int argc, char **argv)
{
    struct error err = { 0 };
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            printf("%s\n\n", usage);
            config_help(bench_fields, 1, stdout);
            exit(0);
        }
    if (read_all(o, argc, argv, &err)) {
        fprintf(stderr, "longspan: %s\n%s (--help shows the flags)\n", err.text, usage);
        return false;
    }
    return true;
}

static enum status number(const char *flag, const char *text, double low, double high, double *out, struct error *err)
{
    char *end;
    const double v = strtod(text, &end);
    if (end == text || *end || !(v >= low && v <= high))
        return error_set(err, ST_INVALID, "--%s: '%s' is not a number from %g to %g", flag, text, low, high);
    *out = v;
    return ST_OK;
}

static enum status ids(const char *text, struct bench_numbers *n, struct error *err)
{
    struct dist d;
    if (dist_parse(text, "", &d, NULL) || d.kind != DIST_UNIFORM)
        return error_set(err, ST_INVALID, "--token-ids: '%s' is not LOW-HIGH", text);
    n->id_low = (uint32_t)d.a;
    n->id_high = (uint32_t)d.b;
    return ST_OK;
}

static enum status sensible(const struct bench_options *o, const struct bench_numbers *n, struct error *err)
{
    if (o->trace[0] && n->rate > 0)
        return error_set(err, ST_INVALID, "--rate: the trace says when requests come (--trace-scale makes it faster)");
    if (!strcmp(o->prompts, "ids") && !strcmp(o->api, "chat"))
        return error_set(err, ST_INVALID, "--prompts: chats are text");
    if (o->trace[0] && o->prefix_tokens)
        return error_set(err, ST_INVALID, "--prefix-tokens: the trace says which prompts share what");
    if (!o->local && (o->workers || o->kv_codec[0] || o->selector[0] || o->settings[0]))
        return error_set(err, ST_INVALID, "--%s: is said with --local; a server that runs has its own",
                         o->workers       ? "workers"
                         : o->kv_codec[0] ? "kv-codec"
                         : o->selector[0] ? "selector"
                                          : "settings");
    if (n->input.kind == DIST_FIXED && o->prefix_tokens > n->input.a)
        return error_set(err, ST_INVALID, "--prefix-tokens: %u is more than the prompt (--input-tokens %s)",
                         o->prefix_tokens, o->input_tokens);
    return ST_OK;
}

enum status bench_options_check(const struct bench_options *o, struct bench_numbers *numbers_out, struct error *err)
{
    struct bench_numbers n = { 0 };
    enum status st = dist_parse(o->input_tokens, "--input-tokens", &n.input, err);
    if (!st)
        st = dist_parse(o->output_tokens, "--output-tokens", &n.output, err);
    if (!st)
        st = ids(o->token_ids, &n, err);
    if (!st)
        st = number("temperature", o->temperature, 0, 100, &n.temperature, err);
    if (!st && o->density[0])
        st = number("density", o->density, 1e-6, 1, &n.density, err);
    if (!st)
        st = number("rate", o->rate, 0, 1e6, &n.rate, err);
    if (!st)
        st = number("trace-scale", o->trace_scale, 1e-6, 1e6, &n.trace_scale, err);
    if (!st)
        st = number("slo-ttft-ms", o->slo_ttft_ms, 0, 1e9, &n.slo_ttft_ms, err);
    if (!st)
        st = number("slo-tpot-ms", o->slo_tpot_ms, 0, 1e9, &n.slo_tpot_ms, err);
    if (!st)
        st = sensible(o, &n, err);
    n.trace_format = !strcmp(o->trace_format, "mooncake")   ? TRACE_MOONCAKE
                     : !strcmp(o->trace_format, "burstgpt") ? TRACE_BURSTGPT
                                                            : TRACE_AUTO;
    if (!st)
        *numbers_out = n;
    return st;
}
