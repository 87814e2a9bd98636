/* Weights of lossless-fast on the GPU: coded for it as they are loaded; few rows' products read them so, those of many rows expand them first. */
#include "kernels/cuda/lossless.h"

#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "worker/cpu/lossless.h"
#include "worker/cuda/gpu.h"

/* What one member's tiles list. */
struct escapes {
    uint32_t *v;
    size_t n, room;
    uint32_t before; /* of the members before it */
    bool full;       /* there was no memory */
};

struct lossless_job {
    const struct model_tensor *tensor;
    struct cpu_lossless *check; /* NULL: rows come from no coded groups */
    struct linear_shape checked;
    uint8_t *tiles, *scratch; /* scratch [n_members][64] rows */
    size_t row_room, tile_bytes;
    uint32_t n_tiles; /* rows of tiles */
    struct escapes *lists;
};

static bool escapes_reserve(struct escapes *e, size_t more)
{
    if (e->n + more <= e->room)
        return true;
    const size_t room = 2 * e->n + more;
    uint32_t *v = realloc(e->v, room * sizeof *v);
    if (!v) {
        e->full = true;
        return false;
    }
    e->v = v;
    e->room = room;
    return true;
}

/* Groups of a pack are checked before their rows are trusted. */
static void check_groups(struct lossless_job *job, uint32_t tile)
{
    const uint32_t n = lossless_groups(job->tensor->n_rows), each = CUDA_TILE / LOSSLESS_OUTS;
    for (uint32_t g = tile * each; job->check && g < (tile + 1) * each && g < n; g++)
        (void)cpu_lossless_pack(job->check, &job->checked, g, NULL);
}

static void pack_tiles(void *ctx, uint32_t member, uint32_t n_members)
{
    struct lossless_job *job = ctx;
    struct escapes *e = &job->lists[member];
    uint32_t begin, end;
    team_share(job->n_tiles, member, n_members, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        const uint16_t *rows[CUDA_TILE];
        if (!escapes_reserve(e, (size_t)CUDA_TILE * job->tensor->n_cols))
            return;
        check_groups(job, t);
        gpu_tile_rows(job->tensor, t, job->scratch + (size_t)member * CUDA_TILE * job->row_room, job->row_room, rows);
        e->n += cuda_pack_lossless(rows, job->tensor->n_cols, (uint32_t)e->n, job->tiles + t * job->tile_bytes,
                                   e->v + e->n);
    }
}

/* Members counted their escapes from 0: now it is known what stands before them. */
static void shift_lists(void *ctx, uint32_t member, uint32_t n_members)
{
    struct lossless_job *job = ctx;
    uint32_t begin, end;
    team_share(job->n_tiles, member, n_members, &begin, &end);
    uint8_t *const last = job->tiles + end * job->tile_bytes;
    for (uint8_t *tile = job->tiles + begin * job->tile_bytes; tile < last; tile += CUDA_LOSSLESS_TILE)
        for (uint32_t warp = 0; warp < 4; warp++) {
            uint32_t record[2];
            uint8_t *at = tile + CUDA_LOSSLESS_TILE - 64 + warp * 16;
            memcpy(record, at, sizeof record);
            record[1] += record[0] >> 8 > CUDA_LOSSLESS_INLINE ? job->lists[member].before : 0;
            memcpy(at, record, sizeof record);
        }
}

/* -> escapes in all, or UINT64_MAX: no memory */
static uint64_t lists_join(struct backend *b, struct lossless_job *job)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < b->n_threads; i++) {
        if (job->lists[i].full)
            return UINT64_MAX;
        job->lists[i].before = (uint32_t)n;
        n += job->lists[i].n;
    }
    return n;
}

static enum status upload(struct backend *b, const struct lossless_job *job, uint64_t n_escapes, struct gpu_matrix *out,
                          struct error *err)
{
    const size_t tiles = job->n_tiles * job->tile_bytes;
    enum status st = gpu_weights_alloc(b, tiles + n_escapes * 4, &out->packed, err);
    if (st)
        return st;
    int e = (int)cudaMemcpy(out->packed, job->tiles, tiles, cudaMemcpyHostToDevice);
    uint8_t *list = (uint8_t *)out->packed + tiles;
    for (uint32_t i = 0; i < b->n_threads && !e; i++) {
        const struct escapes *from = &job->lists[i];
        if (from->n)
            e = (int)cudaMemcpy(list + (size_t)from->before * 4, from->v, from->n * 4, cudaMemcpyHostToDevice);
    }
    if (e)
        return error_set(err, ST_IO, "weights do not reach the GPU: %s", cudaGetErrorString((cudaError_t)e));
    out->lossless = true;
    return ST_OK;
}

static enum status load(struct backend *b, struct lossless_job *job, struct gpu_matrix *out, struct error *err)
{
    const struct model_tensor *t = job->tensor;
    struct cpu_lossless check;
    enum status st = ST_OK;
    if (t->lossless) {
        job->checked =
            (struct linear_shape){ .n_out = t->n_rows, .n_in = t->n_cols, .codec = t->codec, .x = DTYPE_BF16 };
        st = cpu_lossless_begin(b->team, b->n_threads, t, &job->checked, &check, err);
        if (st)
            return st;
        job->checked.codec = WEIGHT_BF16; /* of the CPU's form only the check is wanted */
        job->check = &check;
    }
    team_run(b->team, pack_tiles, job);
    const uint64_t n_escapes = lists_join(b, job);
    if (n_escapes == UINT64_MAX)
        return error_set(err, ST_NO_MEMORY, "no memory to load weights");
    if (job->check && (st = cpu_lossless_end(&check, err)))
        return st;
    if (n_escapes > UINT32_MAX ||
        job->n_tiles * job->tile_bytes + n_escapes * 4 >= cuda_packed_bytes(t->n_rows, t->n_cols))
        return ST_OK;
    team_run(b->team, shift_lists, job);
    return upload(b, job, n_escapes, out, err);
}

enum status gpu_lossless_load(struct backend *b, const struct model_tensor *t, struct gpu_matrix *out,
                              struct error *err)
{
    struct lossless_job job = { .tensor = t,
                                .row_room = (t->row_bytes + 63) / 64 * 64,
                                .tile_bytes = cuda_lossless_bytes(CUDA_TILE, t->n_cols),
                                .n_tiles = (t->n_rows + CUDA_TILE - 1) / CUDA_TILE };
    job.lists = calloc(b->n_threads, sizeof *job.lists);
    job.tiles = malloc(job.n_tiles * job.tile_bytes);
    if (posix_memalign((void **)&job.scratch, 64, b->n_threads * CUDA_TILE * job.row_room))
        job.scratch = NULL;
    const enum status st = job.lists && job.tiles && job.scratch
                               ? load(b, &job, out, err)
                               : error_set(err, ST_NO_MEMORY, "no memory to load weights");
    for (uint32_t i = 0; job.lists && i < b->n_threads; i++)
        free(job.lists[i].v);
    free(job.lists);
    free(job.tiles);
    free(job.scratch);
    return st;
}

/* ---- products ---- */

/* What the largest product of many rows expands. */
static size_t expanded_bytes(const struct backend *b)
{
    static const enum model_tensor_kind products[][3] = { { MODEL_ATTN_Q, MODEL_ATTN_K, MODEL_ATTN_V },
                                                          { MODEL_FFN_GATE, MODEL_FFN_UP, MODEL_TENSOR_KINDS },
                                                          { MODEL_ATTN_OUT, MODEL_TENSOR_KINDS, MODEL_TENSOR_KINDS },
                                                          { MODEL_FFN_DOWN, MODEL_TENSOR_KINDS, MODEL_TENSOR_KINDS } };
    size_t most = 0;
    for (uint32_t layer = 0; layer < b->config->n_layers; layer++)
        for (size_t p = 0; p < sizeof products / sizeof *products; p++) {
            size_t bytes = 0;
            for (int i = 0; i < 3 && products[p][i] != MODEL_TENSOR_KINDS; i++) {
                const struct gpu_matrix *m = &b->layers[layer].matrix[products[p][i]];
                bytes += m->lossless ? cuda_packed_bytes(m->n_out, m->n_in) : 0;
            }
            most = bytes > most ? bytes : most;
        }
    return most;
}

enum status gpu_lossless_room(struct backend *b, struct error *err)
{
    const size_t bytes = expanded_bytes(b);
    return bytes ? gpu_weights_alloc(b, bytes, &b->expanded, err) : ST_OK;
}

static int expand_and_run(struct backend *b, struct cuda_linear *l, const struct gpu_matrix *const *m)
{
    uint8_t *to = b->expanded;
    int e = 0;
    for (uint32_t i = 0; i < l->n_parts && !e; i++) {
        l->part[i].packed = m[i]->packed;
        if (!m[i]->lossless)
            continue;
        e = cuda_lossless_expand(m[i]->packed, m[i]->n_out, m[i]->n_in, to, b->stream);
        l->part[i].packed = to;
        to += cuda_packed_bytes(m[i]->n_out, m[i]->n_in);
    }
    return e ? e : cuda_linear_run(l, b->stream);
}

int gpu_product(struct backend *b, struct cuda_linear *l, const struct gpu_matrix *const *m)
{
    const struct cuda_linear all = *l;
    int e = 0;
    /* a product of few rows fetches weights before the kernel before it has ended: what is expanded must go to those of many */
    if (l->n_rows > CUDA_ROWS_FEW)
        return expand_and_run(b, l, m);
    for (uint32_t i = 0, n; i < all.n_parts && !e; i += n) {
        for (n = 0; i + n < all.n_parts && m[i + n]->lossless == m[i]->lossless; n++) {
            l->part[n] = all.part[i + n];
            l->part[n].packed = m[i + n]->packed;
        }
        l->n_parts = n;
        e = m[i]->lossless ? cuda_linear_lossless_run(l, b->stream) : cuda_linear_run(l, b->stream);
    }
    return e;
}
