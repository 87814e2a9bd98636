/* ctest-labels: tsan */
/* ctest-serial */
#include "coordinator/control.h"
#include "coordinator/predecessor.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/log.h"
#include "tests/unit/coordinator/control_fixture.h"
#include "tests/unit/own_clock.h"

enum { NOTICED_MS = 3500 }; /* at the latest; who takes no messages would be given up after four times the silence */

/* ---- a request ---- */

struct asked {
    struct sched_request *request;
    int tokens, done;
    enum finish_reason reason;
    enum status status;
    char message[256];
};

static void on_token(void *user, const struct result_row *row)
{
    struct asked *a = user;
    assert_int_equal(row->token, row->pos);
    a->tokens++;
}

static void on_done(void *user, const struct sched_done *done)
{
    struct asked *a = user;
    a->done++;
    a->reason = done->reason;
    a->status = done->status;
    snprintf(a->message, sizeof a->message, "%s", done->message ? done->message : "");
}

/* Each time another prompt: the fakes hold no blocks that could be copied from one to the other. */
static void ask(struct site *site, struct asked *a, uint32_t max_tokens)
{
    static const struct sched_events events = { .token = on_token, .done = on_done };
    static int32_t prompt[300], first;
    prompt[0] = ++first;
    for (int i = 1; i < 300; i++)
        prompt[i] = i;
    const struct sched_want want = { .tokens = prompt,
                                     .n_tokens = 300,
                                     .max_tokens = max_tokens,
                                     .sampling = { .temperature = 0, .top_p = 1 },
                                     .label = "test" };
    struct error err = { 0 };
    memset(a, 0, sizeof *a);
    if (sched_submit(control_sched(site->control), &want, &events, a, &a->request, &err))
        fail_msg("%s", err.text);
    control_kick(site->control);
}

/* ---- a link that goes down without a word ---- */

struct relay {
    pthread_t thread;
    int listener;
    uint16_t to;
    char address[32];
    atomic_bool quit, up, down; /* up: what the worker says passes; down: what the coordinator says */
};

static int relay_connect(uint16_t port)
{
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = { .sin_family = AF_INET,
                              .sin_port = htons(port),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

/* -> false: an end of the connection is gone */
static bool relay_pass(int from, int to, bool open)
{
    char data[4096];
    if (!open)
        return true;
    const ssize_t n = recv(from, data, sizeof data, MSG_DONTWAIT);
    if (n < 0)
        return errno == EAGAIN;
    return n > 0 && send(to, data, (size_t)n, MSG_NOSIGNAL) == n;
}

static void *relay_run(void *arg)
{
    struct relay *r = arg;
    const int worker = accept(r->listener, NULL, NULL);
    const int coordinator = relay_connect(r->to);
    while (!atomic_load(&r->quit)) {
        struct pollfd fds[] = { { .fd = worker, .events = POLLIN }, { .fd = coordinator, .events = POLLIN } };
        poll(fds, 2, 5);
        if (!relay_pass(worker, coordinator, atomic_load(&r->up)) ||
            !relay_pass(coordinator, worker, atomic_load(&r->down)))
            break;
        if (!atomic_load(&r->up) || !atomic_load(&r->down))
            usleep(1000);
    }
    close(worker);
    close(coordinator);
    return NULL;
}

static void relay_start(struct relay *r, struct site *site)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t n = sizeof at;
    memset(r, 0, sizeof *r);
    r->listener = socket(AF_INET, SOCK_STREAM, 0);
    r->to = control_port(site->control);
    atomic_store(&r->up, true);
    atomic_store(&r->down, true);
    assert_int_equal(bind(r->listener, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(r->listener, 1), 0);
    getsockname(r->listener, (struct sockaddr *)&at, &n);
    snprintf(r->address, sizeof r->address, "127.0.0.1:%u", ntohs(at.sin_port));
    assert_int_equal(pthread_create(&r->thread, NULL, relay_run, r), 0);
}

static void relay_end(struct relay *r)
{
    atomic_store(&r->quit, true);
    pthread_join(r->thread, NULL);
    close(r->listener);
}

/* ---- tests ---- */

static void workers_come_and_serve(void **state)
{
    struct site *site = *state;
    struct fake a, b;
    assert_false(control_is_ready(site->control));
    fake_attach(&a, NULL, site->target);
    fake_hello(&a, CONTROL_VERSION);
    TURN_UNTIL(site, atomic_load(&a.welcomes) == 1);
    fake_send(&a, &(struct control_message){ .kind = CONTROL_PROGRESS, .as.progress = { 0.5f } });
    struct gateway_worker shown[4];
    TURN_UNTIL(site, control_workers(site->control, shown, 4) == 1 && shown[0].load_fraction == 0.5f);
    assert_string_equal(shown[0].state, "loading");
    assert_int_equal(shown[0].pid, 77);
    assert_non_null(strstr(shown[0].address, "127.0.0.1:"));
    fake_down(&a);
    TURN_UNTIL(site, !strcmp(state_of(site, (uint16_t)atomic_load(&a.id)), "lost"));

    fake_up(&a, site);
    assert_false(control_is_ready(site->control));
    fake_up(&b, site);
    assert_true(control_is_ready(site->control));
    assert_int_not_equal(atomic_load(&a.id), atomic_load(&b.id));
    TURN_UNTIL(site, atomic_load(&a.members) == 2 && atomic_load(&b.members) == 2);
    struct asked asked[3];
    for (int i = 0; i < 3; i++)
        ask(site, &asked[i], 40);
    TURN_UNTIL(site, asked[0].done && asked[1].done && asked[2].done);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(asked[i].tokens, 40);
        assert_int_equal(asked[i].reason, FINISH_LENGTH);
    }
    TURN_UNTIL(site, atomic_load(&a.heartbeats) > 2 && atomic_load(&b.heartbeats) > 2);
    TURN_UNTIL(site, control_workers(site->control, shown, 4) == 3 && shown[1].resident_bytes == 4096);
    assert_string_equal(shown[0].state, "lost");
    assert_string_equal(shown[1].fingerprint, "fake-1");
    assert_int_equal(shown[1].n_blocks, BLOCKS);
    fake_down(&a);
    fake_down(&b);
}

static void a_silent_worker_is_lost(void **state)
{
    struct site *site = *state;
    struct fake a, b;
    fake_up(&a, site);
    fake_up(&b, site);
    atomic_store(&a.idle, true);
    atomic_store(&b.idle, true);
    struct asked asked;
    ask(site, &asked, 40);
    TURN_UNTIL(site, atomic_load(&a.plans) || atomic_load(&b.plans));
    struct fake *silent = atomic_load(&a.plans) ? &a : &b, *other = silent == &a ? &b : &a;
    atomic_store(&other->idle, false);
    atomic_store(&silent->beats, false);
    const int64_t start = clock_ms(), own = own_clock_ms();
    TURN_UNTIL(site, !strcmp(state_of(site, (uint16_t)atomic_load(&silent->id)), "lost"));
    print_message("noticed after %d ms\n", (int)(clock_ms() - start));
    assert_in_range(clock_ms() - start, SILENCE_MS - HEARTBEAT_MS - 50, INT64_MAX);
    assert_in_range(own_clock_ms() - own, 0, NOTICED_MS);
    TURN_UNTIL(site, asked.done); /* at the other */
    assert_int_equal(asked.reason, FINISH_LENGTH);
    TURN_UNTIL(site, atomic_load(&silent->done) && atomic_load(&other->members) == 1);
    assert_true(control_is_ready(site->control)); /* fewer serve on */
    ask(site, &asked, 10);
    TURN_UNTIL(site, asked.done);
    assert_int_equal(asked.reason, FINISH_LENGTH);
    fake_down(&a);
    fake_down(&b);
}

static void a_link_that_goes_down_is_noticed(void **state)
{
    struct site *site = *state;
    for (int way = 1; way <= 3; way++) { /* what the worker says is lost, what it is told, both */
        struct relay relay;
        struct fake a;
        relay_start(&relay, site);
        fake_up_at(&a, site, relay.address);
        atomic_store(&a.idle, true);
        struct asked asked;
        ask(site, &asked, 40);
        TURN_UNTIL(site, atomic_load(&a.plans));
        const int64_t start = own_clock_ms();
        if (way & 1)
            atomic_store(&relay.up, false);
        if (way & 2)
            atomic_store(&relay.down, false);
        TURN_UNTIL(site, asked.done);
        print_message("way %d: noticed after %d ms: %s\n", way, (int)(own_clock_ms() - start), asked.message);
        assert_in_range(own_clock_ms() - start, 0, NOTICED_MS);
        assert_int_equal(asked.status, ST_PEER);
        assert_string_equal(state_of(site, (uint16_t)atomic_load(&a.id)), "lost");
        relay_end(&relay);
        fake_down(&a);
    }
}

static void a_cut_stream_is_noticed_at_once(void **state)
{
    struct site *site = *state;
    struct fake a, b;
    fake_up(&a, site);
    fake_up(&b, site);
    const uint16_t id = (uint16_t)atomic_load(&a.id);
    const int64_t start = own_clock_ms();
    fake_down(&a);
    TURN_UNTIL(site, !strcmp(state_of(site, id), "lost"));
    assert_in_range(own_clock_ms() - start, 0, SILENCE_MS - 200);
    struct fake again;
    fake_up(&again, site);
    assert_true(atomic_load(&again.id) > id); /* ids are not used again */
    TURN_UNTIL(site, atomic_load(&b.members) == 2);
    fake_down(&again);
    fake_down(&b);
}

static void refused(struct site *site, struct fake *f)
{
    TURN_UNTIL(site, atomic_load(&f->done));
    assert_int_equal(atomic_load(&f->code), RPC_INVALID_ARGUMENT);
    fake_down(f);
}

static void violations_cost_the_violator(void **state)
{
    struct site *site = *state;
    struct fake good, bad;
    fake_up(&good, site);

    fake_attach(&bad, NULL, site->target); /* not hello first */
    fake_ready(&bad, &model);
    refused(site, &bad);
    fake_attach(&bad, NULL, site->target); /* another version */
    fake_hello(&bad, CONTROL_VERSION + 1);
    refused(site, &bad);
    fake_attach(&bad, NULL, site->target); /* hello twice */
    fake_hello(&bad, CONTROL_VERSION);
    fake_hello(&bad, CONTROL_VERSION);
    refused(site, &bad);
    fake_attach(&bad, NULL, site->target); /* another model */
    fake_hello(&bad, CONTROL_VERSION);
    fake_ready(&bad, &(struct digest){ { 7 } });
    refused(site, &bad);
    fake_attach(&bad, NULL, site->target); /* garbage */
    rpc_call_send(bad.call, (const uint8_t *)"\xFF\xFF\xFFgarbage", 10);
    refused(site, &bad);
    fake_up(&bad, site); /* a coordinator's message */
    fake_send(&bad, &(struct control_message){ .kind = CONTROL_FENCE });
    refused(site, &bad);
    fake_up(&bad, site); /* a result of no plan */
    struct result result = { .epoch = UINT64_MAX, .number = 12345 };
    fake_send(&bad, &(struct control_message){ .kind = CONTROL_RESULT, .as.result = &result });
    refused(site, &bad);
    fake_up(&bad, site); /* heartbeats that go back */
    atomic_store(&bad.beats, false);
    fake_send(&bad, &(struct control_message){ .kind = CONTROL_HEARTBEAT, .as.heartbeat.sequence = 1000 });
    fake_send(&bad, &(struct control_message){ .kind = CONTROL_HEARTBEAT, .as.heartbeat.sequence = 1000 });
    refused(site, &bad);

    assert_int_equal(atomic_load(&good.done), 0);
    assert_string_equal(state_of(site, (uint16_t)atomic_load(&good.id)), "ready");
    TURN_UNTIL(site, atomic_load(&good.members) == 1);
    fake_down(&good);
}

/* What it held before is cache; an inventory that cannot be costs its sender. Of a term that is over none is admitted. */
static void inventories(void **state)
{
    struct site *site = *state;
    static struct control_block blocks[BLOCKS + 1];
    struct fake f;
    for (int i = 0; i <= BLOCKS; i++)
        blocks[i] =
            (struct control_block){ .handle = (kv_handle)i + 1, .position = (uint32_t)i, .id = { 1, (uint8_t)i } };
    struct control_message m = { .kind = CONTROL_INVENTORY, .as.blocks = { 3, 10, blocks } };
    fake_attach(&f, NULL, site->target);
    fake_hello(&f, CONTROL_VERSION);
    TURN_UNTIL(site, atomic_load(&f.welcomes) == 1);
    fake_send(&f, &m);
    m.as.blocks = (struct control_blocks){ 4, 6, blocks + 9 }; /* one of them again */
    fake_send(&f, &m);
    atomic_store(&f.beats, true);
    f.beating = true;
    assert_int_equal(pthread_create(&f.beat_thread, NULL, fake_beat, &f), 0);
    fake_ready(&f, &model);
    TURN_UNTIL(site, atomic_load(&f.member_lists) > 0);
    struct sched_worker_stats stats;
    assert_int_equal(sched_worker_stats(control_sched(site->control), &stats, 1), 1);
    assert_int_equal(stats.blocks_used, 15);
    assert_int_equal(stats.blocks_cached, 15);
    /* its blocks are told by name once they are committed */
    struct asked asked;
    ask(site, &asked, 30);
    TURN_UNTIL(site, asked.done);
    TURN_UNTIL(site, atomic_load(&f.names) == 329 / 64);
    fake_send(&f, &m); /* too late */
    refused(site, &f);

    fake_attach(&f, NULL, site->target); /* more than its pool has */
    fake_hello(&f, CONTROL_VERSION);
    m.as.blocks = (struct control_blocks){ 4, BLOCKS + 1, blocks };
    fake_send(&f, &m);
    fake_ready(&f, &model);
    refused(site, &f);

    fake_attach(&f, NULL, site->target);
    fake_send(&f, &(struct control_message){ .kind = CONTROL_HELLO,
                                             .as.hello = { CONTROL_VERSION, 77, "host", "cpu", "local", 1, 6 } });
    TURN_UNTIL(site, atomic_load(&f.done));
    assert_int_equal(atomic_load(&f.code), RPC_UNAVAILABLE);
    assert_int_equal(atomic_load(&f.welcomes), 0);
    assert_int_equal(site->higher, 6);
    fake_down(&f);
}

/* Who leads now calls at who led before; whatever the term, it is no worker. */
static void a_successor_calls(void **state)
{
    struct site *site = *state;
    struct predecessor *p;
    struct fake f;
    site->higher = 0;
    assert_int_equal(predecessor_tell(site->target, NULL, 77, &p), ST_OK);
    TURN_UNTIL(site, site->higher == 77);
    predecessor_end(p);
    predecessor_free(p);
    site->higher = 0;
    fake_attach(&f, NULL, site->target);
    fake_send(&f, &(struct control_message){ .kind = CONTROL_HELLO,
                                             .as.hello = { CONTROL_VERSION, 77, "", PREDECESSOR_DEVICE, "", 1, 1 } });
    TURN_UNTIL(site, atomic_load(&f.done));
    assert_int_equal(atomic_load(&f.code), RPC_UNAVAILABLE);
    assert_int_equal(atomic_load(&f.welcomes), 0);
    assert_int_equal(site->higher, 0);
    fake_down(&f);
    /* nobody is there */
    assert_int_equal(predecessor_tell("127.0.0.1:1", NULL, 78, &p), ST_OK);
    predecessor_free(p);
}

/* Who does not lead admits nobody; once it leads it does. */
static void a_standby_admits_nobody(void **state)
{
    (void)state;
    struct site standby = { 0 };
    struct fake f;
    assert_int_equal(loop_new(&standby.loop), ST_OK);
    const struct control_config config = site_config(&standby);
    site_start(&standby, &config);
    fake_attach(&f, NULL, standby.target);
    fake_hello(&f, CONTROL_VERSION);
    TURN_UNTIL(&standby, atomic_load(&f.done));
    assert_int_equal(atomic_load(&f.code), RPC_UNAVAILABLE);
    fake_down(&f);
    control_lead(standby.control, 9);
    fake_up_at(&f, &standby, standby.target);
    fake_down(&f);
    control_stop(standby.control);
    loop_free(standby.loop);
}

enum { MANY = PLAN_WORKERS_MAX + 1 };

static void so_many_and_no_more(void **state)
{
    struct site *site = *state;
    static struct fake fakes[MANY];
    struct rpc_channel *channel;
    assert_int_equal(
        rpc_channel_open(&(struct rpc_channel_config){ site->target, MESSAGE_MAX, 0, NULL, NULL }, &channel, NULL),
        ST_OK);
    for (int i = 0; i < MANY; i++) {
        fake_attach(&fakes[i], channel, NULL);
        fake_hello(&fakes[i], CONTROL_VERSION);
        TURN_UNTIL(site, atomic_load(&fakes[i].welcomes) == 1 || atomic_load(&fakes[i].done));
    }
    assert_int_equal(atomic_load(&fakes[MANY - 1].code), RPC_RESOURCE_EXHAUSTED);
    assert_int_equal(atomic_load(&fakes[MANY - 2].welcomes), 1);
    for (int i = 0; i < MANY; i++)
        fake_down(&fakes[i]);
    rpc_channel_close(channel);
}

static void stopping_ends_all(void **state)
{
    struct site *site = *state;
    struct fake a, b;
    fake_up(&a, site);
    fake_up(&b, site);
    atomic_store(&a.idle, true);
    atomic_store(&b.idle, true);
    struct asked asked;
    ask(site, &asked, 40);
    TURN_UNTIL(site, atomic_load(&a.plans) || atomic_load(&b.plans));
    const int64_t start = own_clock_ms();
    control_stop(site->control);
    site->control = NULL;
    assert_in_range(own_clock_ms() - start, 0, 5000);
    assert_int_equal(asked.done, 1);
    assert_int_equal(asked.reason, FINISH_CANCELLED);
    TURN_UNTIL(site, atomic_load(&a.done) && atomic_load(&b.done));
    assert_int_equal(atomic_load(&a.code), RPC_UNAVAILABLE);
    fake_down(&a);
    fake_down(&b);
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
#define ON_SITE(test) cmocka_unit_test_setup_teardown(test, site_setup, site_teardown)
    const struct CMUnitTest tests[] = {
        ON_SITE(workers_come_and_serve),
        ON_SITE(a_silent_worker_is_lost),
        ON_SITE(a_link_that_goes_down_is_noticed),
        ON_SITE(a_cut_stream_is_noticed_at_once),
        ON_SITE(violations_cost_the_violator),
        ON_SITE(inventories),
        ON_SITE(a_successor_calls),
        ON_SITE(a_standby_admits_nobody),
        ON_SITE(so_many_and_no_more),
        ON_SITE(stopping_ends_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
