/* ctest-labels: tsan */
/* The suite over a real etcd, started here on free ports of the loopback, killed and started again; etcdctl as the foreign reader and writer. */
#include "tests/unit/coordinator/registry_suite.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "proto/rpc.h"

enum { MEMBERS = 3 };

static char dir[64];

struct etcd_process {
    pid_t pid;
    uint16_t client, peer;
};
static struct etcd_process alone, members[MEMBERS];

static void suite_spec(const char *name, char spec_out[256])
{
    snprintf(spec_out, 256, "etcd:127.0.0.1:%u/%s", alone.client, name);
}

static uint16_t free_port(void)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t n = sizeof at;
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) || getsockname(fd, (struct sockaddr *)&at, &n))
        abort();
    close(fd);
    return ntohs(at.sin_port);
}

/* The shortest times that etcd takes, so that its shortest lease is a second. */
static void etcd_start(struct etcd_process *p, const char *name, const char *cluster)
{
    char data[160], client[64], peer[64], log[160];
    snprintf(data, sizeof data, "%s/%s", dir, name);
    snprintf(log, sizeof log, "%s/%s.log", dir, name);
    snprintf(client, sizeof client, "http://127.0.0.1:%u", p->client);
    snprintf(peer, sizeof peer, "http://127.0.0.1:%u", p->peer);
    p->pid = fork();
    if (p->pid)
        return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(fd, 1);
    dup2(fd, 2);
    execlp("etcd", "etcd", "--name", name, "--data-dir", data, "--listen-client-urls", client,
           "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
           "--initial-cluster", cluster, "--heartbeat-interval", "30", "--election-timeout", "300", "--logger", "zap",
           "--log-level", "error", (char *)NULL);
    _exit(127);
}

static void alone_start(void)
{
    char cluster[64];
    snprintf(cluster, sizeof cluster, "alone=http://127.0.0.1:%u", alone.peer);
    etcd_start(&alone, "alone", cluster);
}

static void etcd_kill(struct etcd_process *p)
{
    kill(p->pid, SIGKILL);
    waitpid(p->pid, NULL, 0);
    p->pid = 0;
}

static void await_answers(struct registry *r)
{
    for (int i = 0; i < 30 && put_text(r, "ready", "", 0).status; i++)
        run_ms(100);
    assert_int_equal(put_text(r, "ready", "", 0).status, ST_OK);
}

/* printf; the shell's output, at most 1023 bytes. */
static const char *etcdctl(const char *format, ...) __attribute__((format(printf, 1, 2)));
static const char *etcdctl(const char *format, ...)
{
    static char out[1024];
    char arguments[1200], command[1400];
    va_list args;
    va_start(args, format);
    vsnprintf(arguments, sizeof arguments, format, args);
    va_end(args);
    snprintf(command, sizeof command, "ETCDCTL_API=3 etcdctl --endpoints=127.0.0.1:%u %s 2>&1", alone.client,
             arguments);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    out[fread(out, 1, sizeof out - 1, f)] = 0;
    pclose(f);
    return out;
}

/* The part of a spec behind its slash: what stands before our keys in etcd. */
static const char *name_space(void)
{
    return strchr(spec, '/') + 1;
}

/* ---- etcd's own ---- */

static void test_foreign(void **state)
{
    (void)state;
    struct registry *r = open_it();
    struct seen seen = { .r = r };
    put_text(r, "job/1", "small", 0);
    char want[128];
    snprintf(want, sizeof want, "%s/job/1\nsmall\n", name_space());
    assert_string_equal(etcdctl("get --prefix %s/", name_space()), want);
    r->ops->watch(r, "job/", on_change, &seen);
    await_text(seen.text, "job/1=small | ");
    assert_string_equal(etcdctl("put %s/job/2 theirs", name_space()), "OK\n");
    etcdctl("put elsewhere/job/3 x");
    etcdctl("del %s/job/1", name_space());
    await_text(seen.text, "job/1=small | job/2=theirs -job/1 ");
    /* a compare sees what others wrote */
    const struct registry_put p = { .key = "job/2", .value = "ours", .bytes = 4, .compare = REGISTRY_ABSENT };
    assert_string_equal(put(r, &p).text, "job/2=theirs ");
    /* what could not be ours is left out, not choked on */
    etcdctl("put %s/%s x", name_space(), "$(head -c 600 /dev/zero | tr '\\0' k)");
    etcdctl("put %s/ x", name_space());
    etcdctl("put %s/huge \"$(head -c 70000 /dev/zero | tr '\\0' v)\"", name_space());
    assert_string_equal(list(r, "", false).text, "job/2=theirs ");
    registry_close(r);
}

static void on_page_put(void *ctx, const struct registry_answer *a)
{
    assert_int_equal(a->status, ST_OK);
    ++*(int *)ctx;
}

/* More keys than a page has. */
static void test_pages(void **state)
{
    (void)state;
    struct registry *r = open_it();
    char key[32];
    int n_put = 0;
    for (int i = 0; i < 600; i++) {
        snprintf(key, sizeof key, "page/%04d", i);
        r->ops->put(r, &(struct registry_put){ .key = key, .value = "", .compare = REGISTRY_ABSENT }, on_page_put,
                    &n_put);
    }
    await_count(&n_put, 600);
    assert_int_equal(list(r, "page/", false).n, 600);
    assert_int_equal(list(r, "page/00", false).n, 100);
    assert_int_equal(list(r, "page/0000", true).n, 1);
    registry_close(r);
}

static void test_away(void **state)
{
    (void)state;
    struct registry *r = open_it();
    struct seen seen = { .r = r };
    put_text(r, "w/a", "1", 0);
    put_text(r, "w/b", "1", 0);
    r->ops->watch(r, "w/", on_change, &seen);
    await_text(seen.text, "w/a=1 w/b=1 | ");
    etcd_kill(&alone);
    const int64_t began = clock_ms();
    const enum status st = put_text(r, "w/a", "2", 0).status;
    assert_true(st == ST_PEER || st == ST_TIMEOUT);
    assert_true(clock_ms() - began < 20000);
    /*
     * While nothing of ours moves (the loop stands still): it is back, others write, and the revision from which the watch would go on is compacted. What the
     * watch tells then is the outcome.
     */
    alone_start();
    for (int i = 0; i < 100 && strcmp(etcdctl("put %s/w/c 1", name_space()), "OK\n") != 0; i++)
        usleep(100000);
    etcdctl("del %s/w/b", name_space());
    etcdctl("put %s/w/a 3", name_space());
    char revision[64] = "";
    const char *json = etcdctl("get x -w json"), *at = strstr(json, "\"revision\":");
    assert_non_null(at);
    sscanf(at, "\"revision\":%63[0-9]", revision);
    assert_non_null(strstr(etcdctl("compaction %s", revision), "compacted"));
    await_text(seen.text, "w/a=1 w/b=1 | w/a=3 w/c=1 -w/b ");
    put_text(r, "w/d", "4", 0);
    await_text(seen.text, "w/a=1 w/b=1 | w/a=3 w/c=1 -w/b w/d=4 ");
    registry_close(r);
}

/* A counter that is only raised by comparison: no write is lost or made twice, whenever etcd dies. */
struct counter {
    struct registry *r;
    uint64_t revision;
    int value, tried;
    bool stop, idle;
};

static void count_next(struct counter *c);

static void on_count_read(void *ctx, const struct registry_answer *a)
{
    struct counter *c = ctx;
    if (!a->status && a->n_items) {
        char text[16] = "";
        memcpy(text, a->items[0].value, a->items[0].bytes < 15 ? a->items[0].bytes : 15);
        const int is = atoi(text);
        /* the write that failed was made, or it was not */
        assert_true(is == c->value || is == c->tried);
        c->value = is;
        c->revision = a->items[0].revision;
        c->tried = 0;
    }
    count_next(c);
}

static void on_count(void *ctx, const struct registry_answer *a)
{
    struct counter *c = ctx;
    if (a->status == ST_OK) {
        assert_true(a->revision > c->revision);
        c->value = c->tried;
        c->revision = a->revision;
        c->tried = 0;
    } else {
        assert_true(a->status == ST_PEER || a->status == ST_TIMEOUT);
    }
    count_next(c);
}

static void count_next(struct counter *c)
{
    if (c->stop && !c->tried) {
        c->idle = true;
        return;
    }
    if (c->tried) { /* how it went is not known */
        c->r->ops->list(c->r, "counter", true, on_count_read, c);
        return;
    }
    char text[16];
    c->tried = c->value + 1;
    const struct registry_put p = { .key = "counter",
                                    .value = text,
                                    .bytes = (size_t)snprintf(text, sizeof text, "%d", c->tried),
                                    .compare = c->revision ? REGISTRY_AT : REGISTRY_ABSENT,
                                    .at = c->revision };
    c->r->ops->put(c->r, &p, on_count, c);
}

static void test_restarts(void **state)
{
    (void)state;
    struct rng rng = { .seed = (uint64_t)clock_ns() };
    print_message("seed %llu\n", (unsigned long long)rng.seed);
    struct registry *r = open_it();
    struct counter c = { .r = r };
    await_answers(r);
    count_next(&c);
    for (int i = 0; i < 3; i++) {
        const int before = c.value;
        run_ms(100 + rng_below(&rng, 300));
        etcd_kill(&alone);
        run_ms(rng_below(&rng, 600));
        alone_start();
        for (int k = 0; k < 100 && c.value <= before + 10; k++)
            run_ms(100);
        assert_true(c.value > before + 10);
    }
    c.stop = true;
    for (int k = 0; k < 1000 && !c.idle; k++)
        run_ms(10);
    char want[32];
    snprintf(want, sizeof want, "counter=%d ", c.value);
    assert_string_equal(list(r, "counter", true).text, want);
    print_message("%d writes\n", c.value);
    registry_close(r);
}

/* ---- a leader that is killed ---- */

static void on_child_won(void *ctx, uint64_t token)
{
    if (write(*(int *)ctx, &token, sizeof token) != sizeof token)
        _exit(4);
}

static int leader_main(const char *where, int fd)
{
    struct registry *r;
    struct registry_election *e;
    struct error err = { 0 };
    const struct registry_election_config config = {
        .name = "coordinator", .value = "child", .ttl_ms = 1000, .won = on_child_won, .lost = on_lost, .ctx = &fd
    };
    if (loop_new(&loop) || registry_open(where, NULL, loop, &r, &err) || registry_election_start(r, &config, &e))
        return 2;
    loop_run(loop);
    return 0;
}

static void test_leader_killed(void **state)
{
    (void)state;
    int fds[2];
    char number[16];
    uint64_t token;
    assert_int_equal(pipe(fds), 0);
    snprintf(number, sizeof number, "%d", fds[1]);
    const pid_t pid = fork();
    if (pid == 0) {
        execl("/proc/self/exe", "leader", "--leader", spec, number, (char *)NULL);
        _exit(5);
    }
    close(fds[1]);
    assert_int_equal(read(fds[0], &token, sizeof token), sizeof token);
    struct registry *r = open_it();
    struct leader a = { 0 };
    struct registry_election *e = campaign(r, "a", &a);
    run_ms(1500);
    assert_int_equal(a.won, 0);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    close(fds[0]);
    await_count(&a.won, 1);
    assert_true(a.token > token);
    registry_election_stop(e);
    registry_close(r);
}

/* All that etcd knew is gone: who led goes on, and who stood by waits for that. */
static void test_begins_anew(void **state)
{
    (void)state;
    struct registry *r = open_it();
    struct leader a = { 0 }, b = { 0 };
    struct registry_election *ea = campaign(r, "a", &a);
    await_count(&a.won, 1);
    struct registry_election *eb = campaign(r, "b", &b);
    run_ms(500);
    char command[128];
    etcd_kill(&alone);
    snprintf(command, sizeof command, "rm -rf %s/alone", dir);
    assert_int_equal(system(command), 0);
    alone_start();
    await_count(&a.won, 2);
    run_ms(2 * suite_ttl_ms);
    assert_true(a.lost == 1 && !b.won && registry_election_leads(ea));
    registry_election_stop(ea);
    await_count(&b.won, 1);
    registry_election_stop(eb);
    registry_close(r);
}

/* ---- three members ---- */

static void members_start(int which, int to)
{
    char cluster[256], name[16];
    int n = 0;
    for (int i = 0; i < MEMBERS; i++)
        n += snprintf(cluster + n, sizeof cluster - (size_t)n, "%sm%d=http://127.0.0.1:%u", i ? "," : "", i,
                      members[i].peer);
    for (int i = which; i < to; i++) {
        snprintf(name, sizeof name, "m%d", i);
        etcd_start(&members[i], name, cluster);
    }
}

static void test_members(void **state)
{
    (void)state;
    for (int i = 0; i < MEMBERS; i++)
        members[i] = (struct etcd_process){ .client = free_port(), .peer = free_port() };
    members_start(0, MEMBERS);
    snprintf(spec, sizeof spec, "etcd:127.0.0.1:%u,127.0.0.1:%u,127.0.0.1:%u", members[0].client, members[1].client,
             members[2].client);
    struct registry *r = open_it();
    await_answers(r);
    struct seen seen = { .r = r };
    r->ops->watch(r, "w/", on_change, &seen);
    assert_int_equal(put_text(r, "w/a", "1", 0).status, ST_OK);
    await_text(seen.text, "| w/a=1 ");
    etcd_kill(&members[0]); /* the one that was asked first, and perhaps leads */
    for (int i = 0; i < 30 && put_text(r, "w/b", "2", 0).status; i++)
        run_ms(100);
    await_text(seen.text, "| w/a=1 w/b=2 ");
    members_start(0, 1);
    run_ms(1500);
    kill(members[1].pid, SIGSTOP); /* one that hangs is given up like one that is gone */
    for (int i = 0; i < 30 && put_text(r, "w/c", "3", 0).status; i++)
        run_ms(100);
    await_text(seen.text, "| w/a=1 w/b=2 w/c=3 ");
    registry_close(r);
    for (int i = 0; i < MEMBERS; i++)
        etcd_kill(&members[i]);
}

static void test_bad_specs(void **state)
{
    (void)state;
    static const char *const bad[] = { "etcd:",     "etcd:host",   "etcd:host:0", "etcd:host:70000",
                                       "etcd::1",   "etcd:a:1,",   "etcd:a:1,b",  "etcd:a:1x",
                                       "etcd:a:1/", "etcd:a:1/x/", "etcd:a: 1",   "etcd:a:-1" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct registry *r;
        struct error err = { 0 };
        if (registry_open(bad[i], NULL, loop, &r, &err) != ST_INVALID)
            fail_msg("%s was taken", bad[i]);
        assert_non_null(strstr(err.text, "etcd"));
    }
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "--writer"))
        return writer_main(argv[2], atoi(argv[3]));
    if (argc == 4 && !strcmp(argv[1], "--leader"))
        return leader_main(argv[2], atoi(argv[3]));
    if (system("command -v etcd >/dev/null && command -v etcdctl >/dev/null")) {
        fputs("etcd or etcdctl is not there (scripts/install.sh)\n", stderr);
        return getenv("CI") && !strcmp(getenv("CI"), "true") ? 1 : 77;
    }
    snprintf(dir, sizeof dir, "/tmp/longspan-etcd-XXXXXX");
    if (!mkdtemp(dir))
        return 1;
    alone = (struct etcd_process){ .client = free_port(), .peer = free_port() };
    alone_start();
    suite_ttl_ms = 2000;
    suite_late_ms = 1500;
    suite_rounds = 3;
    const struct CMUnitTest tests[] = {
        /* the first waits until etcd is there */
        cmocka_unit_test_setup_teardown(test_restarts, setup, teardown),
        SUITE_TESTS,
        cmocka_unit_test_setup_teardown(test_foreign, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pages, setup, teardown),
        cmocka_unit_test_setup_teardown(test_away, setup, teardown),
        cmocka_unit_test_setup_teardown(test_leader_killed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_begins_anew, setup, teardown),
        cmocka_unit_test_setup_teardown(test_members, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_specs, setup, teardown),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    etcd_kill(&alone);
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command) || failed;
}
