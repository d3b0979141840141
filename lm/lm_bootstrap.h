/*
 * lm_bootstrap.h - how sure is a mean: percentile bootstrap over units that were measured together.
 *
 * A unit is what may be resampled as a whole: a run of neighbouring tokens, or all questions on one prompt; within it values hang
 * together, between units they do not. For a difference, a unit's sum is that of the paired differences. Pure arithmetic.
 */
#ifndef KNA_LM_BOOTSTRAP_H
#define KNA_LM_BOOTSTRAP_H

#include <stdint.h>

#define LM_BOOTSTRAP_DRAWS 2000

typedef struct lm_unit {
    double sum, weight; /* the mean of several units is the sum of their sums over the sum of their weights */
} lm_unit;

/* A mean and its 95 % interval; low and high are NaN where a stratum has fewer than two units: nothing is known then. */
typedef struct lm_interval {
    double value, low, high;
} lm_interval;

/*
 * lm_bootstrap() - draw the units of every stratum anew, with replacement, LM_BOOTSTRAP_DRAWS times; the interval is from the 2.5th
 * to the 97.5th percentile of the means. The same seed gives the same interval. It can reach no further than the units do: from less
 * than about six of them in all it is an indication, narrower than it should be.
 *
 * In:      units   those of the first stratum, then those of the second, ...
 *          strata  number of units in each. Strata are what the design fixes (prompt lengths, say): none is drawn more or less often.
 * Returns: LM_OK, LM_ENOMEM.
 */
int lm_bootstrap(lm_interval *interval, const lm_unit *units, const int *strata, int count, uint64_t seed);

#endif /* KNA_LM_BOOTSTRAP_H */
