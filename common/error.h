#ifndef LONGSPAN_COMMON_ERROR_H
#define LONGSPAN_COMMON_ERROR_H

#include "common/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The exact cause of a refusal, for a person: names the file, field, tensor or line. Passed by pointer to parsers of outside data; NULL
 * where the caller does not want it. The first cause wins.
 */
struct error {
    enum status status;
    char text[512];
};

/* Writes the cause (printf) if err is not NULL and holds none yet. Returns st, so that `return error_set(...)` reads well. */
enum status error_set(struct error *err, enum status st, const char *format, ...) __attribute__((format(printf, 3, 4)));

#ifdef __cplusplus
}
#endif
#endif
