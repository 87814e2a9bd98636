#include "tests/kernels/check.h"

#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/clock.h"
#include "kernels/kernels.h"

enum { CANARY = 0xC7, FILL = 0xA5, MARGIN = 64 };

struct check_buffer_list {
    struct check_buffer_list *next;
    uint8_t *map;
    size_t map_bytes;
    uint8_t *data;
    size_t bytes;
};

static void *die(const char *what)
{
    perror(what);
    exit(3);
}

void *check_buffer(struct check *ck, size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t room = (bytes + 63) / 64 * 64;
    const size_t inner = (room + MARGIN + page - 1) / page * page;
    struct check_buffer_list *b = calloc(1, sizeof *b);
    if (!b)
        return die("calloc");
    b->map_bytes = inner + 2 * page;
    b->map = mmap(NULL, b->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b->map == MAP_FAILED || mprotect(b->map + page, inner, PROT_READ | PROT_WRITE))
        return die("mmap");
    b->data = b->map + page + inner - room;
    b->bytes = bytes;
    memset(b->data - MARGIN, CANARY, MARGIN);
    memset(b->data, FILL, bytes);
    memset(b->data + bytes, CANARY, room - bytes);
    b->next = ck->buffers;
    ck->buffers = b;
    return b->data;
}

void check_buffers_free(struct check *ck)
{
    while (ck->buffers) {
        struct check_buffer_list *b = ck->buffers;
        const size_t after = (64 - b->bytes % 64) % 64;
        for (size_t i = 0; i < MARGIN; i++)
            if (b->data[-1 - (ptrdiff_t)i] != CANARY) {
                check_fail(ck, "a buffer of %zu bytes was written %zu bytes before its start", b->bytes, i + 1);
                break;
            }
        for (size_t i = 0; i < after; i++)
            if (b->data[b->bytes + i] != CANARY) {
                check_fail(ck, "a buffer of %zu bytes was written at %zu, past its end", b->bytes, b->bytes + i);
                break;
            }
        ck->buffers = b->next;
        munmap(b->map, b->map_bytes);
        free(b);
    }
}

bool check_begin(struct check *ck, const char *op, const char *variant, uint32_t needs)
{
    if ((ck->only_op && strcmp(ck->only_op, op)) || (ck->only_variant && strcmp(ck->only_variant, variant)))
        return false;
    if ((ck->caps & needs) != needs)
        return false;
    ck->op = op;
    ck->variant = variant;
    return true;
}

void check_context(struct check *ck, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vsnprintf(ck->context, sizeof ck->context, format, ap);
    va_end(ap);
}

static void print_replay(const struct check *ck)
{
    fprintf(stderr, "  replay: %s --op %s --seed %llu:%llu --rounds 1\n", ck->program, ck->op,
            (unsigned long long)ck->seed, (unsigned long long)ck->round);
}

void check_fail(struct check *ck, const char *format, ...)
{
    va_list ap;
    if (++ck->failures > 8)
        return;
    fprintf(stderr, "FAIL %s %s [%s]: ", ck->op, ck->variant ? ck->variant : "", ck->context);
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fprintf(stderr, "\n");
    print_replay(ck);
}

/* For the handler of faults: what runs now. */
static const struct check *running;

/* A buffer's guard page was touched, or an instruction was not there: says where before dying of it. */
static void on_fault(int signal_number)
{
    signal(signal_number, SIG_DFL);
    fprintf(stderr, "FAIL %s %s [%s]: signal %d%s\n", running->op, running->variant ? running->variant : "",
            running->context, signal_number, signal_number == SIGSEGV ? ", memory outside of the buffers" : "");
    print_replay(running);
    raise(signal_number);
}

bool check_close(struct check *ck, const char *what, const float *got, const float *want, size_t n, double rtol)
{
    double diff = 0, norm = 0, worst = -1;
    size_t at = 0;
    ck->n_checks++;
    for (size_t i = 0; i < n; i++) {
        if (isnan(got[i]) && isnan(want[i]))
            continue;
        if (got[i] == want[i]) { /* equal infinities too */
            if (isfinite(want[i]))
                norm += (double)want[i] * (double)want[i];
            continue;
        }
        const double d = (double)got[i] - (double)want[i];
        if (!isfinite(d)) {
            check_fail(ck, "%s[%zu] is %g, should be %g", what, i, (double)got[i], (double)want[i]);
            return false;
        }
        diff += d * d;
        norm += (double)want[i] * (double)want[i];
        if (fabs(d) > worst) {
            worst = fabs(d);
            at = i;
        }
    }
    if (sqrt(diff) <= rtol * sqrt(norm))
        return true;
    check_fail(ck, "%s differs by %.3g of its norm, %.3g allowed; worst [%zu]: %.9g, should be %.9g", what,
               sqrt(diff) / sqrt(norm), rtol, at, (double)got[at], (double)want[at]);
    return false;
}

bool check_same(struct check *ck, const char *what, const void *got, const void *want, size_t bytes)
{
    const uint8_t *a = got, *b = want;
    ck->n_checks++;
    if (!memcmp(a, b, bytes))
        return true;
    size_t i = 0;
    while (a[i] == b[i])
        i++;
    i &= ~(size_t)3;
    uint32_t x = 0, y = 0;
    memcpy(&x, a + i, bytes - i < 4 ? bytes - i : 4);
    memcpy(&y, b + i, bytes - i < 4 ? bytes - i : 4);
    check_fail(ck, "%s: bits differ at byte %zu of %zu: %08x, should be %08x", what, i, bytes, x, y);
    return false;
}

uint32_t check_below(struct check *ck, uint32_t n)
{
    return rng_below(&ck->rng, n);
}

uint32_t check_between(struct check *ck, uint32_t lo, uint32_t hi)
{
    return lo + rng_below(&ck->rng, hi - lo + 1);
}

float check_uniform(struct check *ck)
{
    return (float)((double)(rng_next(&ck->rng) >> 40) * 0x1p-23 - 1.0 + 0x1p-24);
}

float check_normal(struct check *ck)
{
    int64_t sum = 0;
    for (int i = 0; i < 3; i++) {
        const uint64_t r = rng_next(&ck->rng);
        sum += (int64_t)(r & 0xFFFF) + (int64_t)(r >> 16 & 0xFFFF) + (int64_t)(r >> 32 & 0xFFFF) + (int64_t)(r >> 48);
    }
    return (float)((double)sum / 65536.0 - 6.0);
}

int64_t check_cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double check_median(double *x, size_t n)
{
    qsort(x, n, sizeof *x, by_value);
    return x[n / 2];
}

static int usage(const char *program, const struct check_op *ops, size_t n_ops)
{
    fprintf(stderr,
            "usage: %s [--op NAME] [--variant NAME] [--seed N[:ROUND]|random] [--rounds N] [--bench]\nops:", program);
    for (size_t i = 0; i < n_ops; i++)
        fprintf(stderr, " %s", ops[i].name);
    fprintf(stderr, "\n");
    return 2;
}

static bool parse_number(const char *text, uint64_t *out, char **end_out)
{
    *out = strtoull(text, end_out, 10);
    return *end_out != text;
}

int check_main(int argc, char **argv, const struct check_op *ops, size_t n_ops)
{
    struct check ck = { .program = argv[0], .seed = 1, .caps = cpu_caps() };
    uint64_t rounds = 0, first_round = 0;
    char *end;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(argv[i], "--bench")) {
            ck.bench = true;
            continue;
        }
        if (!value)
            return usage(argv[0], ops, n_ops);
        if (!strcmp(argv[i], "--op")) {
            ck.only_op = value;
        } else if (!strcmp(argv[i], "--variant")) {
            ck.only_variant = value;
        } else if (!strcmp(argv[i], "--seed") && !strcmp(value, "random")) {
            ck.seed = (uint64_t)clock_ns();
        } else if (!strcmp(argv[i], "--seed")) {
            if (!parse_number(value, &ck.seed, &end) || (*end == ':' && !parse_number(end + 1, &first_round, &end)) ||
                *end)
                return usage(argv[0], ops, n_ops);
        } else if (!strcmp(argv[i], "--rounds")) {
            if (!parse_number(value, &rounds, &end) || *end || !rounds)
                return usage(argv[0], ops, n_ops);
        } else {
            return usage(argv[0], ops, n_ops);
        }
        i++;
    }
    cpu_thread_init();
    running = &ck;
    signal(SIGSEGV, on_fault);
    signal(SIGBUS, on_fault);
    signal(SIGILL, on_fault);
    unsigned long failed = 0;
    bool any = false;
    for (size_t i = 0; i < n_ops; i++) {
        if (ck.only_op && strcmp(ck.only_op, ops[i].name))
            continue;
        any = true;
        const uint64_t n = ck.bench ? 1 : rounds ? rounds : ops[i].rounds;
        ck.n_checks = 0;
        for (ck.round = first_round; ck.round < first_round + n && failed < 4; ck.round++) {
            ck.rng = (struct rng){ mix64(ck.seed ^ mix64(ck.round + 1)), 0 };
            ck.op = ops[i].name;
            ck.variant = NULL;
            ck.context[0] = 0;
            ck.failures = 0;
            ops[i].run(&ck);
            check_buffers_free(&ck);
            failed += ck.failures != 0;
        }
        if (!ck.bench)
            printf("%s: isa %s, seed %llu, %llu rounds, %lu comparisons, %s\n", ops[i].name, cpu_caps_name(ck.caps),
                   (unsigned long long)ck.seed, (unsigned long long)n, ck.n_checks, failed ? "FAILED" : "ok");
    }
    if (!any)
        return usage(argv[0], ops, n_ops);
    return failed ? 1 : 0;
}
