/*
 * bf16-lossless: sign and mantissa as they are, exponents as classes of four bits, the 15 commonest of a part; the others are escapes, a byte each in a list
 * of fixed room. What does not fit is spilled: no code of 12 bits takes any 16. After the fixed-rate weight formats (ZipServ, arXiv:2603.17435; model/lossless.h): 12 bits a number and the room, wherever it lies.
 */
#include <string.h>

#include "kernels/cpu/kv_expand.h"

enum { EXPONENTS = 256, CLASSES = 15 };

bool kv_accepts_lossless(const struct attn_shape *shape)
{
    return shape->codec == KV_BF16_LOSSLESS && shape->head_dim >= 16 && shape->head_dim % 16 == 0;
}

size_t kv_part_bytes_lossless(const struct attn_shape *shape)
{
    const struct kv_lossless_planes planes = kv_lossless_planes(shape);
    return planes.escapes + planes.room;
}

static uint32_t exponent_of(uint16_t x)
{
    return x >> 7 & 255;
}

/* Four counts side by side: equal exponents follow one another, and a count would wait for the one before it. */
static void count(const uint16_t *open, uint32_t n, uint32_t *n_out)
{
    uint32_t part[4][EXPONENTS] = { { 0 } };
    for (uint32_t i = 0; i < n; i += 4)
        for (uint32_t j = 0; j < 4; j++)
            part[j][exponent_of(open[i + j])]++;
    for (uint32_t e = 0; e < EXPONENTS; e++)
        n_out[e] = part[0][e] + part[1][e] + part[2][e] + part[3][e];
}

/* The commonest exponents, of equally common ones the lower, in ascending order; unused classes are 0. -> elements that have none of them */
static uint32_t choose(const uint32_t *n_of, uint32_t n, uint8_t table_out[LOSSLESS_TABLE], uint8_t *class_out)
{
    uint32_t chosen[CLASSES], n_chosen = 0, least = 0, escapes = n;
    for (uint32_t e = 0; e < EXPONENTS; e++) {
        if (!n_of[e] || (n_chosen == CLASSES && n_of[e] <= n_of[chosen[least]]))
            continue;
        if (n_chosen == CLASSES) { /* the rarest goes, of several the highest; those above it move down */
            memmove(chosen + least, chosen + least + 1, (CLASSES - 1 - least) * sizeof *chosen);
            n_chosen--;
        }
        chosen[n_chosen++] = e;
        for (uint32_t c = least = 0; c < n_chosen; c++)
            least = n_of[chosen[c]] <= n_of[chosen[least]] ? c : least;
    }
    memset(table_out, 0, LOSSLESS_TABLE);
    memset(class_out, LOSSLESS_ESCAPE, EXPONENTS);
    for (uint32_t c = 0; c < n_chosen; c++) {
        table_out[c] = (uint8_t)chosen[c];
        class_out[chosen[c]] = (uint8_t)c;
        escapes -= n_of[chosen[c]];
    }
    return escapes;
}

struct kv_spill kv_spill_lossless(const struct attn_shape *shape)
{
    const struct kv_lossless_planes planes = kv_lossless_planes(shape);
    return (struct kv_spill){ (size_t)KV_BLOCK * shape->head_dim * sizeof(uint16_t) - planes.table,
                              planes.table + LOSSLESS_ESCAPE };
}

static void seal_part(const struct attn_shape *shape, const uint16_t *open, uint8_t *part)
{
    const struct kv_lossless_planes planes = kv_lossless_planes(shape);
    const uint32_t n = KV_BLOCK * shape->head_dim;
    uint8_t class_of[EXPONENTS], *classes = part + planes.classes, *escape = part + planes.escapes;
    uint32_t n_of[EXPONENTS];
    memset(part + planes.table, 0, LOSSLESS_TABLE + planes.room);
    count(open, n, n_of);
    const uint32_t escapes = choose(n_of, n, part + planes.table, class_of);
    if (escapes > planes.room) {
        memcpy(part, open, planes.table);
        memset(part + planes.table, 0, LOSSLESS_TABLE);
        part[planes.table + LOSSLESS_ESCAPE] = 1;
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        part[i] = (uint8_t)((open[i] >> 8 & 0x80) | (open[i] & 0x7F));
    for (const uint16_t *run = open; run < open + n; run += LOSSLESS_RUN, classes += LOSSLESS_RUN / 2)
        for (uint32_t j = 0; j < LOSSLESS_RUN / 2; j++)
            classes[j] =
                (uint8_t)(class_of[exponent_of(run[j])] | class_of[exponent_of(run[j + LOSSLESS_RUN / 2])] << 4);
    for (uint32_t i = 0; escapes && i < n; i++)
        if (class_of[exponent_of(open[i])] == LOSSLESS_ESCAPE)
            *escape++ = (uint8_t)exponent_of(open[i]);
}

bool kv_seal_lossless(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part,
                      void *v_part)
{
    seal_part(shape, k_open, k_part);
    seal_part(shape, v_open, v_part);
    return true;
}

void kv_expand_lossless(const struct attn_shape *shape, const void *part_bytes, const void *next_part, void *open_out)
{
    const struct kv_lossless_planes planes = kv_lossless_planes(shape);
    const uint32_t n = KV_BLOCK * shape->head_dim;
    const uint8_t *part = part_bytes, *table = part + planes.table;
    uint16_t *open = open_out;
    uint32_t escapes = 0;
    (void)next_part;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t at = i % LOSSLESS_RUN, half = LOSSLESS_RUN / 2;
        const uint32_t c = part[planes.classes + (size_t)(i / LOSSLESS_RUN) * half + at % half] >> at / half * 4 & 15;
        uint32_t exponent = table[c];
        if (c == LOSSLESS_ESCAPE) /* more than there is room for: not what seal wrote */
            exponent = escapes < planes.room ? part[planes.escapes + escapes++] : 0;
        open[i] = (uint16_t)((part[i] & 0x80u) << 8 | exponent << 7 | (part[i] & 0x7Fu));
    }
}
