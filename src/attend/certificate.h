/*
 * certificate.h - how far an estimate from s of N terms, drawn uniformly without replacement, may be from the sum it stands for.
 *
 * The terms are weights w_j and weighted values w_j v_j of the keys outside the head, relative to exp(shift). All that is known of
 * them is in their moments, which one pass over the sample gives.
 */
#ifndef KNA_CERTIFICATE_H
#define KNA_CERTIFICATE_H

#include <stdint.h>

/*
 * Sums over a sample; vectors of dv. A term is a weight w and a vector w v; that of an estimate with a control variate is what w and
 * w v have more than it says.
 */
typedef struct kna__moments {
    int64_t count;
    double w, ww, wvv, wwvv; /* w, w^2, w |v|^2, w^2 |v|^2 */
    double *wv, *wwv;
} kna__moments;

/* The q-quantile of the standard normal distribution (Acklam's approximation and one step of Halley's: full precision). */
double kna__normal_quantile(double q);

/* The largest p >= mean, or the smallest p <= mean, at which the binary relative entropy of mean against p is at most c. */
double kna__entropy_above(double mean, double c);
double kna__entropy_below(double mean, double c);

/* out as estimated: (numerator + scale * sums) / denominator, dv numbers; and its distance from exact attention. */
typedef struct kna__estimate {
    const double *out;
    double denominator; /* of the softmax, as estimated */
    int64_t dv, rest;   /* N: keys that the sample stands for */
} kna__estimate;

/*
 * The variance of rest / count * (sum of w (v - out) over the sample), for out as estimated: its trace, estimated with the correction
 * for a finite population. INFINITY where one term is all there is of more.
 */
double kna__variance_of_sample(const double *out, int64_t dv, int64_t rest, const kna__moments *m);

/*
 * The asymptotic radius: the ratio linearised around the estimate has residuals w_j (v_j - out); standard error with the correction
 * for a finite population, over the denominator, times the normal quantile of 1 - delta / 2, which covers any shape of their covariance (theory: a
 * Gaussian vector of a given trace is worst in one dimension). Honest only where the sample has met what there is to meet.
 */
double kna__radius_asymptotic(const kna__estimate *e, const kna__moments *m, double delta);
/* The same for samples of parts of the tail, each by itself: their variances add up to this. */
double kna__radius_of_variance(double variance, double denominator, double delta);

/* What is known beside the sample. */
typedef struct kna__known {
    double head;          /* softmax sum */
    double most;          /* no weight is above, */
    double v_most;        /* no |v| */
    const double *centre; /* (dv), fixed before the sample was drawn */
} kna__known;

/*
 * The finite-sample radius, for any law of the terms. Chernoff's bound for the denominator, Pinelis' (1994) for the numerator's
 * vector, with a variance that is itself bounded from the sample. A third of delta each.
 */
double kna__radius_finite(const kna__estimate *e, const kna__moments *m, double delta, const kna__known *known);

/*
 * The same with empirical variances and what is gained by not drawing a key twice: for the denominator the empirical
 * Bernstein-Serfling bound (Bardenet & Maillard 2015: 5 exp(-t) a side) where it is less than Chernoff's, half of a third
 * of delta each; for the numerator, where more than half is sampled, Pinelis' bound for what is not, which is a uniform sample too.
 * Narrower than the finite one for large samples, hardly wider for small ones.
 */
double kna__radius_bernstein(const kna__estimate *e, const kna__moments *m, double delta, const kna__known *known);

#endif
