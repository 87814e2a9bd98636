#include "worker/sender.h"

#include <stdint.h>
#include <stdlib.h>

#include "common/log.h"

struct outgoing {
    struct outgoing *next;
    size_t n;
    uint8_t *bytes;
};

void sender_init(struct sender *s)
{
    *s = (struct sender){ .last = &s->first };
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
}

void sender_send(struct sender *s, const struct control_message *message)
{
    struct outgoing *out = malloc(sizeof *out);
    if (!out || control_encode(message, &out->bytes, &out->n)) {
        log_error("no memory for a message to the coordinator");
        free(out);
        return;
    }
    out->next = NULL;
    pthread_mutex_lock(&s->lock);
    *s->last = out;
    s->last = &out->next;
    pthread_mutex_unlock(&s->lock);
    pthread_cond_signal(&s->changed);
}

/* -> what waits, in order; NULL at the end */
static struct outgoing *out_take(struct sender *s)
{
    pthread_mutex_lock(&s->lock);
    while (!s->first && !s->end)
        pthread_cond_wait(&s->changed, &s->lock);
    struct outgoing *first = s->first;
    s->first = NULL;
    s->last = &s->first;
    pthread_mutex_unlock(&s->lock);
    return first;
}

static void *sender_main(void *arg)
{
    struct sender *s = arg;
    struct outgoing *out;
    while ((out = out_take(s))) {
        while (out) {
            struct outgoing *next = out->next;
            rpc_call_send(s->call, out->bytes, out->n);
            free(out->bytes);
            free(out);
            out = next;
        }
    }
    return NULL;
}

bool sender_start(struct sender *s, struct rpc_call *call)
{
    s->call = call;
    s->runs = !pthread_create(&s->thread, NULL, sender_main, s);
    if (!s->runs)
        log_error("no thread for messages to the coordinator");
    return s->runs;
}

void sender_end(struct sender *s)
{
    pthread_mutex_lock(&s->lock);
    s->end = true;
    pthread_mutex_unlock(&s->lock);
    pthread_cond_signal(&s->changed);
    if (s->runs)
        pthread_join(s->thread, NULL);
}

void sender_deinit(struct sender *s)
{
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
}
