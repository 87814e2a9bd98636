/* fuzz-libs: longspan_model */
/* A safetensors file of any bytes: a named refusal, or tensors that lie inside it. */
#include <stdint.h>
#include <stdlib.h>

#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct safetensors s;
    struct error err = { 0 };
    const enum status st = safetensors_parse(data, bytes, "memory", &s, &err);
    if (st && (err.status != st || !err.text[0]))
        abort();
    if (st)
        return 0;
    volatile uint8_t sink = 0;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < s.n_tensors; i++) {
        sum += s.tensors[i].bytes;
        for (uint64_t k = 0; k < s.tensors[i].bytes; k++)
            sink ^= s.tensors[i].data[k];
    }
    if (sum >= bytes)
        abort();
    safetensors_free(&s);
    return 0;
}
