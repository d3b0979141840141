/*
 * lm_bootstrap.c - resampling by counter-based random numbers. Knows neither llama.cpp nor sessions.
 *
 * Invariant: draw r takes its i-th unit by step r * units + i of the seed's stream; the interval depends on nothing else.
 */
#include "lm_bootstrap.h"

#include "lm.h"
#include "lm_score.h"

#include <math.h>
#include <stdlib.h>

static double mean_of(const lm_unit *units, int count)
{
    lm_unit total = { 0.0, 0.0 };
    for (int i = 0; i < count; i++) {
        total.sum += units[i].sum;
        total.weight += units[i].weight;
    }
    return total.weight > 0.0 ? total.sum / total.weight : 0.0;
}

/* One unit less than the stratum has is drawn, and weighs for it (Rao and Wu 1988): drawing all of them would make the mean of n
 * units vary by the factor (n - 1) / n too little, which is half of it where there are two. */
static double draw_once(const lm_unit *units, const int *strata, int count, uint64_t seed, uint64_t step)
{
    lm_unit total = { 0.0, 0.0 };
    for (int s = 0; s < count; units += strata[s++]) {
        const int drawn = strata[s] - 1;
        const double each = (double)strata[s] / drawn;
        for (int i = 0; i < drawn; i++) {
            const lm_unit *unit = &units[lm_bits(seed, step++) % (uint64_t)strata[s]];
            total.sum += each * unit->sum;
            total.weight += each * unit->weight;
        }
    }
    return total.weight > 0.0 ? total.sum / total.weight : 0.0;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Linear between the two order statistics around it. */
static double quantile(const double *sorted, int count, double share)
{
    double at = share * (count - 1);
    int below = (int)at;
    return below + 1 < count ? sorted[below] + (at - below) * (sorted[below + 1] - sorted[below]) : sorted[count - 1];
}

int lm_bootstrap(lm_interval *interval, const lm_unit *units, const int *strata, int count, uint64_t seed)
{
    int all = 0, least = 2;
    for (int s = 0; s < count; s++) {
        all += strata[s];
        least = strata[s] < least ? strata[s] : least;
    }
    interval->value = mean_of(units, all);
    interval->low = interval->high = (double)NAN;
    if (all < 2 || least < 2) {
        return LM_OK;
    }
    double *means = malloc(LM_BOOTSTRAP_DRAWS * sizeof *means);
    if (!means) {
        return LM_ENOMEM;
    }
    for (int r = 0; r < LM_BOOTSTRAP_DRAWS; r++) {
        means[r] = draw_once(units, strata, count, seed, (uint64_t)r * (uint64_t)all);
    }
    qsort(means, LM_BOOTSTRAP_DRAWS, sizeof *means, by_value);
    interval->low = quantile(means, LM_BOOTSTRAP_DRAWS, 0.025);
    interval->high = quantile(means, LM_BOOTSTRAP_DRAWS, 0.975);
    free(means);
    return LM_OK;
}
