/*
 * naive.h - attention as one writes it down first: the peer that shows what the library's care is worth, and whether it is right.
 */
#ifndef KNA_CLI_NAIVE_H
#define KNA_CLI_NAIVE_H

#include <stdint.h>

/* All float32, packed: q (h,m,d), k and v (h_kv,n,d), out (h,m,d). Only queries first, first + step, .. are computed. */
typedef struct naive_call {
    const float *q, *k, *v;
    float *out;
    int64_t h, h_kv, m, n, d;
    int causal;
    int64_t first, step;
    int threads;
} naive_call;

/* naive_attend() - returns CLI_OK or, having printed why, CLI_FAILED (memory). */
int naive_attend(const naive_call *call);

#endif /* KNA_CLI_NAIVE_H */
