#include "client/calibrate_channels.h"

#include <stdio.h>
#include <stdlib.h>

#include "kernels/selector.h"

enum { HEAD_DIM_MAX = 256 };

enum status calibrate_channels_check(const char *selector, const struct model_config *c, struct error *err)
{
    const struct selector_impl *impl = selector_find(selector, 0);
    if (!impl || !impl->calibrated)
        return error_set(err, ST_UNSUPPORTED, "selector %s needs no calibration", selector);
    return c->head_dim <= HEAD_DIM_MAX
               ? ST_OK
               : error_set(err, ST_UNSUPPORTED, "selector %s takes no heads of %u channels", selector, c->head_dim);
}

/* Sums are made to fit f32, which orders them. -> the share that is kept */
static double choose(const double *importance, uint32_t dim, uint32_t n, uint8_t *channels_out)
{
    float scaled[HEAD_DIM_MAX];
    double most = 0, all = 0, kept = 0;
    for (uint32_t i = 0; i < dim; i++) {
        most = importance[i] > most ? importance[i] : most;
        all += importance[i];
    }
    for (uint32_t i = 0; i < dim; i++)
        scaled[i] = most > 0 ? (float)(importance[i] / most) : 0;
    selector_channels(scaled, dim, n, channels_out);
    for (uint32_t i = 0; i < n; i++)
        kept += importance[channels_out[i]];
    return all > 0 ? kept / all : 0;
}

enum status calibrate_channels(const struct calibrate_samples *s, uint8_t **channels_out,
                               struct calibration_array *array_out, double *held_out, struct error *err)
{
    const uint32_t heads = s->n_layers * s->n_kv_heads, n = selector_labels(s->head_dim);
    uint8_t *channels = malloc((size_t)heads * n);
    double held = 0;
    if (!channels)
        return error_set(err, ST_NO_MEMORY, "no memory for %u channels", heads * n);
    for (uint32_t i = 0; i < heads; i++)
        held += choose(s->importance + (size_t)i * s->head_dim, s->head_dim, n, channels + (size_t)i * n);
    *array_out = (struct calibration_array){ .name = "channels",
                                             .type = CALIBRATION_U8,
                                             .n_dims = 3,
                                             .dims = { s->n_layers, s->n_kv_heads, n },
                                             .data = channels };
    *channels_out = channels;
    *held_out = held / heads;
    return ST_OK;
}
