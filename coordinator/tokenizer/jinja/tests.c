#include <string.h>

#include "coordinator/tokenizer/jinja/builtin.h"
#include "coordinator/tokenizer/jinja/letters.h"
#include "coordinator/tokenizer/jinja/node.h"

#define TEST(name) static bool name(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
#define UNUSED     (void)r, (void)args

TEST(is_defined)
{
    UNUSED;
    return v.kind != JINJA_UNDEFINED;
}

TEST(is_undefined)
{
    UNUSED;
    return v.kind == JINJA_UNDEFINED;
}

TEST(is_none)
{
    UNUSED;
    return v.kind == JINJA_IS_NONE;
}

TEST(is_string)
{
    UNUSED;
    return v.kind == JINJA_IS_TEXT;
}

TEST(is_mapping)
{
    UNUSED;
    return v.kind == JINJA_IS_DICT;
}

TEST(is_iterable)
{
    UNUSED;
    return v.kind == JINJA_IS_TEXT || v.kind == JINJA_IS_DICT || jinja_is_list(v) || v.kind == JINJA_UNDEFINED ||
           v.kind == JINJA_IS_LOOP;
}

TEST(is_sequence)
{
    UNUSED;
    return v.kind == JINJA_IS_TEXT || v.kind == JINJA_IS_DICT || jinja_is_list(v) || v.kind == JINJA_UNDEFINED;
}

TEST(is_number)
{
    UNUSED;
    return jinja_is_number(v);
}

TEST(is_integer)
{
    UNUSED;
    return v.kind == JINJA_IS_INT;
}

TEST(is_float)
{
    UNUSED;
    return v.kind == JINJA_IS_FLOAT;
}

TEST(is_boolean)
{
    UNUSED;
    return v.kind == JINJA_IS_BOOL;
}

TEST(is_true)
{
    UNUSED;
    return v.kind == JINJA_IS_BOOL && v.flag;
}

TEST(is_false)
{
    UNUSED;
    return v.kind == JINJA_IS_BOOL && !v.flag;
}

TEST(is_callable)
{
    UNUSED;
    return v.kind == JINJA_IS_MACRO || v.kind == JINJA_IS_FUNCTION;
}

static int64_t modulo(struct jinja_run *r, struct jinja_value v, struct jinja_value by)
{
    const struct jinja_value m = jinja_binary(r, JINJA_MOD, v, by);
    return r->st ? 0 : jinja_integer(r, m, "the test's value");
}

TEST(is_odd)
{
    (void)args;
    return modulo(r, v, jinja_int(2)) == 1;
}

TEST(is_even)
{
    (void)args;
    return modulo(r, v, jinja_int(2)) == 0;
}

TEST(is_divisible)
{
    return modulo(r, v, args->list[0].value) == 0;
}

static bool is_in_case(struct jinja_run *r, struct jinja_value v, enum jinja_case how)
{
    v = jinja_str(r, v);
    const struct jinja_value same = r->st ? v : jinja_letters(r, v.text, how);
    const struct jinja_value other =
        r->st ? v : jinja_letters(r, v.text, how == JINJA_UPPER ? JINJA_LOWER : JINJA_UPPER);
    return !r->st && jinja_equal(r, v, same) && !jinja_equal(r, v, other);
}

TEST(is_upper)
{
    (void)args;
    return is_in_case(r, v, JINJA_UPPER);
}

TEST(is_lower)
{
    (void)args;
    return is_in_case(r, v, JINJA_LOWER);
}

#define COMPARISON(name, op)                                                                                           \
    TEST(name)                                                                                                         \
    {                                                                                                                  \
        return jinja_compare(r, op, v, args->list[0].value);                                                           \
    }
COMPARISON(is_equal, JINJA_EQ)
COMPARISON(is_not_equal, JINJA_NE)
COMPARISON(is_less, JINJA_LT)
COMPARISON(is_at_most, JINJA_LE)
COMPARISON(is_greater, JINJA_GT)
COMPARISON(is_at_least, JINJA_GE)
COMPARISON(is_in, JINJA_IN)
#undef COMPARISON

static const struct jinja_test tests[] = {
    { "defined", is_defined, 0 },
    { "undefined", is_undefined, 0 },
    { "none", is_none, 0 },
    { "string", is_string, 0 },
    { "mapping", is_mapping, 0 },
    { "iterable", is_iterable, 0 },
    { "sequence", is_sequence, 0 },
    { "number", is_number, 0 },
    { "integer", is_integer, 0 },
    { "float", is_float, 0 },
    { "boolean", is_boolean, 0 },
    { "true", is_true, 0 },
    { "false", is_false, 0 },
    { "callable", is_callable, 0 },
    { "odd", is_odd, 0 },
    { "even", is_even, 0 },
    { "divisibleby", is_divisible, 1 },
    { "upper", is_upper, 0 },
    { "lower", is_lower, 0 },
    { "eq", is_equal, 1 },
    { "equalto", is_equal, 1 },
    { "ne", is_not_equal, 1 },
    { "lt", is_less, 1 },
    { "lessthan", is_less, 1 },
    { "le", is_at_most, 1 },
    { "gt", is_greater, 1 },
    { "greaterthan", is_greater, 1 },
    { "ge", is_at_least, 1 },
    { "in", is_in, 1 },
    { "==", is_equal, 1 },
    { "!=", is_not_equal, 1 },
    { "<", is_less, 1 },
    { "<=", is_at_most, 1 },
    { ">", is_greater, 1 },
    { ">=", is_at_least, 1 },
};

const struct jinja_test *jinja_test_find(const char *name)
{
    for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        if (strcmp(tests[i].name, name) == 0)
            return &tests[i];
    }
    return NULL;
}

bool jinja_test_run(struct jinja_run *r, const struct jinja_test *t, struct jinja_value v,
                    const struct jinja_arguments *args)
{
    if (args->n != t->n_arguments || (args->n && args->list[0].name)) {
        jinja_fail(r, ST_INVALID, "the test %s takes %zu arguments, not %zu", t->name, t->n_arguments, args->n);
        return false;
    }
    return t->run(r, v, args);
}
