#include "coordinator/registry/registry.h"

#include <string.h>

enum status registry_open(const char *spec, struct loop *loop, struct registry **registry_out, struct error *err)
{
    static const char embedded[] = "embedded:";
    if (!strncmp(spec, embedded, strlen(embedded)))
        return registry_embedded_open(spec + strlen(embedded), loop, registry_out, err);
    return error_set(err, ST_UNSUPPORTED, "registry: '%s' is of no kind that is known (embedded:FILE)", spec);
}

void registry_close(struct registry *r)
{
    if (r)
        r->ops->close(r);
}
