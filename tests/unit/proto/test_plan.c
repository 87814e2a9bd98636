#include "proto/plan.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "common/clock.h"
#include "tests/unit/proto/plans.h"

static uint64_t seed;
static struct plan_case cases;
static struct result_case results;

static void plans_go_there_and_back(void **state)
{
    (void)state;
    struct rng rng = { .seed = seed };
    for (int i = 0; i < 300; i++) {
        const struct plan *p = plan_case_make(&cases, &rng, rng_below(&rng, SEQS_MAX + 1), rng_below(&rng, 2));
        uint8_t *bytes;
        size_t n;
        struct plan *q;
        struct error err = { 0 };
        assert_int_equal(plan_encode(p, &bytes, &n), ST_OK);
        if (plan_decode(bytes, n, &q, &err))
            fail_msg("seed %llu round %d: %s", (unsigned long long)seed, i, err.text);
        if (!plan_equal(p, q))
            fail_msg("seed %llu round %d: the plan came back changed", (unsigned long long)seed, i);
        free(q);
        free(bytes);
    }
}

static void results_go_there_and_back(void **state)
{
    (void)state;
    struct rng rng = { .seed = seed + 1 };
    for (int i = 0; i < 300; i++) {
        struct result *r = result_case_make(&results, &rng, rng_below(&rng, 200));
        if (r->n_rows)
            results.rows[0].logprob = -INFINITY; /* an underflowed probability is one */
        uint8_t *bytes;
        size_t n;
        struct result *q;
        struct error err = { 0 };
        assert_int_equal(result_encode(r, &bytes, &n), ST_OK);
        if (result_decode(bytes, n, &q, &err))
            fail_msg("seed %llu round %d: %s", (unsigned long long)seed, i, err.text);
        assert_true(result_equal(r, q));
        free(q);
        free(bytes);
    }
}

/* Flips, cuts and splices: refused, or a plan that keeps the rules (it decodes again from its own encoding). */
static void mutated_plans_are_refused_or_sound(void **state)
{
    (void)state;
    struct rng rng = { .seed = seed + 2 };
    int sound = 0;
    for (int i = 0; i < 4000; i++) {
        const struct plan *p = plan_case_make(&cases, &rng, 1 + rng_below(&rng, 3), i % 2);
        uint8_t *bytes;
        size_t n;
        assert_int_equal(plan_encode(p, &bytes, &n), ST_OK);
        for (uint32_t k = 1 + rng_below(&rng, 4); k; k--)
            switch (rng_below(&rng, 3)) {
            case 0:
                bytes[rng_below(&rng, (uint32_t)n)] ^= (uint8_t)(1 << rng_below(&rng, 8));
                break;
            case 1:
                bytes[rng_below(&rng, (uint32_t)n)] = (uint8_t)rng_next(&rng);
                break;
            default:
                n = 1 + rng_below(&rng, (uint32_t)n);
            }
        struct plan *q, *again;
        struct error err = { 0 };
        if (plan_decode(bytes, n, &q, &err) == ST_OK) {
            sound++;
            uint8_t *bytes2;
            size_t n2;
            assert_int_equal(plan_encode(q, &bytes2, &n2), ST_OK);
            assert_int_equal(plan_decode(bytes2, n2, &again, &err), ST_OK);
            assert_true(plan_equal(q, again));
            free(again);
            free(bytes2);
            free(q);
        } else {
            assert_true(err.text[0] != '\0');
        }
        free(bytes);
    }
    print_message("%d of 4000 mutated plans were sound\n", sound);
}

/* One good plan: two sequences, leaves of two blocks, members 1 and 5. Each case breaks one rule. */
struct broken {
    const char *field; /* that the refusal must name */
    int rule;
};

static const kv_handle good_table[] = { 11, 12, 13, 14, 15 };
static const kv_handle no_block[] = { 11, 0, 13, 14, 15 };
static const uint16_t good_readers[] = { 1, 5, 1 }, strange_readers[] = { 1, 6, 1 };
static const uint16_t good_members[] = { 1, 5 }, unsorted_members[] = { 5, 1 }, none_member[] = { 1, UINT16_MAX };
static const int32_t good_tokens[] = { 1, 2, 3, 4 }, sampled[] = { -1 }, late_sampled[] = { 1, -1, 3, 4 };
static const int32_t negative[] = { -7, 2, 3, 4 }, good_targets[] = { -1, 5, 6, 7 }, bad_targets[] = { -2, 5, 6, 7 };

static const struct plan_edit some_adds[] = { { 3, 1 }, { 4, -2 } }, unordered_adds[] = { { 4, 1 }, { 4, -2 } };
static const struct plan_edit infinite_adds[] = { { 3, INFINITY } }, strange_adds[] = { { PLAN_VOCAB_MAX, 1 } };
static const uint8_t no_bits[2] = { 0 }, many_bits[PLAN_VOCAB_MAX / 8 + 1] = { 1 };
static const struct plan_edits no_edits = { .repetition = 1 },
                               good_edits = { .n_adds = 2, .adds = some_adds, .repetition = 1 },
                               unordered_edits = { .n_adds = 2, .adds = unordered_adds, .repetition = 1 },
                               infinite_edits = { .n_adds = 1, .adds = infinite_adds, .repetition = 1 },
                               zero_repetition = { .n_adds = 2, .adds = some_adds },
                               nothing_allowed = { .allowed_bytes = 2, .allowed = no_bits, .repetition = 1 },
                               strange_token = { .n_adds = 1, .adds = strange_adds, .repetition = 1 },
                               large_set = { .allowed_bytes = sizeof many_bits, .allowed = many_bits, .repetition = 1 };

static const char long_label[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

static void break_rule(int rule, struct plan *p, struct plan_seq *s, struct plan_run *r)
{
    switch (rule) {
    case 1:
        p->leaf_blocks = 0;
        break;
    case 2:
        p->leaf_blocks = 1 << 20;
        break;
    case 3:
        p->deadline_ms = 0;
        break;
    case 4:
        p->n_members = 0;
        break;
    case 5:
        p->members = unsorted_members;
        break;
    case 6:
        p->members = none_member;
        break;
    case 7:
        p->n_drops = 2, p->drops = no_block;
        break;
    case 8:
        s[1].id = s[0].id;
        break;
    case 9:
        s[0].table_from = 1;
        break;
    case 10:
        s[1].reader_from = PLAN_POSITIONS_MAX;
        break;
    case 11:
        s[1].table_from = UINT32_MAX - 1;
        break;
    case 12:
        s[0].table = no_block;
        break;
    case 13:
        s[0].readers = strange_readers;
        break;
    case 14:
        s[0].sampling.temperature = -1;
        break;
    case 15:
        s[0].sampling.temperature = NAN;
        break;
    case 16:
        s[0].sampling.top_p = 1.5f;
        break;
    case 17:
        r[0].seq = 2;
        break;
    case 18:
        r[0].pos = PLAN_POSITIONS_MAX - 2;
        break;
    case 19:
        r[0].pos = UINT32_MAX - 2;
        break;
    case 20:
        r[0].pos = 126;
        break;
    case 21:
        r[0].home = 7;
        break;
    case 22:
        r[0].cls = 2;
        break;
    case 23:
        r[0].want = 8;
        break;
    case 24:
        r[0].n_top = PLAN_TOP_MAX + 1;
        break;
    case 25:
        r[0].tokens = late_sampled;
        break;
    case 26:
        r[0].tokens = negative;
        break;
    case 27:
        r[1].cls = ROW_PROMPT;
        break;
    case 28:
        r[0].targets = bad_targets;
        break;
    case 29:
        r[0].pos = 256, r[0].home = 1, r[1].seq = 0, r[1].pos = 252;
        break;
    case 30:
        r[0].pos = 321;
        break;
    case 31:
        s[0].n_readers = 1;
        break;
    case 32:
        r[0].home = 1;
        break;
    case 33:
        s[1].sampling.top_p = 0;
        break;
    case 34:
        s[1].sampling.min_p = -0.5f;
        break;
    case 35:
        s[1].sampling.min_p = NAN;
        break;
    case 36:
        r[1].edits = &no_edits;
        break;
    case 37:
        r[0].edits = &good_edits; /* samples nothing */
        break;
    case 38:
        r[1].edits = &unordered_edits;
        break;
    case 39:
        r[1].edits = &infinite_edits;
        break;
    case 40:
        r[1].edits = &zero_repetition;
        break;
    case 41:
        r[1].edits = &nothing_allowed;
        break;
    case 42:
        r[1].edits = &strange_token;
        break;
    case 43:
        r[1].edits = &large_set;
        break;
    case 44:
        s[1].density = PLAN_DENSITY_ONE + 1;
        break;
    case 45:
        s[0].cast = (uint64_t)1 << 63;
        break;
    case 46:
        s[1].label = long_label, s[1].label_bytes = sizeof long_label - 1;
        break;
    case 47:
        s[1].label = "a b", s[1].label_bytes = 3;
        break;
    case 48:
        s[1].label = "a\"\n", s[1].label_bytes = 3;
        break;
    }
}

static void each_rule_is_kept(void **state)
{
    (void)state;
    static const struct broken broken[] = {
        { NULL, 0 }, /* nothing broken: good */
        { "leaf_blocks", 1 },
        { "leaf_blocks", 2 },
        { "deadline_ms", 3 },
        { "members", 4 },
        { "members", 5 },
        { "members", 6 },
        { "drops", 7 },
        { "seq_id", 8 },
        { "seq_fresh", 9 },
        { "readers", 10 },
        { "tables", 11 },
        { "tables[1]", 12 },
        { "readers[1]", 13 },
        { "seq_temperature", 14 },
        { "seq_temperature", 15 },
        { "seq_top_p", 16 },
        { "run_seq", 17 },
        { "run_pos", 18 },
        { "run_pos", 19 },
        { "run_n_rows", 20 },
        { "run_home", 21 },
        { "run_cls", 22 },
        { "run_want", 23 },
        { "run_n_top", 24 },
        { "tokens", 25 },
        { "tokens", 26 },
        { "tokens", 27 },
        { "targets", 28 },
        { "run_pos[1]", 29 },
        { "run_pos[0]", 30 },
        { "run_pos[0]", 31 },
        { "run_home[0]", 32 },
        { "seq_top_p[1]", 33 },
        { "seq_min_p[1]", 34 },
        { "seq_min_p[1]", 35 },
        { "edit_n_adds", 36 },
        { "edit_run[0]", 37 },
        { "add_token[1]", 38 },
        { "add_value[0]", 39 },
        { "edit_repetition", 40 },
        { "plan.sets", 41 },
        { "add_token[0]", 42 },
        { "edit_allowed_bytes", 43 },
        { "seq_density[1]", 44 },
        { "seq_cast[0]", 45 },
        { "seq_n_label[1]", 46 },
        { "plan.labels", 47 },
        { "plan.labels", 48 },
    };
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        struct plan_seq seqs[] = {
            { .id = 70,
              .fresh = true,
              .n_table = 5,
              .table = good_table,
              .n_readers = 3,
              .readers = good_readers,
              .sampling = { 1, 1, 0, 9, 0 } },
            { .id = 71,
              .table_from = 9,
              .n_table = 1,
              .table = good_table,
              .reader_from = 4,
              .n_readers = 1,
              .readers = good_readers,
              .sampling = { 1, 1, 0, 9, 0 } },
        };
        struct plan_run runs[] = {
            { .seq = 0,
              .pos = 130,
              .n_rows = 4,
              .tokens = good_tokens,
              .targets = good_targets,
              .home = 5,
              .want = WANT_SCORE,
              .n_top = 3 },
            { .seq = 1,
              .pos = 600,
              .n_rows = 1,
              .tokens = sampled,
              .home = 1,
              .cls = ROW_GENERATED,
              .want = WANT_SAMPLE },
        };
        struct plan p = { .epoch = 1,
                          .number = 2,
                          .leaf_blocks = 2,
                          .deadline_ms = 1000,
                          .n_members = 2,
                          .n_seqs = 2,
                          .n_runs = 2,
                          .members = good_members,
                          .seqs = seqs,
                          .runs = runs };
        break_rule(broken[i].rule, &p, seqs, runs);
        uint8_t *bytes;
        size_t n;
        struct plan *q;
        struct error err = { 0 };
        assert_int_equal(plan_encode(&p, &bytes, &n), ST_OK);
        const enum status st = plan_decode(bytes, n, &q, &err);
        if (!broken[i].field) {
            if (st)
                fail_msg("the good plan: %s", err.text);
            free(q);
        } else if (st != ST_CORRUPT || !strstr(err.text, broken[i].field)) {
            fail_msg("rule %d: status %d, \"%s\" does not name %s", broken[i].rule, st, err.text, broken[i].field);
        }
        free(bytes);
    }
}

static void broken_results_are_refused(void **state)
{
    (void)state;
    struct result_top top = { 3, -1 };
    const float bad[] = { NAN, INFINITY };
    for (int i = 0; i < 8; i++) {
        struct result_row row = {
            .seq = 1, .pos = 2, .token = 3, .logprob = -1, .target_logprob = 0, .n_top = 1, .top = &top
        };
        struct result r = { .n_rows = 1, .rows = &row };
        top = (struct result_top){ 3, -1 };
        const char *field = "row_logprob";
        switch (i) {
        case 0:
            row.pos = PLAN_POSITIONS_MAX;
            field = "row_pos";
            break;
        case 1:
            row.token = -2;
            field = "row_token";
            break;
        case 2:
        case 3:
            row.logprob = bad[i % 2];
            break;
        case 4:
        case 5:
            row.target_logprob = bad[i % 2];
            break;
        case 6:
            top.logprob = NAN;
            field = "top_logprob";
            break;
        default:
            top.token = UINT32_MAX;
            field = "top_logprob";
            break;
        }
        uint8_t *bytes;
        size_t n;
        struct result *q;
        struct error err = { 0 };
        assert_int_equal(result_encode(&r, &bytes, &n), ST_OK);
        assert_int_equal(result_decode(bytes, n, &q, &err), ST_CORRUPT);
        if (!strstr(err.text, field))
            fail_msg("case %d: \"%s\" does not name %s", i, err.text, field);
        free(bytes);
    }
}

/* A few bytes cannot ask for much memory, and lists must have the lengths that were said. */
static void short_messages_take_little(void **state)
{
    (void)state;
    uint8_t junk[4096];
    struct rng rng = { .seed = seed + 3 };
    struct plan *p;
    struct result *r;
    for (int i = 0; i < 2000; i++) {
        const size_t n = rng_below(&rng, sizeof junk);
        for (size_t k = 0; k < n; k++)
            junk[k] = (uint8_t)rng_next(&rng);
        assert_int_not_equal(plan_decode(junk, n, &p, NULL), ST_OK);
        if (result_decode(junk, n, &r, NULL) == ST_OK)
            free(r); /* an empty message is an empty result */
    }
    memset(junk, 0x08, sizeof junk); /* epoch 8, two thousand times */
    assert_int_not_equal(plan_decode(junk, sizeof junk, &p, NULL), ST_OK);
}

static void a_decode_plan_is_small(void **state)
{
    (void)state;
    struct rng rng = { .seed = seed + 4 };
    size_t most = 0;
    for (int round = 0; round < 200; round++) {
        const struct plan *p = plan_case_make(&cases, &rng, 16, true);
        uint8_t *bytes;
        size_t n;
        assert_int_equal(plan_encode(p, &bytes, &n), ST_OK);
        free(bytes);
        most = n > most ? n : most;
    }
    print_message("16 sequences: at most %zu bytes\n", most);
    assert_true(most < 1600); /* 100 a sequence, with ids, seeds and settings of the greatest numbers */
}

int main(void)
{
    seed = (uint64_t)clock_ns();
    print_message("seed %llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_go_there_and_back),
        cmocka_unit_test(results_go_there_and_back),
        cmocka_unit_test(mutated_plans_are_refused_or_sound),
        cmocka_unit_test(each_rule_is_kept),
        cmocka_unit_test(broken_results_are_refused),
        cmocka_unit_test(short_messages_take_little),
        cmocka_unit_test(a_decode_plan_is_small),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
