/* ctest-labels: tsan */
/* ctest-serial */
#include "coordinator/membership.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <event2/event.h>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/registry/registry.h"

static char dir[] = "/tmp/longspan-membership-XXXXXX";
static char spec[128];
static struct loop *loop;

#define TURN_UNTIL(condition)                                                                                          \
    do {                                                                                                               \
        const int64_t until_ = clock_ms() + 60000;                                                                     \
        while (!(condition)) {                                                                                         \
            if (clock_ms() > until_)                                                                                   \
                fail_msg("gave up waiting for " #condition);                                                           \
            event_base_loop(loop_base(loop), EVLOOP_NONBLOCK);                                                         \
            nanosleep(&(struct timespec){ .tv_nsec = 500000 }, NULL);                                                  \
        }                                                                                                              \
    } while (0)

struct listed {
    bool done;
    char text[2048]; /* "key value\n" ... */
};

static void on_list(void *ctx, const struct registry_answer *answer)
{
    struct listed *l = ctx;
    size_t n = 0;
    l->text[0] = '\0';
    for (size_t i = 0; i < answer->n_items; i++)
        n += (size_t)snprintf(l->text + n, sizeof l->text - n, "%s %.*s\n", answer->items[i].key,
                              (int)answer->items[i].bytes, (const char *)answer->items[i].value);
    l->done = true;
}

/* What another reader of the registry sees. */
static const char *list_all(void)
{
    static struct listed l;
    struct registry *r;
    struct error err = { 0 };
    if (registry_open(spec, NULL, loop, &r, &err))
        fail_msg("%s", err.text);
    l.done = false;
    r->ops->list(r, "", false, on_list, &l);
    TURN_UNTIL(l.done);
    registry_close(r);
    return l.text;
}

/* What a coordinator was told. */
struct heard {
    uint64_t term;
    int led, outvoted, confirmed, unconfirmed;
    char before[64];
};

static void on_leads(void *ctx, uint64_t term, const char *before)
{
    struct heard *h = ctx;
    assert_true(term > h->term);
    h->led++;
    h->term = term;
    snprintf(h->before, sizeof h->before, "%s", before);
}

static void on_outvoted(void *ctx, const char *why)
{
    assert_true(*why);
    ((struct heard *)ctx)->outvoted++;
}

static void on_confirmed(void *ctx, bool leads)
{
    struct heard *h = ctx;
    if (leads)
        h->confirmed++;
    else
        h->unconfirmed++;
}

static struct membership *start_at(const char *control, struct heard *heard)
{
    struct membership *m;
    struct error err = { 0 };
    const struct membership_config config = { .loop = loop,
                                              .registry = spec,
                                              .http = "127.0.0.1:8080",
                                              .grpc = "127.0.0.1:9090",
                                              .control = control,
                                              .model = "a \"model\"",
                                              .ttl_ms = 1000,
                                              .leads = heard ? on_leads : NULL,
                                              .outvoted = heard ? on_outvoted : NULL,
                                              .ctx = heard };
    if (membership_start(&config, &m, &err))
        fail_msg("%s", err.text);
    return m;
}

static struct membership *start(void)
{
    return start_at("127.0.0.1:9091", NULL);
}

static void on_done(void *ctx, const struct registry_answer *answer)
{
    assert_int_equal(answer->status, ST_OK);
    *(bool *)ctx = true;
}

/* As another would that shares the registry. value NULL: takes the key away. */
static void write_key(struct membership *m, const char *key, const char *value)
{
    struct registry *r = membership_registry(m);
    bool done = false;
    const struct registry_put put = { .key = key, .value = value, .bytes = value ? strlen(value) : 0 };
    if (value)
        r->ops->put(r, &put, on_done, &done);
    else
        r->ops->remove(r, key, REGISTRY_ANY, 0, on_done, &done);
    TURN_UNTIL(done);
}

static void others_see_who_is_here(void **state)
{
    (void)state;
    struct membership *m = start();
    assert_false(membership_led(m));
    struct gateway_worker w = { .id = 3, .pid = 77, .address = "127.0.0.1:4", .state = "ready", .fingerprint = "f" };
    membership_worker(m, &w); /* before there is a lease: written when it comes */
    TURN_UNTIL(membership_led(m));
    TURN_UNTIL(strstr(list_all(), "worker/3 {\"pid\":77,"));
    const char *all = list_all();
    assert_non_null(strstr(all, "election/coordinator {"));
    assert_non_null(strstr(all, "\"control\":\"127.0.0.1:9091\""));
    w.id = 4;
    membership_worker(m, &w);
    TURN_UNTIL(strstr(list_all(), "worker/4 {"));
    const int64_t later = clock_ms() + 2500; /* the lease is kept */
    TURN_UNTIL(clock_ms() > later);
    assert_non_null(strstr(list_all(), "worker/3 {"));
    w.id = 3;
    snprintf(w.state, sizeof w.state, "lost");
    membership_worker(m, &w);
    TURN_UNTIL(!strstr(list_all(), "worker/3 {"));
    assert_non_null(strstr(list_all(), "worker/4 {"));
    membership_stop(m);
    assert_null(strstr(list_all(), "worker/"));
}

/* Workers that come and go faster than the registry answers: what was said last stands. */
static void the_last_word_stands(void **state)
{
    (void)state;
    struct membership *m = start();
    TURN_UNTIL(membership_led(m));
    struct gateway_worker w = { .address = "127.0.0.1:4", .fingerprint = "f" };
    for (uint32_t i = 0; i < 300; i++) {
        w.id = (uint16_t)(1 + i % 3);
        w.pid = (int)i;
        snprintf(w.state, sizeof w.state, "%s", (i / 3) % 2 ? "lost" : "ready");
        membership_worker(m, &w);
    }
    w.id = 1;
    snprintf(w.state, sizeof w.state, "ready");
    w.pid = 1000;
    membership_worker(m, &w);
    TURN_UNTIL(strstr(list_all(), "worker/1 {\"pid\":1000,"));
    TURN_UNTIL(!strstr(list_all(), "worker/2") && !strstr(list_all(), "worker/3"));
    membership_stop(m);
}

static void one_leads_at_a_time(void **state)
{
    (void)state;
    struct membership *first = start();
    TURN_UNTIL(membership_led(first));
    struct membership *second = start();
    const int64_t later = clock_ms() + 1500;
    TURN_UNTIL(clock_ms() > later);
    assert_false(membership_led(second));
    membership_stop(first);
    TURN_UNTIL(membership_led(second));
    membership_stop(second);
}

/* The next leader's term is higher, and it learns where the one before was. */
static void terms_ascend(void **state)
{
    (void)state;
    struct heard a = { 0 }, b = { 0 };
    struct membership *m = start_at("10.0.0.1:1", &a);
    TURN_UNTIL(a.led);
    membership_confirm(m, on_confirmed, &a);
    TURN_UNTIL(a.confirmed);
    membership_stop(m);
    m = start_at("10.0.0.2:2", &b);
    TURN_UNTIL(b.led);
    assert_true(b.term > a.term);
    assert_string_equal(b.before, "10.0.0.1:1");
    /* what a worker says that it has obeyed, and the registry knows nothing of: it has begun anew */
    const uint64_t obeyed = b.term + 1000;
    membership_higher(m, obeyed);
    TURN_UNTIL(b.led == 2);
    assert_int_equal(b.term, obeyed + 1);
    membership_higher(m, b.term - 1); /* known */
    membership_higher(m, UINT64_MAX); /* cannot be */
    const int64_t later = clock_ms() + 300;
    TURN_UNTIL(clock_ms() > later);
    assert_int_equal(b.led, 2);
    assert_int_equal(b.outvoted, 0);
    /* a record that cannot be read is written anew */
    write_key(m, "election/term", "{\"term\": -7, \"instance\": 5}");
    membership_stop(m);
    struct heard c = { 0 };
    m = start_at("10.0.0.3:3", &c);
    TURN_UNTIL(c.led);
    assert_string_equal(c.before, "");
    assert_non_null(strstr(list_all(), "10.0.0.3:3"));
    membership_stop(m);
    /* who comes after itself has nobody to tell */
    struct heard d = { 0 };
    m = start_at("10.0.0.3:3", &d);
    TURN_UNTIL(d.led);
    assert_true(d.term > c.term);
    assert_string_equal(d.before, "");
    membership_stop(m);
}

/* Who loses the lead and wins it again ends, if another led in between: it knows nothing of what that one did. */
static void another_led_in_between(void **state)
{
    (void)state;
    struct heard a = { 0 };
    struct membership *m = start_at("10.0.0.1:1", &a);
    TURN_UNTIL(a.led == 1);
    write_key(m, "election/coordinator", NULL);
    TURN_UNTIL(a.led == 2); /* nobody did */
    assert_int_equal(a.outvoted, 0);
    write_key(m, "election/term", "{\"term\": 900, \"instance\": \"other\", \"control\": \"10.0.0.2:2\"}");
    write_key(m, "election/coordinator", NULL);
    TURN_UNTIL(a.outvoted);
    assert_int_equal(a.led, 2);
    assert_non_null(strstr(list_all(), "900"));
    membership_stop(m);
}

/* A worker has obeyed another, and the registry says so too; and one whose lead is gone is not confirmed. */
static void a_worker_knows_better(void **state)
{
    (void)state;
    struct heard a = { 0 };
    struct membership *m = start_at("10.0.0.1:1", &a);
    TURN_UNTIL(a.led);
    write_key(m, "election/term", "{\"term\": 5000, \"instance\": \"other\", \"control\": \"\"}");
    membership_higher(m, 5000);
    TURN_UNTIL(a.outvoted);
    write_key(m, "election/coordinator", "another's");
    membership_confirm(m, on_confirmed, &a);
    TURN_UNTIL(a.unconfirmed);
    assert_int_equal(a.confirmed, 0);
    write_key(m, "election/coordinator", NULL);
    membership_stop(m);
}

static void bad_specs_are_refused(void **state)
{
    (void)state;
    struct membership *m;
    struct error err = { 0 };
    struct membership_config config = {
        .loop = loop, .registry = "zookeeper:x", .http = "", .grpc = "", .control = "", .model = ""
    };
    assert_int_equal(membership_start(&config, &m, &err), ST_UNSUPPORTED);
    assert_non_null(strstr(err.text, "zookeeper"));
    membership_stop(NULL);
}

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(dir))
        return 1;
    snprintf(spec, sizeof spec, "embedded:%s/registry.db", dir);
    return loop_new(&loop);
}

static int teardown(void **state)
{
    (void)state;
    char command[128];
    loop_drain(loop); /* what the registry posted */
    loop_free(loop);
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(others_see_who_is_here), cmocka_unit_test(the_last_word_stands),
        cmocka_unit_test(one_leads_at_a_time),    cmocka_unit_test(terms_ascend),
        cmocka_unit_test(another_led_in_between), cmocka_unit_test(a_worker_knows_better),
        cmocka_unit_test(bad_specs_are_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
