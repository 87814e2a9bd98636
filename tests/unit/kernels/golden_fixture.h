#ifndef LONGSPAN_TESTS_UNIT_KERNELS_GOLDEN_FIXTURE_H
#define LONGSPAN_TESTS_UNIT_KERNELS_GOLDEN_FIXTURE_H

/* What tests of KV codecs against files of tests/golden/kv-codecs share. After cmocka.h. */

#include <math.h>
#include <stdint.h>

#include "model/bf16.h"

/* bf16, little endian, at any address. */
static inline void floats_of(const uint8_t *bf16, uint32_t n, float *out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = bf16_to_f32((uint16_t)(bf16[2 * i] | bf16[2 * i + 1] << 8));
}

/* Of a from b, over b's length. */
static inline double distance(const float *a, const float *b, uint32_t n)
{
    double off = 0, size = 0;
    for (uint32_t i = 0; i < n; i++) {
        off += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    return sqrt(off / size);
}

#endif
