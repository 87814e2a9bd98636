/* cq-2b and cq-1b byte by byte, and attention over them, against an independent implementation: tests/golden/kv-codecs/make_cq.py says what a record is. */
#define _GNU_SOURCE /* mkdtemp */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "kernels/cpu/kv_cq.h"
#include "model/calibration.h"
#include "tests/unit/kernels/golden_fixture.h"

enum { D_MAX = 64 };

struct record {
    struct attn_shape shape;
    uint32_t block;
    float scale; /* of RoPE */
    const uint8_t *centroids[2], *open[2], *codes[2], *query, *answer;
    struct kv_book books[2];
    struct kv_angles angles;
    float first[2][D_MAX / 2];
    _Alignas(64) float step[2][D_MAX / 2 * KV_BLOCK];
};

static bool record_read(struct reader *r, struct record *out)
{
    if (!reader_left(r))
        return false;
    const uint32_t channels = reader_u32(r), d = reader_u32(r);
    out->block = reader_u32(r);
    out->scale = reader_f32(r);
    assert_true((channels == 4 || channels == 8) && d <= D_MAX);
    out->shape = (struct attn_shape){ d, channels == 4 ? KV_CQ_2B : KV_CQ_1B, 1 / sqrtf((float)d), out->books };
    for (int part = 0; part < 2; part++)
        out->centroids[part] = reader_take(r, (size_t)d * CQ_CENTROIDS * 2);
    for (int part = 0; part < 2; part++)
        out->open[part] = reader_take(r, (size_t)KV_BLOCK * d * 2);
    for (int part = 0; part < 2; part++)
        out->codes[part] = reader_take(r, (size_t)KV_BLOCK * d / channels);
    out->query = reader_take(r, 2 * (size_t)d);
    out->answer = reader_take(r, 4 * (2 + (size_t)d));
    assert_false(r->bad);
    return true;
}

/* The calibration of a model of one head, through its file. */
static struct calibration *calibration_of(const struct record *r, const char *directory)
{
    const uint32_t c = cq_channels(&r->shape);
    const struct calibration_origin origin = { .codec = "cq" };
    struct calibration_array arrays[2];
    struct calibration *out = NULL;
    char path[CALIBRATION_PATH];
    struct error err = { 0 };
    for (int part = 0; part < 2; part++) {
        arrays[part] = (struct calibration_array){ .type = CALIBRATION_BF16,
                                                   .n_dims = 5,
                                                   .dims = { 1, 1, r->shape.head_dim / c, CQ_CENTROIDS, c },
                                                   .data = r->centroids[part] };
        snprintf(arrays[part].name, sizeof arrays[part].name, "%s", part ? "values" : "keys");
    }
    assert_int_equal(calibration_write(NULL, directory, &origin, arrays, 2, NULL, path, &err), ST_OK);
    assert_int_equal(calibration_open(path, &out, &err), ST_OK);
    unlink(path);
    return out;
}

static void books_make(struct record *r, const struct calibration *c)
{
    const struct kv_calibrated *of = kv_codecs[r->shape.codec].calibrated;
    const uint32_t half = r->shape.head_dim / 2;
    struct error err = { 0 };
    if (of->check(&r->shape, 1, 1, c, &err))
        fail_msg("%s", err.text);
    assert_int_equal(of->check(&r->shape, 2, 1, c, NULL), ST_INVALID);
    for (uint32_t i = 0; i < half; i++) {
        const double turn = pow(10000, -(double)i / half), at = r->block * KV_BLOCK * turn;
        r->first[0][i] = (float)cos(at);
        r->first[1][i] = (float)sin(at);
        for (uint32_t j = 0; j < KV_BLOCK; j++) {
            r->step[0][i * KV_BLOCK + j] = (float)(cos(j * turn) * (double)r->scale);
            r->step[1][i * KV_BLOCK + j] = (float)(sin(j * turn) * (double)r->scale);
        }
    }
    r->angles = (struct kv_angles){ { r->first[0], r->first[1] },
                                    { r->step[0], r->step[1] },
                                    (float)(1 / ((double)r->scale * (double)r->scale)) };
    for (int part = 0; part < 2; part++) {
        void *book = aligned_alloc(64, of->book_bytes(&r->shape));
        of->book(&r->shape, c, 0, 0, part == 1, book);
        r->books[part] = (struct kv_book){ book, part == 1, &r->angles };
    }
}

static void check_sealed(const struct record *r, const struct attn_impl *it, uint8_t *k_part, uint8_t *v_part)
{
    const struct attn_shape open = { r->shape.head_dim, KV_BF16, r->shape.scale, NULL };
    const struct attn_impl *plain = attn_find(&open, 0);
    const size_t bytes = plain->part_bytes(&open), n = it->part_bytes(&r->shape);
    uint8_t *k = aligned_alloc(64, bytes), *v = aligned_alloc(64, bytes);
    float key[D_MAX], value[D_MAX];
    for (uint32_t t = 0; t < KV_BLOCK; t++) {
        floats_of(r->open[0] + 2 * (size_t)t * open.head_dim, open.head_dim, key);
        floats_of(r->open[1] + 2 * (size_t)t * open.head_dim, open.head_dim, value);
        plain->store(&open, t, key, value, k, v);
    }
    assert_true(it->seal(&r->shape, k, v, k_part, v_part));
    assert_memory_equal(k_part, r->codes[0], n);
    assert_memory_equal(v_part, r->codes[1], n);
    free(k);
    free(v);
}

static void check_attended(const struct record *r, const struct attn_impl *it, const uint8_t *k_part,
                           const uint8_t *v_part)
{
    const uint32_t d = r->shape.head_dim;
    const struct attn_shape open = { d, KV_BF16, r->shape.scale, NULL };
    struct attn_shape shape = r->shape;
    const struct attn_impl *plain = attn_find(&open, 0);
    const size_t bytes = plain->part_bytes(&open);
    uint8_t *k = aligned_alloc(64, bytes), *v = aligned_alloc(64, bytes);
    void *tile = aligned_alloc(64, (plain->q_tile_bytes(&open) + 63) / 64 * 64);
    float query[D_MAX], want[2 + D_MAX],
        *partial = aligned_alloc(64, (attn_partial_floats(d) * sizeof(float) + 63) / 64 * 64);
    const float *queries[1] = { query };
    const uint8_t all = KV_BLOCK;
    it->expand(&shape, k_part, NULL, k);
    shape.books++;
    it->expand(&shape, v_part, NULL, v);
    floats_of(r->query, d, query);
    memcpy(want, r->answer, (2 + d) * sizeof(float));
    plain->pack_q(&open, queries, 1, tile);
    plain->block(&open, tile, 1, &all, k, v, NULL, partial);
    assert_true(fabsf(partial[0] - want[0]) < 5e-3f * (1 + fabsf(want[0])));
    assert_true(distance(partial + ATTN_ROWS, want + 1, 1) < 1e-2);
    if (distance(partial + 2 * ATTN_ROWS, want + 2, d) >= 1e-2)
        fail_msg("%s %s, head_dim %u: o is off by %g", kv_codecs[r->shape.codec].name, it->name, d,
                 distance(partial + 2 * ATTN_ROWS, want + 2, d));
    free(k);
    free(v);
    free(tile);
    free(partial);
}

static void as_in_numpy(void **state)
{
    (void)state;
    static uint8_t data[1 << 19];
    static struct record record;
    char directory[] = "/tmp/longspan-cq-XXXXXX";
    FILE *f = fopen(LONGSPAN_SOURCE_DIR "/tests/golden/kv-codecs/cq.bin", "rb");
    assert_non_null(f);
    assert_non_null(mkdtemp(directory));
    struct reader r = reader_of(data, fread(data, 1, sizeof data, f));
    fclose(f);
    uint32_t n = 0;
    cpu_thread_init();
    for (; record_read(&r, &record); n++) {
        struct calibration *c = calibration_of(&record, directory);
        books_make(&record, c);
        calibration_close(c);
        const size_t part = attn_find(&record.shape, 0)->part_bytes(&record.shape);
        uint8_t *k_part = aligned_alloc(64, part), *v_part = aligned_alloc(64, part);
        for (uint32_t i = 0; i < n_coded_impls; i++)
            if (!(coded_impls[i].needs & ~cpu_caps()) && coded_impls[i].accepts(&record.shape)) {
                check_sealed(&record, &coded_impls[i], k_part, v_part);
                check_attended(&record, &coded_impls[i], k_part, v_part);
            }
        free(k_part);
        free(v_part);
        free((void *)(uintptr_t)record.books[0].data);
        free((void *)(uintptr_t)record.books[1].data);
    }
    assert_int_equal(n, 4);
    assert_int_equal(rmdir(directory), 0);
}

/* Bytes of bf16: 2 and 1 bits of 16. */
static void sizes(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        const struct attn_shape coded = { 128, i ? KV_CQ_1B : KV_CQ_2B, 1, NULL }, plain = { 128, KV_BF16, 1, NULL };
        assert_int_equal(attn_find(&coded, 0)->part_bytes(&coded) * (i ? 16 : 8),
                         attn_find(&plain, 0)->part_bytes(&plain));
        assert_int_equal(kv_codecs[coded.codec].granule, 1);
    }
    const struct attn_shape odd = { 20, KV_CQ_1B, 1, NULL };
    assert_null(attn_find(&odd, 0));
}

/* Numbers that could become infinite where they are turned are refused by place. */
static void too_large(void **state)
{
    (void)state;
    const struct attn_shape shape = { 16, KV_CQ_1B, 1, NULL };
    static uint16_t centroids[16 * CQ_CENTROIDS];
    char directory[] = "/tmp/longspan-cq-XXXXXX", path[CALIBRATION_PATH];
    const struct calibration_origin origin = { .codec = "cq-1b" };
    const struct calibration_array arrays[2] = {
        { .name = "keys", .type = CALIBRATION_BF16, .n_dims = 5, .dims = { 1, 1, 2, 256, 8 }, .data = centroids },
        { .name = "values", .type = CALIBRATION_BF16, .n_dims = 5, .dims = { 1, 1, 2, 256, 8 }, .data = centroids },
    };
    struct calibration *c;
    struct error err = { 0 };
    assert_non_null(mkdtemp(directory));
    centroids[77] = f32_to_bf16(1e30f);
    assert_int_equal(calibration_write(NULL, directory, &origin, arrays, 2, NULL, path, &err), ST_OK);
    assert_int_equal(calibration_open(path, &c, &err), ST_OK);
    assert_int_equal(kv_calibrated_cq.check(&shape, 1, 1, c, &err), ST_INVALID);
    assert_non_null(strstr(err.text, "array keys: element 77 is"));
    calibration_close(c);
    unlink(path);
    assert_int_equal(rmdir(directory), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_in_numpy),
        cmocka_unit_test(sizes),
        cmocka_unit_test(too_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
