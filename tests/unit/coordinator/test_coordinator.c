/* ctest-labels: tsan */
/* ctest-serial */
#include "coordinator/coordinator.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
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
#include "proto/longspan.pb-c.h"
#include "proto/rpc.h"

static char state_dir[] = "/tmp/longspan-coordinator-XXXXXX";

struct run {
    struct coordinator_config config;
    char http[64], grpc[64], control[64];
    atomic_int announced, ended;
    enum status status;
    struct error err;
    pthread_t thread;
};

static void on_announce(void *ctx, const char *what, const char *address)
{
    struct run *r = ctx;
    char *to = !strcmp(what, "http") ? r->http : !strcmp(what, "grpc") ? r->grpc : r->control;
    snprintf(to, sizeof r->http, "%s", address);
    atomic_fetch_add(&r->announced, 1);
}

static void run_init(struct run *r)
{
    memset(r, 0, sizeof *r);
    r->config = (struct coordinator_config){
        .http = "127.0.0.1:0",
        .grpc = "127.0.0.1:0",
        .control = "127.0.0.1:0",
        .state = state_dir,
        .model = "constructed:copy",
        .precision = "bf16",
        .drain_ms = 8000,
        .kv_codec = "bf16",
        .selector = "dense",
        .sched = { .step_rows_max = 256,
                   .prefill_chunk_rows = 128,
                   .sequences_max = 8,
                   .queue_max = 8,
                   .spread_min_tokens = 1024,
                   .step_deadline_ms = 3000,
                   .plans_ahead = 2,
                   .prefix_sharing = true },
        .n_workers = 1,
        .heartbeat_ms = 100,
        .silence_ms = 1000,
        .requests_max = 16,
        .body_bytes_max = 1 << 20,
        .announce = on_announce,
        .ctx = r,
    };
}

static void *run_thread(void *arg)
{
    struct run *r = arg;
    r->status = coordinator_run(&r->config, &r->err);
    atomic_store(&r->ended, 1);
    return NULL;
}

static void run_begin(struct run *r)
{
    assert_int_equal(pthread_create(&r->thread, NULL, run_thread, r), 0);
    const int64_t until = clock_ms() + 120000;
    while (atomic_load(&r->announced) < 3) {
        if (atomic_load(&r->ended) || clock_ms() > until)
            fail_msg("it did not start: %s", r->err.text);
        usleep(1000);
    }
}

static void run_end(struct run *r)
{
    const int64_t start = clock_ms();
    kill(getpid(), SIGTERM);
    pthread_join(r->thread, NULL);
    assert_in_range(clock_ms() - start, 0, 60000);
    assert_int_equal(r->status, ST_OK);
}

static void get(const char *address, const char *path, char *answer_out, size_t bytes)
{
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = { .sin_family = AF_INET,
                              .sin_port = htons((uint16_t)atoi(strchr(address, ':') + 1)),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    dprintf(fd, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path);
    size_t n = 0;
    for (ssize_t got; n + 1 < bytes && (got = read(fd, answer_out + n, bytes - 1 - n)) > 0;)
        n += (size_t)got;
    answer_out[n] = '\0';
    close(fd);
}

static void it_serves_until_a_signal(void **state)
{
    (void)state;
    struct run r;
    run_init(&r);
    run_begin(&r);
    char answer[4096];
    get(r.http, "/health", answer, sizeof answer);
    assert_non_null(strstr(answer, "200 OK"));
    get(r.http, "/ready", answer, sizeof answer);
    assert_non_null(strstr(answer, "503")); /* no worker came */

    struct rpc_channel *channel;
    uint8_t *reply;
    size_t n;
    struct error err = { 0 };
    assert_int_equal(rpc_channel_open(&(struct rpc_channel_config){ r.grpc, 1 << 20, 0, NULL, NULL }, &channel, NULL),
                     ST_OK);
    if (rpc_call_unary(channel, "/longspan.v1.Cluster/Status", 5000, NULL, 0, &reply, &n, NULL, &err))
        fail_msg("%s", err.text);
    Longspan__V1__StatusResponse *status = longspan__v1__status_response__unpack(NULL, n, reply);
    assert_non_null(status);
    assert_false(status->ready);
    assert_int_equal(status->n_workers, 0);
    longspan__v1__status_response__free_unpacked(status, NULL);
    free(reply);

    struct run second; /* the same state: refused, and the first goes on */
    run_init(&second);
    assert_int_equal(coordinator_run(&second.config, &second.err), ST_BUSY);
    assert_non_null(strstr(second.err.text, state_dir));
    get(r.http, "/health", answer, sizeof answer);
    assert_non_null(strstr(answer, "200 OK"));
    rpc_channel_close(channel);
    run_end(&r);

    run_init(&second); /* the addresses and the state are free again */
    second.config.http = r.http;
    second.config.grpc = r.grpc;
    second.config.control = r.control;
    run_begin(&second);
    assert_string_equal(second.http, r.http);
    run_end(&second);
}

static void what_cannot_start_says_why(void **state)
{
    (void)state;
    struct run r;
    run_init(&r);
    r.config.model = "/nowhere/at/all";
    assert_int_not_equal(coordinator_run(&r.config, &r.err), ST_OK);
    assert_non_null(strstr(r.err.text, "/nowhere/at/all"));
    run_init(&r);
    r.config.sched.positions_max = UINT32_MAX;
    assert_int_equal(coordinator_run(&r.config, &r.err), ST_INVALID);
    assert_non_null(strstr(r.err.text, "positions-max"));
    run_init(&r);
    r.config.control = "127.0.0.1:notaport";
    assert_int_equal(coordinator_run(&r.config, &r.err), ST_IO);
    assert_non_null(strstr(r.err.text, "127.0.0.1:notaport"));
    run_init(&r);
    r.config.http = "256.256.256.256:1";
    assert_int_not_equal(coordinator_run(&r.config, &r.err), ST_OK);
    assert_true(r.err.text[0] != '\0');
    assert_int_equal(atomic_load(&r.announced), 0);
}

static int dir_make(void **state)
{
    (void)state;
    return mkdtemp(state_dir) ? 0 : 1;
}

static int dir_remove(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", state_dir);
    return system(command);
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_serves_until_a_signal),
        cmocka_unit_test(what_cannot_start_says_why),
    };
    return cmocka_run_group_tests(tests, dir_make, dir_remove);
}
