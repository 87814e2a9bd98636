/*
 * Packs: a header with any fields over any bytes, and groups of lossless-fast and df11 that were not checked. Input: u32 bytes of the header, u32 bytes of the
 * vocabulary, header, vocabulary, weights. Checksums of header and vocabulary are made to fit, or nothing would be seen behind them.
 */
/* fuzz-libs: longspan_model longspan_common */
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "model/df11.h"
#include "model/pack_format.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static json_t *sealed(const void *text, size_t bytes, const void *vocabulary, size_t vocabulary_bytes)
{
    char checksum[33];
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
    struct digest d = digest_of(vocabulary, vocabulary_bytes);
    if (!json_is_object(root)) {
        json_decref(root);
        return NULL;
    }
    digest_text(&d, checksum);
    json_t *v = json_object_get(root, "vocabulary");
    if (json_is_object(v))
        json_object_set_new(v, "file",
                            json_pack("{s:I, s:s}", "bytes", (json_int_t)vocabulary_bytes, "checksum", checksum));
    d = pack_header_digest(root);
    digest_text(&d, checksum);
    json_object_set_new(root, "checksum", json_string(checksum));
    return root;
}

static void read_df11(const struct df11_tensor *t)
{
    uint16_t *blocks = malloc((size_t)df11_blocks(t->n_cols) * DF11_WEIGHTS * sizeof *blocks);
    for (uint32_t g = 0; blocks && g < df11_groups(t->n_rows) && g < 8; g++) {
        const struct df11_group group = df11_group_at(t, g);
        df11_check(&group, "fuzz", g, NULL);
        df11_decode(&group, blocks);
    }
    free(blocks);
}

static void read_tensor(const struct model_tensor *t)
{
    void *scratch = aligned_alloc(64, (t->row_bytes + 63) / 64 * 64);
    uint16_t block[LOSSLESS_WEIGHTS];
    for (uint32_t r = 0; scratch && r < t->n_rows && r < 100; r++)
        model_tensor_row(t, r, scratch);
    free(scratch);
    model_tensor_check(t, NULL);
    if (t->df11)
        read_df11(t->df11);
    for (uint32_t g = 0; t->lossless && g < lossless_groups(t->n_rows) && g < 8; g++) {
        const struct lossless_group group = lossless_group_at(t->lossless, g);
        lossless_check(&group, "fuzz", g, NULL);
        for (uint32_t b = 0; b < group.n_blocks && b < 8; b++)
            lossless_decode(&group, b, block);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct reader r = reader_of(data, size);
    const size_t header_bytes = reader_u32(&r), vocabulary_bytes = reader_u32(&r);
    const void *header = reader_take(&r, header_bytes), *vocabulary = reader_take(&r, vocabulary_bytes);
    struct pack_bytes b = { .vocabulary = vocabulary, .vocabulary_bytes = vocabulary_bytes };
    struct model *m;
    if (r.bad)
        return 0;
    json_t *root = sealed(header, header_bytes, vocabulary, vocabulary_bytes);
    char *text = root ? json_dumps(root, JSON_REAL_PRECISION(17)) : NULL;
    b.weights_bytes = reader_left(&r);
    /* a copy at the alignment of a mapping; malloc's own, so that what reads past its end is found */
    uint8_t *weights = NULL;
    if (posix_memalign((void **)&weights, PACK_ALIGN, b.weights_bytes ? b.weights_bytes : 1))
        weights = NULL;
    else
        memcpy(weights, r.at, b.weights_bytes);
    b.header = text;
    b.header_bytes = text ? strlen(text) : 0;
    b.weights = weights;
    if (text && weights && !pack_open_bytes(&b, &m, NULL)) {
        struct model_tensor t;
        for (int k = 0; k < MODEL_TENSOR_KINDS; k++)
            for (uint32_t layer = 0; layer < 2; layer++)
                if (!model_tensor(m, (enum model_tensor_kind)k, layer, &t))
                    read_tensor(&t);
        model_close(m);
    }
    free(weights);
    free(text);
    json_decref(root);
    return 0;
}
