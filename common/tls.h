#ifndef LONGSPAN_COMMON_TLS_H
#define LONGSPAN_COMMON_TLS_H

/*
 * Certificates and keys of TLS, read from PEM files and checked then: gRPC takes the texts, HTTP a context of OpenSSL. TLS 1.2 and later. tls_watch.h reads them again.
 */

#include <stdbool.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Paths; NULL or "": none. */
struct tls_files {
    const char *ca;   /* who signs the other side's certificates; "system" (clients): those that the host trusts */
    const char *cert; /* this side's, then those that lead to its root */
    const char *key;  /* without a passphrase */
};

/* The files' texts; NULL: none. */
struct tls {
    char *ca, *cert, *key;
};

/*
 * what: the settings' first word, for err ("tls": "tls-cert: ..."). *tls_out is NULL if no file is named. ST_INVALID: a certificate without its key, a
 * key that is another certificate's, or what is no PEM; ST_NOT_FOUND, ST_IO. A key that others may read is logged.
 * mutual: all three files or none.
 */
enum status tls_load(const char *what, const struct tls_files *files, bool mutual, struct tls **tls_out,
                     struct error *err);
void tls_free(struct tls *tls);
/* NULL: no memory. */
struct tls *tls_copy(const struct tls *tls);

/* For one side of HTTP; a server that has a ca takes only clients with a certificate. To be freed with tls_context_free. NULL: err says why. */
struct ssl_ctx_st;
struct ssl_ctx_st *tls_server_context(const struct tls *tls, struct error *err);
struct ssl_ctx_st *tls_client_context(const struct tls *tls, struct error *err);
void tls_context_free(struct ssl_ctx_st *context);

#ifdef __cplusplus
}
#endif
#endif
