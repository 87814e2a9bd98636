#include "kvstore/disk_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"

/* 32 hexadecimal digits, then what it is. */
#define WHOLE   ".kv"
#define PARTIAL ".tmp"
enum { HEX = 32, NAME = HEX + 8 };

static void name_of(const struct digest *id, const char *ending, char name_out[NAME])
{
    digest_text(id, name_out);
    memcpy(name_out + HEX, ending, strlen(ending) + 1);
}

static int hex_of(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* -> is it a name of ours, with that ending */
static bool name_read(const char *name, const char *ending, struct digest *id_out)
{
    if (strlen(name) != HEX + strlen(ending) || strcmp(name + HEX, ending) != 0)
        return false;
    for (int i = 0; i < HEX / 2; i++) {
        const int high = hex_of(name[2 * i]), low = hex_of(name[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        id_out->byte[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

/* ---- the folder ---- */

/* The n-th one. ST_BUSY: another process has it. */
static enum status take(struct kv_folder *f, const char *dir, int n, struct error *err)
{
    snprintf(f->path, sizeof f->path, "%s/%d", dir, n);
    if (mkdir(f->path, 0700) && errno != EEXIST)
        return error_set(err, ST_IO, "kv-disk %s: %s", f->path, strerror(errno));
    f->fd = open(f->path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (f->fd < 0)
        return error_set(err, ST_IO, "kv-disk %s: %s", f->path, strerror(errno));
    f->lock = openat(f->fd, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (f->lock < 0)
        return error_set(err, ST_IO, "kv-disk %s/lock: %s", f->path, strerror(errno));
    if (flock(f->lock, LOCK_EX | LOCK_NB))
        return error_set(err, errno == EWOULDBLOCK ? ST_BUSY : ST_IO, "kv-disk %s/lock: %s", f->path, strerror(errno));
    return ST_OK;
}

enum status kv_folder_open(const struct kv_disk_config *config, struct kv_folder *f, struct error *err)
{
    *f = (struct kv_folder){ .fd = -1,
                             .lock = -1,
                             .io = { write, read },
                             .fingerprint = config->fingerprint,
                             .file_bytes_max = (uint64_t)config->contents_bytes_max + KV_DISK_HEADER };
    if (config->io)
        f->io = *config->io;
    enum status st = !config->dir[0] || strlen(config->dir) > 1024
                         ? error_set(err, ST_INVALID, "kv-disk: a path of %zu bytes", strlen(config->dir))
                         : file_mkdirs(config->dir, err);
    for (int n = 0; !st && n < KV_DISK_FOLDERS; n++) {
        struct error why = { 0 };
        const enum status got = take(f, config->dir, n, &why);
        if (!got)
            return ST_OK;
        kv_folder_close(f);
        if (got != ST_BUSY)
            st = error_set(err, got, "%s", why.text);
    }
    return st ? st : error_set(err, ST_BUSY, "kv-disk %s: other processes have all its folders", config->dir);
}

void kv_folder_close(struct kv_folder *f)
{
    if (f->fd >= 0)
        close(f->fd);
    if (f->lock >= 0)
        close(f->lock); /* the lock goes with it */
    f->fd = f->lock = -1;
}

/* ---- what is there ---- */

/* Of the file's header alone. */
static bool look(const struct kv_folder *f, const char *name, struct kv_folder_file *file)
{
    uint8_t header[KV_DISK_HEADER];
    struct stat about;
    const int fd = openat(f->fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return false;
    const bool sound =
        !fstat(fd, &about) && S_ISREG(about.st_mode) && (uint64_t)about.st_size <= f->file_bytes_max &&
        read(fd, header, sizeof header) == (ssize_t)sizeof header &&
        !kv_disk_header_check(header, (uint64_t)about.st_size, &f->fingerprint, &file->id, &file->position, NULL);
    close(fd);
    if (!sound)
        return false;
    file->bytes = (uint64_t)about.st_size;
    file->used_ns = (int64_t)about.st_mtim.tv_sec * 1000000000 + about.st_mtim.tv_nsec;
    return true;
}

static int by_use(const void *a, const void *b)
{
    const struct kv_folder_file *x = a, *y = b;
    if (x->used_ns != y->used_ns)
        return x->used_ns < y->used_ns ? -1 : 1;
    return memcmp(&x->id, &y->id, sizeof x->id);
}

static enum status add(struct kv_folder_file **files, uint32_t *n, uint32_t *room, const struct kv_folder_file *file)
{
    if (*n == *room) {
        const uint32_t more = *room ? 2 * *room : 64;
        struct kv_folder_file *grown = realloc(*files, more * sizeof *grown);
        if (!grown)
            return ST_NO_MEMORY;
        *files = grown;
        *room = more;
    }
    (*files)[(*n)++] = *file;
    return ST_OK;
}

enum status kv_folder_scan(const struct kv_folder *f, struct kv_folder_file **files_out, uint32_t *n_out,
                           uint32_t *refused_out, struct error *err)
{
    const int fd = openat(f->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    struct kv_folder_file *files = NULL;
    uint32_t n = 0, room = 0, refused = 0;
    enum status st = ST_OK;
    if (!dir) {
        if (fd >= 0)
            close(fd);
        return error_set(err, ST_IO, "kv-disk %s: %s", f->path, strerror(errno));
    }
    for (struct dirent *e; !st && (e = readdir(dir));) {
        struct kv_folder_file file = { 0 };
        if (name_read(e->d_name, PARTIAL, &file.id)) {
            unlinkat(f->fd, e->d_name, 0);
        } else if (name_read(e->d_name, WHOLE, &file.id)) {
            if (look(f, e->d_name, &file)) {
                st = add(&files, &n, &room, &file);
            } else {
                unlinkat(f->fd, e->d_name, 0);
                refused++;
            }
        }
    }
    closedir(dir);
    if (st) {
        free(files);
        return error_set(err, st, "kv-disk %s: no memory for what is there", f->path);
    }
    if (n)
        qsort(files, n, sizeof *files, by_use);
    *files_out = files;
    *n_out = n;
    *refused_out = refused;
    return ST_OK;
}

/* ---- files ---- */

static bool write_all(const struct kv_folder *f, int fd, const uint8_t *data, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        const ssize_t n = f->io.write(fd, data + done, bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            errno = n ? errno : ENOSPC;
            return false;
        }
        done += (size_t)n;
    }
    return true;
}

enum status kv_folder_write(const struct kv_folder *f, const struct digest *id, const uint8_t *file, size_t bytes,
                            struct error *err)
{
    char partial[NAME], whole[NAME];
    name_of(id, PARTIAL, partial);
    name_of(id, WHOLE, whole);
    const int fd = openat(f->fd, partial, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        const int why = errno;
        if (why == EEXIST) /* of an attempt that could not even be removed */
            unlinkat(f->fd, partial, 0);
        return error_set(err, ST_IO, "%s/%s: %s", f->path, partial, strerror(why));
    }
    bool done = write_all(f, fd, file, bytes);
    int why = errno;
    if (close(fd) && done) { /* a quota, or a server far away, may say it only now */
        done = false;
        why = errno;
    }
    if (done && renameat(f->fd, partial, f->fd, whole)) {
        done = false;
        why = errno;
    }
    if (done)
        return ST_OK;
    unlinkat(f->fd, partial, 0);
    return error_set(err, ST_IO, "%s/%s: %s", f->path, whole, strerror(why));
}

static enum status read_all(const struct kv_folder *f, int fd, uint8_t *to, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        const ssize_t n = f->io.read(fd, to + done, bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return ST_IO;
        if (!n)
            return ST_CORRUPT; /* it has become shorter */
        done += (size_t)n;
    }
    return ST_OK;
}

static enum status read_checked(const struct kv_folder *f, int fd, const char *name, const struct digest *id,
                                uint8_t **file_out, size_t *bytes_out, uint32_t *position_out, struct error *err)
{
    struct stat about;
    struct error why = { 0 };
    if (fstat(fd, &about))
        return error_set(err, ST_IO, "%s/%s: %s", f->path, name, strerror(errno));
    if (!S_ISREG(about.st_mode) || about.st_size < KV_DISK_HEADER || (uint64_t)about.st_size > f->file_bytes_max)
        return error_set(err, ST_CORRUPT, "%s/%s: no file of a block, %lld bytes", f->path, name,
                         (long long)about.st_size);
    const size_t bytes = (size_t)about.st_size;
    uint8_t *file = malloc(bytes);
    if (!file)
        return error_set(err, ST_NO_MEMORY, "%s/%s: no memory for %zu bytes", f->path, name, bytes);
    enum status st = read_all(f, fd, file, bytes);
    if (st == ST_IO)
        error_set(err, st, "%s/%s: %s", f->path, name, strerror(errno));
    else if (st)
        error_set(err, st, "%s/%s: it ends before %zu bytes", f->path, name, bytes);
    else if ((st = kv_disk_file_check(file, bytes, &f->fingerprint, id, position_out, &why)))
        error_set(err, st, "%s/%s: %s", f->path, name, why.text);
    if (st) {
        free(file);
        return st;
    }
    (void)futimens(fd, NULL); /* used now, also for who opens the folder next */
    *file_out = file;
    *bytes_out = bytes;
    return ST_OK;
}

enum status kv_folder_read(const struct kv_folder *f, const struct digest *id, uint8_t **file_out, size_t *bytes_out,
                           uint32_t *position_out, struct error *err)
{
    char name[NAME];
    name_of(id, WHOLE, name);
    const int fd = openat(f->fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return error_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s/%s: %s", f->path, name, strerror(errno));
    const enum status st = read_checked(f, fd, name, id, file_out, bytes_out, position_out, err);
    close(fd);
    return st;
}

void kv_folder_remove(const struct kv_folder *f, const struct digest *id)
{
    char name[NAME];
    name_of(id, WHOLE, name);
    unlinkat(f->fd, name, 0);
}
