/*
 * prop_sampled.c - attention by sampling: draws are by softmax, estimates unbiased, certificates hold as often as they say.
 *
 * Statistical tests have fixed seeds, so they always give the same answer. Power: a chi-square at p = 1e-4 over 20,000 draws finds
 * a total variation of about 2 %; four standard errors of 4,000 seeds find a bias of 6 % of one estimate's deviation.
 */
#include "sampling.h"

#define METHODS 4
#define LAWS    7 /* the others are prop_strata.c's, but for what holds of all */
static const int methods[LAWS] = { KNA_UNIFORM, KNA_GUMBEL, KNA_REJECTION, KNA_MOM, KNA_CENTROID, KNA_STRATIFIED, KNA_CONTROL };

/* ---- draws */

static void drawn_by_softmax(void)
{
    enum { N = 300, DRAWS = 20000 / RANDOM_SHARE };
    static int32_t draws[3 * DRAWS];
    for (int m = 1; m < METHODS * SAMPLING_HEADS; m++) {
        if (m % METHODS == 0) continue;
        for (int k = 1; k <= 301; k += k == 1 ? 29 : 271) { /* one key in the head, 30, all */
            if (m >= METHODS && k != 30) continue;
            random_case c = { .guarded = false };
            sampling_begin(&c, (shape){ 1, 1, 3, N, 16, 4 }, 2);
            c.options.method = methods[m % METHODS];
            c.options.causal = m < METHODS * (SAMPLING_HEADS - 1);
            c.options.k_near = k;
            sampling_choose_head(&c, m / METHODS);
            c.options.samples = DRAWS;
            c.options.draws = draws;
            if (k == 30) c.options.softcap = 3;
            EXPECT_INT(sampling_attend(&c), KNA_OK);
            oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
            for (int query = 0; query < 3; query++) {
                double logits[N], out[4];
                oracle_logits(o, 0, query, logits);
                double lse = oracle_mix(o, 0, logits, out);
                sampling_expect_softmax(draws + query * DRAWS, DRAWS, logits, lse, N);
                /* The sum of the softmax is estimated from the same draws: relative deviation 1 / sqrt(draws), less by rejection. */
                EXPECT_NEAR((double)c.lse[query], lse, 5 / sqrt(DRAWS) + 1e-5);
            }
            oracle_free(o);
            case_end(&c);
        }
    }
}

/* Mussmann et al.: with a = exp(bound) / head sum a draw looks at N a / (1 + a) keys of the tail, less than N / (k + 1). */
static void few_keys_per_draw(void)
{
    enum { N = 2000, DRAWS = 4000, K = 40 };
    static int32_t draws[DRAWS];
    random_case c = { .guarded = false };
    kna_report report = { .size = sizeof report };
    sampling_begin(&c, (shape){ 1, 1, 1, N, 16, 4 }, 1);
    c.options.method = KNA_GUMBEL;
    c.options.k_near = K;
    c.options.samples = DRAWS;
    c.options.draws = draws;
    EXPECT_INT(case_attend(&c, context_best(), &report), KNA_OK);
    oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
    double logits[N], all[N], least = (double)INFINITY, head = 0;
    oracle_logits(o, 0, 0, logits);
    memcpy(all, logits, sizeof all);
    oracle_keep_largest(logits, N, K);
    for (int j = 0; j < N; j++) {
        if (logits[j] == -(double)INFINITY) continue;
        least = fmin(least, logits[j]);
        head += exp(logits[j]);
    }
    double a = exp(least) / head, mean = (N - K) * a / (1 + a), found = (report.keys_full - K) / DRAWS;
    EXPECT_NEAR(found, mean, 4 * (mean + sqrt(mean)) / sqrt(DRAWS)); /* a mixture of binomials: its deviation is below */
    EXPECT(mean < (double)N / (K + 1));
    oracle_free(o);
    case_end(&c);
}

/* ---- estimates */

/*
 * Over many seeds: the mean of the sum is the sum (uniform, gumbel, rejection), and of gumbel's and rejection's outputs the output;
 * those of uniform are a ratio, with a bias of about 1 / s of its variance.
 */
static void unbiased(void)
{
    enum { N = 400, SEEDS = 4000 / RANDOM_SHARE, DV = 4 };
    for (int i = 0; i < 3 * SAMPLING_HEADS + SAMPLING_HEADS; i++) {
        int m = i < 3 * SAMPLING_HEADS ? i % 3 : 0, head = i < 3 * SAMPLING_HEADS ? i / 3 : i % SAMPLING_HEADS;
        random_case c = { .guarded = false };
        sampling_begin(&c, (shape){ 1, 1, 1, N, 8, DV }, 1.5);
        c.options.method = methods[m];
        c.options.k_near = 20;
        c.options.samples = 60;
        sampling_choose_head(&c, head);
        c.options.stratify = i >= 3 * SAMPLING_HEADS;
        sampling_row t = sampling_truth(&c, 0);
        double sum = 0, sum_square = 0, out[DV] = { 0 }, square[DV] = { 0 };
        for (int seed = 0; seed < SEEDS; seed++) {
            c.options.seed = (uint64_t)seed;
            if (!EXPECT_INT(sampling_attend(&c), KNA_OK)) break;
            double ratio = exp((double)c.lse[0] - t.lse) - 1;
            sum += ratio;
            sum_square += ratio * ratio;
            for (int x = 0; x < DV; x++) {
                double off = (double)c.out.data[x] - t.out[x];
                out[x] += off;
                square[x] += off * off;
            }
        }
        EXPECT_NEAR(sum / SEEDS, 0, 4 * sqrt(sum_square / SEEDS / SEEDS));
        for (int x = 0; x < DV; x++) {
            double deviation = sqrt(square[x] / SEEDS), bias = methods[m] == KNA_UNIFORM ? deviation / 60 : 0;
            EXPECT_NEAR(out[x] / SEEDS, 0, 4 * deviation / sqrt(SEEDS) + bias);
        }
        case_end(&c);
    }
}

/*
 * Mean squared errors: of draws tr Cov(v) / t; of a uniform sample (1 - s/N) N^2 S^2 / (s Z^2), S^2 the variance of w (v - out)
 * over the tail; within a tenth, and so with slope -1/2 in s.
 */
static double predicted(const random_case *c, const sampling_row *t)
{
    enum { DV = 4 };
    oracle *o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    int64_t n = c->shape.n, k = c->options.k_near, s = c->options.samples, rest = n - k;
    double *all = calloc((size_t)n, sizeof *all), *head = calloc((size_t)n, sizeof *head), mean[DV] = { 0 }, square = 0;
    oracle_logits(o, 0, 0, all);
    memcpy(head, all, (size_t)n * sizeof *all);
    oracle_keep_largest(head, n, k);
    double error = 0;
    for (int64_t j = 0; j < n; j++) {
        double p = exp(all[j] - t->lse);
        for (int i = 0; i < DV; i++) {
            double off = o->v[j * DV + i] - t->out[i];
            if (c->options.method != KNA_UNIFORM) {
                error += p * off * off / (double)s;
            } else if (head[j] == -(double)INFINITY) {
                mean[i] += p * off / (double)rest;
                square += p * off * p * off;
            }
        }
    }
    if (c->options.method == KNA_UNIFORM) {
        for (int i = 0; i < DV; i++) square -= (double)rest * mean[i] * mean[i];
        error = (1 - (double)s / (double)rest) * (double)(rest * rest) / (double)s * square / (double)(rest - 1);
    }
    free(all);
    free(head);
    oracle_free(o);
    return error;
}

static void errors_as_predicted(void)
{
    enum { N = 1500, SEEDS = 1500 / RANDOM_SHARE };
    for (int m = 0; m < 3; m++) {
        double last = 0; /* fewer seeds where every access is watched, and twice the tolerance */
        for (int64_t s = 128; s <= 512; s *= 2) {
            random_case c = { .guarded = false };
            sampling_begin(&c, (shape){ 1, 1, 1, N, 8, 4 }, 1);
            c.options.method = methods[m];
            c.options.k_near = 50;
            c.options.samples = s;
            sampling_row t = sampling_truth(&c, 0);
            double square = 0, want = predicted(&c, &t);
            for (int seed = 0; seed < SEEDS; seed++) {
                c.options.seed = (uint64_t)seed;
                if (!EXPECT_INT(sampling_attend(&c), KNA_OK)) break;
                double off = sampling_distance(c.out.data, t.out, 4);
                square += off * off / SEEDS;
            }
            EXPECT_NEAR(square / want, 1, RANDOM_SHARE > 1 ? 0.2 : 0.1);
            if (s == 512 && m) EXPECT_NEAR(log(square / last) / log(2), -1, RANDOM_SHARE > 1 ? 0.4 : 0.2); /* of the square */
            last = square;
            case_end(&c);
        }
    }
}

/* A sample of everything is everything. */
static void all_is_exact(void)
{
    for (int i = 0; i < rounds(60); i++) {
        random_case c = { .guarded = false };
        case_random(&c, random_shape(3e5));
        c.options.method = KNA_UNIFORM;
        c.options.k_near = 1 + (int64_t)test_below(20);
        c.options.samples = i & 1 ? c.shape.n + 1 : 1 + (int64_t)test_below(5);
        if (!(i & 1)) c.options.eps = 1e-7f; /* nothing else will do, as a certificate that holds knows */
        if (!(i & 1) || i & 2) c.options.certificate = KNA_CERTIFICATE_FINITE + (int)test_below(3);
        if (i % 6 == 5) c.options.method = KNA_STRATIFIED, c.options.certificate = KNA_CERTIFICATE_DETERMINISTIC;
        if (i % 6 == 3) c.options.method = KNA_CONTROL, c.options.certificate = KNA_CERTIFICATE_ASYMPTOTIC;
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        expected *e = expected_exact(o, 2e-5);
        if (EXPECT_INT(sampling_attend(&c), KNA_OK)) case_matches(&c, e);
        expected_free(e);
        oracle_free(o);
        case_end(&c);
    }
}

/* ---- laws */

static void same_bits(void)
{
    static const int threads[] = { 1, 2, 5 };
    for (int m = 0; m < LAWS; m++) {
        float *first = NULL;
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 4, 2, 30, 700, 16, 8 });
        c.options.method = methods[m];
        c.options.causal = 1;
        c.options.k_near = 30;
        c.options.seed = 7;
        for (size_t i = 0; i < sizeof threads / sizeof threads[0]; i++) {
            kna_context_options options = KNA_CONTEXT_OPTIONS;
            kna_context *context;
            options.threads = threads[i];
            EXPECT_INT(kna_context_new(&context, &options), KNA_OK);
            EXPECT_INT(case_attend(&c, context, NULL), KNA_OK);
            float *now = case_result(&c);
            if (first) EXPECT(memcmp(first, now, 4 * 30 * 9 * sizeof(float)) == 0);
            if (first) free(now);
            first = first ? first : now;
            kna_context_free(context);
        }
        free(first);
        case_end(&c);
    }
}

/* A query by itself, over the keys it saw in the batch, draws the same and gives the same. */
static void one_by_one(void)
{
    for (int m = 0; m < LAWS; m++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 2, 1, 40, 500, 8, 4 });
        c.options.method = methods[m];
        c.options.causal = 1;
        c.options.k_near = 25;
        EXPECT_INT(sampling_attend(&c), KNA_OK);
        for (int64_t query = 0; query < 40; query += 13) {
            float out[8], lse[2];
            kna_rows q = c.q, k = c.k, v = c.v;
            q.data = (const char *)q.data + query * 8 * 4;
            q.head_stride_bytes = 40 * 8 * 4;
            k.rows = v.rows = 500 - 40 + query + 1;
            q.rows = 1;
            EXPECT_INT(kna_attend(context_best(), &(kna_out_rows){ out, 0, 0 }, lse, NULL, &q, &k, &v, &c.options), KNA_OK);
            for (int head = 0; head < 2; head++) {
                for (int i = 0; i < 4; i++) EXPECT_NEAR((double)out[head * 4 + i], (double)case_out_row(&c, head, query)[i], 1e-5);
            }
        }
        case_end(&c);
    }
}

/* A mean of one group is the mean; an output of draws lies among the values. */
static void medians(void)
{
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 2, 1, 20, 300, 8, 4 });
    c.options.k_near = 20;
    c.options.samples = 100;
    c.options.groups = 1;
    c.options.method = KNA_GUMBEL;
    EXPECT_INT(sampling_attend(&c), KNA_OK);
    float *mean = case_result(&c);
    c.options.method = KNA_MOM;
    EXPECT_INT(sampling_attend(&c), KNA_OK);
    float *one = case_result(&c);
    EXPECT(memcmp(mean, one, 2 * 20 * 5 * sizeof(float)) == 0);
    c.options.groups = 7;
    EXPECT_INT(sampling_attend(&c), KNA_OK);
    float *seven = case_result(&c);
    EXPECT(memcmp(mean, seven, 2 * 20 * 5 * sizeof(float)) != 0);
    free(mean);
    free(one);
    free(seven);
    case_end(&c);
}

/* What a query does not see changes nothing. */
static void no_look_ahead(void)
{
    for (int m = 0; m < LAWS; m++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 2, 2, 64, 400, 8, 4 });
        c.options.method = methods[m];
        c.options.causal = 1;
        c.options.k_near = 20;
        EXPECT_INT(sampling_attend(&c), KNA_OK);
        float *before = case_result(&c);
        for (int head = 0; head < 2; head++) {
            for (int64_t row = 400 - 32; row < 400; row++) {
                for (int64_t i = 0; i < 8; i++) case_put(&c.k, head, row, i, (float)test_normal() * 3);
            }
        }
        EXPECT_INT(sampling_attend(&c), KNA_OK);
        for (int head = 0; head < 2; head++) {
            for (int64_t query = 0; query < 32; query++) {
                EXPECT(memcmp(before + (head * 64 + query) * 5, case_out_row(&c, head, query), 4 * sizeof(float)) == 0);
            }
        }
        free(before);
        case_end(&c);
    }
}

/* ---- all options, and what is refused */

/* Shapes, types, masks, windows, sinks: finite, near where heads are large, and rows that see nothing are as they should be. */
static void random_cases(void)
{
    for (int i = 0; i < rounds(150); i++) {
        random_case c = { .guarded = false };
        case_random(&c, random_shape(3e5));
        c.options.method = methods[i % LAWS];
        c.options.k_near = 1 + (int64_t)test_below(40);
        c.options.samples = 1 + (int64_t)test_below(200);
        c.options.certificate = i % LAWS ? 0 : (int)test_below(KNA_CERTIFICATE_COUNT);
        c.options.seed = test_random();
        if (c.options.method <= KNA_MOM) c.options.bounds = (int)test_below(KNA_BOUNDS_COUNT);
        if (c.options.method <= KNA_MOM && !c.options.bounds && test_below(2)) c.options.gap = (float)test_uniform() * 5;
        if (c.options.method >= KNA_GUMBEL && c.options.method <= KNA_MOM)
            c.options.draws = case_hold(&c, (size_t)(c.shape.h * c.shape.m * c.options.samples) * 4);
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        if (!EXPECT_INT(sampling_attend(&c), KNA_OK)) printf("  %s\n", case_text(&c));
        for (int64_t row = 0; row < c.shape.h * c.shape.m; row++) {
            int64_t head = row / c.shape.m, query = row % c.shape.m, seen = 0;
            for (int64_t j = 0; j < c.shape.n; j++) seen += oracle_sees(o, head, query, j);
            for (int64_t x = 0; x < c.shape.dv; x++) {
                if (c.options.method == KNA_CONTROL) break; /* its output need not be among the values */
                double most = o->v_most[head / o->g] * 1.001, got = (double)case_out_row(&c, head, query)[x];
                if (!EXPECT_THAT(seen ? fabs(got) <= most : got == 0, "%g of values up to %g: %s", got, most, case_text(&c))) break;
            }
            for (int64_t x = 0; c.options.draws && x < c.options.samples; x++) {
                int32_t key = c.options.draws[row * c.options.samples + x];
                if (!EXPECT(seen ? key >= 0 && oracle_sees(o, head, query, key) : key == -1)) break;
            }
        }
        oracle_free(o);
        case_end(&c);
    }
}

static void refused(random_case *c, const char *words)
{
    EXPECT_INT(kna_attend(context_best(), &c->out, c->lse, NULL, &c->q, &c->k, &c->v, &c->options), KNA_EINVAL);
    EXPECT_THAT(strstr(kna_context_message(context_best()), words) != NULL, "message: %s", kna_context_message(context_best()));
}

static void bad_input(void)
{
    random_case c = { .guarded = false };
    int32_t draws[8];
    case_begin(&c, (shape){ 1, 1, 2, 50, 4, 4 });
    c.options.method = KNA_GUMBEL;
    c.options.k_near = 4;
    c.options.samples = -1;
    refused(&c, "samples");
    c.options.samples = 4;
    c.options.groups = -1;
    refused(&c, "groups");
    c.options.groups = 0;
    c.options.certificate = KNA_CERTIFICATE_COUNT;
    refused(&c, "certificate");
    c.options.certificate = KNA_CERTIFICATE_FINITE;
    refused(&c, "certificate: gumbel");
    c.options.certificate = 0;
    c.options.draws = draws;
    c.options.method = KNA_UNIFORM;
    refused(&c, "draws: uniform");
    c.options.method = KNA_KNN;
    refused(&c, "draws: knn");
    c.options.method = KNA_GUMBEL;
    EXPECT_INT(sampling_attend(&c), KNA_OK);
    case_end(&c);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(drawn_by_softmax);
    TEST(few_keys_per_draw);
    TEST(unbiased);
    TEST(errors_as_predicted);
    TEST(all_is_exact);
    TEST(same_bits);
    TEST(one_by_one);
    TEST(medians);
    TEST(no_look_ahead);
    TEST(random_cases);
    TEST(bad_input);
    contexts_free();
    return test_end();
}
