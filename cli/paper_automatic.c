/*
 * paper_automatic.c - k found by itself beside the best fixed one. knn with eps and delta asks that at most a share delta of the rows be off
 * by more than eps; the best fixed k is the least of 16, 32, .. that keeps that. uniform with eps plans its samples for a radius; the best
 * fixed number is the least of as many whose 95th percentile of errors is no larger. Knowing the best takes exact attention for every row,
 * which is what the planners do without.
 *
 * Operands are the middle layer of the dump, up to a limit, or, without one, those of the other benches. knn answers all queries, as its k
 * follows them; uniform, where queries have nothing to do with each other, the late ones.
 */
#include "bench_data.h"
#include "paper.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LEAST = 16, MOST = 4096, ASKED = 3, ROWS_MOST = 8192 };

typedef struct trial {
    const paper_setup *setup;
    kna_rows q, k, v;
    float scale, *exact, *out;
    double *errors;
    int64_t rows;
} trial;

/* What a call came to. */
typedef struct result {
    double share_read, seconds, mean, p95, above; /* above: share of rows with an error above eps */
} result;

static int attend(const trial *t, float *out, kna_attend_options options, kna_report *report, double *seconds)
{
    const kna_out_rows to = { out, 0, 0 };
    report->size = sizeof *report;
    options.causal = 1;
    options.scale = t->scale;
    options.seed = t->setup->seed;
    const double start = cli_now_s();
    const int status = kna_attend(t->setup->context, &to, NULL, report, &t->q, &t->k, &t->v, &options);
    *seconds = cli_now_s() - start;
    return status == KNA_OK ? CLI_OK : cli_status(t->setup->context, status);
}

static int measure(const trial *t, const kna_attend_options *options, double eps, result *to)
{
    const int64_t dv = t->v.dim;
    kna_report report;
    int64_t above = 0;
    const int code = attend(t, t->out, *options, &report, &to->seconds);
    if (code != CLI_OK) return code;
    for (int64_t i = 0; i < t->rows; i++) {
        t->errors[i] = paper_distance(t->out + i * dv, t->exact + i * dv, dv);
        above += t->errors[i] > eps;
    }
    to->share_read = report.keys_full / report.keys_seen;
    to->mean = heads_mean(t->errors, t->rows);
    to->p95 = heads_p95(t->errors, t->rows);
    to->above = (double)above / (double)t->rows;
    return CLI_OK;
}

static int add(paper_table *table, const char *series, double eps, double delta, double k, const result *r, const char *note)
{
    paper_row *row = paper_add(table, series);
    if (!row) return CLI_FAILED;
    const double values[] = { eps, delta, k, r->share_read, r->seconds, r->mean, r->p95, r->above };
    memcpy(row->values, values, sizeof values);
    row->note = note;
    return CLI_OK;
}

/* Fixed k in turn, until one does. */
static int find_fixed(paper_table *table, const trial *t, int method, double eps, double delta, const result *planned)
{
    const char *name = method == KNA_KNN ? "knn, best fixed k" : "uniform, best fixed samples";
    result r = { 0 };
    for (int64_t k = LEAST;; k *= 2) {
        kna_attend_options options = KNA_ATTEND_OPTIONS;
        options.method = method;
        options.k_near = method == KNA_KNN ? k : 64;
        options.samples = k;
        const int code = measure(t, &options, eps, &r);
        if (code != CLI_OK) return code;
        const int is_enough = method == KNA_KNN ? r.above <= delta : r.p95 <= planned->p95;
        if (is_enough || 2 * k > MOST) return add(table, name, eps, delta, (double)k, &r, is_enough ? NULL : "not enough");
    }
}

static int add_asked(paper_table *table, const trial *t, int method, double eps, double delta)
{
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    result r = { 0 };
    options.method = method;
    options.k_near = method == KNA_KNN ? 0 : 64;
    options.eps = (float)eps;
    options.delta = (float)delta;
    int code = measure(t, &options, eps, &r);
    if (code == CLI_OK) code = add(table, method == KNA_KNN ? "knn, eps and delta" : "uniform, eps", eps, delta, NAN, &r, NULL);
    return code == CLI_OK ? find_fixed(table, t, method, eps, delta, &r) : code;
}

static int run_trial(paper_table *table, trial *t, int method)
{
    static const double asked[ASKED] = { 0.2, 0.1, 0.05 };
    const size_t numbers = (size_t)(t->rows * t->v.dim);
    const kna_attend_options exact = KNA_ATTEND_OPTIONS;
    kna_report report;
    double unused;
    t->exact = calloc(numbers, sizeof *t->exact), t->out = calloc(numbers, sizeof *t->out);
    t->errors = calloc((size_t)t->rows, sizeof *t->errors);
    int code = t->exact && t->out && t->errors ? CLI_OK : cli_fail("out of memory: %lld rows", (long long)t->rows);
    if (code == CLI_OK) code = attend(t, t->exact, exact, &report, &unused);
    for (int i = 0; i < ASKED && code == CLI_OK; i++) {
        code = add_asked(table, t, method, asked[i], 0.05);
        cli_progress_share((method == KNA_KNN ? 0.0 : 0.5) + (i + 1.0) / ASKED / 2);
    }
    free(t->exact), free(t->out), free(t->errors);
    return code;
}

/* The last `late` queries of rows. */
static kna_rows last_rows(const kna_rows *rows, int64_t late)
{
    return heads_rows(rows, rows->rows - late, late);
}

static int run_both(paper_table *table, const paper_setup *s, const kna_rows *q, const kna_rows *k, const kna_rows *v, float scale)
{
    const int64_t late = s->late < q->rows ? s->late : q->rows;
    trial all = { .setup = s, .q = *q, .k = *k, .v = *v, .scale = scale, .rows = q->heads * q->rows };
    trial last = all;
    last.q = last_rows(q, late);
    last.q.head_stride_bytes = q->head_stride_bytes ? q->head_stride_bytes : last.q.head_stride_bytes;
    last.rows = q->heads * late;
    const int code = run_trial(table, &all, KNA_KNN);
    return code == CLI_OK ? run_trial(table, &last, KNA_UNIFORM) : code;
}

int paper_automatic(paper_table *table, const paper_setup *s)
{
    if (s->dump) {
        const heads_layer *l = &s->dump->layers[s->dump->count / 2];
        const int64_t n = l->q.rows < ROWS_MOST ? l->q.rows : ROWS_MOST;
        const kna_rows q = heads_rows(&l->q, 0, n), k = heads_rows(&l->k, 0, n), v = heads_rows(&l->v, 0, n);
        return run_both(table, s, &q, &k, &v, l->scale);
    }
    const bench_shape shape = { s->heads, s->heads, 4 * s->n, 4 * s->n, s->dim, KNA_F32, s->data };
    bench_layer layer;
    int code = bench_layer_new(s->context, &layer, &shape, s->seed, 0);
    if (code == CLI_OK) code = run_both(table, s, &layer.q_rows, &layer.k.rows, &layer.v.rows, 0);
    bench_layer_free(&layer);
    return code;
}
