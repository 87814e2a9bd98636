#include <string.h>

#include "worker/select.h"

static void put_bit(uint64_t *list, uint32_t at, bool on)
{
    list[at / 64] |= (uint64_t)on << (at % 64);
}

void select_choices_move(const struct select *s, const struct attend *attend, enum attend_traffic kind,
                         uint32_t message, uint64_t *lists, uint8_t *wire)
{
    const struct attend_message *m = &attend->messages[kind][message];
    for (uint32_t r = m->job_begin; r < m->job_end; r++) {
        const struct select_ref *ref = &s->refs[r];
        const struct select_job *job = &s->jobs[attend->refs[r].job];
        const uint32_t n = (ref->leaf_end - ref->leaf_begin) * s->leaf_blocks, words = selector_words(n);
        for (uint32_t i = 0; job->density && i < job->n_lists; i++) {
            uint64_t *list = lists + job->at + (size_t)i * job->words;
            uint8_t *at = wire + ref->offset + (size_t)i * words * sizeof(uint64_t);
            if (kind == RECEIVE_QUERIES)
                memset(list, 0, job->words * sizeof *list);
            else
                memset(at, 0, words * sizeof(uint64_t));
            for (uint32_t k = 0; k < n; k++) {
                const uint32_t leaf = s->leaves.v[ref->leaf_begin + k / s->leaf_blocks],
                               block = leaf * s->leaf_blocks + k % s->leaf_blocks;
                if (kind == RECEIVE_QUERIES)
                    put_bit(list, block, at[k / 8] >> k % 8 & 1);
                else
                    at[k / 8] |= (uint8_t)(selector_has(list, block) << k % 8);
            }
        }
    }
}
