/* fuzz-libs: longspan_bench longspan_common */
/* The first byte picks what is read: a trace in either format, an HTTP response, or events, whole or in pieces. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "client/bench/response.h"
#include "client/bench/sse.h"
#include "client/bench/trace.h"

static void on_event(void *user, const char *data, size_t bytes)
{
    size_t *seen = user;
    assert(data[bytes] == 0);
    *seen += bytes;
}

static void on_body(void *user, const char *data, size_t bytes)
{
    size_t *seen = user;
    *seen += bytes ? 1 + (data[bytes - 1] == 0) : 0;
}

static void read_trace(const char *text, size_t bytes, enum trace_format format)
{
    struct trace t;
    if (trace_parse(text, bytes, format, 0, "t", &t, NULL))
        return;
    assert(t.n_rows && t.rows[0].at_us == 0);
    for (size_t i = 0; i < t.n_rows; i++) {
        assert(i == 0 || t.rows[i].at_us >= t.rows[i - 1].at_us);
        assert(t.rows[i].input_tokens && t.rows[i].output_tokens);
        assert(!t.rows[i].n_blocks || t.rows[i].first_block + t.rows[i].n_blocks <= t.n_blocks);
    }
    trace_close(&t);
}

static void read_response(const char *data, size_t bytes, size_t step)
{
    struct response r;
    size_t seen = 0;
    response_init(&r, 1 << 20);
    for (size_t at = 0; at < bytes && r.state != RESPONSE_DONE;) {
        size_t used = 0;
        const size_t piece = bytes - at < step ? bytes - at : step;
        if (response_feed(&r, data + at, piece, on_body, &seen, &used, NULL))
            return;
        assert(used <= piece && (used == piece || r.state == RESPONSE_DONE));
        at += used;
    }
    response_eof(&r, NULL);
}

static void read_events(const char *data, size_t bytes, size_t step)
{
    struct sse s = { .event_max = 256 };
    size_t seen = 0;
    for (size_t at = 0; at < bytes; at += step)
        if (sse_feed(&s, data + at, bytes - at < step ? bytes - at : step, on_event, &seen, NULL))
            break;
    assert(seen <= bytes);
    sse_free(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < 2)
        return 0;
    const size_t n = bytes - 2, step = 1 + data[1];
    char *copy = malloc(n ? n : 1); /* exact, so that a read past the end is seen */
    memcpy(copy, data + 2, n);
    if (data[0] % 4 == 0)
        read_trace(copy, n, TRACE_MOONCAKE);
    else if (data[0] % 4 == 1)
        read_trace(copy, n, TRACE_BURSTGPT);
    else if (data[0] % 4 == 2)
        read_response(copy, n, step);
    else
        read_events(copy, n, step);
    free(copy);
    return 0;
}
