/* Chats of role and content alone, as arrays in C. */
#ifndef TESTS_CHAT_LIST_H
#define TESTS_CHAT_LIST_H

#include <jansson.h>
#include <string.h>

#include "coordinator/tokenizer/tokenizer.h"

struct chat_message {
    const char *role;
    const char *content;
    size_t content_bytes;
};

/* Bytes that are no UTF-8 are the tokenizer's affair. */
static enum status chat_encode(const struct tokenizer *t, const struct chat_message *m, size_t n, bool prompt,
                               size_t ids_max, int32_t **ids_out, size_t *n_out, struct error *err)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_pack("{s:o, s:o}", "role", json_string_nocheck(m[i].role), "content",
                                              json_stringn_nocheck(m[i].content, m[i].content_bytes)));
    const struct chat_input in = { .messages = list, .generation_prompt = prompt };
    const enum status st = chat_encode_json(t, &in, ids_max, ids_out, n_out, err);
    json_decref(list);
    return st;
}

#endif
