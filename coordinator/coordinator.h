#ifndef LONGSPAN_COORDINATOR_COORDINATOR_H
#define LONGSPAN_COORDINATOR_COORDINATOR_H

/*
 * The coordinator process: model and tokenizer, scheduler and control server, gateway, on one loop, until a signal says to stop.
 */

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/tls.h"
#include "coordinator/sched.h"

#ifdef __cplusplus
extern "C" {
#endif

struct coordinator_config {
    const char *http, *grpc, *control; /* host:port; port 0: any */
    const char *control_advertise;     /* where other coordinators reach control; NULL or "": where it is bound */
    const char *registry;              /* "embedded:FILE"; NULL or "": embedded, in the state directory */
    const char *
        state; /* directory, made if it is not there, locked; NULL or "": none (then a registry must be named, or there is none) */
    const char *model; /* spec for model_open; workers open the same */
    const char *precision, *kv_codec, *selector;
    const char *calibration;   /* digest of the codec's calibration, in hexadecimal; NULL or "": it needs none */
    const char *template_date; /* see tokenizer_set_date; NULL: "start" */
    const char *chat_template; /* a file with the template of chats; NULL or "": the model's own */
    /* Of the ways to clients, workers and etcd; none named: in clear. The workers' names all three files or none: both sides show certificates. */
    struct tls_files tls, control_tls, etcd_tls;
    const char *api_keys;              /* a file: see gateway/keys.h; NULL or "": everybody may call */
    struct sched_config sched;         /* positions_max 0: the model's; context and seed are filled in */
    uint32_t n_workers;                /* awaited before it is ready */
    uint32_t heartbeat_ms, silence_ms; /* of workers; see struct control_welcome */
    uint32_t drain_ms;                 /* after a signal: so long may running requests go on */
    uint32_t requests_max;             /* open at once */
    size_t body_bytes_max;
    const char *jobs_dir; /* requests and answers of jobs; NULL or "": "jobs" in the state directory */
    uint32_t resume_ms,
        resume_keep_s; /* of answers that can be taken up again: gateway/resume.h; they lie in "streams" of jobs_dir, or of the state directory */
    uint64_t resume_bytes;
    uint32_t lease_ms; /* of leading: see membership_config.ttl_ms */
    uint32_t jobs_max, jobs_keep_hours,
        jobs_running; /* see struct jobs_config; without a state directory there are no jobs */
    /* Called once each with "http", "grpc", "control" and the bound address, all before anything is served. May be NULL. */
    void (*announce)(void *ctx, const char *what, const char *address);
    void *ctx;
};

/*
 * Serves until SIGTERM or SIGINT (it takes over their handlers), then refuses new requests, lets running ones end for some seconds (a second
 * signal cuts that short), and returns ST_OK, within drain_ms and 2 s. Any other status: it could not start; err says why.
 */
enum status coordinator_run(const struct coordinator_config *config, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
