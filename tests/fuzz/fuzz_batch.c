/* fuzz-libs: longspan_client */
/* One line of a batch file. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "client/batch_line.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct batch_line l;
    struct error err = { 0 };
    const enum status st = batch_line_read((const char *)data, bytes, &l, &err);
    if (st ? !*err.text : !l.custom_id[0] || !l.url || strlen(l.body) != l.body_bytes)
        abort();
    batch_line_free(&l);
    return 0;
}
