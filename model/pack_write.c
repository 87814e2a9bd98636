#define _GNU_SOURCE /* renameat2 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/json.h"
#include "model/pack_writer.h"

enum { BUFFER_BYTES = 1 << 20, SYNC_BYTES = 64 << 20, JOURNAL_MAX = 256 << 20 };

#define JOURNAL "journal"

static enum status fail(struct pack *p, const char *name)
{
    return error_set(p->err, errno == ENOSPC || errno == EDQUOT || errno == EFBIG ? ST_TOO_LARGE : ST_IO,
                     "%s/%s: %s (what is written stays for the next attempt)", p->partial, name, strerror(errno));
}

enum status pack_no_memory(struct pack *p)
{
    return error_set(p->err, ST_NO_MEMORY, "%s: out of memory", p->out);
}

/* ---- bytes of weights.bin ---- */

static enum status flush(struct pack *p)
{
    size_t from = 0;
    while (from < p->buffered) {
        const ssize_t n = write(p->weights, p->buffer + from, p->buffered - from);
        if (n < 0 && errno != EINTR)
            return fail(p, PACK_WEIGHTS);
        if (n > 0)
            from += (size_t)n;
    }
    p->buffered = 0;
    return ST_OK;
}

enum status pack_put(struct pack *p, const void *data, size_t bytes)
{
    const uint8_t *from = data;
    while (bytes) {
        const size_t room = BUFFER_BYTES - p->buffered, n = bytes < room ? bytes : room;
        uint8_t *to = p->buffer + p->buffered;
        if (from)
            memcpy(to, from, n);
        else
            memset(to, 0, n);
        if (p->hasher)
            hasher_add(p->hasher, to, n);
        p->buffered += n;
        p->at += n;
        from = from ? from + n : NULL;
        bytes -= n;
        if (p->buffered < BUFFER_BYTES)
            continue;
        const enum status st = flush(p);
        if (st)
            return st;
    }
    return ST_OK;
}

enum status pack_put_to(struct pack *p, uint64_t offset)
{
    return pack_put(p, NULL, (size_t)(offset - p->at));
}

/* Everything written is brought to the disk, and then entered. */
static enum status sync_journal(struct pack *p)
{
    const enum status st = flush(p);
    if (st)
        return st;
    if (fdatasync(p->weights) < 0)
        return fail(p, PACK_WEIGHTS);
    for (; p->n_entered < json_array_size(p->tensors); p->n_entered++) {
        char *line = json_dumps(json_array_get(p->tensors, p->n_entered), JSON_COMPACT | JSON_SORT_KEYS);
        const bool written = line && fprintf(p->journal, "%s\n", line) > 0;
        const bool memory = line != NULL;
        free(line);
        if (!memory)
            return pack_no_memory(p);
        if (!written)
            return fail(p, JOURNAL);
    }
    if (fflush(p->journal) || fdatasync(fileno(p->journal)) < 0)
        return fail(p, JOURNAL);
    p->synced = p->at;
    return ST_OK;
}

/* ---- what an earlier attempt left ---- */

/* The first line of the journal: which attempt this is. */
static void journal_head(const struct pack *p, char text_out[33])
{
    const struct digest d = pack_header_digest(p->header);
    digest_text(&d, text_out);
}

/* Is the next line of the journal tensor t, with the bytes that it says? Then it is taken over. */
static bool take_line(struct pack *p, const char *line, size_t bytes, const struct model_tensor *t,
                      const struct file_map *map)
{
    const uint64_t offset = (p->at + PACK_ALIGN - 1) / PACK_ALIGN * PACK_ALIGN;
    const char *kind, *checksum;
    json_int_t layer, at, n;
    struct digest want;
    json_t *o = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, NULL);
    bool good = o && !json_unpack(o, "{s:s, s:I, s:I, s:I, s:s}", "kind", &kind, "layer", &layer, "offset", &at,
                                  "bytes", &n, "checksum", &checksum);
    good = good && strcmp(kind, model_kind_name(t->kind)) == 0 && layer == (json_int_t)t->layer &&
           at == (json_int_t)offset && n >= 0 && offset <= map->bytes && (uint64_t)n <= map->bytes - offset &&
           pack_digest_parse(checksum, &want);
    if (good) {
        const struct digest got = digest_of(map->data + offset, (size_t)n);
        good = memcmp(&want, &got, sizeof want) == 0 && !json_array_append(p->tensors, o);
    }
    if (good)
        p->at = offset + (uint64_t)n;
    json_decref(o);
    return good;
}

/* Tensor i of the model in the order of packs; false: there are no more. */
static bool tensor_at(const struct model *m, uint32_t *i, struct model_tensor *t_out)
{
    for (; *i < m->n_tensors; ++*i)
        if (m->tensors[*i].n_rows) {
            *t_out = m->tensors[(*i)++];
            return true;
        }
    return false;
}

/* -> the model's tensor at which to go on; the journal's text beyond `used_out` is not wanted. */
static uint32_t take_over(struct pack *p, const char *text, size_t bytes, size_t *used_out)
{
    char head[34], path[PACK_PATH_BYTES];
    struct file_map map;
    struct model_tensor t;
    uint32_t i = 0, next = 0;
    journal_head(p, head);
    head[32] = '\n';
    *used_out = 0;
    snprintf(path, sizeof path, "%s/" PACK_WEIGHTS, p->partial);
    if (bytes < 33 || memcmp(text, head, 33) != 0 || file_map_open(path, &map, NULL))
        return 0;
    *used_out = 33;
    while (tensor_at(p->m, &i, &t)) {
        const char *line = text + *used_out, *end = memchr(line, '\n', bytes - *used_out);
        if (!end || !take_line(p, line, (size_t)(end - line), &t, &map))
            break;
        *used_out += (size_t)(end + 1 - line);
        p->done += (uint64_t)t.n_rows * t.n_cols;
        next = i;
    }
    file_map_close(&map);
    return next;
}

static enum status open_files(struct pack *p, uint32_t *next_out)
{
    char path[PACK_PATH_BYTES], head[33], *text = NULL;
    size_t bytes = 0, used = 0;
    snprintf(path, sizeof path, "%s/" JOURNAL, p->partial);
    if (file_exists(path) && !file_read(path, JOURNAL_MAX, &text, &bytes, NULL))
        *next_out = take_over(p, text, bytes, &used);
    free(text);
    p->journal = fopen(path, used ? "r+e" : "we");
    if (!p->journal || ftruncate(fileno(p->journal), (off_t)used) < 0 || fseek(p->journal, 0, SEEK_END))
        return fail(p, JOURNAL);
    journal_head(p, head);
    if (!used && fprintf(p->journal, "%s\n", head) < 0)
        return fail(p, JOURNAL);
    snprintf(path, sizeof path, "%s/" PACK_WEIGHTS, p->partial);
    p->weights = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (p->weights < 0 || ftruncate(p->weights, (off_t)p->at) < 0 || lseek(p->weights, (off_t)p->at, SEEK_SET) < 0)
        return fail(p, PACK_WEIGHTS);
    p->n_entered = json_array_size(p->tensors);
    p->synced = p->at;
    return ST_OK;
}

/* ---- the directory ---- */

static enum status may_replace(struct pack *p)
{
    char source[128], weights[128];
    struct stat info;
    if (lstat(p->out, &info) < 0)
        return errno == ENOENT ? ST_OK : error_set(p->err, ST_IO, "%s: %s", p->out, strerror(errno));
    if (!S_ISDIR(info.st_mode) || pack_identify(p->out, source, weights, NULL))
        return error_set(p->err, ST_EXISTS, "%s: exists, and is no finished pack: it is not replaced", p->out);
    if (strcmp(source, p->m->config.name) != 0 || strcmp(weights, pack_weights_name(p->options->weights)) != 0)
        return error_set(p->err, ST_EXISTS, "%s: is a pack of %s as %s: it is not replaced by one of %s as %s", p->out,
                         source, weights, p->m->config.name, pack_weights_name(p->options->weights));
    return ST_OK;
}

/* The partial directory, made if need be and held for this process alone. */
static enum status hold(struct pack *p)
{
    struct stat held, named;
    if (mkdir(p->partial, 0755) < 0 && errno != EEXIST)
        return error_set(p->err, ST_IO, "%s: %s", p->partial, strerror(errno));
    p->lock = open(p->partial, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (p->lock < 0)
        return error_set(p->err, ST_IO, "%s: %s", p->partial, strerror(errno));
    /* one who held it may just have given it its name */
    if (flock(p->lock, LOCK_EX | LOCK_NB) < 0 || fstat(p->lock, &held) < 0 || stat(p->partial, &named) < 0 ||
        held.st_ino != named.st_ino || held.st_dev != named.st_dev)
        return error_set(p->err, ST_BUSY, "%s: another process is writing it", p->partial);
    return ST_OK;
}

static enum status write_part(struct pack *p, const char *name, const void *data, size_t bytes)
{
    char path[PACK_PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", p->partial, name);
    if (!data)
        return ST_OK;
    const enum status st = file_write_atomic(path, data, bytes, p->err);
    if (!st)
        chmod(path, 0644);
    return st;
}

static enum status write_header(struct pack *p)
{
    char checksum[33];
    json_t *whole = json_deep_copy(p->header);
    if (!whole || json_object_set(whole, "tensors", p->tensors)) {
        json_decref(whole);
        return pack_no_memory(p);
    }
    const struct digest d = pack_header_digest(whole);
    digest_text(&d, checksum);
    json_object_set_new(whole, "checksum", json_string(checksum));
    char *text = json_dumps(whole, JSON_INDENT(1) | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    json_decref(whole);
    const enum status st = text ? write_part(p, PACK_HEADER, text, strlen(text)) : pack_no_memory(p);
    free(text);
    return st;
}

static void sync_directory(const char *path)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
}

static void sync_parent(const char *path)
{
    char parent[PACK_PATH_BYTES];
    snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    if (slash)
        slash[slash == parent] = 0;
    sync_directory(slash ? parent : ".");
}

/* The partial directory gets its name; an older pack of that name goes. */
static enum status give_name(struct pack *p)
{
    struct error removal = { 0 };
    sync_directory(p->partial);
    if (renameat2(AT_FDCWD, p->partial, AT_FDCWD, p->out, RENAME_NOREPLACE) == 0) {
        sync_parent(p->out);
        return ST_OK;
    }
    enum status st = errno == EEXIST ? may_replace(p) : error_set(p->err, ST_IO, "%s: %s", p->out, strerror(errno));
    if (st)
        return st;
    if (renameat2(AT_FDCWD, p->partial, AT_FDCWD, p->out, RENAME_EXCHANGE) < 0)
        return error_set(p->err, ST_IO, "%s: %s", p->out, strerror(errno));
    sync_parent(p->out);
    file_remove_tree(p->partial, &removal);
    return ST_OK;
}

static enum status finish(struct pack *p)
{
    const struct model_vocab *v = &p->m->vocab;
    char path[PACK_PATH_BYTES];
    enum status st;
    if ((st = sync_journal(p)) || (st = write_part(p, PACK_VOCABULARY, p->vocabulary, p->vocabulary_bytes)) ||
        (st = write_part(p, PACK_TOKENIZER, v->tokenizer_json, v->tokenizer_json_bytes)) ||
        (st = write_part(p, PACK_TEMPLATE, v->chat_template, v->chat_template ? strlen(v->chat_template) : 0)) ||
        (st = write_header(p)))
        return st;
    snprintf(path, sizeof path, "%s/" JOURNAL, p->partial);
    unlink(path);
    return give_name(p);
}

static enum status write_tensors(struct pack *p, uint32_t next)
{
    struct model_tensor t;
    enum status st = ST_OK;
    while (!st && tensor_at(p->m, &next, &t)) {
        st = pack_write_tensor(p, &t);
        if (!st && p->at - p->synced >= SYNC_BYTES)
            st = sync_journal(p);
    }
    if (st == ST_CANCELLED)
        sync_journal(p);
    return st;
}

static enum status set_paths(struct pack *p, const char *out)
{
    size_t n = strlen(out);
    while (n > 1 && out[n - 1] == '/')
        n--;
    if (!n || n + sizeof ".partial" > sizeof p->partial)
        return error_set(p->err, ST_INVALID, "the directory to write is \"\", or its name is too long");
    memcpy(p->out, out, n);
    snprintf(p->partial, sizeof p->partial, "%.*s.partial", (int)n, out);
    return ST_OK;
}

/* How weights were quantized belongs to what the pack is: another attempt with another text begins anew. */
static enum status note_calibration(struct pack *p)
{
    const struct pack_options *o = p->options;
    json_t *how = o->quantized ? json_loads(o->quantized, 0, NULL) : NULL;
    if (!o->quantize || !json_is_object(how)) {
        json_decref(how);
        return error_set(p->err, ST_INVALID, "%s: %s takes a calibration", p->out, pack_weights_name(o->weights));
    }
    return json_object_set_new(p->header, "quantized", how) ? pack_no_memory(p) : ST_OK;
}

enum status pack_write(const struct model *m, const char *out, const struct pack_options *options,
                       uint32_t *resumed_out, struct error *err)
{
    struct pack p = { .m = m, .options = options, .lock = -1, .weights = -1, .err = err };
    uint32_t next = 0;
    for (uint32_t i = 0; i < m->n_tensors; i++)
        p.total += (uint64_t)m->tensors[i].n_rows * m->tensors[i].n_cols;
    p.buffer = malloc(BUFFER_BYTES);
    p.tensors = json_array();
    p.header = pack_describe(m, options->weights, &p.vocabulary, &p.vocabulary_bytes);
    enum status st = p.buffer && p.tensors && p.header ? set_paths(&p, out) : pack_no_memory(&p);
    if (!st && pack_weights_calibrated(options->weights))
        st = note_calibration(&p);
    if (!st && !(st = may_replace(&p)) && !(st = hold(&p)) && !(st = open_files(&p, &next))) {
        if (resumed_out)
            *resumed_out = (uint32_t)json_array_size(p.tensors);
        if (!(st = write_tensors(&p, next)))
            st = finish(&p);
    }
    if (p.journal)
        fclose(p.journal);
    if (p.weights >= 0)
        close(p.weights);
    if (p.lock >= 0)
        close(p.lock);
    json_decref(p.header);
    json_decref(p.tensors);
    free(p.vocabulary);
    free(p.buffer);
    return st;
}
