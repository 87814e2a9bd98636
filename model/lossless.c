#include "model/lossless.h"

#include <string.h>

enum { STEPS = 8, LANES = 64 };

/* Where byte j of step p comes from: its input in the block; its output is j / 4. */
static uint32_t input_of(uint32_t p, uint32_t j)
{
    return 4 * p + (j & 1) * 2 + (j >> 1 & 1);
}

static uint32_t exponent_of(uint16_t w)
{
    return w >> 7 & 255;
}

struct lossless_group lossless_group_at(const struct lossless_tensor *t, uint32_t group)
{
    const uint32_t n_blocks = lossless_blocks(t->n_cols);
    uint64_t begin = t->starts[group], end = t->starts[group + 1];
    end = end < t->n_escapes ? end : t->n_escapes;
    begin = begin < end ? begin : end;
    return (struct lossless_group){
        .class_bits = t->class_bits,
        .n_blocks = n_blocks,
        .n_escapes = (uint32_t)(end - begin < UINT32_MAX ? end - begin : UINT32_MAX),
        .planes = t->planes + (size_t)group * n_blocks * lossless_block_bytes(t->class_bits),
        .escapes = t->escapes + begin,
        .records = t->records + (size_t)group * n_blocks,
    };
}

/* ---- coding ---- */

/* The base that leaves the fewest escapes in a block, and how many. Bases start at 1: an exponent of 0 is always an escape. */
static uint32_t best_base(const uint16_t *const rows[LOSSLESS_OUTS], uint32_t n_cols, uint32_t block,
                          uint32_t class_bits, uint32_t *escapes_out)
{
    const uint32_t first = block * LOSSLESS_INS, n_here = n_cols - first < LOSSLESS_INS ? n_cols - first : LOSSLESS_INS;
    const uint32_t window = (1u << class_bits) - 1;
    uint16_t count[256] = { 0 };
    uint32_t total = 0, sum = 0, best = 0, base = 1;
    for (uint32_t n = 0; n < LOSSLESS_OUTS; n++) {
        if (!rows[n])
            continue;
        for (uint32_t k = 0; k < n_here; k++)
            count[exponent_of(rows[n][first + k])]++;
        total += n_here;
    }
    for (uint32_t e = 1; e < window; e++)
        sum += count[e];
    for (uint32_t b = 1; b <= lossless_base_max(class_bits); b++) {
        sum += count[b + window - 1];
        if (sum > best) {
            best = sum;
            base = b;
        }
        sum -= count[b];
    }
    *escapes_out = total - best;
    return base;
}

uint32_t lossless_count(const uint16_t *const rows[LOSSLESS_OUTS], uint32_t n_cols, uint32_t class_bits)
{
    uint32_t total = 0;
    for (uint32_t b = 0; b < lossless_blocks(n_cols); b++) {
        uint32_t escapes;
        best_base(rows, n_cols, b, class_bits, &escapes);
        total += escapes;
    }
    return total;
}

uint32_t lossless_choose(uint64_t n_weights, uint64_t escapes_3, uint64_t escapes_4)
{
    const double plain = lossless_bits(n_weights, 0, 0), three = lossless_bits(n_weights, 3, escapes_3),
                 four = lossless_bits(n_weights, 4, escapes_4);
    if (plain <= three && plain <= four)
        return 0;
    return three <= four ? 3 : 4;
}

static void put_class(uint8_t *classes, uint32_t class_bits, uint32_t p, uint32_t j, uint32_t c)
{
    if (class_bits == 4) {
        classes[p / 2 * LANES + j] |= (uint8_t)(c << p % 2 * 4);
    } else if (p < 6) {
        classes[p / 2 * LANES + j] |= (uint8_t)(c << p % 2 * 3);
    } else {
        classes[(p - 6) * LANES + j] |= (uint8_t)((c & 3) << 6);
        classes[2 * LANES + j] |= (uint8_t)(c >> 2 << p);
    }
}

static void put_sign_mantissa(uint8_t *line, uint32_t n, uint32_t i, uint16_t w)
{
    static const uint8_t mantissa_at[4] = { 0, 2, 3, 1 }, sign_at[4] = { 1, 3, 0, 2 };
    line[4 * n + mantissa_at[i]] |= (uint8_t)(w & 127);
    line[4 * n + sign_at[i]] |= (uint8_t)(w >> 15 << 7);
}

uint32_t lossless_encode(const uint16_t *const rows[LOSSLESS_OUTS], uint32_t n_cols, uint32_t class_bits,
                         uint8_t *planes_out, uint32_t *records_out, uint8_t *escapes_out)
{
    const uint32_t escape = (1u << class_bits) - 1;
    uint32_t total = 0;
    memset(planes_out, 0, lossless_blocks(n_cols) * lossless_block_bytes(class_bits));
    for (uint32_t b = 0; b < lossless_blocks(n_cols); b++, planes_out += lossless_block_bytes(class_bits)) {
        uint32_t unused;
        const uint32_t base = best_base(rows, n_cols, b, class_bits, &unused);
        records_out[b] = total << 8 | base;
        for (uint32_t p = 0; p < STEPS; p++)
            for (uint32_t j = 0; j < LANES; j++) {
                const uint32_t k = input_of(p, j), n = j / 4;
                if (!rows[n] || b * LOSSLESS_INS + k >= n_cols)
                    continue;
                const uint16_t w = rows[n][b * LOSSLESS_INS + k];
                const uint32_t e = exponent_of(w);
                const bool fits = e >= base && e - base < escape;
                put_class(planes_out + LOSSLESS_SIGNS_BYTES, class_bits, p, j, fits ? e - base : escape);
                put_sign_mantissa(planes_out + p * LANES, n, k % 4, w);
                if (!fits)
                    escapes_out[total++] = (uint8_t)e;
            }
    }
    return total;
}

/* ---- decoding: eight code bytes, that is two outputs, at a time ---- */

#define EACH(byte) (0x0101010101010101u * (byte))

static uint64_t load_u64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Classes of step p, bytes 8q .. 8q+7, a byte each. */
static uint64_t classes_of(const uint8_t *classes, uint32_t class_bits, uint32_t p, uint32_t q)
{
    if (class_bits == 4)
        return load_u64(classes + p / 2 * LANES + 8 * q) >> p % 2 * 4 & EACH(15);
    if (p < 6)
        return load_u64(classes + p / 2 * LANES + 8 * q) >> p % 2 * 3 & EACH(7);
    return (load_u64(classes + (p - 6) * LANES + 8 * q) >> 6 & EACH(3)) |
           (load_u64(classes + 2 * LANES + 8 * q) >> p & EACH(1)) << 2;
}

/* Bit 0 of each byte: it is an escape. */
static uint64_t escapes_of(uint64_t classes, uint32_t class_bits)
{
    const uint64_t three = classes & classes >> 1 & classes >> 2;
    return (class_bits == 4 ? three & classes >> 3 : three) & EACH(1);
}

/* The exponents of eight code bytes; at: how many escapes of the group lie before. */
static void exponents(const struct lossless_group *g, uint64_t classes, uint64_t escapes, uint32_t base, uint64_t at,
                      uint8_t out[8])
{
    for (uint32_t i = 0; i < 8; i++) {
        out[i] = (uint8_t)(base + (classes >> 8 * i & 15));
        if (escapes >> 8 * i & 1) {
            out[i] = at < g->n_escapes ? g->escapes[at] : 0;
            at++;
        }
    }
}

/* The four weights of an output in a step, inputs ascending. line: of its dword; e: exponents by code byte. */
static void weights4(const uint8_t *dword, const uint8_t *e, uint16_t out[4])
{
    out[0] = (uint16_t)((dword[1] & 128) << 8 | e[0] << 7 | (dword[0] & 127));
    out[1] = (uint16_t)((dword[3] & 128) << 8 | e[2] << 7 | (dword[2] & 127));
    out[2] = (uint16_t)((dword[0] & 128) << 8 | e[1] << 7 | (dword[3] & 127));
    out[3] = (uint16_t)((dword[2] & 128) << 8 | e[3] << 7 | (dword[1] & 127));
}

enum status lossless_check(const struct lossless_group *g, const char *where, uint32_t group, struct error *err)
{
    uint64_t total = 0;
    for (uint32_t b = 0; b < g->n_blocks; b++) {
        const uint8_t *classes = g->planes + b * lossless_block_bytes(g->class_bits) + LOSSLESS_SIGNS_BYTES;
        const uint32_t base = lossless_base(g->records[b]);
        if (base < 1 || base > lossless_base_max(g->class_bits))
            return error_set(err, ST_CORRUPT, "%s: group %u, block %u: base %u (1 to %u)", where, group, b, base,
                             lossless_base_max(g->class_bits));
        if (lossless_escapes_before(g->records[b]) != total)
            return error_set(err, ST_CORRUPT, "%s: group %u, block %u: escapes before it: %u, but there are %llu",
                             where, group, b, lossless_escapes_before(g->records[b]), (unsigned long long)total);
        for (uint32_t p = 0; p < STEPS; p++)
            for (uint32_t q = 0; q < 8; q++)
                total +=
                    (uint64_t)__builtin_popcountll(escapes_of(classes_of(classes, g->class_bits, p, q), g->class_bits));
    }
    if (total != g->n_escapes)
        return error_set(err, ST_CORRUPT, "%s: group %u: %u escapes are listed, its classes ask for %llu", where, group,
                         g->n_escapes, (unsigned long long)total);
    return ST_OK;
}

void lossless_decode(const struct lossless_group *g, uint32_t block, uint16_t *block_out)
{
    const uint8_t *signs = g->planes + block * lossless_block_bytes(g->class_bits),
                  *classes = signs + LOSSLESS_SIGNS_BYTES;
    const uint32_t base = lossless_base(g->records[block]);
    uint64_t at = lossless_escapes_before(g->records[block]);
    for (uint32_t p = 0; p < STEPS; p++)
        for (uint32_t q = 0; q < 8; q++) {
            const uint64_t c = classes_of(classes, g->class_bits, p, q), escapes = escapes_of(c, g->class_bits);
            uint8_t e[8];
            exponents(g, c, escapes, base, at, e);
            at += (uint64_t)__builtin_popcountll(escapes);
            for (uint32_t h = 0; h < 2; h++) {
                const uint32_t n = 2 * q + h;
                uint16_t w[4];
                weights4(signs + p * LANES + 4 * n, e + 4 * h, w);
                memcpy(block_out + (2 * p * LOSSLESS_OUTS + n) * 2, w, 4);
                memcpy(block_out + ((2 * p + 1) * LOSSLESS_OUTS + n) * 2, w + 2, 4);
            }
        }
}

static void block_row(const struct lossless_group *g, uint32_t block, uint32_t row, uint16_t out[LOSSLESS_INS])
{
    const uint8_t *signs = g->planes + block * lossless_block_bytes(g->class_bits),
                  *classes = signs + LOSSLESS_SIGNS_BYTES;
    uint64_t at = lossless_escapes_before(g->records[block]);
    for (uint32_t p = 0; p < STEPS; p++)
        for (uint32_t q = 0; q < 8; q++) {
            const uint64_t c = classes_of(classes, g->class_bits, p, q), escapes = escapes_of(c, g->class_bits);
            if (q == row / 2) {
                uint8_t e[8];
                exponents(g, c, escapes, lossless_base(g->records[block]), at, e);
                weights4(signs + p * LANES + 4 * row, e + row % 2 * 4, out + 4 * p);
            }
            at += (uint64_t)__builtin_popcountll(escapes);
        }
}

void lossless_row(const struct lossless_group *g, uint32_t row, uint32_t n_cols, uint16_t *row_out)
{
    for (uint32_t b = 0; b < g->n_blocks; b++) {
        uint16_t w[LOSSLESS_INS];
        const uint32_t first = b * LOSSLESS_INS, n = n_cols - first < LOSSLESS_INS ? n_cols - first : LOSSLESS_INS;
        block_row(g, b, row, w);
        memcpy(row_out + first, w, n * sizeof *w);
    }
}
