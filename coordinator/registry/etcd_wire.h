#ifndef LONGSPAN_COORDINATOR_REGISTRY_ETCD_WIRE_H
#define LONGSPAN_COORDINATOR_REGISTRY_ETCD_WIRE_H

/*
 * Calls to one of several etcd members, with what comes back told on the loop's thread. One member is current; a call that fails in a way that another
 * member may do better makes the next one current.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/loop.h"
#include "proto/rpc.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { ETCD_MEMBERS_MAX = 16 };

struct etcd_net;
struct etcd_call;

struct etcd_reply {
    const uint8_t *data; /* a message; NULL: the call has ended, and code and text say how */
    size_t bytes;
    enum rpc_code code;
    const char *text;
};
/* Loop thread. After the reply that ends it the call is gone. */
typedef void etcd_reply_fn(void *ctx, const struct etcd_reply *reply);

/* addresses: "A:P[,A:P...]". moved: another member is current from now on (loop thread). ST_INVALID: err names the address. */
enum status etcd_net_open(const char *addresses, const struct tls *tls, struct loop *loop, void (*moved)(void *ctx),
                          void *ctx, struct etcd_net **net_out, struct error *err);
/* Cancels what runs, tells nobody. Not from a callback. Accepts NULL. */
void etcd_net_close(struct etcd_net *net);
/* Waits until something was told, or until_ms (clock_ms()): for close, when the loop does not run. false: the time is over. */
bool etcd_net_wait(struct etcd_net *net, int64_t until_ms);

/* One message to the current member. deadline_ms 0: none. Nothing is told inside the call. NULL: out of memory, or closing. */
struct etcd_call *etcd_call_start(struct etcd_net *net, const char *path, uint32_t deadline_ms, const uint8_t *data,
                                  size_t bytes, etcd_reply_fn *fn, void *ctx);
/* Nothing more is told of it. Accepts NULL. */
void etcd_call_drop(struct etcd_call *call);
/* It failed as a member fails that is gone, cut off or without a leader: the next one becomes current, unless that has happened since. */
void etcd_call_blame(struct etcd_call *call, const char *why);
/* Whether this end of a call may be the member's fault, or passing: the call is worth repeating, and may have been carried out. */
bool etcd_code_passes(enum rpc_code code);

#ifdef __cplusplus
}
#endif
#endif
