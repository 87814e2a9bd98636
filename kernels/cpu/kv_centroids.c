#include "kernels/cpu/kv_centroids.h"

#include <math.h>

#include "model/calibration.h"

#define CENTROID_MAX 0x1p60f

enum status kv_centroids_check(const struct attn_shape *shape, const struct calibration *c, const char *array,
                               const uint32_t dims[5], struct error *err)
{
    const void *data;
    const enum status st = calibration_array(c, array, CALIBRATION_BF16, 5, dims, NULL, &data, err);
    if (st)
        return st;
    const uint16_t *centroid = data;
    for (size_t i = 0; i < (size_t)dims[0] * dims[1] * dims[2] * dims[3] * dims[4]; i++)
        if (!(fabsf(bf16_to_f32(centroid[i])) <= CENTROID_MAX))
            return error_set(err, ST_INVALID, "calibration of %s: array %s: element %zu is %g, beyond 2^60",
                             kv_codecs[shape->codec].name, array, i, (double)bf16_to_f32(centroid[i]));
    return ST_OK;
}

const uint16_t *kv_centroids_of(const struct calibration *c, const char *array, uint32_t layer, uint32_t kv_head)
{
    const uint32_t any[5] = { 0 };
    uint32_t dims[5] = { 0 };
    const void *all = NULL;
    calibration_array(c, array, CALIBRATION_BF16, 5, any, dims, &all, NULL);
    return (const uint16_t *)all + ((size_t)layer * dims[1] + kv_head) * dims[2] * dims[3] * dims[4];
}
