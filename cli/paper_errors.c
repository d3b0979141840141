/*
 * paper_errors.c - how near to exact attention: operands uniform in [-B, B], k from a constant to the root of n, each beside two
 * that know nothing (zero, and the mean of the values) and the nearest keys of equal cost.
 *
 * Rows of large B have logits of a deviation of B^2 / 3: softmax is the largest of them, and any k will do. That is why both small
 * and large B are here.
 */
#include "paper.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct operands {
    float *q, *k, *v, *exact, *out;
    int64_t rows, numbers;
} operands;

static void operands_free(operands *o)
{
    float *const all[] = { o->q, o->k, o->v, o->exact, o->out };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

static int operands_new(operands *o, const paper_setup *s)
{
    o->rows = s->heads * s->n;
    o->numbers = o->rows * s->dim;
    float **const all[] = { &o->q, &o->k, &o->v, &o->exact, &o->out };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        *all[i] = calloc((size_t)o->numbers + 1, sizeof(float));
        if (!*all[i]) return cli_fail("out of memory: %lld numbers", (long long)o->numbers);
    }
    return CLI_OK;
}

static void fill(operands *o, const paper_setup *s, double bound)
{
    float *const all[] = { o->q, o->k, o->v };
    for (uint64_t x = 0; x < 3; x++) {
        for (int64_t i = 0; i < o->numbers; i++) all[x][i] = (float)(bound * (2 * paper_uniform(s->seed, x, (uint64_t)i) - 1));
    }
}

static int attend(const operands *o, const paper_setup *s, kna_attend_options options, float *out, double *keys)
{
    const kna_rows q = { o->q, KNA_F32, s->heads, s->n, s->dim, 0, 0, NULL }, k = { o->k, KNA_F32, s->heads, s->n, s->dim, 0, 0, NULL };
    const kna_rows v = { o->v, KNA_F32, s->heads, s->n, s->dim, 0, 0, NULL };
    const kna_out_rows to = { out, 0, 0 };
    kna_report report = { .size = sizeof report };
    options.seed = s->seed;
    const int status = kna_attend(s->context, &to, NULL, &report, &q, &k, &v, &options);
    if (status == KNA_OK && keys) *keys = report.keys_full / (double)report.rows;
    return status == KNA_OK ? CLI_OK : cli_status(s->context, status);
}

/* The mean over rows of the relative distance, and the largest. */
static void add_result(paper_row *row, const operands *o, const paper_setup *s, const float *out, double bound, double k, double keys)
{
    double sum = 0, most = 0;
    for (int64_t i = 0; i < o->rows; i++) {
        const double off = paper_distance(out + i * s->dim, o->exact + i * s->dim, s->dim);
        sum += off;
        most = fmax(most, off);
    }
    const double values[] = { bound, k, keys, sum / (double)o->rows, most };
    memcpy(row->values, values, sizeof values);
}

static int add_method(paper_table *table, const operands *o, const paper_setup *s, const char *name, int method, int64_t k, double bound)
{
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    char series[PAPER_NAME];
    double keys = 0;
    options.method = method;
    options.k_near = k;
    options.samples = k;
    options.near_sinks = options.near_window = -1;
    const int code = attend(o, s, options, o->out, &keys);
    snprintf(series, sizeof series, "%s, B = %g", name, bound);
    paper_row *row = code == CLI_OK ? paper_add(table, series) : NULL;
    if (!row) return code == CLI_OK ? CLI_FAILED : code;
    add_result(row, o, s, o->out, bound, (double)k, keys);
    return CLI_OK;
}

static int add_null(paper_table *table, const operands *o, const paper_setup *s, int is_mean, int64_t k, double bound)
{
    char series[PAPER_NAME];
    memset(o->out, 0, (size_t)o->numbers * sizeof *o->out);
    for (int64_t head = 0; is_mean && head < s->heads; head++) {
        float *first = o->out + head * s->n * s->dim;
        for (int64_t i = 0; i < s->n * s->dim; i++) first[i % s->dim] += o->v[head * s->n * s->dim + i] / (float)s->n;
        for (int64_t row = 1; row < s->n; row++) memcpy(first + row * s->dim, first, (size_t)s->dim * sizeof *first);
    }
    snprintf(series, sizeof series, "%s, B = %g", is_mean ? "mean of values" : "zero", bound);
    paper_row *row = paper_add(table, series);
    if (!row) return CLI_FAILED;
    add_result(row, o, s, o->out, bound, (double)k, 0);
    return CLI_OK;
}

static int add_budget(paper_table *table, const operands *o, const paper_setup *s, int64_t k, double bound)
{
    int code = add_null(table, o, s, 0, k, bound);
    if (code == CLI_OK) code = add_null(table, o, s, 1, k, bound);
    if (code == CLI_OK) code = add_method(table, o, s, "topk", KNA_TOPK, k, bound);
    if (code == CLI_OK) code = add_method(table, o, s, "topk of 2k", KNA_TOPK, 2 * k, bound);
    if (code == CLI_OK) code = add_method(table, o, s, "uniform, k and k", KNA_UNIFORM, k, bound);
    if (code == CLI_OK) code = add_method(table, o, s, "gumbel, k draws", KNA_GUMBEL, k, bound);
    return code;
}

int paper_errors(paper_table *table, const paper_setup *s)
{
    static const double bounds[] = { 1, 2, 3, 10, 30, 50 };
    const double n = (double)s->n;
    const int64_t budgets[] = { (int64_t)pow(n, 0.125), 3, (int64_t)ceil(pow(n, 0.25)), (int64_t)ceil(log(n)), (int64_t)ceil(sqrt(n)), (int64_t)ceil(4 * sqrt(n)) };
    operands o = { .q = NULL };
    int code = operands_new(&o, s);
    for (size_t b = 0; b < sizeof bounds / sizeof bounds[0] && code == CLI_OK; b++) {
        kna_attend_options exact = KNA_ATTEND_OPTIONS;
        fill(&o, s, bounds[b]);
        code = attend(&o, s, exact, o.exact, NULL);
        for (size_t i = 0; i < sizeof budgets / sizeof budgets[0] && code == CLI_OK; i++) {
            code = add_budget(table, &o, s, budgets[i], bounds[b]);
        }
    }
    operands_free(&o);
    return code;
}
