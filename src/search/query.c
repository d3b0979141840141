/* query.c - what the three metrics make of a query: q', its codes, and what these lose. */
#include "search.h"

#include <math.h>

#define LARGE 1e36

const char *kna_metric_name(int metric)
{
    static const char *const names[KNA_METRIC_COUNT] = { "ip", "cosine", "l2" };
    return metric >= 0 && metric < KNA_METRIC_COUNT ? names[metric] : NULL;
}

void kna__query_prepare(const kna__search_job *job, kna__query *query, const float *q, float *scan_q, int8_t *codes)
{
    uint64_t d = job->dim;
    double square = 0, length = 0, error = 0;
    for (uint64_t c = 0; c < d; c++) {
        square += (double)q[c] * (double)q[c];
    }
    double factor = job->metric == KNA_L2 ? 2 : job->metric == KNA_COSINE && square > 0 ? 1 / sqrt(square) : 1;
    for (uint64_t c = 0; c < d; c++) {
        scan_q[c] = (float)(factor * (double)q[c]);
    }
    memset(codes, 0, (size_t)job->d4 * 4);
    float step = job->kernels->quantize(codes, scan_q, (size_t)d);
    for (uint64_t c = 0; c < d; c++) {
        double exact = factor * (double)q[c], lost = exact - (double)step * codes[c];
        length += exact * exact;
        error += lost * lost;
    }
    *query = (kna__query){ .q = q, .codes = codes, .step = step, .square = square, .factor = factor, .length = sqrt(length) };
    query->error = sqrt(error);
    if (!(length < LARGE)) { /* its products might not be finite: bounds say nothing then, and every row is scored in double */
        memset(codes, 0, (size_t)job->d4 * 4);
        memset(scan_q, 0, (size_t)d * sizeof *scan_q);
        query->step = 0;
        query->error = INFINITY;
    }
}

double kna__base_of(int metric, const kna__query *query, const float *center, uint64_t dim)
{
    double inner = 0, square = 0;
    for (uint64_t c = 0; c < dim; c++) {
        double way = (double)query->q[c] - (center ? (double)center[c] : 0);
        inner += center ? (double)query->q[c] * (double)center[c] : 0;
        square += way * way;
    }
    return metric == KNA_L2 ? -square : query->factor * inner;
}
