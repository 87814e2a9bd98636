#include "client/model_kinds.h"

#include <stdio.h>
#include <string.h>

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
        bytes += t.stored_bytes;
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

json_t *model_kinds_describe(const struct model *m, uint64_t *weights_out)
{
    json_t *tensors = json_array();
    uint64_t total = 0;
    for (int kind = 0; kind < MODEL_TENSOR_KINDS; kind++) {
        uint64_t weights;
        const char *codec;
        const uint64_t bytes = kind_bytes(m, (enum model_tensor_kind)kind, &weights, &codec);
        if (weights)
            json_array_append_new(tensors, json_pack("{s:s, s:s, s:I, s:I, s:f}", "kind", kind_names[kind], "codec",
                                                     codec, "weights", (json_int_t)weights, "bytes", (json_int_t)bytes,
                                                     "bits_per_weight", 8 * (double)bytes / (double)weights));
        total += weights;
    }
    if (weights_out)
        *weights_out = total;
    return tensors;
}

void model_kinds_print(const json_t *kinds)
{
    const json_t *t;
    size_t i;
    printf("%-14s %-13s %14s %14s %10s\n", "tensors", "codec", "weights", "bytes", "bits each");
    json_array_foreach((json_t *)(uintptr_t)kinds, i, t)
    {
        printf("%-14s %-13s %14lld %14lld %10.2f\n", json_string_value(json_object_get(t, "kind")),
               json_string_value(json_object_get(t, "codec")),
               (long long)json_integer_value(json_object_get(t, "weights")),
               (long long)json_integer_value(json_object_get(t, "bytes")),
               json_real_value(json_object_get(t, "bits_per_weight")));
    }
}
