#ifndef LONGSPAN_CLIENT_EVAL_DRAW_H
#define LONGSPAN_CLIENT_EVAL_DRAW_H

/* What the samples of tasks are made of: words, numbers and names that are functions of (seed, sample, kind, number). */

#include <stdint.h>

#include "client/eval/tasks.h"

#ifdef __cplusplus
extern "C" {
#endif

/* By kind and number, so that more filler changes nothing else. */
enum drawn {
    OF_KEY = 1,
    OF_VALUE,
    OF_OTHER_KEY,
    OF_OTHER_VALUE,
    OF_DEPTH,
    OF_ESSAY,
    OF_WORD,
    OF_SHUFFLE,
    OF_CODE,
    OF_EXAMPLE
};
enum thing { WORD, NUMBER, UUID };
enum { WORD_BYTES = 48, THINGS_MAX = 16 };

uint64_t draw_bits(const struct eval_draw *d, enum drawn what, uint64_t i);
/* 0 .. n - 1 */
uint64_t draw_below(const struct eval_draw *d, enum drawn what, uint64_t i, uint64_t n);
/* The i-th word, adjective-noun, of a sample: no two are equal. */
void draw_word(const struct eval_draw *d, uint64_t i, char out[WORD_BYTES]);
/* A word, a number of seven digits, a UUID. Words of keys and values (i below THINGS_MAX) are none of the other keys'. */
void draw_thing(const struct eval_draw *d, enum thing kind, enum drawn what, uint64_t i, char out[WORD_BYTES]);

#ifdef __cplusplus
}
#endif
#endif
