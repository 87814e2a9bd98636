#define _GNU_SOURCE /* pipe2 */
#include "client/cluster.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/remote.h"
#include "client/terminal.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "worker/worker.h"

enum {
    ARGS_MAX = 128,
    ADDRESSES_MS = 60000,
    GRACE_MS = 2000,
    PAUSE_FIRST_MS = 100,
    PAUSE_MAX_MS = 5000,
    LOOK_MS = 1000,
    DEAF_MS =
        15000, /* without one answer to a call: it will not be called, as where its certificate is for another name */
    HUNG_MS = 2000
};

struct child {
    pid_t pid; /* 0: not running */
    int64_t started_ms, again_ms;
    int64_t lost_ms; /* since when the coordinator has given it up, though it runs; 0: it has not */
    uint32_t pause_ms;
};

struct cluster {
    struct settings settings;
    char http[160], grpc[160], control[160];
    struct child coordinator, worker[64];
    uint32_t restarts;
    struct remote *watch; /* opened when first needed */
    int64_t look_ms;
};

const char *cluster_http(const struct cluster *c)
{
    return c->http;
}

const char *cluster_grpc(const struct cluster *c)
{
    return c->grpc;
}

/* ---- processes ---- */

struct args {
    char *v[ARGS_MAX];
    int n;
};

static void args_free(struct args *a)
{
    for (int i = 0; i < a->n; i++)
        free(a->v[i]);
}

/* The command and all settings of its scope, as flags. */
static bool args_make(struct args *a, const char *command, uint32_t scope, const struct settings *s)
{
    *a = (struct args){ 0 };
    a->v[a->n++] = strdup("longspan");
    a->v[a->n++] = strdup(command);
    for (const struct config_field *f = settings_fields; f->key && a->n + 2 < ARGS_MAX; f++) {
        char value[1100], flag[1200];
        if (!(f->scope & scope) || !strcmp(f->key, "config"))
            continue;
        config_value(f, s, value, sizeof value);
        if (!value[0])
            continue;
        snprintf(flag, sizeof flag, "--%s=%s", f->key, value);
        a->v[a->n++] = strdup(flag);
    }
    for (int i = 0; i < a->n; i++)
        if (!a->v[i])
            return false;
    return true;
}

/* keep: a descriptor the child inherits, or -1 */
static pid_t spawn(struct args *a, int keep)
{
    const pid_t parent = getpid(), pid = fork();
    if (pid)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* nobody outlives up */
    if (getppid() != parent)
        _exit(1);
    setpgid(0, 0); /* Ctrl-C reaches up alone, which stops the others in order */
    if (keep >= 0)
        fcntl(keep, F_SETFD, 0);
    execv("/proc/self/exe", a->v);
    _exit(127);
}

static enum status start(struct child *child, const char *command, uint32_t scope, const struct settings *s, int keep,
                         struct error *err)
{
    struct args args;
    pid_t pid = -1;
    if (args_make(&args, command, scope, s))
        pid = spawn(&args, keep);
    args_free(&args);
    if (pid < 0)
        return error_set(err, ST_NO_MEMORY, "%s: %s", command, strerror(errno));
    child->pid = pid;
    child->started_ms = clock_ms();
    child->lost_ms = 0;
    return ST_OK;
}

static enum status start_worker(struct cluster *c, uint32_t i, struct error *err)
{
    struct settings s = c->settings;
    snprintf(s.control, sizeof s.control, "%.127s", c->control);
    snprintf(s.bind, sizeof s.bind, "127.0.0.1");
    s.once = false; /* weights and sealed blocks outlive the coordinator */
    return start(&c->worker[i], "worker", SCOPE_WORKER, &s, -1, err);
}

/* "http 127.0.0.1:8080" and so on, a line each, "up" last. */
static bool take_line(struct cluster *c, const char *line)
{
    char what[16], address[144];
    if (sscanf(line, "%15s %143s", what, address) != 2)
        return false;
    char *to = !strcmp(what, "http")      ? c->http
               : !strcmp(what, "grpc")    ? c->grpc
               : !strcmp(what, "control") ? c->control
                                          : NULL;
    if (to)
        snprintf(to, sizeof c->http, "%s", address);
    return c->http[0] && c->grpc[0] && c->control[0];
}

static enum status read_addresses(struct cluster *c, int fd, struct error *err)
{
    char line[256];
    size_t n = 0;
    const int64_t until = clock_ms() + ADDRESSES_MS;
    c->http[0] = c->grpc[0] = c->control[0] = 0;
    while (clock_ms() < until) {
        char ch;
        const ssize_t got = read(fd, &ch, 1);
        if (got == 0)
            return error_set(err, ST_PEER, "the coordinator ended before it listened (its message stands above)");
        if (got < 0) {
            if (errno != EAGAIN && errno != EINTR)
                return error_set(err, ST_IO, "coordinator: %s", strerror(errno));
            usleep(2000);
            continue;
        }
        if (ch != '\n') {
            if (n + 1 < sizeof line)
                line[n++] = ch;
            continue;
        }
        line[n] = 0;
        n = 0;
        if (take_line(c, line))
            return ST_OK;
    }
    return error_set(err, ST_TIMEOUT, "the coordinator did not say where it listens");
}

static enum status start_coordinator(struct cluster *c, struct error *err)
{
    int ends[2];
    struct settings s = c->settings;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return error_set(err, ST_IO, "pipe: %s", strerror(errno));
    if (c->http[0]) { /* started again: at the same addresses */
        snprintf(s.http, sizeof s.http, "%.120s", c->http);
        snprintf(s.grpc, sizeof s.grpc, "%.120s", c->grpc);
        snprintf(s.control, sizeof s.control, "%.120s", c->control);
    } else {
        snprintf(s.control, sizeof s.control, "127.0.0.1:0");
    }
    s.announce_fd = (uint32_t)ends[1];
    enum status st = start(&c->coordinator, "coordinator", SCOPE_COORDINATOR, &s, ends[1], err);
    close(ends[1]);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    if (!st)
        st = read_addresses(c, ends[0], err);
    close(ends[0]);
    return st;
}

/* ---- fair shares ---- */

static uint64_t memory_available(void)
{
    char line[256];
    unsigned long long kib = 0;
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib << 10;
}

/* Bytes of a position, sealed and open (0: blocks are open in their sealed form). */
static enum status token_bytes(const struct settings *s, const struct model_config *c, uint64_t *sealed_out,
                               uint64_t *open_out, struct error *err)
{
    enum kv_codec codec;
    const enum status st = kv_codec_find(s->kv_codec, !strcmp(s->precision, "float32"), &codec, err);
    if (st)
        return st;
    const struct attn_shape sealed = { c->head_dim, codec, 1, NULL },
                            open = { c->head_dim, kv_codecs[codec].open, 1, NULL };
    const struct attn_impl *impl = attn_find(&sealed, 0), *open_impl = attn_find(&open, 0);
    if (!impl || !open_impl)
        return error_set(err, ST_UNSUPPORTED, "kv-codec %s takes no heads of %u channels", s->kv_codec, c->head_dim);
    const uint64_t parts = 2 * (uint64_t)c->n_layers * c->n_kv_heads;
    *sealed_out = parts * impl->part_bytes(&sealed) / KV_BLOCK;
    *open_out = open.codec == sealed.codec ? 0 : parts * open_impl->part_bytes(&open) / KV_BLOCK;
    return ST_OK;
}

/*
 * Each worker gets an even share of the cores, and of a third of the memory that is left when all have their weights, at most what 16 sequences of the longest
 * context take together: a pool nobody fills is not worth its page tables. -> prints the arithmetic on stderr.
 */
static enum status fair_shares(struct settings *s, struct error *err)
{
    struct model *m;
    enum status st = model_open(s->model, &m, err);
    if (st)
        return st;
    const struct model_config *c = model_config(m);
    const uint64_t weights = model_weight_bytes(m);
    uint64_t token, open;
    st = token_bytes(s, c, &token, &open, err);
    if (st) {
        model_close(m);
        return st;
    }
    const uint64_t positions =
        s->positions_max && s->positions_max < c->positions_max ? s->positions_max : c->positions_max;
    const uint64_t available = memory_available(), all = weights * s->workers;
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (!s->threads)
        s->threads = cores / s->workers > 1 ? (uint32_t)(cores / s->workers) : 1;
    if (!s->kv_bytes) {
        const uint64_t sealed = 16 * positions * token / s->workers,
                       wanted = sealed + KV_BLOCK * open * worker_open_blocks(sealed, KV_BLOCK * open),
                       room = available > all ? (available - all) / 3 / s->workers : 0;
        s->kv_bytes = room < wanted ? room : wanted;
        const uint64_t least = 128 * token + KV_BLOCK * open * worker_open_blocks(0, KV_BLOCK * open);
        if (s->kv_bytes < least)
            s->kv_bytes = least;
    }
    const uint64_t for_open = KV_BLOCK * open * worker_open_blocks(s->kv_bytes, KV_BLOCK * open);
    const uint64_t fit = for_open < s->kv_bytes ? (s->kv_bytes - for_open) / (64 * token) * 64 * s->workers : 0;
    char note[96] = "";
    if (open)
        snprintf(note, sizeof note, " of %s (%.0f MiB are for open blocks)", s->kv_codec, (double)for_open / 0x1p20);
    fprintf(
        stderr,
        "%s: %u layers, %u query heads, %u KV heads of %u; weights %.0f MiB a worker\n"
        "KV cache: %llu bytes a token, %u workers x %.0f MiB%s = %llu tokens; longest context %llu (the model's: %u)\n",
        c->name, c->n_layers, c->n_heads, c->n_kv_heads, c->head_dim, (double)weights / 0x1p20,
        (unsigned long long)token, s->workers, (double)s->kv_bytes / 0x1p20, note, (unsigned long long)fit,
        (unsigned long long)(fit < positions ? fit : positions), c->positions_max);
    model_close(m);
    return ST_OK;
}

/* ---- the cluster ---- */

enum status cluster_start(const struct settings *settings, struct cluster **cluster_out, struct error *err)
{
    struct cluster *c = calloc(1, sizeof *c);
    if (!c)
        return error_set(err, ST_NO_MEMORY, "no memory");
    c->settings = *settings;
    char calibration[33], selector[SELECTOR_TEXT];
    enum status st =
        settings_calibration(&c->settings, calibration, err); /* missing ones are told here, not by a child */
    if (!st)
        st = settings_selector(&c->settings, selector, err);
    if (!st)
        st = settings_channels(&c->settings, selector, err);
    if (!st)
        st = fair_shares(&c->settings, err);
    if (!st && settings->tls_cert[0] && !settings->tls_ca[0])
        st = error_set(err, ST_INVALID, "tls-ca: is needed beside tls-cert: the cluster is called from here, too");
    const char *key = getenv("LONGSPAN_API_KEY");
    if (!st && settings->api_keys[0] && !settings->api_key_file[0] && !(key && *key))
        st = error_set(
            err, ST_INVALID,
            "api-key-file (or LONGSPAN_API_KEY): is needed beside api-keys: the cluster is called from here, too");
    if (!st)
        st = start_coordinator(c, err);
    for (uint32_t i = 0; i < settings->workers && !st; i++)
        st = start_worker(c, i, err);
    if (st) {
        cluster_stop(c);
        return st;
    }
    *cluster_out = c;
    return ST_OK;
}

/* Who ended; a child that ran for a while starts again at once, one that dies early after growing pauses. */
static void reap(struct cluster *c)
{
    int how;
    for (pid_t pid; (pid = waitpid(-1, &how, WNOHANG)) > 0;) {
        struct child *child = c->coordinator.pid == pid ? &c->coordinator : NULL;
        for (uint32_t i = 0; i < c->settings.workers; i++)
            if (c->worker[i].pid == pid)
                child = &c->worker[i];
        if (!child)
            continue;
        if (WIFSIGNALED(how))
            log_warn("%s (pid %d) was killed by signal %d", child == &c->coordinator ? "coordinator" : "worker",
                     (int)pid, WTERMSIG(how));
        else
            log_warn("%s (pid %d) ended with status %d", child == &c->coordinator ? "coordinator" : "worker", (int)pid,
                     WEXITSTATUS(how));
        const bool early = clock_ms() - child->started_ms < 5000;
        child->pause_ms = !early ? PAUSE_FIRST_MS : child->pause_ms ? child->pause_ms * 2 : PAUSE_FIRST_MS;
        if (child->pause_ms > PAUSE_MAX_MS)
            child->pause_ms = PAUSE_MAX_MS;
        child->again_ms = clock_ms() + child->pause_ms;
        child->pid = 0;
    }
}

static bool shown_lost(const Longspan__V1__StatusResponse *s, pid_t pid)
{
    bool lost = false;
    for (size_t i = 0; i < s->n_workers; i++) {
        if (s->workers[i]->pid != (uint32_t)pid)
            continue;
        if (strcmp(s->workers[i]->state, "lost"))
            return false;
        lost = true;
    }
    return lost;
}

/* A worker that was given up ends by itself, unless it hangs. */
static void kill_hung(struct cluster *c, int64_t now)
{
    Longspan__V1__StatusResponse *status;
    struct error ignored = { 0 };
    if (now < c->look_ms)
        return;
    c->look_ms = now + LOOK_MS;
    if ((!c->watch && remote_open(c->grpc, &c->settings, &c->watch, &ignored)) ||
        remote_status(c->watch, LOOK_MS, &status, &ignored))
        return;
    for (uint32_t i = 0; i < c->settings.workers; i++) {
        struct child *w = &c->worker[i];
        if (!w->pid || !shown_lost(status, w->pid)) {
            w->lost_ms = 0;
        } else if (!w->lost_ms) {
            w->lost_ms = now;
        } else if (now - w->lost_ms >= HUNG_MS) {
            log_warn("worker (pid %d) was given up and does not end: killed", (int)w->pid);
            kill(w->pid, SIGKILL);
        }
    }
    longspan__v1__status_response__free_unpacked(status, NULL);
}

/* One that is killed again before it listens is started again like any other, at the addresses of before. */
static enum status restart_coordinator(struct cluster *c, struct error *err)
{
    char http[sizeof c->http], grpc[sizeof c->grpc], control[sizeof c->control];
    struct error cause = { 0 };
    memcpy(http, c->http, sizeof http);
    memcpy(grpc, c->grpc, sizeof grpc);
    memcpy(control, c->control, sizeof control);
    const enum status st = start_coordinator(c, &cause);
    if (!st)
        return ST_OK;
    if (st != ST_PEER)
        return error_set(err, st, "%s", cause.text);
    memcpy(c->http, http, sizeof http);
    memcpy(c->grpc, grpc, sizeof grpc);
    memcpy(c->control, control, sizeof control);
    return ST_OK; /* reaped as the others are */
}

enum status cluster_tend(struct cluster *c, struct error *err)
{
    reap(c);
    const int64_t now = clock_ms();
    enum status st = ST_OK;
    kill_hung(c, now);
    if (!c->coordinator.pid && now >= c->coordinator.again_ms) {
        if (c->restarts++ >= c->settings.restarts_max)
            return error_set(err, ST_PEER, "the coordinator died once too often");
        st = restart_coordinator(c, err);
    }
    for (uint32_t i = 0; i < c->settings.workers && !st; i++) {
        if (c->worker[i].pid || now < c->worker[i].again_ms)
            continue;
        if (c->restarts++ >= c->settings.restarts_max)
            return error_set(err, ST_PEER, "workers died once too often");
        st = start_worker(c, i, err);
    }
    return st;
}

static float loaded(const Longspan__V1__StatusResponse *s, uint32_t workers)
{
    float sum = 0;
    for (size_t i = 0; i < s->n_workers; i++)
        if (strcmp(s->workers[i]->state, "lost"))
            sum += !strcmp(s->workers[i]->state, "ready") ? 1 : s->workers[i]->load_fraction;
    return sum / (float)workers;
}

enum status cluster_await(struct cluster *c, bool quiet, bool (*stop)(void), struct error *err)
{
    struct remote *r;
    enum status st = remote_open(c->grpc, &c->settings, &r, err);
    bool ready = false;
    int64_t heard_ms = clock_ms();
    while (!st && !ready) {
        Longspan__V1__StatusResponse *status;
        struct error cause = { 0 };
        st = stop() ? error_set(err, ST_CANCELLED, "stopped") : cluster_tend(c, err);
        if (st)
            break;
        if (!remote_status(r, 2000, &status, &cause)) {
            heard_ms = clock_ms();
            const float fraction = loaded(status, c->settings.workers);
            if (!quiet)
                terminal_bar("loading", fraction);
            ready = status->ready && fraction >= 1;
            longspan__v1__status_response__free_unpacked(status, NULL);
        } else if (clock_ms() - heard_ms > DEAF_MS) {
            st = error_set(err, ST_TIMEOUT, "%s", cause.text);
        }
        if (!ready)
            usleep(20000);
    }
    if (!quiet)
        terminal_bar_end();
    remote_close(r);
    return st;
}

static bool alive(struct cluster *c)
{
    reap(c);
    bool any = c->coordinator.pid > 0;
    for (uint32_t i = 0; i < c->settings.workers; i++)
        any = any || c->worker[i].pid > 0;
    return any;
}

static void signal_all(const struct cluster *c, int number)
{
    if (c->coordinator.pid > 0)
        kill(c->coordinator.pid, number);
    for (uint32_t i = 0; i < c->settings.workers; i++)
        if (c->worker[i].pid > 0)
            kill(c->worker[i].pid, number);
}

void cluster_stop(struct cluster *c)
{
    if (!c)
        return;
    log_set_level(LOG_LEVEL_ERROR); /* children that end now were asked to */
    if (c->coordinator.pid > 0)
        kill(c->coordinator.pid, SIGTERM); /* first: it ends its streams in order */
    for (int64_t until = clock_ms() + c->settings.drain_ms + GRACE_MS; c->coordinator.pid > 0 && clock_ms() < until;
         usleep(10000))
        reap(c);
    signal_all(c, SIGTERM);
    for (int64_t until = clock_ms() + 2000; alive(c) && clock_ms() < until;)
        usleep(10000);
    signal_all(c, SIGKILL);
    for (int64_t until = clock_ms() + 2000; alive(c) && clock_ms() < until;)
        usleep(10000);
    remote_close(c->watch);
    free(c);
}
