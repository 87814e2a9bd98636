/* The maths of eval, against values worked out by hand; what --configs and --tasks may say; what tasks are made of. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/eval/configs.h"
#include "client/eval/report.h"
#include "client/eval/score.h"

static void expect_near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-6 * (1 + fabs(want))))
        fail_msg("%.12g, should be %.12g", got, want);
}

/* Probabilities 1/2, 1/4, 1/4 against 1/4, 1/2, 1/4; a shift of all logits changes nothing. */
static void test_by_hand(void **state)
{
    (void)state;
    const float half = 0.69314718f;
    const float base[3] = { half, 0, 0 }, other[3] = { 100, 100 + half, 100 };
    struct eval_score s = { 0 };
    eval_score_add(&s, base, base, 3, 0);
    struct eval_quality q = eval_quality(&s, 1);
    expect_near(q.ppl.value, 2);
    expect_near(q.ppl_ratio.value, 1);
    expect_near(q.kl.value, 0);
    expect_near(q.top1.value, 1);
    eval_score_add(&s, other, base, 3, 0);
    q = eval_quality(&s, 1);
    expect_near(q.ppl.value, sqrt(2.0 * 4)); /* the geometric mean */
    expect_near(q.ppl_ratio.value, sqrt(2.0));
    expect_near(q.kl.value, (0.5 * log(2) - 0.25 * log(2)) / 2);
    expect_near(q.top1.value, 0.5);
    assert_int_equal(s.n_rows, 2);
    assert_true(isnan(q.ppl.low) && isnan(q.kl.high)); /* one batch says nothing of how sure it is */
}

/* Against R: t.test(c(1, 2, 4, 5)), qt(.975, 100); and Wilson's interval of 18 of 20, of 0 and of all. */
static void test_intervals(void **state)
{
    (void)state;
    const double values[] = { 1, 2, 4, 5 };
    struct eval_estimate e = eval_estimate_mean(values, 4);
    expect_near(e.value, 3);
    assert_true(fabs(e.low - 0.0942604) < 1e-3 && fabs(e.high - 5.9057396) < 1e-3);
    assert_true(isnan(eval_estimate_mean(values, 1).low) && isnan(eval_estimate_mean(values, 0).value));
    e = eval_estimate_share(18, 20);
    expect_near(e.value, 0.9);
    assert_true(fabs(e.low - 0.698966) < 1e-4 && fabs(e.high - 0.972135) < 1e-4);
    e = eval_estimate_share(0, 20);
    assert_true(e.low == 0 && fabs(e.high - 0.161125) < 1e-4);
    e = eval_estimate_share(20, 20);
    assert_true(e.high == 1 && fabs(e.low - 0.838875) < 1e-4);
    assert_true(isnan(eval_estimate_share(0, 0).value));
    /* batches count once each: two that differ by ln 2 in nll */
    const struct eval_score batches[] = { { 4, 4, 4 * log(2), 0, 0.4 }, { 4, 3, 4 * log(4), 0, 0.8 } };
    const struct eval_quality q = eval_quality(batches, 2);
    expect_near(q.ppl.value, sqrt(8.0));
    expect_near(q.kl.value, 0.15);
    assert_true(q.kl.low == 0 && q.kl.high > 0.4);
    expect_near(log(q.ppl.high / q.ppl.low), 12.7063 * log(2));
    expect_near(q.top1.value, 7.0 / 8);
}

static void test_ends(void **state)
{
    (void)state;
    /* a token that has no probability left in float64 costs, but stays finite; ties go to the lowest token */
    const float sharp[4] = { 3000, 0, 0, 0 }, flat[4] = { 1, 1, 1, 1 };
    struct eval_score s = { 0 };
    eval_score_add(&s, flat, sharp, 4, 3);
    expect_near(s.nll, log(4));
    expect_near(s.kl, log(4));
    assert_int_equal(s.n_same, 1);
    eval_score_add(&s, sharp, flat, 4, 1);
    expect_near(s.nll, log(4) + 3000);
    expect_near(s.kl, log(4) + 0.75 * 3000 - log(4));
    const float odd[2][2] = { { 1, NAN }, { INFINITY, 1 } };
    assert_true(eval_finite(sharp, 4));
    assert_false(eval_finite(odd[0], 2));
    assert_false(eval_finite(odd[1], 2));
}

static void test_configs(void **state)
{
    (void)state;
    static struct eval_config c[EVAL_CONFIGS_MAX];
    uint32_t n;
    assert_int_equal(eval_configs_parse("bf16:dense,int8:quest@0.2,bf16:dense:lossless-fast", c, &n, NULL), ST_OK);
    assert_int_equal(n, 3);
    assert_string_equal(c[0].text, "bf16:dense");
    assert_string_equal(c[0].weights, "");
    assert_string_equal(c[1].kv_codec, "int8");
    assert_string_equal(c[1].selector, "quest@0.2");
    assert_string_equal(c[2].selector, "dense");
    assert_string_equal(c[2].weights, "lossless-fast");
    assert_false(c[1].varied);
    assert_int_equal(eval_configs_parse("kivi2+w128:dense,int4:dense,fp8+late+w64:dense:bf16", c, &n, NULL), ST_OK);
    assert_string_equal(c[0].text, "kivi2+w128:dense");
    assert_string_equal(c[0].kv_codec, "kivi2");
    assert_true(c[0].varied && c[0].window == 128 && !c[0].late);
    assert_false(c[1].varied); /* its codec says it */
    assert_true(c[2].varied && c[2].window == 64 && c[2].late);
    assert_string_equal(c[2].weights, "bf16");
    static const char *const bad[] = { "",
                                       "kivi2+:dense",
                                       "kivi2+w:dense",
                                       "kivi2+w-64:dense",
                                       "kivi2+w64x:dense",
                                       "kivi2+w16777216:dense",
                                       "kivi2+w128+:dense",
                                       "kivi2+early:dense",
                                       "+w128:dense",
                                       "bf16",
                                       "bf16:",
                                       ":dense",
                                       "bf16:dense,",
                                       ",bf16:dense",
                                       "bf16:dense:",
                                       "bf16::bf16",
                                       "0123456789012345678901234567890123456789:dense" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct error err = { 0 };
        if (eval_configs_parse(bad[i], c, &n, &err) != ST_INVALID || !strstr(err.text, "--configs"))
            fail_msg("'%s': '%s'", bad[i], err.text);
    }
    char many[65 * 11 + 1] = "";
    for (int i = 0; i < 65; i++)
        strcat(many, i ? ",bf16:dense" : "bf16:dense");
    assert_int_equal(eval_configs_parse(many, c, &n, NULL), ST_INVALID);
}

static void test_windows(void **state)
{
    (void)state;
    bool moved = false;
    for (uint32_t i = 0; i < 100; i++) {
        const uint64_t at = eval_window_at(3, i, 1000, 900);
        assert_true(at <= 100);
        assert_int_equal(at, eval_window_at(3, i, 1000, 900));
        moved = moved || at != eval_window_at(4, i, 1000, 900);
        assert_int_equal(eval_window_at(3, i, 900, 900), 0);
    }
    assert_true(moved);
}

/* ---- tasks ---- */

static const char essay[] =
    "It was a bright day. The clock struck thirteen! Who had wound it?\n\nNobody knew. A door opened at last.";

static struct eval_question make(const char *task, uint64_t seed, uint32_t sample, uint32_t filler)
{
    const struct eval_draw draw = { seed, sample, filler, 8192, essay, sizeof essay - 1 };
    struct eval_question q;
    assert_int_equal(eval_task_make(eval_task_find(task), &draw, &q), ST_OK);
    assert_int_equal(strlen(q.prompt), q.bytes);
    assert_true(q.n_answers > 0 && q.max_new > 0);
    return q;
}

static uint32_t times(const char *text, const char *what)
{
    uint32_t n = 0;
    for (const char *at = text; (at = strstr(at, what)); at += strlen(what))
        n++;
    return n;
}

/* All: the same again, another by seed and sample, longer by filler with the same answers; the answers are in the prompt and score 1, nothing scores 0. */
static void test_tasks(void **state)
{
    (void)state;
    const struct eval_task *t;
    uint32_t n = 0;
    for (; (t = eval_task_at(n)); n++) {
        const char *name = eval_task_name(t);
        assert_ptr_equal(eval_task_find(name), t);
        struct eval_question q = make(name, 3, 1, 200), again = make(name, 3, 1, 200), other = make(name, 3, 2, 200),
                             seeded = make(name, 4, 1, 200), longer = make(name, 3, 1, 300);
        char whole[EVAL_ANSWERS_MAX * EVAL_ANSWER_BYTES] = "";
        assert_string_equal(q.prompt, again.prompt);
        assert_string_not_equal(q.prompt, seeded.prompt);
        assert_string_not_equal(q.prompt, other.prompt);
        assert_true(longer.bytes > q.bytes);
        for (uint32_t a = 0; a < q.n_answers; a++) {
            if (!strstr(q.prompt, q.answers[a]))
                fail_msg("%s: %s is not in the prompt", name, q.answers[a]);
            if (strcmp(name, "kv") && strcmp(name, "copy"))
                assert_string_equal(q.answers[a], longer.answers[a]);
            strcat(strcat(whole, q.answers[a]), " ");
        }
        assert_true(eval_answer_score(&q, whole) == 1);
        assert_true(eval_answer_score(&q, "") == 0);
        assert_true(eval_answer_score(&q, other.answers[0]) < 1);
        free(q.prompt);
        free(again.prompt);
        free(other.prompt);
        free(seeded.prompt);
        free(longer.prompt);
    }
    assert_int_equal(n, 14);
    assert_null(eval_task_find("niah"));
    assert_null(eval_task_find(""));
}

static void test_counts(void **state)
{
    (void)state;
    struct eval_question q = make("niah_multikey_2", 1, 0, 50);
    assert_int_equal(times(q.prompt, "One of the special magic numbers for"), 51);
    free(q.prompt);
    q = make("niah_multivalue", 1, 0, 50);
    assert_int_equal(times(q.prompt, "One of the special magic numbers for"), 4);
    assert_int_equal(q.n_answers, 4);
    assert_int_equal(times(q.prompt, "It was a bright day."), 10);
    free(q.prompt);
    q = make("niah_multiquery", 1, 0, 50);
    assert_int_equal(q.n_answers, 4);
    assert_int_equal(times(q.prompt, ", and "), 2);
    free(q.prompt);
    q = make("vt", 1, 0, 50);
    assert_int_equal(times(q.prompt, "VAR "),
                     2 * 9); /* the example's and its own: five lines, four of which name two */
    assert_int_equal(times(q.prompt, "The grass is green."), 55);
    free(q.prompt);
    q = make("cwe", 1, 0, 40);
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(times(q.prompt, q.answers[i]), 30);
    assert_non_null(strstr(q.prompt, " 420. ")); /* 10 x 30 + 40 x 3 */
    assert_null(strstr(q.prompt, " 421. "));
    free(q.prompt);
    q = make("fwe", 1, 0, 1000);
    assert_int_equal(times(q.prompt, "... "), 607); /* 1000 / (pi^2 / 6) */
    assert_int_equal(times(q.prompt, q.answers[0]), 151);
    assert_int_equal(times(q.prompt, q.answers[1]), 67);
    assert_int_equal(times(q.prompt, q.answers[2]), 37);
    free(q.prompt);
}

/* Needles fill blocks of 64 positions, and so does the question before its key. */
static void test_copy(void **state)
{
    (void)state;
    for (uint32_t filler = 1; filler < 80; filler += 13) {
        for (uint32_t sample = 0; sample < 20; sample++) {
            struct eval_question q = make("copy", 9, sample, filler);
            const size_t text = (size_t)filler * 64;
            assert_int_equal(q.bytes, text + 64 + 8);
            const char *key = q.prompt + text + 64;
            uint32_t found = 0;
            for (size_t at = 0; at < text; at += 64)
                if (!memcmp(q.prompt + at, key, 8)) {
                    for (size_t k = 0; k < 64; k += 16)
                        assert_true(!memcmp(q.prompt + at + k, key, 8) &&
                                    !memcmp(q.prompt + at + k + 8, q.answers[0], 8));
                    found++;
                }
            assert_int_equal(found, 1);
            assert_true(eval_answer_score(&q, q.answers[0]) == 1);
            char shifted[32] = " ";
            strcat(shifted, q.answers[0]);
            assert_true(eval_answer_score(&q, shifted) == 0);
            free(q.prompt);
        }
    }
}

static void test_answers(void **state)
{
    (void)state;
    struct eval_question q = { .n_answers = 2, .answers = { "plain-lantern", "42" } };
    assert_true(eval_answer_score(&q, "It is Plain-Lantern, I think") == 0.5);
    assert_true(eval_answer_score(&q, "42 and PLAIN-lantern") == 1);
    struct eval_question number = { .n_answers = 1, .first_number = true, .answers = { "12345" } };
    assert_true(eval_answer_score(&number, " 12345.") == 1);
    assert_true(eval_answer_score(&number, "123456") == 0);
    assert_true(eval_answer_score(&number, "1 12345") == 0);
}

static void test_task_names(void **state)
{
    (void)state;
    static struct eval_wanted w[EVAL_TASKS_MAX];
    uint32_t n = 9;
    assert_int_equal(eval_tasks_parse("", w, &n, NULL), ST_OK);
    assert_int_equal(n, 0);
    assert_int_equal(eval_tasks_parse("vt,copy@65536,vt@512", w, &n, NULL), ST_OK);
    assert_int_equal(n, 3);
    assert_string_equal(w[1].text, "copy@65536");
    assert_int_equal(w[1].length, 65536);
    assert_true(eval_task_constructed(w[1].task) && !eval_task_constructed(w[0].task));
    assert_int_equal(w[0].length, 0);
    static const char *const bad[] = { "vt,",    ",vt",   "vt,vt", "niah",
                                       "vt@",    "vt@12", "vt@x",  "vt@99999999999999999999",
                                       "vt@512x" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct error err = { 0 };
        if (eval_tasks_parse(bad[i], w, &n, &err) != ST_INVALID || !strstr(err.text, "--tasks"))
            fail_msg("'%s': '%s'", bad[i], err.text);
    }
}

/* ---- reports ---- */

static void test_report(void **state)
{
    (void)state;
    static struct eval_report r;
    static struct eval_wanted w[EVAL_TASKS_MAX];
    r = (struct eval_report){ .model = "m",
                              .text = "t",
                              .held_out = "h",
                              .length = 256,
                              .n_windows = 2,
                              .rows_scored = 128,
                              .wanted = w,
                              .n_configs = 3,
                              .n_rows = 2 };
    assert_int_equal(eval_tasks_parse("vt", w, &r.n_wanted, NULL), ST_OK);
    const struct eval_score batches[] = { { 16, 15, 32, 30, 0.5 }, { 16, 16, 34, 32, 0.7 } };
    for (int i = 0; i < 2; i++)
        r.rows[i] = (struct eval_row){ .config = i ? "int8:dense" : "bf16:dense",
                                       .offered = true,
                                       .quality = eval_quality(batches, 2),
                                       .kv_bytes_per_token = 100,
                                       .sketch_bytes_per_token = 7,
                                       .decode_tps = NAN };
    r.rows[1].tasks[0] = eval_estimate_share(3, 4);
    json_t *o = eval_json(&r);
    assert_non_null(o);
    const json_t *row = json_array_get(json_object_get(o, "rows"), 1);
    assert_true(json_is_false(json_object_get(o, "complete")));
    expect_near(json_number_value(json_object_get(row, "ppl")), exp(66.0 / 32));
    expect_near(json_number_value(json_object_get(json_object_get(row, "tasks"), "vt")), 0.75);
    assert_int_equal(json_array_size(json_object_get(json_object_get(row, "intervals"), "ppl_ratio")), 2);
    assert_int_equal(json_integer_value(json_object_get(row, "sketch_bytes_per_token")), 7);
    assert_true(json_is_null(json_object_get(row, "decode_tps")));
    json_decref(o);
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    eval_table_begin(&r, out);
    eval_table_row(&r, 1, out);
    fflush(out);
    assert_non_null(strstr(text, "| int8:dense | 7.8"));
    assert_non_null(strstr(text, "| 0.750 ["));
    assert_int_equal(eval_svg(&r, out), ST_OK);
    fclose(out);
    assert_int_equal(times(text, "<circle"), 4);
    const char *svg = strstr(text, "<svg");
    assert_non_null(svg);
    assert_int_equal(times(svg, "nan") + times(svg, "inf\""), 0);
    assert_string_equal(text + bytes - 7, "</svg>\n");
    assert_null(strstr(text, "not offered"));
    free(text);
}

/* As many as there may be, one of them not offered: each has its point in both panels and its name once, on the page. */
static void test_plot_of_many(void **state)
{
    (void)state;
    static struct eval_report r;
    r = (struct eval_report){ .n_windows = 2, .rows_scored = 128, .n_configs = EVAL_CONFIGS_MAX };
    for (r.n_rows = 0; r.n_rows < EVAL_CONFIGS_MAX; r.n_rows++) {
        const double kl = r.n_rows % 9 * 0.02, nll = 32 + kl;
        const struct eval_score batches[] = { { 16, 15, nll, 32, kl }, { 16, 16, nll, 32, kl / 2 } };
        r.rows[r.n_rows] = (struct eval_row){ .config = r.n_rows == 5 ? "kivi2+w128:dense" : "some:dense",
                                              .offered = r.n_rows != 5,
                                              .quality = eval_quality(batches, 2),
                                              .kv_bytes_per_token = 1000 + 100 * (r.n_rows % 5) };
    }
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    assert_int_equal(eval_svg(&r, out), ST_OK);
    fclose(out);
    assert_int_equal(times(text, "<circle"), 2 * EVAL_CONFIGS_MAX);
    assert_int_equal(times(text, "fill=\"white\"/>"), 2 + 1); /* and the page's */
    assert_int_equal(times(text, "some:dense</text>"), EVAL_CONFIGS_MAX - 1);
    assert_int_equal(times(text, "kivi2+w128:dense (not offered)</text>"), 1);
    assert_int_equal(times(text, "nan") + times(text, "inf\""), 0);
    double x, y, height;
    assert_int_equal(sscanf(strstr(text, "height=\""), "height=\"%lf", &height), 1);
    for (const char *at = text; (at = strstr(at, "<text x=\"")); at++) {
        assert_int_equal(sscanf(at, "<text x=\"%lf\" y=\"%lf", &x, &y), 2);
        assert_true(x >= 0 && y >= 0 && y <= height);
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),    cmocka_unit_test(test_intervals), cmocka_unit_test(test_ends),
        cmocka_unit_test(test_configs),    cmocka_unit_test(test_windows),   cmocka_unit_test(test_tasks),
        cmocka_unit_test(test_counts),     cmocka_unit_test(test_copy),      cmocka_unit_test(test_answers),
        cmocka_unit_test(test_task_names), cmocka_unit_test(test_report),    cmocka_unit_test(test_plot_of_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
