/* prop_attend.c - exact attention against the double-precision oracle: shapes, types, layouts, options, both paths, all levels. */
#include "random_case.h"

#define TOLERANCE 1e-5 /* of max|v| */

/* The case as it is on every CPU level. */
static bool all_levels(random_case *c)
{
    kna_context *const *all;
    int count = contexts(&all);
    oracle *o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    expected *e = expected_exact(o, TOLERANCE);
    bool good = true;
    for (int i = 0; i < count && good; i++) {
        good = case_attend(c, all[i], NULL) == KNA_OK && case_matches(c, e);
        if (!good) printf("  on cpu %s\n", kna_cpu_name(kna_context_cpu(all[i])));
    }
    expected_free(e);
    oracle_free(o);
    return good;
}

static void random_cases(void)
{
    for (int i = 0; i < rounds(300); i++) {
        random_case c = { .guarded = false };
        case_random(&c, random_shape(2e6));
        all_levels(&c);
        case_end(&c);
    }
}

/* Every dimension up to 256, keys and values apart. */
static void every_dimension(void)
{
    static const int64_t groups[] = { 1, 3, 4, 8 };
    for (int64_t d = 1; d <= 256; d += RANDOM_SHARE) {
        int64_t g = groups[d % 4], h_kv = 1 + d % 3;
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ g * h_kv, h_kv, 1 + d % 5, 1 + (int64_t)test_below(90), d, 257 - d });
        c.options.causal = (int)(d % 2);
        all_levels(&c);
        case_end(&c);
    }
}

/* Every type of keys with every type of values, few queries and many. */
static void every_type(void)
{
    for (int type = 0; type < KNA_TYPE_COUNT * KNA_TYPE_COUNT; type++) {
        for (int64_t m = 1; m < 100; m += 60) {
            random_case c = { .guarded = false };
            case_begin(&c, (shape){ 6, 2, m, 150, 64, 96 });
            case_rows(&c, &c.k, type / KNA_TYPE_COUNT, (int)test_below(LAYOUT_COUNT), 1);
            case_rows(&c, &c.v, type % KNA_TYPE_COUNT, (int)test_below(LAYOUT_COUNT), 1);
            case_rows(&c, &c.q, random_query_type(), (int)test_below(LAYOUT_COUNT), 1);
            all_levels(&c);
            case_end(&c);
        }
    }
}

/* The largest dimension, the smallest of everything, and sizes where work is cut: 64 keys a tile, 512 a chunk, 24 to 192 rows. */
static void cuts(void)
{
    static const shape shapes[] = {
        { 1, 1, 1, 1, 1, 1 },      { 2, 1, 3, 17, 1024, 1024 }, { 1, 1, 1, 511, 3, 2 },   { 1, 1, 1, 512, 3, 2 },
        { 1, 1, 1, 513, 3, 2 },    { 3, 3, 2, 1025, 16, 16 },   { 8, 1, 2, 1600, 20, 9 }, { 16, 1, 1, 700, 8, 8 },
        { 17, 1, 1, 700, 8, 8 },   { 8, 1, 97, 129, 16, 12 },   { 1, 1, 24, 64, 5, 5 },   { 1, 1, 25, 65, 5, 5 },
        { 8, 2, 96, 128, 16, 16 }, { 8, 1, 400, 190, 7, 24 },   { 3, 1, 260, 64, 33, 1 }, { 4, 4, 200, 63, 2, 40 },
        { 4, 1, 200, 1, 8, 8 },    { 8, 2, 193, 65, 9, 9 },
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int causal = 0; causal < 2; causal++) {
            random_case c = { .guarded = false };
            case_begin(&c, shapes[i]);
            case_rows(&c, &c.k, KNA_F32, (int)test_below(LAYOUT_COUNT), 1);
            case_rows(&c, &c.v, KNA_F32, (int)test_below(LAYOUT_COUNT), 1);
            c.options.causal = causal;
            if (causal) c.options.window = 1 + (int64_t)test_below((size_t)shapes[i].n);
            all_levels(&c);
            case_end(&c);
        }
    }
}

/* Windows and causal limits that fall on, before and after every key, also where nothing is seen. */
static void edges_of_sight(void)
{
    for (int64_t shift = -12; shift <= 12; shift++) {
        for (int64_t window = 0; window < 12; window += 1 + window / 3) {
            random_case c = { .guarded = false };
            int64_t m = test_below(2) ? 3 : 20;
            case_begin(&c, (shape){ 2, 1, m, 8, 4, 4 });
            c.options.causal = (int)test_below(2);
            c.options.causal_shift = shift;
            c.options.window = window;
            if (test_below(2)) case_per_head(&c, &c.options.sinks, -1, 1);
            all_levels(&c);
            case_end(&c);
        }
    }
}

/* Values of options at the ends of their ranges. */
static void extreme_options(void)
{
    random_case c = { .guarded = false };
    for (int64_t m = 2; m < 60; m += 50) {
        case_begin(&c, (shape){ 2, 1, m, 40, 8, 8 });
        c.options.window = INT64_MAX;
        c.options.k_near = c.options.near_sinks = c.options.near_window = INT64_MAX;
        all_levels(&c);
        c.options.causal_shift = -KNA_MAX_ROWS; /* nobody sees anything */
        c.options.causal = 1;
        all_levels(&c);
        c.options.causal_shift = KNA_MAX_ROWS; /* everybody everything */
        all_levels(&c);
        c.options.method = KNA_KNN;
        all_levels(&c);
        c.options.near_sinks = c.options.near_window = INT64_MIN;
        c.options.method = KNA_TOPK;
        all_levels(&c);
        case_end(&c);
    }
}

/* No keys: zeros and -INFINITY, or the sink; no queries: nothing to do. On contexts that have never been used. */
static void nothing(void)
{
    for (int kind = 0; kind < 12; kind++) {
        int64_t m = kind & 1 ? 0 : kind & 2 ? 30 : 1;
        kna_context *fresh;
        random_case c = { .guarded = false };
        EXPECT_INT(kna_context_new(&fresh, NULL), KNA_OK);
        case_begin(&c, (shape){ 4, 2, m, kind & 2 ? 5 : 0, 8, 8 });
        c.options.method = kind / 4;
        c.options.unchecked = (int)test_below(2);
        if (test_below(2)) c.k.data = c.v.data = c.shape.n ? c.k.data : NULL;
        if (test_below(2)) case_per_head(&c, &c.options.sinks, -1, 1);
        c.v = c.shape.n ? c.v : (kna_rows){ NULL, KNA_F16, 2, 0, 8, 0, 0, NULL };
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        expected *e = expected_exact(o, TOLERANCE);
        kna_report report = { .size = sizeof report };
        if (case_attend(&c, fresh, &report) == KNA_OK) case_matches(&c, e);
        EXPECT(report.keys_seen == (double)(c.shape.h * m * c.shape.n));
        expected_free(e);
        oracle_free(o);
        kna_context_free(fresh);
        case_end(&c);
    }
}

/* The case with one query only, at the position it had among the others. */
static random_case one_query(const random_case *c, int64_t query)
{
    random_case alone = *c;
    kna_mask *mask = &alone.options.mask;
    int64_t q_bytes = c->q.row_stride_bytes ? c->q.row_stride_bytes : (int64_t)kna_type_row_bytes(c->q.type, c->shape.d);
    int64_t mask_bytes = mask->row_stride_bytes ? mask->row_stride_bytes : c->shape.n * (mask->type == KNA_F32 ? 4 : 2);
    alone.q.rows = alone.shape.m = 1;
    alone.q.data = (const char *)c->q.data + query * q_bytes;
    alone.q.head_stride_bytes = c->q.head_stride_bytes ? c->q.head_stride_bytes : c->shape.m * q_bytes;
    alone.options.causal_shift += query - c->shape.m + 1;
    if (mask->data) {
        mask->data = (const char *)mask->data + query * mask_bytes;
        mask->head_stride_bytes = mask->head_stride_bytes ? mask->head_stride_bytes : c->shape.m * mask_bytes;
    }
    return alone;
}

static bool agrees(const random_case *alone, const random_case *all, int64_t query, const expected *e)
{
    bool good = true;
    for (int64_t head = 0; head < all->shape.h && good; head++) {
        int64_t row = head * all->shape.m + query;
        const float *one = case_out_row(alone, head, 0), *many = case_out_row(all, head, query);
        for (int64_t i = 0; i < all->shape.dv && good; i++) good = EXPECT_NEAR(one[i], many[i], 2 * e->out_bound[row]);
        good = good && EXPECT_NEAR(alone->lse[head], all->lse[row], 2 * e->lse_bound[row]);
    }
    return good;
}

/* Many queries at once, and each alone: the two paths say the same. */
static void paths_agree(void)
{
    for (int i = 0; i < rounds(12); i++) {
        random_case c = { .guarded = false };
        case_random(&c, (shape){ 6, 2, 20 + (int64_t)test_below(60), 40 + (int64_t)test_below(700), 24, 32 });
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        expected *e = expected_exact(o, TOLERANCE);
        case_attend(&c, context_best(), NULL);
        for (int64_t query = 0; query < c.shape.m; query++) {
            random_case alone = one_query(&c, query);
            float out[6 * 32], lse[6];
            alone.out = (kna_out_rows){ out, 0, 0 };
            alone.lse = lse;
            if (case_attend(&alone, context_best(), NULL) != KNA_OK || !agrees(&alone, &c, query, e)) {
                printf("  query %lld of %s\n", (long long)query, case_text(&c));
                break;
            }
        }
        expected_free(e);
        oracle_free(o);
        case_end(&c);
    }
}

/* Operands that end where memory ends: one step further crashes. */
static void nothing_outside_is_read(void)
{
    for (int i = 0; i < rounds(40); i++) {
        random_case c = { .guarded = true };
        shape s = random_shape(2e5);
        if (i % 3 == 0) s = (shape){ 2, 1, 1 + (int64_t)test_below(30), 300 + (int64_t)test_below(1000), s.d, s.dv };
        case_random(&c, s);
        if (i % 6 == 0) c.options.mask.data = NULL;
        for (int method = 0; method < KNA_METHOD_COUNT; method++) {
            if (method == KNA_WINDOW) c.options = (kna_attend_options)KNA_ATTEND_OPTIONS; /* rivals follow few */
            c.options.method = method;
            c.options.k_near = 1 + (int64_t)test_below(20);
            c.options.near_window = c.options.near_sinks = -1;
            case_attend(&c, context_best(), NULL);
        }
        case_end(&c);
    }
}

/* Between the rows of the output nothing is written; every number of it is. */
static void nothing_else_is_written(void)
{
    for (int i = 0; i < rounds(30); i++) {
        random_case c = { .guarded = false };
        case_random(&c, random_shape(1e5));
        c.options.method = (int)test_below(KNA_METHOD_COUNT);
        if (c.options.method >= KNA_WINDOW) c.options = (kna_attend_options){ .size = sizeof c.options, .method = c.options.method };
        c.options.k_near = 2;
        int64_t row = c.shape.dv * 4, stride = row + 4 * (int64_t)test_below(4), rows = c.shape.h * c.shape.m;
        unsigned char *out = case_hold(&c, (size_t)(rows * stride));
        memset(out, 0xff, (size_t)(rows * stride)); /* NaN: a number not written shows */
        c.out = (kna_out_rows){ (float *)(void *)out, stride * c.shape.m, stride };
        case_attend(&c, context_best(), NULL);
        for (int64_t at = 0; at < rows * stride; at++) {
            if (at % stride >= row && !EXPECT_THAT(out[at] == 0xff, "byte %lld of a gap: %s", (long long)at, case_text(&c))) break;
            float x;
            if (at % stride < row && at % 4 == 0) {
                memcpy(&x, out + at, sizeof x);
                if (!EXPECT_THAT(isfinite(x), "byte %lld was not written: %s", (long long)at, case_text(&c))) break;
            }
        }
        case_end(&c);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(random_cases);
    TEST(every_dimension);
    TEST(every_type);
    TEST(cuts);
    TEST(edges_of_sight);
    TEST(extreme_options);
    TEST(nothing);
    TEST(paths_agree);
    TEST(nothing_outside_is_read);
    TEST(nothing_else_is_written);
    contexts_free();
    return test_end();
}
