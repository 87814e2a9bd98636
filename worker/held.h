#ifndef LONGSPAN_WORKER_HELD_H
#define LONGSPAN_WORKER_HELD_H

/* What a worker tells a coordinator that it holds from the time before, in memory and on its disk. */

#include "common/error.h"
#include "worker/sender.h"
#include "worker/worker.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Sealed blocks in memory, in pieces; before ready. ST_NO_MEMORY. */
enum status held_send(struct sender *to, const struct worker *w);
/* What its disk holds, in pieces; after ready. From then on the worker tells what changes there. ST_NO_MEMORY. */
enum status held_disk_send(struct sender *to, struct worker *w);

#ifdef __cplusplus
}
#endif
#endif
