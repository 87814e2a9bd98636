/* fuzz-libs: longspan_proto longspan_common */
/* Control messages, plans and results from outside: refused, or sound and the same after another round trip. */
#include "proto/control.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void again(const uint8_t *data, size_t size)
{
    struct control_message *m, *second;
    struct error err = { 0 };
    if (control_decode(data, size, &m, &err)) {
        if (!err.text[0])
            abort(); /* a refusal says why */
        return;
    }
    uint8_t *bytes, *bytes2;
    size_t n, n2;
    if (control_encode(m, &bytes, &n) || control_decode(bytes, n, &second, &err) ||
        control_encode(second, &bytes2, &n2))
        abort();
    if (n != n2 || memcmp(bytes, bytes2, n))
        abort();
    free(bytes2);
    free(second);
    free(bytes);
    free(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct plan *plan;
    struct result *result;
    again(data, size);
    if (plan_decode(data, size, &plan, NULL) == ST_OK)
        free(plan);
    if (result_decode(data, size, &result, NULL) == ST_OK)
        free(result);
    return 0;
}
