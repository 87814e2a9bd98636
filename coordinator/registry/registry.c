#include "coordinator/registry/registry.h"

#include <string.h>

static const struct {
    const char *name; /* before the colon */
    enum status (*open)(const char *rest, const struct tls *tls, struct loop *loop, struct registry **registry_out,
                        struct error *err);
} kinds[] = { { "embedded", registry_embedded_open }, { "etcd", registry_etcd_open } };

enum status registry_open(const char *spec, const struct tls *tls, struct loop *loop, struct registry **registry_out,
                          struct error *err)
{
    const char *colon = strchr(spec, ':');
    for (size_t i = 0; colon && i < sizeof kinds / sizeof *kinds; i++)
        if (strlen(kinds[i].name) == (size_t)(colon - spec) && !strncmp(spec, kinds[i].name, (size_t)(colon - spec)))
            return kinds[i].open(colon + 1, tls, loop, registry_out, err);
    return error_set(err, ST_UNSUPPORTED,
                     "registry: '%s' is of no kind that is known (embedded:FILE, etcd:HOST:PORT[,HOST:PORT...])", spec);
}

void registry_close(struct registry *r)
{
    if (r)
        r->ops->close(r);
}
