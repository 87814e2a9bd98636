#include <string.h>

#include "coordinator/tokenizer/jinja/builtin.h"

/* ---- arguments ---- */

const struct jinja_value *jinja_argument(const struct jinja_arguments *args, size_t i, const char *name)
{
    for (size_t k = 0; k < args->n; k++) {
        if (args->list[k].name ? strcmp(args->list[k].name, name) == 0 : k == i)
            return &args->list[k].value;
    }
    return NULL;
}

bool jinja_arguments_check(struct jinja_run *r, const struct jinja_arguments *args, const char *what, size_t n_max,
                           const char *const *names)
{
    for (size_t i = 0; i < args->n; i++) {
        bool known = !args->list[i].name && i < n_max;
        for (size_t k = 0; args->list[i].name && !known && k < n_max && names[k]; k++)
            known = strcmp(args->list[i].name, names[k]) == 0;
        if (known)
            continue;
        jinja_fail(r, ST_UNSUPPORTED, "%.60s: the argument '%.60s' is not supported", what,
                   args->list[i].name ? args->list[i].name : "more");
        return false;
    }
    return !r->st;
}

/* ---- functions ---- */

typedef struct jinja_value function_fn(struct jinja_run *r, const struct jinja_arguments *args);

/* The words are the template's own, so they are the whole message. */
static struct jinja_value raise_exception(struct jinja_run *r, const struct jinja_arguments *args)
{
    const struct jinja_value text = args->n ? jinja_str(r, args->list[0].value) : jinja_text_new(r);
    if (r->st)
        return text;
    const char *flat = jinja_flat(r, text.text);
    if (!r->st)
        r->st = error_set(r->err, ST_INVALID, "%.*s", (int)(text.text->bytes < 480 ? text.text->bytes : 480), flat);
    return jinja_undefined("");
}

/* A format of these alone: what others make depends on the machine. */
static struct jinja_value strftime_now(struct jinja_run *r, const struct jinja_arguments *args)
{
    char format[128], out[512];
    if (!r->in->now)
        return jinja_fail(r, ST_INVALID, "'strftime_now' is undefined");
    if (args->n != 1 || args->list[0].value.kind != JINJA_IS_TEXT)
        return jinja_fail(r, ST_INVALID, "strftime_now takes one str");
    struct jinja_text *t = args->list[0].value.text;
    if (t->bytes >= sizeof format)
        return jinja_fail(r, ST_UNSUPPORTED, "strftime_now: a format of %zu bytes", t->bytes);
    memcpy(format, jinja_flat(r, t), t->bytes);
    format[t->bytes] = '\0';
    if (strlen(format) != t->bytes)
        return jinja_fail(r, ST_UNSUPPORTED, "strftime_now: a format with a zero byte");
    for (const char *p = strchr(format, '%'); p; p = strchr(p + 2, '%')) {
        if (!p[1] || !strchr("aAbBdHIjmMpSyY%", p[1]))
            return jinja_fail(r, ST_UNSUPPORTED, "strftime_now: %%%.1s is not supported", p + 1);
    }
    const size_t n = *format ? strftime(out, sizeof out, format, r->in->now) : 0;
    return jinja_text_copy(r, out, n, false);
}

static struct jinja_value range(struct jinja_run *r, const struct jinja_arguments *args)
{
    int64_t v[3] = { 0, 0, 1 };
    if (args->n < 1 || args->n > 3)
        return jinja_fail(r, ST_INVALID, "range takes one to three arguments");
    for (size_t i = 0; i < args->n; i++)
        v[i] = jinja_integer(r, args->list[i].value, "range's bound");
    if (args->n == 1) {
        v[1] = v[0];
        v[0] = 0;
    }
    if (!r->st && v[2] == 0)
        return jinja_fail(r, ST_INVALID, "range() arg 3 must not be zero");
    const struct jinja_value list = jinja_list(r, JINJA_IS_LIST, 0);
    for (int64_t i = v[0]; !r->st && (v[2] > 0 ? i < v[1] : i > v[1]);) {
        jinja_list_add(r, list, jinja_int(i));
        if (list.kind == JINJA_IS_LIST && list.list->n > 100000)
            return jinja_fail(r, ST_TOO_LARGE, "a range of more than 100000 items");
        if (__builtin_add_overflow(i, v[2], &i))
            break;
    }
    return list;
}

static struct jinja_value make_dict(struct jinja_run *r, const struct jinja_arguments *args, enum jinja_kind kind)
{
    const struct jinja_value v = jinja_dict(r, kind);
    for (size_t i = 0; i < args->n && !r->st; i++) {
        const struct jinja_value given = args->list[i].value;
        if (args->list[i].name) {
            jinja_dict_put_name(r, v, args->list[i].name, given);
        } else if (i == 0 && jinja_is_dict(given)) {
            for (size_t k = 0; k < given.dict->n; k++)
                jinja_dict_put(r, v, given.dict->entries[k].key, given.dict->entries[k].value);
        } else {
            return jinja_fail(r, ST_UNSUPPORTED, "a dict of a %s is not supported", jinja_type_name(given));
        }
    }
    return v;
}

static struct jinja_value namespace(struct jinja_run *r, const struct jinja_arguments *args)
{
    return make_dict(r, args, JINJA_IS_NAMESPACE);
}

static struct jinja_value dict(struct jinja_run *r, const struct jinja_arguments *args)
{
    return make_dict(r, args, JINJA_IS_DICT);
}

static const struct {
    const char *name;
    function_fn *run;
} functions[] = {
    { "raise_exception", raise_exception },
    { "strftime_now", strftime_now },
    { "range", range },
    { "namespace", namespace },
    { "dict", dict },
};

bool jinja_function_known(const char *name)
{
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        if (strcmp(functions[i].name, name) == 0)
            return true;
    }
    return false;
}

struct jinja_value jinja_function_call(struct jinja_run *r, const char *name, const struct jinja_arguments *args)
{
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        if (strcmp(functions[i].name, name) == 0)
            return functions[i].run(r, args);
    }
    return jinja_fail(r, ST_INVALID, "'%.60s' is not a function", name);
}
