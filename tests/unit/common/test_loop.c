/* ctest-labels: tsan */
#include "common/loop.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "common/clock.h"

enum { N_THREADS = 4, N_POSTS = 2000 };

struct tally {
    struct loop *loop;
    int next[N_THREADS];
    int total;
};

struct mark {
    struct tally *tally;
    int thread, number;
};

static void on_mark(void *arg)
{
    struct mark *m = arg;
    assert_int_equal(m->tally->next[m->thread], m->number);
    m->tally->next[m->thread]++;
    if (++m->tally->total == N_THREADS * N_POSTS)
        loop_stop(m->tally->loop);
    free(m);
}

struct poster {
    struct tally *tally;
    int thread;
};

static void *poster_run(void *arg)
{
    const struct poster *p = arg;
    for (int i = 0; i < N_POSTS; i++) {
        struct mark *m = malloc(sizeof *m);
        *m = (struct mark){ p->tally, p->thread, i };
        loop_post(p->tally->loop, on_mark, m);
    }
    return NULL;
}

static void posts_keep_order(void **state)
{
    (void)state;
    struct tally tally = { 0 };
    assert_int_equal(loop_new(&tally.loop), ST_OK);
    pthread_t threads[N_THREADS];
    struct poster posters[N_THREADS];
    for (int t = 0; t < N_THREADS; t++) {
        posters[t] = (struct poster){ &tally, t };
        assert_int_equal(pthread_create(&threads[t], NULL, poster_run, &posters[t]), 0);
    }
    loop_run(tally.loop);
    for (int t = 0; t < N_THREADS; t++)
        pthread_join(threads[t], NULL);
    assert_int_equal(tally.total, N_THREADS * N_POSTS);
    loop_free(tally.loop);
}

struct chain {
    struct loop *loop;
    int left;
};

static void on_chain(void *arg)
{
    struct chain *c = arg;
    if (--c->left > 0)
        loop_post(c->loop, on_chain, c);
}

static void posts_left_at_stop_are_run(void **state)
{
    (void)state;
    struct chain c = { .left = 5 };
    assert_int_equal(loop_new(&c.loop), ST_OK);
    loop_stop(c.loop); /* before the run: it returns at once, and still runs what was posted */
    loop_post(c.loop, on_chain, &c);
    loop_run(c.loop);
    assert_int_equal(c.left, 0);
    c.left = 2;
    loop_post(c.loop, on_chain, &c);
    loop_drain(c.loop);
    assert_int_equal(c.left, 0);
    loop_free(c.loop);
}

struct ticks {
    struct loop *loop;
    struct loop_timer *timer, *never;
    int n;
    int64_t set_at_us, early_us;
};

static void on_never(void *arg)
{
    (void)arg;
    fail_msg("a timer that was switched off fired");
}

static void on_tick(void *arg)
{
    struct ticks *t = arg;
    const int64_t took_us = clock_us() - t->set_at_us;
    if (took_us < 10000)
        t->early_us = 10000 - took_us;
    if (++t->n == 5) {
        loop_timer_free(t->timer); /* from its own callback */
        t->timer = NULL;
        loop_stop(t->loop);
        return;
    }
    const int64_t busy_until_us = clock_us() + 12000; /* longer than the period: the next one must still wait 10 ms */
    while (clock_us() < busy_until_us)
        ;
    t->set_at_us = clock_us();
    loop_timer_set(t->timer, 10);
}

static void timers_are_never_early(void **state)
{
    (void)state;
    struct ticks t = { 0 };
    assert_int_equal(loop_new(&t.loop), ST_OK);
    t.timer = loop_timer_new(t.loop, on_tick, &t);
    t.never = loop_timer_new(t.loop, on_never, &t);
    loop_timer_set(t.never, 5);
    loop_timer_set(t.never, -1);
    t.set_at_us = clock_us();
    loop_timer_set(t.timer, 10);
    loop_run(t.loop);
    assert_int_equal(t.n, 5);
    assert_true(t.early_us <= 50); /* timerfd and our clock are read at different moments */
    loop_timer_free(t.never);
    loop_timer_free(NULL);
    loop_free(t.loop);
}

static struct loop *signal_loop;

static void on_signal(int number)
{
    (void)number;
    loop_stop(signal_loop);
}

static void raise_soon(void *arg)
{
    (void)arg;
    raise(SIGUSR1);
}

static void stop_from_a_signal_handler(void **state)
{
    (void)state;
    assert_int_equal(loop_new(&signal_loop), ST_OK);
    struct sigaction action = { .sa_handler = on_signal }, old;
    sigaction(SIGUSR1, &action, &old);
    loop_post(signal_loop, raise_soon, NULL);
    loop_run(signal_loop);
    sigaction(SIGUSR1, &old, NULL);
    loop_free(signal_loop);
}

static void *stop_later(void *arg)
{
    struct timespec nap = { .tv_nsec = 20 * 1000 * 1000 };
    nanosleep(&nap, NULL);
    loop_stop(arg);
    return NULL;
}

static void stop_from_another_thread(void **state)
{
    (void)state;
    struct loop *loop;
    assert_int_equal(loop_new(&loop), ST_OK);
    for (int i = 0; i < 3; i++) { /* a loop may run again */
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, stop_later, loop), 0);
        loop_run(loop);
        pthread_join(thread, NULL);
    }
    loop_free(loop);
    loop_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(posts_keep_order),         cmocka_unit_test(posts_left_at_stop_are_run),
        cmocka_unit_test(timers_are_never_early),   cmocka_unit_test(stop_from_a_signal_handler),
        cmocka_unit_test(stop_from_another_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
