#ifndef LONGSPAN_CLIENT_EVAL_INPUT_H
#define LONGSPAN_CLIENT_EVAL_INPUT_H

/* What eval asks: windows of a text, and samples of tasks, as tokens. */

#include "client/eval/configs.h"
#include "client/eval_run.h"
#include "client/settings.h"
#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { EVAL_HELD_OUT = 1024, EVAL_HELD_OUT_MAX = 16 };

struct eval_input {
    char model_name[128], text_name[1200], held_out_name[1200];
    struct eval_windows windows;
    /* the model's own, and those for the constructed model, whose tokens are bytes */
    struct eval_sample *samples, *copies;
    uint32_t n_samples, n_copies;
    uint32_t positions_max, copy_positions; /* contexts that these need */
    int32_t *tokens;                        /* of the windows */
    /*
     * Sequences for calibrations that no window has, [n_held_out][EVAL_HELD_OUT], 16 at most, and where they are from: of CORPUS/held-out, if it is there, else of what
     * windows leave of the same texts.
     */
    int32_t *held_out;
    uint32_t n_held_out;
};

/*
 * s: model, text_file or corpus, length, samples, quick. sample.task: place in wanted [n_wanted]. Errors: ST_INVALID (the text or a length does not fit), those of
 * files and models; err names the flag or file. Whatever it returns, eval_input_free.
 */
enum status eval_input_read(const struct settings *s, uint64_t seed, const struct eval_wanted *wanted,
                            uint32_t n_wanted, struct eval_input *out, struct error *err);
/* Whether windows share no text with tokens [n] that something was learned from; runs of 255 tokens are found wherever they lie. ST_INVALID: err says where they do. */
enum status eval_input_apart(const struct eval_input *input, const int32_t *tokens, uint64_t n, struct error *err);
void eval_input_free(struct eval_input *input);

#ifdef __cplusplus
}
#endif
#endif
