#include "coordinator/gateway/keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/file.h"
#include "coordinator/sched.h"

enum { FILE_BYTES_MAX = 4 << 20, KEYS_MAX = 1 << 16 };

struct key {
    uint8_t digest[SHA256_DIGEST_LENGTH];
    char tenant[SCHED_TENANT_MAX + 1];
};

struct keys {
    struct key *list;
    size_t n;
};

static int hex_of(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

static bool digest_read(const char *text, uint8_t digest_out[SHA256_DIGEST_LENGTH])
{
    if (strlen(text) != 2 * (size_t)SHA256_DIGEST_LENGTH)
        return false;
    for (size_t i = 0; i < SHA256_DIGEST_LENGTH; i++) {
        const int high = hex_of(text[2 * i]), low = hex_of(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        digest_out[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

/* line: cut up in place. *fault_out: what is wrong with it, or NULL. -> whether it held a key */
static bool line_read(char *line, struct key *key_out, const char **fault_out)
{
    static const char spaces[] = " \t\r";
    char *rest = line;
    line[strcspn(line, "#")] = 0;
    const char *tenant, *digest;
    do
        tenant = strsep(&rest, spaces);
    while (tenant && !*tenant);
    do
        digest = strsep(&rest, spaces);
    while (digest && !*digest);
    *fault_out = NULL;
    if (!tenant)
        return false;
    if (strlen(tenant) > SCHED_TENANT_MAX)
        *fault_out = "the tenant's name is too long";
    else if (!digest || !digest_read(digest, key_out->digest))
        *fault_out = "after the tenant comes the key's SHA-256, 64 hexadecimal digits";
    else if (rest && rest[strspn(rest, spaces)])
        *fault_out = "there is more after the digest";
    else
        memcpy(key_out->tenant, tenant, strlen(tenant) + 1);
    return !*fault_out;
}

static enum status lines_read(struct keys *k, const char *path, char *text, struct error *err)
{
    size_t number = 0;
    for (char *rest = text, *line; (line = strsep(&rest, "\n"));) {
        const char *fault;
        struct key key = { 0 };
        number++;
        if (!line_read(line, &key, &fault) && !fault)
            continue;
        if (!fault && k->n == KEYS_MAX)
            fault = "there are too many keys";
        if (fault)
            return error_set(err, ST_INVALID, "api-keys: %s: line %zu: %s", path, number, fault);
        struct key *list = k->n & (k->n - 1) ? k->list : realloc(k->list, (k->n ? 2 * k->n : 1) * sizeof *list);
        if (!list)
            return error_set(err, ST_NO_MEMORY, "no memory");
        k->list = list;
        k->list[k->n++] = key;
    }
    return k->n ? ST_OK : error_set(err, ST_INVALID, "api-keys: %s holds no key", path);
}

enum status keys_read(const char *name, const void *text, size_t bytes, struct keys **keys_out, struct error *err)
{
    if (bytes && memchr(text, 0, bytes))
        return error_set(err, ST_INVALID, "api-keys: %s is no text", name);
    struct keys *k = calloc(1, sizeof *k);
    char *copy = strndup(bytes ? text : "", bytes);
    const enum status st = k && copy ? lines_read(k, name, copy, err) : error_set(err, ST_NO_MEMORY, "no memory");
    free(copy);
    if (st) {
        keys_free(k);
        return st;
    }
    *keys_out = k;
    return ST_OK;
}

enum status keys_load(const char *path, struct keys **keys_out, struct error *err)
{
    char *text;
    size_t bytes;
    struct error cause = { 0 };
    enum status st = file_read(path, FILE_BYTES_MAX, &text, &bytes, &cause);
    if (st)
        return error_set(err, st, "api-keys: %s", cause.text);
    st = keys_read(path, text, bytes, keys_out, err);
    free(text);
    return st;
}

void keys_free(struct keys *k)
{
    if (!k)
        return;
    free(k->list);
    free(k);
}

const char *keys_tenant(const struct keys *k, const char *authorization)
{
    uint8_t digest[SHA256_DIGEST_LENGTH];
    const char *tenant = NULL;
    if (!authorization || strncasecmp(authorization, "bearer ", 7) != 0)
        return NULL;
    const char *key = authorization + 7 + strspn(authorization + 7, " ");
    SHA256((const uint8_t *)key, strlen(key), digest);
    for (size_t i = 0; i < k->n; i++) /* all of them: how long it takes says nothing */
        if (!CRYPTO_memcmp(digest, k->list[i].digest, sizeof digest) && !tenant)
            tenant = k->list[i].tenant;
    return tenant;
}
