/*
 * What test_step.c asks of workers, of workers on a GPU: logits are the model's, and their bits those of one row at a time on one worker, whatever the
 * chunks, the owners of leaves and the homes. Skipped where no GPU is, or no CUDA in the build.
 *
 * Replay: worker_test_cuda --seed N
 */
#include <stddef.h>

#define STEP_DEVICE "cuda"
#define STEP_NO_SPILLS
#define STEP_PRECISIONS 1
#define STEP_LAYOUTS    8
#define TINY            "random:layers=2,d=128,heads=4,kv=2,head_dim=64,ff=192,vocab=264,positions=4096,codec=bf16:2:5"
#define CODED           "random:layers=2,d=128,heads=4,kv=2,head_dim=64,ff=192,vocab=264,positions=4096,codec=lossless-fast:2:5"
#define DRESSED                                                                                                        \
    "random:layers=2,d=72,heads=6,kv=2,head_dim=128,ff=1160,vocab=264,positions=4096,qkv_bias=1,qk_norm=1,codec=bf16:" \
    "2:5"
enum { LEAF = 1024, WORKERS = 4, POSITIONS = 3264, PROMPT = 3200 };

#ifdef LONGSPAN_CUDA
#include "kernels/cuda/cuda.h"

static const char *absent_gpu(void)
{
    static char text[256];
    struct cuda_device device;
    return cuda_device_find(&device, text, sizeof text) ? text : NULL;
}
#define STEP_ABSENT absent_gpu
#else
#define STEP_ABSENT() "a build without CUDA"
#endif

#include "tests/unit/worker/test_step.c"
