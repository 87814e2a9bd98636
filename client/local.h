#ifndef LONGSPAN_CLIENT_LOCAL_H
#define LONGSPAN_CLIENT_LOCAL_H

#include <stdbool.h>

#include "client/settings.h"
#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Runs fn with the gRPC address of a cluster made for it: on free ports, its state in a temporary directory, gone when fn returns. settings: http, grpc and state
 * are overwritten; http says where it listens when fn is called. quiet: no progress bar. Not from a program with threads.
 */
enum status local_run(struct settings *s, bool quiet,
                      enum status (*fn)(const char *address, const struct settings *s, const void *arg,
                                        struct error *err),
                      const void *arg, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
