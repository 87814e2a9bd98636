/* fuzz-libs: longspan_coordinator longspan_common */
/* Journals of answers as they may lie on a disk: refused, cut, or sound, and what was sound is so again. */
#include "coordinator/gateway/journal.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Puts sums right, so that what is behind them is looked at. */
static void sums_mend(uint8_t *data, size_t size)
{
    for (size_t at = 24; at + 8 <= size;) {
        uint32_t n;
        memcpy(&n, data + at, sizeof n);
        if (n > size - at - 8)
            return;
        const uint32_t sum = (uint32_t)checksum64(data + at + 8, n);
        memcpy(data + at + 4, &sum, sizeof sum);
        at += 8 + n;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct digest context = { { 'c', 't', 'x' } };
    struct journal *j, *again;
    struct text head = { 0 };
    uint8_t *copy = malloc(size + 1);
    if (!copy)
        return 0;
    memcpy(copy, data, size);
    journal_begin(&context, &head);
    if (size >= head.n && size % 2)
        memcpy(copy, head.data, head.n);
    text_free(&head);
    sums_mend(copy, size);
    if (!journal_read(copy, size, &context, &j)) {
        if (j->bytes > size || journal_read(copy, j->bytes, &context, &again) || again->n != j->n)
            abort();
        for (uint32_t i = 0; i < j->n; i++) {
            if (again->told[i].n != j->told[i].n)
                abort();
            for (size_t k = 0; k < j->told[i].n; k++)
                if (j->told[i].rows[k].token < 0 || j->told[i].rows[k].n_top > PLAN_TOP_MAX)
                    abort();
        }
        journal_free(again);
        journal_free(j);
    }
    free(copy);
    return 0;
}
