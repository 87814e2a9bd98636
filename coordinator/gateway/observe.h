#ifndef LONGSPAN_COORDINATOR_GATEWAY_OBSERVE_H
#define LONGSPAN_COORDINATOR_GATEWAY_OBSERVE_H

/*
 * What /metrics says.
 */

#include <stdio.h>

#include "common/metrics.h"
#include "coordinator/gateway.h"
#include "coordinator/gateway/generation.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Makes the series that generations fill. */
void observe_init(struct metrics *m, struct generation_host *host);
/* All series: the gateway's, the scheduler's, the workers', the process's. */
void observe_write(const struct gateway_config *config, struct metrics *m, FILE *out);

#ifdef __cplusplus
}
#endif
#endif
