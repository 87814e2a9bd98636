/* fuzz-libs: longspan_coordinator */
/* A job's record, a SubmitJobRequest, what etcd answers, and a reflection request. The first byte says which. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/gateway/grpc_reflection.h"
#include "coordinator/jobs/jobs_internal.h"
#include "coordinator/registry/etcd_messages.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* What was read is written and read again: the same. */
static void record(const uint8_t *data, size_t bytes)
{
    struct job_record r, again;
    char *text;
    memset(&r, 0, sizeof r);
    if (job_record_read(data, bytes, &r, NULL))
        return;
    if (job_record_write(&r, &text) || job_record_read(text, strlen(text), &again, NULL) ||
        memcmp(&r, &again, sizeof r) != 0)
        abort();
    free(text);
}

static void submit(const uint8_t *data, size_t bytes)
{
    struct submit_message m;
    struct refusal r = { 0 };
    if (submit_read(data, bytes, &m, &r)) {
        if (!*r.message)
            abort();
        return;
    }
    if (m.body_bytes > bytes || m.key_bytes > bytes || strlen(m.url) > JOB_URL_MAX || strlen(m.name) > JOB_NAME_MAX)
        abort();
}

static void check_item(const struct registry_item *item)
{
    if (!*item->key || strlen(item->key) > REGISTRY_KEY_MAX || item->bytes > REGISTRY_VALUE_MAX)
        abort();
}

static void on_event(void *ctx, bool removed, const struct registry_item *item)
{
    (void)ctx;
    (void)removed;
    check_item(item);
}

static void etcd(const uint8_t *data, size_t bytes)
{
    struct store_items items = { 0 };
    struct etcd_watched watched = { .event = on_event };
    uint64_t revision = 0;
    bool flag = false;
    etcd_read_range(data, bytes, "ns/", &items, &revision, &flag);
    etcd_read_write(data, bytes, "ns/", &flag, &items, &revision);
    etcd_read_keep(data, bytes, &flag);
    etcd_read_watch(data, bytes, "ns/", &watched);
    for (size_t i = 0; i < items.n; i++)
        check_item(&items.items[i]);
    store_items_free(&items);
}

static void reflection(const uint8_t *data, size_t bytes)
{
    size_t n = 0;
    uint8_t *answer = grpc_reflection_answer(data, bytes, &n);
    if (answer && !n)
        abort();
    free(answer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (!bytes)
        return 0;
    switch (data[0] % 4) {
    case 0:
        record(data + 1, bytes - 1);
        break;
    case 1:
        submit(data + 1, bytes - 1);
        break;
    case 2:
        etcd(data + 1, bytes - 1);
        break;
    default:
        reflection(data + 1, bytes - 1);
    }
    return 0;
}
