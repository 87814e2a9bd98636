#define _GNU_SOURCE /* nftw */
#include "common/file.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static enum status fail(struct error *err, const char *path)
{
    return error_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: %s", path, strerror(errno));
}

enum status file_map_open(const char *path, struct file_map *map_out, struct error *err)
{
    struct stat info;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail(err, path);
    if (fstat(fd, &info) < 0) {
        const enum status st = fail(err, path);
        close(fd);
        return st;
    }
    if (!S_ISREG(info.st_mode)) {
        close(fd);
        return error_set(err, ST_IO, "%s: not a regular file", path);
    }
    struct file_map map = { NULL, (size_t)info.st_size };
    if (map.bytes) {
        void *p = mmap(NULL, map.bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            const enum status st = fail(err, path);
            close(fd);
            return st;
        }
        map.data = p;
    }
    close(fd);
    *map_out = map;
    return ST_OK;
}

void file_map_close(struct file_map *map)
{
    if (map && map->data)
        munmap((void *)(uintptr_t)map->data, map->bytes);
    if (map)
        *map = (struct file_map){ 0 };
}

enum status file_read(const char *path, size_t bytes_max, char **text_out, size_t *bytes_out, struct error *err)
{
    char *text = NULL;
    size_t n = 0, room = 0;
    enum status st = ST_OK;
    FILE *f = fopen(path, "rbe");
    if (!f)
        return fail(err, path);
    for (;;) {
        if (n + 1 >= room) {
            room = room ? room * 2 : 8192;
            char *bigger = realloc(text, room);
            if (!bigger) {
                st = error_set(err, ST_NO_MEMORY, "%s: out of memory", path);
                break;
            }
            text = bigger;
        }
        const size_t got = fread(text + n, 1, room - n - 1, f);
        n += got;
        if (n > bytes_max) {
            st = error_set(err, ST_TOO_LARGE, "%s: over %zu bytes", path, bytes_max);
            break;
        }
        if (got == 0) {
            if (ferror(f))
                st = fail(err, path);
            break;
        }
    }
    fclose(f);
    if (st) {
        free(text);
        return st;
    }
    text[n] = 0;
    *text_out = text;
    if (bytes_out)
        *bytes_out = n;
    return ST_OK;
}

enum status file_write_atomic(const char *path, const void *data, size_t bytes, struct error *err)
{
    char temporary[4096];
    if (snprintf(temporary, sizeof temporary, "%s.tmp.%ld", path, (long)getpid()) >= (int)sizeof temporary)
        return error_set(err, ST_TOO_LARGE, "%s: path too long", path);
    const int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return fail(err, temporary);
    enum status st = ST_OK;
    const uint8_t *p = data;
    while (bytes && !st) {
        const ssize_t n = write(fd, p, bytes);
        if (n < 0 && errno != EINTR)
            st = fail(err, temporary);
        if (n > 0) {
            p += n;
            bytes -= (size_t)n;
        }
    }
    if (!st && fsync(fd) < 0)
        st = fail(err, temporary);
    if (close(fd) < 0 && !st)
        st = fail(err, temporary);
    if (!st && rename(temporary, path) < 0)
        st = fail(err, path);
    if (st)
        unlink(temporary);
    return st;
}

enum status file_mkdirs(const char *path, struct error *err)
{
    char part[4096];
    const size_t n = strlen(path);
    if (n >= sizeof part)
        return error_set(err, ST_TOO_LARGE, "%s: path too long", path);
    memcpy(part, path, n + 1);
    for (size_t i = 1; i <= n; i++) {
        if (part[i] != '/' && part[i] != 0)
            continue;
        part[i] = 0;
        if (mkdir(part, 0700) < 0 && errno != EEXIST)
            return fail(err, part);
        part[i] = path[i];
    }
    return file_is_dir(path) ? ST_OK : error_set(err, ST_IO, "%s: not a directory", path);
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *place)
{
    (void)info, (void)kind, (void)place;
    remove(path);
    return 0;
}

enum status file_remove_tree(const char *path, struct error *err)
{
    enum { DESCRIPTORS = 16 };
    struct stat info;
    if (nftw(path, remove_one, DESCRIPTORS, FTW_DEPTH | FTW_PHYS) < 0)
        return fail(err, path);
    return lstat(path, &info) ? ST_OK : error_set(err, ST_IO, "%s: cannot be removed whole", path);
}

int file_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

int file_is_dir(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}
