/*
 * paper_times.c - time against n, forward and backward, of causal attention by each method with k = sqrt n, and the power of n that fits it. One
 * run of each, after one that is not counted; indexes are built in every call.
 */
#include "paper.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct operands {
    float *q, *k, *v, *dout, *out, *dq, *dk, *dv, *lse;
} operands;

static void operands_free(operands *o)
{
    float *const all[] = { o->q, o->k, o->v, o->dout, o->out, o->dq, o->dk, o->dv, o->lse };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

static int operands_new(operands *o, const paper_setup *s, int64_t n)
{
    float **const all[] = { &o->q, &o->k, &o->v, &o->dout, &o->out, &o->dq, &o->dk, &o->dv, &o->lse };
    const int64_t numbers = s->heads * n * s->dim;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        *all[i] = calloc((size_t)numbers + 1, sizeof(float));
        if (!*all[i]) return cli_fail("out of memory: %lld numbers", (long long)numbers);
    }
    for (uint64_t x = 0; x < 4; x++) {
        for (int64_t i = 0; i < numbers; i++) (*all[x])[i] = (float)paper_normal(s->seed, 30 + x, (uint64_t)i);
    }
    return CLI_OK;
}

/* Seconds of one call of either; *backward_s negative: the method has no gradients. */
static int time_once(const operands *o, const paper_setup *s, int64_t n, const kna_attend_options *options, double *forward_s, double *backward_s)
{
    const kna_rows q = { o->q, KNA_F32, s->heads, n, s->dim, 0, 0, NULL }, k = { o->k, KNA_F32, s->heads, n, s->dim, 0, 0, NULL };
    const kna_rows v = { o->v, KNA_F32, s->heads, n, s->dim, 0, 0, NULL }, dout = { o->dout, KNA_F32, s->heads, n, s->dim, 0, 0, NULL };
    const kna_rows out = { o->out, KNA_F32, s->heads, n, s->dim, 0, 0, NULL };
    const kna_out_rows to = { o->out, 0, 0 };
    const kna_gradients gradients = { { o->dq, 0, 0 }, { o->dk, 0, 0 }, { o->dv, 0, 0 }, NULL };
    const double start = cli_now_s();
    int status = kna_attend(s->context, &to, o->lse, NULL, &q, &k, &v, options);
    const double middle = cli_now_s();
    const int has_gradients = options->method == KNA_EXACT || options->method == KNA_KNN || options->method == KNA_GUMBEL;
    if (status == KNA_OK && has_gradients) status = kna_attend_backward(s->context, &gradients, &dout, &out, o->lse, &q, &k, &v, options);
    *forward_s = middle - start;
    *backward_s = has_gradients ? cli_now_s() - middle : -1;
    return status == KNA_OK ? CLI_OK : cli_status(s->context, status);
}

static int add_time(paper_table *table, const operands *o, const paper_setup *s, int64_t n, int method)
{
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    double forward_s = 0, backward_s = 0;
    char series[PAPER_NAME];
    options.method = method;
    options.causal = 1;
    options.k_near = (int64_t)ceil(sqrt((double)n));
    options.differentiable = method == KNA_KNN;
    for (int round = 0; round < 2; round++) {
        const int code = time_once(o, s, n, &options, &forward_s, &backward_s);
        if (code != CLI_OK) return code;
    }
    for (int is_backward = 0; is_backward <= (backward_s >= 0); is_backward++) {
        snprintf(series, sizeof series, "%s%s", kna_method_name(method), is_backward ? ", backward" : "");
        paper_row *row = paper_add(table, series);
        if (!row) return CLI_FAILED;
        row->values[0] = (double)n;
        row->values[1] = is_backward ? backward_s : forward_s;
    }
    return CLI_OK;
}

/* The slope of log time against log n within the row's series, by least squares. */
static double power_of(const paper_table *table, const char *series)
{
    double count = 0, x = 0, y = 0, xx = 0, xy = 0;
    for (int i = 0; i < table->count; i++) {
        if (strcmp(table->rows[i].series, series) != 0) continue;
        const double a = log(table->rows[i].values[0]), b = log(table->rows[i].values[1]);
        count++, x += a, y += b, xx += a * a, xy += a * b;
    }
    return count > 1 ? (count * xy - x * y) / (count * xx - x * x) : NAN;
}

int paper_times(paper_table *table, const paper_setup *s)
{
    static const int methods[] = { KNA_EXACT, KNA_TOPK, KNA_KNN, KNA_UNIFORM, KNA_GUMBEL, KNA_WINDOW, KNA_PERFORMER };
    for (int64_t n = s->n; n <= 8 * s->n; n *= 2) {
        operands o = { .q = NULL };
        int code = operands_new(&o, s, n);
        for (size_t i = 0; i < sizeof methods / sizeof methods[0] && code == CLI_OK; i++) code = add_time(table, &o, s, n, methods[i]);
        operands_free(&o);
        if (code != CLI_OK) return code;
    }
    for (int i = 0; i < table->count; i++) table->rows[i].values[2] = power_of(table, table->rows[i].series);
    return CLI_OK;
}
