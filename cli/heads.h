/*
 * heads.h - `kna bench heads`: what the methods of libkna do on the heads of a real model, by their dumped operands.
 *
 *   1. Operands   2. Truth   3. What is measured   4. Printing
 *
 * A late query is one of the last of a text. A row is one (late query, head) pair; rows are numbered head * late + i. Errors are
 * |out - exact| / |exact| of a row, exact in double precision.
 */
#ifndef KNA_CLI_HEADS_H
#define KNA_CLI_HEADS_H

#include "cli.h"

/* Where no k is asked for: the default of kna_attend(). */
enum { HEADS_USUAL_K = 384 };

/* ------------------------------------------------------------------ 1. Operands */

/* A layer: queries (h,n,d) float32, keys (h_kv,n,d), values (h_kv,n,dv), packed. */
typedef struct heads_layer {
    int number;
    float scale; /* logit = scale * <q,k> */
    kna_rows q, k, v;
    void *owned[3]; /* what free() takes back; NULL: borrowed */
} heads_layer;

typedef struct heads_set {
    heads_layer *layers; /* ascending; all of the same shapes */
    int count;
    void *source; /* of a model: what the layers borrow */
} heads_set;

typedef struct heads_source {
    const char *dump;                 /* a folder of q.L.npy, k.L.npy, v.L.npy; NULL: a model and a text */
    const char *model, *file, *layers; /* layers: a list; NULL: all */
    int64_t context; /* tokens, from the beginning; 0: all that a folder holds */
    int64_t threads;
    int no_yarn;
    double scale; /* 0: as the model says, 1/sqrt(d) of a folder */
} heads_source;

/* Both return CLI_OK or an exit code, having printed why; the set is to be freed in any case. */
int heads_read(heads_set *set, const heads_source *source);
int heads_take(heads_set *set, const heads_source *source); /* cli/lm_heads.c, in builds with llama.cpp */
void heads_free(heads_set *set);
void heads_give_back(void *source); /* cli/lm_heads.c */

/* heads_check() - the layers agree in their shapes, and hold so many late queries. */
int heads_check(const heads_set *set, int64_t late);

/* ------------------------------------------------------------------ 2. Truth */

/* Keys in full beside the first and the recent ones, for the tail mass. */
enum { HEADS_SINKS_ONLY, HEADS_SINKS_WINDOW, HEADS_TAILS_K, HEADS_TAILS = HEADS_TAILS_K + 6 };
extern const int64_t heads_tail_k[HEADS_TAILS - HEADS_TAILS_K];

/* What is known of a layer in plain numbers, and how its keys are divided as a late query meets them. */
typedef struct heads_truth heads_truth;

typedef struct heads_row {
    double *exact;               /* (dv) */
    double tails[HEADS_TAILS];   /* mass of sinks; of sinks and window; left after these and k keys */
    double *drop, *oracle;       /* (ks): errors */
    double *oracle_read;         /* (ks): keys and clusters it reads, over the keys seen */
} heads_row;

typedef struct heads_near {
    int64_t sinks, window;
    const cli_list *k; /* ascending */
} heads_near;

int heads_truth_new(heads_truth **truth, kna_context *context, const heads_layer *layer, const heads_near *near);
void heads_truth_free(heads_truth *truth);

/* heads_truth_see() - how the index divides the first `seen` keys from now on. */
int heads_truth_see(heads_truth *truth, const kna_index *index, int64_t seen);

/* heads_truth_rows() - all heads of the query on key seen - 1; rows (h). */
void heads_truth_rows(heads_truth *truth, heads_row *rows, int64_t seen);

/* ------------------------------------------------------------------ 3. What is measured */

enum { HEADS_TOPK, HEADS_DROP, HEADS_ORACLE, HEADS_OWN, HEADS_DECODE, HEADS_PREFILL, HEADS_METHODS };
extern const char *const heads_names[HEADS_METHODS];

#define HEADS_LATE_MAX 512 /* queries that knn takes at once: all meet the same index */

/* One method with one k on one layer, or with an error asked for. */
typedef struct heads_cell {
    double *error; /* (rows) */
    double touched; /* keys, values and index read / what exact attention reads */
    double estimated, estimated_max; /* total variation distance; negative: not estimated */
    double audit_mean, audit_p95;    /* negative: not audited, or of single rows */
    int64_t audited;
} heads_cell;

enum { HEADS_EPS = 4, HEADS_WAYS = 2 }; /* decode, prefill */
extern const double heads_eps[HEADS_EPS];

typedef struct heads_result {
    double *tails; /* (HEADS_TAILS, rows) */
    heads_cell cells[HEADS_METHODS][CLI_LIST_MAX];
    heads_cell asked[HEADS_WAYS][HEADS_EPS];
    kna_index *indexes[HEADS_WAYS]; /* of knn: after the last query; before the late ones */
    kna_index *nearest;             /* of topk, if times are taken */
} heads_result;

enum { HEADS_TIME_EXACT, HEADS_TIME_TOPK, HEADS_TIME_KNN, HEADS_TIMES };

/* Seconds of one call on one layer, least, median and most over the rounds. */
typedef struct heads_time {
    double low_s, median_s, high_s;
} heads_time;

typedef struct heads_study {
    kna_context *context;
    const heads_set *set;
    cli_list k;
    int64_t late, rounds;
    int64_t sinks, window; /* as in cli_method */
    double audit;
    uint64_t seed;
    heads_result *results;                                     /* (layers) */
    heads_time times[HEADS_WAYS][HEADS_TIMES][CLI_LIST_MAX]; /* exact: the first */
    heads_time text[HEADS_TIMES];                            /* the whole text at once; knn with HEADS_USUAL_K */
    double build_s;                                          /* of knn's: forming clusters */
    size_t index_bytes;
} heads_study;

int heads_measure(heads_study *study);      /* errors of all layers */
int heads_measure_times(heads_study *study); /* after that */
void heads_study_free(heads_study *study);

/* heads_options() - of a causal call on a layer; operands were looked through already. */
kna_attend_options heads_options(const heads_study *study, const heads_layer *layer, int method, int64_t k);
/* heads_rows() - rows first .. first + count - 1 of every head. */
kna_rows heads_rows(const kna_rows *rows, int64_t first, int64_t count);
/* heads_attend() - queries first .. first + count - 1 of all heads, over the keys up to each. */
int heads_attend(const heads_study *study, const heads_layer *layer, float *out, kna_report *report, int64_t first, int64_t count,
                 const kna_attend_options *options);

static inline int64_t heads_count_rows(const heads_study *study)
{
    return study->set->layers[0].q.heads * study->late;
}

/* ------------------------------------------------------------------ 4. Printing */

int heads_print_tables(const heads_study *study);
int heads_print_json(const heads_study *study);

double heads_mean(const double *values, int64_t count);
double heads_p95(const double *values, int64_t count); /* NaN: out of memory */

#endif /* KNA_CLI_HEADS_H */
