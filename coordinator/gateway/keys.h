#ifndef LONGSPAN_COORDINATOR_GATEWAY_KEYS_H
#define LONGSPAN_COORDINATOR_GATEWAY_KEYS_H

/*
 * API keys: who may call, and as which tenant. A file says it, a line a key: the tenant's name and the SHA-256 of the key in hexadecimal; '#' begins a
 * comment. The keys themselves are kept nowhere. Read once; immutable, so any thread may ask.
 */

#include <stddef.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct keys;
/* ST_NOT_FOUND, ST_IO; ST_INVALID: err names the line. */
enum status keys_load(const char *path, struct keys **keys_out, struct error *err);
/* The same of a file's text; name: for err. */
enum status keys_read(const char *name, const void *text, size_t bytes, struct keys **keys_out, struct error *err);
void keys_free(struct keys *keys);
/* The tenant of "Bearer KEY", or NULL. authorization: a request's header, or NULL. Valid as long as keys. */
const char *keys_tenant(const struct keys *keys, const char *authorization);

#ifdef __cplusplus
}
#endif
#endif
