#include "worker/exchange/exchange.h"

#include <string.h>

const struct exchange_ops *exchange_find(const char *name)
{
    static const struct exchange_ops *const all[] = { &exchange_local, &exchange_ucx, &exchange_peer_memory,
                                                      &exchange_nccl };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (!strcmp(all[i]->name, name))
            return all[i];
    }
    return NULL;
}
