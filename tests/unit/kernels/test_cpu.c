#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/kernels.h"

/* cpu_caps() as a new process with this LONGSPAN_ISA would see it (NULL: unset). */
static uint32_t caps_with(const char *isa)
{
    int fds[2];
    uint32_t caps = 0;
    assert_int_equal(pipe(fds), 0);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (isa)
            setenv("LONGSPAN_ISA", isa, 1);
        else
            unsetenv("LONGSPAN_ISA");
        caps = cpu_caps();
        const bool steady = caps == cpu_caps();
        _exit(write(fds[1], &caps, sizeof caps) == sizeof caps && steady ? 0 : 1);
    }
    close(fds[1]);
    int status = -1;
    assert_int_equal(read(fds[0], &caps, sizeof caps), sizeof caps);
    close(fds[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    return caps;
}

static void isa_lowers(void **state)
{
    (void)state;
    const uint32_t all = caps_with(NULL);
    assert_int_equal(all & ~(uint32_t)(CPU_AVX2 | CPU_AVX512 | CPU_VBMI2 | CPU_AMX), 0);
    /* each level stands on the one below */
    assert_true(!(all & CPU_AVX512) || (all & CPU_AVX2));
    assert_true(!(all & CPU_AMX) || (all & CPU_AVX512));
    assert_int_equal(caps_with("c"), 0);
    assert_int_equal(caps_with("avx2"), all & CPU_AVX2);
    assert_int_equal(caps_with("avx512"), all & (CPU_AVX2 | CPU_AVX512 | CPU_VBMI2));
    assert_int_equal(caps_with("amx"), all);
    assert_int_equal(caps_with(""), all);
    assert_int_equal(caps_with("sse9"), all); /* unknown: ignored */
}

static void names(void **state)
{
    (void)state;
    assert_string_equal(cpu_caps_name(0), "c");
    assert_string_equal(cpu_caps_name(CPU_AVX2), "avx2");
    assert_string_equal(cpu_caps_name(CPU_AVX2 | CPU_AVX512), "avx512");
    assert_string_equal(cpu_caps_name(CPU_AVX2 | CPU_AVX512 | CPU_AMX), "amx");
    assert_string_equal(cpu_caps_name(CPU_AMX), "c"); /* never found without the others */
}

static void thread_flushes_denormals(void **state)
{
    (void)state;
#if defined(__x86_64__)
    cpu_thread_init();
    volatile float tiny = 1e-30f, denormal;
    const uint32_t bits = 1;
    float smallest;
    memcpy(&smallest, &bits, sizeof smallest);
    denormal = smallest;
    volatile float product = tiny * tiny * 1e20f, scaled = denormal * 1e20f;
    volatile float square = tiny * 1e-10f; /* 1e-40 is a denormal */
    assert_true(product == 0);
    assert_true(square == 0);
    assert_true(scaled == 0);
#endif
}

static void bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    static const struct {
        uint32_t from;
        uint16_t to;
    } rows[] = {
        { 0x3F800000, 0x3F80 }, { 0x3F808000, 0x3F80 }, { 0x3F808001, 0x3F81 }, { 0x3F818000, 0x3F82 },
        { 0x7F7FFFFF, 0x7F80 }, { 0x7F800000, 0x7F80 }, { 0xFF800000, 0xFF80 }, { 0x80000000, 0x8000 },
        { 0x7F800001, 0x7FC0 }, { 0xFFFFFFFF, 0xFFFF }, { 0x00018000, 0x0002 },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        float f;
        memcpy(&f, &rows[i].from, sizeof f);
        assert_int_equal(f32_to_bf16(f), rows[i].to);
    }
    for (uint32_t h = 0; h < 0x7F80; h++)
        assert_int_equal(f32_to_bf16(bf16_to_f32((uint16_t)h)), h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(isa_lowers), cmocka_unit_test(names), cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(thread_flushes_denormals), /* last: it changes how this thread computes */
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
