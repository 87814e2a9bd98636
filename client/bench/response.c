#include "client/bench/response.h"

#include <string.h>
#include <strings.h>

void response_init(struct response *r, uint64_t body_max)
{
    memset(r, 0, offsetof(struct response, line));
    r->body_max = body_max;
}

static enum status status_line(struct response *r, struct error *err)
{
    const char *s = r->line;
    if (strncmp(s, "HTTP/1.", 7) != 0 || (s[7] != '0' && s[7] != '1') || s[8] != ' ')
        return error_set(err, ST_PROTOCOL, "status line: not HTTP/1.0 or 1.1");
    for (int i = 9; i < 12; i++)
        if (s[i] < '0' || s[i] > '9')
            return error_set(err, ST_PROTOCOL, "status line: no status of three digits");
    if (s[12] && s[12] != ' ')
        return error_set(err, ST_PROTOCOL, "status line: no status of three digits");
    r->status = (uint32_t)((s[9] - '0') * 100 + (s[10] - '0') * 10 + (s[11] - '0'));
    if (r->status < 100)
        return error_set(err, ST_PROTOCOL, "status line: status %u", r->status);
    r->close = s[7] == '0';
    r->state = RESPONSE_HEADER;
    return ST_OK;
}

/* The value if line is the header called name (in small letters, with its colon), else NULL. */
static const char *value_of(const char *line, const char *name)
{
    const size_t n = strlen(name);
    if (strncasecmp(line, name, n) != 0)
        return NULL;
    line += n;
    return line + strspn(line, " \t");
}

static enum status content_length(struct response *r, const char *v, struct error *err)
{
    uint64_t n = 0;
    const size_t digits = strspn(v, "0123456789");
    if (!digits || digits > 18 || v[digits + strspn(v + digits, " \t")])
        return error_set(err, ST_PROTOCOL, "Content-Length: '%.40s' is no length", v);
    for (size_t i = 0; i < digits; i++)
        n = n * 10 + (uint64_t)(v[i] - '0');
    if (r->has_length && n != r->left)
        return error_set(err, ST_PROTOCOL, "two Content-Length");
    r->has_length = true;
    r->left = n;
    return ST_OK;
}

static enum status header_line(struct response *r, struct error *err)
{
    const char *v;
    if (++r->n_headers > RESPONSE_HEADERS_MAX)
        return error_set(err, ST_TOO_LARGE, "more than %d headers", RESPONSE_HEADERS_MAX);
    if (r->line[0] == ' ' || r->line[0] == '\t' || !strchr(r->line, ':'))
        return error_set(err, ST_PROTOCOL, "a malformed header");
    if ((v = value_of(r->line, "content-length:")))
        return content_length(r, v, err);
    if ((v = value_of(r->line, "transfer-encoding:"))) {
        if (strncasecmp(v, "chunked", 7) != 0 || v[7 + strspn(v + 7, " \t")])
            return error_set(err, ST_UNSUPPORTED, "Transfer-Encoding: '%.40s'", v);
        r->chunked = true;
    } else if ((v = value_of(r->line, "connection:"))) {
        r->close = strncasecmp(v, "close", 5) == 0 || (r->close && strncasecmp(v, "keep-alive", 10) != 0);
    } else if ((v = value_of(r->line, "content-type:"))) {
        r->event_stream = strncasecmp(v, "text/event-stream", 17) == 0;
    } else if ((v = value_of(r->line, "content-encoding:")) && strncasecmp(v, "identity", 8) != 0) {
        return error_set(err, ST_UNSUPPORTED, "Content-Encoding: '%.40s'", v);
    }
    return ST_OK;
}

static enum status head_end(struct response *r, struct error *err)
{
    if (r->status < 200) { /* of the server's mood; the real one follows */
        const uint64_t body_max = r->body_max;
        if (r->status == 101)
            return error_set(err, ST_PROTOCOL, "status 101");
        response_init(r, body_max);
        r->started = true;
        return ST_OK;
    }
    if (r->chunked && r->has_length)
        return error_set(err, ST_PROTOCOL, "Content-Length beside Transfer-Encoding");
    r->head_done = true;
    if (r->status == 204 || r->status == 304)
        r->state = RESPONSE_DONE;
    else if (r->chunked)
        r->state = RESPONSE_CHUNK_SIZE;
    else if (r->has_length)
        r->state = r->left ? RESPONSE_LENGTH : RESPONSE_DONE;
    else {
        r->state = RESPONSE_UNTIL_EOF;
        r->close = true;
    }
    if (r->has_length && r->body_max && r->left > r->body_max)
        return error_set(err, ST_TOO_LARGE, "a body of %llu bytes", (unsigned long long)r->left);
    return ST_OK;
}

static enum status chunk_size(struct response *r, struct error *err)
{
    uint64_t n = 0;
    size_t i = 0;
    for (;; i++) {
        const char c = r->line[i];
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0)
            break;
        n = n * 16 + (uint64_t)digit;
        if (i >= 15)
            return error_set(err, ST_TOO_LARGE, "a chunk's size has over 15 digits");
    }
    if (!i || (r->line[i] && r->line[i] != ';' && r->line[i] != ' '))
        return error_set(err, ST_PROTOCOL, "a chunk without a size");
    r->left = n;
    r->state = n ? RESPONSE_CHUNK : RESPONSE_TRAILER;
    return ST_OK;
}

static enum status whole_line(struct response *r, struct error *err)
{
    switch (r->state) {
    case RESPONSE_STATUS:
        return status_line(r, err);
    case RESPONSE_HEADER:
        return r->line[0] ? header_line(r, err) : head_end(r, err);
    case RESPONSE_CHUNK_SIZE:
        return chunk_size(r, err);
    case RESPONSE_CHUNK_END:
        if (r->line[0])
            return error_set(err, ST_PROTOCOL, "a chunk is longer than its size");
        r->state = RESPONSE_CHUNK_SIZE;
        return ST_OK;
    default: /* RESPONSE_TRAILER */
        if (!r->line[0])
            r->state = RESPONSE_DONE;
        else if (++r->n_headers > RESPONSE_HEADERS_MAX)
            return error_set(err, ST_TOO_LARGE, "more than %d headers", RESPONSE_HEADERS_MAX);
        return ST_OK;
    }
}

/* Lines end in LF or CR LF. -> bytes taken */
static enum status feed_line(struct response *r, const char *data, size_t bytes, size_t *used, struct error *err)
{
    const char *end = memchr(data, '\n', bytes);
    const size_t n = end ? (size_t)(end - data) : bytes;
    if (r->line_bytes + n >= sizeof r->line)
        return error_set(err, ST_TOO_LARGE, "a line of over %d bytes", RESPONSE_LINE_MAX - 1);
    memcpy(r->line + r->line_bytes, data, n);
    r->line_bytes += n;
    *used = n;
    if (!end)
        return ST_OK;
    *used = n + 1;
    if (r->line_bytes && r->line[r->line_bytes - 1] == '\r')
        r->line_bytes--;
    r->line[r->line_bytes] = 0;
    if (strlen(r->line) != r->line_bytes)
        return error_set(err, ST_PROTOCOL, "a NUL in a line");
    r->line_bytes = 0;
    return whole_line(r, err);
}

static enum status feed_body(struct response *r, const char *data, size_t bytes, response_body_fn *on_body, void *user,
                             size_t *used, struct error *err)
{
    const bool bounded = r->state != RESPONSE_UNTIL_EOF;
    const size_t n = bounded && bytes > r->left ? (size_t)r->left : bytes;
    r->body_bytes += n;
    if (r->body_max && r->body_bytes > r->body_max)
        return error_set(err, ST_TOO_LARGE, "a body of over %llu bytes", (unsigned long long)r->body_max);
    on_body(user, data, n);
    *used = n;
    if (bounded && !(r->left -= n))
        r->state = r->state == RESPONSE_CHUNK ? RESPONSE_CHUNK_END : RESPONSE_DONE;
    return ST_OK;
}

enum status response_feed(struct response *r, const char *data, size_t bytes, response_body_fn *on_body, void *user,
                          size_t *used_out, struct error *err)
{
    size_t at = 0;
    enum status st = ST_OK;
    r->started |= bytes > 0;
    while (!st && at < bytes && r->state != RESPONSE_DONE) {
        size_t used = 0;
        if (r->state == RESPONSE_LENGTH || r->state == RESPONSE_UNTIL_EOF || r->state == RESPONSE_CHUNK)
            st = feed_body(r, data + at, bytes - at, on_body, user, &used, err);
        else
            st = feed_line(r, data + at, bytes - at, &used, err);
        at += used;
    }
    if (!st)
        *used_out = at;
    return st;
}

enum status response_eof(struct response *r, struct error *err)
{
    if (r->state == RESPONSE_UNTIL_EOF)
        r->state = RESPONSE_DONE;
    if (r->state == RESPONSE_DONE)
        return ST_OK;
    return error_set(err, ST_PROTOCOL,
                     r->started ? "the connection closed inside the response" : "the connection closed unanswered");
}
