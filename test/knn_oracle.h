/*
 * knn_oracle.h - what KNA_KNN is defined to give, in double precision: kna.h in words, with the int8 scan recomputed.
 *
 * The keys a query sees are split: keys of blocks of 16 rows seen in part, the first `near_sinks`, the last `near_window` and the
 * k largest approximate logits of the rest are listed: weight exp(logit). Every other key has the weight exp(mean approximate
 * logit of its block's unlisted keys), and the block's values count through their mean, kept in f16. An approximate logit is
 * that of the int8 query and the int8 key. Where k reaches all that is left, the row is exact.
 */
#ifndef KNN_ORACLE_H
#define KNN_ORACLE_H

#include "random_case.h"

typedef struct knn_oracle {
    const oracle *o;
    int8_t *q, *k; /* (h,m,d) scaled queries, (h_kv,n,d) */
    float *q_scale, *k_scale;
    double *means;  /* (h_kv, blocks, dv) mean value of a whole block as f16 holds it */
    double *doubts; /* (h_kv, blocks) how far the f16 may be off, since the rounding of the sum before it is free */
    int64_t blocks, near_sinks, near_window, k_near;
    /* room for one row */
    double *approx, *exact; /* (n) logits; -INFINITY: not seen */
    bool *listed;           /* (n) */
} knn_oracle;

typedef struct knn_row {
    int64_t seen, full; /* keys */
    bool exact;
    bool doubtful;    /* a choice hangs on less than f32 can tell: anything may be right */
    double tail_mass; /* share of the softmax */
    double error;     /* total variation distance between the weights used and softmax, by approximate logits; 0 if exact */
    double lse;
    double bound;      /* of the output, beside the case's tolerance: how much larger the weights are than their sum */
    double mean_doubt; /* of the output, from the doubts in block means */
} knn_row;

knn_oracle *knn_oracle_new(const oracle *o, const random_case *c, kna_context *context);
void knn_oracle_free(knn_oracle *x);
knn_row knn_oracle_row(knn_oracle *x, int64_t head, int64_t query, double *out);

/* What the report should say. */
typedef struct knn_truth {
    expected *e;
    int64_t rows_exact, seeing, doubtful;
    double seen, full, tail_mass, error, error_most; /* means over rows that see a key */
} knn_truth;

/* All rows. Free e with expected_free(). */
knn_truth knn_truth_of(const oracle *o, const random_case *c, kna_context *context, double tolerance);
/* Run the case and compare results and report; false after a message. */
bool knn_case_holds(random_case *c, kna_context *context, const knn_truth *t);

#endif
