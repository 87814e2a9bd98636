#include "model/hf.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/json.h"
#include "model/rope.h"

#define REFUSE(...)      return error_set(err, ST_CORRUPT, __VA_ARGS__)
#define UNSUPPORTED(...) return error_set(err, ST_UNSUPPORTED, __VA_ARGS__)

/* Read below, or without influence on the result of inference. */
static const char *const known_keys[] = {
    "architectures",
    "quantization_config", /* quantized.h */
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
    "hidden_act",
    "bos_token_id",
    "eos_token_id",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "layer_types",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "original_max_position_embeddings",
    /* of training, storage and the Python library */
    "torch_dtype",
    "dtype",
    "transformers_version",
    "use_cache",
    "initializer_range",
    "pad_token_id",
    "attention_dropout",
    "_name_or_path",
    "name_or_path",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "torchscript",
    "id2label",
    "label2id",
    "problem_type",
    "task_specific_params",
    "tokenizer_class",
    "finetuning_task",
    "unk_token_id",
    "sep_token_id",
    "decoder_start_token_id",
    "is_decoder",
    "hidden_dropout",
    "embd_pdrop",
    "resid_pdrop",
    "attn_pdrop",
    "gradient_checkpointing",
    "transformers.js_config",
    "is_llama_config",
    "chunk_size_feed_forward",
    "use_bfloat16",
    "tf_legacy_loss",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "attn_implementation",
    "_flash_attn_2_enabled",
    "neftune_noise_alpha",
    "model_max_length",
    "unsloth_version",
    "unsloth_fixed",
    "auto_map",
    "keys_to_ignore_at_inference",
    "cross_attention_hidden_size",
    /* of sampling, in old files */
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "max_length",
    "min_length",
    "num_beams",
    "num_beam_groups",
    "num_return_sequences",
    "early_stopping",
    "diversity_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "output_scores",
    "return_dict_in_generate",
    "prefix",
};

/* These are harmless with one value only. Any key that is in neither list must be null, false, 0 or empty. */
static const struct {
    const char *name;
    double neutral;
} neutral_keys[] = {
    { "pretraining_tp", 1 },         { "partial_rotary_factor", 1 }, { "logit_scale", 1 },
    { "logits_scaling", 1 },         { "embedding_multiplier", 1 },  { "residual_multiplier", 1 },
    { "tensor_parallel_degree", 1 },
};

static bool is_off(const char *key, const json_t *v)
{
    double neutral = 0;
    for (size_t i = 0; i < sizeof neutral_keys / sizeof *neutral_keys; i++)
        if (strcmp(key, neutral_keys[i].name) == 0)
            neutral = neutral_keys[i].neutral;
    return json_is_null(v) || json_is_false(v) || (json_is_number(v) && json_number_value(v) == neutral) ||
           (json_is_object(v) && json_object_size(v) == 0) || (json_is_array(v) && json_array_size(v) == 0);
}

static enum status refuse_unknown_keys(const struct json_in *in, const char *const *known, size_t n_known,
                                       struct error *err)
{
    const char *key;
    json_t *v;
    char name[72], shown[64];
    json_object_foreach((json_t *)(uintptr_t)in->object, key, v)
    {
        bool found = is_off(key, v);
        for (size_t i = 0; !found && i < n_known; i++)
            found = strcmp(key, known[i]) == 0;
        if (!found)
            UNSUPPORTED("%s: key %s%s: %s is not supported", in->where, in->prefix,
                        model_printable(name, sizeof name, key, strlen(key)), json_show(shown, sizeof shown, v));
    }
    return ST_OK;
}

static const struct architecture {
    const char *class_name, *model_type;
    bool qkv_bias, qk_norm;
    bool
        sizes_implied; /* absent head counts follow from others, as in LlamaConfig; elsewhere the library's defaults are of one model's size */
    bool window_implied; /* an absent sliding_window is one of 4096 */
    bool window_switch;  /* sliding_window counts only with use_sliding_window */
} architectures[] = {
    { .class_name = "LlamaForCausalLM", .model_type = "llama", .sizes_implied = true },
    { .class_name = "MistralForCausalLM", .model_type = "mistral", .window_implied = true },
    { .class_name = "Qwen2ForCausalLM", .model_type = "qwen2", .qkv_bias = true, .window_switch = true },
    { .class_name = "Qwen3ForCausalLM", .model_type = "qwen3", .qk_norm = true, .window_switch = true },
};

static enum status find_architecture(const struct json_in *in, const struct architecture **found_out, struct error *err)
{
    const json_t *list = json_find(in, "architectures");
    const char *type;
    char shown[64];
    bool found;
    if (!json_is_array(list) || json_array_size(list) != 1 || !json_is_string(json_array_get(list, 0)))
        REFUSE("%s: key architectures is missing, or not a list of one name", in->where);
    const struct architecture *a = NULL;
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++)
        if (strcmp(json_string_value(json_array_get(list, 0)), architectures[i].class_name) == 0)
            a = &architectures[i];
    if (!a)
        UNSUPPORTED("%s: key architectures: %s is not supported (Llama, Mistral, Qwen2 and Qwen3 ForCausalLM are)",
                    in->where, json_show(shown, sizeof shown, json_array_get(list, 0)));
    const enum status st = json_read_text(in, "model_type", &type, &found, err);
    if (st)
        return st;
    if (found && strcmp(type, a->model_type) != 0)
        UNSUPPORTED("%s: key model_type: %s is not supported (%s is, with %s)", in->where,
                    json_show(shown, sizeof shown, json_find(in, "model_type")), a->model_type, a->class_name);
    *found_out = a;
    return ST_OK;
}

static enum status check_layers(const struct json_in *in, struct error *err)
{
    const char *text;
    char shown[64];
    bool found;
    const enum status st = json_read_text(in, "hidden_act", &text, &found, err);
    if (st)
        return st;
    if (found && strcmp(text, "silu") != 0 && strcmp(text, "swish") != 0)
        UNSUPPORTED("%s: key hidden_act: %s is not supported (silu is)", in->where,
                    json_show(shown, sizeof shown, json_find(in, "hidden_act")));
    const json_t *layers = json_find(in, "layer_types");
    if (layers && !json_is_array(layers))
        REFUSE("%s: key layer_types is not a list", in->where);
    for (size_t i = 0; i < json_array_size(layers); i++) {
        const json_t *v = json_array_get(layers, i);
        if (!json_is_string(v) || strcmp(json_string_value(v), "full_attention") != 0)
            UNSUPPORTED("%s: key layer_types: %s is not supported (full_attention is)", in->where,
                        json_show(shown, sizeof shown, v));
    }
    return ST_OK;
}

/* A window that no position can outgrow is none. After the context length is known. */
static enum status check_window(const struct json_in *in, const struct architecture *a, const struct model_config *c,
                                struct error *err)
{
    const bool is_null = json_is_null(json_object_get(in->object, "sliding_window"));
    uint32_t window = 4096, first = 28;
    bool given, on = false, found;
    enum status st;
    if ((st = json_read_u32(in, "sliding_window", &window, &given, err)) ||
        (st = json_read_bool(in, "use_sliding_window", &on, &found, err)) ||
        (st = json_read_u32(in, "max_window_layers", &first, &found, err)))
        return st;
    if (on && !a->window_switch)
        UNSUPPORTED("%s: key use_sliding_window: true is not supported", in->where);
    const bool windowed = a->window_switch ? on && !is_null && first < c->n_layers && !json_find(in, "layer_types")
                                           : given || (a->window_implied && !is_null);
    if (windowed && window < c->positions_max)
        UNSUPPORTED("%s: key sliding_window%s: a window of %u, below the %u positions of the context, is not supported",
                    in->where, given ? "" : " is absent, which means 4096", window, c->positions_max);
    return ST_OK;
}

static enum status read_sizes(const struct json_in *in, const struct architecture *a, struct model_config *c,
                              struct error *err)
{
    bool has_kv, has_dim, found;
    double eps = 0;
    enum status st;
    if ((st = json_read_u32(in, "num_hidden_layers", &c->n_layers, NULL, err)) ||
        (st = json_read_u32(in, "hidden_size", &c->d_model, NULL, err)) ||
        (st = json_read_u32(in, "intermediate_size", &c->d_ff, NULL, err)) ||
        (st = json_read_u32(in, "num_attention_heads", &c->n_heads, NULL, err)) ||
        (st = json_read_u32(in, "num_key_value_heads", &c->n_kv_heads, &has_kv, err)) ||
        (st = json_read_u32(in, "head_dim", &c->head_dim, &has_dim, err)) ||
        (st = json_read_u32(in, "vocab_size", &c->n_vocab, NULL, err)) ||
        (st = json_read_u32(in, "max_position_embeddings", &c->positions_max, NULL, err)) ||
        (st = json_read_f64(in, "rms_norm_eps", &eps, NULL, err)) ||
        (st = json_read_bool(in, "tie_word_embeddings", &c->tied_output, &found, err)))
        return st;
    c->rms_eps = (float)eps;
    if (!has_kv && !a->sizes_implied)
        REFUSE("%s: key num_key_value_heads is missing", in->where);
    if (!has_dim && a->qk_norm) /* 128 in the library, whatever the other sizes are */
        REFUSE("%s: key head_dim is missing", in->where);
    if (!has_kv)
        c->n_kv_heads = c->n_heads;
    if (!has_dim) {
        if (c->n_heads == 0 || c->d_model % c->n_heads)
            REFUSE("%s: hidden_size %u is not a multiple of num_attention_heads %u, and head_dim is missing", in->where,
                   c->d_model, c->n_heads);
        c->head_dim = c->d_model / c->n_heads;
    }
    if (c->head_dim < 2 || c->head_dim > MODEL_HEAD_DIM_MAX || c->head_dim % 2)
        REFUSE("%s: key head_dim: head size %u (even, 2 to %d)", in->where, c->head_dim, MODEL_HEAD_DIM_MAX);
    return ST_OK;
}

/*
 * The context before scaling. Some files have it at the top, where the library lets it win over the scaling's own; two that differ are refused.
 */
static enum status read_original(const struct json_in *in, const struct json_in *sub, double fallback,
                                 double *positions_out, struct error *err)
{
    static const char key[] = "original_max_position_embeddings";
    double inner = fallback, top = fallback;
    bool has_inner, has_top;
    enum status st;
    if ((st = json_read_f64(sub, key, &inner, &has_inner, err)) || (st = json_read_f64(in, key, &top, &has_top, err)))
        return st;
    if (has_inner && has_top && inner != top)
        UNSUPPORTED("%s: keys %s (%g) and %s%s (%g) differ", in->where, key, top, sub->prefix, key, inner);
    if (!has_inner && !has_top && fallback == 0)
        REFUSE("%s: key %s%s is missing", in->where, sub->prefix, key);
    *positions_out = has_inner ? inner : top;
    if (!(*positions_out >= 1) || *positions_out > INT32_MAX)
        REFUSE("%s: key %s%s is %g (1 to %d)", in->where, sub->prefix, key, *positions_out, INT32_MAX);
    return ST_OK;
}

static enum status read_factor(const struct json_in *sub, double *factor_out, struct error *err)
{
    const enum status st = json_read_f64(sub, "factor", factor_out, NULL, err);
    if (!st && !(*factor_out >= 1 && *factor_out <= 1e9))
        REFUSE("%s: key %sfactor is %g (at least 1)", sub->where, sub->prefix, *factor_out);
    return st;
}

static enum status scale_llama3(const struct json_in *in, const struct json_in *sub, struct model_config *c,
                                struct error *err)
{
    struct rope_llama3 s;
    enum status st;
    if ((st = read_factor(sub, &s.factor, err)) ||
        (st = json_read_f64(sub, "low_freq_factor", &s.low_freq_factor, NULL, err)) ||
        (st = json_read_f64(sub, "high_freq_factor", &s.high_freq_factor, NULL, err)) ||
        (st = read_original(in, sub, 0, &s.positions_original, err)))
        return st;
    if (!(s.low_freq_factor > 0) || !(s.high_freq_factor > s.low_freq_factor))
        REFUSE("%s: %slow_freq_factor %g and high_freq_factor %g do not make sense", in->where, sub->prefix,
               s.low_freq_factor, s.high_freq_factor);
    rope_scale_llama3(&s, c->head_dim, c->inv_freq);
    return ST_OK;
}

static enum status scale_linear(const struct json_in *sub, struct model_config *c, struct error *err)
{
    double factor;
    const enum status st = read_factor(sub, &factor, err);
    if (!st)
        rope_scale_linear(factor, c->head_dim, c->inv_freq);
    return st;
}

/* The attention factor: given, or of mscale and mscale_all_dim, or of the factor alone. */
static enum status read_attention_factor(const struct json_in *sub, double factor, double *scale_out, struct error *err)
{
    double weight = 0, weight_all = 0;
    bool given, found;
    enum status st;
    if ((st = json_read_f64(sub, "attention_factor", scale_out, &given, err)) ||
        (st = json_read_f64(sub, "mscale", &weight, &found, err)) ||
        (st = json_read_f64(sub, "mscale_all_dim", &weight_all, &found, err)))
        return st;
    if (!given && weight != 0 && weight_all != 0)
        *scale_out = rope_yarn_attention(factor, weight) / rope_yarn_attention(factor, weight_all);
    else if (!given)
        *scale_out = rope_yarn_attention(factor, 1);
    if (!(*scale_out > 0) || *scale_out > 100)
        REFUSE("%s: %sattention_factor, given or of mscale and mscale_all_dim, is %g (above 0 to 100)", sub->where,
               sub->prefix, *scale_out);
    return ST_OK;
}

/* max_position_embeddings may still be the original's: then the scaled context is the longer one. */
static enum status scale_yarn(const struct json_in *in, const struct json_in *sub, double theta, struct model_config *c,
                              struct error *err)
{
    struct rope_yarn s = { .beta_fast = 32, .beta_slow = 1, .truncate = true };
    bool found;
    enum status st;
    if ((st = read_factor(sub, &s.factor, err)) ||
        (st = read_original(in, sub, c->positions_max, &s.positions_original, err)) ||
        (st = json_read_f64(sub, "beta_fast", &s.beta_fast, &found, err)) ||
        (st = json_read_f64(sub, "beta_slow", &s.beta_slow, &found, err)) ||
        (st = json_read_bool(sub, "truncate", &s.truncate, &found, err)) ||
        (st = read_attention_factor(sub, s.factor, &c->rope_scale, err)))
        return st;
    if (!(s.beta_slow > 0) || !(s.beta_fast >= s.beta_slow))
        REFUSE("%s: %sbeta_fast %g and beta_slow %g do not make sense", in->where, sub->prefix, s.beta_fast,
               s.beta_slow);
    if (!(theta > 1))
        REFUSE("%s: key rope_theta is %g (above 1 with %srope_type yarn)", in->where, theta, sub->prefix);
    rope_scale_yarn(&s, theta, c->head_dim, c->inv_freq);
    const double positions = fmin(floor(s.factor * s.positions_original), INT32_MAX);
    if (positions > c->positions_max)
        c->positions_max = (uint32_t)positions;
    return ST_OK;
}

/* rope_scaling, or rope_parameters of newer files, which holds theta too. */
static enum status read_rope(const struct json_in *in, struct model_config *c, struct error *err)
{
    static const char *const known[] = { "rope_theta",
                                         "rope_type",
                                         "type",
                                         "factor",
                                         "low_freq_factor",
                                         "high_freq_factor",
                                         "original_max_position_embeddings",
                                         "attention_factor",
                                         "beta_fast",
                                         "beta_slow",
                                         "mscale",
                                         "mscale_all_dim",
                                         "truncate",
                                         "finetuned" };
    const json_t *scaling = json_find(in, "rope_scaling"), *parameters = json_find(in, "rope_parameters");
    const json_t *object = scaling ? scaling : parameters;
    const struct json_in sub = { object, in->where, scaling ? "rope_scaling." : "rope_parameters." };
    const char *type = "default";
    double theta = 10000;
    bool found = false;
    enum status st;
    if (scaling && parameters)
        UNSUPPORTED("%s: keys rope_scaling and rope_parameters together are not supported", in->where);
    if (object && !json_is_object(object))
        REFUSE("%s: key %.*s is not an object", in->where, (int)strlen(sub.prefix) - 1, sub.prefix);
    if ((st = json_read_f64(in, "rope_theta", &theta, &found, err)))
        return st;
    if (object) {
        const char *old = NULL;
        if ((st = refuse_unknown_keys(&sub, known, sizeof known / sizeof *known, err)) ||
            (st = json_read_f64(&sub, "rope_theta", &theta, &found, err)) ||
            (st = json_read_text(&sub, "type", &old, &found, err)))
            return st;
        if (old)
            type = old;
        if ((st = json_read_text(&sub, "rope_type", &type, &found, err)))
            return st;
        if (old && strcmp(old, type) != 0)
            REFUSE("%s: keys %stype and rope_type differ", in->where, sub.prefix);
    }
    if (!isfinite(theta) || theta < 1)
        REFUSE("%s: key rope_theta is %g (at least 1)", in->where, theta);
    rope_default(theta, c->head_dim, c->inv_freq);
    c->rope_scale = 1;
    char shown[32];
    model_printable(shown, sizeof shown, type, strlen(type));
    snprintf(c->rope_name, sizeof c->rope_name, "%s", shown);
    if (strcmp(type, "default") == 0)
        return ST_OK;
    if (strcmp(type, "linear") == 0)
        return scale_linear(&sub, c, err);
    if (strcmp(type, "yarn") == 0)
        return scale_yarn(in, &sub, theta, c, err);
    if (strcmp(type, "llama3") == 0)
        return scale_llama3(in, &sub, c, err);
    UNSUPPORTED("%s: key %srope_type: %s is not supported (default, linear, yarn and llama3 are)", in->where,
                sub.prefix, shown);
}

/* An integer or a list of integers; n_eos stays 0 if the key is absent. */
static enum status read_eos(const struct json_in *in, struct model_config *c, struct error *err)
{
    const json_t *v = json_find(in, "eos_token_id");
    const size_t n = json_is_array(v) ? json_array_size(v) : v ? 1 : 0;
    if (n > MODEL_EOS_MAX)
        UNSUPPORTED("%s: key eos_token_id: %zu ids (at most %d)", in->where, n, MODEL_EOS_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= c->n_vocab)
            REFUSE("%s: key eos_token_id is not a token of the vocabulary of %u, or a list of such", in->where,
                   c->n_vocab);
        if (i == 0)
            c->n_eos = 0;
        model_eos_add(c, json_integer_value(id));
    }
    return ST_OK;
}

static enum status parse(const struct json_in *in, struct model_config *c, struct error *err)
{
    const struct architecture *a;
    uint32_t bos;
    bool found;
    enum status st;
    if ((st = find_architecture(in, &a, err)) || (st = check_layers(in, err)) ||
        (st = refuse_unknown_keys(in, known_keys, sizeof known_keys / sizeof *known_keys, err)) ||
        (st = read_sizes(in, a, c, err)) || (st = read_rope(in, c, err)) || (st = check_window(in, a, c, err)) ||
        (st = json_read_u32(in, "bos_token_id", &bos, &found, err)))
        return st;
    if (found && bos >= c->n_vocab)
        REFUSE("%s: key bos_token_id: %u is not in the vocabulary of %u", in->where, bos, c->n_vocab);
    c->bos = found ? (int32_t)bos : -1;
    snprintf(c->architecture, sizeof c->architecture, "%s", a->model_type);
    c->qkv_bias = a->qkv_bias;
    c->qk_norm = a->qk_norm;
    st = model_config_check(c, in->where, err);
    return st ? st : read_eos(in, c, err);
}

static enum status read_text(const char *text, size_t bytes, const char *where,
                             enum status (*fields)(const struct json_in *in, struct model_config *c, struct error *err),
                             struct model_config *c, struct error *err)
{
    json_t *root;
    enum status st = json_parse_object(text, bytes, where, &root, err);
    if (st)
        return st;
    const struct json_in in = { root, where, "" };
    st = fields(&in, c, err);
    json_decref(root);
    return st;
}

enum status hf_config_parse(const char *text, size_t bytes, const char *where, struct model_config *c,
                            struct error *err)
{
    return read_text(text, bytes, where, parse, c, err);
}

enum status hf_generation_parse(const char *text, size_t bytes, const char *where, struct model_config *c,
                                struct error *err)
{
    return read_text(text, bytes, where, read_eos, c, err);
}
