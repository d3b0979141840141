/* attend.c - the operator: check, choose the path, report. */
#include "knn.h"
#include "nearest.h"
#include "rivals.h"

const char *kna_method_name(int method)
{
    static const char *const names[KNA_METHOD_COUNT] = { "exact",     "topk",      "knn",        "uniform",   "gumbel",
                                                         "rejection", "mom",       "stratified", "centroid",  "control",
                                                         "window",    "linformer", "nystrom",    "performer", "lsh" };
    return method >= 0 && method < KNA_METHOD_COUNT ? names[method] : NULL;
}

const char *kna_diverse_name(int diverse)
{
    static const char *const names[KNA_DIVERSE_COUNT] = { "none", "mmr", "dpp", "quota" };
    return diverse >= 0 && diverse < KNA_DIVERSE_COUNT ? names[diverse] : NULL;
}

const char *kna_tail_name(int tail)
{
    static const char *const names[KNA_TAIL_COUNT] = { "drop", "mean" };
    return tail >= 0 && tail < KNA_TAIL_COUNT ? names[tail] : NULL;
}

const char *kna_chain_name(int chain)
{
    static const char *const names[KNA_CHAIN_COUNT] = { "rows", "joint", "signed", "tail" };
    return chain >= 0 && chain < KNA_CHAIN_COUNT ? names[chain] : NULL;
}

static double count_seen(const kna__problem *p)
{
    double seen = 0;
    int64_t masks = p->mask.data && p->mask.heads < p->h ? p->mask.heads : p->mask.data ? p->h : 1;
    for (int64_t query = 0; query < p->m; query++) {
        int64_t lo, hi;
        kna__visible(p, query, &lo, &hi);
        for (int64_t head = 0; head < masks; head++) { /* heads head, head + masks, .. share a mask */
            seen += (double)kna__mask_allows(p, head, query, lo, hi) * (double)((p->h - head + masks - 1) / masks);
        }
    }
    return seen;
}

/* Rows drawn for an audit, which exact rows pass. */
static int64_t count_audited(const kna__problem *p)
{
    int64_t count = 0;
    for (int64_t row = 0; p->options.audit > 0 && row < p->m * p->h; row++) {
        count += kna__is_audited(p, row % p->h, row / p->h);
    }
    return count;
}

static int attend_exact(const kna__problem *p, kna_report *report)
{
    report->rows_exact = p->m * p->h;
    report->keys_touched = 1;
    report->radius = report->radius_max = -1;
    report->error_est = report->error_est_max =
        p->options.method == KNA_KNN && p->options.eps > 0 && p->options.delta == 0 ? 0 : -1;
    kna__report_passed(report, count_audited(p), p->options.eps);
    if (report->size) {
        report->keys_seen = report->keys_full = count_seen(p);
    }
    return p->m * p->g <= KNA_DECODE_ROWS ? kna__attend_decode(p) : kna__attend_prefill(p);
}

/* The method whose index another one goes by: those that sample find their head as topk does. */
static int index_method(int method)
{
    return method == KNA_KNN ? KNA_KNN : KNA_TOPK;
}

int kna__check_index(const kna__problem *p, const kna_index *index)
{
    bool samples = p->options.method >= KNA_UNIFORM;
    if (index->method != index_method(p->options.method) && !(samples && index->method == KNA_KNN)) {
        return KNA_FAIL(p->context, KNA_ESTALE, "index: made for %s, asked for %s", kna_method_name(index->method),
                        kna_method_name(p->options.method));
    }
    if (index->heads != p->h_kv || index->d != p->d || index->dv != p->dv || index->rows < p->n) {
        return KNA_FAIL(p->context, KNA_ESTALE,
                        "index: %lld heads, d = %lld, dv = %lld, %lld rows; keys (%lld,%lld,%lld), dv = %lld",
                        (long long)index->heads, (long long)index->d, (long long)index->dv, (long long)index->rows,
                        (long long)p->h_kv, (long long)p->n, (long long)p->d, (long long)p->dv);
    }
    return KNA_OK;
}

static int attend_with_index(const kna__problem *p, kna_index *index, kna_report *report)
{
    report->index_bytes = kna_index_bytes(index);
    return p->options.method == KNA_KNN ? kna__attend_knn(p, index, report) : kna__attend_nearest(p, index, report);
}

static int attend_with_own_index(const kna__problem *p, kna_report *report)
{
    kna_index *index = NULL;
    double start = kna__seconds();
    int status = kna_index_new(p->context, &index, index_method(p->options.method), p->h_kv, p->d, p->dv);
    if (status == KNA_OK) {
        index->phase = 0; /* a call repeated gives the same bits */
        status = kna_index_update(p->context, index, &p->k, &p->v, 0, p->n);
    }
    report->build_s = kna__seconds() - start;
    if (status == KNA_OK) {
        status = attend_with_index(p, index, report);
    }
    kna_index_free(index);
    return status;
}

static int attend_near(const kna__problem *p, kna_report *report)
{
    kna_index *index = p->options.index;
    if (index) {
        KNA_TRY(kna__check_index(p, index));
    }
    if (kna__all_is_near(p) && !p->options.draws && (!index || kna__index_has_all(index, 0, p->n))) {
        return attend_exact(p, report);
    }
    if (!index) {
        return attend_with_own_index(p, report);
    }
    return attend_with_index(p, index, report);
}

/* What a rival leaves out it does not estimate. */
static int attend_rival(const kna__problem *p, kna_report *report)
{
    static const kna__rival rivals[] = { kna__attend_window, kna__attend_linformer, kna__attend_nystrom, kna__attend_performer,
                                         kna__attend_lsh };
    KNA_TRY(kna__rival_check(p));
    kna__report_passed(report, 0, 0);
    report->error_est = report->error_est_max = report->radius = report->radius_max = -1;
    report->keys_seen = report->size ? count_seen(p) : 0;
    report->keys_touched = 1;
    return p->n ? rivals[p->options.method - KNA_WINDOW](p, report) : kna__attend_decode(p);
}

static void fill_radius(const kna__problem *p, float radius)
{
    for (int64_t row = 0; p->options.radius && row < p->h * p->m; row++) {
        p->options.radius[row] = radius;
    }
}

/* Whether rows get a radius; those that read every key do not touch theirs. */
static bool has_radius(const kna_attend_options *o)
{
    bool by_sample = o->method == KNA_UNIFORM || o->method == KNA_CENTROID || o->method == KNA_CONTROL;
    return o->method == KNA_EXACT || by_sample || o->certificate == KNA_CERTIFICATE_DETERMINISTIC;
}

static int attend(const kna__problem *p, kna_report *report)
{
    fill_radius(p, has_radius(&p->options) ? 0 : -1);
    if (!p->options.unchecked) {
        KNA_TRY(kna__problem_finite(p));
    }
    report->rows = p->m * p->h;
    if (p->options.method >= KNA_WINDOW) {
        return attend_rival(p, report);
    }
    return p->options.method == KNA_EXACT ? attend_exact(p, report) : attend_near(p, report);
}

int kna_attend(kna_context *context, const kna_out_rows *out, float *lse, kna_report *report, const kna_rows *q, const kna_rows *k,
               const kna_rows *v, const kna_attend_options *options)
{
    double start = kna__seconds();
    kna__problem problem;
    kna_report own;
    context->message[0] = 0;
    context->scratch_used = 0;
    if (report && report->size < sizeof *report) {
        return KNA_FAIL(context, KNA_EINVAL, "report: size %zu is below %zu", report->size, sizeof *report);
    }
    memset(&own, 0, sizeof own);
    KNA_TRY(kna__problem_init(&problem, context, out, lse, q, k, v, options));
    own.method = problem.options.method;
    own.size = report ? report->size : 0; /* 0: nobody asks for what costs extra */
    KNA_TRY(attend(&problem, &own));
    if (report) {
        own.scratch_bytes = context->scratch_used;
        own.time_s = kna__seconds() - start;
        memcpy(report, &own, sizeof own);
    }
    return KNA_OK;
}
