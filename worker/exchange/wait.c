/*
 * Waiting: spin a little, yield, then arm and sleep. Two processes that spin on one core cost each other a scheduler's quantum a message, so
 * the spin is short; a sleep costs a wake-up of some microseconds.
 */
#define _GNU_SOURCE /* ppoll */

#include "worker/exchange/core.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>

#include "common/clock.h"
#include "common/log.h"

enum {
    YIELDS = 3,
    NAP_NS_MAX = 100 * 1000 * 1000, /* a wake-up that a transport loses costs this, not the step */
    BUSY_ARMS = 16, /* a transport with unsent bytes refuses to arm: after so many refusals in a row, nap unarmed */
    BUSY_NAP_NS = 200 * 1000,
};

static inline void relax(void)
{
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
}

/* Sleeps until something may have happened, or fd is readable. generation: of the gate, before the caller looked. */
static void nap(struct exchange *x, unsigned generation, int fd, int64_t ns)
{
    waker_begin(x->waker);
    if (gate_generation(&x->gate) != generation) {
        waker_end(x->waker);
        return;
    }
    const int64_t armed_ns = x->transport.arm(x);
    const int64_t most_ns = armed_ns ? armed_ns : BUSY_NAP_NS;
    x->busy_arms = armed_ns ? 0 : x->busy_arms + 1;
    if (x->busy_arms && x->busy_arms < BUSY_ARMS) {
        waker_end(x->waker);
        return;
    }
    if (ns > most_ns)
        ns = most_ns;
    struct pollfd fds[3] = { { x->waker->fd, POLLIN, 0 }, { x->transport.fd, POLLIN, 0 }, { fd, POLLIN, 0 } };
    const struct timespec timeout = { ns / 1000000000, ns % 1000000000 };
    if (ppoll(fds, 3, &timeout, NULL) < 0 && errno != EINTR)
        log_error("exchange: poll: errno %d", errno);
    waker_end(x->waker);
}

/* seen: the gate's generation before it was last asked. */
static enum status wait_done(struct exchange *x, const struct peer *peer, unsigned seen, int64_t deadline_ns)
{
    const int64_t spin_ns = (int64_t)x->config.spin_us * 1000;
    const uint64_t instance = peer->instance;
    int64_t spin_until = clock_ns() + spin_ns;
    unsigned yields = 0;
    for (;;) {
        const unsigned generation = gate_generation(&x->gate), moved = exchange_progress_all(x);
        if (x->wait.done)
            return x->wait.st;
        if (generation != seen && gate_stale(&x->gate, x->wait.key.group, x->wait.key.epoch))
            return ST_STALE;
        seen = generation;
        if (peer->state != PEER_UP || peer->instance != instance)
            return ST_PEER;
        const int64_t now = clock_ns();
        if (now >= deadline_ns)
            return ST_TIMEOUT;
        if (moved) {
            spin_until = now + spin_ns;
            yields = 0;
            x->busy_arms = 0;
        } else if (now < spin_until) {
            relax();
        } else if (yields < YIELDS) {
            yields++;
            sched_yield();
        } else {
            nap(x, generation, -1, deadline_ns - now < NAP_NS_MAX ? deadline_ns - now : NAP_NS_MAX);
        }
    }
}

enum status exchange_recv(struct exchange *x, const struct exchange_key *key, void *data_out, size_t bytes,
                          int64_t deadline_ns)
{
    const unsigned generation = gate_generation(&x->gate);
    if (gate_stale(&x->gate, key->group, key->epoch))
        return ST_STALE;
    x->wait.active = true;
    x->wait.done = false;
    x->wait.key = *key;
    x->wait.data_out = data_out;
    x->wait.bytes = bytes;
    enum status st = ST_PEER;
    struct message *m = stash_take(&x->stash, key);
    const struct peer *peer = exchange_peer(x, key->peer);
    if (m) {
        exchange_answer(x, &m->header, m->payload);
        stash_message_free(&x->stash, m);
        st = x->wait.st;
    } else if (peer && peer->state == PEER_UP) {
        const int64_t start = clock_ns();
        if (x->config.waits_since_ms)
            atomic_store_explicit(x->config.waits_since_ms, start / 1000000, memory_order_relaxed);
        st = wait_done(x, peer, generation, deadline_ns);
        if (x->config.waits_since_ms)
            atomic_store_explicit(x->config.waits_since_ms, 0, memory_order_relaxed);
        const int64_t took = clock_ns() - start;
        x->stats.wait_ns += (uint64_t)took;
        if (st == ST_TIMEOUT)
            log_error("exchange: nothing from peer %u in %" PRId64 " ms (group %u epoch %" PRIu64 " plan %" PRIu64
                      " layer %u %s)",
                      key->peer, took / 1000000, key->group, key->epoch, key->plan, key->layer,
                      message_phase_text(key->phase));
    }
    x->wait.active = false;
    return st;
}

bool exchange_ready(struct exchange *x, const struct exchange_key *key)
{
    exchange_progress_all(x);
    const struct peer *peer = exchange_peer(x, key->peer);
    return stash_has(&x->stash, key) || !peer || peer->state != PEER_UP || gate_stale(&x->gate, key->group, key->epoch);
}

void exchange_sleep(struct exchange *x, int fd, int timeout_ms)
{
    const int64_t until = clock_ns() + (int64_t)timeout_ms * 1000000;
    for (;;) {
        const unsigned generation = gate_generation(&x->gate);
        const int64_t left = until - clock_ns();
        if (exchange_progress_all(x) || left <= 0)
            return;
        struct pollfd asked = { fd, POLLIN, 0 };
        if (fd >= 0 && poll(&asked, 1, 0) > 0)
            return;
        nap(x, generation, fd, left);
        if (gate_generation(&x->gate) != generation)
            return;
    }
}
