/* Sealed blocks: from any finite rows they are finite and small; any bytes as a sealed block are attended over without harm. */
/* fuzz-libs: longspan_kernels */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/kv_cq.h"
#include "kernels/cpu/kv_nomad.h"
#include "kernels/kernels.h"
#include "kernels/kv_spill.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { D_MAX = 128, ROWS = 3 };

static uint8_t *filled(size_t size, const uint8_t *data, size_t bytes)
{
    uint8_t *p = aligned_alloc(64, (size + 63) / 64 * 64);
    for (size_t i = 0; i < size; i++)
        p[i] = bytes ? data[i % bytes] : 0;
    return p;
}

/* What was sealed without loss is what it was; of a spilled part, as much as it holds. */
static void same_again(const struct attn_shape *shape, const uint8_t *open, const uint8_t *part)
{
    const struct kv_spill spill = kv_spill_of(shape);
    const size_t bytes = (size_t)KV_BLOCK * shape->head_dim * 2;
    uint8_t *again = filled(bytes, NULL, 0);
    attn_find(shape, 0)->expand(shape, part, NULL, again);
    if (kv_spilled(&spill, part) ? memcmp(part, open, bytes - spill.bytes) : memcmp(again, open, bytes))
        abort();
    free(again);
}

/* bf16 rows of any bits: refused if one is not finite, but where nothing is lost. -> sealed, and of numbers for which attention must be finite */
static bool seal_any(const struct attn_shape *shape, const uint8_t *data, size_t bytes, uint8_t *k_part,
                     uint8_t *v_part)
{
    const size_t open = (size_t)KV_BLOCK * shape->head_dim * 2;
    uint8_t *k = filled(open, data, bytes), *v = filled(open, data + bytes / 2, bytes - bytes / 2);
    bool finite = true, small = true, usual = true;
    for (size_t i = 0; i < open / 2; i++) {
        const float x = bf16_to_f32(((uint16_t *)(void *)k)[i]), y = bf16_to_f32(((uint16_t *)(void *)v)[i]);
        finite = finite && isfinite(x) && isfinite(y);
        usual = usual && fabsf(x) < 1e4f && fabsf(y) < 1e4f;
        small = small && fabsf(x) < 1e30f && fabsf(y) < 1e30f; /* sums of a rotation stay below infinity */
    }
    const bool sealed = attn_find(shape, 0)->seal(shape, k, v, k_part, v_part);
    const bool lossless = shape->codec == KV_BF16_LOSSLESS;
    if (lossless ? !sealed : (sealed && !finite) || (!sealed && small && finite))
        abort();
    if (lossless) {
        same_again(shape, k, k_part);
        same_again(shape, v, v_part);
    }
    free(k);
    free(v);
    return sealed && usual && finite;
}

/* What codes of a calibration stand for: centroids of any numbers, and angles of a block somewhere. */
struct learned {
    struct kv_book books[2];
    struct kv_angles angles;
    float first[2][D_MAX / 2];
    _Alignas(64) float step[2][D_MAX / 2 * KV_BLOCK];
};

static void learn_book(const struct attn_shape *shape, const uint8_t *data, size_t bytes, struct kv_book *book)
{
    const uint32_t c = cq_channels(shape), n = shape->head_dim * CQ_CENTROIDS;
    float *planes = (float *)(void *)filled((size_t)n * 6, NULL, 0);
    uint16_t *centroids = (uint16_t *)(void *)(planes + n);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t group = i / c / CQ_CENTROIDS, code = i / c % CQ_CENTROIDS;
        const int8_t x = (int8_t)data[((size_t)i * 7 + i / 256) % bytes];
        centroids[i] = f32_to_bf16(ldexpf((float)x, data[i % bytes] % 48)); /* below 2^60, as a calibration's */
        planes[((size_t)group * c + i % c) * CQ_CENTROIDS + code] = bf16_to_f32(centroids[i]);
    }
    book->data = planes;
}

static void learn(const struct attn_shape *shape, const uint8_t *data, size_t bytes, struct learned *out)
{
    const uint32_t half = shape->head_dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        const float turn = powf(10000, -(float)i / (float)half), first = (float)(data[0] * KV_BLOCK) * turn;
        out->first[0][i] = cosf(first);
        out->first[1][i] = sinf(first);
        for (uint32_t j = 0; j < KV_BLOCK; j++) {
            out->step[0][i * KV_BLOCK + j] = cosf((float)j * turn);
            out->step[1][i * KV_BLOCK + j] = sinf((float)j * turn);
        }
    }
    out->angles = (struct kv_angles){ { out->first[0], out->first[1] }, { out->step[0], out->step[1] }, 1 };
    for (int part = 0; part < 2; part++) {
        out->books[part] = (struct kv_book){ .values = part == 1, .angles = &out->angles };
        learn_book(shape, data + (part ? bytes / 2 : 0), part ? bytes - bytes / 2 : bytes, &out->books[part]);
    }
}

/* Every variant expands any bytes to what the reference makes of them; of sealed ones to finite numbers. */
static void expand(const struct attn_shape *shape, const struct attn_impl *it, const uint8_t *part, bool sealed)
{
    const struct attn_impl *c = attn_find(shape, 0);
    const size_t n = (size_t)KV_BLOCK * shape->head_dim;
    uint16_t *got = (uint16_t *)(void *)filled(n * 2, NULL, 0), *want = (uint16_t *)(void *)filled(n * 2, NULL, 0);
    const struct kv_spill spill = kv_spill_of(shape);
    sealed = sealed && !kv_spilled(&spill, part); /* else some numbers */
    it->expand(shape, part, NULL, got);
    c->expand(shape, part, NULL, want);
    for (size_t i = 0; i < n; i++) {
        const float x = bf16_to_f32(got[i]), y = bf16_to_f32(want[i]);
        if ((got[i] != want[i] && !(isnan(x) && isnan(y))) || (sealed && !isfinite(x)))
            abort();
    }
    free(got);
    free(want);
}

static void attend(const struct attn_shape *shape, const struct attn_impl *it, const uint8_t *data, size_t bytes,
                   const uint8_t *k_part, const uint8_t *v_part, bool sealed)
{
    float q[ROWS][D_MAX];
    const float *rows[ROWS];
    const uint8_t visible[ROWS] = { KV_BLOCK, (uint8_t)(bytes ? data[0] % (KV_BLOCK + 1) : 0), 1 };
    uint8_t *tile = filled(it->q_tile_bytes(shape), NULL, 0);
    float *partial = aligned_alloc(64, attn_partial_floats(shape->head_dim) * sizeof *partial);
    for (int i = 0; i < ROWS; i++) {
        rows[i] = q[i];
        for (uint32_t c = 0; c < shape->head_dim; c++)
            q[i][c] = (float)(int8_t)(bytes ? data[(i + c * 7) % bytes] : 1) / 16;
    }
    it->pack_q(shape, rows, ROWS, tile);
    it->block(shape, tile, ROWS, visible, k_part, v_part, NULL, partial);
    if (it->rotate)
        it->rotate(shape, ROWS, partial);
    for (int i = 0; i < ROWS && sealed; i++)
        if (!isfinite(partial[ATTN_ROWS + i]) || (visible[i] && !(partial[ATTN_ROWS + i] >= 0.5f)))
            abort();
    free(tile);
    free(partial);
}

/* nomad: any finite book; any bytes as a block are attended over and expanded without harm, sealed ones to finite numbers. */
static void nomad(uint32_t head_dim, const uint8_t *data, size_t bytes)
{
    struct attn_shape shape = { .head_dim = head_dim, .codec = KV_NOMAD, .scale = 0.125f };
    const size_t open = (size_t)KV_BLOCK * head_dim * 2, n_numbers = (size_t)head_dim * NOMAD_NUMBERS,
                 half = kv_part_bytes_nomad(&shape);
    float *numbers = calloc(n_numbers, sizeof *numbers),
          *book = (float *)(void *)filled(kv_calibrated_nomad.book_bytes(&shape), NULL, 0);
    const struct kv_book books[2] = { { book, false, NULL }, { NULL, true, NULL } };
    uint8_t *part = filled(2 * half, data, bytes);
    uint8_t *k = filled(open, data, bytes), *v = filled(open, data + bytes / 2, bytes - bytes / 2);
    for (size_t i = 0; i < n_numbers; i++)
        numbers[i] = (float)(int8_t)data[i * 5 % bytes];
    kv_nomad_book_of(numbers, head_dim, book);
    shape.books = books;
    const bool sealed = data[0] & 1 && kv_seal_nomad(&shape, k, v, part, part + half);
    for (uint32_t i = 0; i < n_coded_impls; i++) {
        if ((coded_impls[i].needs & ~cpu_caps()) || !coded_impls[i].accepts(&shape))
            continue;
        attend(&shape, &coded_impls[i], data, bytes, part, part + half, sealed);
        for (size_t values = 0; values < 2; values++) {
            struct attn_shape one = shape;
            one.books += values;
            expand(&one, &coded_impls[i], part + values * half, sealed);
        }
    }
    free(numbers);
    free(book);
    free(part);
    free(k);
    free(v);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const uint32_t dims[] = { 16, 64, 80, 128 };
    static const enum kv_codec codecs[] = { KV_INT8,  KV_INT4_ROT,      KV_FP8,   KV_KIVI4,
                                            KV_KIVI2, KV_BF16_LOSSLESS, KV_CQ_2B, KV_CQ_1B };
    if (bytes < 2)
        return 0;
    cpu_thread_init();
    struct attn_shape shape = { dims[data[0] % 4], codecs[data[0] >> 2 & 7], 0.125f, NULL };
    if ((data[0] & 0x60) == 0x60) {
        nomad(dims[data[0] % 4], data + 1, bytes - 1);
        return 0;
    }
    const bool seals = data[0] & 0x80, calibrated = kv_codecs[shape.codec].calibrated != NULL;
    if (calibrated) /* distances to all centroids are slow */
        shape.head_dim = data[0] & 1 ? 32 : 16;
    const struct attn_impl *c = attn_find(&shape, 0);
    if (!c) /* not for heads of so many channels */
        return 0;
    data++;
    bytes--;
    static struct learned learned;
    if (calibrated) {
        learn(&shape, data, bytes, &learned);
        shape.books = learned.books;
    }
    struct attn_shape values = shape;
    values.books = calibrated ? learned.books + 1 : NULL;
    uint8_t *k_part = filled(c->part_bytes(&shape), data, bytes),
            *v_part = filled(c->part_bytes(&shape), data + 1, bytes - 1);
    /* any code has a centroid, which is finite */
    const bool sealed = (seals && seal_any(&shape, data, bytes, k_part, v_part)) || calibrated;
    for (uint32_t i = 0; i < n_coded_impls; i++)
        if (!(coded_impls[i].needs & ~cpu_caps()) && coded_impls[i].accepts(&shape) && coded_impls[i].expand) {
            expand(&shape, &coded_impls[i], k_part, sealed);
            expand(&values, &coded_impls[i], v_part, sealed);
        } else if (!(coded_impls[i].needs & ~cpu_caps()) && coded_impls[i].accepts(&shape))
            attend(&shape, &coded_impls[i], data, bytes, k_part, v_part, sealed);
    free(k_part);
    free(v_part);
    for (int part = 0; calibrated && part < 2; part++)
        free((void *)learned.books[part].data);
    return 0;
}
