/*
 * prop_methods.c - laws that hold of a method whatever its estimate is: what shifts and scales of the values do, where outputs lie,
 * what is left when everything is read, what more keys and stricter requests do.
 *
 * Tests that draw have fixed seeds. Power: four standard errors of 4,000 seeds find a bias of 6 % of one estimate's deviation.
 */
#include "random_case.h"

/* What each method's weights are. */
typedef struct nature {
    int method;
    bool sum_to_one;  /* and do not depend on the values */
    bool positive;    /* so outputs lie among the values */
    bool ignores_all; /* exact when k_near, rank and window are as large as there are keys */
} nature;

static const nature natures[] = {
    { KNA_EXACT, true, true, true },      { KNA_TOPK, true, true, true },       { KNA_KNN, false, true, true },
    { KNA_UNIFORM, true, true, true },    { KNA_GUMBEL, true, true, true },     { KNA_REJECTION, true, true, true },
    { KNA_MOM, true, true, true },        { KNA_WINDOW, true, true, true },     { KNA_LINFORMER, true, true, true },
    { KNA_NYSTROM, false, false, false }, { KNA_PERFORMER, true, true, false }, { KNA_STRATIFIED, false, true, true },
    { KNA_CENTROID, false, true, true },  { KNA_CONTROL, false, false, true },  { KNA_LSH, true, true, true },
};
#define NATURES (int)(sizeof natures / sizeof natures[0])

static bool attend(random_case *c)
{
    if (EXPECT_INT(case_attend(c, context_best(), NULL), KNA_OK)) return true;
    printf("  %s: %s\n", kna_method_name(c->options.method), kna_context_message(context_best()));
    return false;
}

/* The same operands at every run. */
static void begin_fixed(random_case *c, shape s, double spread)
{
    uint64_t random = test_state.random;
    test_state.random = 20250102;
    case_begin(c, s);
    case_rows(c, &c->q, KNA_F32, LAYOUT_PACKED, spread);
    test_state.random = random;
}

static void set_method(random_case *c, int method)
{
    c->options.method = method;
    c->options.k_near = 10;
    c->options.samples = 30;
    c->options.rank = 16;
    c->options.near_sinks = 3;
    c->options.near_window = 20;
}

static float *numbers(const kna_rows *rows)
{
    return (float *)(uintptr_t)rows->data;
}

static int64_t count_of(const kna_rows *rows)
{
    return rows->heads * rows->rows * rows->dim;
}

/* ---- shifts */

/* v -> 2 v + x: the output follows, the sum of the softmax does not change. */
static void values_move(void)
{
    for (int i = 0; i < NATURES; i++) {
        if (!natures[i].sum_to_one) continue;
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 4, 2, 12, 200, 12, 6 });
        set_method(&c, natures[i].method);
        if (!attend(&c)) continue;
        float *before = case_result(&c), *v = numbers(&c.v);
        for (int64_t x = 0; x < count_of(&c.v); x++) v[x] = 2 * v[x] + (float)(x % 6);
        attend(&c);
        for (int64_t row = 0; row < 4 * 12; row++) {
            for (int64_t x = 0; x < 6; x++) {
                float got = case_out_row(&c, row / 12, row % 12)[x], want = 2 * before[row * 7 + x] + (float)x;
                if (!EXPECT_THAT(fabsf(got - want) <= 4e-5f, "%s: %g, not %g", kna_method_name(natures[i].method), (double)got,
                                 (double)want)) {
                    row = 4 * 12;
                    break;
                }
            }
        }
        free(before);
        case_end(&c);
    }
}

/* k -> k + x moves all logits of a query alike: nothing changes but the lse, by scale <q,x>. */
static void keys_move(void)
{
    static const int methods[] = { KNA_EXACT, KNA_TOPK, KNA_UNIFORM, KNA_WINDOW, KNA_LINFORMER };
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        random_case c = { .guarded = false };
        begin_fixed(&c, (shape){ 2, 1, 12, 200, 12, 6 }, 1);
        set_method(&c, methods[i]);
        if (!attend(&c)) continue;
        float *before = case_result(&c), *lse = case_hold(&c, 2 * 12 * sizeof *lse), *k = numbers(&c.k);
        memcpy(lse, c.lse, 2 * 12 * sizeof *lse);
        for (int64_t x = 0; x < count_of(&c.k); x++) k[x] += 0.25f * (float)(x % 12);
        attend(&c);
        for (int64_t row = 0; row < 2 * 12; row++) {
            double shift = 0;
            for (int x = 0; x < 12; x++) shift += 0.25 * x * (double)numbers(&c.q)[row * 12 + x] / sqrt(12);
            for (int64_t x = 0; x < 6; x++)
                EXPECT_NEAR((double)case_out_row(&c, row / 12, row % 12)[x], (double)before[row * 7 + x], 1e-4);
            EXPECT_NEAR((double)c.lse[row], (double)lse[row] + shift, 1e-4);
        }
        free(before);
        case_end(&c);
    }
}

/* Without an order, queries come in any: their rows go with them, bit for bit, where nothing is drawn by position. */
static void queries_permuted(void)
{
    static const int methods[] = { KNA_EXACT, KNA_TOPK, KNA_LINFORMER };
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        random_case c = { .guarded = false };
        int64_t m = 30 + (int64_t)test_below(200), row_bytes = 12 * (int64_t)sizeof(float);
        case_begin(&c, (shape){ 1, 1, m, 300, 12, 6 });
        set_method(&c, methods[i]);
        if (!attend(&c)) continue;
        float *before = case_result(&c), *q = case_hold(&c, (size_t)(m * row_bytes));
        for (int64_t row = 0; row < m; row++) memcpy(q + row * 12, numbers(&c.q) + (m - 1 - row) * 12, (size_t)row_bytes);
        c.q.data = q;
        attend(&c);
        for (int64_t row = 0; row < m; row++) {
            bool same = memcmp(case_out_row(&c, 0, row), before + (m - 1 - row) * 7, 6 * sizeof(float)) == 0;
            if (!EXPECT_THAT(same, "%s: query %lld", kna_method_name(methods[i]), (long long)row)) break;
        }
        free(before);
        case_end(&c);
    }
}

/* ---- where outputs lie */

static void among_the_values(void)
{
    for (int i = 0; i < rounds(6 * NATURES); i++) {
        const nature *of = &natures[i % NATURES];
        if (!of->positive) continue;
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 2, 1, 1 + (int64_t)test_below(40), 1 + (int64_t)test_below(900), 8, 3 });
        case_rows(&c, &c.q, KNA_F32, LAYOUT_PACKED, 0.1 + 5 * test_uniform());
        set_method(&c, of->method);
        if (!attend(&c)) continue;
        for (int64_t x = 0; x < 3; x++) {
            float low = INFINITY, high = -INFINITY;
            for (int64_t j = 0; j < c.shape.n; j++) {
                low = fminf(low, numbers(&c.v)[j * 3 + x]);
                high = fmaxf(high, numbers(&c.v)[j * 3 + x]);
            }
            float slack = of->method == KNA_KNN ? 6 * 0x1p-11f : 1e-5f; /* means are kept in f16 */
            for (int64_t row = 0; row < 2 * c.shape.m; row++) {
                float got = case_out_row(&c, row / c.shape.m, row % c.shape.m)[x];
                if (!EXPECT_THAT(got >= low - slack && got <= high + slack, "%g outside %g .. %g: %s", (double)got, (double)low,
                                 (double)high, case_text(&c))) {
                    x = 3;
                    break;
                }
            }
        }
        case_end(&c);
    }
}

/* Keys all alike: the mean of the values, for what does not draw; of topk's first k, of a window's. */
static void equal_keys(void)
{
    static const int methods[] = { KNA_EXACT, KNA_TOPK, KNA_KNN, KNA_WINDOW, KNA_LINFORMER, KNA_NYSTROM, KNA_PERFORMER };
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 2, 1, 20, 640, 8, 4 });
        set_method(&c, methods[i]);
        float *k = numbers(&c.k);
        for (int64_t x = 8; x < count_of(&c.k); x++) k[x] = k[x % 8];
        if (!attend(&c)) continue;
        double mean[4] = { 0 };
        int64_t taken = 0;
        for (int64_t j = 0; j < 640; j++) {
            bool in = methods[i] == KNA_TOPK ? j < 10 : methods[i] == KNA_WINDOW ? j < 3 || j >= 620 : true;
            for (int64_t x = 0; in && x < 4; x++) mean[x] += (double)numbers(&c.v)[j * 4 + x];
            taken += in;
        }
        double bound = methods[i] == KNA_KNN       ? 0x1p-10
                       : methods[i] == KNA_NYSTROM ? 1e-3
                                                   : 2e-5; /* means in f16; a pseudo-inverse */
        for (int64_t row = 0; row < 2 * 20; row++) {
            for (int64_t x = 0; x < 4; x++) {
                double got = (double)case_out_row(&c, row / 20, row % 20)[x];
                if (!EXPECT_NEAR(got, mean[x] / (double)taken, bound)) printf("  %s\n", kna_method_name(methods[i]));
            }
        }
        case_end(&c);
    }
}

/* ---- extremes of size and number */

/* One key: its value, whatever the method. */
static void one_key(void)
{
    for (int method = 0; method < KNA_METHOD_COUNT; method++) {
        for (int64_t m = 1; m <= 20; m += 19) {
            random_case c = { .guarded = false };
            case_begin(&c, (shape){ 4, 2, m, 1, 8, 4 });
            set_method(&c, method);
            if (!attend(&c)) continue;
            for (int64_t row = 0; row < 4 * m; row++) {
                for (int64_t x = 0; x < 4; x++) {
                    double got = (double)case_out_row(&c, row / m, row % m)[x], want = (double)numbers(&c.v)[row / m / 2 * 4 + x];
                    if (!EXPECT_NEAR(got, want, 1e-5)) printf("  %s\n", kna_method_name(method));
                }
            }
            case_end(&c);
        }
    }
}

/* With everything read nothing is left to estimate. */
static void everything_read(void)
{
    for (int i = 0; i < rounds(4 * NATURES); i++) {
        if (!natures[i % NATURES].ignores_all) continue;
        random_case c = { .guarded = false };
        case_begin(&c, random_shape(1e5));
        set_method(&c, natures[i % NATURES].method);
        c.options.k_near = c.options.rank = c.options.near_window = c.shape.n > 0 ? c.shape.n : 1;
        c.options.samples = 1;
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        expected *e = expected_exact(o, 1e-5);
        if (attend(&c)) case_matches(&c, e);
        expected_free(e);
        oracle_free(o);
        case_end(&c);
    }
}

/* A number that is none is found in every operand, for every method, and said where. */
static void not_a_number(void)
{
    for (int method = 0; method < KNA_METHOD_COUNT; method++) {
        for (int operand = 0; operand < 6; operand++) {
            random_case c = { .guarded = false };
            case_begin(&c, (shape){ 2, 1, 3, 100, 8, 4 });
            set_method(&c, method);
            const kna_rows *rows = operand % 3 == 0 ? &c.q : operand % 3 == 1 ? &c.k : &c.v;
            numbers(rows)[count_of(rows) - 2] = operand < 3 ? NAN : -INFINITY;
            EXPECT_INT(kna_attend(context_best(), &c.out, c.lse, NULL, &c.q, &c.k, &c.v, &c.options), KNA_EVALUE);
            static const char *const names[] = { "queries", "keys", "values" };
            EXPECT_THAT(strstr(kna_context_message(context_best()), names[operand % 3]) != NULL, "%s: %s", kna_method_name(method),
                        kna_context_message(context_best()));
            case_end(&c);
        }
    }
}

/* ---- the tail */

/* out - head mean = tau (tail mean - head mean), tau being what the head leaves of the softmax; and tau falls as k grows. */
static void identity_of_the_tail(void)
{
    enum { N = 300, DV = 5 };
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 1, 1, 4, N, 8, DV });
    c.options.method = KNA_TOPK;
    oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
    for (int query = 0; query < 4; query++) {
        double all[N], head[N], tail[N], out[DV], mean[DV], rest[DV], last = 1;
        oracle_logits(o, 0, query, all);
        double lse = oracle_mix(o, 0, all, out);
        for (int64_t k = 1; k < N; k += 1 + k / 4) {
            memcpy(head, all, sizeof all);
            oracle_keep_largest(head, N, k);
            for (int j = 0; j < N; j++) tail[j] = head[j] > -(double)INFINITY ? -(double)INFINITY : all[j];
            double head_lse = oracle_mix(o, 0, head, mean), tau = exp(oracle_mix(o, 0, tail, rest) - lse), square = 0;
            for (int x = 0; x < DV; x++) square += pow(out[x] - mean[x] - tau * (rest[x] - mean[x]), 2);
            EXPECT_THAT(sqrt(square) <= 1e-12, "off by %g", sqrt(square));
            EXPECT_NEAR(tau, 1 - exp(head_lse - lse), 1e-12);
            c.options.k_near = k;
            kna_report report = { .size = sizeof report };
            EXPECT_INT(case_attend(&c, context_best(), &report), KNA_OK);
            EXPECT_NEAR(1 - exp((double)c.lse[query] - lse), tau, 1e-5);
            for (int x = 0; x < DV; x++)
                EXPECT_NEAR((double)case_out_row(&c, 0, query)[x], out[x] - tau * (rest[x] - mean[x]), 1e-5);
            EXPECT_THAT(tau <= last, "k = %lld leaves %g, fewer left %g", (long long)k, tau, last);
            last = tau;
        }
    }
    oracle_free(o);
    case_end(&c);
}

/* Two shards, each with a sample of its own, joined: the sum stays unbiased. */
static void sampled_shards(void)
{
    enum { N = 300, SEEDS = 4000 / RANDOM_SHARE, DV = 3 };
    random_case c = { .guarded = false };
    begin_fixed(&c, (shape){ 1, 1, 1, N, 8, DV }, 1.5);
    oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
    double logits[N], out[DV], sum = 0, square = 0;
    oracle_logits(o, 0, 0, logits);
    double lse = oracle_mix(o, 0, logits, out);
    set_method(&c, KNA_UNIFORM);
    for (int seed = 0; seed < SEEDS; seed++) {
        float part[2][DV], part_lse[2];
        for (int shard = 0; shard < 2; shard++) {
            kna_rows k = c.k, v = c.v;
            int64_t first = shard ? 180 : 0, rows = shard ? N - 180 : 180;
            k.data = numbers(&c.k) + first * 8;
            v.data = numbers(&c.v) + first * DV;
            k.rows = v.rows = rows;
            c.options.seed = (uint64_t)(2 * seed + shard);
            EXPECT_INT(
                kna_attend(context_best(), &(kna_out_rows){ part[shard], 0, 0 }, &part_lse[shard], NULL, &c.q, &k, &v, &c.options),
                KNA_OK);
        }
        EXPECT_INT(kna_merge(context_best(), part[0], &part_lse[0], part[1], &part_lse[1], 1, DV), KNA_OK);
        double off = exp((double)part_lse[0] - lse) - 1;
        sum += off;
        square += off * off;
    }
    EXPECT_NEAR(sum / SEEDS, 0, 4 * sqrt(square) / SEEDS);
    oracle_free(o);
    case_end(&c);
}

/* What is asked more strictly takes no fewer keys, and never more than there are. */
static void stricter_takes_more(void)
{
    static const float eps[] = { 0.4f, 0.2f, 0.1f, 0.05f, 0.01f }, delta[] = { 0.3f, 0.1f, 0.03f, 0.001f };
    double last = 0;
    random_case c = { .guarded = false };
    begin_fixed(&c, (shape){ 1, 1, 30, 2000, 8, 8 }, 1);
    set_method(&c, KNA_UNIFORM);
    c.options.k_near = 60;
    c.options.samples = 0;
    for (size_t i = 0; i < 9; i++) {
        kna_report report = { .size = sizeof report };
        if (i == 5) last = 0;
        c.options.eps = i < 5 ? eps[i] : 0.1f;
        c.options.delta = i < 5 ? 0.05f : delta[i - 5];
        EXPECT_INT(case_attend(&c, context_best(), &report), KNA_OK);
        EXPECT_THAT(report.keys_full >= last && report.keys_full <= 30.0 * 2000, "eps %g, delta %g: %g keys, before %g",
                    (double)c.options.eps, (double)c.options.delta, report.keys_full, last);
        if (i == 4) EXPECT_INT(report.rows_exact, 30); /* 1 %: nothing less than all will do */
        last = report.keys_full;
    }
    case_end(&c);
}

/* ---- medians of means */

/* Draws of which a tenth are worth a million: in groups of four most are clean, and the median is. A mean is lost. */
static void spoiled_draws(void)
{
    enum { N = 1000, M = 20 };
    random_case c = { .guarded = false };
    begin_fixed(&c, (shape){ 1, 1, M, N, 8, 2 }, 1);
    memset(numbers(&c.q), 0, M * 8 * sizeof(float)); /* all keys alike */
    for (int64_t j = 0; j < N; j += 10) numbers(&c.v)[2 * j] = 1e6f;
    set_method(&c, KNA_MOM);
    c.options.samples = 400;
    c.options.groups = 100;
    attend(&c);
    for (int64_t query = 0; query < M; query++) EXPECT_NEAR((double)case_out_row(&c, 0, query)[0], 0, 3);
    c.options.method = KNA_GUMBEL;
    attend(&c);
    for (int64_t query = 0; query < M; query++) EXPECT((double)case_out_row(&c, 0, query)[0] > 1e4);
    case_end(&c);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Values with heavy tails: the worst hundredth of the errors is smaller for medians of 25 means than for the mean of all. */
static void heavy_tails(void)
{
    enum { N = 4000, M = 400, DV = 8 };
    double worst[2];
    random_case c = { .guarded = false };
    begin_fixed(&c, (shape){ 1, 1, M, N, 8, DV }, 1);
    memset(numbers(&c.q), 0, M * 8 * sizeof(float));
    uint64_t random = test_state.random;
    test_state.random = 7;
    double mean[DV] = { 0 };
    for (int64_t x = 0; x < N * DV; x++) { /* density ~ |v|^-2.6 */
        double v = pow(test_uniform() + 1e-9, -1 / 1.6) * (test_below(2) ? 1 : -1);
        numbers(&c.v)[x] = (float)v;
        mean[x % DV] += v / N;
    }
    test_state.random = random;
    set_method(&c, KNA_MOM);
    c.options.k_near = 200; /* so that a draw looks at 20 keys */
    c.options.samples = 400;
    for (int kind = 0; kind < 2; kind++) {
        double errors[M];
        c.options.method = kind ? KNA_MOM : KNA_GUMBEL;
        c.options.groups = 25;
        attend(&c);
        for (int64_t query = 0; query < M; query++) {
            errors[query] = 0;
            for (int x = 0; x < DV; x++) errors[query] += pow((double)case_out_row(&c, 0, query)[x] - mean[x], 2);
        }
        qsort(errors, M, sizeof errors[0], by_size);
        worst[kind] = sqrt(errors[M * 99 / 100]);
    }
    EXPECT_THAT(worst[1] < 0.8 * worst[0], "median %g, mean %g", worst[1], worst[0]);
    case_end(&c);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(values_move);
    TEST(keys_move);
    TEST(queries_permuted);
    TEST(among_the_values);
    TEST(equal_keys);
    TEST(one_key);
    TEST(everything_read);
    TEST(not_a_number);
    TEST(identity_of_the_tail);
    TEST(sampled_shards);
    TEST(stricter_takes_more);
    TEST(spoiled_draws);
    TEST(heavy_tails);
    contexts_free();
    return test_end();
}
