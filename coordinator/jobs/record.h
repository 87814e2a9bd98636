#ifndef LONGSPAN_COORDINATOR_JOBS_RECORD_H
#define LONGSPAN_COORDINATOR_JOBS_RECORD_H

/*
 * What the registry keeps of a job: a small JSON object at "job/ID". Prompts and outputs are blobs (blobs.h), named here by their digests.
 */

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    JOB_ID_MAX = 47,
    JOB_URL_MAX = 63,
    JOB_NAME_MAX = 128,
    JOB_OWNER_MAX = 127,
    JOB_ERROR_MAX = 400,
    JOB_DIGEST_MAX = 32
};

/* Running is never written: what runs is queued for whoever starts anew. */
enum job_state { JOB_QUEUED, JOB_RUNNING, JOB_DONE, JOB_FAILED, JOB_CANCELLED };
enum job_kind { JOB_GENERATE, JOB_HTTP };

struct job_record {
    char id[JOB_ID_MAX + 1]; /* letters, digits and '-' */
    enum job_kind kind;
    enum job_state state;
    char url[JOB_URL_MAX + 1];       /* JOB_HTTP */
    char name[JOB_NAME_MAX + 1];     /* UTF-8 */
    char owner[JOB_OWNER_MAX + 1];   /* the tenant whose key it came with; "": anybody's */
    char home[JOB_DIGEST_MAX + 1];   /* the state directory that holds its blobs */
    char body[JOB_DIGEST_MAX + 1];   /* digest */
    char output[JOB_DIGEST_MAX + 1]; /* "": none */
    uint64_t body_bytes, output_bytes;
    uint64_t seed, created_ms, finished_ms;
    uint32_t http_status, error_code; /* of the output; gRPC status */
    uint32_t prompt_tokens, completion_tokens;
    char error[JOB_ERROR_MAX + 1];
};

/* text_out: malloc'd JSON. ST_NO_MEMORY. */
enum status job_record_write(const struct job_record *r, char **text_out);
/* Anything may stand in text. ST_CORRUPT: err names the field. */
enum status job_record_read(const void *text, size_t bytes, struct job_record *r_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
