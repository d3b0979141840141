/* prop_attend_knn.c - kNN attention against an independent statement of its definition; eps, audit and the report. */
#include "knn_oracle.h"

#define TOLERANCE 1e-5

static int64_t rows_tried, rows_doubtful;

static bool holds_on_all_levels(random_case *c, const bool *absent)
{
    kna_context *const *all;
    int count = contexts(&all);
    oracle *o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    o->absent = absent;
    knn_truth t = knn_truth_of(o, c, context_best(), TOLERANCE);
    bool good = true;
    for (int i = 0; i < count && good; i++) {
        good = knn_case_holds(c, all[i], &t);
        if (!good) printf("  on cpu %s\n", kna_cpu_name(kna_context_cpu(all[i])));
    }
    rows_tried += t.e->rows;
    rows_doubtful += t.doubtful;
    expected_free(t.e);
    oracle_free(o);
    return good;
}

static void random_near(random_case *c)
{
    kna_attend_options *o = &c->options;
    o->method = KNA_KNN;
    o->k_near = 1 + (int64_t)test_below(test_below(2) ? 10 : 100);
    o->near_sinks = (int64_t)test_below(8) - 1;
    o->near_window = test_below(3) ? (int64_t)test_below(40) - 1 : -1;
}

static void definition(void)
{
    rows_tried = rows_doubtful = 0;
    for (int i = 0; i < rounds(400); i++) {
        random_case c = { .guarded = false };
        case_random(&c, random_shape(1e6));
        random_near(&c);
        if (test_below(4) == 0) c.options.eps = (float)(0.3 * test_uniform());
        if (!holds_on_all_levels(&c, NULL)) i += 50;
        case_end(&c);
    }
    EXPECT_THAT(rows_doubtful <= rows_tried / 10, "%lld of %lld rows were in doubt", (long long)rows_doubtful,
                (long long)rows_tried);
}

/* Plain problems, where not one row is in doubt: many keys, peaked and flat, sinks and windows of all sizes. */
static void definition_without_doubt(void)
{
    rows_tried = rows_doubtful = 0;
    for (int i = 0; i < rounds(100); i++) {
        random_case c = { .guarded = false };
        int64_t h_kv = 1 + (int64_t)test_below(2), d = 8 + (int64_t)test_below(60);
        case_begin(&c, (shape){ 3 * h_kv, h_kv, 1 + (int64_t)test_below(6), 100 + (int64_t)test_below(900), d,
                                1 + (int64_t)test_below(40) });
        case_rows(&c, &c.q, random_query_type(), LAYOUT_PACKED, 3 * test_uniform());
        case_rows(&c, &c.k, random_type(d), (int)test_below(LAYOUT_COUNT), 1);
        case_rows(&c, &c.v, random_type(c.shape.dv), (int)test_below(LAYOUT_COUNT), 1);
        c.options.causal = (int)test_below(2);
        c.options.window = test_below(3) ? 0 : 50 + (int64_t)test_below(100);
        random_near(&c);
        holds_on_all_levels(&c, NULL);
        case_end(&c);
    }
    EXPECT_INT(rows_doubtful, 0);
}

/* The scan's ties go to the lower index; blocks whose keys are all copies. */
static void ties(void)
{
    for (int i = 0; i < rounds(40); i++) {
        random_case c = { .guarded = false };
        int64_t n = 100 + (int64_t)test_below(300), copies = 1 + (int64_t)test_below(20);
        case_begin(&c, (shape){ 2, 1, 2, n, 24, 5 });
        float *keys = (float *)(uintptr_t)c.k.data;
        for (int64_t j = 0; j < n; j++) memmove(keys + j * 24, keys + j % copies * 24, 24 * sizeof *keys);
        random_near(&c);
        holds_on_all_levels(&c, NULL);
        case_end(&c);
    }
}

/* Masks with finite numbers so low that they mean "forbidden" too: no sum may drown in them. */
static void low_finite_masks(void)
{
    static const float lows[] = { -1e4f, -65504.0f, -1e9f, -1e30f, -1e37f };
    for (int i = 0; i < rounds(50); i++) {
        random_case c = { .guarded = false };
        int64_t n = 200 + (int64_t)test_below(100), first = (int64_t)test_below(40), listed = first < 4 ? first : 4;
        case_begin(&c, (shape){ 1, 1, 1, n, 16, 4 });
        float *mask = case_hold(&c, (size_t)n * sizeof *mask);
        for (int64_t j = 0; j < n; j++) mask[j] = j < first ? lows[i % 5] : 0;
        c.options.mask = (kna_mask){ mask, KNA_F32, 1, 0, 0 };
        random_near(&c);
        c.options.near_sinks = listed ? listed : -1; /* the lowest are listed as sinks, and must be gone from their block */
        holds_on_all_levels(&c, NULL);
        case_end(&c);
    }
}

/* k that reaches every key: exact attention. */
static void k_of_all_keys(void)
{
    for (int i = 0; i < rounds(60); i++) {
        random_case c = { .guarded = false };
        case_random(&c, random_shape(5e5));
        c.options.method = KNA_KNN;
        c.options.k_near = c.shape.n + (int64_t)test_below(3);
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        expected *e = expected_exact(o, TOLERANCE);
        kna_report report = { .size = sizeof report };
        if (case_attend(&c, context_best(), &report) == KNA_OK) case_matches(&c, e);
        EXPECT(report.tail_mass == 0 && report.rows_exact == report.rows && report.keys_full == report.keys_seen);
        expected_free(e);
        oracle_free(o);
        case_end(&c);
    }
}

/* A smaller eps never reads less, and keeps its promise: the mean and the largest estimate are within it. */
static void eps_is_monotone(void)
{
    static const float eps[] = { 0.9f, 0.5f, 0.2f, 0.1f, 0.05f, 0.02f, 0.01f, 1e-3f, 1e-6f };
    for (int i = 0; i < rounds(30); i++) {
        random_case c = { .guarded = false };
        case_random(&c, (shape){ 4, 2, 1 + (int64_t)test_below(4), 300 + (int64_t)test_below(1200), 32, 32 });
        case_rows(&c, &c.q, KNA_F32, LAYOUT_PACKED, 4 * test_uniform());
        random_near(&c);
        double full = -1, exact = -1;
        for (size_t x = 0; x < sizeof eps / sizeof eps[0]; x++) {
            kna_report r = { .size = sizeof r };
            c.options.eps = eps[x];
            case_attend(&c, context_best(), &r);
            EXPECT_THAT(r.keys_full >= full && (double)r.rows_exact >= exact, "eps %g reads less: %s", (double)eps[x],
                        case_text(&c));
            EXPECT_THAT(r.error_est >= 0 && r.error_est_max <= (double)eps[x], "error_est = %g, at most %g: %s", r.error_est,
                        r.error_est_max, case_text(&c));
            full = r.keys_full;
            exact = (double)r.rows_exact;
        }
        case_end(&c);
    }
}

/* The estimated distance is that of the true weights, as far as int8 logits are true: compare with full precision. */
static double true_distance(const oracle *o, random_case *c)
{
    double worst = 0;
    knn_oracle *x = knn_oracle_new(o, c, context_best());
    double *out = malloc((size_t)o->dv * sizeof *out);
    for (int64_t row = 0; row < o->h * o->m; row++) {
        knn_row got = knn_oracle_row(x, row / o->m, row % o->m, out);
        worst = fmax(worst, got.error);
    }
    free(out);
    knn_oracle_free(x);
    return worst;
}

/* ---- audit */

/* ||out - exact|| / ||exact|| of every row. */
static double *true_errors(const random_case *c, const oracle *o)
{
    expected *e = expected_exact(o, TOLERANCE);
    double *errors = malloc((size_t)e->rows * sizeof *errors);
    for (int64_t row = 0; row < e->rows; row++) {
        const float *out = case_out_row(c, row / c->shape.m, row % c->shape.m);
        double off = 0, norm = 0;
        for (int64_t i = 0; i < e->dv; i++) {
            double truth = e->out[row * e->dv + i];
            off += ((double)out[i] - truth) * ((double)out[i] - truth);
            norm += truth * truth;
        }
        errors[row] = norm > 0 ? sqrt(off / norm) : sqrt(off);
    }
    expected_free(e);
    return errors;
}

/* Everything audited: the mean of the true errors, a p95 that at most one in twenty exceeds, and no bit of output changed. */
static void audit_of_all(void)
{
    for (int i = 0; i < rounds(60); i++) {
        random_case c = { .guarded = false };
        case_random(&c, random_shape(1e6));
        c.options.method = 1 + i % 2;
        c.options.k_near = 1 + (int64_t)test_below(20);
        c.options.near_sinks = c.options.near_window = 2;
        case_attend(&c, context_best(), NULL);
        float *plain = case_result(&c);
        c.options.audit = 1;
        kna_report r = { .size = sizeof r };
        case_attend(&c, context_best(), &r);
        float *audited = case_result(&c);
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        double *errors = true_errors(&c, o), mean = 0, above = 0, nearest = 1;
        int64_t rows = c.shape.h * c.shape.m;
        for (int64_t row = 0; row < rows; row++) {
            mean += errors[row] / (double)rows;
            above += errors[row] > r.audit_p95 * 1.001 + 1e-4;
            nearest = fmin(nearest, fabs(errors[row] - r.audit_p95));
        }
        EXPECT_THAT(memcmp(plain, audited, (size_t)(rows * (c.shape.dv + 1)) * sizeof *plain) == 0, "an audit changes: %s",
                    case_text(&c));
        EXPECT_THAT(r.audited == rows, "%lld of %lld rows audited: %s", (long long)r.audited, (long long)rows, case_text(&c));
        EXPECT_THAT(fabs(r.audit_mean - mean) <= 1e-3 * mean + 1e-4, "audit_mean = %g, expected %g: %s", r.audit_mean, mean,
                    case_text(&c));
        EXPECT_THAT(above <= (double)rows / 20, "%g of %lld errors are above p95 = %g: %s", above, (long long)rows, r.audit_p95,
                    case_text(&c));
        EXPECT_THAT(nearest <= 1e-3 * r.audit_p95 + 1e-4, "p95 = %g is nobody's error: %s", r.audit_p95, case_text(&c));
        free(plain);
        free(audited);
        free(errors);
        oracle_free(o);
        case_end(&c);
    }
}

/* A share of rows: about as many as asked (6 standard deviations), others for another seed, the same for the same. */
static void audit_of_some(void)
{
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 4, 2, 500, 40, 4, 4 });
    c.options.method = KNA_KNN;
    c.options.k_near = 3;
    c.options.near_sinks = c.options.near_window = -1;
    double means[3];
    for (int i = 0; i < 3; i++) {
        kna_report r = { .size = sizeof r };
        c.options.audit = 0.25f;
        c.options.seed = i < 2 ? 77 : 78;
        case_attend(&c, context_best(), &r);
        EXPECT_NEAR(r.audited, 500, 6 * sqrt(2000 * 0.25 * 0.75));
        EXPECT(r.error_est >= 0 && r.error_est_max >= r.error_est);
        means[i] = r.audit_mean;
    }
    EXPECT(means[0] == means[1]);
    EXPECT(means[0] != means[2]);
    kna_report r = { .size = sizeof r };
    c.options.audit = 0;
    case_attend(&c, context_best(), &r);
    EXPECT(r.audited == 0 && r.audit_mean < 0 && r.audit_p95 < 0 && r.error_est < 0 && r.error_est_max < 0);
    oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
    double worst = true_distance(o, &c);
    c.options.audit = 1;
    case_attend(&c, context_best(), &r);
    EXPECT_NEAR(r.error_est_max, worst, 1e-4);
    oracle_free(o);
    case_end(&c);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(definition);
    TEST(definition_without_doubt);
    TEST(ties);
    TEST(low_finite_masks);
    TEST(k_of_all_keys);
    TEST(eps_is_monotone);
    TEST(audit_of_all);
    TEST(audit_of_some);
    contexts_free();
    return test_end();
}
