#ifndef LONGSPAN_CLIENT_BENCH_TRACE_H
#define LONGSPAN_CLIENT_BENCH_TRACE_H

/*
 * Recorded loads: when requests came and how long they were.
 *
 * mooncake   JSON lines {"timestamp": ms, "input_length", "output_length", "hash_ids": [...]}; equal ids are equal blocks of 512 tokens, so prompts share
 *            the prefixes they shared when recorded. Source: Mooncake, arXiv:2407.00079, and its published traces.
 * burstgpt   CSV with a header; columns Timestamp (s), Request tokens, Response tokens; others are skipped, and so are rows without a response (requests
 *            that failed). Source: BurstGPT, arXiv:2401.17644.
 */

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { TRACE_TOKENS_MAX = 1 << 24, TRACE_BYTES_MAX = 1 << 30 };

struct trace_row {
    int64_t at_us; /* after the first row; ascending */
    uint32_t input_tokens, output_tokens;
    size_t first_block, n_blocks; /* in blocks of the trace */
    size_t line;                  /* of the file */
};

struct trace {
    struct trace_row *rows;
    size_t n_rows, rows_room;
    uint64_t *blocks;
    size_t n_blocks, blocks_room;
    size_t n_skipped; /* rows of requests that failed */
};

enum trace_format { TRACE_AUTO, TRACE_MOONCAKE, TRACE_BURSTGPT };

/*
 * Reads at most rows_max rows (0: all) of text. name stands for the file in errors. Rows are sorted by time. ST_INVALID: err names line and field.
 * AUTO: JSON lines if it begins with a brace.
 */
enum status trace_parse(const char *text, size_t bytes, enum trace_format format, size_t rows_max, const char *name,
                        struct trace *trace_out, struct error *err);
enum status trace_open(const char *path, enum trace_format format, size_t rows_max, struct trace *trace_out,
                       struct error *err);
void trace_close(struct trace *t);

#ifdef __cplusplus
}
#endif
#endif
