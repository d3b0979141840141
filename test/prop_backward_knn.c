/*
 * prop_backward_knn.c - gradients of kNN attention: of one tile against the double-precision oracle, sets held fixed; of many tiles
 * and blocks by what must hold of any.
 */
#include "knn_oracle.h"

static int64_t rows_tried, rows_doubtful;

typedef struct back_case {
    random_case *c;
    kna_rows dout, out;
    kna_gradients gradients;
    double *dout_numbers;
} back_case;

static back_case begin(random_case *c)
{
    shape s = c->shape;
    back_case b = { .c = c };
    c->options.method = KNA_KNN;
    c->options.differentiable = 1;
    b.dout = (kna_rows){ NULL, KNA_F32, s.h, s.m, s.dv, 0, 0, NULL };
    case_rows(c, &b.dout, KNA_F32, LAYOUT_PACKED, 1);
    b.out = (kna_rows){ c->out.data, KNA_F32, s.h, s.m, s.dv, c->out.head_stride_bytes, c->out.row_stride_bytes, NULL };
    b.gradients.dq.data = case_hold(c, (size_t)(s.h * s.m * s.d) * sizeof(float));
    b.gradients.dk.data = case_hold(c, (size_t)(s.h_kv * s.n * s.d) * sizeof(float));
    b.gradients.dv.data = case_hold(c, (size_t)(s.h_kv * s.n * s.dv) * sizeof(float));
    b.dout_numbers = case_hold(c, (size_t)(s.h * s.m * s.dv) * sizeof(double));
    for (int64_t i = 0; i < s.h * s.m * s.dv; i++) {
        b.dout_numbers[i] = oracle_number(&b.dout, i / s.dv / s.m, i / s.dv % s.m, i % s.dv);
    }
    return b;
}

static int backward(const back_case *b, kna_context *context)
{
    const random_case *c = b->c;
    kna_attend_options options = c->options;
    options.index = NULL;
    int status = kna_attend_backward(context, &b->gradients, &b->dout, &b->out, c->lse, &c->q, &c->k, &c->v, &options);
    if (status != KNA_OK) printf("  %s\n", kna_context_message(context));
    return status;
}

static bool near(const back_case *b, const float *got, const double *want, const double *slack, int64_t n, const char *name)
{
    int64_t i = 0; /* one expectation: there are millions of numbers */
    while (i < n && fabs((double)got[i] - want[i]) <= slack[i] + 1e-7) i++;
    return EXPECT_THAT(i == n, "%s[%lld]: %.9g, expected %.9g +- %.2g; %s", name, (long long)i, (double)got[i < n ? i : 0],
                       want[i < n ? i : 0], slack[i < n ? i : 0], case_text(b->c));
}

/* The index of a call of its own, as it is after the call: its clusters are those the gradients were taken with. */
static bool holds(random_case *c, kna_context *context)
{
    back_case b = begin(c);
    shape s = c->shape;
    c->options.index = knn_index_of(c, context);
    c->options.index->phase = 0;
    bool good = EXPECT_INT(case_attend(c, context, NULL), KNA_OK) && EXPECT_INT(backward(&b, context), KNA_OK);
    oracle *o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    knn_truth t = knn_gradients_of(o, c->options.index, s.m, b.dout_numbers);
    good = good && case_matches(c, t.e);
    rows_tried += t.e->rows;
    rows_doubtful += t.doubtful;
    if (good && !t.doubtful) {
        good = near(&b, b.gradients.dq.data, t.gradients->dq, t.gradients->dq_slack, s.h * s.m * s.d, "dq") &&
               near(&b, b.gradients.dk.data, t.gradients->dk, t.gradients->dk_slack, s.h_kv * s.n * s.d, "dk") &&
               near(&b, b.gradients.dv.data, t.gradients->dv, t.gradients->dv_slack, s.h_kv * s.n * s.dv, "dv");
    }
    if (!good) printf("  on cpu %s\n", kna_cpu_name(kna_context_cpu(context)));
    gradient_oracle_free(t.gradients);
    expected_free(t.e);
    oracle_free(o);
    kna_index_free(c->options.index);
    c->options.index = NULL;
    return good;
}

static kna_context *random_context(void)
{
    kna_context *const *all;
    int count = contexts(&all);
    return all[test_below((size_t)count)];
}

static void one_tile(void)
{
    rows_tried = rows_doubtful = 0;
    for (int i = 0; i < rounds(28); i++) {
        static const int64_t groups[] = { 1, 3, 4, 8 };
        random_case c = { .guarded = false };
        int64_t g = groups[i % 4], h_kv = 1 + (int64_t)test_below(2), m = 24 / g - (int64_t)test_below(g == 1 ? 8 : g == 3 ? 3 : 1);
        case_begin(&c, (shape){ g * h_kv, h_kv, m, 300 + (int64_t)test_below(2200), 1 + (int64_t)test_below(40),
                                1 + (int64_t)test_below(40) });
        case_rows(&c, &c.q, KNA_F32, LAYOUT_PACKED, 0.5 + 2 * test_uniform());
        case_rows(&c, &c.k, random_type(c.shape.d), (int)test_below(LAYOUT_COUNT), 1);
        case_rows(&c, &c.v, random_type(c.shape.dv), (int)test_below(LAYOUT_COUNT), 1);
        c.options.k_near = 1 + (int64_t)test_below(60);
        c.options.causal = (int)test_below(2);
        c.options.softcap = test_below(3) ? 0 : (float)(5 + 20 * test_uniform());
        if (test_below(3) == 0) case_per_head(&c, &c.options.sinks, -3, 6);
        if (test_below(4) == 0) c.options.window = 300 + (int64_t)test_below(1500);
        if (c.options.k_near + 68 < c.shape.n) holds(&c, random_context());
        case_end(&c);
    }
    EXPECT_THAT(rows_tried > 100 / RANDOM_SHARE && rows_doubtful <= rows_tried / 3, "%lld of %lld rows were in doubt",
                (long long)rows_doubtful, (long long)rows_tried);
}

static void groups_first(void)
{
    const int64_t wanted = 80 / RANDOM_SHARE;
    rows_tried = rows_doubtful = 0;
    for (int i = 0; i < rounds(8) || (rows_tried - rows_doubtful < wanted && i < 32); i++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 4, 2, 12, 9400 + (int64_t)test_below(1200), 1 + (int64_t)test_below(20), 8 });
        c.options.k_near = 1 + (int64_t)test_below(50);
        c.options.causal = i % 2;
        holds(&c, random_context());
        case_end(&c);
    }
    EXPECT_THAT(rows_tried - rows_doubtful >= wanted, "%lld of %lld rows were in doubt", (long long)rows_doubtful,
                (long long)rows_tried);
}

/* ---- many tiles, several blocks */

static void begin_long(random_case *c, shape s, int64_t k)
{
    case_begin(c, s);
    c->options.causal = 1;
    c->options.k_near = k;
}

/* Everything is looked into: exact gradients. */
static void all_clusters(void)
{
    shape s = { 4, 2, 800, 800, 12, 8 };
    random_case c = { .guarded = false };
    begin_long(&c, s, 720);
    c.options.near_sinks = c.options.near_window = -1;
    back_case b = begin(&c);
    EXPECT_INT(case_attend(&c, context_best(), NULL), KNA_OK);
    EXPECT_INT(backward(&b, context_best()), KNA_OK);
    oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
    gradient_oracle *g = gradient_oracle_new(o, b.dout_numbers);
    near(&b, b.gradients.dq.data, g->dq, g->dq_slack, s.h * s.m * s.d, "dq");
    near(&b, b.gradients.dk.data, g->dk, g->dk_slack, s.h_kv * s.n * s.d, "dk");
    near(&b, b.gradients.dv.data, g->dv, g->dv_slack, s.h_kv * s.n * s.dv, "dv");
    gradient_oracle_free(g);
    oracle_free(o);
    case_end(&c);
}

static double away(const float *x, const double *y, int64_t n)
{
    double off = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        off += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        norm += y[i] * y[i];
    }
    return sqrt(off / norm);
}

/*
 * Keys in groups, several blocks of queries, so that clusters are formed and formed anew on the way: weights add up to 1 (so do
 * gradients of values), and gradients are near those of exact attention.
 */
static void several_blocks(void)
{
    for (int64_t h_kv = 1; h_kv <= rounds(3) + 1 && h_kv <= 3; h_kv++) {
        shape s = { 2 * h_kv, h_kv, RANDOM_SHARE > 1 ? 1600 : 2500, RANDOM_SHARE > 1 ? 1600 : 2500, 16, 8 };
        random_case c = { .guarded = false };
        begin_long(&c, s, 64);
        knn_grouped(&c, 60, 0.2);
        back_case b = begin(&c);
        kna_report report = { .size = sizeof report };
        EXPECT_INT(case_attend(&c, context_best(), &report), KNA_OK);
        EXPECT_THAT(report.tail_mass > 0.01, "tail %g", report.tail_mass);
        EXPECT_INT(backward(&b, context_best()), KNA_OK);
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        gradient_oracle *g = gradient_oracle_new(o, b.dout_numbers);
        double dq = away(b.gradients.dq.data, g->dq, s.h * s.m * s.d), dk = away(b.gradients.dk.data, g->dk, s.h_kv * s.n * s.d);
        double dv = away(b.gradients.dv.data, g->dv, s.h_kv * s.n * s.dv);
        EXPECT_THAT(dq < 0.15 && dk < 0.15 && dv < 0.05, "off by %g, %g, %g", dq, dk, dv);
        for (int64_t head = 0; head < h_kv; head++) {
            for (int64_t column = 0; column < s.dv; column++) {
                double in = 0, out = 0;
                for (int64_t i = 0; i < 2 * s.m; i++) in += b.dout_numbers[(2 * head * s.m + i) * s.dv + column];
                for (int64_t i = 0; i < s.n; i++) out += (double)b.gradients.dv.data[(head * s.n + i) * s.dv + column];
                EXPECT_NEAR(out, in, 2e-3 + 1e-4 * fabs(in));
            }
        }
        gradient_oracle_free(g);
        oracle_free(o);
        case_end(&c);
    }
}

static void same_bits_for_any_threads(void)
{
    static const int threads[] = { 1, 2, 5 };
    shape s = { 4, 2, 1400, 1400, 8, 8 };
    int64_t counts[] = { s.h * s.m * s.d, s.h_kv * s.n * s.d, s.h_kv * s.n * s.dv };
    random_case c = { .guarded = false };
    begin_long(&c, s, 32);
    back_case b = begin(&c);
    float *first[3] = { NULL, NULL, NULL };
    for (size_t i = 0; i < sizeof threads / sizeof threads[0]; i++) {
        kna_context_options options = KNA_CONTEXT_OPTIONS;
        kna_context *context;
        options.threads = threads[i];
        EXPECT_INT(kna_context_new(&context, &options), KNA_OK);
        EXPECT_INT(case_attend(&c, context, NULL), KNA_OK);
        EXPECT_INT(backward(&b, context), KNA_OK);
        const float *now[] = { b.gradients.dq.data, b.gradients.dk.data, b.gradients.dv.data };
        for (int x = 0; x < 3; x++) {
            if (first[x]) EXPECT(memcmp(first[x], now[x], (size_t)counts[x] * sizeof(float)) == 0);
            if (!first[x]) memcpy(first[x] = malloc((size_t)counts[x] * sizeof(float)), now[x], (size_t)counts[x] * sizeof(float));
        }
        kna_context_free(context);
    }
    for (int x = 0; x < 3; x++) free(first[x]);
    case_end(&c);
}

static void refused(back_case *b, const char *words)
{
    random_case *c = b->c;
    EXPECT_INT(kna_attend_backward(context_best(), &b->gradients, &b->dout, &b->out, c->lse, &c->q, &c->k, &c->v, &c->options),
               KNA_EINVAL);
    EXPECT_THAT(strstr(kna_context_message(context_best()), words) != NULL, "message: %s", kna_context_message(context_best()));
}

static void bad_input(void)
{
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 1, 1, 20, 500, 4, 4 });
    back_case b = begin(&c);
    c.options.differentiable = 0;
    refused(&b, "differentiable");
    c.options.differentiable = 1;
    c.options.eps = 0.1f;
    refused(&b, "no eps");
    c.options.eps = 0;
    c.options.index = knn_index_of(&c, context_best());
    refused(&b, "no index");
    kna_index_free(c.options.index);
    case_end(&c);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(one_tile);
    TEST(groups_first);
    TEST(all_clusters);
    TEST(several_blocks);
    TEST(same_bits_for_any_threads);
    TEST(bad_input);
    contexts_free();
    return test_end();
}
