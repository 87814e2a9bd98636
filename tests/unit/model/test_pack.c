/* Packs: what they hold, that they are taken up after a stop, that they replace nothing else, and what is refused. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/file.h"
#include "model/pack_format.h"

#define MIXED                                                                                                          \
    "random:layers=2,d=256,heads=4,kv=2,head_dim=64,ff=256,vocab=300,positions=512,qkv_bias=1,qk_norm=1,codec=%s:2:5"

static char dir[64], out[80], partial[96];

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/longspan-pack-XXXXXX");
    if (!mkdtemp(dir))
        return 1;
    snprintf(out, sizeof out, "%s/made", dir);
    snprintf(partial, sizeof partial, "%s/made.partial", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    return file_remove_tree(dir, NULL);
}

static struct model *open_model(const char *spec)
{
    struct model *m;
    struct error err = { 0 };
    if (model_open(spec, &m, &err))
        fail_msg("%s: %s", spec, err.text);
    return m;
}

static struct model *open_mixed(const char *codec)
{
    char spec[256];
    snprintf(spec, sizeof spec, MIXED, codec);
    return open_model(spec);
}

/* Rows that no calibration made: any bytes will do for a pack. */
static uint8_t made_byte(const struct model_tensor *t, size_t i)
{
    return (uint8_t)(t->kind * 31 + t->layer * 17 + i * 13 + i / 256);
}

static enum status make_rows(void *ctx, const struct model_tensor *t, enum weight_codec codec, const uint8_t **rows_out,
                             struct error *err)
{
    uint8_t **kept = ctx;
    const size_t bytes = t->n_rows * weight_row_bytes(codec, t->n_cols);
    (void)err;
    free(*kept);
    *kept = malloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        (*kept)[i] = made_byte(t, i);
    *rows_out = *kept;
    return ST_OK;
}

static void write_pack(const struct model *m, enum pack_weights weights, const char *to)
{
    struct error err = { 0 };
    uint8_t *kept = NULL;
    const struct pack_options options = {
        .weights = weights, .quantize = make_rows, .quantize_ctx = &kept, .quantized = "{\"method\":\"none\"}"
    };
    if (pack_write(m, to, &options, NULL, &err))
        fail_msg("%s: %s", to, err.text);
    free(kept);
}

static uint16_t rounded(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

/* Every row of every tensor: as it was, or rounded to bf16. */
static void expect_rows(const struct model *m, const struct model *made, enum pack_weights weights)
{
    for (int k = 0; k < MODEL_TENSOR_KINDS; k++)
        for (uint32_t layer = 0; layer < model_config(m)->n_layers; layer++) {
            struct model_tensor a, b;
            const enum status st = model_tensor(m, (enum model_tensor_kind)k, layer, &a);
            assert_int_equal(model_tensor(made, (enum model_tensor_kind)k, layer, &b), st);
            if (st)
                continue;
            const bool same = a.n_rows == 1 || weights == PACK_AS_IS;
            assert_int_equal(model_tensor_check(&b, NULL), ST_OK);
            if (pack_weights_calibrated(weights) && a.n_rows > 1 && model_kind_layered((enum model_tensor_kind)k)) {
                assert_int_equal(b.codec, (int)WEIGHT_LEANQUANT_4 + ((int)weights - (int)PACK_LEANQUANT_4));
                for (size_t i = 0; i < b.stored_bytes; i++)
                    assert_int_equal(((const uint8_t *)b.data)[i], made_byte(&a, i));
                continue;
            }
            assert_int_equal(b.codec, same                   ? a.codec
                                      : weights == PACK_BF16 ? WEIGHT_BF16
                                      : b.lossless           ? WEIGHT_LOSSLESS_FAST
                                      : b.df11               ? WEIGHT_DF11
                                                             : WEIGHT_BF16);
            assert_true(same || !b.lossless || weights == PACK_LOSSLESS_FAST);
            assert_true(same || !b.df11 || weights == PACK_DF11);
            if (!same && weights == PACK_DF11 && (uint64_t)b.n_rows * b.n_cols > 16384)
                assert_int_equal(b.codec, WEIGHT_DF11);
            if (b.codec == WEIGHT_LOSSLESS_FAST || b.codec == WEIGHT_DF11)
                assert_true(b.stored_bytes < (uint64_t)b.n_rows * b.n_cols * 2);
            uint8_t *one = aligned_alloc(64, 4096), *two = aligned_alloc(64, 4096);
            float wide[512];
            for (uint32_t r = 0; r < a.n_rows; r++) {
                const void *was = model_tensor_row(&a, r, one), *is = model_tensor_row(&b, r, two);
                if (same) {
                    assert_memory_equal(was, is, a.row_bytes);
                    continue;
                }
                weight_row_f32(a.codec, was, a.n_cols, wide);
                for (uint32_t i = 0; i < a.n_cols; i++)
                    assert_int_equal(((const uint16_t *)is)[i], rounded(wide[i]));
            }
            free(one);
            free(two);
        }
}

static void expect_vocabulary(const struct model_vocab *a, const struct model_vocab *b)
{
    assert_int_equal(a->kind, b->kind);
    assert_int_equal(a->n_tokens, b->n_tokens);
    for (uint32_t i = 0; i < a->n_tokens; i++) {
        assert_int_equal(a->tokens[i].type, b->tokens[i].type);
        assert_int_equal(a->tokens[i].bytes, b->tokens[i].bytes);
        if (a->tokens[i].bytes)
            assert_memory_equal(a->tokens[i].text, b->tokens[i].text, a->tokens[i].bytes);
    }
    assert_int_equal(a->n_merges, b->n_merges);
    for (uint32_t i = 0; i < a->n_merges; i++) {
        assert_int_equal(a->merges[i].left_bytes, b->merges[i].left_bytes);
        assert_int_equal(a->merges[i].right_bytes, b->merges[i].right_bytes);
        assert_memory_equal(a->merges[i].left, b->merges[i].left, a->merges[i].left_bytes);
        assert_memory_equal(a->merges[i].right, b->merges[i].right, a->merges[i].right_bytes);
    }
    assert_int_equal(a->scores != NULL, b->scores != NULL);
    if (a->scores)
        assert_memory_equal(a->scores, b->scores, a->n_tokens * sizeof *a->scores);
    assert_int_equal(a->space_prefix, b->space_prefix);
    assert_int_equal(a->ignore_merges, b->ignore_merges);
    assert_int_equal(a->tokenizer_json_bytes, b->tokenizer_json_bytes);
    const char *const texts[][2] = { { a->pre, b->pre },
                                     { a->tokenizer_json, b->tokenizer_json },
                                     { a->chat_template, b->chat_template },
                                     { a->eos_text, b->eos_text } };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        assert_int_equal(texts[i][0] != NULL, texts[i][1] != NULL);
        if (texts[i][0])
            assert_string_equal(texts[i][0], texts[i][1]);
    }
}

static void test_holds_the_model(void **state)
{
    (void)state;
    static const char *const codecs[] = { "bf16", "f32",           "f16",  "q8_0",        "q4_1",
                                          "q6_k", "lossless-fast", "df11", "leanquant-3", "q4_z" };
    for (size_t i = 0; i <= sizeof codecs / sizeof *codecs; i++) {
        const bool copy = i == sizeof codecs / sizeof *codecs; /* zeros all over, and angles that are drawn */
        struct model *m = copy ? open_model("constructed:copy") : open_mixed(codecs[i]);
        for (int w = 0; w < PACK_WEIGHTS_KINDS; w++) {
            char to[96];
            snprintf(to, sizeof to, "%s/%zu-%d", dir, i, w);
            write_pack(m, (enum pack_weights)w, to);
            struct model *made = open_model(to);
            assert_memory_equal(model_config(m), model_config(made), sizeof(struct model_config));
            expect_vocabulary(model_vocab(m), model_vocab(made));
            expect_rows(m, made, (enum pack_weights)w);
            /* a pack of a pack says the same */
            snprintf(to, sizeof to, "%s/%zu-%d-again", dir, i, w);
            write_pack(made, PACK_AS_IS, to);
            struct model *again = open_model(to);
            const struct digest a = model_digest(made), b = model_digest(again);
            assert_memory_equal(&a, &b, sizeof a);
            model_close(again);
            model_close(made);
        }
        model_close(m);
    }
}

/* A vocabulary with everything that one can have. */
static void test_vocabulary(void **state)
{
    (void)state;
    struct model *m = open_mixed("bf16");
    static const struct model_merge merges[] = { { "a", "bc", 1, 2 }, { "\0x", "", 2, 0 } };
    float scores[300];
    for (int i = 0; i < 300; i++)
        scores[i] = (float)-i / 3;
    m->vocab.kind = MODEL_VOCAB_SENTENCEPIECE;
    m->vocab.merges = merges;
    m->vocab.n_merges = 2;
    m->vocab.scores = scores;
    m->vocab.space_prefix = m->vocab.ignore_merges = true;
    m->vocab.pre = "llama-bpe";
    m->vocab.tokenizer_json = "{\"x\": 1}";
    m->vocab.tokenizer_json_bytes = 8;
    m->vocab.chat_template = "{{ bos_token }}\n\xC3\xA4";
    m->vocab.eos_text = "</s>";
    m->config.bos = 7;
    m->config.add_bos = true;
    model_eos_add(&m->config, 11);
    write_pack(m, PACK_BF16, out);
    struct model *made = open_model(out);
    assert_memory_equal(model_config(m), model_config(made), sizeof(struct model_config));
    expect_vocabulary(model_vocab(m), model_vocab(made));
    model_close(made);
    model_close(m);
}

/* ---- stopping and going on ---- */

static bool stop_after(void *ctx)
{
    int *left = ctx;
    return --*left < 0;
}

static void expect_same_files(const char *a, const char *b)
{
    static const char *const names[] = { PACK_HEADER, PACK_WEIGHTS, PACK_VOCABULARY };
    for (size_t i = 0; i < 3; i++) {
        char path[2][160], *text[2];
        size_t bytes[2];
        snprintf(path[0], sizeof path[0], "%s/%s", a, names[i]);
        snprintf(path[1], sizeof path[1], "%s/%s", b, names[i]);
        for (int k = 0; k < 2; k++)
            assert_int_equal(file_read(path[k], 1 << 28, &text[k], &bytes[k], NULL), ST_OK);
        assert_int_equal(bytes[0], bytes[1]);
        assert_memory_equal(text[0], text[1], bytes[0]);
        free(text[0]);
        free(text[1]);
    }
}

static void flip(const char *path, long at)
{
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    fseek(f, at, at < 0 ? SEEK_END : SEEK_SET);
    const int c = fgetc(f);
    fseek(f, -1, SEEK_CUR);
    fputc(c ^ 4, f);
    fclose(f);
}

static void test_goes_on(void **state)
{
    (void)state;
    struct model *m = open_mixed("bf16");
    char whole[96], path[128];
    snprintf(whole, sizeof whole, "%s/whole", dir);
    write_pack(m, PACK_LOSSLESS_FAST, whole);
    uint32_t before = 0;
    for (int stop = 30;; stop = 60) {
        struct pack_options options = { .weights = PACK_LOSSLESS_FAST, .stop = stop_after, .ctx = &stop };
        struct error err = { 0 };
        uint32_t resumed = 0;
        const enum status st = pack_write(m, out, &options, &resumed, &err);
        assert_true(resumed >= before);
        before = resumed;
        if (st == ST_OK)
            break;
        assert_int_equal(st, ST_CANCELLED);
        assert_non_null(strstr(err.text, ".partial"));
        assert_false(file_exists(out));
    }
    assert_true(before > 2);
    assert_false(file_exists(partial));
    expect_same_files(whole, out);
    file_remove_tree(out, NULL);
    /* bytes that never reached the disk, a torn line, a journal of something else */
    for (int damage = 0; damage < 3; damage++) {
        int stop = 100;
        uint32_t resumed = 99;
        struct pack_options options = { .weights = PACK_LOSSLESS_FAST, .stop = stop_after, .ctx = &stop };
        assert_int_equal(pack_write(m, out, &options, NULL, NULL), ST_CANCELLED);
        snprintf(path, sizeof path, "%s/%s", partial, damage == 0 ? PACK_WEIGHTS : "journal");
        if (damage == 1) {
            struct stat info;
            assert_int_equal(stat(path, &info), 0);
            assert_int_equal(truncate(path, info.st_size - 7), 0);
        } else {
            flip(path, damage == 0 ? 100 : 5);
        }
        options.stop = NULL;
        assert_int_equal(pack_write(m, out, &options, &resumed, NULL), ST_OK);
        if (damage == 1)
            assert_true(resumed > 0);
        else
            assert_int_equal(resumed, 0);
        expect_same_files(whole, out);
        file_remove_tree(out, NULL);
    }
    model_close(m);
}

static void test_replaces_only_its_like(void **state)
{
    (void)state;
    struct model *m = open_mixed("bf16");
    struct pack_options options = { .weights = PACK_LOSSLESS_FAST };
    struct error err = { 0 };
    struct stat first, second;
    write_pack(m, PACK_LOSSLESS_FAST, out);
    assert_int_equal(stat(out, &first), 0);
    write_pack(m, PACK_LOSSLESS_FAST, out);
    assert_int_equal(stat(out, &second), 0);
    assert_int_not_equal(first.st_ino, second.st_ino);
    assert_false(file_exists(partial));
    options.weights = PACK_BF16;
    assert_int_equal(pack_write(m, out, &options, NULL, &err), ST_EXISTS);
    assert_non_null(strstr(err.text, "as lossless-fast"));
    struct model *other = open_model("constructed:copy");
    options.weights = PACK_LOSSLESS_FAST;
    assert_int_equal(pack_write(other, out, &options, NULL, NULL), ST_EXISTS);
    model_close(other);
    model_close(open_model(out));
    /* a header that is damaged is no pack; neither is an empty directory, or a file */
    char path[128];
    snprintf(path, sizeof path, "%s/" PACK_HEADER, out);
    flip(path, 40);
    memset(&err, 0, sizeof err);
    assert_int_equal(pack_write(m, out, &options, NULL, &err), ST_EXISTS);
    assert_non_null(strstr(err.text, "no finished pack"));
    file_remove_tree(out, NULL);
    assert_int_equal(mkdir(out, 0700), 0);
    assert_int_equal(pack_write(m, out, &options, NULL, NULL), ST_EXISTS);
    assert_int_equal(rmdir(out), 0);
    assert_int_equal(file_write_atomic(out, "mine", 4, NULL), ST_OK);
    assert_int_equal(pack_write(m, out, &options, NULL, NULL), ST_EXISTS);
    unlink(out);
    model_close(m);
}

static void test_calibrated_takes_rows(void **state)
{
    (void)state;
    struct model *m = open_mixed("bf16");
    const struct pack_options options = { .weights = PACK_LEANQUANT_3 };
    struct error err = { 0 };
    assert_int_equal(pack_write(m, out, &options, NULL, &err), ST_INVALID);
    assert_non_null(strstr(err.text, "leanquant-3 takes a calibration"));
    assert_false(file_exists(out));
    model_close(m);
}

static void test_one_at_a_time(void **state)
{
    (void)state;
    struct model *m = open_mixed("bf16");
    const struct pack_options options = { .weights = PACK_BF16 };
    assert_int_equal(mkdir(partial, 0700), 0);
    const int fd = open(partial, O_RDONLY | O_DIRECTORY);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    assert_int_equal(pack_write(m, out, &options, NULL, NULL), ST_BUSY);
    close(fd);
    write_pack(m, PACK_BF16, out);
    model_close(m);
}

static void test_full_disk(void **state)
{
    (void)state;
    struct model *m = open_mixed("bf16");
    const struct pack_options options = { .weights = PACK_BF16 };
    struct rlimit was;
    struct error err = { 0 };
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    const struct rlimit small = { 300000, was.rlim_max };
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    const enum status st = pack_write(m, out, &options, NULL, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    assert_int_equal(st, ST_TOO_LARGE);
    assert_non_null(strstr(err.text, PACK_WEIGHTS));
    assert_false(file_exists(out));
    write_pack(m, PACK_BF16, out);
    model_close(open_model(out));
    model_close(m);
}

/* ---- what is refused ---- */

static void test_flipped_bits(void **state)
{
    (void)state;
    struct model *m = open_mixed("bf16"), *made;
    struct model_tensor t;
    char path[128];
    write_pack(m, PACK_LOSSLESS_FAST, out);
    model_close(m);
    snprintf(path, sizeof path, "%s/" PACK_WEIGHTS, out);
    flip(path, -1000);
    made = open_model(out);
    int bad = 0, good = 0;
    for (int k = 0; k < MODEL_TENSOR_KINDS; k++)
        for (uint32_t layer = 0; layer < 2; layer++)
            if (!model_tensor(made, (enum model_tensor_kind)k, layer, &t)) {
                struct error err = { 0 };
                if (!model_tensor_check(&t, &err)) {
                    good++;
                    continue;
                }
                bad++;
                assert_int_equal(err.status, ST_CORRUPT);
                assert_non_null(strstr(err.text, "checksum"));
            }
    assert_int_equal(bad, 1);
    assert_true(good > 10);
    model_close(made);
    snprintf(path, sizeof path, "%s/" PACK_VOCABULARY, out);
    flip(path, 50);
    struct error err = { 0 };
    assert_int_equal(model_open(out, &made, &err), ST_CORRUPT);
    assert_non_null(strstr(err.text, "vocabulary.file.checksum"));
}

/* The header of `out` with the value at a path of keys replaced ("tensors/3/rows"), or taken away (value NULL), and a checksum that fits. */
static void edit_header(const json_t *whole, const char *place, const char *value)
{
    char keys[96], path[128], checksum[33], *save;
    json_t *root = json_deep_copy(whole), *at = root;
    snprintf(keys, sizeof keys, "%s", place);
    char *key = strtok_r(keys, "/", &save), *next;
    for (; (next = strtok_r(NULL, "/", &save)); key = next)
        at = json_is_array(at) ? json_array_get(at, (size_t)atoi(key)) : json_object_get(at, key);
    assert_non_null(at);
    json_t *v = value ? json_loads(value, JSON_DECODE_ANY, NULL) : NULL;
    if (json_is_array(at))
        json_array_set_new(at, (size_t)atoi(key), v);
    else if (v)
        json_object_set_new(at, key, v);
    else
        json_object_del(at, key);
    const struct digest d = pack_header_digest(root);
    digest_text(&d, checksum);
    if (strcmp(place, "checksum"))
        json_object_set_new(root, "checksum", json_string(checksum));
    snprintf(path, sizeof path, "%s/" PACK_HEADER, out);
    assert_int_equal(json_dump_file(root, path, JSON_REAL_PRECISION(17)), 0);
    json_decref(root);
}

static void test_hostile_header(void **state)
{
    (void)state;
    static const struct {
        const char *place, *value, *named;
    } cases[] = {
        { "format", "\"longspan pact\"", "key format" },
        { "version", "2", "key version is 2" },
        { "version", NULL, "version" },
        { "checksum", "\"00000000000000000000000000000000\"", "key checksum" },
        { "checksum", "\"xyz\"", "key checksum" },
        { "config", "[]", "key config" },
        { "config/layers", "0", "layers" },
        { "config/layers", "4000000", "layers" },
        { "config/layers", "1", "layer" },
        { "config/heads", "-4", "config.heads" },
        { "config/kv_heads", "3", "KV heads" },
        { "config/head_dim", "100000", "config.head_dim" },
        { "config/vocabulary", "301", "vocabulary" },
        { "config/inv_freq", "[1]", "config.inv_freq" },
        { "config/inv_freq/0", "\"x\"", "config.inv_freq" },
        { "config/inv_freq/0", "1e300", "RoPE frequency" },
        { "config/rms_eps", "7", "config.rms_eps" },
        { "config/rope_scale", "0", "attention factor" },
        { "config/bos", "300", "config.bos" },
        { "config/eos", "[1,2,3,4,5,6,7,8,9]", "config.eos" },
        { "config/eos", "[300]", "config.eos" },
        { "config/architecture", "\"0123456789012345678901234567890123456789\"", "config.architecture" },
        { "vocabulary/kind", "\"words\"", "vocabulary.kind" },
        { "vocabulary/tokens", "299", "vocabulary.tokens" },
        { "vocabulary/tokens", "4294967295", "vocabulary.tokens" },
        { "vocabulary/merges", "1000000", "vocabulary.merges" },
        { "vocabulary/scores", "true", "scores are cut off" },
        { "vocabulary/file/bytes", "5", "vocabulary.file.bytes" },
        { "vocabulary/file/checksum", "\"0\"", "vocabulary.file.checksum" },
        { "vocabulary/tokenizer", "{\"bytes\": 9, \"checksum\": \"00000000000000000000000000000000\"}",
          "vocabulary.tokenizer.bytes" },
        { "vocabulary/chat_template", "3", "vocabulary.chat_template" },
        { "tensors", "{}", "key tensors" },
        { "tensors/0", "7", "tensors[0]" },
        { "tensors/0/kind", "\"attn_x\"", "tensors[0].kind" },
        { "tensors/0/layer", "1", "tensors[0].layer" },
        { "tensors/0/codec", "\"Q3_K\"", "tensors[0].codec" },
        { "tensors/0/rows", "299", "299 x" },
        { "tensors/0/cols", "0", "x 0" },
        { "tensors/0/offset", "1", "tensors[0].offset" },
        { "tensors/0/offset", "64000000", "tensors[0].offset" },
        { "tensors/0/offset", "9223372036854775744", "tensors[0].offset" },
        { "tensors/0/offset", "-64", "tensors[0].offset" },
        { "tensors/0/bytes", "9223372036854775807", "tensors[0].offset" },
        { "tensors/0/bytes", "64", "tensors[0].escapes" },
        { "tensors/1/bytes", "64", "tensors[1].bytes" },
        { "tensors/0/checksum", "\"zz\"", "tensors[0].checksum" },
        { "tensors/0/layout", "2", "tensors[0].layout is 2" },
        { "tensors/0/class_bits", "5", "tensors[0].class_bits" },
        { "tensors/0/class_bits", "4", "tensors[0].escapes" },
        { "tensors/0/escapes", "9223372036854775807", "tensors[0].escapes" },
        { "tensors/0/escapes", "1", "tensors[0].escapes" },
        { "tensors/2", "{}", "tensors[2].kind" },
    };
    struct model *m = open_mixed("bf16");
    char path[128];
    write_pack(m, PACK_LOSSLESS_FAST, out);
    model_close(m);
    snprintf(path, sizeof path, "%s/" PACK_HEADER, out);
    json_t *whole = json_load_file(path, 0, NULL);
    assert_non_null(whole);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = { 0 };
        edit_header(whole, cases[i].place, cases[i].value);
        const enum status st = model_open(out, &m, &err);
        if (!st || !strstr(err.text, cases[i].named) || !strstr(err.text, PACK_HEADER))
            fail_msg("%s = %s: %s, '%s'", cases[i].place, cases[i].value ? cases[i].value : "nothing", status_text(st),
                     err.text);
    }
    edit_header(whole, "version", "1"); /* the edit itself is no fault */
    model_close(open_model(out));
    json_decref(whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_holds_the_model, setup, teardown),
        cmocka_unit_test_setup_teardown(test_vocabulary, setup, teardown),
        cmocka_unit_test_setup_teardown(test_goes_on, setup, teardown),
        cmocka_unit_test_setup_teardown(test_replaces_only_its_like, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_at_a_time, setup, teardown),
        cmocka_unit_test_setup_teardown(test_calibrated_takes_rows, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_disk, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flipped_bits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_hostile_header, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
