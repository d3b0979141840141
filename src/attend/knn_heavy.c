/*
 * knn_heavy.c - which keys and values are worth reading. Most keys of the clusters looked into turn out to weigh next to nothing,
 * and so do most of the clusters left to their means. A value is read where its weight reaches a small share of the softmax in some
 * of the rows that read together; for all others the mean one level up stands, their weights unchanged. A key is read, for its
 * logit to be exact, at ten times that share: codes are off by a tenth.
 *
 * On real heads (8,192 keys, decode, k = 384) these shares leave a mean error of 1.1 % where reading all of the clusters looked
 * into leaves 0.5 %; a quarter of them leaves 0.7 % and takes a quarter longer, and needles in 7,900 tokens are found as well as
 * before.
 */
#include "knn.h"

#include <math.h>

#define LEAST_KEY   2e-3 /* of a key, by its code: else that is all that is known of it */
#define LEAST_VALUE 2e-4 /* of a key: else its cluster's mean stands for its value */
#define LEAST_MEAN  5e-4 /* of a cluster: else its group's mean does */
#define USUAL_ERROR 0.1  /* of a row, where these shares are small enough */
#define MOST_FACTOR 69.0 /* exp() of it is still a float: so little is worth it */

/*
 * An estimated error is estimated without what is left out here, so then all is read. Where rows are to be nearer to exact
 * attention than these shares leave them, which is some 0.5 % in the mean, the shares shrink with the error asked for.
 */
static double least(const knn_call *call, double share)
{
    const kna_attend_options *options = &call->problem->options;
    double asked = options->delta > 0 ? (double)options->eps / USUAL_ERROR : 1;
    return kna__knn_by_codes(call) ? share * fmin(asked, 1) : 0;
}

double kna__knn_least_key(const knn_call *call)
{
    return least(call, LEAST_KEY);
}

double kna__knn_least_value(const knn_call *call)
{
    return least(call, LEAST_VALUE);
}

double kna__knn_least_mean(const knn_call *call)
{
    return least(call, LEAST_MEAN);
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
