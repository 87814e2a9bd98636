/* Records and blobs of jobs: what is written comes back, and what is damaged is refused by name. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/file.h"
#include "coordinator/jobs/blobs.h"
#include "coordinator/jobs/jobs_internal.h"

static struct job_record sample(void)
{
    return (struct job_record){ .id = "job-0123456789abcdef0123456789abcdef",
                                .kind = JOB_HTTP,
                                .state = JOB_DONE,
                                .url = "/v1/completions",
                                .name = "caf\xc3\xa9 \"7\"",
                                .home = "00112233445566778899aabbccddeeff",
                                .body = "ffeeddccbbaa99887766554433221100",
                                .output = "0123456789abcdef0123456789abcdef",
                                .body_bytes = 12,
                                .output_bytes = 1u << 31,
                                .seed = UINT64_MAX,
                                .created_ms = 1700000000000,
                                .finished_ms = 1700000000001,
                                .http_status = 200,
                                .error_code = 3,
                                .prompt_tokens = 4,
                                .completion_tokens = UINT32_MAX,
                                .error = "why" };
}

static void test_record(void **state)
{
    (void)state;
    struct job_record r = sample(), back;
    struct error err = { 0 };
    char *text;
    assert_int_equal(job_record_write(&r, &text), ST_OK);
    memset(&back, 0x55, sizeof back);
    if (job_record_read(text, strlen(text), &back, &err))
        fail_msg("%s", err.text);
    assert_memory_equal(&r, &back, sizeof r);
    free(text);
    /* what runs is queued for whoever reads it */
    r.state = JOB_RUNNING;
    assert_int_equal(job_record_write(&r, &text), ST_OK);
    assert_int_equal(job_record_read(text, strlen(text), &back, &err), ST_OK);
    assert_int_equal(back.state, JOB_QUEUED);
    /* every proper beginning is refused */
    for (size_t n = 0; n < strlen(text); n++)
        assert_int_equal(job_record_read(text, n, &back, NULL), ST_CORRUPT);
    free(text);
}

static void refuse_with(const char *from, const char *to, const char *says)
{
    struct job_record r = sample(), back;
    struct error err = { 0 };
    char *text, changed[4096];
    assert_int_equal(job_record_write(&r, &text), ST_OK);
    const char *at = strstr(text, from);
    assert_non_null(at);
    snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    assert_int_equal(job_record_read(changed, strlen(changed), &back, &err), ST_CORRUPT);
    if (!strstr(err.text, says))
        fail_msg("'%s' does not name %s", err.text, says);
    free(text);
}

static void test_bad_records(void **state)
{
    (void)state;
    char long_name[300];
    memset(long_name, 'n', sizeof long_name);
    memcpy(long_name, "\"name\":\"", 8);
    snprintf(long_name + 200, 100, "\",\"x\":\"");
    refuse_with("\"version\":1", "\"version\":2", "version");
    refuse_with("\"done\"", "\"running\"", "state");
    refuse_with("\"http\"", "\"carrier pigeon\"", "kind");
    refuse_with("job-0123", "../etc/0", "id");
    refuse_with("\"name\":\"", long_name, "name");
    refuse_with("ffeedd", "FFEEDD", "body");
    refuse_with("\"ffeeddccbbaa99887766554433221100\"", "\"\"", "body");
    refuse_with("\"18446744073709551615\"", "\"18446744073709551616\"", "seed");
    refuse_with("\"18446744073709551615\"", "17", "seed");
    refuse_with("4294967295", "4294967296", "completion_tokens");
    refuse_with("\"prompt_tokens\":4", "\"prompt_tokens\":-4", "prompt_tokens");
    refuse_with("\"error\"", "\"terror\"", "error");
}

static bool keep_one(void *ctx, const char *name)
{
    return !strcmp(name, ctx);
}

static void test_blobs(void **state)
{
    (void)state;
    char dir[] = "/tmp/longspan-blobs-XXXXXX", digest[33], other[33], name[128], path[256];
    char *data;
    struct error err = { 0 };
    assert_non_null(mkdtemp(dir));
    assert_int_equal(blob_write(dir, "job-1", "body\0y", 6, digest, &err), ST_OK);
    assert_int_equal(blob_write(dir, "job-1", "", 0, other, &err), ST_OK);
    assert_int_equal(blob_read(dir, "job-1", digest, 6, &data, &err), ST_OK);
    assert_memory_equal(data, "body\0y", 7);
    free(data);
    assert_int_equal(blob_read(dir, "job-1", other, 0, &data, &err), ST_OK);
    free(data);
    assert_int_equal(blob_read(dir, "job-2", digest, 6, &data, &err), ST_NOT_FOUND);
    /* longer, shorter, and with one bit changed */
    blob_name("job-1", digest, name);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    memset(&err, 0, sizeof err);
    assert_int_equal(blob_read(dir, "job-1", digest, 7, &data, &err), ST_CORRUPT);
    assert_non_null(strstr(err.text, name));
    assert_int_not_equal(blob_read(dir, "job-1", digest, 5, &data, NULL), ST_OK);
    const int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, "B", 1, 0), 1);
    close(fd);
    assert_int_equal(blob_read(dir, "job-1", digest, 6, &data, NULL), ST_CORRUPT);
    /* orphans and unfinished files go */
    snprintf(path, sizeof path, "%s/job-9-%s.tmp.77", dir, digest);
    assert_int_equal(file_write_atomic(path, "x", 1, &err), ST_OK);
    assert_int_equal(blobs_sweep(dir, keep_one, name), 2);
    assert_int_equal(blobs_sweep(dir, keep_one, name), 0);
    blob_remove(dir, "job-1", digest);
    blob_remove(dir, "job-1", digest);
    assert_int_equal(rmdir(dir), 0);
    assert_int_not_equal(blob_write(dir, "job-1", "x", 1, digest, NULL), ST_OK);
}

static void test_submit_messages(void **state)
{
    (void)state;
    struct submit_message m;
    struct refusal r = { 0 };
    const uint8_t good[] = "\x0a\x03\x12\x01x\x1a\x01k\x22\x02nn";
    assert_int_equal(submit_read(good, sizeof good - 1, &m, &r), ST_OK);
    assert_true(m.kind == JOB_GENERATE && m.body_bytes == 3 && m.key_bytes == 1 && !strcmp(m.name, "nn"));
    for (size_t n = 0; n < sizeof good - 1; n++) {
        uint8_t *cut = malloc(n); /* its own allocation: a read beyond it shows */
        if (n)
            memcpy(cut, good, n);
        r = (struct refusal){ 0 };
        const enum status st = submit_read(cut, n, &m, &r);
        assert_true(st == ST_OK ? n == 5 || n == 8 : st == ST_INVALID && *r.message);
        free(cut);
    }
    static const struct {
        const char *data;
        size_t bytes;
        const char *says;
    } bad[] = {
        { "\x0a\x00\x0a\x00", 4, "more than one" },
        { "\x2a\x00", 2, "field 5" },
        { "\x08\x01", 2, "malformed" },
        { "\x22\x01\xff", 3, "name" },
        { "\x22\x01\x00", 3, "name" },
        { "\x12\x02\x0a\x00", 4, "http.url" },
        { "\x12\x02\x1a\x00", 4, "http" },
        { "\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11, "malformed" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        r = (struct refusal){ 0 };
        assert_int_equal(submit_read((const uint8_t *)bad[i].data, bad[i].bytes, &m, &r), ST_INVALID);
        if (!strstr(r.message, bad[i].says))
            fail_msg("'%s' does not say %s", r.message, bad[i].says);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_record), cmocka_unit_test(test_bad_records),
                                        cmocka_unit_test(test_blobs), cmocka_unit_test(test_submit_messages) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
