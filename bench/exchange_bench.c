/*
 * Half round trips between two processes of this machine, as steps do them: one side sends and waits, the other waits and answers, with the policy of
 * exchange_recv (spin, yield, sleep).
 *
 *   exchange_bench [--lanes shm|tcp|best] [--spin MICROSECONDS] [--busy MICROSECONDS] [--cores 1|2] [--sums 1]
 *
 * --cores: both sides on one core, or each on its own; left to the system if not said.
 * --sums: before, the speed of the checksum that every message carries, by each way that this machine has to compute it.
 * --busy: each side computes for so long between messages, so that the other has gone to sleep when one comes.
 */
#define _GNU_SOURCE /* CPU_SET */

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/hash.h"
#include "worker/exchange/exchange.h"

static const struct exchange_ops *const ops = &exchange_ucx;

struct side {
    struct exchange *x;
    uint16_t self, other;
    int fd;
};

static void fail(const char *what)
{
    fprintf(stderr, "exchange_bench: %s\n", what);
    exit(1);
}

static void side_open(struct side *s, const char *lanes, uint32_t spin_us)
{
    uint8_t mine[EXCHANGE_ADDRESS_MAX] = { 0 }, theirs[EXCHANGE_ADDRESS_MAX];
    uint32_t bytes, their_bytes;
    struct error err = { 0 };
    const struct exchange_config config = { .self = s->self, .bind = "127.0.0.1", .lanes = lanes, .spin_us = spin_us };
    if (ops->open(&config, &s->x, &err))
        fail(err.text);
    bytes = (uint32_t)ops->address(s->x, mine);
    if (write(s->fd, &bytes, sizeof bytes) != sizeof bytes || write(s->fd, mine, sizeof mine) != sizeof mine ||
        recv(s->fd, &their_bytes, sizeof their_bytes, MSG_WAITALL) != sizeof their_bytes ||
        recv(s->fd, theirs, sizeof theirs, MSG_WAITALL) != sizeof theirs)
        fail("addresses were not exchanged");
    const struct exchange_peer peer = { .id = s->other, .address = theirs, .address_bytes = their_bytes };
    if (ops->peers_set(s->x, &peer, 1, &err))
        fail(err.text);
}

static void busy_for(int64_t us)
{
    for (const int64_t until = clock_ns() + us * 1000; us && clock_ns() < until;)
        ;
}

/* One message each way; the first side begins. */
static void round_trip(struct side *s, uint64_t plan, uint8_t *data, size_t bytes, int64_t busy_us)
{
    struct exchange_key key = { .epoch = 1, .plan = plan, .group = 1, .peer = s->other };
    const struct iovec part = { data, bytes };
    enum status st = ST_OK;
    if (s->self == 1) {
        busy_for(busy_us);
        st = ops->send(s->x, &key, &part, 1);
    }
    if (!st)
        st = ops->recv(s->x, &key, data, bytes, clock_ns() + 5000000000);
    if (!st && s->self == 2) {
        busy_for(busy_us);
        st = ops->send(s->x, &key, &part, 1);
    }
    if (st)
        fail(status_text(st));
}

static int by_value(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static const size_t sizes[] = { 64, 1 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20 };
enum { N_SIZES = sizeof sizes / sizeof *sizes, WARM = 30, BUFFER = 8 << 20 };

static int turns_of(size_t bytes, int64_t busy_us)
{
    const int n = bytes <= 64 << 10 ? 3000 : bytes <= 1 << 20 ? 400 : 60;
    return busy_us ? n / 10 : n;
}

static void second_side(struct side *s, int64_t busy_us, uint8_t *data)
{
    uint64_t plan = 0;
    for (int i = 0; i < N_SIZES; i++) {
        for (int t = 0; t < WARM + turns_of(sizes[i], busy_us); t++)
            round_trip(s, plan++, data, sizes[i], busy_us);
    }
    uint8_t none;
    const struct exchange_key end = { .epoch = 1, .plan = plan, .group = 1, .peer = s->other };
    ops->recv(s->x, &end, &none, 0, clock_ns() + 10000000000); /* the other has all */
}

static void first_side(struct side *s, int64_t busy_us, uint8_t *data)
{
    uint64_t plan = 0;
    int64_t *took = malloc(3000 * sizeof *took);
    if (!took)
        fail("out of memory");
    for (int i = 0; i < N_SIZES; i++) {
        const int turns = turns_of(sizes[i], busy_us);
        for (int t = 0; t < WARM; t++)
            round_trip(s, plan++, data, sizes[i], busy_us);
        struct rusage before, after;
        getrusage(RUSAGE_SELF, &before);
        for (int t = 0; t < turns; t++) {
            const int64_t start = clock_ns();
            round_trip(s, plan++, data, sizes[i], busy_us);
            took[t] = clock_ns() - start;
        }
        getrusage(RUSAGE_SELF, &after);
        qsort(took, (size_t)turns, sizeof *took, by_value);
        const double half_us = (double)took[turns / 2] / 2e3 - (double)busy_us,
                     p99_us = (double)took[turns * 99 / 100] / 2e3 - (double)busy_us;
        printf("%-6s %8zu bytes  half round trip %9.1f us  p99 %9.1f  max %9.1f us  %6.2f GB/s  %.2f sleeps a trip\n",
               ops->lane(s->x, s->other), sizes[i], half_us, p99_us, (double)took[turns - 1] / 2e3 - (double)busy_us,
               (double)sizes[i] / half_us / 1e3, (double)(after.ru_nvcsw - before.ru_nvcsw) / turns);
    }
    const struct exchange_key end = { .epoch = 1, .plan = plan, .group = 1, .peer = s->other };
    ops->send(s->x, &end, NULL, 0);
    free(took);
}

static void sums_time(const uint8_t *data)
{
    uint64_t sum;
    for (int way = 0; checksum64_variant(way, data, 0, &sum); way++) {
        for (int i = 0; i < N_SIZES; i++) {
            const size_t turns = ((size_t)64 << 20) / sizes[i] / 8 + 1;
            double best_ns = INFINITY;
            for (int again = 0; again < 8; again++) {
                const int64_t start = clock_ns();
                for (size_t t = 0; t < turns; t++)
                    (void)checksum64_variant(way, data, sizes[i], &sum);
                best_ns = fmin(best_ns, (double)(clock_ns() - start) / (double)turns);
            }
            printf("checksum, way %d %8zu bytes  %9.2f us  %6.1f GB/s\n", way, sizes[i], best_ns / 1e3,
                   (double)sizes[i] / best_ns);
        }
    }
}

int main(int argc, char **argv)
{
    const char *lanes = NULL;
    uint32_t spin_us = 20;
    int64_t busy_us = 0;
    int pair[2], cores = 0, sums = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--lanes"))
            lanes = strcmp(argv[i + 1], "best") ? argv[i + 1] : NULL;
        else if (!strcmp(argv[i], "--spin"))
            spin_us = (uint32_t)atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--busy"))
            busy_us = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--cores"))
            cores = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--sums"))
            sums = atoi(argv[i + 1]);
        else
            fail("usage: [--lanes shm|tcp|best] [--spin MICROSECONDS] [--busy MICROSECONDS] [--cores 1|2] [--sums 1]");
    }
    uint8_t *data = calloc(1, BUFFER);
    if (!data || socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
        fail("out of memory or descriptors");
    if (sums)
        sums_time(data);
    fflush(stdout);           /* the other side has it, too */
    const pid_t pid = fork(); /* before UCX is used */
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(!pid && cores == 2 ? 1 : 0, &set);
    if (cores && sched_setaffinity(0, sizeof set, &set))
        fail("no such core");
    struct side s = { .self = pid ? 1 : 2, .other = pid ? 2 : 1, .fd = pair[pid ? 0 : 1] };
    side_open(&s, lanes, spin_us);
    if (pid)
        first_side(&s, busy_us, data);
    else
        second_side(&s, busy_us, data);
    ops->close(s.x);
    free(data);
    if (pid)
        waitpid(pid, NULL, 0);
    return 0;
}
