#ifndef LONGSPAN_COORDINATOR_ROTATION_H
#define LONGSPAN_COORDINATOR_ROTATION_H

/*
 * Certificates of a coordinator that runs are replaced: once a second the files of the ways to clients and workers are looked at, and what has changed is read and given to
 * the servers. SIGHUP: they are read whether they have changed or not. Loop thread.
 */

#include "common/loop.h"
#include "common/tls.h"
#include "coordinator/control.h"
#include "coordinator/gateway.h"

#ifdef __cplusplus
extern "C" {
#endif

struct rotation;
struct rotation_config {
    struct loop *loop;             /* kept, as all that follows */
    struct tls_files tls, control; /* files named later are not found: those that were served in clear stay so */
};
/* Before the files are loaded. NULL: no memory. Takes over the handler of SIGHUP until it is freed. */
struct rotation *rotation_new(const struct rotation_config *config);
/* They have been started with what the files held; NULL: it is served in clear. */
void rotation_serve(struct rotation *r, struct gateway *gateway, struct control *control);
/* Before gateway and control. Accepts NULL. */
void rotation_free(struct rotation *r);

#ifdef __cplusplus
}
#endif
#endif
