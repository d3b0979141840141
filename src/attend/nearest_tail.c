/*
 * nearest_tail.c - one mean value for all keys that a row does not list: a centroid tail with one centroid, which takes nothing but
 * running sums of the values (KNA_KNN has a mean for every 16 keys alike).
 *
 * Invariant: rows that are not present in the index, or hold what is no number, count as zeros in the sums.
 */
#include "nearest.h"

#include <math.h>

static double *sums_at(const nearest_job *job, int64_t kv_head, int64_t step)
{
    const kna__problem *p = job->problem;
    return job->value_sums + (kv_head * (p->n / KNA_VALUE_STEP + 1) + step) * p->dv;
}

static void add_value(const nearest_job *job, int64_t kv_head, int64_t row, double sign, double *sum)
{
    const kna__problem *p = job->problem;
    float value[KNA_MAX_DIM];
    if (!kna__index_has(job->index, row)) {
        return;
    }
    p->kernels->widen[p->v.type](value, (size_t)p->dv, kna__span_at(&p->v, kv_head, row), 1, (size_t)p->dv);
    for (int64_t c = 0; c < p->dv; c++) {
        sum[c] += isfinite(value[c]) ? sign * (double)value[c] : 0;
    }
}

void kna__tail_sum(void *argument, int64_t kv_head, int worker)
{
    const nearest_job *job = argument;
    const kna__problem *p = job->problem;
    (void)worker;
    memset(sums_at(job, kv_head, 0), 0, (size_t)p->dv * sizeof(double));
    for (int64_t step = 1; step <= p->n / KNA_VALUE_STEP; step++) {
        double *sum = sums_at(job, kv_head, step);
        memcpy(sum, sums_at(job, kv_head, step - 1), (size_t)p->dv * sizeof *sum);
        for (int64_t row = (step - 1) * KNA_VALUE_STEP; row < step * KNA_VALUE_STEP; row++) {
            add_value(job, kv_head, row, 1, sum);
        }
    }
}

/* All values before `end`, with a sign. Returns how many were read for that. */
static int64_t add_before(const nearest_row *row, int64_t end, double sign, double *sum)
{
    int64_t step = end / KNA_VALUE_STEP;
    const double *sums = sums_at(row->job, row->kv_head, step);
    for (int64_t c = 0; c < row->job->problem->dv; c++) {
        sum[c] += sign * sums[c];
    }
    for (int64_t at = step * KNA_VALUE_STEP; at < end; at++) {
        add_value(row->job, row->kv_head, at, sign, sum);
    }
    return end - step * KNA_VALUE_STEP + 1;
}

/* Where a mask cuts what is seen to pieces, piece by piece. */
int64_t kna__tail_mean(const nearest_row *row, double *mean)
{
    const kna__problem *p = row->job->problem;
    int64_t read = 0, rest = row->seen - row->listed;
    memset(mean, 0, (size_t)p->dv * sizeof *mean);
    for (int64_t first = row->lo; (first = kna__mask_next(p, row->head, row->query, first, row->hi, true)) < row->hi;) {
        int64_t end = kna__mask_next(p, row->head, row->query, first, row->hi, false);
        read += add_before(row, end, 1, mean) + add_before(row, first, -1, mean);
        first = end;
    }
    for (int64_t i = 0; i < row->listed; i++) {
        add_value(row->job, row->kv_head, row->room.ids[i], -1, mean);
    }
    for (int64_t c = 0; c < p->dv; c++) {
        mean[c] = rest > 0 ? mean[c] / (double)rest : 0;
    }
    return read;
}
