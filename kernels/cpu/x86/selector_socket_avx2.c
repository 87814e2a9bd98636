#include "kernels/cpu/selector_socket.h"

void selector_socket_sketch_avx2(const struct selector_shape *shape, const struct selector_block *block,
                                 void *sketch_out)
{
    socket_sketch(shape, block, socket_codes, sketch_out);
}

/* Looking up bytes in tables of 256 is what AVX2 has nothing for: loads, one by one. */
void selector_socket_score_avx2(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                                const float *const *q, const void *const *sketches, uint32_t n, float *scores_out)
{
    socket_score(shape, head_begin, head_end, q, sketches, n, scores_out);
}
