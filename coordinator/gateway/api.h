#ifndef LONGSPAN_COORDINATOR_GATEWAY_API_H
#define LONGSPAN_COORDINATOR_GATEWAY_API_H

/*
 * The HTTP API: /v1/chat/completions, /v1/completions, /v1/models, /tokenize, /detokenize, /health, /ready, /metrics,
 * /status, and the live page at /.
 */

#include "coordinator/gateway/generation.h"
#include "coordinator/gateway/http.h"

#ifdef __cplusplus
extern "C" {
#endif

struct api_config {
    const char *address;
    const struct tls *tls;   /* NULL: in clear */
    const struct keys *keys; /* NULL: everybody may ask */
    size_t body_bytes_max;
    struct generation_host *host; /* kept */
    const char *fingerprint;      /* kept; may change */
    struct resumes *resumes;      /* answers that can be taken up again; NULL: none can; kept */
    uint32_t ping_ms;             /* a stream that is silent for so long gets a comment; 0: 10 s */
    uint32_t idle_ms;             /* of connections; 0: 60 s */
    bool (*ready)(void *ctx);
    int64_t (*stalled_ms)(void *ctx);            /* see struct gateway_config */
    void (*metrics)(void *ctx, FILE *out);       /* writes the exposition */
    void (*status)(void *ctx, struct text *out); /* writes the cluster as JSON */
    void *ctx;
};

struct api;
enum status api_start(const struct api_config *config, struct api **api_out, struct error *err);
uint16_t api_port(const struct api *a);
/* As http_server_tls. */
enum status api_tls(struct api *a, const struct tls *tls, struct error *err);
uint32_t api_open(const struct api *a);
void api_free(struct api *a);

#ifdef __cplusplus
}
#endif
#endif
