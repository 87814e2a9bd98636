#ifndef LONGSPAN_COORDINATOR_GRAMMAR_PATTERN_H
#define LONGSPAN_COORDINATOR_GRAMMAR_PATTERN_H

#include "coordinator/grammar/program.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Why an expression is not followed; why NULL: it is. */
struct pattern_fault {
    enum status status;
    const char *why;
};

/*
 * What a regular expression finds, as characters of a JSON string without its quotes, then next. Anywhere in the string unless '^' and '$' tie it. Texts of
 * shortest .. longest characters are asked for: an expression that allows others is refused. text: UTF-8.
 * Look-around, back references, word boundaries, \p, named groups are refused: ST_UNSUPPORTED. -> NODE_NONE if it is, or the builder has failed.
 */
node_id build_pattern(struct builder *b, const char *text, uint32_t shortest, uint32_t longest, node_id next,
                      struct pattern_fault *fault);

#ifdef __cplusplus
}
#endif
#endif
