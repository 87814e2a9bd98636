#include "client/bench/workload.h"

#include <math.h>

#include "common/rng.h"

/* Which draw of a request: streams of random numbers that never meet. */
enum { DRAW_INPUT = 1, DRAW_OUTPUT = 3, DRAW_GAP = 5 };

static uint32_t length(const struct workload *w, const struct dist *d, uint64_t draw)
{
    return dist_draw(d, rng_at(w->config.seed, w->next, draw), rng_at(w->config.seed, w->next, draw + 1));
}

static void cut(struct workload *w, struct load_request *r)
{
    const uint32_t input_max = w->config.input_max, output_max = w->config.output_max;
    const bool long_input = input_max && r->input_tokens > input_max;
    const bool long_output = output_max && r->output_tokens > output_max;
    if (long_input)
        r->input_tokens = input_max;
    if (long_output)
        r->output_tokens = output_max;
    w->n_cut += long_input || long_output;
}

static bool traced(struct workload *w, struct load_request *r)
{
    const struct trace *t = w->config.trace;
    if (w->next >= t->n_rows)
        return false;
    const struct trace_row *row = &t->rows[w->next];
    *r = (struct load_request){ .due_us = llround((double)row->at_us / w->config.trace_scale),
                                .input_tokens = row->input_tokens,
                                .output_tokens = row->output_tokens,
                                .blocks = row->n_blocks ? t->blocks + row->first_block : NULL,
                                .n_blocks = row->n_blocks };
    return true;
}

static void drawn(struct workload *w, struct load_request *r)
{
    const struct workload_config *c = &w->config;
    *r = (struct load_request){ .due_us = -1,
                                .input_tokens = length(w, &c->input, DRAW_INPUT),
                                .output_tokens = length(w, &c->output, DRAW_OUTPUT) };
    if (c->rate <= 0)
        return;
    r->due_us = llround(w->at_us);
    w->at_us -= log(rng_unit(rng_at(c->seed, w->next, DRAW_GAP))) / c->rate * 1e6;
}

bool workload_next(struct workload *w, struct load_request *request_out)
{
    struct load_request r;
    if (w->config.requests_max && w->next >= w->config.requests_max)
        return false;
    if (!w->config.trace)
        drawn(w, &r);
    else if (!traced(w, &r))
        return false;
    cut(w, &r);
    r.index = w->next++;
    *request_out = r;
    return true;
}
