#ifndef LONGSPAN_TESTS_REGISTRY_SUITE_H
#define LONGSPAN_TESTS_REGISTRY_SUITE_H

/*
 * What every registry must do, whatever keeps it: included by test_registry.c (embedded) and test_registry_etcd.c (a real etcd), which say what a spec is
 * and how long their leases take.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/rng.h"
#include "coordinator/registry/registry.h"

/* Of the including program: a registry of its own for each name, the shortest lease, how much later than due it may end, rounds of killing. */
static void suite_spec(const char *name, char spec_out[256]);
static uint32_t suite_ttl_ms, suite_late_ms;
static int suite_rounds;

static char spec[256];
static struct loop *loop;

static int setup(void **state)
{
    (void)state;
    static int n;
    char name[16];
    snprintf(name, sizeof name, "test%d", ++n);
    suite_spec(name, spec);
    log_set_level(LOG_LEVEL_ERROR);
    return loop_new(&loop);
}

static int teardown(void **state)
{
    (void)state;
    loop_drain(loop);
    loop_free(loop);
    return 0;
}

/* ---- waiting: everything runs on this thread, in loop_run ---- */

struct reply {
    enum status status;
    uint64_t revision, lease;
    size_t n;
    char text[512]; /* "key=value@revision " ... */
};

static void show(char *out, size_t room, const struct registry_item *item)
{
    const size_t n = strlen(out);
    snprintf(out + n, room - n, "%s=%.*s ", item->key, (int)item->bytes, item->bytes ? (const char *)item->value : "");
}

static void on_reply(void *ctx, const struct registry_answer *a)
{
    struct reply *reply = ctx;
    memset(reply, 0, sizeof *reply);
    reply->status = a->status;
    reply->revision = a->revision;
    reply->lease = a->lease;
    reply->n = a->n_items;
    for (size_t i = 0; i < a->n_items; i++)
        show(reply->text, sizeof reply->text, &a->items[i]);
    if ((a->status != ST_OK) != (*a->message != 0))
        fail_msg("status %d, message '%s'", a->status, a->message);
    loop_stop(loop);
}

static void on_time(void *arg)
{
    *(bool *)arg = true;
    loop_stop(loop);
}

static void run_ms(int64_t ms)
{
    bool over = false;
    struct loop_timer *timer = loop_timer_new(loop, on_time, &over);
    loop_timer_set(timer, ms);
    while (!over)
        loop_run(loop);
    loop_timer_free(timer);
}

/* An event may come some time after the answer to the write that caused it. */
static void await_text(const char *text, const char *want)
{
    for (int i = 0; i < 1000 && strcmp(text, want) != 0; i++)
        run_ms(10);
    assert_string_equal(text, want);
}

static struct registry *open_it(void)
{
    struct registry *r;
    struct error err = { 0 };
    if (registry_open(spec, NULL, loop, &r, &err))
        fail_msg("%s", err.text);
    return r;
}

static struct reply put(struct registry *r, const struct registry_put *p)
{
    struct reply reply;
    r->ops->put(r, p, on_reply, &reply);
    loop_run(loop);
    return reply;
}

static struct reply put_text(struct registry *r, const char *key, const char *value, uint64_t lease)
{
    return put(r, &(struct registry_put){ .key = key, .value = value, .bytes = strlen(value), .lease = lease });
}

static struct reply list(struct registry *r, const char *prefix, bool exact)
{
    struct reply reply;
    r->ops->list(r, prefix, exact, on_reply, &reply);
    loop_run(loop);
    return reply;
}

static struct reply take(struct registry *r, const char *key, enum registry_compare compare, uint64_t at)
{
    struct reply reply;
    r->ops->remove(r, key, compare, at, on_reply, &reply);
    loop_run(loop);
    return reply;
}

static struct reply grant(struct registry *r, uint32_t ttl_ms)
{
    struct reply reply;
    r->ops->lease_grant(r, ttl_ms, on_reply, &reply);
    loop_run(loop);
    return reply;
}

static struct reply keep(struct registry *r, uint64_t lease)
{
    struct reply reply;
    r->ops->lease_keep(r, lease, on_reply, &reply);
    loop_run(loop);
    return reply;
}

/* Writes that are on their way together may arrive in any order: who cares waits. */
static struct reply give_back(struct registry *r, uint64_t lease)
{
    struct reply reply;
    r->ops->lease_revoke(r, lease, on_reply, &reply);
    loop_run(loop);
    return reply;
}

/* ---- tests ---- */

static void test_keys(void **state)
{
    (void)state;
    struct registry *r = open_it();
    struct reply a = put_text(r, "jobs/2", "two", 0);
    assert_int_equal(a.status, ST_OK);
    assert_true(a.revision > 0);
    const struct reply b = put_text(r, "jobs/1", "one", 0);
    assert_true(b.revision > a.revision);
    put_text(r, "jobs", "", 0);
    put_text(r, "job\xff", "x", 0);
    assert_string_equal(list(r, "jobs/", false).text, "jobs/1=one jobs/2=two ");
    assert_string_equal(list(r, "jobs", true).text, "jobs= ");
    assert_int_equal(list(r, "", false).n, 4);
    assert_int_equal(list(r, "zzz", false).n, 0);
    assert_int_equal(list(r, "nothing", true).status, ST_OK);

    /* compare and put */
    struct registry_put p = { .key = "jobs/1", .value = "uno", .bytes = 3, .compare = REGISTRY_ABSENT };
    a = put(r, &p);
    assert_int_equal(a.status, ST_STALE);
    assert_string_equal(a.text, "jobs/1=one ");
    p.compare = REGISTRY_AT;
    p.at = b.revision + 100;
    assert_int_equal(put(r, &p).status, ST_STALE);
    p.at = b.revision;
    assert_int_equal(put(r, &p).status, ST_OK);
    assert_int_equal(put(r, &p).status, ST_STALE); /* its revision has gone on */
    p.key = "jobs/9";
    assert_int_equal(put(r, &p).status, ST_STALE);

    assert_int_equal(take(r, "jobs/1", REGISTRY_AT, b.revision).status, ST_STALE);
    assert_int_equal(take(r, "jobs/1", REGISTRY_ANY, 0).status, ST_OK);
    assert_int_equal(take(r, "jobs/1", REGISTRY_ANY, 0).status, ST_OK);
    assert_int_equal(take(r, "jobs/1", REGISTRY_AT, 5).status, ST_STALE);
    assert_string_equal(list(r, "jobs/", false).text, "jobs/2=two ");

    /* limits */
    char *big = calloc(1, REGISTRY_VALUE_MAX + 1);
    p = (struct registry_put){ .key = "big", .value = big, .bytes = REGISTRY_VALUE_MAX };
    assert_int_equal(put(r, &p).status, ST_OK);
    p.bytes++;
    assert_int_equal(put(r, &p).status, ST_INVALID);
    memset(big, 'k', REGISTRY_KEY_MAX + 1);
    assert_int_equal(put_text(r, big, "v", 0).status, ST_INVALID);
    big[REGISTRY_KEY_MAX] = 0;
    assert_int_equal(put_text(r, big, "v", 0).status, ST_OK);
    assert_int_equal(put_text(r, "", "v", 0).status, ST_INVALID);
    assert_int_equal(grant(r, 5).status, ST_INVALID);
    free(big);

    /* what was there is there again, and revisions go on */
    a = put_text(r, "last", "1", 0);
    registry_close(r);
    r = open_it();
    assert_string_equal(list(r, "jobs/", false).text, "jobs/2=two ");
    assert_true(put_text(r, "last", "2", 0).revision > a.revision);
    registry_close(r);
}

struct seen {
    char text[1024];
    struct registry *r;
    uint64_t watch;
    int left; /* unwatches itself after so many */
};

static void on_change(void *ctx, enum registry_change change, const struct registry_item *item)
{
    struct seen *s = ctx;
    const size_t n = strlen(s->text);
    if (change == REGISTRY_SYNCED) {
        snprintf(s->text + n, sizeof s->text - n, "| ");
    } else if (change == REGISTRY_REMOVED) {
        snprintf(s->text + n, sizeof s->text - n, "-%s ", item->key);
    } else {
        show(s->text, sizeof s->text, item);
    }
    if (s->left && --s->left == 0)
        s->r->ops->unwatch(s->r, s->watch);
}

static void test_watch(void **state)
{
    (void)state;
    struct registry *r = open_it();
    put_text(r, "w/a", "1", 0);
    put_text(r, "x", "1", 0);
    struct seen all = { .r = r }, short_one = { .r = r, .left = 2 }, never = { .r = r };
    all.watch = r->ops->watch(r, "w/", on_change, &all);
    short_one.watch = r->ops->watch(r, "w/", on_change, &short_one);
    never.watch = r->ops->watch(r, "w/", on_change, &never);
    r->ops->unwatch(r, never.watch);
    put_text(r, "w/b", "2", 0);
    put_text(r, "y", "2", 0);
    take(r, "w/a", REGISTRY_ANY, 0);
    const struct reply lease = grant(r, 60000);
    put_text(r, "w/c", "3", lease.lease);
    assert_int_equal(give_back(r, lease.lease).status, ST_OK);
    put_text(r, "w/d", "4", 0);
    await_text(all.text, "w/a=1 | w/b=2 -w/a w/c=3 -w/c w/d=4 ");
    assert_string_equal(short_one.text, "w/a=1 | ");
    assert_string_equal(never.text, "");
    registry_close(r);
}

static void test_leases(void **state)
{
    (void)state;
    struct registry *r = open_it();
    const struct reply a = grant(r, suite_ttl_ms), b = grant(r, suite_ttl_ms);
    assert_true(a.lease && b.lease && a.lease != b.lease);
    put_text(r, "m/a", "a", a.lease);
    put_text(r, "m/b", "b", b.lease);
    put_text(r, "m/c", "c", b.lease);
    put_text(r, "m/c", "c", 0); /* let go of by its lease */
    for (int64_t end = clock_ms() + 2 * suite_ttl_ms + suite_late_ms; clock_ms() < end;) {
        run_ms(suite_ttl_ms / 3);
        assert_int_equal(keep(r, a.lease).status, ST_OK);
    }
    assert_string_equal(list(r, "m/", false).text, "m/a=a m/c=c ");
    assert_int_equal(keep(r, b.lease).status, ST_NOT_FOUND);
    assert_int_equal(put_text(r, "m/b", "b", b.lease).status, ST_NOT_FOUND);
    assert_int_equal(keep(r, 12345678).status, ST_NOT_FOUND);
    /* a lease that is given back takes its keys along */
    r->ops->lease_revoke(r, a.lease, NULL, NULL);
    assert_int_equal(put_text(r, "m/d", "d", 0).status, ST_OK);
    for (int i = 0; i < 100 && list(r, "m/", false).n != 2; i++)
        run_ms(10);
    assert_string_equal(list(r, "m/", false).text, "m/c=c m/d=d ");
    registry_close(r);
}

struct leader {
    uint64_t token;
    int won, lost;
};

static void on_won(void *ctx, uint64_t token)
{
    struct leader *l = ctx;
    l->won++;
    l->token = token;
}

static void on_lost(void *ctx, const char *why)
{
    (void)why;
    ((struct leader *)ctx)->lost++;
}

static struct registry_election *campaign(struct registry *r, const char *who, struct leader *l)
{
    struct registry_election *e;
    const struct registry_election_config config = {
        .name = "coordinator", .value = who, .ttl_ms = suite_ttl_ms, .won = on_won, .lost = on_lost, .ctx = l
    };
    assert_int_equal(registry_election_start(r, &config, &e), ST_OK);
    return e;
}

static void await_count(const int *count, int want)
{
    for (int i = 0; i < 6000 && *count < want; i++)
        run_ms(10);
    assert_int_equal(*count, want);
}

static void test_election(void **state)
{
    (void)state;
    struct registry *r = open_it();
    struct leader a = { 0 }, b = { 0 };
    struct registry_election *ea = campaign(r, "a", &a);
    await_count(&a.won, 1);
    struct registry_election *eb = campaign(r, "b", &b);
    run_ms(2 * suite_ttl_ms + 100);
    assert_true(a.won == 1 && !a.lost && !b.won && registry_election_leads(ea));
    assert_string_equal(list(r, "election/coordinator", true).text, "election/coordinator=a ");
    /* stepping down hands over at once; the token ascends */
    registry_election_stop(ea);
    await_count(&b.won, 1);
    assert_true(b.token > a.token);
    /* a leader whose key is taken away knows it, and stands again */
    const uint64_t token = b.token;
    take(r, "election/coordinator", REGISTRY_ANY, 0);
    await_count(&b.won, 2);
    assert_int_equal(b.lost, 1);
    assert_true(b.token > token);
    registry_election_stop(eb);
    registry_close(r);
}

/* A leader whose lease ended while the store was away finds its own key there: it goes on leading, and the end of the old lease takes nothing away. */
static void test_election_own_key(void **state)
{
    (void)state;
    struct registry *r = open_it();
    const struct reply old = grant(r, 60000);
    assert_int_equal(put_text(r, "election/coordinator", "a", old.lease).status, ST_OK);
    struct leader a = { 0 }, b = { 0 };
    struct registry_election *eb = campaign(r, "b", &b);
    run_ms(suite_ttl_ms);
    assert_int_equal(b.won, 0);
    struct registry_election *ea = campaign(r, "a", &a);
    await_count(&a.won, 1);
    assert_int_equal(give_back(r, old.lease).status, ST_OK);
    run_ms(suite_ttl_ms);
    assert_true(a.won == 1 && !a.lost && !b.won && registry_election_leads(ea));
    registry_election_stop(ea);
    await_count(&b.won, 1);
    assert_true(b.token > a.token);
    registry_election_stop(eb);
    registry_close(r);
}

/* ---- kill -9: a child writes and says what was acknowledged ---- */

struct writer {
    struct registry *r;
    int fd, n;
};

static void write_next(struct writer *w);

static void on_written(void *ctx, const struct registry_answer *a)
{
    struct writer *w = ctx;
    if (a->status)
        _exit(3);
    if (write(w->fd, &w->n, sizeof w->n) != sizeof w->n)
        _exit(4);
    w->n++;
    write_next(w);
}

static void write_next(struct writer *w)
{
    char key[32], value[3000];
    snprintf(key, sizeof key, "crash/%d", w->n % 50);
    memset(value, 'a' + w->n % 26, sizeof value);
    memcpy(value, &w->n, sizeof w->n);
    const struct registry_put p = { .key = key, .value = value, .bytes = sizeof value };
    w->r->ops->put(w->r, &p, on_written, w);
}

static int writer_main(const char *file, int fd)
{
    struct writer w = { .fd = fd };
    struct error err = { 0 };
    if (loop_new(&loop) || registry_open(file, NULL, loop, &w.r, &err))
        return 2;
    write_next(&w);
    loop_run(loop);
    return 0;
}

struct check {
    int found, last, acked;
};

static void on_listed(void *ctx, const struct registry_answer *a)
{
    struct check *c = ctx;
    assert_int_equal(a->status, ST_OK);
    uint64_t revision_of_last = 0;
    for (size_t i = 0; i < a->n_items; i++) {
        int n;
        assert_int_equal(a->items[i].bytes, 3000);
        memcpy(&n, a->items[i].value, sizeof n);
        assert_int_equal(a->items[i].value[2999], 'a' + n % 26); /* whole, not half of it */
        assert_int_equal(n % 50, atoi(a->items[i].key + 6));
        /* each key holds the last that was acknowledged for it, or the one that was under way */
        assert_true(n > c->acked - 50);
        if (n >= c->last) {
            c->last = n;
            revision_of_last = a->items[i].revision;
        }
    }
    for (size_t i = 0; i < a->n_items; i++)
        assert_true(a->items[i].revision <= revision_of_last);
    c->found = (int)a->n_items;
    loop_stop(loop);
}

static void test_kill(void **state)
{
    (void)state;
    struct rng rng = { .seed = (uint64_t)clock_ns() };
    print_message("seed %llu\n", (unsigned long long)rng.seed);
    int acked = -1;
    for (int round = 0; round < suite_rounds; round++) {
        char file[256], name[32], number[16];
        snprintf(name, sizeof name, "crash%d", round);
        suite_spec(name, file);
        int fds[2];
        assert_int_equal(pipe(fds), 0);
        snprintf(number, sizeof number, "%d", fds[1]);
        const pid_t pid = fork();
        if (pid == 0) {
            close(fds[0]);
            execl("/proc/self/exe", "writer", "--writer", file, number, (char *)NULL);
            _exit(5);
        }
        close(fds[1]);
        acked = -1;
        int n;
        assert_int_equal(read(fds[0], &n, sizeof n), sizeof n); /* it has begun */
        acked = n;
        usleep(rng_below(&rng, 100000));
        kill(pid, SIGKILL);
        while (read(fds[0], &n, sizeof n) == sizeof n)
            acked = n;
        close(fds[0]);
        int status;
        waitpid(pid, &status, 0);
        assert_true(WIFSIGNALED(status));
        struct registry *r;
        struct error err = { 0 };
        if (registry_open(file, NULL, loop, &r, &err))
            fail_msg("%s", err.text);
        struct check c = { .last = -1, .acked = acked };
        r->ops->list(r, "crash/", false, on_listed, &c);
        loop_run(loop);
        assert_true(c.last >= acked && c.last <= acked + 1);
        assert_int_equal(c.found, c.last < 50 ? c.last + 1 : 50);
        assert_int_equal(put_text(r, "after", "1", 0).status, ST_OK); /* the lock went with the process */
        registry_close(r);
    }
    print_message("last round: %d writes acknowledged\n", acked + 1);
}

#define SUITE_TESTS                                                                                                    \
    cmocka_unit_test_setup_teardown(test_keys, setup, teardown),                                                       \
        cmocka_unit_test_setup_teardown(test_watch, setup, teardown),                                                  \
        cmocka_unit_test_setup_teardown(test_leases, setup, teardown),                                                 \
        cmocka_unit_test_setup_teardown(test_election, setup, teardown),                                               \
        cmocka_unit_test_setup_teardown(test_election_own_key, setup, teardown),                                       \
        cmocka_unit_test_setup_teardown(test_kill, setup, teardown)

#endif
