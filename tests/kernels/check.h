#ifndef LONGSPAN_TESTS_KERNELS_CHECK_H
#define LONGSPAN_TESTS_KERNELS_CHECK_H

/*
 * A harness for kernels: every variant of a table against its `_c`, over random shapes drawn from a seed. A check_<op>.c is one program:
 * its main gives check_main a list of operations. A failure prints what differs and the command that replays that round.
 *
 *   check_linear [--op NAME] [--variant NAME] [--seed N] [--rounds N] [--bench]
 *
 * One round: the random numbers are drawn anew from (seed, round), the operation's function is called once, its buffers are freed. With
 * --bench the functions are called once with check.bench set: they time their variants over the shapes that matter, and check nothing.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/rng.h"

struct check_buffer_list;

struct check {
    const char *only_op, *only_variant; /* NULL: all */
    const char *program;
    uint64_t seed, round;
    bool bench;
    uint32_t caps;  /* cpu_caps(): what LONGSPAN_ISA leaves */
    struct rng rng; /* of this round */
    const char *op; /* running now, for messages */
    const char *variant;
    char context[256]; /* shape and the like: check_context */
    unsigned failures; /* of this round */
    unsigned long n_checks;
    struct check_buffer_list *buffers;
};

struct check_op {
    const char *name;
    void (*run)(struct check *ck);
    unsigned rounds; /* by default */
};

/* What main returns: 0 all well, 1 a check failed, 2 bad usage. */
int check_main(int argc, char **argv, const struct check_op *ops, size_t n_ops);

/* Whether this variant is to be checked here: asked for, and the processor has what it needs. Names it in messages from now on. */
bool check_begin(struct check *ck, const char *op, const char *variant, uint32_t needs);
/* Says what is being tried (printf), for messages. */
void check_context(struct check *ck, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Fails the round: prints op, variant, context, the text, and the command that replays it. The round goes on. */
void check_fail(struct check *ck, const char *format, ...) __attribute__((format(printf, 2, 3)));

/*
 * A 64-byte aligned buffer whose end lies within 63 bytes of an inaccessible page, freed after the round. The bytes up to that page and 64
 * bytes before it are canaries, looked at when it is freed. Filled with 0xA5 so that what is never written shows.
 */
void *check_buffer(struct check *ck, size_t bytes);
/* Frees all buffers before the round ends, for loops over big ones. */
void check_buffers_free(struct check *ck);

/* ||got - want|| <= rtol ||want|| (Euclidean, in float64); a NaN on one side only fails. */
bool check_close(struct check *ck, const char *what, const float *got, const float *want, size_t n, double rtol);
/* The same bits. */
bool check_same(struct check *ck, const char *what, const void *got, const void *want, size_t bytes);

/* run_NAME: check_NAME, which has nothing to time. */
#define CHECK_UNLESS_BENCH(name)                                                                                       \
    static void run_##name(struct check *ck)                                                                           \
    {                                                                                                                  \
        if (!ck->bench)                                                                                                \
            check_##name(ck);                                                                                          \
    }

/* Draws. */
uint32_t check_below(struct check *ck, uint32_t n);                 /* 0 .. n-1 */
uint32_t check_between(struct check *ck, uint32_t lo, uint32_t hi); /* lo .. hi */
float check_uniform(struct check *ck);                              /* (-1, 1) */
float check_normal(struct check *ck);                               /* about N(0, 1): the sum of 12 uniforms */

/*
 * Seconds of this thread's processor time that one run of statement takes, so that other programs disturb less: the median of five timings,
 * each of enough repetitions to last some 40 ms.
 */
#define CHECK_TIME(seconds_out, statement)                                                                             \
    do {                                                                                                               \
        double check_times_[5];                                                                                        \
        unsigned long check_reps_ = 1;                                                                                 \
        for (int check_i_ = -1; check_i_ < 5;) {                                                                       \
            const int64_t check_t0_ = check_cpu_ns();                                                                  \
            for (unsigned long check_r_ = 0; check_r_ < check_reps_; check_r_++) {                                     \
                statement;                                                                                             \
            }                                                                                                          \
            const double check_ns_ = (double)(check_cpu_ns() - check_t0_);                                             \
            if (check_i_ < 0 && check_ns_ < 4e7) {                                                                     \
                check_reps_ = check_ns_ < 4e6 ? check_reps_ * 8 : check_reps_ * 2;                                     \
                continue;                                                                                              \
            }                                                                                                          \
            if (check_i_ >= 0)                                                                                         \
                check_times_[check_i_] = check_ns_ / 1e9 / (double)check_reps_;                                        \
            check_i_++;                                                                                                \
        }                                                                                                              \
        (seconds_out) = check_median(check_times_, 5);                                                                 \
    } while (0)
int64_t check_cpu_ns(void);
double check_median(double *x, size_t n); /* sorts x */

#endif
