/*
 * paper_heads.c - how near on the heads of a model: the last queries of each dumped layer, k from n^1/8 to 16 n^1/2, each beside two that
 * know nothing (zero, and the mean of the values seen) and the nearest keys of equal cost. Whether so few keys suffice is a property of
 * the operands; this is what says it of a model's.
 */
#include "convert.h"
#include "paper.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { USUAL_K = 384, COLUMNS = 6, BUDGETS = 7 };

typedef struct contender {
    const char *name;
    int method, times; /* k_near is so many times k */
} contender;

static const contender contenders[] = {
    { "topk", KNA_TOPK, 1 },       { "topk of 2k", KNA_TOPK, 2 }, { "uniform, k and k", KNA_UNIFORM, 1 },
    { "gumbel, k draws", KNA_GUMBEL, 1 }, { "knn", KNA_KNN, 1 },
};
enum { CONTENDERS = sizeof contenders / sizeof contenders[0], NULLS = 2 };

/* Work on one layer. */
typedef struct layer_run {
    const paper_setup *setup;
    const heads_layer *layer;
    int64_t rows;       /* heads times late queries */
    float *exact, *out; /* (h, late, dv) */
    double *errors;     /* (rows) */
    kna_index *index;   /* of knn: it has met all queries before the late ones */
} layer_run;

static int attend(const layer_run *r, float *out, kna_report *report, int64_t first, int64_t count, const kna_attend_options *options)
{
    const heads_layer *l = r->layer;
    const kna_rows q = heads_rows(&l->q, first, count), k = heads_rows(&l->k, 0, first + count), v = heads_rows(&l->v, 0, first + count);
    const kna_out_rows to = { out, 0, 0 };
    report->size = sizeof *report;
    const int status = kna_attend(r->setup->context, &to, NULL, report, &q, &k, &v, options);
    return status == KNA_OK ? CLI_OK : cli_status(r->setup->context, status);
}

static kna_attend_options options_of(const layer_run *r, int method, int64_t k)
{
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    options.method = method;
    options.scale = r->layer->scale;
    options.causal = 1;
    options.unchecked = 1;
    options.k_near = k;
    options.samples = k;
    options.seed = r->setup->seed;
    options.index = method == KNA_KNN ? r->index : NULL;
    return options;
}

static int append(const layer_run *r, int64_t first, int64_t count)
{
    const int status = kna_index_update(r->setup->context, r->index, &r->layer->k, &r->layer->v, first, count);
    return status == KNA_OK ? CLI_OK : cli_status(r->setup->context, status);
}

/* The index as it is when the late queries come. */
static int make_index(layer_run *r)
{
    const heads_layer *l = r->layer;
    const int64_t before = l->q.rows - r->setup->late;
    kna_report report;
    const int status = kna_index_new(r->setup->context, &r->index, KNA_KNN, l->k.heads, l->q.dim, l->v.dim);
    if (status != KNA_OK) return cli_status(r->setup->context, status);
    float *out = malloc((size_t)(l->q.heads * before) * (size_t)l->v.dim * sizeof *out + 1);
    int code = out ? append(r, 0, before) : cli_fail("out of memory: outputs of %lld queries", (long long)before);
    const kna_attend_options options = options_of(r, KNA_KNN, USUAL_K);
    if (code == CLI_OK && before > 0) code = attend(r, out, &report, 0, before, &options);
    free(out);
    return code == CLI_OK ? append(r, before, r->setup->late) : code;
}

/* Mean of the values that each late query sees. */
static void mean_values(const layer_run *r)
{
    const kna_rows *v = &r->layer->v;
    const int64_t late = r->setup->late, before = v->rows - late, g = r->layer->q.heads / v->heads;
    double sum[KNA_MAX_DIM];
    float row[KNA_MAX_DIM];
    for (int64_t head = 0; head < r->layer->q.heads; head++) {
        memset(sum, 0, sizeof sum);
        for (int64_t i = 0; i < v->rows; i++) {
            convert_load(row, v, head / g * v->rows + i);
            for (int64_t c = 0; c < v->dim; c++) sum[c] += (double)row[c];
            float *out = r->out + (head * late + i - before) * v->dim;
            for (int64_t c = 0; c < v->dim && i >= before; c++) out[c] = (float)(sum[c] / (double)(i + 1));
        }
    }
}

static int add_result(paper_table *table, const layer_run *r, const char *name, int64_t k, double keys)
{
    const int64_t dv = r->layer->v.dim;
    char series[PAPER_NAME];
    double above = 0;
    for (int64_t i = 0; i < r->rows; i++) {
        r->errors[i] = paper_distance(r->out + i * dv, r->exact + i * dv, dv);
        above += r->errors[i] > 0.05;
    }
    snprintf(series, sizeof series, "%s, layer %d", name, r->layer->number);
    paper_row *row = paper_add(table, series);
    if (!row) return CLI_FAILED;
    const double values[COLUMNS] = { r->layer->number, (double)k, keys, heads_mean(r->errors, r->rows), heads_p95(r->errors, r->rows),
                                     above / (double)r->rows };
    memcpy(row->values, values, sizeof values);
    row->is_hidden = 1;
    return CLI_OK;
}

static int add_null(paper_table *table, const layer_run *r, int is_mean, int64_t k)
{
    if (is_mean) mean_values(r);
    else memset(r->out, 0, (size_t)(r->rows * r->layer->v.dim) * sizeof *r->out);
    return add_result(table, r, is_mean ? "mean of values" : "zero", k, 0);
}

static int add_budget(paper_table *table, const layer_run *r, int64_t k)
{
    const int64_t first = r->layer->q.rows - r->setup->late;
    int code = CLI_OK;
    for (int is_mean = 0; is_mean < NULLS && code == CLI_OK; is_mean++) code = add_null(table, r, is_mean, k);
    for (int i = 0; i < CONTENDERS && code == CLI_OK; i++) {
        const contender *c = &contenders[i];
        kna_attend_options options = options_of(r, c->method, c->times * k);
        kna_report report;
        options.samples = k;
        code = attend(r, r->out, &report, first, r->setup->late, &options);
        if (code == CLI_OK) code = add_result(table, r, c->name, k, report.keys_full / (double)report.rows);
    }
    return code;
}

/* How many of the budgets there are; ascending. */
static int list_budgets(int64_t budgets[BUDGETS], double n)
{
    const double wanted[BUDGETS] = { pow(n, 0.125), 3, log(n), pow(n, 0.25), sqrt(n), 4 * sqrt(n), 16 * sqrt(n) };
    int count = 0;
    for (int i = 0; i < BUDGETS; i++) {
        const int64_t k = (int64_t)ceil(wanted[i]);
        int at = count;
        while (at > 0 && budgets[at - 1] > k) at--;
        if (k > (int64_t)n || (at > 0 && budgets[at - 1] == k)) continue;
        memmove(budgets + at + 1, budgets + at, (size_t)(count - at) * sizeof *budgets);
        budgets[at] = k;
        count++;
    }
    return count;
}

static int measure_layer(paper_table *table, const paper_setup *s, const heads_layer *layer)
{
    layer_run r = { .setup = s, .layer = layer, .rows = layer->q.heads * s->late };
    const size_t numbers = (size_t)(r.rows * layer->v.dim);
    int64_t budgets[BUDGETS];
    const int count = list_budgets(budgets, (double)layer->q.rows);
    kna_report report;
    r.exact = calloc(numbers, sizeof *r.exact), r.out = calloc(numbers, sizeof *r.out), r.errors = calloc((size_t)r.rows, sizeof *r.errors);
    int code = r.exact && r.out && r.errors ? CLI_OK : cli_fail("out of memory: %lld rows", (long long)r.rows);
    if (code == CLI_OK) code = make_index(&r);
    const kna_attend_options exact = options_of(&r, KNA_EXACT, 0);
    if (code == CLI_OK) code = attend(&r, r.exact, &report, layer->q.rows - s->late, s->late, &exact);
    for (int i = 0; i < count && code == CLI_OK; i++) code = add_budget(table, &r, budgets[i]);
    kna_index_free(r.index);
    free(r.exact), free(r.out), free(r.errors);
    return code;
}

/* Of what all layers have alike, the means. */
static int add_means(paper_table *table, int layers)
{
    const int each = layers ? table->count / layers : 0;
    for (int i = 0; i < each; i++) {
        char series[PAPER_NAME];
        snprintf(series, sizeof series, "%.*s, all layers", (int)(strstr(table->rows[i].series, ", layer") - table->rows[i].series),
                 table->rows[i].series);
        paper_row *row = paper_add(table, series);
        if (!row) return CLI_FAILED;
        for (int layer = 0; layer < layers; layer++) {
            for (int c = 0; c < COLUMNS; c++) row->values[c] += table->rows[layer * each + i].values[c] / layers;
        }
        row->values[0] = NAN;
    }
    return CLI_OK;
}

int paper_heads(paper_table *table, const paper_setup *s)
{
    int code = CLI_OK;
    for (int i = 0; s->dump && i < s->dump->count && code == CLI_OK; i++) {
        code = measure_layer(table, s, &s->dump->layers[i]);
        cli_progress_share((double)(i + 1) / s->dump->count);
    }
    return code == CLI_OK && s->dump ? add_means(table, s->dump->count) : code;
}
