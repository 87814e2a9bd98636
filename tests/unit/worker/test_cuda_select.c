/*
 * What test_select.c asks of workers, of workers on a GPU, for KV codecs and selectors: the bits of a row do not depend on layouts, chunks, what is run
 * twice, and blocks that move. Skipped where no GPU is, or no CUDA in the build.
 *
 * Replay: worker_test_cuda_select --seed N
 */
#include <stddef.h>

#define SELECT_DEVICE "cuda"
#define TINY          "random:layers=3,d=64,heads=6,kv=2,head_dim=64,ff=64,vocab=256,positions=4096,codec=bf16:3:5"
/* A row at a time: rows that a unit reads together read what any of them chose. */
#define SELECT_BUDGET      "quest,layers=1,prompt=sparse"
#define SELECT_BUDGET_ROWS 1
#define SELECT_KINDS                                                                                                   \
    {                                                                                                                  \
        { "dense", 0, false, KV_INT8 }, { "dense", 0, false, KV_INT4_ROT },                                            \
            { "quest,layers=1", 400000, false, KV_BF16 }, { "quest,layers=0,prompt=sparse", 300000, true, KV_INT8 },   \
            { "quest,layers=1,scope=local,prompt=sparse", 500000, true, KV_BF16 },                                     \
            { "quest,layers=1", 250000, false, KV_INT4_ROT }, { "sketch-walk,layers=0", 400000, true, KV_BF16 },       \
            { "sketch-walk,layers=1,scope=local", 350000, true, KV_INT4_ROT },                                         \
            { "sketch-walk,layers=1,prompt=dense", 300000, false, KV_BF16 },                                           \
    }
enum { LEAF = 1024, WORKERS = 4, POSITIONS = 2200, PROMPT = 2150 };

#ifdef LONGSPAN_CUDA
#include "kernels/cuda/cuda.h"

static const char *absent_gpu(void)
{
    static char text[256];
    struct cuda_device device;
    return cuda_device_find(&device, text, sizeof text) ? text : NULL;
}
#define SELECT_ABSENT absent_gpu
#else
#define SELECT_ABSENT() "a build without CUDA"
#endif

#include "tests/unit/worker/test_select.c"
