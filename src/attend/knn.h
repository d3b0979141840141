/*
 * knn.h - attention that reads few keys, by clusters: what knn.c (the call), knn_level.c (k for a request), knn_plan.c (which rows
 * how), knn_mass.c (what clusters weigh), knn_choose.c (which are looked into), knn_codes.c (what their members weigh, about),
 * knn_heavy.c (which are worth reading), knn_members.c (reading them), knn_decode.c (few queries) and knn_prefill.c (many) share.
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
    int32_t *
        labels[KNA_LEVELS]; /* as kna__level_at(): the group that most members of a cluster are of, -1: it has none; option quota */
    int32_t *tally;         /* (threads, option key_group_count) room to find it */
} knn_call;

/* The estimated error at which clusters are no longer added; 0: nothing is asked of estimates. */
static inline float kna__knn_limit(const knn_call *call)
{
    return call->problem->options.delta > 0 ? 0 : call->problem->options.eps;
}

/* Whether members of the clusters looked into are weighed by their codes, and only what matters of them is read. */
static inline bool kna__knn_by_codes(const knn_call *call)
{
    return kna__knn_limit(call) == 0 && !call->problem->options.differentiable;
}

/* knn_quota.c - room for labels, cut off a block; labels of what is formed now. */
void kna__knn_labels_cut(knn_call *call, kna__cutter *cutter);
void kna__knn_label(knn_call *call);

static inline bool kna__knn_has_quotas(const knn_call *call)
{
    return call->problem->options.diverse == KNA_DIVERSE_QUOTA;
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
/* What a row reads beside the ranges of its plan: of chosen clusters codes of keys, keys and values; means of keys and of values. */
typedef struct knn_read {
    double codes, keys, values, key_means, value_means;
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
    int32_t *by_group; /* numbers by their labels; NULL: no quotas */
    int32_t *first;    /* (groups + 1) where those of a label begin */
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
float kna__knn_choose_own(const knn_call *call, const knn_list *list, int64_t kv_head, knn_choice *choice, float *z, double total,
                          int64_t want, float error);

/*
 * knn_quota.c - of those that there is something to gain from (a score above 0, not infinite), n_g of n with most members in group g:
 * the ceil(quota * want * n_g / n) with the largest scores get infinite ones. Returns how many that are, of all groups.
 */
int64_t kna__knn_raise(const knn_call *call, const knn_list *list, int64_t kv_head, knn_choice *choice, int64_t want);

/* knn_codes.c - logits of members by their codes. */
typedef struct knn_codes {
    int8_t *q;    /* (rows, ld) queries in 8 bits */
    float *scale; /* (rows) of theirs */
    size_t ld;
    int64_t rows;
} knn_codes;
void kna__knn_codes_cut(knn_codes *codes, const knn_call *call, int64_t rows, kna__cutter *cutter);
void kna__knn_codes_begin(knn_codes *codes, const knn_call *call, const float *q); /* (rows, d) scaled */
/*
 * Places are numbered through the index's `code` and `member` arrays; these are whole quads. What codes say beside the mean is
 * added to logits (rows, places) at ldl, which hold those of the mean keys; step: of each place. Nothing is done of a softcap.
 */
void kna__knn_codes_add(const knn_codes *codes, const knn_call *call, int64_t place, int64_t places, const float *step,
                        float *logits, int64_t ldl);
/* They will be wanted soon: they start anywhere, which no hardware foresees. */
void kna__knn_codes_expect(const knn_call *call, int64_t place, int64_t places);
/* How far a logit of the cluster at `at` may be from what the cache says; more, and the cache has changed. */
float kna__knn_codes_bound(const knn_call *call, int64_t at, float q_norm);
/*
 * A place whose key is read whatever its code says, at or after this one; other ones for every n, one in KNN_SPOTS: or nobody would
 * see that the cache has changed.
 */
enum { KNN_SPOTS = 256 };
static inline int64_t kna__knn_spot(int64_t place, int64_t n)
{
    return place + ((n * 197 - place) & (KNN_SPOTS - 1));
}

/* knn_heavy.c - which keys and values are worth reading. */
typedef struct knn_heavy {
    float *over;    /* largest weight of any row, over that row's limit */
    int32_t *ids;   /* the heavy ones, ascending */
    float *weights; /* (rows, count) theirs */
    int64_t count;
} knn_heavy;
/* Least shares of softmax: of a key, for it to be read itself; for its own value to be; of a cluster, for its mean value. 0: all are. */
double kna__knn_least_key(const knn_call *call);
double kna__knn_least_value(const knn_call *call);
double kna__knn_least_mean(const knn_call *call);
/* Room for so many rows of at most `most` weights. */
void kna__knn_heavy_cut(knn_heavy *heavy, int64_t rows, int64_t most, kna__cutter *cutter);
/* `count` weights, none of them heavy yet; then every row's, with the log of what is enough. `over` may be raised by hand. */
void kna__knn_heavy_begin(knn_heavy *heavy, int64_t count);
void kna__knn_heavy_row(knn_heavy *heavy, const float *w, int64_t count, double log_limit);
/* The heavy ones out of w (rows, count) at ldw, where they are 0 then. */
void kna__knn_heavy_take(knn_heavy *heavy, const kna__kernels *kernels, float *w, int64_t ldw, int64_t rows, int64_t count);

/* knn_members.c - the keys of clusters looked into. */

/* A few rows that look into the same clusters. */
typedef struct knn_readers {
    int64_t rows, kv_head;
    const float *q;          /* (rows, d) scaled */
    knn_codes codes;         /* the same in 8 bits */
    const double *log_total; /* (rows) log of all of the softmax, as estimated; -infinity: not known */
    const float *logits;     /* (rows, ldz) of the list's mean keys, without softcap; NULL: not at hand */
    float *z;                /* (rows, ldz) masses of the list's clusters, relative to exp(base) */
    int64_t ldz;
    const float *base; /* (rows) */
} knn_readers;

/* What has been read: codes of keys, keys, values. */
typedef struct knn_tally {
    int64_t codes, keys, values;
    int32_t stale; /* clusters found to be described wrongly */
} knn_tally;

/* Clusters side by side: their places are too. As codes come in quads, those at both ends may be of other clusters. */
typedef struct knn_member_run {
    int64_t place; /* in the index's arrays */
    int64_t unit;  /* row that members are counted from */
    int32_t first, count;
} knn_member_run;

typedef struct knn_members {
    const int32_t *numbers; /* clusters, by their numbers in the list */
    int64_t clusters, runs, places;
    knn_member_run *run;
    int32_t *slots;         /* clusters */
    int32_t *first, *count; /* clusters: their places */
    float *logits;          /* (rows, places), later weights */
    float *means;           /* (rows, clusters) logits of mean keys, without softcap */
    float *sums;            /* clusters */
    float *step;            /* places */
    float *above;           /* places: log of the largest share of softmax of any row, less the least that is worth a value */
    int32_t *values;        /* places whose values are read, ascending; room for all */
    int32_t *keys;          /* places whose keys are */
    int32_t *value_rows, *key_rows; /* of the cache, theirs */
    float *weights;                 /* (rows, as many) */
    knn_tally read;
} knn_members;
/* Room for so many rows and clusters at a time. */
void kna__knn_members_cut(knn_members *members, const knn_call *call, int64_t rows, int64_t clusters, kna__cutter *cutter);
/* The logits of all members of clusters, as well as they have to be known. */
void kna__knn_members_read(const knn_call *call, const knn_readers *by, const knn_list *list, const int32_t *numbers, int64_t count,
                           knn_members *members);
/*
 * Those logits having been made weights, relative to exp(states[r].max): the values that are worth it are added to out (rows, dv)
 * and their weights to states[r].sum; the other weights become the masses of their clusters.
 */
void kna__knn_members_mix(const knn_call *call, const knn_readers *by, knn_members *members, kna__state *states, float *out);

/* knn_budget.c - how many. */
int64_t kna__knn_k(const knn_call *call, int64_t kv_head);              /* k of a KV head */
int64_t kna__knn_shared(int64_t k, const knn_call *call, int64_t rows); /* clusters that so many rows read together */
int64_t kna__knn_own(int64_t k, const knn_call *call);                  /* clusters that a row of a tile reads beside those */
int64_t kna__knn_own_most(const knn_call *call);                        /* at most, quotas being what they may */
int64_t kna__knn_least(const knn_call *call, int64_t rows); /* fewer clusters than these are not worth it, by option k_near or the largest level */
int64_t kna__knn_open(int64_t k, const knn_call *call, int64_t rows); /* groups that so many rows look into */
/* Whether to go by groups first, or to look at all clusters. */
bool kna__knn_is_deep(int64_t k, const knn_call *call, const knn_plan *plan, int64_t rows);
/* Keys that so many clusters hold at most. */
int64_t kna__knn_most_keys(const knn_call *call, int64_t clusters);

int kna__attend_knn_decode(knn_call *call);
int kna__attend_knn_prefill(knn_call *call);

/* knn.c - what the call and its gradients share: make room and learn from a first query; form clusters of what the block's first query
 * sees; learn from the block. */
enum { KNA_KNN_BLOCK = 512 /* queries that see the same state of the index */ };
int kna__knn_prepare(knn_call *call, kna_index *index);
int kna__knn_form(const knn_call *call, kna_index *index);
void kna__knn_learn(const knn_call *call, kna_index *index);

/* knn.c - the method. The index is brought up to date with what the queries see, and learns from the queries. */
int kna__attend_knn(const kna__problem *problem, kna_index *index, kna_report *report);

#endif
