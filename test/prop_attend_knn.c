/* prop_attend_knn.c - kNN attention against what its definition gives by the clusters of the index; eps, audit and the report. */
#include "knn_oracle.h"

#define TOLERANCE 1e-5

static int64_t rows_tried, rows_doubtful;

/* Groups of stretches of keys, and keys here and there of a rare one; one more group is empty. */
static void random_quotas(random_case *c)
{
    int32_t *groups = case_hold(c, (size_t)c->shape.n * sizeof *groups);
    int64_t stretch = 1 + (int64_t)test_below(400), count = 1 + (int64_t)test_below(6);
    for (int64_t j = 0; j < c->shape.n; j++) groups[j] = test_below(50) ? (int32_t)(j / stretch % count) : (int32_t)count;
    c->options.diverse = KNA_DIVERSE_QUOTA;
    c->options.quota = (float)(0.1 + 0.9 * test_uniform());
    c->options.key_groups = groups;
    c->options.key_group_count = count + 2;
}

static void random_near(random_case *c)
{
    kna_attend_options *o = &c->options;
    if (test_below(3) == 0) random_quotas(c);
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
        good = knn_case_holds(c, context, NULL, together, &rows_tried, &rows_doubtful);
    }
    good = good && knn_index_holds(c->options.index, &c->k, &c->v);
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
    for (int i = 0; i < rounds(40); i++) {
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
    for (int i = 0; i < rounds(28); i++) {
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

/* Tiles one after the other: where queries have an order, each tile's choice is that of its first query and some before it. */
static void tiles_in_order(void)
{
    rows_tried = rows_doubtful = 0;
    for (int i = 0; i < rounds(10); i++) {
        random_case c = { .guarded = false };
        int64_t n = random_n();
        random_problem(&c, (shape){ 4, 2, 48, n < 700 ? 700 : n, random_dim(), random_dim() }); /* tiles of 24 rows */
        c.options.causal = i % 3 > 0;
        if (i % 3 == 2) coarse_mask(&c);
        if (c.options.near_sinks + c.options.near_window + c.options.k_near < c.shape.n) holds(&c, random_context(), 12);
        case_end(&c);
    }
    EXPECT_THAT(rows_tried > 100 / RANDOM_SHARE && rows_doubtful <= rows_tried / 2, "%lld of %lld rows were in doubt",
                (long long)rows_doubtful, (long long)rows_tried);
}

/* So many keys that groups of clusters come first, for few queries and for a tile. */
static void groups_first(void)
{
    const int64_t wanted = 80 / RANDOM_SHARE; /* a tile is in doubt, or not, with all its rows */
    rows_tried = rows_doubtful = 0;
    for (int i = 0; i < rounds(8) || (rows_tried - rows_doubtful < wanted && i < 32); i++) {
        random_case c = { .guarded = false };
        bool tile = i % 4 > 0;
        int64_t m = tile ? 12 : 1 + (int64_t)test_below(2);
        int64_t least = tile ? 9400 : 24800; /* few queries look at more clusters before groups come in */
        random_problem(&c, (shape){ 4, 2, m, least + (int64_t)test_below(1200), 1 + (int64_t)test_below(20), 8 });
        c.options.k_near = 1 + (int64_t)test_below(tile ? 50 : 120);
        c.options.causal = i % 8 < 3;
        holds(&c, random_context(), tile ? m : 1);
        case_end(&c);
    }
    EXPECT_THAT(rows_tried - rows_doubtful >= wanted, "%lld of %lld rows were in doubt", (long long)rows_doubtful,
                (long long)rows_tried);
}

/* More clusters than a task takes: what one does with their masses must not be what another counts. */
static void many_means(void)
{
    for (int i = 0; i < rounds(4); i++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 4, 2, 1 + i % 2, 9600, 16, 8 });
        c.options.method = KNA_KNN;
        c.options.causal = 1;
        c.options.k_near = 200; /* all clusters are weighed: their groups are too few to go by */
        holds(&c, random_context(), 1);
        case_end(&c);
    }
}

/* What a row gives hangs neither on queries nor on keys after it, in no tile: other ones there, and its bits are the same. */
static void no_look_ahead(void)
{
    for (int i = 0; i < rounds(6); i++) {
        random_case c = { .guarded = false };
        int64_t m = 700, n = i % 2 ? 1800 : 700, changed = 30 + (int64_t)test_below(640);
        case_begin(&c, (shape){ 4, 2, m, n, 16, 8 });
        c.options.method = KNA_KNN;
        c.options.causal = 1;
        c.options.k_near = 16;
        c.options.eps = i % 3 > 0 ? 0.2f : 0;
        c.options.delta = i % 3 == 1 ? 0.1f : 0; /* what later rows drawn say must not make k larger for this one */
        float *before = malloc((size_t)(4 * m * 8) * sizeof *before);
        for (int run = 0; run < 2; run++) {
            kna_report r = { .size = sizeof r };
            EXPECT_INT(case_attend(&c, context_best(), &r), KNA_OK);
            EXPECT(r.tail_mass > 0);
            for (int64_t row = 0; row < 4 * m && run == 0; row++) {
                memcpy(before + row * 8, case_out_row(&c, row / m, row % m), 8 * sizeof *before);
            }
            for (int64_t row = 0; row < 4 * m && run == 1; row++) {
                bool same = !memcmp(before + row * 8, case_out_row(&c, row / m, row % m), 8 * sizeof *before);
                if (row % m < changed && !EXPECT_THAT(same, "row %lld of %lld changed with row %lld", (long long)(row % m),
                                                      (long long)m, (long long)changed)) {
                    break;
                }
            }
            for (int64_t query = changed; query < m; query++) {
                for (int64_t x = 0; x < 4 * 16; x++) case_put(&c.q, x / 16, query, x % 16, (float)test_normal());
                for (int64_t x = 0; x < 2 * 16; x++) case_put(&c.k, x / 16, n - m + query, x % 16, (float)test_normal());
                for (int64_t x = 0; x < 2 * 8; x++) case_put(&c.v, x / 8, n - m + query, x % 8, (float)test_normal());
            }
        }
        free(before);
        case_end(&c);
    }
}

/* Many rows with the same query choose alike, however they are cut into tiles. */
static void equal_queries(void)
{
    rows_tried = rows_doubtful = 0;
    for (int i = 0; i < 4; i++) {
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
    EXPECT_THAT(rows_tried > 100 && rows_doubtful <= rows_tried / 2, "%lld of %lld rows were in doubt", (long long)rows_doubtful,
                (long long)rows_tried);
}

/* Where a piece or a segment is just behind the recent rows, and where the first keys just reach into one: to the row. */
static void edges_of_pieces(void)
{
    static const int64_t windows[] = { -1, 1, 64 }, ends[] = { 256, 512, 1024 }, sinks[] = { -1, 16, 17 };
    rows_tried = rows_doubtful = 0;
    for (int i = 0; i < 27; i++) {
        int64_t w = windows[i % 3], window = w < 0 ? 0 : w, end = ends[i / 3 % 3], formed = 0;
        for (int64_t n = end + window - 1; n <= end + window + 1; n++) {
            random_case c = { .guarded = false };
            case_begin(&c, (shape){ 3, 1, i % 2 ? 1 : 6, n, 12, 6 });
            c.options.method = KNA_KNN;
            c.options.k_near = 16;
            c.options.near_window = w;
            c.options.near_sinks = sinks[i / 9];
            c.options.index = knn_index_of(&c, context_best());
            c.options.index->phase = 0;
            knn_case_holds(&c, context_best(), NULL, c.shape.m, &rows_tried, &rows_doubtful);
            formed = knn_formed_pieces(c.options.index);
            EXPECT_THAT(formed == (n - window) / 256, "%lld pieces formed: %s", (long long)formed, case_text(&c));
            EXPECT_INT(c.options.index->clusters.state[0] == KNA_PIECE_MERGED, n - window >= 1024);
            kna_index_free(c.options.index);
            case_end(&c);
        }
    }
    EXPECT_THAT(rows_doubtful <= rows_tried / 5, "%lld of %lld rows were in doubt", (long long)rows_doubtful,
                (long long)rows_tried);
}

/* ---- against exact attention */

/* Every cluster chosen, by k or by eps, is exact attention; so is what comes of clusters whose keys and values are all alike. */
static void all_chosen(void)
{
    for (int i = 0; i < rounds(16); i++) {
        random_case c = { .guarded = false };
        int64_t n = 600 + (int64_t)test_below(1600), m = test_below(2) ? 1 + (int64_t)test_below(4) : 20 + (int64_t)test_below(150);
        random_problem(&c, (shape){ 4, 2, m, n, random_dim(), random_dim() });
        case_rows(&c, &c.q, KNA_F32, LAYOUT_PACKED, 1);
        if (test_below(3) == 0) coarse_mask(&c);
        c.options.causal = (int)test_below(2);
        c.options.near_sinks = c.options.near_window = -1;
        c.options.eps = i % 2 ? 1e-12f : 0;
        c.options.k_near = i % 2 ? 16 : n - 1;
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        expected *e = expected_exact(o, 2 * TOLERANCE); /* what is left of the tail's sum is rounding */
        kna_report r = { .size = sizeof r };
        if (case_attend(&c, random_context(), &r) == KNA_OK) case_matches(&c, e);
        double left = i % 2 ? 16 * (double)r.rows : 0; /* eps leaves clusters that weigh nothing */
        EXPECT_THAT(fabs(r.keys_full - r.keys_seen) <= 1e-6 * r.keys_seen + left, "%g of %g keys read: %s", r.keys_full,
                    r.keys_seen, case_text(&c));
        EXPECT_THAT(r.tail_mass <= 1e-5 || i % 2, "tail_mass = %g: %s", r.tail_mass, case_text(&c));
        expected_free(e);
        oracle_free(o);
        case_end(&c);
    }
}

static void k_of_all_keys(void)
{
    for (int i = 0; i < rounds(28); i++) {
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

/* Everything at random, also masks and slopes that leave no cluster: where all keys are read, exact; elsewhere finite and near. */
static void random_cases(void)
{
    for (int i = 0; i < rounds(150); i++) {
        random_case c = { .guarded = false };
        case_random(&c, random_shape(2e6));
        random_near(&c);
        if (c.shape.n < 250 && i % 2) case_mask(&c, KNA_F16, 1, 0.2, true, false);
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        expected *e = expected_exact(o, TOLERANCE);
        kna_report r = { .size = sizeof r };
        case_attend(&c, random_context(), &r);
        if (r.rows_exact == r.rows) {
            case_matches(&c, e);
            EXPECT_THAT(r.keys_full == r.keys_seen && r.tail_mass == 0, "%g of %g keys: %s", r.keys_full, r.keys_seen,
                        case_text(&c));
        }
        double seen = 0;
        for (int64_t at = 0; at < o->h * o->m * o->n; at++) {
            seen += oracle_sees(o, at / o->n / o->m, at / o->n % o->m, at % o->n);
        }
        EXPECT_THAT(r.keys_seen == seen && r.keys_full <= seen, "keys_seen = %g, %g in full, expected %g: %s", r.keys_seen,
                    r.keys_full, seen, case_text(&c));
        EXPECT(r.tail_mass >= 0 && r.tail_mass <= 1 && r.stale_rows == 0 && r.rows == o->h * o->m);
        expected_free(e);
        oracle_free(o);
        case_end(&c);
    }
}

/* Slopes without a mask add to every logit: no mean may stand for keys. */
static void slopes(void)
{
    for (int i = 0; i < rounds(12); i++) {
        random_case c = { .guarded = false };
        random_problem(&c, (shape){ 4, 2, i % 2 ? 1 : 40, 900 + (int64_t)test_below(500), 16, 16 });
        case_per_head(&c, &c.options.slopes, 0.001, 0.05);
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        expected *e = expected_exact(o, TOLERANCE);
        if (case_attend(&c, random_context(), NULL) == KNA_OK) case_matches(&c, e);
        expected_free(e);
        oracle_free(o);
        case_end(&c);
    }
}

/* Keys in tight groups: means stand for their clusters, so that little is lost however few keys are read, by any path. */
static void tight_groups(void)
{
    for (int i = 0; i < 6; i++) {
        random_case c = { .guarded = false };
        int64_t m = i % 3 == 0 ? 1 : i % 3 == 1 ? 6 : 100, k[] = { 1, 64, 512 };
        case_begin(&c, (shape){ 4, 2, m, 2200, 32, 16 });
        knn_grouped(&c, 12, 0.02);
        c.options.method = KNA_KNN;
        c.options.causal = (int)test_below(2);
        for (int x = 0; x < 3; x++) {
            c.options.k_near = k[x];
            case_attend(&c, random_context(), NULL);
            knn_errors errors = knn_errors_of(&c, NULL);
            EXPECT_THAT(errors.most <= 0.02 && errors.mean <= 0.005, "off by %g, at most %g: %s", errors.mean, errors.most,
                        case_text(&c));
        }
        case_end(&c);
    }
}

/* Keys all over the place: the more are read, the nearer, until all are. */
static void more_is_nearer(void)
{
    static const int64_t k[] = { 16, 64, 256, 1024 };
    for (int i = 0; i < 4; i++) {
        random_case c = { .guarded = false };
        double last = 0, first = 0;
        case_begin(&c, (shape){ 8, 2, i % 2 ? 4 : 80, 3400, 24, 24 });
        case_rows(&c, &c.q, KNA_F32, LAYOUT_PACKED, 2);
        c.options.method = KNA_KNN;
        for (int x = 0; x < 4; x++) {
            c.options.k_near = k[x];
            case_attend(&c, context_best(), NULL);
            double error = knn_errors_of(&c, NULL).mean;
            EXPECT_THAT(x == 0 || error < 0.98 * last || error < 1e-5, "k = %lld: error %g, with fewer %g", (long long)k[x], error,
                        last);
            first = x ? first : error;
            last = error;
        }
        EXPECT_THAT(last < 0.3 * first, "errors from %g to %g", first, last);
        case_end(&c);
    }
}

/* What the spread is for: flat clusters of wide logits weigh more than their mean's exp. lse tells. */
static void mass_of_the_tail(void)
{
    for (int i = 0; i < 6; i++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 4, 2, i % 2 ? 4 : 60, 3000, 32, 8 });
        c.options.method = KNA_KNN;
        c.options.k_near = 1;
        case_attend(&c, context_best(), NULL);
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        expected *e = expected_exact(o, TOLERANCE);
        double off = 0;
        for (int64_t row = 0; row < e->rows; row++) off += ((double)c.lse[row] - e->lse[row]) / (double)e->rows;
        EXPECT_NEAR(off, 0, 0.12); /* without the spread it is below -0.25 */
        expected_free(e);
        oracle_free(o);
        case_end(&c);
    }
}

/* ---- eps */

/* A smaller eps never reads less, and keeps its promise: the mean and the largest estimate are within it. */
static void eps_is_monotone(void)
{
    static const float eps[] = { 0.9f, 0.2f, 0.1f, 0.05f, 0.01f, 1e-3f, 1e-6f };
    for (int i = 0; i < rounds(12); i++) {
        random_case c = { .guarded = false };
        random_problem(&c, (shape){ 4, 2, 1 + (int64_t)test_below(40), 500 + (int64_t)test_below(1600), 32, 32 });
        c.options.k_near = 16;
        double full = -1;
        for (size_t x = 0; x < sizeof eps / sizeof eps[0]; x++) {
            kna_report r = { .size = sizeof r };
            c.options.eps = eps[x];
            case_attend(&c, context_best(), &r);
            EXPECT_THAT(r.keys_full >= full * (1 - 1e-6), "eps %g reads less: %s", (double)eps[x], case_text(&c));
            EXPECT_THAT(r.error_est >= 0 && r.error_est <= r.error_est_max + 1e-7 && r.error_est_max <= (double)eps[x],
                        "error_est = %g, at most %g: %s", r.error_est, r.error_est_max, case_text(&c));
            full = r.keys_full;
        }
        EXPECT_THAT(full >= 0, "eps: %g", full);
        case_end(&c);
    }
}

/* ---- audit */

/* ||out - exact|| / ||exact|| of every row. */
static double *true_errors(const random_case *c, const oracle *o)
{
    expected *e = expected_exact(o, TOLERANCE);
    double *errors = malloc((size_t)e->rows * sizeof *errors);
    for (int64_t row = 0; row < e->rows; row++) errors[row] = knn_row_error(c, e, row);
    expected_free(e);
    return errors;
}

static void expect_audit(random_case *c, const kna_report *r)
{
    oracle *o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    double *errors = true_errors(c, o), mean = 0, above = 0, nearest = 1;
    int64_t rows = c->shape.h * c->shape.m;
    for (int64_t row = 0; row < rows; row++) {
        mean += errors[row] / (double)rows;
        above += errors[row] > r->audit_p95 * 1.001 + 1e-4;
        nearest = fmin(nearest, fabs(errors[row] - r->audit_p95));
    }
    EXPECT_THAT(r->audited == rows, "%lld of %lld rows audited: %s", (long long)r->audited, (long long)rows, case_text(c));
    EXPECT_THAT(fabs(r->audit_mean - mean) <= 1e-3 * mean + 1e-4, "audit_mean = %g, expected %g: %s", r->audit_mean, mean,
                case_text(c));
    EXPECT_THAT(above <= (double)rows / 20, "%g of %lld errors are above p95 = %g: %s", above, (long long)rows, r->audit_p95,
                case_text(c));
    EXPECT_THAT(nearest <= 1e-3 * r->audit_p95 + 1e-4, "p95 = %g is nobody's error: %s", r->audit_p95, case_text(c));
    free(errors);
    oracle_free(o);
}

/* Everything audited: the mean of the true errors, a p95 that at most one in twenty exceeds, and no bit of output changed. */
static void audit_of_all(void)
{
    for (int i = 0; i < rounds(48); i++) {
        random_case c = { .guarded = false };
        case_random(&c, random_shape(2e6));
        if (i % 3 == 0) {
            case_end(&c);
            random_problem(&c, (shape){ 4, 2, 1 + (int64_t)test_below(30), 600 + (int64_t)test_below(900), 20, 12 });
        }
        c.options.eps = 0;
        c.options.audit = 0;
        c.options.method = 1 + i % 2;
        c.options.k_near = 1 + (int64_t)test_below(20);
        c.options.near_sinks = c.options.near_window = 2;
        case_attend(&c, context_best(), NULL);
        float *plain = case_result(&c);
        c.options.audit = 1;
        kna_report r = { .size = sizeof r };
        case_attend(&c, context_best(), &r);
        float *audited = case_result(&c);
        size_t bytes = (size_t)(c.shape.h * c.shape.m * (c.shape.dv + 1)) * sizeof *plain;
        EXPECT_THAT(memcmp(plain, audited, bytes) == 0, "an audit changes: %s", case_text(&c));
        expect_audit(&c, &r);
        free(plain);
        free(audited);
        case_end(&c);
    }
}

/* A share of rows: about as many as asked (6 standard deviations), others for another seed, the same for the same. */
static void audit_of_some(void)
{
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 4, 2, 500, 400, 4, 4 });
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
    case_end(&c);
}

/* ---- the report */

/* ---- eps and delta */

/* What the rows drawn of a call say, and how they move the levels of their KV heads. */
typedef struct drawing {
    float level[2];
    int64_t drawn, off;
    bool near_thing; /* some error is about eps */
} drawing;

static void move_levels(drawing *d, const random_case *c, const double *errors, uint64_t call)
{
    int64_t g = c->shape.h / c->shape.h_kv;
    double share = c->shape.m * g <= 16 ? 1.0 / 64 : 1.0 / 96, eps = (double)c->options.eps;
    d->drawn = d->off = 0;
    for (int64_t row = 0; row < c->shape.m * c->shape.h; row++) {
        int64_t head = row % c->shape.h, query = row / c->shape.h;
        if (kna__uniform(c->options.seed, ((uint64_t)1 << 32) + call, (uint64_t)row) >= share) continue;
        bool off = errors[head * c->shape.m + query] > eps;
        d->level[head / g] = fmaxf(d->level[head / g] + (off ? 1 : 0) - 0.75f * c->options.delta, 4);
        d->near_thing |= fabs(errors[head * c->shape.m + query] / eps - 1) < 1e-3;
        d->drawn++;
        d->off += off;
    }
}

static random_case levels_case(int64_t m)
{
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 4, 2, m, m + 1500, 24, 16 });
    c.options.method = KNA_KNN;
    c.options.causal = 1;
    c.options.k_near = 16;
    c.options.eps = 0.02f + 0.4f * (float)test_uniform();
    c.options.delta = 0.01f + 0.3f * (float)test_uniform();
    c.options.seed = (uint64_t)test_below(1000);
    EXPECT_INT(kna_index_new(context_best(), &c.options.index, KNA_KNN, 2, 24, 16), KNA_OK);
    EXPECT_INT(kna_index_update(context_best(), c.options.index, &c.k, &c.v, 0, c.shape.n), KNA_OK);
    return c;
}

static void levels_of_call(drawing *d, random_case *c, uint64_t call)
{
    kna_report r = { .size = sizeof r };
    if (case_attend(c, context_best(), &r) != KNA_OK) return;
    oracle *o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    double *errors = true_errors(c, o);
    move_levels(d, c, errors, call);
    for (int64_t head = 0; head < 2 && !d->near_thing; head++) {
        float level = c->options.index->level[head] > 0 ? c->options.index->level[head] : 4; /* 0: it has not moved yet */
        EXPECT_THAT(fabsf(level - d->level[head]) < 1e-3f, "level %g, expected %g: %s", (double)level, (double)d->level[head],
                    case_text(c));
    }
    EXPECT_INT(r.audited, d->drawn);
    EXPECT(d->drawn || (r.audit_over < 0 && r.audit_mean < 0));
    if (d->drawn && !d->near_thing) EXPECT_NEAR(r.audit_over, (double)d->off / (double)d->drawn, 1e-9);
    free(errors);
    oracle_free(o);
}

/*
 * Every row drawn moves its KV head's level as it should, from call to call on one index, and the report says what was drawn: so no
 * more than 3/4 delta T + the level's rise of T rows drawn are off.
 */
static void levels(void)
{
    for (int i = 0; i < rounds(8); i++) {
        bool few = i % 2 == 0;
        random_case c = levels_case(few ? 1 + (int64_t)test_below(4) : 300 + (int64_t)test_below(300));
        drawing d = { .level = { 4, 4 } };
        for (uint64_t call = 1; call <= (few ? 60 : 2); call++) levels_of_call(&d, &c, call);
        kna_index_free(c.options.index);
        case_end(&c);
    }
}

/* An error nobody can be below makes every key be read, sooner or later; one that everybody is below, hardly any. */
static void levels_far(void)
{
    for (int i = 0; i < 2; i++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 6, 2, 2048, 4096, 16, 16 });
        c.options.method = KNA_KNN;
        c.options.causal = 1;
        c.options.k_near = 64;
        kna_report fixed = { .size = sizeof fixed }, last = { .size = sizeof last };
        c.options.index = knn_index_of(&c, context_best());
        case_attend(&c, context_best(), &fixed);
        c.options.eps = i ? 1e-7f : 0.999f;
        c.options.delta = i ? 0.01f : 0.5f;
        for (int call = 0; call < 6; call++) case_attend(&c, context_best(), &last);
        if (i) {
            EXPECT(last.keys_full == last.keys_seen && last.audit_mean < 1e-5);
        } else {
            EXPECT_THAT(last.keys_full < 0.9 * fixed.keys_full && last.audit_over < 0.5, "%g keys, with k fixed %g; %g are off",
                        last.keys_full, fixed.keys_full, last.audit_over);
        }
        EXPECT(last.error_est < 0); /* nothing was asked of estimates */
        kna_index_free(c.options.index);
        case_end(&c);
    }
}

/* Limits of confidence: of many audits of a twentieth of the rows, nine in ten and more hold what all rows are. */
static void audit_confidence(void)
{
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 4, 2, 1500, 1600, 8, 8 });
    c.options.method = KNA_KNN;
    c.options.causal = 1;
    c.options.k_near = 4;
    c.options.near_sinks = c.options.near_window = -1;
    kna_report all = { .size = sizeof all }, some = { .size = sizeof some };
    c.options.audit = 1;
    case_attend(&c, context_best(), &all);
    int means = 0, p95s = 0, times = 60;
    for (int i = 0; i < times; i++) {
        c.options.audit = 0.05f;
        c.options.seed = (uint64_t)i;
        case_attend(&c, context_best(), &some);
        means += fabs(some.audit_mean - all.audit_mean) <= some.audit_mean_off;
        p95s += some.audit_p95_low <= all.audit_p95 && all.audit_p95 <= some.audit_p95_high;
        EXPECT(some.audit_p95_low <= some.audit_p95 && some.audit_p95 <= some.audit_p95_high && some.audit_over < 0);
    }
    EXPECT_THAT(means >= times * 8 / 10 && p95s >= times * 8 / 10, "of %d, %d means and %d percentiles", times, means, p95s);
    c.options.audit = 0.002f; /* about 12 rows: none can be said to be above the 95th percentile */
    case_attend(&c, context_best(), &some);
    EXPECT(some.audited > 1 && some.audit_p95_high < 0 && some.audit_p95 >= some.audit_p95_low);
    case_end(&c);
}

/* What a decoded row reads: its share of exact attention's bytes, index included; and how large the index is. */
static void bytes(void)
{
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 8, 2, 1, 8192, 64, 64 });
    case_rows(&c, &c.k, KNA_F16, LAYOUT_PACKED, 1);
    case_rows(&c, &c.v, KNA_F16, LAYOUT_PACKED, 1);
    c.options.method = KNA_KNN;
    c.options.index = knn_index_of(&c, context_best());
    kna_report r = { .size = sizeof r };
    case_attend(&c, context_best(), &r);
    EXPECT_INT(r.keys_seen, 8 * 8192);
    double row = 256, cluster = 256 + 16, pieces = (double)knn_formed_pieces(c.options.index);
    double keys = r.keys_full * row / 2 + 8 * 16 * pieces * (cluster - row / 2); /* read in full and their means' keys */
    double others =
        8 * pieces * 256 * (row / 2 + row / 8) + 8 * 16 * pieces * row / 2; /* values, codes, means' values: some of each */
    double touched = r.keys_touched * 8 * 8192 * row;
    EXPECT_THAT(touched > keys && touched < keys + others, "%g bytes: %g of keys, at most %g of others", touched, keys, others);
    EXPECT_THAT(r.keys_full < 0.25 * r.keys_seen && r.keys_touched < 0.35, "%g of %g keys, %g of the bytes", r.keys_full,
                r.keys_seen, r.keys_touched);
    EXPECT_INT(r.index_bytes, kna_index_bytes(c.options.index));
    kna_index_free(c.options.index);
    for (int64_t n = 2048; n <= 8192; n = n * 2 + (n < 4000)) {
        c.k.rows = c.v.rows = c.shape.n = n;
        c.options.index = NULL;
        case_attend(&c, context_best(), &r);
        EXPECT_THAT((double)r.index_bytes <= 0.25 * 2 * (double)n * row, "%zu bytes for %lld rows", r.index_bytes, (long long)n);
    }
    case_end(&c);
}

/* No queries, with any operands and options. */
static void no_queries(void)
{
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 4, 2, 0, 1500, 16, 8 });
    c.q.data = NULL;
    c.options.method = KNA_KNN;
    c.options.k_near = 16;
    for (int i = 0; i < 4; i++) {
        kna_report r = { .size = sizeof r };
        c.options.causal = i % 2;
        c.options.audit = i / 2 ? 1 : 0;
        case_attend(&c, context_best(), &r);
        EXPECT(r.rows == 0 && r.keys_seen == 0 && r.keys_full == 0 && r.audited == 0);
    }
    case_end(&c);
}

/* The largest numbers an option takes ask for no more memory than the keys there are. */
static void largest_k(void)
{
    for (int64_t m = 1; m < 60; m += 40) {
        random_case c = { .guarded = false };
        kna_report r = { .size = sizeof r };
        case_begin(&c, (shape){ 2, 1, m, 1500, 16, 8 });
        c.options.method = KNA_KNN;
        c.options.k_near = INT64_MAX;
        c.options.index = knn_index_of(&c, context_best());
        EXPECT_INT(kna_index_remove(context_best(), c.options.index, 1400, 1), KNA_OK); /* or it is exact attention at once */
        bool absent[1500] = { false };
        absent[1400] = true;
        case_attend(&c, context_best(), &r);
        EXPECT_THAT(r.scratch_bytes < (size_t)16 << 20, "%zu bytes of scratch", r.scratch_bytes);
        EXPECT_INT(r.keys_full, 2 * m * 1499);
        EXPECT(knn_errors_of(&c, absent).most < 1e-4);
        kna_index_free(c.options.index);
        case_end(&c);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(decoding);
    TEST(one_tile);
    TEST(tiles_in_order);
    TEST(groups_first);
    TEST(many_means);
    TEST(no_look_ahead);
    TEST(equal_queries);
    TEST(edges_of_pieces);
    TEST(all_chosen);
    TEST(k_of_all_keys);
    TEST(random_cases);
    TEST(slopes);
    TEST(tight_groups);
    TEST(more_is_nearer);
    TEST(mass_of_the_tail);
    TEST(eps_is_monotone);
    TEST(audit_of_all);
    TEST(audit_of_some);
    TEST(levels);
    TEST(levels_far);
    TEST(audit_confidence);
    TEST(bytes);
    TEST(no_queries);
    TEST(largest_k);
    contexts_free();
    return test_end();
}
