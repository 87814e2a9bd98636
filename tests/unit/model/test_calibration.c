#define _GNU_SOURCE /* memmem, mkdtemp */
/* Calibration files: what was written is read; every broken one is refused by name; and which one is a model's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/file.h"
#include "model/calibration.h"

static char directory[64];

static const struct calibration_origin origin = { .codec = "cq-2b",
                                                  .method = "kmeans",
                                                  .model = "00112233445566778899aabbccddeeff",
                                                  .text = "ffeeddccbbaa99887766554433221100",
                                                  .tokens = 16384,
                                                  .sequence = 1024,
                                                  .seed = 7 };
static const float keys[6] = { 1, 2, 3, -4, 5, 6 };
static const uint16_t values[3] = { 0x3F80, 0, 0x4000 };

static void write_one(const char *path, const struct calibration_origin *o, struct digest *digest, char *path_out)
{
    const struct calibration_array arrays[] = {
        { .name = "keys", .type = CALIBRATION_F32, .n_dims = 2, .dims = { 2, 3 }, .data = keys },
        { .name = "values", .type = CALIBRATION_BF16, .n_dims = 1, .dims = { 3 }, .data = values },
    };
    struct error err = { 0 };
    char in[128];
    snprintf(in, sizeof in, "%s/calibration", directory);
    assert_int_equal(calibration_write(path, in, o, arrays, 2, digest, path_out, &err), ST_OK);
}

static void test_round_trip(void **state)
{
    (void)state;
    char path[CALIBRATION_PATH], text[33];
    struct digest digest;
    struct error err = { 0 };
    struct calibration *c;
    const void *data;
    uint32_t dims[2];
    write_one(NULL, &origin, &digest, path);
    digest_text(&digest, text);
    assert_non_null(strstr(path, "/calibration/cq-2b-"));
    assert_memory_equal(strstr(path, "cq-2b-") + 6, text, 16);
    assert_int_equal(calibration_open(path, &c, &err), ST_OK);
    assert_memory_equal(calibration_digest(c), &digest, sizeof digest);
    assert_memory_equal(calibration_origin(c), &origin, sizeof origin);
    assert_int_equal(calibration_array(c, "keys", CALIBRATION_F32, 2, (const uint32_t[]){ 0, 3 }, dims, &data, &err),
                     ST_OK);
    assert_int_equal(dims[0], 2);
    assert_memory_equal(data, keys, sizeof keys);
    assert_int_equal((uintptr_t)data % 64, 0);
    assert_int_equal(calibration_array(c, "values", CALIBRATION_BF16, 1, (const uint32_t[]){ 3 }, NULL, &data, &err),
                     ST_OK);
    assert_memory_equal(data, values, sizeof values);
    assert_int_equal(calibration_array(c, "queries", CALIBRATION_F32, 1, dims, NULL, &data, NULL), ST_NOT_FOUND);
    assert_int_equal(calibration_array(c, "keys", CALIBRATION_BF16, 2, dims, NULL, &data, NULL), ST_INVALID);
    assert_int_equal(calibration_array(c, "keys", CALIBRATION_F32, 2, (const uint32_t[]){ 3, 3 }, NULL, &data, NULL),
                     ST_INVALID);
    calibration_close(c);
    /* the same again is the same file */
    char again[CALIBRATION_PATH];
    write_one(NULL, &origin, NULL, again);
    assert_string_equal(path, again);
    assert_int_equal(remove(path), 0);
}

static void test_find(void **state)
{
    (void)state;
    struct calibration_origin other = origin;
    struct digest model;
    char path[CALIBRATION_PATH], found[CALIBRATION_PATH], gguf[128];
    struct error err = { 0 };
    for (int i = 0; i < 16; i++)
        model.byte[i] = (uint8_t)(i * 0x11);
    assert_int_equal(calibration_find(directory, "cq-2b", &model, found, &err), ST_NOT_FOUND);
    assert_non_null(strstr(err.text, "longspan calibrate --model "));
    write_one(NULL, &origin, NULL, path);
    snprintf(other.model, sizeof other.model, "%032d", 1);
    write_one(NULL, &other, NULL, NULL); /* of another model */
    assert_int_equal(calibration_find(directory, "cq-2b", &model, found, &err), ST_OK);
    assert_string_equal(found, path);
    snprintf(gguf, sizeof gguf, "%s/some.gguf", directory);
    assert_int_equal(file_write_atomic(gguf, "x", 1, &err), ST_OK);
    assert_int_equal(calibration_find(gguf, "cq-2b", &model, found, &err), ST_OK);
    assert_string_equal(found, path);
    assert_int_equal(calibration_find(directory, "cq-1b", &model, found, NULL), ST_NOT_FOUND);
    assert_int_equal(calibration_find("random:tiny", "cq-2b", &model, found, NULL), ST_INVALID);
    other = origin;
    other.seed = 8;
    write_one(NULL, &other, NULL, NULL);
    err = (struct error){ 0 };
    assert_int_equal(calibration_find(directory, "cq-2b", &model, found, &err), ST_INVALID);
    assert_non_null(strstr(err.text, "several"));
}

/* A whole file with one thing changed, and its digest made to fit where `fit`. */
static enum status opened(const uint8_t *file, size_t bytes, bool fit, struct error *err)
{
    uint8_t *copy = aligned_alloc(64, (bytes + 63) / 64 * 64);
    struct calibration *c = NULL;
    memcpy(copy, file, bytes);
    if (fit && bytes > 32) {
        const struct digest d = digest_of(copy + 32, bytes - 32);
        memcpy(copy + 16, d.byte, 16);
    }
    memset(err, 0, sizeof *err);
    const enum status st = calibration_open_bytes(copy, bytes, "file", &c, err);
    calibration_close(c);
    free(copy);
    return st;
}

static void test_broken(void **state)
{
    (void)state;
    char path[CALIBRATION_PATH], *file;
    size_t bytes;
    struct error err = { 0 };
    snprintf(path, sizeof path, "%s/one", directory);
    write_one(path, &origin, NULL, NULL);
    assert_int_equal(file_read(path, 1 << 20, &file, &bytes, &err), ST_OK);
    uint8_t *at = (uint8_t *)file;
    assert_int_equal(opened(at, bytes, true, &err), ST_OK);
    for (size_t n = 0; n < bytes; n++)
        assert_int_not_equal(opened(at, n, true, &err), ST_OK);
    for (size_t i = 0; i < bytes; i++) {
        at[i] ^= 1;
        assert_int_not_equal(opened(at, bytes, false, &err), ST_OK);
        at[i] ^= 1;
    }
    uint8_t *keys_at = memmem(at, bytes, keys, sizeof keys);
    assert_non_null(keys_at);
    memcpy(keys_at + 4, "\0\0\x80\x7f", 4);
    assert_int_equal(opened(at, bytes, true, &err), ST_CORRUPT);
    assert_string_equal(err.text, "file: array keys: element 1 is not finite");
    memcpy(keys_at + 4, &keys[1], 4);
    static const struct {
        const char *old, *new, *says;
    } edits[] = {
        { "\"shape\":[2,3]", "\"shape\":[9,3]", "array keys reaches beyond" },
        { "\"shape\":[2,3]", "\"shape\":[1,3]", "between arrays" },
        { "\"shape\":[2,3]", "\"shape\":[0,3]", "entry 0" },
        { "\"type\":\"bf16\"", "\"type\":\"bf17\"", "arrays[1].type" },
        { "\"values\"", "\"keys\"  ", "two arrays" },
        { "\"tokens\":16384", "\"tokens\":-6384", "tokens" },
        { "\"codec\"", "\"kodec\"", "codec" },
    };
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        uint8_t *to = memmem(at, bytes, edits[i].old, strlen(edits[i].old));
        assert_non_null(to);
        memcpy(to, edits[i].new, strlen(edits[i].new));
        assert_int_equal(opened(at, bytes, true, &err), ST_CORRUPT);
        if (!strstr(err.text, edits[i].says))
            fail_msg("edit %zu: %s", i, err.text);
        memcpy(to, edits[i].old, strlen(edits[i].old));
    }
    at[8] = 2;
    assert_int_equal(opened(at, bytes, true, &err), ST_UNSUPPORTED);
    free(file);
}

static int setup(void **state)
{
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/longspan-calibration-XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return file_remove_tree(directory, NULL) ? -1 : 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_find),
        cmocka_unit_test(test_broken),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
