#include "coordinator/gateway/reply.h"

#include "coordinator/gateway/reply_tools.h"

#include <string.h>

int reply_http_status(enum status st)
{
    switch (st) {
    case ST_OK:
        return 200;
    case ST_INVALID:
    case ST_UNSUPPORTED:
    case ST_TOO_LARGE:
    case ST_CORRUPT:
        return 400;
    case ST_NOT_FOUND:
        return 404;
    case ST_BUSY:
    case ST_AGAIN:
        return 429;
    case ST_TIMEOUT:
        return 504;
    case ST_PEER:
    case ST_STALE:
    case ST_CANCELLED:
        return 503;
    default:
        return 500;
    }
}

void reply_error(const struct refusal *r, struct text *out)
{
    const int code = reply_http_status(r->status);
    text_str(out, "{\"error\":{\"message\":");
    text_json_str(out, r->message);
    text_printf(out, ",\"type\":\"%s\",\"param\":",
                code < 429    ? "invalid_request_error"
                : code == 429 ? "rate_limit_error"
                              : "server_error");
    if (*r->field)
        text_json_str(out, r->field);
    else
        text_str(out, "null");
    text_str(out, ",\"code\":");
    if (*r->code)
        text_json_str(out, r->code);
    else
        text_str(out, "null");
    text_str(out, "}}");
}

/* ---- log-probabilities ---- */

/* Characters that begin in the text. */
static size_t chars_in(const char *data, size_t bytes)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++)
        n += ((unsigned char)data[i] & 0xC0) != 0x80;
    return n;
}

void reply_token(const struct tokenizer *t, int32_t id, struct text *out)
{
    size_t n = 0;
    const char *bytes = tokenizer_token_bytes(t, id, true, &n);
    text_json(out, bytes, n);
}

/* Completions name a part of a character as OpenAI does: "bytes:\xe2\x82". */
static void token_name(const struct tokenizer *t, int32_t id, struct text *out)
{
    size_t n = 0;
    const char *bytes = tokenizer_token_bytes(t, id, true, &n);
    if (text_valid(bytes, n)) {
        text_json(out, bytes, n);
        return;
    }
    text_str(out, "\"bytes:");
    for (size_t i = 0; i < n; i++)
        text_printf(out, "\\\\x%02x", (unsigned char)bytes[i]);
    text_str(out, "\"");
}

static void token_bytes(const struct tokenizer *t, int32_t id, struct text *out)
{
    size_t n = 0;
    const unsigned char *bytes = (const unsigned char *)tokenizer_token_bytes(t, id, true, &n);
    text_str(out, "[");
    for (size_t i = 0; i < n; i++)
        text_printf(out, i ? ",%u" : "%u", bytes[i]);
    text_str(out, "]");
}

/* One place of the answer: a token of the prompt or of the text. */
struct place {
    int32_t id;
    bool scored;
    float logprob;
    const struct result_top *top;
    uint8_t n_top;
    size_t chars; /* before it */
};

static struct place place_prompt(const struct generation *g, size_t i, size_t chars)
{
    struct place p = { .id = g->prompt[i], .chars = chars };
    if (i && g->scores && i <= g->n_scored) {
        p.scored = true;
        p.logprob = g->scores[i].logprob;
        p.top = g->tops + g->scores[i].top_from;
        p.n_top = g->scores[i].n_top;
    }
    return p;
}

static struct place place_token(const struct generation *g, size_t i, size_t chars)
{
    const struct generation_token *t = &g->tokens[i];
    return (struct place){ .id = t->id,
                           .scored = true,
                           .logprob = t->logprob,
                           .top = g->tops + t->top_from,
                           .n_top = t->n_top,
                           .chars = chars };
}

/* The four parallel lists of a completion's logprobs grow side by side. */
struct lists {
    const struct tokenizer *tokenizer;
    struct text tokens, logprobs, tops, offsets;
    size_t n;
};

static void lists_top(struct lists *l, const struct place *p)
{
    struct text *out = &l->tops;
    if (!p->scored) {
        text_str(out, "null");
        return;
    }
    bool chosen = false;
    text_str(out, "{");
    for (uint32_t i = 0; i < p->n_top; i++) {
        text_str(out, i ? "," : "");
        token_name(l->tokenizer, (int32_t)p->top[i].token, out);
        text_str(out, ":");
        text_float(out, p->top[i].logprob);
        chosen = chosen || (int32_t)p->top[i].token == p->id;
    }
    if (!chosen) {
        text_str(out, p->n_top ? "," : "");
        token_name(l->tokenizer, p->id, out);
        text_str(out, ":");
        text_float(out, p->logprob);
    }
    text_str(out, "}");
}

static void lists_add(struct lists *l, const struct place *p)
{
    const char *comma = l->n++ ? "," : "";
    text_str(&l->tokens, comma);
    text_str(&l->logprobs, comma);
    text_str(&l->tops, comma);
    token_name(l->tokenizer, p->id, &l->tokens);
    if (p->scored)
        text_float(&l->logprobs, p->logprob);
    else
        text_str(&l->logprobs, "null");
    lists_top(l, p);
    text_printf(&l->offsets, "%s%zu", comma, p->chars);
}

static void lists_end(struct lists *l, struct text *out)
{
    struct text *const all[] = { &l->tokens, &l->logprobs, &l->tops, &l->offsets };
    static const char *const names[] = { "{\"tokens\":[", "],\"token_logprobs\":[", "],\"top_logprobs\":[",
                                         "],\"text_offset\":[" };
    for (size_t i = 0; i < 4; i++) {
        text_str(out, names[i]);
        text_add(out, all[i]->data, all[i]->n);
        out->bad = out->bad || all[i]->bad;
        text_free(all[i]);
    }
    text_str(out, "]}");
}

static void chat_place(const struct tokenizer *t, const struct place *p, struct text *out)
{
    text_str(out, "{\"token\":");
    reply_token(t, p->id, out);
    text_str(out, ",\"logprob\":");
    text_float(out, p->logprob);
    text_str(out, ",\"bytes\":");
    token_bytes(t, p->id, out);
    text_str(out, ",\"top_logprobs\":[");
    for (uint32_t i = 0; i < p->n_top; i++) {
        text_str(out, i ? ",{\"token\":" : "{\"token\":");
        reply_token(t, (int32_t)p->top[i].token, out);
        text_str(out, ",\"logprob\":");
        text_float(out, p->top[i].logprob);
        text_str(out, ",\"bytes\":");
        token_bytes(t, (int32_t)p->top[i].token, out);
        text_str(out, "}");
    }
    text_str(out, "]}");
}

/* ---- pieces: what is between `r` and what the generation has now ---- */

static size_t token_end(const struct generation *g, size_t i)
{
    return g->tokens[i].text_to < g->n_text ? g->tokens[i].text_to : g->n_text;
}

/* With echo, all of the prompt's places; then the new tokens. */
static void piece_lists(struct reply *r, const struct generation *g, bool echo, struct text *out)
{
    struct lists l = { .tokenizer = r->tokenizer };
    for (size_t i = 0; echo && i < g->n_prompt; i++) {
        const struct place p = place_prompt(g, i, r->chars);
        lists_add(&l, &p);
        size_t n = 0;
        const char *bytes = tokenizer_token_bytes(r->tokenizer, p.id, false, &n);
        r->chars += chars_in(bytes, n);
    }
    for (size_t i = r->tokens; i < g->n_tokens; i++) {
        const struct place p = place_token(g, i, r->chars);
        const size_t from = g->tokens[i].text_from, to = token_end(g, i);
        lists_add(&l, &p);
        if (to > from)
            r->chars += chars_in(g->text + from, to - from);
    }
    lists_end(&l, out);
}

static void piece_chat_logprobs(const struct reply *r, const struct generation *g, struct text *out)
{
    text_str(out, "{\"content\":[");
    for (size_t i = r->tokens; i < g->n_tokens; i++) {
        const struct place p = place_token(g, i, 0);
        text_str(out, i > r->tokens ? "," : "");
        chat_place(r->tokenizer, &p, out);
    }
    text_str(out, "],\"refusal\":null}");
}

static void piece_text(const struct reply *r, const struct generation *g, bool echo, struct text *out)
{
    if (!echo) {
        text_json(out, g->text + r->text, g->n_text - r->text);
        return;
    }
    struct text all = { 0 };
    for (size_t i = 0; i < g->n_prompt; i++) {
        size_t n = 0;
        const char *bytes = tokenizer_token_bytes(r->tokenizer, g->prompt[i], false, &n);
        text_add(&all, bytes, n);
    }
    text_add(&all, g->text + r->text, g->n_text - r->text);
    text_json(out, all.data, all.n);
    out->bad = out->bad || all.bad;
    text_free(&all);
}

/* ---- answers ---- */

static void head(const struct reply *r, const char *id, int64_t created_s, bool chunk, struct text *out)
{
    text_printf(out, "{\"id\":\"%s\",\"object\":\"%s%s\",\"created\":%lld,\"model\":", id,
                r->chat ? "chat.completion" : "text_completion", r->chat && chunk ? ".chunk" : "",
                (long long)created_s);
    text_json_str(out, r->model);
    text_str(out, ",\"system_fingerprint\":");
    text_json_str(out, r->fingerprint);
    text_str(out, ",\"choices\":[");
}

static void usage(const struct choices_done *done, struct text *out)
{
    text_printf(out,
                "{\"prompt_tokens\":%u,\"completion_tokens\":%u,\"total_tokens\":%u,"
                "\"prompt_tokens_details\":{\"cached_tokens\":%u},"
                "\"kv\":{\"blocks_reused\":%u,\"recomputed_tokens\":%u,\"bytes_read\":%llu,\"density\":%.4f}}",
                done->prompt_tokens, done->completion_tokens, done->prompt_tokens + done->completion_tokens,
                done->cached_tokens, (done->cached_tokens + PLAN_BLOCK - 1) / PLAN_BLOCK, done->recomputed_tokens,
                (unsigned long long)done->kv_bytes_read,
                done->kv_bytes_dense ? (double)done->kv_bytes_read / (double)done->kv_bytes_dense : 1.0);
}

static const char *finish_text(const struct reply *r, const struct generation_done *done)
{
    if (!done->stopped)
        return "\"length\"";
    return r->tools && reply_tools_calls(r->tools) ? "\"tool_calls\"" : "\"stop\"";
}

/* Of an answer that may call tools: looks at what is new. -> there is something to tell. Without memory: the text as it is, which fails. */
static bool look_for_calls(struct reply *r, const struct generation *g, bool chunk, bool end, struct text *out)
{
    if (!r->tools)
        r->tools = reply_tools_new(g->tools, chunk);
    out->bad = out->bad || !r->tools;
    return r->tools && reply_tools_feed(r->tools, g, end);
}

void reply_deinit(struct reply *r)
{
    reply_tools_free(r->tools);
    r->tools = NULL;
}

static void chat_choice(struct reply *r, const struct generation *g, bool chunk, struct text *out)
{
    text_str(out, chunk ? "\"delta\":{" : "\"message\":{\"role\":\"assistant\",");
    if (r->tools) {
        reply_tools_write(r->tools, out);
    } else {
        text_str(out, "\"content\":");
        piece_text(r, g, false, out);
    }
    text_str(out, chunk ? "},\"logprobs\":" : ",\"refusal\":null},\"logprobs\":");
}

/* "index", the text and the log-probabilities of what is new */
static void choice(struct reply *r, const struct generation *g, bool chunk, bool echo, struct text *out)
{
    text_printf(out, "{\"index\":%u,", r->index);
    if (r->chat) {
        chat_choice(r, g, chunk, out);
    } else {
        text_str(out, "\"text\":");
        piece_text(r, g, echo, out);
        text_str(out, ",\"logprobs\":");
    }
    if (!g->want.logprobs)
        text_str(out, "null");
    else if (r->chat)
        piece_chat_logprobs(r, g, out);
    else
        piece_lists(r, g, echo, out);
    r->text = g->n_text;
    r->tokens = g->n_tokens;
}

void reply_choice(struct reply *r, const struct generation *g, const struct generation_done *done, struct text *out)
{
    if (g->tools)
        look_for_calls(r, g, false, true, out);
    choice(r, g, false, g->want.echo, out);
    text_printf(out, ",\"finish_reason\":%s}", finish_text(r, done));
}

void reply_whole(const struct reply *r, const char *id, int64_t created_s, const struct text *choices,
                 const struct choices_done *done, struct text *out)
{
    head(r, id, created_s, false, out);
    text_add(out, choices->data, choices->n);
    out->bad = out->bad || choices->bad;
    text_str(out, "],\"usage\":");
    usage(done, out);
    text_printf(out, ",\"timings\":{\"queued_ms\":%lld,\"prefill_ms\":%lld,\"decode_ms\":%lld,\"total_ms\":%lld}}",
                (long long)done->queued_ms, (long long)done->prefill_ms, (long long)done->decode_ms,
                (long long)done->total_ms);
}

static void chunk_tail(const struct generation *g, struct text *out)
{
    text_str(out, g->want.include_usage ? "],\"usage\":null}" : "]}");
}

void reply_chunk_role(struct reply *r, const struct generation *g, struct text *out)
{
    head(r, g->id, g->created_s, true, out);
    text_printf(out,
                "{\"index\":%u,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                "\"finish_reason\":null}",
                r->index);
    chunk_tail(g, out);
    r->begun = true;
}

bool reply_chunk(struct reply *r, const struct generation *g, bool end, struct text *out)
{
    const bool echo = g->want.echo && !r->echoed;
    const bool more = g->tools ? look_for_calls(r, g, true, end, out) : g->n_text > r->text;
    if (!echo && !more && !out->bad && (!g->want.logprobs || g->n_tokens == r->tokens))
        return false;
    head(r, g->id, g->created_s, true, out);
    choice(r, g, true, echo, out);
    text_str(out, ",\"finish_reason\":null}");
    chunk_tail(g, out);
    r->echoed = true;
    return true;
}

void reply_chunk_last(struct reply *r, const struct generation *g, const struct generation_done *done, struct text *out)
{
    head(r, g->id, g->created_s, true, out);
    text_printf(out, "{\"index\":%u,%s,\"logprobs\":null,\"finish_reason\":%s}", r->index,
                r->chat ? "\"delta\":{}" : "\"text\":\"\"", finish_text(r, done));
    chunk_tail(g, out);
}

void reply_chunk_usage(const struct reply *r, const char *id, int64_t created_s, const struct choices_done *done,
                       struct text *out)
{
    head(r, id, created_s, true, out);
    text_str(out, "],\"usage\":");
    usage(done, out);
    text_str(out, "}");
}
