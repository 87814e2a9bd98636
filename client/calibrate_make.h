#ifndef LONGSPAN_CLIENT_CALIBRATE_MAKE_H
#define LONGSPAN_CLIENT_CALIBRATE_MAKE_H

/* Makes calibrations: runs a model over a text, learns what a codec or a selector needs, writes the file. */

#include "client/calibrate_collect.h"
#include "model/calibration.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CALIBRATE_TOKENS = 16384, CALIBRATE_SEQUENCE = 1024 };

/* What codebooks are weighted by: nothing; attention (calibrate_collect); or a file of the gradient's squares (scripts/fisher.py). */
enum calibrate_method { CALIBRATE_KMEANS, CALIBRATE_ATTENTION, CALIBRATE_FISHER };

struct calibrate_wanted {
    const char *model_spec;
    const char *kv_codec;
    const char *
        selector; /* channels are learned for it; NULL or "": codebooks for kv_codec. It has one method, which is not asked for */
    enum calibrate_method method;
    const char *weights; /* CALIBRATE_FISHER: the file. Its tokens are used, not those of text */
    struct calibrate_text text;
    uint32_t n_threads;
    uint64_t seed;   /* below 2^63 */
    const char *out; /* the file; NULL or "": in the model's directory, by its digest */
    struct calibrate_events events;
};

struct calibrate_made {
    char path[CALIBRATION_PATH];
    struct digest digest;
    struct calibration_origin origin;
    double lost
        [2]; /* of keys, of values: the share of their (weighted) squares that codes lose on what they were learned from; NaN: nothing is learned of them */
    double held; /* by a selector's channels: the share of sum |q_i k_i| of all channels */
};

/* ST_INVALID, ST_UNSUPPORTED (the codec or selector learns nothing, or takes no such heads), ST_CANCELLED, and errors of models and files. */
enum status calibrate_make(const struct calibrate_wanted *wanted, struct calibrate_made *made_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
