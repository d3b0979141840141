/*
 * fairness_measure.c - masses of groups, what of them is read in full, and errors, by the output of attention itself.
 *
 * Attention is linear in the values, so the softmax mass of a group is what comes out where its keys have one and others zero. Such
 * columns are put beside the values, too small to matter where clusters are formed of them: every method then says itself what it
 * gives to each group.
 *
 * What is read in full: of a method that drops all else (topk, window) its own masses, times its sum of weights over that of full
 * attention. Those that sample read the keys that topk reads, and some others by chance, which are not counted. knn is called with an
 * index that was formed while these columns were zero: means of clusters then add nothing to them, keys read in full do.
 */
#include "convert.h"
#include "fairness.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct run {
    const fair_groups *g;
    const fair_plan *plan;
    kna_context *context;
    kna_rows q, k;
    int64_t dv, rows, columns;
    kna_attend_options meaning;
    kna_rows all; /* queries, and what attention means for them: q may be some of them */
    kna_attend_options meaning_of_all;
    float *values, *plain; /* (h_kv, n, dv + groups); plain: the columns of groups are zero */
    float size;            /* of a one */
    double length;         /* of values, their root mean square */
    float *exact, *out;    /* (h, m, dv + groups) */
    float *exact_lse, *lse;
} run;

/* Of queries and the mask only some; each stays where it stands. */
static void slice(kna_rows *q, kna_attend_options *options, int64_t n, int64_t first, int64_t count)
{
    const int64_t row_bytes = (int64_t)kna_type_row_bytes(q->type, q->dim);
    kna_mask *mask = &options->mask;
    options->causal_shift += first + count - q->rows;
    if (mask->data) {
        mask->row_stride_bytes = n * (mask->type == KNA_F16 ? 2 : 4);
        if (!mask->head_stride_bytes) mask->head_stride_bytes = q->rows * mask->row_stride_bytes;
        mask->data = (const char *)mask->data + first * mask->row_stride_bytes;
    }
    if (!q->head_stride_bytes) q->head_stride_bytes = q->rows * row_bytes;
    q->data = (const char *)q->data + first * row_bytes;
    q->rows = count;
}

/* ------------------------------------------------------------------ operands with columns */

static void fill_values(run *x, const kna_rows *v)
{
    double square = 0;
    for (int64_t row = 0; row < v->heads * v->rows; row++) {
        float *to = x->values + row * x->columns;
        convert_load(to, v, row);
        for (int64_t c = 0; c < v->dim; c++) square += (double)to[c] * (double)to[c];
        memcpy(x->plain + row * x->columns, to, (size_t)v->dim * sizeof *to);
    }
    x->length = sqrt(square / (double)(v->heads * v->rows));
    x->size = (float)exp2(floor(log2(x->length / sqrt((double)v->dim) + 1e-30)) - 6); /* a power of two */
    for (int64_t row = 0; row < v->heads * v->rows; row++) x->values[row * x->columns + v->dim + x->g->of[row % v->rows]] = x->size;
}

static int run_new(run *x, const fair_layer *layer)
{
    const kna_rows *v = &layer->v;
    x->q = layer->q;
    x->k = layer->k;
    x->dv = v->dim;
    x->columns = v->dim + x->g->count;
    x->meaning = x->plan->meaning;
    if (x->meaning.scale == 0) x->meaning.scale = layer->scale;
    x->all = x->q;
    x->meaning_of_all = x->meaning;
    if (x->plan->late && x->plan->late < x->q.rows) slice(&x->q, &x->meaning, x->k.rows, x->q.rows - x->plan->late, x->plan->late);
    x->rows = x->q.heads * x->q.rows;
    if (x->columns > KNA_MAX_DIM) return cli_refuse("fairness: dv = %" PRId64 " and %d groups are above %d", v->dim, x->g->count, KNA_MAX_DIM);
    const size_t bytes = (size_t)x->columns * sizeof(float);
    x->values = calloc((size_t)(v->heads * v->rows) + 1, bytes);
    x->plain = calloc((size_t)(v->heads * v->rows) + 1, bytes);
    x->exact = calloc((size_t)x->rows + 1, bytes);
    x->out = calloc((size_t)x->rows + 1, bytes);
    x->exact_lse = calloc((size_t)x->rows + 1, sizeof(float));
    x->lse = calloc((size_t)x->rows + 1, sizeof(float));
    if (!x->values || !x->plain || !x->exact || !x->out || !x->exact_lse || !x->lse) return cli_fail("out of memory: %" PRId64 " rows", x->rows);
    fill_values(x, v);
    return CLI_OK;
}

static void run_free(run *x)
{
    float *const arrays[] = { x->values, x->plain, x->exact, x->out, x->exact_lse, x->lse };
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) free(arrays[i]);
}

static kna_rows values_of(const run *x, const float *values)
{
    return (kna_rows){ values, KNA_F32, x->k.heads, x->k.rows, x->columns, 0, 0, NULL };
}

static int explain(const run *x, int status)
{
    return status == KNA_OK ? CLI_OK : x->plan->explain(x->context, status, x->plan->user);
}

/* has_tail: what is not in the head may be stood for. */
static int attend_with(const run *x, int method, int has_tail, float *out, float *lse)
{
    kna_attend_options options = x->meaning;
    const kna_rows v = values_of(x, x->values);
    const kna_out_rows to = { out, 0, 0 };
    cli_method_fill(&options, x->plan->method);
    options.method = method;
    choice_fill_for(&options, method, x->plan->choice, x->g->of, x->g->count);
    if (!has_tail) options.tail = KNA_TAIL_DROP;
    return explain(x, kna_attend(x->context, &to, lse, NULL, &x->q, &x->k, &v, &options));
}

static int attend(const run *x, int method, float *out, float *lse)
{
    return attend_with(x, method, 1, out, lse);
}

/* ------------------------------------------------------------------ knn */

/* knn learns from queries and forms clusters as they come: all of them go through it, in the blocks that one call would take, and with
 * an index that goes from block to block. Of each block those rows are kept that are asked for. */
enum { BLOCK = 512 };

typedef struct block {
    int64_t first, count;
    float *out, *lse; /* (h, count, dv + groups), (h, count) */
} block;

static int attend_block(const run *x, const block *b, kna_index *index, const float *values)
{
    kna_attend_options options = x->meaning_of_all;
    kna_rows q = x->all, v = values_of(x, values);
    const kna_out_rows to = { b->out, 0, 0 };
    cli_method_fill(&options, x->plan->method);
    options.method = KNA_KNN;
    choice_fill_for(&options, KNA_KNN, x->plan->choice, x->g->of, x->g->count);
    options.audit = 0;
    options.index = index;
    slice(&q, &options, x->k.rows, b->first, b->count);
    return explain(x, kna_attend(x->context, &to, b->lse, NULL, &q, &x->k, &v, &options));
}

static void keep_block(const run *x, const block *b)
{
    const int64_t skipped = x->all.rows - x->q.rows;
    for (int64_t row = 0; row < x->q.heads * b->count; row++) {
        const int64_t at = b->first + row % b->count - skipped, to = row / b->count * x->q.rows + at;
        if (at < 0) continue;
        memcpy(x->out + to * x->columns, b->out + row * x->columns, (size_t)x->columns * sizeof *b->out);
        x->lse[to] = b->lse[row];
    }
}

/* Into out and lse. heads_only: each block of queries twice, first while columns are zero, which forms clusters, then with columns. */
static int attend_knn(const run *x, int heads_only)
{
    const kna_rows v = values_of(x, heads_only ? x->plain : x->values);
    block b = { .first = 0 };
    kna_index *index = NULL;
    int code = explain(x, kna_index_new(x->context, &index, KNA_KNN, x->k.heads, x->k.dim, x->columns));
    if (code == CLI_OK) code = explain(x, kna_index_update(x->context, index, &x->k, &v, 0, x->k.rows));
    b.out = malloc((size_t)(x->q.heads * BLOCK * x->columns) * sizeof *b.out);
    b.lse = malloc((size_t)(x->q.heads * BLOCK) * sizeof *b.lse);
    if (code == CLI_OK && (!b.out || !b.lse)) code = cli_fail("out of memory: %" PRId64 " rows", x->q.heads * BLOCK);
    for (; b.first < x->all.rows && code == CLI_OK; b.first += BLOCK) {
        b.count = x->all.rows - b.first < BLOCK ? x->all.rows - b.first : BLOCK;
        if (heads_only) code = attend_block(x, &b, index, x->plain);
        if (code == CLI_OK) code = attend_block(x, &b, index, x->values);
        if (code == CLI_OK) keep_block(x, &b);
    }
    free(b.out);
    free(b.lse);
    kna_index_free(index);
    return code;
}

/* ------------------------------------------------------------------ sums */

static double column(const run *x, const float *out, int64_t row, int group)
{
    return (double)out[row * x->columns + x->dv + group] / (double)x->size;
}

static void add_masses(fair_sums *sums, const run *x, const float *out)
{
    sums->rows += (double)x->rows;
    for (int64_t row = 0; row < x->rows; row++)
        for (int i = 0; i < x->g->count; i++) sums->mass[i] += column(x, out, row, i);
}

/* The masses that came out are shares of what the method's weights add up to: as shares of full attention's. */
static void add_heads(fair_sums *sums, const run *x)
{
    sums->has_head = 1;
    for (int64_t row = 0; row < x->rows; row++) {
        const double share = isfinite(x->exact_lse[row]) ? exp((double)x->lse[row] - (double)x->exact_lse[row]) : 0;
        for (int i = 0; i < x->g->count; i++) sums->head[i] += share * column(x, x->out, row, i);
    }
}

static double distance(const run *x, int64_t row)
{
    const float *out = x->out + row * x->columns, *exact = x->exact + row * x->columns;
    double off = 0;
    for (int64_t c = 0; c < x->dv; c++) off += ((double)out[c] - (double)exact[c]) * ((double)out[c] - (double)exact[c]);
    return sqrt(off) / (x->length > 0 ? x->length : 1);
}

static void add_errors(fair_sums *sums, const run *x)
{
    for (int64_t row = 0; row < x->rows; row++) {
        const int64_t position = x->k.rows - x->q.rows + row % x->q.rows + x->meaning.causal_shift;
        if (position < 0 || position >= x->k.rows) continue;
        sums->error[x->g->of[position]] += distance(x, row);
        sums->queries[x->g->of[position]]++;
    }
}

/* ------------------------------------------------------------------ methods */

static int drops_the_rest(const run *x, int method)
{
    return (method == KNA_TOPK && !x->plan->choice->tail) || method == KNA_WINDOW;
}

/* Also the mean that may stand for it: the head is that of topk. */
static int estimates_the_rest(const run *x, int method)
{
    return (method == KNA_TOPK && x->plan->choice->tail) || method == KNA_UNIFORM || method == KNA_GUMBEL || method == KNA_REJECTION || method == KNA_MOM;
}

/* topk: what it reads in full of this layer, once it is known. */
static int run_method(fair_sums *sums, run *x, int method, fair_sums *topk)
{
    int code = method == KNA_KNN ? attend_knn(x, 0) : attend(x, method, x->out, x->lse);
    if (code != CLI_OK) return code;
    add_masses(sums, x, x->out);
    add_errors(sums, x);
    if (method == KNA_KNN) code = attend_knn(x, 1);
    if (code == CLI_OK && (method == KNA_KNN || drops_the_rest(x, method))) add_heads(sums, x);
    if (method == KNA_TOPK && sums->has_head) *topk = *sums;
    if (!estimates_the_rest(x, method)) return code;
    if (!topk->has_head) {
        code = attend_with(x, KNA_TOPK, 0, x->out, x->lse);
        if (code == CLI_OK) add_heads(topk, x);
    }
    memcpy(sums->head, topk->head, sizeof sums->head);
    sums->has_head = topk->has_head;
    return code;
}

static int run_layer(fair_layer_sums *to, const fair_result *result, run *x)
{
    fair_sums topk = { .has_head = 0 };
    int code = attend(x, KNA_EXACT, x->exact, x->exact_lse);
    if (code == CLI_OK) add_masses(&to->full, x, x->exact);
    for (int i = 0; i < result->method_count && code == CLI_OK; i++) code = run_method(&to->method[i], x, result->methods[i], &topk);
    return code;
}

static void add_sums(fair_sums *to, const fair_sums *from)
{
    to->rows += from->rows;
    to->has_head = from->has_head;
    for (int i = 0; i < FAIR_GROUPS; i++) {
        to->queries[i] += from->queries[i];
        to->mass[i] += from->mass[i];
        to->head[i] += from->head[i];
        to->error[i] += from->error[i];
    }
}

int fair_measure(fair_result *result, kna_context *context, const fair_set *set, const fair_plan *plan)
{
    int code = CLI_OK;
    result->layers = calloc((size_t)set->count + 1, sizeof *result->layers);
    if (!result->layers) return cli_fail("out of memory: %d layers", set->count);
    cli_progress_start("attention");
    for (int i = 0; i < set->count && code == CLI_OK; i++) {
        run x = { .g = result->groups, .plan = plan, .context = context };
        fair_layer_sums *sums = &result->layers[result->layer_count++];
        sums->number = set->layers[i].number;
        code = run_new(&x, &set->layers[i]);
        if (code == CLI_OK) code = run_layer(sums, result, &x);
        add_sums(&result->all.full, &sums->full);
        for (int m = 0; m < result->method_count; m++) add_sums(&result->all.method[m], &sums->method[m]);
        result->queries = x.q.rows;
        run_free(&x);
        cli_progress_share((double)(i + 1) / set->count);
    }
    cli_progress_end();
    return code;
}

void fair_result_free(fair_result *result)
{
    free(result->layers);
}
