#include "model/model.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "model/source.h"

static const struct model_source *const sources[] = { &model_source_random, &model_source_copy, &model_source_pack,
                                                      &model_source_gguf, &model_source_hf };

static enum status refuse_spec(const char *spec, struct error *err)
{
    if (file_is_dir(spec))
        return error_set(err, ST_NOT_FOUND,
                         "%s: neither a GGUF file nor a config.json nor a pack.json in this directory", spec);
    return error_set(err, ST_NOT_FOUND,
                     "%s: no such file, and no kind of model that is known (random:..., constructed:copy)", spec);
}

enum status model_open(const char *spec, struct model **model_out, struct error *err)
{
    for (size_t i = 0; i < sizeof sources / sizeof *sources; i++) {
        if (!sources[i]->takes(spec))
            continue;
        struct model *m = model_new(sources[i]);
        if (!m)
            return error_set(err, ST_NO_MEMORY, "%s: out of memory", spec);
        const enum status st = m->source->open(m, spec, err);
        if (st) {
            model_close(m);
            return st;
        }
        model_drop_pages(m);
        *model_out = m;
        return ST_OK;
    }
    return refuse_spec(spec, err);
}

const struct model_config *model_config(const struct model *m)
{
    return &m->config;
}

const struct model_vocab *model_vocab(const struct model *m)
{
    return &m->vocab;
}

struct digest model_digest(const struct model *m)
{
    return m->digest;
}

uint64_t model_weight_bytes(const struct model *m)
{
    return m->weight_bytes;
}

enum status model_tensor_check(const struct model_tensor *t, struct error *err)
{
    if (!t->checksum)
        return ST_OK;
    const struct digest d = digest_of(t->stored, t->stored_bytes);
    if (memcmp(&d, t->checksum, sizeof d) == 0)
        return ST_OK;
    return error_set(err, ST_CORRUPT, "%s: tensor %s of layer %u: its checksum does not fit its %llu bytes",
                     t->model->config.name, model_kind_name(t->kind), t->layer, (unsigned long long)t->stored_bytes);
}

void model_drop_pages(const struct model *m)
{
    for (uint32_t i = 0; i < m->n_maps; i++)
        if (m->maps[i].data)
            madvise((void *)(uintptr_t)m->maps[i].data, m->maps[i].bytes, MADV_DONTNEED);
}

enum status model_tensor(const struct model *m, enum model_tensor_kind kind, uint32_t layer,
                         struct model_tensor *tensor_out)
{
    if ((unsigned)kind >= MODEL_TENSOR_KINDS || layer >= (model_kind_layered(kind) ? m->config.n_layers : 1))
        return ST_NOT_FOUND;
    const struct model_tensor *t = &m->tensors[model_slot(kind, layer)];
    if (!t->n_rows)
        return ST_NOT_FOUND;
    *tensor_out = *t;
    return ST_OK;
}

/* Files of architecture llama hold pair i of a head in rows 2i and 2i + 1; we use rows i and i + D/2. */
static uint32_t stored_row(uint32_t row, uint32_t dim)
{
    const uint32_t i = row % dim;
    return row - i + (i < dim / 2 ? 2 * i : 2 * (i - dim / 2) + 1);
}

const void *model_tensor_row(const struct model_tensor *t, uint32_t row, void *scratch)
{
    if (!t->data)
        return t->model->source->row(t, row, scratch);
    if (t->interleaved_dim)
        row = stored_row(row, t->interleaved_dim);
    const uint8_t *p = (const uint8_t *)t->data + (size_t)row * t->row_bytes;
    /* safetensors puts data at any address; readers of plain arrays want whole elements */
    const size_t align = t->codec == WEIGHT_F32 ? 4 : 2;
    if ((uintptr_t)p % align)
        return memcpy(scratch, p, t->row_bytes);
    return p;
}

void model_close(struct model *m)
{
    if (!m)
        return;
    for (uint32_t i = 0; i < m->n_maps; i++)
        file_map_close(&m->maps[i]);
    free(m->maps);
    model_chunks_free(m);
    free(m);
}
