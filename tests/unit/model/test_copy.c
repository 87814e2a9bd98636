/*
 * The constructed copying model against a plain forward pass, in float32 and with activations rounded to bf16 before every product: 64
 * needles, each must be copied exactly and with probability over 0.99, near, far, and among 131072 positions.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <math.h>

#include "common/rng.h"
#include "model/bf16.h"
#include "model/model.h"

enum {
    D = 128,
    HEADS = 8,
    HD = 64,
    LAYERS = 4,
    VOCAB = 256,
    NEEDLES = 64,
    NEEDLE_BYTES = 19,
    KEY_AT = 1,
    PREV_AT = 23
};

/* Most weights are zero: rows as lists of the others, which changes no sum. */
struct sparse {
    uint32_t rows, *start;
    struct entry {
        uint32_t col;
        float w;
    } * entries;
};

struct net {
    struct model *m;
    struct sparse embed, output, q[LAYERS], k[LAYERS], v[LAYERS], out[LAYERS];
    uint32_t n_dims[LAYERS], dims[LAYERS][HD]; /* of a head that any query uses */
    bool same_heads[LAYERS];                   /* all heads ask the same */
};

struct cache {
    float *k[LAYERS], *v[LAYERS]; /* [n][n_dims], [n][HD] */
    uint32_t n, room;
    uint32_t *position;
};

static struct net net;

static struct sparse load(enum model_tensor_kind kind, uint32_t layer)
{
    struct model_tensor t;
    float row[512];
    uint32_t used = 0;
    assert_int_equal(model_tensor(net.m, kind, layer, &t), ST_OK);
    struct sparse s = { .rows = t.n_rows };
    s.start = calloc(t.n_rows + 1, sizeof *s.start);
    s.entries = calloc((size_t)t.n_rows * t.n_cols + 1, sizeof *s.entries);
    for (uint32_t r = 0; r < t.n_rows; r++) {
        s.start[r] = used;
        weight_row_f32(t.codec, model_tensor_row(&t, r, NULL), t.n_cols, row);
        for (uint32_t c = 0; c < t.n_cols; c++)
            if (row[c] != 0)
                s.entries[used++] = (struct entry){ c, row[c] };
    }
    s.start[t.n_rows] = used;
    return s;
}

static void unload(struct sparse *s)
{
    free(s->start);
    free(s->entries);
}

static void multiply(const struct sparse *s, const float *x, float *y)
{
    for (uint32_t r = 0; r < s->rows; r++) {
        y[r] = 0;
        for (uint32_t e = s->start[r]; e < s->start[r + 1]; e++)
            y[r] += s->entries[e].w * x[s->entries[e].col];
    }
}

static float keep(float x, bool bf16)
{
    return bf16 ? bf16_to_float(bf16_of(x)) : x;
}

static void norm(const float *x, float *y, bool bf16)
{
    float sum = 0;
    for (int i = 0; i < D; i++)
        sum += x[i] * x[i];
    const float r = 1 / sqrtf(sum / D + model_config(net.m)->rms_eps);
    for (int i = 0; i < D; i++)
        y[i] = keep(x[i] * r, bf16);
}

static void rope(float *x, uint32_t position, bool bf16)
{
    const double *w = model_config(net.m)->inv_freq;
    for (int i = 0; i < HD / 2; i++) {
        const float c = (float)cos(w[i] * position), s = (float)sin(w[i] * position), a = x[i], b = x[i + HD / 2];
        x[i] = keep(a * c - b * s, bf16);
        x[i + HD / 2] = keep(b * c + a * s, bf16);
    }
}

static struct cache cache_new(uint32_t room)
{
    struct cache c = { .room = room, .position = calloc(room, sizeof *c.position) };
    for (int l = 2; l < LAYERS; l++) {
        c.k[l] = calloc((size_t)room * net.n_dims[l], sizeof *c.k[l]);
        c.v[l] = calloc((size_t)room * HD, sizeof *c.v[l]);
    }
    return c;
}

static void cache_free(struct cache *c)
{
    for (int l = 2; l < LAYERS; l++) {
        free(c->k[l]);
        free(c->v[l]);
    }
    free(c->position);
}

static void store(struct cache *c, int layer, uint32_t row, const float *xn, bool bf16)
{
    float k[HD], v[HD];
    multiply(&net.k[layer], xn, k);
    multiply(&net.v[layer], xn, v);
    rope(k, c->position[row], bf16);
    for (uint32_t i = 0; i < net.n_dims[layer]; i++)
        c->k[layer][(size_t)row * net.n_dims[layer] + i] = k[net.dims[layer][i]];
    for (int i = 0; i < HD; i++)
        c->v[layer][(size_t)row * HD + i] = keep(v[i], bf16);
}

/* The two loops that take all the time; checked they would take most of a minute. */
#define UNCHECKED __attribute__((no_sanitize("address", "undefined")))

/* One head over rows 0 .. n - 1. */
UNCHECKED static void attend(const struct cache *c, int layer, const float *q, uint32_t n, float *o, bool bf16)
{
    const uint32_t dims = net.n_dims[layer];
    float *p = malloc(n * sizeof *p), qc[HD], max = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < dims; i++)
        qc[i] = q[net.dims[layer][i]];
    for (uint32_t j = 0; j < n; j++) {
        const float *k = c->k[layer] + (size_t)j * dims;
        float s = 0;
        for (uint32_t i = 0; i < dims; i++)
            s += qc[i] * k[i];
        p[j] = s * 0.125f;
        max = fmaxf(max, p[j]);
    }
    memset(o, 0, HD * sizeof *o);
    for (uint32_t j = 0; j < n; j++) {
        if (p[j] < max - 104) /* e^-104 is 0 in float32 */
            continue;
        const float e = keep(expf(p[j] - max), bf16), *v = c->v[layer] + (size_t)j * HD;
        sum += e;
        for (int i = 0; i < HD; i++)
            o[i] += e * v[i];
    }
    for (int i = 0; i < HD; i++)
        o[i] = keep(o[i] / sum, bf16);
    free(p);
}

static void layer_run(struct cache *c, int layer, uint32_t row, float *x, bool bf16)
{
    float xn[D], q[HEADS * HD], o[HEADS * HD], y[D];
    norm(x, xn, bf16);
    store(c, layer, row, xn, bf16);
    multiply(&net.q[layer], xn, q);
    for (int h = 0; h < HEADS; h++) {
        if (h && net.same_heads[layer]) {
            memcpy(o + h * HD, o, HD * sizeof *o);
            continue;
        }
        rope(q + h * HD, c->position[row], bf16);
        attend(c, layer, q + h * HD, row + 1, o + h * HD, bf16);
    }
    multiply(&net.out[layer], o, y);
    for (int i = 0; i < D; i++)
        x[i] += y[i];
}

static void embed(uint8_t byte, float *x)
{
    memset(x, 0, D * sizeof *x);
    for (uint32_t e = net.embed.start[byte]; e < net.embed.start[byte + 1]; e++)
        x[net.embed.entries[e].col] = net.embed.entries[e].w;
}

/* Appends one byte at a position; logits may be NULL. Layers 0 and 1 and all MLPs add zero (test_pass_through). */
static void push(struct cache *c, uint8_t byte, uint32_t position, float *logits, bool bf16)
{
    float x[D], xn[D];
    const uint32_t row = c->n++;
    assert_true(row < c->room);
    c->position[row] = position;
    embed(byte, x);
    layer_run(c, 2, row, x, bf16);
    layer_run(c, 3, row, x, bf16);
    if (!logits)
        return;
    norm(x, xn, bf16);
    multiply(&net.output, xn, logits);
}

/* Checks that the best byte is the wanted one and returns its probability. */
static double probability(const float *logits, int want)
{
    double sum = 0;
    int best = 0;
    for (int i = 0; i < VOCAB; i++) {
        assert_true(isfinite(logits[i]));
        if (logits[i] > logits[best])
            best = i;
    }
    if (want >= 0)
        assert_int_equal(best, want);
    for (int i = 0; i < VOCAB; i++)
        sum += exp((double)logits[i] - logits[best]);
    return 1 / sum;
}

/* Random lower-case text with needles "K<8>=<8>;" spread evenly; needle_out [NEEDLES][19]. */
static void make_text(char *text, uint32_t n, uint64_t seed, char needle_out[NEEDLES][NEEDLE_BYTES])
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    struct rng r = { seed, 0 };
    for (uint32_t i = 0; i < n; i++)
        text[i] = rng_below(&r, 6) ? (char)('a' + rng_below(&r, 26)) : ' ';
    for (uint32_t k = 0; k < NEEDLES; k++) {
        char *needle = needle_out[k];
        for (int i = 0; i < NEEDLE_BYTES; i++)
            needle[i] = letters[rng_below(&r, sizeof letters - 1)];
        needle[0] = 'K';
        needle[9] = '=';
        needle[18] = ';';
        const uint32_t room = n / NEEDLES;
        memcpy(text + k * room + rng_below(&r, room - NEEDLE_BYTES), needle, NEEDLE_BYTES);
    }
}

/* Asks for one needle after what the cache holds, and takes the question back. */
static double ask(struct cache *c, const char *needle, uint32_t position, bool bf16)
{
    float logits[VOCAB];
    double worst = 1;
    const uint32_t n = c->n;
    for (int i = 0; i < NEEDLE_BYTES - 1; i++) {
        push(c, (uint8_t)needle[i], position++, i < 9 ? NULL : logits, bf16);
        if (i >= 9)
            worst = fmin(worst, probability(logits, needle[i + 1]));
    }
    c->n = n;
    return worst;
}

/* All 64 right after the text; some with 131,000 and four million positions between text and question. */
static void check_needles(bool bf16)
{
    enum { N = 1536 };
    char *text = malloc(N), needles[NEEDLES][NEEDLE_BYTES];
    const uint64_t seed = 42 + bf16;
    double worst = 1;
    make_text(text, N, seed, needles);
    struct cache c = cache_new(N + NEEDLE_BYTES);
    for (uint32_t i = 0; i < N; i++)
        push(&c, (uint8_t)text[i], i, NULL, bf16);
    for (int k = 0; k < NEEDLES; k++)
        worst = fmin(worst, ask(&c, needles[k], N, bf16));
    for (int k = 0; k < NEEDLES; k += 16) {
        worst = fmin(worst, ask(&c, needles[k], 131072 - NEEDLE_BYTES, bf16));
        worst = fmin(worst, ask(&c, needles[k], 4194304 - NEEDLE_BYTES, bf16));
    }
    print_message("seed %llu: least probability %.8f\n", (unsigned long long)seed, worst);
    assert_true(worst > 0.99);
    cache_free(&c);
    free(text);
}

static void test_needles_float32(void **state)
{
    (void)state;
    check_needles(false);
}

static void test_needles_bf16(void **state)
{
    (void)state;
    check_needles(true);
}

/* What layer 2 should write: the key codes of the bytes before. */
static void ideal(const char *text, uint32_t i, float *x)
{
    float other[D];
    embed((uint8_t)text[i], x);
    for (uint32_t back = 1; back <= 8; back++) {
        embed((uint8_t)text[i >= back ? i - back : 0], other);
        memcpy(x + PREV_AT + 6 * (back - 1), other + KEY_AT, 6 * sizeof *x);
    }
}

/*
 * All 131072 positions as distractors. Layer 2 is computed for some of the last 300 rows and compared with what it should write; the
 * other rows take that for granted, else this would take an hour.
 */
static void test_long(void **state)
{
    (void)state;
    enum { N = 131072 };
    const bool bf16 = true;
    char *text = malloc(N), needles[NEEDLES][NEEDLE_BYTES];
    float x[D], want[D], xn[D], logits[VOCAB];
    double worst = 1, error = 0;
    make_text(text, N, 7, needles);
    for (int k = 0; k < NEEDLE_BYTES - 1; k++)
        text[N - NEEDLE_BYTES + 1 + k] = needles[3][k];
    struct cache c = cache_new(N);
    for (uint32_t i = 0; i < N; i++) {
        c.position[i] = i;
        embed((uint8_t)text[i], x);
        norm(x, xn, bf16);
        store(&c, 2, i, xn, bf16);
        ideal(text, i, x);
        norm(x, xn, bf16);
        store(&c, 3, i, xn, bf16);
    }
    for (uint32_t i = N - 300; i < N; i++) {
        if (i < N - 9 && i % 30)
            continue;
        embed((uint8_t)text[i], x);
        layer_run(&c, 2, i, x, bf16);
        ideal(text, i, want);
        for (int k = 0; k < D; k++)
            error = fmax(error, fabs((double)x[k] - want[k]));
        if (i < N - 9)
            continue;
        layer_run(&c, 3, i, x, bf16);
        norm(x, xn, bf16);
        multiply(&net.output, xn, logits);
        worst = fmin(worst, probability(logits, i + 1 < N ? text[i + 1] : ';'));
    }
    print_message("least probability %.8f, largest error of layer 2 %.5f\n", worst, error);
    assert_true(worst > 0.99);
    assert_true(error < 0.02);
    cache_free(&c);
    free(text);
}

/* The worst a text can do: every position differs from the key in one byte only, by the nearest code. */
static void test_near_misses(void **state)
{
    (void)state;
    float x[D], xn[D], q[HEADS * HD], k[HD], best = 0;
    char text[16] = "xK1234567=";
    float scores[VOCAB];
    ideal(text, 9, x);
    norm(x, xn, true);
    multiply(&net.q[3], xn, q);
    float full = 0;
    for (int b = 0; b < VOCAB; b++) {
        text[10] = 'y';
        text[5] = (char)b;
        ideal(text, 10, x);
        norm(x, xn, true);
        multiply(&net.k[3], xn, k);
        scores[b] = 0;
        for (int i = 0; i < HD; i++)
            scores[b] += keep(q[i], true) * keep(k[i], true) * 0.125f;
        if (b == '4')
            full = scores[b];
        else if (b < 252) /* the others are in no text, and a little nearer */
            best = fmaxf(best, scores[b]);
    }
    print_message("full match %.2f, one byte off at most %.2f\n", (double)full, (double)best);
    assert_true(131072 * exp((double)best - full) < 1e-3);
}

/* No byte is said where nothing matches, but numbers stay finite; the first positions have no bytes before them. */
static void test_no_match(void **state)
{
    (void)state;
    float logits[VOCAB];
    struct cache c = cache_new(64);
    for (uint32_t i = 0; i < 64; i++) {
        push(&c, (uint8_t)(i * 37), i, logits, true);
        probability(logits, -1);
    }
    cache_free(&c);
}

static bool all_zero(enum model_tensor_kind kind, uint32_t layer)
{
    struct sparse s = load(kind, layer);
    const bool zero = s.start[s.rows] == 0;
    unload(&s);
    return zero;
}

static void test_pass_through(void **state)
{
    (void)state;
    assert_true(all_zero(MODEL_ATTN_OUT, 0) && all_zero(MODEL_ATTN_OUT, 1));
    assert_false(all_zero(MODEL_ATTN_OUT, 2) || all_zero(MODEL_ATTN_OUT, 3));
    for (uint32_t l = 0; l < LAYERS; l++)
        assert_true(all_zero(MODEL_FFN_DOWN, l));
}

/* The codes keep the distances that the margins were computed with. */
static void test_codes(void **state)
{
    (void)state;
    float a[D], b[D];
    for (int i = 0; i < VOCAB; i++)
        for (int j = 0; j <= i; j++) {
            float key = 0, text = 0;
            embed((uint8_t)i, a);
            embed((uint8_t)j, b);
            for (int k = 0; k < 6; k++)
                key += a[KEY_AT + k] * b[KEY_AT + k];
            for (int k = 0; k < 16; k++)
                text += a[KEY_AT + 6 + k] * b[KEY_AT + 6 + k];
            assert_true(i == j ? fabsf(key - 4) < 0.01f : key <= (i >= 252 ? 3.27f : 3.0f));
            assert_true(i == j ? text == 16 : text <= 4);
        }
}

enum { PAIRS = 8, STEPS = 65536 };

/* The highest mean cosine over distances 1 .. far. Angles are summed as 32-bit fractions of a turn; 16 bits are plenty for the cosine. */
UNCHECKED static float side_peak(const uint32_t *turn, const float *cosine, uint32_t far)
{
    uint32_t angle[PAIRS] = { 0 };
    float peak = -1;
    for (uint32_t x = 1; x <= far; x++) {
        float sum = 0;
        for (int p = 0; p < PAIRS; p++) {
            angle[p] += turn[p];
            sum += cosine[(uint16_t)((angle[p] + 0x8000) >> 16)];
        }
        peak = fmaxf(peak, sum / PAIRS);
    }
    return peak;
}

/* The previous-token heads' score at every distance: its peaks beside the wanted one stay as low as copy.c says. */
static void test_side_peaks(void **state)
{
    (void)state;
    float *cosine = malloc(STEPS * sizeof *cosine);
    uint32_t turn[PAIRS];
    const double *w = model_config(net.m)->inv_freq, two_pi = 6.283185307179586;
    for (int i = 0; i < STEPS; i++)
        cosine[i] = (float)cos(two_pi * i / STEPS);
    for (int p = 0; p < HD / 2; p++) {
        assert_true((w[p] != 0) == (p < PAIRS));
        if (p < PAIRS)
            turn[p] = (uint32_t)llround(w[p] / two_pi * 4294967296.0);
    }
    const float near = side_peak(turn, cosine, 131080), far = side_peak(turn, cosine, 4194312);
    print_message("highest side peak to 131080: %.4f, to 4194312: %.4f\n", (double)near, (double)far);
    assert_true(near < 0.9185f && far < 0.939f);
    free(cosine);
}

static void test_positions(void **state)
{
    (void)state;
    struct model *m = NULL;
    struct error err = { 0 };
    struct digest a = model_digest(net.m), b;
    assert_int_equal(model_config(net.m)->positions_max, 131072);
    assert_int_equal(model_open("constructed:copy:5000", &m, &err), ST_OK);
    assert_int_equal(model_config(m)->positions_max, 5000);
    b = model_digest(m);
    assert_memory_not_equal(&a, &b, sizeof a);
    model_close(m);
    assert_int_equal(model_open("constructed:copy:0", &m, &err), ST_INVALID);
    err = (struct error){ 0 };
    assert_int_equal(model_open("constructed:cpoy", &m, &err), ST_NOT_FOUND);
    assert_non_null(strstr(err.text, "constructed:copy"));
}

static int open_net(void **state)
{
    (void)state;
    struct error err = { 0 };
    assert_int_equal(model_open("constructed:copy", &net.m, &err), ST_OK);
    const struct model_config *c = model_config(net.m);
    assert_int_equal(c->d_model, D);
    assert_int_equal(c->n_heads, HEADS);
    assert_int_equal(c->n_kv_heads, 1);
    assert_int_equal(c->head_dim, HD);
    net.embed = load(MODEL_EMBEDDING, 0);
    net.output = load(MODEL_OUTPUT, 0);
    for (uint32_t l = 0; l < LAYERS; l++) {
        net.q[l] = load(MODEL_ATTN_Q, l);
        net.k[l] = load(MODEL_ATTN_K, l);
        net.v[l] = load(MODEL_ATTN_V, l);
        net.out[l] = load(MODEL_ATTN_OUT, l);
        net.same_heads[l] = true;
        for (uint32_t d = 0; d < HD; d++) {
            bool used = false;
            for (uint32_t h = 0; h < HEADS; h++) {
                const uint32_t *s = net.q[l].start, r = h * HD + d, n = s[r + 1] - s[r];
                used |= n > 0;
                net.same_heads[l] &= n == s[d + 1] - s[d] && memcmp(net.q[l].entries + s[r], net.q[l].entries + s[d],
                                                                    n * sizeof(struct entry)) == 0;
            }
            /* a pair turns as one */
            const uint32_t partner = (d + HD / 2) % HD;
            for (uint32_t h = 0; h < HEADS; h++)
                used |= net.q[l].start[h * HD + partner + 1] > net.q[l].start[h * HD + partner];
            if (used)
                net.dims[l][net.n_dims[l]++] = d;
        }
    }
    return 0;
}

static int close_net(void **state)
{
    (void)state;
    unload(&net.embed);
    unload(&net.output);
    for (uint32_t l = 0; l < LAYERS; l++) {
        unload(&net.q[l]);
        unload(&net.k[l]);
        unload(&net.v[l]);
        unload(&net.out[l]);
    }
    model_close(net.m);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pass_through),    cmocka_unit_test(test_codes),        cmocka_unit_test(test_side_peaks),
        cmocka_unit_test(test_positions),       cmocka_unit_test(test_near_misses),  cmocka_unit_test(test_no_match),
        cmocka_unit_test(test_needles_float32), cmocka_unit_test(test_needles_bf16), cmocka_unit_test(test_long),
    };
    return cmocka_run_group_tests(tests, open_net, close_net);
}
