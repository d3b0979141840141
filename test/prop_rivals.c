/* prop_rivals.c - window, linformer, nystrom and performer against what their papers define, in double precision. */
#include "random_case.h"

static int attend(random_case *c, kna_context *context)
{
    int status = case_attend(c, context, NULL);
    if (status != KNA_OK) printf("  %s\n", kna_context_message(context));
    return status;
}

static kna_context *random_context(void)
{
    kna_context *const *all;
    int count = contexts(&all);
    return all[test_below((size_t)count)];
}

static bool near(const random_case *c, int64_t head, int64_t query, const double *want, double bound)
{
    for (int64_t i = 0; i < c->shape.dv; i++) {
        if (!EXPECT_NEAR((double)case_out_row(c, head, query)[i], want[i], bound)) return false;
    }
    return true;
}

/* ---- window: exact attention to the first and the last keys that a query sees */

static void windows(void)
{
    for (int i = 0; i < rounds(120); i++) {
        random_case c = { .guarded = false };
        int64_t g = 1 + (int64_t)test_below(3), h_kv = 1 + (int64_t)test_below(2);
        case_begin(&c, (shape){ g * h_kv, h_kv, 1 + (int64_t)test_below(60), 1 + (int64_t)test_below(200), 8, 5 });
        case_rows(&c, &c.k, random_type(8), (int)test_below(LAYOUT_COUNT), 1);
        case_rows(&c, &c.v, random_type(5), (int)test_below(LAYOUT_COUNT), 1);
        c.options.method = KNA_WINDOW;
        c.options.causal = i % 2;
        c.options.near_sinks = (int64_t)test_below(12) - 1;
        c.options.near_window = (int64_t)test_below(70) - 1;
        if (test_below(4) == 0) c.options.causal_shift = (int64_t)test_below(60) - 30;
        if (test_below(4) == 0) c.options.softcap = 3;
        if (test_below(4) == 0) case_per_head(&c, &c.options.sinks, -2, 2);
        int64_t sinks = c.options.near_sinks == 0 ? 4 : c.options.near_sinks < 0 ? 0 : c.options.near_sinks;
        int64_t window = c.options.near_window == 0 ? 64 : c.options.near_window < 0 ? 0 : c.options.near_window;
        EXPECT_INT(attend(&c, random_context()), KNA_OK);
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        double *logits = calloc((size_t)c.shape.n, sizeof *logits), out[5];
        for (int64_t row = 0; row < c.shape.h * c.shape.m; row++) {
            int64_t head = row / c.shape.m, query = row % c.shape.m;
            int64_t last = c.options.causal ? oracle_position(o, query) : c.shape.n - 1;
            oracle_logits(o, head, query, logits);
            for (int64_t j = 0; j < c.shape.n; j++) {
                if (j >= sinks && j <= last - window) logits[j] = -(double)INFINITY;
            }
            double lse = oracle_mix(o, head, logits, out);
            if (!near(&c, head, query, out, 2e-5 * o->v_most[head / g])) {
                printf("  %s\n", case_text(&c));
                break;
            }
            if (lse > -(double)INFINITY) EXPECT_NEAR((double)c.lse[row], lse, 1e-4);
        }
        free(logits);
        oracle_free(o);
        case_end(&c);
    }
}

/* ---- linformer */

/* Row `part` of a projection: given, or the mean of a run of rows. */
static double entry(const float *project, int64_t rank, int64_t n, int64_t part, int64_t row)
{
    if (project) return (double)project[part * n + row];
    int64_t first = part * n / rank, end = (part + 1) * n / rank;
    return row >= first && row < end ? 1 / (double)(end - first) : 0;
}

static void linformers(void)
{
    for (int i = 0; i < rounds(30); i++) {
        random_case c = { .guarded = false };
        int64_t rank = 1 + (int64_t)test_below(40), n = 1 + (int64_t)test_below(150);
        case_begin(&c, (shape){ 4, 2, 7, n, 6, 5 });
        c.options.method = KNA_LINFORMER;
        c.options.rank = rank;
        float *projections = case_hold(&c, (size_t)(2 * rank * n) * sizeof(float));
        for (int64_t x = 0; x < 2 * rank * n; x++) projections[x] = (float)test_normal() / 4;
        if (i % 2) c.options.project_k = projections, c.options.project_v = projections + rank * n;
        if (!(i % 2)) rank = rank < n ? rank : n;
        EXPECT_INT(attend(&c, random_context()), KNA_OK);
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        for (int64_t row = 0; row < 4 * 7; row++) {
            int64_t kv_head = row / 7 / 2;
            double sum = 0, out[5] = { 0 };
            for (int64_t part = 0; part < rank; part++) {
                double logit = 0, count = (double)((part + 1) * n / rank - part * n / rank), v[5] = { 0 };
                for (int64_t j = 0; j < n; j++) {
                    for (int x = 0; x < 6; x++) {
                        logit += o->scale * o->q[row * 6 + x] * entry(c.options.project_k, rank, n, part, j) *
                                 o->k[(kv_head * n + j) * 6 + x];
                    }
                    for (int x = 0; x < 5; x++)
                        v[x] += entry(c.options.project_v, rank, n, part, j) * o->v[(kv_head * n + j) * 5 + x];
                }
                double weight = exp(logit) * (c.options.project_k ? 1 : count);
                sum += weight;
                for (int x = 0; x < 5; x++) out[x] += weight * v[x];
            }
            for (int x = 0; x < 5; x++) out[x] /= sum;
            if (!near(&c, row / 7, row % 7, out, 1e-4)) break;
            EXPECT_NEAR((double)c.lse[row], log(sum), 1e-4);
        }
        oracle_free(o);
        case_end(&c);
    }
}

/* ---- nystrom */

enum { MOST = 40 };

static void means_of(const double *x, int64_t rows, int64_t d, int64_t parts, double *to)
{
    for (int64_t i = 0; i < parts * d; i++) {
        int64_t part = i / d, first = part * rows / parts, end = (part + 1) * rows / parts;
        to[i] = 0;
        for (int64_t row = first; row < end; row++) to[i] += x[row * d + i % d] / (double)(end - first);
    }
}

/* softmax(scale a b'), (rows, count). */
static void softmax_of(const double *a, const double *b, int64_t rows, int64_t count, int64_t d, double scale, double *to)
{
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0;
        for (int64_t j = 0; j < count; j++) {
            double z = 0;
            for (int64_t x = 0; x < d; x++) z += scale * a[r * d + x] * b[j * d + x];
            sum += to[r * count + j] = exp(z);
        }
        for (int64_t j = 0; j < count; j++) to[r * count + j] /= sum;
    }
}

static void product(const double *a, const double *b, int64_t rows, int64_t inner, int64_t columns, double *to)
{
    for (int64_t i = 0; i < rows * columns; i++) {
        to[i] = 0;
        for (int64_t x = 0; x < inner; x++) to[i] += a[i / columns * inner + x] * b[x * columns + i % columns];
    }
}

static void pseudo_inverse(const double *a, int64_t n, double *z)
{
    static double az[MOST * MOST], t[MOST * MOST], u[MOST * MOST];
    double rows = 0, columns = 0;
    for (int64_t i = 0; i < n; i++) {
        double row = 0, column = 0;
        for (int64_t j = 0; j < n; j++) row += fabs(a[i * n + j]), column += fabs(a[j * n + i]);
        rows = fmax(rows, row), columns = fmax(columns, column);
    }
    for (int64_t i = 0; i < n * n; i++) z[i] = a[i % n * n + i / n] / rows / columns;
    for (int step = 0; step < 6; step++) {
        product(a, z, n, n, n, az);
        for (int64_t i = 0; i < n * n; i++) t[i] = (i % (n + 1) ? 0 : 7) - az[i];
        product(az, t, n, n, n, u);
        for (int64_t i = 0; i < n * n; i++) t[i] = (i % (n + 1) ? 0 : 15) - u[i];
        product(az, t, n, n, n, u);
        for (int64_t i = 0; i < n * n; i++) t[i] = (i % (n + 1) ? 0 : 13) - u[i];
        product(z, t, n, n, n, u);
        for (int64_t i = 0; i < n * n; i++) z[i] = u[i] / 4;
    }
}

static void nystroms(void)
{
    for (int i = 0; i < rounds(30); i++) {
        random_case c = { .guarded = false };
        int64_t m = 1 + (int64_t)test_below(120), n = 1 + (int64_t)test_below(120), rank = 1 + (int64_t)test_below(MOST);
        case_begin(&c, (shape){ 4, 2, m, n, 8, 5 });
        c.options.method = KNA_NYSTROM;
        c.options.rank = rank;
        rank = rank < m ? rank : m;
        rank = rank < n ? rank : n;
        EXPECT_INT(attend(&c, random_context()), KNA_OK);
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        double *lq = calloc(MOST * 8, 8), *lk = calloc(MOST * 8, 8), *a = calloc(MOST * MOST, 8), *z = calloc(MOST * MOST, 8);
        double *f = calloc((size_t)(m * MOST), 8), *b = calloc((size_t)(n * MOST), 8), *bv = calloc(MOST * 5, 8),
               *zbv = calloc(MOST * 5, 8);
        double *out = calloc((size_t)(m * 5), 8);
        for (int64_t head = 0; head < 4; head++) {
            const double *q = o->q + head * m * 8, *k = o->k + head / 2 * n * 8, *v = o->v + head / 2 * n * 5;
            means_of(q, m, 8, rank, lq);
            means_of(k, n, 8, rank, lk);
            softmax_of(lq, lk, rank, rank, 8, o->scale, a);
            pseudo_inverse(a, rank, z);
            softmax_of(q, lk, m, rank, 8, o->scale, f);
            softmax_of(lq, k, rank, n, 8, o->scale, b);
            product(b, v, rank, n, 5, bv);
            product(z, bv, rank, rank, 5, zbv);
            product(f, zbv, m, rank, 5, out);
            double most = 1;
            for (int64_t x = 0; x < rank * 5; x++) most = fmax(most, fabs(zbv[x])); /* the inverse is as large as it likes */
            for (int64_t query = 0; query < m; query++) {
                if (!near(&c, head, query, out + query * 5, 3e-4 * most)) break;
                EXPECT(isnan(c.lse[head * m + query]));
            }
        }
        double *held[] = { lq, lk, a, z, f, b, bv, zbv, out };
        for (size_t x = 0; x < sizeof held / sizeof held[0]; x++) free(held[x]);
        oracle_free(o);
        case_end(&c);
    }
}

/* ---- performer */

/* Over many seeds the sum of the softmax is right, and so are the weighted values, with and without an order. */
static void performers(void)
{
    for (int causal = 0; causal < 2; causal++) {
        random_case c = { .guarded = false };
        enum { SEEDS = 400, M = 12 };
        uint64_t random = test_state.random;
        test_state.random = 77;
        case_begin(&c, (shape){ 4, 2, M, 150, 16, 6 });
        case_rows(&c, &c.q, KNA_F32, LAYOUT_PACKED, 0.7);
        case_rows(&c, &c.k, KNA_F32, LAYOUT_PACKED, 0.7);
        test_state.random = random;
        c.options.method = KNA_PERFORMER;
        c.options.causal = causal;
        c.options.rank = 64;
        static double sum[4 * M * 7], square[4 * M * 7]; /* of the sum of the softmax, and of six columns */
        memset(sum, 0, sizeof sum);
        memset(square, 0, sizeof square);
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        expected *e = expected_exact(o, 1e-5);
        for (int seed = 0; seed < SEEDS; seed++) {
            c.options.seed = (uint64_t)seed;
            if (!EXPECT_INT(attend(&c, context_best()), KNA_OK)) break;
            for (int64_t row = 0; row < 4 * M; row++) {
                double ratio = exp((double)c.lse[row] - e->lse[row]);
                for (int x = 0; x < 7; x++) {
                    double off =
                        x ? ratio * (double)case_out_row(&c, row / M, row % M)[x - 1] - e->out[row * 6 + x - 1] : ratio - 1;
                    sum[row * 7 + x] += off;
                    square[row * 7 + x] += off * off;
                }
            }
        }
        for (int64_t i = 0; i < 4 * M * 7; i++) EXPECT_NEAR(sum[i] / SEEDS, 0, 5 * sqrt(square[i]) / SEEDS);
        expected_free(e);
        oracle_free(o);
        case_end(&c);
    }
}

/* Over many hashes the sum of the softmax is right, and so are the weighted values: a key looked at counts for all the times it is not. */
static void hashes_are_unbiased(void)
{
    for (int causal = 0; causal < 2; causal++) {
        random_case c = { .guarded = false };
        enum { SEEDS = 1500, M = 6 };
        uint64_t random = test_state.random;
        test_state.random = 78;
        case_begin(&c, (shape){ 4, 2, M, 300, 16, 6 });
        case_rows(&c, &c.q, KNA_F32, LAYOUT_PACKED, 1);
        case_rows(&c, &c.k, KNA_F32, LAYOUT_PACKED, 1);
        test_state.random = random;
        c.options.method = KNA_LSH;
        c.options.causal = causal;
        c.options.hash_bits = 4;
        c.options.hash_tables = 20;
        c.options.near_window = 8;
        static double sum[4 * M * 7], square[4 * M * 7]; /* of the sum of the softmax, and of six columns */
        memset(sum, 0, sizeof sum);
        memset(square, 0, sizeof square);
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        expected *e = expected_exact(o, 1e-5);
        for (int seed = 0; seed < SEEDS; seed++) {
            c.options.seed = (uint64_t)seed;
            if (!EXPECT_INT(attend(&c, context_best()), KNA_OK)) break;
            for (int64_t row = 0; row < 4 * M; row++) {
                double ratio = exp((double)c.lse[row] - e->lse[row]);
                for (int x = 0; x < 7; x++) {
                    double off =
                        x ? ratio * (double)case_out_row(&c, row / M, row % M)[x - 1] - e->out[row * 6 + x - 1] : ratio - 1;
                    sum[row * 7 + x] += off;
                    square[row * 7 + x] += off * off;
                }
            }
        }
        for (int64_t i = 0; i < 4 * M * 7; i++) EXPECT_NEAR(sum[i] / SEEDS, 0, 4.5 * sqrt(square[i]) / SEEDS);
        EXPECT(sqrt(square[0] / SEEDS) > 1e-3); /* it is an estimate */
        expected_free(e);
        oracle_free(o);
        case_end(&c);
    }
}

/* Rows by themselves, at any position, and blocks of keys: all as one call gives them. */
static void performers_in_order(void)
{
    random_case c = { .guarded = false };
    enum { N = 300 };
    case_begin(&c, (shape){ 2, 1, N, N, 8, 4 });
    c.options.method = KNA_PERFORMER;
    c.options.causal = 1;
    c.options.rank = 40;
    EXPECT_INT(attend(&c, context_best()), KNA_OK);
    for (int64_t query = 0; query < N; query += 37) {
        float out[8], lse[2];
        kna_rows q = c.q, k = c.k, v = c.v;
        q.data = (const char *)q.data + query * 8 * 4;
        q.head_stride_bytes = N * 8 * 4;
        q.rows = 1;
        k.rows = v.rows = query + 1;
        EXPECT_INT(kna_attend(context_best(), &(kna_out_rows){ out, 0, 0 }, lse, NULL, &q, &k, &v, &c.options), KNA_OK);
        for (int head = 0; head < 2; head++) {
            for (int i = 0; i < 4; i++) EXPECT_NEAR((double)out[head * 4 + i], (double)case_out_row(&c, head, query)[i], 2e-4);
        }
    }
    c.options.causal_shift = -10;
    EXPECT_INT(attend(&c, context_best()), KNA_OK);
    for (int64_t query = 0; query < 10; query++) EXPECT(case_out_row(&c, 0, query)[0] == 0 && c.lse[query] == -INFINITY);
    case_end(&c);
}

/* ---- all */

static void same_bits_for_any_threads(void)
{
    for (int method = KNA_WINDOW; method < KNA_METHOD_COUNT; method++) {
        random_case c = { .guarded = false };
        float *first = NULL;
        case_begin(&c, (shape){ 4, 2, 90, 200, 8, 6 });
        c.options.method = method;
        for (int threads = 1; threads < 6; threads += 2) {
            kna_context_options options = KNA_CONTEXT_OPTIONS;
            kna_context *context;
            options.threads = threads;
            EXPECT_INT(kna_context_new(&context, &options), KNA_OK);
            EXPECT_INT(attend(&c, context), KNA_OK);
            float *now = case_result(&c);
            if (first) EXPECT(memcmp(first, now, 4 * 90 * 7 * sizeof(float)) == 0);
            if (first) free(now);
            first = first ? first : now;
            kna_context_free(context);
        }
        free(first);
        case_end(&c);
    }
}

static void refused(random_case *c, int status, const char *words)
{
    EXPECT_INT(kna_attend(context_best(), &c->out, c->lse, NULL, &c->q, &c->k, &c->v, &c->options), status);
    EXPECT_THAT(strstr(kna_context_message(context_best()), words) != NULL, "message: %s", kna_context_message(context_best()));
}

static void bad_input(void)
{
    for (int method = KNA_WINDOW; method < KNA_METHOD_COUNT; method++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 2, 1, 4, 9, 4, 4 });
        kna_attend_options none = c.options;
        none.method = method;
        c.options = none;
        c.options.window = 3;
        refused(&c, KNA_EINVAL, "window: ");
        c.options = none;
        c.options.eps = 0.1f;
        refused(&c, KNA_EINVAL, "eps: ");
        c.options = none;
        c.options.audit = 1;
        refused(&c, KNA_EINVAL, "audit: ");
        c.options = none;
        c.options.rank = KNA_MAX_RANK + 1;
        refused(&c, KNA_ELIMIT, "rank: ");
        c.options = none;
        case_mask(&c, KNA_F32, 1, 0.1, false, false);
        refused(&c, KNA_EINVAL, "mask: ");
        c.options = none;
        c.options.causal = 1;
        if (method == KNA_LINFORMER || method == KNA_NYSTROM) refused(&c, KNA_EINVAL, "causal: ");
        c.options = none;
        c.options.softcap = 1;
        if (method != KNA_WINDOW) refused(&c, KNA_EINVAL, "softcap: ");
        c.options = none;
        float projection[9 * 4] = { 0 };
        c.options.project_k = projection;
        refused(&c, KNA_EINVAL, "projection: ");
        case_end(&c);
        c.options = none;
        for (int64_t m = 0; m < 2; m++) { /* no queries, no keys */
            case_begin(&c, (shape){ 2, 1, m ? 3 : 0, m ? 0 : 5, 4, 4 });
            c.options.method = method;
            EXPECT_INT(attend(&c, context_best()), KNA_OK);
            for (int64_t i = 0; i < 2 * c.shape.m; i++) EXPECT(case_out_row(&c, i / c.shape.m, i % c.shape.m)[0] == 0);
            case_end(&c);
        }
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(windows);
    TEST(linformers);
    TEST(nystroms);
    TEST(performers);
    TEST(performers_in_order);
    TEST(hashes_are_unbiased);
    TEST(same_bits_for_any_threads);
    TEST(bad_input);
    contexts_free();
    return test_end();
}
