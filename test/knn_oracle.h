/*
 * knn_oracle.h - what KNA_KNN is to give by the clusters an index has formed, in double precision: the words of knn.h again,
 * with one way to do each thing.
 *
 * Rows that share a choice (one query of a KV head while decoding, all queries of a tile in prefill) use a unit's clusters where
 * every one of them sees all of its rows with nothing added to their logits, and where no row of it is a first key or a recent one.
 * All else they see is read in full, and so are the clusters with the largest scores that a tile shares. Of those that heads of a
 * group, or a row by itself, look into, each member's logit is that of its code; where its share of softmax is large enough its
 * value is read, or its key too, and the other members count by their cluster's mean value. Every other cluster counts by its mean
 * value, with mass count * exp(mean logit) * (1 + |q|^2 spread / 2). Where there are many, groups of clusters are weighed first,
 * and only those with the largest scores are taken for their clusters. In a tile whose queries have an order, its first query and
 * up to 16 before it make the choice.
 */
#ifndef KNN_ORACLE_H
#define KNN_ORACLE_H

#include "gradient_oracle.h"
#include "random_case.h"

#include "../src/index/index.h"

/* Partition, counts, means, norms and deviations of all clusters formed are those of the rows; false after a message. */
bool knn_index_holds(const kna_index *index, const kna_rows *k, const kna_rows *v);
int64_t knn_formed_pieces(const kna_index *index);

typedef struct knn_row {
    int64_t seen, full, clusters; /* keys, keys read in full, slots of the plan */
    bool doubtful;                /* a choice hangs on less than f32 can tell: anything may be right */
    double tail_mass, error, lse;
} knn_row;

/* What the report should say. */
typedef struct knn_truth {
    expected *e;
    int64_t rows_exact, seeing, doubtful, estimated;
    double seen, full, tail_mass, error, error_most; /* sums, tail_mass and error means over rows that have some */

    /* For gradients: given (h,m,dv), and what it gives, sets held fixed. NULL: none are wanted. */
    const double *dout;
    gradient_oracle *gradients;
} knn_truth;

/*
 * All rows of a call that left the index as it is, `together` queries sharing a choice (m: all of them). Free e with
 * expected_free().
 */
knn_truth knn_truth_of(const oracle *o, const kna_index *index, int64_t together, double tolerance);
/* The same with gradients of sum <dout, out>, of tiles only, with option differentiable. Free gradients too. */
knn_truth knn_gradients_of(const oracle *o, const kna_index *index, int64_t together, const double *dout);
/*
 * Run the case with its index, then ask the index what that should have given, and compare results and report; false after a
 * message. Adds to *rows and *doubtful.
 */
bool knn_case_holds(random_case *c, kna_context *context, const bool *absent, int64_t together, int64_t *rows, int64_t *doubtful);

/* An index for the case with all of its rows. */
kna_index *knn_index_of(const random_case *c, kna_context *context);

/* The result of a row against exact attention, ||out - exact|| / ||exact||; the largest and the mean over the rows. */
double knn_row_error(const random_case *c, const expected *e, int64_t row);
typedef struct knn_errors {
    double most, mean;
} knn_errors;
knn_errors knn_errors_of(random_case *c, const bool *absent);

/* Keys of h_kv heads as `groups` tight groups (radius `radius` about centres N(0,1)), values alike within a group. */
void knn_grouped(random_case *c, int64_t groups, double radius);

#endif
