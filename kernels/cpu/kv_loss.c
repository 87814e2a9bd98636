#include "kernels/kv_loss.h"

#include <string.h>

#include "common/f16.h"
#include "kernels/cpu/kv.h"
#include "kernels/kv_spill.h"

enum { D_MAX = 256 };

/* group: positions of a channel (keys), channels of a position (values) that have a scale together; 0: keys by position, values by head. */
struct kv_form {
    const char *name;
    uint32_t bits, key_group, value_group;
    bool rotate_keys;
};

static const struct kv_form forms[] = {
    { "int4", 4, 0, 0, false },
    { "saw-int4", 4, 0, 0, true },
    { "kivi4-64", 4, KV_BLOCK, 32, false },
    { "kivi2-64", 2, KV_BLOCK, 32, false },
};

const struct kv_form *kv_form_find(const char *name)
{
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (!strcmp(forms[i].name, name))
            return &forms[i];
    return NULL;
}

const char *kv_form_name(uint32_t i)
{
    return i < sizeof forms / sizeof *forms ? forms[i].name : NULL;
}

bool kv_form_accepts(const struct kv_form *form, uint32_t head_dim)
{
    return head_dim >= 16 && head_dim <= D_MAX && head_dim % 16 == 0 &&
           (!form->value_group || head_dim % form->value_group == 0);
}

size_t kv_form_bytes(const struct kv_form *form, uint32_t head_dim)
{
    const size_t codes = (size_t)KV_BLOCK * head_dim * form->bits / 8, n = (size_t)KV_BLOCK * head_dim,
                 keys = form->key_group ? n / form->key_group : KV_BLOCK,
                 values = form->value_group ? n / form->value_group : KV_BLOCK;
    return 2 * codes + (keys + values) * 2 * sizeof(uint16_t);
}

/* Where channel i of position t stands in an open part. */
static size_t key_at(uint32_t t, uint32_t i)
{
    return ((size_t)(i / 2) * KV_BLOCK + t) * 2 + i % 2;
}
static size_t value_at(uint32_t head_dim, uint32_t t, uint32_t i)
{
    return ((size_t)(t / 2) * head_dim + i) * 2 + t % 2;
}

/* x [n] becomes what its codes stand for. */
static bool lose_group(uint32_t bits, float *x, uint32_t n)
{
    uint8_t code[D_MAX];
    uint16_t scale, least;
    const bool finite = kv_quantize_affine(x, n, (1u << bits) - 1, code, &scale, &least);
    for (uint32_t i = 0; i < n; i++)
        x[i] = f16_to_f32(scale) * (float)code[i] + f16_to_f32(least);
    return finite;
}

static bool lose_keys(const struct kv_form *f, uint32_t head_dim, uint16_t *k)
{
    const bool by_channel = f->key_group > 0;
    const uint32_t lines = by_channel ? head_dim : KV_BLOCK, n = by_channel ? KV_BLOCK : head_dim,
                   group = by_channel ? f->key_group : n;
    bool finite = true;
    for (uint32_t line = 0; line < lines; line++) {
        float x[D_MAX];
        for (uint32_t i = 0; i < n; i++)
            x[i] = bf16_to_f32(k[by_channel ? key_at(i, line) : key_at(line, i)]);
        if (f->rotate_keys)
            kv_rotate(x, n, kv_rotation_order(n));
        for (uint32_t i = 0; i < n; i += group)
            finite = lose_group(f->bits, x + i, group) && finite;
        if (f->rotate_keys)
            kv_rotate(x, n, kv_rotation_order(n));
        for (uint32_t i = 0; i < n; i++)
            k[by_channel ? key_at(i, line) : key_at(line, i)] = f32_to_bf16(x[i]);
    }
    return finite;
}

static bool lose_values(const struct kv_form *f, uint32_t head_dim, uint16_t *v)
{
    const uint32_t group = f->value_group ? f->value_group : head_dim;
    bool finite = true;
    for (uint32_t t = 0; t < KV_BLOCK; t++) {
        float x[D_MAX];
        for (uint32_t i = 0; i < head_dim; i++)
            x[i] = bf16_to_f32(v[value_at(head_dim, t, i)]);
        for (uint32_t i = 0; i < head_dim; i += group)
            finite = lose_group(f->bits, x + i, group) && finite;
        for (uint32_t i = 0; i < head_dim; i++)
            v[value_at(head_dim, t, i)] = f32_to_bf16(x[i]);
    }
    return finite;
}

bool kv_form_lose(const struct kv_form *form, uint32_t head_dim, uint16_t *k_open, uint16_t *v_open)
{
    const bool keys = lose_keys(form, head_dim, k_open);
    return lose_values(form, head_dim, v_open) && keys;
}

/* ---- codecs that are served ---- */

/* The code of channel i of position t, in the layouts of kernels/cpu/kv.h. */
static float code_at(const struct attn_shape *s, const uint8_t *part, bool values, uint32_t t, uint32_t i)
{
    const uint32_t d = s->head_dim;
    if (s->codec == KV_INT8)
        return (float)(int8_t)part[values ? ((t / 4) * d + i) * 4 + t % 4 : ((i / 4) * KV_BLOCK + t) * 4 + i % 4];
    const uint32_t half = values ? KV_BLOCK / 2 : d / 2, of = values ? t : i, at = of % half;
    const uint8_t two = part[values ? ((at / 4) * d + i) * 4 + at % 4 : ((at / 4) * KV_BLOCK + t) * 4 + at % 4];
    return (float)(of < half ? two & 15 : two >> 4);
}

static void expand_integers(const struct attn_shape *s, const uint8_t *part, bool values, uint16_t *open)
{
    const uint32_t d = s->head_dim;
    const bool affine = s->codec == KV_INT4_ROT;
    for (uint32_t t = 0; t < KV_BLOCK; t++) {
        const float scale = f16_to_f32(kv_scales(s, part)[t]), least = affine ? f16_to_f32(kv_leasts(s, part)[t]) : 0;
        float x[D_MAX];
        for (uint32_t i = 0; i < d; i++)
            x[i] = scale * code_at(s, part, values, t, i) + least;
        if (affine)
            kv_rotate(x, d, kv_rotation_order(d));
        for (uint32_t i = 0; i < d; i++)
            open[values ? value_at(d, t, i) : key_at(t, i)] = f32_to_bf16(x[i]);
    }
}

bool kv_codec_lose(const struct attn_impl *impl, const struct attn_shape *shape, void *scratch, uint16_t *k_open,
                   uint16_t *v_open)
{
    uint8_t *const part[2] = { scratch, (uint8_t *)scratch + impl->part_bytes(shape) };
    uint16_t *const open[2] = { k_open, v_open };
    if (!impl->seal(shape, k_open, v_open, part[0], part[1]))
        return false;
    const struct kv_spill spill = kv_spill_of(shape);
    for (int values = 0; values < 2; values++) {
        if (kv_spilled(&spill, part[values])) /* all of it is kept */
            continue;
        struct attn_shape of = *shape;
        of.books = shape->books ? &shape->books[values] : NULL;
        if (impl->expand)
            impl->expand(&of, part[values], NULL, open[values]);
        else
            expand_integers(&of, part[values], values, open[values]);
    }
    return true;
}
