/*
 * report.h - what the rows of a call that reads few keys did, and what a report says of it: the same for all methods.
 *
 * Invariant: an audit reads no key or value that its row does not see or that is absent from the index: these may hold anything.
 */
#ifndef KNA_REPORT_H
#define KNA_REPORT_H

#include "problem.h"

/* What one row did. */
typedef struct kna__row_stats {
    double read; /* bytes of keys, values and index, over those of one key and its value */
    float keys_seen, keys_full, tail_mass;
    float error_est;   /* negative: not estimated */
    float audit_error; /* negative: not audited */
    float radius;      /* certified; negative: none */
    float by_means;    /* share of the softmax that was not sampled */
    int32_t stale;
    bool exact;
    bool drawn; /* audited because it was drawn, not because of option audit */
} kna__row_stats;

/* Rows drawn beside those of option audit: a share of them, by a stream of random numbers. */
typedef struct kna__draw {
    double share;
    uint64_t stream;
} kna__draw;

/* report.c - sums and means of all rows, whose stats are (m, h); `audits` has room for one float per row where rows are audited. */
void kna__report_rows(const kna__problem *problem, const kna__row_stats *stats, float *audits, kna_report *report);

/* The audit of a call whose rows read every key: so many were drawn and none is off; 0: there was none. */
void kna__report_passed(kna_report *report, int64_t audited, float eps);

/* audit.c - one row over all keys it sees: its softmax state, and the sum of weighted values (dv). q is scaled. */
kna__state kna__exact_row(const kna__problem *problem, const kna_index *index, int64_t head, int64_t query, const float *q,
                          float *values);
/* Of queries query .. query + queries - 1, rows to be audited and not known to be exact, compared with that. */
void kna__audit_rows(const kna__problem *problem, const kna_index *index, kna__row_stats *stats, int64_t query, int64_t queries,
                     kna__draw draw);

#endif
