#include <stdlib.h>
#include <string.h>

#include "model/df11.h"

/* ---- lengths: package-merge (Larmore and Hirschberg, 1990) ---- */

/* Symbols bought together: once for each time that a symbol is in it, its code is a bit longer. */
struct package {
    uint64_t weight;
    uint8_t times[256];
};

struct lists {
    struct package leaves[256], now[512], next[512];
};

static uint32_t sorted_leaves(const uint64_t counts[256], struct package *leaves)
{
    uint32_t n = 0;
    for (uint32_t s = 0; s < 256; s++) {
        if (!counts[s])
            continue;
        uint32_t at = n++;
        for (; at && leaves[at - 1].weight > counts[s]; at--)
            leaves[at] = leaves[at - 1];
        leaves[at] = (struct package){ .weight = counts[s] };
        leaves[at].times[s] = 1;
    }
    return n;
}

static void join(const struct package *a, const struct package *b, struct package *out)
{
    out->weight = a->weight + b->weight;
    for (uint32_t s = 0; s < 256; s++)
        out->times[s] = (uint8_t)(a->times[s] + b->times[s]);
}

/* Leaves and pairs of `now` by weight; leaves first where weights are the same. */
static uint32_t merge(struct lists *l, uint32_t n_leaves, uint32_t n_now)
{
    uint32_t n = 0, leaf = 0, pair = 0;
    while (leaf < n_leaves || pair + 1 < n_now) {
        const bool has_pair = pair + 1 < n_now;
        if (leaf < n_leaves && (!has_pair || l->leaves[leaf].weight <= l->now[pair].weight + l->now[pair + 1].weight)) {
            l->next[n++] = l->leaves[leaf++];
        } else {
            join(&l->now[pair], &l->now[pair + 1], &l->next[n++]);
            pair += 2;
        }
    }
    memcpy(l->now, l->next, n * sizeof *l->now);
    return n;
}

static bool best_lengths(const uint64_t counts[256], uint8_t length_out[256])
{
    struct lists *l = malloc(sizeof *l);
    if (!l)
        return false;
    const uint32_t n_leaves = sorted_leaves(counts, l->leaves);
    uint32_t n = 0;
    memset(length_out, 0, 256);
    for (int level = 0; level < DF11_BITS; level++)
        n = merge(l, n_leaves, n);
    for (uint32_t i = 0; i < 2 * n_leaves - 2; i++)
        for (uint32_t s = 0; s < 256; s++)
            length_out[s] = (uint8_t)(length_out[s] + l->now[i].times[s]);
    for (uint32_t s = 0; s < 256 && n_leaves == 1; s++)
        length_out[s] = counts[s] != 0;
    free(l);
    return true;
}

/* ---- codes and table from lengths ---- */

static uint16_t reversed(uint32_t code, uint32_t bits)
{
    uint32_t r = 0;
    for (uint32_t i = 0; i < bits; i++)
        r |= (code >> i & 1) << (bits - 1 - i);
    return (uint16_t)r;
}

/* one[v]: the exponent whose code v begins with | its bits << 8 */
static void fill_table(const uint16_t *one, uint64_t *table)
{
    for (uint32_t v = 0; v < DF11_TABLE; v++) {
        uint64_t entry = (uint64_t)(one[v] >> 8) << 48;
        uint32_t bits = 0, n = 0;
        while (n < 4 && bits + (one[v >> bits] >> 8) <= DF11_BITS) {
            entry |= (uint64_t)(one[v >> bits] & 255) << (8 * n++);
            bits += one[v >> bits] >> 8;
        }
        table[v] = entry | (uint64_t)n << 32 | (uint64_t)bits << 40;
    }
}

static void assign(struct df11_code *c, uint32_t n)
{
    uint16_t one[DF11_TABLE];
    uint32_t next = 0;
    for (uint32_t bits = 1; bits <= DF11_BITS; bits++, next <<= 1)
        for (uint32_t s = 0; s < 256; s++) {
            if (c->length[s] != bits)
                continue;
            if (!next)
                c->first = (uint8_t)s;
            c->code[s] = reversed(next++, bits);
            for (uint32_t v = c->code[s]; v < DF11_TABLE; v += 1u << bits)
                one[v] = (uint16_t)(bits << 8 | s);
        }
    for (uint32_t v = 1; v < DF11_TABLE && n == 1; v += 2) /* one exponent alone: its bit may be either */
        one[v] = one[0];
    fill_table(one, c->table);
}

enum status df11_code_of(const uint8_t length[256], const char *where, struct df11_code *code_out, struct error *err)
{
    uint32_t used = 0, n = 0, only = 0;
    for (uint32_t s = 0; s < 256; s++) {
        if (length[s] > DF11_BITS)
            return error_set(err, ST_CORRUPT, "%s: the code of exponent %u has %u bits (up to %d)", where, s, length[s],
                             DF11_BITS);
        if (!length[s])
            continue;
        used += DF11_TABLE >> length[s];
        only = length[s];
        n++;
    }
    if (used != DF11_TABLE && !(n == 1 && only == 1))
        return error_set(err, ST_CORRUPT, "%s: the code lengths of %u exponents make no complete code (%u of %d)",
                         where, n, used, DF11_TABLE);
    memset(code_out, 0, sizeof *code_out);
    memcpy(code_out->length, length, sizeof code_out->length);
    assign(code_out, n);
    return ST_OK;
}

bool df11_code_best(const uint64_t counts[256], struct df11_code *code_out)
{
    uint8_t length[256];
    return best_lengths(counts, length) && df11_code_of(length, "counts", code_out, NULL) == ST_OK;
}
