/* rescore.c - scores of rows as they lie in the store, in double. */
#include "search.h"

#include <math.h>

enum { LANES = 4 }; /* sums side by side, so that they do not wait for one another */

static double add_lanes(const double x[LANES])
{
    return (x[0] + x[1]) + (x[2] + x[3]);
}

static double distance(const float *q, const float *x, uint64_t d)
{
    double sums[LANES] = { 0 };
    for (uint64_t c = 0; c < d; c++) {
        double way = (double)q[c] - (double)x[c];
        sums[c % LANES] += way * way;
    }
    return add_lanes(sums);
}

static double product(const float *q, const float *x, uint64_t d)
{
    double sums[LANES] = { 0 };
    for (uint64_t c = 0; c < d; c++) {
        sums[c % LANES] += (double)q[c] * (double)x[c];
    }
    return add_lanes(sums);
}

/* Of finite numbers of f32 a sum in double is finite; of others it is not, for 0 * infinity is not a number. */
static double score_of(const kna__search_job *job, const kna__query *query, const float *x)
{
    if (job->metric == KNA_L2) {
        return -distance(query->q, x, job->dim);
    }
    double inner = product(query->q, x, job->dim);
    if (job->metric == KNA_IP) {
        return inner;
    }
    double square = product(x, x, job->dim);
    return !isfinite(square) ? square : query->square > 0 && square > 0 ? inner / (sqrt(query->square) * sqrt(square)) : 0;
}

double kna__score(const kna__search_job *job, uint64_t query, uint64_t row, int worker)
{
    kna__search_room *room = &job->rooms[worker];
    int status = kna__rows_take(job->rows, row, room->row);
    room->rescored++;
    if (status == KNA_EDAMAGED) {
        __atomic_store_n((uint64_t *)(uintptr_t)&job->bad_row, row + 1, __ATOMIC_RELAXED);
    }
    double score = status == KNA_OK ? score_of(job, &job->queries[query], room->row) : -INFINITY;
    return isfinite(score) ? score : -INFINITY;
}

static int nearer(const void *a, const void *b)
{
    const kna__scored *x = a, *y = b;
    return x->score != y->score ? (x->score < y->score) - (x->score > y->score) : (x->row > y->row) - (x->row < y->row);
}

static void swap(kna__scored *a, kna__scored *b)
{
    kna__scored t = *a;
    *a = *b;
    *b = t;
}

/* Into those before scored[pivot] and those behind it; where it comes to lie. */
static uint64_t part(kna__scored *scored, uint64_t low, uint64_t high)
{
    uint64_t kept = low;
    swap(&scored[low + (high - low) / 2], &scored[high - 1]);
    for (uint64_t i = low; i + 1 < high; i++) {
        if (nearer(&scored[i], &scored[high - 1]) < 0) {
            swap(&scored[i], &scored[kept++]);
        }
    }
    swap(&scored[kept], &scored[high - 1]);
    return kept;
}

/* Quickselect, then a sort of what is left: no two rows are alike, so neither degenerates over equal scores. */
void kna__scored_best(kna__scored *scored, uint64_t count, uint64_t k)
{
    uint64_t low = 0, high = count;
    while (k < count && high - low > 1) {
        uint64_t pivot = part(scored, low, high);
        if (pivot < k) {
            low = pivot + 1;
        } else {
            high = pivot;
        }
    }
    qsort(scored, (size_t)k, sizeof *scored, nearer);
}
