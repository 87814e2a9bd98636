#ifndef LONGSPAN_WORKER_EXCHANGE_UCX_H
#define LONGSPAN_WORKER_EXCHANGE_UCX_H

/* Inside the ucx transport. */

#include <ucp/api/ucp.h>

#include "worker/exchange/core.h"

struct block_send;

/* Beside the peer of the same index in x.peers. */
struct connection {
    ucp_ep_h ep;                             /* NULL: none */
    ucs_status_t failure;                    /* told by UCX, seen to in progress */
    bool bye;                                /* told by the peer, likewise */
    int64_t closed_ns;                       /* when the last endpoint was closed */
    int64_t open_ns;                         /* the next is to be opened then; 0: none is */
    struct message *waiting, **waiting_end;  /* sent before that */
    size_t unsent;                           /* bytes of messages that UCX still holds */
    struct block_send *blocks, **blocks_end; /* waiting; the first may be on its way */
    char lane[16];
    /* where it is reached; aligned, since UCX reads it as words */
    _Alignas(16) uint8_t address[EXCHANGE_ADDRESS_MAX];
};

struct ucx {
    struct exchange x; /* first: a struct exchange * is a struct ucx * */
    struct waker waker;
    ucp_context_h context;
    ucp_worker_h worker;
    struct digest host;
    uint8_t address[EXCHANGE_ADDRESS_MAX];
    size_t address_bytes;
    struct connection connections[EXCHANGE_PEERS_MAX];
    /* What UCX holds. Some of it never comes back where a frozen peer was dropped: it is freed after the worker is. */
    struct message *held;
    struct block_send *held_blocks;
    unsigned n_sending, n_blocks, n_closing;
};

enum { UCX_AM_ID = 0 };

/* ucx_context.c: context and worker for a config, and the worker's address; undone by ucx_context_close, which takes half-opened ones. */
enum status ucx_context_open(struct ucx *u, const struct exchange_config *config, struct error *err);
void ucx_context_close(struct ucx *u);
/* Which lane UCX chose for an endpoint's messages ("posix", "tcp"), or "". */
void ucx_lane_name(ucp_ep_h ep, char *name_out, size_t bytes);

/* ucx_block.c: blocks in pieces, one piece under way a peer. */
enum status ucx_block_send(struct exchange *x, uint16_t peer, const struct iovec *parts, size_t n_parts,
                           void (*on_sent)(void *ctx, enum status st), void *ctx);
/* Sends what can be sent now; how many pieces. */
unsigned ucx_block_progress(struct ucx *u, size_t slot);
/* The connection is over: ends those that are not on their way. */
void ucx_block_cancel(struct ucx *u, size_t slot);
/* UCX is gone: ends those that it never gave back. */
void ucx_block_abandon(struct ucx *u);
/* A piece could be sent without anything arriving. */
bool ucx_block_due(const struct ucx *u, size_t slot);

#endif
