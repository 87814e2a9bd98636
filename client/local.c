#include "client/local.h"

#include <stdio.h>
#include <stdlib.h>

#include "client/cluster.h"
#include "client/interrupt.h"
#include "common/file.h"

enum status local_run(struct settings *s, bool quiet,
                      enum status (*fn)(const char *address, const struct settings *s, const void *arg,
                                        struct error *err),
                      const void *arg, struct error *err)
{
    struct cluster *c = NULL;
    char directory[] = "/tmp/longspan-XXXXXX";
    if (!mkdtemp(directory))
        return error_set(err, ST_IO, "%s cannot be made", directory);
    snprintf(s->state, sizeof s->state, "%s", directory);
    snprintf(s->http, sizeof s->http, "127.0.0.1:0");
    snprintf(s->grpc, sizeof s->grpc, "127.0.0.1:0");
    enum status st = cluster_start(s, &c, err);
    if (!st)
        st = cluster_await(c, quiet, interrupted, err);
    if (!st) {
        snprintf(s->http, sizeof s->http, "%s", cluster_http(c));
        st = fn(cluster_grpc(c), s, arg, err);
    }
    cluster_stop(c);
    struct error removal = { 0 };
    if (file_remove_tree(directory, &removal))
        fprintf(stderr, "longspan: %s\n", removal.text);
    return st;
}
