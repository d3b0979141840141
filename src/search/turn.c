/* turn.c - the metric of queries, and its Cholesky factor. */
#include "turn.h"

#include <math.h>

/*
 * So much of the plain metric is added, as a share of the mean eigenvalue: where few queries look, rows still differ. Measured in doc/bench.md
 * ("Clusters of rows").
 */
#define PLAIN_SHARE 0.1

static void second_moment(double *s, const float *queries, uint64_t m, uint64_t d)
{
    memset(s, 0, (size_t)(d * d) * sizeof *s);
    for (uint64_t i = 0; i < m; i++) {
        const float *q = queries + i * d;
        for (uint64_t a = 0; a < d; a++) {
            for (uint64_t b = 0; b <= a; b++) {
                s[a * d + b] += (double)q[a] * (double)q[b];
            }
        }
    }
}

/* s := its lower Cholesky factor, in place; only the lower half is read. */
static void factorise(double *s, uint64_t d)
{
    for (uint64_t i = 0; i < d; i++) {
        for (uint64_t j = 0; j <= i; j++) {
            double sum = s[i * d + j];
            for (uint64_t c = 0; c < j; c++) {
                sum -= s[i * d + c] * s[j * d + c];
            }
            s[i * d + j] = i == j ? sqrt(sum) : sum / s[j * d + j];
        }
    }
}

int kna__turn_make(kna_context *context, float *turn, const float *queries, uint64_t m, uint64_t d)
{
    size_t bytes = kna__size_product((size_t)(d * d), sizeof(double));
    double *s = kna__allocate(&context->heap, bytes), trace = 0;
    if (!s) {
        return KNA_FAIL(context, KNA_ENOMEM, "index: out of memory for the metric of %llu numbers", (unsigned long long)d);
    }
    second_moment(s, queries, m, d);
    for (uint64_t i = 0; i < d; i++) {
        trace += s[i * d + i];
    }
    trace = trace > 0 ? trace : 1;
    for (uint64_t i = 0; i < d; i++) {
        for (uint64_t j = 0; j <= i; j++) {
            s[i * d + j] *= (double)d / trace;
        }
        s[i * d + i] += PLAIN_SHARE;
    }
    factorise(s, d);
    for (uint64_t i = 0; i < d; i++) {
        for (uint64_t j = 0; j < d; j++) {
            turn[i * d + j] = j <= i ? (float)s[i * d + j] : 0;
        }
    }
    kna__release(&context->heap, s, bytes);
    return KNA_OK;
}

/* y_j = sum over i >= j of x_i L_ij, from the last on. */
void kna__turn_back(float *y, const float *turn, uint64_t d)
{
    for (uint64_t j = d; j-- > 0;) {
        double sum = (double)y[j];
        for (uint64_t i = j + 1; i < d; i++) {
            sum -= (double)y[i] * (double)turn[i * d + j];
        }
        y[j] = (float)(sum / (double)turn[j * d + j]);
    }
}
