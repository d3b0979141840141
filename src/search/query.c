/* query.c - what the three metrics make of a query: q', its codes, and what these lose. */
#include "search.h"

#include <math.h>

#define LARGE 1e36

const char *kna_metric_name(int metric)
{
    static const char *const names[KNA_METRIC_COUNT] = { "ip", "cosine", "l2" };
    return metric >= 0 && metric < KNA_METRIC_COUNT ? names[metric] : NULL;
}

int kna__queries_check(kna_context *context, const kna_rows *q, uint64_t dim)
{
    if (q->type < 0 || q->type >= KNA_TYPE_COUNT) {
        return KNA_FAIL(context, KNA_ETYPE, "queries: type %d is none", q->type);
    }
    if ((q->heads != 1 && q->rows) || q->rows < 0 || q->dim != (int64_t)dim) {
        return KNA_FAIL(context, KNA_ESHAPE, "queries: (%lld,%lld,%lld), not (1,m,%llu)", (long long)q->heads, (long long)q->rows,
                        (long long)q->dim, (unsigned long long)dim);
    }
    size_t bytes = kna__row_bytes(q->type, q->dim);
    if (!bytes || (q->rows && !q->data) || q->row_stride_bytes < 0 || (q->type == KNA_I8 && q->rows && !q->scales)) {
        return KNA_FAIL(context, KNA_EINVAL, "queries: no data, no scales, a negative stride, or no such row of their type");
    }
    int64_t stride = q->row_stride_bytes ? q->row_stride_bytes : (int64_t)bytes;
    for (int64_t i = 0; i < q->rows; i++) {
        const char *row = (const char *)q->data + i * stride;
        int64_t at = kna__find_nonfinite(q->type, row, q->scales ? q->scales[i] : 1.0f, q->dim);
        if (at >= 0) {
            return KNA_FAIL(context, KNA_EVALUE, "queries: NaN or infinity at row %lld, column %lld", (long long)i, (long long)at);
        }
    }
    return KNA_OK;
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
