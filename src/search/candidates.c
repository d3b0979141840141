/*
 * candidates.c - the best of a stream of rows, each known within bounds.
 *
 * A row is dropped only where k others are sure to score more: its upper bound is below the k-th largest lower bound so far. Where bounds
 * tell too little apart to make room, rows are scored, and the k best of them stay; so room is bounded whatever the rows are.
 */
#include "search.h"

#include <float.h>
#include <math.h>

enum { FIRST_DUE = 32 };
#define LEAST 1e-37 /* below it numbers of f32 lose digits */

static kna__candidates *candidates_of(const kna__search_job *job, uint64_t query, int worker)
{
    return &job->candidates[(uint64_t)worker * job->most + query];
}

static uint64_t next_due(const kna__search_job *job, uint64_t count)
{
    uint64_t due = 2 * count > job->k + FIRST_DUE ? 2 * count : job->k + FIRST_DUE;
    return due < job->candidate_room ? due : job->candidate_room;
}

void kna__candidates_clear(const kna__search_job *job, uint64_t query)
{
    for (int worker = 0; worker < job->context->threads; worker++) {
        kna__candidates *c = candidates_of(job, query, worker);
        c->count = 0;
        c->floor = -INFINITY;
        c->due = next_due(job, 0);
    }
}

static void raise_floor(const kna__search_job *job, kna__candidates *c, float *values)
{
    float best = c->count ? job->kernels->max(c->lower, (size_t)c->count) : -INFINITY;
    c->floor = fmaxf(c->floor, nextafterf((float)((double)best - job->beta), -INFINITY));
    if (c->count >= job->k) {
        memcpy(values, c->lower, (size_t)c->count * sizeof *values);
        c->floor = fmaxf(c->floor, kna__kth_largest(values, (size_t)c->count, (size_t)job->k));
    }
}

static void drop_below(kna__candidates *c)
{
    uint64_t kept = 0;
    for (uint64_t i = 0; i < c->count; i++) {
        if (c->upper[i] >= c->floor) {
            c->upper[kept] = c->upper[i];
            c->lower[kept] = c->lower[i];
            c->rows[kept++] = c->rows[i];
        }
    }
    c->count = kept;
}

/* Their scores, best first, into the worker's room; no more than k. */
static uint64_t score_all(const kna__search_job *job, kna__candidates *c, uint64_t query, int worker)
{
    kna__scored *scored = job->rooms[worker].scored;
    uint64_t count = 0;
    for (uint64_t i = 0; i < c->count; i++) {
        scored[count] = (kna__scored){ kna__score(job, query, c->rows[i], worker), c->rows[i] };
        count += scored[count].score > -INFINITY;
    }
    uint64_t best = count < job->k ? count : job->k;
    kna__scored_best(scored, count, best);
    return best;
}

static void settle_bounds(const kna__search_job *job, kna__candidates *c, uint64_t query, int worker)
{
    const kna__scored *scored = job->rooms[worker].scored;
    c->count = score_all(job, c, query, worker);
    for (uint64_t i = 0; i < c->count; i++) {
        float score = (float)scored[i].score;
        c->rows[i] = (uint32_t)scored[i].row;
        c->upper[i] = nextafterf(score, INFINITY);
        c->lower[i] = nextafterf(score, -INFINITY);
    }
}

static void weed(const kna__search_job *job, kna__candidates *c, uint64_t query, int worker)
{
    float *values = job->rooms[worker].values;
    raise_floor(job, c, values);
    drop_below(c);
    if (c->count > job->candidate_room / 2) {
        settle_bounds(job, c, query, worker);
        raise_floor(job, c, values);
    }
    c->due = next_due(job, c->count);
}

static void offer(const kna__search_job *job, kna__candidates *c, uint64_t query, uint32_t row, float lower, float upper,
                  int worker)
{
    if (!(upper >= c->floor)) {
        return;
    }
    if (c->count == c->due) {
        weed(job, c, query, worker);
        if (!(upper >= c->floor)) {
            return;
        }
    }
    c->rows[c->count] = row;
    c->lower[c->count] = lower;
    c->upper[c->count++] = upper;
}

/* How far a sum may be from the row's score. Not a number is read as infinity. */
static double slack_of(const kna__list_view *view, const kna__query *q, const kna__look *look, float error, float norm, float extra)
{
    double lost = view->codes ? q->error * (double)norm : 0;
    double sizes = fabs((double)look->base) + q->length * (double)norm + fabs((double)extra);
    double slack = (q->length * (double)error + lost + (double)view->rounding * sizes + (double)look->slack) * (1 + 1e-6) + LEAST;
    return slack < DBL_MAX && q->error < DBL_MAX ? slack : INFINITY;
}

void kna__sieve(const kna__search_job *job, const kna__list_view *view, const kna__look *look, uint64_t at, uint64_t count,
                const float *out, int worker)
{
    kna__candidates *c = candidates_of(job, look->query, worker);
    const kna__query *q = &job->queries[look->query];
    int32_t *ids = job->rooms[worker].ids;
    double most = slack_of(view, q, look, view->error_most, view->norm_most, view->extra_most);
    double limit = (double)c->floor - (double)look->base - most;
    float least = limit > -(double)FLT_MAX ? nextafterf((float)limit, -INFINITY) : -INFINITY;
    size_t found = job->kernels->select(ids, out, (size_t)count, least, 0);
    for (size_t i = 0; i < found; i++) {
        uint64_t place = at + (uint64_t)ids[i];
        uint32_t row = view->ids[place];
        if (!kna__rows_have(job->rows, row)) {
            continue;
        }
        double slack = slack_of(view, q, look, view->errors[place], view->norms[place], view->extra[place]);
        double value = (double)look->base + (double)out[ids[i]];
        bool is_known = slack < (double)FLT_MAX;
        offer(job, c, look->query, row, is_known ? (float)(value - slack) : -INFINITY, is_known ? (float)(value + slack) : INFINITY,
              worker);
    }
}

uint64_t kna__candidates_settle(const kna__search_job *job, uint64_t query, int worker)
{
    kna__candidates *all = candidates_of(job, query, 0);
    const kna__scored *scored = job->rooms[worker].scored;
    for (int other = 1; other < job->context->threads; other++) {
        const kna__candidates *c = candidates_of(job, query, other);
        all->floor = fmaxf(all->floor, c->floor);
        for (uint64_t i = 0; i < c->count; i++) {
            offer(job, all, query, c->rows[i], c->lower[i], c->upper[i], worker);
        }
    }
    raise_floor(job, all, job->rooms[worker].values);
    drop_below(all);
    uint64_t count = score_all(job, all, query, worker);
    while (count && scored[count - 1].score < scored[0].score - job->beta) {
        count--;
    }
    return count;
}
