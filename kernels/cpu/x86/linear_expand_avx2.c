#include "kernels/cpu/linear_expand.h"
#include "model/df11_decode.h"

void linear_expand_avx2(const struct linear_shape *shape, const uint8_t *group, uint8_t *out)
{
    if (weight_grid_bits(
            shape->codec)) { /* its byte shuffles look up in one grid a lane: four outputs share one here */
        linear_expand_c(shape, group, out);
        return;
    }
    const struct df11_group g = linear_df11_group(shape, group);
    df11_decode_inline(&g, (uint16_t *)(void *)out);
}
