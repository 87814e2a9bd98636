#ifndef LONGSPAN_COORDINATOR_TOKENIZER_SPLIT_MATCH_H
#define LONGSPAN_COORDINATOR_TOKENIZER_SPLIT_MATCH_H

/*
 * The pre-tokenizer patterns that most models use, written out. Each takes the rest of a piece, p < end, and returns where the match that
 * begins at p ends; these patterns match at every place, so there are no gaps. Time over a whole piece is linear.
 */

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SPLIT_PATTERN_GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define SPLIT_PATTERN_LLAMA3                                                                                           \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"           \
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define SPLIT_PATTERN_QWEN2                                                                                            \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"                \
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

const uint8_t *split_match_gpt2(const uint8_t *p, const uint8_t *end);
/* digits_max: numbers in one piece: 3 for Llama 3, 1 for Qwen 2 */
const uint8_t *split_match_llama3(const uint8_t *p, const uint8_t *end, uint32_t digits_max);
/* The Digits step: up to the next number, or one number, or (not individual) a run of them. */
const uint8_t *split_match_digits(const uint8_t *p, const uint8_t *end, int individual);

#ifdef __cplusplus
}
#endif
#endif
