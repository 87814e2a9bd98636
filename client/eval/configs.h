#ifndef LONGSPAN_CLIENT_EVAL_CONFIGS_H
#define LONGSPAN_CLIENT_EVAL_CONFIGS_H

/* What --configs names: CODEC[+wN][+late]:SELECTOR[@DENSITY][:WEIGHTS], and --tasks: NAME[@LENGTH]; separated by commas. */

#include <stdbool.h>
#include <stdint.h>

#include "client/eval/tasks.h"
#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { EVAL_CONFIGS_MAX = 64 };

struct eval_config {
    char text[160];    /* as it was given */
    char kv_codec[32]; /* values of the settings of these names */
    char selector[64]; /* with @DENSITY, if one was given */
    char weights[32];  /* of a pack to be made; "": the model as it is */
    bool varied;       /* something follows the codec, which nobody offers: */
    uint32_t window;   /* +wN: so many positions before a row's own block are in bf16 */
    bool late;         /* +late: the prompt is coded when all of it is computed */
};

/* Splits; what the parts name is checked by who uses them. ST_INVALID names the part. configs_out [EVAL_CONFIGS_MAX] */
enum status eval_configs_parse(const char *text, struct eval_config *configs_out, uint32_t *n_out, struct error *err);

enum { EVAL_TASKS_MAX = 32 };

struct eval_wanted {
    char text[48]; /* as it was given */
    const struct eval_task *task;
    uint32_t length; /* tokens; 0: as windows have */
};

/* ST_INVALID names the task that is unknown, or wanted twice, or its length (256 to 2^24). "": none. wanted_out [EVAL_TASKS_MAX] */
enum status eval_tasks_parse(const char *text, struct eval_wanted *wanted_out, uint32_t *n_out, struct error *err);

/*
 * Where window i of a text of n_tokens begins: a function of (seed, i) alone. length: at most n_tokens.
 */
uint64_t eval_window_at(uint64_t seed, uint32_t i, uint64_t n_tokens, uint64_t length);

#ifdef __cplusplus
}
#endif
#endif
