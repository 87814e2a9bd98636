#ifndef LONGSPAN_COORDINATOR_GATEWAY_KEEPER_H
#define LONGSPAN_COORDINATOR_GATEWAY_KEEPER_H

/*
 * One run's hold on its journal (journal.h): what runs before it have left, and where this one goes on writing.
 */

#include "coordinator/gateway/helper.h"
#include "coordinator/gateway/journal.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { KEEPER_PATH_MAX = 1400 };

struct keeper;
/* Beside the loop. A journal of another context is begun anew. NULL: no memory, or the path is too long. */
struct keeper *keeper_open(const char *path, const struct digest *context);
/* By choice, for choices_start; as long as the keeper. */
const struct generation_told *keeper_told(const struct keeper *k, uint32_t *n_out);
/* Writes what g has more than was written, if it is time to. Loop thread, as close. helper: runs until the last write. */
void keeper_note(struct keeper *k, struct helper *helper, const struct generation *g);
/* The file stays. Accepts NULL. */
void keeper_close(struct keeper *k);

#ifdef __cplusplus
}
#endif
#endif
