/*
 * bench_run.c - contenders take turns: round 1 of each, round 2 of each, and so on, so that a machine that changes its speed
 * changes it for all. Each is called once before the rounds (memory is touched) and once after (for its report and its error).
 *
 * Invariant: nothing is allocated or converted by this file while a clock runs.
 */
#include "bench_run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "naive.h"

#define LEAST_K     16
#define NAIVE_FLOPS 2e8 /* of one measurement of naive attention; above, evenly spread queries stand for all */

const char *const bench_names[BENCH_CONTENDERS + 1] = { "naive", "exact", "topk", "knn", NULL };

typedef struct bench {
    kna_context *context;
    const bench_plan *plan;
    bench_layer *layers;
    kna_index **indexes[BENCH_CONTENDERS];     /* of topk and knn: per layer, if kept */
    double index_build_s[BENCH_CONTENDERS];    /* median over the layers, if kept */
    float *k_plain, *v_plain; /* of layer 0 as float32, for naive */
    int64_t naive_step;
    float *out, *exact_out; /* of layer 0 */
    double *times[BENCH_CONTENDERS];
    int64_t k[BENCH_CONTENDERS]; /* nearest keys read */
} bench;

/* ------------------------------------------------------------------ sizes */

/* Keys that queries first, first + step, .. of one head see. */
static double keys_seen(const bench_plan *plan, int64_t first, int64_t step)
{
    const bench_shape *s = &plan->shape;
    double seen = 0;
    for (int64_t i = first; i < s->m; i += step) seen += (double)(plan->causal ? s->n - s->m + i + 1 : s->n);
    return seen;
}

double bench_flops(const bench_plan *plan)
{
    return 4.0 * (double)plan->shape.h * (double)plan->shape.d * keys_seen(plan, 0, 1);
}

double bench_kv_bytes(const bench_plan *plan)
{
    const bench_shape *s = &plan->shape;
    const double row_bytes = (double)kna_type_row_bytes(s->type, s->d) + (s->type == KNA_I8 ? sizeof(float) : 0.0);
    return 2.0 * (double)s->h_kv * (double)s->n * row_bytes;
}

/* ------------------------------------------------------------------ set up */

static int call_library(const bench *b, int who, int64_t layer, float *out, kna_report *report);

/* An index of all rows, as it is in the middle of a text: knn's has met queries, which is what forms its clusters. */
static int make_index(bench *b, int who, int64_t layer, double *time_s)
{
    const bench_shape *s = &b->plan->shape;
    const bench_layer *l = &b->layers[layer];
    kna_index **index = &b->indexes[who][layer];
    kna_report report = { 0 };
    const double start_s = cli_now_s();
    int status = kna_index_new(b->context, index, who == BENCH_TOPK ? KNA_TOPK : KNA_KNN, s->h_kv, s->d, s->d);
    if (status == KNA_OK) status = kna_index_update(b->context, *index, &l->k.rows, &l->v.rows, 0, s->n);
    *time_s = cli_now_s() - start_s;
    if (status != KNA_OK) return cli_status(b->context, status);
    report.size = sizeof report;
    const int code = call_library(b, who, layer, b->out, &report);
    *time_s += report.build_s;
    return code;
}

static int make_indexes(bench *b, int who)
{
    const size_t layers = (size_t)b->plan->layers;
    int code = CLI_OK;
    double *times = calloc(layers, sizeof *times);
    b->indexes[who] = calloc(layers, sizeof *b->indexes[who]);
    if (!times || !b->indexes[who]) code = cli_fail("out of memory");
    for (size_t i = 0; i < layers && code == CLI_OK; i++) code = make_index(b, who, (int64_t)i, &times[i]);
    if (code == CLI_OK) b->index_build_s[who] = cli_median(times, (int)layers);
    free(times);
    return code;
}

static float *plain(const kna_rows *rows)
{
    const int64_t count = rows->heads * rows->rows;
    float *to = malloc((size_t)count * (size_t)rows->dim * sizeof *to);
    for (int64_t row = 0; to && row < count; row++) convert_load(to + row * rows->dim, rows, row);
    return to;
}

static int make_naive(bench *b)
{
    b->k_plain = plain(&b->layers[0].k.rows);
    b->v_plain = plain(&b->layers[0].v.rows);
    if (!b->k_plain || !b->v_plain) return cli_fail("out of memory: float32 keys and values for naive attention");
    b->naive_step = 1 + (int64_t)(bench_flops(b->plan) / NAIVE_FLOPS);
    if (b->naive_step > b->plan->shape.m) b->naive_step = b->plan->shape.m;
    return CLI_OK;
}

static int make_buffers(bench *b)
{
    const bench_shape *s = &b->plan->shape;
    const size_t numbers = (size_t)(s->h * s->m) * (size_t)s->d;
    int good = 1;
    b->layers = calloc((size_t)b->plan->layers, sizeof *b->layers);
    b->out = calloc(numbers, sizeof *b->out);
    b->exact_out = calloc(numbers, sizeof *b->exact_out);
    for (int i = 0; i < BENCH_CONTENDERS; i++) {
        b->times[i] = calloc((size_t)b->plan->rounds, sizeof *b->times[i]);
        good = good && b->times[i];
    }
    return good && b->layers && b->out && b->exact_out ? CLI_OK : cli_fail("out of memory");
}

static int set_up(bench *b)
{
    const bench_plan *plan = b->plan;
    int code = make_buffers(b);
    for (int64_t i = 0; i < plan->layers && code == CLI_OK; i++)
        code = bench_layer_new(b->context, &b->layers[i], &plan->shape, plan->method.seed, i);
    for (int who = BENCH_TOPK; who <= BENCH_KNN && plan->keeps_index && code == CLI_OK; who++)
        if (plan->enabled[who]) code = make_indexes(b, who);
    if (code == CLI_OK && plan->enabled[BENCH_NAIVE]) code = make_naive(b);
    return code;
}

static void tear_down(bench *b)
{
    for (int who = 0; who < BENCH_CONTENDERS; who++) {
        for (int64_t i = 0; b->indexes[who] && i < b->plan->layers; i++) kna_index_free(b->indexes[who][i]);
        free(b->indexes[who]);
    }
    for (int64_t i = 0; b->layers && i < b->plan->layers; i++) bench_layer_free(&b->layers[i]);
    for (int i = 0; i < BENCH_CONTENDERS; i++) free(b->times[i]);
    free(b->layers);
    free(b->k_plain);
    free(b->v_plain);
    free(b->out);
    free(b->exact_out);
}

/* ------------------------------------------------------------------ calls */

static int call_naive(const bench *b, float *out)
{
    const bench_shape *s = &b->plan->shape;
    const naive_call call = { b->layers[0].q,
                              b->k_plain,
                              b->v_plain,
                              out,
                              s->h,
                              s->h_kv,
                              s->m,
                              s->n,
                              s->d,
                              b->plan->causal,
                              b->naive_step / 2,
                              b->naive_step,
                              kna_context_threads(b->context) };
    return naive_attend(&call);
}

static int append_last(const bench *b, int who, int64_t layer)
{
    const bench_layer *l = &b->layers[layer];
    return kna_index_update(b->context, b->indexes[who][layer], &l->k.rows, &l->v.rows, b->plan->shape.n - 1, 1);
}

static int call_library(const bench *b, int who, int64_t layer, float *out, kna_report *report)
{
    const bench_layer *l = &b->layers[layer];
    const kna_out_rows rows = { out, 0, 0 };
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    int status = KNA_OK;
    cli_method_fill(&options, &b->plan->method);
    options.k_near = b->k[who];
    options.method = who == BENCH_EXACT ? KNA_EXACT : who == BENCH_TOPK ? KNA_TOPK : KNA_KNN;
    options.causal = b->plan->causal;
    options.unchecked = 1; /* as in a model, which does not look for NaN either */
    if (b->indexes[who]) {
        options.index = b->indexes[who][layer];
        status = append_last(b, who, layer);
    }
    if (status == KNA_OK) status = kna_attend(b->context, &rows, NULL, report, &l->q_rows, &l->k.rows, &l->v.rows, &options);
    return status == KNA_OK ? CLI_OK : cli_status(b->context, status);
}

/* One measurement: naive on its sample of layer 0, the others on all layers. *time_s is scaled to one whole call. */
static int measure(const bench *b, int who, double *time_s)
{
    const bench_plan *plan = b->plan;
    const double start_s = cli_now_s();
    int code = CLI_OK;
    if (who == BENCH_NAIVE) {
        code = call_naive(b, b->out);
        *time_s = (cli_now_s() - start_s) * keys_seen(plan, 0, 1) / keys_seen(plan, b->naive_step / 2, b->naive_step);
        return code;
    }
    for (int64_t layer = 0; layer < plan->layers && code == CLI_OK; layer++) code = call_library(b, who, layer, b->out, NULL);
    *time_s = (cli_now_s() - start_s) / (double)plan->layers;
    return code;
}

static int run_rounds(bench *b)
{
    const bench_plan *plan = b->plan;
    int code = CLI_OK;
    double unused_s = 0;
    for (int who = 0; who < BENCH_CONTENDERS && code == CLI_OK; who++)
        if (plan->enabled[who]) code = measure(b, who, &unused_s);
    for (int64_t round = 0; round < plan->rounds && code == CLI_OK; round++) {
        for (int who = 0; who < BENCH_CONTENDERS && code == CLI_OK; who++)
            if (plan->enabled[who]) code = measure(b, who, &b->times[who][round]);
        const double done = (double)(round + 1) / (double)plan->rounds;
        cli_progress_share(plan->progress_from + done * (plan->progress_to - plan->progress_from));
    }
    return code;
}

/* ------------------------------------------------------------------ errors */

static double distance(const float *a, const float *b, int64_t d)
{
    double apart = 0;
    double size = 0;
    for (int64_t i = 0; i < d; i++) {
        apart += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (double)b[i] * b[i];
    }
    return size > 0 ? sqrt(apart / size) : 0;
}

/* Over queries first, first + step, .. of every head. */
static double mean_distance(const bench *b, int64_t first, int64_t step)
{
    const bench_shape *s = &b->plan->shape;
    double sum = 0;
    int64_t rows = 0;
    for (int64_t head = 0; head < s->h; head++) {
        for (int64_t query = first; query < s->m; query += step, rows++) {
            const int64_t at = (head * s->m + query) * s->d;
            sum += distance(b->out + at, b->exact_out + at, s->d);
        }
    }
    return sum / (double)rows;
}

/* A call on the first layer for its report and its error; NaN: there is nothing to compare with. */
static int find_error(const bench *b, int who, kna_report *report, double *error)
{
    const int is_naive = who == BENCH_NAIVE;
    memset(report, 0, sizeof *report);
    if (!is_naive) report->size = sizeof *report;
    const int code = is_naive ? call_naive(b, b->out) : call_library(b, who, 0, b->out, report);
    *error = (double)NAN;
    if (b->plan->enabled[BENCH_EXACT])
        *error = is_naive ? mean_distance(b, b->naive_step / 2, b->naive_step) : mean_distance(b, 0, 1);
    else if (!is_naive && report->audited > 0)
        *error = report->audit_mean;
    return code;
}

/* Steps of a half and a third, up to all keys: of two neighbouring ones the larger reads at most 1.5 times as many. */
static int64_t next_k(int64_t k)
{
    return (k & (k - 1)) == 0 ? k + k / 2 : k / 3 * 4;
}

/* The least k with which the error is at most the plan's. */
static int find_k(bench *b, int who)
{
    double error = INFINITY;
    kna_report unused;
    int code = CLI_OK;
    b->k[who] = LEAST_K;
    while (code == CLI_OK) {
        code = find_error(b, who, &unused, &error);
        if (code == CLI_OK && isnan(error)) return cli_fail("--error: --audit drew none of the rows");
        if (error <= b->plan->error || b->k[who] >= b->plan->shape.n) break;
        b->k[who] = next_k(b->k[who]);
    }
    return code;
}

static int find_ks(bench *b)
{
    int code = CLI_OK;
    if (b->plan->enabled[BENCH_EXACT]) code = call_library(b, BENCH_EXACT, 0, b->exact_out, NULL);
    for (int who = BENCH_TOPK; who <= BENCH_KNN && b->plan->error > 0 && code == CLI_OK; who++)
        if (b->plan->enabled[who]) code = find_k(b, who);
    return code;
}

/* ------------------------------------------------------------------ results */

static int look_at(const bench *b, int who, bench_result *r)
{
    const bench_plan *plan = b->plan;
    const int code = find_error(b, who, &r->report, &r->error);
    if (code != CLI_OK) return code;
    r->k = b->k[who];
    r->build_s = b->indexes[who] ? b->index_build_s[who] : r->report.build_s;
    if (who < BENCH_TOPK) r->build_s = (double)NAN;
    r->median_s = cli_median(b->times[who], (int)plan->rounds); /* sorts */
    r->low_s = b->times[who][0];
    r->high_s = b->times[who][plan->rounds - 1];
    return CLI_OK;
}

static int collect(const bench *b, bench_result results[BENCH_CONTENDERS])
{
    int code = CLI_OK;
    for (int who = 0; who < BENCH_CONTENDERS && code == CLI_OK; who++)
        if (b->plan->enabled[who]) code = look_at(b, who, &results[who]);
    return code;
}

int bench_measure(kna_context *context, const bench_plan *plan, bench_result results[BENCH_CONTENDERS])
{
    bench b = { .context = context, .plan = plan };
    for (int who = 0; who < BENCH_CONTENDERS; who++) b.k[who] = plan->method.k_near;
    int code = set_up(&b);
    if (code == CLI_OK) code = find_ks(&b);
    if (code == CLI_OK) code = run_rounds(&b);
    if (code == CLI_OK) code = collect(&b, results);
    tear_down(&b);
    return code;
}
