#include <stdio.h>
#include <string.h>

#include "kernels/cpu/attn.h"
#include "kernels/cpu/kv.h"
#include "kernels/cpu/kv_cq.h"
#include "kernels/cpu/kv_expand.h"
#include "kernels/cpu/kv_nomad.h"
#include "kernels/cpu/x86/kv_variants.h"
#include "kernels/kv_spill.h"

/* fp8 has one power of two a block, kivi scales of 32 positions, bf16-lossless one list of escapes a block; a token by itself is read of the others. */
const struct kv_codec_info kv_codecs[KV_CODECS] = {
    [KV_BF16] = { "bf16", 1, KV_BF16, 1, NULL, false },
    [KV_F32] = { "float32", 2, KV_F32, 1, NULL, false },
    [KV_INT8] = { "int8", 3, KV_BF16, 1, NULL, false },
    [KV_INT4_ROT] = { "int4-rot", 4, KV_BF16, 1, NULL, false },
    [KV_FP8] = { "fp8", 8, KV_BF16, KV_BLOCK, NULL, false },
    [KV_KIVI4] = { "kivi4", 9, KV_BF16, KIVI_GROUP, NULL, false },
    [KV_KIVI2] = { "kivi2", 10, KV_BF16, KIVI_GROUP, NULL, false },
    [KV_BF16_LOSSLESS] = { "bf16-lossless", 24, KV_BF16, KV_BLOCK, NULL, false },
    [KV_CQ_2B] = { "cq-2b", 20, KV_BF16, 1, &kv_calibrated_cq, false },
    [KV_CQ_1B] = { "cq-1b", 21, KV_BF16, 1, &kv_calibrated_cq, false },
    [KV_NOMAD] = { "nomad", 22, KV_BF16, 1, &kv_calibrated_nomad, true },
};

/* "bf16, int8, ..." */
static void names(char *text_out, size_t bytes)
{
    size_t n = 0;
    for (int i = 0; i < KV_CODECS && n < bytes; i++)
        if (i != KV_F32)
            n += (size_t)snprintf(text_out + n, bytes - n, "%s%s", i ? ", " : "", kv_codecs[i].name);
}

enum status kv_codec_find(const char *name, bool float32, enum kv_codec *codec_out, struct error *err)
{
    enum kv_codec codec = KV_CODECS;
    for (int i = 0; i < KV_CODECS; i++)
        if (!strcmp(name, kv_codecs[i].name) && i != KV_F32)
            codec = (enum kv_codec)i;
    if (codec == KV_CODECS) {
        char all[256];
        names(all, sizeof all);
        return error_set(err, ST_INVALID, "kv-codec: '%s' is none of %s", name, all);
    }
    if (float32 && kv_codecs[codec].open != codec)
        return error_set(err, ST_UNSUPPORTED,
                         "kv-codec %s with precision float32: the float32 reference has nothing lossy in it", name);
    *codec_out = float32 ? KV_F32 : codec;
    return ST_OK;
}

struct kv_spill kv_spill_of(const struct attn_shape *shape)
{
    return shape->codec == KV_BF16_LOSSLESS ? kv_spill_lossless(shape) : (struct kv_spill){ 0 };
}

/* A codec is what seals and, if it rotates, turns outputs; a variant, what packs queries and reads blocks. All variants of a codec are found together. */
#define CODED(name, needs, codec, tile_bytes, pack, block, merge, rtol, turn)                                          \
    {                                                                                                                  \
        name, needs, accepts_##codec##_##block, kv_part_bytes, NULL, tile_bytes, pack, block, merge, rtol,             \
            kv_seal_##codec, turn, NULL                                                                                \
    }
#define ACCEPTS(codec, variant)                                                                                        \
    static bool accepts_##codec##_kv_block_##variant(const struct attn_shape *shape)                                   \
    {                                                                                                                  \
        return kv_accepts_##codec(shape) && kv_accepts_##variant(shape);                                               \
    }
ACCEPTS(int8, amx)
ACCEPTS(int8, avx512)
ACCEPTS(int8, avx2)
ACCEPTS(int8, c)
ACCEPTS(int4_rot, amx)
ACCEPTS(int4_rot, avx512)
ACCEPTS(int4_rot, avx2)
ACCEPTS(int4_rot, c)

/* A codec that is attended in its open form: a variant is what expands, and may seal. */
#define EXPANDED(name, needs, codec, seal, expand)                                                                     \
    {                                                                                                                  \
        name, needs, kv_accepts_##codec, kv_part_bytes_##codec, NULL, NULL, NULL, NULL, NULL, 0, kv_seal_##seal, NULL, \
            expand                                                                                                     \
    }

/* Rows of prompts attend what a variant expands, generated rows what its block reads. */
#define NOMAD(name, needs, variant, merge, rtol, pack, expand)                                                         \
    {                                                                                                                  \
        name, needs, kv_accepts_nomad, kv_part_bytes_nomad, NULL, kv_q_tile_bytes_nomad, pack,                         \
            kv_block_nomad_##variant, merge, rtol, kv_seal_nomad, NULL, expand                                         \
    }

/* rtol: weights are rounded to 2^-15 of the largest, and a last-bit difference of a score moves them by that much. */
const struct attn_impl coded_impls[] = {
    CODED("amx", CPU_AMX, int8, kv_q_tile_bytes_amx, kv_pack_q_amx, kv_block_amx, attn_merge_avx512, 2e-4f, NULL),
    CODED("avx512", CPU_AVX512, int8, kv_q_tile_bytes, kv_pack_q_avx512, kv_block_avx512, attn_merge_avx512, 2e-4f,
          NULL),
    CODED("avx2", CPU_AVX2, int8, kv_q_tile_bytes, kv_pack_q_avx2, kv_block_avx2, attn_merge_avx2, 2e-4f, NULL),
    CODED("c", 0, int8, kv_q_tile_bytes, kv_pack_q, kv_block_c, attn_merge_c, 0, NULL),
    CODED("amx", CPU_AMX, int4_rot, kv_q_tile_bytes_amx, kv_pack_q_amx, kv_block_amx, attn_merge_avx512, 2e-4f,
          kv_rotate_partial_avx512),
    CODED("avx512", CPU_AVX512, int4_rot, kv_q_tile_bytes, kv_pack_q_avx512, kv_block_avx512, attn_merge_avx512, 2e-4f,
          kv_rotate_partial_avx512),
    CODED("avx2", CPU_AVX2, int4_rot, kv_q_tile_bytes, kv_pack_q_avx2, kv_block_avx2, attn_merge_avx2, 2e-4f,
          kv_rotate_partial),
    CODED("c", 0, int4_rot, kv_q_tile_bytes, kv_pack_q, kv_block_c, attn_merge_c, 0, kv_rotate_partial),
    EXPANDED("avx512", CPU_AVX512, fp8, fp8, kv_expand_fp8_avx512),
    EXPANDED("avx2", CPU_AVX2, fp8, fp8, kv_expand_fp8_avx2),
    EXPANDED("c", 0, fp8, fp8, kv_expand_fp8),
    EXPANDED("avx512", CPU_AVX512, kivi, kivi, kv_expand_kivi_avx512),
    EXPANDED("avx2", CPU_AVX2, kivi, kivi, kv_expand_kivi_avx2),
    EXPANDED("c", 0, kivi, kivi, kv_expand_kivi),
    EXPANDED("avx512", CPU_AVX512, lossless, lossless, kv_expand_lossless_avx512),
    EXPANDED("avx2", CPU_AVX2, lossless, lossless, kv_expand_lossless_avx2),
    EXPANDED("c", 0, lossless, lossless, kv_expand_lossless),
    EXPANDED("avx512", CPU_AVX512, cq, cq_avx512, kv_expand_cq_avx512),
    EXPANDED("avx2", CPU_AVX2, cq, cq_avx2, kv_expand_cq_avx2),
    EXPANDED("c", 0, cq, cq, kv_expand_cq),
    NOMAD("amx", CPU_AMX, amx, attn_merge_avx512, 2e-4f, kv_pack_q_nomad_avx512, kv_expand_nomad_avx512),
    NOMAD("avx2", CPU_AVX2, avx2, attn_merge_avx2, 2e-4f, kv_pack_q_nomad_avx2, kv_expand_nomad_avx2),
    NOMAD("c", 0, c, attn_merge_c, 0, kv_pack_q_nomad, kv_expand_nomad),
};
const uint32_t n_coded_impls = sizeof coded_impls / sizeof coded_impls[0];
