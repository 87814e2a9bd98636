#include "common/error.h"

#include <stdarg.h>
#include <stdio.h>

enum status error_set(struct error *err, enum status st, const char *format, ...)
{
    if (err && err->status == ST_OK) {
        err->status = st;
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
    }
    return st;
}
