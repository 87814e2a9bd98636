#include <string.h>

#include "kernels/cpu/attn.h"
#include "kernels/cpu/kv.h"

const struct kv_codec_info kv_codecs[KV_CODECS] = {
    [KV_BF16] = { "bf16", 1, KV_BF16 },
    [KV_F32] = { "float32", 2, KV_F32 },
    [KV_INT8] = { "int8", 3, KV_BF16 },
    [KV_INT4_ROT] = { "int4-rot", 4, KV_BF16 },
};

enum status kv_codec_find(const char *name, bool float32, enum kv_codec *codec_out, struct error *err)
{
    enum kv_codec codec = KV_CODECS;
    for (int i = 0; i < KV_CODECS; i++)
        if (!strcmp(name, kv_codecs[i].name) && i != KV_F32)
            codec = (enum kv_codec)i;
    if (codec == KV_CODECS)
        return error_set(err, ST_INVALID, "kv-codec: '%s' is none of bf16, int8, int4-rot", name);
    if (float32 && kv_codecs[codec].open != codec)
        return error_set(err, ST_UNSUPPORTED,
                         "kv-codec %s with precision float32: the float32 reference has nothing lossy in it", name);
    *codec_out = float32 ? KV_F32 : codec;
    return ST_OK;
}

static bool accepts_int8(const struct attn_shape *shape)
{
    return shape->codec == KV_INT8 && kv_accepts_c(shape);
}

static bool accepts_int4_rot(const struct attn_shape *shape)
{
    return shape->codec == KV_INT4_ROT && kv_accepts_c(shape);
}

const struct attn_impl coded_impls[] = {
    { "c", 0, accepts_int8, kv_part_bytes, NULL, kv_q_tile_bytes, kv_pack_q, kv_block_c, attn_merge_c, 0, kv_seal_int8,
      NULL },
    { "c", 0, accepts_int4_rot, kv_part_bytes, NULL, kv_q_tile_bytes, kv_pack_q, kv_block_c, attn_merge_c, 0,
      kv_seal_int4_rot, kv_rotate_partial },
};
const uint32_t n_coded_impls = sizeof coded_impls / sizeof coded_impls[0];
