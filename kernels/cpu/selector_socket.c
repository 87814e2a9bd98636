/* socket: soft hashing of keys. */
#include "kernels/cpu/selector_socket.h"

#include <pthread.h>

#include "common/rng.h"

static float planes[SELECTOR_HEAD_DIM_MAX][SOCKET_HASHES];

static void planes_draw(void)
{
    for (uint32_t d = 0; d < SELECTOR_HEAD_DIM_MAX; d++) {
        for (uint32_t n = 0; n < SOCKET_HASHES; n++) {
            const uint32_t table = n / SOCKET_PLANES, bit = SOCKET_PLANES - 1 - n % SOCKET_PLANES;
            int32_t sum = 0;
            for (uint32_t i = 0; i < 3; i++) {
                const uint64_t r = rng_at(SOCKET_SEED, n, (uint64_t)d * 3 + i);
                sum += (int32_t)((r & 0xFFFF) + (r >> 16 & 0xFFFF) + (r >> 32 & 0xFFFF) + (r >> 48));
            }
            planes[d][table * SOCKET_PLANES + bit] = (float)(sum - 6 * 65535) / 65536.0f;
        }
    }
}

const float *selector_socket_planes(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, planes_draw);
    return planes[0];
}

size_t selector_socket_bytes(const struct selector_shape *shape)
{
    return (size_t)shape->n_kv_heads * SOCKET_HEAD_BYTES;
}

/* Norms: finite, not below 0. Every code is one. */
bool selector_socket_valid(const struct selector_shape *shape, const void *sketch)
{
    uint32_t bad = 0;
    for (uint32_t j = 0; j < shape->n_kv_heads; j++) {
        const uint16_t *norms = socket_norms((const uint8_t *)sketch + (size_t)j * SOCKET_HEAD_BYTES);
        for (uint32_t p = 0; p < KV_BLOCK; p++)
            bad |= norms[p] >= 0x7C00u;
    }
    return !bad;
}

void selector_socket_tables(const struct selector_shape *shape, const float *q, uint16_t *tables_out)
{
    socket_tables(shape, q, tables_out);
}

void selector_socket_sketch_c(const struct selector_shape *shape, const struct selector_block *block, void *sketch_out)
{
    socket_sketch(shape, block, socket_codes, sketch_out);
}

void selector_socket_score_c(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                             const float *const *q, const void *const *sketches, uint32_t n, float *scores_out)
{
    socket_score(shape, head_begin, head_end, q, sketches, n, scores_out);
}
