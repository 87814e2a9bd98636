#ifndef LONGSPAN_COORDINATOR_PREDECESSOR_H
#define LONGSPAN_COORDINATOR_PREDECESSOR_H

/*
 * Tells a coordinator that led before that another leads now. One that is cut off from the registry alone cannot learn it there, and its workers stay with
 * it as long as it serves them: the one that follows it calls at its control address and shows the higher term, as a worker that has obeyed it would.
 */

#include <stdint.h>

#include "common/error.h"
#include "common/tls.h"

#ifdef __cplusplus
extern "C" {
#endif

/* hello.device of such a call: it is answered with UNAVAILABLE in any case, and never with a welcome. */
#define PREDECESSOR_DEVICE "coordinator"

struct predecessor;

/*
 * Calls address ("HOST:PORT", copied) until predecessor_end, every half second: one that ends when it is told is not there the next time. tls: files as workers
 * name them, read now, kept; NULL, or without any: in clear. Any thread; a thread of its own does the work. ST_NO_MEMORY.
 */
enum status predecessor_tell(const char *address, const struct tls_files *tls, uint64_t term,
                             struct predecessor **predecessor_out);
/* Asks for its end; does not wait. */
void predecessor_end(struct predecessor *p);
/* Waits for its end, a second at most. Accepts NULL. */
void predecessor_free(struct predecessor *p);

#ifdef __cplusplus
}
#endif
#endif
