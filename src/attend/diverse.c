/* diverse.c - see diverse.h. */
#include "diverse.h"

#include <math.h>

#define SPAN_LEAST 1e-4 /* of a key's squared length, what must stick out of the span of those taken */

void kna__pool_normalise(const kna__pool *pool)
{
    for (int64_t i = 0; i < pool->count; i++) {
        float *x = pool->unit + i * pool->d, square = kna__square(pool->kernels, x, pool->d);
        if (square > 0 && isfinite(square)) {
            pool->kernels->scale(x, 1 / sqrtf(square), (size_t)pool->d);
        } else {
            memset(x, 0, (size_t)pool->d * sizeof *x);
        }
    }
}

/* z~ into gain; nothing taken. */
static void begin(const kna__pool *pool)
{
    double least = INFINITY, most = -INFINITY;
    for (int64_t i = 0; i < pool->count; i++) {
        double x = (double)pool->logits[i]; /* by comparison: gcc 12 for arm64 fails on fmin() of widened floats (an internal error) */
        least = x < least ? x : least;
        most = x > most ? x : most;
    }
    for (int64_t i = 0; i < pool->count; i++) {
        pool->gain[i] = most > least ? ((double)pool->logits[i] - least) / (most - least) : 0;
        pool->taken[i] = false;
    }
}

/* Cosines of all with key j. */
static void cosines(const kna__pool *pool, int64_t j)
{
    const float *unit = pool->unit + j * pool->d;
    kna__span rows = { (const char *)pool->unit, (size_t)pool->d * sizeof(float), NULL };
    pool->kernels->dot[KNA_F32](pool->cosine, (size_t)pool->count, unit, (size_t)pool->d, 1, rows, (size_t)pool->count,
                                (size_t)pool->d);
}

/* Whether i is to be taken rather than j, j < i or -1 (none yet). */
static bool is_better(const kna__pool *pool, int64_t i, double score, int64_t j, double best)
{
    return j < 0 || score > best || (score == best && pool->logits[i] > pool->logits[j]);
}

void kna__pool_take_mmr(const kna__pool *pool, int64_t k, double lambda)
{
    begin(pool);
    for (int64_t i = 0; i < pool->count; i++) {
        pool->most[i] = 0;
    }
    for (int64_t step = 0; step < k; step++) {
        int64_t next = -1;
        double best = 0;
        for (int64_t i = 0; i < pool->count; i++) {
            double score = lambda * pool->gain[i] - (1 - lambda) * (double)pool->most[i];
            if (!pool->taken[i] && is_better(pool, i, score, next, best)) {
                next = i;
                best = score;
            }
        }
        pool->taken[next] = true;
        if (lambda < 1 && step + 1 < k) {
            cosines(pool, next);
            for (int64_t i = 0; i < pool->count; i++) {
                pool->most[i] = step ? fmaxf(pool->most[i], pool->cosine[i]) : pool->cosine[i];
            }
        }
    }
}

/* The key with the largest d^2 that still sticks out of the span; -1: none does. */
static int64_t next_of_dpp(const kna__pool *pool, double *best)
{
    int64_t next = -1;
    for (int64_t i = 0; i < pool->count; i++) {
        double score = (double)pool->factor[i] * pool->gain[i];
        if (!pool->taken[i] && pool->gain[i] > SPAN_LEAST && is_better(pool, i, score, next, *best)) {
            next = i;
            *best = score;
        }
    }
    return next;
}

/* The largest logits of what is left. */
static void take_nearest(const kna__pool *pool, int64_t k)
{
    for (; k > 0; k--) {
        int64_t next = -1;
        for (int64_t i = 0; i < pool->count; i++) {
            if (!pool->taken[i] && is_better(pool, i, (double)pool->logits[i], next, next < 0 ? 0 : (double)pool->logits[next])) {
                next = i;
            }
        }
        pool->taken[next] = true;
    }
}

/* Key `next` is taken as number `step`: all others get their coordinate along what of it is new, and have that much less of their own. */
static void extend_basis(const kna__pool *pool, int64_t next, int64_t step)
{
    double height = sqrt(pool->gain[next]);
    size_t most = (size_t)pool->basis_most;
    kna__span rows = { (const char *)pool->basis, most * sizeof(float), NULL };
    cosines(pool, next);
    memset(pool->inner, 0, (size_t)pool->count * sizeof *pool->inner);
    if (step) {
        pool->kernels->dot[KNA_F32](pool->inner, (size_t)pool->count, pool->basis + (size_t)next * most, most, 1, rows,
                                    (size_t)pool->count, (size_t)step);
    }
    for (int64_t i = 0; i < pool->count; i++) {
        double e = ((double)pool->cosine[i] - (double)pool->inner[i]) / height;
        pool->basis[i * pool->basis_most + step] = (float)e;
        pool->gain[i] -= e * e;
    }
}

/*
 * d_j^2 is e^(2 theta z~) times the squared distance of the unit key from the span of those taken. The factor is kept apart: rows of
 * the basis are those of unit keys, and no number leaves float32's range whatever theta.
 */
double kna__pool_take_dpp(const kna__pool *pool, int64_t k, double theta)
{
    double log_det = 0;
    int64_t step = 0;
    begin(pool);
    for (int64_t i = 0; i < pool->count; i++) {
        pool->factor[i] = (float)exp(2 * theta * pool->gain[i]);
        pool->gain[i] = kna__square(pool->kernels, pool->unit + i * pool->d, pool->d) > 0 ? 1 : 0;
    }
    for (; step < k && step < pool->basis_most; step++) {
        double best = 0;
        int64_t next = next_of_dpp(pool, &best);
        if (next < 0) {
            break;
        }
        log_det += log(best);
        pool->taken[next] = true;
        if (step + 1 < k && step + 1 < pool->basis_most) {
            extend_basis(pool, next, step);
        }
    }
    take_nearest(pool, k - step);
    return log_det;
}
