/* ctest-labels: tsan */
/* ctest-serial */
#define _GNU_SOURCE
#include "grpc_gather.h"

#include <math.h>

#include "common/rng.h"
#include "proto/health.pb-c.h"

static struct fixture fix;

static int setup(void **state)
{
    (void)state;
    fixture_start(&fix, 32);
    gather_connect(&fix);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    fixture_quiet(&fix);
    rpc_channel_close(channel);
    fixture_stop(&fix);
    return 0;
}

static void test_generate(void **state)
{
    (void)state;
    Longspan__V1__GenerateRequest m = request("[say Hello]");
    m.top_logprobs_set_case = LONGSPAN__V1__GENERATE_REQUEST__TOP_LOGPROBS_SET_TOP_LOGPROBS;
    m.top_logprobs = 2;
    m.seed_set_case = LONGSPAN__V1__GENERATE_REQUEST__SEED_SET_SEED;
    m.seed = 99;
    m.score = true;
    m.echo = true;
    struct gather g;
    run(&g, &m);
    if (g.code != RPC_OK)
        fail_msg("%d %s", g.code, g.message);
    assert_int_equal(g.n_text, 16);
    assert_memory_equal(g.text, "[say Hello]Hello", 16);
    assert_int_equal(strncmp(g.id, "gen-", 4), 0);
    assert_int_equal(g.n_tokens, 5);
    assert_int_equal(g.n_top, 10);
    assert_int_equal(g.first_score, 1);
    assert_int_equal(g.n_scores, 10);
    for (uint32_t i = 0; i < 10; i++)
        assert_true(g.scores[i] == fake_logprob(i) && (i >= 5 || g.logprobs[i] == fake_logprob(i)));
    const Longspan__V1__GenerateDone *done = g.last->done;
    assert_non_null(done);
    assert_int_equal(done->finish_reason, LONGSPAN__V1__FINISH_REASON__FINISH_REASON_STOP);
    assert_int_equal(done->usage->prompt_tokens, 11);
    assert_int_equal(done->usage->completion_tokens, 5);
    assert_int_equal(done->usage->cached_tokens, 5);
    assert_int_equal(done->usage->recomputed_tokens, 3);
    assert_int_equal(done->seed, 99);
    assert_true(done->kv->density == 0.5);
    assert_int_equal(done->kv->bytes_per_token, 100);
    assert_int_equal(done->n_workers, 2);
    assert_int_equal(done->workers[1]->blocks, 2);
    assert_string_equal(done->workers[1]->fingerprint, "c/1");
    assert_string_equal(done->model, "tiny");
    gather_free(&g);
}

static void test_forms(void **state)
{
    (void)state;
    struct gather g;
    /* ids, forced tokens, one of them NUL */
    uint32_t ids[] = { 1, 2, 3 }, forced[] = { 'n', 0, 'l' };
    Longspan__V1__TokenIds tokens;
    longspan__v1__token_ids__init(&tokens);
    tokens.n_ids = 3;
    tokens.ids = ids;
    Longspan__V1__GenerateRequest m;
    longspan__v1__generate_request__init(&m);
    m.prompt_case = LONGSPAN__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS;
    m.token_ids = &tokens;
    m.n_forced_token_ids = 3;
    m.forced_token_ids = forced;
    set_max(&m, 3);
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    assert_int_equal(g.n_text, 3);
    assert_memory_equal(g.text, "n\0l", 3);
    assert_int_equal(g.last->done->finish_reason, LONGSPAN__V1__FINISH_REASON__FINISH_REASON_LENGTH);
    gather_free(&g);
    /* a chat */
    Longspan__V1__ChatMessage message, *messages[] = { &message };
    Longspan__V1__Chat chat;
    longspan__v1__chat_message__init(&message);
    longspan__v1__chat__init(&chat);
    message.role = (char *)"user";
    message.content = (char *)"[say ok]";
    chat.n_messages = 1;
    chat.messages = messages;
    longspan__v1__generate_request__init(&m);
    m.prompt_case = LONGSPAN__V1__GENERATE_REQUEST__PROMPT_CHAT;
    m.chat = &chat;
    char *stop = (char *)"k";
    m.n_stop = 1;
    m.stop = &stop;
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    assert_int_equal(g.n_text, 1);
    assert_int_equal(g.n_tokens, 2); /* the token of the stop string was generated all the same */
    gather_free(&g);
    /* two choices under a schema: each ends where its text is whole */
    m = request("[say {}x]");
    m.n = 2;
    m.json_object = true;
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    assert_int_equal(g.n_text, 4);
    assert_int_equal(g.n_tokens, 4);
    gather_free(&g);
    /* only scores */
    m = request("abcd");
    m.score = true;
    set_max(&m, 0);
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    assert_int_equal(g.n_scores, 3);
    gather_free(&g);
}

static void refused(Longspan__V1__GenerateRequest m, const char *field)
{
    struct gather g;
    run(&g, &m);
    if (g.code != RPC_INVALID_ARGUMENT || !strstr(g.message, field))
        fail_msg("%s: %d %s", field, g.code, g.message);
    gather_free(&g);
}

static void test_refused(void **state)
{
    (void)state;
    Longspan__V1__GenerateRequest m;
    longspan__v1__generate_request__init(&m);
    refused(m, "prompt");
    refused(request(""), "prompt");
    refused(request("a\xff"), "text");
    m = request("a");
    m.temperature_set_case = LONGSPAN__V1__GENERATE_REQUEST__TEMPERATURE_SET_TEMPERATURE;
    m.temperature = NAN;
    refused(m, "temperature");
    m.temperature = -1;
    refused(m, "temperature");
    m = request("a");
    m.top_p_set_case = LONGSPAN__V1__GENERATE_REQUEST__TOP_P_SET_TOP_P;
    refused(m, "top_p");
    m = request("a");
    m.min_p = 2;
    refused(m, "min_p");
    m.min_p = 0;
    m.density = -0.5;
    refused(m, "density");
    m.density = 0.5; /* there is no selector here */
    refused(m, "density");
    m.density = 0;
    m = request("a");
    m.frequency_penalty = NAN;
    refused(m, "frequency_penalty");
    m = request("a");
    m.repetition_penalty_set_case = LONGSPAN__V1__GENERATE_REQUEST__REPETITION_PENALTY_SET_REPETITION_PENALTY;
    refused(m, "repetition_penalty");
    m = request("a");
    m.n = 1000;
    refused(m, "n must be");
    m = request("a");
    m.json_schema = (char *)"{\"not\":{}}";
    refused(m, "json_schema.not");
    m.json_schema = (char *)"{";
    refused(m, "json_schema");
    m = request("a");
    m.min_tokens = 50;
    set_max(&m, 5);
    refused(m, "min_tokens");
    m = request("a");
    m.top_logprobs_set_case = LONGSPAN__V1__GENERATE_REQUEST__TOP_LOGPROBS_SET_TOP_LOGPROBS;
    m.top_logprobs = 21;
    refused(m, "top_logprobs");
    m = request("a");
    set_max(&m, 0);
    refused(m, "max_tokens");
    set_max(&m, POSITIONS_MAX);
    refused(m, "65536");
    set_max(&m, UINT32_MAX);
    refused(m, "65536");
    uint32_t forced[] = { 1, 5000000 };
    m = request("a");
    m.n_forced_token_ids = 2;
    m.forced_token_ids = forced;
    refused(m, "forced_token_ids");
    char *empty = (char *)"";
    m = request("a");
    m.n_stop = 1;
    m.stop = &empty;
    refused(m, "stop");

    m = request("a");
    m.model = (char *)"other";
    struct gather g;
    run(&g, &m);
    assert_int_equal(g.code, RPC_NOT_FOUND);
    gather_free(&g);
    m = request("[busy]");
    run(&g, &m);
    assert_int_equal(g.code, RPC_RESOURCE_EXHAUSTED);
    gather_free(&g);
    m = request("[die 2]");
    run(&g, &m);
    assert_int_equal(g.code, RPC_UNAVAILABLE);
    assert_non_null(strstr(g.message, "worker 1"));
    gather_free(&g);
    /* what protobuf-c would let through in silence: NUL in a string, a field that we do not know */
    static const uint8_t nul[] = { 2 << 3 | 2, 3, 'a', 0, 'b' }, unknown[] = { 2 << 3 | 2, 1, 'a', 0xD0, 5, 5 };
    struct rpc_call *call = start_bytes(&g, 0, nul, sizeof nul);
    gather_wait(&g);
    assert_int_equal(g.code, RPC_INVALID_ARGUMENT);
    assert_non_null(strstr(g.message, "NUL"));
    rpc_call_unref(call);
    gather_free(&g);
    call = start_bytes(&g, 0, unknown, sizeof unknown);
    gather_wait(&g);
    assert_int_equal(g.code, RPC_INVALID_ARGUMENT);
    assert_non_null(strstr(g.message, "field 90"));
    rpc_call_unref(call);
    gather_free(&g);
}

static void test_cancel_and_deadline(void **state)
{
    (void)state;
    const uint32_t before = fixture_quiet(&fix);
    Longspan__V1__GenerateRequest m = request("[slow]");
    struct gather g;
    struct rpc_call *call = start(&g, 0, &m);
    pthread_mutex_lock(&g.lock);
    while (!g.n_messages)
        pthread_cond_wait(&g.changed, &g.lock);
    pthread_mutex_unlock(&g.lock);
    rpc_call_cancel(call);
    gather_wait(&g);
    assert_int_equal(g.code, RPC_CANCELLED);
    rpc_call_unref(call);
    gather_free(&g);
    assert_int_equal(fixture_quiet(&fix), before + 1);

    m = request("[wait]");
    call = start(&g, 100, &m);
    gather_wait(&g);
    assert_int_equal(g.code, RPC_DEADLINE_EXCEEDED);
    rpc_call_unref(call);
    gather_free(&g);
    assert_int_equal(fixture_quiet(&fix), before + 2);
}

/* A client that does not take its messages is given up once 8 MiB wait for it. */
static void on_message_stuck(void *user, struct rpc_call *call, const uint8_t *data, size_t bytes)
{
    (void)call;
    (void)data;
    (void)bytes;
    sem_wait(user);
    sem_post(user);
}

static void on_done_stuck(void *user, struct rpc_call *call, enum rpc_code code, const char *message)
{
    (void)call;
    (void)code;
    (void)message;
    sem_post((sem_t *)user + 1);
}

static void test_slow_reader(void **state)
{
    (void)state;
    const uint32_t before = fixture_quiet(&fix);
    char target[32];
    snprintf(target, sizeof target, "127.0.0.1:%u", fix.grpc);
    const struct rpc_channel_config config = { .target = target, .message_bytes_max = 64 << 20 };
    struct error err = { 0 };
    struct rpc_channel *own;
    assert_int_equal(rpc_channel_open(&config, &own, &err), ST_OK);
    static const struct rpc_handlers handlers = { .on_message = on_message_stuck, .on_done = on_done_stuck };
    sem_t stuck[2]; /* taken by the callback; posted when all is over */
    sem_init(&stuck[0], 0, 0);
    sem_init(&stuck[1], 0, 0);
    Longspan__V1__GenerateRequest m = request("[flood]");
    m.top_logprobs_set_case = LONGSPAN__V1__GENERATE_REQUEST__TOP_LOGPROBS_SET_TOP_LOGPROBS;
    m.top_logprobs = 20;
    uint8_t data[256];
    struct rpc_call *call;
    assert_int_equal(rpc_call_start(own, "/longspan.v1.Inference/Generate", 0, true, &handlers, stuck, &call), ST_OK);
    rpc_call_send(call, data, longspan__v1__generate_request__pack(&m, data));
    rpc_call_half_close(call);
    fixture_cancelled(&fix, before + 1); /* it ends by itself */
    assert_int_equal(fixture_quiet(&fix), before + 1);
    sem_post(&stuck[0]);
    sem_wait(&stuck[1]);
    rpc_call_unref(call);
    rpc_channel_close(own);
    sem_destroy(&stuck[0]);
    sem_destroy(&stuck[1]);
}

static void test_status(void **state)
{
    (void)state;
    uint8_t *reply;
    size_t n;
    enum rpc_code code;
    struct error err = { 0 };
    assert_int_equal(rpc_call_unary(channel, "/longspan.v1.Cluster/Status", 5000, NULL, 0, &reply, &n, &code, &err),
                     ST_OK);
    Longspan__V1__StatusResponse *m = longspan__v1__status_response__unpack(NULL, n, reply);
    assert_non_null(m);
    assert_string_equal(m->model, "tiny");
    assert_string_equal(m->identity, "exact");
    assert_true(m->ready);
    assert_int_equal(m->positions_max, POSITIONS_MAX);
    assert_int_equal(m->n_workers, 2);
    assert_int_equal(m->workers[1]->pid, 42);
    assert_string_equal(m->workers[1]->address, "127.0.0.1:4711");
    assert_int_equal(m->workers[0]->blocks_cached, 4);
    assert_int_equal(m->scheduler->steps, 7);
    longspan__v1__status_response__free_unpacked(m, NULL);
    free(reply);
}

static enum rpc_code check(const char *service, int *status_out)
{
    Grpc__Health__V1__HealthCheckRequest m;
    grpc__health__v1__health_check_request__init(&m);
    m.service = (char *)(uintptr_t)service;
    uint8_t data[64], *reply = NULL;
    size_t n = grpc__health__v1__health_check_request__pack(&m, data);
    enum rpc_code code;
    struct error err = { 0 };
    if (rpc_call_unary(channel, "/grpc.health.v1.Health/Check", 5000, data, n, &reply, &n, &code, &err))
        return code;
    Grpc__Health__V1__HealthCheckResponse *r = grpc__health__v1__health_check_response__unpack(NULL, n, reply);
    *status_out = r->status;
    grpc__health__v1__health_check_response__free_unpacked(r, NULL);
    free(reply);
    return code;
}

struct watch {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int statuses[8], n;
    bool finished;
};

static void watch_message(void *user, struct rpc_call *call, const uint8_t *data, size_t bytes)
{
    (void)call;
    struct watch *w = user;
    Grpc__Health__V1__HealthCheckResponse *r = grpc__health__v1__health_check_response__unpack(NULL, bytes, data);
    pthread_mutex_lock(&w->lock);
    w->statuses[w->n++ & 7] = r->status;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    grpc__health__v1__health_check_response__free_unpacked(r, NULL);
}

static void watch_done(void *user, struct rpc_call *call, enum rpc_code code, const char *message)
{
    (void)call;
    (void)code;
    (void)message;
    struct watch *w = user;
    pthread_mutex_lock(&w->lock);
    w->finished = true;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static void watch_until(struct watch *w, int n)
{
    pthread_mutex_lock(&w->lock);
    while (w->n < n)
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

static void test_health(void **state)
{
    (void)state;
    int status = 0;
    assert_int_equal(check("", &status), RPC_OK);
    assert_int_equal(status, 1);
    assert_int_equal(check("nobody", &status), RPC_NOT_FOUND);
    static const struct rpc_handlers handlers = { .on_message = watch_message, .on_done = watch_done };
    struct watch w = { 0 };
    pthread_mutex_init(&w.lock, NULL);
    pthread_cond_init(&w.changed, NULL);
    struct rpc_call *call;
    assert_int_equal(rpc_call_start(channel, "/grpc.health.v1.Health/Watch", 0, true, &handlers, &w, &call), ST_OK);
    rpc_call_send(call, (const uint8_t *)"", 0);
    rpc_call_half_close(call);
    watch_until(&w, 1);
    atomic_store(&fix.ready, false);
    watch_until(&w, 2);
    assert_int_equal(check("longspan.v1.Inference", &status), RPC_OK);
    assert_int_equal(status, 2);
    atomic_store(&fix.ready, true);
    watch_until(&w, 3);
    assert_int_equal(w.statuses[0], 1);
    assert_int_equal(w.statuses[1], 2);
    assert_int_equal(w.statuses[2], 1);
    rpc_call_cancel(call);
    pthread_mutex_lock(&w.lock);
    while (!w.finished)
        pthread_cond_wait(&w.changed, &w.lock);
    pthread_mutex_unlock(&w.lock);
    rpc_call_unref(call);
    pthread_mutex_destroy(&w.lock);
    pthread_cond_destroy(&w.changed);
}

static void test_garbage(void **state)
{
    (void)state;
    struct rng rng = { .seed = (uint64_t)clock_ns() };
    print_message("seed %llu\n", (unsigned long long)rng.seed);
    Longspan__V1__GenerateRequest m = request("[say abc]");
    set_max(&m, 50);
    uint8_t good[64], data[64];
    const size_t n = longspan__v1__generate_request__pack(&m, good);
    for (int i = 0; i < 80; i++) {
        memcpy(data, good, n);
        for (uint32_t k = 0; k <= rng_below(&rng, 4); k++)
            data[rng_below(&rng, (uint32_t)n)] = (uint8_t)rng_below(&rng, 256);
        struct gather g;
        struct rpc_call *call = start_bytes(&g, 2000, data, rng_below(&rng, 8) ? n : rng_below(&rng, (uint32_t)n));
        gather_wait(&g);
        rpc_call_unref(call);
        gather_free(&g);
    }
    struct gather g;
    run(&g, &m);
    assert_int_equal(g.code, RPC_OK);
    gather_free(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generate),    cmocka_unit_test(test_forms),
        cmocka_unit_test(test_refused),     cmocka_unit_test(test_cancel_and_deadline),
        cmocka_unit_test(test_slow_reader), cmocka_unit_test(test_status),
        cmocka_unit_test(test_health),      cmocka_unit_test(test_garbage),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
