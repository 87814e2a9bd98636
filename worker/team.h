#ifndef LONGSPAN_WORKER_TEAM_H
#define LONGSPAN_WORKER_TEAM_H

/*
 * A fixed team of compute threads that runs one function at a time, the caller being member 0. Between calls, and while they wait for each
 * other, members spin some microseconds, then sleep, so that teams of several processes can share few cores.
 */

#include <stdint.h>

#include "common/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct team;
typedef void team_fn(void *ctx, uint32_t member, uint32_t n_members);

/* n_members >= 1; n_members - 1 threads are started. */
enum status team_new(uint32_t n_members, struct team **team_out);
void team_free(struct team *team);
/* fn on every member; returns when all are done. From one thread, the owner. */
void team_run(struct team *team, team_fn *fn, void *ctx);
/* Inside fn: waits until every member is here. */
void team_barrier(struct team *team);

/* The part of n items that is a member's: items begin .. end - 1, contiguous, as even as can be. */
static inline void team_share(uint32_t n, uint32_t member, uint32_t n_members, uint32_t *begin_out, uint32_t *end_out)
{
    *begin_out = (uint32_t)((uint64_t)n * member / n_members);
    *end_out = (uint32_t)((uint64_t)n * (member + 1) / n_members);
}

#ifdef __cplusplus
}
#endif
#endif
