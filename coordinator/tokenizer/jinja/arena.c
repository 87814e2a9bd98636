#include "coordinator/tokenizer/jinja/arena.h"

#include <stdlib.h>

#include "common/bytes.h"

enum { BLOCK_BYTES = 16384 };

struct jinja_arena_block {
    struct jinja_arena_block *next;
    size_t bytes;
    max_align_t data[];
};

static void *fail(struct jinja_arena *a, enum status st)
{
    a->st = st;
    return NULL;
}

/* A large piece gets a block of its own behind the one that is being filled. */
static struct jinja_arena_block *block_add(struct jinja_arena *a, size_t bytes)
{
    const size_t room = bytes > BLOCK_BYTES / 4 ? bytes : BLOCK_BYTES;
    if (a->bytes_max - a->bytes < room)
        return fail(a, ST_TOO_LARGE);
    struct jinja_arena_block *b = malloc(sizeof *b + room);
    if (!b)
        return fail(a, ST_NO_MEMORY);
    a->bytes += room;
    b->bytes = room;
    if (room == BLOCK_BYTES || !a->blocks) {
        b->next = a->blocks;
        a->blocks = b;
        a->left = room;
    } else {
        b->next = a->blocks->next;
        a->blocks->next = b;
    }
    return b;
}

void *jinja_alloc(struct jinja_arena *a, size_t n, size_t bytes)
{
    size_t size;
    if (!size_mul(n, bytes, &size) || !size_add(size, sizeof(max_align_t) - 1, &size))
        return fail(a, ST_TOO_LARGE);
    size &= ~(sizeof(max_align_t) - 1);
    struct jinja_arena_block *b = a->blocks;
    if (!b || size > a->left) {
        b = block_add(a, size);
        if (!b)
            return NULL;
        if (b != a->blocks)
            return memset(b->data, 0, size);
    }
    unsigned char *at = (unsigned char *)b->data + (b->bytes - a->left);
    a->left -= size;
    return memset(at, 0, size);
}

void jinja_blocks_free(struct jinja_arena_block *blocks)
{
    while (blocks) {
        struct jinja_arena_block *next = blocks->next;
        free(blocks);
        blocks = next;
    }
}

void jinja_arena_deinit(struct jinja_arena *a)
{
    jinja_blocks_free(a->blocks);
    a->blocks = NULL;
    a->left = a->bytes = 0;
}
