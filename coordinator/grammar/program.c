#include "coordinator/grammar/program.h"

#include <stdlib.h>
#include <string.h>

void builder_init(struct builder *b, struct program *p, struct error *err)
{
    *b = (struct builder){ .program = p, .err = err };
    *p = (struct program){ 0 };
    for (int i = 0; i < JSON_RULES; i++)
        b->rules[i] = NODE_NONE;
}

void program_deinit(struct program *p)
{
    free(p->nodes);
    *p = (struct program){ 0 };
}

static node_id node_new(struct builder *b, struct node node)
{
    struct program *p = b->program;
    if (b->status)
        return NODE_NONE;
    if (p->n + 2 > GRAMMAR_NODES_MAX) {
        b->status = error_set(b->err, ST_TOO_LARGE, "the schema is too large: over %d nodes", GRAMMAR_NODES_MAX);
        return NODE_NONE;
    }
    if (p->n + 2 > p->room) {
        const uint32_t room = p->room ? 2 * p->room : 256;
        struct node *nodes = realloc(p->nodes, room * sizeof *nodes);
        if (!nodes) {
            b->status = error_set(b->err, ST_NO_MEMORY, "out of memory");
            return NODE_NONE;
        }
        p->nodes = nodes;
        p->room = room;
    }
    if (!p->n) {
        p->nodes[NODE_END] = (struct node){ .op = OP_END };
        p->nodes[NODE_RETURN] = (struct node){ .op = OP_RETURN };
        p->n = 2;
    }
    if (p->n == p->room)
        return node_new(b, node); /* the first two took the room */
    p->nodes[p->n] = node;
    return p->n++;
}

node_id build_range(struct builder *b, uint8_t low, uint8_t high, node_id next)
{
    if (next == NODE_NONE)
        return NODE_NONE;
    return node_new(b, (struct node){ .op = OP_RANGE, .low = low, .high = high, .a = next });
}

node_id build_split(struct builder *b, node_id a, node_id c)
{
    if (a == NODE_NONE || c == NODE_NONE)
        return NODE_NONE;
    return node_new(b, (struct node){ .op = OP_SPLIT, .a = a, .b = c });
}

node_id build_call(struct builder *b, node_id rule, node_id next)
{
    if (rule == NODE_NONE || next == NODE_NONE)
        return NODE_NONE;
    return node_new(b, (struct node){ .op = OP_CALL, .a = rule, .b = next });
}

node_id build_bytes(struct builder *b, const char *bytes, size_t n, node_id next)
{
    for (size_t i = n; i-- > 0;)
        next = build_range(b, (uint8_t)bytes[i], (uint8_t)bytes[i], next);
    return next;
}

node_id build_text(struct builder *b, const char *text, node_id next)
{
    return build_bytes(b, text, strlen(text), next);
}

static bool all_are(const uint8_t *bytes, uint32_t n, uint8_t value)
{
    for (uint32_t i = 0; i < n; i++)
        if (bytes[i] != value)
            return false;
    return true;
}

/* Either may be NODE_NONE, unless the build has failed. */
static node_id either(struct builder *b, node_id a, node_id c)
{
    return a == NODE_NONE ? c : c == NODE_NONE ? a : build_split(b, a, c);
}

node_id build_between(struct builder *b, const uint8_t *low, const uint8_t *high, uint32_t n, uint8_t least,
                      uint8_t most, node_id next)
{
    if (!n || b->status)
        return b->status ? NODE_NONE : next;
    if (*low == *high)
        return build_range(b, *low, *high, build_between(b, low + 1, high + 1, n - 1, least, most, next));
    uint8_t lows[20], highs[20]; /* of any n - 1 bytes */
    memset(lows, least, sizeof lows);
    memset(highs, most, sizeof highs);
    const bool low_edge = !all_are(low + 1, n - 1, least), high_edge = !all_are(high + 1, n - 1, most);
    const int from = *low + low_edge, to = *high - high_edge;
    node_id all = NODE_NONE;
    if (from <= to) {
        node_id rest = next;
        for (uint32_t i = 1; i < n; i++)
            rest = build_range(b, least, most, rest);
        all = build_range(b, (uint8_t)from, (uint8_t)to, rest);
    }
    if (low_edge)
        all = either(b, all, build_range(b, *low, *low, build_between(b, low + 1, highs, n - 1, least, most, next)));
    if (high_edge)
        all = either(b, all, build_range(b, *high, *high, build_between(b, lows, high + 1, n - 1, least, most, next)));
    return b->status ? NODE_NONE : all;
}

node_id build_hole(struct builder *b)
{
    return node_new(b, (struct node){ .op = OP_SPLIT, .a = NODE_NONE, .b = NODE_NONE });
}

void build_fill(struct builder *b, node_id hole, node_id a, node_id c)
{
    if (hole == NODE_NONE || a == NODE_NONE || c == NODE_NONE)
        return;
    b->program->nodes[hole].a = a;
    b->program->nodes[hole].b = c;
}

node_id build_repeat(struct builder *b, node_id rule, node_id between, uint32_t min, uint32_t max, node_id next)
{
    /* after at least one: what may follow it */
    node_id more = next;
    if (max == UINT32_MAX) {
        more = build_hole(b);
        const node_id again = build_call(b, rule, more);
        build_fill(b, more, next, between == NODE_NONE ? again : build_call(b, between, again));
        max = min ? min : 1;
    }
    if (!max)
        return next;
    for (uint32_t i = max; i > 1; i--) {
        node_id item = build_call(b, rule, more);
        if (between != NODE_NONE)
            item = build_call(b, between, item);
        more = i > min ? build_split(b, next, item) : item;
    }
    const node_id first = build_call(b, rule, more);
    return min ? first : build_split(b, next, first);
}

/* ---- the end ---- */

static uint32_t need_of(const struct program *p, const struct node *n)
{
    const struct node *a = &p->nodes[n->a], *b = &p->nodes[n->b];
    switch (n->op) {
    case OP_RANGE:
        return a->need;
    case OP_SPLIT:
        return a->need < b->need ? a->need : b->need;
    case OP_CALL:
        if (a->need == UINT32_MAX || b->need == UINT32_MAX)
            return UINT32_MAX;
        return a->need + 1 > b->need ? a->need + 1 : b->need;
    default:
        return 0;
    }
}

/* Needs only fall; parts are mostly built before what leads to them, so few rounds are enough, and depth bounds them. */
static bool needs_settle(struct program *p)
{
    for (uint32_t i = 0; i < p->n; i++)
        p->nodes[i].need = p->nodes[i].op <= OP_RETURN ? 0 : UINT32_MAX;
    for (uint32_t round = 0; round < 4 * GRAMMAR_DEPTH_MAX; round++) {
        bool changed = false;
        for (uint32_t i = 0; i < p->n; i++) {
            const uint32_t need = need_of(p, &p->nodes[i]);
            changed = changed || need != p->nodes[i].need;
            p->nodes[i].need = need;
        }
        if (!changed)
            return true;
    }
    return false;
}

static bool empty_of(const struct program *p, const struct node *n)
{
    switch (n->op) {
    case OP_RANGE:
        return false;
    case OP_SPLIT:
        return p->nodes[n->a].empty || p->nodes[n->b].empty;
    case OP_CALL:
        return p->nodes[n->a].empty && p->nodes[n->b].empty;
    default:
        return true;
    }
}

/* Part k of where a node leads without a byte; NODE_NONE: there are no more. */
static node_id silent_next(const struct program *p, const struct node *n, int k)
{
    if (n->op == OP_SPLIT && k < 2)
        return k ? n->b : n->a;
    if (n->op == OP_CALL && k < 1 + p->nodes[n->a].empty)
        return k ? n->b : n->a;
    return NODE_NONE;
}

enum { UNSEEN, OPEN, DONE };
struct visit {
    node_id at;
    int k;
};

/* Is there a way round without a byte: a schema that is first of all itself? -1: no memory */
static int goes_round(struct program *p)
{
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t i = 0; i < p->n; i++) {
            const bool empty = empty_of(p, &p->nodes[i]);
            changed = changed || empty != p->nodes[i].empty;
            p->nodes[i].empty = empty;
        }
    }
    struct visit *path = malloc((p->n + 1) * sizeof *path);
    if (!path)
        return -1;
    bool round = false;
    for (uint32_t root = 0; root < p->n && !round; root++) {
        uint32_t n = 0;
        if (p->nodes[root].mark == UNSEEN)
            path[n++] = (struct visit){ root, 0 };
        p->nodes[root].mark = p->nodes[root].mark == UNSEEN ? OPEN : p->nodes[root].mark;
        while (n && !round) {
            struct visit *v = &path[n - 1];
            const node_id next = silent_next(p, &p->nodes[v->at], v->k++);
            if (next == NODE_NONE) {
                p->nodes[v->at].mark = DONE;
                n--;
            } else if (p->nodes[next].mark == OPEN) {
                round = true;
            } else if (p->nodes[next].mark == UNSEEN) {
                p->nodes[next].mark = OPEN;
                path[n++] = (struct visit){ next, 0 };
            }
        }
    }
    free(path);
    return round;
}

enum status program_finish(struct builder *b, node_id start, const char *field)
{
    struct program *p = b->program;
    if (b->status)
        return b->status;
    p->start = start;
    if (!needs_settle(p) || p->nodes[start].need > GRAMMAR_DEPTH_MAX)
        return b->status = error_set(b->err, ST_INVALID, "%s: no finite text fits", field);
    const int round = goes_round(p);
    if (round)
        return b->status = error_set(b->err, round < 0 ? ST_NO_MEMORY : ST_INVALID, "%s: %s", field,
                                     round < 0 ? "out of memory" : "a schema refers to itself with nothing between");
    return ST_OK;
}
