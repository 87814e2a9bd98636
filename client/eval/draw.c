#include "client/eval/draw.h"

#include <stdio.h>

#include "client/eval/words.inc"
#include "common/rng.h"

enum { N_ADJECTIVES = sizeof adjectives / sizeof *adjectives, N_NOUNS = sizeof nouns / sizeof *nouns };

uint64_t draw_bits(const struct eval_draw *d, enum drawn what, uint64_t i)
{
    return rng_at(mix64(d->seed ^ 0x7461736bu) + d->sample, what, i);
}

uint64_t draw_below(const struct eval_draw *d, enum drawn what, uint64_t i, uint64_t n)
{
    return (uint64_t)(rng_unit(draw_bits(d, what, i)) * (double)n);
}

/* The stride has no factor in common with the number of words. */
void draw_word(const struct eval_draw *d, uint64_t i, char out[WORD_BYTES])
{
    const uint64_t n = N_ADJECTIVES * N_NOUNS, from = draw_bits(d, OF_WORD, 0) % n, at = (from + i * 7919) % n;
    if (i < n)
        snprintf(out, WORD_BYTES, "%s-%s", adjectives[at / N_NOUNS], nouns[at % N_NOUNS]);
    else
        snprintf(out, WORD_BYTES, "%s-%s-%llu", adjectives[at / N_NOUNS], nouns[at % N_NOUNS],
                 (unsigned long long)(i / n));
}

static void uuid(uint64_t a, uint64_t b, char out[WORD_BYTES])
{
    snprintf(out, WORD_BYTES, "%08x-%04x-4%03x-%04x-%012llx", (unsigned)(a >> 32), (unsigned)(a >> 16 & 0xFFFF),
             (unsigned)(a & 0xFFF), (unsigned)(0x8000 | (b >> 48 & 0x3FFF)), (unsigned long long)(b & 0xFFFFFFFFFFFF));
}

void draw_thing(const struct eval_draw *d, enum thing kind, enum drawn what, uint64_t i, char out[WORD_BYTES])
{
    if (kind == WORD)
        draw_word(d, i + (what == OF_OTHER_KEY || what == OF_OTHER_VALUE ? THINGS_MAX : 0), out);
    else if (kind == NUMBER)
        snprintf(out, WORD_BYTES, "%llu", 1000000 + (unsigned long long)draw_below(d, what, i, 9000000));
    else
        uuid(draw_bits(d, what, 2 * i), draw_bits(d, what, 2 * i + 1), out);
}
