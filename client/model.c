#include "model/model.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/commands.h"
#include "client/settings.h"

static uint64_t kind_bytes(const struct model *m, enum model_tensor_kind kind, uint64_t *weights_out,
                           const char **codec_out)
{
    static const enum model_tensor_kind whole[] = { MODEL_EMBEDDING, MODEL_OUTPUT_NORM, MODEL_OUTPUT };
    uint32_t layers = model_config(m)->n_layers;
    uint64_t bytes = 0;
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        layers = kind == whole[i] ? 1 : layers;
    *weights_out = 0;
    *codec_out = "";
    for (uint32_t layer = 0; layer < layers; layer++) {
        struct model_tensor t;
        if (model_tensor(m, kind, layer, &t))
            continue;
        bytes += (uint64_t)t.n_rows * t.row_bytes;
        *weights_out += (uint64_t)t.n_rows * t.n_cols;
        const char *codec = weight_codec_name(t.codec);
        *codec_out = !(*codec_out)[0] || !strcmp(*codec_out, codec) ? codec : "mixed";
    }
    return bytes;
}

static const char *const kind_names[MODEL_TENSOR_KINDS] = { "embedding",   "output_norm", "output",      "attn_norm",
                                                            "attn_q",      "attn_k",      "attn_v",      "attn_out",
                                                            "ffn_norm",    "ffn_gate",    "ffn_up",      "ffn_down",
                                                            "attn_q_bias", "attn_k_bias", "attn_v_bias", "attn_q_norm",
                                                            "attn_k_norm" };

static json_t *describe(const struct model *m)
{
    const struct model_config *c = model_config(m);
    const struct digest d = model_digest(m);
    char digest[33];
    digest_text(&d, digest);
    json_t *tensors = json_array();
    for (int kind = 0; kind < MODEL_TENSOR_KINDS; kind++) {
        uint64_t weights;
        const char *codec;
        const uint64_t bytes = kind_bytes(m, (enum model_tensor_kind)kind, &weights, &codec);
        if (weights)
            json_array_append_new(tensors, json_pack("{s:s, s:s, s:I, s:I, s:f}", "kind", kind_names[kind], "codec",
                                                     codec, "weights", (json_int_t)weights, "bytes", (json_int_t)bytes,
                                                     "bits_per_weight", 8 * (double)bytes / (double)weights));
    }
    return json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:b, s:I, s:I, s:s, s:o}", "name",
                     c->name, "architecture", c->architecture, "layers", (int)c->n_layers, "d_model", (int)c->d_model,
                     "heads", (int)c->n_heads, "kv_heads", (int)c->n_kv_heads, "head_dim", (int)c->head_dim, "d_ff",
                     (int)c->d_ff, "vocabulary", (int)c->n_vocab, "positions_max", (int)c->positions_max, "rope",
                     c->rope_name, "tied_output", c->tied_output, "weight_bytes", (json_int_t)model_weight_bytes(m),
                     "kv_bytes_per_token", (json_int_t)(4ull * c->n_layers * c->n_kv_heads * c->head_dim), "digest",
                     digest, "tensors", tensors);
}

static void print_text(const json_t *o)
{
    const char *key;
    const json_t *value, *t;
    size_t i;
    json_object_foreach((json_t *)(uintptr_t)o, key, value)
    {
        char *text = json_is_array(value) ? NULL : json_dumps(value, JSON_ENCODE_ANY);
        if (text)
            printf("%-20s %s\n", key, text);
        free(text);
    }
    printf("\n%-14s %-8s %14s %14s %10s\n", "tensors", "codec", "weights", "bytes", "bits each");
    json_array_foreach(json_object_get(o, "tensors"), i, t)
    {
        printf("%-14s %-8s %14lld %14lld %10.2f\n", json_string_value(json_object_get(t, "kind")),
               json_string_value(json_object_get(t, "codec")),
               (long long)json_integer_value(json_object_get(t, "weights")),
               (long long)json_integer_value(json_object_get(t, "bytes")),
               json_real_value(json_object_get(t, "bits_per_weight")));
    }
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
