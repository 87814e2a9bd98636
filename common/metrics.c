#include "common/metrics.h"

#include <dirent.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum kind { KIND_COUNTER, KIND_GAUGE, KIND_HISTOGRAM };
static const char *const kind_names[] = { "counter", "gauge", "histogram" };

struct metric {
    struct metric *next;
    enum kind kind;
    const char *name, *help;
    char *labels;
    atomic_uint_fast64_t count; /* counter; observations of a histogram */
    _Atomic uint64_t value;     /* bits of a double: gauge; sum of a histogram */
    uint32_t n_bounds;
    double *bounds;
    atomic_uint_fast64_t *buckets; /* [n_bounds + 1], each for itself; summed up when written */
};

struct metrics {
    pthread_mutex_t
        lock; /* the list; series are never removed, so that walking it needs no lock once the head is read */
    struct metric *first, **last;
};

struct metrics *metrics_new(void)
{
    struct metrics *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    pthread_mutex_init(&m->lock, NULL);
    m->last = &m->first;
    return m;
}

static void metric_free(struct metric *c)
{
    if (!c)
        return;
    free(c->labels);
    free(c->bounds);
    free(c->buckets);
    free(c);
}

void metrics_free(struct metrics *m)
{
    if (!m)
        return;
    for (struct metric *c = m->first, *next; c; c = next) {
        next = c->next;
        metric_free(c);
    }
    pthread_mutex_destroy(&m->lock);
    free(m);
}

static struct metric *metric_find(struct metrics *m, const char *name, const char *labels)
{
    for (struct metric *c = m->first; c; c = c->next)
        if (!strcmp(c->name, name) && !strcmp(c->labels, labels))
            return c;
    return NULL;
}

static struct metric *metric_make(enum kind kind, const char *name, const char *help, const char *labels,
                                  const double *bounds, uint32_t n_bounds)
{
    struct metric *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->kind = kind;
    c->name = name;
    c->help = help;
    c->labels = strdup(labels);
    c->n_bounds = n_bounds;
    if (kind == KIND_HISTOGRAM) {
        c->bounds = calloc(n_bounds + 1, sizeof *c->bounds);
        c->buckets = calloc(n_bounds + 1, sizeof *c->buckets);
        if (c->bounds && n_bounds)
            memcpy(c->bounds, bounds, n_bounds * sizeof *bounds);
    }
    if (!c->labels || (kind == KIND_HISTOGRAM && (!c->bounds || !c->buckets))) {
        metric_free(c);
        return NULL;
    }
    return c;
}

static struct metric *metric_get(struct metrics *m, enum kind kind, const char *name, const char *help,
                                 const char *labels, const double *bounds, uint32_t n_bounds)
{
    if (!m || n_bounds > METRIC_BOUNDS_MAX)
        return NULL;
    labels = labels ? labels : "";
    pthread_mutex_lock(&m->lock);
    struct metric *c = metric_find(m, name, labels);
    if (!c) {
        c = metric_make(kind, name, help, labels, bounds, n_bounds);
        if (c) {
            *m->last = c;
            m->last = &c->next;
        }
    }
    pthread_mutex_unlock(&m->lock);
    return c && c->kind == kind ? c : NULL;
}

struct metric *metrics_counter(struct metrics *m, const char *name, const char *help, const char *labels)
{
    return metric_get(m, KIND_COUNTER, name, help, labels, NULL, 0);
}

struct metric *metrics_gauge(struct metrics *m, const char *name, const char *help, const char *labels)
{
    return metric_get(m, KIND_GAUGE, name, help, labels, NULL, 0);
}

struct metric *metrics_histogram(struct metrics *m, const char *name, const char *help, const char *labels,
                                 const double *bounds, uint32_t n_bounds)
{
    return metric_get(m, KIND_HISTOGRAM, name, help, labels, bounds, n_bounds);
}

static double bits_double(uint64_t bits)
{
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static uint64_t double_bits(double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

void metric_add(struct metric *c, uint64_t n)
{
    if (c)
        atomic_fetch_add_explicit(&c->count, n, memory_order_relaxed);
}

void metric_set(struct metric *g, double value)
{
    if (g)
        atomic_store_explicit(&g->value, double_bits(value), memory_order_relaxed);
}

void metric_observe_n(struct metric *h, double value, uint64_t n)
{
    if (!h || h->kind != KIND_HISTOGRAM || isnan(value) || !n)
        return;
    uint32_t i = 0;
    while (i < h->n_bounds && value > h->bounds[i])
        i++;
    atomic_fetch_add_explicit(&h->buckets[i], n, memory_order_relaxed);
    uint64_t old = atomic_load_explicit(&h->value, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&h->value, &old, double_bits(bits_double(old) + value * (double)n),
                                                  memory_order_relaxed, memory_order_relaxed))
        ;
    atomic_fetch_add_explicit(&h->count, n, memory_order_relaxed);
}

void metric_observe(struct metric *h, double value)
{
    metric_observe_n(h, value, 1);
}

uint64_t metric_count(const struct metric *metric)
{
    return metric ? atomic_load_explicit(&metric->count, memory_order_relaxed) : 0;
}

void metrics_write_family(FILE *out, const char *name, const char *kind, const char *help)
{
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind);
}

static void write_value(FILE *out, double value)
{
    if (isnan(value))
        fputs("NaN\n", out);
    else if (isinf(value))
        fputs(value > 0 ? "+Inf\n" : "-Inf\n", out);
    else if (value == trunc(value) && fabs(value) < 0x1p53)
        fprintf(out, "%.0f\n", value);
    else
        fprintf(out, "%.17g\n", value);
}

void metrics_write_sample(FILE *out, const char *name, const char *labels, double value)
{
    if (labels && *labels)
        fprintf(out, "%s{%s} ", name, labels);
    else
        fprintf(out, "%s ", name);
    write_value(out, value);
}

/* The count is what the buckets sum up to, so that one scrape never contradicts itself while others observe. */
static void write_histogram(const struct metric *h, FILE *out)
{
    const char *comma = *h->labels ? "," : "";
    uint64_t below = 0;
    for (uint32_t i = 0; i < h->n_bounds; i++) {
        below += atomic_load_explicit(&h->buckets[i], memory_order_relaxed);
        fprintf(out, "%s_bucket{%s%sle=\"%.9g\"} %llu\n", h->name, h->labels, comma, h->bounds[i],
                (unsigned long long)below);
    }
    below += atomic_load_explicit(&h->buckets[h->n_bounds], memory_order_relaxed);
    fprintf(out, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", h->name, h->labels, comma, (unsigned long long)below);
    char name[160];
    snprintf(name, sizeof name, "%s_sum", h->name);
    metrics_write_sample(out, name, h->labels, bits_double(atomic_load_explicit(&h->value, memory_order_relaxed)));
    snprintf(name, sizeof name, "%s_count", h->name);
    metrics_write_sample(out, name, h->labels, (double)below);
}

static void write_series(const struct metric *c, FILE *out)
{
    switch (c->kind) {
    case KIND_COUNTER:
        metrics_write_sample(out, c->name, c->labels, (double)metric_count(c));
        return;
    case KIND_GAUGE:
        metrics_write_sample(out, c->name, c->labels,
                             bits_double(atomic_load_explicit(&c->value, memory_order_relaxed)));
        return;
    case KIND_HISTOGRAM:
        write_histogram(c, out);
        return;
    }
}

void metrics_write(struct metrics *m, FILE *out)
{
    pthread_mutex_lock(&m->lock);
    for (const struct metric *c = m->first; c; c = c->next) {
        const struct metric *f = m->first;
        while (strcmp(f->name, c->name) != 0)
            f = f->next;
        if (f != c)
            continue; /* written with the first of its family */
        metrics_write_family(out, c->name, kind_names[c->kind], c->help);
        for (; f; f = f->next)
            if (!strcmp(f->name, c->name))
                write_series(f, out);
    }
    pthread_mutex_unlock(&m->lock);
}

const char *metric_label(char *out, size_t bytes, const char *name, const char *value)
{
    size_t n = (size_t)snprintf(out, bytes, "%s=\"", name);
    for (; n + 4 < bytes && *value; value++) {
        const char c = *value;
        if (c == '\\' || c == '"' || c == '\n') {
            out[n++] = '\\';
            out[n++] = c == '\n' ? 'n' : c;
        } else {
            out[n++] = c;
        }
    }
    while (n > 0 && *value && ((unsigned char)*value & 0xC0) == 0x80) {
        /* cut inside a character: take its first bytes back too */
        n--;
        if (((unsigned char)out[n] & 0xC0) != 0x80)
            break;
    }
    if (n + 2 <= bytes)
        memcpy(out + n, "\"", 2);
    return out;
}

/* Descriptors in use; the one that counts is left out. */
static long open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    if (!dir)
        return -1;
    long n = -1;
    for (const struct dirent *e; (e = readdir(dir));)
        n += e->d_name[0] != '.';
    closedir(dir);
    return n;
}

static bool proc_numbers(const char *path, const char *format, long long *a, long long *b)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    const int n = fscanf(f, format, a, b);
    fclose(f);
    return n == 2;
}

static void write_one(FILE *out, const char *name, const char *kind, const char *help, double value)
{
    metrics_write_family(out, name, kind, help);
    metrics_write_sample(out, name, NULL, value);
}

void metrics_write_process(FILE *out)
{
    long long pages = 0, resident = 0;
    if (proc_numbers("/proc/self/statm", "%lld %lld", &pages, &resident)) {
        const double page = (double)sysconf(_SC_PAGESIZE);
        write_one(out, "process_resident_memory_bytes", "gauge", "Resident memory size in bytes.",
                  (double)resident * page);
        write_one(out, "process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", (double)pages * page);
    }
    const long fds = open_fds();
    if (fds >= 0)
        write_one(out, "process_open_fds", "gauge", "Number of open file descriptors.", (double)fds);
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        write_one(out, "process_max_fds", "gauge", "Maximum number of open file descriptors.", (double)limit.rlim_cur);
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) == 0)
        write_one(out, "process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.",
                  (double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec +
                      1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec));
}
