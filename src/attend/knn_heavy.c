/*
 * knn_heavy.c - which values are worth reading. Most keys of the clusters looked into turn out to weigh next to nothing, and so do
 * most of the clusters left to their means. A value is read where its weight reaches a small share of the softmax in some of the
 * rows that read together; for all others the mean one level up stands, their weights unchanged.
 *
 * On real heads (layers 0, 14, 26, 32,768 keys, k = 384) these shares leave the error as it is, to three digits, and a third of
 * the values and a twelfth of the clusters' means to be read.
 */
#include "knn.h"

#include <math.h>

#define LEAST_KEY   HK(0,2e-3) /* of a key, by its code: else that is all that is known of it */
#define LEAST_VALUE HK(1,2e-4) /* of a key: else its cluster's mean stands for its value */
#define LEAST_MEAN  HK(2,5e-4) /* of a cluster: else its group's mean does */
#define MOST_FACTOR 69.0 /* exp() of it is still a float: so little is worth it */

#include <stdlib.h>
#include <stdio.h>
static double HK(int i, double d) { static double v[3]; static int done; if (!done) { done = 1; const char *e = getenv("HKL"); v[0]=2e-3; v[1]=2e-4; v[2]=5e-4; if (e) sscanf(e, "%lf,%lf,%lf", &v[0], &v[1], &v[2]); } (void)d; return v[i]; }
/* An error asked for is estimated without what is left out here, so then all is read. */
double kna__knn_least_key(const knn_call *call)
{
    return kna__knn_limit(call) > 0 ? 0 : LEAST_KEY;
}

double kna__knn_least_value(const knn_call *call)
{
    return kna__knn_limit(call) > 0 ? 0 : LEAST_VALUE;
}

double kna__knn_least_mean(const knn_call *call)
{
    return kna__knn_limit(call) > 0 ? 0 : LEAST_MEAN;
}

void kna__knn_heavy_cut(knn_heavy *heavy, int64_t rows, int64_t most, kna__cutter *cutter)
{
    heavy->over = kna__cut(cutter, (size_t)most, sizeof(float));
    heavy->ids = kna__cut(cutter, (size_t)most, sizeof(int32_t));
    heavy->weights = kna__cut(cutter, (size_t)(rows * most), sizeof(float));
    heavy->count = 0;
}

void kna__knn_heavy_begin(knn_heavy *heavy, int64_t count)
{
    memset(heavy->over, 0, (size_t)count * sizeof *heavy->over);
}

void kna__knn_heavy_row(knn_heavy *heavy, const float *w, int64_t count, double log_limit)
{
    float inverse = (float)exp(fmin(-log_limit, MOST_FACTOR)), *over = heavy->over;
    for (int64_t i = 0; i < count; i++) {
        float times = w[i] * inverse;
        over[i] = over[i] > times ? over[i] : times;
    }
}

void kna__knn_heavy_take(knn_heavy *heavy, const kna__kernels *kernels, float *w, int64_t ldw, int64_t rows, int64_t count)
{
    heavy->count = (int64_t)kernels->select(heavy->ids, heavy->over, (size_t)count, 1.0f, 0);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = 0; i < heavy->count; i++) {
            float *from = &w[r * ldw + heavy->ids[i]];
            heavy->weights[r * heavy->count + i] = *from;
            *from = 0;
        }
    }
}
