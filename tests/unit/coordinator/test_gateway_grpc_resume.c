/* ctest-labels: tsan */
/* ctest-serial */
#define _GNU_SOURCE
#include "grpc_gather.h"

#include <dirent.h>
#include <stdlib.h>

static struct fixture fix;
static char folder[] = "/tmp/longspan-grpc-resume-XXXXXX";

static void begin(void)
{
    fixture_start(&fix, 32);
    gather_connect(&fix);
}

static void end(void)
{
    fixture_quiet(&fix);
    rpc_channel_close(channel);
    fixture_stop(&fix);
}

static int setup(void **state)
{
    (void)state;
    fixture_resumes = mkdtemp(folder);
    assert_non_null(fixture_resumes);
    begin();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    end();
    DIR *d = opendir(folder);
    for (const struct dirent *e; d && (e = readdir(d));)
        unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    return rmdir(folder);
}

static Longspan__V1__GenerateRequest keyed(const char *text, uint32_t max, const char *key, const char *from)
{
    Longspan__V1__GenerateRequest m = request(text);
    set_max(&m, max);
    m.idempotency_key = (char *)(uintptr_t)key;
    m.resume_from = (char *)(uintptr_t)from;
    return m;
}

static void refused(const Longspan__V1__GenerateRequest *m, enum rpc_code code, const char *says)
{
    struct gather g;
    run(&g, m);
    if (g.code != code || !strstr(g.message, says))
        fail_msg("%s: %d %s", says, g.code, g.message);
    assert_int_equal(g.n_messages, 0);
    gather_free(&g);
}

/* The call is cancelled; what came of it is in g. */
static void leave(struct gather *g, struct rpc_call *call)
{
    rpc_call_cancel(call);
    gather_wait(g);
    rpc_call_unref(call);
}

/* The tokens first .. first + n - 1 of [slow]. */
static void check_slow(const struct gather *g, uint32_t first, size_t n)
{
    assert_int_equal(g->n_tokens, n);
    assert_int_equal(g->n_text, n);
    for (uint32_t i = 0; i < n; i++)
        assert_true(g->text[i] == 'a' && g->logprobs[i] == fake_logprob(first + i));
}

static void test_taken_up(void **state)
{
    (void)state;
    Longspan__V1__GenerateRequest m = keyed("[slow]", 60, "taken up", "");
    struct gather g;
    char place[4200], id[64];
    uint32_t had = 0;
    for (size_t some = 5; had < 60; some++) {
        struct rpc_call *call = start(&g, 0, &m);
        gather_some(&g, some);
        leave(&g, call);
        if (!had)
            snprintf(id, sizeof id, "%s", g.id);
        else if (g.id[0])
            assert_string_equal(g.id, id);
        check_slow(&g, had, g.n_tokens);
        had += (uint32_t)g.n_tokens;
        if (g.place[0])
            snprintf(place, sizeof place, "%s", g.place);
        m.resume_from = place;
        gather_free(&g);
    }
    assert_int_equal(had, 60);
    assert_memory_equal(place, id, strlen(id));
    /* the end, if it was not told yet, and then nothing is left */
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    assert_int_equal(g.n_tokens, 0);
    if (g.place[0])
        snprintf(place, sizeof place, "%s", g.place);
    gather_free(&g);
    assert_string_equal(place + strlen(id), "/60.60e");
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    assert_int_equal(g.n_messages, 0);
    gather_free(&g);
    /* from the beginning, it is the same */
    m.resume_from = (char *)"";
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    assert_string_equal(g.id, id);
    check_slow(&g, 0, 60);
    assert_int_equal(g.n_done, 1);
    gather_free(&g);
}

static void read_told(struct fixture *f, void *arg)
{
    *(uint32_t *)arg = f->sched.last.n_told;
}

static void test_another_process(void **state)
{
    (void)state;
    Longspan__V1__GenerateRequest m = keyed("[slow]", 64, "process", "");
    struct gather g, rest;
    struct rpc_call *call = start(&g, 0, &m);
    gather_some(&g, 45); /* what was generated is written each 250 ms */
    rpc_channel_close(channel);
    gather_wait(&g);
    rpc_call_unref(call);
    fixture_stop(&fix);
    begin();
    m.resume_from = g.place;
    run(&rest, &m);
    assert_int_equal(rest.code, RPC_OK);
    check_slow(&rest, (uint32_t)g.n_tokens, 64 - g.n_tokens);
    assert_string_equal(rest.id, g.id);
    uint32_t told = 0;
    fixture_do(&fix, read_told, &told);
    assert_true(told > 0);
    gather_free(&g);
    gather_free(&rest);
}

static void test_second_call(void **state)
{
    (void)state;
    const uint32_t before = fixture_quiet(&fix);
    Longspan__V1__GenerateRequest m = keyed("[slow]", 4000, "second", "");
    struct gather first, second;
    struct rpc_call *a = start(&first, 0, &m);
    gather_some(&first, 5);
    /* the key of an answer under way, with another request: nothing happens to the answer */
    const Longspan__V1__GenerateRequest other = keyed("[slow] other", 4000, "second", "");
    refused(&other, RPC_ALREADY_EXISTS, "idempotency_key");
    pthread_mutex_lock(&first.lock);
    char place[4200];
    snprintf(place, sizeof place, "%s", first.place);
    assert_false(first.finished);
    pthread_mutex_unlock(&first.lock);
    m.resume_from = place;
    struct rpc_call *b = start(&second, 0, &m);
    gather_wait(&first);
    assert_int_equal(first.code, RPC_ABORTED);
    rpc_call_unref(a);
    gather_some(&second, 5);
    assert_string_equal(second.id, first.id);
    leave(&second, b);
    /* it goes on for a while by itself, and then it does not */
    uint32_t counts[3];
    usleep(100000);
    fixture_do(&fix, read_counts, counts);
    assert_int_equal(counts[0], 1);
    assert_int_equal(fixture_quiet(&fix), before + 2);
    gather_free(&first);
    gather_free(&second);
}

static void test_deadline(void **state)
{
    (void)state;
    Longspan__V1__GenerateRequest m = keyed("[slow]", 30, "deadline", "");
    struct gather g, rest;
    struct rpc_call *call = start(&g, 150, &m);
    gather_wait(&g);
    assert_int_equal(g.code, RPC_DEADLINE_EXCEEDED);
    rpc_call_unref(call);
    m.resume_from = g.place;
    run(&rest, &m);
    assert_int_equal(rest.code, RPC_OK);
    check_slow(&rest, (uint32_t)g.n_tokens, 30 - g.n_tokens);
    gather_free(&g);
    gather_free(&rest);
}

static char *place_of(const char *id, const char *rest)
{
    static char place[128];
    snprintf(place, sizeof place, "%s/%s", id, rest);
    return place;
}

static void test_scores_and_echo(void **state)
{
    (void)state;
    Longspan__V1__GenerateRequest m = keyed("[say Hello]", 10, "scores", "");
    struct gather g;
    char id[64];
    m.score = m.echo = true;
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    assert_memory_equal(g.text, "[say Hello]Hello", 16);
    assert_int_equal(g.n_scores, 10);
    snprintf(id, sizeof id, "%s", g.id);
    assert_string_equal(g.place + strlen(id), "/5.5s10e");
    gather_free(&g);
    /* some scores, and nothing of the text */
    m.resume_from = place_of(id, "-s4");
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    assert_int_equal(g.first_score, 5);
    assert_int_equal(g.n_scores, 6);
    assert_true(g.scores[0] == fake_logprob(4));
    assert_int_equal(g.n_text, 16);
    assert_int_equal(g.n_tokens, 5);
    gather_free(&g);
    /* tokens are ahead of their text */
    m.resume_from = place_of(id, "3.2s10");
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    assert_int_equal(g.n_scores, 0);
    assert_int_equal(g.n_text, 3);
    assert_memory_equal(g.text, "llo", 3);
    assert_int_equal(g.n_tokens, 2);
    assert_true(g.logprobs[0] == fake_logprob(3));
    gather_free(&g);
    m.resume_from = place_of(id, "3.2s11"); /* there are ten */
    refused(&m, RPC_INVALID_ARGUMENT, "resume_from");
}

static void test_choices(void **state)
{
    (void)state;
    Longspan__V1__GenerateRequest m = keyed("[say Hello]", 10, "choices", "");
    struct gather g;
    m.n = 2;
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    assert_int_equal(g.n_tokens, 10);
    assert_string_equal(g.place + strlen(g.id), "/5.5e,5.5e");
    char id[64];
    snprintf(id, sizeof id, "%s", g.id);
    gather_free(&g);
    m.resume_from = place_of(id, "5.5e,1.1");
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    assert_int_equal(g.n_text, 4);
    assert_memory_equal(g.text, "ello", 4);
    assert_int_equal(g.n_done, 1);
    assert_string_equal(g.place + strlen(id), "/5.5e,5.5e");
    gather_free(&g);
    m.resume_from = place_of(id, "5.5e");
    refused(&m, RPC_INVALID_ARGUMENT, "resume_from");
    m.resume_from = place_of(id, "-,-,-");
    refused(&m, RPC_INVALID_ARGUMENT, "resume_from");
}

/* A map has no order: clients write its entries as they come. */
static void test_same_request(void **state)
{
    (void)state;
    Longspan__V1__GenerateRequest__LogitBiasEntry entries[2], *list[2];
    for (uint32_t i = 0; i < 2; i++) {
        longspan__v1__generate_request__logit_bias_entry__init(&entries[i]);
        entries[i].key = 60 + i;
        entries[i].value = (float)i;
    }
    char ids[3][64];
    for (int i = 0; i < 3; i++) {
        Longspan__V1__GenerateRequest m = keyed("[say Hello]", 10, "same", "");
        struct gather g;
        list[0] = &entries[i % 2];
        list[1] = &entries[!(i % 2)];
        entries[1].value = i < 2 ? 1 : 2;
        m.n_logit_bias = 2;
        m.logit_bias = list;
        run(&g, &m);
        assert_int_equal(g.code, RPC_OK);
        snprintf(ids[i], sizeof ids[i], "%s", g.id);
        gather_free(&g);
    }
    assert_string_equal(ids[0], ids[1]);
    assert_string_not_equal(ids[0], ids[2]);
}

static void refused_bytes(const uint8_t *data, size_t n, const char *says)
{
    struct gather g;
    struct rpc_call *call = start_bytes(&g, 0, data, n);
    gather_wait(&g);
    if (g.code != RPC_INVALID_ARGUMENT || !strstr(g.message, says))
        fail_msg("%s: %d %s", says, g.code, g.message);
    rpc_call_unref(call);
    gather_free(&g);
}

static void test_refused(void **state)
{
    (void)state;
    struct gather g;
    char id[64], key[258];
    Longspan__V1__GenerateRequest m = keyed("[say \xC3\xA9t\xC3\xA9]", 10, "refused", "");
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    assert_memory_equal(g.text, "\xC3\xA9t\xC3\xA9", 5);
    snprintf(id, sizeof id, "%s", g.id);
    gather_free(&g);
    static const char *const bad[] = { "",    "1",    "1.",     "1.1x", "-e",    "5.5u",    "1.1,",  "9.5",
                                       "5.9", "5.4",  "2.1e,-", "-s-1", "1.1s0", "0.0s2e5", "-1.-1", "5.5s1",
                                       "e",   "/1.1", "2.4",    "-s1",  "1.1 ",  "+1.1",    "1e1.1", "0x1.1" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        m.resume_from = place_of(id, bad[i]);
        refused(&m, RPC_INVALID_ARGUMENT, "resume_from");
    }
    m.resume_from = place_of(id, "2.2"); /* between characters */
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    assert_int_equal(g.n_text, 3);
    gather_free(&g);
    /* of another request; of none */
    m.resume_from = place_of("gen-0", "1.1");
    refused(&m, RPC_INVALID_ARGUMENT, "resume_from");
    m.resume_from = place_of(id, "2.2");
    m.idempotency_key = (char *)"another key";
    refused(&m, RPC_INVALID_ARGUMENT, "resume_from");
    m.idempotency_key = (char *)"refused";
    m.text = (char *)"another text";
    refused(&m, RPC_INVALID_ARGUMENT, "resume_from");
    m.idempotency_key = (char *)"";
    refused(&m, RPC_INVALID_ARGUMENT, "resume_from");
    /* keys */
    m = keyed("[say x]", 10, "a\nb", "");
    refused(&m, RPC_INVALID_ARGUMENT, "idempotency_key");
    m.idempotency_key = (char *)"\xC3\xA4";
    refused(&m, RPC_INVALID_ARGUMENT, "idempotency_key");
    memset(key, 'k', sizeof key);
    key[256] = 0;
    m.idempotency_key = key;
    refused(&m, RPC_INVALID_ARGUMENT, "idempotency_key");
    key[255] = 0;
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    gather_free(&g);
    m.logits = true;
    refused(&m, RPC_INVALID_ARGUMENT, "logits");
    /* NUL within; numbers instead of texts; cut short */
    static const uint8_t nul[] = { 2 << 3 | 2, 1, 'a', 0xDA, 2, 3, 'k', 0, 'k' },
                         nul_from[] = { 2 << 3 | 2, 1, 'a', 0xDA, 2, 1, 'k', 0xE2, 2, 2, 'p', 0 },
                         number[] = { 2 << 3 | 2, 1, 'a', 0xD8, 2, 7 },
                         short_key[] = { 2 << 3 | 2, 1, 'a', 0xDA, 2, 30, 'k' };
    refused_bytes(nul, sizeof nul, "idempotency_key");
    refused_bytes(nul_from, sizeof nul_from, "resume_from");
    refused_bytes(number, sizeof number, "idempotency_key");
    refused_bytes(short_key, sizeof short_key, "malformed");
    uint8_t long_from[5000] = { 2 << 3 | 2, 1, 'a', 0xDA, 2, 1, 'k', 0xE2, 2, 0x80, 0x20 };
    memset(long_from + 11, '1', 4096);
    refused_bytes(long_from, 11 + 4096, "resume_from");
    long_from[9] = 0x81;
    long_from[11 + 4096] = '1';
    refused_bytes(long_from, 11 + 4097, "4096");
}

/* Without a folder a key changes nothing, and nothing can be taken up. */
static void test_nothing_kept(void **state)
{
    (void)state;
    end();
    fixture_resumes = NULL;
    begin();
    Longspan__V1__GenerateRequest m = keyed("[say Hello]", 10, "k", "");
    struct gather g;
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    assert_int_equal(g.n_text, 5);
    assert_string_equal(g.place, "");
    gather_free(&g);
    m.resume_from = (char *)"gen-0/1.1";
    refused(&m, RPC_INVALID_ARGUMENT, "resume_from");
    end();
    fixture_resumes = folder;
    begin();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_taken_up),        cmocka_unit_test(test_another_process),
        cmocka_unit_test(test_second_call),     cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_scores_and_echo), cmocka_unit_test(test_choices),
        cmocka_unit_test(test_same_request),    cmocka_unit_test(test_refused),
        cmocka_unit_test(test_nothing_kept),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
