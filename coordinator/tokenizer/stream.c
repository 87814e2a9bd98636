#include "coordinator/tokenizer/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/internal.h"
#include "coordinator/tokenizer/unicode.h"

struct token_stream {
    const struct tokenizer *t;
    struct utf8_stream utf8;
    bool begun; /* the text has: a space at its start is no longer dropped */
    char *out;  /* room for what the longest token can bring out, and a NUL */
};

struct token_stream *token_stream_new(const struct tokenizer *t)
{
    struct token_stream *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->t = t;
    /* each byte becomes U+FFFD at worst, and so does what was held */
    s->out = malloc((t->token_bytes_max + 1) * 3 + UTF8_STREAM_OUT_MAX);
    if (!s->out) {
        token_stream_free(s);
        return NULL;
    }
    return s;
}

void token_stream_free(struct token_stream *s)
{
    if (!s)
        return;
    free(s->out);
    free(s);
}

static const char *end_output(struct token_stream *s, size_t n, size_t *bytes_out)
{
    s->out[n] = '\0';
    *bytes_out = n;
    return s->out;
}

void token_stream_follow(struct token_stream *s, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n && !s->begun; i++) {
        size_t bytes;
        tokenizer_token_bytes(s->t, ids[i], false, &bytes);
        s->begun = bytes > 0;
    }
}

const char *token_stream_push(struct token_stream *s, int32_t id, size_t *bytes_out)
{
    size_t bytes, n = 0;
    const uint8_t *p = (const uint8_t *)tokenizer_token_bytes(s->t, id, false, &bytes);
    const size_t drop = s->begun ? 0 : tokenizer_start_dropped(s->t, (const char *)p, bytes);
    s->begun = s->begun || bytes > 0;
    for (size_t i = drop; i < bytes; i++) {
        uint8_t piece[UTF8_STREAM_OUT_MAX];
        const uint32_t more = utf8_stream_push(&s->utf8, p[i], piece);
        memcpy(s->out + n, piece, more);
        n += more;
    }
    return end_output(s, n, bytes_out);
}

const char *token_stream_finish(struct token_stream *s, size_t *bytes_out)
{
    uint8_t piece[UTF8_STREAM_OUT_MAX];
    const uint32_t n = utf8_stream_finish(&s->utf8, piece);
    memcpy(s->out, piece, n);
    s->begun = false;
    return end_output(s, n, bytes_out);
}
