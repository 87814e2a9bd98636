#ifndef LONGSPAN_WORKER_CUDA_LINKS_H
#define LONGSPAN_WORKER_CUDA_LINKS_H

/*
 * Messages of a step that go from GPU to GPU (worker/exchange/gpu.h). Workers agree on links when they first exchange in an epoch of a group: two short
 * rounds through hosts. What no link takes goes through hosts as before; both ends know which from the plan's lengths. A step that failed takes its
 * links with it: they are agreed on anew in the next epoch.
 *
 * While the device works the step thread watches: a peer that is gone, an epoch that is over or a deadline that is past ends the waits there.
 */

#include "worker/cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

void gpu_links_free(struct backend *b);

/* Before a step runs: agrees on the links that it needs. ST_PEER, ST_TIMEOUT, ST_STALE from the exchange (b->failed_peer), ST_NO_MEMORY. */
enum status gpu_links_prepare(struct backend *b);
/* Whether a step may be a graph as far as its messages go. */
bool gpu_links_graph(const struct backend *b);
/* What of messages decides a step's launches: a part of its graph's number. */
uint64_t gpu_links_key(const struct backend *b);
/* First and last of a step's launches. */
enum status gpu_links_begin(struct backend *b);
enum status gpu_links_end(struct backend *b);

/* Whether message i of a kind goes by a link. */
bool gpu_links_take(const struct backend *b, enum attend_traffic kind, uint32_t i);
/* Its place on the device; no other message's of the step. */
void *gpu_links_place(const struct backend *b, enum attend_traffic kind, uint32_t i);
/* from, to: on the device. -> cudaError_t */
int gpu_links_send(struct backend *b, uint32_t layer, enum attend_traffic kind, uint32_t i, const void *from);
int gpu_links_receive(struct backend *b, uint32_t layer, enum attend_traffic kind, uint32_t i, void *to);
/* Launches what was put off. */
int gpu_links_flush(struct backend *b);

/* Waits for the stream, watching; what went wrong is told by finish. */
void gpu_links_watch(struct backend *b);
/* Something failed here: what waits on the device is to end. */
void gpu_links_abort(struct backend *b);
/* Nothing runs any more. -> the step's status, st if that is not ST_OK or nothing went wrong on links; b->failed_peer is told */
enum status gpu_links_finish(struct backend *b, enum status st);

#ifdef __cplusplus
}
#endif
#endif
