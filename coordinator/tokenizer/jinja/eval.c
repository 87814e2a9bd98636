#include "coordinator/tokenizer/jinja/eval.h"

#include <string.h>

#include "coordinator/tokenizer/jinja/builtin.h"

enum { ARGUMENTS_MAX = 32 };

/* ---- names ---- */

struct jinja_scope *jinja_scope_new(struct jinja_run *r, struct jinja_scope *around)
{
    struct jinja_scope *s = jinja_new(r, 1, sizeof *s);
    if (!s)
        return NULL;
    s->around = around;
    s->names = jinja_dict(r, JINJA_IS_DICT);
    return r->st ? NULL : s;
}

static struct jinja_value name_of(struct jinja_run *r, const struct jinja_node *n)
{
    for (struct jinja_scope *s = r->scope; s && !r->st; s = s->around) {
        const struct jinja_value *found = jinja_dict_name(r, s->names, n->text, n->bytes);
        if (found)
            return *found;
    }
    if (jinja_function_known(n->text) && (r->in->now || strcmp(n->text, "strftime_now") != 0))
        return (struct jinja_value){ .kind = JINJA_IS_FUNCTION, .name = n->text };
    return jinja_undefined(n->text);
}

/* ---- calls ---- */

static struct jinja_arguments arguments(struct jinja_run *r, const struct jinja_node *list,
                                        struct jinja_argument room[ARGUMENTS_MAX])
{
    struct jinja_arguments args = { .list = room };
    for (; list && !r->st; list = list->next) {
        if (args.n == ARGUMENTS_MAX) {
            jinja_fail(r, ST_UNSUPPORTED, "a call with more than %d arguments", ARGUMENTS_MAX);
            break;
        }
        const bool keyword = list->kind == JINJA_PAIR;
        room[args.n].name = keyword ? list->text : NULL;
        room[args.n++].value = jinja_eval(r, keyword ? list->a : list);
    }
    return args;
}

static void bind(struct jinja_run *r, const struct jinja_node *macro, struct jinja_scope *scope,
                 const struct jinja_arguments *args)
{
    size_t i = 0;
    for (const struct jinja_node *p = macro->other; p && !r->st; p = p->next, i++) {
        const struct jinja_value *given = jinja_argument(args, i, p->text);
        jinja_dict_put_name(r, scope->names, p->text,
                            given  ? *given
                            : p->a ? jinja_eval(r, p->a)
                                   : jinja_undefined(p->text));
    }
    for (size_t k = 0; k < args->n && !r->st; k++) {
        const char *name = args->list[k].name;
        if (!name ? k >= i : jinja_dict_name(r, scope->names, name, strlen(name)) == NULL)
            jinja_fail(r, ST_INVALID, "macro '%.60s' takes no argument '%.60s'", macro->text, name ? name : "more");
    }
}

static struct jinja_value call_macro(struct jinja_run *r, const struct jinja_macro *m,
                                     const struct jinja_arguments *args, const struct jinja_value *caller)
{
    struct jinja_scope *const before = r->scope, *const own = jinja_scope_new(r, m->scope);
    struct jinja_value v = jinja_undefined("");
    if (!own)
        return v;
    if (r->calls == JINJA_CALLS_MAX)
        return jinja_fail(r, ST_TOO_LARGE, "macros call each other more than %d deep", JINJA_CALLS_MAX);
    r->calls++;
    r->scope = own;
    if (m->node->kind == JINJA_MACRO)
        bind(r, m->node, own, args);
    if (caller)
        jinja_dict_put_name(r, own->names, "caller", *caller);
    v = jinja_capture(r, m->node->list);
    r->scope = before;
    r->calls--;
    return v;
}

struct jinja_value jinja_call(struct jinja_run *r, const struct jinja_node *n, const struct jinja_value *caller)
{
    struct jinja_argument room[ARGUMENTS_MAX];
    const struct jinja_node *callee = n->a;
    if (callee->kind == JINJA_GETATTR) {
        const struct jinja_value v = jinja_eval(r, callee->a);
        const struct jinja_arguments args = arguments(r, n->list, room);
        return r->st ? jinja_undefined("") : jinja_method_call(r, v, callee->text, &args);
    }
    const struct jinja_value f = name_of(r, callee);
    const struct jinja_arguments args = arguments(r, n->list, room);
    if (r->st)
        return jinja_undefined("");
    r->line = n->line;
    if (f.kind == JINJA_IS_MACRO)
        return call_macro(r, f.macro, &args, caller);
    if (f.kind == JINJA_IS_FUNCTION && !caller)
        return jinja_function_call(r, f.name, &args);
    if (f.kind == JINJA_UNDEFINED)
        return jinja_fail(r, ST_INVALID, "'%.80s' is undefined", callee->text);
    return jinja_fail(r, ST_INVALID, "'%s' object is not callable", jinja_type_name(f));
}

static struct jinja_value run_filter(struct jinja_run *r, const struct jinja_node *n, struct jinja_value v)
{
    struct jinja_argument room[ARGUMENTS_MAX];
    const struct jinja_arguments args = arguments(r, n->list, room);
    r->line = n->line;
    return r->st ? jinja_undefined("") : jinja_filter_run(r, n->method, v, &args);
}

struct jinja_value jinja_apply(struct jinja_run *r, const struct jinja_node *filter, struct jinja_value v)
{
    if (filter->a)
        v = jinja_apply(r, filter->a, v);
    return run_filter(r, filter, v);
}

static struct jinja_value run_test(struct jinja_run *r, const struct jinja_node *n)
{
    struct jinja_argument room[ARGUMENTS_MAX];
    const struct jinja_value v = jinja_eval(r, n->a);
    const struct jinja_arguments args = arguments(r, n->list, room);
    r->line = n->line;
    const bool is = !r->st && jinja_test_run(r, n->method, v, &args);
    return jinja_bool(is != n->flag);
}

/* ---- expressions ---- */

static struct jinja_value eval_items(struct jinja_run *r, const struct jinja_node *n)
{
    const struct jinja_value v = jinja_list(r, n->kind == JINJA_LIST ? JINJA_IS_LIST : JINJA_IS_TUPLE, 0);
    for (const struct jinja_node *item = n->list; item && !r->st; item = item->next)
        jinja_list_add(r, v, jinja_eval(r, item));
    return v;
}

static struct jinja_value eval_dict(struct jinja_run *r, const struct jinja_node *n)
{
    const struct jinja_value v = jinja_dict(r, JINJA_IS_DICT);
    for (const struct jinja_node *pair = n->list; pair && !r->st; pair = pair->next) {
        const struct jinja_value key = jinja_eval(r, pair->a);
        jinja_dict_put(r, v, key, jinja_eval(r, pair->b));
    }
    return v;
}

static struct jinja_value eval_slice(struct jinja_run *r, const struct jinja_node *n)
{
    const struct jinja_node *const parts[3] = { n->b, n->c, n->d };
    struct jinja_value values[3];
    const struct jinja_value *given[3] = { NULL };
    const struct jinja_value a = jinja_eval(r, n->a);
    for (int i = 0; i < 3; i++) {
        if (!parts[i])
            continue;
        values[i] = jinja_eval(r, parts[i]);
        given[i] = &values[i];
    }
    return jinja_slice(r, a, given[0], given[1], given[2]);
}

static struct jinja_value eval_sign(struct jinja_run *r, const struct jinja_node *n)
{
    const struct jinja_value v = jinja_eval(r, n->a);
    if (r->st)
        return v;
    if (!jinja_is_number(v))
        return jinja_fail(r, ST_INVALID, "a sign before a %s", jinja_type_name(v));
    return n->kind == JINJA_POS ? v : jinja_binary(r, JINJA_MUL, v, jinja_int(-1));
}

static struct jinja_value eval_compare(struct jinja_run *r, const struct jinja_node *n)
{
    struct jinja_value a = jinja_eval(r, n->a);
    for (const struct jinja_node *o = n->list; o && !r->st; o = o->next) {
        const struct jinja_value b = jinja_eval(r, o->a);
        r->line = o->line;
        if (!jinja_compare(r, (int)o->op, a, b))
            return jinja_bool(false);
        a = b;
    }
    return jinja_bool(true);
}

static struct jinja_value eval_binary(struct jinja_run *r, const struct jinja_node *n)
{
    const struct jinja_value a = jinja_eval(r, n->a), b = jinja_eval(r, n->b);
    r->line = n->line;
    return jinja_binary(r, (int)n->op, a, b);
}

static struct jinja_value eval_cond(struct jinja_run *r, const struct jinja_node *n)
{
    if (jinja_truth(jinja_eval(r, n->b)))
        return jinja_eval(r, n->a);
    return n->c ? jinja_eval(r, n->c) : jinja_undefined("the inline if-expression without else");
}

static struct jinja_value eval_member(struct jinja_run *r, const struct jinja_node *n)
{
    const struct jinja_value a = jinja_eval(r, n->a);
    if (n->kind == JINJA_GETATTR) {
        r->line = n->line;
        return jinja_attribute(r, a, n->text);
    }
    const struct jinja_value b = jinja_eval(r, n->b);
    r->line = n->line;
    return jinja_item(r, a, b);
}

struct jinja_value jinja_eval(struct jinja_run *r, const struct jinja_node *n)
{
    struct jinja_value a;
    if (!jinja_steps(r, 1))
        return jinja_undefined("");
    r->line = n->line;
    switch (n->kind) {
    case JINJA_CONST_NONE:
        return jinja_none();
    case JINJA_CONST_BOOL:
        return jinja_bool(n->flag);
    case JINJA_CONST_INT:
        return jinja_int(n->integer);
    case JINJA_CONST_FLOAT:
        return jinja_float(n->real);
    case JINJA_CONST_TEXT:
        return jinja_text_of(r, n->text, n->bytes, false);
    case JINJA_NAME:
        return name_of(r, n);
    case JINJA_LIST:
    case JINJA_TUPLE:
        return eval_items(r, n);
    case JINJA_DICT:
        return eval_dict(r, n);
    case JINJA_GETATTR:
    case JINJA_GETITEM:
        return eval_member(r, n);
    case JINJA_SLICE:
        return eval_slice(r, n);
    case JINJA_CALL:
        return jinja_call(r, n, NULL);
    case JINJA_FILTER:
        a = jinja_eval(r, n->a);
        return run_filter(r, n, a);
    case JINJA_TEST:
        return run_test(r, n);
    case JINJA_NOT:
        return jinja_bool(!jinja_truth(jinja_eval(r, n->a)));
    case JINJA_NEG:
    case JINJA_POS:
        return eval_sign(r, n);
    case JINJA_AND:
        a = jinja_eval(r, n->a);
        return jinja_truth(a) ? jinja_eval(r, n->b) : a;
    case JINJA_OR:
        a = jinja_eval(r, n->a);
        return jinja_truth(a) ? a : jinja_eval(r, n->b);
    case JINJA_BINARY:
        return eval_binary(r, n);
    case JINJA_COMPARE:
        return eval_compare(r, n);
    case JINJA_COND:
        return eval_cond(r, n);
    default:
        return jinja_fail(r, ST_INTERNAL, "a statement where a value is expected");
    }
}
