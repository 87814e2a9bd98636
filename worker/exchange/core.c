#include "worker/exchange/core.h"

#include <inttypes.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/bytes.h"
#include "common/log.h"

static const size_t default_stash_bytes_max = (size_t)64 << 20, default_message_bytes_max = (size_t)64 << 20;

enum status exchange_init(struct exchange *x, const struct exchange_config *config, const struct transport *transport,
                          struct waker *waker, struct error *err)
{
    uint64_t random[2] = { 0 };
    _Static_assert(sizeof x->secret <= 256, "one getrandom");
    x->config = *config;
    x->transport = *transport;
    x->waker = waker;
    x->blocks_end = &x->blocks;
    x->sent_end = &x->sent;
    if (!x->config.stash_bytes_max)
        x->config.stash_bytes_max = default_stash_bytes_max;
    if (!x->config.message_bytes_max)
        x->config.message_bytes_max = default_message_bytes_max;
    if (getrandom(random, sizeof random, 0) != sizeof random ||
        getrandom(x->secret, sizeof x->secret, 0) != sizeof x->secret)
        return error_set(err, ST_IO, "exchange: no random numbers");
    x->instance = random[0] | 1;
    stash_init(&x->stash, x->config.stash_bytes_max, random[1]);
    return gate_init(&x->gate) ? error_set(err, ST_NO_MEMORY, "exchange: out of memory") : ST_OK;
}

static void assembly_drop(struct exchange *x, struct peer *p)
{
    stash_message_free(&x->stash, p->assembly);
    p->assembly = NULL;
}

static void call_sent(struct exchange *x)
{
    while (x->sent) {
        struct sent *s = x->sent;
        x->sent = s->next;
        if (!x->sent)
            x->sent_end = &x->sent;
        s->fn(s->ctx, s->st);
        free(s);
    }
}

void exchange_deinit(struct exchange *x)
{
    call_sent(x);
    for (struct message *m = x->blocks, *next; m; m = next) {
        next = m->next;
        message_free(m);
    }
    for (size_t i = 0; i < x->n_peers; i++)
        assembly_drop(x, &x->peers[i]);
    stash_deinit(&x->stash);
    gate_deinit(&x->gate);
}

/* ---- peers ---- */

struct peer *exchange_peer(struct exchange *x, uint16_t id)
{
    for (size_t i = 0; i < x->n_peers; i++) {
        if (x->peers[i].id == id)
            return &x->peers[i];
    }
    return NULL;
}

struct of_source {
    uint16_t source;
    uint64_t but; /* this life of it stays */
};

static bool is_of_source(void *ctx, const struct message_header *h)
{
    const struct of_source *s = ctx;
    return h->source == s->source && h->from != s->but;
}

/* A place for one more: an unused one, or that of the worst peer of at most this state. */
static struct peer *peer_place(struct exchange *x, bool replace)
{
    struct peer *p = NULL;
    if (x->n_peers < EXCHANGE_PEERS_MAX)
        return &x->peers[x->n_peers++];
    for (size_t i = 0; replace && i < x->n_peers; i++) {
        if (x->peers[i].state != PEER_UP && (!p || x->peers[i].state == PEER_DOWN))
            p = &x->peers[i];
    }
    if (p)
        assembly_drop(x, p);
    return p;
}

struct peer *exchange_peer_put(struct exchange *x, uint16_t id, uint64_t instance)
{
    struct peer *p = exchange_peer(x, id);
    if (p && p->instance == instance) {
        p->link += p->state == PEER_DOWN || !p->link;
        p->state = PEER_UP;
        p->relink = 0;
        p->forgotten = false;
        return p;
    }
    if (p)
        assembly_drop(x, p);
    else
        p = peer_place(x, true);
    if (!p)
        return NULL;
    *p = (struct peer){ .id = id, .state = PEER_UP, .instance = instance, .link = 1 };
    struct of_source others = { id, instance };
    stash_purge(&x->stash, is_of_source, &others);
    return p;
}

void exchange_peer_named(struct exchange *x, struct peer *p, const struct exchange_peer *peer)
{
    p->named = x->roster;
    p->token = peer->token;
}

void exchange_roster(struct exchange *x, uint64_t roster)
{
    x->roster = roster;
}

const uint8_t *exchange_secret(const struct exchange *x)
{
    return x->secret;
}

enum status exchange_peer_address(const struct exchange *x, const struct exchange_peer *peer,
                                  struct peer_address *a_out, struct error *err)
{
    struct peer_address a;
    const enum status st = peer_address_read(peer->address, peer->address_bytes, &a, err);
    if (st)
        return st;
    if (a.id != peer->id)
        return error_set(err, ST_PROTOCOL, "address of worker %u: it is that of worker %u", peer->id, a.id);
    if (!a.instance || a.instance == x->instance)
        return error_set(err, ST_PROTOCOL, "address of worker %u: its instance is 0 or ours", peer->id);
    *a_out = a;
    return ST_OK;
}

void exchange_peer_down(struct exchange *x, struct peer *p, const char *why, bool in_order)
{
    if (p->state == PEER_DOWN)
        return;
    p->state = PEER_DOWN;
    assembly_drop(x, p);
    log_write(in_order ? LOG_LEVEL_INFO : LOG_LEVEL_WARN, "exchange: peer %u is gone: %s", p->id, why);
}

void exchange_peer_relink(struct peer *p)
{
    p->link = p->relink;
    p->relink = 0;
    p->state = PEER_UP;
}

void exchange_peer_forget(struct exchange *x, struct peer *p)
{
    struct of_source all = { p->id, 0 };
    p->state = PEER_DOWN;
    p->relink = 0;
    p->forgotten = true;
    assembly_drop(x, p);
    stash_purge(&x->stash, is_of_source, &all);
}

/* ---- arrival ---- */

/* The first time in full, then at each power of two. */
static bool worth_a_line(uint64_t n)
{
    return (n & (n - 1)) == 0;
}

void exchange_garbage(struct exchange *x, uint16_t source, const char *why)
{
    struct peer *p = exchange_peer(x, source);
    const uint64_t n = p ? ++p->dropped : ++x->strangers;
    x->stats.dropped++;
    if (!worth_a_line(n))
        return;
    if (p)
        log_warn("exchange: dropped a message of peer %u: %s (%" PRIu64 " so far)", source, why, n);
    else
        log_warn("exchange: dropped a message of nobody known (claims %u): %s (%" PRIu64 " so far)", source, why, n);
}

/*
 * Whether this token is one that its sender may show. Who is not of the roster that we were told may be of a later one that we will be told: it can show a token
 * of that only if the coordinator counts it in. What a sender showed last is kept, so a token is computed once a roster.
 */
static const char *token_fault(const struct exchange *x, const struct message_header *h, struct peer *p)
{
    if (p && p->named != x->roster && h->roster <= x->roster)
        return "it is no member any more";
    if (!p && h->roster <= x->roster)
        return "its token is of an earlier roster";
    if (p && p->seen_roster == h->roster && h->roster)
        return CRYPTO_memcmp(p->seen.byte, h->token.byte, sizeof h->token.byte) ? "its token is wrong" : NULL;
    const struct digest right = token_of(x->secret, h->source, h->roster);
    return CRYPTO_memcmp(right.byte, h->token.byte, sizeof right.byte) ? "its token is wrong" : NULL;
}

bool exchange_genuine(struct exchange *x, const struct message_header *h, const void *payload)
{
    struct peer *p = exchange_peer(x, h->source);
    const char *why = x->config.tokens ? token_fault(x, h, p) : NULL;
    if (why) {
        x->stats.forged++;
        exchange_garbage(x, UINT16_MAX, why); /* it may be anybody's: no peer is blamed */
        return false;
    }
    if (x->config.tokens && p && h->roster >= p->seen_roster) {
        p->seen = h->token;
        p->seen_roster = h->roster;
    }
    if (h->sum == checksum64(payload, h->payload_bytes))
        return true;
    exchange_garbage(x, h->source, "its checksum is wrong");
    return false;
}

static bool is_awaited(const struct exchange *x, const struct message_header *h)
{
    return x->wait.active && !x->wait.done && message_has_key(h, &x->wait.key);
}

bool exchange_admit(struct exchange *x, const struct message_header *h)
{
    struct peer *p = exchange_peer(x, h->source);
    const char *why = NULL;
    if (h->to != x->instance)
        why = "it was meant for another";
    else if (!h->from || (p && h->from != p->instance))
        why = "it is of an earlier life of it";
    else if (p && p->state == PEER_DOWN && (p->forgotten || h->link <= p->link))
        why = "it was dropped";
    else if (h->payload_bytes > x->config.message_bytes_max ||
             (h->kind == MESSAGE_BLOCK && h->block.total > x->config.message_bytes_max))
        why = "it is over the limit";
    if (why) {
        exchange_garbage(x, h->source, why);
        return false;
    }
    if (!p && h->source != x->config.self && (p = peer_place(x, false)))
        *p = (struct peer){ .id = h->source, .state = PEER_HEARD, .instance = h->from };
    if (!p) {
        exchange_garbage(x, h->source, "there is no room for more peers");
        return false;
    }
    if (h->link > p->link && p->state == PEER_HEARD)
        p->link = h->link;
    else if (h->link > p->link)
        p->relink = h->link;
    if (h->kind == MESSAGE_BYE || h->kind == MESSAGE_HELLO)
        return true;
    x->stats.messages_received++;
    x->stats.bytes_received += h->payload_bytes;
    if (h->kind != MESSAGE_STEP)
        return true;
    if (gate_stale(&x->gate, h->step.group, h->step.epoch)) {
        x->stats.dropped++; /* no fault of the peer: it had not heard yet */
        return false;
    }
    if (stash_reserve(&x->stash, h->payload_bytes))
        return true;
    if (is_awaited(x, h)) {
        /* what somebody waits for always gets in, or a full stash would never empty */
        x->stash.bytes_max += h->payload_bytes + 4096;
        const bool room = stash_reserve(&x->stash, h->payload_bytes);
        x->stash.bytes_max -= h->payload_bytes + 4096;
        if (room)
            return true;
    }
    exchange_garbage(x, h->source, "no room for messages that come early");
    return false;
}

bool exchange_answer(struct exchange *x, const struct message_header *h, const void *payload)
{
    if (!is_awaited(x, h))
        return false;
    x->wait.done = true;
    x->wait.st = ST_OK;
    if (h->payload_bytes != x->wait.bytes)
        x->wait.st = ST_PROTOCOL;
    else if (x->wait.bytes)
        memcpy(x->wait.data_out, payload, x->wait.bytes);
    if (x->wait.st)
        log_error("exchange: peer %u sent %" PRIu64 " bytes where %zu were due (group %u epoch %" PRIu64
                  " plan %" PRIu64 " layer %u %s)",
                  h->source, h->payload_bytes, x->wait.bytes, h->step.group, h->step.epoch, h->step.plan, h->step.layer,
                  message_phase_text(h->step.phase));
    return true;
}

static void block_queue(struct exchange *x, struct message *m)
{
    m->next = NULL;
    *x->blocks_end = m;
    x->blocks_end = &m->next;
}

void exchange_arrived_message(struct exchange *x, struct message *m)
{
    const struct message_header *h = &m->header;
    if (h->kind == MESSAGE_BLOCK) {
        block_queue(x, m);
        return;
    }
    /* it may have become stale, or its peer have gone, while its bytes came */
    const struct peer *p = exchange_peer(x, h->source);
    const bool unwanted = gate_stale(&x->gate, h->step.group, h->step.epoch) || (p && p->instance != h->from);
    if (unwanted)
        x->stats.dropped++;
    if (!unwanted && !exchange_answer(x, h, m->payload)) {
        if (stash_put(&x->stash, m))
            return;
        exchange_garbage(x, h->source, "its key came twice");
    }
    stash_release(&x->stash, h->payload_bytes);
    stash_message_free(&x->stash, m);
}

void exchange_lost(struct exchange *x, const struct message_header *h)
{
    if (h->kind == MESSAGE_STEP)
        stash_release(&x->stash, h->payload_bytes);
    exchange_garbage(x, h->source, "its bytes did not come");
}

void exchange_arrived(struct exchange *x, const struct message_header *h, const void *payload)
{
    if (h->kind == MESSAGE_STEP && exchange_answer(x, h, payload)) {
        stash_release(&x->stash, h->payload_bytes);
        return;
    }
    if (h->kind == MESSAGE_BLOCK) {
        struct message *block = exchange_piece_begin(x, h);
        if (block) {
            memcpy(block->payload + h->block.offset, payload, h->payload_bytes);
            exchange_piece_end(x, h, block, true);
        }
        return;
    }
    struct message *m = stash_message_new(&x->stash, h->payload_bytes);
    if (!m) {
        exchange_lost(x, h);
        return;
    }
    m->header = *h;
    if (h->payload_bytes)
        memcpy(m->payload, payload, h->payload_bytes);
    exchange_arrived_message(x, m);
}

struct message *exchange_piece_begin(struct exchange *x, const struct message_header *h)
{
    struct peer *p = exchange_peer(x, h->source);
    if (!h->block.offset) {
        assembly_drop(x, p);
        p->assembly = stash_message_new(&x->stash, h->block.total);
        if (!p->assembly) {
            exchange_garbage(x, h->source, "no memory for its block");
            return NULL;
        }
        p->assembly->header = *h;
        p->assembly->header.payload_bytes = h->block.total;
        p->assembly_number = h->block.number;
        p->assembly_have = 0;
    }
    struct message *m = p->assembly;
    if (!m || h->block.number != p->assembly_number || h->block.offset != p->assembly_have ||
        h->block.total != m->header.block.total) {
        exchange_garbage(x, h->source, "a piece of a block that does not follow the one before");
        return NULL;
    }
    p->assembly = NULL;
    return m;
}

void exchange_piece_end(struct exchange *x, const struct message_header *h, struct message *m, bool ok)
{
    struct peer *p = exchange_peer(x, h->source);
    /* while its bytes came the peer may have gone, have been replaced or have begun another block */
    if (!ok || !p || p->instance != h->from || p->state == PEER_DOWN || p->assembly ||
        p->assembly_number != h->block.number || p->assembly_have != h->block.offset) {
        exchange_garbage(x, h->source, "its block was not completed");
        stash_message_free(&x->stash, m);
        return;
    }
    p->assembly_have += h->payload_bytes;
    if (p->assembly_have == m->header.block.total)
        block_queue(x, m);
    else
        p->assembly = m;
}

bool exchange_bye_counts(struct exchange *x, const struct message_header *h)
{
    struct peer *p = exchange_peer(x, h->source);
    if (h->link < p->link) /* it has connected again since */
        return false;
    p->link = h->link;
    p->relink = 0;
    return true;
}

/* ---- calls back ---- */

void exchange_sent_later(struct exchange *x, void (*fn)(void *ctx, enum status st), void *ctx, enum status st)
{
    if (!fn)
        return;
    struct sent *s = malloc(sizeof *s);
    if (!s) {
        fn(ctx, st);
        return;
    }
    *s = (struct sent){ NULL, fn, ctx, st };
    *x->sent_end = s;
    x->sent_end = &s->next;
}

/* Outside the transport's code, so that they may send. */
static void call_back(struct exchange *x)
{
    if (x->calling_back || (!x->blocks && !x->sent))
        return;
    x->calling_back = true;
    while (x->blocks) {
        struct message *m = x->blocks;
        x->blocks = m->next;
        if (!x->blocks)
            x->blocks_end = &x->blocks;
        if (x->config.on_block)
            x->config.on_block(x->config.ctx, m->header.source, m->payload, m->header.payload_bytes);
        stash_message_free(&x->stash, m);
    }
    call_sent(x);
    x->calling_back = false;
}

unsigned exchange_progress_all(struct exchange *x)
{
    const unsigned moved = x->transport.progress(x);
    call_back(x);
    return moved;
}

/* ---- sending ---- */

struct message_header exchange_header(const struct exchange *x, const struct peer *to, enum message_kind kind,
                                      size_t payload_bytes)
{
    return (struct message_header){ .kind = (uint8_t)kind,
                                    .source = x->config.self,
                                    .from = x->instance,
                                    .to = to->instance,
                                    .link = to->link,
                                    .payload_bytes = payload_bytes,
                                    .roster = to->named,
                                    .token = to->token };
}

struct message_header exchange_step_header(const struct exchange *x, const struct peer *to,
                                           const struct exchange_key *key, size_t payload_bytes)
{
    struct message_header h = exchange_header(x, to, MESSAGE_STEP, payload_bytes);
    h.step.epoch = key->epoch;
    h.step.plan = key->plan;
    h.step.group = key->group;
    h.step.layer = key->layer;
    h.step.phase = key->phase;
    return h;
}

bool iovec_bytes(const struct iovec *parts, size_t n_parts, size_t *bytes_out)
{
    size_t bytes = 0;
    for (size_t i = 0; i < n_parts; i++) {
        if (!size_add(bytes, parts[i].iov_len, &bytes))
            return false;
    }
    *bytes_out = bytes;
    return true;
}

void iovec_gather(const struct iovec *parts, size_t n_parts, uint8_t *out)
{
    for (size_t i = 0; i < n_parts; i++) {
        if (parts[i].iov_len)
            memcpy(out, parts[i].iov_base, parts[i].iov_len);
        out += parts[i].iov_len;
    }
}

/* ---- the table's plain ones ---- */

void exchange_progress(struct exchange *x)
{
    exchange_progress_all(x);
}

struct of_group {
    uint32_t group;
    uint64_t below;
};

static bool is_below(void *ctx, const struct message_header *h)
{
    const struct of_group *g = ctx;
    return h->step.group == g->group && h->step.epoch < g->below;
}

void exchange_fence(struct exchange *x, uint32_t group, uint64_t epoch)
{
    struct of_group old = { group, epoch };
    gate_raise(&x->gate, group, epoch);
    stash_purge(&x->stash, is_below, &old);
}

void exchange_abort(struct exchange *x, uint32_t group, uint64_t epoch)
{
    gate_raise(&x->gate, group, epoch == UINT64_MAX ? epoch : epoch + 1);
    waker_wake(x->waker);
}

void exchange_stats(const struct exchange *x, struct exchange_stats *stats_out)
{
    *stats_out = x->stats;
}

uint16_t exchange_self(const struct exchange *x)
{
    return x->config.self;
}
