/* What owners say of their scores, from peers: counts that pass leave a range that holds the k-th key, whatever they are; and pairs of theirs. */
/* fuzz-libs: longspan_kernels */
#include <stdlib.h>
#include <string.h>

#include "kernels/selector.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { OWNERS = 4 };

/* k, then owners: u16 how many keys, their counts; what is left are pairs. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    uint8_t *counts[OWNERS];
    uint32_t n[OWNERS], n_owners = 0, above = 0, touched = 0, more;
    uint64_t all = 0;
    uint16_t k;
    if (bytes < 2)
        return 0;
    memcpy(&k, data, 2);
    data += 2;
    bytes -= 2;
    while (n_owners < OWNERS && bytes >= 2) {
        uint16_t some;
        memcpy(&some, data, 2);
        const size_t room = selector_counts_bytes(some);
        if (!some || bytes - 2 < room)
            break;
        counts[n_owners] = malloc(room); /* its end is watched */
        memcpy(counts[n_owners], data + 2, room);
        data += 2 + room;
        bytes -= 2 + room;
        n[n_owners] = some;
        if (!selector_counts_valid(counts[n_owners], some)) {
            free(counts[n_owners]);
            continue;
        }
        all += some;
        n_owners++;
    }
    if (n_owners && k && k <= all) {
        const struct selector_range range = selector_range_of((const uint8_t *const *)counts, n, n_owners, k);
        struct selector_pair pairs[64];
        const uint32_t n_pairs = (uint32_t)(bytes / sizeof *pairs < 64 ? bytes / sizeof *pairs : 64);
        for (uint32_t i = 0; i < n_owners; i++) {
            touched += selector_range_count(counts[i], n[i], range, &more);
            above += more;
        }
        if (above >= k || above + touched < k)
            abort();
        memcpy(pairs, data, n_pairs * sizeof *pairs);
        if (n_pairs && selector_pairs_valid(counts[0], n[0], range, pairs, n_pairs))
            for (uint32_t i = 1; i < n_pairs; i++)
                if (selector_chosen(selector_cut(pairs, n_pairs, i), pairs[i].key, pairs[i].block) &&
                    memcmp(&pairs[i], &pairs[i - 1], sizeof *pairs) != 0)
                    abort();
    }
    for (uint32_t i = 0; i < n_owners; i++)
        free(counts[i]);
    return 0;
}
