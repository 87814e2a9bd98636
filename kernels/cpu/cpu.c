#include "kernels/kernels.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

/* arch/x86/include/uapi/asm/prctl.h */
enum { ARCH_GET_XCOMP_PERM_ = 0x1022, ARCH_REQ_XCOMP_PERM_ = 0x1023, XFEATURE_XTILEDATA = 18 };

static uint64_t xgetbv0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

/* Linux hands out the 8 KB of tile state on request only; without it the first tile instruction is SIGILL. */
static bool amx_permitted(void)
{
    unsigned long have = 0;
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM_, XFEATURE_XTILEDATA))
        return false;
    return !syscall(SYS_arch_prctl, ARCH_GET_XCOMP_PERM_, &have) && (have >> XFEATURE_XTILEDATA & 1);
}

static bool has(uint32_t reg, uint32_t bits)
{
    return (reg & bits) == bits;
}

static uint32_t machine_caps(void)
{
    uint32_t a, b, c, d, b7, c7, d7, a71, b71, c71, d71;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C))
        return 0;
    const uint64_t saved = xgetbv0();
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7) || (saved & 0x6) != 0x6 || !has(b7, bit_AVX2 | bit_BMI2))
        return 0;
    uint32_t caps = CPU_AVX2;
    if ((saved & 0xE6) != 0xE6 || !has(b7, bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ))
        return caps;
    caps |= CPU_AVX512;
    if (has(c7, bit_AVX512VBMI | bit_AVX512VBMI2))
        caps |= CPU_VBMI2;
    /* The AMX files are built with VBMI, VBMI2, VNNI and BF16 as well; no processor has tiles without them, but the compiler may count on it. */
    const uint32_t amx = 1u << 22 | 1u << 24 | 1u << 25, bf16 = 1u << 5;
    if ((saved & 0x60000) == 0x60000 && has(d7, amx) && has(c7, bit_AVX512VBMI | bit_AVX512VBMI2 | bit_AVX512VNNI) &&
        __get_cpuid_count(7, 1, &a71, &b71, &c71, &d71) && has(a71, bf16) && amx_permitted())
        caps |= CPU_AMX;
    return caps;
}

void cpu_thread_init(void)
{
    /* Tile palettes are loaded and released by each kernel: a thread between kernels has no tile state to switch. */
    _MM_SET_FLUSH_ZERO_MODE(_MM_FLUSH_ZERO_ON);
    _mm_setcsr(_mm_getcsr() | 0x40); /* denormals are zero */
}
#else
static uint32_t machine_caps(void)
{
    return 0;
}

void cpu_thread_init(void)
{
}
#endif

static const struct {
    const char *name;
    uint32_t caps;
} levels[] = {
    { "c", 0 },
    { "avx2", CPU_AVX2 },
    { "avx512", CPU_AVX2 | CPU_AVX512 },
    { "amx", CPU_AVX2 | CPU_AVX512 | CPU_AMX },
};

enum { N_LEVELS = sizeof levels / sizeof *levels };

static uint32_t wanted_caps(void)
{
    const char *want = getenv("LONGSPAN_ISA");
    if (!want || !*want)
        return levels[N_LEVELS - 1].caps;
    for (size_t i = 0; i < N_LEVELS; i++)
        if (!strcmp(want, levels[i].name))
            return levels[i].caps;
    log_warn("LONGSPAN_ISA %s is none of c, avx2, avx512, amx: ignored", want);
    return levels[N_LEVELS - 1].caps;
}

uint32_t cpu_caps(void)
{
    /* Two first callers at once find the same answer. */
    enum { KNOWN = 1u << 30 };
    static _Atomic uint32_t cached;
    uint32_t caps = atomic_load_explicit(&cached, memory_order_relaxed);
    if (!caps) {
        const uint32_t wanted = wanted_caps();
        const uint32_t more = wanted & CPU_AVX512 ? CPU_VBMI2 : 0; /* no level of its own */
        caps = (wanted ? machine_caps() & (wanted | more) : 0) | KNOWN;
        atomic_store_explicit(&cached, caps, memory_order_relaxed);
    }
    return caps & ~(uint32_t)KNOWN;
}

const char *cpu_caps_name(uint32_t caps)
{
    size_t best = 0;
    for (size_t i = 1; i < N_LEVELS; i++)
        if ((caps & levels[i].caps) == levels[i].caps)
            best = i;
    return levels[best].name;
}
