/* fuzz-libs: longspan_coordinator longspan_sched longspan_tokenizer longspan_model longspan_proto longspan_common */
/*
 * The first byte picks what is read: bodies of the four HTTP endpoints, a GenerateRequest, or a stop string found in pieces. What is accepted
 * is tokenized, so that every borrowed pointer is read.
 */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/gateway/grpc_messages.h"
#include "coordinator/gateway/openai.h"
#include "coordinator/gateway/reply.h"

static struct model *model;
static struct tokenizer *tokenizer;

static void look(struct want *w, enum status st, struct refusal *r)
{
    assert((st == ST_OK) == (r->status == ST_OK));
    int32_t *ids = NULL;
    size_t n = 0;
    struct stop *stop = NULL;
    if (!st && !stop_new(w->stops, w->n_stops, &stop)) {
        size_t end;
        stop_push(stop, "some text", 9, &end);
        stop_free(stop);
    }
    if (!st && !want_tokenize(w, tokenizer, model, 4096, &ids, &n, r))
        assert(n <= 4096);
    free(ids);
    if (r->status) {
        struct text out = { 0 };
        reply_error(r, &out);
        assert(text_valid(out.data, out.n));
        text_free(&out);
    }
    want_free(w);
}

static void read_grpc(const uint8_t *data, size_t bytes)
{
    struct want w;
    struct refusal r = { 0 };
    struct grpc_source *source = malloc(sizeof *source + bytes);
    source->bytes = bytes;
    memcpy(source->data, data, bytes);
    struct grpc_again *again = NULL;
    struct refusal no = { 0 };
    const enum status keyed = grpc_read_again(source, &again, &no);
    assert((keyed == ST_OK) == (no.status == ST_OK) && !(keyed && again));
    want_init(&w);
    w.source = source;
    w.source_free = free;
    const enum status st = grpc_parse(&w, &r);
    assert(st || keyed || w.keyed == (again != NULL)); /* both read the same key */
    free(again);
    look(&w, st, &r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (!model && (model_open("random:tiny", &model, NULL) || tokenizer_new(model, &tokenizer, NULL)))
        abort();
    if (!bytes)
        return 0;
    const unsigned which = data[0] % 5;
    if (which == 4) {
        read_grpc(data + 1, bytes - 1);
        return 0;
    }
    /* an exact copy, so that a read past the end is seen */
    char *body = malloc(bytes - 1 ? bytes - 1 : 1);
    memcpy(body, data + 1, bytes - 1);
    struct want w;
    struct refusal r = { 0 };
    want_init(&w);
    const enum status st = openai_parse((enum openai_kind)which, body, bytes - 1, 5000, &w, &r);
    free(body);
    look(&w, st, &r);
    return 0;
}
