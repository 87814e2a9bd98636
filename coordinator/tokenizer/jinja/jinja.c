#include "coordinator/tokenizer/jinja/jinja.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/jinja/eval.h"

enum { TREE_BYTES_MAX = 128 << 20 };

struct jinja_template {
    struct jinja_arena arena;
    struct jinja_node *root, *names;
};

enum status jinja_template_new(const char *text, size_t bytes, struct jinja_template **template_out, struct error *err)
{
    if (bytes > JINJA_TEMPLATE_BYTES_MAX)
        return error_set(err, ST_UNSUPPORTED, "a template of %zu bytes (at most %d)", bytes, JINJA_TEMPLATE_BYTES_MAX);
    struct jinja_template *t = calloc(1, sizeof *t);
    if (!t)
        return ST_NO_MEMORY;
    t->arena.bytes_max = TREE_BYTES_MAX;
    const enum status st = jinja_parse(&t->arena, text, bytes, &t->root, &t->names, err);
    if (st) {
        jinja_template_free(t);
        return st;
    }
    *template_out = t;
    return ST_OK;
}

void jinja_template_free(struct jinja_template *t)
{
    if (!t)
        return;
    jinja_arena_deinit(&t->arena);
    free(t);
}

bool jinja_template_names(const struct jinja_template *t, const char *name)
{
    for (const struct jinja_node *n = t->names; n; n = n->d) {
        if (strcmp(n->text, name) == 0)
            return true;
    }
    return false;
}

static struct jinja_value value_of(struct jinja_run *r, const struct jinja_variable *v)
{
    if (v->json)
        return jinja_of_json(r, v->json, 0);
    if (v->text)
        return jinja_text_of(r, v->text, strlen(v->text), false);
    return v->flag ? jinja_bool(*v->flag) : jinja_none();
}

static void run(struct jinja_run *r, const struct jinja_template *t)
{
    const struct jinja_value out = jinja_text_new(r);
    r->scope = jinja_scope_new(r, NULL);
    for (size_t i = 0; i < r->in->n_variables && !r->st; i++)
        jinja_dict_put_name(r, r->scope->names, r->in->variables[i].name, value_of(r, &r->in->variables[i]));
    /* what the template sets hides the variables */
    r->scope = jinja_scope_new(r, r->scope);
    if (r->st)
        return;
    r->out = out.text;
    jinja_run_body(r, t->root->list);
}

enum status jinja_render(const struct jinja_template *t, const struct jinja_input *in, struct jinja_output *out,
                         struct error *err)
{
    struct jinja_run r = { .in = in, .err = err, .line = 1 };
    r.arena.bytes_max = in->memory_max;
    run(&r, t);
    if (r.st) {
        jinja_arena_deinit(&r.arena);
        return r.st;
    }
    *out = (struct jinja_output){
        .parts = r.out->parts, .n_parts = r.out->n_parts, .bytes = r.out->bytes, .memory = r.arena.blocks
    };
    return ST_OK;
}

void jinja_output_free(struct jinja_output *out)
{
    jinja_blocks_free(out->memory);
    *out = (struct jinja_output){ 0 };
}
