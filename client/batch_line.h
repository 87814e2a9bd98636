#ifndef LONGSPAN_CLIENT_BATCH_LINE_H
#define LONGSPAN_CLIENT_BATCH_LINE_H

/*
 * One line of a batch file in OpenAI's format: {"custom_id": "...", "method": "POST", "url": "/v1/chat/completions", "body": {...}}.
 */

#include <stddef.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { BATCH_ID_MAX = 512, BATCH_LINE_MAX = 64 << 20 };

struct batch_line {
    char custom_id[BATCH_ID_MAX + 1]; /* "": the line has none that can be read */
    const char *url;                  /* a constant */
    char *body;                       /* malloc'd JSON */
    size_t body_bytes;
};

/* line: anything, without its newline. ST_INVALID: err names the field; custom_id is there if it could be read. */
enum status batch_line_read(const char *line, size_t bytes, struct batch_line *line_out, struct error *err);
void batch_line_free(struct batch_line *line);

#ifdef __cplusplus
}
#endif
#endif
