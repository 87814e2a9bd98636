#include "coordinator/jobs/blobs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/file.h"
#include "common/hash.h"

enum { PATH_MAX_BYTES = 2048 };

void blob_name(const char *id, const char *digest, char name_out[128])
{
    snprintf(name_out, 128, "%.64s-%.32s", id, digest);
}

static enum status path_of(const char *dir, const char *id, const char *digest, char path_out[PATH_MAX_BYTES],
                           struct error *err)
{
    char name[128];
    blob_name(id, digest, name);
    if (snprintf(path_out, PATH_MAX_BYTES, "%s/%s", dir, name) >= PATH_MAX_BYTES)
        return error_set(err, ST_TOO_LARGE, "%s: path too long", dir);
    return ST_OK;
}

/* The name of a new file is durable only when its directory is. */
static enum status dir_sync(const char *dir, struct error *err)
{
    const int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0) {
        const int e = errno;
        if (fd >= 0)
            close(fd);
        return error_set(err, ST_IO, "%s: %s", dir, strerror(e));
    }
    close(fd);
    return ST_OK;
}

enum status blob_write(const char *dir, const char *id, const void *data, size_t bytes, char digest_out[33],
                       struct error *err)
{
    char path[PATH_MAX_BYTES], text[33];
    const struct digest digest = digest_of(data, bytes);
    digest_text(&digest, text);
    enum status st = path_of(dir, id, text, path, err);
    if (!st)
        st = file_write_atomic(path, data, bytes, err);
    if (!st)
        st = dir_sync(dir, err);
    if (!st)
        memcpy(digest_out, text, sizeof text);
    return st;
}

enum status blob_read(const char *dir, const char *id, const char *digest, uint64_t bytes, char **data_out,
                      struct error *err)
{
    char path[PATH_MAX_BYTES], text[33];
    char *data;
    size_t n;
    enum status st = path_of(dir, id, digest, path, err);
    if (!st)
        st = file_read(path, bytes, &data, &n, err);
    if (st)
        return st;
    const struct digest is = digest_of(data, n);
    digest_text(&is, text);
    if (n != bytes || strcmp(text, digest) != 0) {
        free(data);
        return error_set(err, ST_CORRUPT, "%s: its content is not what was written", path);
    }
    *data_out = data;
    return ST_OK;
}

void blob_remove(const char *dir, const char *id, const char *digest)
{
    char path[PATH_MAX_BYTES];
    if (!path_of(dir, id, digest, path, NULL))
        unlink(path);
}

size_t blobs_sweep(const char *dir, bool (*wanted)(void *ctx, const char *name), void *ctx)
{
    size_t n = 0;
    DIR *d = opendir(dir);
    if (!d)
        return 0;
    for (const struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.' && !wanted(ctx, e->d_name) && unlinkat(dirfd(d), e->d_name, 0) == 0)
            n++;
    closedir(d);
    return n;
}
