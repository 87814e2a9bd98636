/* The tree's programs against the executable specification: tests/golden/spec/trees.txt. */
#include "worker/tree.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/rng.h"

enum { LEAVES_MAX = 128, TEXT_MAX = 4096, WORKERS_MAX = 8 };

/* Stands for item i of a program. */
typedef void item_text(const void *ctx, uint32_t item, char out[TEXT_MAX]);

static void leaf_text(const void *ctx, uint32_t item, char out[TEXT_MAX])
{
    (void)ctx;
    snprintf(out, TEXT_MAX, "%u", item);
}

/* A program as the file writes it: "0 1 + 2 +", with what stands for each item in its place. */
static void program_text(const struct u32_list *list, uint32_t begin, uint32_t end, item_text *item, const void *ctx,
                         char out[TEXT_MAX])
{
    size_t at = 0;
    for (uint32_t i = begin; i < end; i++) {
        char text[TEXT_MAX] = "+";
        if (list->v[i] != TREE_MERGE)
            item(ctx, list->v[i], text);
        at += (size_t)snprintf(out + at, TEXT_MAX - at, "%s%s", i > begin ? " " : "", text);
        assert_true(at < TEXT_MAX);
    }
}

static void fine_text(const void *ctx, uint32_t item, char out[TEXT_MAX])
{
    const struct tree_plan *plan = ctx;
    assert_true(item < plan->n_fine);
    program_text(&plan->leaves, plan->fine[item].begin, plan->fine[item].end, leaf_text, NULL, out);
}

/* Text of each maximal node, from the plan of the worker that reads it. */
struct nodes {
    uint32_t n;
    char text[LEAVES_MAX][TEXT_MAX];
};

static void node_text(const void *ctx, uint32_t item, char out[TEXT_MAX])
{
    const struct nodes *nodes = ctx;
    assert_true(item < nodes->n);
    memcpy(out, nodes->text[item], TEXT_MAX);
}

static void check(const char *line, uint32_t slots, const uint16_t *readers, uint32_t n, const char *whole,
                  const char *maximal)
{
    static struct nodes nodes;
    struct tree_plan plan = { 0 };
    char text[TEXT_MAX], all[TEXT_MAX] = "";
    size_t at = 0;
    uint32_t apart[LEAVES_MAX];
    for (uint32_t i = 0; i < n; i++)
        apart[i] = mix64(n * 1000 + i) % 3 == 0;
    for (uint16_t self = 0; self < WORKERS_MAX; self++) {
        assert_int_equal(tree_build(&plan, n, readers, slots, self, 1 + (n + self) % 9, apart), ST_OK);
        for (uint32_t i = 0; i < plan.n_fine; i++) /* a leaf apart is a fine node of its own */
            for (uint32_t k = plan.fine[i].begin; k < plan.fine[i].end; k++)
                assert_true(plan.leaves.v[k] == TREE_MERGE || !apart[plan.leaves.v[k]] || plan.fine[i].n_leaves == 1);
        nodes.n = plan.n_nodes;
        for (uint32_t i = 0; i < plan.n_nodes; i++) {
            const struct tree_node *node = &plan.nodes[i];
            if (node->reader != self)
                continue;
            program_text(&plan.joins, node->join_begin, node->join_end, fine_text, &plan, nodes.text[i]);
        }
    }
    for (uint32_t i = 0; i < plan.n_nodes; i++)
        at +=
            (size_t)snprintf(all + at, sizeof all - at, "%s%u: %s", i ? ", " : "", plan.nodes[i].reader, nodes.text[i]);
    assert_true(at < sizeof all);
    program_text(&plan.top, 0, plan.top.n, node_text, &nodes, text);
    if (strcmp(text, whole) || strcmp(all, maximal))
        fail_msg("%s\ntree %s\nnodes %s", line, text, all);
    tree_plan_free(&plan);
}

static void test_specification(void **state)
{
    (void)state;
    FILE *in = fopen(LONGSPAN_SOURCE_DIR "/tests/golden/spec/trees.txt", "r");
    char line[TEXT_MAX], whole[TEXT_MAX];
    uint32_t n_cases = 0;
    assert_non_null(in);
    while (fgets(line, sizeof line, in)) {
        if (line[0] == '#')
            continue;
        line[strcspn(line, "\n")] = 0;
        const uint32_t slots = (uint32_t)atoi(line);
        const char *at = strchr(line, '|') + 1, *bar = strchr(at, '|'), *last = strrchr(line, '|');
        uint16_t readers[LEAVES_MAX];
        uint32_t n = 0;
        for (char *next; at < bar - 1; at = next) {
            assert_true(n < LEAVES_MAX);
            readers[n++] = (uint16_t)strtoul(at, &next, 10);
        }
        snprintf(whole, sizeof whole, "%.*s", (int)(last - bar - 3), bar + 2);
        check(line, slots, readers, n, whole, last + 2);
        n_cases++;
    }
    fclose(in);
    assert_true(n_cases >= 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_specification) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
