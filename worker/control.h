#ifndef LONGSPAN_WORKER_CONTROL_H
#define LONGSPAN_WORKER_CONTROL_H

/*
 * The worker process: attaches to the coordinator, is told what to serve, loads it, and runs plans until it is stopped. When the stream ends it
 * attaches again: the coordinator may have been restarted, or another leads. Weights and sealed blocks are kept meanwhile, and told to whoever leads then.
 */

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/tls.h"

#ifdef __cplusplus
extern "C" {
#endif

struct worker_process_config {
    const char
        *control; /* host:port of the coordinator's control address; several, joined by commas: the one that leads */
    struct tls_files tls; /* all three files, or none: in clear */
    const char *bind;     /* address that peers reach this worker at; NULL: any */
    uint16_t port_first, port_last;
    const char *device; /* "cpu" */
    uint32_t n_threads; /* 0: one a core */
    uint64_t kv_bytes;
    const char *disk_dir; /* of the disk tier; "" or NULL: none */
    uint64_t disk_bytes;
    /* What the coordinator must serve, or the worker ends with the reason; NULL: whatever it does. Of a selector name and density count. */
    const char *calibration; /* file of the codec's calibration; NULL or "": in the model's directory */
    const char *channels;    /* the same of the selector's calibration */
    const char *kv_codec, *selector;
    bool reads_apart;     /* as in worker_config */
    const char *exchange; /* "ucx", "peer" or "nccl": exchange_find */
    const char *lanes;    /* "shm", "tcp", NULL: the best */
    uint32_t drain_ms;    /* after a signal: what runs may end so long; 0: not at all */
    bool once;            /* end with the stream instead of attaching again (a supervisor starts it anew) */
};

/*
 * Serves until SIGTERM or SIGINT, and then until nothing that runs needs it, drain_ms at most (a second signal cuts that short). -> exit status: 0 after a
 * signal; 1 if the coordinator refused it or `once` and the stream ended.
 */
int worker_process_run(const struct worker_process_config *config);

#ifdef __cplusplus
}
#endif
#endif
