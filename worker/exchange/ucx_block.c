/*
 * Blocks travel in pieces, one under way a peer, so that a message of a step that comes after never waits for a whole block: a piece takes some
 * tens of microseconds. A piece lies within one part of the block, so it is sent from where it is.
 */
#include "worker/exchange/ucx.h"

#include <stdlib.h>
#include <string.h>

enum { PIECE_BYTES = 256 << 10 };

struct block_send {
    struct block_send *next;
    struct block_send *held_next, **held_back; /* while a piece is under way */
    struct ucx *u;
    size_t slot;
    struct message_header header; /* of the next piece, but for its length */
    uint8_t wire[MESSAGE_HEADER_BYTES];
    void (*on_sent)(void *ctx, enum status st);
    void *ctx;
    bool under_way, cancelled;
    size_t part, at; /* the next piece begins there */
    size_t piece_bytes;
    size_t n_parts;
    struct iovec parts[];
};

enum status ucx_block_send(struct exchange *x, uint16_t peer, const struct iovec *parts, size_t n_parts,
                           void (*on_sent)(void *ctx, enum status st), void *ctx)
{
    struct ucx *u = (struct ucx *)x;
    struct peer *p = exchange_peer(x, peer);
    size_t bytes;
    if (!p || p->state != PEER_UP)
        return ST_PEER;
    if (!iovec_bytes(parts, n_parts, &bytes) || !bytes || n_parts > 1024)
        return ST_INVALID;
    struct block_send *b = calloc(1, sizeof *b + n_parts * sizeof *parts);
    if (!b)
        return ST_NO_MEMORY;
    b->u = u;
    b->slot = (size_t)(p - x->peers);
    b->header = exchange_header(x, p, MESSAGE_BLOCK, 0);
    b->header.block.number = ++p->block_number;
    b->header.block.total = bytes;
    b->on_sent = on_sent;
    b->ctx = ctx;
    b->n_parts = n_parts;
    memcpy(b->parts, parts, n_parts * sizeof *parts);
    struct connection *c = &u->connections[b->slot];
    *c->blocks_end = b;
    c->blocks_end = &b->next;
    x->stats.messages_sent++;
    x->stats.bytes_sent += bytes;
    return ST_OK;
}

static void block_end(struct block_send *b, enum status st)
{
    exchange_sent_later(&b->u->x, b->on_sent, b->ctx, st);
    free(b);
}

static void block_unlink(struct block_send *b)
{
    struct connection *c = &b->u->connections[b->slot];
    c->blocks = b->next;
    if (!c->blocks)
        c->blocks_end = &c->blocks;
}

static void hold(struct ucx *u, struct block_send *b)
{
    b->held_next = u->held_blocks;
    b->held_back = &u->held_blocks;
    if (b->held_next)
        b->held_next->held_back = &b->held_next;
    u->held_blocks = b;
    u->n_blocks++;
}

static void let_go(struct block_send *b)
{
    *b->held_back = b->held_next;
    if (b->held_next)
        b->held_next->held_back = b->held_back;
    b->u->n_blocks--;
}

/* The piece has left (or never will): on to the next one, or the end. */
static void piece_done(struct block_send *b, ucs_status_t st)
{
    b->under_way = false;
    if (b->cancelled) { /* it is in no queue any more */
        block_end(b, ST_PEER);
        return;
    }
    b->at += b->piece_bytes;
    b->header.block.offset += b->piece_bytes;
    if (st || b->header.block.offset == b->header.block.total) {
        block_unlink(b);
        block_end(b, st ? ST_PEER : ST_OK);
    }
}

static void on_piece_sent(void *request, ucs_status_t st, void *user_data)
{
    struct block_send *b = user_data;
    let_go(b);
    piece_done(b, st);
    ucp_request_free(request);
}

static void piece_send(struct ucx *u, struct block_send *b)
{
    while (b->at == b->parts[b->part].iov_len) {
        b->part++;
        b->at = 0;
    }
    const struct iovec *part = &b->parts[b->part];
    b->piece_bytes = part->iov_len - b->at < PIECE_BYTES ? part->iov_len - b->at : PIECE_BYTES;
    b->header.payload_bytes = b->piece_bytes;
    b->header.sum = checksum64((const uint8_t *)part->iov_base + b->at, b->piece_bytes);
    message_header_write(&b->header, b->wire);
    b->under_way = true;
    const ucp_request_param_t param = { .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                                                        UCP_OP_ATTR_FIELD_FLAGS,
                                        .flags = UCP_AM_SEND_FLAG_EAGER,
                                        .cb.send = on_piece_sent,
                                        .user_data = b };
    hold(u, b);
    void *request = ucp_am_send_nbx(u->connections[b->slot].ep, UCX_AM_ID, b->wire, sizeof b->wire,
                                    (const uint8_t *)part->iov_base + b->at, b->piece_bytes, &param);
    if (!UCS_PTR_IS_PTR(request)) {
        let_go(b);
        piece_done(b, UCS_PTR_STATUS(request));
    }
}

unsigned ucx_block_progress(struct ucx *u, size_t slot)
{
    struct connection *c = &u->connections[slot];
    unsigned n = 0;
    /* the small piece of a header and the large one behind it */
    while (c->ep && !c->failure && c->blocks && !c->blocks->under_way && n < 2) {
        piece_send(u, c->blocks);
        n++;
    }
    return n;
}

void ucx_block_cancel(struct ucx *u, size_t slot)
{
    struct connection *c = &u->connections[slot];
    while (c->blocks) {
        struct block_send *b = c->blocks;
        block_unlink(b);
        b->cancelled = true;
        if (!b->under_way)
            block_end(b, ST_PEER);
    }
}

void ucx_block_abandon(struct ucx *u)
{
    while (u->held_blocks) {
        struct block_send *b = u->held_blocks;
        let_go(b);
        block_end(b, ST_PEER);
    }
}

bool ucx_block_due(const struct ucx *u, size_t slot)
{
    const struct block_send *first = u->connections[slot].blocks;
    return first && !first->under_way;
}
