#ifndef LONGSPAN_COORDINATOR_GATEWAY_SLOW_H
#define LONGSPAN_COORDINATOR_GATEWAY_SLOW_H

/*
 * Clients that hold connections and ask nothing: those that send a request byte by byte are ended once it has taken longer than its size allows (as
 * Apache's mod_reqtimeout does), and when descriptors run out those go first that have no request under way. What says nothing at all ends by the
 * connection's own time-out. All on the loop's thread.
 */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    SLOW_BYTES_PER_S = 500, /* that a request must come with, beyond the patience there is */
    SLOW_SPARED_MS = 1000,  /* a connection as young is not ended for want of descriptors */
};

struct bufferevent;
struct event_base;
struct slow;

/* NULL: out of memory. patience_ms: for a request, beside what its bytes take. */
struct slow *slow_new(struct event_base *base, uint32_t patience_ms);
/* After the connections are gone. */
void slow_free(struct slow *s);
/* The port that connections are accepted on. */
void slow_port(struct slow *s, uint16_t port);
/* Where a connection is accepted, which has no descriptor yet: it is watched from the end of the loop's turn on. */
void slow_accepted(struct slow *s, struct bufferevent *bev);
/* Its request is there, whole; its answer is gone. */
void slow_asked(struct slow *s, struct bufferevent *bev);
void slow_answered(struct slow *s, struct bufferevent *bev);
/* Ends connections that have no request under way. -> how many */
size_t slow_relieve(struct slow *s);

#ifdef __cplusplus
}
#endif
#endif
