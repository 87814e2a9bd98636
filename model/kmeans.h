#ifndef LONGSPAN_MODEL_KMEANS_H
#define LONGSPAN_MODEL_KMEANS_H

/*
 * Weighted k-means on short vectors, for codebooks: k-means++ seeding (Arthur and Vassilvitskii, 2007; a point is drawn with a probability that is
 * proportional to weight times squared distance), then Lloyd's iterations. The result is a function of its arguments: the same bits on every processor.
 */

#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { KMEANS_DIMS_MAX = 16, KMEANS_CENTROIDS_MAX = 256, KMEANS_LANES = 16 };

/* Centroids in a plane, with room for whole vectors. */
static inline uint32_t kmeans_room(uint32_t n_centroids)
{
    return (n_centroids + KMEANS_LANES - 1) / KMEANS_LANES * KMEANS_LANES;
}

/* centroids [n_centroids][n_dims] to planes [n_dims][kmeans_room(n_centroids)], the rest of a plane infinite. */
void kmeans_planes(const float *centroids, uint32_t n_centroids, uint32_t n_dims, float *planes_out);

/*
 * The nearest centroid of each of n finite vectors x [n][n_dims]: sum over e, from 0 on, of (x_e - c_e)^2, each step rounded to float32; of equal ones the lowest.
 * planes: 64-byte aligned, of room centroids (a multiple of KMEANS_LANES). distance_out [n]: squared; may be NULL. Variants give the same bits; kmeans_nearest is
 * plain C, kernels/codebook.h has faster ones.
 */
typedef void kmeans_nearest_fn(const float *planes, uint32_t room, uint32_t n_dims, const float *x, uint32_t n,
                               uint8_t *code_out, float *distance_out);
void kmeans_nearest(const float *planes, uint32_t room, uint32_t n_dims, const float *x, uint32_t n, uint8_t *code_out,
                    float *distance_out);

struct kmeans_want {
    uint32_t n;           /* vectors; 1 or more */
    uint32_t n_dims;      /* 1 .. KMEANS_DIMS_MAX */
    uint32_t n_centroids; /* 1 .. KMEANS_CENTROIDS_MAX */
    uint32_t iterations;  /* at most */
    double tolerance;     /* ends when the objective falls by less than this share of itself */
    uint64_t seed;
    kmeans_nearest_fn *nearest; /* NULL: kmeans_nearest */
    /* Called after each iteration with its objective; NULL: nobody. */
    void (*on_iteration)(void *ctx, double objective);
    void *ctx;
};

struct kmeans_fit {
    double objective; /* sum of weight times squared distance, to the centroids that are returned */
    uint32_t iterations;
};

/*
 * x [n][n_dims] finite; weights [n], finite and not negative, or NULL: all 1 (as if all are 0); centroids_out [n_centroids][n_dims]. A centroid without weight
 * moves to the vector of the largest weight times squared distance. With fewer distinct vectors than centroids the objective is 0 and the last centroids
 * repeat. fit_out may be NULL. ST_INVALID: a bound of `want` is broken; ST_NO_MEMORY.
 */
enum status kmeans(const struct kmeans_want *want, const float *x, const float *weights, float *centroids_out,
                   struct kmeans_fit *fit_out);

#ifdef __cplusplus
}
#endif
#endif
