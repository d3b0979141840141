/* backward.c - gradients of the operator: check, prepare, choose the method. */
#include "backward.h"
#include "rivals.h"

#define LL(x) ((long long)(x))

/* ---- operands */

static int check_like(kna_context *context, kna_rows *rows, const char *name, const kna__problem *p)
{
    if (!rows->data && p->m) {
        return KNA_FAIL(context, KNA_EINVAL, "%s: null data", name);
    }
    if (rows->type != KNA_F32 && rows->type != KNA_F16 && rows->type != KNA_BF16) {
        return KNA_FAIL(context, KNA_ETYPE, "%s: f32, f16 and bf16 are taken", name);
    }
    if (rows->heads != p->h || rows->rows != p->m || rows->dim != p->dv) {
        return KNA_FAIL(context, KNA_ESHAPE, "%s: (%lld,%lld,%lld), but outputs are (%lld,%lld,%lld)", name, LL(rows->heads),
                        LL(rows->rows), LL(rows->dim), LL(p->h), LL(p->m), LL(p->dv));
    }
    if (rows->row_stride_bytes < 0 || rows->head_stride_bytes < 0) {
        return KNA_FAIL(context, KNA_EINVAL, "%s: strides must not be negative", name);
    }
    if (!rows->row_stride_bytes) {
        rows->row_stride_bytes = (int64_t)kna__row_bytes(rows->type, rows->dim);
    }
    if (!rows->head_stride_bytes) {
        rows->head_stride_bytes = rows->row_stride_bytes * rows->rows;
    }
    return KNA_OK;
}

/* Gradients are added up in place, so their rows must be whole numbers apart. */
static int check_gradient(kna_context *context, kna_out_rows *rows, const char *name, int64_t count, int64_t dim)
{
    const int64_t number = (int64_t)sizeof(float);
    if (rows->row_stride_bytes < 0 || rows->head_stride_bytes < 0 || rows->row_stride_bytes % number ||
        rows->head_stride_bytes % number) {
        return KNA_FAIL(context, KNA_EINVAL, "%s: strides must be multiples of 4 and not negative", name);
    }
    if (!rows->row_stride_bytes) {
        rows->row_stride_bytes = dim * number;
    }
    if (!rows->head_stride_bytes) {
        rows->head_stride_bytes = rows->row_stride_bytes * count;
    }
    return KNA_OK;
}

static void clear(const kna_out_rows *rows, int64_t heads, int64_t count, int64_t dim)
{
    for (int64_t row = 0; rows->data && row < heads * count; row++) {
        memset(kna__gradient_at(rows, row / count, row % count), 0, (size_t)dim * sizeof(float));
    }
}

static void clear_projections(const kna__backward *b)
{
    float *const both[] = { b->dproject_k, b->dproject_v };
    for (int i = 0; i < 2; i++) {
        if (both[i]) {
            memset(both[i], 0, (size_t)kna__linformer_rank(&b->problem) * (size_t)b->problem.n * sizeof(float));
        }
    }
}

static bool is_chain(const kna__problem *p)
{
    return p->options.method == KNA_GUMBEL || p->options.method == KNA_REJECTION;
}

/* A sink or a soft cap would need what the draws do not tell. */
static int check_chain(const kna__problem *p)
{
    const kna_attend_options *o = &p->options;
    if (o->samples < 2) {
        return KNA_FAIL(p->context, KNA_EINVAL, "samples: gradients take at least 2 draws of a row");
    }
    if (o->chain == KNA_CHAIN_JOINT && o->samples * p->m < 2 && p->m) {
        return KNA_FAIL(p->context, KNA_EINVAL, "samples: a joint chain takes draws in pairs");
    }
    if (o->sinks || o->softcap > 0) {
        return KNA_FAIL(p->context, KNA_EINVAL, "%s: gradients by draws cannot follow it", o->sinks ? "sinks" : "softcap");
    }
    return KNA_OK;
}

/*
 * Lists are made of a scan's heads and tails: an index of clusters and bounds of cells change which keys are in these, and by what they
 * are drawn. Means of cells are followed where a logit is a product.
 */
static int check_cells(const kna__problem *p)
{
    const kna_attend_options *o = &p->options;
    if (o->method != KNA_KNN && o->index && o->index->method == KNA_KNN) {
        return KNA_FAIL(p->context, KNA_EINVAL, "index: gradients of %s take one made for topk", kna_method_name(o->method));
    }
    if (o->bounds == KNA_BOUNDS_CLUSTERS) {
        return KNA_FAIL(p->context, KNA_EINVAL, "bounds: there are no gradients with those of clusters");
    }
    if (o->certificate == KNA_CERTIFICATE_DETERMINISTIC) {
        return KNA_FAIL(p->context, KNA_EINVAL, "certificate: there are no gradients with one that is deterministic");
    }
    if (o->method == KNA_MOM) {
        return KNA_FAIL(p->context, KNA_EINVAL, "method: there are no gradients of %s", kna_method_name(o->method));
    }
    if (o->method >= KNA_STRATIFIED && o->method <= KNA_CONTROL && (o->mask.data || o->slopes || o->softcap > 0)) {
        return KNA_FAIL(p->context, KNA_EINVAL, "%s: gradients of %s cannot follow it",
                        o->mask.data ? "mask" : o->slopes ? "slopes" : "softcap", kna_method_name(o->method));
    }
    return KNA_OK;
}

static int check_method(const kna__problem *p)
{
    const kna_attend_options *o = &p->options;
    if (o->landmarks) {
        return KNA_FAIL(p->context, KNA_EINVAL, "landmarks: gradients, of some queries at a time, cannot repeat them");
    }
    if (o->tail != KNA_TAIL_DROP) {
        return KNA_FAIL(p->context, KNA_EINVAL, "tail: there are no gradients of its mean");
    }
    KNA_TRY(check_cells(p));
    if (is_chain(p)) {
        return check_chain(p);
    }
    if (o->method >= KNA_WINDOW) {
        return kna__rival_check(p);
    }
    if (o->method == KNA_KNN && (o->eps > 0 || o->index)) {
        return KNA_FAIL(p->context, KNA_EINVAL,
                        "gradients of knn are those for a given k, with an index of the call's own: no eps, no index");
    }
    if (o->method == KNA_KNN && o->diverse) {
        return KNA_FAIL(p->context, KNA_EINVAL, "diverse: there are no gradients of knn with quotas");
    }
    if (o->method == KNA_KNN && !o->differentiable) {
        return KNA_FAIL(p->context, KNA_EINVAL, "gradients of knn are those of a call with option differentiable");
    }
    return KNA_OK;
}

static int init(kna__backward *b, kna_context *context, const kna_gradients *gradients, const kna_rows *dout, const kna_rows *out,
                const float *lse, const kna_rows *q, const kna_rows *k, const kna_rows *v, const kna_attend_options *options)
{
    static float nothing; /* stands for the outputs, which are inputs here */
    kna_out_rows none = { &nothing, 0, 0 };
    if (!gradients || !dout || !out) {
        return KNA_FAIL(context, KNA_EINVAL, "gradients, dout and out must not be null");
    }
    KNA_TRY(kna__problem_init(&b->problem, context, &none, NULL, q, k, v, options));
    const kna__problem *p = &b->problem;
    KNA_TRY(check_method(p));
    if (!lse && p->m) {
        return KNA_FAIL(context, KNA_EINVAL, "lse: null data");
    }
    b->dout = *dout;
    b->out = *out;
    b->lse = lse;
    b->dq = gradients->dq;
    b->dk = gradients->dk;
    b->dv = gradients->dv;
    b->dsinks = gradients->dsinks;
    b->dproject_k = gradients->dproject_k;
    b->dproject_v = gradients->dproject_v;
    KNA_TRY(check_like(context, &b->dout, "dout", p));
    KNA_TRY(check_like(context, &b->out, "out", p));
    if (p->options.chain == KNA_CHAIN_SIGNED && (b->dq.data || b->dk.data)) {
        return KNA_FAIL(context, KNA_EINVAL, "%s: a signed chain gives gradients of values only", b->dq.data ? "dq" : "dk");
    }
    KNA_TRY(check_gradient(context, &b->dq, "dq", p->m, p->d));
    KNA_TRY(check_gradient(context, &b->dk, "dk", p->n, p->d));
    KNA_TRY(check_gradient(context, &b->dv, "dv", p->n, p->dv));
    if (b->dsinks && !p->options.sinks) {
        return KNA_FAIL(context, KNA_EINVAL, "dsinks: there are no sinks");
    }
    if ((b->dproject_k || b->dproject_v) && !p->options.project_k) {
        return KNA_FAIL(context, KNA_EINVAL, "dproject: there are no projections");
    }
    return KNA_OK;
}

static int check_finite(const kna__backward *b)
{
    const kna__problem *p = &b->problem;
    if (p->options.unchecked) {
        return KNA_OK;
    }
    KNA_TRY(kna__problem_finite(p));
    KNA_TRY(kna__rows_finite(p->context, &b->dout, "dout"));
    KNA_TRY(kna__rows_finite(p->context, &b->out, "out"));
    for (int64_t i = 0; i < p->h * p->m; i++) {
        if (!(b->lse[i] < INFINITY) && p->options.method != KNA_NYSTROM) {
            return KNA_FAIL(p->context, KNA_EVALUE, "lse: NaN or infinity at head %lld, row %lld", LL(i / p->m), LL(i % p->m));
        }
    }
    return KNA_OK;
}

/* ---- rows */

void kna__backward_rows_cut(kna__backward_rows *rows, const kna__problem *p, int64_t count, kna__cutter *cutter)
{
    rows->q = kna__cut(cutter, (size_t)(count * p->d), sizeof(float));
    rows->dout = kna__cut(cutter, (size_t)(count * p->dv), sizeof(float));
    rows->delta = kna__cut(cutter, (size_t)count, sizeof(float));
    rows->lse = kna__cut(cutter, (size_t)count, sizeof(float));
}

/* dout of a row, widened; returns Delta. */
static float read_dout(const kna__backward *b, int64_t head, int64_t query, float *dout)
{
    const kna__problem *p = &b->problem;
    size_t dv = (size_t)p->dv;
    float out[KNA_MAX_DIM], delta;
    p->kernels->widen[b->dout.type](dout, dv, kna__span_at(&b->dout, head, query), 1, dv);
    p->kernels->widen[b->out.type](out, dv, kna__span_at(&b->out, head, query), 1, dv);
    p->kernels->dot[KNA_F32](&delta, 1, out, 0, 1, (kna__span){ (const char *)dout, 0, NULL }, 1, dv);
    return delta;
}

void kna__backward_rows_read(const kna__backward *b, kna__backward_rows *rows, int64_t kv_head, int64_t row, int64_t count)
{
    const kna__problem *p = &b->problem;
    kna__queries_read(p, rows->q, kv_head, row, count);
    for (int64_t r = 0; r < count; r++) {
        int64_t query = (row + r) / p->g, head = kv_head * p->g + (row + r) % p->g;
        rows->delta[r] = read_dout(b, head, query, rows->dout + r * p->dv);
        rows->lse[r] = b->lse[head * p->m + query];
    }
}

/* ---- sinks */

static void differentiate_sink(void *argument, int64_t head, int worker)
{
    const kna__backward *b = argument;
    const kna__problem *p = &b->problem;
    float dout[KNA_MAX_DIM];
    double sum = 0;
    (void)worker;
    for (int64_t query = 0; query < p->m; query++) {
        double share = exp((double)p->options.sinks[head] - (double)b->lse[head * p->m + query]);
        sum -= share * (double)read_dout(b, head, query, dout);
    }
    b->dsinks[head] = (float)sum;
}

/* Nothing is left out, nor absent from the caller's index. */
static bool reads_everything(const kna__problem *p)
{
    const kna_index *index = p->options.index;
    return p->options.method == KNA_EXACT || (kna__all_is_near(p) && (!index || kna__index_has_all(index, 0, p->n)));
}

static int differentiate(kna__backward *b)
{
    const kna__problem *p = &b->problem;
    static int (*const rivals[])(const kna__backward *) = { kna__backward_window, kna__backward_linformer, kna__backward_nystrom,
                                                            kna__backward_performer, kna__backward_lsh };
    if (!p->n || !p->m) {
        return KNA_OK;
    }
    if (p->options.method >= KNA_WINDOW) {
        return rivals[p->options.method - KNA_WINDOW](b);
    }
    if (p->options.index && p->options.method != KNA_EXACT) {
        KNA_TRY(kna__check_index(p, p->options.index));
    }
    if (is_chain(p)) {
        return kna__backward_near(b);
    }
    if (reads_everything(p)) {
        return kna__backward_exact(b);
    }
    return p->options.method == KNA_KNN ? kna__backward_knn(b) : kna__backward_near(b);
}

int kna_attend_backward(kna_context *context, const kna_gradients *gradients, const kna_rows *dout, const kna_rows *out,
                        const float *lse, const kna_rows *q, const kna_rows *k, const kna_rows *v,
                        const kna_attend_options *options)
{
    kna__backward b;
    context->message[0] = 0;
    context->scratch_used = 0;
    KNA_TRY(init(&b, context, gradients, dout, out, lse, q, k, v, options));
    KNA_TRY(check_finite(&b));
    clear(&b.dq, b.problem.h, b.problem.m, b.problem.d);
    clear(&b.dk, b.problem.h_kv, b.problem.n, b.problem.d);
    clear(&b.dv, b.problem.h_kv, b.problem.n, b.problem.dv);
    clear_projections(&b);
    if (b.dsinks) {
        kna__parallel_for(context->threads, b.problem.h, differentiate_sink, &b);
    }
    return differentiate(&b);
}
