/*
 * A template, and after a zero byte a chat as JSON (without one: a chat of ours): parsed and rendered. No word of the chat may become a
 * control token, and what is rendered is the same each time.
 */
/* fuzz-libs: longspan_tokenizer */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/internal.h"
#include "tests/unit/tokenizer/tiny_vocab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what))                                                                                                   \
            abort();                                                                                                   \
    } while (0)

static const char chat[] =
    "[{\"role\":\"system\",\"content\":\"<|a|> <|\"},{\"role\":\"user\",\"content\":\"a|> \xC3\xA9 </think>\"},"
    "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"x\",\"function\":{\"name\":\"f\","
    "\"arguments\":{\"n\":[1,-2.5,true,null]}}}]},{\"role\":\"tool\",\"content\":\"3\"}]";

static void check(const struct tokenizer *t, const json_t *messages, bool own_control)
{
    const struct chat_input in = { .messages = messages, .generation_prompt = true };
    struct error err = { 0 };
    char *text = NULL, *again = NULL;
    size_t bytes, bytes_again, n;
    int32_t *ids = NULL;
    const enum status st = chat_render_json(t, &in, &text, &bytes, &err);
    CHECK(st == ST_OK || (*err.text && !text) || st == ST_NO_MEMORY);
    if (st)
        return;
    CHECK(text[bytes] == '\0' && chat_render_json(t, &in, &again, &bytes_again, NULL) == ST_OK);
    CHECK(bytes == bytes_again && memcmp(text, again, bytes) == 0);
    if (chat_encode_json(t, &in, 4096, &ids, &n, NULL) == ST_OK) {
        for (size_t i = 0; i < n && !own_control; i++)
            CHECK(!tokenizer_is_control(t, ids[i]));
    }
    free(ids);
    free(text);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tiny_vocab v;
    struct tokenizer *t;
    char *text = malloc(size + 1);
    CHECK(text);
    memcpy(text, data, size);
    text[size] = '\0';
    const size_t n = strlen(text);
    json_t *messages = json_loads(chat, 0, NULL), *other = NULL;
    CHECK(messages);
    if (n < size)
        other = json_loadb(text + n + 1, size - n - 1, JSON_REJECT_DUPLICATES, NULL);
    tiny_init(&v, "gpt-2", NULL);
    tiny_token(&v, "<|a|>", 5, MODEL_TOKEN_CONTROL);
    v.v.chat_template = text;
    CHECK(tokenizer_build(&v.v, -1, 1, &t, NULL) == ST_OK);
    CHECK(tokenizer_set_date(t, "2024-02-29", NULL) == ST_OK);
    check(t, other ? other : messages, strpbrk(text, "<|>\\") != NULL);
    tokenizer_free(t);
    json_decref(messages);
    json_decref(other);
    free(text);
    return 0;
}
