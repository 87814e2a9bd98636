#include "coordinator/gateway/grpc_messages.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "common/bytes.h"
#include "common/hash.h"
#include "proto/longspan.pb-c.h"
#include "proto/plan.h"

/*
 * The message is walked before it is unpacked, because the unpacked form hides what must not pass: it cuts strings at NUL, does not look at
 * UTF-8, keeps unknown fields aside, and a field of two bytes costs it a hundred.
 */
enum { PARTS_MAX = 1 << 16, FIELD_BIAS = 33, FIELD_KEY = 43, FIELD_FROM = 44, FIELD_ABANDON = 45 };

struct walk {
    struct refusal *r;
    size_t n_parts;
};

enum kind { KIND_SKIP, KIND_STRING, KIND_CHAT, KIND_MESSAGE };

static const struct known {
    const char *name;
    enum kind kind;
} request_fields[] = { [1] = { "model", KIND_STRING },
                       [2] = { "text", KIND_STRING },
                       [3] = { "token_ids", KIND_SKIP },
                       [4] = { "chat", KIND_CHAT },
                       [5] = { "max_tokens", KIND_SKIP },
                       [6] = { "temperature", KIND_SKIP },
                       [7] = { "top_p", KIND_SKIP },
                       [8] = { "top_k", KIND_SKIP },
                       [9] = { "seed", KIND_SKIP },
                       [10] = { "stop", KIND_STRING },
                       [11] = { "ignore_eos", KIND_SKIP },
                       [12] = { "top_logprobs", KIND_SKIP },
                       [13] = { "score", KIND_SKIP },
                       [14] = { "echo", KIND_SKIP },
                       [15] = { "logits", KIND_SKIP },
                       [16] = { "forced_token_ids", KIND_SKIP },
                       [17] = { "progress", KIND_SKIP },
                       [18] = { "min_p", KIND_SKIP },
                       [19] = { "n", KIND_SKIP },
                       [20] = { "density", KIND_SKIP },
                       [30] = { "presence_penalty", KIND_SKIP },
                       [31] = { "frequency_penalty", KIND_SKIP },
                       [32] = { "repetition_penalty", KIND_SKIP },
                       [33] = { "logit_bias", KIND_SKIP },
                       [34] = { "min_tokens", KIND_SKIP },
                       [35] = { "json_object", KIND_SKIP },
                       [36] = { "json_schema", KIND_STRING },
                       [40] = { "priority", KIND_SKIP },
                       [41] = { "tenant", KIND_STRING },
                       [42] = { "cache_salt", KIND_STRING },
                       [43] = { "idempotency_key", KIND_STRING },
                       [44] = { "resume_from", KIND_STRING },
                       [45] = { "abandon", KIND_SKIP },
                       [46] = { "logits_from", KIND_SKIP } },
  chat_fields[] = { [1] = { "chat.messages", KIND_MESSAGE } },
  message_fields[] = { [1] = { "chat.messages.role", KIND_STRING }, [2] = { "chat.messages.content", KIND_STRING } };

#define LENGTH(a) (sizeof(a) / sizeof *(a))

static uint64_t read_varint(struct reader *in)
{
    uint64_t v = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        const uint8_t b = reader_u8(in);
        v |= (uint64_t)(b & 0x7F) << shift;
        if (!(b & 0x80))
            return v;
    }
    in->bad = true;
    return 0;
}

/* One field as it stands in a message. */
struct part {
    uint64_t field;
    const uint8_t *data; /* [n] of a text, a message or a packed list; NULL: it is none */
    size_t n;
    const uint8_t *from, *to; /* all of it, with its tag */
};

/* false: at the end, or in->bad */
static bool part_read(struct reader *in, struct part *p)
{
    if (in->bad || !reader_left(in))
        return false;
    *p = (struct part){ .from = in->at };
    const uint64_t tag = read_varint(in);
    p->field = tag >> 3;
    switch (tag & 7) {
    case 0:
        read_varint(in);
        break;
    case 1:
        reader_take(in, 8);
        break;
    case 2:
        p->n = read_varint(in);
        p->data = reader_take(in, p->n);
        break;
    case 5:
        reader_take(in, 4);
        break;
    default:
        in->bad = true;
    }
    p->to = in->at;
    return !in->bad;
}

static enum status malformed(struct walk *w)
{
    return refuse(w->r, ST_INVALID, "", "the message is malformed");
}

static enum status walk_message(struct walk *w, struct reader in, const struct known *fields, size_t n_fields);

static enum status walk_bytes(struct walk *w, const struct known *f, const uint8_t *data, size_t n)
{
    if (++w->n_parts > PARTS_MAX)
        return refuse(w->r, ST_TOO_LARGE, f->name, "%s: the message has more than %d parts", f->name, PARTS_MAX);
    switch (f->kind) {
    case KIND_CHAT:
        return walk_message(w, reader_of(data, n), chat_fields, LENGTH(chat_fields));
    case KIND_MESSAGE:
        return walk_message(w, reader_of(data, n), message_fields, LENGTH(message_fields));
    case KIND_STRING:
        if (n && memchr(data, 0, n))
            return refuse(w->r, ST_INVALID, f->name, "%s holds a NUL character; send such a prompt as token_ids",
                          f->name);
        if (!text_valid((const char *)data, n))
            return refuse(w->r, ST_INVALID, f->name, "%s is not valid UTF-8", f->name);
        return ST_OK;
    case KIND_SKIP:
        break;
    }
    return ST_OK;
}

static enum status walk_message(struct walk *w, struct reader in, const struct known *fields, size_t n_fields)
{
    struct part p;
    while (part_read(&in, &p)) {
        if (p.field >= n_fields || !fields[p.field].name)
            return refuse(w->r, ST_UNSUPPORTED, "", "field %llu of the message is not known here",
                          (unsigned long long)p.field);
        if (p.data && walk_bytes(w, &fields[p.field], p.data, p.n))
            return w->r->status;
    }
    return in.bad ? malformed(w) : ST_OK;
}

/* ---- being taken up again ---- */

/* All that the client asked for, without its key and its place, which differ from call to call. A map's entries stand in any order, so it is their sum that counts. */
static struct digest asked_of(const struct grpc_source *source)
{
    struct reader in = reader_of(source->data, source->bytes);
    struct hasher *h = hasher_new();
    const uint8_t *run = source->data; /* not hashed yet */
    uint64_t sums[2] = { 0 };
    size_t n_bias = 0;
    struct part p;
    while (part_read(&in, &p)) {
        const bool bias = p.field == FIELD_BIAS && n_bias++ < WANT_BIAS_MAX; /* of more, the parser says so */
        if (!bias && p.field != FIELD_KEY && p.field != FIELD_FROM && p.field != FIELD_ABANDON)
            continue;
        hasher_add(h, run, (size_t)(p.from - run));
        run = p.to;
        if (bias) {
            const struct digest d = digest_of(p.from, (size_t)(p.to - p.from));
            uint64_t halves[2];
            memcpy(halves, d.byte, sizeof halves);
            sums[0] += halves[0];
            sums[1] += halves[1];
        }
    }
    hasher_add(h, run, (size_t)(source->data + source->bytes - run));
    hasher_add(h, sums, sizeof sums);
    return hasher_end(h);
}

static enum status read_short(const struct part *p, const char *field, char *out, size_t room, struct refusal *r)
{
    if (!p->data || p->n >= room || (p->n && memchr(p->data, 0, p->n)))
        return refuse(r, ST_INVALID, field, "%s: a text of at most %zu characters", field, room - 1);
    if (p->n)
        memcpy(out, p->data, p->n);
    out[p->n] = 0;
    return ST_OK;
}

enum status grpc_read_again(const struct grpc_source *source, struct grpc_again **again_out, struct refusal *r)
{
    struct reader in = reader_of(source->data, source->bytes);
    struct grpc_again *again = NULL;
    struct part p;
    enum status st = ST_OK;
    while (!st && part_read(&in, &p)) {
        if (p.field != FIELD_KEY && p.field != FIELD_FROM && p.field != FIELD_ABANDON)
            continue;
        if (!again && !(again = calloc(1, sizeof *again)))
            return refuse(r, ST_NO_MEMORY, "", "out of memory");
        if (p.field == FIELD_ABANDON) {
            again->abandon = p.to[-1] != 0; /* the last byte of a number is 0 only if all are */
            continue;
        }
        st = p.field == FIELD_KEY ? read_short(&p, "idempotency_key", again->key, sizeof again->key, r)
                                  : read_short(&p, "resume_from", again->from, sizeof again->from, r);
    }
    if (!st && again && again->from[0] && !again->key[0])
        st = refuse(r, ST_INVALID, "resume_from", "resume_from needs the idempotency_key of the answer");
    if (!st && again && again->abandon && !again->key[0])
        st = refuse(r, ST_INVALID, "abandon", "abandon needs the idempotency_key of the answer");
    if (!st && again && again->key[0]) {
        again->asked = asked_of(source);
        *again_out = again;
        return ST_OK;
    }
    free(again);
    return st;
}

static void message_free(void *source)
{
    longspan__v1__generate_request__free_unpacked(source, NULL);
}

static enum status read_ids(struct want *w, const char *field, const uint32_t *from, size_t n, const int32_t **ids_out,
                            struct refusal *r)
{
    int32_t *ids = want_alloc(w, n + 1, sizeof *ids);
    if (!ids)
        return refuse(r, ST_NO_MEMORY, "", "out of memory");
    for (size_t i = 0; i < n; i++) {
        if (from[i] > INT32_MAX)
            return refuse(r, ST_INVALID, field, "%s: %u is no token id", field, from[i]);
        ids[i] = (int32_t)from[i];
    }
    *ids_out = ids;
    return ST_OK;
}

static enum status read_chat(struct want *w, const Longspan__V1__Chat *chat, struct refusal *r)
{
    if (!chat->n_messages)
        return refuse(r, ST_INVALID, "chat", "chat must have at least one message");
    w->own_messages = json_array();
    for (size_t i = 0; i < chat->n_messages; i++)
        if (json_array_append_new(w->own_messages, json_pack("{s:s, s:s}", "role", chat->messages[i]->role, "content",
                                                             chat->messages[i]->content)))
            return refuse(r, ST_NO_MEMORY, "", "out of memory");
    w->kind = WANT_PROMPT_CHAT;
    w->messages = w->own_messages;
    return ST_OK;
}

static enum status read_prompt(struct want *w, const Longspan__V1__GenerateRequest *m, struct refusal *r)
{
    switch (m->prompt_case) {
    case LONGSPAN__V1__GENERATE_REQUEST__PROMPT_TEXT:
        w->kind = WANT_PROMPT_TEXT;
        w->text = m->text;
        w->text_bytes = strlen(m->text);
        return ST_OK;
    case LONGSPAN__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS:
        w->kind = WANT_PROMPT_TOKENS;
        w->n_tokens = m->token_ids->n_ids;
        return read_ids(w, "token_ids", m->token_ids->ids, m->token_ids->n_ids, &w->tokens, r);
    case LONGSPAN__V1__GENERATE_REQUEST__PROMPT_CHAT:
        return read_chat(w, m->chat, r);
    default:
        return refuse(r, ST_INVALID, "prompt", "prompt is missing: text, token_ids or chat");
    }
}

static enum status read_sampling(struct want *w, const Longspan__V1__GenerateRequest *m, struct refusal *r)
{
    if (m->temperature_set_case == LONGSPAN__V1__GENERATE_REQUEST__TEMPERATURE_SET_TEMPERATURE &&
        want_set_temperature(w, (double)m->temperature, r))
        return r->status;
    if (m->top_p_set_case == LONGSPAN__V1__GENERATE_REQUEST__TOP_P_SET_TOP_P && want_set_top_p(w, (double)m->top_p, r))
        return r->status;
    want_set_tenant(w, m->tenant, strlen(m->tenant));
    if (m->cache_salt[0])
        want_add_salt(w, "cache_salt", m->cache_salt, strlen(m->cache_salt));
    if (want_set_top_k(w, m->top_k, r) || want_set_priority(w, m->priority, r))
        return r->status;
    w->has_seed = m->seed_set_case == LONGSPAN__V1__GENERATE_REQUEST__SEED_SET_SEED;
    w->seed = w->has_seed ? m->seed : 0;
    if (m->top_logprobs_set_case == LONGSPAN__V1__GENERATE_REQUEST__TOP_LOGPROBS_SET_TOP_LOGPROBS)
        return want_set_top(w, "top_logprobs", m->top_logprobs, r);
    return ST_OK;
}

static enum status read_bias(struct want *w, const Longspan__V1__GenerateRequest *m, struct refusal *r)
{
    struct plan_edit *bias = want_alloc(w, m->n_logit_bias + 1, sizeof *bias);
    if (!bias)
        return refuse(r, ST_NO_MEMORY, "", "out of memory");
    for (size_t i = 0; i < m->n_logit_bias; i++)
        bias[i] = (struct plan_edit){ m->logit_bias[i]->key, m->logit_bias[i]->value };
    return want_set_bias(w, bias, m->n_logit_bias, r);
}

static enum status read_format(struct want *w, const Longspan__V1__GenerateRequest *m, struct refusal *r)
{
    json_error_t e;
    w->json_object = m->json_object;
    if (!*m->json_schema)
        return ST_OK;
    if (m->json_object)
        return refuse(r, ST_INVALID, "json_schema", "json_schema and json_object exclude each other");
    w->own_schema = json_loads(m->json_schema, JSON_REJECT_DUPLICATES, &e);
    if (!w->own_schema)
        return refuse(r, ST_INVALID, "json_schema", "json_schema: %s", e.text);
    w->json_schema = w->own_schema;
    w->schema_field = "json_schema";
    return ST_OK;
}

static enum status read_edits(struct want *w, const Longspan__V1__GenerateRequest *m, struct refusal *r)
{
    if (want_set_min_p(w, (double)m->min_p, r) || want_set_presence_penalty(w, (double)m->presence_penalty, r) ||
        want_set_frequency_penalty(w, (double)m->frequency_penalty, r) || want_set_min_tokens(w, m->min_tokens, r) ||
        want_set_n(w, m->n ? m->n : 1, r) || read_bias(w, m, r))
        return r->status;
    if (m->density != 0 && want_set_density(w, m->density, r))
        return r->status;
    if (m->repetition_penalty_set_case == LONGSPAN__V1__GENERATE_REQUEST__REPETITION_PENALTY_SET_REPETITION_PENALTY)
        return want_set_repetition_penalty(w, (double)m->repetition_penalty, r);
    return ST_OK;
}

static enum status read_length(struct want *w, const Longspan__V1__GenerateRequest *m, struct refusal *r)
{
    if (m->max_tokens_set_case == LONGSPAN__V1__GENERATE_REQUEST__MAX_TOKENS_SET_MAX_TOKENS &&
        want_set_max_tokens(w, "max_tokens", m->max_tokens, r))
        return r->status;
    if (w->has_max_tokens && !w->max_tokens && !w->score && !w->logits)
        return refuse(r, ST_INVALID, "max_tokens", "max_tokens must be at least 1, or 0 with score or logits");
    if (w->has_max_tokens && w->n_forced > w->max_tokens)
        return refuse(r, ST_INVALID, "forced_token_ids", "forced_token_ids has more tokens than max_tokens allows");
    return ST_OK;
}

static enum status read_request(struct want *w, const Longspan__V1__GenerateRequest *m, struct refusal *r)
{
    w->model = m->model;
    w->ignore_eos = m->ignore_eos;
    w->score = m->score;
    w->echo = m->echo;
    w->logits = m->logits;
    w->logits_from = m->logits_from;
    w->progress = m->progress;
    w->stream = true;
    w->keyed = *m->idempotency_key || *m->resume_from || m->abandon;
    if (w->keyed && w->logits)
        return refuse(r, ST_UNSUPPORTED, "logits", "logits are not kept: they do not go with idempotency_key");
    if (w->logits_from && !w->logits)
        return refuse(r, ST_INVALID, "logits_from", "logits_from is only with logits");
    for (size_t i = 0; i < m->n_stop; i++)
        if (want_add_stop(w, m->stop[i], strlen(m->stop[i]), r))
            return r->status;
    w->n_forced = m->n_forced_token_ids;
    if (w->n_forced && read_ids(w, "forced_token_ids", m->forced_token_ids, m->n_forced_token_ids, &w->forced, r))
        return r->status;
    if (read_prompt(w, m, r) || read_sampling(w, m, r) || read_edits(w, m, r) || read_format(w, m, r) ||
        read_length(w, m, r))
        return r->status;
    return want_check(w, r);
}

enum status grpc_parse(struct want *w, struct refusal *r)
{
    struct grpc_source *source = w->source;
    w->source = NULL;
    w->source_free = NULL;
    struct walk walk = { .r = r };
    enum status st =
        walk_message(&walk, reader_of(source->data, source->bytes), request_fields, LENGTH(request_fields));
    Longspan__V1__GenerateRequest *m = NULL;
    if (!st) {
        m = longspan__v1__generate_request__unpack(NULL, source->bytes, source->data);
        if (!m)
            st = malformed(&walk);
    }
    free(source);
    if (st)
        return st;
    w->source = m;
    w->source_free = message_free;
    return read_request(w, m, r);
}

enum rpc_code grpc_code(enum status st)
{
    switch (st) {
    case ST_OK:
        return RPC_OK;
    case ST_INVALID:
    case ST_UNSUPPORTED:
    case ST_TOO_LARGE:
    case ST_CORRUPT:
        return RPC_INVALID_ARGUMENT;
    case ST_NOT_FOUND:
        return RPC_NOT_FOUND;
    case ST_EXISTS:
        return RPC_ALREADY_EXISTS;
    case ST_BUSY:
    case ST_AGAIN:
        return RPC_RESOURCE_EXHAUSTED;
    case ST_TIMEOUT:
        return RPC_DEADLINE_EXCEEDED;
    case ST_PEER:
    case ST_STALE:
    case ST_CANCELLED:
        return RPC_UNAVAILABLE;
    default:
        return RPC_INTERNAL;
    }
}
