/*
 * Messages through peer memory between two processes, each on a GPU of its own (both on the first where there is one): what is sent arrives, what
 * is wrong is found, waits end. 77: no GPU.
 *
 *   check_cuda_peer             checks
 *   check_cuda_peer --bench     and times rounds in a graph: a query of 8192 bytes out, a partial of 16640 back (one row of 32 heads of 128); one line
 *                          of JSON
 */
#include <cuda_runtime_api.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/rng.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/peer.h"

enum { CAPACITY = 1 << 20, MESSAGES = 200, ROUNDS = 1000, REPLAYS = 31, QUERY = 8192, PARTIAL = 16640 };

static const char *who;

static void say(const char *what, int line)
{
    fprintf(stderr, "check_cuda_peer: %s: %s (line %d)\n", who, what, line);
    exit(1);
}
#define NEED(ok) ((ok) ? (void)0 : say(#ok, __LINE__))
#define CUDA(call)                                                                                                     \
    do {                                                                                                               \
        const int st_ = (int)(call);                                                                                   \
        if (st_)                                                                                                       \
            say(cudaGetErrorString((cudaError_t)st_), __LINE__);                                                       \
    } while (0)

struct side {
    int fd;
    struct peer_lane out, in;
    struct peer_wait wait;
    uint32_t *abort_word; /* as the host sees it */
    cudaStream_t stream;
    uint64_t *data; /* [CAPACITY / 8] on the device, and here */
    uint64_t *host;
};

/* Both are at this point. */
static void meet(const struct side *s)
{
    char c = 0;
    NEED(write(s->fd, &c, 1) == 1 && read(s->fd, &c, 1) == 1);
}

static void side_open(struct side *s, int device)
{
    uint8_t mine[PEER_HANDLE_BYTES], theirs[PEER_HANDLE_BYTES];
    void *mapped;
    CUDA(cudaSetDevice(device));
    CUDA(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking));
    CUDA(peer_window_new(CAPACITY, &s->in.window, mine));
    NEED(write(s->fd, mine, sizeof mine) == sizeof mine);
    NEED(recv(s->fd, theirs, sizeof theirs, MSG_WAITALL) == sizeof theirs);
    CUDA(peer_window_open(theirs, &s->out.window));
    s->in.capacity = s->out.capacity = CAPACITY;
    CUDA(cudaMalloc((void **)&s->in.counts, peer_chunks(CAPACITY) * 4));
    CUDA(cudaMalloc((void **)&s->out.counts, peer_chunks(CAPACITY) * 4));
    CUDA(cudaMemset(s->in.counts, 0, peer_chunks(CAPACITY) * 4));
    CUDA(cudaMemset(s->out.counts, 0, peer_chunks(CAPACITY) * 4));
    CUDA(cudaMalloc((void **)&s->wait.failed, 4));
    CUDA(cudaMemset(s->wait.failed, 0, 4));
    CUDA(cudaHostAlloc((void **)&s->abort_word, 4, cudaHostAllocMapped));
    *s->abort_word = 0;
    CUDA(cudaHostGetDevicePointer(&mapped, s->abort_word, 0));
    s->wait.abort_word = mapped;
    s->wait.timeout_ns = 20000000000ull;
    s->wait.who = 77;
    CUDA(cudaMalloc((void **)&s->data, CAPACITY));
    s->host = malloc(CAPACITY);
    NEED(s->host);
    CUDA(cudaDeviceSynchronize());
    meet(s);
}

static void side_close(struct side *s)
{
    meet(s);
    peer_window_close(s->out.window);
    meet(s);
    peer_window_free(s->in.window);
    CUDA(cudaFree(s->in.counts));
    CUDA(cudaFree(s->out.counts));
    CUDA(cudaFree(s->wait.failed));
    CUDA(cudaFreeHost(s->abort_word));
    CUDA(cudaFree(s->data));
    CUDA(cudaStreamDestroy(s->stream));
    free(s->host);
}

static uint32_t failed(const struct side *s)
{
    uint32_t f;
    CUDA(cudaStreamSynchronize(s->stream));
    CUDA(cudaMemcpy(&f, s->wait.failed, 4, cudaMemcpyDeviceToHost));
    return f;
}

static void forget_failure(struct side *s)
{
    CUDA(cudaMemset(s->wait.failed, 0, 4));
    CUDA(cudaDeviceSynchronize());
}

static uint64_t word(uint32_t message, uint32_t i)
{
    return rng_at(message, i, 7) * 0x9E3779B97F4A7C15u;
}

static void put(struct side *s, uint32_t message, size_t bytes)
{
    for (uint32_t i = 0; i < bytes / 8; i++)
        s->host[i] = word(message, i);
    CUDA(cudaMemcpyAsync(s->data, s->host, bytes, cudaMemcpyHostToDevice, s->stream));
    CUDA(peer_send(&s->out, NULL, s->data, bytes, &s->wait, s->stream));
    NEED(!failed(s));
}

static void take(struct side *s, uint32_t message, size_t bytes)
{
    CUDA(cudaMemsetAsync(s->data, 0xA5, CAPACITY, s->stream));
    CUDA(peer_receive(&s->in, NULL, s->data, bytes, &s->wait, s->stream));
    NEED(!failed(s));
    CUDA(cudaMemcpy(s->host, s->data, CAPACITY, cudaMemcpyDeviceToHost));
    for (uint32_t i = 0; i < bytes / 8; i++)
        NEED(s->host[i] == word(message, i));
    for (size_t i = bytes / 8; i < CAPACITY / 8; i++)
        NEED(s->host[i] == 0xA5A5A5A5A5A5A5A5u);
}

static void check_messages(struct side *s, bool first)
{
    static const size_t edges[] = { 0, 8, PEER_CHUNK - 8, PEER_CHUNK, PEER_CHUNK + 8, CAPACITY };
    struct rng rng = { 11, 0 };
    for (uint32_t i = 0; i < MESSAGES; i++) {
        const size_t bytes = i < 6 ? edges[i] : (size_t)rng_below(&rng, i % 3 ? 4096 : CAPACITY / 8) * 8;
        if (first == (i % 2 == 0))
            put(s, i, bytes);
        else
            take(s, i, bytes);
    }
    CUDA(cudaGetLastError());
    NEED(peer_send(&s->out, NULL, s->data, 12, &s->wait, s->stream));
    NEED(peer_send(&s->out, NULL, s->data, CAPACITY + 8, &s->wait, s->stream));
    NEED(peer_receive(&s->in, NULL, (char *)s->data + 8, 16, &s->wait, s->stream));
}

/* The first sends, the second finds out. */
static void check_faults(struct side *s, bool first)
{
    const uint32_t next = 64;
    if (first) {
        const uint64_t step = 5;
        uint64_t *const at = s->data + CAPACITY / 16;
        put(s, 1, 512);
        put(s, 2, 1024);
        meet(s);
        meet(s);
        const struct peer_key key = { at, 3 };
        CUDA(cudaMemcpy(at, &step, sizeof step, cudaMemcpyHostToDevice));
        for (int i = 0; i < 3; i++) {
            CUDA(peer_send(&s->out, &key, s->data, 64, &s->wait, s->stream));
            NEED(!failed(s));
            if (i == 1) { /* no more than two are unread */
                meet(s);
                meet(s);
            }
        }
        meet(s);
        meet(s);
        return;
    }
    meet(s);
    CUDA(peer_receive(&s->in, NULL, s->data, 504, &s->wait, s->stream));
    NEED(failed(s) == (PEER_FAILED_LENGTH | 77 << 8));
    forget_failure(s);
    /* the second message, of which every copy of one word in the window is changed */
    const size_t bytes = peer_window_bytes(CAPACITY);
    uint32_t *window = malloc(bytes), n = 0;
    NEED(window);
    CUDA(cudaMemcpy(window, s->in.window, bytes, cudaMemcpyDeviceToHost));
    const uint32_t low = (uint32_t)word(2, next);
    for (size_t i = 0; i < bytes / 4; i++)
        if (window[i] == low) {
            window[i] ^= 4;
            n++;
        }
    NEED(n);
    CUDA(cudaMemcpy(s->in.window, window, bytes, cudaMemcpyHostToDevice));
    free(window);
    CUDA(peer_receive(&s->in, NULL, s->data, 1024, &s->wait, s->stream));
    NEED(failed(s) == (PEER_FAILED_CHECKSUM | 77 << 8));
    CUDA(peer_receive(&s->in, NULL, s->data, 1024, &s->wait, s->stream)); /* at once: the word says that it failed */
    NEED(failed(s) == (PEER_FAILED_CHECKSUM | 77 << 8));
    forget_failure(s);
    /* one of another step, of another place in its step, and the right one */
    meet(s);
    meet(s);
    const uint64_t *const step = s->data + CAPACITY / 16;
    const struct peer_key wrong[] = { { step + 1, 3 }, { step, 4 } }, right = { step, 3 };
    const uint64_t steps[] = { 5, 6 };
    CUDA(cudaMemcpy((void *)(uintptr_t)step, steps, sizeof steps, cudaMemcpyHostToDevice));
    for (int i = 0; i < 2; i++) {
        CUDA(peer_receive(&s->in, &wrong[i], s->data, 64, &s->wait, s->stream));
        NEED(failed(s) == (PEER_FAILED_KEY | 77 << 8));
        forget_failure(s);
    }
    meet(s);
    meet(s);
    CUDA(peer_receive(&s->in, &right, s->data, 64, &s->wait, s->stream));
    NEED(!failed(s));
    /* nothing comes */
    s->wait.timeout_ns = 20000000;
    CUDA(peer_receive(&s->in, NULL, s->data, 64, &s->wait, s->stream));
    NEED(failed(s) == (PEER_FAILED_TIME | 77 << 8));
    forget_failure(s);
    s->wait.timeout_ns = 20000000000ull;
    CUDA(peer_receive(&s->in, NULL, s->data, 64, &s->wait, s->stream));
    usleep(20000);
    NEED(cudaStreamQuery(s->stream) == cudaErrorNotReady);
    *(volatile uint32_t *)s->abort_word = 1;
    NEED(failed(s) == (PEER_FAILED_ABORT | 77 << 8));
    *s->abort_word = 0;
    forget_failure(s);
    meet(s);
}

static int by_size(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* ROUNDS rounds in a graph; microseconds a round, of REPLAYS replays. */
static void bench(struct side *s, bool first, bool apart)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t from, to;
    float us[REPLAYS];
    void *query, *partial;
    CUDA(cudaMalloc(&query, QUERY));
    CUDA(cudaMalloc(&partial, PARTIAL));
    CUDA(cudaEventCreate(&from));
    CUDA(cudaEventCreate(&to));
    CUDA(cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < ROUNDS; i++) {
        if (first) {
            CUDA(peer_send(&s->out, NULL, query, QUERY, &s->wait, s->stream));
            CUDA(peer_receive(&s->in, NULL, partial, PARTIAL, &s->wait, s->stream));
        } else {
            CUDA(peer_receive(&s->in, NULL, query, QUERY, &s->wait, s->stream));
            CUDA(peer_send(&s->out, NULL, partial, PARTIAL, &s->wait, s->stream));
        }
    }
    CUDA(cudaStreamEndCapture(s->stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CUDA(cudaGraphUpload(exec, s->stream));
    for (int i = 0; i < REPLAYS; i++) {
        CUDA(cudaStreamSynchronize(s->stream));
        meet(s);
        CUDA(cudaEventRecord(from, s->stream));
        CUDA(cudaGraphLaunch(exec, s->stream));
        CUDA(cudaEventRecord(to, s->stream));
        NEED(!failed(s));
        CUDA(cudaEventElapsedTime(&us[i], from, to));
        us[i] *= 1000.0f / ROUNDS;
    }
    qsort(us, REPLAYS, sizeof *us, by_size);
    const char *name = apart ? "exchange_2gpu_round" : "exchange_1gpu_round";
    if (first)
        printf("{\"%s_us\": %.2f, \"%s_best_us\": %.2f}\n", name, us[REPLAYS / 2], name, us[0]);
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaFree(query));
    CUDA(cudaFree(partial));
}

static int side_main(int fd, bool first, bool timed)
{
    struct side s = { .fd = fd };
    int n = 0;
    CUDA(cudaGetDeviceCount(&n));
    const bool apart = n > 1;
    who = first ? "first" : "second";
    side_open(&s, first || !apart ? 0 : 1);
    check_messages(&s, first);
    check_faults(&s, first);
    if (timed) { /* the faults left the ends at different messages */
        CUDA(cudaMemset(s.in.counts, 0, peer_chunks(CAPACITY) * 4));
        CUDA(cudaMemset(s.out.counts, 0, peer_chunks(CAPACITY) * 4));
        CUDA(cudaMemset(s.in.window, 0, peer_window_bytes(CAPACITY)));
        CUDA(cudaDeviceSynchronize());
        meet(&s);
        bench(&s, first, apart);
    }
    side_close(&s);
    if (first)
        fprintf(stderr, "check_cuda_peer: %d messages, faults found, on %s\n", MESSAGES,
                apart ? "two GPUs" : "one GPU");
    return 0;
}

int main(int argc, char **argv)
{
    const bool timed = argc > 1 && !strcmp(argv[1], "--bench");
    int fds[2], status;
    /* The runtime must not be there before the fork: another process looks for a GPU. */
    const pid_t probe = fork();
    if (!probe) {
        struct cuda_device device;
        char reason[256];
        if (cuda_device_find(&device, reason, sizeof reason)) {
            fprintf(stderr, "check_cuda_peer: %s\n", reason);
            _exit(77);
        }
        _exit(0);
    }
    if (probe < 0 || waitpid(probe, &status, 0) < 0 || !WIFEXITED(status))
        return 1;
    if (WEXITSTATUS(status))
        return WEXITSTATUS(status);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds))
        return 1;
    const pid_t child = fork();
    if (child < 0)
        return 1;
    close(fds[child ? 1 : 0]);
    if (!child)
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* nothing may be left that waits on the GPU */
    const int rc = side_main(fds[child ? 0 : 1], child != 0, timed);
    if (!child)
        return rc;
    return waitpid(child, &status, 0) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) ? 1 : rc;
}
