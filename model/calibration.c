#include "model/calibration.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/file.h"
#include "model/bf16.h"
#include "model/json.h"
#include "model/source.h"

#define REFUSE(...) return error_set(err, ST_CORRUPT, __VA_ARGS__)

enum { ALIGN = 64, FIXED_BYTES = 32, HEADER_MAX = 1 << 20, NAME_DIGITS = 16 };

static const char magic[8] = "LSCALIB\n";

static const struct type_info {
    const char *name;
    size_t bytes;
} types[CALIBRATION_TYPES] = { { "f32", 4 }, { "bf16", 2 }, { "u8", 1 }, { "i32", 4 } };

struct calibration {
    struct file_map map; /* data NULL: the bytes are the caller's */
    struct calibration_origin origin;
    struct digest digest;
    struct calibration_array arrays[CALIBRATION_ARRAYS_MAX];
    uint32_t n_arrays;
};

static size_t aligned(size_t at)
{
    return (at + ALIGN - 1) / ALIGN * ALIGN;
}

static bool array_bytes(const struct calibration_array *a, size_t *bytes_out)
{
    size_t bytes = types[a->type].bytes;
    for (uint32_t i = 0; i < a->n_dims; i++)
        if (!a->dims[i] || !size_mul(bytes, a->dims[i], &bytes))
            return false;
    if (bytes > SIZE_MAX / 4)
        return false;
    *bytes_out = bytes;
    return true;
}

/* ---- writing ---- */

static char *describe(const struct calibration_origin *o, const struct calibration_array *arrays, uint32_t n_arrays)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < n_arrays; i++) {
        json_t *shape = json_array();
        for (uint32_t d = 0; d < arrays[i].n_dims; d++)
            json_array_append_new(shape, json_integer(arrays[i].dims[d]));
        json_array_append_new(list, json_pack("{s:s, s:s, s:o}", "name", arrays[i].name, "type",
                                              types[arrays[i].type].name, "shape", shape));
    }
    json_t *all = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:o}", "codec", o->codec, "method", o->method,
                            "model", o->model, "text", o->text, "weights", o->weights, "tokens", (json_int_t)o->tokens,
                            "sequence", (json_int_t)o->sequence, "seed", (json_int_t)o->seed, "arrays", list);
    char *text = all ? json_dumps(all, JSON_COMPACT) : NULL;
    json_decref(all);
    return text;
}

/* The whole file in memory, malloc'd. */
static enum status encode(const struct calibration_origin *origin, const struct calibration_array *arrays,
                          uint32_t n_arrays, uint8_t **file_out, size_t *bytes_out, struct error *err)
{
    size_t at, bytes = 0;
    if (n_arrays > CALIBRATION_ARRAYS_MAX || origin->seed >> 63 || origin->tokens >> 63)
        return error_set(err, ST_INVALID, "calibration: too many arrays, or numbers above 63 bits");
    char *header = describe(origin, arrays, n_arrays);
    if (!header)
        return error_set(err, ST_NO_MEMORY, "no memory");
    const uint32_t version = CALIBRATION_VERSION, header_bytes = (uint32_t)strlen(header);
    size_t whole = FIXED_BYTES + header_bytes;
    bool fits = header_bytes <= HEADER_MAX;
    for (uint32_t i = 0; i < n_arrays && fits; i++)
        fits = array_bytes(&arrays[i], &bytes) && size_add(aligned(whole), bytes, &whole);
    uint8_t *file = fits ? calloc(1, whole) : NULL;
    if (!file) {
        free(header);
        return error_set(err, fits ? ST_NO_MEMORY : ST_TOO_LARGE, "calibration: %s", fits ? "no memory" : "too large");
    }
    memcpy(file, magic, sizeof magic);
    memcpy(file + 8, &version, 4);
    memcpy(file + 12, &header_bytes, 4);
    memcpy(file + FIXED_BYTES, header, header_bytes);
    at = FIXED_BYTES + header_bytes;
    for (uint32_t i = 0; i < n_arrays; i++) {
        array_bytes(&arrays[i], &bytes);
        memcpy(file + aligned(at), arrays[i].data, bytes);
        at = aligned(at) + bytes;
    }
    const struct digest d = digest_of(file + FIXED_BYTES, whole - FIXED_BYTES);
    memcpy(file + 16, d.byte, sizeof d.byte);
    free(header);
    *file_out = file;
    *bytes_out = whole;
    return ST_OK;
}

enum status calibration_write(const char *path, const char *directory, const struct calibration_origin *origin,
                              const struct calibration_array *arrays, uint32_t n_arrays, struct digest *digest_out,
                              char *path_out, struct error *err)
{
    char own[CALIBRATION_PATH], text[33];
    uint8_t *file;
    size_t bytes;
    struct digest d;
    enum status st = encode(origin, arrays, n_arrays, &file, &bytes, err);
    if (st)
        return st;
    memcpy(d.byte, file + 16, sizeof d.byte);
    digest_text(&d, text);
    if (!path) {
        st = file_mkdirs(directory, err);
        if (snprintf(own, sizeof own, "%s/%s-%.*s", directory, origin->codec, NAME_DIGITS, text) >= (int)sizeof own)
            st = error_set(err, ST_TOO_LARGE, "%s: path too long", directory);
        path = own;
    }
    if (!st)
        st = file_write_atomic(path, file, bytes, err);
    free(file);
    if (st)
        return st;
    if (digest_out)
        *digest_out = d;
    if (path_out)
        snprintf(path_out, CALIBRATION_PATH, "%s", path);
    return ST_OK;
}

/* ---- reading ---- */

static enum status read_u64(const struct json_in *in, const char *key, uint64_t *out, struct error *err)
{
    const json_t *v = json_find(in, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        REFUSE("%s: key %s%s is no whole number", in->where, in->prefix, key);
    *out = (uint64_t)json_integer_value(v);
    return ST_OK;
}

static enum status read_origin(const struct json_in *in, struct calibration_origin *o, struct error *err)
{
    enum status st;
    if ((st = json_read_printable(in, "codec", o->codec, sizeof o->codec, err)) ||
        (st = json_read_printable(in, "method", o->method, sizeof o->method, err)) ||
        (st = json_read_printable(in, "model", o->model, sizeof o->model, err)) ||
        (st = json_read_printable(in, "text", o->text, sizeof o->text, err)) ||
        (st = json_read_printable(in, "weights", o->weights, sizeof o->weights, err)) ||
        (st = read_u64(in, "tokens", &o->tokens, err)) || (st = json_read_u32(in, "sequence", &o->sequence, NULL, err)))
        return st;
    return read_u64(in, "seed", &o->seed, err);
}

static enum status read_shape(const struct json_in *in, struct calibration_array *a, struct error *err)
{
    const json_t *shape = json_find(in, "shape"), *v;
    size_t i;
    if (!json_is_array(shape) || !json_array_size(shape) || json_array_size(shape) > CALIBRATION_DIMS_MAX)
        REFUSE("%s: key %sshape is not a list of 1 to %d numbers", in->where, in->prefix, CALIBRATION_DIMS_MAX);
    json_array_foreach((json_t *)(uintptr_t)shape, i, v)
    {
        const json_int_t n = json_is_integer(v) ? json_integer_value(v) : 0;
        if (n < 1 || n > INT32_MAX)
            REFUSE("%s: key %sshape: entry %zu is no number from 1 on", in->where, in->prefix, i);
        a->dims[a->n_dims++] = (uint32_t)n;
    }
    return ST_OK;
}

static enum status check_finite(const struct calibration_array *a, size_t bytes, const char *where, struct error *err)
{
    for (size_t i = 0; i < bytes / types[a->type].bytes; i++) {
        const float x = a->type == CALIBRATION_F32    ? ((const float *)a->data)[i]
                        : a->type == CALIBRATION_BF16 ? bf16_to_float(((const uint16_t *)a->data)[i])
                                                      : 0;
        if (!isfinite(x))
            REFUSE("%s: array %s: element %zu is not finite", where, a->name, i);
    }
    return ST_OK;
}

/* One array, whose bytes begin at *at of the file; *at moves behind it. */
static enum status read_array(struct calibration *c, const json_t *entry, const uint8_t *file, size_t whole, size_t *at,
                              const char *where, struct error *err)
{
    char prefix[48];
    const char *type;
    size_t bytes, end;
    struct calibration_array *a = &c->arrays[c->n_arrays];
    snprintf(prefix, sizeof prefix, "arrays[%u].", c->n_arrays);
    const struct json_in in = { entry, where, prefix };
    enum status st = ST_OK;
    if (!json_is_object(entry))
        REFUSE("%s: key arrays: entry %u is no object", where, c->n_arrays);
    if ((st = json_read_printable(&in, "name", a->name, sizeof a->name, err)) ||
        (st = json_read_text(&in, "type", &type, NULL, err)) || (st = read_shape(&in, a, err)))
        return st;
    for (a->type = 0; a->type < CALIBRATION_TYPES && strcmp(type, types[a->type].name) != 0;)
        a->type++;
    if (a->type == CALIBRATION_TYPES)
        REFUSE("%s: key %stype is none of f32, bf16, u8, i32", where, prefix);
    for (uint32_t i = 0; i < c->n_arrays; i++)
        if (!strcmp(c->arrays[i].name, a->name))
            REFUSE("%s: there are two arrays named %s", where, a->name);
    if (!array_bytes(a, &bytes) || !size_add(aligned(*at), bytes, &end) || end > whole)
        REFUSE("%s: array %s reaches beyond the end of the file", where, a->name);
    for (size_t i = *at; i < aligned(*at); i++)
        if (file[i])
            REFUSE("%s: byte %zu, between arrays, is not 0", where, i);
    a->data = file + aligned(*at);
    *at = end;
    c->n_arrays++;
    return check_finite(a, bytes, where, err);
}

static enum status read_header(struct calibration *c, const json_t *root, const uint8_t *file, size_t whole, size_t at,
                               const char *where, struct error *err)
{
    const struct json_in in = { root, where, "" };
    const json_t *arrays = json_find(&in, "arrays"), *entry;
    size_t i;
    enum status st = read_origin(&in, &c->origin, err);
    if (st)
        return st;
    if (!json_is_array(arrays) || json_array_size(arrays) > CALIBRATION_ARRAYS_MAX)
        REFUSE("%s: key arrays is not a list of at most %d", where, CALIBRATION_ARRAYS_MAX);
    json_array_foreach((json_t *)(uintptr_t)arrays, i, entry)
    {
        st = read_array(c, entry, file, whole, &at, where, err);
        if (st)
            return st;
    }
    if (at != whole)
        REFUSE("%s: %zu bytes follow the last array", where, whole - at);
    return ST_OK;
}

enum status calibration_open_bytes(const void *data, size_t bytes, const char *where,
                                   struct calibration **calibration_out, struct error *err)
{
    struct reader r = reader_of(data, bytes);
    const uint8_t *mark = reader_take(&r, sizeof magic);
    const uint32_t version = reader_u32(&r), header_bytes = reader_u32(&r);
    const uint8_t *digest = reader_take(&r, sizeof((struct digest *)0)->byte);
    if (r.bad || memcmp(mark, magic, sizeof magic) != 0)
        REFUSE("%s: no calibration", where);
    if (version != CALIBRATION_VERSION)
        return error_set(err, ST_UNSUPPORTED, "%s: a calibration of version %u, not %d", where, version,
                         CALIBRATION_VERSION);
    if (header_bytes > HEADER_MAX || header_bytes > reader_left(&r))
        REFUSE("%s: a header of %u bytes reaches beyond the end", where, header_bytes);
    const struct digest d = digest_of(r.at, reader_left(&r));
    if (memcmp(d.byte, digest, sizeof d.byte) != 0)
        REFUSE("%s: its checksum is not that of its bytes", where);
    struct calibration *c = calloc(1, sizeof *c);
    json_t *root = NULL;
    enum status st = c ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory");
    if (!st)
        st = json_parse_object((const char *)r.at, header_bytes, where, &root, err);
    if (!st)
        st = read_header(c, root, data, bytes, FIXED_BYTES + (size_t)header_bytes, where, err);
    json_decref(root);
    if (st) {
        calibration_close(c);
        return st;
    }
    c->digest = d;
    *calibration_out = c;
    return ST_OK;
}

enum status calibration_open(const char *path, struct calibration **calibration_out, struct error *err)
{
    struct file_map map;
    enum status st = file_map_open(path, &map, err);
    if (st)
        return st;
    st = calibration_open_bytes(map.data, map.bytes, path, calibration_out, err);
    if (st)
        file_map_close(&map);
    else
        (*calibration_out)->map = map;
    return st;
}

void calibration_close(struct calibration *c)
{
    if (!c)
        return;
    if (c->map.data)
        file_map_close(&c->map);
    free(c);
}

const struct calibration_origin *calibration_origin(const struct calibration *c)
{
    return &c->origin;
}

const struct digest *calibration_digest(const struct calibration *c)
{
    return &c->digest;
}

enum status calibration_array(const struct calibration *c, const char *name, enum calibration_type type,
                              uint32_t n_dims, const uint32_t *dims, uint32_t *dims_out, const void **data_out,
                              struct error *err)
{
    const struct calibration_array *a = NULL;
    for (uint32_t i = 0; i < c->n_arrays; i++)
        if (!strcmp(c->arrays[i].name, name))
            a = &c->arrays[i];
    if (!a)
        return error_set(err, ST_NOT_FOUND, "calibration of %s: it has no array %s", c->origin.codec, name);
    if (a->type != type || a->n_dims != n_dims)
        return error_set(err, ST_INVALID, "calibration of %s: array %s is %s of %u dimensions, not %s of %u",
                         c->origin.codec, name, types[a->type].name, a->n_dims, types[type].name, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        if (dims[i] && dims[i] != a->dims[i])
            return error_set(err, ST_INVALID, "calibration of %s: array %s: dimension %u is %u, not %u",
                             c->origin.codec, name, i, a->dims[i], dims[i]);
    if (dims_out)
        memcpy(dims_out, a->dims, n_dims * sizeof *dims_out);
    *data_out = a->data;
    return ST_OK;
}

/* ---- where they lie ---- */

enum status calibration_directory(const char *model_spec, char *directory_out, struct error *err)
{
    char base[CALIBRATION_PATH];
    if (!file_exists(model_spec) || snprintf(base, sizeof base, "%s", model_spec) >= (int)sizeof base)
        return error_set(err, ST_INVALID, "model %s has no directory for calibrations: name a file", model_spec);
    if (!file_is_dir(base)) {
        char *slash = strrchr(base, '/');
        if (slash)
            slash[slash == base] = 0;
        else
            snprintf(base, sizeof base, ".");
    }
    if (snprintf(directory_out, CALIBRATION_PATH, "%s/calibration", base) >= CALIBRATION_PATH)
        return error_set(err, ST_TOO_LARGE, "%s: path too long", base);
    return ST_OK;
}

static enum status none_in(const char *where, const char *model_spec, const char *flag, const char *codec,
                           struct error *err)
{
    return error_set(err, ST_NOT_FOUND,
                     "%s needs a calibration of this model, and there is none in %s: make it by  longspan calibrate "
                     "--model %s --%s %s --text FILE",
                     codec, where, model_spec, flag, codec);
}

/* Whether a file is a calibration of this codec and model. What is something else is passed over. */
static bool is_of(const char *path, const char *codec, const char *model)
{
    struct calibration *c;
    if (calibration_open(path, &c, NULL))
        return false;
    const bool is = !strcmp(c->origin.codec, codec) && !strcmp(c->origin.model, model);
    calibration_close(c);
    return is;
}

static enum status find(const char *model_spec, const char *flag, const char *codec, const struct digest *model,
                        char *path_out, struct error *err)
{
    char directory[CALIBRATION_PATH], found[CALIBRATION_PATH] = "", digest[33];
    const struct dirent *entry;
    const size_t n = strlen(codec);
    enum status st = calibration_directory(model_spec, directory, err);
    if (st)
        return st;
    DIR *dir = opendir(directory);
    digest_text(model, digest);
    while (dir && (entry = readdir(dir)) && !st) {
        char path[CALIBRATION_PATH + sizeof entry->d_name + 1];
        snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        if (strncmp(entry->d_name, codec, n) != 0 || entry->d_name[n] != '-' ||
            strlen(entry->d_name) != n + 1 + NAME_DIGITS || strlen(path) >= CALIBRATION_PATH ||
            !is_of(path, codec, digest))
            continue;
        if (found[0])
            st = error_set(err, ST_INVALID, "%s %s: there are several calibrations, %s and %s: name one", flag, codec,
                           found, entry->d_name);
        memcpy(found, path, strlen(path) + 1);
    }
    if (dir)
        closedir(dir);
    if (st)
        return st;
    if (!found[0])
        return none_in(directory, model_spec, flag, codec, err);
    memcpy(path_out, found, sizeof found);
    return ST_OK;
}

enum status calibration_find(const char *model_spec, const char *codec, const struct digest *model, char *path_out,
                             struct error *err)
{
    return find(model_spec, "kv-codec", codec, model, path_out, err);
}

static const char *flag_of(const struct calibration_wanted *w)
{
    return w->flag ? w->flag : "kv-codec";
}

/* MODEL/calibration/<codec>-<digest> */
static enum status path_of(const struct calibration_wanted *w, char *path_out, struct error *err)
{
    char directory[CALIBRATION_PATH];
    const enum status st = calibration_directory(w->model_spec, directory, err);
    if (st)
        return st;
    if (snprintf(path_out, CALIBRATION_PATH, "%s/%s-%.*s", directory, w->codec, NAME_DIGITS, w->digest) >=
        CALIBRATION_PATH)
        return error_set(err, ST_TOO_LARGE, "%s: path too long", directory);
    return file_exists(path_out) ? ST_OK : none_in(path_out, w->model_spec, flag_of(w), w->codec, err);
}

enum status calibration_open_wanted(const struct calibration_wanted *w, struct calibration **calibration_out,
                                    struct error *err)
{
    char path[CALIBRATION_PATH], model[33], is[33];
    struct calibration *c = NULL;
    const bool named = w->path && w->path[0], known = w->digest && w->digest[0];
    enum status st = ST_OK;
    if (!named)
        st = known ? path_of(w, path, err) : find(w->model_spec, flag_of(w), w->codec, &w->model, path, err);
    if (!st)
        st = calibration_open(named ? w->path : path, &c, err);
    if (st)
        return st;
    digest_text(&w->model, model);
    digest_text(&c->digest, is);
    if (strcmp(c->origin.codec, w->codec) != 0)
        st = error_set(err, ST_INVALID, "%s: a calibration of %s, not of %s", named ? w->path : path, c->origin.codec,
                       w->codec);
    else if (strcmp(c->origin.model, model) != 0)
        st = error_set(err, ST_INVALID, "%s: a calibration of model %s, this one is %s", named ? w->path : path,
                       c->origin.model, model);
    else if (known && strcmp(is, w->digest) != 0)
        st = error_set(err, ST_INVALID, "%s: calibration %s, but %s is served", named ? w->path : path, is, w->digest);
    if (st)
        calibration_close(c);
    else
        *calibration_out = c;
    return st;
}
