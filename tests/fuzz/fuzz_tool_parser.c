/* fuzz-libs: longspan_coordinator longspan_sched longspan_tokenizer longspan_model longspan_proto longspan_common */
/*
 * The first byte picks the family and how the rest is cut, which is an answer; 1 stands for the mark as a token. However it is cut, the same is heard, in
 * order, and arguments begin as an object does.
 */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "common/text.h"
#include "coordinator/gateway/tool_parser.h"
#include "coordinator/tokenizer/internal.h"

static struct tools *families[6];

struct heard {
    struct text text;
    uint32_t n;
    bool first;
};

static void on_content(void *ctx, const char *data, size_t bytes)
{
    assert(bytes);
    text_add(&((struct heard *)ctx)->text, data, bytes);
}

static void on_call(void *ctx, uint32_t index, const char *name, size_t bytes)
{
    struct heard *h = ctx;
    assert(index == h->n++ && bytes == 1 && (*name == 'f' || *name == 'g'));
    text_printf(&h->text, "\2%c", *name);
    h->first = true;
}

static void on_arguments(void *ctx, const char *data, size_t bytes)
{
    struct heard *h = ctx;
    assert(h->n && bytes && (!h->first || *data == '{'));
    h->first = false;
    text_add(&h->text, data, bytes);
}

static const struct tool_sink sink = { on_content, on_call, on_arguments };

static void families_make(void)
{
    static const char *const templates[] = { "{{ tools }}<tool_call>", "{{ tools }}[TOOL_CALLS]",
                                             "{{ tools }}<|start_header_id|>\"parameters\"" };
    json_t *list = json_pack("[{s:{s:s}}, {s:{s:s}}]", "function", "name", "f", "function", "name", "g");
    struct model *model;
    struct tokenizer *t;
    if (model_open("random:tiny", &model, NULL) || tokenizer_new(model, &t, NULL))
        abort();
    for (int i = 0; i < 6; i++) {
        struct refusal r = { 0 };
        const struct want w = { .tools = list, .one_tool_call = i > 2 };
        if (tokenizer_set_template(t, templates[i % 3], strlen(templates[i % 3]), NULL) ||
            tools_new(&w, t, &families[i], &r))
            abort();
    }
    tokenizer_free(t);
    model_close(model);
    json_decref(list);
}

static struct heard hear(struct tools *tools, const uint8_t *data, size_t n, size_t piece)
{
    struct heard h = { 0 };
    struct tool_parser *p = tool_parser_new(tools, &sink, &h);
    for (size_t i = 0; i < n;) {
        size_t k = 0;
        while (k < piece && i + k < n && data[i + k] != 1)
            k++;
        tool_parser_push(p, (const char *)data + i, k);
        i += k;
        if (i < n && k < piece) {
            tool_parser_mark(p);
            i++;
        }
    }
    assert(tool_parser_finish(p) && tool_parser_calls(p) == h.n);
    tool_parser_free(p);
    return h;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (!families[0])
        families_make();
    if (!bytes)
        return 0;
    struct tools *tools = families[*data % 6];
    struct heard whole = hear(tools, data + 1, bytes - 1, SIZE_MAX),
                 cut = hear(tools, data + 1, bytes - 1, 1 + *data / 6 % 7);
    assert(whole.text.n == cut.text.n && (!cut.text.n || !memcmp(whole.text.data, cut.text.data, cut.text.n)));
    text_free(&whole.text);
    text_free(&cut.text);
    return 0;
}
