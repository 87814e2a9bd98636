/* Traces, lengths, workloads, prompts and statistics of the load generator. */
#include "client/bench/dist.h"
#include "client/bench/prompt.h"
#include "client/bench/report.h"
#include "client/bench/stats.h"
#include "client/bench/trace.h"
#include "client/bench/workload.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <event2/buffer.h>

#include <cmocka.h>

#include "common/rng.h"

static enum status parse(const char *text, enum trace_format format, struct trace *t, struct error *err)
{
    *err = (struct error){ 0 };
    return trace_parse(text, strlen(text), format, 0, "t", t, err);
}

static void test_mooncake(void **state)
{
    struct trace t;
    struct error err;
    (void)state;
    assert_int_equal(
        parse("{\"timestamp\": 3000, \"input_length\": 1100, \"output_length\": 5, \"hash_ids\": [7, 8, 9]}\n"
              "\n"
              "{\"timestamp\": 1000.5, \"input_length\": 512, \"output_length\": 6, \"hash_ids\": [7]}\r\n"
              "{\"timestamp\": 3000, \"input_length\": 3, \"output_length\": 1}",
              TRACE_AUTO, &t, &err),
        ST_OK);
    assert_int_equal(t.n_rows, 3);
    assert_int_equal(t.rows[0].at_us, 0);
    assert_int_equal(t.rows[0].input_tokens, 512);
    assert_int_equal(t.rows[1].at_us, 1999500);
    assert_int_equal(t.rows[1].n_blocks, 3);
    assert_int_equal(t.blocks[t.rows[1].first_block + 2], 9);
    assert_int_equal(t.blocks[t.rows[0].first_block], 7);
    assert_int_equal(t.rows[2].line, 4); /* ties keep the file's order */
    assert_int_equal(t.rows[2].n_blocks, 0);
    trace_close(&t);
}

static void test_burstgpt(void **state)
{
    struct trace t;
    struct error err;
    (void)state;
    assert_int_equal(parse("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
                           "5,ChatGPT,472,18,490,Conversation log\n"
                           "45.5,\"Chat,GPT\",1087,230,1317,Conversation log\n"
                           "46,GPT-4,10,0,10,API log\n",
                           TRACE_AUTO, &t, &err),
                     ST_OK);
    assert_int_equal(t.n_rows, 2);
    assert_int_equal(t.n_skipped, 1);
    assert_int_equal(t.rows[1].at_us, 40500000);
    assert_int_equal(t.rows[1].input_tokens, 1087);
    assert_int_equal(t.rows[1].output_tokens, 230);
    trace_close(&t);
    assert_int_equal(
        trace_parse("Timestamp,Request tokens,Response tokens\n1,2,3\n2,3,4\n", 53, TRACE_BURSTGPT, 1, "t", &t, &err),
        ST_OK);
    assert_int_equal(t.n_rows, 1);
    trace_close(&t);
}

static void test_bad_traces(void **state)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        { "", "no requests" },
        { "{", "t:1: line" },
        { "{}\n", "t:1: timestamp" },
        { "{\"timestamp\": -1}\n", "timestamp" },
        { "{\"timestamp\": 1e300}\n", "timestamp" },
        { "{\"timestamp\": 1, \"input_length\": 0}\n", "input_length" },
        { "{\"timestamp\": 1, \"input_length\": 99999999999}\n", "input_length" },
        { "{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 1.5}\n", "output_length" },
        { "{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 1, \"hash_ids\": 3}\n", "hash_ids" },
        { "{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 1, \"hash_ids\": [\"x\"]}\n", "hash_ids" },
        { "{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 1}\n[]\n", "t:2: line" },
        { "Time,Request tokens,Response tokens\n", "Timestamp" },
        { "Timestamp,Response tokens\n", "Request tokens" },
        { "Timestamp,Request tokens\n", "Response tokens" },
        { "Timestamp,Request tokens,Response tokens\n", "no requests" },
        { "Timestamp,Request tokens,Response tokens\nx,1,1\n", "t:2: Timestamp" },
        { "Timestamp,Request tokens,Response tokens\n1,-1,1\n", "Request tokens" },
        { "Timestamp,Request tokens,Response tokens\n1,1,1e99\n", "Response tokens" },
        { "Timestamp,Request tokens,Response tokens\n1,1\n", "too few columns" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct trace t;
        struct error err;
        assert_int_equal(parse(cases[i].text, TRACE_AUTO, &t, &err), ST_INVALID);
        if (!strstr(err.text, cases[i].says))
            fail_msg("case %zu: '%s' does not say '%s'", i, err.text, cases[i].says);
    }
}

/* Mean of n draws. */
static double mean_of(const char *text, int n, double *deviation)
{
    struct dist d;
    double sum = 0, squares = 0;
    assert_int_equal(dist_parse(text, "--x", &d, NULL), ST_OK);
    for (int i = 0; i < n; i++) {
        const double v = dist_draw(&d, rng_at(5, (uint64_t)i, 0), rng_at(5, (uint64_t)i, 1));
        assert_true(v >= 1 && v <= 1 << 24);
        sum += v;
        squares += v * v;
    }
    *deviation = sqrt(squares / n - sum / n * sum / n);
    return sum / n;
}

static void close_to(double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance))
        fail_msg("%g is not %g (+- %g)", got, want, tolerance);
}

static void test_lengths(void **state)
{
    static const char *const bad[] = { "",    "0",   "-1",       "5-",          "5-4",      "1.5",
                                       "x",   "1e9", "normal:5", "normal:0:1",  "5x",       "normal:5:1:2",
                                       "nan", "inf", "1-inf",    "uniform:1:2", "99999999", "exponential:" };
    double deviation;
    struct error err = { 0 };
    struct dist d;
    (void)state;
    close_to(mean_of("512", 10, &deviation), 512, 0);
    close_to(mean_of("100-200", 20000, &deviation), 150, 1);
    close_to(deviation, 101 / sqrt(12), 1);
    close_to(mean_of("normal:1000:100", 20000, &deviation), 1000, 4);
    close_to(deviation, 100, 3);
    close_to(mean_of("exponential:1000", 20000, &deviation), 1000, 30);
    close_to(mean_of("lognormal:1000:0.5", 20000, &deviation), 1000 * exp(0.125), 30);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (dist_parse(bad[i], "--x", &d, NULL) != ST_INVALID)
            fail_msg("'%s' is taken", bad[i]);
    assert_int_equal(dist_parse("x", "--input-tokens", &d, &err), ST_INVALID);
    assert_non_null(strstr(err.text, "--input-tokens: 'x'"));
}

static void test_poisson(void **state)
{
    struct workload w = { .config = { .seed = 3, .rate = 50, .requests_max = 20000 } }, again;
    struct load_request r, same;
    int64_t last = 0;
    double squares = 0;
    (void)state;
    dist_parse("10-20", "", &w.config.input, NULL);
    dist_parse("5", "", &w.config.output, NULL);
    again = w;
    uint64_t n = 0;
    while (workload_next(&w, &r)) {
        assert_true(workload_next(&again, &same));
        assert_memory_equal(&r, &same, sizeof r);
        assert_true(r.due_us >= last && r.index == n++);
        squares += (double)(r.due_us - last) * (double)(r.due_us - last);
        last = r.due_us;
    }
    assert_int_equal(n, 20000);
    close_to((double)last / (double)n, 20000, 500);             /* gaps of 20 ms on average */
    close_to(squares / (double)n / (20000.0 * 20000), 2, 0.12); /* and exponential: E[x^2] = 2 E[x]^2 */
}

static void test_trace_load(void **state)
{
    struct trace t;
    struct error err;
    struct load_request r;
    (void)state;
    assert_int_equal(parse("Timestamp,Request tokens,Response tokens\n10,100,50\n12,1000,500\n", TRACE_AUTO, &t, &err),
                     ST_OK);
    struct workload w = { .config = { .trace = &t, .trace_scale = 4, .input_max = 300, .output_max = 60 } };
    assert_true(workload_next(&w, &r));
    assert_int_equal(r.due_us, 0);
    assert_int_equal(w.n_cut, 0);
    assert_true(workload_next(&w, &r));
    assert_int_equal(r.due_us, 500000);
    assert_int_equal(r.input_tokens, 300);
    assert_int_equal(r.output_tokens, 60);
    assert_int_equal(w.n_cut, 1);
    assert_false(workload_next(&w, &r));
    trace_close(&t);
}

/* The ids of a prompt. */
static size_t ids_of(const struct prompts *p, const struct load_request *r, long *ids, size_t max)
{
    struct evbuffer *out = evbuffer_new();
    size_t n = 0;
    assert_true(prompt_write(p, r, out));
    evbuffer_add(out, "", 1);
    char *at = (char *)evbuffer_pullup(out, -1);
    assert_int_equal(*at, '[');
    while (*at != ']' && n < max) {
        at++;
        ids[n++] = strtol(at, &at, 10);
        assert_true(*at == ',' || *at == ']');
    }
    assert_string_equal(at, "]");
    evbuffer_free(out);
    return n;
}

static void test_prompts(void **state)
{
    static long a[6000], b[6000];
    const uint64_t one[] = { 5, 6 }, other[] = { 5, 7 };
    struct prompts p = { .seed = 1, .block_tokens = 512, .id_low = 100, .id_high = 30000, .prefix_tokens = 40 };
    struct load_request r = { .index = 0, .input_tokens = 5000 }, s = { .index = 1, .input_tokens = 50 };
    (void)state;
    assert_int_equal(ids_of(&p, &r, a, 6000), 5000);
    assert_int_equal(ids_of(&p, &s, b, 6000), 50);
    assert_memory_equal(a, b, 40 * sizeof *a);
    assert_true(memcmp(a + 40, b + 40, 10 * sizeof *a) != 0);
    for (int i = 0; i < 5000; i++)
        assert_true(a[i] >= 100 && a[i] <= 30000);
    r = (struct load_request){ .index = 2, .input_tokens = 1024, .blocks = one, .n_blocks = 2 };
    s = (struct load_request){ .index = 3, .input_tokens = 1030, .blocks = other, .n_blocks = 2 };
    assert_int_equal(ids_of(&p, &r, a, 6000), 1024);
    assert_int_equal(ids_of(&p, &s, b, 6000), 1030);
    assert_memory_equal(a, b, 512 * sizeof *a);
    assert_true(memcmp(a + 512, b + 512, 10 * sizeof *a) != 0);
}

static void test_text_prompts(void **state)
{
    struct prompts p = {
        .seed = 1, .text = true, .block_tokens = 512, .words = { "one", "two" }, .n_words = 2, .overhead = 1
    };
    const struct load_request r = { .input_tokens = 5 };
    struct evbuffer *out = evbuffer_new();
    int spaces = 0;
    (void)state;
    assert_true(prompt_write(&p, &r, out));
    evbuffer_add(out, "", 1);
    const char *text = (const char *)evbuffer_pullup(out, -1);
    for (const char *c = text; *c; c++)
        spaces += *c == ' ';
    assert_int_equal(spaces, 3); /* four words, and the token that every text begins with */
    assert_true(text[0] == '"' && text[strlen(text) - 1] == '"');
    evbuffer_free(out);
}

static void test_quantiles(void **state)
{
    double v[] = { 5, 1, 4, 2, 3 };
    const struct quantiles q = quantiles_of(v, 5), none = quantiles_of(v, 0);
    (void)state;
    close_to(q.mean, 3, 0);
    close_to(q.p50, 3, 0);
    close_to(q.p90, 4.6, 1e-12); /* as numpy's */
    close_to(q.p99, 4.96, 1e-12);
    close_to(q.max, 5, 0);
    assert_true(isnan(none.p50) && isnan(none.mean));
    assert_int_equal(none.n, 0);
    close_to(quantile(v, 1, 0.99), 1, 0);
}

static void test_summary(void **state)
{
    struct record r[3] = {
        { .due_us = 0, .sent_us = 1000, .input_tokens = 10, .prompt_tokens = 11, .ok = true },
        { .due_us = 500000, .sent_us = 500000, .input_tokens = 10, .ok = true },
        { .due_us = 900000, .sent_us = 900000, .end_us = 950000, .error = (char *)(uintptr_t) "no" },
    };
    struct summary s;
    (void)state;
    for (int i = 0; i < 4; i++) /* first at 100 ms, then every 20 ms */
        assert_true(record_event(&r[0], 100000 + 20000 * i));
    assert_true(record_event(&r[1], 900000));
    r[0].output_tokens = 7; /* two in one event */
    r[1].output_tokens = 1;
    r[0].end_us = 170000;
    r[1].end_us = 1000000;
    assert_int_equal(summary_make(r, 3, 150, 15, &s), ST_OK);
    assert_int_equal(s.n_ok, 2);
    assert_int_equal(s.n_failed, 1);
    close_to(s.seconds, 1, 1e-9);
    close_to(s.output_rate, 8, 1e-9);
    close_to(s.total_rate, 8 + 21, 1e-9);
    close_to(s.ttft.mean, (100 + 400) / 2.0, 1e-9);
    close_to(s.tpot.mean, 10, 1e-9);
    assert_int_equal(s.tpot.n, 1);
    close_to(s.itl.mean, 20, 1e-9);
    assert_int_equal(s.itl.n, 3);
    close_to(s.e2e.max, 500, 1e-9);
    close_to(s.late.max, 1, 1e-9);
    assert_int_equal(s.n_good, 1);
    close_to(s.goodput, 1, 1e-9);
    r[2].error = NULL;
    for (int i = 0; i < 3; i++)
        record_free(&r[i]);
}

static void test_reports(void **state)
{
    struct record r[2] = { { .due_us = 0, .ok = true, .output_tokens = 2 },
                           { .due_us = 5, .end_us = 10, .first_us = -1 } };
    struct summary s;
    char *text = NULL;
    size_t bytes = 0;
    (void)state;
    record_event(&r[0], 50);
    record_event(&r[0], 90);
    r[0].end_us = 100;
    r[1].error = strdup("\033[2J<&> \xff");
    assert_int_equal(summary_make(r, 2, 0, 0, &s), ST_OK);
    FILE *out = open_memstream(&text, &bytes);
    report_table(&s, r, 2, out);
    assert_int_equal(report_svg(&s, r, 2, out), ST_OK);
    fclose(out);
    assert_null(strchr(text, '\033')); /* what a server says does not reach the terminal as it is */
    assert_non_null(strstr(text, "1 answered, 1 failed"));
    assert_non_null(strstr(text, "</svg>"));
    assert_null(strstr(text, "nan\""));
    free(text);
    json_t *options = json_object(), *all = report_json(&s, r, 2, options);
    assert_int_equal(json_array_size(json_object_get(all, "requests")), 2);
    json_decref(all);
    json_decref(options);
    record_free(&r[0]);
    record_free(&r[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mooncake), cmocka_unit_test(test_burstgpt),     cmocka_unit_test(test_bad_traces),
        cmocka_unit_test(test_lengths),  cmocka_unit_test(test_poisson),      cmocka_unit_test(test_trace_load),
        cmocka_unit_test(test_prompts),  cmocka_unit_test(test_text_prompts), cmocka_unit_test(test_quantiles),
        cmocka_unit_test(test_summary),  cmocka_unit_test(test_reports),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
