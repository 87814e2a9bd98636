#include "client/settings.h"

#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "kernels/kernels.h"
#include "model/calibration.h"

#define TEXT(field)  offsetof(struct settings, field), sizeof(((struct settings *)0)->field)
#define PLAIN(field) offsetof(struct settings, field), 0
#define SERVE        (SCOPE_UP | SCOPE_COORDINATOR | SCOPE_GENERATE | SCOPE_CHAT)
#define ASK                                                                                                            \
    (SCOPE_GENERATE | SCOPE_STATUS | SCOPE_CHAT | SCOPE_TOP | SCOPE_JOBS | SCOPE_BATCH | SCOPE_DRAIN | SCOPE_REBALANCE)
#define CALL (SCOPE_UP | ASK)
#define WORK (SCOPE_UP | SCOPE_WORKER | SCOPE_GENERATE | SCOPE_CHAT)

/* clang-format off */
const struct config_field settings_fields[] = {
    { "config", "", CONFIG_TEXT, TEXT(config), 0, 0, NULL, SCOPE_ALL, "file of settings (YAML); flags win" },
    { "log-level", "warn", CONFIG_CHOICE, TEXT(log_level), 0, 0, "error|warn|info|debug|trace", SCOPE_ALL, "least severe event that is logged" },
    { "log-format", "text", CONFIG_CHOICE, TEXT(log_format), 0, 0, "text|json", SCOPE_ALL, "a line each event; json: as an object" },

    { "model", "models/smollm2-135m-instruct", CONFIG_TEXT, TEXT(model), 0, 0, NULL, SERVE | SCOPE_MODEL | SCOPE_PACK | SCOPE_EVAL,
      "GGUF file or directory, Hugging Face directory, pack, constructed:copy, random:SHAPE[:LAYERS[:SEED]]" },
    { "precision", "bf16", CONFIG_CHOICE, TEXT(precision), 0, 0, "bf16|float32", SERVE | SCOPE_EVAL, "of activations and open blocks; float32 runs the reference kernels" },
    { "kv-codec", "bf16", CONFIG_CHOICE, TEXT(kv_codec), 0, 0, "bf16|bf16-lossless|fp8|int8|int4-rot|kivi4|kivi2|cq-2b|cq-1b|nomad", SERVE | SCOPE_WORKER, "how sealed KV blocks are coded; worker: what the coordinator must serve" },
    { "calibration", "", CONFIG_TEXT, TEXT(calibration), 0, 0, NULL, SERVE | SCOPE_WORKER, "file of the codec's calibration (cq-2b, cq-1b, nomad: longspan calibrate makes it); none: the one in MODEL/calibration" },
    { "selector", "dense", CONFIG_TEXT, TEXT(selector), 0, 0, NULL, SERVE | SCOPE_WORKER, "who picks the KV that takes part: dense, quest, socket, double-sparsity or sketch-walk, with @DENSITY for the share of blocks read (0.2), or streaming, with @WINDOW for the positions before a row's block (1024); worker: what the coordinator must serve" },
    { "selector-dense-layers", "default", CONFIG_TEXT, TEXT(selector_dense_layers), 0, 0, NULL, SERVE, "first layers that read everything; default: 2, none with streaming" },
    { "selector-scope", "global", CONFIG_CHOICE, TEXT(selector_scope), 0, 0, "global|local", SERVE, "the best blocks of all, or of each slot its share" },
    { "selector-prompt", "default", CONFIG_CHOICE, TEXT(selector_prompt), 0, 0, "default|dense|sparse", SERVE, "rows of prompts; default: sparse with sketch-walk and streaming, else dense" },
    { "selector-channels", "default", CONFIG_TEXT, TEXT(selector_channels), 0, 0, NULL, SERVE | SCOPE_WORKER | SCOPE_EVAL, "of double-sparsity, the channels of keys that are kept: calibrated: as longspan calibrate learned them for this model, or a file of that; block: each block's largest; default: calibrated if MODEL/calibration has them" },
    { "template-date", "start", CONFIG_TEXT, TEXT(template_date), 0, 0, NULL, SERVE,
      "day that chat templates may ask for: start (of the coordinator, UTC), YYYY-MM-DD, none; a new one changes the first tokens of every chat" },
    { "chat-template", "", CONFIG_TEXT, TEXT(chat_template), 0, 0, NULL, SERVE, "file with the Jinja template of chats; none: the model's own" },
    { "positions-max", "0", CONFIG_U32, PLAIN(positions_max), 0, 1 << 24, NULL, SERVE, "longest context served; 0: the model's" },

    { "http", "127.0.0.1:8080", CONFIG_ADDRESS, TEXT(http), 0, 0, NULL, SCOPE_UP | SCOPE_COORDINATOR | SCOPE_TOP, "OpenAI-compatible HTTP" },
    { "grpc", "127.0.0.1:9090", CONFIG_ADDRESSES, TEXT(grpc), 0, 0, NULL, SCOPE_UP | SCOPE_COORDINATOR | ASK, "gRPC for clients; to a command that calls: of all coordinators, of which one leads" },
    { "control", "127.0.0.1:9091", CONFIG_ADDRESSES, TEXT(control), 0, 0, NULL, SCOPE_COORDINATOR | SCOPE_WORKER, "where workers attach; to a worker: of all coordinators, of which one leads" },
    { "control-advertise", "", CONFIG_ADDRESS, TEXT(control_advertise), 0, 0, NULL, SCOPE_COORDINATOR, "where other coordinators reach --control, if it is bound to another address (0.0.0.0)" },
    { "registry", "", CONFIG_TEXT, TEXT(registry), 0, 0, NULL, SCOPE_UP | SCOPE_COORDINATOR, "embedded:FILE, or etcd:HOST:PORT[,HOST:PORT...][/NAMESPACE]; none: embedded, in the state directory" },
    { "tls-cert", "", CONFIG_TEXT, TEXT(tls_cert), 0, 0, NULL, CALL | SCOPE_COORDINATOR, "certificate (PEM) of this side of HTTP and gRPC; none: in clear" },
    { "tls-key", "", CONFIG_TEXT, TEXT(tls_key), 0, 0, NULL, CALL | SCOPE_COORDINATOR, "its key, without a passphrase" },
    { "tls-client-ca", "", CONFIG_TEXT, TEXT(tls_client_ca), 0, 0, NULL, SCOPE_UP | SCOPE_COORDINATOR, "clients must show a certificate that this one signed" },
    { "tls-ca", "", CONFIG_TEXT, TEXT(tls_ca), 0, 0, NULL, CALL, "call over TLS a server whose certificate this one signed; system: one that the host trusts" },
    { "api-keys", "", CONFIG_TEXT, TEXT(api_keys), 0, 0, NULL, SCOPE_UP | SCOPE_COORDINATOR, "file of API keys, a line each: TENANT SHA256-OF-KEY; none: everybody may call" },
    { "api-key-file", "", CONFIG_TEXT, TEXT(api_key_file), 0, 0, NULL, CALL, "file with the key to call with; none: LONGSPAN_API_KEY of the environment, if set" },
    { "control-cert", "", CONFIG_TEXT, TEXT(control_cert), 0, 0, NULL, SCOPE_UP | SCOPE_COORDINATOR | SCOPE_WORKER, "certificate of this side between coordinator and workers; none: in clear" },
    { "control-key", "", CONFIG_TEXT, TEXT(control_key), 0, 0, NULL, SCOPE_UP | SCOPE_COORDINATOR | SCOPE_WORKER, "its key" },
    { "control-ca", "", CONFIG_TEXT, TEXT(control_ca), 0, 0, NULL, SCOPE_UP | SCOPE_COORDINATOR | SCOPE_WORKER, "who signed the other side's" },
    { "etcd-cert", "", CONFIG_TEXT, TEXT(etcd_cert), 0, 0, NULL, SCOPE_UP | SCOPE_COORDINATOR, "certificate that etcd is shown" },
    { "etcd-key", "", CONFIG_TEXT, TEXT(etcd_key), 0, 0, NULL, SCOPE_UP | SCOPE_COORDINATOR, "its key" },
    { "etcd-ca", "", CONFIG_TEXT, TEXT(etcd_ca), 0, 0, NULL, SCOPE_UP | SCOPE_COORDINATOR, "who signed etcd's; system: who the host trusts; none: etcd in clear" },
    { "state", "", CONFIG_TEXT, TEXT(state), 0, 0, NULL, SCOPE_UP | SCOPE_COORDINATOR,
      "state directory; none: ${XDG_STATE_HOME:-~/.local/state}/longspan/HTTP-PORT" },
    { "workers", "2", CONFIG_U32, PLAIN(workers), 1, 64, NULL, SCOPE_UP | SCOPE_COORDINATOR | SCOPE_GENERATE | SCOPE_CHAT | SCOPE_EVAL, "worker processes (coordinator: how many are awaited)" },

    { "bind", "", CONFIG_TEXT, TEXT(bind), 0, 0, NULL, SCOPE_WORKER, "address[:first-last] that peers reach this worker at" },
    { "device", "cpu", CONFIG_TEXT, TEXT(device), 0, 0, NULL, WORK | SCOPE_EVAL, "cpu; cuda: the first NVIDIA GPU" },
    { "exchange", "peer", CONFIG_CHOICE, TEXT(exchange), 0, 0, "ucx|peer|nccl", WORK, "messages between GPUs of one host; ucx: through the host, as between hosts" },
    { "lanes", "best", CONFIG_CHOICE, TEXT(lanes), 0, 0, "best|shm|tcp", WORK, "transport between workers" },
    { "threads", "0", CONFIG_U32, PLAIN(threads), 0, 1024, NULL, WORK | SCOPE_EVAL, "compute threads of a worker; 0: an even share of the cores" },
    { "kv-bytes", "auto", CONFIG_BYTES, PLAIN(kv_bytes), 0, (uint64_t)1 << 50, NULL, WORK | SCOPE_EVAL, "KV pool of a worker" },
    { "kv-disk", "", CONFIG_TEXT, TEXT(kv_disk), 0, 0, NULL, SCOPE_UP | SCOPE_WORKER, "directory on a local disk, where a worker keeps KV blocks that leave its memory; none: nowhere" },
    { "kv-disk-bytes", "16G", CONFIG_BYTES, PLAIN(kv_disk_bytes), 1 << 20, (uint64_t)1 << 50, NULL, SCOPE_UP | SCOPE_WORKER, "what each worker may take there" },
    { "share-reads", "true", CONFIG_BOOL, PLAIN(share_reads), 0, 0, NULL, WORK, "sequences read the blocks they share in one pass (same tokens either way)" },

    { "step-rows-max", "1024", CONFIG_U32, PLAIN(step_rows_max), 64, 65536, NULL, SERVE, "rows one step may hold; more favours throughput, fewer favours TPOT" },
    { "prefill-chunk-rows", "128", CONFIG_U32, PLAIN(prefill_chunk_rows), 1, 65536, NULL, SERVE, "rows of a long prompt in a step while others are there, at most;" },
    { "step-target-ms", "40", CONFIG_U32, PLAIN(step_target_ms), 0, 60000, NULL, SERVE, "and no more than take so long, so that who comes next starts soon; 0: no such limit" },
    { "sequences-max", "64", CONFIG_U32, PLAIN(sequences_max), 1, 4096, NULL, SERVE, "sequences that run at once" },
    { "queue-max", "1024", CONFIG_U32, PLAIN(queue_max), 0, 1 << 20, NULL, SERVE, "requests that wait at once; more get 429" },
    { "queue-wait-ms", "0", CONFIG_U32, PLAIN(queue_wait_ms), 0, 1 << 30, NULL, SERVE, "for its first step a request may wait; who would wait longer by what was done lately gets 429; 0: no limit" },
    { "spread-min-tokens", "2048", CONFIG_U32, PLAIN(spread_min_tokens), 1, 1 << 24, NULL, SERVE, "sequences of fewer positions stay on one worker" },
    { "step-deadline-ms", "4000", CONFIG_U32, PLAIN(step_deadline_ms), 100, 3600000, NULL, SERVE, "a step that takes longer is abandoned;" },
    { "step-row-ms", "20", CONFIG_U32, PLAIN(step_row_ms), 0, 60000, NULL, SERVE, "and so much longer for each row in it" },
    { "plans-ahead", "2", CONFIG_U32, PLAIN(plans_ahead), 1, 4, NULL, SERVE, "plans in flight: 2 overlaps planning and computing" },
    { "prefix-sharing", "true", CONFIG_BOOL, PLAIN(prefix_sharing), 0, 0, NULL, SERVE, "prompts that begin alike share blocks" },
    { "preemption", "true", CONFIG_BOOL, PLAIN(preemption), 0, 0, NULL, SERVE, "a request of a lower class gives way to one that finds no room, and is computed again" },
    { "starve-ms", "60000", CONFIG_U32, PLAIN(starve_ms), 0, 1 << 30, NULL, SERVE, "who has waited so long comes first, whatever its class; 0: never" },
    { "recovery-share", "50", CONFIG_U32, PLAIN(recovery_share), 1, 100, NULL, SERVE, "percent of a step's prompt rows, while others are there, that go to what a lost worker held" },
    { "worker-wait-ms", "30000", CONFIG_U32, PLAIN(worker_wait_ms), 0, 1 << 30, NULL, SERVE, "for workers to come back, where those that are left cannot hold a request; then it ends" },
    { "replicas", "0", CONFIG_U32, PLAIN(replicas), 0, 1, NULL, SERVE, "second copies of sealed KV blocks at other workers, as room allows: what a lost worker held is not computed again" },
    { "tenant-weights", "", CONFIG_TEXT, TEXT(tenant_weights), 0, 0, NULL, SERVE, "shares of tenants: NAME=WEIGHT,... (others: 1)" },
    { "heartbeat-ms", "250", CONFIG_U32, PLAIN(heartbeat_ms), 50, 60000, NULL, SERVE, "between heartbeats of a worker" },
    { "silence-ms", "1500", CONFIG_U32, PLAIN(silence_ms), 200, 600000, NULL, SERVE, "after which a silent worker is given up" },
    { "restarts-max", "1000", CONFIG_U32, PLAIN(restarts_max), 0, 1 << 30, NULL, SCOPE_UP, "worker processes started again before up gives up" },
    { "drain-ms", "8000", CONFIG_U32, PLAIN(drain_ms), 0, 3600000, NULL, SCOPE_UP | SCOPE_COORDINATOR | SCOPE_WORKER, "after SIGTERM: so long may what runs go on; a second signal cuts it short" },

    { "requests-max", "1024", CONFIG_U32, PLAIN(requests_max), 1, 1 << 16, NULL, SCOPE_UP | SCOPE_COORDINATOR, "requests open at once; more get 429" },
    { "body-bytes-max", "64M", CONFIG_BYTES, PLAIN(body_bytes_max), 1024, (uint64_t)1 << 32, NULL, SCOPE_UP | SCOPE_COORDINATOR, "largest request body" },
    { "jobs-max", "10000", CONFIG_U32, PLAIN(jobs_max), 1, 1000000, NULL, SCOPE_UP | SCOPE_COORDINATOR, "jobs kept at once; then the oldest that ended goes" },
    { "jobs-keep-hours", "168", CONFIG_U32, PLAIN(jobs_keep_hours), 0, 1000000, NULL, SCOPE_UP | SCOPE_COORDINATOR, "after which a job that ended is removed; 0: never" },
    { "jobs-dir", "", CONFIG_TEXT, TEXT(jobs_dir), 0, 0, NULL, SCOPE_UP | SCOPE_COORDINATOR, "requests, journals and answers of jobs; coordinators that stand by for each other share it; none: jobs in the state directory" },
    { "resume-ms", "10000", CONFIG_U32, PLAIN(resume_ms), 0, 3600000, NULL, SCOPE_UP | SCOPE_COORDINATOR, "a request with an Idempotency-Key goes on for so long after its client has gone" },
    { "resume-keep-s", "600", CONFIG_U32, PLAIN(resume_keep_s), 1, 1000000, NULL, SCOPE_UP | SCOPE_COORDINATOR, "and can be taken up again for so long," },
    { "resume-bytes", "1G", CONFIG_BYTES, PLAIN(resume_bytes), 1 << 20, (uint64_t)1 << 50, NULL, SCOPE_UP | SCOPE_COORDINATOR, "or until journals are larger than this: then the oldest go" },
    { "lease-ms", "3000", CONFIG_U32, PLAIN(lease_ms), 500, 600000, NULL, SCOPE_UP | SCOPE_COORDINATOR, "after which a coordinator that is gone is replaced (etcd: 2000 at least)" },
    { "jobs-running", "4", CONFIG_U32, PLAIN(jobs_running), 1, 4096, NULL, SCOPE_UP | SCOPE_COORDINATOR, "jobs that run at once" },

    { "local", "false", CONFIG_BOOL, PLAIN(local), 0, 0, NULL, SCOPE_GENERATE | SCOPE_CHAT, "start a cluster for this alone" },
    { "prompt-file", "", CONFIG_TEXT, TEXT(prompt_file), 0, 0, NULL, SCOPE_GENERATE | SCOPE_JOBS, "read the prompt from a file (-: standard input)" },
    { "raw", "false", CONFIG_BOOL, PLAIN(raw), 0, 0, NULL, SCOPE_GENERATE | SCOPE_JOBS, "the prompt as it stands, without the chat template" },
    { "max-tokens", "256", CONFIG_U32, PLAIN(max_tokens), 0, 1 << 24, NULL, SCOPE_UP | SCOPE_GENERATE | SCOPE_CHAT | SCOPE_JOBS, "tokens to generate; chat, 0: as many as there is room for" },
    { "temperature", "0", CONFIG_TEXT, TEXT(temperature), 0, 0, NULL, SCOPE_GENERATE | SCOPE_CHAT | SCOPE_JOBS, "0: greedy" },
    { "top-p", "1", CONFIG_TEXT, TEXT(top_p), 0, 0, NULL, SCOPE_GENERATE | SCOPE_CHAT | SCOPE_JOBS, "nucleus" },
    { "top-k", "0", CONFIG_U32, PLAIN(top_k), 0, 1 << 24, NULL, SCOPE_GENERATE | SCOPE_CHAT, "0: all tokens" },
    { "density", "", CONFIG_TEXT, TEXT(density), 0, 0, NULL, SCOPE_GENERATE | SCOPE_CHAT, "share of blocks that sparse attention reads for this; none: what --selector says" },
    { "seed", "", CONFIG_TEXT, TEXT(seed), 0, 0, NULL, SCOPE_GENERATE | SCOPE_CHAT | SCOPE_JOBS | SCOPE_EVAL, "of sampling; none: drawn" },
    { "ignore-eos", "false", CONFIG_BOOL, PLAIN(ignore_eos), 0, 0, NULL, SCOPE_GENERATE, "go on after the end of text" },
    { "score", "false", CONFIG_BOOL, PLAIN(score), 0, 0, NULL, SCOPE_GENERATE, "log-probabilities of the prompt's tokens too" },
    { "dump-logits", "", CONFIG_TEXT, TEXT(dump_logits), 0, 0, NULL, SCOPE_GENERATE, "write every computed logit row: u32 position, f32 [vocabulary]" },
    { "json", "false", CONFIG_BOOL, PLAIN(json), 0, 0, NULL, SCOPE_GENERATE | SCOPE_STATUS | SCOPE_MODEL | SCOPE_JOBS | SCOPE_PACK | SCOPE_EVAL | SCOPE_DRAIN | SCOPE_REBALANCE, "one JSON object instead of text" },
    { "weights", "lossless-fast", CONFIG_CHOICE, TEXT(weights), 0, 0, "bf16|lossless-fast|df11|leanquant-4|leanquant-3|leanquant-2|as-is", SCOPE_PACK, "how matrices are stored; leanquant-*: quantized over --text" },
    { "out", "", CONFIG_TEXT, TEXT(out), 0, 0, NULL, SCOPE_PACK, "directory that becomes the pack" },
    { "configs", "bf16:dense", CONFIG_TEXT, TEXT(configs), 0, 0, NULL, SCOPE_EVAL, "CODEC:SELECTOR[@DENSITY][:WEIGHTS],...; the first is what the others are compared with" },
    { "length", "0", CONFIG_U32, PLAIN(length), 0, 1 << 24, NULL, SCOPE_EVAL, "tokens of a window; 0: 8192 (with --quick 4096), or as many as the model and the text have" },
    { "text", "", CONFIG_TEXT, TEXT(text_file), 0, 0, NULL, SCOPE_EVAL | SCOPE_PACK, "file of plain text: eval scores it (none: places that --seed draws in the corpus); pack quantizes leanquant-* over it" },
    { "calibration-text", "", CONFIG_TEXT, TEXT(calibration_text), 0, 0, NULL, SCOPE_EVAL, "file of plain text that weights leanquant-* are quantized over; not the one that is scored" },
    { "corpus", "corpus", CONFIG_TEXT, TEXT(corpus), 0, 0, NULL, SCOPE_EVAL, "directory of *.txt files, as scripts/corpus.sh gathers them" },
    { "tasks", "", CONFIG_TEXT, TEXT(tasks), 0, 0, NULL, SCOPE_EVAL, "generated tasks that are asked as well: NAME[@LENGTH],... of niah_single_1 to _3, niah_multikey_1 to _3, niah_multivalue, niah_multiquery, vt, cwe, fwe, passkey, kv; copy: exact retrieval, by the constructed model" },
    { "samples", "0", CONFIG_U32, PLAIN(samples), 0, 10000, NULL, SCOPE_EVAL, "of each task; 0: 20 (with --quick 4)" },
    { "svg", "", CONFIG_TEXT, TEXT(svg), 0, 0, NULL, SCOPE_EVAL, "write a plot of quality against bytes to this file" },
    { "quick", "false", CONFIG_BOOL, PLAIN(quick), 0, 0, NULL, SCOPE_EVAL, "two windows instead of eight" },
    { "key", "", CONFIG_TEXT, TEXT(key), 0, 0, NULL, SCOPE_JOBS | SCOPE_BATCH, "idempotency key; batch: of the whole, none: a digest of the file" },
    { "name", "", CONFIG_TEXT, TEXT(name), 0, 0, NULL, SCOPE_JOBS, "of a job, for people" },
    { "output", "", CONFIG_TEXT, TEXT(output), 0, 0, NULL, SCOPE_BATCH, "where answers go, a line each; none: FILE.out.jsonl" },
    { "once", "false", CONFIG_BOOL, PLAIN(once), 0, 0, NULL, SCOPE_UP | SCOPE_WORKER | SCOPE_TOP, "up: stop after the sample answer; worker: end with the control stream; top: one screen as plain text" },
    { "system", "", CONFIG_TEXT, TEXT(system), 0, 0, NULL, SCOPE_CHAT, "system message of the conversation" },
    { "interval-ms", "1000", CONFIG_U32, PLAIN(interval_ms), 100, 60000, NULL, SCOPE_TOP, "between two looks" },
    { "retry-ms", "60000", CONFIG_U32, PLAIN(retry_ms), 0, 86400000, NULL, SCOPE_GENERATE | SCOPE_CHAT, "an answer whose connection was lost is gone on with, if its server is back within this time" },
    { "undo", "false", CONFIG_BOOL, PLAIN(undo), 0, 0, NULL, SCOPE_DRAIN, "the worker takes sequences again" },
    { "wait", "false", CONFIG_BOOL, PLAIN(wait), 0, 0, NULL, SCOPE_DRAIN, "until nothing of running requests is left there" },
    { "announce-fd", "0", CONFIG_U32, PLAIN(announce_fd), 0, 1 << 20, NULL, SCOPE_COORDINATOR, "descriptor on which bound addresses are written, a line each" },
    { 0 },
};
/* clang-format on */

/* --prompt takes text of any length, so it is no field: taken out of argv before the flags are read. */
static int take_prompt(uint32_t scope, int argc, char **argv, const char **prompt_out)
{
    int n = 1;
    *prompt_out = NULL;
    for (int i = 1; i < argc; i++) {
        if (!(scope & (SCOPE_GENERATE | SCOPE_UP | SCOPE_JOBS)) || strncmp(argv[i], "--prompt", 8) ||
            (argv[i][8] != '=' && argv[i][8])) {
            argv[n++] = argv[i];
            if (!strcmp(argv[i], "--"))
                scope = 0;
            continue;
        }
        if (argv[i][8] == '=')
            *prompt_out = argv[i] + 9;
        else if (i + 1 < argc)
            *prompt_out = argv[++i];
        else
            return -1;
    }
    return n;
}

static bool wants_help(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
            return true;
    return false;
}

/* Flags may stand before and after the one argument that is none. */
static enum status read_flags(struct settings *s, uint32_t scope, int argc, char **argv, const char **positional_out,
                              struct error *err)
{
    int index = 1;
    *positional_out = NULL;
    enum status st = config_flags(settings_fields, s, scope, argc, argv, &index, err);
    if (!st && index < argc) {
        const bool only_rest = !strcmp(argv[index - 1], "--");
        *positional_out = argv[index++];
        if (!only_rest)
            st = config_flags(settings_fields, s, scope, argc, argv, &index, err);
    }
    if (!st && index < argc)
        st = error_set(err, ST_INVALID, "%s: one argument too many", argv[index]);
    return st;
}

static enum status read_all(struct settings *s, uint32_t scope, int argc, char **argv, const char **prompt_out,
                            const char **positional_out, struct error *err)
{
    struct settings flags_only;
    enum status st = config_defaults(settings_fields, s, err);
    if (st)
        return st;
    argc = take_prompt(scope, argc, argv, prompt_out);
    if (argc < 0)
        return error_set(err, ST_INVALID, "--prompt: a value is missing");
    flags_only = *s;
    st = read_flags(&flags_only, scope, argc, argv, positional_out, err);
    if (st)
        return st;
    if (!flags_only.config[0]) {
        *s = flags_only;
        return ST_OK;
    }
    st = config_file(settings_fields, s, flags_only.config, err);
    if (!st)
        st = read_flags(s, scope, argc, argv, positional_out, err);
    return st;
}

bool settings_read(struct settings *s, uint32_t scope, const char *usage, int argc, char **argv,
                   const char **prompt_out, const char **positional_out)
{
    struct error err = { 0 };
    if (wants_help(argc, argv)) {
        printf("%s\n\n", usage);
        if (scope & (SCOPE_GENERATE | SCOPE_UP | SCOPE_JOBS))
            printf("  %-34s %s\n", "--prompt TEXT",
                   scope & SCOPE_UP ? "answer this once when the cluster is ready" : "the prompt");
        config_help(settings_fields, scope, stdout);
        exit(0);
    }
    if (read_all(s, scope, argc, argv, prompt_out, positional_out, &err)) {
        fprintf(stderr, "longspan: %s\n%s (--help shows the flags)\n", err.text, usage);
        return false;
    }
    log_set_level((enum log_level)log_level_parse(s->log_level));
    log_set_json(!strcmp(s->log_format, "json"));
    return true;
}

static enum status dense_layers(const char *text, uint32_t *layers_out, struct error *err)
{
    char *end;
    const unsigned long n = strtoul(text, &end, 10);
    if (!strcmp(text, "default"))
        return ST_OK;
    if (text[0] < '0' || text[0] > '9' || *end || n > 4096)
        return error_set(err, ST_INVALID, "selector-dense-layers: %s is neither default nor a number up to 4096", text);
    *layers_out = (uint32_t)n;
    return ST_OK;
}

enum status settings_selector(const struct settings *s, char text_out[SELECTOR_TEXT], struct error *err)
{
    struct selector_spec spec;
    if (strchr(s->selector, ','))
        return error_set(err, ST_INVALID,
                         "selector: %s: NAME or NAME@DENSITY is wanted; the rest are flags of their own", s->selector);
    enum status st = selector_parse(s->selector, &spec, err);
    if (!st)
        st = dense_layers(s->selector_dense_layers, &spec.dense_layers, err);
    if (st)
        return st;
    spec.by_slot = !strcmp(s->selector_scope, "local");
    if (strcmp(s->selector_prompt, "default") != 0)
        spec.prompt = !strcmp(s->selector_prompt, "sparse");
    selector_text(&spec, text_out);
    return selector_parse(text_out, &spec, err); /* what does not go together */
}

enum status settings_calibration(const struct settings *s, char digest_out[33], struct error *err)
{
    enum kv_codec codec;
    struct model *m;
    struct calibration *c = NULL;
    enum status st = kv_codec_find(s->kv_codec, !strcmp(s->precision, "float32"), &codec, err);
    digest_out[0] = 0;
    if (st || !kv_codecs[codec].calibrated)
        return st;
    st = model_open(s->model, &m, err);
    if (st)
        return st;
    const struct calibration_wanted wanted = {
        .model_spec = s->model, .path = s->calibration, .codec = s->kv_codec, .model = model_digest(m)
    };
    st = calibration_open_wanted(&wanted, &c, err);
    if (!st)
        digest_text(calibration_digest(c), digest_out);
    calibration_close(c);
    model_close(m);
    return st;
}

const char *settings_channels_file(const struct settings *s)
{
    static const char *const words[] = { "default", "calibrated", "block" };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strcmp(s->selector_channels, words[i]))
            return "";
    return s->selector_channels;
}

enum status settings_channels(const struct settings *s, char selector[SELECTOR_TEXT], struct error *err)
{
    struct selector_spec spec;
    struct model *m;
    struct calibration *c = NULL;
    struct error why = { 0 };
    char directory[CALIBRATION_PATH];
    const bool if_there = !strcmp(s->selector_channels, "default");
    enum status st = selector_parse(selector, &spec, err);
    const struct selector_impl *impl = st ? NULL : selector_find(spec.name, 0);
    if (!impl || !impl->calibrated || !strcmp(s->selector_channels, "block"))
        return st;
    if (if_there && calibration_directory(s->model, directory, NULL))
        return ST_OK; /* a model that is no file has none */
    if ((st = model_open(s->model, &m, err)))
        return st;
    const struct calibration_wanted wanted = { .model_spec = s->model,
                                               .path = settings_channels_file(s),
                                               .codec = spec.name,
                                               .model = model_digest(m),
                                               .flag = "selector" };
    st = calibration_open_wanted(&wanted, &c, &why);
    model_close(m);
    if (st == ST_NOT_FOUND && if_there)
        return ST_OK;
    if (st) {
        *err = why;
        return st;
    }
    digest_text(calibration_digest(c), spec.channels);
    calibration_close(c);
    selector_text(&spec, selector);
    return ST_OK;
}

void settings_state_default(struct settings *s)
{
    const char *base = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    const char *port = strrchr(s->http, ':') + 1;
    if (s->state[0])
        return;
    if (base && base[0] == '/')
        snprintf(s->state, sizeof s->state, "%.900s/longspan/%.16s", base, port);
    else
        snprintf(s->state, sizeof s->state, "%.900s/.local/state/longspan/%.16s", home ? home : "/tmp", port);
}
