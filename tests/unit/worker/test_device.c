/* What a device refuses, it refuses before anything is loaded, and says what. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "worker/worker.h"

static enum status try_new(const char *device, const char *spec, bool float32, struct error *err)
{
    struct model *model;
    struct worker *w = NULL;
    struct exchange_hub *hub = exchange_hub_new();
    assert_int_equal(model_open(spec, &model, err), ST_OK);
    const struct worker_config config = { .device = device,
                                          .float32 = float32,
                                          .n_threads = 1,
                                          .step_rows_max = 64,
                                          .positions_max = 256,
                                          .n_blocks = 4,
                                          .exchange_ops = &exchange_local,
                                          .exchange = { .stash_bytes_max = 1 << 20, .hub = hub } };
    const enum status st = worker_new(&config, model, &w, err);
    worker_free(w);
    exchange_hub_free(hub);
    model_close(model);
    return st;
}

#define SMALL "random:layers=1,d=64,heads=1,kv=1,head_dim=64,ff=64,vocab=256,positions=1024,codec="

static void refused(const char *device, const char *spec, bool float32, const char *why)
{
    struct error err = { 0 };
    assert_int_equal(try_new(device, spec, float32, &err), ST_UNSUPPORTED);
    if (!strstr(err.text, why))
        fail_msg("'%s' does not say '%s'", err.text, why);
}

static void unknown_devices_are_refused(void **state)
{
    (void)state;
    refused("abacus", SMALL "bf16", false, "device abacus");
}

static void a_gpu_is_there_or_it_is_said(void **state)
{
    (void)state;
    struct error err = { 0 };
    const enum status st = try_new("cuda", SMALL "bf16", false, &err);
    if (st) {
        assert_int_equal(st, ST_UNSUPPORTED);
        assert_non_null(strstr(err.text, "device cuda"));
        return;
    }
    refused("cuda", SMALL "q8_0", false, "q8_0"); /* weights are looked at when there is a GPU */
}

static void what_kernels_lack_is_refused(void **state)
{
    (void)state;
#ifdef LONGSPAN_CUDA
    refused("cuda", SMALL "bf16", true, "float32");
    refused("cuda", "random:layers=1,d=64,heads=2,kv=1,head_dim=32,ff=64,vocab=256,positions=1024,codec=bf16", false,
            "of 32");
#else
    refused("cuda", SMALL "bf16", false, "no such backend");
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(unknown_devices_are_refused),
                                        cmocka_unit_test(a_gpu_is_there_or_it_is_said),
                                        cmocka_unit_test(what_kernels_lack_is_refused) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
