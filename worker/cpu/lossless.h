#ifndef LONGSPAN_WORKER_CPU_LOSSLESS_H
#define LONGSPAN_WORKER_CPU_LOSSLESS_H

/* Loading weights of lossless-fast: from a pack's coded groups, which are checked on the way, or from rows, which are counted first. */

#include <stdatomic.h>

#include "kernels/kernels.h"
#include "model/lossless.h"
#include "worker/team.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cpu_lossless {
    const struct model_tensor *tensor;
    _Atomic uint32_t first_bad; /* the first group that is not what it says; n_groups: none */
};

/*
 * Decides how a tensor is held in memory: shape's class_bits and escape_room, or its codec BF16 where that takes less. ST_CORRUPT: a list of escapes that is no
 * list; ST_NO_MEMORY.
 */
enum status cpu_lossless_begin(struct team *team, uint32_t n_threads, const struct model_tensor *t,
                               struct linear_shape *shape, struct cpu_lossless *job_out, struct error *err);
/* Checks and copies one group, if the tensor has coded groups. Any thread. false: the caller packs it from rows. */
bool cpu_lossless_pack(struct cpu_lossless *job, const struct linear_shape *shape, uint32_t group, void *group_out);
/* ST_CORRUPT: a group did not pass. */
enum status cpu_lossless_end(const struct cpu_lossless *job, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
