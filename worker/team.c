#include "worker/team.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/clock.h"
#include "kernels/kernels.h"

enum { SPIN_NS = 50000 };

/* A word that changes when something happened; whoever waits for the change spins, then sleeps on it. */
struct signal_word {
    _Atomic uint32_t value;
    _Atomic uint32_t sleepers;
};

struct team {
    uint32_t n;
    struct signal_word start, barrier;
    _Atomic uint32_t arrived;
    _Atomic bool quit;
    team_fn *fn;
    void *ctx;
    uint32_t n_threads;
    struct member {
        struct team *team;
        uint32_t index;
        pthread_t thread;
    } * members;
};

static void signal_wait(struct signal_word *w, uint32_t old)
{
    const int64_t until = clock_ns() + SPIN_NS;
    for (;;) {
        for (int i = 0; i < 64; i++) {
            if (atomic_load_explicit(&w->value, memory_order_acquire) != old)
                return;
            __builtin_ia32_pause();
        }
        if (clock_ns() > until)
            break;
    }
    atomic_fetch_add(&w->sleepers, 1);
    while (atomic_load(&w->value) == old)
        syscall(SYS_futex, &w->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&w->sleepers, 1);
}

static void signal_raise(struct signal_word *w)
{
    atomic_fetch_add(&w->value, 1);
    if (atomic_load(&w->sleepers))
        syscall(SYS_futex, &w->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void team_barrier(struct team *team)
{
    if (team->n == 1)
        return;
    const uint32_t round = atomic_load(&team->barrier.value);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == team->n) {
        atomic_store(&team->arrived, 0);
        signal_raise(&team->barrier);
    } else {
        signal_wait(&team->barrier, round);
    }
}

static void *member_main(void *arg)
{
    const struct member *m = arg;
    struct team *team = m->team;
    uint32_t seen = 0;
    cpu_thread_init();
    for (;;) {
        signal_wait(&team->start, seen);
        seen++;
        if (atomic_load(&team->quit))
            return NULL;
        team->fn(team->ctx, m->index, team->n);
        team_barrier(team);
    }
}

enum status team_new(uint32_t n_members, struct team **team_out)
{
    struct team *team = calloc(1, sizeof *team);
    if (!team || !(team->members = calloc(n_members, sizeof *team->members))) {
        team_free(team);
        return ST_NO_MEMORY;
    }
    team->n = n_members;
    for (uint32_t i = 1; i < n_members; i++) {
        team->members[i] = (struct member){ .team = team, .index = i };
        if (pthread_create(&team->members[i].thread, NULL, member_main, &team->members[i])) {
            team_free(team);
            return ST_NO_MEMORY;
        }
        team->n_threads++;
    }
    *team_out = team;
    return ST_OK;
}

void team_free(struct team *team)
{
    if (!team)
        return;
    atomic_store(&team->quit, true);
    signal_raise(&team->start);
    for (uint32_t i = 1; i <= team->n_threads; i++)
        pthread_join(team->members[i].thread, NULL);
    free(team->members);
    free(team);
}

void team_run(struct team *team, team_fn *fn, void *ctx)
{
    team->fn = fn;
    team->ctx = ctx;
    if (team->n > 1)
        signal_raise(&team->start);
    fn(ctx, 0, team->n);
    team_barrier(team);
}
