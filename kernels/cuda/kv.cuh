#ifndef LONGSPAN_KERNELS_CUDA_KV_CUH
#define LONGSPAN_KERNELS_CUDA_KV_CUH

#include "kernels/cuda/cuda.h"

/* One layer of a slot. */
static __device__ __forceinline__ uint8_t *block_at(const struct cuda_kv &kv, uint32_t slot, uint32_t layer)
{
    return slot < CUDA_SCRATCH ? kv.pool + slot * kv.block_bytes + layer * kv.layer_bytes
                               : kv.scratch + (slot - CUDA_SCRATCH) * kv.layer_bytes;
}

/* How many positions of a unit, from its first on, vector v sees; of CUDA_SEES_OWN, of the last block of them alone. */
static __device__ __forceinline__ int seen_by(const struct cuda_unit &u, uint32_t v, uint32_t group)
{
    const uint32_t seen = u.visible + v / group + 1;
    return u.sees == CUDA_SEES_POSITIONS ? u.visible == UINT32_MAX ? INT_MAX : (int)seen
           : u.sees == CUDA_SEES_BEFORE  ? (int)((seen - 1) / 64 * 64)
                                         : (int)seen;
}

/* The lists of a unit's vectors first .. end - 1, and which blocks any of them has. */
struct lists {
    const uint64_t *at; /* NULL: all is read */
    uint32_t words, n;  /* from a list to the next; lists */
    uint32_t first;     /* number of the first one among its job's, of one KV head */
};

static __device__ __forceinline__ uint32_t list_number(const struct cuda_attend &a, const struct cuda_unit &u,
                                                       uint32_t v, uint32_t group)
{
    return a.by_row ? v / group : (u.position + v / group) / 64;
}

static __device__ __forceinline__ struct lists lists_of(const struct cuda_kv &kv, const struct cuda_attend &a,
                                                        const struct cuda_unit &u, uint32_t first, uint32_t end)
{
    const uint32_t group = kv.n_heads / kv.n_kv_heads, last = min(end, u.n_vectors) - 1;
    struct lists l = { NULL, 0, 1, 0 };
    if (!a.lists || !u.words)
        return l;
    l.first = list_number(a, u, first, group);
    l.n = list_number(a, u, last, group) - l.first + 1;
    l.words = a.by_row ? kv.n_kv_heads * u.words : u.words;
    l.at = a.lists + u.list + (size_t)l.first * l.words + (a.by_row ? u.head * u.words : 0);
    return l;
}

static __device__ __forceinline__ bool listed(const uint64_t *list, uint32_t block)
{
    return list[block / 64] >> (block % 64) & 1;
}

/* Of the unit's blocks first .. first + 31, one a lane: those that are read, as bits, the same in all lanes. */
static __device__ __forceinline__ uint32_t wanted(const struct cuda_attend &a, const struct cuda_unit &u,
                                                  const struct lists &l, uint32_t first, uint32_t lane)
{
    bool any = first + lane < u.n_blocks;
    if (l.at && any) {
        const uint32_t block = a.blocks[u.slot + first + lane];
        any = false;
        for (uint32_t i = 0; i < l.n && !any; i++)
            any = listed(l.at + (size_t)i * l.words, block);
    }
    return __ballot_sync(~0u, any);
}

/* Does vector v read the unit's block b? */
static __device__ __forceinline__ bool reads(const struct cuda_attend &a, const struct cuda_unit &u,
                                             const struct lists &l, uint32_t v, uint32_t group, uint32_t b)
{
    return v < u.n_vectors &&
           listed(l.at + (size_t)(list_number(a, u, v, group) - l.first) * l.words, a.blocks[u.slot + b]);
}

#endif
