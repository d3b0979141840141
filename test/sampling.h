/*
 * sampling.h - what tests of attention by sampling share: problems that are the same every time, exact attention of a row, whether keys
 * were drawn by the softmax, and how often a radius is exceeded.
 *
 * Statistical tests have fixed seeds, so they always give the same answer.
 */
#ifndef SAMPLING_H
#define SAMPLING_H

#include "random_case.h"

#include "../src/attend/certificate.h"

/* The case with the best context; says why where it fails. */
int sampling_attend(random_case *c);

/* One head of n keys with logits of a deviation of about `spread`, at the same seed every time. */
void sampling_begin(random_case *c, shape s, double spread);

/* Heads that are not the nearest keys: the rest then holds larger logits than some of the head. */
enum { SAMPLING_HEADS = 5 }; /* the nearest, mmr, dpp, quotas; and landmarks with quotas */
void sampling_choose_head(random_case *c, int head);

/* Exact attention of a row of the first head, dv <= 8. */
typedef struct sampling_row {
    double out[8], lse, scale; /* scale: root mean square of |v| under the softmax */
} sampling_row;
sampling_row sampling_truth(const random_case *c, int64_t query);

double sampling_distance(const float *x, const double *y, int64_t n);

/* Chi-square of draws against the softmax of logits: the quantile that 1e-4 are above, given degrees of freedom; a draw's excess. */
double sampling_chi_square_limit(double degrees);
/* Chi-square over its limit: above 1 the draws are not by softmax. Keys expected less than five times are one cell. */
double sampling_chi_square(const int32_t *draws, int64_t count, const double *logits, double lse, int64_t n);
void sampling_expect_softmax(const int32_t *draws, int64_t count, const double *logits, double lse, int64_t n);

/* Share of rows of the first head farther from exact attention than their radius, over seeds; adds up means of both. */
double sampling_missed(random_case *c, int64_t seeds, double *radius_sum, double *error_sum);

#endif
