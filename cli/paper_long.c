/*
 * paper_long.c - a whole text on the heads of a model: what knn takes beside exact attention, forward and backward, and how near it is, by
 * k. Gradients are those of a sum with uniform numbers. Forward is timed as it is used without gradients, by codes; backward follows a call
 * of its own that it can differentiate.
 */
#include "paper.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct text_run {
    const paper_setup *setup;
    const heads_layer *layer;
    int64_t numbers, kv_numbers, rows; /* of queries; of keys; heads times queries */
    float *dout, *exact, *out, *lse;
    float *exact_gradients[3], *gradients[3]; /* dq, dk, dv */
    double exact_s[2];
} text_run;

static int text_new(text_run *r)
{
    const heads_layer *l = r->layer;
    r->rows = l->q.heads * l->q.rows;
    r->numbers = r->rows * l->q.dim;
    r->kv_numbers = l->k.heads * l->k.rows * l->k.dim;
    float **const all[] = { &r->dout, &r->exact, &r->out, &r->exact_gradients[0], &r->gradients[0] };
    float **const of_keys[] = { &r->exact_gradients[1], &r->exact_gradients[2], &r->gradients[1], &r->gradients[2] };
    r->lse = malloc((size_t)r->rows * sizeof *r->lse);
    int good = r->lse != NULL;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) good &= (*all[i] = malloc((size_t)r->numbers * sizeof(float))) != NULL;
    for (size_t i = 0; i < sizeof of_keys / sizeof of_keys[0]; i++) good &= (*of_keys[i] = malloc((size_t)r->kv_numbers * sizeof(float))) != NULL;
    if (!good) return cli_fail("out of memory: gradients of %lld rows", (long long)r->rows);
    for (int64_t i = 0; i < r->numbers; i++) r->dout[i] = (float)(2 * paper_uniform(r->setup->seed, 40, (uint64_t)i) - 1);
    return CLI_OK;
}

static void text_free(text_run *r)
{
    free(r->dout), free(r->exact), free(r->out), free(r->lse);
    for (int i = 0; i < 3; i++) free(r->exact_gradients[i]), free(r->gradients[i]);
}

static int forward(const text_run *r, const kna_attend_options *options, float *out, double *seconds)
{
    const kna_out_rows to = { out, 0, 0 };
    const double start = cli_now_s();
    const int status = kna_attend(r->setup->context, &to, r->lse, NULL, &r->layer->q, &r->layer->k, &r->layer->v, options);
    *seconds = cli_now_s() - start;
    return status == KNA_OK ? CLI_OK : cli_status(r->setup->context, status);
}

static int backward(const text_run *r, const kna_attend_options *options, const float *out, float *const to[3], double *seconds)
{
    const heads_layer *l = r->layer;
    const kna_rows outs = { out, KNA_F32, l->q.heads, l->q.rows, l->v.dim, 0, 0, NULL };
    const kna_rows douts = { r->dout, KNA_F32, l->q.heads, l->q.rows, l->v.dim, 0, 0, NULL };
    const kna_gradients gradients = { { to[0], 0, 0 }, { to[1], 0, 0 }, { to[2], 0, 0 }, NULL, NULL, NULL };
    const double start = cli_now_s();
    const int status = kna_attend_backward(r->setup->context, &gradients, &douts, &outs, r->lse, &l->q, &l->k, &l->v, options);
    *seconds = cli_now_s() - start;
    return status == KNA_OK ? CLI_OK : cli_status(r->setup->context, status);
}

static double mean_error(const text_run *r)
{
    const int64_t dv = r->layer->v.dim;
    double sum = 0;
    for (int64_t i = 0; i < r->rows; i++) sum += paper_distance(r->out + i * dv, r->exact + i * dv, dv);
    return sum / (double)r->rows;
}

/* exact: k is 0, and the figures of others are relative to these. */
static int add_k(paper_table *table, text_run *r, int64_t k)
{
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    double seconds[2], error = 0, unused;
    char series[PAPER_NAME];
    options.method = k ? KNA_KNN : KNA_EXACT;
    options.scale = r->layer->scale;
    options.causal = options.unchecked = 1;
    options.k_near = k;
    int code = forward(r, &options, k ? r->out : r->exact, &seconds[0]);
    if (code == CLI_OK && k) {
        error = mean_error(r);
        options.differentiable = 1;
        code = forward(r, &options, r->out, &unused);
    }
    if (code == CLI_OK) code = backward(r, &options, k ? r->out : r->exact, k ? r->gradients : r->exact_gradients, &seconds[1]);
    if (code != CLI_OK) return code;
    if (!k) memcpy(r->exact_s, seconds, sizeof seconds);
    snprintf(series, sizeof series, "%s, layer %d", k ? "knn" : "exact", r->layer->number);
    paper_row *row = paper_add(table, series);
    if (!row) return CLI_FAILED;
    const double values[] = { k ? (double)k : NAN, error, seconds[0], r->exact_s[0] / seconds[0], seconds[1], r->exact_s[1] / seconds[1] };
    memcpy(row->values, values, sizeof values);
    row->is_hidden = !k;
    for (int i = 0; i < 2; i++) row->values[6 + i] = 0;
    if (k) row->values[6] = paper_distance(r->gradients[0], r->exact_gradients[0], r->numbers);
    if (k) row->values[7] = paper_distance(r->gradients[1], r->exact_gradients[1], r->kv_numbers);
    return CLI_OK;
}

int paper_long(paper_table *table, const paper_setup *s)
{
    const int count = 1 + s->k.count;
    int code = CLI_OK;
    for (int i = 0; i < s->dump->count && code == CLI_OK; i++) {
        text_run r = { .setup = s, .layer = &s->dump->layers[i] };
        code = text_new(&r);
        for (int x = 0; x < count && code == CLI_OK; x++) {
            code = add_k(table, &r, x ? s->k.values[x - 1] : 0);
            cli_progress_share((i + (x + 1.0) / count) / s->dump->count);
        }
        text_free(&r);
    }
    return code;
}
