#include "client/conversation.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"

static void keep(struct conversation *c, size_t n)
{
    while (c->n > n)
        conversation_drop_last(c);
}

void conversation_free(struct conversation *c)
{
    keep(c, 0);
    free(c->messages);
    *c = (struct conversation){ 0 };
}

enum status conversation_system(struct conversation *c, const char *text)
{
    keep(c, 0);
    return text[0] ? conversation_add(c, "system", text) : ST_OK;
}

void conversation_reset(struct conversation *c)
{
    keep(c, c->n && !strcmp(c->messages[0].role, "system") ? 1 : 0);
}

enum status conversation_add(struct conversation *c, const char *role, const char *content)
{
    if (c->n == c->room) {
        const size_t room = c->room ? c->room * 2 : 16;
        struct message *bigger = realloc(c->messages, room * sizeof *bigger);
        if (!bigger)
            return ST_NO_MEMORY;
        c->messages = bigger;
        c->room = room;
    }
    struct message *m = &c->messages[c->n];
    m->content = strdup(content);
    if (!m->content)
        return ST_NO_MEMORY;
    snprintf(m->role, sizeof m->role, "%s", role);
    c->n++;
    return ST_OK;
}

void conversation_drop_last(struct conversation *c)
{
    if (c->n)
        free(c->messages[--c->n].content);
}

enum status conversation_messages(const struct conversation *c, Longspan__V1__Chat *chat)
{
    Longspan__V1__ChatMessage *all = calloc(c->n + 1, sizeof *all), **list = calloc(c->n + 1, sizeof *list);
    if (!all || !list) {
        free(all);
        free(list);
        return ST_NO_MEMORY;
    }
    for (size_t i = 0; i < c->n; i++) {
        longspan__v1__chat_message__init(&all[i]);
        all[i].role = c->messages[i].role;
        all[i].content = c->messages[i].content;
        list[i] = &all[i];
    }
    list[c->n] = &all[c->n]; /* so that an empty list can be freed too */
    chat->n_messages = c->n;
    chat->messages = list;
    return ST_OK;
}

void conversation_messages_free(Longspan__V1__Chat *chat)
{
    free(chat->messages[0]);
    free(chat->messages);
}

enum status conversation_save(const struct conversation *c, const char *path, struct error *err)
{
    enum status st = ST_OK;
    json_t *list = json_array();
    for (size_t i = 0; i < c->n; i++)
        if (json_array_append_new(
                list, json_pack("{s:s, s:s}", "role", c->messages[i].role, "content", c->messages[i].content)))
            st = error_set(err, ST_INVALID, "a message is no UTF-8");
    char *text = st ? NULL : json_dumps(list, JSON_INDENT(1));
    json_decref(list);
    if (st)
        return st;
    st = text ? file_write_atomic(path, text, strlen(text), err) : error_set(err, ST_NO_MEMORY, "no memory");
    free(text);
    return st;
}
