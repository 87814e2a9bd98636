#include "client/product.h"

#include <stdlib.h>
#include <string.h>

#include "worker/team.h"

enum { ALIGN = 64 };

static void *aligned(size_t bytes)
{
    void *p = NULL;
    const size_t whole = (bytes / ALIGN + 1) * ALIGN;
    return posix_memalign(&p, ALIGN, whole) ? NULL : memset(p, 0, whole);
}

bool product_new(const struct linear_shape *shape, uint32_t caps, uint32_t n_rows, uint32_t n_members,
                 struct product *p_out)
{
    struct product *p = p_out;
    *p = (struct product){ .shape = *shape,
                           .impl = linear_find(shape, caps),
                           .row_bytes = weight_row_bytes(shape->codec, shape->n_in),
                           .n_rows = n_rows };
    p->scratch_bytes = (p->impl->scratch_bytes(shape, n_rows) + ALIGN - 1) / ALIGN * ALIGN;
    p->packed = aligned(linear_packed_bytes(p->impl, shape));
    p->scratch = aligned(n_members * p->scratch_bytes);
    return p->packed && p->scratch;
}

void product_free(struct product *p)
{
    free(p->packed);
    free(p->scratch);
    p->packed = p->scratch = NULL;
}

void product_run(void *ctx, uint32_t member, uint32_t n_members)
{
    struct product *p = ctx;
    const size_t group_bytes = p->impl->group_bytes(&p->shape);
    uint32_t begin, end;
    cpu_thread_init();
    team_share((p->shape.n_out + LINEAR_GROUP - 1) / LINEAR_GROUP, member, n_members, &begin, &end);
    for (uint32_t g = begin; g < end; g++) {
        const void *rows[LINEAR_GROUP];
        for (uint32_t i = 0; i < LINEAR_GROUP; i++) {
            const uint32_t row = g * LINEAR_GROUP + i;
            rows[i] = row < p->shape.n_out ? p->operands.stored + row * p->row_bytes : NULL;
        }
        p->impl->pack(&p->shape, rows, p->packed + g * group_bytes);
    }
    const uint32_t out_end = end * LINEAR_GROUP < p->shape.n_out ? end * LINEAR_GROUP : p->shape.n_out;
    if (begin == end)
        return;
    p->impl->run(&(struct linear_args){ .shape = &p->shape,
                                        .packed = p->packed,
                                        .x = p->operands.x,
                                        .x_stride = p->operands.x_stride,
                                        .n_rows = p->n_rows,
                                        .out_begin = begin * LINEAR_GROUP,
                                        .out_end = out_end,
                                        .y = p->operands.y,
                                        .y_stride = p->shape.n_out,
                                        .scratch = p->scratch + member * p->scratch_bytes });
}
