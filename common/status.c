#include "common/status.h"

const char *status_text(enum status st)
{
    switch (st) {
#define X(name, value, text)                                                                                           \
    case name:                                                                                                         \
        return text;
        STATUS_LIST(X)
#undef X
    }
    return "unknown status";
}
