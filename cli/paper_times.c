/*
 * paper_times.c - time and memory against n, forward and backward, of causal attention by each method with k = sqrt n. Indexes are built in
 * every call. What takes less than a second is called twice, and the second call counts. A call that would take longer than the budget,
 * its time growing from the size before as n^2, is not made, and the table says so.
 */
#include "paper.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N, SECONDS, POWER, PEAK, INDEX, SCRATCH, COLUMNS };

static const int methods[] = { KNA_EXACT, KNA_TOPK, KNA_KNN, KNA_UNIFORM, KNA_GUMBEL, KNA_WINDOW, KNA_PERFORMER };
enum { METHODS = sizeof methods / sizeof methods[0], WAYS = 2 /* forward, backward */ };

static const double mebi = 1048576;

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

/* ------------------------------------------------------------------ one call */

/* A method at one size. */
typedef struct timing {
    double seconds[WAYS];                       /* the last call; NaN: none was made */
    double peak_bytes[WAYS], index_bytes, scratch_bytes; /* peak: beside the operands */
    int has_gradients;
} timing;

typedef struct caller {
    const paper_setup *setup;
    const operands *o;
    int64_t n;
    kna_attend_options options;
} caller;

static int call(const caller *c, int way, kna_report *report)
{
    const operands *o = c->o;
    const int64_t h = c->setup->heads, d = c->setup->dim;
    const kna_rows q = { o->q, KNA_F32, h, c->n, d, 0, 0, NULL }, k = { o->k, KNA_F32, h, c->n, d, 0, 0, NULL };
    const kna_rows v = { o->v, KNA_F32, h, c->n, d, 0, 0, NULL }, dout = { o->dout, KNA_F32, h, c->n, d, 0, 0, NULL };
    const kna_rows out = { o->out, KNA_F32, h, c->n, d, 0, 0, NULL };
    const kna_out_rows to = { o->out, 0, 0 };
    const kna_gradients gradients = { { o->dq, 0, 0 }, { o->dk, 0, 0 }, { o->dv, 0, 0 }, NULL, NULL, NULL };
    if (way == 0) return kna_attend(c->setup->context, &to, o->lse, report, &q, &k, &v, &c->options);
    return kna_attend_backward(c->setup->context, &gradients, &dout, &out, o->lse, &q, &k, &v, &c->options);
}

static int time_call(const caller *c, int way, timing *t)
{
    kna_memory before, after;
    for (int round = 0; round < 2 && !(t->seconds[way] >= 1); round++) {
        kna_report report = { .size = sizeof report };
        kna_context_trim(c->setup->context);
        kna_context_memory(c->setup->context, &before);
        kna_context_reset_peak(c->setup->context);
        const double start = cli_now_s();
        const int status = call(c, way, &report);
        if (status == KNA_EINVAL && way == 1) {
            t->has_gradients = 0;
            return CLI_OK;
        }
        if (status != KNA_OK) return cli_status(c->setup->context, status);
        t->seconds[way] = cli_now_s() - start;
        kna_context_memory(c->setup->context, &after);
        t->peak_bytes[way] = (double)(after.peak_bytes - before.now_bytes);
        if (way == 0) t->index_bytes = (double)report.index_bytes, t->scratch_bytes = (double)report.scratch_bytes;
    }
    return CLI_OK;
}

static const timing not_timed = { { NAN, NAN }, { NAN, NAN }, NAN, NAN, 1 };

/* `last`: at last_n keys. Where the forward call is not made there is no backward one. */
static int time_method(timing *t, const caller *c, const timing *last, int64_t last_n)
{
    const double grows = last_n ? pow((double)c->n / (double)last_n, 2) : 0;
    int code = CLI_OK;
    *t = not_timed;
    t->has_gradients = last->has_gradients;
    for (int way = 0; way < WAYS && code == CLI_OK; way++) {
        const int is_known = !last_n || last->seconds[way] * grows <= c->setup->budget_s;
        if (!is_known || (way == 1 && (isnan(t->seconds[0]) || !t->has_gradients))) break;
        code = time_call(c, way, t);
    }
    return code;
}

/* ------------------------------------------------------------------ the table */

static int add_timing(paper_table *table, const timing *t, int64_t n, int method)
{
    for (int way = 0; way < WAYS; way++) {
        char series[PAPER_NAME];
        if (way == 1 && !t->has_gradients) continue;
        snprintf(series, sizeof series, "%s%s", kna_method_name(method), way ? ", backward" : "");
        paper_row *row = paper_add(table, series);
        if (!row) return CLI_FAILED;
        const double values[COLUMNS] = { (double)n,
                                         t->seconds[way],
                                         NAN,
                                         t->peak_bytes[way] / mebi,
                                         way ? NAN : t->index_bytes / mebi,
                                         way ? NAN : t->scratch_bytes / mebi };
        memcpy(row->values, values, sizeof values);
        row->note = isnan(t->seconds[way]) ? "over the budget" : NULL;
    }
    return CLI_OK;
}

static int add_size(paper_table *table, const paper_setup *s, timing last[METHODS], int64_t n, int64_t last_n)
{
    operands o = { .q = NULL };
    int code = operands_new(&o, s, n);
    for (int i = 0; i < METHODS && code == CLI_OK; i++) {
        caller c = { s, &o, n, KNA_ATTEND_OPTIONS };
        timing now;
        c.options.method = methods[i];
        c.options.causal = 1;
        c.options.k_near = (int64_t)ceil(sqrt((double)n));
        c.options.differentiable = methods[i] == KNA_KNN;
        code = time_method(&now, &c, &last[i], last_n);
        if (code == CLI_OK) code = add_timing(table, &now, n, methods[i]);
        last[i] = now;
    }
    operands_free(&o);
    return code;
}

int paper_times(paper_table *table, const paper_setup *s)
{
    timing last[METHODS];
    int code = CLI_OK;
    for (int i = 0; i < METHODS; i++) last[i] = not_timed;
    for (int64_t n = s->n < s->max_n ? s->n : s->max_n, last_n = 0; n > last_n && code == CLI_OK;) {
        code = add_size(table, s, last, n, last_n);
        cli_progress_share(pow((double)n / (double)s->max_n, 2));
        last_n = n;
        n = 2 * n < s->max_n ? 2 * n : s->max_n;
    }
    for (int i = 0; i < table->count; i++) {
        double unused;
        table->rows[i].values[POWER] = paper_power(table, table->rows[i].series, N, SECONDS, &unused);
    }
    return code;
}

/* ------------------------------------------------------------------ what follows from it */

int paper_memory(paper_table *memory, const paper_table *times)
{
    for (int i = 0; i < times->count; i++) {
        const paper_row *from = &times->rows[i];
        paper_row *row = paper_add(memory, from->series);
        if (!row) return CLI_FAILED;
        const double values[] = { from->values[N], from->values[PEAK], from->values[INDEX], from->values[SCRATCH] };
        memcpy(row->values, values, sizeof values);
        row->note = from->note;
    }
    return CLI_OK;
}

static int is_backward(const char *series)
{
    return strstr(series, ", backward") != NULL;
}

/* Where the fitted line of a series crosses that of exact attention; below it the series is the slower one. */
int paper_growth(paper_table *growth, const paper_table *times)
{
    for (int i = 0; i < times->count && times->rows[i].values[N] == times->rows[0].values[N]; i++) {
        const char *series = times->rows[i].series;
        double at_one, exact_at_one;
        const double power = paper_power(times, series, N, SECONDS, &at_one);
        const double exact = paper_power(times, is_backward(series) ? "exact, backward" : "exact", N, SECONDS, &exact_at_one);
        paper_row *row = paper_add(growth, series);
        if (!row) return CLI_FAILED;
        const double crosses = exp(log(at_one / exact_at_one) / (exact - power));
        const double values[] = { power, at_one * pow(1000, power), power < exact ? crosses : NAN };
        memcpy(row->values, values, sizeof values);
        row->note = power < exact ? "faster than exact beyond that" : power > exact ? "grows faster than exact" : NULL;
    }
    return CLI_OK;
}
