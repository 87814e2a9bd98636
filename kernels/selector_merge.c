/* One threshold for keys that several owners have, without sending them all. */
#include <stdlib.h>
#include <string.h>

#include "kernels/selector.h"

enum { COUNTS_HEADER = 8 /* lowest and highest key */, BINS_MIN = 16, BINS_MAX = 256 };

/* About four keys a bin. */
static uint32_t bins_of(uint32_t n)
{
    uint32_t bins = BINS_MIN;
    while (bins < BINS_MAX && bins * 4 < n)
        bins *= 2;
    return bins;
}

size_t selector_counts_bytes(uint32_t n)
{
    return n ? COUNTS_HEADER + bins_of(n) * sizeof(uint16_t) : 0;
}

struct counts {
    uint32_t low, high, bins;
    uint64_t span;
};

static struct counts header_of(const uint8_t *counts, uint32_t n)
{
    struct counts c = { .bins = bins_of(n) };
    memcpy(&c.low, counts, 4);
    memcpy(&c.high, counts + 4, 4);
    c.span = (uint64_t)c.high - c.low + 1;
    return c;
}

static uint32_t count_at(const uint8_t *counts, uint32_t bin)
{
    uint16_t count;
    memcpy(&count, counts + COUNTS_HEADER + bin * sizeof count, sizeof count);
    return count;
}

/* Of a key from low to high. */
static uint32_t bin_of(const struct counts *c, uint32_t key)
{
    return (uint32_t)((uint64_t)(key - c->low) * c->bins / c->span);
}

/* The first bin of which no key is below the key. */
static uint32_t bin_not_below(const struct counts *c, uint32_t key)
{
    return key <= c->low ? 0 : key > c->high ? c->bins : bin_of(c, key - 1) + 1;
}

/* The first bin of which some key may be no less than the key. */
static uint32_t bin_reaching(const struct counts *c, uint32_t key)
{
    return key <= c->low ? 0 : key > c->high ? c->bins : bin_of(c, key);
}

void selector_counts(const uint32_t *keys, uint32_t n, uint8_t *counts_out)
{
    uint32_t low = keys[0], high = keys[0];
    uint16_t count[BINS_MAX] = { 0 };
    for (uint32_t i = 1; i < n; i++) {
        low = keys[i] < low ? keys[i] : low;
        high = keys[i] > high ? keys[i] : high;
    }
    memcpy(counts_out, &low, 4);
    memcpy(counts_out + 4, &high, 4);
    const struct counts c = header_of(counts_out, n);
    for (uint32_t i = 0; i < n; i++)
        count[bin_of(&c, keys[i])]++;
    memcpy(counts_out + COUNTS_HEADER, count, c.bins * sizeof *count);
}

bool selector_counts_valid(const uint8_t *counts, uint32_t n)
{
    const struct counts c = header_of(counts, n);
    uint64_t sum = 0;
    if (c.low > c.high)
        return false;
    for (uint32_t i = 0; i < c.bins; i++) {
        /* the least key that may be in bin i or after it: where there are fewer keys than bins, some bins have none */
        const uint64_t least = ((uint64_t)i * c.span + c.bins - 1) / c.bins;
        if (count_at(counts, i) && (least >= c.span || bin_of(&c, c.low + (uint32_t)least) != i))
            return false;
        sum += count_at(counts, i);
    }
    return sum == n && count_at(counts, 0) && count_at(counts, bin_of(&c, c.high));
}

/* An owner's keys from each bin on. */
struct tail {
    struct counts counts;
    uint32_t keys[BINS_MAX + 1];
};

/* The greatest key with at least k from it on; 0 if there is none. */
static uint32_t greatest(const struct tail *tails, uint32_t n, uint32_t k,
                         uint32_t (*bin_from)(const struct counts *c, uint32_t key))
{
    uint32_t key = 0;
    for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
        uint64_t sum = 0;
        for (uint32_t i = 0; i < n; i++)
            sum += tails[i].keys[bin_from(&tails[i].counts, key | bit)];
        if (sum >= k)
            key |= bit;
    }
    return key;
}

struct selector_range selector_range_of(const uint8_t *const *counts, const uint32_t *n, uint32_t n_owners, uint32_t k)
{
    struct tail tails[SELECTOR_OWNERS_MAX];
    for (uint32_t i = 0; i < n_owners; i++) {
        struct tail *t = &tails[i];
        t->counts = header_of(counts[i], n[i]);
        t->keys[t->counts.bins] = 0;
        for (uint32_t bin = t->counts.bins; bin-- > 0;)
            t->keys[bin] = t->keys[bin + 1] + count_at(counts[i], bin);
    }
    return (struct selector_range){ greatest(tails, n_owners, k, bin_not_below),
                                    greatest(tails, n_owners, k, bin_reaching) };
}

/* Bins that the range touches: first .. end - 1. */
static void bins_touched(const struct counts *c, struct selector_range range, uint32_t *first_out, uint32_t *end_out)
{
    *first_out = bin_reaching(c, range.low);
    *end_out = range.high < c->low ? 0 : range.high >= c->high ? c->bins : bin_of(c, range.high) + 1;
    if (*end_out < *first_out)
        *end_out = *first_out;
}

uint32_t selector_range_count(const uint8_t *counts, uint32_t n, struct selector_range range, uint32_t *above_out)
{
    const struct counts c = header_of(counts, n);
    uint32_t first, end, sum = 0, above = 0;
    bins_touched(&c, range, &first, &end);
    for (uint32_t bin = first; bin < c.bins; bin++)
        *(bin < end ? &sum : &above) += count_at(counts, bin);
    *above_out = above;
    return sum;
}

uint32_t selector_range_take(const uint8_t *counts, const uint32_t *keys, uint32_t n, struct selector_range range,
                             struct selector_pair *pairs_out)
{
    const struct counts c = header_of(counts, n);
    uint32_t first, end, taken = 0;
    bins_touched(&c, range, &first, &end);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t bin = bin_of(&c, keys[i]);
        if (bin >= first && bin < end)
            pairs_out[taken++] = (struct selector_pair){ keys[i], i };
    }
    return taken;
}

bool selector_pairs_valid(const uint8_t *counts, uint32_t n, struct selector_range range,
                          const struct selector_pair *pairs, uint32_t n_pairs)
{
    const struct counts c = header_of(counts, n);
    uint32_t first, end;
    bins_touched(&c, range, &first, &end);
    for (uint32_t i = 0; i < n_pairs; i++)
        if (pairs[i].key < c.low || pairs[i].key > c.high || bin_of(&c, pairs[i].key) < first ||
            bin_of(&c, pairs[i].key) >= end)
            return false;
    return true;
}

/* The better one first: the higher key, of equal ones the lower block. */
static int order(const void *a, const void *b)
{
    const struct selector_pair *x = a, *y = b;
    if (x->key != y->key)
        return x->key > y->key ? -1 : 1;
    return x->block < y->block ? -1 : x->block > y->block;
}

struct selector_pair selector_cut(struct selector_pair *pairs, uint32_t n, uint32_t k)
{
    qsort(pairs, n, sizeof *pairs, order);
    return pairs[k - 1];
}
