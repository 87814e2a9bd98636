#include "coordinator/gateway/grpc_reflection.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "proto/descriptors.h"
#include "proto/reflection.pb-c.h"

enum { NAME_BYTES_MAX = 512, SERVICES_MAX = 32, QUEUED_BYTES_MAX = 4 << 20 };
/* Of descriptor.proto. In a message, an enum and a service what has a name has it in field 1. */
enum { SET_FILE = 1, FILE_NAME = 1, FILE_PACKAGE = 2, FILE_MESSAGE = 4, FILE_ENUM = 5, FILE_SERVICE = 6, ANY_NAME = 1 };

/* ---- descriptors: length-delimited fields of a message, one after the other ---- */

struct piece {
    const uint8_t *data;
    size_t bytes;
    uint32_t field;
};

static uint64_t varint(struct reader *in)
{
    uint64_t n = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        const uint8_t *b = reader_take(in, 1);
        if (!b)
            return 0;
        n |= (uint64_t)(*b & 0x7F) << shift;
        if (!(*b & 0x80))
            break;
    }
    return n;
}

/* Fields of other kinds are passed over. */
static bool next(struct reader *in, struct piece *out)
{
    while (!in->bad && reader_left(in)) {
        const uint64_t tag = varint(in);
        if ((tag & 7) == 0) {
            varint(in);
        } else if ((tag & 7) == 1 || (tag & 7) == 5) {
            reader_take(in, (tag & 7) == 1 ? 8 : 4);
        } else if ((tag & 7) == 2) {
            const uint64_t n = varint(in);
            const uint8_t *data = n <= reader_left(in) ? reader_take(in, (size_t)n) : NULL;
            if (!data)
                return false;
            *out = (struct piece){ data, (size_t)n, (uint32_t)(tag >> 3) };
            return true;
        } else {
            return false;
        }
    }
    return false;
}

/* The first field of that number; bytes 0 if there is none. */
static struct piece field_of(const struct piece *message, uint32_t field)
{
    struct reader in = reader_of(message->data, message->bytes);
    struct piece p;
    while (next(&in, &p))
        if (p.field == field)
            return p;
    return (struct piece){ (const uint8_t *)"", 0, 0 };
}

static bool piece_is(const struct piece *p, const char *text, size_t bytes)
{
    return p->bytes == bytes && !memcmp(p->data, text, bytes);
}

/* rest: what stands behind a top-level name and its dot: the first part of it must be a child's name. */
static bool has_child(const struct piece *top, const char *rest)
{
    struct reader in = reader_of(top->data, top->bytes);
    struct piece p;
    const size_t n = strcspn(rest, ".");
    while (next(&in, &p)) {
        if (p.field == ANY_NAME)
            continue;
        const struct piece name = field_of(&p, ANY_NAME);
        if (piece_is(&name, rest, n))
            return true;
    }
    return false;
}

static bool file_has(const struct piece *file, const char *symbol)
{
    struct reader in = reader_of(file->data, file->bytes);
    const struct piece package = field_of(file, FILE_PACKAGE);
    struct piece p;
    if (strlen(symbol) <= package.bytes || memcmp(symbol, package.data, package.bytes) != 0 ||
        symbol[package.bytes] != '.')
        return false;
    symbol += package.bytes + 1;
    const size_t n = strcspn(symbol, ".");
    while (next(&in, &p)) {
        if (p.field != FILE_MESSAGE && p.field != FILE_ENUM && p.field != FILE_SERVICE)
            continue;
        const struct piece name = field_of(&p, ANY_NAME);
        if (piece_is(&name, symbol, n))
            return !symbol[n] || has_child(&p, symbol + n + 1);
    }
    return false;
}

static bool file_is(const struct piece *file, const char *name)
{
    const struct piece p = field_of(file, FILE_NAME);
    return piece_is(&p, name, strlen(name));
}

static bool file_find(bool (*fits)(const struct piece *file, const char *what), const char *what,
                      struct piece *file_out)
{
    struct reader in = reader_of(proto_descriptors, proto_descriptors_bytes);
    while (next(&in, file_out))
        if (file_out->field == SET_FILE && fits(file_out, what))
            return true;
    return false;
}

/* names: "package.Service" each. -> how many */
static size_t services(char names[SERVICES_MAX][NAME_BYTES_MAX])
{
    struct reader all = reader_of(proto_descriptors, proto_descriptors_bytes);
    struct piece file, p;
    size_t n = 0;
    while (next(&all, &file)) {
        const struct piece package = field_of(&file, FILE_PACKAGE);
        struct reader in = reader_of(file.data, file.bytes);
        while (next(&in, &p)) {
            const struct piece name = field_of(&p, ANY_NAME);
            if (p.field == FILE_SERVICE && n < SERVICES_MAX)
                snprintf(names[n++], NAME_BYTES_MAX, "%.*s.%.*s", (int)package.bytes, (const char *)package.data,
                         (int)name.bytes, (const char *)name.data);
        }
    }
    return n;
}

/* ---- answers ---- */

struct answer {
    Grpc__Reflection__V1__ServerReflectionResponse m;
    Grpc__Reflection__V1__FileDescriptorResponse files;
    Grpc__Reflection__V1__ListServiceResponse list;
    Grpc__Reflection__V1__ErrorResponse error;
    Grpc__Reflection__V1__ServiceResponse services[SERVICES_MAX], *service_ptrs[SERVICES_MAX];
    char names[SERVICES_MAX][NAME_BYTES_MAX];
    ProtobufCBinaryData file;
};

static void answer_error(struct answer *a, enum rpc_code code, const char *message)
{
    grpc__reflection__v1__error_response__init(&a->error);
    a->error.error_code = (int32_t)code;
    a->error.error_message = (char *)(uintptr_t)message;
    a->m.message_response_case = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
    a->m.error_response = &a->error;
}

static void answer_file(struct answer *a, bool found, const struct piece *file)
{
    if (!found) {
        answer_error(a, RPC_NOT_FOUND, "nothing of that name is served here");
        return;
    }
    grpc__reflection__v1__file_descriptor_response__init(&a->files);
    a->file = (ProtobufCBinaryData){ file->bytes, (uint8_t *)(uintptr_t)file->data };
    a->files.n_file_descriptor_proto = 1;
    a->files.file_descriptor_proto = &a->file;
    a->m.message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
    a->m.file_descriptor_response = &a->files;
}

static void answer_list(struct answer *a)
{
    grpc__reflection__v1__list_service_response__init(&a->list);
    a->list.n_service = services(a->names);
    for (size_t i = 0; i < a->list.n_service; i++) {
        grpc__reflection__v1__service_response__init(&a->services[i]);
        a->services[i].name = a->names[i];
        a->service_ptrs[i] = &a->services[i];
    }
    a->list.service = a->service_ptrs;
    a->m.message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
    a->m.list_services_response = &a->list;
}

static void answer_fill(struct answer *a, const Grpc__Reflection__V1__ServerReflectionRequest *m)
{
    struct piece file;
    switch (m->message_request_case) {
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
        answer_list(a);
        return;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
        answer_file(a, file_find(file_is, m->file_by_filename, &file), &file);
        return;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
        answer_file(a, file_find(file_has, m->file_containing_symbol, &file), &file);
        return;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_EXTENSION:
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_ALL_EXTENSION_NUMBERS_OF_TYPE:
        answer_error(a, RPC_NOT_FOUND, "there are no extensions here");
        return;
    default:
        answer_error(a, RPC_INVALID_ARGUMENT, "the request asks for nothing that is known");
    }
}

uint8_t *grpc_reflection_answer(const uint8_t *request, size_t bytes, size_t *bytes_out)
{
    struct answer *a = calloc(1, sizeof *a);
    Grpc__Reflection__V1__ServerReflectionRequest *m =
        grpc__reflection__v1__server_reflection_request__unpack(NULL, bytes, request);
    uint8_t *packed = NULL;
    if (a && m) {
        grpc__reflection__v1__server_reflection_response__init(&a->m);
        a->m.valid_host = m->host;
        a->m.original_request = m;
        answer_fill(a, m);
        *bytes_out = grpc__reflection__v1__server_reflection_response__get_packed_size(&a->m);
        packed = malloc(*bytes_out + 1);
        if (packed)
            grpc__reflection__v1__server_reflection_response__pack(&a->m, packed);
    }
    if (m)
        grpc__reflection__v1__server_reflection_request__free_unpacked(m, NULL);
    free(a);
    return packed;
}

/* ---- calls ---- */

enum { REQUEST_BYTES_MAX = 4096 };

static void on_message(void *user, struct rpc_call *call, const uint8_t *data, size_t bytes)
{
    (void)user;
    size_t n = 0;
    uint8_t *answer = bytes <= REQUEST_BYTES_MAX ? grpc_reflection_answer(data, bytes, &n) : NULL;
    if (!answer) {
        rpc_call_finish(call, RPC_INVALID_ARGUMENT, "the message is malformed or too large");
        return;
    }
    if (rpc_call_send(call, answer, n) > QUEUED_BYTES_MAX)
        rpc_call_cancel(call); /* it asks and does not read */
    free(answer);
}

static void on_half_close(void *user, struct rpc_call *call)
{
    (void)user;
    rpc_call_finish(call, RPC_OK, "");
}

static void on_open(void *service, struct rpc_call *call, struct rpc_handlers *handlers_out, void **user_out)
{
    (void)service;
    (void)call;
    *handlers_out = (struct rpc_handlers){ .on_message = on_message, .on_half_close = on_half_close };
    *user_out = NULL;
}

const struct rpc_method grpc_reflection_methods[GRPC_REFLECTION_METHODS] = {
    { "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", NULL, on_open },
    { "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", NULL, on_open },
};
