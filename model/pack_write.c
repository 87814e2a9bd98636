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
#include "model/pack_format.h"

enum { PATH_BYTES = 4096, BUFFER_BYTES = 1 << 20, SYNC_BYTES = 64 << 20, JOURNAL_MAX = 256 << 20 };

#define JOURNAL "journal"

/*
 * An attempt. Tensors are written one after the other; what has reached the disk is entered in the journal, a line each, so that an attempt that
 * follows begins behind the last line whose bytes are what it says.
 */
struct pack {
    const struct model *m;
    const struct pack_options *options;
    char out[PATH_BYTES - 16], partial[PATH_BYTES - 16];
    int lock;             /* the directory, held under flock */
    int weights;          /* weights.bin */
    FILE *journal;        /* appended to */
    json_t *header;       /* pack.json without tensors */
    json_t *tensors;      /* entries that are done */
    size_t n_entered;     /* of these, in the journal */
    uint64_t at, synced;  /* bytes of weights.bin written, and known to be on the disk */
    uint64_t done, total; /* weights, for progress */
    uint8_t *vocabulary;
    size_t vocabulary_bytes;
    struct hasher *hasher; /* of the tensor that is being written */
    uint8_t *buffer;       /* [BUFFER_BYTES] not yet written */
    size_t buffered;
    struct error *err;
};

static enum status fail(struct pack *p, const char *name)
{
    return error_set(p->err, errno == ENOSPC || errno == EDQUOT || errno == EFBIG ? ST_TOO_LARGE : ST_IO,
                     "%s/%s: %s (what is written stays for the next attempt)", p->partial, name, strerror(errno));
}

static enum status no_memory(struct pack *p)
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

/* data NULL: zeros, which belong to no tensor's checksum if hasher is NULL */
static enum status put(struct pack *p, const void *data, size_t bytes)
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

static enum status put_to(struct pack *p, uint64_t offset)
{
    return put(p, NULL, (size_t)(offset - p->at));
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
            return no_memory(p);
        if (!written)
            return fail(p, JOURNAL);
    }
    if (fflush(p->journal) || fdatasync(fileno(p->journal)) < 0)
        return fail(p, JOURNAL);
    p->synced = p->at;
    return ST_OK;
}

/* ---- tensors ---- */

/* One tensor on its way: what it will be, and memory for a group of rows. */
struct job {
    struct model_tensor t;
    enum weight_codec codec;
    uint32_t class_bits;
    float *wide;      /* [n_cols] */
    uint8_t *stored;  /* [LOSSLESS_OUTS] stored rows */
    uint16_t *halves; /* [LOSSLESS_OUTS][n_cols] */
    uint64_t offset, n_escapes;
};

static uint16_t to_bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if ((u & 0x7FFFFFFF) > 0x7F800000) /* a NaN stays one */
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

static const uint16_t *row_bf16(const struct job *j, uint32_t row, uint32_t slot)
{
    const struct model_tensor *t = &j->t;
    uint16_t *out = j->halves + (size_t)slot * t->n_cols;
    const void *stored = model_tensor_row(t, row, j->stored + (size_t)slot * ((t->row_bytes + 63) / 64 * 64));
    if (t->codec == WEIGHT_BF16 || t->codec == WEIGHT_LOSSLESS_FAST)
        return stored;
    weight_row_f32(t->codec, stored, t->n_cols, j->wide);
    for (uint32_t k = 0; k < t->n_cols; k++)
        out[k] = to_bf16(j->wide[k]);
    return out;
}

static enum status moved_on(struct pack *p, uint64_t weights)
{
    p->done += weights;
    if (p->options->stop && p->options->stop(p->options->ctx))
        return error_set(p->err, ST_CANCELLED, "%s: stopped; the same command goes on from there", p->partial);
    if (p->options->progress && p->total)
        p->options->progress(p->options->ctx, (float)((double)p->done / (double)p->total));
    return ST_OK;
}

static void group_rows(const struct job *j, uint32_t group, const uint16_t *rows[LOSSLESS_OUTS])
{
    for (uint32_t i = 0; i < LOSSLESS_OUTS; i++) {
        const uint32_t row = group * LOSSLESS_OUTS + i;
        rows[i] = row < j->t.n_rows ? row_bf16(j, row, i) : NULL;
    }
}

/* Counts, and decides between 3 bits, 4 bits and bf16. */
static enum status choose(struct pack *p, struct job *j)
{
    uint64_t escapes[2] = { 0 };
    for (uint32_t g = 0; g < lossless_groups(j->t.n_rows); g++) {
        const uint16_t *rows[LOSSLESS_OUTS];
        group_rows(j, g, rows);
        for (uint32_t k = 0; k < 2; k++)
            escapes[k] += lossless_count(rows, j->t.n_cols, 3 + k);
        const enum status st = moved_on(p, 0);
        if (st)
            return st;
    }
    j->class_bits = lossless_choose((uint64_t)j->t.n_rows * j->t.n_cols, escapes[0], escapes[1]);
    j->n_escapes = j->class_bits ? escapes[j->class_bits - 3] : 0;
    j->codec = j->class_bits ? WEIGHT_LOSSLESS_FAST : WEIGHT_BF16;
    return ST_OK;
}

static enum status write_lossless(struct pack *p, struct job *j)
{
    const uint32_t n_groups = lossless_groups(j->t.n_rows), n_blocks = lossless_blocks(j->t.n_cols);
    const size_t planes_bytes = n_blocks * lossless_block_bytes(j->class_bits);
    struct pack_parts parts;
    if (!pack_parts(j->t.n_rows, j->t.n_cols, j->class_bits, j->n_escapes, &parts))
        return no_memory(p);
    uint8_t *planes = malloc(planes_bytes), *escapes = malloc(j->n_escapes + 1);
    uint32_t *records = calloc((size_t)n_groups * n_blocks, sizeof *records);
    uint64_t *starts = calloc((size_t)n_groups + 1, sizeof *starts);
    enum status st = planes && escapes && records && starts ? ST_OK : no_memory(p);
    for (uint32_t g = 0; g < n_groups && !st; g++) {
        const uint16_t *rows[LOSSLESS_OUTS];
        group_rows(j, g, rows);
        starts[g + 1] = starts[g] + lossless_encode(rows, j->t.n_cols, j->class_bits, planes,
                                                    records + (size_t)g * n_blocks, escapes + starts[g]);
        st = put(p, planes, planes_bytes);
        if (!st)
            st = moved_on(p, (uint64_t)LOSSLESS_OUTS * j->t.n_cols);
    }
    if (!st && !(st = put(p, records, (size_t)n_groups * n_blocks * sizeof *records)) &&
        !(st = put_to(p, j->offset + parts.starts)) &&
        !(st = put(p, starts, ((size_t)n_groups + 1) * sizeof *starts)) && !(st = put_to(p, j->offset + parts.escapes)))
        st = put(p, escapes, j->n_escapes);
    free(planes);
    free(escapes);
    free(records);
    free(starts);
    return st;
}

static enum status write_rows(struct pack *p, struct job *j)
{
    enum status st = ST_OK;
    for (uint32_t r = 0; r < j->t.n_rows && !st; r++) {
        if (j->codec == j->t.codec)
            st = put(p, model_tensor_row(&j->t, r, j->stored), j->t.row_bytes);
        else
            st = put(p, row_bf16(j, r, 0), 2 * (size_t)j->t.n_cols);
        if (!st)
            st = moved_on(p, j->t.n_cols);
    }
    return st;
}

static enum status enter(struct pack *p, const struct job *j, const struct digest *checksum)
{
    char text[33];
    digest_text(checksum, text);
    json_t *o = json_pack("{s:s, s:I, s:s, s:I, s:I, s:I, s:I, s:s}", "kind", model_kind_name(j->t.kind), "layer",
                          (json_int_t)j->t.layer, "codec", weight_codec_name(j->codec), "rows", (json_int_t)j->t.n_rows,
                          "cols", (json_int_t)j->t.n_cols, "offset", (json_int_t)j->offset, "bytes",
                          (json_int_t)(p->at - j->offset), "checksum", text);
    if (o && j->codec == WEIGHT_LOSSLESS_FAST) {
        json_object_set_new(o, "layout", json_integer(LOSSLESS_LAYOUT_CPU));
        json_object_set_new(o, "class_bits", json_integer(j->class_bits));
        json_object_set_new(o, "escapes", json_integer((json_int_t)j->n_escapes));
    }
    return !o || json_array_append_new(p->tensors, o) ? no_memory(p) : ST_OK;
}

static enum status write_tensor(struct pack *p, const struct model_tensor *t)
{
    static const enum weight_codec codecs[] = { [PACK_BF16] = WEIGHT_BF16, [PACK_LOSSLESS_FAST] = WEIGHT_BF16 };
    const bool keep = t->n_rows == 1 || p->options->weights == PACK_AS_IS;
    struct job j = { .t = *t, .codec = keep ? t->codec : codecs[p->options->weights] };
    const size_t row_room = (t->row_bytes + 63) / 64 * 64;
    enum status st;
    j.wide = malloc(t->n_cols * sizeof *j.wide);
    j.stored = aligned_alloc(64, LOSSLESS_OUTS * row_room);
    j.halves = malloc(LOSSLESS_OUTS * (size_t)t->n_cols * sizeof *j.halves);
    st = j.wide && j.stored && j.halves ? model_tensor_check(t, p->err) : no_memory(p);
    if (!st && t->n_rows > 1 &&
        (p->options->weights == PACK_LOSSLESS_FAST || (keep && t->codec == WEIGHT_LOSSLESS_FAST)))
        st = choose(p, &j);
    if (!st)
        st = put_to(p, (p->at + PACK_ALIGN - 1) / PACK_ALIGN * PACK_ALIGN);
    j.offset = p->at;
    p->hasher = hasher_new();
    if (!st)
        st = j.codec == WEIGHT_LOSSLESS_FAST ? write_lossless(p, &j) : write_rows(p, &j);
    const struct digest checksum = hasher_end(p->hasher);
    p->hasher = NULL;
    if (!st)
        st = enter(p, &j, &checksum);
    free(j.wide);
    free(j.stored);
    free(j.halves);
    return st;
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
    char head[34], path[PATH_BYTES];
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
    char path[PATH_BYTES], head[33], *text = NULL;
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
    char path[PATH_BYTES];
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
        return no_memory(p);
    }
    const struct digest d = pack_header_digest(whole);
    digest_text(&d, checksum);
    json_object_set_new(whole, "checksum", json_string(checksum));
    char *text = json_dumps(whole, JSON_INDENT(1) | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    json_decref(whole);
    const enum status st = text ? write_part(p, PACK_HEADER, text, strlen(text)) : no_memory(p);
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
    char parent[PATH_BYTES];
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
    char path[PATH_BYTES];
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
        st = write_tensor(p, &t);
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
    enum status st = p.buffer && p.tensors && p.header ? set_paths(&p, out) : no_memory(&p);
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
