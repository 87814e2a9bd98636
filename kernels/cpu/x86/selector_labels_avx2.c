#include "kernels/cpu/selector_labels.h"

void selector_labels_score_avx2(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                                const float *const *q, const void *const *sketches, uint32_t n, float *scores_out)
{
    labels_score(shape, head_begin, head_end, q, sketches, n, scores_out);
}
