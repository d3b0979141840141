/*
 * fairness.h - `kna fairness`: what approximate attention does to groups of keys, beside full attention.
 *
 *   1. Operands   2. Groups   3. What is measured   4. Loss inside the model   5. Showing
 *
 * A row is one (query, head) pair of one layer. A, B of a group: the mean mass (share of the softmax) that its keys have under full
 * attention and under a method.
 *
 *   ratio        B / A, where A is at least 1e-4
 *   impact       the least ratio over the largest: 0.8 and more passes the four-fifths rule
 *   parity gap   the largest |B - A|;   variation: half their sum, the total variation distance over groups
 *   recall       of A, the part that lies in keys read in full
 *   error        the mean ||out - exact|| of queries on tokens of a group, in units of the values' root mean square length;
 *                error ratio: the largest over the least
 *   loss         what tokens of a group cost the model more than under full attention, in nats
 *
 * Functions that return int return an exit code and have printed why.
 */
#ifndef KNA_CLI_FAIRNESS_H
#define KNA_CLI_FAIRNESS_H

#include "choice.h"
#include "cli.h"

enum { FAIR_GROUPS = 64, FAIR_METHODS = 8, FAIR_NAME = 64 };

/* ------------------------------------------------------------------ 1. Operands */

typedef struct fair_layer {
    int number;      /* in the model; -1: operands on files */
    float scale;     /* 0: 1/sqrt(d) */
    kna_rows q, k, v; /* packed; q float32 or float16 */
} fair_layer;

/* Where operands come from: a model that reads texts. */
typedef struct fair_source {
    const char *model, *layers; /* layers: a list; NULL: all */
    cli_texts files;
    int64_t context, turns, threads;
    int no_yarn, verbose;
} fair_source;

typedef struct fair_set {
    fair_layer *layers; /* ascending; all of the same shapes but for dimensions */
    int count;
    int64_t n;
    const char *model;        /* its name; NULL: operands on files */
    const int32_t *tokens;    /* (n); NULL: not known */
    const int32_t *documents; /* (n): which of the texts a token is from */
    const char *const *names; /* of the texts, valid UTF-8 */
    void *source;             /* of a model: what the rest is borrowed from; NULL: nothing to give back */
} fair_set;

/* cli/lm_fairness.c, in builds with llama.cpp. Give back in any case. */
int fair_take(fair_set *set, const fair_source *source);
void fair_give_back(fair_set *set);

/* ------------------------------------------------------------------ 2. Groups */

enum { FAIR_BY_DOCUMENT, FAIR_BY_POSITION, FAIR_BY_FREQUENCY, FAIR_BY_LABELS };
extern const char *const fair_by_names[]; /* "document", .., NULL; all but labels are choices */

typedef struct fair_groups {
    int by;
    int32_t *of; /* (n) */
    int count;
    int64_t n, keys[FAIR_GROUPS]; /* none: a number left out in the labels */
    char names[FAIR_GROUPS][FAIR_NAME];
} fair_groups;

/* fair_groups_find() - labels: a file, for FAIR_BY_LABELS; buckets: for FAIR_BY_POSITION. Fewer than two groups with keys are refused. */
int fair_groups_find(fair_groups *groups, const fair_set *set, int by, const char *labels, int64_t buckets);
void fair_groups_free(fair_groups *groups);

/* fair_name() - as much of a name as fits, cut between characters. */
void fair_name(char *to, size_t size, const char *name);

/* ------------------------------------------------------------------ 3. What is measured */

/* Sums over rows; queries count for the group of the token they stand on. */
typedef struct fair_sums {
    double rows, queries[FAIR_GROUPS];
    double mass[FAIR_GROUPS];
    double head[FAIR_GROUPS]; /* full attention's mass of keys that the method reads in full */
    double error[FAIR_GROUPS];
    int has_head; /* 0: not known of this method */
} fair_sums;

typedef struct fair_layer_sums {
    int number;
    fair_sums full, method[FAIR_METHODS];
} fair_layer_sums;

typedef struct fair_interval {
    double value, low, high; /* low and high NaN: not known */
} fair_interval;

/* Per group, in nats: mean loss under full attention; what the method adds, with its 95 % interval. */
typedef struct fair_loss {
    int is_known;
    int64_t tokens[FAIR_GROUPS];
    double full[FAIR_GROUPS];
    fair_interval added[FAIR_GROUPS];
} fair_loss;

typedef struct fair_result {
    const fair_groups *groups;
    const char *model; /* NULL: operands on files */
    int64_t queries;   /* of each head and layer */
    int methods[FAIR_METHODS], method_count;
    fair_layer_sums *layers, all;
    int layer_count;
    fair_loss loss[FAIR_METHODS];
} fair_result;

/* What is to be done with each layer. `meaning`: scale 0 takes the layer's. */
typedef struct fair_plan {
    const cli_method *method;
    const choice *choice; /* of heads and tails, as far as a method has them; groups of keys are those measured */
    kna_attend_options meaning;
    int64_t late; /* only so many last queries; 0: all */
    int (*explain)(const kna_context *context, int status, const void *user); /* reports a failed call */
    const void *user;
} fair_plan;

/* fair_measure() - all methods of the result on all layers of the set. */
int fair_measure(fair_result *result, kna_context *context, const fair_set *set, const fair_plan *plan);
void fair_result_free(fair_result *result);

/* From sums to figures. NaN: not known, or the group has too little mass to say. */
typedef struct fair_figures {
    double mass[FAIR_GROUPS], ratio[FAIR_GROUPS], recall[FAIR_GROUPS], error[FAIR_GROUPS];
    double impact, gap, variation, error_ratio;
    int least, most; /* groups with the least and the largest ratio */
} fair_figures;
void fair_figures_of(fair_figures *figures, const fair_layer_sums *sums, int method, int groups);

/* fair_passes() - by the four-fifths rule; -1: nothing to compare. */
int fair_passes(const fair_figures *figures);

/* ------------------------------------------------------------------ 4. Loss inside the model */

/* fair_lose() - of the methods that the plugin has, under the same settings; cli/lm_fairness.c. */
int fair_lose(fair_result *result, const fair_set *set, const fair_source *source, const cli_method *method, int64_t late);

/* ------------------------------------------------------------------ 5. Showing */

void fair_print(const fair_result *result);
int fair_json(const fair_result *result);
int fair_html(const void *result, FILE *page);

#endif
