#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "coordinator/gateway/openai.h"
#include "coordinator/jobs/jobs_internal.h"
#include "proto/longspan.pb-c.h"

/* ---- SubmitJobRequest: walked by hand, as the request inside is kept byte for byte ---- */

enum { PRIORITY_FIRST = 1 };
enum { KEY_MAX = 256, WIRE_LENGTH = 2, FIELD_GENERATE = 13, FIELD_HTTP = 14 };

struct part {
    uint32_t field;
    const uint8_t *data;
    size_t bytes;
};

static bool varint(struct reader *in, uint64_t *out)
{
    uint64_t n = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        const uint8_t *b = reader_take(in, 1);
        if (!b)
            return false;
        n |= (uint64_t)(*b & 0x7F) << shift;
        if (!(*b & 0x80)) {
            *out = n;
            return true;
        }
    }
    return false;
}

/* The next field, which must have a length: no other kind is in these messages. */
static bool part_next(struct reader *in, struct part *out)
{
    uint64_t tag, bytes;
    if (!varint(in, &tag) || (tag & 7) != WIRE_LENGTH || tag >> 3 > 100 || !varint(in, &bytes) ||
        bytes > reader_left(in))
        return false;
    *out = (struct part){ (uint32_t)(tag >> 3), reader_take(in, (size_t)bytes), (size_t)bytes };
    return true;
}

static enum status take_text(const struct part *p, const char *field, char *out, size_t max, struct refusal *r)
{
    if (p->bytes > max)
        return refuse(r, ST_INVALID, field, "%s: %zu bytes, at most %zu are taken", field, p->bytes, max);
    if (memchr(p->data, 0, p->bytes) || !text_valid((const char *)p->data, p->bytes))
        return refuse(r, ST_INVALID, field, "%s: not UTF-8, or with a NUL character", field);
    memcpy(out, p->data, p->bytes);
    out[p->bytes] = 0;
    return ST_OK;
}

static enum status take_http(const struct part *whole, struct submit_message *m, struct refusal *r)
{
    struct reader in = reader_of(whole->data, whole->bytes);
    struct part p;
    enum status st = ST_OK;
    while (!st && reader_left(&in)) {
        if (!part_next(&in, &p))
            return refuse(r, ST_INVALID, "http", "http: the message is malformed");
        if (p.field == 1) {
            st = take_text(&p, "http.url", m->url, JOB_URL_MAX, r);
        } else if (p.field == 2) {
            m->body = p.data;
            m->body_bytes = p.bytes;
        } else {
            st = refuse(r, ST_INVALID, "http", "http: field %u is not known", p.field);
        }
    }
    if (!st && strcmp(m->url, "/v1/chat/completions") != 0 && strcmp(m->url, "/v1/completions") != 0)
        st = refuse(r, ST_INVALID, "http.url", "http.url: '%s' is neither /v1/chat/completions nor /v1/completions",
                    m->url);
    return st;
}

static enum status take_part(const struct part *p, struct submit_message *m, bool *work, struct refusal *r)
{
    switch (p->field) {
    case 1:
    case 2:
        if (*work)
            return refuse(r, ST_INVALID, "work", "work: there is more than one");
        *work = true;
        m->kind = p->field == 1 ? JOB_GENERATE : JOB_HTTP;
        m->body = p->data;
        m->body_bytes = p->bytes;
        return p->field == 1 ? ST_OK : take_http(p, m, r);
    case 3:
        m->key = p->data;
        m->key_bytes = p->bytes;
        return p->bytes <= KEY_MAX ? ST_OK
                                   : refuse(r, ST_INVALID, "idempotency_key",
                                            "idempotency_key: %zu bytes, at most %d are taken", p->bytes, KEY_MAX);
    case 4:
        return take_text(p, "name", m->name, JOB_NAME_MAX, r);
    default:
        return refuse(r, ST_INVALID, "", "field %u of SubmitJobRequest is not known", p->field);
    }
}

enum status submit_read(const uint8_t *data, size_t bytes, struct submit_message *m_out, struct refusal *r)
{
    struct submit_message m = { 0 };
    struct reader in = reader_of(data, bytes);
    struct part p;
    bool work = false;
    while (reader_left(&in)) {
        if (!part_next(&in, &p))
            return refuse(r, ST_INVALID, "", "the message is malformed");
        if (take_part(&p, &m, &work, r))
            return r->status;
    }
    if (!work)
        return refuse(r, ST_INVALID, "work", "work is missing: generate or http");
    *m_out = m;
    return ST_OK;
}

/* ---- Job ---- */

static void add_varint(uint64_t n, struct text *out)
{
    uint8_t b[10];
    size_t at = 0;
    do {
        b[at++] = (uint8_t)((n & 0x7F) | (n > 0x7F ? 0x80 : 0));
        n >>= 7;
    } while (n);
    text_add(out, b, at);
}

static void add_bytes(uint32_t field, const void *data, size_t bytes, struct text *out)
{
    add_varint(field << 3 | WIRE_LENGTH, out);
    add_varint(bytes, out);
    text_add(out, data, bytes);
}

static Longspan__V1__JobState state_of(const struct job *job)
{
    static const Longspan__V1__JobState states[] = { [JOB_QUEUED] = LONGSPAN__V1__JOB_STATE__JOB_STATE_QUEUED,
                                                     [JOB_RUNNING] = LONGSPAN__V1__JOB_STATE__JOB_STATE_RUNNING,
                                                     [JOB_DONE] = LONGSPAN__V1__JOB_STATE__JOB_STATE_DONE,
                                                     [JOB_FAILED] = LONGSPAN__V1__JOB_STATE__JOB_STATE_FAILED,
                                                     [JOB_CANCELLED] = LONGSPAN__V1__JOB_STATE__JOB_STATE_CANCELLED };
    /* an end is told when it is durable */
    const bool running = job->stage == STAGE_RUNNING || job->stage == STAGE_WRITING || job->stage == STAGE_STORING;
    return states[running ? JOB_RUNNING : job->r.state];
}

void job_write(const struct job *job, const char *output, size_t output_bytes, struct text *out)
{
    const struct job_record *r = &job->r;
    const bool shown = job->stage != STAGE_STORING;
    Longspan__V1__Job m = LONGSPAN__V1__JOB__INIT;
    m.id = (char *)(uintptr_t)r->id;
    m.state = state_of(job);
    m.name = (char *)(uintptr_t)r->name;
    m.revision = job->revision;
    m.created_ms = r->created_ms;
    m.seed = r->seed;
    m.url = (char *)(uintptr_t)r->url;
    m.prompt_tokens = r->prompt_tokens;
    m.completion_tokens = job_ended(job) ? r->completion_tokens : job->tokens;
    m.finished_ms = shown ? r->finished_ms : 0;
    m.error_code = shown ? r->error_code : 0;
    m.error = (char *)(uintptr_t)(shown ? r->error : "");
    const size_t n = longspan__v1__job__get_packed_size(&m);
    uint8_t *packed = malloc(n + 1);
    if (!packed) {
        out->bad = true;
        return;
    }
    text_add(out, packed, longspan__v1__job__pack(&m, packed));
    free(packed);
    if (!output)
        return;
    if (r->kind == JOB_GENERATE) {
        add_bytes(FIELD_GENERATE, output, output_bytes, out);
        return;
    }
    struct text http = { 0 };
    add_varint(1 << 3, &http);
    add_varint(r->http_status, &http);
    add_bytes(2, output, output_bytes, &http);
    add_bytes(FIELD_HTTP, http.data, http.n, out);
    out->bad = out->bad || http.bad;
    text_free(&http);
}

void job_write_listed(const struct job *job, struct text *out)
{
    struct text one = { 0 };
    job_write(job, NULL, 0, &one);
    add_bytes(1, one.data, one.n, out);
    out->bad = out->bad || one.bad;
    text_free(&one);
}

/* ---- bodies to wants ---- */

struct job_source {
    generation_parse *parse;
    void *inner;
    void (*inner_free)(void *inner);
    enum job_kind kind;
    uint64_t seed;
};

static struct grpc_source *grpc_source_new(const uint8_t *body, size_t bytes)
{
    struct grpc_source *s = malloc(sizeof *s + bytes);
    if (!s)
        return NULL;
    s->bytes = bytes;
    if (bytes)
        memcpy(s->data, body, bytes);
    return s;
}

static struct openai_body *http_source_new(const uint8_t *body, size_t bytes, size_t values_max)
{
    struct openai_body *b = openai_body_new(bytes, values_max);
    if (b && bytes)
        memcpy(b->data, body, bytes);
    return b;
}

struct job_source *job_source_new(const struct job_record *r, const uint8_t *body, size_t bytes, size_t values_max)
{
    struct job_source *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->kind = r->kind;
    s->seed = r->seed;
    if (r->kind == JOB_GENERATE) {
        s->parse = grpc_parse;
        s->inner_free = free;
        s->inner = grpc_source_new(body, bytes);
    } else {
        s->parse = strcmp(r->url, "/v1/completions") ? openai_parse_chat : openai_parse_completion;
        s->inner_free = openai_body_free;
        s->inner = http_source_new(body, bytes, values_max);
    }
    if (s->inner)
        return s;
    free(s);
    return NULL;
}

void job_source_free(void *source)
{
    struct job_source *s = source;
    if (!s)
        return;
    s->inner_free(s->inner);
    free(s);
}

/* The seed of the job stands in where the request names none: the same in every run. */
enum status job_source_parse(struct want *w, struct refusal *r)
{
    struct job_source *s = w->source;
    const struct job_source kept = *s;
    w->source = s->inner;
    w->source_free = s->inner_free;
    free(s);
    const enum status st = kept.parse(w, r);
    if (st)
        return st;
    if (kept.kind == JOB_HTTP && w->stream)
        return refuse(r, ST_UNSUPPORTED, "stream", "stream: a job has one whole answer");
    if (kept.kind == JOB_GENERATE && w->n > 1)
        return refuse(r, ST_UNSUPPORTED, "n", "n: a job of Generate has one choice");
    if (w->logits)
        return refuse(r, ST_UNSUPPORTED, "logits", "logits: a job does not keep them");
    if (w->keyed)
        return refuse(r, ST_UNSUPPORTED, "idempotency_key",
                      "generate.idempotency_key: a job has its own, beside its request");
    if (w->priority < PRIORITY_FIRST)
        w->priority = PRIORITY_FIRST; /* behind everybody who waits for an answer */
    if (!w->has_seed) {
        w->has_seed = true;
        w->seed = kept.seed;
    }
    return ST_OK;
}
