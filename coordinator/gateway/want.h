#ifndef LONGSPAN_COORDINATOR_GATEWAY_WANT_H
#define LONGSPAN_COORDINATOR_GATEWAY_WANT_H

/*
 * What a client asks for, whichever way it came, and how it is refused.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"
#include "coordinator/gateway/stop.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "proto/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Why a request is not served, for the client: field names the parameter at fault ("" if none), code is OpenAI's word ("" if none). */
struct refusal {
    enum status status;
    uint32_t retry_s; /* when to come again, as estimated; 0: soon */
    char field[96];
    char code[48];
    char message[640];
};

/* Writes it (printf) if r holds none yet; the first cause wins. Returns st. */
enum status refuse(struct refusal *r, enum status st, const char *field, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Likewise, with a code. */
enum status refuse_code(struct refusal *r, enum status st, const char *field, const char *code, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

enum want_prompt { WANT_PROMPT_TEXT, WANT_PROMPT_TOKENS, WANT_PROMPT_CHAT };

/* Whether the answer is, or may be, calls of tools. */
enum want_tool_choice { WANT_TOOL_AUTO, WANT_TOOL_REQUIRED, WANT_TOOL_NAMED };

enum { WANT_TENANT_MAX = 127, WANT_TIMEOUT_MS_MAX = 7 * 24 * 3600 * 1000 };

struct want_block;
struct json_t;

/*
 * Borrowed pointers point into `source` or into memory of want_alloc; both live as long as the want. Zeroed is valid for want_free.
 */
struct want {
    const char *model; /* NULL: none named */
    enum want_prompt kind;
    const char *text; /* TEXT */
    size_t text_bytes;
    const int32_t *tokens; /* TOKENS; checked against the vocabulary later */
    size_t n_tokens;
    const struct json_t *messages;      /* CHAT: array of at least one, borrowed from the source or own_messages */
    const struct json_t *tools;         /* array of at least one; NULL: none that may be called */
    const struct json_t *template_args; /* object; NULL: none */
    enum want_tool_choice tool_choice;
    const char *tool_name;     /* the one of WANT_TOOL_NAMED */
    bool one_tool_call;        /* no more than one */
    bool no_specials;          /* do not begin a text with bos */
    bool no_generation_prompt; /* of a chat */

    bool has_max_tokens, has_seed;
    uint32_t max_tokens;
    float temperature, top_p, min_p;
    uint32_t top_k;
    uint32_t density; /* of sparse attention, millionths; 0: the deployment's */
    uint64_t seed;
    float presence_penalty, frequency_penalty, repetition_penalty;
    const struct plan_edit *bias; /* [n_bias], tokens ascending, each once */
    size_t n_bias;
    uint32_t min_tokens;              /* before which no end token is sampled */
    uint32_t n;                       /* choices */
    bool json_object;                 /* the answer is a JSON object, */
    const struct json_t *json_schema; /* or what this schema allows; borrowed from the source */
    const char *schema_field;         /* what refusals call it */
    struct stop_string stops[STOP_MAX];
    size_t n_stops;
    bool ignore_eos;
    bool logprobs; /* show them; n_top alternatives */
    uint8_t n_top;
    bool echo, score, logits, progress;
    uint32_t logits_from; /* of rows from this position on */
    const int32_t *forced;
    size_t n_forced;
    bool stream, include_usage;
    bool keyed;                       /* its answer is to be taken up again, by a key in the request itself */
    int32_t priority;                 /* as in sched_want */
    char tenant[WANT_TENANT_MAX + 1]; /* whose it is; "": nobody's in particular */
    struct digest salt;               /* of its blocks, if salted */
    bool salted;
    int64_t timeout_ms; /* from when it came; 0: none */

    struct json_t *own_schema, *own_messages; /* of json_schema and messages, where the source is none */
    void *source;
    void (*source_free)(void *source);
    struct want_block *blocks;
};

enum { WANT_CHOICES_MAX = 128, WANT_BIAS_MAX = 1024 };

/* Defaults: temperature, top_p, repetition_penalty and n 1. */
void want_init(struct want *w);
void want_free(struct want *w);
/* Frees what the prompt was read from (a body of megabytes) once it is tokenized: prompt and stops are gone then. */
void want_drop_source(struct want *w);
/* Zeroed memory that lives as long as the want; NULL: none. */
void *want_alloc(struct want *w, size_t n, size_t bytes);

/* Turns the prompt into tokens. ids_out: malloc'd. Any thread. Refuses (field: prompt or messages) more than positions_max tokens, none, or ids out of range. */
enum status want_tokenize(const struct want *w, const struct tokenizer *t, const struct model *m,
                          uint32_t positions_max, int32_t **ids_out, size_t *n_out, struct refusal *r);

/* Checks of values that both doors share: finite, in range, neutral. field: as the client spells it. */
enum status want_set_temperature(struct want *w, double value, struct refusal *r);
enum status want_set_top_p(struct want *w, double value, struct refusal *r);
enum status want_set_top_k(struct want *w, int64_t value, struct refusal *r);
enum status want_set_min_p(struct want *w, double value, struct refusal *r);
enum status want_set_density(struct want *w, double value, struct refusal *r);
enum status want_set_presence_penalty(struct want *w, double value, struct refusal *r);
enum status want_set_frequency_penalty(struct want *w, double value, struct refusal *r);
enum status want_set_repetition_penalty(struct want *w, double value, struct refusal *r);
enum status want_set_min_tokens(struct want *w, int64_t value, struct refusal *r);
enum status want_set_n(struct want *w, int64_t value, struct refusal *r);
/* bias [n] in any order, from want_alloc: sorted here. Refuses a token that is there twice, values beyond -100 .. 100, too many. */
enum status want_set_bias(struct want *w, struct plan_edit *bias, size_t n, struct refusal *r);
/* What depends on several fields: several choices with what only one can have. */
enum status want_check(const struct want *w, struct refusal *r);
enum status want_set_top(struct want *w, const char *field, int64_t value, struct refusal *r);
enum status want_set_max_tokens(struct want *w, const char *field, int64_t value, struct refusal *r);
/* In seconds: above 0, a week at most. */
enum status want_set_timeout(struct want *w, double seconds, struct refusal *r);
enum status want_set_priority(struct want *w, int64_t value, struct refusal *r);
/* Unless it is known already. Names that are too long are told apart by a hash. */
void want_set_tenant(struct want *w, const char *name, size_t bytes);
/* Its blocks are shared only with requests that were told the same, in the same order. */
void want_add_salt(struct want *w, const char *what, const void *salt, size_t bytes);
/* data: borrowed from the source. */
enum status want_add_stop(struct want *w, const char *data, size_t bytes, struct refusal *r);

#ifdef __cplusplus
}
#endif
#endif
