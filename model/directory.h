#ifndef LONGSPAN_MODEL_DIRECTORY_H
#define LONGSPAN_MODEL_DIRECTORY_H

/* What lies in a directory that is given as a model. */

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct model_directory {
    uint32_t n_gguf, n_safetensors;
    bool has_config; /* config.json */
    char gguf[256];  /* the first by name */
};

enum status model_directory_look(const char *path, struct model_directory *directory_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
