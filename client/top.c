#define _GNU_SOURCE /* usleep */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "client/commands.h"
#include "client/interrupt.h"
#include "client/quantile.h"
#include "client/remote.h"
#include "client/settings.h"
#include "common/clock.h"

enum { STATUS_MS = 2000, BAR = 20 };

static const char usage[] = "usage: longspan top [--grpc HOST:PORT] [--interval-ms MS] [--once]";

/* What the counters said at the look before. */
struct look {
    int64_t at_ms;
    uint64_t prompt_tokens, completion_tokens, steps;
};

struct top {
    const struct settings *settings;
    struct remote *remote;
    Longspan__V1__StatusResponse *status; /* NULL: the last look failed */
    struct error err;
    struct look before;
    double prompt_rate, completion_rate, step_rate; /* a second; < 0: not known yet */
    struct termios saved;
    bool raw;
};

/* ---- looking ---- */

static double rate(uint64_t now, uint64_t before, int64_t ms)
{
    return now >= before && ms > 0 ? (double)(now - before) * 1000 / (double)ms : -1;
}

static void take_rates(struct top *t)
{
    const Longspan__V1__SchedulerStatus *s = t->status->scheduler;
    const struct look now = { clock_ms(), s ? s->prompt_tokens : 0, s ? s->completion_tokens : 0, s ? s->steps : 0 };
    const int64_t ms = now.at_ms - t->before.at_ms;
    const bool known = t->before.at_ms != 0;
    t->prompt_rate = known ? rate(now.prompt_tokens, t->before.prompt_tokens, ms) : -1;
    t->completion_rate = known ? rate(now.completion_tokens, t->before.completion_tokens, ms) : -1;
    t->step_rate = known ? rate(now.steps, t->before.steps, ms) : -1;
    t->before = now;
}

static enum status look(struct top *t)
{
    if (t->status)
        longspan__v1__status_response__free_unpacked(t->status, NULL);
    t->status = NULL;
    t->err = (struct error){ 0 };
    const enum status st = remote_status(t->remote, STATUS_MS, &t->status, &t->err);
    if (st) {
        t->status = NULL;
        t->before = (struct look){ 0 };
    } else {
        take_rates(t);
    }
    return st;
}

/* ---- the screen, as lines ---- */

/* Text of the server's: no control characters for the terminal. */
static const char *plain(const char *text, char out[64])
{
    size_t n = 0;
    for (; text[n] && n < 63; n++)
        out[n] = (unsigned char)text[n] < 32 || text[n] == 127 ? '?' : text[n];
    out[n] = 0;
    return out;
}

static void per_second(FILE *out, double v, const char *what)
{
    if (v < 0)
        fprintf(out, "- %s", what);
    else
        fprintf(out, "%.1f %s", v, what);
}

/* Blocks in use (#), kept as cache only (+), free (.). */
static void pool(FILE *out, uint32_t used, uint32_t cached, uint32_t all)
{
    const uint32_t busy = used > cached ? used - cached : 0;
    const double scale = all ? (double)BAR / all : 0;
    const int n_busy = (int)(busy * scale + 0.999), n_used = (int)(used * scale + 0.999);
    for (int i = 0; i < BAR; i++)
        fputc(i < n_busy ? '#' : i < n_used ? '+' : '.', out);
}

static void worker(FILE *out, const Longspan__V1__WorkerStatus *w)
{
    char state[64], address[64], blocks[40];
    snprintf(blocks, sizeof blocks, "%u/%u/%u", w->blocks, w->blocks_cached, w->n_blocks);
    fprintf(out, "%-4u %-8u %-10s %-22s %-20s ", w->id, w->pid, plain(w->state, state), plain(w->address, address),
            blocks);
    pool(out, w->blocks, w->blocks_cached, w->n_blocks);
    fprintf(out, " %6llu %10llu %6llu", (unsigned long long)w->leaves, (unsigned long long)w->term,
            (unsigned long long)w->epoch);
    if (w->step_age_ms < 0)
        fprintf(out, " %7s", "-");
    else
        fprintf(out, " %6.1fs", (double)w->step_age_ms / 1000);
    fprintf(out, " %7.0f %9.1f %9.1f\n", (double)w->resident_bytes / 0x1p20, (double)w->bytes_sent / 0x1p20,
            (double)w->bytes_received / 0x1p20);
}

static void scheduler(const struct top *t, FILE *out)
{
    const Longspan__V1__SchedulerStatus *s = t->status->scheduler;
    if (!s)
        return;
    fprintf(out, "requests   %u running, %u waiting", s->running, s->waiting);
    if (s->waiting)
        fprintf(out, " (the first for %.1f s)", (double)s->waited_ms / 1000);
    fprintf(out, ", %u groups; %llu done, %llu failed, %llu cancelled", s->groups, (unsigned long long)s->requests_done,
            (unsigned long long)s->requests_failed, (unsigned long long)s->requests_cancelled);
    if (s->stalled_ms)
        fprintf(out, "; NO STEP for %.1f s", (double)s->stalled_ms / 1000);
    fputc('\n', out);
    fputs("tokens     ", out);
    per_second(out, t->completion_rate, "generated/s, ");
    per_second(out, t->prompt_rate, "of prompts/s, ");
    per_second(out, t->step_rate, "steps/s; ");
    fprintf(out, "%llu generated, %llu of prompts, %.1f%% from cache\n", (unsigned long long)s->completion_tokens,
            (unsigned long long)s->prompt_tokens,
            s->prompt_tokens ? 100.0 * (double)s->prefix_hit_tokens / (double)s->prompt_tokens : 0);
}

static void lines(const struct top *t, FILE *out)
{
    const Longspan__V1__StatusResponse *s = t->status;
    char name[64], identity[64], role[64];
    if (!s) {
        fprintf(out, "%s: %s\n", t->settings->grpc, t->err.text[0] ? t->err.text : status_text(t->err.status));
        return;
    }
    fprintf(out, "%s  %s, coordinator %s, longest context %u (pools hold %llu), identity %s, up %llu s\n",
            plain(s->model, name), s->ready ? "ready" : "NOT READY", plain(s->role, role), s->positions_max,
            (unsigned long long)s->positions_fit, plain(s->identity, identity),
            (unsigned long long)s->uptime_ms / 1000);
    scheduler(t, out);
    quantile_lines(t->settings, out);
    fprintf(out, "\n%-4s %-8s %-10s %-22s %-20s %-*s %6s %10s %6s %7s %7s %9s %9s\n", "id", "pid", "state", "address",
            "used/cached/all", BAR, "blocks", "leaves", "term", "epoch", "step", "MiB", "sent MiB", "recv MiB");
    for (size_t i = 0; i < s->n_workers; i++)
        worker(out, s->workers[i]);
}

/* ---- the terminal ---- */

static void on_resize(int number)
{
    (void)number; /* it only ends the wait */
}

static void enter(struct top *t)
{
    const struct sigaction resize = { .sa_handler = on_resize };
    sigaction(SIGWINCH, &resize, NULL);
    if (!tcgetattr(STDIN_FILENO, &t->saved)) {
        struct termios raw = t->saved;
        raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        raw.c_cc[VMIN] = 0;
        raw.c_cc[VTIME] = 0;
        t->raw = !tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    fputs("\033[?1049h\033[?25l", stdout);
}

static void leave(struct top *t)
{
    fputs("\033[?25h\033[?1049l", stdout);
    fflush(stdout);
    if (t->raw)
        tcsetattr(STDIN_FILENO, TCSANOW, &t->saved);
}

/* Every line is cut to the width, and lines to the height, so that nothing scrolls. Bytes that continue a character take no column. */
static void draw_line(const char *line, size_t bytes, unsigned columns)
{
    unsigned at = 0;
    for (size_t i = 0; i < bytes; i++) {
        at += ((unsigned char)line[i] & 0xC0) != 0x80;
        if (at > columns)
            break;
        fputc(line[i], stdout);
    }
    fputs("\033[K", stdout);
}

static void draw(const struct top *t)
{
    struct winsize size = { .ws_row = 24, .ws_col = 80 };
    char *text = NULL;
    size_t bytes = 0;
    ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
    FILE *out = open_memstream(&text, &bytes);
    if (!out)
        return;
    lines(t, out);
    fputs("\nq quits", out);
    if (!fclose(out)) {
        const char *at = text, *end = text + bytes;
        fputs("\033[H", stdout);
        for (unsigned row = 0; at < end && row < (size.ws_row ? size.ws_row : 24); row++) {
            const char *stop = memchr(at, '\n', (size_t)(end - at));
            if (row)
                fputc('\n', stdout);
            draw_line(at, (size_t)((stop ? stop : end) - at), size.ws_col ? size.ws_col : 80);
            at = stop ? stop + 1 : end;
        }
        fputs("\033[J", stdout);
        fflush(stdout);
    }
    free(text);
}

/* Until the next look; redraws when the size changes. -> false: the person wants to leave */
static bool pause_for(struct top *t)
{
    const int64_t until = clock_ms() + t->settings->interval_ms;
    for (int64_t left; !interrupted() && (left = until - clock_ms()) > 0;) {
        struct pollfd in = { .fd = STDIN_FILENO, .events = POLLIN };
        char keys[64];
        const int n = poll(&in, 1, (int)left);
        if (n < 0)
            draw(t);
        if (n <= 0)
            continue;
        const ssize_t got = read(STDIN_FILENO, keys, sizeof keys);
        if (got <= 0 || memchr(keys, 'q', (size_t)got) || memchr(keys, 'Q', (size_t)got))
            return false;
    }
    return !interrupted();
}

static void watch(struct top *t)
{
    enter(t);
    do {
        look(t);
        draw(t);
    } while (pause_for(t));
    leave(t);
}

/* Two looks, so that there are rates. */
static enum status print_once(struct top *t)
{
    enum status st = look(t);
    if (!st) {
        usleep(t->settings->interval_ms * 1000);
        st = look(t);
    }
    if (!st)
        lines(t, stdout);
    return st;
}

int command_top(int argc, char **argv)
{
    struct settings s;
    const char *prompt, *positional;
    struct top t = { .settings = &s };
    if (!settings_read(&s, SCOPE_TOP, usage, argc, argv, &prompt, &positional))
        return 2;
    if (positional) {
        fprintf(stderr, "longspan: top takes no argument '%s'\n", positional);
        return 2;
    }
    if (!s.once && (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))) {
        fprintf(stderr, "longspan: top needs a terminal; --once prints one screen\n");
        return 2;
    }
    enum status st = remote_open(s.grpc, &s, &t.remote, &t.err);
    if (!st) {
        interrupt_catch();
        if (s.once)
            st = print_once(&t);
        else
            watch(&t);
    }
    if (st)
        fprintf(stderr, "longspan: %s: %s\n", s.grpc, t.err.text[0] ? t.err.text : status_text(st));
    if (t.status)
        longspan__v1__status_response__free_unpacked(t.status, NULL);
    remote_close(t.remote);
    return st ? 1 : 0;
}
