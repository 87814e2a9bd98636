#include "coordinator/jobs/record.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

enum { VERSION = 1 };

static const char *const states[] = { [JOB_QUEUED] = "queued",
                                      [JOB_RUNNING] = "running",
                                      [JOB_DONE] = "done",
                                      [JOB_FAILED] = "failed",
                                      [JOB_CANCELLED] = "cancelled" };
static const char *const kinds[] = { [JOB_GENERATE] = "generate", [JOB_HTTP] = "http" };

/* ---- fields: one row each, read and written alike ---- */

/* a name: of letters, digits and '-', not empty; later: a text that older records lack */
enum form { FORM_TEXT, FORM_LATER, FORM_NAME, FORM_HEX, FORM_U64, FORM_U32 };

static const struct field {
    const char *key;
    enum form form;
    size_t offset, size;
} fields[] = {
#define ROW(name, form)                                                                                                \
    {                                                                                                                  \
#name, form, offsetof(struct job_record, name), sizeof(((struct job_record *)0)->name)                         \
    }
    ROW(id, FORM_NAME),        ROW(url, FORM_TEXT),          ROW(name, FORM_TEXT),
    ROW(home, FORM_HEX),       ROW(body, FORM_HEX),          ROW(output, FORM_HEX),
    ROW(body_bytes, FORM_U64), ROW(output_bytes, FORM_U64),  ROW(seed, FORM_U64),
    ROW(created_ms, FORM_U64), ROW(finished_ms, FORM_U64),   ROW(http_status, FORM_U32),
    ROW(error_code, FORM_U32), ROW(prompt_tokens, FORM_U32), ROW(completion_tokens, FORM_U32),
    ROW(error, FORM_TEXT),     ROW(owner, FORM_LATER),
#undef ROW
};

/* Numbers of 64 bits are text: JSON's end at 2^63 here, and at 2^53 elsewhere. */
static json_t *field_json(const struct field *f, const struct job_record *r)
{
    const char *at = (const char *)r + f->offset;
    char digits[24];
    switch (f->form) {
    case FORM_U64:
        snprintf(digits, sizeof digits, "%llu", (unsigned long long)*(const uint64_t *)(const void *)at);
        return json_string(digits);
    case FORM_U32:
        return json_integer((json_int_t) * (const uint32_t *)(const void *)at);
    default:
        return json_string(at);
    }
}

enum status job_record_write(const struct job_record *r, char **text_out)
{
    json_t *json = json_pack("{s:i, s:s, s:s}", "version", VERSION, "state",
                             states[r->state == JOB_RUNNING ? JOB_QUEUED : r->state], "kind", kinds[r->kind]);
    int bad = !json;
    for (size_t i = 0; i < sizeof fields / sizeof *fields && !bad; i++)
        bad = json_object_set_new(json, fields[i].key, field_json(&fields[i], r));
    *text_out = bad ? NULL : json_dumps(json, JSON_COMPACT);
    json_decref(json);
    return *text_out ? ST_OK : ST_NO_MEMORY;
}

static bool text_is(const char *text, const char *allowed)
{
    return strspn(text, allowed) == strlen(text);
}

static bool u64_of(const char *text, uint64_t *out)
{
    uint64_t n = 0;
    if (!*text || !text_is(text, "0123456789") || strlen(text) > 20)
        return false;
    for (; *text; text++)
        if (__builtin_mul_overflow(n, (uint64_t)10, &n) || __builtin_add_overflow(n, (uint64_t)(*text - '0'), &n))
            return false;
    *out = n;
    return true;
}

static bool text_fits(enum form form, const char *text)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-";
    if (form == FORM_NAME)
        return *text && text_is(text, letters);
    return form != FORM_HEX || ((!*text || strlen(text) == JOB_DIGEST_MAX) && text_is(text, "0123456789abcdef"));
}

static bool field_read(const struct field *f, const json_t *json, struct job_record *r)
{
    char *at = (char *)r + f->offset;
    const char *text = json_string_value(json);
    if (f->form == FORM_LATER && !json)
        return true;
    if (f->form == FORM_U32) {
        const json_int_t n = json_integer_value(json);
        if (!json_is_integer(json) || n < 0 || n > UINT32_MAX)
            return false;
        *(uint32_t *)(void *)at = (uint32_t)n;
        return true;
    }
    if (f->form == FORM_U64)
        return text && u64_of(text, (uint64_t *)(void *)at);
    if (!text || json_string_length(json) >= f->size || !text_fits(f->form, text))
        return false;
    memcpy(at, text, json_string_length(json) + 1);
    return true;
}

static int choice_of(const json_t *json, const char *const *names, int n)
{
    const char *text = json_string_value(json);
    for (int i = 0; i < n && text; i++)
        if (!strcmp(text, names[i]))
            return i;
    return -1;
}

static enum status read_object(const json_t *json, struct job_record *r, struct error *err)
{
    if (!json_is_object(json) || json_integer_value(json_object_get(json, "version")) != VERSION)
        return error_set(err, ST_CORRUPT, "job: version is not %d", VERSION);
    const int state = choice_of(json_object_get(json, "state"), states, sizeof states / sizeof *states);
    const int kind = choice_of(json_object_get(json, "kind"), kinds, sizeof kinds / sizeof *kinds);
    if (state < 0 || state == JOB_RUNNING || kind < 0)
        return error_set(err, ST_CORRUPT, "job: %s is not known", kind < 0 ? "kind" : "state");
    r->state = (enum job_state)state;
    r->kind = (enum job_kind)kind;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (!field_read(&fields[i], json_object_get(json, fields[i].key), r))
            return error_set(err, ST_CORRUPT, "job: %s is missing or malformed", fields[i].key);
    if (!r->home[0] || !r->body[0])
        return error_set(err, ST_CORRUPT, "job: %s is empty", r->home[0] ? "body" : "home");
    return ST_OK;
}

enum status job_record_read(const void *text, size_t bytes, struct job_record *r_out, struct error *err)
{
    struct job_record r = { 0 };
    json_t *json = json_loadb(text ? text : "", bytes, JSON_REJECT_DUPLICATES, NULL);
    const enum status st = read_object(json, &r, err);
    json_decref(json);
    if (!st)
        *r_out = r;
    return st;
}
