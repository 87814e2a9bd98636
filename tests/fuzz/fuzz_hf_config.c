/* fuzz-libs: longspan_model */
/* The JSON files of a Hugging Face directory. The first byte says which one the rest is. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/hf.h"
#include "model/quantized.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static enum status config(const char *text, size_t bytes, struct error *err)
{
    struct model_config c = { 0 };
    const enum status st = hf_config_parse(text, bytes, "memory", &c, err);
    if (!st &&
        (c.head_dim > MODEL_HEAD_DIM_MAX || c.n_eos > MODEL_EOS_MAX || !c.n_kv_heads || c.n_heads % c.n_kv_heads))
        abort();
    if (!st && !(c.rope_scale > 0 && c.rope_scale <= 100))
        abort();
    for (uint32_t i = 0; !st && i < c.head_dim / 2; i++)
        if (!isfinite(c.inv_freq[i]))
            abort();
    return st;
}

static enum status quantization(const char *text, size_t bytes, struct error *err)
{
    struct quantized_config c;
    const enum status st = quantized_config_parse(text, bytes, "memory", &c, err);
    if (!st && c.method && (c.bits < 2 || c.bits > 8 || c.group > MODEL_WIDTH_MAX))
        abort();
    return st;
}

static enum status tokenizer(const char *text, size_t bytes, bool settings, struct error *err)
{
    volatile char sink = 0;
    struct model *m = model_new(&model_source_hf);
    if (!m)
        abort();
    m->config.n_vocab = 300;
    const enum status st = settings ? hf_tokenizer_config_parse(m, text, bytes, "memory", err)
                                    : hf_tokenizer_parse(m, text, bytes, "memory", err);
    for (uint32_t i = 0; !st && i < m->vocab.n_tokens; i++)
        if (m->vocab.tokens[i].bytes)
            sink ^= m->vocab.tokens[i].text[m->vocab.tokens[i].bytes - 1];
    for (uint32_t i = 0; !st && i < m->vocab.n_merges; i++)
        sink ^= (char)(m->vocab.merges[i].left[0] ^ m->vocab.merges[i].right[m->vocab.merges[i].right_bytes - 1]);
    model_close(m);
    return st;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct error err = { 0 };
    struct model_config c = { .n_vocab = 300 };
    enum status st;
    if (!bytes)
        return 0;
    const char *text = (const char *)data + 1;
    switch (data[0]) {
    case 'c':
        st = config(text, bytes - 1, &err);
        break;
    case 'q':
        st = quantization(text, bytes - 1, &err);
        break;
    case 'g':
        st = hf_generation_parse(text, bytes - 1, "memory", &c, &err);
        break;
    case 't':
        st = tokenizer(text, bytes - 1, false, &err);
        break;
    case 's':
        st = tokenizer(text, bytes - 1, true, &err);
        break;
    default:
        return 0;
    }
    if (st && (err.status != st || !err.text[0]))
        abort();
    return 0;
}
