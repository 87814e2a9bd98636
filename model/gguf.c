#include "model/gguf.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "model/source.h"

enum {
    KEY_BYTES_MAX = 65535,
    NAME_BYTES_MAX = 63,
    ARRAY_DEPTH_MAX = 4,
    ALIGNMENT_MAX = 1 << 16,
    KEY_BYTES_LEAST = 8 + 1 + 4 + 1,        /* of a key with its value in the file */
    TENSOR_BYTES_LEAST = 8 + 1 + 4 + 4 + 8, /* of a tensor's description */
};
static const uint64_t elements_max = (uint64_t)1 << 30;

#define REFUSE(...) return error_set(err, ST_CORRUPT, __VA_ARGS__)

static const uint8_t type_bytes[GGUF_TYPES] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };

/* Those whose size is known; all others are refused by the readers anyway, so their names are enough. */
static const struct {
    uint32_t type;
    const char *name;
    uint32_t block, block_bytes;
} tensor_types[] = {
    { 0, "F32", 1, 4 },       { 1, "F16", 1, 2 },       { 2, "Q4_0", 32, 18 },    { 3, "Q4_1", 32, 20 },
    { 6, "Q5_0", 32, 22 },    { 7, "Q5_1", 32, 24 },    { 8, "Q8_0", 32, 34 },    { 9, "Q8_1", 32, 36 },
    { 10, "Q2_K", 256, 84 },  { 11, "Q3_K", 256, 110 }, { 12, "Q4_K", 256, 144 }, { 13, "Q5_K", 256, 176 },
    { 14, "Q6_K", 256, 210 }, { 15, "Q8_K", 0, 0 },     { 16, "IQ2_XXS", 0, 0 },  { 17, "IQ2_XS", 0, 0 },
    { 18, "IQ3_XXS", 0, 0 },  { 19, "IQ1_S", 0, 0 },    { 20, "IQ4_NL", 0, 0 },   { 21, "IQ3_S", 0, 0 },
    { 22, "IQ2_S", 0, 0 },    { 23, "IQ4_XS", 0, 0 },   { 24, "I8", 1, 1 },       { 25, "I16", 1, 2 },
    { 26, "I32", 1, 4 },      { 27, "I64", 1, 8 },      { 28, "F64", 1, 8 },      { 29, "IQ1_M", 0, 0 },
    { 30, "BF16", 1, 2 },     { 34, "TQ1_0", 0, 0 },    { 35, "TQ2_0", 0, 0 },    { 39, "MXFP4", 32, 17 },
    { 40, "NVFP4", 64, 36 },  { 41, "Q1_0", 0, 0 },     { 42, "Q2_0", 0, 0 },
};
enum { N_TENSOR_TYPES = sizeof tensor_types / sizeof *tensor_types };

const char *gguf_tensor_type_name(uint32_t type)
{
    for (size_t i = 0; i < N_TENSOR_TYPES; i++)
        if (tensor_types[i].type == type)
            return tensor_types[i].name;
    return NULL;
}

bool gguf_text_is(struct gguf_text t, const char *text)
{
    return t.bytes == strlen(text) && memcmp(t.text, text, t.bytes) == 0;
}

static int text_order(struct gguf_text a, struct gguf_text b)
{
    const size_t n = a.bytes < b.bytes ? a.bytes : b.bytes;
    const int order = memcmp(a.text, b.text, n);
    return order ? order : (a.bytes > b.bytes) - (a.bytes < b.bytes);
}

static struct gguf_text read_text(struct reader *r)
{
    const uint64_t n = reader_u64(r);
    struct gguf_text t = { (const char *)reader_take(r, n), n };
    return t.text ? t : (struct gguf_text){ "", 0 };
}

/* Steps over one value and checks it. */
static bool skip_value(struct reader *r, uint32_t type, int depth)
{
    if (type >= GGUF_TYPES)
        return false;
    if (type == GGUF_STRING) {
        read_text(r);
    } else if (type == GGUF_BOOL) {
        return reader_u8(r) <= 1 && !r->bad;
    } else if (type == GGUF_ARRAY) {
        const uint32_t element = reader_u32(r);
        const uint64_t n = reader_u64(r);
        size_t bytes;
        if (r->bad || element >= GGUF_TYPES || n > elements_max || depth == ARRAY_DEPTH_MAX)
            return false;
        if (type_bytes[element] && element != GGUF_BOOL)
            return size_mul(n, type_bytes[element], &bytes) && reader_take(r, bytes);
        for (uint64_t i = 0; i < n; i++)
            if (!skip_value(r, element, depth + 1))
                return false;
    } else {
        reader_take(r, type_bytes[type]);
    }
    return !r->bad;
}

static enum status parse_key(struct reader *r, const char *where, struct gguf_key *k, struct error *err)
{
    char name[72];
    k->name = read_text(r);
    const uint32_t type = reader_u32(r);
    if (r->bad)
        REFUSE("%s: the file ends inside a key", where);
    model_printable(name, sizeof name, k->name.text, k->name.bytes);
    if (k->name.bytes == 0 || k->name.bytes > KEY_BYTES_MAX)
        REFUSE("%s: a key's name has %zu bytes (1 to %d)", where, k->name.bytes, KEY_BYTES_MAX);
    if (type >= GGUF_TYPES)
        REFUSE("%s: key %s: value type %u is unknown", where, name, type);
    k->type = type;
    k->n = 1;
    const uint8_t *start = r->at;
    if (!skip_value(r, type, 0))
        REFUSE("%s: key %s: its value is malformed or cut off", where, name);
    k->data = start;
    if (type == GGUF_ARRAY) {
        struct reader head = reader_of(start, 12);
        k->element = reader_u32(&head);
        k->n = reader_u64(&head);
        k->data = start + 12;
    }
    k->bytes = (size_t)(r->at - k->data);
    return ST_OK;
}

/* qsort has no context argument in C17, and qsort_r's is not portable; a heap sort of indices is short. */
static void sort_names(const struct gguf_text *names, uint32_t *index, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        index[i] = i;
    for (uint32_t start = n / 2, end = n; end > 1;) {
        if (start) {
            start--;
        } else {
            end--;
            const uint32_t top = index[end];
            index[end] = index[0];
            index[0] = top;
        }
        for (uint32_t root = start, child; (child = 2 * root + 1) < end; root = child) {
            if (child + 1 < end && text_order(names[index[child]], names[index[child + 1]]) < 0)
                child++;
            if (text_order(names[index[root]], names[index[child]]) >= 0)
                break;
            const uint32_t kept = index[root];
            index[root] = index[child];
            index[child] = kept;
        }
    }
}

/* Sorts and refuses a name that is there twice. index [n] is the caller's. */
static enum status names_unique(const struct gguf_text *names, uint32_t n, uint32_t *index, const char *what,
                                const char *where, struct error *err)
{
    char name[72];
    sort_names(names, index, n);
    for (uint32_t i = 1; i < n; i++)
        if (text_order(names[index[i - 1]], names[index[i]]) == 0)
            REFUSE("%s: %s %s is there twice", where, what,
                   model_printable(name, sizeof name, names[index[i]].text, names[index[i]].bytes));
    return ST_OK;
}

static enum status parse_keys(struct reader *r, struct gguf *g, uint64_t n, struct error *err)
{
    if (n > reader_left(r) / KEY_BYTES_LEAST || n > UINT32_MAX)
        REFUSE("%s: %" PRIu64 " keys do not fit into the file", g->where, n);
    g->keys = calloc(n + 1, sizeof *g->keys);
    g->by_name = calloc(n + 1, sizeof *g->by_name);
    struct gguf_text *names = calloc(n + 1, sizeof *names);
    enum status st =
        g->keys && g->by_name && names ? ST_OK : error_set(err, ST_NO_MEMORY, "%s: out of memory", g->where);
    for (uint64_t i = 0; !st && i < n; i++) {
        st = parse_key(r, g->where, &g->keys[i], err);
        names[i] = g->keys[i].name;
    }
    if (!st) {
        g->n_keys = (uint32_t)n;
        st = names_unique(names, g->n_keys, g->by_name, "key", g->where, err);
    }
    free(names);
    return st;
}

/* offset_out: as the file says, relative to the data. */
static enum status parse_tensor(struct reader *r, const char *where, struct gguf_tensor *t, uint64_t *offset_out,
                                struct error *err)
{
    char name[72];
    t->name = read_text(r);
    t->n_dims = reader_u32(r);
    if (r->bad)
        REFUSE("%s: the file ends inside a tensor's description", where);
    model_printable(name, sizeof name, t->name.text, t->name.bytes);
    if (t->name.bytes == 0 || t->name.bytes > NAME_BYTES_MAX)
        REFUSE("%s: the tensor name %s... has %zu bytes (1 to %d)", where, name, t->name.bytes, NAME_BYTES_MAX);
    if (t->n_dims < 1 || t->n_dims > 4)
        REFUSE("%s: tensor %s has %u dimensions (1 to 4)", where, name, t->n_dims);
    for (uint32_t i = t->n_dims; i-- > 0;)
        t->dims[i] = reader_u64(r);
    t->type = reader_u32(r);
    *offset_out = reader_u64(r);
    if (r->bad)
        REFUSE("%s: the file ends inside the description of tensor %s", where, name);
    size_t elements = 1;
    for (uint32_t i = 0; i < t->n_dims; i++)
        if (t->dims[i] == 0 || !size_mul(elements, t->dims[i], &elements))
            REFUSE("%s: tensor %s: dimension %u is %" PRIu64, where, name, t->n_dims - 1 - i, t->dims[i]);
    for (size_t i = 0; i < N_TENSOR_TYPES; i++) {
        if (tensor_types[i].type != t->type)
            continue;
        if (!tensor_types[i].block)
            return error_set(err, ST_UNSUPPORTED, "%s: tensor %s: type %s is not supported", where, name,
                             tensor_types[i].name);
        if (t->dims[t->n_dims - 1] % tensor_types[i].block)
            REFUSE("%s: tensor %s: rows of %" PRIu64 " elements are not whole %s blocks", where, name,
                   t->dims[t->n_dims - 1], tensor_types[i].name);
        size_t bytes;
        if (!size_mul(elements / tensor_types[i].block, tensor_types[i].block_bytes, &bytes))
            REFUSE("%s: tensor %s: its size overflows", where, name);
        t->bytes = bytes;
        return ST_OK;
    }
    return error_set(err, ST_UNSUPPORTED, "%s: tensor %s: type %u is unknown", where, name, t->type);
}

/* The reference reader wants tensors in order without gaps, so nothing can overlap and nothing can hide between them. */
static enum status place_tensors(struct gguf *g, const uint64_t *offsets, const uint8_t *data, size_t room,
                                 uint32_t alignment, struct error *err)
{
    char name[72];
    uint64_t at = 0;
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        model_printable(name, sizeof name, t->name.text, t->name.bytes);
        if (offsets[i] != at)
            REFUSE("%s: tensor %s: offset %" PRIu64 ", expected %" PRIu64 " (in order, aligned to %u)", g->where, name,
                   offsets[i], at, alignment);
        if (at > room || t->bytes > room - at)
            REFUSE("%s: tensor %s: %" PRIu64 " bytes at %" PRIu64
                   " of the data are past the end of the file (%zu are there)",
                   g->where, name, t->bytes, at, room);
        t->data = data + at;
        at += t->bytes; /* both are below room: no overflow, nor with the padding */
        at = (at + alignment - 1) & ~(uint64_t)(alignment - 1);
    }
    return ST_OK;
}

static enum status parse_tensors(struct reader *r, struct gguf *g, uint64_t n, const uint8_t *base, struct error *err)
{
    uint32_t alignment = 32;
    bool found;
    enum status st = gguf_u32(g, "general.alignment", &alignment, &found, err);
    if (st)
        return st;
    if (alignment < 1 || alignment > ALIGNMENT_MAX || (alignment & (alignment - 1)))
        REFUSE("%s: key general.alignment: %u is not a power of two up to %d", g->where, alignment, ALIGNMENT_MAX);
    if (n > reader_left(r) / TENSOR_BYTES_LEAST || n > UINT32_MAX)
        REFUSE("%s: %" PRIu64 " tensors do not fit into the file", g->where, n);
    g->n_tensors = (uint32_t)n;
    g->tensors = calloc(n + 1, sizeof *g->tensors);
    uint64_t *offsets = calloc(n + 1, sizeof *offsets);
    struct gguf_text *names = calloc(n + 1, sizeof *names);
    uint32_t *index = calloc(n + 1, sizeof *index);
    if (!g->tensors || !offsets || !names || !index)
        st = error_set(err, ST_NO_MEMORY, "%s: out of memory", g->where);
    for (uint64_t i = 0; !st && i < n; i++) {
        st = parse_tensor(r, g->where, &g->tensors[i], &offsets[i], err);
        names[i] = g->tensors[i].name;
    }
    if (!st)
        st = names_unique(names, g->n_tensors, index, "tensor", g->where, err);
    if (!st) {
        const size_t pad = (size_t) - (r->at - base) & (alignment - 1);
        const size_t room = reader_left(r) > pad ? reader_left(r) - pad : 0;
        st = place_tensors(g, offsets, room ? r->at + pad : r->end, room, alignment, err);
    }
    free(offsets);
    free(names);
    free(index);
    return st;
}

static enum status parse(const void *data, size_t bytes, struct gguf *g, struct error *err)
{
    if (!bytes)
        REFUSE("%s: the file is empty", g->where);
    struct reader r = reader_of(data, bytes);
    const uint8_t *magic = reader_take(&r, 4);
    if (!magic || memcmp(magic, "GGUF", 4) != 0)
        REFUSE("%s: not a GGUF file (the first bytes are not GGUF)", g->where);
    const uint32_t version = reader_u32(&r);
    const uint64_t n_tensors = reader_u64(&r), n_keys = reader_u64(&r);
    if (r.bad)
        REFUSE("%s: the file ends inside the header", g->where);
    if (version >= 1 << 16)
        return error_set(err, ST_UNSUPPORTED, "%s: a big-endian GGUF file is not supported", g->where);
    if (version != 2 && version != 3)
        return error_set(err, ST_UNSUPPORTED, "%s: GGUF version %u is not supported (2 and 3 are)", g->where, version);
    const enum status st = parse_keys(&r, g, n_keys, err);
    return st ? st : parse_tensors(&r, g, n_tensors, data, err);
}

enum status gguf_parse(const void *data, size_t bytes, const char *where, struct gguf *gguf_out, struct error *err)
{
    struct gguf g = { .where = where };
    const enum status st = parse(data, bytes, &g, err);
    if (st)
        gguf_free(&g);
    else
        *gguf_out = g;
    return st;
}

void gguf_free(struct gguf *g)
{
    free(g->keys);
    free(g->by_name);
    free(g->tensors);
    *g = (struct gguf){ 0 };
}

const struct gguf_key *gguf_find(const struct gguf *g, const char *name)
{
    const struct gguf_text want = { name, strlen(name) };
    uint32_t lo = 0, hi = g->n_keys;
    while (lo < hi) {
        const uint32_t mid = lo + (hi - lo) / 2;
        const int order = text_order(g->keys[g->by_name[mid]].name, want);
        if (order == 0)
            return &g->keys[g->by_name[mid]];
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

bool gguf_integer(const struct gguf_key *k, uint64_t i, int64_t *value_out)
{
    const enum gguf_type type = k->type == GGUF_ARRAY ? k->element : k->type;
    int64_t v = 0;
    assert(i < k->n);
    if (type >= GGUF_TYPES || !type_bytes[type] || type == GGUF_F32 || type == GGUF_F64 || type == GGUF_BOOL)
        return false;
    memcpy(&v, k->data + i * type_bytes[type], type_bytes[type]);
    switch (type) {
    case GGUF_I8:
        v = (int8_t)v;
        break;
    case GGUF_I16:
        v = (int16_t)v;
        break;
    case GGUF_I32:
        v = (int32_t)v;
        break;
    case GGUF_U64:
        if (v < 0)
            return false;
        break;
    default:
        break;
    }
    *value_out = v;
    return true;
}

/* The key, or NULL where it is absent and may be; otherwise *st says why not. */
static const struct gguf_key *lookup(const struct gguf *g, const char *name, bool *found_out, enum status *st,
                                     struct error *err)
{
    const struct gguf_key *k = gguf_find(g, name);
    *st = ST_OK;
    if (found_out)
        *found_out = k != NULL;
    else if (!k)
        *st = error_set(err, ST_CORRUPT, "%s: key %s is missing", g->where, name);
    return k;
}

enum status gguf_u32(const struct gguf *g, const char *name, uint32_t *value_out, bool *found_out, struct error *err)
{
    enum status st;
    int64_t v;
    const struct gguf_key *k = lookup(g, name, found_out, &st, err);
    if (!k)
        return st;
    if (k->type == GGUF_ARRAY || !gguf_integer(k, 0, &v) || v < 0 || v > UINT32_MAX)
        REFUSE("%s: key %s is not an integer from 0 to 2^32 - 1", g->where, name);
    *value_out = (uint32_t)v;
    return ST_OK;
}

enum status gguf_f64(const struct gguf *g, const char *name, double *value_out, bool *found_out, struct error *err)
{
    enum status st;
    float narrow;
    const struct gguf_key *k = lookup(g, name, found_out, &st, err);
    if (!k)
        return st;
    if (k->type == GGUF_F32) {
        memcpy(&narrow, k->data, sizeof narrow);
        *value_out = narrow;
    } else if (k->type == GGUF_F64) {
        memcpy(value_out, k->data, sizeof *value_out);
    } else {
        REFUSE("%s: key %s is not a float", g->where, name);
    }
    return ST_OK;
}

enum status gguf_bool(const struct gguf *g, const char *name, bool *value_out, bool *found_out, struct error *err)
{
    enum status st;
    const struct gguf_key *k = lookup(g, name, found_out, &st, err);
    if (!k)
        return st;
    if (k->type != GGUF_BOOL)
        REFUSE("%s: key %s is not a bool", g->where, name);
    *value_out = k->data[0] != 0;
    return ST_OK;
}

enum status gguf_string(const struct gguf *g, const char *name, struct gguf_text *value_out, bool *found_out,
                        struct error *err)
{
    enum status st;
    const struct gguf_key *k = lookup(g, name, found_out, &st, err);
    if (!k)
        return st;
    if (k->type != GGUF_STRING)
        REFUSE("%s: key %s is not a string", g->where, name);
    const uint8_t *at = k->data;
    *value_out = gguf_next_string(&at);
    return ST_OK;
}

enum status gguf_array(const struct gguf *g, const char *name, enum gguf_type element, const struct gguf_key **key_out,
                       bool *found_out, struct error *err)
{
    enum status st;
    const struct gguf_key *k = lookup(g, name, found_out, &st, err);
    if (!k)
        return st;
    if (k->type != GGUF_ARRAY || k->element != element)
        REFUSE("%s: key %s is not an array of the expected type", g->where, name);
    *key_out = k;
    return ST_OK;
}

struct gguf_text gguf_next_string(const uint8_t **at)
{
    uint64_t n;
    memcpy(&n, *at, sizeof n);
    const struct gguf_text t = { (const char *)*at + 8, n };
    *at += 8 + n;
    return t;
}
