#include "coordinator/tokenizer/added.h"

#include <stdlib.h>

/* A trie; the children of a node are a list. Node 0 is the root, as a link 0 means none. */
struct node {
    uint32_t child, sibling;
    int32_t id; /* -1: no token ends here */
    uint8_t byte;
    bool control; /* the token that ends here */
};

struct added {
    struct node *nodes;
    size_t n_nodes;
    bool first[2][256]; /* [controls][byte]: a token that is looked for begins so */
};

static bool is_control(const struct model_token *t)
{
    return t->type == MODEL_TOKEN_CONTROL || t->type == MODEL_TOKEN_UNKNOWN;
}

static bool is_added(const struct model_token *t)
{
    return t->bytes > 0 && (is_control(t) || t->type == MODEL_TOKEN_USER);
}

static uint32_t child_of(const struct added *a, uint32_t node, uint8_t byte)
{
    uint32_t at = a->nodes[node].child;
    while (at && a->nodes[at].byte != byte)
        at = a->nodes[at].sibling;
    return at;
}

static void insert(struct added *a, const struct model_token *t, int32_t id)
{
    uint32_t node = 0;
    for (uint32_t i = 0; i < t->bytes; i++) {
        const uint8_t byte = (uint8_t)t->text[i];
        uint32_t next = child_of(a, node, byte);
        if (!next) {
            next = (uint32_t)a->n_nodes++;
            a->nodes[next] = (struct node){ .sibling = a->nodes[node].child, .id = -1, .byte = byte };
            a->nodes[node].child = next;
        }
        node = next;
    }
    a->nodes[node].id = id;
    a->nodes[node].control = is_control(t);
    a->first[1][(uint8_t)t->text[0]] = true;
    if (!is_control(t))
        a->first[0][(uint8_t)t->text[0]] = true;
}

enum status added_new(const struct model_vocab *v, struct added **added_out)
{
    size_t n = 1;
    for (uint32_t i = 0; i < v->n_tokens; i++)
        n += is_added(&v->tokens[i]) ? v->tokens[i].bytes : 0;
    struct added *a = calloc(1, sizeof *a);
    if (!a)
        return ST_NO_MEMORY;
    a->nodes = n <= UINT32_MAX ? calloc(n, sizeof *a->nodes) : NULL;
    if (!a->nodes) {
        added_free(a);
        return ST_NO_MEMORY;
    }
    a->nodes[0].id = -1;
    a->n_nodes = 1;
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        if (is_added(&v->tokens[i]))
            insert(a, &v->tokens[i], (int32_t)i);
    }
    *added_out = a;
    return ST_OK;
}

void added_free(struct added *a)
{
    if (!a)
        return;
    free(a->nodes);
    free(a);
}

/* The longest token that begins at p. */
static int32_t match_at(const struct added *a, const uint8_t *p, const uint8_t *end, bool controls,
                        const uint8_t **end_out)
{
    int32_t id = -1;
    uint32_t node = 0;
    while (p < end && (node = child_of(a, node, *p++)) != 0) {
        if (a->nodes[node].id >= 0 && (controls || !a->nodes[node].control)) {
            id = a->nodes[node].id;
            *end_out = p;
        }
    }
    return id;
}

int32_t added_find(const struct added *a, const uint8_t *p, const uint8_t *end, bool controls,
                   const uint8_t **start_out, const uint8_t **end_out)
{
    const bool *first = a->first[controls];
    for (; p < end; p++) {
        if (!first[*p])
            continue;
        const int32_t id = match_at(a, p, end, controls, end_out);
        if (id >= 0) {
            *start_out = p;
            return id;
        }
    }
    return -1;
}
