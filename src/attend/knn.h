/*
 * knn.h - attention that reads few keys, by clusters: what knn.c (the call), knn_level.c (k for a request), knn_plan.c (which rows
 * how), knn_mass.c (what clusters weigh), knn_choose.c (which are looked into), knn_heavy.c (which values are read), knn_decode.c (few
 * queries) and knn_prefill.c (many) share.
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

/* Clusters of one level that lie side by side in the index. */
typedef struct knn_run {
    int64_t first, end; /* slots */
    int64_t at;         /* number of the first one in the list */
} knn_run;

/* Clusters of one level, numbered 0 .. size - 1, by ascending slots. */
typedef struct knn_list {
    int level;
    knn_run *runs;
    int64_t run_count, size;
} knn_list;

/* How a few neighbouring queries read the keys. */
typedef struct knn_plan {
    knn_list clusters, groups; /* that all of these queries see whole: the same keys at two levels */
    knn_range *ranges;         /* rows read in full, as far as each query sees them */
    int64_t range_count;
} knn_plan;

typedef struct knn_call {
    const kna__problem *problem;
    const kna_index *index;
    int64_t query, queries; /* the block of queries being worked on */
    int64_t gaps;           /* runs of rows that are not present in the index: they take no part */
    kna__row_stats *stats;  /* (m, h) */
    int64_t *k;             /* (h_kv), where they differ; NULL: option k_near for all */
    int64_t k_most;         /* the largest */
} knn_call;

/* The estimated error at which clusters are no longer added; 0: nothing is asked of estimates. */
static inline float kna__knn_limit(const knn_call *call)
{
    return call->problem->options.delta > 0 ? 0 : call->problem->options.eps;
}

/* knn_level.c - a k for each KV head, by a request of eps and delta. */
bool kna__knn_has_levels(const kna__problem *problem);
kna__draw kna__knn_draw(const kna__problem *problem, const kna_index *index); /* rows by which levels are judged */
void kna__knn_set_levels(knn_call *call);                                     /* into call->k and call->k_most */
void kna__knn_move_levels(const knn_call *call, kna_index *index);            /* the block's rows have been audited */

/* knn_plan.c - room for a plan, cut off a block; the plan of queries query .. query + queries - 1. */
void kna__knn_plan_cut(knn_plan *plan, const knn_call *call, kna__cutter *cutter);
int64_t kna__knn_most_ranges(const knn_call *call);
void kna__knn_plan(const knn_call *call, knn_plan *plan, int64_t query, int64_t queries);
/* What a row reads beside the ranges of its plan: keys of chosen clusters and values of them, means of keys and of values. */
typedef struct knn_read {
    double keys, values, key_means, value_means;
} knn_read;
/* The stats of a row of the plan that also reads this; errors and the rest are not known yet. */
kna__row_stats *kna__knn_count(const knn_call *call, const knn_plan *plan, int64_t head, int64_t query, const knn_read *read);
/* The last row that is not among the recent ones of a query, plus one: clusters end there. */
int64_t kna__knn_recent(const kna__problem *problem, int64_t query);
/* Whether all heads of a query see all of rows first .. first + count - 1, with nothing added to their logits. */
bool kna__knn_sees(const kna__problem *problem, int64_t query, int64_t first, int64_t count);

/* knn_list.c - room for a list of at most so many runs; make it empty; append slots first .. end - 1. */
void kna__knn_list_cut(knn_list *list, int level, int64_t runs, kna__cutter *cutter);
void kna__knn_list_clear(knn_list *list);
void kna__knn_list_add(knn_list *list, int64_t first, int64_t end);
/* The slot of a number. */
int64_t kna__knn_slot(const knn_list *list, int64_t number);
/* Numbers from .. (returned) - 1, at most up to `to`, lie side by side in the index's arrays, from *at on. */
int64_t kna__knn_stretch(const knn_call *call, const knn_list *list, int64_t kv_head, int64_t from, int64_t to, int64_t *at);

static inline const kna__level *kna__knn_level(const knn_call *call, const knn_list *list)
{
    return &call->index->clusters.level[list->level];
}

/* knn_mass.c - what clusters weigh. */

/*
 * Clusters at .. at + count - 1 of a level's arrays that are empty or must not be stood for: their numbers, counted from `at`,
 * into `dead`; returns how many.
 */
int64_t kna__knn_dead(const knn_call *call, const knn_list *list, int64_t at, int64_t count, int32_t *dead);
/* So their logits are -infinity. */
static inline void kna__knn_forget(float *z, const int32_t *dead, int64_t count)
{
    for (int64_t x = 0; x < count; x++) {
        z[dead[x]] = -INFINITY;
    }
}
/* z: mean logits of a list's clusters for one row, to masses relative to exp(shift); half_square = |q|^2 / 2. Their sum. */
double kna__knn_mass(const knn_call *call, const knn_list *list, int64_t kv_head, float *z, float shift, float half_square);
/* Sum of masses. After clusters were taken out it is added up anew: what is left may be less than the rounding of it all. */
double kna__knn_sum(const kna__kernels *kernels, const float *z, int64_t count);

/* knn_choose.c - which clusters of a list are looked into. */
typedef struct knn_choice {
    int32_t *chosen; /* numbers, ascending */
    int64_t count;
    float *share; /* share of softmax, summed over the rows that choose */
    float *stray; /* how far the members' values and logits stray; a share times this is a score */
    float *loss;  /* how far weights within the cluster are from softmax, if errors are estimated; else NULL */
    float *score;
    int32_t *scratch_ids;
    float *scratch;
} knn_choice;
/* Room for lists of `size` clusters. */
void kna__knn_choice_cut(knn_choice *choice, const knn_call *call, int64_t size, kna__cutter *cutter);
/* Takes up a list, nothing shared yet; mean_square: of |q| over the rows that choose. */
void kna__knn_choice_begin(const knn_call *call, const knn_list *list, int64_t kv_head, knn_choice *choice, float mean_square);
/*
 * `want` clusters, by what all rows share, and all that must be looked into; more, twice as many at a time, while the mean error
 * estimated over `rows` rows is above `error`. Returns that error; negative: nobody asked.
 */
float kna__knn_choose(const knn_call *call, const knn_list *list, int64_t kv_head, knn_choice *choice, int64_t want, int64_t rows,
                      float error);
/* The same for one row, by its own masses z of which those with no mass left are not looked at; what is chosen has none left. */
float kna__knn_choose_own(const knn_call *call, const knn_list *list, knn_choice *choice, float *z, double total, int64_t want,
                          float error);

/* knn_heavy.c - which of the values that rows could read together are worth it. */
typedef struct knn_heavy {
    float *over;    /* largest weight of any row, over that row's limit */
    int32_t *ids;   /* the heavy ones, ascending */
    float *weights; /* (rows, count) theirs */
    int64_t count;
} knn_heavy;
/* Least shares of softmax: of a key, for its own value to be read; of a cluster, for its mean value. */
double kna__knn_least_value(const knn_call *call);
double kna__knn_least_mean(const knn_call *call);
/* Room for so many rows of at most `most` weights. */
void kna__knn_heavy_cut(knn_heavy *heavy, int64_t rows, int64_t most, kna__cutter *cutter);
/* `count` weights, none of them heavy yet; then every row's, with the log of what is enough. `over` may be raised by hand. */
void kna__knn_heavy_begin(knn_heavy *heavy, int64_t count);
void kna__knn_heavy_row(knn_heavy *heavy, const float *w, int64_t count, double log_limit);
/* The heavy ones out of w (rows, count) at ldw, where they are 0 then. */
void kna__knn_heavy_take(knn_heavy *heavy, const kna__kernels *kernels, float *w, int64_t ldw, int64_t rows, int64_t count);

/* knn_budget.c - how many. */
int64_t kna__knn_k(const knn_call *call, int64_t kv_head);              /* k of a KV head */
int64_t kna__knn_shared(int64_t k, const knn_call *call, int64_t rows); /* clusters that so many rows read together */
int64_t kna__knn_own(int64_t k);                                        /* clusters that a row of a tile reads beside those */
int64_t kna__knn_least(const knn_call *call, int64_t rows); /* fewer clusters than these are not worth it, by option k_near */
int64_t kna__knn_open(int64_t k, const knn_call *call, int64_t rows); /* groups that so many rows look into */
/* Whether to go by groups first, or to look at all clusters. */
bool kna__knn_is_deep(int64_t k, const knn_call *call, const knn_plan *plan, int64_t rows);
/* Keys that so many clusters hold at most. */
int64_t kna__knn_most_keys(const knn_call *call, int64_t clusters);

/* How many of these clusters are not what the cache holds, by one row's logits of their members, cluster after cluster. */
int32_t kna__knn_stale(const knn_call *call, int64_t kv_head, const int32_t *slots, int64_t count, const float *q, float q_norm,
                       const float *logits);

int kna__attend_knn_decode(knn_call *call);
int kna__attend_knn_prefill(knn_call *call);

/* knn.c - the method. The index is brought up to date with what the queries see, and learns from the queries. */
int kna__attend_knn(const kna__problem *problem, kna_index *index, kna_report *report);

#endif
