#ifndef LONGSPAN_CLIENT_CONVERSATION_H
#define LONGSPAN_CLIENT_CONVERSATION_H

/* The messages of a conversation: what `longspan chat` keeps and sends with every turn. */

#include <stddef.h>

#include "common/error.h"
#include "proto/longspan.pb-c.h"

#ifdef __cplusplus
extern "C" {
#endif

struct message {
    char role[12];
    char *content; /* NUL-terminated */
};

/* Zeroed: empty. The system message, if there is one, is the first. */
struct conversation {
    struct message *messages;
    size_t n, room;
};

void conversation_free(struct conversation *c);
/* Sets the system message ("": none) and forgets all others. ST_NO_MEMORY. */
enum status conversation_system(struct conversation *c, const char *text);
/* Forgets all but the system message. */
void conversation_reset(struct conversation *c);
/* ST_NO_MEMORY: nothing is added. */
enum status conversation_add(struct conversation *c, const char *role, const char *content);
void conversation_drop_last(struct conversation *c);
/* Fills chat with messages that borrow the conversation's texts; conversation_messages_free frees the list. ST_NO_MEMORY. */
enum status conversation_messages(const struct conversation *c, Longspan__V1__Chat *chat);
void conversation_messages_free(Longspan__V1__Chat *chat);
/* As a JSON list of {"role", "content"}, as the OpenAI API takes it. ST_IO; ST_INVALID: text that is no UTF-8; ST_NO_MEMORY. */
enum status conversation_save(const struct conversation *c, const char *path, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
