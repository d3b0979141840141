/* random_case.c - see random_case.h. */
#include "random_case.h"

#include "../src/kernel/half.h"

/* ---- memory */
void *case_hold(random_case *c, size_t bytes)
{
    if (c->guarded) return test_guarded(bytes);
    void *memory = calloc(1, bytes ? bytes : 1);
    if (!memory || c->holds == (int)(sizeof c->held / sizeof c->held[0])) abort();
    return c->held[c->holds++] = memory;
}

void case_end(random_case *c)
{
    for (int i = 0; i < c->holds; i++) free(c->held[i]);
    c->holds = 0;
}

/* ---- operands */
static int64_t number_bytes(int type)
{
    return type == KNA_F32 ? 4 : type == KNA_I8 ? 1 : 2;
}

static int64_t stride_of(const kna_rows *rows)
{
    return rows->row_stride_bytes ? rows->row_stride_bytes : (int64_t)kna_type_row_bytes(rows->type, rows->dim);
}

static char *row_at(const kna_rows *rows, int64_t head, int64_t row)
{
    int64_t head_bytes = rows->head_stride_bytes ? rows->head_stride_bytes : stride_of(rows) * rows->rows;
    return (char *)(uintptr_t)rows->data + head * head_bytes + row * stride_of(rows);
}

void case_put(const kna_rows *rows, int64_t head, int64_t row, int64_t column, float x)
{
    char *at = row_at(rows, head, row) + column * number_bytes(rows->type);
    if (rows->type == KNA_F32) {
        memcpy(at, &x, sizeof x);
    } else {
        uint16_t half = rows->type == KNA_F16 ? kna__float_to_f16(x) : kna__float_to_bf16(x);
        memcpy(at, &half, sizeof half);
    }
}

static void fill_q8(char *at, int64_t dim, double deviation)
{
    for (int64_t c = 0; c < dim; c += 32, at += 34) {
        uint16_t scale = kna__float_to_f16((float)(deviation * (0.5 + test_uniform()) / 60));
        memcpy(at, &scale, sizeof scale);
        for (int i = 0; i < 32; i++) at[2 + i] = (char)((int)test_below(255) - 127);
    }
}

static void fill_row(const kna_rows *rows, float *scales, int64_t head, int64_t row, double deviation)
{
    char *at = row_at(rows, head, row);
    if (rows->type == KNA_Q8_0) {
        fill_q8(at, rows->dim, deviation);
    } else if (rows->type == KNA_I8) {
        scales[head * rows->rows + row] = (float)(deviation * (0.5 + test_uniform()) / 60);
        for (int64_t c = 0; c < rows->dim; c++) at[c] = (char)((int)test_below(255) - 127);
    } else {
        for (int64_t c = 0; c < rows->dim; c++) case_put(rows, head, row, c, (float)(deviation * test_normal()));
    }
}

/* Strides of a layout; returns the bytes from the first to the last number. */
static int64_t lay_out(int layout, int64_t heads, int64_t count, int64_t row_bytes, int64_t unit, int64_t *head_stride,
                       int64_t *row_stride)
{
    *head_stride = *row_stride = 0;
    if (layout == LAYOUT_PACKED) return heads * count * row_bytes;
    int64_t pad = unit * (1 + (int64_t)test_below(5));
    if (layout == LAYOUT_PADDED) {
        *row_stride = row_bytes + pad;
        *head_stride = *row_stride * count + pad;
    } else {
        *head_stride = row_bytes + pad;
        *row_stride = *head_stride * heads;
    }
    return count ? (heads - 1) * *head_stride + (count - 1) * *row_stride + row_bytes : 0;
}

void case_rows(random_case *c, kna_rows *rows, int type, int layout, double deviation)
{
    int64_t unit = number_bytes(type), row_bytes = (int64_t)kna_type_row_bytes(type, rows->dim);
    int64_t shift = layout == LAYOUT_PACKED ? 0 : unit * (int64_t)test_below(9);
    int64_t bytes =
        shift + lay_out(layout, rows->heads, rows->rows, row_bytes, unit, &rows->head_stride_bytes, &rows->row_stride_bytes);
    char *memory = case_hold(c, (size_t)bytes);
    memset(memory, 0xff, (size_t)bytes);
    float *scales = type == KNA_I8 ? case_hold(c, (size_t)(rows->heads * rows->rows) * sizeof *scales) : NULL;
    rows->type = type;
    rows->data = memory + shift;
    rows->scales = scales;
    for (int64_t head = 0; head < rows->heads; head++) {
        for (int64_t row = 0; row < rows->rows; row++) fill_row(rows, scales, head, row, deviation);
    }
}

void case_out(random_case *c, int layout)
{
    int64_t bytes =
        lay_out(layout, c->shape.h, c->shape.m, c->shape.dv * 4, 4, &c->out.head_stride_bytes, &c->out.row_stride_bytes);
    c->out.data = case_hold(c, (size_t)bytes);
}

const float *case_out_row(const random_case *c, int64_t head, int64_t query)
{
    int64_t row = c->out.row_stride_bytes ? c->out.row_stride_bytes : c->shape.dv * 4;
    int64_t group = c->out.head_stride_bytes ? c->out.head_stride_bytes : row * c->shape.m;
    return (const float *)(const void *)((const char *)c->out.data + head * group + query * row);
}

void case_begin(random_case *c, shape s)
{
    static const kna_attend_options defaults = KNA_ATTEND_OPTIONS;
    bool guarded = c->guarded;
    memset(c, 0, sizeof *c);
    c->guarded = guarded;
    c->shape = s;
    c->options = defaults;
    c->q = (kna_rows){ NULL, 0, s.h, s.m, s.d, 0, 0, NULL };
    c->k = (kna_rows){ NULL, 0, s.h_kv, s.n, s.d, 0, 0, NULL };
    c->v = (kna_rows){ NULL, 0, s.h_kv, s.n, s.dv, 0, 0, NULL };
    case_rows(c, &c->q, KNA_F32, LAYOUT_PACKED, 1);
    case_rows(c, &c->k, KNA_F32, LAYOUT_PACKED, 1);
    case_rows(c, &c->v, KNA_F32, LAYOUT_PACKED, 1);
    case_out(c, LAYOUT_PACKED);
    c->lse = case_hold(c, (size_t)(s.h * s.m) * sizeof *c->lse);
}

/* ---- masks */
static char *mask_at(const random_case *c, int64_t head, int64_t query, int64_t key)
{
    const kna_mask *mask = &c->options.mask;
    int64_t number = number_bytes(mask->type);
    int64_t row = mask->row_stride_bytes ? mask->row_stride_bytes : number * c->shape.n;
    int64_t group = mask->head_stride_bytes ? mask->head_stride_bytes : row * c->shape.m;
    return (char *)(uintptr_t)mask->data + head * group + query * row + key * number;
}

void case_put_mask(const random_case *c, int64_t head, int64_t query, int64_t key, float x)
{
    uint16_t half = kna__float_to_f16(x);
    if (c->options.mask.type == KNA_F32) {
        memcpy(mask_at(c, head, query, key), &x, sizeof x);
    } else {
        memcpy(mask_at(c, head, query, key), &half, sizeof half);
    }
}

void case_forbid(const random_case *c, int64_t mask_head, int64_t query, int64_t key)
{
    case_put_mask(c, mask_head, query, key, -INFINITY);
}

static void fill_mask_row(const random_case *c, int64_t head, int64_t query, double forbidden, bool stripes, bool whole_rows)
{
    int64_t n = c->shape.n, first = 0, end = 0;
    if (stripes && n) {
        first = (int64_t)test_below((size_t)n);
        end = first + (int64_t)test_below((size_t)n);
    }
    bool all = whole_rows && test_below(4) == 0;
    bool biased = test_below(2);
    for (int64_t j = 0; j < n; j++) {
        bool is_forbidden = all || (j >= first && j < end) || test_uniform() < forbidden;
        case_put_mask(c, head, query, j, is_forbidden ? -INFINITY : biased ? (float)test_normal() : 0.0f);
    }
}

void case_mask(random_case *c, int type, int64_t heads, double forbidden, bool stripes, bool whole_rows)
{
    kna_mask *mask = &c->options.mask;
    int64_t unit = number_bytes(type);
    mask->type = type;
    mask->heads = heads;
    int64_t bytes = lay_out((int)test_below(LAYOUT_COUNT), heads, c->shape.m, unit * c->shape.n, unit, &mask->head_stride_bytes,
                            &mask->row_stride_bytes);
    char *memory = case_hold(c, (size_t)bytes);
    memset(memory, 0xff, (size_t)bytes);
    mask->data = memory;
    if (heads == 1 && test_below(2)) mask->heads = 0; /* read as 1 */
    for (int64_t head = 0; head < heads; head++) {
        for (int64_t query = 0; query < c->shape.m; query++) fill_mask_row(c, head, query, forbidden, stripes, whole_rows);
    }
}

void case_per_head(random_case *c, const float **values, double low, double high)
{
    float *x = case_hold(c, (size_t)c->shape.h * sizeof *x);
    for (int64_t i = 0; i < c->shape.h; i++) x[i] = (float)(low + (high - low) * test_uniform());
    *values = x;
}

/* ---- at random */
int random_type(int64_t d)
{
    int type = (int)test_below(KNA_TYPE_COUNT);
    return kna_type_row_bytes(type, d) ? type : KNA_F16;
}

int random_query_type(void)
{
    static const int types[] = { KNA_F32, KNA_F32, KNA_F16, KNA_BF16 };
    return types[test_below(4)];
}

static int64_t random_dim(void)
{
    static const int64_t usual[] = { 32, 64, 96, 128, 256 };
    return test_below(3) ? 1 + (int64_t)test_below(256) : usual[test_below(5)];
}

static int64_t random_count(int64_t most)
{
    double x = exp(test_uniform() * log((double)most + 1)); /* as many small as large ones */
    return (int64_t)x < 1 ? 1 : (int64_t)x > most ? most : (int64_t)x;
}

shape random_shape(double work)
{
    static const int64_t groups[] = { 1, 3, 4, 8 };
    shape s;
    do {
        s.h_kv = 1 + (int64_t)test_below(4);
        s.h = s.h_kv * groups[test_below(4)];
        s.d = random_dim();
        s.dv = test_below(2) ? s.d : random_dim();
        s.n = random_count(2000);
        s.m = test_below(4) ? random_count(400) : 1;
    } while ((double)(s.h * s.m * s.n * (s.d + s.dv)) > work);
    return s;
}

static void random_mask(random_case *c)
{
    int64_t heads[] = { 1, 1, c->shape.h, c->shape.h_kv, 2 };
    double forbidden = test_below(2) ? 0 : test_uniform();
    case_mask(c, test_below(2) ? KNA_F32 : KNA_F16, heads[test_below(5)], forbidden, test_below(2), test_below(3) == 0);
}

void case_random(random_case *c, shape s)
{
    kna_attend_options *o = &c->options;
    case_begin(c, s);
    case_rows(c, &c->q, random_query_type(), (int)test_below(LAYOUT_COUNT), 1);
    case_rows(c, &c->k, random_type(s.d), (int)test_below(LAYOUT_COUNT), 1);
    case_rows(c, &c->v, random_type(s.dv), (int)test_below(LAYOUT_COUNT), 1);
    case_out(c, (int)test_below(LAYOUT_COUNT));
    o->causal = (int)test_below(2);
    if (test_below(3) == 0) o->causal_shift = (int64_t)test_below((size_t)(s.n + s.m)) - s.n / 2;
    if (test_below(3) == 0) o->window = 1 + (int64_t)test_below((size_t)s.n);
    if (test_below(3) == 0) o->softcap = (float)(1 + 30 * test_uniform());
    if (test_below(4) == 0) o->scale = (float)((test_uniform() - 0.3) / sqrt((double)s.d));
    if (test_below(2)) random_mask(c);
    if (test_below(3) == 0) case_per_head(c, &o->slopes, 0.01, 0.5);
    if (test_below(3) == 0) case_per_head(c, &o->sinks, -3, 6);
}

const char *case_text(random_case *c)
{
    const kna_attend_options *o = &c->options;
    snprintf(c->text, sizeof c->text,
             "h=%lld/%lld m=%lld n=%lld d=%lld dv=%lld q=%s k=%s v=%s causal=%d shift=%lld window=%lld cap=%g scale=%g "
             "mask=%s/%lld%s%s method=%s k_near=%lld sinks=%lld near=%lld eps=%g",
             (long long)c->shape.h, (long long)c->shape.h_kv, (long long)c->shape.m, (long long)c->shape.n, (long long)c->shape.d,
             (long long)c->shape.dv, kna_type_name(c->q.type), kna_type_name(c->k.type), kna_type_name(c->v.type), o->causal,
             (long long)o->causal_shift, (long long)o->window, (double)o->softcap, (double)o->scale,
             o->mask.data ? kna_type_name(o->mask.type) : "none", (long long)o->mask.heads, o->slopes ? " slopes" : "",
             o->sinks ? " sinks" : "", kna_method_name(o->method), (long long)o->k_near, (long long)o->near_sinks,
             (long long)o->near_window, (double)o->eps);
    return c->text;
}

/* ---- contexts */
static kna_context *all_contexts[KNA_CPU_COUNT];
static int context_count;

static void make_contexts(void)
{
    for (int cpu = KNA_CPU_REF; cpu < KNA_CPU_COUNT; cpu++) {
        kna_context_options options = KNA_CONTEXT_OPTIONS;
        options.cpu = cpu;
        options.threads = 1; /* waiting for each other costs more than these problems do */
        if (!kna_cpu_is_present(cpu)) continue;
        if (kna_context_new(&all_contexts[context_count], &options) != KNA_OK) abort();
        context_count++;
    }
}

int contexts(kna_context *const **all)
{
    if (!context_count) make_contexts();
    *all = all_contexts;
    return context_count;
}

kna_context *context_best(void)
{
    kna_context *const *all;
    int count = contexts(&all);
    return all[count - 1];
}

void contexts_free(void)
{
    while (context_count) kna_context_free(all_contexts[--context_count]);
}

/* ---- runs */
int case_attend(random_case *c, kna_context *context, kna_report *report)
{
    int status = kna_attend(context, &c->out, c->lse, report, &c->q, &c->k, &c->v, &c->options);
    EXPECT_THAT(status == KNA_OK, "%s: %s", kna_context_message(context), case_text(c));
    return status;
}

float *case_result(const random_case *c)
{
    int64_t rows = c->shape.h * c->shape.m, dv = c->shape.dv;
    float *all = malloc((size_t)(rows * (dv + 1) + 1) * sizeof *all);
    for (int64_t i = 0; i < rows; i++) {
        memcpy(all + i * (dv + 1), case_out_row(c, i / c->shape.m, i % c->shape.m), (size_t)dv * sizeof *all);
        all[i * (dv + 1) + dv] = c->lse[i];
    }
    return all;
}

expected *expected_new(const oracle *o)
{
    expected *e = calloc(1, sizeof *e);
    size_t rows = (size_t)(o->h * o->m) + 1;
    e->rows = o->h * o->m;
    e->dv = o->dv;
    e->out = calloc(rows * (size_t)o->dv, sizeof *e->out);
    e->lse = calloc(rows, sizeof *e->lse);
    e->out_bound = calloc(rows, sizeof *e->out_bound);
    e->lse_bound = calloc(rows, sizeof *e->lse_bound);
    return e;
}

void expected_free(expected *e)
{
    if (!e) return;
    free(e->out);
    free(e->lse);
    free(e->out_bound);
    free(e->lse_bound);
    free(e);
}

void expected_bounds(expected *e, const oracle *o, int64_t head, int64_t query, const double *logits, double tolerance)
{
    int64_t row = head * o->m + query;
    double slack = oracle_finish_slack(o, head, query, logits);
    e->out_bound[row] = (tolerance + 2 * slack) * o->v_most[head / o->g];
    e->lse_bound[row] = tolerance + slack + (isfinite(e->lse[row]) ? 0x1p-22 * fabs(e->lse[row]) : 0);
}

expected *expected_exact(const oracle *o, double tolerance)
{
    expected *e = expected_new(o);
    double *logits = malloc((size_t)(o->n + 1) * sizeof *logits);
    for (int64_t row = 0; row < e->rows; row++) {
        oracle_logits(o, row / o->m, row % o->m, logits);
        e->lse[row] = oracle_mix(o, row / o->m, logits, e->out + row * o->dv);
        expected_bounds(e, o, row / o->m, row % o->m, logits, tolerance);
    }
    free(logits);
    return e;
}

static bool row_matches(random_case *c, const expected *e, int64_t row)
{
    const float *got = case_out_row(c, row / c->shape.m, row % c->shape.m);
    const double *want = e->out + row * e->dv;
    int64_t worst = 0;
    for (int64_t i = 0; i < e->dv; i++) {
        if (!(fabs((double)got[i] - want[i]) <= fabs((double)got[worst] - want[worst]))) worst = i; /* NaN is the worst */
    }
    double off = fabs((double)got[worst] - want[worst]), lse = (double)c->lse[row], want_lse = e->lse[row];
    bool near = isfinite(want_lse) ? fabs(lse - want_lse) <= e->lse_bound[row] : lse == want_lse;
    return EXPECT_THAT(isfinite(got[worst]) && off <= e->out_bound[row],
                       "out[%lld][%lld][%lld] = %.9g, expected %.9g within %.3g, off by %.3g: %s", (long long)(row / c->shape.m),
                       (long long)(row % c->shape.m), (long long)worst, (double)got[worst], want[worst], e->out_bound[row], off,
                       case_text(c)) &&
           EXPECT_THAT(near, "lse[%lld][%lld] = %.9g, expected %.9g within %.3g: %s", (long long)(row / c->shape.m),
                       (long long)(row % c->shape.m), lse, want_lse, e->lse_bound[row], case_text(c));
}

bool case_matches(random_case *c, const expected *e)
{
    for (int64_t row = 0; row < e->rows; row++) {
        if (!row_matches(c, e, row)) return false;
    }
    return true;
}
