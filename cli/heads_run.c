/*
 * heads_run.c - errors of `kna bench heads`, layer by layer.
 *
 * knn meets a text as a model would: an index reads all queries before the late ones, 512 at a time, and learns from them. Two
 * such indexes: one takes the late queries together (prefill), the other one by one (decode), each key appended when its query
 * comes, every k and every oracle by the same clusters.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "heads.h"

const char *const heads_names[HEADS_METHODS] = { "topk", "drop", "oracle", "knn own", "knn decode", "knn prefill" };
const double heads_eps[HEADS_EPS] = { 0.2, 0.1, 0.05, 0.02 };

/* Work on one layer. */
typedef struct run {
    heads_study *study;
    const heads_layer *layer;
    heads_result *result;
    heads_truth *truth;
    heads_row *rows; /* (h) of the query at hand */
    double *numbers; /* what they point to */
    double *exact;   /* (h, late, dv) */
    float *out;      /* (h, late, dv) */
} run;

/* ------------------------------------------------------------------ calls */

kna_rows heads_rows(const kna_rows *rows, int64_t first, int64_t count)
{
    const int64_t row_bytes = (int64_t)kna_type_row_bytes(rows->type, rows->dim);
    kna_rows some = *rows;
    some.data = (const char *)rows->data + first * row_bytes;
    some.rows = count;
    some.head_stride_bytes = rows->rows * row_bytes;
    some.row_stride_bytes = row_bytes;
    return some;
}

kna_attend_options heads_options(const heads_study *s, const heads_layer *layer, int method, int64_t k)
{
    const cli_method wanted = { .method = method, .k_near = k, .near_sinks = s->sinks, .near_window = s->window, .seed = s->seed };
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    cli_method_fill(&options, &wanted);
    options.scale = layer->scale;
    options.causal = 1;
    options.unchecked = 1;
    return options;
}

int heads_attend(const heads_study *s, const heads_layer *layer, float *out, kna_report *report, int64_t first, int64_t count,
                 const kna_attend_options *options)
{
    const kna_rows q = heads_rows(&layer->q, first, count);
    const kna_rows k = heads_rows(&layer->k, 0, first + count);
    const kna_rows v = heads_rows(&layer->v, 0, first + count);
    const kna_out_rows to = { out, 0, 0 };
    report->size = sizeof *report;
    const int status = kna_attend(s->context, &to, NULL, report, &q, &k, &v, options);
    return status == KNA_OK ? CLI_OK : cli_status(s->context, status);
}

/* One query, by query heads x, x + g, .. : each chooses its keys by itself. */
static int attend_own(const run *r, float *out, kna_report *report, int64_t query, int64_t x, const kna_attend_options *options)
{
    const kna_rows k = heads_rows(&r->layer->k, 0, query + 1);
    const kna_rows v = heads_rows(&r->layer->v, 0, query + 1);
    const kna_out_rows to = { out, 0, 0 };
    const int64_t g = r->layer->q.heads / r->layer->k.heads;
    kna_rows q = heads_rows(&r->layer->q, query, 1);
    q.data = (const char *)q.data + x * q.head_stride_bytes;
    q.heads = r->layer->k.heads;
    q.head_stride_bytes *= g;
    report->size = sizeof *report;
    const int status = kna_attend(r->study->context, &to, NULL, report, &q, &k, &v, options);
    return status == KNA_OK ? CLI_OK : cli_status(r->study->context, status);
}

static int append(const run *r, kna_index *index, int64_t first, int64_t count)
{
    const int status = kna_index_update(r->study->context, index, &r->layer->k, &r->layer->v, first, count);
    return status == KNA_OK ? CLI_OK : cli_status(r->study->context, status);
}

/* An index that has met all queries before the late ones. */
static int make_index(const run *r, kna_index **index, int64_t *before)
{
    const heads_layer *l = r->layer;
    kna_attend_options options = heads_options(r->study, l, KNA_KNN, HEADS_USUAL_K);
    kna_report report;
    *before = l->q.rows - r->study->late;
    const int status = kna_index_new(r->study->context, index, KNA_KNN, l->k.heads, l->q.dim, l->v.dim);
    if (status != KNA_OK) return cli_status(r->study->context, status);
    options.index = *index;
    int code = append(r, *index, 0, *before);
    float *out = malloc((size_t)(l->q.heads * *before) * (size_t)l->v.dim * sizeof *out + 1);
    if (!out) code = cli_fail("out of memory: outputs of %lld queries", (long long)*before);
    if (code == CLI_OK && *before > 0) code = heads_attend(r->study, l, out, &report, 0, *before, &options);
    free(out);
    return code;
}

/* ------------------------------------------------------------------ errors */

static double distance(const float *out, const double *exact, int64_t dv)
{
    double apart = 0;
    double size = 0;
    for (int64_t i = 0; i < dv; i++) {
        const double off = (double)out[i] - exact[i];
        apart += off * off;
        size += exact[i] * exact[i];
    }
    return size > 0 ? sqrt(apart / size) : sqrt(apart);
}

static const double *exact_of(const run *r, int64_t head, int64_t i)
{
    return r->exact + (head * r->study->late + i) * r->layer->v.dim;
}

/* All late queries at once. */
static void compare_all(const run *r, heads_cell *cell, const kna_report *report)
{
    const int64_t rows = heads_count_rows(r->study);
    for (int64_t row = 0; row < rows; row++)
        cell->error[row] = distance(r->out + row * r->layer->v.dim, r->exact + row * r->layer->v.dim, r->layer->v.dim);
    cell->touched = report->keys_touched;
    cell->estimated = report->error_est;
    cell->estimated_max = report->error_est_max;
    cell->audited = report->audited;
    cell->audit_mean = report->audit_mean;
    cell->audit_p95 = report->audit_p95;
}

/* Late query i of heads first, first + step, ..; reports are averaged over the queries, by their rows. */
static void compare_query(const run *r, heads_cell *cell, const kna_report *report, int64_t i, int64_t first, int64_t step)
{
    const int64_t h = r->layer->q.heads;
    const double share = (double)report->rows / (double)heads_count_rows(r->study);
    const double estimated = report->error_est < 0 ? 0 : report->error_est;
    for (int64_t head = first, at = 0; head < h; head += step, at++)
        cell->error[head * r->study->late + i] = distance(r->out + at * r->layer->v.dim, exact_of(r, head, i), r->layer->v.dim);
    cell->touched += share * report->keys_touched;
    cell->estimated += share * estimated;
    cell->estimated_max = fmax(cell->estimated_max, estimated);
    if (report->audited > 0) {
        cell->audit_mean = (cell->audit_mean * (double)cell->audited + report->audit_mean * (double)report->audited) /
                           (double)(cell->audited + report->audited);
        cell->audited += report->audited;
    }
}

/* ------------------------------------------------------------------ decode */

static int decode_own(const run *r, int ks, int64_t i, const kna_attend_options *options)
{
    const int64_t g = r->layer->q.heads / r->layer->k.heads;
    const int64_t query = r->layer->q.rows - r->study->late + i;
    kna_report report;
    int code = CLI_OK;
    for (int64_t x = 0; x < g && code == CLI_OK; x++) {
        code = attend_own(r, r->out, &report, query, x, options);
        if (code == CLI_OK) compare_query(r, &r->result->cells[HEADS_OWN][ks], &report, i, x, g);
    }
    return code;
}

static int decode_together(const run *r, heads_cell *cell, int64_t i, const kna_attend_options *options)
{
    kna_report report;
    const int code = heads_attend(r->study, r->layer, r->out, &report, r->layer->q.rows - r->study->late + i, 1, options);
    if (code == CLI_OK) compare_query(r, cell, &report, i, 0, 1);
    return code;
}

/* Truth comes last, when the index has formed what it forms for this query; so errors are looked at after it. */
static void keep_truth(const run *r, int64_t i)
{
    const heads_study *s = r->study;
    for (int64_t head = 0; head < r->layer->q.heads; head++) {
        const int64_t at = head * s->late + i;
        const heads_row *row = &r->rows[head];
        memcpy(r->exact + at * r->layer->v.dim, row->exact, (size_t)r->layer->v.dim * sizeof *row->exact);
        for (int x = 0; x < HEADS_TAILS; x++) r->result->tails[x * heads_count_rows(s) + at] = row->tails[x];
        for (int x = 0; x < s->k.count; x++) {
            r->result->cells[HEADS_DROP][x].error[at] = row->drop[x];
            r->result->cells[HEADS_ORACLE][x].error[at] = row->oracle[x];
            r->result->cells[HEADS_ORACLE][x].touched += row->oracle_read[x] / (double)heads_count_rows(s);
        }
    }
}

/* Keys in full of the oracle that drops the tail, over the keys seen. */
static double drop_read(const heads_study *s, int64_t seen, int64_t k)
{
    const double read = (double)(s->sinks + s->window + k);
    return read < (double)seen ? read / (double)seen : 1;
}

/* A first call brings the clusters up to date for this query. */
static int decode_query(const run *r, int64_t i)
{
    heads_study *s = r->study;
    const int64_t query = r->layer->q.rows - s->late + i;
    kna_attend_options options = heads_options(s, r->layer, KNA_KNN, HEADS_USUAL_K);
    kna_report report;
    options.index = r->result->indexes[0];
    int code = append(r, options.index, query, 1);
    if (code == CLI_OK) code = heads_attend(s, r->layer, r->out, &report, query, 1, &options);
    if (code == CLI_OK) code = heads_truth_see(r->truth, options.index, query + 1);
    if (code != CLI_OK) return code;
    heads_truth_rows(r->truth, r->rows, query + 1);
    keep_truth(r, i);
    for (int x = 0; x < s->k.count && code == CLI_OK; x++) {
        options.k_near = s->k.values[x];
        r->result->cells[HEADS_DROP][x].touched += drop_read(s, query + 1, options.k_near) / (double)s->late;
        code = decode_own(r, x, i, &options);
        if (code == CLI_OK) code = decode_together(r, &r->result->cells[HEADS_DECODE][x], i, &options);
    }
    options.k_near = 16;
    options.audit = (float)s->audit;
    options.seed = s->seed + (uint64_t)i;
    for (int x = 0; x < HEADS_EPS && code == CLI_OK; x++) {
        options.eps = (float)heads_eps[x];
        code = decode_together(r, &r->result->asked[0][x], i, &options);
    }
    return code;
}

static int run_decode(const run *r, double from, double to)
{
    const int64_t late = r->study->late;
    int64_t before = 0;
    int code = make_index(r, &r->result->indexes[0], &before);
    for (int64_t i = 0; i < late && code == CLI_OK; i++) {
        code = decode_query(r, i);
        cli_progress_share(from + (to - from) * (double)(i + 1) / (double)late);
    }
    return code;
}

/* ------------------------------------------------------------------ prefill */

static int run_prefill(const run *r)
{
    heads_study *s = r->study;
    kna_attend_options options = heads_options(s, r->layer, KNA_TOPK, HEADS_USUAL_K);
    kna_report report;
    int64_t before = 0;
    int code = make_index(r, &r->result->indexes[1], &before);
    for (int x = 0; x < s->k.count && code == CLI_OK; x++) {
        options.k_near = s->k.values[x];
        code = heads_attend(s, r->layer, r->out, &report, before, s->late, &options);
        if (code == CLI_OK) compare_all(r, &r->result->cells[HEADS_TOPK][x], &report);
    }
    options.method = KNA_KNN;
    options.index = r->result->indexes[1];
    options.audit = (float)s->audit;
    if (code == CLI_OK) code = append(r, options.index, before, s->late);
    for (int x = 0; x < s->k.count && code == CLI_OK; x++) {
        options.k_near = s->k.values[x];
        code = heads_attend(s, r->layer, r->out, &report, before, s->late, &options);
        if (code == CLI_OK) compare_all(r, &r->result->cells[HEADS_PREFILL][x], &report);
    }
    options.k_near = 16;
    for (int x = 0; x < HEADS_EPS && code == CLI_OK; x++) {
        options.eps = (float)heads_eps[x];
        code = heads_attend(s, r->layer, r->out, &report, before, s->late, &options);
        if (code == CLI_OK) compare_all(r, &r->result->asked[1][x], &report);
    }
    return code;
}

/* ------------------------------------------------------------------ a layer */

static int cell_new(heads_cell *cell, int64_t rows)
{
    cell->audit_mean = cell->audit_p95 = -1;
    cell->error = calloc((size_t)rows, sizeof *cell->error);
    return cell->error != NULL;
}

static int result_new(heads_result *result, const heads_study *s)
{
    const int64_t rows = heads_count_rows(s);
    result->tails = calloc((size_t)(HEADS_TAILS * rows), sizeof *result->tails);
    int good = result->tails != NULL;
    for (int method = 0; method < HEADS_METHODS; method++)
        for (int x = 0; x < s->k.count; x++) good = good && cell_new(&result->cells[method][x], rows);
    for (int way = 0; way < HEADS_WAYS; way++)
        for (int x = 0; x < HEADS_EPS; x++) good = good && cell_new(&result->asked[way][x], rows);
    return good ? CLI_OK : cli_fail("out of memory: results");
}

static void result_free(heads_result *result)
{
    for (int method = 0; method < HEADS_METHODS; method++)
        for (int x = 0; x < CLI_LIST_MAX; x++) free(result->cells[method][x].error);
    for (int way = 0; way < HEADS_WAYS; way++) {
        for (int x = 0; x < HEADS_EPS; x++) free(result->asked[way][x].error);
        kna_index_free(result->indexes[way]);
    }
    kna_index_free(result->nearest);
    free(result->tails);
}

static int buffers_new(run *r)
{
    const int64_t h = r->layer->q.heads;
    const int64_t dv = r->layer->v.dim;
    const int64_t ks = r->study->k.count;
    const int64_t each = dv + 3 * ks;
    r->rows = calloc((size_t)h, sizeof *r->rows);
    r->numbers = calloc((size_t)(h * each), sizeof *r->numbers);
    r->exact = calloc((size_t)(heads_count_rows(r->study) * dv), sizeof *r->exact);
    r->out = calloc((size_t)(heads_count_rows(r->study) * dv), sizeof *r->out);
    if (!r->rows || !r->numbers || !r->exact || !r->out) return cli_fail("out of memory: outputs");
    for (int64_t head = 0; head < h; head++) {
        double *at = r->numbers + head * each;
        r->rows[head].exact = at;
        r->rows[head].drop = at + dv;
        r->rows[head].oracle = at + dv + ks;
        r->rows[head].oracle_read = at + dv + 2 * ks;
    }
    return CLI_OK;
}

static int measure_layer(heads_study *s, int at)
{
    run r = { .study = s, .layer = &s->set->layers[at], .result = &s->results[at] };
    const heads_near near = { s->sinks, s->window, &s->k };
    const double layers = (double)s->set->count;
    int code = buffers_new(&r);
    if (code == CLI_OK) code = result_new(r.result, s);
    if (code == CLI_OK) code = heads_truth_new(&r.truth, s->context, r.layer, &near);
    if (code == CLI_OK) code = run_decode(&r, at / layers, (at + 0.8) / layers);
    if (code == CLI_OK) code = run_prefill(&r);
    heads_truth_free(r.truth);
    free(r.rows);
    free(r.numbers);
    free(r.exact);
    free(r.out);
    return code;
}

int heads_measure(heads_study *study)
{
    int code = CLI_OK;
    study->results = calloc((size_t)study->set->count, sizeof *study->results);
    if (!study->results) return cli_fail("out of memory: results");
    for (int i = 0; i < study->set->count && code == CLI_OK; i++) code = measure_layer(study, i);
    return code;
}

void heads_study_free(heads_study *study)
{
    for (int i = 0; study->results && i < study->set->count; i++) result_free(&study->results[i]);
    free(study->results);
}
