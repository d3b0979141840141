/* prop_attend_knn.c - kNN attention against what its definition gives by the clusters of the index; eps, audit and the report. */
#include "knn_oracle.h"

#define TOLERANCE 1e-5

static int64_t rows_tried, rows_doubtful;

static void random_near(random_case *c)
{
    kna_attend_options *o = &c->options;
    o->method = KNA_KNN;
    o->k_near = 1 + (int64_t)test_below(test_below(2) ? 40 : 200);
    o->near_sinks = (int64_t)test_below(8) - 1;
    o->near_window = test_below(3) ? (int64_t)test_below(80) - 1 : -1;
}

/* Sizes about which pieces and segments are cut. */
static int64_t random_n(void)
{
    static const int64_t edges[] = { 256, 257, 272, 320, 321, 512, 1024, 1025, 1088, 1100, 1280, 2048, 2113 };
    return test_below(2) ? edges[test_below(sizeof edges / sizeof edges[0])] + (int64_t)test_below(3) - 1
                         : 250 + (int64_t)test_below(2200);
}

/* A mask that leaves whole pieces free: a stretch forbidden, a stretch with numbers of its own, the rest zeros. */
static void coarse_mask(random_case *c)
{
    int64_t n = c->shape.n, heads = test_below(3) ? 1 : c->shape.h;
    case_mask(c, test_below(2) ? KNA_F32 : KNA_F16, heads, 0, false, false);
    int64_t hole = (int64_t)test_below((size_t)n), bias = (int64_t)test_below((size_t)n);
    int64_t hole_rows = (int64_t)test_below(600), bias_rows = (int64_t)test_below(60);
    for (int64_t head = 0; head < heads; head++) {
        for (int64_t query = 0; query < c->shape.m; query++) {
            int64_t shift = test_below(3) ? 0 : (int64_t)test_below(300);
            for (int64_t j = 0; j < n; j++) {
                bool forbidden = j + shift >= hole && j + shift < hole + hole_rows;
                case_put_mask(c, head, query, j, forbidden ? -INFINITY : j >= bias && j < bias + bias_rows ? 0.5f : 0);
            }
        }
    }
}

static void random_problem(random_case *c, shape s)
{
    case_begin(c, s);
    case_rows(c, &c->q, random_query_type(), (int)test_below(LAYOUT_COUNT), 0.5 + 2 * test_uniform());
    case_rows(c, &c->k, random_type(s.d), (int)test_below(LAYOUT_COUNT), 1);
    case_rows(c, &c->v, random_type(s.dv), (int)test_below(LAYOUT_COUNT), 1);
    case_out(c, (int)test_below(LAYOUT_COUNT));
    random_near(c);
    c->options.softcap = test_below(4) ? 0 : (float)(5 + 30 * test_uniform());
    if (test_below(4) == 0) case_per_head(c, &c->options.sinks, -3, 6);
    if (test_below(4) == 0) c->options.eps = (float)(0.3 * test_uniform());
    c->options.audit = c->options.eps > 0 || test_below(2) ? 0 : 1;
}

static int64_t random_dim(void)
{
    static const int64_t dims[] = { 1, 3, 20, 32, 64, 64, 65, 96, 257 };
    return dims[test_below(sizeof dims / sizeof dims[0])];
}

/* The case with an index that has served some calls before, on one level. */
static bool holds(random_case *c, kna_context *context, int64_t together)
{
    c->options.index = knn_index_of(c, context);
    bool good = true;
    for (int again = 0; again < 2 && good; again++) {
        good = knn_case_holds(c, context, NULL, together, &rows_tried, &rows_doubtful) &&
               knn_index_holds(c->options.index, &c->k, &c->v);
    }
    if (!good) printf("  on cpu %s\n", kna_cpu_name(kna_context_cpu(context)));
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

/* Few queries, each choosing for itself and the heads it shares keys with. */
static void decoding(void)
{
    rows_tried = rows_doubtful = 0;
    for (int i = 0; i < rounds(120); i++) {
        static const int64_t groups[] = { 1, 1, 3, 4, 8 };
        random_case c = { .guarded = false };
        int64_t g = groups[test_below(5)], h_kv = 1 + (int64_t)test_below(3), m = 1 + (int64_t)test_below((size_t)(16 / g));
        random_problem(&c, (shape){ g * h_kv, h_kv, m, random_n(), random_dim(), random_dim() });
        c.options.causal = (int)test_below(2);
        if (test_below(4) == 0) c.options.window = 300 + (int64_t)test_below(1500);
        if (test_below(4) == 0) c.options.causal_shift = (int64_t)test_below(300) - 200;
        if (test_below(3) == 0) coarse_mask(&c);
        if (c.options.near_sinks + c.options.near_window + c.options.k_near < c.shape.n) holds(&c, random_context(), 1);
        case_end(&c);
    }
    EXPECT_THAT(rows_tried > 100 / RANDOM_SHARE && rows_doubtful <= rows_tried / 10, "%lld of %lld rows were in doubt",
                (long long)rows_doubtful, (long long)rows_tried);
}

/* A tile of 17 to 24 rows: queries that choose together. */
static void one_tile(void)
{
    rows_tried = rows_doubtful = 0;
    for (int i = 0; i < rounds(60); i++) {
        static const int64_t groups[] = { 1, 3, 4, 8 };
        random_case c = { .guarded = false };
        int64_t g = groups[i % 4], h_kv = 1 + (int64_t)test_below(2), m = 24 / g - (int64_t)test_below(g == 1 ? 8 : g == 3 ? 3 : 1);
        random_problem(&c, (shape){ g * h_kv, h_kv, m, random_n(), random_dim(), random_dim() });
        c.options.causal = (int)test_below(2);
        if (test_below(4) == 0) c.options.window = 300 + (int64_t)test_below(1500);
        if (test_below(3) == 0) coarse_mask(&c);
        if (c.options.near_sinks + c.options.near_window + c.options.k_near < c.shape.n) holds(&c, random_context(), m);
        case_end(&c);
    }
    EXPECT_THAT(rows_tried > 100 / RANDOM_SHARE && rows_doubtful <= rows_tried / 5, "%lld of %lld rows were in doubt",
                (long long)rows_doubtful, (long long)rows_tried);
}

/* Many rows with the same query choose alike, however they are cut into tiles. */
static void equal_queries(void)
{
    rows_tried = rows_doubtful = 0;
    for (int i = 0; i < rounds(20); i++) {
        random_case c = { .guarded = false };
        int64_t g = 1 + (int64_t)test_below(3), h_kv = 1 + (int64_t)test_below(2), m = 192, d = 24; /* whole tiles */
        random_problem(&c, (shape){ g * h_kv, h_kv, m, 1100 + (int64_t)test_below(1200), d, 20 });
        case_rows(&c, &c.q, KNA_F32, LAYOUT_PACKED, 1);
        float *q = (float *)(uintptr_t)c.q.data;
        for (int64_t row = 0; row < c.shape.h * m; row++) memcpy(q + row * d, q, (size_t)d * sizeof *q);
        c.options.eps = c.options.audit = 0;
        holds(&c, random_context(), m);
        case_end(&c);
    }
    EXPECT_THAT(rows_tried > 100 && rows_doubtful <= rows_tried / 3, "%lld of %lld rows were in doubt", (long long)rows_doubtful,
                (long long)rows_tried);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(decoding);
    TEST(one_tile);
    TEST(equal_queries);
    contexts_free();
    return test_end();
}
