/*
 * peak.c - memory copy bandwidth and multiply-add peak.
 *
 * The multiply-add loops keep 12 independent sums in registers: more than latency times ports of any present core needs, and with
 * the two factors still within 16 registers. Invariant: every loop's result is stored in `sink`, so that none is optimised away.
 */
#define _GNU_SOURCE
#include "peak.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "parallel.h"

#if defined(__x86_64__)
#    include <immintrin.h>
#elif defined(__aarch64__)
#    include <arm_neon.h>
#endif

#define MIB   ((size_t)1 << 20)
#define SUMS  12
#define FMA_S 0.03 /* length of one measurement */

/* ------------------------------------------------------------------ copy */

/* As large as the last-level cache or 256 MiB, but both buffers together at most an eighth of the memory. */
static size_t copy_bytes(void)
{
    const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    const size_t memory = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    size_t bytes = 256 * MIB;
    if (cache > 0 && (size_t)cache > bytes) bytes = (size_t)cache;
    if (bytes > memory / 16) bytes = memory / 16;
    return bytes < 16 * MIB ? 16 * MIB : bytes;
}

static void slice(size_t bytes, int part, int parts, size_t *first, size_t *count)
{
    const size_t each = bytes / (size_t)parts / 64 * 64;
    *first = (size_t)part * each;
    *count = part == parts - 1 ? bytes - *first : each;
}

int peak_copy_new(peak_copy *copy, int threads)
{
    copy->bytes = copy_bytes();
    copy->from = malloc(copy->bytes);
    copy->to = malloc(copy->bytes);
    if (!copy->from || !copy->to) {
        peak_copy_free(copy);
        return cli_fail("out of memory: two buffers of %zu MiB to measure the copy bandwidth", copy->bytes / MIB);
    }
    PARALLEL_FOR(threads)
    for (int part = 0; part < threads; part++) {
        size_t first = 0;
        size_t count = 0;
        slice(copy->bytes, part, threads, &first, &count);
        memset(copy->from + first, 1, count);
        memset(copy->to + first, 2, count);
    }
    return CLI_OK;
}

void peak_copy_free(peak_copy *copy)
{
    free(copy->from);
    free(copy->to);
    copy->from = copy->to = NULL;
}

double peak_copy_rate(const peak_copy *copy, int threads)
{
    const double start_s = cli_now_s();
    PARALLEL_FOR(threads)
    for (int part = 0; part < threads; part++) {
        size_t first = 0;
        size_t count = 0;
        slice(copy->bytes, part, threads, &first, &count);
        memcpy(copy->to + first, copy->from + first, count);
    }
    return 2.0 * (double)copy->bytes / (cli_now_s() - start_s);
}

/* ------------------------------------------------------------------ multiply-adds */

static volatile float sink;

/* A loop: `steps` times SUMS multiply-adds of LANES numbers. */
#define FMA_LOOP(name, target, vector, lanes, set, fma, first)              \
    target static void name(int64_t steps)                                  \
    {                                                                       \
        const vector a = set(0.999f);                                       \
        const vector b = set(0.001f);                                       \
        vector sums[SUMS];                                                  \
        for (int i = 0; i < SUMS; i++) sums[i] = set((float)i);             \
        for (int64_t step = 0; step < steps; step++) {                      \
            sums[0] = fma(sums[0], a, b), sums[1] = fma(sums[1], a, b);     \
            sums[2] = fma(sums[2], a, b), sums[3] = fma(sums[3], a, b);     \
            sums[4] = fma(sums[4], a, b), sums[5] = fma(sums[5], a, b);     \
            sums[6] = fma(sums[6], a, b), sums[7] = fma(sums[7], a, b);     \
            sums[8] = fma(sums[8], a, b), sums[9] = fma(sums[9], a, b);     \
            sums[10] = fma(sums[10], a, b), sums[11] = fma(sums[11], a, b); \
        }                                                                   \
        float total = 0;                                                    \
        for (int i = 0; i < SUMS; i++) total += first(sums[i]);             \
        sink = total;                                                       \
    }                                                                       \
    enum { name##_lanes = lanes };

#define PLAIN
#define PLAIN_SET(x)         (x)
#define PLAIN_FMA(sum, x, y) ((sum) * (x) + (y))
FMA_LOOP(fma_plain, PLAIN, float, 1, PLAIN_SET, PLAIN_FMA, PLAIN_SET)

#if defined(__x86_64__)
#    define AVX2   __attribute__((target("avx2,fma")))
#    define AVX512 __attribute__((target("avx512f")))
FMA_LOOP(fma_avx2, AVX2, __m256, 8, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_cvtss_f32)
FMA_LOOP(fma_avx512, AVX512, __m512, 16, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_cvtss_f32)
#elif defined(__aarch64__)
#    define NEON_FMA(sum, x, y) vfmaq_f32(y, sum, x)
#    define NEON_FIRST(x)       vgetq_lane_f32(x, 0)
FMA_LOOP(fma_neon, PLAIN, float32x4_t, 4, vdupq_n_f32, NEON_FMA, NEON_FIRST)
#endif

typedef struct loop {
    void (*run)(int64_t steps);
    int lanes;
} loop;

static loop loop_for(int cpu)
{
    switch (cpu) {
#if defined(__x86_64__)
    case KNA_CPU_AVX2:
        return (loop){ fma_avx2, fma_avx2_lanes };
    case KNA_CPU_AVX512:
    case KNA_CPU_AVX512VNNI:
        return (loop){ fma_avx512, fma_avx512_lanes };
#elif defined(__aarch64__)
    case KNA_CPU_NEON:
        return (loop){ fma_neon, fma_neon_lanes };
#endif
    default:
        return (loop){ fma_plain, fma_plain_lanes };
    }
}

static double time_loop(loop l, int64_t steps, int threads)
{
    const double start_s = cli_now_s();
    PARALLEL_FOR(threads)
    for (int part = 0; part < threads; part++) l.run(steps);
    return cli_now_s() - start_s;
}

double peak_fma_rate(int cpu, int threads)
{
    const loop l = loop_for(cpu);
    int64_t steps = 10000;
    double time_s = time_loop(l, steps, threads);
    while (time_s < FMA_S) {
        steps *= 2;
        time_s = time_loop(l, steps, threads);
    }
    return 2.0 * SUMS * l.lanes * (double)steps * threads / time_s;
}
