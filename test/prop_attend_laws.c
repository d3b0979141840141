/*
 * prop_attend_laws.c - what must hold of attention whatever the numbers are: merging, permutations, shifts, the convex hull,
 * extremes, and the same bits for any number of threads.
 */
#include "knn_oracle.h"

#define TOLERANCE 1e-5

static float worst_difference(const float *a, const float *b, size_t count)
{
    float worst = 0;
    for (size_t i = 0; i < count; i++) {
        if (a[i] == b[i]) continue; /* infinities of one sign too */
        float off = fabsf(a[i] - b[i]);
        if (!(off <= worst)) worst = off;
    }
    return worst;
}

static size_t result_count(const random_case *c)
{
    return (size_t)(c->shape.h * c->shape.m * (c->shape.dv + 1));
}

/* A view of some of the keys. */
static kna_rows rows_between(const kna_rows *rows, int64_t first, int64_t end)
{
    kna_rows part = *rows;
    int64_t stride = rows->row_stride_bytes ? rows->row_stride_bytes : (int64_t)kna_type_row_bytes(rows->type, rows->dim);
    part.head_stride_bytes = rows->head_stride_bytes ? rows->head_stride_bytes : stride * rows->rows;
    part.row_stride_bytes = stride;
    part.data = (const char *)rows->data + first * stride;
    part.rows = end - first;
    return part;
}

/* ---- merging */

enum { SHARDS = 5 };

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* Attention over keys first .. end - 1, every query at the position it has in the whole, joined into out and lse. */
static void join_shard(const random_case *whole, int64_t first, int64_t end, float *out, float *lse)
{
    random_case part = *whole;
    int64_t rows = whole->shape.h * whole->shape.m;
    part.k = rows_between(&whole->k, first, end);
    part.v = rows_between(&whole->v, first, end);
    part.options.causal_shift = whole->shape.n - end; /* keys count from the shard's first */
    case_attend(&part, context_best(), NULL);
    EXPECT_INT(kna_merge(context_best(), out, lse, part.out.data, part.lse, rows, whole->shape.dv), KNA_OK);
}

/* Shards in a random order, some empty, joined one after another, equal the whole. */
static void merge_shards(void)
{
    for (int i = 0; i < rounds(60); i++) {
        random_case c = { .guarded = false };
        case_begin(&c, random_shape(2e5));
        c.options.causal = (int)test_below(2);
        if (test_below(2)) case_per_head(&c, &c.options.slopes, 0.01, 0.1);
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        expected *e = expected_exact(o, TOLERANCE);
        int64_t cut[SHARDS + 1] = { 0, 0, 0, 0, 0, c.shape.n };
        for (int s = 1; s < SHARDS; s++) cut[s] = (int64_t)test_below((size_t)c.shape.n + 1);
        qsort(cut, SHARDS + 1, sizeof cut[0], by_value);
        float *out = calloc((size_t)(e->rows * e->dv), sizeof *out), *lse = calloc((size_t)e->rows, sizeof *lse);
        for (int64_t row = 0; row < e->rows; row++) lse[row] = -INFINITY;
        for (size_t s = 0, first = test_below(SHARDS); s < SHARDS; s++) {
            size_t shard = (s + first) % SHARDS;
            join_shard(&c, cut[shard], cut[shard + 1], out, lse);
        }
        memcpy(c.out.data, out, (size_t)(e->rows * e->dv) * sizeof *out);
        memcpy(c.lse, lse, (size_t)e->rows * sizeof *lse);
        case_matches(&c, e);
        free(out);
        free(lse);
        expected_free(e);
        oracle_free(o);
        case_end(&c);
    }
}

/* Nothing joined with nothing is nothing; with something, that something to the bit, even over garbage. */
static void merge_empty(void)
{
    float a[3] = { 1, 2, 3 }, none[3] = { 0, 0, 0 }, garbage[3] = { NAN, INFINITY, -1 };
    float lse = 0.5f, empty = -INFINITY;
    EXPECT_INT(kna_merge(context_best(), a, &lse, none, &empty, 1, 3), KNA_OK);
    EXPECT(a[0] == 1 && a[1] == 2 && a[2] == 3 && lse == 0.5f);
    EXPECT_INT(kna_merge(context_best(), none, &empty, a, &lse, 1, 3), KNA_OK);
    EXPECT(none[0] == 1 && none[1] == 2 && none[2] == 3 && empty == 0.5f);
    empty = -INFINITY;
    EXPECT_INT(kna_merge(context_best(), a, &lse, garbage, &empty, 1, 3), KNA_OK);
    EXPECT(a[0] == 1 && a[1] == 2 && a[2] == 3 && lse == 0.5f);
    EXPECT_INT(kna_merge(context_best(), garbage, &empty, a, &lse, 1, 3), KNA_OK);
    EXPECT(garbage[0] == 1 && garbage[1] == 2 && garbage[2] == 3 && empty == 0.5f);
    float zeros[2] = { 0, 0 }, lse_a = -INFINITY, lse_b = -INFINITY;
    EXPECT_INT(kna_merge(context_best(), zeros, &lse_a, zeros + 1, &lse_b, 1, 1), KNA_OK);
    EXPECT(lse_a == -INFINITY && zeros[0] == 0);
    EXPECT_INT(kna_merge(context_best(), NULL, NULL, NULL, NULL, 0, 1), KNA_OK);
    /* Logits of any size. */
    float x = 1, y = 3, lse_x = 1e30f, lse_y = 1e30f;
    EXPECT_INT(kna_merge(context_best(), &x, &lse_x, &y, &lse_y, 1, 1), KNA_OK);
    EXPECT(x == 2 && lse_x == 1e30f);
}

/* ---- permutation, shifts, scales, hull */

/* The keys and values of b become those of a in the order `order`. */
static void reorder(random_case *c, const size_t *order)
{
    float *k = case_hold(c, (size_t)(c->shape.h_kv * c->shape.n * c->shape.d) * sizeof *k);
    float *v = case_hold(c, (size_t)(c->shape.h_kv * c->shape.n * c->shape.dv) * sizeof *v);
    const float *old_k = c->k.data, *old_v = c->v.data;
    for (int64_t i = 0; i < c->shape.h_kv * c->shape.n; i++) {
        int64_t from = i / c->shape.n * c->shape.n + (int64_t)order[i % c->shape.n];
        memcpy(k + i * c->shape.d, old_k + from * c->shape.d, (size_t)c->shape.d * sizeof *k);
        memcpy(v + i * c->shape.dv, old_v + from * c->shape.dv, (size_t)c->shape.dv * sizeof *v);
    }
    c->k.data = k;
    c->v.data = v;
}

static void permuted_keys(void)
{
    for (int i = 0; i < rounds(60); i++) {
        random_case c = { .guarded = false };
        case_begin(&c, random_shape(2e5));
        c.options.method = i % 2 ? KNA_TOPK : KNA_EXACT;
        c.options.k_near = 1 + (int64_t)test_below(40);
        size_t n = (size_t)c.shape.n, *order = case_hold(&c, n * sizeof *order);
        for (size_t j = 0; j < n; j++) {
            size_t other = test_below(j + 1);
            order[j] = order[other];
            order[other] = j;
        }
        case_attend(&c, context_best(), NULL);
        float *before = case_result(&c);
        reorder(&c, order);
        case_attend(&c, context_best(), NULL);
        float *after = case_result(&c);
        /* Values are N(0,1): below 6 in size. */
        EXPECT_THAT(worst_difference(before, after, result_count(&c)) <= 6 * (float)TOLERANCE, "%s", case_text(&c));
        free(before);
        free(after);
        case_end(&c);
    }
}

static void add_to_rows(float *x, int64_t rows, int64_t dim, const float *shift, float factor)
{
    for (int64_t i = 0; i < rows * dim; i++) x[i] = factor * x[i] + shift[i % dim];
}

/* Adding a vector to every key leaves the output, adding one to every value adds it, scaling values scales. */
static void shifts(void)
{
    for (int i = 0; i < rounds(60); i++) {
        random_case c = { .guarded = false };
        case_begin(&c, random_shape(2e5));
        int64_t d = c.shape.d, dv = c.shape.dv, rows = c.shape.h_kv * c.shape.n;
        float key_shift[256], value_shift[256];
        for (int64_t x = 0; x < 256; x++) {
            key_shift[x] = (float)test_normal();
            value_shift[x] = (float)test_normal();
        }
        case_attend(&c, context_best(), NULL);
        float *before = case_result(&c);
        add_to_rows((float *)(uintptr_t)c.k.data, rows, d, key_shift, 1);
        add_to_rows((float *)(uintptr_t)c.v.data, rows, dv, value_shift, 4);
        case_attend(&c, context_best(), NULL);
        for (int64_t r = 0; r < c.shape.h * c.shape.m; r++) {
            const float *after = case_out_row(&c, r / c.shape.m, r % c.shape.m);
            float worst = 0;
            for (int64_t x = 0; x < dv; x++) {
                float want = 4 * before[r * (dv + 1) + x] + value_shift[x];
                worst = fmaxf(worst, fabsf(after[x] - want));
            }
            if (!EXPECT_THAT(worst <= 30 * (float)TOLERANCE, "off by %g: %s", (double)worst, case_text(&c))) break;
        }
        free(before);
        case_end(&c);
    }
}

/* A shape that leaves kNN attention clusters to use. */
static shape long_shape(void)
{
    return (shape){ 4, 2, test_below(2) ? 1 + (int64_t)test_below(4) : 30, 300 + (int64_t)test_below(1100),
                    1 + (int64_t)test_below(40), 1 + (int64_t)test_below(20) };
}

/* Every output lies between the smallest and the largest value of its column, for methods whose weights are never negative. */
static void convex_hull(void)
{
    for (int i = 0; i < rounds(60); i++) {
        random_case c = { .guarded = false };
        case_begin(&c, i % (KNA_CONTROL + 1) == KNA_KNN ? long_shape() : random_shape(2e5));
        case_rows(&c, &c.k, random_type(c.shape.d), (int)test_below(LAYOUT_COUNT), 3);
        if (i % 4 == 0) case_rows(&c, &c.q, KNA_F32, LAYOUT_PACKED, 300); /* logits of +-1000 and more */
        c.options.method = i % (KNA_CONTROL + 1);
        if (c.options.method == KNA_CONTROL) c.options.method = KNA_EXACT; /* its weights may be negative */
        c.options.k_near = 1 + (int64_t)test_below(20);
        c.options.near_sinks = c.options.near_window = -1;
        case_attend(&c, context_best(), NULL);
        const float *v = c.v.data;
        int64_t n = c.shape.n, dv = c.shape.dv, g = c.shape.h / c.shape.h_kv;
        for (int64_t at = 0; at < c.shape.h * dv; at++) {
            int64_t head = at / dv, column = at % dv;
            float low = INFINITY, high = -INFINITY;
            for (int64_t j = 0; j < n; j++) {
                low = fminf(low, v[(head / g * n + j) * dv + column]);
                high = fmaxf(high, v[(head / g * n + j) * dv + column]);
            }
            /* Means are kept in f16: relative 2^-11 of values below 6. */
            float slack = 6 * (float)TOLERANCE + (c.options.method == KNA_KNN ? 6 * 0x1p-11f : 0);
            for (int64_t query = 0; query < c.shape.m; query++) {
                float x = case_out_row(&c, head, query)[column];
                if (!EXPECT_THAT(x >= low - slack && x <= high + slack, "%g outside %g .. %g: %s", (double)x, (double)low,
                                 (double)high, case_text(&c))) {
                    at = c.shape.h * dv;
                    break;
                }
            }
        }
        case_end(&c);
    }
}

/* ---- extremes */

/* Equal logits: the mean of the values, for every method that does not sample: of the first k for top-k. */
static void equal_logits(void)
{
    for (int kind = 0; kind < 2 * (KNA_KNN + 1); kind++) {
        random_case c = { .guarded = false };
        int64_t n = 1400, k = 50;
        case_begin(&c, (shape){ 4, 2, kind < (KNA_KNN + 1) ? 1 : 40, n, 20, 12 });
        memset((void *)(uintptr_t)c.q.data, 0, (size_t)(4 * c.shape.m * 20) * sizeof(float)); /* zero queries */
        c.options.method = kind % (KNA_KNN + 1);
        c.options.k_near = k;
        case_attend(&c, context_best(), NULL);
        int64_t taken = c.options.method == KNA_TOPK ? k : n;
        double bound = 6 * TOLERANCE + (c.options.method == KNA_KNN ? 0x1p-12 : 0); /* means of N(0,1) in f16 */
        const float *v = c.v.data;
        for (int64_t row = 0; row < 4 * c.shape.m; row++) {
            int64_t head = row / c.shape.m;
            for (int64_t x = 0; x < 12; x++) {
                double mean = 0;
                for (int64_t j = 0; j < taken; j++) mean += (double)v[(head / 2 * n + j) * 12 + x] / (double)taken;
                EXPECT_NEAR(case_out_row(&c, head, row % c.shape.m)[x], mean, bound);
            }
            EXPECT_NEAR(c.lse[row], log((double)taken), 1e-5);
        }
        case_end(&c);
    }
}

/* One logit far above the others takes all: its value, up to rounding. */
static void one_winner(void)
{
    for (int kind = 0; kind < 2 * (KNA_CONTROL + 1); kind++) {
        random_case c = { .guarded = false };
        int64_t n = 1500, winner = (int64_t)test_below(1500);
        case_begin(&c, (shape){ 3, 3, kind < (KNA_CONTROL + 1) ? 1 : 30, n, 16, 16 });
        c.options.method = kind % (KNA_CONTROL + 1);
        c.options.k_near = 3;
        for (int64_t head = 0; head < 3; head++) {
            for (int64_t query = 0; query < c.shape.m; query++) case_put(&c.q, head, query, 5, 40);
            case_put(&c.k, head, winner, 5, 1000); /* logit 40 * 1000 / 4 = 10,000 */
        }
        case_attend(&c, context_best(), NULL);
        double bound = c.options.method == KNA_KNN ? 5 * 0x1p-12 : 1e-6; /* alone in its cluster, it counts by its mean, in f16 */
        for (int64_t row = 0; row < 3 * c.shape.m; row++) {
            const float *want = (const float *)c.v.data + (row / c.shape.m * n + winner) * 16;
            for (int64_t x = 0; x < 16; x++) EXPECT_NEAR(case_out_row(&c, row / c.shape.m, row % c.shape.m)[x], want[x], bound);
            EXPECT_NEAR(c.lse[row], 10000, 30);
        }
        case_end(&c);
    }
}

/* Logits of +-10^4 all over: nothing overflows, and it is still the softmax, as far as f32 products go. */
static void huge_logits(void)
{
    for (int i = 0; i < rounds(20); i++) {
        random_case c = { .guarded = false };
        case_begin(&c, random_shape(2e5));
        case_rows(&c, &c.q, KNA_F32, LAYOUT_PACKED, 100);
        case_rows(&c, &c.k, KNA_F32, LAYOUT_PACKED, 100);
        c.options.softcap = i % 2 ? 50 : 0;
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        expected *e = expected_exact(o, TOLERANCE);
        double *logits = malloc((size_t)c.shape.n * sizeof *logits);
        for (int64_t row = 0; row < e->rows; row++) {
            oracle_logits(o, row / o->m, row % o->m, logits);
            double slack = oracle_product_slack(o, row / o->m, row % o->m, logits);
            e->out_bound[row] += 2 * expm1(2 * slack) * o->v_most[row / o->m / o->g];
            e->lse_bound[row] += slack;
        }
        case_attend(&c, context_best(), NULL);
        case_matches(&c, e);
        free(logits);
        expected_free(e);
        oracle_free(o);
        case_end(&c);
    }
}

/* ---- determinism */

/* The same bits for 1, 2 and 3 threads and again, for every method, also under audit and eps. */
static void same_bits(void)
{
    static const int threads[] = { 1, 2, 3, 1, 3 };
    for (int i = 0; i < rounds(40); i++) {
        random_case c = { .guarded = false };
        case_random(&c, i % (KNA_CONTROL + 1) == KNA_KNN ? long_shape() : random_shape(2e6));
        c.options.method = i % (KNA_CONTROL + 1);
        if (c.options.method == KNA_KNN) {
            c.options.mask.data = NULL;
            c.options.slopes = NULL;
        }
        c.options.k_near = 1 + (int64_t)test_below(30);
        c.options.eps = test_below(2) ? 0.05f : 0;
        c.options.audit = test_below(2) ? 0.5f : 0;
        c.options.near_window = (int64_t)test_below(30) - 1;
        kna_report first, report;
        float *want = NULL;
        for (size_t t = 0; t < sizeof threads / sizeof threads[0]; t++) {
            report.size = sizeof report;
            EXPECT_INT(kna_context_set_threads(context_best(), threads[t]), KNA_OK);
            case_attend(&c, context_best(), &report);
            report.time_s = report.build_s = 0;
            report.scratch_bytes = 0; /* more workers, more rooms */
            float *got = case_result(&c);
            if (want) {
                bool same = memcmp(got, want, result_count(&c) * sizeof *got) == 0;
                EXPECT_THAT(same, "%d threads give other bits: %s", threads[t], case_text(&c));
                EXPECT_THAT(memcmp(&first, &report, sizeof report) == 0, "%d threads report otherwise: %s", threads[t],
                            case_text(&c));
                free(got);
            } else {
                want = got;
                first = report;
            }
        }
        EXPECT_INT(kna_context_set_threads(context_best(), 1), KNA_OK);
        free(want);
        case_end(&c);
    }
}

/* The same with an index that lives: a prompt, then tokens. */
static void same_bits_with_an_index(void)
{
    for (int i = 0; i < 4; i++) {
        random_case c = { .guarded = false };
        float *want[4] = { NULL, NULL, NULL, NULL };
        case_begin(&c, (shape){ 6, 2, 700, 1900, 16, 8 });
        c.options.method = KNA_KNN;
        c.options.k_near = 1 + (int64_t)test_below(64);
        c.options.causal = i % 2;
        for (int threads = 1; threads <= 3; threads++) {
            EXPECT_INT(kna_context_set_threads(context_best(), threads), KNA_OK);
            c.options.index = knn_index_of(&c, context_best());
            c.options.index->phase = i * 7;
            for (int call = 0; call < 4; call++) {
                random_case part = c;
                part.q.head_stride_bytes = 700 * 16 * 4;
                part.q.rows = part.shape.m = call ? call : 700;
                case_attend(&part, context_best(), NULL);
                float *got = case_result(&part);
                bool same = threads == 1 || memcmp(got, want[call], result_count(&part) * sizeof *got) == 0;
                EXPECT_THAT(same, "call %d on %d threads gives other bits", call, threads);
                if (threads == 1) want[call] = got; else free(got);
            }
            EXPECT(knn_formed_pieces(c.options.index) >= 4);
            kna_index_free(c.options.index);
        }
        EXPECT_INT(kna_context_set_threads(context_best(), 1), KNA_OK);
        for (int call = 0; call < 4; call++) free(want[call]);
        case_end(&c);
    }
}

/* A call again on a context that has made other indexes since. */
static void same_bits_again(void)
{
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 4, 2, 2, 1100, 16, 8 }); /* the first segment is just complete */
    c.options.method = KNA_KNN;
    c.options.k_near = 16;
    case_attend(&c, context_best(), NULL);
    float *want = case_result(&c);
    for (int again = 0; again < 40; again++) {
        case_attend(&c, context_best(), NULL);
        float *got = case_result(&c);
        if (!EXPECT(memcmp(got, want, result_count(&c) * sizeof *got) == 0)) again = 40;
        free(got);
    }
    free(want);
    case_end(&c);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(merge_shards);
    TEST(merge_empty);
    TEST(permuted_keys);
    TEST(shifts);
    TEST(convex_hull);
    TEST(equal_logits);
    TEST(one_winner);
    TEST(huge_logits);
    TEST(same_bits);
    TEST(same_bits_with_an_index);
    TEST(same_bits_again);
    contexts_free();
    return test_end();
}
