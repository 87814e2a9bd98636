#include "proto/wire.h"

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"

enum { ALIGN = 16, CHUNK_MIN = 64 * 1024 };

struct wire_chunk {
    struct wire_chunk *next;
    uint64_t pad; /* what follows is aligned */
};

static void *arena_alloc(void *data, size_t bytes)
{
    return wire_take(data, bytes);
}

static void arena_free(void *data, void *pointer)
{
    (void)data;
    (void)pointer;
}

void wire_arena_init(struct wire_arena *a, size_t bytes_max)
{
    a->chunks = NULL;
    a->at = a->first;
    a->end = a->first + sizeof a->first;
    a->left = bytes_max;
    a->allocator = (ProtobufCAllocator){ .alloc = arena_alloc, .free = arena_free, .allocator_data = a };
}

void wire_arena_deinit(struct wire_arena *a)
{
    while (a->chunks) {
        struct wire_chunk *chunk = a->chunks;
        a->chunks = chunk->next;
        free(chunk);
    }
}

void *wire_take(struct wire_arena *a, size_t bytes)
{
    if (bytes > SIZE_MAX / 2)
        return NULL;
    const size_t rounded = (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    if (rounded > a->left)
        return NULL;
    if (rounded > (size_t)(a->end - a->at)) {
        const size_t room = rounded > CHUNK_MIN ? rounded : CHUNK_MIN;
        size_t whole;
        struct wire_chunk *chunk = size_add(room, sizeof *chunk, &whole) ? malloc(whole) : NULL;
        if (!chunk)
            return NULL;
        chunk->next = a->chunks;
        a->chunks = chunk;
        a->at = (uint8_t *)(chunk + 1);
        a->end = a->at + room;
    }
    void *p = a->at;
    a->at += rounded;
    a->left -= rounded;
    return p;
}

size_t wire_unpack_max(size_t n)
{
    size_t bytes;
    return size_mul(n, 12, &bytes) && size_add(bytes, 64 * 1024, &bytes) ? bytes : SIZE_MAX;
}

void wire_size_add(struct wire_size *s, size_t n, size_t item)
{
    size_t bytes;
    if (!size_mul(n, item, &bytes) || !size_add(bytes, ALIGN - 1, &bytes) ||
        !size_add(s->bytes, bytes & ~(size_t)(ALIGN - 1), &s->bytes))
        s->bad = true;
}

void *wire_room_take(struct wire_room *r, size_t n, size_t item)
{
    void *p = r->at;
    r->at += (n * item + ALIGN - 1) & ~(size_t)(ALIGN - 1); /* wire_size_add found that it fits */
    return p;
}

/* -> bytes of the character at p (1 .. 4), or 0: none is well-formed there (Unicode, table 3-7). Ends at a NUL by itself. */
static size_t utf8_char(const uint8_t *p)
{
    if (p[0] < 0x80)
        return 1;
    if (p[0] < 0xC2 || p[0] > 0xF4)
        return 0;
    const uint8_t low = p[0] == 0xE0 ? 0xA0 : p[0] == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = p[0] == 0xED ? 0x9F : p[0] == 0xF4 ? 0x8F : 0xBF;
    if (p[1] < low || p[1] > high)
        return 0;
    const size_t n = p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
    for (size_t i = 2; i < n; i++)
        if ((p[i] & 0xC0) != 0x80)
            return 0;
    return n;
}

enum status wire_text(const char *text, size_t bytes_max, const char *field, struct error *err)
{
    const size_t bytes = strlen(text);
    if (bytes > bytes_max)
        return error_set(err, ST_TOO_LARGE, "%s: %zu bytes, at most %zu", field, bytes, bytes_max);
    for (const uint8_t *p = (const uint8_t *)text; *p;) {
        const size_t n = utf8_char(p);
        if (!n)
            return error_set(err, ST_CORRUPT, "%s: not valid UTF-8", field);
        p += n;
    }
    return ST_OK;
}

enum status wire_pack(const ProtobufCMessage *message, uint8_t **bytes_out, size_t *n_out)
{
    const size_t n = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = malloc(n ? n : 1);
    if (!bytes)
        return ST_NO_MEMORY;
    *n_out = protobuf_c_message_pack(message, bytes);
    *bytes_out = bytes;
    return ST_OK;
}
