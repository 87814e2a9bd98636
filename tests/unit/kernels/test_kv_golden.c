/* Sealed blocks byte by byte, and attention over them, against an independent implementation: tests/golden/kv-codecs/make.py says what a record is. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "kernels/cpu/kv_expand.h"
#include "kernels/kernels.h"
#include "tests/unit/kernels/golden_fixture.h"

enum { D_MAX = 256 };

struct record {
    struct attn_shape shape;
    const uint8_t *keys, *values, *k_part, *v_part, *query, *answer;
};

static bool record_read(struct reader *r, struct record *out)
{
    static const enum kv_codec codecs[] = { KV_INT8, KV_INT4_ROT, KV_FP8, KV_KIVI4, KV_KIVI2, KV_BF16_LOSSLESS };
    if (!reader_left(r))
        return false;
    const uint32_t codec = reader_u32(r), d = reader_u32(r);
    assert_true(codec < sizeof codecs / sizeof *codecs && d <= D_MAX);
    out->shape = (struct attn_shape){ d, codecs[codec], 1 / sqrtf((float)d), NULL };
    const size_t open = (size_t)KV_BLOCK * d * 2, part = attn_find(&out->shape, 0)->part_bytes(&out->shape);
    out->keys = reader_take(r, open);
    out->values = reader_take(r, open);
    out->k_part = reader_take(r, part);
    out->v_part = reader_take(r, part);
    out->query = reader_take(r, 2 * (size_t)d);
    out->answer = reader_take(r, 4 * (2 + (size_t)d));
    assert_false(r->bad);
    return true;
}

static void check_sealed(const struct record *r, uint8_t *k_part, uint8_t *v_part)
{
    const struct attn_shape open = { r->shape.head_dim, KV_BF16, r->shape.scale, NULL };
    const struct attn_impl *plain = attn_find(&open, 0), *coded = attn_find(&r->shape, 0);
    const size_t open_bytes = plain->part_bytes(&open), part = coded->part_bytes(&r->shape);
    uint8_t *k = aligned_alloc(64, open_bytes), *v = aligned_alloc(64, open_bytes);
    float key[D_MAX], value[D_MAX];
    for (uint32_t t = 0; t < KV_BLOCK; t++) {
        floats_of(r->keys + 2 * (size_t)t * open.head_dim, open.head_dim, key);
        floats_of(r->values + 2 * (size_t)t * open.head_dim, open.head_dim, value);
        plain->store(&open, t, key, value, k, v);
    }
    assert_true(coded->seal(&r->shape, k, v, k_part, v_part));
    for (size_t i = 0; i < part; i++)
        if (k_part[i] != r->k_part[i] || v_part[i] != r->v_part[i])
            fail_msg("%s, head_dim %u: byte %zu: keys %02x, should be %02x; values %02x, should be %02x",
                     kv_codecs[r->shape.codec].name, open.head_dim, i, k_part[i], r->k_part[i], v_part[i],
                     r->v_part[i]);
    free(k);
    free(v);
}

static void check_attended(const struct record *r, const struct attn_impl *it, const uint8_t *k_part,
                           const uint8_t *v_part)
{
    const uint32_t d = r->shape.head_dim;
    float query[D_MAX], want[2 + D_MAX];
    const float *queries[1] = { query };
    const uint8_t all = KV_BLOCK;
    const size_t tile_bytes = (it->q_tile_bytes(&r->shape) + 63) / 64 * 64;
    void *tile = aligned_alloc(64, tile_bytes);
    float *partial = aligned_alloc(64, (attn_partial_floats(d) * sizeof(float) + 63) / 64 * 64);
    floats_of(r->query, d, query);
    memcpy(want, r->answer, (2 + d) * sizeof(float));
    it->pack_q(&r->shape, queries, 1, tile);
    it->block(&r->shape, tile, 1, &all, k_part, v_part, NULL, partial);
    if (it->rotate)
        it->rotate(&r->shape, 1, partial);
    assert_true(fabsf(partial[0] - want[0]) < 1e-3f * (1 + fabsf(want[0])));
    assert_true(distance(partial + ATTN_ROWS, want + 1, 1) < 2e-3);
    if (distance(partial + 2 * ATTN_ROWS, want + 2, d) >= 2e-3)
        fail_msg("%s %s, head_dim %u: o is off by %g", kv_codecs[r->shape.codec].name, it->name, d,
                 distance(partial + 2 * ATTN_ROWS, want + 2, d));
    free(tile);
    free(partial);
}

/* The open form's kernel over what a variant expands. */
static void check_expanded(const struct record *r, const struct attn_impl *it, const uint8_t *k_part,
                           const uint8_t *v_part)
{
    struct record open = *r;
    open.shape.codec = kv_codecs[r->shape.codec].open;
    const struct attn_impl *plain = attn_find(&open.shape, 0);
    const size_t bytes = plain->part_bytes(&open.shape);
    uint8_t *k = aligned_alloc(64, bytes), *v = aligned_alloc(64, bytes);
    it->expand(&r->shape, k_part, v_part, k);
    it->expand(&r->shape, v_part, NULL, v);
    check_attended(&open, plain, k, v);
    free(k);
    free(v);
}

static void as_in_numpy(void **state)
{
    (void)state;
    static uint8_t data[1 << 20];
    FILE *f = fopen(LONGSPAN_SOURCE_DIR "/tests/golden/kv-codecs/codecs.bin", "rb");
    assert_non_null(f);
    struct reader r = reader_of(data, fread(data, 1, sizeof data, f));
    fclose(f);
    struct record record;
    uint32_t n = 0;
    cpu_thread_init();
    for (; record_read(&r, &record); n++) {
        const size_t part = attn_find(&record.shape, 0)->part_bytes(&record.shape);
        uint8_t *k_part = aligned_alloc(64, part), *v_part = aligned_alloc(64, part);
        check_sealed(&record, k_part, v_part);
        for (uint32_t i = 0; i < n_coded_impls; i++)
            if (!(coded_impls[i].needs & ~cpu_caps()) && coded_impls[i].accepts(&record.shape))
                (coded_impls[i].expand ? check_expanded : check_attended)(&record, &coded_impls[i], k_part, v_part);
        free(k_part);
        free(v_part);
    }
    assert_int_equal(n, 19);
}

/* Names as a user gives them. */
static void names(void **state)
{
    (void)state;
    enum kv_codec codec = KV_CODECS;
    struct error err = { 0 };
    assert_int_equal(kv_codec_find("int4-rot", false, &codec, &err), ST_OK);
    assert_int_equal(codec, KV_INT4_ROT);
    assert_int_equal(kv_codec_find("bf16", true, &codec, &err), ST_OK);
    assert_int_equal(codec, KV_F32);
    assert_int_equal(kv_codec_find("int4", false, &codec, &err), ST_INVALID);
    assert_non_null(strstr(err.text, "bf16, int8, int4-rot"));
    err = (struct error){ 0 };
    assert_int_equal(kv_codec_find("float32", true, &codec, &err), ST_INVALID);
    err = (struct error){ 0 };
    assert_int_equal(kv_codec_find("int8", true, &codec, &err), ST_UNSUPPORTED);
    assert_non_null(strstr(err.text, "float32"));
    for (int i = 0; i < KV_CODECS; i++)
        for (int j = 0; j < i; j++)
            assert_int_not_equal(kv_codecs[i].version, kv_codecs[j].version); /* the pool tells layouts apart by it */
}

/* Each of E4M3's numbers is itself again, and between two of them the nearer is chosen, or the even one. */
static void e4m3(void **state)
{
    (void)state;
    for (uint32_t code = 0; code < 0x7F; code++) {
        const float x = kv_e4m3_to_f32((uint8_t)code), next = kv_e4m3_to_f32((uint8_t)(code + 1)),
                    half = (x + next) / 2;
        const uint32_t e = code >> 3, m = code & 7;
        assert_true(x == (e ? ldexpf(1 + (float)m / 8, (int)e - 7) : ldexpf((float)m, -9)));
        assert_int_equal(kv_e4m3_of(x), code);
        assert_int_equal(kv_e4m3_of(-x), code | 0x80);
        assert_int_equal(kv_e4m3_of(nextafterf(half, 0)), code);
        if (code < 0x7E) {
            assert_int_equal(kv_e4m3_of(half), code + code % 2);
            assert_int_equal(kv_e4m3_of(nextafterf(half, next)), code + 1);
        }
    }
    assert_int_equal(kv_e4m3_of(1e30f), 0x7E);
}

/* All that a block takes against bf16, with one block of 32 k positions open beside its place: what the codecs promise. */
static void sizes(void **state)
{
    (void)state;
    static const struct {
        uint32_t head_dim;
        double most;
    } bounds[] = { { 64, 0.295 }, { 128, 0.275 } };
    for (int i = 0; i < 2; i++) {
        const struct attn_shape coded = { bounds[i].head_dim, KV_INT4_ROT, 1, NULL },
                                plain = { bounds[i].head_dim, KV_BF16, 1, NULL };
        const double part = (double)attn_find(&coded, 0)->part_bytes(&coded),
                     open = (double)attn_find(&plain, 0)->part_bytes(&plain), n = 32768.0 / KV_BLOCK;
        assert_true((n * part + open) / (n * open) <= bounds[i].most);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_in_numpy),
        cmocka_unit_test(names),
        cmocka_unit_test(e4m3),
        cmocka_unit_test(sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
