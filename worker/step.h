#ifndef LONGSPAN_WORKER_STEP_H
#define LONGSPAN_WORKER_STEP_H

#include "worker/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Records one step of a Llama-family model between begin and run: embed, layers, answers. A worker without rows still answers queries. */
void step_record(const struct backend_ops *ops, struct backend *b, const struct model_config *model,
                 const struct step_input *input);

#ifdef __cplusplus
}
#endif
#endif
