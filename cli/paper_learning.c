/*
 * paper_learning.c - gradients: how near the estimates are for what they look at, and gradient descent with them.
 *
 * Operands of the descent as in the paper: n = 100, d = 3, all N(0, 2^2), a label and a fixed direction; queries, keys and values
 * are learned.
 */
#include "paper.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One head; all (n, d). */
typedef struct head {
    int64_t n, d;
    float *q, *k, *v, *out, *dout, *dq, *dk, *dv, *lse;
} head;

static void head_free(head *h)
{
    float *const all[] = { h->q, h->k, h->v, h->out, h->dout, h->dq, h->dk, h->dv, h->lse };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

static int head_new(head *h, int64_t n, int64_t d)
{
    *h = (head){ .n = n, .d = d };
    float **const all[] = { &h->q, &h->k, &h->v, &h->out, &h->dout, &h->dq, &h->dk, &h->dv, &h->lse };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        *all[i] = calloc((size_t)(n * d) + 1, sizeof(float));
        if (!*all[i]) return cli_fail("out of memory: %lld numbers", (long long)(n * d));
    }
    return CLI_OK;
}

static void fill(float *x, const head *h, uint64_t seed, uint64_t stream, double deviation)
{
    for (int64_t i = 0; i < h->n * h->d; i++) x[i] = (float)(deviation * paper_normal(seed, stream, (uint64_t)i));
}

static kna_rows rows_of(const float *x, const head *h)
{
    return (kna_rows){ x, KNA_F32, 1, h->n, h->d, 0, 0, NULL };
}

static int attend(head *h, const paper_setup *s, const kna_attend_options *options)
{
    const kna_rows q = rows_of(h->q, h), k = rows_of(h->k, h), v = rows_of(h->v, h);
    const kna_out_rows out = { h->out, 0, 0 };
    const int status = kna_attend(s->context, &out, h->lse, NULL, &q, &k, &v, options);
    return status == KNA_OK ? CLI_OK : cli_status(s->context, status);
}

static int differentiate(head *h, const paper_setup *s, const kna_attend_options *options)
{
    const kna_rows q = rows_of(h->q, h), k = rows_of(h->k, h), v = rows_of(h->v, h), out = rows_of(h->out, h), dout = rows_of(h->dout, h);
    const kna_gradients to = { { h->dq, 0, 0 }, { h->dk, 0, 0 }, { h->dv, 0, 0 }, NULL };
    const int status = kna_attend_backward(s->context, &to, &dout, &out, h->lse, &q, &k, &v, options);
    return status == KNA_OK ? CLI_OK : cli_status(s->context, status);
}

/* ------------------------------------------------------------------ how near */

/* One method against the exact gradients, `keys` looked at per row. */
static int add_gradient(paper_table *table, head *h, const head *exact, const paper_setup *s, const char *series, kna_attend_options options,
                        double keys)
{
    const int64_t numbers = h->n * h->d;
    int code = attend(h, s, &options);
    if (code == CLI_OK) code = differentiate(h, s, &options);
    paper_row *row = code == CLI_OK ? paper_add(table, series) : NULL;
    if (!row) return code == CLI_OK ? CLI_FAILED : code;
    const double values[] = { keys, paper_distance(h->dq, exact->dq, numbers), paper_distance(h->dk, exact->dk, numbers),
                              paper_distance(h->dv, exact->dv, numbers) };
    memcpy(row->values, values, sizeof values);
    return CLI_OK;
}

static int compare_gradients(paper_table *table, head *h, const head *exact, const paper_setup *s)
{
    int code = CLI_OK;
    for (int64_t samples = 8; samples <= 2048 && code == CLI_OK; samples *= 4) {
        kna_attend_options options = KNA_ATTEND_OPTIONS;
        options.causal = 1;
        options.seed = s->seed;
        options.method = KNA_GUMBEL;
        options.k_near = 32;
        options.samples = samples;
        code = add_gradient(table, h, exact, s, "chain, 32 nearest", options, (double)samples);
    }
    for (int64_t k = 8; k <= 512 && code == CLI_OK; k *= 4) {
        kna_attend_options options = KNA_ATTEND_OPTIONS;
        options.causal = 1;
        options.method = KNA_KNN;
        options.differentiable = 1;
        options.k_near = k;
        options.near_sinks = options.near_window = -1;
        code = add_gradient(table, h, exact, s, "knn", options, (double)k);
    }
    return code;
}

int paper_gradients(paper_table *table, const paper_setup *s)
{
    const int64_t n = s->n < 100 ? s->n : 4 * s->n;
    head h = { .n = 0 }, exact = { .n = 0 };
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    int code = head_new(&h, n, s->dim);
    if (code == CLI_OK) code = head_new(&exact, n, s->dim);
    if (code == CLI_OK) {
        fill(h.q, &h, s->seed, 10, 1.5);
        fill(h.k, &h, s->seed, 11, 1);
        fill(h.v, &h, s->seed, 12, 1);
        fill(h.dout, &h, s->seed, 13, 1);
        const size_t bytes = (size_t)(n * s->dim) * sizeof(float);
        memcpy(exact.q, h.q, bytes), memcpy(exact.k, h.k, bytes), memcpy(exact.v, h.v, bytes), memcpy(exact.dout, h.dout, bytes);
        options.causal = 1;
        code = attend(&exact, s, &options);
    }
    if (code == CLI_OK) code = differentiate(&exact, s, &options);
    if (code == CLI_OK) code = compare_gradients(table, &h, &exact, s);
    head_free(&h);
    head_free(&exact);
    return code;
}

/* ------------------------------------------------------------------ descent */

/* Binary cross-entropy of <out, w> against the labels, or half its squared distance from 2 label - 1; into dout its gradient. */
static double loss_of(head *h, const paper_setup *s, int is_squared)
{
    double loss = 0;
    for (int64_t i = 0; i < h->n; i++) {
        const double label = paper_uniform(s->seed, 20, (uint64_t)i) < 0.5 ? 0 : 1;
        double z = 0;
        for (int64_t c = 0; c < h->d; c++) z += (double)h->out[i * h->d + c] * paper_normal(s->seed, 21, (uint64_t)c);
        const double p = 1 / (1 + exp(-z)), off = is_squared ? z - (2 * label - 1) : p - label;
        loss += is_squared ? off * off / 2 : log1p(exp(-fabs(z))) + (label > 0 ? fmax(-z, 0) : fmax(z, 0));
        for (int64_t c = 0; c < h->d; c++) h->dout[i * h->d + c] = (float)(off / (double)h->n * paper_normal(s->seed, 21, (uint64_t)c));
    }
    return loss / (double)h->n;
}

static void step(float *x, const float *by, double rate, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x[i] -= (float)rate * by[i];
}

/* The loss is always that of exact attention: it is what is learned that counts. */
static int descend(paper_table *table, head *h, const paper_setup *s, const char *series, const kna_attend_options *how, int is_squared)
{
    const kna_attend_options exact = KNA_ATTEND_OPTIONS;
    kna_attend_options options = *how;
    fill(h->q, h, s->seed, 22, 2);
    fill(h->k, h, s->seed, 23, 2);
    fill(h->v, h, s->seed, 24, 2);
    for (int64_t i = 0; i <= s->steps; i++) {
        int code = attend(h, s, &exact);
        if (code != CLI_OK) return code;
        const double loss = loss_of(h, s, is_squared);
        if (i % (s->steps / 30 > 0 ? s->steps / 30 : 1) == 0) {
            paper_row *row = paper_add(table, series);
            if (!row) return CLI_FAILED;
            row->values[0] = (double)i;
            row->values[1] = loss;
        }
        options.seed = s->seed + (uint64_t)i;
        code = differentiate(h, s, &options);
        if (code != CLI_OK) return code;
        step(h->q, h->dq, 0.5, h->n * h->d);
        step(h->k, h->dk, 0.5, h->n * h->d);
        step(h->v, h->dv, 0.5, h->n * h->d);
    }
    return CLI_OK;
}

int paper_descent(paper_table *table, const paper_setup *s)
{
    static const int64_t draws[] = { 0, 4, 32 };
    head h;
    int code = head_new(&h, 100, 3);
    for (int is_squared = 0; is_squared < 2 && code == CLI_OK; is_squared++) {
        const char *of = is_squared ? "squared" : "cross-entropy";
        for (int i = 0; i < 3 && code == CLI_OK; i++) {
            const int64_t samples = draws[i];
            kna_attend_options options = KNA_ATTEND_OPTIONS;
            char series[PAPER_NAME];
            options.method = samples ? KNA_GUMBEL : KNA_EXACT;
            options.k_near = 10;
            options.samples = samples;
            snprintf(series, sizeof series, samples ? "%s, chain of %d" : "%s, exact", of, (int)samples);
            code = descend(table, &h, s, series, &options, is_squared);
        }
    }
    head_free(&h);
    return code;
}
