#include "worker/held.h"

#include <stdlib.h>
#include <string.h>

#include "common/log.h"

enum status held_send(struct sender *to, const struct worker *w)
{
    struct kv_named *named;
    uint32_t n;
    struct control_message m = { .kind = CONTROL_INVENTORY };
    const enum status st = worker_inventory(w, &named, &n, &m.as.blocks.epoch);
    if (st)
        return st;
    struct control_block *piece = malloc(CONTROL_BLOCKS_MAX * sizeof *piece);
    for (uint32_t at = 0; piece && at < n; at += m.as.blocks.n_blocks) {
        m.as.blocks.n_blocks = n - at < CONTROL_BLOCKS_MAX ? n - at : CONTROL_BLOCKS_MAX;
        m.as.blocks.blocks = piece;
        for (uint32_t i = 0; i < m.as.blocks.n_blocks; i++) {
            piece[i] = (struct control_block){ .handle = named[at + i].handle, .position = named[at + i].position };
            memcpy(piece[i].id, named[at + i].id.byte, sizeof piece[i].id);
        }
        sender_send(to, &m);
    }
    log_info("inventory: %u sealed blocks", n);
    free(named);
    const bool sent = piece != NULL;
    free(piece);
    return sent ? ST_OK : ST_NO_MEMORY;
}

enum status held_disk_send(struct sender *to, struct worker *w)
{
    struct kv_disk_block *blocks;
    uint32_t n;
    enum status st = worker_disk_list(w, &blocks, &n);
    if (st)
        return st;
    struct control_block *piece = malloc(CONTROL_BLOCKS_MAX * sizeof *piece);
    if (!piece)
        st = ST_NO_MEMORY;
    for (uint32_t at = 0; piece && at < n;) {
        struct control_message m = { .kind = CONTROL_STORED };
        m.as.blocks.n_blocks = n - at < CONTROL_BLOCKS_MAX ? n - at : CONTROL_BLOCKS_MAX;
        m.as.blocks.blocks = piece;
        for (uint32_t i = 0; i < m.as.blocks.n_blocks; i++, at++) {
            piece[i] = (struct control_block){ .position = blocks[at].position };
            memcpy(piece[i].id, blocks[at].id.byte, sizeof piece[i].id);
        }
        sender_send(to, &m);
    }
    free(piece);
    free(blocks);
    if (!st)
        worker_disk_told(w);
    return st;
}
