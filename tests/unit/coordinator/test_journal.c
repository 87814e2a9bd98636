#include "coordinator/gateway/journal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/file.h"

enum { TOKENS = 40 };

static const struct digest context = { { 1, 2, 3 } };

/* Choice `index` of a request: token i is 100 * index + i, with i % 3 alternatives. */
static void fill(struct generation *g, uint32_t index)
{
    *g = (struct generation){ .index = index };
    g->tokens = calloc(TOKENS, sizeof *g->tokens);
    g->tops = calloc(3 * TOKENS, sizeof *g->tops);
    for (uint32_t i = 0; i < TOKENS; i++) {
        g->tokens[i] = (struct generation_token){ .id = (int32_t)(100 * index + i),
                                                  .logprob = -0.5f * (float)i,
                                                  .n_top = (uint8_t)(i % 3),
                                                  .top_from = g->n_tops };
        for (uint32_t k = 0; k < i % 3; k++)
            g->tops[g->n_tops++] = (struct result_top){ i + k, -1.0f * (float)k };
    }
}

static void drop(struct generation *g)
{
    free(g->tokens);
    free(g->tops);
}

static void check(const struct journal *j, uint32_t index, size_t n)
{
    assert_true(j->n > index);
    assert_int_equal(j->told[index].n, n ? n - 1 : 0); /* but for the last */
    for (size_t i = 0; i + 1 < n; i++) {
        const struct result_row *row = &j->told[index].rows[i];
        assert_int_equal(row->token, 100 * index + i);
        assert_true(row->logprob == -0.5f * (float)i);
        assert_int_equal(row->n_top, i % 3);
        for (uint32_t k = 0; k < row->n_top; k++)
            assert_true(row->top[k].token == i + k && row->top[k].logprob == -1.0f * (float)k);
    }
}

/* Pieces of two choices; the second is written again from its fifth token on, as by a second run. */
static void pieces(struct text *out)
{
    struct generation a, b;
    fill(&a, 0);
    fill(&b, 1);
    journal_begin(&context, out);
    a.n_sampled = 7;
    journal_add(&a, 0, out);
    b.n_sampled = 9;
    journal_add(&b, 0, out);
    b.n_sampled = 20;
    journal_add(&b, 4, out);
    a.n_sampled = TOKENS;
    journal_add(&a, 7, out);
    journal_add(&a, TOKENS, out); /* nothing */
    assert_false(out->bad);
    drop(&a);
    drop(&b);
}

static void goes_there_and_back(void **state)
{
    (void)state;
    struct text data = { 0 };
    struct journal *j;
    pieces(&data);
    assert_int_equal(journal_read(data.data, data.n, &context, &j), ST_OK);
    assert_int_equal(j->bytes, data.n);
    assert_int_equal(j->n, 2);
    check(j, 0, TOKENS);
    check(j, 1, 20);
    journal_free(j);
    assert_int_equal(journal_read(data.data, data.n, &(struct digest){ { 9 } }, &j), ST_CORRUPT);
    text_free(&data);
}

/* Cut or changed anywhere: what is told is a beginning of what was written. */
static void torn_ends_are_cut(void **state)
{
    (void)state;
    struct text data = { 0 };
    struct journal *j;
    pieces(&data);
    for (size_t n = 0; n < data.n; n++) {
        const enum status st = journal_read(data.data, n, &context, &j);
        assert_int_equal(st, n < 24 ? ST_CORRUPT : ST_OK);
        if (st)
            continue;
        assert_true(j->bytes <= n);
        assert_true(j->told[0].n == 0 || j->told[0].n == 6 || j->told[0].n == TOKENS - 1);
        journal_free(j);
    }
    for (size_t n = 24; n < data.n; n++) {
        data.data[n] ^= 0x10;
        if (!journal_read(data.data, data.n, &context, &j)) {
            assert_true(j->bytes <= n);
            if (j->n && j->told[0].n)
                check(j, 0, j->told[0].n + 1);
            journal_free(j);
        }
        data.data[n] ^= 0x10;
    }
    text_free(&data);
}

static void files(void **state)
{
    (void)state;
    char path[] = "/tmp/longspan-journal-XXXXXX";
    struct journal *j;
    struct text data = { 0 };
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    unlink(path);
    assert_int_equal(journal_open(path, &context, &j), ST_NOT_FOUND); /* and begun */
    pieces(&data);
    assert_int_equal(journal_append(path, data.data + 24, data.n - 24, NULL), ST_OK);
    assert_int_equal(journal_append(path, "torn", 4, NULL), ST_OK);
    assert_int_equal(journal_open(path, &context, &j), ST_OK);
    check(j, 0, TOKENS);
    journal_free(j);
    assert_int_equal(journal_append(path, data.data + 24, 0, NULL), ST_OK);
    char *back;
    size_t n;
    assert_int_equal(file_read(path, 1 << 20, &back, &n, NULL), ST_OK);
    assert_int_equal(n, data.n); /* the torn end is gone */
    free(back);
    assert_int_equal(journal_open(path, &(struct digest){ { 5 } }, &j), ST_CORRUPT); /* begun anew, for that context */
    assert_int_equal(journal_open(path, &(struct digest){ { 5 } }, &j), ST_OK);
    assert_int_equal(j->n, 0);
    journal_free(j);
    unlink(path);
    struct error err = { 0 };
    assert_int_equal(journal_append("/nowhere/at/all", "x", 1, &err), ST_IO);
    assert_non_null(strstr(err.text, "/nowhere/at/all"));
    text_free(&data);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(goes_there_and_back), cmocka_unit_test(torn_ends_are_cut),
                                        cmocka_unit_test(files) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
