/* What codecs lose in place: bounds of each form's groups, agreement with what is served, and refusal of numbers that are none. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/rng.h"
#include "kernels/kv_loss.h"

enum { D = 64, N = KV_BLOCK * D };

static size_t key_at(uint32_t t, uint32_t i)
{
    return ((size_t)(i / 2) * KV_BLOCK + t) * 2 + i % 2;
}
static size_t value_at(uint32_t t, uint32_t i)
{
    return ((size_t)(t / 2) * D + i) * 2 + t % 2;
}

/* Keys have an offset a channel, values one a position. */
static void fill(uint16_t *k, uint16_t *v, double offset)
{
    for (uint32_t t = 0; t < KV_BLOCK; t++)
        for (uint32_t i = 0; i < D; i++) {
            const double x = rng_unit(rng_at(1, t, i)) - 0.5, y = rng_unit(rng_at(2, t, i)) - 0.5;
            k[key_at(t, i)] = f32_to_bf16((float)(x + offset * (i % 7 - 3.0)));
            v[value_at(t, i)] = f32_to_bf16((float)(y + offset * (t % 5 - 2.0)));
        }
}

/* The largest of |lost| less what bf16 itself may round. */
static double most_lost(const uint16_t *was, const uint16_t *is)
{
    double most = 0;
    for (uint32_t i = 0; i < N; i++) {
        const double a = (double)bf16_to_f32(was[i]), b = (double)bf16_to_f32(is[i]);
        most = fmax(most, fabs(a - b) - fabs(b) * 0x1p-8);
    }
    return most;
}

static void lose(const char *name, double offset, double *keys_out, double *values_out)
{
    _Alignas(64) uint16_t k[N], v[N], was_k[N], was_v[N];
    fill(k, v, offset);
    memcpy(was_k, k, sizeof k);
    memcpy(was_v, v, sizeof v);
    assert_true(kv_form_lose(kv_form_find(name), D, k, v));
    *keys_out = most_lost(was_k, k);
    *values_out = most_lost(was_v, v);
    assert_true(*keys_out > 0 && *values_out > 0);
}

/* Half a step of a group that spans 1 is 1 / (2 top); one that mixes channels of offsets apart has to span them all. */
static void test_groups(void **state)
{
    (void)state;
    double keys, values;
    lose("kivi2-64", 10, &keys, &values);
    assert_true(keys <= 1.0 / 6 + 0.05 && values <= 1.0 / 6 + 0.05);
    lose("kivi4-64", 10, &keys, &values);
    assert_true(keys <= 1.0 / 30 + 0.05 && values <= 1.0 / 30 + 0.05);
    lose("int4", 10, &keys, &values);
    assert_true(keys > 10 * (1.0 / 30) && values <= 1.0 / 30 + 0.05);
    lose("int4", 0, &keys, &values);
    assert_true(keys <= 1.0 / 30 + 0.002 && values <= 1.0 / 30 + 0.002);
}

static void test_sizes(void **state)
{
    (void)state;
    assert_null(kv_form_find("kivi2"));
    assert_null(kv_form_find(""));
    uint32_t n = 0;
    for (const char *name; (name = kv_form_name(n)); n++) {
        const struct kv_form *form = kv_form_find(name);
        assert_non_null(form);
        assert_true(kv_form_accepts(form, 64) && kv_form_accepts(form, 128));
        assert_false(kv_form_accepts(form, 8) || kv_form_accepts(form, 512) || kv_form_accepts(form, 72));
    }
    assert_int_equal(n, 4);
    /* a position's keys of 64 channels at 2 bits are 16 bytes, a group's scale and least 4 */
    assert_int_equal(kv_form_bytes(kv_form_find("kivi2-64"), D), 2 * 64 * 16 + 64 * 4 + 64 * 2 * 4);
    assert_int_equal(kv_form_bytes(kv_form_find("int4"), D), 2 * 64 * 32 + 2 * 64 * 4);
}

/* Keys of saw-int4 are those of int4-rot to the bit; what int8 loses is half a step of a position's largest. */
static void test_served(void **state)
{
    (void)state;
    _Alignas(64) uint16_t k[N], v[N], saw_k[N], saw_v[N];
    void *scratch = aligned_alloc(64, 2 * N * sizeof(uint16_t));
    assert_non_null(scratch);
    fill(k, v, 1);
    memcpy(saw_k, k, sizeof k);
    memcpy(saw_v, v, sizeof v);
    const struct attn_shape rot = { D, KV_INT4_ROT, 0.125f, NULL };
    assert_true(kv_codec_lose(attn_find(&rot, cpu_caps()), &rot, scratch, k, v));
    assert_true(kv_form_lose(kv_form_find("saw-int4"), D, saw_k, saw_v));
    assert_memory_equal(k, saw_k, sizeof k);
    assert_memory_not_equal(v, saw_v, sizeof v);
    const struct attn_shape shapes[] = { { D, KV_INT8, 0.125f, NULL },
                                         { D, KV_FP8, 0.125f, NULL },
                                         { D, KV_BF16_LOSSLESS, 0.125f, NULL } };
    const double most[] = { 3.5 / 254 + 0.001, 3.5 / 16, 0 };
    for (int i = 0; i < 3; i++) {
        _Alignas(64) uint16_t was_k[N], was_v[N];
        fill(k, v, 1);
        memcpy(was_k, k, sizeof k);
        memcpy(was_v, v, sizeof v);
        assert_true(kv_codec_lose(attn_find(&shapes[i], cpu_caps()), &shapes[i], scratch, k, v));
        assert_true(most_lost(was_k, k) <= most[i] && most_lost(was_v, v) <= most[i]);
        assert_true(!memcmp(was_k, k, sizeof k) == (i == 2));
    }
    /* every exponent there is, so that bf16-lossless spills: nothing is lost either */
    uint16_t was[N];
    for (uint32_t i = 0; i < N; i++)
        was[i] = k[i] = v[i] = (uint16_t)(i % 255 << 7 | i % 128);
    assert_true(kv_codec_lose(attn_find(&shapes[2], cpu_caps()), &shapes[2], scratch, k, v));
    assert_memory_equal(was, k, sizeof k);
    assert_memory_equal(was, v, sizeof v);
    free(scratch);
}

static void test_not_finite(void **state)
{
    (void)state;
    _Alignas(64) uint16_t k[N], v[N];
    void *scratch = aligned_alloc(64, 2 * N * sizeof(uint16_t));
    assert_non_null(scratch);
    for (int part = 0; part < 2; part++) {
        fill(k, v, 0);
        (part ? v : k)[77] = 0x7F80; /* infinity */
        assert_false(kv_form_lose(kv_form_find("int4"), D, k, v));
        fill(k, v, 0);
        (part ? v : k)[77] = 0x7F80;
        const struct attn_shape shape = { D, KV_INT8, 0.125f, NULL };
        assert_false(kv_codec_lose(attn_find(&shape, 0), &shape, scratch, k, v));
    }
    free(scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_served),
        cmocka_unit_test(test_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
