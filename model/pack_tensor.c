#include <stdlib.h>
#include <string.h>

#include "model/df11.h"
#include "model/pack_writer.h"

/* One tensor on its way: what it will be, and memory for a group of rows. */
struct job {
    struct model_tensor t;
    enum weight_codec codec;
    uint32_t class_bits;
    float *wide;      /* [n_cols] */
    uint8_t *stored;  /* [LOSSLESS_OUTS] stored rows */
    uint16_t *halves; /* [LOSSLESS_OUTS][n_cols] */
    uint64_t offset, n_escapes;
    struct df11_code *df11; /* of df11 */
    uint64_t stream_bytes;  /* likewise */
};

static uint16_t to_bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if ((u & 0x7FFFFFFF) > 0x7F800000) /* a NaN stays one */
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

static const uint16_t *row_bf16(const struct job *j, uint32_t row, uint32_t slot)
{
    const struct model_tensor *t = &j->t;
    uint16_t *out = j->halves + (size_t)slot * t->n_cols;
    const void *stored = model_tensor_row(t, row, j->stored + (size_t)slot * ((t->row_bytes + 63) / 64 * 64));
    if (t->codec == WEIGHT_BF16 || t->codec == WEIGHT_LOSSLESS_FAST || t->codec == WEIGHT_DF11)
        return stored;
    weight_row_f32(t->codec, stored, t->n_cols, j->wide);
    for (uint32_t k = 0; k < t->n_cols; k++)
        out[k] = to_bf16(j->wide[k]);
    return out;
}

static enum status moved_on(struct pack *p, uint64_t weights)
{
    p->done += weights;
    if (p->options->stop && p->options->stop(p->options->ctx))
        return error_set(p->err, ST_CANCELLED, "%s: stopped; the same command goes on from there", p->partial);
    if (p->options->progress && p->total)
        p->options->progress(p->options->ctx, (float)((double)p->done / (double)p->total));
    return ST_OK;
}

static void group_rows(const struct job *j, uint32_t group, const uint16_t *rows[LOSSLESS_OUTS])
{
    for (uint32_t i = 0; i < LOSSLESS_OUTS; i++) {
        const uint32_t row = group * LOSSLESS_OUTS + i;
        rows[i] = row < j->t.n_rows ? row_bf16(j, row, i) : NULL;
    }
}

/* Counts, and decides between 3 bits, 4 bits and bf16. */
static enum status choose_lossless(struct pack *p, struct job *j)
{
    uint64_t escapes[2] = { 0 };
    for (uint32_t g = 0; g < lossless_groups(j->t.n_rows); g++) {
        const uint16_t *rows[LOSSLESS_OUTS];
        group_rows(j, g, rows);
        for (uint32_t k = 0; k < 2; k++)
            escapes[k] += lossless_count(rows, j->t.n_cols, 3 + k);
        const enum status st = moved_on(p, 0);
        if (st)
            return st;
    }
    j->class_bits = lossless_choose((uint64_t)j->t.n_rows * j->t.n_cols, escapes[0], escapes[1]);
    j->n_escapes = j->class_bits ? escapes[j->class_bits - 3] : 0;
    j->codec = j->class_bits ? WEIGHT_LOSSLESS_FAST : WEIGHT_BF16;
    return ST_OK;
}

static enum status write_lossless(struct pack *p, struct job *j)
{
    const uint32_t n_groups = lossless_groups(j->t.n_rows), n_blocks = lossless_blocks(j->t.n_cols);
    const size_t planes_bytes = n_blocks * lossless_block_bytes(j->class_bits);
    struct pack_parts parts;
    if (!pack_parts(j->t.n_rows, j->t.n_cols, j->class_bits, j->n_escapes, &parts))
        return pack_no_memory(p);
    uint8_t *planes = malloc(planes_bytes), *escapes = malloc(j->n_escapes + 1);
    uint32_t *records = calloc((size_t)n_groups * n_blocks, sizeof *records);
    uint64_t *starts = calloc((size_t)n_groups + 1, sizeof *starts);
    enum status st = planes && escapes && records && starts ? ST_OK : pack_no_memory(p);
    for (uint32_t g = 0; g < n_groups && !st; g++) {
        const uint16_t *rows[LOSSLESS_OUTS];
        group_rows(j, g, rows);
        starts[g + 1] = starts[g] + lossless_encode(rows, j->t.n_cols, j->class_bits, planes,
                                                    records + (size_t)g * n_blocks, escapes + starts[g]);
        st = pack_put(p, planes, planes_bytes);
        if (!st)
            st = moved_on(p, (uint64_t)LOSSLESS_OUTS * j->t.n_cols);
    }
    if (!st && !(st = pack_put(p, records, (size_t)n_groups * n_blocks * sizeof *records)) &&
        !(st = pack_put_to(p, j->offset + parts.starts)) &&
        !(st = pack_put(p, starts, ((size_t)n_groups + 1) * sizeof *starts)) &&
        !(st = pack_put_to(p, j->offset + parts.escapes)))
        st = pack_put(p, escapes, j->n_escapes);
    free(planes);
    free(escapes);
    free(records);
    free(starts);
    return st;
}

/* Learns the code, and decides between it and bf16. */
static enum status choose_df11(struct pack *p, struct job *j)
{
    const uint32_t n_groups = df11_groups(j->t.n_rows);
    uint64_t counts[256] = { 0 }, bytes = 0;
    struct pack_df11_parts parts;
    enum status st = ST_OK;
    const uint16_t *rows[LOSSLESS_OUTS];
    for (uint32_t g = 0; g < n_groups && !st; g++) {
        group_rows(j, g, rows);
        for (uint32_t i = 0; i < DF11_OUTS && rows[i]; i++)
            df11_count(rows[i], j->t.n_cols, counts);
        st = moved_on(p, 0);
    }
    if (st || !(j->df11 = malloc(sizeof *j->df11)) || !df11_code_best(counts, j->df11))
        return st ? st : pack_no_memory(p);
    for (uint32_t g = 0; g < n_groups && !st; g++) {
        group_rows(j, g, rows);
        bytes += df11_stream_bytes(j->df11, rows, j->t.n_cols);
        st = moved_on(p, 0);
    }
    j->stream_bytes = bytes;
    const bool fits = pack_df11_parts(j->t.n_rows, j->t.n_cols, bytes, &parts);
    j->codec = fits && parts.bytes < (uint64_t)j->t.n_rows * j->t.n_cols * 2 ? WEIGHT_DF11 : WEIGHT_BF16;
    return st;
}

/* starts, offsets: of all groups; stream [j->stream_bytes] */
static enum status write_df11_groups(struct pack *p, struct job *j, uint8_t *signs, uint32_t *offsets, uint64_t *starts,
                                     uint8_t *stream)
{
    const uint32_t n_tiles = df11_tiles(j->t.n_cols);
    const size_t signs_bytes = (size_t)df11_blocks(j->t.n_cols) * DF11_WEIGHTS;
    enum status st = pack_put(p, j->df11->length, sizeof j->df11->length);
    for (uint32_t g = 0; g < df11_groups(j->t.n_rows) && !st; g++) {
        const uint16_t *rows[LOSSLESS_OUTS];
        group_rows(j, g, rows);
        starts[g + 1] = starts[g] + df11_encode(j->df11, rows, j->t.n_cols, signs, offsets + (size_t)g * n_tiles,
                                                stream + starts[g]);
        st = pack_put(p, signs, signs_bytes);
        if (!st)
            st = moved_on(p, (uint64_t)DF11_OUTS * j->t.n_cols);
    }
    return st;
}

static enum status write_df11(struct pack *p, struct job *j)
{
    const uint32_t n_groups = df11_groups(j->t.n_rows), n_tiles = df11_tiles(j->t.n_cols);
    struct pack_df11_parts parts;
    if (!pack_df11_parts(j->t.n_rows, j->t.n_cols, j->stream_bytes, &parts))
        return pack_no_memory(p);
    uint8_t *signs = malloc((size_t)df11_blocks(j->t.n_cols) * DF11_WEIGHTS), *stream = malloc(j->stream_bytes + 1);
    uint32_t *offsets = calloc((size_t)n_groups * n_tiles, sizeof *offsets);
    uint64_t *starts = calloc((size_t)n_groups + 1, sizeof *starts);
    enum status st = signs && stream && offsets && starts ? ST_OK : pack_no_memory(p);
    if (!st && !(st = write_df11_groups(p, j, signs, offsets, starts, stream)) &&
        !(st = pack_put(p, offsets, (size_t)n_groups * n_tiles * sizeof *offsets)) &&
        !(st = pack_put_to(p, j->offset + parts.starts)) &&
        !(st = pack_put(p, starts, ((size_t)n_groups + 1) * sizeof *starts)) &&
        !(st = pack_put_to(p, j->offset + parts.stream)))
        st = pack_put(p, stream, j->stream_bytes);
    free(signs);
    free(stream);
    free(offsets);
    free(starts);
    return st;
}

static enum status write_rows(struct pack *p, struct job *j)
{
    enum status st = ST_OK;
    for (uint32_t r = 0; r < j->t.n_rows && !st; r++) {
        if (j->codec == j->t.codec)
            st = pack_put(p, model_tensor_row(&j->t, r, j->stored), j->t.row_bytes);
        else
            st = pack_put(p, row_bf16(j, r, 0), 2 * (size_t)j->t.n_cols);
        if (!st)
            st = moved_on(p, j->t.n_cols);
    }
    return st;
}

static enum status enter(struct pack *p, const struct job *j, const struct digest *checksum)
{
    char text[33];
    digest_text(checksum, text);
    json_t *o = json_pack("{s:s, s:I, s:s, s:I, s:I, s:I, s:I, s:s}", "kind", model_kind_name(j->t.kind), "layer",
                          (json_int_t)j->t.layer, "codec", weight_codec_name(j->codec), "rows", (json_int_t)j->t.n_rows,
                          "cols", (json_int_t)j->t.n_cols, "offset", (json_int_t)j->offset, "bytes",
                          (json_int_t)(p->at - j->offset), "checksum", text);
    if (o && j->codec == WEIGHT_LOSSLESS_FAST) {
        json_object_set_new(o, "layout", json_integer(LOSSLESS_LAYOUT_CPU));
        json_object_set_new(o, "class_bits", json_integer(j->class_bits));
        json_object_set_new(o, "escapes", json_integer((json_int_t)j->n_escapes));
    }
    if (o && j->codec == WEIGHT_DF11)
        json_object_set_new(o, "stream", json_integer((json_int_t)j->stream_bytes));
    return !o || json_array_append_new(p->tensors, o) ? pack_no_memory(p) : ST_OK;
}

static enum status write_quantized(struct pack *p, struct job *j)
{
    const struct pack_options *o = p->options;
    const uint8_t *rows;
    enum status st = o->quantize(o->quantize_ctx, &j->t, j->codec, &rows, p->err);
    if (!st)
        st = pack_put(p, rows, j->t.n_rows * weight_row_bytes(j->codec, j->t.n_cols));
    return st ? st : moved_on(p, (uint64_t)j->t.n_rows * j->t.n_cols);
}

/* What the matrix will be, where that depends on its weights. */
static enum status choose(struct pack *p, struct job *j)
{
    const enum pack_weights weights = p->options->weights;
    if (j->t.n_rows == 1)
        return ST_OK;
    if (pack_weights_calibrated(weights) && model_kind_layered(j->t.kind))
        j->codec = (enum weight_codec)(WEIGHT_LEANQUANT_4 + (weights - PACK_LEANQUANT_4));
    if (weights == PACK_LOSSLESS_FAST || (weights == PACK_AS_IS && j->t.codec == WEIGHT_LOSSLESS_FAST))
        return choose_lossless(p, j);
    if (weights == PACK_DF11 || (weights == PACK_AS_IS && j->t.codec == WEIGHT_DF11))
        return choose_df11(p, j);
    return ST_OK;
}

static enum status write_parts(struct pack *p, struct job *j)
{
    if (pack_weights_calibrated(p->options->weights) && weight_grid_bits(j->codec))
        return write_quantized(p, j);
    return j->codec == WEIGHT_LOSSLESS_FAST ? write_lossless(p, j)
           : j->codec == WEIGHT_DF11        ? write_df11(p, j)
                                            : write_rows(p, j);
}

enum status pack_write_tensor(struct pack *p, const struct model_tensor *t)
{
    const bool keep = t->n_rows == 1 || p->options->weights == PACK_AS_IS;
    struct job j = { .t = *t, .codec = keep ? t->codec : WEIGHT_BF16 };
    const size_t row_room = (t->row_bytes + 63) / 64 * 64;
    enum status st;
    j.wide = malloc(t->n_cols * sizeof *j.wide);
    j.stored = aligned_alloc(64, LOSSLESS_OUTS * row_room);
    j.halves = malloc(LOSSLESS_OUTS * (size_t)t->n_cols * sizeof *j.halves);
    st = j.wide && j.stored && j.halves ? model_tensor_check(t, p->err) : pack_no_memory(p);
    if (!st)
        st = choose(p, &j);
    if (!st)
        st = pack_put_to(p, (p->at + PACK_ALIGN - 1) / PACK_ALIGN * PACK_ALIGN);
    j.offset = p->at;
    p->hasher = hasher_new();
    if (!st)
        st = write_parts(p, &j);
    const struct digest checksum = hasher_end(p->hasher);
    p->hasher = NULL;
    if (!st)
        st = enter(p, &j, &checksum);
    free(j.wide);
    free(j.stored);
    free(j.halves);
    free(j.df11);
    return st;
}
