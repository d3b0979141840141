/*
 * knn.h - attention that reads few keys, by clusters: what knn.c (the call), knn_plan.c (which rows how), knn_select.c (which
 * clusters), knn_decode.c (few queries) and knn_prefill.c (many) share.
 *
 * A cluster whose keys are not read stands in the softmax as one pseudo-key: logit and value are its means, its mass
 * count * exp(mean logit) * (1 + |q|^2 spread / 2), the second-order estimate of the sum of exp over its members.
 *
 * Invariant of a row: every key it sees is in exactly one of the plan's ranges (read in full), a cluster chosen for it (read in
 * full) or a cluster left to its means; and a cluster is used only where the row sees all of its members.
 */
#ifndef KNA_KNN_H
#define KNA_KNN_H

#include "report.h"

typedef struct knn_range {
    int64_t first, end;
} knn_range;

/* How a few neighbouring queries read the keys. */
typedef struct knn_plan {
    int32_t *pieces; /* whose clusters all of these queries see whole, ascending */
    int64_t piece_count;
    knn_range *ranges; /* rows read in full, as far as each query sees them */
    int64_t range_count;
    int64_t slots; /* clusters: KNA_SLOTS per piece */
} knn_plan;

typedef struct knn_call {
    const kna__problem *problem;
    const kna_index *index;
    int64_t query, queries; /* the block of queries being worked on */
    int64_t gaps;           /* runs of rows that are not present in the index: they take no part */
    kna__row_stats *stats;  /* (m, h) */
} knn_call;

/* knn_plan.c - room for a plan, cut off a block; the plan of queries query .. query + queries - 1. */
void kna__knn_plan_cut(knn_plan *plan, const knn_call *call, kna__cutter *cutter);
int64_t kna__knn_most_ranges(const knn_call *call);
void kna__knn_plan(const knn_call *call, knn_plan *plan, int64_t query, int64_t queries);
/* The stats of a row of the plan, which reads so many keys of chosen clusters; errors and the rest are not known yet. */
kna__row_stats *kna__knn_count(const knn_call *call, const knn_plan *plan, int64_t head, int64_t query, float chosen_keys);
/* The last row that is not among the recent ones of a query, plus one: clusters end there. */
int64_t kna__knn_recent(const kna__problem *problem, int64_t query);
/* Whether all heads of a query see all of rows first .. first + count - 1, with nothing added to their logits. */
bool kna__knn_sees(const kna__problem *problem, int64_t query, int64_t first, int64_t count);

static inline int64_t kna__knn_slot(const knn_plan *plan, int64_t i)
{
    return (int64_t)plan->pieces[i / KNA_SLOTS] * KNA_SLOTS + i % KNA_SLOTS;
}

/* Where the clusters of piece i of the plan start in the index's arrays. */
static inline int64_t kna__knn_at(const knn_call *call, const knn_plan *plan, int64_t kv_head, int64_t i)
{
    return kna__cluster_slot(&call->index->clusters, kv_head, (int64_t)plan->pieces[i] * KNA_SLOTS);
}

/* Pieces i .. end - 1 of the plan lie side by side in the index; at most `most` of them. Returns end. */
int64_t kna__knn_run(const knn_plan *plan, int64_t i, int64_t most);

/* knn_select.c */
typedef struct knn_choice {
    int32_t *chosen; /* numbers of clusters within the plan, ascending; room for plan->slots */
    int64_t count;
    float error;          /* estimated, mean over the rows; negative: nobody asked */
    float *share;         /* slots: share of softmax, summed over the rows that choose together */
    float *stray;         /* slots: how far the members' values and logits stray; a share times this is a score */
    float *score;         /* slots */
    int32_t *scratch_ids; /* slots */
    float *scratch;       /* slots / 16 + 1 + slots */
} knn_choice;
void kna__knn_choice_cut(knn_choice *choice, int64_t slots, kna__cutter *cutter);
/*
 * Clusters of pieces i .. end - 1 of the plan, side by side, that are empty or always read in full: no mean stands for them.
 * Their numbers, counted from piece i, into `dead`; returns how many.
 */
int64_t kna__knn_dead(const knn_call *call, const knn_plan *plan, int64_t kv_head, int64_t i, int64_t end, int32_t *dead);
/* So their logits are -infinity; z belongs to piece i. */
static inline void kna__knn_forget(float *z, const int32_t *dead, int64_t count)
{
    for (int64_t x = 0; x < count; x++) {
        z[dead[x]] = -INFINITY;
    }
}
/* z: mean logits of the plan's clusters for one row, to masses relative to exp(shift); half_square = |q|^2 / 2. Their sum. */
double kna__knn_mass(const knn_call *call, const knn_plan *plan, int64_t kv_head, float *z, float shift, float half_square);
/* Sum of masses. After clusters were taken out it is added up anew: what is left may be less than the rounding of it all. */
double kna__knn_sum(const kna__kernels *kernels, const float *z, int64_t slots);
/*
 * The clusters that `rows` rows together read in full, by choice->share; mean_square is the mean of their |q|^2. As many as the
 * options ask for, more where the estimated error demands it, and all that must be read. Fills in choice->stray.
 */
void kna__knn_choose(const knn_call *call, const knn_plan *plan, int64_t kv_head, knn_choice *choice, float mean_square,
                     int64_t rows);
/* Clusters that a row of a tile reads beside those the tile shares; all that one of `rows` rows reads, errors not looked at. */
int64_t kna__knn_own(const knn_call *call);
int64_t kna__knn_budget(const knn_call *call, int64_t rows);
/* Keys that so many clusters hold at most. */
int64_t kna__knn_most_keys(const knn_call *call, int64_t clusters);
/* How many of these clusters are not what the cache holds, by one row's logits of their members, cluster after cluster. */
int32_t kna__knn_stale(const knn_call *call, const knn_plan *plan, int64_t kv_head, const int32_t *chosen, int64_t count,
                       const float *q, float q_norm, const float *logits);

int kna__attend_knn_decode(knn_call *call);
int kna__attend_knn_prefill(knn_call *call);

/* knn.c - the method. The index is brought up to date with what the queries see, and learns from the queries. */
int kna__attend_knn(const kna__problem *problem, kna_index *index, kna_report *report);

#endif
