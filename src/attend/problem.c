/* problem.c - operands and options checked once, so that the methods need not. Messages name the operand and the limit. */
#include "problem.h"

#include <math.h>

#define LL(x)    ((long long)(x))
#define FARTHEST (INT64_C(4) * KNA_MAX_ROWS) /* no key is further from a query's position */

static int check_size_field(kna_context *context, const kna_attend_options *options)
{
    if (options->size < sizeof *options) {
        return KNA_FAIL(context, KNA_EINVAL, "options: size %zu is below %zu: set it with KNA_ATTEND_OPTIONS", options->size,
                        sizeof *options);
    }
    for (size_t i = sizeof *options; i < options->size; i++) {
        if (((const char *)options)[i]) {
            return KNA_FAIL(context, KNA_EINVAL, "options: byte %zu of a newer version is set", i);
        }
    }
    return KNA_OK;
}

static bool is_bad(float x, float low)
{
    return !(isfinite(x) && x >= low);
}

/* Methods whose head is the k nearest keys. */
static bool has_nearest_head(int method)
{
    return method == KNA_TOPK || (method >= KNA_UNIFORM && method <= KNA_CONTROL);
}

static int check_diverse(kna_context *context, const kna_attend_options *o)
{
    if (o->diverse < 0 || o->diverse >= KNA_DIVERSE_COUNT) {
        return KNA_FAIL(context, KNA_EINVAL, "diverse: %d is none of none, mmr, dpp, quota", o->diverse);
    }
    if (o->diverse && !has_nearest_head(o->method) && !(o->method == KNA_KNN && o->diverse == KNA_DIVERSE_QUOTA)) {
        return KNA_FAIL(context, KNA_EINVAL, "diverse: %s has no head to choose by %s", kna_method_name(o->method),
                        kna_diverse_name(o->diverse));
    }
    if (is_bad(o->mmr_lambda, 0) || o->mmr_lambda > 1) {
        return KNA_FAIL(context, KNA_EINVAL, "mmr_lambda: %g is outside (0, 1]", (double)o->mmr_lambda);
    }
    if (is_bad(o->dpp_theta, 0) || o->dpp_theta > 40) {
        return KNA_FAIL(context, KNA_EINVAL, "dpp_theta: %g is outside (0, 40]", (double)o->dpp_theta);
    }
    if (is_bad(o->quota, 0) || o->quota > 1) {
        return KNA_FAIL(context, KNA_EINVAL, "quota: %g is outside (0, 1]", (double)o->quota);
    }
    if (o->pool < 0) {
        return KNA_FAIL(context, KNA_EINVAL, "pool: %lld must be at least 0", LL(o->pool));
    }
    return KNA_OK;
}

static int check_head(kna_context *context, const kna_attend_options *o)
{
    KNA_TRY(check_diverse(context, o));
    if (o->stratify && o->method != KNA_UNIFORM) {
        return KNA_FAIL(context, KNA_EINVAL, "stratify: %s samples no tail", kna_method_name(o->method));
    }
    if (o->stratify && o->certificate != KNA_CERTIFICATE_ASYMPTOTIC) {
        return KNA_FAIL(context, KNA_EINVAL, "stratify: there is no finite certificate of a stratified sample");
    }
    if ((o->stratify || o->diverse == KNA_DIVERSE_QUOTA) && !o->key_groups) {
        return KNA_FAIL(context, KNA_EINVAL, "key_groups: null, and %s needs the groups of keys",
                        o->stratify ? "stratify" : "quota");
    }
    if (o->landmarks < 0 || o->landmarks > KNA_MAX_LANDMARKS) {
        return KNA_FAIL(context, KNA_EINVAL, "landmarks: %lld is outside 0..%d", LL(o->landmarks), KNA_MAX_LANDMARKS);
    }
    if (o->landmarks && !has_nearest_head(o->method)) {
        return KNA_FAIL(context, KNA_EINVAL, "landmarks: %s has no head to put them in", kna_method_name(o->method));
    }
    if (o->tail < 0 || o->tail >= KNA_TAIL_COUNT) {
        return KNA_FAIL(context, KNA_EINVAL, "tail: %d is none of drop, mean", o->tail);
    }
    if (o->tail && o->method != KNA_TOPK) {
        return KNA_FAIL(context, KNA_EINVAL, "tail: %s drops none", kna_method_name(o->method));
    }
    return KNA_OK;
}

static bool has_certificate(int method, int kind)
{
    if (kind == KNA_CERTIFICATE_DETERMINISTIC) {
        return method == KNA_TOPK || method == KNA_UNIFORM || (method >= KNA_STRATIFIED && method <= KNA_CONTROL);
    }
    return kind == KNA_CERTIFICATE_ASYMPTOTIC || method == KNA_UNIFORM;
}

/* Certificates, and the bounds that they and draws need. */
static int check_certificate(kna_context *context, const kna_attend_options *o)
{
    static const char *const kinds[KNA_CERTIFICATE_COUNT] = { "asymptotic", "finite", "bernstein", "deterministic" };
    bool draws = o->method >= KNA_GUMBEL && o->method <= KNA_MOM;
    if (o->certificate < 0 || o->certificate >= KNA_CERTIFICATE_COUNT) {
        return KNA_FAIL(context, KNA_EINVAL, "certificate: %d is none of asymptotic, finite, bernstein, deterministic",
                        o->certificate);
    }
    if (!has_certificate(o->method, o->certificate)) {
        return KNA_FAIL(context, KNA_EINVAL, "certificate: %s has none that is %s", kna_method_name(o->method),
                        kinds[o->certificate]);
    }
    if (o->bounds < 0 || o->bounds >= KNA_BOUNDS_COUNT) {
        return KNA_FAIL(context, KNA_EINVAL, "bounds: %d is none of head, clusters", o->bounds);
    }
    if (is_bad(o->gap, 0)) {
        return KNA_FAIL(context, KNA_EINVAL, "gap: %g must be finite and at least 0", (double)o->gap);
    }
    if (o->bounds == KNA_BOUNDS_CLUSTERS && o->gap > 0) {
        return KNA_FAIL(context, KNA_EINVAL, "gap: bounds are those of clusters");
    }
    if ((o->bounds || o->gap > 0) && !draws && o->method != KNA_UNIFORM) {
        return KNA_FAIL(context, KNA_EINVAL, "%s: %s has no bounds", o->bounds ? "bounds" : "gap", kna_method_name(o->method));
    }
    bool needed = draws || o->certificate == KNA_CERTIFICATE_FINITE || o->certificate == KNA_CERTIFICATE_BERNSTEIN;
    if (o->index && o->index->method == KNA_KNN && needed && !o->bounds && !(o->gap > 0)) {
        return KNA_FAIL(context, KNA_EINVAL,
                        "bounds: with an index of clusters the head is not known to be nearest: a gap, or bounds of clusters");
    }
    if (o->index && o->index->method == KNA_KNN && o->method >= KNA_UNIFORM && (o->diverse || o->landmarks)) {
        return KNA_FAIL(context, KNA_EINVAL, "index: one of clusters finds heads by nearness alone: no %s",
                        o->diverse ? "diverse" : "landmarks");
    }
    return KNA_OK;
}

static int check_options(kna_context *context, const kna_attend_options *o)
{
    KNA_TRY(check_size_field(context, o));
    if (o->method < 0 || o->method >= KNA_METHOD_COUNT) {
        return KNA_FAIL(context, KNA_EINVAL,
                        "method: %d is none of exact, topk, knn, uniform, gumbel, rejection, mom, stratified, "
                        "centroid, control, window, linformer, nystrom, performer, lsh",
                        o->method);
    }
    if (!isfinite(o->scale)) {
        return KNA_FAIL(context, KNA_EINVAL, "scale: must be finite");
    }
    if (is_bad(o->softcap, 0)) {
        return KNA_FAIL(context, KNA_EINVAL, "softcap: %g must be finite and at least 0", (double)o->softcap);
    }
    if (o->window < 0) {
        return KNA_FAIL(context, KNA_EINVAL, "window: %lld must be at least 0", LL(o->window));
    }
    if (o->causal_shift > KNA_MAX_ROWS || o->causal_shift < -(int64_t)KNA_MAX_ROWS) {
        return KNA_FAIL(context, KNA_ELIMIT, "causal_shift: %lld is outside +-%d", LL(o->causal_shift), KNA_MAX_ROWS);
    }
    if (o->k_near < 0) {
        return KNA_FAIL(context, KNA_EINVAL, "k_near: %lld must be at least 0", LL(o->k_near));
    }
    if (is_bad(o->eps, 0) || o->eps >= 1) {
        return KNA_FAIL(context, KNA_EINVAL, "eps: %g is outside [0, 1)", (double)o->eps);
    }
    if (is_bad(o->delta, 0) || o->delta >= 1) {
        return KNA_FAIL(context, KNA_EINVAL, "delta: %g is outside [0, 1)", (double)o->delta);
    }
    if (o->method == KNA_KNN && o->delta > 0 && !(o->eps > 0)) {
        return KNA_FAIL(context, KNA_EINVAL, "delta: the share of rows above eps, and eps is 0");
    }
    if (o->rank < 0 || o->rank > KNA_MAX_RANK) {
        return KNA_FAIL(context, KNA_ELIMIT, "rank: %lld is outside 0..%d", LL(o->rank), KNA_MAX_RANK);
    }
    if (o->samples < 0 || o->groups < 0) {
        return KNA_FAIL(context, KNA_EINVAL, "samples: %lld in %lld groups: must be at least 0", LL(o->samples), LL(o->groups));
    }
    KNA_TRY(check_certificate(context, o));
    if (o->draws && (o->method < KNA_GUMBEL || o->method > KNA_MOM)) {
        return KNA_FAIL(context, KNA_EINVAL, "draws: %s draws no keys", kna_method_name(o->method));
    }
    KNA_TRY(check_head(context, o));
    if (o->hash_bits < 0 || o->hash_bits > KNA_MAX_HASH_BITS || o->hash_tables < 0 || o->hash_tables == 1 ||
        o->hash_tables > KNA_MAX_RANK / (o->hash_bits ? o->hash_bits : 10)) {
        return KNA_FAIL(context, KNA_ELIMIT,
                        "hashes: %lld tables of %lld bits: at least 2 tables, of at most %d bits, %d bits in all",
                        LL(o->hash_tables), LL(o->hash_bits), KNA_MAX_HASH_BITS, KNA_MAX_RANK);
    }
    if (o->chain < 0 || o->chain >= KNA_CHAIN_COUNT) {
        return KNA_FAIL(context, KNA_EINVAL, "chain: %d is none of rows, joint, signed, tail", o->chain);
    }
    if (o->chain && o->method != KNA_GUMBEL && o->method != KNA_REJECTION) {
        return KNA_FAIL(context, KNA_EINVAL, "chain: %s has no gradients by keys drawn", kna_method_name(o->method));
    }
    if (is_bad(o->audit, 0) || o->audit > 1) {
        return KNA_FAIL(context, KNA_EINVAL, "audit: %g is outside [0, 1]", (double)o->audit);
    }
    return KNA_OK;
}

/* Shape and type of one operand; fills in packed strides. */
static int check_rows(kna_context *context, kna_rows *rows, const char *name)
{
    if (rows->heads < 1 || rows->dim < 1 || rows->rows < 0) {
        return KNA_FAIL(context, KNA_EINVAL, "%s: (%lld,%lld,%lld) needs at least 1 head, 0 rows, 1 column", name, LL(rows->heads),
                        LL(rows->rows), LL(rows->dim));
    }
    if (rows->heads > KNA_MAX_HEADS || rows->dim > KNA_MAX_DIM || rows->rows > KNA_MAX_ROWS) {
        return KNA_FAIL(context, KNA_ELIMIT, "%s: (%lld,%lld,%lld) is above the limits (%d,%d,%d)", name, LL(rows->heads),
                        LL(rows->rows), LL(rows->dim), KNA_MAX_HEADS, KNA_MAX_ROWS, KNA_MAX_DIM);
    }
    size_t row_bytes = kna__row_bytes(rows->type, rows->dim);
    if (!row_bytes) {
        const char *type = kna_type_name(rows->type);
        return KNA_FAIL(context, KNA_ETYPE, "%s: type %s has no rows of %lld numbers", name, type ? type : "unknown",
                        LL(rows->dim));
    }
    if (!rows->row_stride_bytes) {
        rows->row_stride_bytes = (int64_t)row_bytes;
    }
    if (rows->row_stride_bytes < 0 || rows->head_stride_bytes < 0) {
        return KNA_FAIL(context, KNA_EINVAL, "%s: strides must not be negative", name);
    }
    int64_t head_bytes, bytes;
    bool too_far = __builtin_mul_overflow(rows->row_stride_bytes, rows->rows, &head_bytes);
    if (!rows->head_stride_bytes) {
        rows->head_stride_bytes = head_bytes;
    }
    if (too_far || __builtin_mul_overflow(rows->head_stride_bytes, rows->heads, &bytes)) {
        return KNA_FAIL(context, KNA_ELIMIT, "%s: strides of %lld and %lld bytes reach beyond memory", name,
                        LL(rows->head_stride_bytes), LL(rows->row_stride_bytes));
    }
    if (rows->rows && !rows->data) {
        return KNA_FAIL(context, KNA_EINVAL, "%s: null data", name);
    }
    if ((rows->type == KNA_I8) != (rows->scales != NULL) && rows->rows) {
        return KNA_FAIL(context, KNA_EINVAL, "%s: scales go with type i8 and only with it", name);
    }
    return KNA_OK;
}

static int check_shapes(kna_context *context, const kna__problem *p)
{
    if (p->q.type == KNA_I8 || p->q.type == KNA_Q8_0) {
        return KNA_FAIL(context, KNA_ETYPE, "queries: type %s; f32, f16 and bf16 are taken", kna_type_name(p->q.type));
    }
    if (p->k.dim != p->q.dim) {
        return KNA_FAIL(context, KNA_ESHAPE, "keys have %lld columns, queries %lld", LL(p->k.dim), LL(p->q.dim));
    }
    if (p->k.heads != p->v.heads || p->k.rows != p->v.rows) {
        return KNA_FAIL(context, KNA_ESHAPE, "keys are (%lld,%lld,..), values (%lld,%lld,..)", LL(p->k.heads), LL(p->k.rows),
                        LL(p->v.heads), LL(p->v.rows));
    }
    if (p->q.heads % p->k.heads) {
        return KNA_FAIL(context, KNA_ESHAPE, "%lld query heads are not a multiple of %lld key heads", LL(p->q.heads),
                        LL(p->k.heads));
    }
    return KNA_OK;
}

static int check_mask(kna_context *context, kna__problem *p)
{
    if (!p->mask.data) {
        return KNA_OK;
    }
    if (p->mask.type != KNA_F32 && p->mask.type != KNA_F16) {
        return KNA_FAIL(context, KNA_ETYPE, "mask: f32 and f16 are taken");
    }
    p->mask.heads = p->mask.heads ? p->mask.heads : 1;
    if (p->mask.heads < 0 || p->mask.row_stride_bytes < 0 || p->mask.head_stride_bytes < 0) {
        return KNA_FAIL(context, KNA_EINVAL, "mask: heads and strides must not be negative");
    }
    if (!p->mask.row_stride_bytes) {
        p->mask.row_stride_bytes = p->n * (p->mask.type == KNA_F32 ? 4 : 2);
    }
    if (!p->mask.head_stride_bytes) {
        p->mask.head_stride_bytes = p->mask.row_stride_bytes * p->m;
    }
    return KNA_OK;
}

static int check_per_head(kna_context *context, const float *x, int64_t h, float low, const char *name)
{
    for (int64_t i = 0; x && i < h; i++) {
        if (is_bad(x[i], low)) {
            return KNA_FAIL(context, KNA_EVALUE, "%s: %g at head %lld is not finite or too small", name, (double)x[i], LL(i));
        }
    }
    return KNA_OK;
}

/* Labels of all keys; and what depends on k. */
static int check_groups(kna_context *context, const kna__problem *p)
{
    const kna_attend_options *o = &p->options;
    if (o->key_groups && (o->key_group_count < 1 || o->key_group_count > KNA_MAX_KEY_GROUPS)) {
        return KNA_FAIL(context, KNA_ELIMIT, "key_group_count: %lld is outside 1..%d", LL(o->key_group_count), KNA_MAX_KEY_GROUPS);
    }
    for (int64_t i = 0; o->key_groups && i < p->n; i++) {
        if (o->key_groups[i] < 0 || o->key_groups[i] >= o->key_group_count) {
            return KNA_FAIL(context, KNA_EINVAL, "key_groups: %d at key %lld is outside 0..%lld", (int)o->key_groups[i], LL(i),
                            LL(o->key_group_count - 1));
        }
    }
    if (o->pool < o->k_near && (o->diverse == KNA_DIVERSE_MMR || o->diverse == KNA_DIVERSE_DPP)) {
        return KNA_FAIL(context, KNA_EINVAL, "pool: %lld is below k_near, %lld", LL(o->pool), LL(o->k_near));
    }
    if (o->landmarks && o->landmarks >= o->k_near) {
        return KNA_FAIL(context, KNA_EINVAL, "landmarks: %lld is not below k_near, %lld", LL(o->landmarks), LL(o->k_near));
    }
    return KNA_OK;
}

static int64_t at_most(int64_t x, int64_t limit)
{
    return x < limit ? x : limit;
}

/* Defaults, and counts cut to what can matter, so that sums of them cannot overflow. */
static void fill_defaults(kna__problem *p)
{
    kna_attend_options *o = &p->options;
    p->scale = o->scale != 0 ? o->scale : 1.0f / sqrtf((float)p->d);
    o->k_near = at_most(o->k_near ? o->k_near : 384, KNA_MAX_ROWS);
    o->samples = at_most(o->samples ? o->samples : o->k_near, KNA_MAX_ROWS);
    o->hash_bits = o->hash_bits ? o->hash_bits : 10;
    o->hash_tables = o->hash_tables ? o->hash_tables : 150;
    o->groups = o->groups ? o->groups : (int64_t)ceil(8 * log(1 / (o->delta > 0 ? (double)o->delta : 0.05)));
    o->groups = at_most(o->groups, o->samples);
    o->near_sinks = o->near_sinks ? at_most(o->near_sinks < 0 ? 0 : o->near_sinks, KNA_MAX_ROWS) : 4;
    o->near_window = o->near_window ? at_most(o->near_window < 0 ? 0 : o->near_window, KNA_MAX_ROWS) : 64;
    o->window = at_most(o->window, FARTHEST);
    o->pool = at_most(o->pool ? o->pool : 4 * o->k_near, KNA_MAX_ROWS);
    o->mmr_lambda = o->mmr_lambda > 0 ? o->mmr_lambda : 0.7f;
    o->dpp_theta = o->dpp_theta > 0 ? o->dpp_theta : 4.0f;
    o->quota = o->quota > 0 ? o->quota : 0.2f;
    if (!p->out.row_stride_bytes) {
        p->out.row_stride_bytes = p->dv * (int64_t)sizeof(float);
    }
    if (!p->out.head_stride_bytes) {
        p->out.head_stride_bytes = p->out.row_stride_bytes * p->m;
    }
}

int kna__problem_init(kna__problem *p, kna_context *context, const kna_out_rows *out, float *lse, const kna_rows *q,
                      const kna_rows *k, const kna_rows *v, const kna_attend_options *options)
{
    static const kna_attend_options defaults = KNA_ATTEND_OPTIONS;
    if (!out || !q || !k || !v) {
        return KNA_FAIL(context, KNA_EINVAL, "out, queries, keys and values must not be null");
    }
    memset(p, 0, sizeof *p);
    p->context = context;
    p->kernels = context->kernels;
    p->q = *q;
    p->k = *k;
    p->v = *v;
    p->out = *out;
    p->lse = lse;
    KNA_TRY(check_options(context, options ? options : &defaults));
    p->options = options ? *options : defaults;
    p->mask = p->options.mask;
    KNA_TRY(check_rows(context, &p->q, "queries"));
    KNA_TRY(check_rows(context, &p->k, "keys"));
    KNA_TRY(check_rows(context, &p->v, "values"));
    KNA_TRY(check_shapes(context, p));
    p->h = q->heads;
    p->h_kv = k->heads;
    p->g = p->h / p->h_kv;
    p->m = q->rows;
    p->n = k->rows;
    p->d = q->dim;
    p->dv = v->dim;
    p->shift = p->n - p->m + p->options.causal_shift;
    if (p->m && !out->data) {
        return KNA_FAIL(context, KNA_EINVAL, "out: null data");
    }
    if (out->head_stride_bytes < 0 || out->row_stride_bytes < 0) {
        return KNA_FAIL(context, KNA_EINVAL, "out: strides must not be negative");
    }
    KNA_TRY(check_mask(context, p));
    KNA_TRY(check_per_head(context, p->options.slopes, p->h, p->mask.data ? 0x1p-126f : -0x1p127f, "slopes"));
    KNA_TRY(check_per_head(context, p->options.sinks, p->h, -0x1p127f, "sinks"));
    fill_defaults(p);
    return check_groups(context, p);
}
