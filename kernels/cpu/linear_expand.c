#include "kernels/cpu/linear_expand.h"

#include "kernels/cpu/linear_variants.h"

/* What is expanded at once stays in a second-level cache beside x; four groups side by side are what the product of few rows takes. */
enum { AT_ONCE_BYTES = 512 << 10, AT_ONCE_MAX = 16 };

static uint32_t groups_at_once(const struct linear_shape *s)
{
    const size_t n = AT_ONCE_BYTES / (linear_n_blocks(s) * LINEAR_BLOCK_BF16);
    return n < 1 ? 1 : n < AT_ONCE_MAX ? (uint32_t)n : AT_ONCE_MAX;
}

static struct linear_shape shape_bf16(const struct linear_shape *s)
{
    return (struct linear_shape){ .n_out = s->n_out, .n_in = s->n_in, .codec = WEIGHT_BF16, .x = s->x };
}

static size_t room_bf16(const struct linear_shape *plain, uint32_t n_rows,
                        size_t (*bf16)(const struct linear_shape *shape, uint32_t n_rows))
{
    return (bf16(plain, n_rows) + 63) / 64 * 64;
}

size_t linear_scratch_expanded(const struct linear_shape *shape, uint32_t n_rows,
                               size_t (*bf16)(const struct linear_shape *shape, uint32_t n_rows))
{
    const struct linear_shape plain = shape_bf16(shape);
    return room_bf16(&plain, n_rows, bf16) + groups_at_once(shape) * linear_group_bytes(&plain);
}

void linear_run_expanded(const struct linear_args *a, linear_expand_fn *expand,
                         size_t (*scratch_bf16)(const struct linear_shape *shape, uint32_t n_rows),
                         void (*run_bf16)(const struct linear_args *args))
{
    const struct linear_shape plain = shape_bf16(a->shape);
    const size_t stride = linear_group_bytes(a->shape), room = linear_group_bytes(&plain);
    const uint32_t step = groups_at_once(a->shape) * LINEAR_GROUP;
    if (a->n_rows == 0)
        return;
    uint8_t *expanded = (uint8_t *)a->scratch + room_bf16(&plain, a->n_rows, scratch_bf16);
    for (uint32_t o = a->out_begin; o < a->out_end; o += step) {
        const uint32_t n_here = a->out_end - o < step ? a->out_end - o : step;
        for (uint32_t i = 0; i < n_here; i += LINEAR_GROUP)
            expand(a->shape, (const uint8_t *)a->packed + (o + i) / LINEAR_GROUP * stride,
                   expanded + i / LINEAR_GROUP * room);
        struct linear_args part = *a;
        part.shape = &plain;
        part.packed = expanded;
        part.out_begin = 0;
        part.out_end = n_here;
        part.y = a->y + o;
        run_bf16(&part);
    }
}

static uint32_t grid_code(uint32_t bits, const uint16_t *lines, uint32_t v, uint32_t word)
{
    if (bits == 4)
        return lines[v / 4 * 32 + word] >> v % 4 * 4 & 15u;
    const uint32_t low = lines[v / 8 * 32 + word] >> v % 8 * 2 & 3u;
    return bits == 3 ? low | (lines[2 * 32 + word] >> v & 1u) << 2 : low;
}

static void expand_grid(const struct linear_shape *s, const uint8_t *group, uint16_t *out)
{
    const uint32_t bits = weight_grid_bits(s->codec);
    const uint16_t *grids = (const uint16_t *)(const void *)group;
    const size_t n_blocks = linear_n_blocks(s);
    for (size_t b = 0; b < n_blocks; b++) {
        const uint8_t *lines = group + LINEAR_GRIDS + b * linear_grid_block(s->codec);
        for (uint32_t v = 0; v < 16; v++)
            for (uint32_t w = 0; w < 32; w++) {
                const uint32_t n = v % 4 * 4 + w % 8 / 2;
                out[b * 512 + (v / 4 * 4 + w / 8) * 32 + 2 * n + w % 2] =
                    grids[n * 16 + grid_code(bits, (const uint16_t *)(const void *)lines, v, w)];
            }
    }
    linear_clear_padding(s, out + (n_blocks - 1) * 512);
}

void linear_expand_c(const struct linear_shape *shape, const uint8_t *group, uint8_t *out)
{
    if (weight_grid_bits(shape->codec)) {
        expand_grid(shape, group, (uint16_t *)(void *)out);
        return;
    }
    const struct df11_group g = linear_df11_group(shape, group);
    df11_decode(&g, (uint16_t *)(void *)out);
}

bool linear_accepts_expanded_amx(const struct linear_shape *shape)
{
    return shape->x == DTYPE_BF16 && linear_is_expanded(shape->codec);
}

size_t linear_scratch_expanded_amx(const struct linear_shape *shape, uint32_t n_rows)
{
    return linear_scratch_expanded(shape, n_rows, linear_scratch_bf16_amx);
}

void linear_run_expanded_amx(const struct linear_args *a)
{
    linear_run_expanded(a, linear_expand_avx512, linear_scratch_bf16_amx, linear_run_bf16_amx);
}
