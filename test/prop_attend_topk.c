/* prop_attend_topk.c - top-k attention equals the softmax over the true k largest logits, whatever the int8 scan makes of them. */
#include "random_case.h"

#define TOLERANCE 1e-5

typedef struct topk_truth {
    expected *e;
    double seen, full, tail_mass, tail_bound; /* tail mass: mean over rows that see a key, and how far it may be off */
    int64_t skipped;                          /* rows where the k-th and the next logit are too near to tell in f32 */
} topk_truth;

/* How far an int8 scan may be off: half a step of the key in every column, times |q|, and a little for the query's own int8. */
static double scan_error(const oracle *o, int64_t head, int64_t query, int64_t key)
{
    const double *q = o->q + (head * o->m + query) * o->d, *k = o->k + (head / o->g * o->n + key) * o->d;
    double sum = 0, most = 0;
    for (int64_t c = 0; c < o->d; c++) {
        sum += fabs(q[c]);
        most = fmax(most, fabs(k[c]));
    }
    return 0.6 * fabs(o->scale) * sum * most / 127;
}

static void truth_of_row(topk_truth *t, const oracle *o, int64_t row, double *logits, double *all)
{
    int64_t head = row / o->m, query = row % o->m, seen = 0;
    double error = 0;
    oracle_logits(o, head, query, all);
    for (int64_t j = 0; j < o->n; j++) {
        bool sees = all[j] > -(double)INFINITY;
        seen += sees;
        if (sees) error = fmax(error, scan_error(o, head, query, j));
    }
    memcpy(logits, all, (size_t)o->n * sizeof *logits);
    double gap = oracle_keep_largest(logits, o->n, o->options.k_near);
    double doubt = 2 * (oracle_finish_slack(o, head, query, logits) + oracle_product_slack(o, head, query, logits));
    t->e->lse[row] = oracle_mix(o, head, logits, t->e->out + row * o->dv);
    expected_bounds(t->e, o, head, query, logits, TOLERANCE);
    if (gap < doubt) {
        t->e->out_bound[row] = t->e->lse_bound[row] = 100;
        t->skipped++;
    }
    t->seen += (double)seen;
    t->full += (double)(seen < o->options.k_near ? seen : o->options.k_near);
    double *ignored = malloc((size_t)o->dv * sizeof *ignored), lse = oracle_mix(o, head, all, ignored);
    if (seen) {
        t->tail_mass += -expm1(t->e->lse[row] - lse);
        t->tail_bound += expm1(2 * error) + 1e-5;
    }
    free(ignored);
}

static topk_truth truth_of(const oracle *o)
{
    topk_truth t = { expected_new(o), 0, 0, 0, 0, 0 };
    double *logits = malloc((size_t)(o->n + 1) * sizeof *logits), *all = malloc((size_t)(o->n + 1) * sizeof *all);
    int64_t seeing = 0;
    for (int64_t row = 0; row < t.e->rows; row++) {
        double before = t.seen;
        truth_of_row(&t, o, row, logits, all);
        seeing += t.seen > before;
    }
    t.tail_mass /= seeing ? (double)seeing : 1;
    t.tail_bound /= seeing ? (double)seeing : 1;
    free(logits);
    free(all);
    return t;
}

static int64_t rows_tried, rows_skipped;

static void check_levels(random_case *c)
{
    kna_context *const *all;
    int count = contexts(&all);
    oracle *o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    topk_truth t = truth_of(o);
    for (int i = 0; i < count; i++) {
        kna_report report = { .size = sizeof report };
        if (case_attend(c, all[i], &report) != KNA_OK || !case_matches(c, t.e)) {
            printf("  on cpu %s\n", kna_cpu_name(kna_context_cpu(all[i])));
            break;
        }
        EXPECT_THAT(report.keys_seen == t.seen, "keys_seen = %g, expected %g: %s", report.keys_seen, t.seen, case_text(c));
        EXPECT_THAT(report.keys_full == t.full, "keys_full = %g, expected %g: %s", report.keys_full, t.full, case_text(c));
        EXPECT_THAT(fabs(report.tail_mass - t.tail_mass) <= t.tail_bound, "tail_mass = %g, expected %g within %g: %s",
                    report.tail_mass, t.tail_mass, t.tail_bound, case_text(c));
        EXPECT_THAT(report.stale_rows == 0, "%lld stale rows of an own index: %s", (long long)report.stale_rows, case_text(c));
    }
    rows_tried += t.e->rows;
    rows_skipped += t.skipped;
    expected_free(t.e);
    oracle_free(o);
}

static void random_cases(void)
{
    rows_tried = rows_skipped = 0;
    for (int i = 0; i < rounds(300); i++) {
        random_case c = { .guarded = false };
        case_random(&c, random_shape(1e6));
        c.options.method = KNA_TOPK;
        c.options.k_near = 1 + (int64_t)test_below(test_below(2) ? 10 : 200);
        check_levels(&c);
        case_end(&c);
    }
    EXPECT_THAT(rows_skipped <= rows_tried / 10, "%lld of %lld rows were too near to tell", (long long)rows_skipped,
                (long long)rows_tried);
}

/* Numbers of very different sizes in a row, where int8 is at its worst. */
static void lopsided_numbers(void)
{
    for (int i = 0; i < rounds(60); i++) {
        random_case c = { .guarded = false };
        shape s = { 2, 1, 3, 200 + (int64_t)test_below(600), 1 + (int64_t)test_below(300), 8 };
        case_begin(&c, s);
        float *q = (float *)(uintptr_t)c.q.data, *k = (float *)(uintptr_t)c.k.data;
        for (int64_t x = 0; x < s.h * s.m * s.d; x++) q[x] *= test_below(8) ? 0.01f : 1;
        for (int64_t x = 0; x < s.n * s.d; x++) k[x] *= test_below(8) ? 0.01f : 1;
        c.options.method = KNA_TOPK;
        c.options.k_near = 1 + (int64_t)test_below(20);
        check_levels(&c);
        case_end(&c);
    }
}

/*
 * Two keys that int8 puts in the wrong order by more than half a step of each column allows: what is lost of the query itself
 * adds up over 1,023 small columns, all with the sign that favours the wrong key.
 */
static void worst_case_of_the_scan(void)
{
    enum { D = 1024, N = 256 };
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 1, 1, 1, N, D, 1 });
    float *q = (float *)(uintptr_t)c.q.data, *k = (float *)(uintptr_t)c.k.data, *v = (float *)(uintptr_t)c.v.data;
    memset(k, 0, sizeof(float) * N * D);
    memset(v, 0, sizeof(float) * N);
    double most = 0.499 / 127, step = most / 127; /* of the query's first rest */
    int64_t good = 200, bad = 17;
    q[0] = 1;
    q[1] = (float)most;
    for (int64_t x = 2; x < D; x++) {
        int sign = x % 2 ? 1 : -1;
        q[x] = (float)((10 + 0.49 * sign) * step);
        k[good * D + x] = (float)sign;
        k[bad * D + x] = (float)-sign;
    }
    k[good * D] = 100 / 127.0f;
    k[bad * D] = 103 / 127.0f;
    v[good] = 1;
    c.options.method = KNA_TOPK;
    c.options.k_near = 1;
    c.options.scale = 1;
    check_levels(&c);
    EXPECT_NEAR(c.out.data[0], 1, 1e-6);
    case_end(&c);
}

/* Keys that are copies of each other: the lower index is taken, on both sides of blocks of 16. */
static void ties(void)
{
    for (int i = 0; i < rounds(60); i++) {
        random_case c = { .guarded = false };
        int64_t n = 20 + (int64_t)test_below(300), k = 1 + (int64_t)test_below((size_t)n - 1), copies = 1 + (int64_t)test_below(5);
        case_begin(&c, (shape){ 2, 1, 1 + (int64_t)test_below(3), n, 33, 7 });
        case_rows(&c, &c.k, test_below(2) ? KNA_F32 : KNA_F16, LAYOUT_PACKED, 1);
        size_t row_bytes = kna_type_row_bytes(c.k.type, 33);
        char *keys = (char *)(uintptr_t)c.k.data;
        for (int64_t j = 0; j < n; j++) memmove(keys + (size_t)j * row_bytes, keys + (size_t)(j % copies) * row_bytes, row_bytes);
        c.options.method = KNA_TOPK;
        c.options.k_near = k;
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        topk_truth t = truth_of(o); /* its logits of copies are equal to the bit too */
        for (int64_t row = 0; row < t.e->rows; row++) {
            if (t.e->out_bound[row] == 100) t.e->out_bound[row] = t.e->lse_bound[row] = 1e-4;
        }
        kna_context *const *all;
        int count = contexts(&all);
        for (int x = 0; x < count; x++) {
            if (case_attend(&c, all[x], NULL) == KNA_OK) case_matches(&c, t.e);
        }
        expected_free(t.e);
        oracle_free(o);
        case_end(&c);
    }
}

/* k at or above what a query sees is exact attention; k = 1 without a sink is the value of the nearest key, to the bit. */
static void limits_of_k(void)
{
    for (int i = 0; i < rounds(40); i++) {
        random_case c = { .guarded = false };
        case_random(&c, random_shape(2e5));
        c.options.method = KNA_TOPK;
        c.options.k_near = c.shape.n + (int64_t)test_below(2);
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        expected *e = expected_exact(o, TOLERANCE);
        kna_report report = { .size = sizeof report };
        if (case_attend(&c, context_best(), &report) == KNA_OK) case_matches(&c, e);
        EXPECT(report.tail_mass == 0 && report.keys_full == report.keys_seen && report.rows_exact == report.rows);
        c.options.k_near = 1;
        c.options.sinks = NULL;
        case_attend(&c, context_best(), NULL);
        for (int64_t row = 0; row < e->rows; row++) {
            const float *out = case_out_row(&c, row / c.shape.m, row % c.shape.m);
            bool found = c.lse[row] == -INFINITY;
            for (int64_t j = 0; j < c.shape.n && !found; j++) {
                int64_t x = 0;
                const double *v = o->v + (row / c.shape.m / o->g * o->n + j) * o->dv;
                while (x < o->dv && fabs((double)out[x] - v[x]) <= 0x1p-23 * fabs(v[x])) x++;
                found = x == o->dv;
            }
            if (!EXPECT_THAT(found, "row %lld is nobody's value: %s", (long long)row, case_text(&c))) break;
        }
        expected_free(e);
        oracle_free(o);
        case_end(&c);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(random_cases);
    TEST(lopsided_numbers);
    TEST(worst_case_of_the_scan);
    TEST(ties);
    TEST(limits_of_k);
    contexts_free();
    return test_end();
}
