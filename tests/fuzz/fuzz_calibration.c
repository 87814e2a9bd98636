/* Calibrations: any header over any bytes. Input: a file, whose digest is made to fit, or nothing would be seen behind it. */
/* fuzz-libs: longspan_model longspan_common */
#include <stdlib.h>
#include <string.h>

#include "model/calibration.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FIXED = 32 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct calibration *c;
    const uint32_t none[CALIBRATION_DIMS_MAX] = { 0 };
    uint32_t dims[CALIBRATION_DIMS_MAX];
    volatile uint8_t sum = 0;
    uint8_t *file = aligned_alloc(64, (size + 64) / 64 * 64);
    if (!file)
        return 0;
    memcpy(file, data, size);
    if (size > FIXED) {
        const struct digest d = digest_of(file + FIXED, size - FIXED);
        memcpy(file + 16, d.byte, sizeof d.byte);
    }
    if (!calibration_open_bytes(file, size, "fuzz", &c, NULL)) {
        for (int type = 0; type < CALIBRATION_TYPES; type++)
            for (uint32_t n = 1; n <= CALIBRATION_DIMS_MAX; n++) {
                const void *at;
                size_t elements = 1;
                if (calibration_array(c, "keys", (enum calibration_type)type, n, none, dims, &at, NULL))
                    continue;
                for (uint32_t i = 0; i < n; i++)
                    elements *= dims[i];
                for (size_t i = 0; i < elements; i++) /* an element is a byte or more */
                    sum = (uint8_t)(sum + ((const uint8_t *)at)[i]);
            }
        calibration_close(c);
    }
    free(file);
    return 0;
}
