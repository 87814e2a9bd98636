#ifndef LONGSPAN_COMMON_STATUS_H
#define LONGSPAN_COMMON_STATUS_H

/*
 * What went wrong, grouped by what must be redone. Outputs of a function are written only when it returns ST_OK. Whoever detects an
 * error logs it once, with the cause; callers pass it up in silence.
 */
#define STATUS_LIST(X)                                                                                                 \
    X(ST_OK, 0, "ok")                                                                                                  \
    /* busy: try again after progress */                                                                               \
    X(ST_BUSY, -1, "no room now")                                                                                      \
    X(ST_AGAIN, -2, "not ready yet")                                                                                   \
    /* request: tell the client */                                                                                     \
    X(ST_INVALID, -10, "invalid argument")                                                                             \
    X(ST_NOT_FOUND, -11, "not found")                                                                                  \
    X(ST_TOO_LARGE, -12, "over the limit")                                                                             \
    X(ST_UNSUPPORTED, -13, "not supported")                                                                            \
    X(ST_CANCELLED, -14, "cancelled")                                                                                  \
    X(ST_EXISTS, -15, "exists already")                                                                                \
    /* peer: abandon the step */                                                                                       \
    X(ST_PEER, -20, "peer failed")                                                                                     \
    X(ST_TIMEOUT, -21, "deadline passed")                                                                              \
    X(ST_STALE, -22, "stale epoch")                                                                                    \
    X(ST_PROTOCOL, -23, "protocol violation")                                                                          \
    /* block: fetch or recompute */                                                                                    \
    X(ST_CORRUPT, -30, "checksum or format mismatch")                                                                  \
    /* process: drain, restart */                                                                                      \
    X(ST_NO_MEMORY, -40, "out of memory")                                                                              \
    X(ST_IO, -41, "input/output error")                                                                                \
    X(ST_INTERNAL, -42, "internal error")

#ifdef __cplusplus
extern "C" {
#endif

enum status {
#define X(name, value, text) name = value,
    STATUS_LIST(X)
#undef X
};

/* The text of a status; never NULL. */
const char *status_text(enum status st);

#ifdef __cplusplus
}
#endif
#endif
