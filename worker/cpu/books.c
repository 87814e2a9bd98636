/* Codecs with a calibration: each part's book, made at start-up, and the angles that keys are turned by. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/calibration.h"
#include "worker/cpu/cpu.h"

/* Angles of so many blocks are kept, 2^21 positions; of later ones they are computed when they are asked for. */
enum { BLOCKS_MAX = 1 << 15 };

/* cos, sin [head_dim / 2] of a block's first position. */
static void first_angles(const struct backend *b, uint32_t block, float *cos_out, float *sin_out)
{
    for (uint32_t i = 0; i < b->config->head_dim / 2; i++) {
        const double angle = (double)block * KV_BLOCK * b->config->inv_freq[i];
        cos_out[i] = (float)cos(angle);
        sin_out[i] = (float)sin(angle);
    }
}

static bool angles_make(struct backend *b)
{
    const uint32_t half = b->config->head_dim / 2, n = b->config->positions_max / KV_BLOCK + 1;
    struct cpu_books *to = &b->books;
    to->n_blocks = n < BLOCKS_MAX ? n : BLOCKS_MAX;
    to->step = cpu_alloc(2 * (size_t)half * KV_BLOCK * sizeof(float));
    to->first = cpu_alloc((size_t)to->n_blocks * 2 * half * sizeof(float));
    if (!to->step || !to->first)
        return false;
    for (uint32_t i = 0; i < half; i++)
        for (uint32_t j = 0; j < KV_BLOCK; j++) {
            const double angle = j * b->config->inv_freq[i];
            to->step[i * KV_BLOCK + j] = (float)(cos(angle) * b->config->rope_scale);
            to->step[(half + i) * KV_BLOCK + j] = (float)(sin(angle) * b->config->rope_scale);
        }
    for (uint32_t block = 0; block < to->n_blocks; block++)
        first_angles(b, block, to->first + (size_t)block * 2 * half, to->first + ((size_t)block * 2 + 1) * half);
    return true;
}

static enum status refuse_other(const struct backend *b, const struct calibration *calibration, struct error *err)
{
    const char *codec = kv_codecs[b->codec].name;
    const struct calibration_origin *o = calibration_origin(calibration);
    const struct digest model = model_digest(b->model);
    char digest[33];
    digest_text(&model, digest);
    if (strcmp(o->codec, codec) != 0)
        return error_set(err, ST_INVALID, "kv-codec %s: the calibration is one of %s", codec, o->codec);
    if (strcmp(o->model, digest) != 0)
        return error_set(err, ST_INVALID, "kv-codec %s: the calibration is of model %s, this one is %s", codec,
                         o->model, digest);
    return kv_codecs[b->codec].calibrated->check(&b->coded_shape, b->config->n_layers, b->config->n_kv_heads,
                                                 calibration, err);
}

enum status cpu_books_open(struct backend *b, const struct calibration *calibration, struct error *err)
{
    const struct kv_calibrated *of = kv_codecs[b->codec].calibrated;
    const uint32_t n = b->config->n_layers * b->config->n_kv_heads * 2;
    struct cpu_books *to = &b->books;
    if (!of)
        return ST_OK;
    if (!calibration)
        return error_set(err, ST_INVALID,
                         "kv-codec %s needs a calibration of this model: make it by  longspan calibrate --kv-codec %s",
                         kv_codecs[b->codec].name, kv_codecs[b->codec].name);
    const enum status st = refuse_other(b, calibration, err);
    if (st)
        return st;
    to->bytes = of->book_bytes(&b->coded_shape);
    to->data = cpu_alloc(n * to->bytes);
    if (!to->data || !angles_make(b))
        return error_set(err, ST_NO_MEMORY, "no memory for %u codebooks of %zu bytes", n, to->bytes);
    for (uint32_t i = 0; i < n; i++)
        of->book(&b->coded_shape, calibration, i / 2 / b->config->n_kv_heads, i / 2 % b->config->n_kv_heads, i % 2,
                 to->data + i * to->bytes);
    to->digest = *calibration_digest(calibration);
    return ST_OK;
}

void cpu_books_free(struct backend *b)
{
    free(b->books.data);
    free(b->books.first);
    free(b->books.step);
}

const struct kv_book *cpu_book_of(const struct backend *b, const struct cpu_part_id *id, struct cpu_book *book)
{
    const struct cpu_books *from = &b->books;
    const uint32_t half = b->config->head_dim / 2;
    if (!from->data)
        return NULL;
    const uint8_t *data = from->data + ((size_t)id->layer * b->config->n_kv_heads + id->head) * 2 * from->bytes;
    const bool kept = id->block < from->n_blocks;
    if (!kept)
        first_angles(b, id->block, book->first[0], book->first[1]);
    for (uint32_t i = 0; i < 2; i++) {
        book->angles.first[i] = kept ? from->first + ((size_t)id->block * 2 + i) * half : book->first[i];
        book->angles.step[i] = from->step + (size_t)i * half * KV_BLOCK;
        book->of[i] = (struct kv_book){ data + i * from->bytes, i == 1, &book->angles };
    }
    book->angles.unscale = (float)(1 / (b->config->rope_scale * b->config->rope_scale));
    return book->of;
}
