#ifndef LONGSPAN_COORDINATOR_TOKENIZER_JINJA_LEXER_H
#define LONGSPAN_COORDINATOR_TOKENIZER_JINJA_LEXER_H

/* A template's text to tokens: white space is controlled here (dashes, trim_blocks, lstrip_blocks), comments and raw blocks end here. */

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "coordinator/tokenizer/jinja/arena.h"

#ifdef __cplusplus
extern "C" {
#endif

enum jinja_token_kind {
    JINJA_TOKEN_END,
    JINJA_TOKEN_TEXT, /* between tags */
    JINJA_TOKEN_OUTPUT_BEGIN,
    JINJA_TOKEN_OUTPUT_END,
    JINJA_TOKEN_BLOCK_BEGIN,
    JINJA_TOKEN_BLOCK_END,
    JINJA_TOKEN_NAME,
    JINJA_TOKEN_STRING, /* unescaped */
    JINJA_TOKEN_INT,
    JINJA_TOKEN_FLOAT,
    JINJA_TOKEN_OP,
};

struct jinja_token {
    enum jinja_token_kind kind;
    uint32_t line;
    const char *text; /* in the arena, with a NUL after it */
    size_t bytes;
    int64_t integer;
    double real;
};

/* tokens_out: the last is an END. ST_INVALID, ST_UNSUPPORTED, ST_TOO_LARGE, ST_NO_MEMORY. */
enum status jinja_lex(struct jinja_arena *arena, const char *text, size_t bytes, const struct jinja_token **tokens_out,
                      struct error *err);

/* The name of a token's kind, or its text, for messages. */
const char *jinja_token_show(const struct jinja_token *t, char buffer[48]);

#ifdef __cplusplus
}
#endif
#endif
