#include "worker/tree.h"

#include <stdbool.h>
#include <stdlib.h>

enum { MIXED = -1, ABSENT = -2 };

uint32_t *u32_list_add(struct u32_list *list, uint32_t n)
{
    if (n > list->room - list->n) {
        const uint32_t room = list->n + n < 32 ? 64 : (list->n + n) * 2;
        uint32_t *v = realloc(list->v, room * sizeof *v);
        if (!v)
            return NULL;
        list->v = v;
        list->room = room;
    }
    list->n += n;
    return list->v + list->n - n;
}

enum status u32_list_push(struct u32_list *list, uint32_t value)
{
    if (list->n == list->room) {
        uint32_t *at = u32_list_add(list, 1);
        if (!at)
            return ST_NO_MEMORY;
        list->n--;
    }
    list->v[list->n++] = value;
    return ST_OK;
}

void u32_list_free(struct u32_list *list)
{
    free(list->v);
    *list = (struct u32_list){ 0 };
}

void tree_plan_free(struct tree_plan *plan)
{
    u32_list_free(&plan->leaves);
    u32_list_free(&plan->joins);
    u32_list_free(&plan->top);
    free(plan->nodes);
    free(plan->fine);
    *plan = (struct tree_plan){ 0 };
}

enum status tree_pairs(struct u32_list *list, uint32_t first, uint32_t n)
{
    if (n == 1)
        return u32_list_push(list, first);
    uint32_t half = 1;
    while (half * 2 < n)
        half *= 2;
    enum status st = tree_pairs(list, first, half);
    if (!st)
        st = tree_pairs(list, first + half, n - half);
    return st ? st : u32_list_push(list, TREE_MERGE);
}

/*
 * A node of the tree: while width < slots, the slots = r mod width; at width == slots, the leaves r + slots * i for i in lo .. hi-1 of one slot.
 */
struct node {
    uint32_t width, r, lo, hi;
};

struct builder {
    struct tree_plan *plan;
    uint32_t n, slots, fine_leaves;
    const uint16_t *readers;
    const uint32_t *apart;
    uint16_t self;
};

static struct node node_at(const struct builder *b, uint32_t width, uint32_t r)
{
    struct node x = { width, r, 0, 0 };
    if (width == b->slots)
        x.hi = r < b->n ? (b->n - r + b->slots - 1) / b->slots : 0;
    return x;
}

static bool node_is_leaf(const struct builder *b, const struct node *x)
{
    return x->width == b->slots && x->hi - x->lo == 1;
}

/* Leaves with numbers = r mod width, or of the run. */
static uint32_t node_leaves(const struct builder *b, const struct node *x)
{
    if (x->width == b->slots)
        return x->hi - x->lo;
    return x->r < b->n ? (b->n - x->r + x->width - 1) / x->width : 0;
}

static void node_split(const struct builder *b, const struct node *x, struct node *left, struct node *right)
{
    if (x->width < b->slots) {
        *left = node_at(b, x->width * 2, x->r);
        *right = node_at(b, x->width * 2, x->r + x->width);
        return;
    }
    uint32_t half = 1;
    while (half * 2 < x->hi - x->lo)
        half *= 2;
    *left = *right = *x;
    left->hi = x->lo + half;
    right->lo = x->lo + half;
}

/* The one worker that reads all of the node's leaves, MIXED, or ABSENT. */
static int node_reader(const struct builder *b, const struct node *x)
{
    const uint32_t step = x->width, first = x->width == b->slots ? x->r + b->slots * x->lo : x->r;
    const uint32_t n = node_leaves(b, x);
    if (!n)
        return ABSENT;
    for (uint32_t i = 1; i < n; i++)
        if (b->readers[first + i * step] != b->readers[first])
            return MIXED;
    return b->readers[first];
}

/* The program over leaf numbers of a whole node. */
static enum status emit_leaves(const struct builder *b, const struct node *x)
{
    if (node_is_leaf(b, x))
        return u32_list_push(&b->plan->leaves, x->r + b->slots * x->lo);
    struct node left, right;
    node_split(b, x, &left, &right);
    const bool l = node_leaves(b, &left) > 0, r = node_leaves(b, &right) > 0;
    enum status st = l ? emit_leaves(b, &left) : ST_OK;
    if (!st && r)
        st = emit_leaves(b, &right);
    return st || !l || !r ? st : u32_list_push(&b->plan->leaves, TREE_MERGE);
}

static bool node_has_apart(const struct builder *b, const struct node *x)
{
    const uint32_t step = x->width, first = x->width == b->slots ? x->r + b->slots * x->lo : x->r;
    const uint32_t n = b->apart ? node_leaves(b, x) : 0;
    for (uint32_t i = 0; i < n; i++)
        if (b->apart[first + i * step])
            return true;
    return false;
}

static enum status emit_fine(const struct builder *b, const struct node *x)
{
    struct tree_plan *p = b->plan;
    const uint32_t leaves = node_leaves(b, x);
    if (node_is_leaf(b, x) || (leaves <= b->fine_leaves && !node_has_apart(b, x))) {
        if (p->n_fine == p->fine_room) {
            const uint32_t room = p->fine_room ? p->fine_room * 2 : 16;
            struct tree_fine *fine = realloc(p->fine, room * sizeof *fine);
            if (!fine)
                return ST_NO_MEMORY;
            p->fine = fine;
            p->fine_room = room;
        }
        const uint32_t index = p->n_fine++, begin = p->leaves.n;
        const enum status st = emit_leaves(b, x);
        p->fine[index] = (struct tree_fine){ begin, p->leaves.n, leaves };
        return st ? st : u32_list_push(&p->joins, index);
    }
    struct node left, right;
    node_split(b, x, &left, &right);
    const bool l = node_leaves(b, &left) > 0, r = node_leaves(b, &right) > 0;
    enum status st = l ? emit_fine(b, &left) : ST_OK;
    if (!st && r)
        st = emit_fine(b, &right);
    return st || !l || !r ? st : u32_list_push(&p->joins, TREE_MERGE);
}

static enum status emit_node(const struct builder *b, const struct node *x, uint16_t reader)
{
    struct tree_plan *p = b->plan;
    if (p->n_nodes == p->nodes_room) {
        const uint32_t room = p->nodes_room ? p->nodes_room * 2 : 16;
        struct tree_node *nodes = realloc(p->nodes, room * sizeof *nodes);
        if (!nodes)
            return ST_NO_MEMORY;
        p->nodes = nodes;
        p->nodes_room = room;
    }
    struct tree_node node = { .reader = reader, .fine_begin = p->n_fine, .join_begin = p->joins.n };
    const enum status st = reader == b->self ? emit_fine(b, x) : ST_OK;
    node.fine_end = p->n_fine;
    node.join_end = p->joins.n;
    p->nodes[p->n_nodes] = node;
    return st ? st : u32_list_push(&p->top, p->n_nodes++);
}

static enum status visit(const struct builder *b, const struct node *x)
{
    const int reader = node_reader(b, x);
    if (reader == ABSENT)
        return ST_OK;
    if (reader != MIXED)
        return emit_node(b, x, (uint16_t)reader);
    struct node left, right;
    node_split(b, x, &left, &right);
    const bool l = node_leaves(b, &left) > 0, r = node_leaves(b, &right) > 0;
    enum status st = l ? visit(b, &left) : ST_OK;
    if (!st && r)
        st = visit(b, &right);
    return st || !l || !r ? st : u32_list_push(&b->plan->top, TREE_MERGE);
}

enum status tree_build(struct tree_plan *plan, uint32_t n_leaves, const uint16_t *readers, uint32_t slots,
                       uint16_t self, uint32_t fine_leaves, const uint32_t *apart)
{
    plan->leaves.n = plan->joins.n = plan->top.n = plan->n_nodes = plan->n_fine = 0;
    const struct builder b = { plan, n_leaves, slots, fine_leaves, readers, apart, self };
    const struct node root = node_at(&b, 1, 0);
    return n_leaves ? visit(&b, &root) : ST_OK;
}
