#ifndef LONGSPAN_COORDINATOR_GRAMMAR_GRAMMAR_H
#define LONGSPAN_COORDINATOR_GRAMMAR_GRAMMAR_H

/*
 * Which texts a request may get: a JSON schema, compiled once into a pushdown automaton over bytes, and for each of its states the set of tokens that may
 * come next. What is generated is a subset of what the schema allows: members in the schema's order, numbers of bounded length, little white space.
 * States are made as they are met and shared by all matchers of a grammar (as in XGrammar, arXiv:2411.15100; the walk over a sorted vocabulary is
 * Outlines' idea, arXiv:2307.09702, done lazily).
 *
 * Where any characters of a string may come, which is most of the time, words of such characters are taken as one set, made with the vocabulary; only the
 * rest is walked. Compiling may be done on any thread; matchers of one grammar belong to one thread.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct json_t;
struct grammar;

enum {
    GRAMMAR_NODES_MAX = 1 << 17,   /* what a schema may cost */
    GRAMMAR_NESTING_MAX = 64,      /* of schemas in schemas */
    GRAMMAR_DEPTH_MAX = 128,       /* of calls while a text is matched: some 40 levels of objects and lists */
    GRAMMAR_REPEAT_MAX = 1 << 14,  /* minLength, maxLength, minItems, maxItems */
    GRAMMAR_STATES_MAX = 1 << 14,  /* kept; then they are made anew */
    GRAMMAR_STATES_IDLE = 1 << 11, /* kept while no matcher is there */
    GRAMMAR_THREADS_MAX = 1 << 12, /* ways to go on in one state */
    GRAMMAR_MASKS_MAX = 128,       /* kept */
};

/*
 * schema: a JSON schema (object, or true). field: what refusals call it. ST_UNSUPPORTED: a keyword that is not known or not followed, named with its path;
 * ST_INVALID: malformed, or no finite text fits; ST_TOO_LARGE: over the limits above.
 */
enum status grammar_of_schema(const struct json_t *schema, const char *field, struct grammar **grammar_out,
                              struct error *err);
/* Any JSON object. */
enum status grammar_of_object(struct grammar **grammar_out, struct error *err);

/* A function that may be called. */
struct grammar_tool {
    const char *name;                /* letters, digits, '_' and '-' */
    const struct json_t *parameters; /* schema of its arguments, an object; NULL or empty: any object */
    uint32_t index;                  /* in the request, for refusals: tools[3].function.parameters */
};

/* What there may be instead of calls: nothing; any text, which calls may follow; an object; what a schema allows. */
enum grammar_text { GRAMMAR_TEXT_NONE, GRAMMAR_TEXT_FREE, GRAMMAR_TEXT_OBJECT, GRAMMAR_TEXT_SCHEMA };

/* mark before {"name": NAME, ARGUMENTS: {...}} (between, another) end */
struct grammar_tools {
    const struct grammar_tool *tools;
    size_t n_tools; /* 1 at least */
    const char *arguments;
    const char *mark, *before, *between, *end;
    uint32_t calls_max;
    enum grammar_text text;
    const struct json_t *text_schema;
    const char *text_mark; /* what free text may not have in it but before calls; its first byte comes in it once */
    bool text_bare;        /* text does not begin with a brace, and no calls follow it */
};
enum status grammar_of_tools(const struct grammar_tools *tools, struct grammar **grammar_out, struct error *err);

/* Counted: compilers give one reference. Any thread. */
struct grammar *grammar_ref(struct grammar *g);
void grammar_unref(struct grammar *g);

/* ---- the vocabulary as a sorted list; read by any thread ---- */

struct vocabulary;
/* bytes_of: borrowed for the life of the vocabulary; tokens without bytes (control tokens) are never allowed. NULL: no memory. */
struct vocabulary *vocabulary_new(uint32_t n_tokens, const char *(*bytes_of)(void *ctx, uint32_t token, size_t *n_out),
                                  void *ctx);
void vocabulary_free(struct vocabulary *v);
uint32_t vocabulary_set_bytes(const struct vocabulary *v);

/* ---- one text under way ---- */

struct matcher;
/* Keeps a reference to g, and v (borrowed). NULL: no memory. */
struct matcher *matcher_new(struct grammar *g, const struct vocabulary *v);
void matcher_free(struct matcher *m);
/* ST_INVALID: these bytes do not go on from here (the state stays as it was); ST_NO_MEMORY. */
enum status matcher_push(struct matcher *m, const char *bytes, size_t n);
/* The text may end here; and it must, since nothing can follow. */
bool matcher_may_end(const struct matcher *m);
bool matcher_must_end(const struct matcher *m);
/* set_out [vocabulary_set_bytes]: bit t % 8 of byte t / 8 for each token t that may come next. *n_out: how many.
   ST_TOO_LARGE: too many states, or too much time, for one mask; ST_NO_MEMORY. */
enum status matcher_mask(struct matcher *m, uint8_t *set_out, uint32_t *n_out);

#ifdef __cplusplus
}
#endif
#endif
