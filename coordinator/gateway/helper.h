#ifndef LONGSPAN_COORDINATOR_GATEWAY_HELPER_H
#define LONGSPAN_COORDINATOR_GATEWAY_HELPER_H

/*
 * One thread beside the loop, for work that would hold the loop up: parsing and tokenizing of large bodies.
 */

#include <stdint.h>

#include "common/loop.h"

#ifdef __cplusplus
extern "C" {
#endif

struct helper;

enum status helper_new(struct loop *loop, struct helper **helper_out);
/* Runs work(arg) on the thread, in order, then done(arg) on the loop's. Loop thread only. ST_NO_MEMORY: neither will run. */
enum status helper_run(struct helper *h, void (*work)(void *arg), void (*done)(void *arg), void *arg);
/* Jobs whose done has not run yet. */
uint32_t helper_pending(const struct helper *h);
/* Waits for the job that runs; those that did not start are not worked on, but their done runs, before this returns. Loop thread only. */
void helper_free(struct helper *h);

#ifdef __cplusplus
}
#endif
#endif
