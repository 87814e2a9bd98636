#include "common/tls.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "common/log.h"

enum { PEM_BYTES_MAX = 1 << 20 };

/* A key with a passphrase is refused, not asked for at a terminal. */
static int no_passphrase(char *buf, int size, int writing, void *user)
{
    (void)buf;
    (void)size;
    (void)writing;
    (void)user;
    return 0;
}

static X509 *next_cert(BIO *bio)
{
    return PEM_read_bio_X509(bio, NULL, no_passphrase, NULL);
}

static EVP_PKEY *key_of(const char *text)
{
    BIO *bio = BIO_new_mem_buf(text, -1);
    EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL) : NULL;
    BIO_free(bio);
    ERR_clear_error();
    return key;
}

/* Calls fn for each certificate of a text; how many there were, or 0 if one could not be taken. */
static int each_cert(const char *text, bool (*fn)(void *ctx, int i, X509 *cert), void *ctx)
{
    BIO *bio = BIO_new_mem_buf(text, -1);
    int n = 0;
    for (X509 *cert; bio && (cert = next_cert(bio)); X509_free(cert))
        if (!fn(ctx, n++, cert)) {
            X509_free(cert);
            n = 0;
            break;
        }
    BIO_free(bio);
    ERR_clear_error();
    return n;
}

static bool count_cert(void *ctx, int i, X509 *cert)
{
    (void)ctx;
    (void)i;
    (void)cert;
    return true;
}

static bool fits_key(void *key, int i, X509 *cert)
{
    return i || X509_check_private_key(cert, key) == 1;
}

static bool named(const char *path)
{
    return path && *path;
}

static enum status read_text(const char *what, const char *field, const char *path, char **text_out, struct error *err)
{
    size_t bytes;
    struct error cause = { 0 };
    if (!named(path))
        return ST_OK;
    const enum status st = file_read(path, PEM_BYTES_MAX, text_out, &bytes, &cause);
    return st ? error_set(err, st, "%s-%s: %s", what, field, cause.text) : ST_OK;
}

static enum status certs_check(const char *what, const char *field, const char *path, const char *text,
                               struct error *err)
{
    if (text && !each_cert(text, count_cert, NULL))
        return error_set(err, ST_INVALID, "%s-%s: %s holds no certificate in PEM", what, field, path);
    return ST_OK;
}

static enum status pair_check(const char *what, const struct tls_files *files, const struct tls *tls, struct error *err)
{
    struct stat about;
    if (!tls->cert != !tls->key)
        return error_set(err, ST_INVALID, "%s-%s: is needed beside %s-%s", what, tls->cert ? "key" : "cert", what,
                         tls->cert ? "cert" : "key");
    if (!tls->cert)
        return ST_OK;
    EVP_PKEY *key = key_of(tls->key);
    if (!key)
        return error_set(err, ST_INVALID, "%s-key: %s holds no private key in PEM without a passphrase", what,
                         files->key);
    const int n = each_cert(tls->cert, fits_key, key);
    EVP_PKEY_free(key);
    if (!n)
        return error_set(err, ST_INVALID, "%s-key: %s is not the key of %s", what, files->key, files->cert);
    if (!stat(files->key, &about) && (about.st_mode & (S_IROTH | S_IWOTH)))
        log_warn("%s-key: %s can be read by everybody on this host", what, files->key);
    return ST_OK;
}

enum status tls_load(const char *what, const struct tls_files *files, bool mutual, struct tls **tls_out,
                     struct error *err)
{
    *tls_out = NULL;
    if (!named(files->ca) && !named(files->cert) && !named(files->key))
        return ST_OK;
    if (mutual && !(named(files->ca) && named(files->cert) && named(files->key)))
        return error_set(err, ST_INVALID, "%s-ca, %s-cert and %s-key go together", what, what, what);
    struct tls *tls = calloc(1, sizeof *tls);
    if (!tls)
        return error_set(err, ST_NO_MEMORY, "no memory");
    enum status st = ST_OK;
    if (named(files->ca) && strcmp(files->ca, "system"))
        st = read_text(what, "ca", files->ca, &tls->ca, err);
    if (!st)
        st = read_text(what, "cert", files->cert, &tls->cert, err);
    if (!st)
        st = read_text(what, "key", files->key, &tls->key, err);
    if (!st)
        st = certs_check(what, "ca", files->ca, tls->ca, err);
    if (!st)
        st = certs_check(what, "cert", files->cert, tls->cert, err);
    if (!st)
        st = pair_check(what, files, tls, err);
    if (st) {
        tls_free(tls);
        return st;
    }
    *tls_out = tls;
    return ST_OK;
}

void tls_free(struct tls *tls)
{
    if (!tls)
        return;
    if (tls->key)
        OPENSSL_cleanse(tls->key, strlen(tls->key));
    free(tls->ca);
    free(tls->cert);
    free(tls->key);
    free(tls);
}

struct tls *tls_copy(const struct tls *tls)
{
    struct tls *copy = calloc(1, sizeof *copy);
    if (!copy)
        return NULL;
    copy->ca = tls->ca ? strdup(tls->ca) : NULL;
    copy->cert = tls->cert ? strdup(tls->cert) : NULL;
    copy->key = tls->key ? strdup(tls->key) : NULL;
    if (!tls->ca == !copy->ca && !tls->cert == !copy->cert && !tls->key == !copy->key)
        return copy;
    tls_free(copy);
    return NULL;
}

/* ---- contexts ---- */

static bool use_cert(void *context, int i, X509 *cert)
{
    return (i ? SSL_CTX_add1_chain_cert(context, cert) : SSL_CTX_use_certificate(context, cert)) == 1;
}

static bool trust_cert(void *context, int i, X509 *cert)
{
    (void)i;
    return X509_STORE_add_cert(SSL_CTX_get_cert_store(context), cert) == 1 && SSL_CTX_add_client_CA(context, cert) == 1;
}

static bool context_fill(SSL_CTX *context, const struct tls *tls)
{
    if (SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) != 1)
        return false;
    if (tls->cert) {
        EVP_PKEY *key = key_of(tls->key);
        const bool ok = key && each_cert(tls->cert, use_cert, context) && SSL_CTX_use_PrivateKey(context, key) == 1;
        EVP_PKEY_free(key);
        if (!ok)
            return false;
    }
    return !tls->ca || each_cert(tls->ca, trust_cert, context);
}

static SSL_CTX *context_new(const SSL_METHOD *method, const struct tls *tls, struct error *err)
{
    SSL_CTX *context = SSL_CTX_new(method);
    if (context && context_fill(context, tls))
        return context;
    SSL_CTX_free(context);
    ERR_clear_error();
    error_set(err, ST_INVALID, "tls: OpenSSL does not take the certificates");
    return NULL;
}

SSL_CTX *tls_server_context(const struct tls *tls, struct error *err)
{
    SSL_CTX *context = context_new(TLS_server_method(), tls, err);
    if (!context)
        return NULL;
    SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION);
    if (tls->ca)
        SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    return context;
}

SSL_CTX *tls_client_context(const struct tls *tls, struct error *err)
{
    SSL_CTX *context = context_new(TLS_client_method(), tls, err);
    if (!context)
        return NULL;
    if (!tls->ca && SSL_CTX_set_default_verify_paths(context) != 1) {
        SSL_CTX_free(context);
        error_set(err, ST_IO, "tls: the host's trusted certificates cannot be read");
        return NULL;
    }
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    return context;
}

void tls_context_free(SSL_CTX *context)
{
    SSL_CTX_free(context);
}
