/*
 * ucx between hosts, imitated by network namespaces of one machine, which share everything else: shared memory would work, and must not be chosen.
 * Needs the right to make namespaces and the ip and nsenter programs; skipped without.
 */
#define _GNU_SOURCE

#include "tests/unit/exchange/worker_process.h"

static void shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void shell(const char *format, ...)
{
    char command[512];
    va_list ap;
    va_start(ap, format);
    vsnprintf(command, sizeof command, format, ap);
    va_end(ap);
    if (system(command))
        fail_msg("%s", command);
}

/* Two workers, each on its host, a cable between them. */
static void hosts_start(struct worker w[2])
{
    worker_fork(&w[0], 1, "10.77.0.1");
    worker_fork(&w[1], 2, "10.77.0.2");
    shell("nsenter -t %d -n ip link add lsa type veth peer name lsb netns %d", (int)w[0].pid, (int)w[1].pid);
    shell("nsenter -t %d -n sh -c 'ip addr add 10.77.0.1/24 dev lsa && ip link set lsa up'", (int)w[0].pid);
    shell("nsenter -t %d -n sh -c 'ip addr add 10.77.0.2/24 dev lsb && ip link set lsb up'", (int)w[1].pid);
    for (int i = 0; i < 2; i++)
        worker_go(&w[i], true);
}

static void all_told(struct worker w[2])
{
    for (int i = 0; i < 2; i++)
        worker_told(&w[i], w[1 - i].id, w[1 - i].address, w[1 - i].address_bytes);
}

static void all_play(struct worker w[2], uint32_t turns, enum status want)
{
    for (int i = 0; i < 2; i++)
        worker_order(&w[i], ORDER_PLAY, 2, turns, 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(worker_reply(&w[i]), want);
}

static void test_two_hosts(void **state)
{
    (void)state;
    struct worker w[2];
    hosts_start(w);
    all_told(w);
    all_play(w, 60, ST_OK);
    for (int i = 0; i < 2; i++) {
        worker_order(&w[i], ORDER_LANE, w[1 - i].id, 't', 0);
        assert_int_equal(worker_reply(&w[i]), ST_OK);
    }
    for (int i = 0; i < 2; i++)
        worker_quit(&w[i]);
}

/* The cable is pulled for longer than tcp keeps a silent connection, and plugged again; both are told of each other as the coordinator does. */
static void test_cable(void **state)
{
    (void)state;
    struct worker w[2];
    hosts_start(w);
    all_told(w);
    all_play(w, 20, ST_OK);
    shell("nsenter -t %d -n ip link set lsa down", (int)w[0].pid);
    usleep(300000);
    shell("nsenter -t %d -n ip link set lsa up", (int)w[0].pid);
    all_play(w, 20, ST_OK); /* a short cut is nothing */
    shell("nsenter -t %d -n ip link set lsa down", (int)w[0].pid);
    for (int i = 0; i < 2; i++) {
        worker_order(&w[i], ORDER_DROP, w[1 - i].id, 0, 0);
        assert_int_equal(worker_reply(&w[i]), ST_OK);
    }
    all_play(w, 20, ST_PEER);
    usleep(500000);
    shell("nsenter -t %d -n ip link set lsa up", (int)w[0].pid);
    all_told(w);
    all_play(w, 20, ST_OK);
    for (int i = 0; i < 2; i++)
        worker_quit(&w[i]);
}

static bool namespaces_work(void)
{
    int status = -1;
    const pid_t pid = fork();
    if (!pid) {
        const bool works = namespace_enter() &&
                           !system("ip link add lsa type veth peer name lsb >/dev/null 2>&1 && nsenter -t $$ -n true");
        _exit(!works);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && !status;
}

int main(int argc, char **argv)
{
    int status;
    if (worker_process(argc, argv, &status))
        return status;
    if (!namespaces_work()) {
        print_message("no network namespaces here\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_hosts),
        cmocka_unit_test(test_cable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
