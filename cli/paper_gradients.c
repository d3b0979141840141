/*
 * paper_gradients.c - how near estimated gradients are to the exact ones, for what they look at and for the time they take. One head,
 * causal, queries N(0, 1.5^2), keys and values N(0, 1), gradients of a sum with normal numbers. Beside every estimator stand two that know
 * nothing: zero, and the gradients of a mean of the values seen.
 */
#include "paper.h"

#include <math.h>
#include <string.h>

/* An estimator and the budgets it is tried with: low, 4 low, .. high keys of a row. */
typedef struct estimator {
    const char *series;
    int method;
    int64_t k_near; /* 0: the budget */
    int64_t low, high;
} estimator;

static const estimator estimators[] = {
    { "chain, 32 nearest", KNA_GUMBEL, 32, 8, 2048 }, { "chain by rejection", KNA_REJECTION, 32, 8, 512 },
    { "knn", KNA_KNN, 0, 8, 512 },                    { "topk", KNA_TOPK, 0, 8, 2048 },
    { "uniform, k and k", KNA_UNIFORM, 0, 8, 2048 },  { "stratified, k and k", KNA_STRATIFIED, 0, 8, 2048 },
    { "centroid, k and k", KNA_CENTROID, 0, 8, 2048 }, { "control, k and k", KNA_CONTROL, 0, 8, 2048 },
    { "mom", KNA_MOM, 32, 8, 2048 },
    { "window", KNA_WINDOW, 0, 8, 2048 },             { "performer", KNA_PERFORMER, 0, 8, 512 },
};

static kna_attend_options options_of(const estimator *e, const paper_setup *s, int64_t budget)
{
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    options.causal = 1;
    options.seed = s->seed;
    options.method = e->method;
    options.k_near = e->k_near ? e->k_near : budget;
    options.samples = budget;
    options.rank = budget;
    options.differentiable = e->method == KNA_KNN;
    options.near_sinks = e->method == KNA_WINDOW ? 4 : -1;
    options.near_window = e->method == KNA_WINDOW ? budget : -1;
    return options;
}

static int add_distances(paper_table *table, const char *series, const paper_head *h, const paper_head *exact, double keys, double seconds)
{
    const int64_t numbers = h->n * h->d;
    paper_row *row = paper_add(table, series);
    if (!row) return CLI_FAILED;
    const double values[] = { keys, seconds, paper_distance(h->dq, exact->dq, numbers), paper_distance(h->dk, exact->dk, numbers),
                              paper_distance(h->dv, exact->dv, numbers) };
    memcpy(row->values, values, sizeof values);
    return CLI_OK;
}

/* A method that has no gradients says so in the table. */
static int add_missing(paper_table *table, const char *series)
{
    paper_row *row = paper_add(table, series);
    if (!row) return CLI_FAILED;
    for (int c = 0; c < 5; c++) row->values[c] = NAN;
    row->note = "has no gradients";
    return CLI_OK;
}

static int add_estimator(paper_table *table, paper_head *h, const paper_head *exact, const paper_setup *s, const estimator *e)
{
    for (int64_t budget = e->low; budget <= e->high; budget *= 4) {
        const kna_attend_options options = options_of(e, s, budget);
        int code = paper_head_attend(h, s, &options);
        if (code != CLI_OK) return code;
        const double start = cli_now_s();
        const int status = paper_head_differentiate(h, s, &options);
        if (status == KNA_EINVAL && budget == e->low) return add_missing(table, e->series);
        if (status != KNA_OK) return cli_status(s->context, status);
        code = add_distances(table, e->series, h, exact, (double)budget, cli_now_s() - start);
        if (code != CLI_OK) return code;
    }
    return CLI_OK;
}

/* Gradients of the mean of the values that each query sees: only values have any. */
static void differentiate_mean(paper_head *h)
{
    memset(h->dq, 0, (size_t)(h->n * h->d) * sizeof *h->dq);
    memset(h->dk, 0, (size_t)(h->n * h->d) * sizeof *h->dk);
    for (int64_t c = 0; c < h->d; c++) {
        double sum = 0;
        for (int64_t i = h->n - 1; i >= 0; i--) {
            sum += (double)h->dout[i * h->d + c] / (double)(i + 1);
            h->dv[i * h->d + c] = (float)sum;
        }
    }
}

/* They look at no keys; the picture has them as lines, at the budgets of others. */
static int add_null(paper_table *table, const paper_head *h, const paper_head *exact, const char *series)
{
    int code = CLI_OK;
    for (int64_t budget = 8; budget <= 2048 && code == CLI_OK; budget *= 4) code = add_distances(table, series, h, exact, (double)budget, 0);
    return code;
}

static int add_nulls(paper_table *table, paper_head *h, const paper_head *exact)
{
    differentiate_mean(h);
    int code = add_null(table, h, exact, "mean of values");
    memset(h->dv, 0, (size_t)(h->n * h->d) * sizeof *h->dv);
    return code == CLI_OK ? add_null(table, h, exact, "zero") : code;
}

static int make_exact(paper_head *exact, paper_head *h, const paper_setup *s)
{
    const size_t bytes = (size_t)(h->n * h->d) * sizeof(float);
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    paper_head_fill(h->q, h, s->seed, 10, 1.5);
    paper_head_fill(h->k, h, s->seed, 11, 1);
    paper_head_fill(h->v, h, s->seed, 12, 1);
    paper_head_fill(h->dout, h, s->seed, 13, 1);
    memcpy(exact->q, h->q, bytes), memcpy(exact->k, h->k, bytes), memcpy(exact->v, h->v, bytes), memcpy(exact->dout, h->dout, bytes);
    options.causal = 1;
    const int code = paper_head_attend(exact, s, &options);
    if (code != CLI_OK) return code;
    const int status = paper_head_differentiate(exact, s, &options);
    return status == KNA_OK ? CLI_OK : cli_status(s->context, status);
}

int paper_gradients(paper_table *table, const paper_setup *s)
{
    const int64_t n = s->n < 100 ? s->n : 4 * s->n;
    paper_head h = { .n = 0 }, exact = { .n = 0 };
    int code = paper_head_new(&h, n, s->dim);
    if (code == CLI_OK) code = paper_head_new(&exact, n, s->dim);
    if (code == CLI_OK) code = make_exact(&exact, &h, s);
    if (code == CLI_OK) code = add_nulls(table, &h, &exact);
    for (size_t i = 0; i < sizeof estimators / sizeof estimators[0] && code == CLI_OK; i++) {
        code = add_estimator(table, &h, &exact, s, &estimators[i]);
        cli_progress_share((double)(i + 1) / (double)(sizeof estimators / sizeof estimators[0]));
    }
    paper_head_free(&h);
    paper_head_free(&exact);
    return code;
}
