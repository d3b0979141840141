/*
 * peak.h - what this machine can do at most, measured: the yardsticks of `kna bench`.
 */
#ifndef KNA_CLI_PEAK_H
#define KNA_CLI_PEAK_H

#include <stddef.h>

/* Two buffers for copying, each far larger than the caches where memory allows. */
typedef struct peak_copy {
    char *from, *to;
    size_t bytes; /* of each */
} peak_copy;

/* peak_copy_new() - allocate and touch. Returns CLI_OK or, having printed why, CLI_FAILED. */
int peak_copy_new(peak_copy *copy, int threads);
void peak_copy_free(peak_copy *copy);

/* peak_copy_rate() - bytes per second of one memcpy over the whole by all threads, bytes read plus bytes written. */
double peak_copy_rate(const peak_copy *copy, int threads);

/* peak_fma_rate() - float32 operations per second of independent multiply-adds in registers, an add and a multiply counted as two;
 * with the vectors of a kna_cpu level, on all threads. */
double peak_fma_rate(int cpu, int threads);

#endif /* KNA_CLI_PEAK_H */
