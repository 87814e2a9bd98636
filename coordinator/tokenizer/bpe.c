#include "coordinator/tokenizer/bpe_internal.h"

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "coordinator/tokenizer/unicode.h"

enum { SHORT_SYMBOLS = 48, NO_SYMBOL = 0xFFFFFFFF };

void bpe_run_deinit(struct bpe_run *run)
{
    free(run->ids);
    free(run->room);
    *run = (struct bpe_run){ 0 };
}

enum status bpe_run_reserve(struct bpe_run *run, size_t n)
{
    if (run->ids_max > 0 && n > run->ids_max)
        n = run->ids_max;
    if (n <= run->cap_ids && run->ids)
        return ST_OK;
    size_t bytes;
    if (!size_mul(n ? n : 1, sizeof *run->ids, &bytes))
        return ST_NO_MEMORY;
    int32_t *ids = realloc(run->ids, bytes);
    if (!ids)
        return ST_NO_MEMORY;
    run->ids = ids;
    run->cap_ids = n ? n : 1;
    return ST_OK;
}

void bpe_run_take(struct bpe_run *run, int32_t **ids_out, size_t *n_out)
{
    *ids_out = run->ids;
    *n_out = run->n_ids;
    run->ids = NULL;
    run->n_ids = run->cap_ids = 0;
}

enum status bpe_run_add(struct bpe_run *run, int32_t id)
{
    if (run->ids_max > 0 && run->n_ids >= run->ids_max)
        return ST_TOO_LARGE;
    if (run->n_ids == run->cap_ids) {
        const enum status st = bpe_run_reserve(run, run->cap_ids ? run->cap_ids * 2 : 256);
        if (st)
            return st;
    }
    run->ids[run->n_ids++] = id;
    return ST_OK;
}

struct pair {
    uint32_t rank, made;
};

static struct pair pair_of(const struct bpe *b, uint32_t left, uint32_t right)
{
    const struct merge_slot *s = merge_slot_of(b, left, right);
    return (struct pair){ s->rank, s->made };
}

/* Short pieces: the lowest rank is found by looking at all. pairs[i] is of symbols i and i + 1. */
static enum status encode_short(const struct bpe *b, struct bpe_run *run, const uint8_t *piece, size_t bytes)
{
    uint32_t ids[SHORT_SYMBOLS];
    struct pair pairs[SHORT_SYMBOLS];
    uint32_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (b->byte_id[piece[i]] >= 0)
            ids[n++] = (uint32_t)b->byte_id[piece[i]];
    }
    for (uint32_t i = 0; i + 1 < n; i++)
        pairs[i] = pair_of(b, ids[i], ids[i + 1]);
    while (n > 1) {
        uint32_t best = 0;
        for (uint32_t i = 1; i + 1 < n; i++)
            best = pairs[i].rank < pairs[best].rank ? i : best;
        if (pairs[best].rank == BPE_NO_RANK)
            break;
        ids[best] = pairs[best].made;
        n--;
        for (uint32_t i = best + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            pairs[i - 1] = pairs[i];
        }
        if (best > 0)
            pairs[best - 1] = pair_of(b, ids[best - 1], ids[best]);
        if (best + 1 < n)
            pairs[best] = pair_of(b, ids[best], ids[best + 1]);
    }
    enum status st = ST_OK;
    for (uint32_t i = 0; !st && i < n; i++)
        st = bpe_run_add(run, (int32_t)ids[i]);
    return st;
}

/* Long pieces: symbols in a linked list, pairs in a heap by (rank, place). */
struct symbol {
    uint32_t id, prev, next;
    uint32_t rank; /* of the pair with the next symbol as it is now; entries of the heap that say otherwise are stale */
};

static void heap_sink(uint64_t *heap, size_t n, size_t i)
{
    const uint64_t key = heap[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n)
            break;
        child += child + 1 < n && heap[child + 1] < heap[child];
        if (heap[child] >= key)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = key;
}

static void heap_push(uint64_t *heap, size_t *n, uint64_t key)
{
    size_t i = (*n)++;
    for (; i > 0 && heap[(i - 1) / 2] > key; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = key;
}

static uint64_t heap_pop(uint64_t *heap, size_t *n)
{
    const uint64_t top = heap[0];
    heap[0] = heap[--*n];
    heap_sink(heap, *n, 0);
    return top;
}

static void pair_update(const struct bpe *b, struct symbol *s, uint64_t *heap, size_t *n_heap, uint32_t at)
{
    s[at].rank = s[at].next == NO_SYMBOL ? BPE_NO_RANK : pair_of(b, s[at].id, s[s[at].next].id).rank;
    if (s[at].rank != BPE_NO_RANK)
        heap_push(heap, n_heap, (uint64_t)s[at].rank << 32 | at);
}

static void merge_all(const struct bpe *b, struct symbol *s, uint32_t n, uint64_t *heap)
{
    size_t n_heap = 0;
    for (uint32_t i = 0; i + 1 < n; i++) {
        s[i].rank = pair_of(b, s[i].id, s[i + 1].id).rank;
        if (s[i].rank != BPE_NO_RANK)
            heap[n_heap++] = (uint64_t)s[i].rank << 32 | i;
    }
    for (size_t i = n_heap / 2; i-- > 0;)
        heap_sink(heap, n_heap, i);
    while (n_heap > 0) {
        const uint64_t key = heap_pop(heap, &n_heap);
        const uint32_t at = (uint32_t)key, rank = (uint32_t)(key >> 32);
        if (s[at].rank != rank)
            continue;
        const uint32_t gone = s[at].next;
        s[at].id = pair_of(b, s[at].id, s[gone].id).made;
        s[at].next = s[gone].next;
        if (s[gone].next != NO_SYMBOL)
            s[s[gone].next].prev = at;
        s[gone].rank = BPE_NO_RANK;
        pair_update(b, s, heap, &n_heap, at);
        if (s[at].prev != NO_SYMBOL)
            pair_update(b, s, heap, &n_heap, s[at].prev);
    }
}

/* Each merge takes one entry and adds two at most: the heap never holds more than two a symbol. */
static enum status room_for(struct bpe_run *run, size_t n)
{
    if (n <= run->room_symbols)
        return ST_OK;
    size_t bytes;
    if (!size_mul(n, sizeof(struct symbol) + 2 * sizeof(uint64_t), &bytes))
        return ST_NO_MEMORY;
    free(run->room);
    run->room_symbols = 0;
    run->room = malloc(bytes);
    if (!run->room)
        return ST_NO_MEMORY;
    run->room_symbols = n;
    return ST_OK;
}

/* The symbols that a piece begins as; room was made for as many as it has bytes. */
static size_t first_symbols(const struct bpe *b, const uint8_t *piece, size_t bytes, struct symbol *s)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes;) {
        uint32_t point, n_bytes = 1;
        int32_t id = -1;
        if (b->characters) {
            n_bytes = utf8_next(piece + i, piece + bytes, &point);
            id = text_map_get(&b->chars, piece + i, n_bytes);
        }
        for (uint32_t k = 0; k < (id >= 0 ? 1 : n_bytes); k++) {
            const int32_t one = id >= 0 ? id : b->byte_id[piece[i + k]];
            if (one >= 0)
                s[n++].id = (uint32_t)one;
        }
        i += n_bytes;
    }
    return n;
}

static enum status encode_long(const struct bpe *b, struct bpe_run *run, const uint8_t *piece, size_t bytes)
{
    if (run->ids_max > 0 && !b->characters) {
        size_t n = 0;
        for (size_t i = 0; i < bytes; i++)
            n += b->byte_id[piece[i]] >= 0;
        if (n / b->token_bytes_max > run->ids_max - run->n_ids)
            return ST_TOO_LARGE;
    } else if (run->ids_max > 0 && bytes / b->token_bytes_max > run->ids_max - run->n_ids) {
        return ST_TOO_LARGE;
    }
    enum status st = room_for(run, bytes);
    if (st)
        return st;
    struct symbol *s = run->room;
    uint64_t *heap = (uint64_t *)(s + run->room_symbols);
    const size_t n = first_symbols(b, piece, bytes, s);
    if (n == 0)
        return ST_OK;
    for (uint32_t i = 0; i < n; i++) {
        s[i].prev = i - 1;
        s[i].next = i + 1;
        s[i].rank = BPE_NO_RANK;
    }
    s[0].prev = NO_SYMBOL;
    s[n - 1].next = NO_SYMBOL;
    merge_all(b, s, (uint32_t)n, heap);
    for (uint32_t at = 0; !st && at != NO_SYMBOL; at = s[at].next)
        st = bpe_run_add(run, (int32_t)s[at].id);
    return st;
}

enum status bpe_encode(const struct bpe *b, struct bpe_run *run, const uint8_t *piece, size_t bytes)
{
    if (b->characters)
        return encode_long(b, run, piece, bytes);
    const int32_t id = bytes <= b->token_bytes_max ? text_map_get(&b->whole, piece, bytes) : -1;
    if (id >= 0)
        return bpe_run_add(run, id);
    return bytes <= SHORT_SYMBOLS ? encode_short(b, run, piece, bytes) : encode_long(b, run, piece, bytes);
}
