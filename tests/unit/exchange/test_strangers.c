/* ucx: strangers who find the port, with and without UCX's own language; and which port that is. */
/* ctest-labels: tsan */
/* ctest-serial */
#define _GNU_SOURCE

#include "tests/unit/exchange/worker_process.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <ucp/api/ucp.h>

#include "worker/exchange/message.h"

struct stranger {
    ucp_context_h context;
    ucp_worker_h worker;
    ucp_ep_h ep;
};

static void stranger_error(void *arg, ucp_ep_h ep, ucs_status_t st)
{
    (void)arg;
    (void)ep;
    (void)st;
}

static void stranger_open(struct stranger *s, const uint8_t *address)
{
    ucp_config_t *config;
    const ucp_params_t params = { .field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_AM };
    const ucp_worker_params_t worker = { 0 };
    assert_int_equal(ucp_config_read(NULL, NULL, &config), UCS_OK);
    assert_int_equal(ucp_config_modify(config, "TLS", "tcp,self"), UCS_OK);
    assert_int_equal(ucp_config_modify(config, "NET_DEVICES", "lo"), UCS_OK);
    assert_int_equal(ucp_init(&params, config, &s->context), UCS_OK);
    ucp_config_release(config);
    assert_int_equal(ucp_worker_create(s->context, &worker, &s->worker), UCS_OK);
    const ucp_ep_params_t ep = { .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS |
                                               UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER,
                                 .address = (const ucp_address_t *)address,
                                 .err_mode = UCP_ERR_HANDLING_MODE_PEER,
                                 .err_handler = { stranger_error, NULL } };
    assert_int_equal(ucp_ep_create(s->worker, &ep, &s->ep), UCS_OK);
}

static void stranger_wait(struct stranger *s, void *request, struct boss *b)
{
    const int64_t until = clock_ns() + 2000 * MS;
    while (UCS_PTR_IS_PTR(request) && ucp_request_check_status(request) == UCS_INPROGRESS && clock_ns() < until) {
        ucp_worker_progress(s->worker);
        ops->progress(b->x);
    }
    if (UCS_PTR_IS_PTR(request))
        ucp_request_free(request);
}

static void stranger_close(struct stranger *s, struct boss *b)
{
    const ucp_request_param_t param = { .op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS, .flags = UCP_EP_CLOSE_FLAG_FORCE };
    stranger_wait(s, ucp_ep_close_nbx(s->ep, &param), b);
    ucp_worker_destroy(s->worker);
    ucp_cleanup(s->context);
}

/* Somebody who found the port and speaks UCX: random headers, near misses of valid ones, under all message numbers, small and large. */
static void test_stranger(void **state)
{
    (void)state;
    struct boss b;
    struct worker w;
    boss_open(&b);
    worker_start(&w, 2);
    boss_meets(&b, &w);
    echo(&b, &w, 10, 3000, 3);
    struct peer_address a;
    struct error err = { 0 };
    assert_int_equal(peer_address_read(b.address, b.address_bytes, &a, &err), ST_OK);
    _Alignas(16) uint8_t address[EXCHANGE_ADDRESS_MAX];
    memcpy(address, a.net, a.net_bytes);
    struct stranger s;
    stranger_open(&s, address);
    const char *given = getenv("LONGSPAN_SEED");
    const uint64_t seed = given ? strtoull(given, NULL, 10) : (uint64_t)clock_ns();
    print_message("  replay: LONGSPAN_SEED=%llu\n", (unsigned long long)seed);
    struct rng rng = { seed, 0 };
    uint8_t *payload = calloc(1, 300000);
    for (int i = 0; i < 400; i++) {
        uint8_t header[256];
        size_t header_bytes = rng_below(&rng, 100),
               bytes = rng_below(&rng, 10) ? rng_below(&rng, 3000) : rng_below(&rng, 300000);
        fill(header, sizeof header, rng_next(&rng));
        const unsigned id = rng_below(&rng, 4) ? 0 : rng_below(&rng, 2) ? rng_below(&rng, 20) : rng_below(&rng, 65536);
        if (rng_below(&rng, 3)) {
            struct message_header h = { .kind = (uint8_t)rng_below(&rng, 3),
                                        .source = (uint16_t)rng_below(&rng, 5),
                                        .from = rng_next(&rng),
                                        .to = rng_below(&rng, 2) ? a.instance : rng_next(&rng),
                                        .payload_bytes = bytes };
            if (h.kind == MESSAGE_BLOCK) {
                h.block.number = rng_below(&rng, 3);
                h.block.total = bytes + rng_below(&rng, 2) * 1000;
                h.block.offset = rng_below(&rng, 2) * rng_below(&rng, 1000);
            }
            if (h.kind == MESSAGE_BYE)
                bytes = h.payload_bytes = 0;
            h.sum = checksum64(payload, bytes);
            message_header_write(&h, header);
            header_bytes = MESSAGE_HEADER_BYTES;
            if (!rng_below(&rng, 3))
                header[rng_below(&rng, MESSAGE_HEADER_BYTES)] ^= (uint8_t)(1u << rng_below(&rng, 8));
        }
        const ucp_request_param_t param = { 0 };
        stranger_wait(&s, ucp_am_send_nbx(s.ep, id, header, header_bytes, payload, bytes, &param), &b);
        for (int k = 0; k < 3; k++)
            ops->progress(b.x);
    }
    free(payload);
    struct exchange_stats stats;
    ops->stats(b.x, &stats);
    assert_true(stats.dropped > 50);
    /* somebody who claimed to be worker 2 is told from worker 2 */
    echo(&b, &w, 20, 3000, 5);
    echo(&b, &w, 21, 300000, 5);
    stranger_close(&s, &b);
    echo(&b, &w, 22, 3000, 5);
    worker_quit(&w);
    ops->close(b.x);
}

/* Ports that this process listens on, by inode. */
static size_t listening(uint16_t ports[], size_t max)
{
    size_t n = 0;
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    for (const struct dirent *e; (e = readdir(dir)) && n < max;) {
        struct sockaddr_storage at;
        socklen_t bytes = sizeof at;
        int accepts = 0;
        socklen_t accepts_bytes = sizeof accepts;
        const int fd = atoi(e->d_name);
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &accepts_bytes) || !accepts)
            continue;
        if (!getsockname(fd, (struct sockaddr *)&at, &bytes) && at.ss_family == AF_INET)
            ports[n++] = ntohs(((const struct sockaddr_in *)&at)->sin_port);
    }
    closedir(dir);
    return n;
}

/* Somebody who found the port and does not speak UCX. */
static void test_port_garbage(void **state)
{
    (void)state;
    struct boss b;
    struct worker w;
    boss_open(&b);
    worker_start(&w, 2);
    boss_meets(&b, &w);
    echo(&b, &w, 10, 3000, 3);
    uint16_t ports[8];
    const size_t n = listening(ports, 8);
    assert_true(n >= 1);
    struct rng rng = { 5, 0 };
    static const char http[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    for (int i = 0; i < 40; i++) {
        uint8_t junk[4096];
        const struct sockaddr_in to = { .sin_family = AF_INET,
                                        .sin_port = htons(ports[(size_t)i % n]),
                                        .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof to), 0);
        fill(junk, sizeof junk, rng_next(&rng));
        const size_t bytes = i % 4 ? rng_below(&rng, sizeof junk) : sizeof http - 1;
        (void)write_all(fd, i % 4 ? (const void *)junk : http, bytes);
        for (int k = 0; k < 20; k++)
            ops->progress(b.x);
        if (i % 5 == 0)
            (void)shutdown(fd, SHUT_WR); /* it may be closed already */
        close(fd);
        if (i % 10 == 0)
            echo(&b, &w, 100 + (uint64_t)i, 3000, 3);
    }
    echo(&b, &w, 22, 300000, 5);
    worker_quit(&w);
    ops->close(b.x);
}

static void test_ports(void **state)
{
    (void)state;
    struct exchange *x[3];
    struct error err = { 0 };
    for (uint16_t i = 0; i < 2; i++) {
        const struct exchange_config config = {
            .self = i, .bind = "127.0.0.1", .lanes = "tcp", .port_first = 23470, .port_last = 23489
        };
        assert_int_equal(ops->open(&config, &x[i], &err), ST_OK);
    }
    uint16_t ports[8];
    const size_t n = listening(ports, 8);
    assert_int_equal(n, 2);
    for (size_t i = 0; i < n; i++)
        assert_in_range(ports[i], 23470, 23489);
    ops->close(x[0]);
    ops->close(x[1]);
    const struct exchange_config bad[] = { { .bind = "203.0.113.9" },
                                           { .bind = "no such host." },
                                           { .lanes = "ib" },
                                           { .port_first = 9, .port_last = 8, .lanes = "tcp" } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err = (struct error){ 0 };
        assert_int_equal(ops->open(&bad[i], &x[0], &err), ST_INVALID);
        assert_true(err.text[0] != 0);
    }
}

int main(int argc, char **argv)
{
    int status;
    if (worker_process(argc, argv, &status))
        return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stranger),
        cmocka_unit_test(test_port_garbage),
        cmocka_unit_test(test_ports),
    };
    lanes = "tcp";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
