/* cpu.c - which levels this machine and this build have, and the table of each, filled once. */
#include "kernel.h"

#include <pthread.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

static kna__kernels tables[KNA_CPU_COUNT];
static bool present[KNA_CPU_COUNT];
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* GCC's and clang's feature test also asks the operating system (XCR0) whether the registers are saved; F16C, which clang's
 * test does not know, needs no state beyond AVX's. */
#if defined(__x86_64__)
static bool machine_has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static bool machine_has(int cpu)
{
    __builtin_cpu_init();
    switch (cpu) {
    case KNA_CPU_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && machine_has_f16c();
    case KNA_CPU_AVX512:
        return machine_has(KNA_CPU_AVX2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case KNA_CPU_AVX512VNNI:
        return machine_has(KNA_CPU_AVX512) && __builtin_cpu_supports("avx512vnni");
    default:
        return false;
    }
}
#else
static bool machine_has(int cpu)
{
#if defined(__aarch64__)
    return cpu == KNA_CPU_NEON; /* part of the base architecture */
#else
    (void)cpu;
    return false;
#endif
}
#endif

static void add_level(int cpu, int below, bool (*fill)(kna__kernels *))
{
    if (!machine_has(cpu)) {
        return;
    }
    tables[cpu] = tables[below];
    tables[cpu].cpu = cpu;
    present[cpu] = fill(&tables[cpu]);
    if (present[cpu]) {
        tables[KNA_CPU_BEST] = tables[cpu];
    }
}

static void fill_tables(void)
{
    tables[KNA_CPU_REF].cpu = KNA_CPU_REF;
    present[KNA_CPU_REF] = kna__kernels_ref(&tables[KNA_CPU_REF]);
    tables[KNA_CPU_BEST] = tables[KNA_CPU_REF];
    present[KNA_CPU_BEST] = true;
    add_level(KNA_CPU_AVX2, KNA_CPU_REF, kna__kernels_avx2);
    add_level(KNA_CPU_AVX512, KNA_CPU_AVX2, kna__kernels_avx512);
    add_level(KNA_CPU_AVX512VNNI, KNA_CPU_AVX512, kna__kernels_avx512vnni);
    add_level(KNA_CPU_NEON, KNA_CPU_REF, kna__kernels_neon);
}

const char *kna_cpu_name(int cpu)
{
    static const char *const names[KNA_CPU_COUNT] = { "best", "ref", "avx2", "avx512", "avx512vnni", "neon" };
    return cpu >= 0 && cpu < KNA_CPU_COUNT ? names[cpu] : NULL;
}

int kna_cpu_is_present(int cpu)
{
    pthread_once(&once, fill_tables);
    return cpu >= 0 && cpu < KNA_CPU_COUNT && present[cpu];
}

const kna__kernels *kna__kernels_get(int cpu)
{
    return kna_cpu_is_present(cpu) ? &tables[cpu] : NULL;
}
