#ifndef LONGSPAN_CLIENT_PRODUCT_H
#define LONGSPAN_CLIENT_PRODUCT_H

/* A product of activations with rows that are packed for it on the way (kernels/kernels.h), by members of a team or by one thread. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* y [n_rows][n_out] = x [n_rows][x_stride], bf16, times the transpose of stored [n_out][weight_row_bytes]. stored and x: at 64 bytes, x zero past n_in. */
struct product_operands {
    const uint8_t *stored;
    const uint16_t *x;
    uint32_t x_stride;
    float *y;
};

struct product {
    struct linear_shape shape;
    const struct linear_impl *impl;
    size_t row_bytes, scratch_bytes;
    uint32_t n_rows;
    uint8_t *packed, *scratch;
    struct product_operands operands; /* set before each run */
};

/* Room for products of n_rows rows by n_members. false: no memory. product_free in either case. */
bool product_new(const struct linear_shape *shape, uint32_t caps, uint32_t n_rows, uint32_t n_members,
                 struct product *p_out);
void product_free(struct product *p);
/* ctx: a struct product. A member's part, as team_run calls it; (p, 0, 1): all of it. The same bits in any parts. */
void product_run(void *ctx, uint32_t member, uint32_t n_members);

#ifdef __cplusplus
}
#endif
#endif
