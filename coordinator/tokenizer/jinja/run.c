#include <stdio.h>
#include <string.h>

#include "coordinator/tokenizer/jinja/builtin.h"
#include "coordinator/tokenizer/jinja/eval.h"

/* ---- output ---- */

struct jinja_value jinja_capture(struct jinja_run *r, const struct jinja_node *body)
{
    struct jinja_text *const before = r->out;
    const size_t cap = r->out_cap;
    const struct jinja_value v = jinja_text_new(r);
    if (r->st)
        return v;
    r->out = v.text;
    r->out_cap = 0;
    jinja_run_body(r, body); /* break and continue do not lead out of it: the parser saw to that for macros */
    r->out = before;
    r->out_cap = cap;
    return v;
}

static void write_value(struct jinja_run *r, struct jinja_value v)
{
    v = jinja_str(r, v);
    if (!r->st)
        jinja_text_add_text(r, r->out, &r->out_cap, v.text);
}

/* ---- assignment ---- */

static void assign(struct jinja_run *r, const struct jinja_node *target, struct jinja_value v)
{
    if (r->st)
        return;
    if (target->kind == JINJA_NAME) {
        jinja_dict_put_name(r, r->scope->names, target->text, v);
        return;
    }
    r->line = target->line;
    if (target->kind == JINJA_GETATTR) {
        const struct jinja_value ns = jinja_eval(r, target->a);
        if (!r->st && ns.kind != JINJA_IS_NAMESPACE)
            jinja_fail(r, ST_INVALID, "cannot assign attribute on non-namespace object");
        jinja_dict_put_name(r, ns, target->text, v);
        return;
    }
    const struct jinja_list *items = jinja_iterate(r, v);
    size_t i = 0;
    for (const struct jinja_node *t = target->list; t && items && i < items->n; t = t->next)
        assign(r, t, items->items[i++]);
    size_t wanted = 0;
    for (const struct jinja_node *t = target->list; t; t = t->next)
        wanted++;
    if (items && items->n != wanted)
        jinja_fail(r, ST_INVALID, "%zu values for %zu names", items->n, wanted);
}

/* ---- loops ---- */

static struct jinja_value loop_of(struct jinja_run *r, const struct jinja_list *items, size_t i)
{
    struct jinja_loop *loop = jinja_new(r, 1, sizeof *loop);
    if (!loop)
        return jinja_undefined("");
    *loop = (struct jinja_loop){ .items = items, .i = i };
    return (struct jinja_value){ .kind = JINJA_IS_LOOP, .loop = loop };
}

/* The items for which the loop's condition holds. */
static const struct jinja_list *loop_items(struct jinja_run *r, const struct jinja_node *n)
{
    const struct jinja_list *all = jinja_iterate(r, jinja_eval(r, n->b));
    if (!n->c || !all)
        return all;
    struct jinja_scope *const before = r->scope;
    const struct jinja_value kept = jinja_list(r, JINJA_IS_LIST, 0);
    for (size_t i = 0; i < all->n && !r->st; i++) {
        r->scope = jinja_scope_new(r, before);
        if (!r->scope)
            break;
        assign(r, n->a, all->items[i]);
        if (jinja_truth(jinja_eval(r, n->c)))
            jinja_list_add(r, kept, all->items[i]);
    }
    r->scope = before;
    return r->st ? NULL : kept.list;
}

static enum jinja_jump run_for(struct jinja_run *r, const struct jinja_node *n)
{
    struct jinja_scope *const before = r->scope;
    const struct jinja_list *items = loop_items(r, n);
    if (!items)
        return JINJA_GO_ON;
    const size_t count = items->n;
    for (size_t i = 0; i < count && !r->st; i++) {
        r->scope = jinja_scope_new(r, before);
        if (!r->scope)
            break;
        const struct jinja_value loop = loop_of(r, items, i);
        assign(r, n->a, items->items[i]);
        if (n->a->kind != JINJA_NAME || strcmp(n->a->text, "loop") != 0)
            jinja_dict_put_name(r, r->scope->names, "loop", loop);
        if (!r->st && jinja_run_body(r, n->list) == JINJA_JUMP_BREAK)
            break;
    }
    r->scope = before;
    return count == 0 ? jinja_run_body(r, n->other) : JINJA_GO_ON;
}

/* ---- the other statements ---- */

static void define_macro(struct jinja_run *r, const struct jinja_node *n)
{
    struct jinja_macro *m = jinja_new(r, 1, sizeof *m);
    if (!m)
        return;
    *m = (struct jinja_macro){ .node = n, .scope = r->scope };
    jinja_dict_put_name(r, r->scope->names, n->text, (struct jinja_value){ .kind = JINJA_IS_MACRO, .macro = m });
}

static void run_call_block(struct jinja_run *r, const struct jinja_node *n)
{
    struct jinja_macro *m = jinja_new(r, 1, sizeof *m);
    if (!m)
        return;
    *m = (struct jinja_macro){ .node = n, .scope = r->scope };
    const struct jinja_value caller = { .kind = JINJA_IS_MACRO, .macro = m };
    write_value(r, jinja_call(r, n->a, &caller));
}

static enum jinja_jump run_with(struct jinja_run *r, const struct jinja_node *n)
{
    struct jinja_scope *const before = r->scope, *const own = jinja_scope_new(r, before);
    if (!own)
        return JINJA_GO_ON;
    for (const struct jinja_node *set = n->other; set && !r->st; set = set->next) {
        const struct jinja_value v = jinja_eval(r, set->b); /* sees what is around, not its neighbours */
        r->scope = own;
        assign(r, set->a, v);
        r->scope = before;
    }
    r->scope = own;
    const enum jinja_jump jump = jinja_run_body(r, n->list);
    r->scope = before;
    return jump;
}

static void set_block(struct jinja_run *r, const struct jinja_node *n)
{
    struct jinja_value v = jinja_capture(r, n->list);
    if (n->b && !r->st)
        v = jinja_apply(r, n->b, v);
    if (n->kind == JINJA_SET_BLOCK)
        assign(r, n->a, v);
    else
        write_value(r, v);
}

static enum jinja_jump run_statement(struct jinja_run *r, const struct jinja_node *n)
{
    switch (n->kind) {
    case JINJA_TEXT:
        jinja_text_add(r, r->out, &r->out_cap, n->text, n->bytes, false);
        break;
    case JINJA_OUTPUT:
        write_value(r, jinja_eval(r, n->a));
        break;
    case JINJA_IF:
        return jinja_run_body(r, jinja_truth(jinja_eval(r, n->a)) ? n->list : n->other);
    case JINJA_FOR:
        return run_for(r, n);
    case JINJA_SET:
        assign(r, n->a, jinja_eval(r, n->b));
        break;
    case JINJA_SET_BLOCK:
    case JINJA_FILTER_BLOCK:
        set_block(r, n);
        break;
    case JINJA_MACRO:
        define_macro(r, n);
        break;
    case JINJA_CALL_BLOCK:
        run_call_block(r, n);
        break;
    case JINJA_WITH:
        return run_with(r, n);
    case JINJA_GROUP:
        return jinja_run_body(r, n->list);
    case JINJA_BREAK:
        return JINJA_JUMP_BREAK;
    case JINJA_CONTINUE:
        return JINJA_JUMP_CONTINUE;
    default:
        jinja_fail(r, ST_INTERNAL, "a value where a statement is expected");
    }
    return JINJA_GO_ON;
}

enum jinja_jump jinja_run_body(struct jinja_run *r, const struct jinja_node *body)
{
    for (; body && jinja_steps(r, 1); body = body->next) {
        r->line = body->line;
        const enum jinja_jump jump = run_statement(r, body);
        if (jump != JINJA_GO_ON)
            return jump;
    }
    return JINJA_GO_ON;
}
