#include "model/safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "model/json.h"
#include "model/source.h"

enum { HEADER_BYTES_MAX = 100000000 };

#define REFUSE(...) return error_set(err, ST_CORRUPT, __VA_ARGS__)

static const struct {
    const char *name;
    uint32_t bits;
} dtypes[] = {
    { "BOOL", 8 },        { "U8", 8 },      { "I8", 8 },      { "F8_E5M2", 8 }, { "F8_E4M3", 8 }, { "F8_E5M2FNUZ", 8 },
    { "F8_E4M3FNUZ", 8 }, { "F8_E8M0", 8 }, { "I16", 16 },    { "U16", 16 },    { "F16", 16 },    { "BF16", 16 },
    { "I32", 32 },        { "U32", 32 },    { "F32", 32 },    { "I64", 64 },    { "U64", 64 },    { "F64", 64 },
    { "C64", 64 },        { "F4", 4 },      { "F6_E2M3", 6 }, { "F6_E3M2", 6 },
};

static bool read_offset(const json_t *list, size_t i, uint64_t *out)
{
    const json_t *v = json_array_get(list, i);
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

/* begin_out: of its bytes in the data. */
static enum status parse_tensor(const char *key, const json_t *v, const char *where, struct safetensor *t,
                                uint64_t *begin_out, struct error *err)
{
    char name[72];
    uint64_t end;
    size_t bits = 1;
    const char *member;
    json_t *ignored;
    model_printable(name, sizeof name, key, strlen(key));
    json_object_foreach((json_t *)(uintptr_t)v, member, ignored)
    {
        if (strcmp(member, "dtype") && strcmp(member, "shape") && strcmp(member, "data_offsets"))
            REFUSE("%s: tensor %s has a member other than dtype, shape, data_offsets", where, name);
    }
    const json_t *shape = json_object_get(v, "shape"), *offsets = json_object_get(v, "data_offsets");
    t->name = key;
    t->dtype = json_string_value(json_object_get(v, "dtype"));
    if (!t->dtype || !json_is_array(shape) || json_array_size(offsets) != 2)
        REFUSE("%s: tensor %s: dtype, shape or data_offsets is missing or of the wrong kind", where, name);
    if (json_array_size(shape) > SAFETENSORS_DIMS_MAX)
        REFUSE("%s: tensor %s: more than %d dimensions", where, name, SAFETENSORS_DIMS_MAX);
    t->n_dims = (uint32_t)json_array_size(shape);
    for (uint32_t i = 0; i < t->n_dims; i++)
        if (!read_offset(shape, i, &t->dims[i]) || !size_mul(bits, t->dims[i], &bits))
            REFUSE("%s: tensor %s: shape: dimension %u is not a size, or the product overflows", where, name, i);
    uint32_t element = 0;
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (strcmp(dtypes[i].name, t->dtype) == 0)
            element = dtypes[i].bits;
    if (!element) {
        char shown[40];
        return error_set(err, ST_UNSUPPORTED, "%s: tensor %s: dtype %s is unknown", where, name,
                         model_printable(shown, sizeof shown, t->dtype, strlen(t->dtype)));
    }
    if (!size_mul(bits, element, &bits) || bits % 8)
        REFUSE("%s: tensor %s: its size overflows, or is not whole bytes", where, name);
    if (!read_offset(offsets, 0, begin_out) || !read_offset(offsets, 1, &end) || end < *begin_out)
        REFUSE("%s: tensor %s: data_offsets are not two ascending sizes", where, name);
    t->bytes = end - *begin_out;
    if (t->bytes != bits / 8)
        REFUSE("%s: tensor %s: data_offsets span %" PRIu64 " bytes, dtype and shape need %zu", where, name, t->bytes,
               bits / 8);
    return ST_OK;
}

struct placed {
    uint64_t begin;
    struct safetensor tensor;
};

/* Ties: empty tensors come before the one that begins at the same place. */
static int by_place(const void *a, const void *b)
{
    const struct placed *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->tensor.bytes > y->tensor.bytes) - (x->tensor.bytes < y->tensor.bytes);
}

/* Without holes and overlaps, from the first byte to the last. */
static enum status place(struct placed *p, size_t n, const uint8_t *data, size_t room, const char *where,
                         struct error *err)
{
    char name[72];
    uint64_t at = 0;
    if (n)
        qsort(p, n, sizeof *p, by_place);
    for (size_t i = 0; i < n; i++) {
        model_printable(name, sizeof name, p[i].tensor.name, strlen(p[i].tensor.name));
        if (p[i].begin != at)
            REFUSE("%s: tensor %s: data_offsets begin at %" PRIu64 ", the tensor before ends at %" PRIu64, where, name,
                   p[i].begin, at);
        if (p[i].tensor.bytes > room - at)
            REFUSE("%s: tensor %s: data_offsets end past the file (%zu bytes of data)", where, name, room);
        p[i].tensor.data = data + at;
        at += p[i].tensor.bytes;
    }
    if (at != room)
        REFUSE("%s: %" PRIu64 " bytes of tensors, %zu bytes of data", where, at, room);
    return ST_OK;
}

static enum status check_metadata(const json_t *v, const char *where, struct error *err)
{
    const char *key;
    json_t *text;
    if (!json_is_object(v))
        REFUSE("%s: __metadata__ is not an object", where);
    json_object_foreach((json_t *)(uintptr_t)v, key, text)
    {
        if (!json_is_string(text))
            REFUSE("%s: __metadata__ holds something other than strings", where);
    }
    return ST_OK;
}

static enum status parse(struct safetensors *s, const uint8_t *data, size_t room, const char *where, struct error *err)
{
    const size_t n = json_object_size(s->header);
    struct placed *p = calloc(n + 1, sizeof *p);
    s->tensors = calloc(n + 1, sizeof *s->tensors);
    enum status st =
        p && s->tensors ? ST_OK : error_set(err, ST_NO_MEMORY, "%s: out of memory for %zu tensors", where, n);
    uint32_t used = 0;
    const char *key;
    json_t *v;
    json_object_foreach(s->header, key, v)
    {
        if (!st && strcmp(key, "__metadata__") == 0) {
            st = check_metadata(v, where, err);
        } else if (!st) {
            st = parse_tensor(key, v, where, &p[used].tensor, &p[used].begin, err);
            used++;
        }
    }
    if (!st)
        st = place(p, used, data, room, where, err);
    for (uint32_t i = 0; !st && i < used; i++)
        s->tensors[i] = p[i].tensor;
    s->n_tensors = st ? 0 : used;
    free(p);
    return st;
}

enum status safetensors_parse(const void *data, size_t bytes, const char *where, struct safetensors *s_out,
                              struct error *err)
{
    struct safetensors s = { 0 };
    uint64_t header;
    if (bytes < 8)
        REFUSE("%s: not a safetensors file: %zu bytes", where, bytes);
    memcpy(&header, data, 8);
    if (header > HEADER_BYTES_MAX || header > bytes - 8)
        REFUSE("%s: not a safetensors file: a header of %" PRIu64 " bytes in a file of %zu", where, header, bytes);
    const uint8_t *text = (const uint8_t *)data + 8;
    if (!header || text[0] != '{')
        REFUSE("%s: not a safetensors file: the header does not begin with {", where);
    enum status st = json_parse_object((const char *)text, header, where, &s.header, err);
    if (!st)
        st = parse(&s, text + header, bytes - 8 - header, where, err);
    if (st)
        safetensors_free(&s);
    else
        *s_out = s;
    return st;
}

void safetensors_free(struct safetensors *s)
{
    free(s->tensors);
    json_decref(s->header);
    *s = (struct safetensors){ 0 };
}
