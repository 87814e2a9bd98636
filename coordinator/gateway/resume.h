#ifndef LONGSPAN_COORDINATOR_GATEWAY_RESUME_H
#define LONGSPAN_COORDINATOR_GATEWAY_RESUME_H

/*
 * Answers that are taken up again where the connection, or the coordinator, was lost: requests with an Idempotency-Key (gRPC: idempotency_key). Key, sender, path and body make the
 * request's id and its seed, so whoever sends the same again means the same answer; what was generated is in a journal (keeper.h) of that name; and the id of
 * each event (gRPC: place) says how far the client has been told, so that Last-Event-ID (resume_from) is all that a server needs to know of a client.
 */

#include "coordinator/gateway/keeper.h"
#include "coordinator/gateway/want.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { RESUME_NAME_BYTES = 32, RESUME_KEY_MAX = 255 };

/* How far a client was told of one choice. */
struct resume_place {
    uint32_t tokens, text; /* text: bytes */
    uint32_t scores;       /* of the prompt, where they are told by themselves */
    bool begun, ended;     /* something of it was told; all of it was */
};

/* Of a whole answer: what an event's id says. */
struct resume {
    uint32_t n; /* choices */
    bool usage; /* was told */
    struct resume_place places[WANT_CHOICES_MAX];
};

/* "REQUEST/12.57,3.9e,-": by choice tokens.bytes or '-', 's' and scores if any, 'e' if ended; a 'u' at the end: usage was told. */
void resume_write(const struct resume *r, const char *request, struct text *out);
/* Anything may stand in id. ST_INVALID: it is no event's of that request. */
enum status resume_read(const char *id, const char *request, struct resume *r_out);

/* ---- the journals of a folder; loop thread ---- */

struct resumes;
struct resumes_config {
    struct loop *loop;     /* kept */
    const char *dir;       /* made if it is not there */
    struct digest context; /* all that decides what is generated */
    uint32_t grace_ms;     /* a request goes on for so long after its client has gone */
    uint32_t keep_s;       /* a journal stays for so long after its last change; */
    uint64_t bytes_max;    /* if there are more bytes than this, the oldest go before */
};
/* ST_IO: err names the folder. */
enum status resumes_new(const struct resumes_config *config, struct resumes **resumes_out, struct error *err);
uint32_t resumes_grace_ms(const struct resumes *r);
/* What a request is called: 32 hex digits. seed_out: where it names none. ST_INVALID: the key is empty, too long or not printable. */
enum status resumes_name(const char *key, const char *owner, const char *path, const void *body, size_t bytes,
                         char name_out[RESUME_NAME_BYTES + 1], uint64_t *seed_out);
/* Opens the journal beside the loop; done has it (NULL: no memory; there is nothing to take up, and nothing is kept). ST_NO_MEMORY. */
enum status resumes_open(struct resumes *r, const char *name, void (*done)(void *ctx, struct keeper *k), void *ctx);
/* Writes what g has more. */
void resumes_note(struct resumes *r, struct keeper *k, const struct generation *g);
/* What was to be opened is answered before this returns. Accepts NULL. */
void resumes_free(struct resumes *r);

#ifdef __cplusplus
}
#endif
#endif
