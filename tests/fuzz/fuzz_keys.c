/* fuzz-libs: longspan_coordinator */
/* A file of API keys, and a header that shows one. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/gateway/keys.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct keys *keys;
    struct error err = { 0 };
    if (keys_read("file", data, bytes, &keys, &err)) {
        if (!*err.text)
            abort();
        return 0;
    }
    char *header = strndup((const char *)data, bytes);
    if (header && keys_tenant(keys, header))
        abort(); /* a file that holds the digest of its own beginning */
    free(header);
    keys_free(keys);
    return 0;
}
