/* fuzz-libs: longspan_coordinator longspan_common */
/* Last-Event-ID of anybody: refused, or places that are written so again. */
#include "coordinator/gateway/resume.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct resume r, again;
    char *id = malloc(size + 3);
    struct text out = { 0 };
    if (!id)
        return 0;
    memcpy(id, "r/", 2);
    memcpy(id + 2, data, size);
    id[size + 2] = 0;
    if (!resume_read(id, "r", &r)) {
        resume_write(&r, "r", &out);
        if (!text_terminated(&out) || resume_read(out.data, "r", &again) || memcmp(&r, &again, sizeof r) != 0)
            abort();
    }
    text_free(&out);
    free(id);
    return 0;
}
