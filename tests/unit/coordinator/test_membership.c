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
        const int64_t until_ = clock_ms() + 15000;                                                                     \
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

static struct membership *start(void)
{
    struct membership *m;
    struct error err = { 0 };
    const struct membership_config config = { .loop = loop,
                                              .registry = spec,
                                              .http = "127.0.0.1:8080",
                                              .grpc = "127.0.0.1:9090",
                                              .control = "127.0.0.1:9091",
                                              .model = "a \"model\"",
                                              .ttl_ms = 1000 };
    if (membership_start(&config, &m, &err))
        fail_msg("%s", err.text);
    return m;
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
        cmocka_unit_test(others_see_who_is_here),
        cmocka_unit_test(one_leads_at_a_time),
        cmocka_unit_test(bad_specs_are_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
