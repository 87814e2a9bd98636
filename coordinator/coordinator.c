#include "coordinator/coordinator.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/loop.h"
#include "coordinator/control.h"
#include "coordinator/gateway.h"
#include "coordinator/gateway/keys.h"
#include "coordinator/jobs/jobs.h"
#include "coordinator/membership.h"
#include "coordinator/predecessor.h"
#include "coordinator/rotation.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "kernels/kernels.h"
#include "kernels/selector.h"
#include "model/model.h"

enum { DRAIN_MORE_MS = 500, DRAIN_LOOK_MS = 10, ID_CONTEXT_VERSION = 1, STALLED_MS = 4000 };

struct coordinator {
    const struct coordinator_config *config;
    uint32_t positions_max;
    struct selector_spec selector;
    char selector_text[SELECTOR_TEXT]; /* all of it */
    struct model *model;
    struct tokenizer *tokenizer;
    struct tls *tls, *control_tls, *etcd_tls;
    struct rotation *rotation;
    struct keys *keys;
    struct loop *loop;
    struct control *control;
    struct gateway *gateway;
    struct membership *membership;   /* NULL: no registry */
    struct predecessor *predecessor; /* who led before; NULL: nobody */
    struct jobs *jobs;               /* NULL: no state directory */
    struct loop_timer *drain_timer;
    int64_t drain_until_ms;
    int lock_fd;
    bool led, shares;   /* shares: others may stand by */
    struct error fault; /* for which it ended */
    struct sigaction old_term, old_int;
    bool signals;
};

/* ---- signals: there is one coordinator a process ---- */

static struct loop *signalled_loop;

static void on_signal(int number)
{
    (void)number;
    loop_stop(signalled_loop);
}

static void signals_take(struct coordinator *c)
{
    struct sigaction action = { .sa_handler = on_signal };
    signalled_loop = c->loop;
    signal(SIGPIPE, SIG_IGN);
    sigaction(SIGTERM, &action, &c->old_term);
    sigaction(SIGINT, &action, &c->old_int);
    c->signals = true;
}

static void signals_give_back(struct coordinator *c)
{
    if (!c->signals)
        return;
    sigaction(SIGTERM, &c->old_term, NULL);
    sigaction(SIGINT, &c->old_int, NULL);
}

/* ---- start ---- */

/* Two coordinators with one state would each undo what the other keeps. */
static enum status state_lock(struct coordinator *c, struct error *err)
{
    const char *dir = c->config->state;
    char path[1100];
    if (!dir || !*dir)
        return ST_OK;
    const enum status st = file_mkdirs(dir, err);
    if (st)
        return st;
    snprintf(path, sizeof path, "%s/lock", dir);
    c->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (c->lock_fd < 0)
        return error_set(err, ST_IO, "%s: %s", path, strerror(errno));
    if (flock(c->lock_fd, LOCK_EX | LOCK_NB) < 0)
        return error_set(err, ST_BUSY, "state directory %s is in use by another coordinator", dir);
    return ST_OK;
}

static enum status template_load(struct coordinator *c, struct error *err)
{
    const char *path = c->config->chat_template;
    char *text = NULL;
    size_t bytes = 0;
    if (!path || !*path)
        return ST_OK;
    enum status st = file_read(path, CHAT_TEMPLATE_BYTES_MAX, &text, &bytes, err);
    if (!st)
        st = tokenizer_set_template(c->tokenizer, text, bytes, err);
    free(text);
    return st;
}

/* What cannot work with this model is refused before a worker loads it. A model's own limit may be beyond the selector's; a wanted one may not. */
static enum status selector_begin(struct coordinator *c, struct error *err)
{
    const struct model_config *m = model_config(c->model);
    const enum status st = selector_parse(c->config->selector, &c->selector, err);
    if (st)
        return st;
    selector_text(&c->selector, c->selector_text);
    const struct selector_impl *impl = selector_find(c->selector.name, 0);
    if (!impl)
        return ST_OK;
    if (c->selector.dense_layers >= m->n_layers)
        return error_set(err, ST_UNSUPPORTED,
                         "selector-dense-layers: %u, but model %s has %u layers: nothing would be selected",
                         c->selector.dense_layers, m->name, m->n_layers);
    const uint64_t most = (uint64_t)impl->blocks_max * PLAN_BLOCK;
    if (!impl->blocks_max || c->positions_max <= most)
        return ST_OK;
    if (c->config->sched.positions_max)
        return error_set(err, ST_UNSUPPORTED,
                         "positions-max: %u, but selector %s takes at most %u blocks (%llu positions)",
                         c->positions_max, impl->name, impl->blocks_max, (unsigned long long)most);
    log_warn("contexts end at %llu positions, the most that selector %s takes; the model was made for %u",
             (unsigned long long)most, impl->name, c->positions_max);
    c->positions_max = (uint32_t)most;
    return ST_OK;
}

static enum status model_load(struct coordinator *c, struct error *err)
{
    const uint32_t wanted = c->config->sched.positions_max;
    enum status st = model_open(c->config->model, &c->model, err);
    if (st == ST_OK)
        st = tokenizer_new(c->model, &c->tokenizer, err);
    if (st == ST_OK)
        st = tokenizer_set_date(c->tokenizer, c->config->template_date ? c->config->template_date : "start", err);
    if (st == ST_OK)
        st = template_load(c, err);
    if (st)
        return st;
    if (chat_refusal(c->tokenizer))
        log_warn("chats are refused: %s", chat_refusal(c->tokenizer));
    const uint32_t most = model_config(c->model)->positions_max;
    if (wanted > most)
        return error_set(err, ST_INVALID, "positions-max: %u, but model %s was made for %u", wanted,
                         model_config(c->model)->name, most);
    c->positions_max = wanted ? wanted : most;
    if (c->positions_max > PLAN_POSITIONS_MAX)
        c->positions_max = PLAN_POSITIONS_MAX;
    return selector_begin(c, err);
}

static enum status secrets_read(struct coordinator *c, struct error *err)
{
    enum status st = tls_load("tls", &c->config->tls, false, &c->tls, err);
    if (!st && c->tls && !c->tls->cert)
        st = error_set(err, ST_INVALID, "tls-cert: is needed beside tls-client-ca");
    if (!st)
        st = tls_load("control", &c->config->control_tls, true, &c->control_tls, err);
    if (!st)
        st = tls_load("etcd", &c->config->etcd_tls, false, &c->etcd_tls, err);
    if (!st && c->config->api_keys && *c->config->api_keys)
        st = keys_load(c->config->api_keys, &c->keys, err);
    return st;
}

/* All that decides a block's bits beside its tokens and the workers' kernels: part of every block id. */
static struct digest id_context(const struct coordinator *c)
{
    const struct digest model = model_digest(c->model);
    struct hasher *h = hasher_new();
    hasher_add_u64(h, ID_CONTEXT_VERSION);
    hasher_add(h, model.byte, sizeof model.byte);
    hasher_add_text(h, c->config->precision);
    hasher_add_text(h, c->config->kv_codec);
    if (c->config->calibration && *c->config->calibration)
        hasher_add_text(h, c->config->calibration);
    hasher_add_text(h, c->selector_text);
    return hasher_end(h);
}

static void on_worker(void *ctx, const struct gateway_worker *worker)
{
    struct coordinator *c = ctx;
    if (c->membership)
        membership_worker(c->membership, worker);
    if (c->predecessor && control_is_ready(c->control))
        predecessor_end(c->predecessor); /* its workers are here */
}

/* The registry's word; again when the term rises. */
static void on_leads(void *ctx, uint64_t term, const char *before)
{
    struct coordinator *c = ctx;
    control_lead(c->control, term);
    if (!c->led && before[0] && predecessor_tell(before, &c->config->control_tls, term, &c->predecessor))
        log_error("coordinator: no memory to tell the one at %s that it leads no more", before);
    c->led = true;
    gateway_standby(c->gateway, NULL);
}

static void on_outvoted(void *ctx, const char *why)
{
    struct coordinator *c = ctx;
    if (c->fault.status)
        return;
    error_set(&c->fault, ST_STALE, "%s: this one ends", why);
    log_error("%s", c->fault.text);
    loop_stop(c->loop);
}

static void on_higher(void *ctx, uint64_t term)
{
    struct coordinator *c = ctx;
    if (c->membership)
        membership_higher(c->membership, term);
}

/* Another leads. A standby says so; who led before was cut off and outvoted: what it still does nobody may rely on. */
static void on_follows(void *ctx, const char *leader, size_t bytes)
{
    struct coordinator *c = ctx;
    json_t *json = json_loadb(leader, bytes, 0, NULL);
    const char *http = json_string_value(json_object_get(json, "http")),
               *grpc = json_string_value(json_object_get(json, "grpc"));
    char text[512];
    snprintf(text, sizeof text, "this coordinator stands by: another leads (HTTP %.128s, gRPC %.128s)",
             http ? http : "?", grpc ? grpc : "?");
    if (c->led) {
        error_set(&c->fault, ST_STALE, "another coordinator leads now (HTTP %.128s): this one ends", http ? http : "?");
        log_error("%s", c->fault.text);
        loop_stop(c->loop);
    } else {
        log_info("%s", text);
        gateway_standby(c->gateway, text);
    }
    json_decref(json);
}

static enum status control_begin(struct coordinator *c, struct error *err)
{
    const struct coordinator_config *config = c->config;
    enum kv_codec codec;
    const enum status st = kv_codec_find(config->kv_codec, !strcmp(config->precision, "float32"), &codec, err);
    if (st)
        return st;
    struct control_config control = {
        .loop = c->loop,
        .address = config->control,
        .tls = c->control_tls,
        .sched = config->sched,
        .welcome = { .model = config->model,
                     .precision = config->precision,
                     .kv_codec = config->kv_codec,
                     .calibration = config->calibration,
                     .selector = c->selector_text,
                     .positions_max = c->positions_max,
                     .step_rows_max = config->sched.step_rows_max,
                     .heartbeat_ms = config->heartbeat_ms,
                     .silence_ms = config->silence_ms },
        .model_digest = model_digest(c->model),
        .n_workers = config->n_workers,
        .on_worker = on_worker,
        .on_higher = on_higher,
        .ctx = c,
    };
    control.sched.positions_max = c->positions_max;
    control.sched.context = id_context(c);
    control.sched.density = selector_find(c->selector.name, 0) ? c->selector.density : 0;
    control.sched.prompt_sparse = c->selector.prompt;
    control.sched.row_classes = kv_codecs[codec].row_classes;
    control.sched.window = c->selector.dense_layers ? 0 : c->selector.window;
    if (getrandom(&control.sched.seed, sizeof control.sched.seed, 0) < 0)
        control.sched.seed = (uint64_t)clock_ns();
    return control_start(&control, &c->control, err);
}

static uint32_t gateway_workers(void *ctx, struct gateway_worker *workers_out, uint32_t max)
{
    return control_workers(((struct coordinator *)ctx)->control, workers_out, max);
}

static bool gateway_ready(void *ctx)
{
    const struct coordinator *c = ctx;
    return control_is_ready(c->control) && (!c->membership || membership_led(c->membership)) &&
           control_stalled_ms(c->control) < STALLED_MS;
}

static int64_t gateway_stalled_ms(void *ctx)
{
    return control_stalled_ms(((struct coordinator *)ctx)->control);
}

static const char *gateway_role(void *ctx)
{
    const struct coordinator *c = ctx;
    if (!c->membership)
        return "alone";
    return membership_led(c->membership) ? "leader" : "standby";
}

static enum status gateway_drain_worker(void *ctx, uint16_t worker, bool undo, struct error *err)
{
    return control_drain(((struct coordinator *)ctx)->control, worker, undo, err);
}

static void gateway_rebalance(void *ctx)
{
    control_rebalance(((struct coordinator *)ctx)->control);
}

static void gateway_kick(void *ctx)
{
    control_kick(((struct coordinator *)ctx)->control);
}

/* "": there is none. */
static void jobs_dir(const struct coordinator *c, char dir_out[1200])
{
    const struct coordinator_config *config = c->config;
    const bool named = config->jobs_dir && *config->jobs_dir, state = config->state && *config->state;
    dir_out[0] = 0;
    if (named || state)
        snprintf(dir_out, 1200, named ? "%s" : "%s/jobs", named ? config->jobs_dir : config->state);
}

static enum status jobs_begin(struct coordinator *c, struct error *err)
{
    const struct coordinator_config *config = c->config;
    char dir[1200];
    jobs_dir(c, dir);
    const struct jobs_config jobs = { .loop = c->loop,
                                      .dir = dir,
                                      .jobs_max = config->jobs_max,
                                      .keep_hours = config->jobs_keep_hours,
                                      .running_max = config->jobs_running,
                                      .body_bytes_max = config->body_bytes_max,
                                      .context = id_context(c) };
    return dir[0] ? jobs_new(&jobs, &c->jobs, err) : ST_OK;
}

/* Once gateway and registry are there. */
static void jobs_go(struct coordinator *c)
{
    const struct jobs_serve serve = {
        .registry = membership_registry(c->membership),
        .gateway = c->gateway,
        .ready = gateway_ready,
        .ctx = c,
        .confirm = membership_confirm,
        .confirm_ctx = c->membership,
    };
    if (c->jobs)
        jobs_serve(c->jobs, &serve);
}

static enum status gateway_begin(struct coordinator *c, struct error *err)
{
    const struct coordinator_config *config = c->config;
    struct gateway_config gateway = {
        .http = config->http,
        .grpc = config->grpc,
        .tls = c->tls,
        .keys = c->keys,
        .body_bytes_max = config->body_bytes_max,
        .requests_max = config->requests_max,
        .n_max = 1,
        .loop = c->loop,
        .sched = control_sched(c->control),
        .model = c->model,
        .tokenizer = c->tokenizer,
        .model_name = model_config(c->model)->name,
        .positions_max = c->positions_max,
        .precision = config->precision,
        .kv_codec = config->kv_codec,
        .selector = c->selector_text,
        .workers = gateway_workers,
        .ready = gateway_ready,
        .stalled_ms = gateway_stalled_ms,
        .role = gateway_role,
        .drain = gateway_drain_worker,
        .rebalance = gateway_rebalance,
        .kick = gateway_kick,
        .grace_ms = c->config->drain_ms,
        .ctx = c,
        .resumes_context = id_context(c),
        .resume_grace_ms = config->resume_ms,
        .resume_keep_s = config->resume_keep_s,
        .resume_bytes_max = config->resume_bytes,
    };
    char dir[1200], streams[1300];
    jobs_dir(c, dir);
    const bool named = config->jobs_dir && *config->jobs_dir;
    snprintf(streams, sizeof streams, "%s/streams", named ? dir : config->state ? config->state : "");
    gateway.resumes = dir[0] ? streams : NULL;
    if (c->jobs)
        gateway.methods = jobs_methods(c->jobs, &gateway.n_methods);
    return gateway_start(&gateway, &c->gateway, err);
}

/* The host as it was given, the port as it was bound. */
static void bound_text(const char *address, uint16_t port, char text_out[256])
{
    const char *colon = strrchr(address, ':');
    const size_t host = colon ? (size_t)(colon - address) : strlen(address);
    snprintf(text_out, 256, "%.*s:%u", (int)(host < 200 ? host : 200), address, port);
}

/* Named, or a file in the state directory; neither: none. */
static enum status membership_begin(struct coordinator *c, const char *http, const char *grpc, const char *control,
                                    struct error *err)
{
    const struct coordinator_config *config = c->config;
    char spec[1200] = "";
    if (config->registry && *config->registry)
        snprintf(spec, sizeof spec, "%s", config->registry);
    else if (config->state && *config->state)
        snprintf(spec, sizeof spec, "embedded:%s/registry.db", config->state);
    const struct membership_config membership = { .loop = c->loop,
                                                  .registry = spec,
                                                  .tls = c->etcd_tls,
                                                  .http = http,
                                                  .grpc = grpc,
                                                  .control = control,
                                                  .model = model_config(c->model)->name,
                                                  .ttl_ms = config->lease_ms,
                                                  .leads = on_leads,
                                                  .follows = on_follows,
                                                  .outvoted = on_outvoted,
                                                  .ctx = c };
    c->shares = !strncmp(spec, "etcd:", 5);
    if (!spec[0])
        control_lead(c->control, (uint64_t)time(NULL)); /* none asks whether it may: later ones have later times */
    else
        gateway_standby(c->gateway, "this coordinator does not lead yet");
    return spec[0] ? membership_start(&membership, &c->membership, err) : ST_OK;
}

static enum status addresses_tell(struct coordinator *c, struct error *err)
{
    const char *const what[] = { "http", "grpc", "control" };
    char bound[3][256];
    bound_text(c->config->http, gateway_http_port(c->gateway), bound[0]);
    bound_text(c->config->grpc, gateway_grpc_port(c->gateway), bound[1]);
    bound_text(c->config->control, control_port(c->control), bound[2]);
    const char *advertised = c->config->control_advertise;
    const enum status st =
        membership_begin(c, bound[0], bound[1], advertised && *advertised ? advertised : bound[2], err);
    if (st)
        return st;
    for (int i = 0; i < 3; i++) {
        log_info("%s on %s", what[i], bound[i]);
        if (c->config->announce)
            c->config->announce(c->config->ctx, what[i], bound[i]);
    }
    return ST_OK;
}

static enum status coordinator_start(struct coordinator *c, struct error *err)
{
    struct rotation_config rotation = { .tls = c->config->tls, .control = c->config->control_tls };
    if (loop_new(&c->loop))
        return error_set(err, ST_NO_MEMORY, "coordinator: no event loop");
    rotation.loop = c->loop;
    c->rotation = rotation_new(&rotation);
    enum status st = c->rotation ? secrets_read(c, err) : error_set(err, ST_NO_MEMORY, "coordinator: no memory");
    if (st == ST_OK)
        st = state_lock(c, err);
    if (st == ST_OK)
        st = model_load(c, err);
    if (st == ST_OK) {
        signals_take(c); /* before threads start */
        st = control_begin(c, err);
    }
    if (st == ST_OK)
        st = jobs_begin(c, err);
    if (st == ST_OK)
        st = gateway_begin(c, err);
    if (st == ST_OK)
        st = addresses_tell(c, err);
    if (st == ST_OK) {
        rotation_serve(c->rotation, c->tls ? c->gateway : NULL, c->control_tls ? c->control : NULL);
        jobs_go(c);
    }
    return st;
}

/* ---- stop ---- */

static void on_drain_look(void *arg)
{
    struct coordinator *c = arg;
    if (c->shares)
        gateway_hand_over(c->gateway);
    if (gateway_idle(c->gateway) || clock_ms() > c->drain_until_ms)
        loop_stop(c->loop);
    else
        loop_timer_set(c->drain_timer, DRAIN_LOOK_MS);
}

static void coordinator_drain(struct coordinator *c)
{
    log_info("stopping: running requests may end");
    c->drain_timer = loop_timer_new(c->loop, on_drain_look, c);
    if (!c->drain_timer)
        return;
    c->drain_until_ms = clock_ms() + c->config->drain_ms + DRAIN_MORE_MS;
    jobs_stop(c->jobs); /* they run again after the next start */
    gateway_drain(c->gateway);
    loop_timer_set(c->drain_timer, 0);
    loop_run(c->loop);
    loop_timer_free(c->drain_timer);
}

static void coordinator_free(struct coordinator *c)
{
    rotation_free(c->rotation);
    jobs_stop(c->jobs);
    predecessor_free(c->predecessor);
    membership_stop(c->membership);
    c->membership = NULL;
    gateway_free(c->gateway);
    jobs_free(c->jobs);
    control_stop(c->control);
    signals_give_back(c);
    loop_free(c->loop);
    tokenizer_free(c->tokenizer);
    model_close(c->model);
    tls_free(c->tls);
    tls_free(c->control_tls);
    tls_free(c->etcd_tls);
    keys_free(c->keys);
    if (c->lock_fd >= 0)
        close(c->lock_fd);
}

enum status coordinator_run(const struct coordinator_config *config, struct error *err)
{
    struct coordinator c = { .config = config, .lock_fd = -1 };
    const enum status st = coordinator_start(&c, err);
    if (st == ST_OK) {
        loop_run(c.loop);
        if (!c.fault.status)
            coordinator_drain(&c);
    }
    coordinator_free(&c);
    return c.fault.status ? error_set(err, c.fault.status, "%s", c.fault.text) : st;
}
