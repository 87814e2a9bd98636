/*
 * Selectors that score positions: against float64 brute force, golden values of an independent numpy script, and what their papers' methods must do.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "common/f16.h"
#include "tests/unit/kernels/selector_fixture.h"
#include "tests/golden/selectors/tokens.inc"

enum { HEADS = 4, KV_HEADS = 2, BLOCKS = 16, LAYER = 5, DIM_MAX = 128, CORNERS = 1 << SOCKET_PLANES };

#define COUNT(x) (sizeof(x) / sizeof(x)[0])

/* ---- blocks ---- */

struct block {
    float k[KV_HEADS][KV_BLOCK][DIM_MAX], v[KV_HEADS][KV_BLOCK][DIM_MAX];
};

/* A sketch of what the block's positions have, by a variant of the method; free it. */
static void *sketch_of(const struct selector_impl *impl, const struct selector_shape *shape, const struct block *b,
                       const uint8_t *channels)
{
    const uint32_t dim = shape->head_dim;
    static float k[KV_HEADS][DIM_MAX * KV_BLOCK], v[KV_HEADS][KV_BLOCK * DIM_MAX];
    const void *ks[] = { k[0], k[1] }, *vs[] = { v[0], v[1] };
    void *sketch = malloc(impl->sketch_bytes(shape));
    for (uint32_t j = 0; j < shape->n_kv_heads; j++) {
        for (uint32_t p = 0; p < KV_BLOCK; p++) {
            for (uint32_t d = 0; d < dim; d++) {
                k[j][d * KV_BLOCK + p] = b->k[j][p][d];
                v[j][p * dim + d] = b->v[j][p][d];
            }
        }
    }
    const struct selector_block block = { .k_parts = ks, .v_parts = vs, .channels = channels };
    impl->sketch(shape, &block, sketch);
    assert_true(impl->valid(shape, sketch));
    return sketch;
}

static struct selector_shape shape_of(uint32_t heads, uint32_t kv_heads, uint32_t dim)
{
    return (struct selector_shape){ heads, kv_heads, dim, KV_F32 };
}

static float uniform(struct rng *r)
{
    return (float)rng_below(r, 20001) / 10000 - 1;
}

/* Nearly normal, of unit variance. */
static float normal(struct rng *r)
{
    float sum = 0;
    for (int i = 0; i < 12; i++)
        sum += (float)rng_below(r, 65536) / 65536;
    return sum - 6;
}

/* ---- golden values ---- */

struct golden {
    const char *method;
    uint32_t dim;
    const float *scores;
    const struct golden_list *lists;
    size_t n_lists;
    double scale; /* of a golden score in ours */
};

/* What tables' integers are worth: their sum over a table's corners, which are probabilities. */
static double table_scale(uint32_t dim)
{
    const double steep = 2 / (0.4 * sqrt(dim));
    return 65535 * pow(1 + exp(-steep), 8);
}

static void golden_check(const struct golden *g)
{
    static const uint32_t rows[] = { 5, 40, 41, 63 };
    const struct selector_impl *impl = selector_find(g->method, 0);
    const struct selector_shape shape = shape_of(HEADS, KV_HEADS, g->dim);
    void *sketches[BLOCKS];
    float q[HEADS][DIM_MAX], scores[4][KV_HEADS * BLOCKS];
    const float *queries[HEADS] = { q[0], q[1], q[2], q[3] };
    struct block *b = malloc(sizeof *b);
    for (uint32_t c = 0; c < BLOCKS; c++) {
        for (uint32_t i = 0; i < KV_HEADS * KV_BLOCK * g->dim; i++) {
            const uint32_t j = i / (KV_BLOCK * g->dim), p = i / g->dim % KV_BLOCK, d = i % g->dim;
            b->k[j][p][d] = drawn(1, LAYER, c, j, p, d, g->dim);
            b->v[j][p][d] = drawn(3, LAYER, c, j, p, d, g->dim);
        }
        sketches[c] = sketch_of(impl, &shape, b, NULL);
    }
    free(b);
    for (uint32_t r = 0; r < 4; r++) {
        for (uint32_t i = 0; i < HEADS * g->dim; i++)
            q[i / g->dim][i % g->dim] = drawn(2, LAYER, BLOCKS, i / g->dim, rows[r], i % g->dim, g->dim);
        impl->score(&shape, 0, KV_HEADS, queries, (const void *const *)sketches, BLOCKS, scores[r]);
        for (uint32_t i = 0; i < KV_HEADS * BLOCKS; i++) {
            const double want = g->scores[r * KV_HEADS * BLOCKS + i] * g->scale;
            if (!(fabs(scores[r][i] - want) <= 1e-3 * fabs(want) + 1e-4))
                fail_msg("%s, %u channels: score %u of row %u is %g, not %g", g->method, g->dim, i, rows[r],
                         (double)scores[r][i], want);
        }
    }
    for (size_t i = 0; i < g->n_lists; i++) {
        const struct golden_list *want = &g->lists[i];
        const uint32_t own = want->own, n = own + 1, wanted = (n * 2 + 4) / 5 < 5 ? 5 : (n * 2 + 4) / 5;
        const struct selector_choice c = { .own = own, .density = (wanted * SELECTOR_DENSITY_ONE - 1) / n };
        uint32_t scratch[2 * BLOCKS + 2], r = 0;
        uint64_t list;
        while (rows[r] != want->layer)
            r++;
        assert_int_equal(selector_budget(own, c.density), wanted);
        selector_choose(&c, scores[r] + (size_t)want->head * BLOCKS, scratch, &list);
        assert_int_equal(list, want->blocks);
    }
    for (uint32_t c = 0; c < BLOCKS; c++)
        free(sketches[c]);
}

static void golden(void **state)
{
    (void)state;
    const struct golden all[] = {
        { "socket", 16, golden_socket_scores_16, golden_socket_16, COUNT(golden_socket_16), table_scale(16) },
        { "socket", 80, golden_socket_scores_80, golden_socket_80, COUNT(golden_socket_80), table_scale(80) },
        { "double-sparsity", 16, golden_labels_scores_16, golden_labels_16, COUNT(golden_labels_16), 1 },
        { "double-sparsity", 80, golden_labels_scores_80, golden_labels_80, COUNT(golden_labels_80), 1 },
    };
    for (size_t i = 0; i < COUNT(all); i++)
        golden_check(&all[i]);
}

/* Codes and channels of one block, number by number. */
static void golden_sketches(void **state)
{
    (void)state;
    static const struct {
        uint32_t dim;
        const float *codes, *channels;
        size_t n_channels;
    } all[] = { { 16, golden_socket_codes_16, golden_labels_channels_16, COUNT(golden_labels_channels_16) },
                { 80, golden_socket_codes_80, golden_labels_channels_80, COUNT(golden_labels_channels_80) } };
    struct block *b = malloc(sizeof *b);
    for (int i = 0; i < 2; i++) {
        const struct selector_shape shape = shape_of(1, 1, all[i].dim);
        for (uint32_t p = 0; p < KV_BLOCK; p++) {
            for (uint32_t d = 0; d < all[i].dim; d++) {
                b->k[0][p][d] = drawn(1, LAYER, 3, 1, p, d, all[i].dim);
                b->v[0][p][d] = drawn(3, LAYER, 3, 1, p, d, all[i].dim);
            }
        }
        uint8_t *codes = sketch_of(selector_find("socket", 0), &shape, b, NULL),
                *labels = sketch_of(selector_find("double-sparsity", 0), &shape, b, NULL);
        for (uint32_t l = 0; l < SOCKET_TABLES; l++)
            assert_int_equal(codes[l * KV_BLOCK + 9], (int)all[i].codes[l]);
        assert_int_equal(all[i].n_channels, selector_labels(all[i].dim));
        for (size_t k = 0; k < all[i].n_channels; k++)
            assert_int_equal(labels[k], (int)all[i].channels[k]);
        free(codes);
        free(labels);
    }
    free(b);
}

/* ---- socket ---- */

/* A table is softmax over all corners, in float64, and sums to one. */
static void socket_is_softmax(void **state)
{
    (void)state;
    static uint16_t tables[SOCKET_TABLES * CORNERS];
    struct rng r = { 1, 0 };
    for (uint32_t dim = 4; dim <= DIM_MAX; dim *= 2) {
        const struct selector_shape shape = shape_of(1, 1, dim);
        const float *planes = selector_socket_planes();
        float q[DIM_MAX];
        for (uint32_t d = 0; d < dim; d++)
            q[d] = 3 * uniform(&r);
        selector_socket_tables(&shape, q, tables);
        for (uint32_t l = 0; l < SOCKET_TABLES; l++) {
            double h[SOCKET_PLANES] = { 0 }, e[CORNERS], sum = 0;
            for (uint32_t b = 0; b < SOCKET_PLANES; b++) {
                for (uint32_t d = 0; d < dim; d++)
                    h[b] += (double)planes[(size_t)d * SOCKET_HASHES + l * SOCKET_PLANES + b] * q[d];
                h[b] = tanh(h[b]) / sqrt(dim);
            }
            for (uint32_t c = 0; c < CORNERS; c++) {
                e[c] = 0;
                for (uint32_t b = 0; b < SOCKET_PLANES; b++)
                    e[c] += (c >> b & 1 ? h[b] : -h[b]) / 0.4;
                e[c] = exp(e[c]);
                sum += e[c];
            }
            for (uint32_t c = 0; c < CORNERS; c++)
                assert_true(fabs(tables[l * CORNERS + c] / table_scale(dim) - e[c] / sum) <
                            1e-5 * e[c] / sum + 0.51 / table_scale(dim));
        }
    }
}

/* Opposite keys have opposite codes, longer keys the same; longer values and those alone raise the score. */
static void socket_codes(void **state)
{
    (void)state;
    const struct selector_impl *impl = selector_find("socket", 0);
    const struct selector_shape shape = shape_of(1, 1, 64);
    struct rng r = { 2, 0 };
    struct block *b = malloc(sizeof *b);
    for (uint32_t i = 0; i < KV_BLOCK * 64; i++) {
        b->k[0][i / 64][i % 64] = normal(&r);
        b->v[0][i / 64][i % 64] = normal(&r);
    }
    uint8_t *one = sketch_of(impl, &shape, b, NULL);
    for (uint32_t i = 0; i < KV_BLOCK * 64; i++) {
        b->k[0][i / 64][i % 64] *= i / 64 % 2 ? 8.0f : -0.25f;
        b->v[0][i / 64][i % 64] *= 4;
    }
    uint8_t *other = sketch_of(impl, &shape, b, NULL);
    const uint16_t *norms[2] = { (const uint16_t *)(const void *)(one + SOCKET_TABLES * KV_BLOCK),
                                 (const uint16_t *)(const void *)(other + SOCKET_TABLES * KV_BLOCK) };
    for (uint32_t p = 0; p < KV_BLOCK; p++) {
        double norm = 0;
        for (uint32_t l = 0; l < SOCKET_TABLES; l++)
            assert_int_equal(other[l * KV_BLOCK + p], one[l * KV_BLOCK + p] ^ (p % 2 ? 0 : 0xFF));
        for (uint32_t d = 0; d < 64; d++)
            norm += (double)b->v[0][p][d] * b->v[0][p][d];
        assert_true(fabs(f16_to_f32(norms[1][p]) - sqrt(norm)) < 1e-3 * sqrt(norm));
        assert_true(f16_to_f32(norms[1][p]) == 4 * f16_to_f32(norms[0][p]));
    }
    free(one);
    free(other);
    free(b);
}

/*
 * What it is for: blocks that hold a key near the query are found among others, and another query finds others. 128 blocks, of which the budget has 16;
 * eight of them hold a key whose cosine with the query is about .7.
 */
static void finds(const char *method, double least)
{
    enum { N = 128, PLANTED = 8, DIM = 64, TRIALS = 4 };
    const struct selector_impl *impl = selector_find(method, cpu_caps());
    const struct selector_shape shape = shape_of(1, 1, DIM);
    struct rng r = { 3, 0 };
    struct block *b = malloc(sizeof *b);
    uint32_t found = 0, shared = 0;
    cpu_thread_init();
    for (uint32_t trial = 0; trial < TRIALS; trial++) {
        float q[2][DIM], scores[N];
        void *sketches[N];
        uint32_t scratch[2 * N + 2];
        uint64_t list[2][3];
        for (uint32_t i = 0; i < 2 * DIM; i++)
            q[i / DIM][i % DIM] = 2 * normal(&r);
        for (uint32_t c = 0; c < N; c++) {
            for (uint32_t i = 0; i < KV_BLOCK * DIM; i++) {
                b->k[0][i / DIM][i % DIM] = normal(&r);
                b->v[0][i / DIM][i % DIM] = normal(&r);
            }
            for (uint32_t d = 0; d < DIM && c % 16 == 7; d++)
                b->k[0][c % KV_BLOCK][d] += q[0][d] / 2;
            sketches[c] = sketch_of(impl, &shape, b, NULL);
        }
        for (int k = 0; k < 2; k++) {
            const float *query = q[k];
            const struct selector_choice choice = { .own = N, .density = 20 * SELECTOR_DENSITY_ONE / (N + 1) };
            impl->score(&shape, 0, 1, &query, (const void *const *)sketches, N, scores);
            selector_choose(&choice, scores, scratch, list[k]);
        }
        for (uint32_t c = 1; c < N - 2; c++) {
            found += c % 16 == 7 && selector_has(list[0], c);
            shared += selector_has(list[0], c) && selector_has(list[1], c);
        }
        for (uint32_t c = 0; c < N; c++)
            free(sketches[c]);
    }
    print_message("%s: %u of %d planted keys, two queries share %u of %d\n", method, found, PLANTED * TRIALS, shared,
                  16 * TRIALS);
    assert_true(found >= least * PLANTED * TRIALS);
    assert_true(shared < 16 * TRIALS / 2);
    free(b);
}

static void socket_finds(void **state)
{
    (void)state;
    finds("socket", 0.9);
}

/* ---- double-sparsity ---- */

/* All channels: the best position's product but for the four bits; calibrated ones are taken as they are. */
static void labels_are_products(void **state)
{
    (void)state;
    const struct selector_impl *impl = selector_find("double-sparsity", 0);
    struct rng r = { 4, 0 };
    struct block *b = malloc(sizeof *b);
    for (int round = 0; round < 20; round++) {
        const uint32_t dim = round % 2 ? 4 : 64, n = selector_labels(dim);
        const struct selector_shape shape = shape_of(2, 1, dim);
        uint8_t channels[16];
        float q[2][DIM_MAX], score;
        for (uint32_t i = 0; i < n; i++)
            channels[i] = (uint8_t)(dim == 4 ? i : 5 * i + (uint32_t)round / 2);
        for (uint32_t i = 0; i < KV_BLOCK * dim; i++)
            b->k[0][i / dim][i % dim] = b->v[0][i / dim][i % dim] = uniform(&r);
        for (uint32_t i = 0; i < 2 * dim; i++)
            q[i / dim][i % dim] = uniform(&r);
        const float *queries[] = { q[0], q[1] };
        uint8_t *sketch = sketch_of(impl, &shape, b, channels);
        const void *sketches[] = { sketch };
        assert_memory_equal(sketch, channels, n);
        impl->score(&shape, 0, 1, queries, sketches, 1, &score);
        double most = -INFINITY, step = 0;
        for (int g = 0; g < 2; g++) {
            for (uint32_t p = 0; p < KV_BLOCK; p++) {
                double dot = 0, weight = 0;
                for (uint32_t i = 0; i < n; i++) {
                    dot += (double)q[g][channels[i]] * b->k[0][p][channels[i]];
                    weight += fabs((double)q[g][channels[i]]);
                }
                most = dot > most ? dot : most;
                step = weight > step ? weight : step;
            }
        }
        assert_true(fabs(score - most) <= step * (1.0 / 15 + 2e-3)); /* half a step of 2 / 15 in each channel */
        free(sketch);
    }
    free(b);
}

static void labels_find(void **state)
{
    (void)state;
    finds("double-sparsity", 0.4); /* eight channels of 64, and isotropic keys, of which none says more than another */
}

/* What came from outside and is no sketch. */
static void invalid(void **state)
{
    (void)state;
    const struct selector_shape shape = shape_of(1, 1, 64);
    struct block *b = calloc(1, sizeof *b);
    for (int m = 0; m < 2; m++) {
        const struct selector_impl *impl = selector_find(m ? "socket" : "double-sparsity", 0);
        const size_t bytes = impl->sketch_bytes(&shape);
        uint8_t *sketch = sketch_of(impl, &shape, b, NULL);
        const uint16_t infinite = 0x7C00, negative = 0xBC00;
        uint16_t before;
        memcpy(&before, sketch + bytes - 2, 2);
        memcpy(sketch + bytes - 2, &infinite, 2);
        assert_false(impl->valid(&shape, sketch));
        memcpy(sketch + bytes - 2, &negative, 2);
        assert_int_equal(impl->valid(&shape, sketch), !m); /* a norm is none, a least value may be one */
        memcpy(sketch + bytes - 2, &before, 2);
        assert_true(impl->valid(&shape, sketch));
        sketch[3] = 64;
        assert_int_equal(impl->valid(&shape, sketch), m); /* a channel beyond the head; any code is one */
        free(sketch);
    }
    free(b);
}

/* ---- streaming ---- */

static void windows(void **state)
{
    (void)state;
    for (uint32_t own = 0; own < 300; own += own < 20 ? 1 : 37) {
        for (uint32_t window = 1; window < 400; window = window * 3 + 1) {
            uint64_t list[5];
            selector_window(own, window, list);
            for (uint32_t b = 0; b < selector_words(own) * 64; b++)
                assert_int_equal(selector_has(list, b), b <= own && (b == 0 || b + window >= own));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden),       cmocka_unit_test(golden_sketches), cmocka_unit_test(socket_is_softmax),
        cmocka_unit_test(socket_codes), cmocka_unit_test(socket_finds),    cmocka_unit_test(labels_are_products),
        cmocka_unit_test(labels_find),  cmocka_unit_test(invalid),         cmocka_unit_test(windows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
