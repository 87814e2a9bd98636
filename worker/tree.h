#ifndef LONGSPAN_WORKER_TREE_H
#define LONGSPAN_WORKER_TREE_H

/*
 * The fixed tree in which partials meet (docs/design.md, "Leaf, slot, tree"), as programs of a stack machine. Node (j, r) covers the slots
 * = r mod 2^j and splits into (j+1, r) and (j+1, r + 2^j); a slot's leaves join by adjacent pairs; absent leaves are left out. Everything
 * here follows from the number of leaves and from who reads them, so every worker derives the same programs from the plan.
 */

#include <stdint.h>

#include "common/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A program: items in tree order, and TREE_MERGE, which replaces the two topmost partials a, b of the stack by merge(a, b). */
enum { TREE_MERGE = UINT32_MAX };

struct u32_list {
    uint32_t *v;
    uint32_t n, room;
};
enum status u32_list_push(struct u32_list *list, uint32_t value);
/* n more places, not yet written; NULL: no memory */
uint32_t *u32_list_add(struct u32_list *list, uint32_t n);
void u32_list_free(struct u32_list *list);

/* A maximal node: all its leaves have one reader. */
struct tree_node {
    uint16_t reader;               /* who evaluates it */
    uint32_t fine_begin, fine_end; /* if it is self's: the fine nodes it is split into */
    uint32_t join_begin, join_end; /* and the program in tree_plan.joins that joins them */
};

struct tree_fine {
    uint32_t begin, end; /* program in tree_plan.leaves */
    uint32_t n_leaves;
};

/*
 * What one group of rows (a sequence's rows in one own leaf) needs: its maximal nodes, and how they join. Buffers are reused by tree_build.
 */
struct tree_plan {
    struct u32_list leaves;  /* programs over leaf numbers */
    struct u32_list joins;   /* programs over fine nodes, counted from 0 in the plan */
    struct u32_list top;     /* program over nodes: the whole tree before the own leaf */
    struct tree_node *nodes; /* maximal nodes, in tree order */
    struct tree_fine *fine;
    uint32_t n_nodes, nodes_room, n_fine, fine_room;
};
void tree_plan_free(struct tree_plan *plan);

/*
 * readers[n_leaves]: worker that reads leaf i. self: whose nodes get programs and are split into fine nodes of at most fine_leaves leaves, so
 * that several threads can share a node (bits stay: a fine node is a node of the same tree). slots: a power of two. apart: NULL, or for each leaf
 * whether it is to be a fine node of its own (not 0).
 */
enum status tree_build(struct tree_plan *plan, uint32_t n_leaves, const uint16_t *readers, uint32_t slots,
                       uint16_t self, uint32_t fine_leaves, const uint32_t *apart);

/* Appends the program that joins items first .. first + n - 1 by adjacent pairs. */
enum status tree_pairs(struct u32_list *list, uint32_t first, uint32_t n);

#ifdef __cplusplus
}
#endif
#endif
