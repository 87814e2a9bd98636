#ifndef LONGSPAN_CLIENT_EVAL_TASKS_H
#define LONGSPAN_CLIENT_EVAL_TASKS_H

/*
 * Generated long-context tasks. After RULER (arXiv:2404.06654): needles (niah_*), variable tracking (vt), common and frequent words (cwe, fwe); after
 * InfiniteBench (arXiv:2402.13718): passkey, kv. And copy: exact retrieval, for the constructed model. A sample is a function of (task, seed, sample, filler) and
 * of the essay.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { EVAL_ANSWERS_MAX = 10, EVAL_ANSWER_BYTES = 64 };

struct eval_task;
/* NULL: there is none of this name. */
const struct eval_task *eval_task_find(const char *name);
/* The i-th; NULL: there are no more. */
const struct eval_task *eval_task_at(uint32_t i);
const char *eval_task_name(const struct eval_task *t);
/* copy: it is for constructed:copy, and for no other model. */
bool eval_task_constructed(const struct eval_task *t);

/* One sample. */
struct eval_question {
    char *prompt; /* bytes, then a NUL; malloc'd */
    size_t bytes;
    uint32_t max_new;  /* tokens of an answer */
    bool first_number; /* the answer's first number counts, not all of it */
    bool exact;        /* the answer must begin so, to the letter */
    uint32_t n_answers;
    char answers[EVAL_ANSWERS_MAX][EVAL_ANSWER_BYTES];
};

/* How a sample is made. */
struct eval_draw {
    uint64_t seed;
    uint32_t sample;
    uint32_t
        filler; /* how much there is beside what is asked for: sentences, lines, words, pairs or blocks; at least 1 */
    uint32_t length; /* tokens that are aimed at: decides how often words are repeated */
    const char
        *essay; /* [essay_bytes]: sentences are taken from it, over again if it ends; NULL where the task needs none */
    size_t essay_bytes;
};

/* More filler is a longer prompt. ST_NO_MEMORY. The prompt is the caller's to free. */
enum status eval_task_make(const struct eval_task *t, const struct eval_draw *draw, struct eval_question *out);

/* Share of the answers that the output holds, whatever their case (exact, first_number: see there). output: any text. */
double eval_answer_score(const struct eval_question *q, const char *output);

#ifdef __cplusplus
}
#endif
#endif
