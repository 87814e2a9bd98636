#include "proto/control.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "common/clock.h"
#include "tests/unit/proto/plans.h"

static uint64_t seed;
static struct plan_case plans;
static struct result_case results;

enum { N_KINDS = CONTROL_GONE + 1 };

static const uint8_t address[] = { 9, 0, 8, 255 };
static const struct control_member good_members[] = { { 1, address, 4, { { 1, 2 } } },
                                                      { 2, address, 0, { { 3 } } },
                                                      { 900, address, 1, { { 0 } } } };

static const struct control_block disk_blocks[] = { { 0, 0, { 1 } }, { 0, 5, { 2, 3 } } };
static const struct control_block good_blocks[] = { { 1, 0, { 1 } },
                                                    { UINT64_MAX - 1, PLAN_POSITIONS_MAX / PLAN_BLOCK - 1, { 2, 3 } },
                                                    { 7, 4, { 9 } } };

/* A good message of each kind. */
static struct control_message message_of(enum control_kind kind, struct rng *rng)
{
    struct control_message m = { .kind = kind };
    switch (kind) {
    case CONTROL_HELLO:
        m.as.hello = (struct control_hello){ CONTROL_VERSION, 4711, "host-\xC3\xA4", "cpu", "ucx", 2, 77 };
        break;
    case CONTROL_WELCOME:
        m.as.welcome = (struct control_welcome){ .worker_id = 7,
                                                 .model = "models/x",
                                                 .precision = "bf16",
                                                 .kv_codec = "cq-2b",
                                                 .calibration = "00112233445566778899aabbccddeeff",
                                                 .selector = "dense",
                                                 .positions_max = 8192,
                                                 .step_rows_max = 2048,
                                                 .heartbeat_ms = 200,
                                                 .silence_ms = 1500,
                                                 .term = UINT64_MAX };
        break;
    case CONTROL_PROGRESS:
        m.as.progress.fraction = 0.5f;
        break;
    case CONTROL_READY:
        m.as.ready = (struct control_ready){ .fingerprint = "avx512-1",
                                             .model_digest = { 1, 2, 3 },
                                             .leaf_blocks = 4,
                                             .n_blocks = 100,
                                             .block_bytes = 1 << 20,
                                             .weight_bytes = 5,
                                             .pool_bytes = 6,
                                             .address = address,
                                             .address_bytes = sizeof address,
                                             .secret = { 9, 8, 7 } };
        break;
    case CONTROL_HEARTBEAT:
        m.as.heartbeat = (struct control_heartbeat){ 1,          2, 3, 4,    5,  6,
                                                     UINT64_MAX, 8, 9, true, 10, { 1, 2, 3, UINT64_MAX, 5, 6, 7, 8 } };
        break;
    case CONTROL_RESULT:
        m.as.result = result_case_make(&results, rng, rng_below(rng, 20));
        break;
    case CONTROL_ABORT:
        m.as.abort = (struct control_abort){ 1, 2, 3, UINT16_MAX, "peer 3 is silent" };
        break;
    case CONTROL_COPIED:
        m.as.copied = (struct control_copied){ 77, 2, ST_CORRUPT };
        break;
    case CONTROL_MEMBERS:
        m.as.members = (struct control_members){ 3, good_members, 77 };
        break;
    case CONTROL_PLAN:
        m.as.plan = plan_case_make(&plans, rng, rng_below(rng, 4), rng_below(rng, 2));
        break;
    case CONTROL_FENCE:
        m.as.fence = (struct control_fence){ 3, UINT64_MAX };
        break;
    case CONTROL_COPY:
        m.as.copy = (struct control_copy){ 99, 3, 4, { 1, 2 } };
        break;
    case CONTROL_INVENTORY:
    case CONTROL_NAMES:
        m.as.blocks = (struct control_blocks){ 12, 3, good_blocks };
        break;
    case CONTROL_STORED:
    case CONTROL_GONE:
        m.as.blocks = (struct control_blocks){ 0, 2, disk_blocks };
        break;
    case CONTROL_STOP:
        break;
    }
    return m;
}

static bool same_text(const char *a, const char *b)
{
    return !strcmp(a, b);
}

static bool message_equal(const struct control_message *a, const struct control_message *b)
{
    if (a->kind != b->kind)
        return false;
    switch (a->kind) {
    case CONTROL_HELLO: {
        const struct control_hello *x = &a->as.hello, *y = &b->as.hello;
        return x->version == y->version && x->term == y->term && x->pid == y->pid && x->n_threads == y->n_threads &&
               same_text(x->host, y->host) && same_text(x->device, y->device) && same_text(x->transport, y->transport);
    }
    case CONTROL_WELCOME: {
        const struct control_welcome *x = &a->as.welcome, *y = &b->as.welcome;
        return x->worker_id == y->worker_id && same_text(x->model, y->model) && same_text(x->precision, y->precision) &&
               same_text(x->kv_codec, y->kv_codec) && same_text(x->calibration, y->calibration) &&
               same_text(x->selector, y->selector) && x->positions_max == y->positions_max &&
               x->step_rows_max == y->step_rows_max && x->heartbeat_ms == y->heartbeat_ms &&
               x->silence_ms == y->silence_ms && x->term == y->term;
    }
    case CONTROL_PROGRESS:
        return a->as.progress.fraction == b->as.progress.fraction;
    case CONTROL_READY: {
        const struct control_ready *x = &a->as.ready, *y = &b->as.ready;
        return same_text(x->fingerprint, y->fingerprint) && !memcmp(x->model_digest, y->model_digest, 16) &&
               x->leaf_blocks == y->leaf_blocks && x->n_blocks == y->n_blocks && x->block_bytes == y->block_bytes &&
               x->weight_bytes == y->weight_bytes && x->pool_bytes == y->pool_bytes &&
               !memcmp(x->secret, y->secret, sizeof x->secret) && x->address_bytes == y->address_bytes &&
               !memcmp(x->address, y->address, x->address_bytes);
    }
    case CONTROL_HEARTBEAT:
        return !memcmp(&a->as.heartbeat.sequence, &b->as.heartbeat.sequence, 16) &&
               a->as.heartbeat.blocks_used == b->as.heartbeat.blocks_used &&
               a->as.heartbeat.resident_bytes == b->as.heartbeat.resident_bytes &&
               a->as.heartbeat.sketch_bytes == b->as.heartbeat.sketch_bytes &&
               a->as.heartbeat.bytes_sent == b->as.heartbeat.bytes_sent &&
               a->as.heartbeat.bytes_received == b->as.heartbeat.bytes_received &&
               a->as.heartbeat.work == b->as.heartbeat.work && a->as.heartbeat.dropped == b->as.heartbeat.dropped &&
               a->as.heartbeat.leaving == b->as.heartbeat.leaving &&
               a->as.heartbeat.waits_ms == b->as.heartbeat.waits_ms &&
               !memcmp(&a->as.heartbeat.disk, &b->as.heartbeat.disk, sizeof a->as.heartbeat.disk);
    case CONTROL_RESULT:
        return result_equal(a->as.result, b->as.result);
    case CONTROL_ABORT:
        return a->as.abort.group == b->as.abort.group && a->as.abort.epoch == b->as.abort.epoch &&
               a->as.abort.plan == b->as.abort.plan && a->as.abort.peer == b->as.abort.peer &&
               same_text(a->as.abort.reason, b->as.abort.reason);
    case CONTROL_COPIED:
        return a->as.copied.handle == b->as.copied.handle && a->as.copied.source == b->as.copied.source &&
               a->as.copied.status == b->as.copied.status;
    case CONTROL_MEMBERS:
        if (a->as.members.n_members != b->as.members.n_members || a->as.members.roster != b->as.members.roster)
            return false;
        for (uint32_t i = 0; i < a->as.members.n_members; i++) {
            const struct control_member *x = &a->as.members.members[i], *y = &b->as.members.members[i];
            if (x->id != y->id || x->address_bytes != y->address_bytes ||
                memcmp(x->address, y->address, x->address_bytes) || memcmp(&x->token, &y->token, sizeof x->token))
                return false;
        }
        return true;
    case CONTROL_PLAN:
        return plan_equal(a->as.plan, b->as.plan);
    case CONTROL_FENCE:
        return a->as.fence.group == b->as.fence.group && a->as.fence.epoch == b->as.fence.epoch;
    case CONTROL_COPY:
        return a->as.copy.handle == b->as.copy.handle && a->as.copy.destination == b->as.copy.destination &&
               a->as.copy.position == b->as.copy.position && !memcmp(a->as.copy.id, b->as.copy.id, 16);
    case CONTROL_INVENTORY:
    case CONTROL_NAMES:
    case CONTROL_STORED:
    case CONTROL_GONE:
        if (a->as.blocks.epoch != b->as.blocks.epoch || a->as.blocks.n_blocks != b->as.blocks.n_blocks)
            return false;
        for (uint32_t i = 0; i < a->as.blocks.n_blocks; i++) {
            const struct control_block *x = &a->as.blocks.blocks[i], *y = &b->as.blocks.blocks[i];
            if (x->handle != y->handle || x->position != y->position || memcmp(x->id, y->id, 16) != 0)
                return false;
        }
        return true;
    case CONTROL_STOP:
        return true;
    }
    return false;
}

static void all_kinds_go_there_and_back(void **state)
{
    (void)state;
    struct rng rng = { .seed = seed };
    for (int i = 0; i < 10 * N_KINDS; i++) {
        const struct control_message m = message_of((enum control_kind)(i % N_KINDS), &rng);
        uint8_t *bytes;
        size_t n;
        struct control_message *q;
        struct error err = { 0 };
        assert_int_equal(control_encode(&m, &bytes, &n), ST_OK);
        if (control_decode(bytes, n, &q, &err))
            fail_msg("kind %d: %s", m.kind, err.text);
        if (!message_equal(&m, q))
            fail_msg("kind %d came back changed (seed %llu)", m.kind, (unsigned long long)seed);
        free(q);
        free(bytes);
    }
}

static void refused(const struct control_message *m, const char *field)
{
    uint8_t *bytes;
    size_t n;
    struct control_message *q;
    struct error err = { 0 };
    assert_int_equal(control_encode(m, &bytes, &n), ST_OK);
    const enum status st = control_decode(bytes, n, &q, &err);
    if (st != ST_CORRUPT && st != ST_TOO_LARGE)
        fail_msg("%s: status %d", field, st);
    if (!strstr(err.text, field))
        fail_msg("\"%s\" does not name %s", err.text, field);
    free(bytes);
}

static void fields_are_checked(void **state)
{
    (void)state;
    struct rng rng = { .seed = seed + 1 };
    static char longer[5000];
    memset(longer, 'x', sizeof longer - 1);
    const char *const bad_texts[] = { "\xFF", "\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "abc\xE2\x82", longer };
    for (size_t i = 0; i < sizeof bad_texts / sizeof *bad_texts; i++) {
        struct control_message m = message_of(CONTROL_HELLO, &rng);
        m.as.hello.host = bad_texts[i];
        refused(&m, "hello.host");
        m = message_of(CONTROL_WELCOME, &rng);
        m.as.welcome.model = bad_texts[i];
        refused(&m, "welcome.model");
        m = message_of(CONTROL_READY, &rng);
        m.as.ready.fingerprint = bad_texts[i];
        refused(&m, "ready.fingerprint");
    }
    struct control_message m = message_of(CONTROL_WELCOME, &rng);
    m.as.welcome.positions_max = 0;
    refused(&m, "welcome.positions_max");
    m = message_of(CONTROL_WELCOME, &rng);
    m.as.welcome.silence_ms = m.as.welcome.heartbeat_ms - 1;
    refused(&m, "welcome.silence_ms");
    m = message_of(CONTROL_WELCOME, &rng);
    m.as.welcome.worker_id = UINT16_MAX;
    refused(&m, "welcome.worker_id");
    m = message_of(CONTROL_PROGRESS, &rng);
    m.as.progress.fraction = NAN;
    refused(&m, "progress.fraction");
    m = message_of(CONTROL_READY, &rng);
    m.as.ready.leaf_blocks = 0;
    refused(&m, "ready.leaf_blocks");
    m = message_of(CONTROL_READY, &rng);
    m.as.ready.address = (const uint8_t *)longer;
    m.as.ready.address_bytes = 1025;
    refused(&m, "ready.address");
    m = message_of(CONTROL_COPIED, &rng);
    m.as.copied.handle = 0;
    refused(&m, "copied.handle");
    m = message_of(CONTROL_COPIED, &rng);
    m.as.copied.status = 5;
    refused(&m, "copied.status");
    m = message_of(CONTROL_COPY, &rng);
    m.as.copy.position = PLAN_POSITIONS_MAX;
    refused(&m, "copy.position");
    struct control_block block = { 0, 0, { 0 } };
    m = message_of(CONTROL_INVENTORY, &rng);
    m.as.blocks = (struct control_blocks){ 1, 1, &block };
    refused(&m, "blocks.handles");
    block.handle = 1;
    m = message_of(CONTROL_STORED, &rng);
    m.as.blocks = (struct control_blocks){ 0, 1, &block };
    refused(&m, "blocks.handles");
    m = message_of(CONTROL_INVENTORY, &rng);
    block = (struct control_block){ 1, PLAN_POSITIONS_MAX / PLAN_BLOCK, { 0 } };
    m.as.blocks = (struct control_blocks){ 1, 1, &block };
    refused(&m, "blocks.positions");
    static struct control_block many[CONTROL_BLOCKS_MAX + 1];
    m = message_of(CONTROL_NAMES, &rng);
    m.as.blocks = (struct control_blocks){ 1, CONTROL_BLOCKS_MAX + 1, many };
    refused(&m, "blocks.handles");
    const struct control_member twice[] = { { 3, address, 4, { { 0 } } }, { 3, address, 4, { { 0 } } } };
    m = message_of(CONTROL_MEMBERS, &rng);
    m.as.members = (struct control_members){ 2, twice, 1 };
    refused(&m, "members.id");
    m = message_of(CONTROL_PLAN, &rng);
    m.as.plan->deadline_ms = 0;
    refused(&m, "plan.deadline_ms");
    m = message_of(CONTROL_RESULT, &rng);
    m.as.result = result_case_make(&results, &rng, 3);
    results.rows[2].logprob = NAN;
    refused(&m, "result.row_logprob[2]");
    struct control_message *q;
    struct error err = { 0 };
    assert_int_equal(control_decode((const uint8_t *)"", 0, &q, &err), ST_CORRUPT);
}

static void any_reason_may_be_sent(void **state)
{
    (void)state;
    struct rng rng = { .seed = seed };
    static char long_text[4000];
    for (size_t i = 0; i + 1 < sizeof long_text; i++)
        long_text[i] = "\xC3\xA4"[i % 2]; /* cut within a character */
    const char *const reasons[] = { "bad \xFF byte", long_text, NULL, "" };
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++) {
        struct control_message m = message_of(CONTROL_ABORT, &rng);
        m.as.abort.reason = reasons[i];
        uint8_t *bytes;
        size_t n;
        struct control_message *q;
        assert_int_equal(control_encode(&m, &bytes, &n), ST_OK);
        assert_int_equal(control_decode(bytes, n, &q, NULL), ST_OK);
        if (i == 0)
            assert_string_equal(q->as.abort.reason, "bad ? byte");
        free(q);
        free(bytes);
    }
}

static void mutations_are_refused_or_sound(void **state)
{
    (void)state;
    struct rng rng = { .seed = seed + 2 };
    int sound = 0;
    for (int i = 0; i < 400 * N_KINDS; i++) {
        const struct control_message m = message_of((enum control_kind)(i % N_KINDS), &rng);
        uint8_t *bytes, *bytes2;
        size_t n, n2;
        struct control_message *q, *again;
        assert_int_equal(control_encode(&m, &bytes, &n), ST_OK);
        for (uint32_t k = 1 + rng_below(&rng, 3); k && n; k--)
            if (rng_below(&rng, 4))
                bytes[rng_below(&rng, (uint32_t)n)] = (uint8_t)rng_next(&rng);
            else
                n = rng_below(&rng, (uint32_t)n + 1);
        struct error err = { 0 };
        if (control_decode(bytes, n, &q, &err) == ST_OK) {
            sound++;
            assert_int_equal(control_encode(q, &bytes2, &n2), ST_OK);
            if (control_decode(bytes2, n2, &again, &err))
                fail_msg("seed %llu round %d: %s", (unsigned long long)seed, i, err.text);
            assert_true(message_equal(q, again));
            free(again);
            free(bytes2);
            free(q);
        } else {
            assert_true(err.text[0] != '\0');
        }
        free(bytes);
    }
    print_message("%d of %d mutated messages were sound\n", sound, 400 * N_KINDS);
}

/* "--seeds DIR": writes one message of each kind, the corpus of the fuzz target. */
static int seeds_write(const char *dir)
{
    struct rng rng = { .seed = 42 };
    for (int kind = 0; kind < N_KINDS; kind++) {
        const struct control_message m = message_of((enum control_kind)kind, &rng);
        char path[512];
        uint8_t *bytes;
        size_t n;
        snprintf(path, sizeof path, "%s/kind-%02d", dir, kind);
        FILE *f = fopen(path, "wb");
        if (!f || control_encode(&m, &bytes, &n) || fwrite(bytes, 1, n, f) != n)
            return 1;
        free(bytes);
        if (fclose(f))
            return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--seeds"))
        return seeds_write(argv[2]);
    seed = (uint64_t)clock_ns();
    print_message("seed %llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_kinds_go_there_and_back),
        cmocka_unit_test(fields_are_checked),
        cmocka_unit_test(any_reason_may_be_sent),
        cmocka_unit_test(mutations_are_refused_or_sound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
