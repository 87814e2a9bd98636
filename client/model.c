#include "model/model.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/commands.h"
#include "client/model_kinds.h"
#include "client/settings.h"

static json_t *describe(const struct model *m)
{
    const struct model_config *c = model_config(m);
    const struct digest d = model_digest(m);
    char digest[33];
    digest_text(&d, digest);
    return json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:b, s:I, s:I, s:s, s:o}", "name",
                     c->name, "architecture", c->architecture, "layers", (int)c->n_layers, "d_model", (int)c->d_model,
                     "heads", (int)c->n_heads, "kv_heads", (int)c->n_kv_heads, "head_dim", (int)c->head_dim, "d_ff",
                     (int)c->d_ff, "vocabulary", (int)c->n_vocab, "positions_max", (int)c->positions_max, "rope",
                     c->rope_name, "tied_output", c->tied_output, "weight_bytes", (json_int_t)model_weight_bytes(m),
                     "kv_bytes_per_token", (json_int_t)(4ull * c->n_layers * c->n_kv_heads * c->head_dim), "digest",
                     digest, "tensors", model_kinds_describe(m, NULL));
}

static void print_text(const json_t *o)
{
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)(uintptr_t)o, key, value)
    {
        char *text = json_is_array(value) ? NULL : json_dumps(value, JSON_ENCODE_ANY);
        if (text)
            printf("%-20s %s\n", key, text);
        free(text);
    }
    putchar('\n');
    model_kinds_print(json_object_get(o, "tensors"));
}

int command_model(int argc, char **argv)
{
    struct settings s;
    struct error err = { 0 };
    struct model *m;
    const char *prompt, *positional;
    if (!settings_read(&s, SCOPE_MODEL, "usage: longspan model [MODEL] [--json]", argc, argv, &prompt, &positional))
        return 2;
    if (model_open(positional ? positional : s.model, &m, &err)) {
        fprintf(stderr, "longspan: %s\n", err.text);
        return 1;
    }
    json_t *o = describe(m);
    char *text = s.json ? json_dumps(o, JSON_INDENT(2)) : NULL;
    if (text)
        puts(text);
    else
        print_text(o);
    free(text);
    json_decref(o);
    model_close(m);
    return 0;
}
