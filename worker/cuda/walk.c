/* Sketch-walk: query means, rows of weights, lists by block. Weights and lists are kept with the sketch that they are made with. */
#include <stdlib.h>

#include "worker/cuda/gpu.h"

static const struct select *select_of(const struct backend *b)
{
    return b->input->select;
}

static uint32_t sparse_index(const struct backend *b, uint32_t layer)
{
    return layer - select_of(b)->store.spec.dense_layers;
}

static uint32_t last_block(const struct attend_job *job)
{
    return (job->pos + job->n_rows - 1) / KV_BLOCK;
}

static bool weights_take(struct backend *b, struct sketch *sketch, uint32_t block)
{
    struct gpu_places *p = &b->weights_places[block / CUDA_WALK_STEP];
    if (sketch->weights_ready || (sketch->device_weights && sketch->weights_step == b->select_step))
        return true;
    if (!sketch->device_weights) {
        sketch->weights_room = cuda_walk_room(block);
        p->bytes = (size_t)select_of(b)->store.n_layers * sketch->weights_room * 2;
        sketch->device_weights = gpu_place_take(p);
    }
    if (!sketch->device_weights || !gpu_pointers_grow(&b->weighed, &b->weighed_room, b->n_weighed + 1))
        return false;
    sketch->weights_step = b->select_step;
    b->weighed[b->n_weighed++] = sketch;
    return true;
}

/* The sketch whose walk makes list i of a job; NULL: all is read. */
static struct sketch *list_sketch(const struct select_job *job, uint32_t i)
{
    const uint32_t own = job->own + i;
    return selector_reads_all(own, job->density) ? NULL : job->seq->sketches[own - 1];
}

static bool list_kept(const struct select_job *job, uint32_t i)
{
    const struct sketch *sketch = list_sketch(job, i);
    return sketch && sketch->lists_density == job->density;
}

/* The step makes it for later ones: a sketch keeps lists of one density, the first that is asked for. */
static bool list_claimed(const struct backend *b, const struct sketch *sketch, uint32_t density)
{
    return sketch && !sketch->lists_density && sketch->lists_step == b->select_step && sketch->lists_claim == density;
}

static bool list_claim(struct backend *b, const struct select_job *job, uint32_t i)
{
    struct sketch *sketch = list_sketch(job, i);
    if (!sketch || sketch->lists_density || sketch->lists_step == b->select_step)
        return true;
    if (!sketch->device_lists)
        sketch->device_lists = gpu_place_take(&b->lists_places);
    if (!sketch->device_lists || !gpu_pointers_grow(&b->listed, &b->listed_room, b->n_listed + 1))
        return false;
    sketch->lists_step = b->select_step;
    sketch->lists_claim = job->density;
    b->listed[b->n_listed++] = sketch;
    return true;
}

enum status gpu_walk_begin(struct backend *b)
{
    const struct select *s = select_of(b);
    const struct attend *a = b->input->attend;
    uint32_t n = 0;
    b->n_weighed = b->n_listed = 0;
    b->lists_places.bytes = (size_t)s->store.n_layers * (CUDA_WALK_BLOCKS / 64) * sizeof(uint64_t);
    b->means_places.bytes = cuda_walk_means_floats(s->store.n_layers, b->config->head_dim) * sizeof(float);
    for (uint32_t r = 0; r < s->n_rows; r++) {
        struct sketch *sketch = s->rows[r];
        if (!sketch->device_means)
            sketch->device_means = gpu_place_take(&b->means_places);
        if (!sketch->device_means)
            return ST_NO_MEMORY;
    }
    for (uint32_t j = 0; j < a->n_local; j++) {
        const struct select_job *job = &s->jobs[j];
        uint32_t end = 0; /* weights that its walks go over */
        for (uint32_t i = 0; job->density && i < job->n_lists; i++) {
            if (list_kept(job, i))
                continue;
            if (!list_claim(b, job, i))
                return ST_NO_MEMORY;
            end = job->own + i;
            n++;
        }
        for (uint32_t c = 0; c < end; c++)
            if (!weights_take(b, job->seq->sketches[c], c))
                return ST_NO_MEMORY;
    }
    return n ? gpu_reserve(b, &b->scores, (size_t)3 * n * b->own_max * sizeof(float), false) : ST_OK;
}

bool gpu_walk_push(struct backend *b)
{
    const struct select *s = select_of(b);
    struct cuda_walk_row *rows = gpu_list_push(&b->list[SECTION_MEANS], s->n_rows * sizeof *rows);
    struct cuda_walk_sketch *makes = gpu_list_push(&b->list[SECTION_MAKES], s->n_seals * sizeof *makes);
    for (uint32_t r = 0; rows && r < s->n_rows; r++)
        rows[r] = (struct cuda_walk_row){ s->rows[r]->device_means, b->input->rows[r].pos % KV_BLOCK, 0 };
    for (uint32_t i = 0; makes && i < s->n_seals; i++) {
        const struct step_seal *seal = &b->input->seals[i];
        makes[i] = (struct cuda_walk_sketch){ .from = seal->open == STEP_IN_PLACE ? seal->slot : seal->open,
                                              .means = s->seals[i]->device_means,
                                              .to = s->seals[i]->device };
    }
    return rows && makes;
}

/* Rows of weights that this step makes, of sketches that this job is the first to name. */
static bool push_weighed(struct backend *b, const struct select_seq *q, uint32_t n, uint32_t sketches)
{
    for (uint32_t c = 0; c < n; c++) {
        struct sketch *sketch = q->sketches[c];
        if (sketch->weights_ready || sketch->weights_step != b->select_step)
            continue;
        struct cuda_walk_weights *w = gpu_list_push(&b->list[SECTION_WEIGHED], sizeof *w);
        if (!w)
            return false;
        *w = (struct cuda_walk_weights){ c, sketches, sketch->device_weights };
        sketch->weights_step = 0; /* of no step: it is in the list */
    }
    return true;
}

bool gpu_walk_push_job(struct backend *b, uint32_t j, uint32_t sketches)
{
    const struct select_job *sparse = &select_of(b)->jobs[j];
    const uint32_t n = last_block(&b->input->attend->jobs[j]);
    struct gpu_list *list = &b->list[SECTION_WEIGHTS];
    for (uint32_t c = (uint32_t)(list->bytes / sizeof(void *)) - sketches; c < n; c++) {
        void **at = gpu_list_push(list, sizeof *at);
        if (!at)
            return false;
        *at = sparse->seq->sketches[c]->device_weights;
    }
    for (uint32_t i = 0; i < sparse->n_lists; i++) {
        const uint32_t own = sparse->own + i, at = (uint32_t)(sparse->at + (size_t)i * sparse->words);
        const bool kept = list_kept(sparse, i);
        struct sketch *sketch = list_sketch(sparse, i);
        const bool keeps = kept || list_claimed(b, sketch, sparse->density);
        struct cuda_walk_kept *keep = keeps ? gpu_list_push(&b->list[SECTION_KEPT], sizeof *keep) : NULL;
        struct cuda_quest_job *out = kept ? NULL : gpu_list_push(&b->list[SECTION_CHOICES], sizeof *out);
        if ((keeps && !keep) || (!kept && !out))
            return false;
        if (keep)
            *keep = (struct cuda_walk_kept){ sketch->device_lists, at, sparse->words, selector_words(own), !kept };
        if (out)
            *out = (struct cuda_quest_job){ .own = own,
                                            .budget = selector_budget(own, sparse->density),
                                            .sketches = sketches,
                                            .list = at,
                                            .words = sparse->words };
    }
    return push_weighed(b, sparse->seq, n, sketches);
}

int gpu_walk_sketch(struct backend *b, uint32_t layer)
{
    const struct select *s = select_of(b);
    const struct cuda_kv kv = gpu_open_kv(b);
    const uint32_t at = sparse_index(b, layer);
    const int e = cuda_walk_means(&kv, at, b->queries.data, gpu_at(b, SECTION_MEANS), s->n_rows, b->stream);
    return e ? e
             : cuda_walk_sketch(&kv, layer, s->store.layer_bytes, at, gpu_at(b, SECTION_MAKES), s->n_seals, b->stream);
}

int gpu_walk_select(struct backend *b, uint32_t layer)
{
    const struct select *s = select_of(b);
    const struct cuda_kv kv = gpu_kv(b);
    const uint32_t at = sparse_index(b, layer),
                   n = (uint32_t)(b->list[SECTION_CHOICES].bytes / sizeof(struct cuda_quest_job)),
                   n_weighed = (uint32_t)(b->list[SECTION_WEIGHED].bytes / sizeof(struct cuda_walk_weights));
    const struct cuda_walk w = { .choose = { .jobs = gpu_at(b, SECTION_CHOICES),
                                             .n_jobs = n,
                                             .own_max = b->own_max,
                                             .sketches = gpu_at(b, SECTION_SKETCHES),
                                             .layer_bytes = s->store.layer_bytes,
                                             .scores = b->scores.data,
                                             .lists = b->lists.data,
                                             .leaf_blocks = s->store.spec.by_slot ? s->leaf_blocks : 0 },
                                 .weights = gpu_at(b, SECTION_WEIGHTS),
                                 .walk = (float *)b->scores.data + (size_t)n * b->own_max };
    int e = cuda_walk_weights(&kv, w.choose.sketches, s->store.layer_bytes, at, gpu_at(b, SECTION_WEIGHED), n_weighed,
                              b->stream);
    if (!e)
        e = cuda_walk_run(&kv, at, &w, b->stream);
    return e ? e
             : cuda_walk_keep(at, b->lists.data, gpu_at(b, SECTION_KEPT),
                              (uint32_t)(b->list[SECTION_KEPT].bytes / sizeof(struct cuda_walk_kept)), b->stream);
}

void gpu_walk_end(struct backend *b)
{
    for (uint32_t i = 0; i < b->n_weighed; i++)
        b->weighed[i]->weights_ready = true;
    for (uint32_t i = 0; i < b->n_listed; i++)
        b->listed[i]->lists_density = b->listed[i]->lists_claim;
}
