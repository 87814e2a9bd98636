/* sketch_import: the sketch of a block from a peer; and the text of a selector, which workers are sent. */
/* fuzz-libs: longspan_worker */
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "common/rng.h"
#include "worker/sketches.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void text(const uint8_t *data, size_t bytes)
{
    struct selector_spec spec, again;
    struct error err = { 0 };
    char in[128] = { 0 }, out[SELECTOR_TEXT];
    memcpy(in, data, bytes < sizeof in - 1 ? bytes : sizeof in - 1);
    if (selector_parse(in, &spec, &err))
        return;
    selector_text(&spec, out);
    if (selector_parse(out, &again, &err) || again.density != spec.density || again.window != spec.window ||
        again.dense_layers != spec.dense_layers || again.by_slot != spec.by_slot)
        abort();
}

/* The first byte says which method, and whether the sum is put right so that what lies behind is reached. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct sketches all[4];
    static const char *const names[] = { "quest,layers=1", "sketch-walk,layers=1", "socket,layers=1",
                                         "double-sparsity,layers=1" };
    const struct selector_shape shape = { 2, 1, 8, KV_BF16 };
    if (!bytes)
        return 0;
    const int which = (data[0] & 1) + (data[0] >> 1 & 2);
    struct sketches *s = &all[which];
    if (!s->impl) {
        struct selector_spec spec;
        if (selector_parse(names[which], &spec, NULL) ||
            sketches_init(s, selector_find(spec.name, 0), &spec, &shape, 3))
            abort();
    }
    text(data + 1, bytes - 1);
    uint8_t *wire = malloc(bytes);
    const size_t n = bytes - 1;
    memcpy(wire, data + 1, n);
    if (data[0] & 2 && n == sketch_wire_bytes(s)) {
        const uint64_t sum = mix64(checksum64(wire, 24)) ^ checksum64(wire + 32, n - 32);
        memcpy(wire + 24, &sum, 8);
    }
    struct error err = { 0 };
    const enum status st = sketch_import(s, wire, n, 7, &err);
    if ((st == ST_OK) != (sketch_find(s, 7) != NULL))
        abort();
    if (st == ST_OK && (!sketch_complete(s, sketch_find(s, 7)) || !sketch_valid(s, wire + 32, n - 32)))
        abort();
    sketch_drop(s, 7);
    if (s->bytes)
        abort();
    free(wire);
    return 0;
}
