#ifndef LONGSPAN_WORKER_CPU_DF11_H
#define LONGSPAN_WORKER_CPU_DF11_H

/* Loading weights of df11: from a pack's coded groups, which are checked on the way, or from rows, which are counted first. */

#include <stdatomic.h>

#include "kernels/kernels.h"
#include "model/df11.h"
#include "worker/team.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cpu_df11 {
    const struct model_tensor *tensor;
    _Atomic uint32_t first_bad; /* the first group that is not what it says; n_groups: none */
};

/*
 * Sets shape's df11 to code, which is made here and must live as long as the weight, and its stream_room; or its codec to BF16 where that takes less.
 * ST_CORRUPT: starts of streams that are no starts; ST_NO_MEMORY.
 */
enum status cpu_df11_begin(struct team *team, uint32_t n_threads, const struct model_tensor *t,
                           struct linear_shape *shape, struct df11_code *code, struct cpu_df11 *job_out,
                           struct error *err);
/* Checks and copies one group, if the tensor has coded groups. Any thread. false: the caller packs it from rows. */
bool cpu_df11_pack(struct cpu_df11 *job, const struct linear_shape *shape, uint32_t group, void *group_out);
/* ST_CORRUPT: a group did not pass. */
enum status cpu_df11_end(const struct cpu_df11 *job, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
