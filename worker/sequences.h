#ifndef LONGSPAN_WORKER_SEQUENCES_H
#define LONGSPAN_WORKER_SEQUENCES_H

/*
 * What plans said of sequences: block tables, readers, sampling, and the tokens sampled here. Nothing here decides anything; a plan that leans on
 * what was never said is refused.
 */

#include "common/error.h"
#include "proto/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SEQUENCE_SAMPLED = 16 }; /* sampled tokens remembered: more than plans in flight */

struct sequence {
    uint64_t id;
    kv_handle *table;
    uint32_t *
        slots; /* [n_table]: where its blocks stood in the pool when they were looked up last; UINT32_MAX: never, or nowhere */
    uint16_t *readers;
    uint32_t n_table, n_readers, table_room, slots_room, readers_room;
    uint32_t committed;             /* positions */
    char label[PLAN_LABEL_MAX + 1]; /* what logs call its request */
    struct plan_sampling sampling;
    struct {
        uint32_t pos;
        int32_t token;
    } sampled[SEQUENCE_SAMPLED]; /* by pos modulo; token -1: none */
    struct sequence *next;       /* in its bucket */
};

struct sequences;
struct sequences *sequences_new(void);
void sequences_free(struct sequences *all);
/* Takes over what the plan says of a sequence. ST_PROTOCOL: it continues what is not known. */
enum status sequence_update(struct sequences *all, const struct plan_seq *said, struct sequence **sequence_out,
                            struct error *err);
/* NULL: not known, or forgotten */
const struct sequence *sequence_find(struct sequences *all, uint64_t id);
void sequence_forget(struct sequences *all, uint64_t id);
/* All that are known. ids_out: malloc'd. ST_NO_MEMORY. */
enum status sequences_ids(const struct sequences *all, uint64_t **ids_out, uint32_t *n_out);
void sequence_sampled(struct sequence *s, uint32_t pos, int32_t token);
/* The token sampled after position pos, or -1. */
int32_t sequence_token_after(const struct sequence *s, uint32_t pos);

#ifdef __cplusplus
}
#endif
#endif
