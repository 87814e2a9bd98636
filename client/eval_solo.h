#ifndef LONGSPAN_CLIENT_EVAL_SOLO_H
#define LONGSPAN_CLIENT_EVAL_SOLO_H

/*
 * Arrangements of the cache that no server offers, for eval to measure: windows of recent tokens in bf16, prompts that attend to what is not coded yet, forms of the
 * papers. The model runs in this process over bf16, and between its steps blocks become what their codes stand for (kernels/kv_loss.h).
 */

#include "client/eval/configs.h"
#include "client/eval_run.h"
#include "client/settings.h"
#include "kernels/kv_loss.h"
#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

struct eval_variant {
    const struct kv_form *form; /* NULL: the codec of the settings */
    uint32_t window;            /* positions before a row's own block that it reads in bf16: a multiple of a block */
    bool late;                  /* the prompt is coded when all of it is computed: its rows read it in bf16 */
};

/* What a configuration says, if it is one of these (config->varied, or its codec is a form). ST_INVALID, ST_UNSUPPORTED: err names what does not go together. */
enum status eval_variant_read(const struct eval_config *config, const struct settings *s, struct eval_variant *out,
                              struct error *err);

/*
 * As eval_run of windows, in this process, which has threads then. A row reads its own block and the window before it in bf16, and earlier blocks coded; with no window
 * and not late, codecs that are expanded give the logits that are served, bit for bit. figures_out: kv_bytes_per_token is that of the window's length, what is
 * not coded included; the rest is NAN or 0.
 */
enum status eval_solo_run(const struct settings *s, const struct eval_variant *variant,
                          const struct eval_windows *windows, float *logits_out, struct eval_figures *figures_out,
                          struct error *err);

#ifdef __cplusplus
}
#endif
#endif
