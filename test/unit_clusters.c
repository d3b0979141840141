/* unit_clusters.c - clusters as they are formed, marked, opened and moved, seen from inside the index. */
#include "knn_oracle.h"

enum { HEADS = 2, D = 12, DV = 7, N = 2304 }; /* two segments and a piece */

static random_case c;
static kna_context *context;
static kna_index *index_;

static void fresh(int64_t d, int64_t dv, int type)
{
    case_begin(&c, (shape){ HEADS, HEADS, 1, N, d, dv });
    case_rows(&c, &c.k, type, LAYOUT_INTERLEAVED, 1);
    case_rows(&c, &c.v, type, LAYOUT_PADDED, 1);
    c.options.method = KNA_KNN;
    context = context_best();
    index_ = knn_index_of(&c, context);
    EXPECT_INT(kna__metric_reserve(context, index_), KNA_OK);
    EXPECT_INT(kna__clusters_reserve(context, index_, N), KNA_OK);
}

static void done(void)
{
    kna_index_free(index_);
    case_end(&c);
}

/* Segment 0 as four pieces or as one, segment 1 as the other, and the piece after them. */
static void form(bool first_merged)
{
    kna__unit units[8];
    int64_t count = 0;
    for (int64_t segment = 0; segment < 2; segment++) {
        bool merged = (segment == 0) == first_merged;
        for (int64_t i = 0; i < (merged ? 1 : 4); i++) units[count++] = (kna__unit){ segment * 4 + i, merged };
    }
    units[count++] = (kna__unit){ 8, false };
    EXPECT_INT(kna__clusters_form(context, index_, &c.k, &c.v, units, count), KNA_OK);
    EXPECT_INT(knn_formed_pieces(index_), 9);
}

static int64_t cluster_of(int64_t head, int64_t row)
{
    const kna__clusters *clusters = &index_->clusters;
    int64_t unit = kna__unit_row(clusters, row / KNA_PIECE), rows = kna__unit_rows(clusters, row / KNA_PIECE);
    int32_t ids[KNA_SEGMENT];
    for (int64_t s = unit / KNA_MEMBERS; s < (unit + rows) / KNA_MEMBERS; s++) {
        int64_t n = kna__cluster_rows(clusters, head, s, ids);
        for (int64_t i = 0; i < n; i++) {
            if (ids[i] == row) return s;
        }
    }
    return -1;
}

static int64_t marked(int64_t head)
{
    int64_t count = 0;
    for (int64_t s = 0; s < N / KNA_MEMBERS; s++) count += index_->clusters.always[kna__cluster_slot(&index_->clusters, head, s)];
    return count;
}

/* ---- forming */

static void partition(void)
{
    static const int64_t dims[][2] = { { D, DV }, { 1, 1 }, { 64, 64 }, { 3, 40 }, { 32, 288 } };
    for (int i = 0; i < 10; i++) {
        fresh(dims[i / 2][0], dims[i / 2][1], i / 2 == 2 ? KNA_Q8_0 : random_query_type());
        form(i % 2);
        EXPECT(knn_index_holds(index_, &c.k, &c.v));
        int64_t nonempty = 0;
        for (int64_t s = 0; s < N / KNA_MEMBERS; s++) {
            nonempty += index_->clusters.level[KNA_CLUSTERS].count[kna__cluster_slot(&index_->clusters, 1, s)] > 0;
        }
        EXPECT_THAT(nonempty > N / KNA_MEMBERS * 9 / 10, "only %lld clusters hold rows", (long long)nonempty);
        EXPECT_INT(cluster_of(0, KNA_FIRST_ROWS - 1), -1);
        done();
    }
}

/* S of the definition: queries' second moment, mixed with the identity by weight, in units of its mean diagonal. */
static void metric_of(double *s, const float *q, int64_t queries, int64_t d)
{
    double level = 0, identity = fmax((double)d / 4 / ((double)d / 4 + (double)queries), 1e-3);
    for (int64_t i = 0; i < d * d; i++) s[i] = 0;
    for (int64_t r = 0; r < queries; r++) {
        for (int64_t i = 0; i < d * d; i++) s[i] += (double)q[r * d + i / d] * (double)q[r * d + i % d];
    }
    for (int64_t i = 0; i < d; i++) level += s[i * d + i] / (double)d;
    for (int64_t i = 0; i < d * d; i++) {
        s[i] = queries ? (1 - identity) * s[i] / level : 0;
        if (i / d == i % d) s[i] += queries ? identity : 1;
    }
}

/* (k - mean)' S (k - mean) / tr S, mean over the members. */
static double spread_of(const double *s, int64_t d, int64_t head, const int32_t *ids, int64_t n)
{
    double sum = 0, trace = 0, *mean = calloc((size_t)d, sizeof *mean);
    for (int64_t i = 0; i < n * d; i++) mean[i % d] += oracle_number(&c.k, head, ids[i / d], i % d) / (double)n;
    for (int64_t r = 0; r < n; r++) {
        for (int64_t i = 0; i < d * d; i++) {
            double a = oracle_number(&c.k, head, ids[r], i / d) - mean[i / d];
            double b = oracle_number(&c.k, head, ids[r], i % d) - mean[i % d];
            sum += s[i] * a * b / (double)n;
        }
    }
    for (int64_t i = 0; i < d; i++) trace += s[i * d + i];
    free(mean);
    return sum / trace;
}

static void expect_spreads(const double *s, int64_t d, int64_t head)
{
    int32_t ids[KNA_SEGMENT];
    for (int64_t slot = 0; slot < N / KNA_MEMBERS; slot++) {
        int64_t n = kna__cluster_rows(&index_->clusters, head, slot, ids);
        double got = (double)index_->clusters.level[KNA_CLUSTERS].spread[kna__cluster_slot(&index_->clusters, head, slot)];
        double want = n ? spread_of(s, d, head, ids, n) : 0;
        if (!EXPECT_THAT(fabs(got - want) <= 1e-3 * want + 1e-6, "spread of slot %lld of %lld rows: %g, expected %g",
                         (long long)slot, (long long)n, got, want)) {
            return;
        }
    }
}

/* The spread is the members' variance as the queries of that head see it, whatever these queries are. */
static void spread_by_the_metric(void)
{
    static const int64_t counts[] = { 0, 1, 30, 2000 };
    for (int i = 0; i < 4; i++) {
        fresh(D, DV, KNA_F32);
        float *q = case_hold(&c, (size_t)(2000 * D) * sizeof *q);
        double *s = case_hold(&c, HEADS * D * D * sizeof *s);
        for (int64_t head = 0; head < HEADS; head++) {
            double size = exp(test_normal());
            for (int64_t x = 0; x < counts[i] * D; x++) q[x] = (float)((x % D < 3 ? 5 * size : size) * test_normal());
            kna__metric_add(index_, context->kernels, head, q, counts[i], D);
            metric_of(s + head * D * D, q, counts[i], D);
        }
        form(i % 2);
        for (int64_t head = 0; head < HEADS; head++) expect_spreads(s + head * D * D, D, head);
        done();
    }
}

/* Beyond KNA_METRIC_DIM columns keys are compared as they are. */
static void spread_of_long_keys(void)
{
    int64_t d = KNA_METRIC_DIM + 1;
    fresh(d, 3, KNA_F32);
    double *s = case_hold(&c, (size_t)(d * d) * sizeof *s);
    metric_of(s, NULL, 0, d);
    kna__unit unit = { 1, false };
    EXPECT_INT(kna__clusters_form(context, index_, &c.k, &c.v, &unit, 1), KNA_OK);
    int32_t ids[KNA_SEGMENT];
    for (int64_t slot = KNA_SLOTS; slot < 2 * KNA_SLOTS; slot++) {
        int64_t n = kna__cluster_rows(&index_->clusters, 0, slot, ids);
        double want = n ? spread_of(s, d, 0, ids, n) : 0;
        EXPECT_NEAR(index_->clusters.level[KNA_CLUSTERS].spread[kna__cluster_slot(&index_->clusters, 0, slot)], want, 1e-3 * want + 1e-6);
    }
    done();
}

/* Queries along one column: rows are grouped by it, whatever the others say. */
static void metric_decides(void)
{
    fresh(D, 1, KNA_F32);
    float q[D] = { 0 };
    q[4] = 3;
    for (int i = 0; i < 5000; i++) kna__metric_add(index_, context->kernels, 0, q, 1, D);
    for (int64_t j = 0; j < N; j++) case_put(&c.v, 0, j, 0, 0);
    form(true);
    double along = 0, across = 0;
    int32_t ids[KNA_SEGMENT];
    for (int64_t slot = 0; slot < KNA_SEGMENT / KNA_MEMBERS; slot++) {
        int64_t n = kna__cluster_rows(&index_->clusters, 0, slot, ids);
        double mean[2] = { 0, 0 };
        for (int64_t i = 0; i < 2 * n; i++) mean[i % 2] += oracle_number(&c.k, 0, ids[i / 2], 4 + i % 2) / (double)n;
        for (int64_t i = 0; i < n; i++) {
            along += pow(oracle_number(&c.k, 0, ids[i], 4) - mean[0], 2) / 1000;
            across += pow(oracle_number(&c.k, 0, ids[i], 5) - mean[1], 2) / 1000;
        }
    }
    EXPECT_THAT(along < 0.1 && across > 0.5, "variance within clusters: %g along the queries, %g across", along, across);
    done();
}

/* Rows that are all alike, zeros, and numbers beyond f16. */
static void odd_rows(void)
{
    for (int i = 0; i < 3; i++) {
        fresh(D, DV, KNA_F32);
        for (int64_t at = 0; at < HEADS * N * (D + DV); at++) {
            const kna_rows *rows = at % (D + DV) < D ? &c.k : &c.v;
            int64_t row = at / (D + DV), column = at % (D + DV) < D ? at % (D + DV) : at % (D + DV) - D;
            case_put(rows, row / N, row % N, column, i == 0 ? 0 : i == 1 ? 2 : (float)(1e6 * test_normal()));
        }
        form(true);
        EXPECT(knn_index_holds(index_, &c.k, &c.v));
        done();
    }
}

/* ---- rows written and removed */

static void marks(void)
{
    fresh(D, DV, KNA_F32);
    form(true);
    int64_t rows[] = { 16, 300, 1023, 1024, 1500, 2303 };
    for (int i = 0; i < 6; i++) {
        int64_t at[HEADS], want[HEADS];
        for (int64_t head = 0; head < HEADS; head++) {
            at[head] = kna__cluster_slot(&index_->clusters, head, cluster_of(head, rows[i]));
            want[head] = marked(head) + !index_->clusters.always[at[head]]; /* two of the rows may share one */
        }
        EXPECT_INT(kna_index_update(context, index_, &c.k, &c.v, rows[i], 1), KNA_OK);
        for (int64_t head = 0; head < HEADS; head++) {
            EXPECT_INT(index_->clusters.always[at[head]], 1);
            EXPECT_INT(marked(head), want[head]);
        }
    }
    EXPECT_INT(knn_formed_pieces(index_), 9);
    EXPECT_INT(kna_index_update(context, index_, &c.k, &c.v, 0, KNA_FIRST_ROWS), KNA_OK); /* in no cluster */
    EXPECT(marked(0) >= 3 && marked(0) <= 6);
    form(true); /* as new */
    EXPECT_INT(marked(0) + marked(1), 0);
    done();
}

/* kna_index_form() waits for a first query, but for rows so long that none is ever learned from. */
static void formed_at_once(void)
{
    static const int64_t dims[] = { D, KNA_METRIC_DIM, KNA_METRIC_DIM + 1 };
    for (int i = 0; i < 3; i++) {
        fresh(dims[i], DV, KNA_F16);
        bool learns = dims[i] <= KNA_METRIC_DIM;
        EXPECT_INT(kna__metric_is_empty(index_), learns);
        EXPECT_INT(kna_index_form(context, index_, &c.k, &c.v, N), KNA_OK);
        EXPECT_INT(knn_formed_pieces(index_), learns ? 0 : 9);
        float q[KNA_METRIC_DIM + 1];
        for (int64_t x = 0; x < dims[i]; x++) q[x] = (float)test_normal();
        for (int64_t head = 0; head < HEADS; head++) kna__metric_add(index_, context->kernels, head, q, 1, dims[i]);
        EXPECT(!kna__metric_is_empty(index_));
        EXPECT_INT(kna_index_form(context, index_, &c.k, &c.v, N), KNA_OK);
        EXPECT_INT(knn_formed_pieces(index_), 9);
        EXPECT(knn_index_holds(index_, &c.k, &c.v));
        done();
    }
}

/* Whole pieces of a segment that is not whole; a segment once it is. */
static void formed_in_part(void)
{
    float q[D] = { 1 };
    fresh(D, DV, KNA_F32);
    for (int64_t head = 0; head < HEADS; head++) kna__metric_add(index_, context->kernels, head, q, 1, D);
    EXPECT_INT(kna_index_remove(context, index_, 700, 1), KNA_OK);
    EXPECT_INT(kna_index_form(context, index_, &c.k, &c.v, N - 1), KNA_OK);
    const uint8_t *state = index_->clusters.state;
    EXPECT(state[0] == KNA_PIECE_ALONE && state[1] == KNA_PIECE_ALONE && state[2] == KNA_PIECE_OPEN && state[3] == KNA_PIECE_ALONE);
    EXPECT(state[4] == KNA_PIECE_MERGED && state[7] == KNA_PIECE_MERGED && state[8] == KNA_PIECE_OPEN);
    EXPECT_INT(kna_index_update(context, index_, &c.k, &c.v, 700, 1), KNA_OK);
    EXPECT_INT(kna_index_form(context, index_, &c.k, &c.v, N), KNA_OK);
    EXPECT(state[0] == KNA_PIECE_MERGED && state[3] == KNA_PIECE_MERGED && state[8] == KNA_PIECE_ALONE);
    EXPECT(knn_index_holds(index_, &c.k, &c.v));
    done();
}

/* More than 32 rows of a piece, at once or one by one, open its unit and no other. */
static void opens(void)
{
    for (int i = 0; i < 4; i++) {
        fresh(D, DV, KNA_F32);
        form(true);
        int64_t first = i % 2 ? 600 : 1300, left = i % 2 ? 5 : 8; /* in the segment, or in a piece alone */
        if (i < 2) {
            EXPECT_INT(kna_index_update(context, index_, &c.k, &c.v, first, 32), KNA_OK);
        } else {
            for (int64_t j = 0; j < 32; j++) EXPECT_INT(kna_index_update(context, index_, &c.k, &c.v, first + j, 1), KNA_OK);
        }
        EXPECT_INT(knn_formed_pieces(index_), 9);
        EXPECT(marked(0) >= 1 && marked(0) <= 32);
        EXPECT_INT(kna_index_update(context, index_, &c.k, &c.v, first + 32, 1), KNA_OK);
        EXPECT_INT(knn_formed_pieces(index_), left);
        EXPECT_INT(index_->clusters.state[first / KNA_PIECE], KNA_PIECE_OPEN);
        EXPECT(knn_index_holds(index_, &c.k, &c.v));
        done();
    }
}

static void removals(void)
{
    fresh(D, DV, KNA_F32);
    form(true);
    EXPECT_INT(kna_index_remove(context, index_, 2304, 1000), KNA_OK);
    EXPECT_INT(knn_formed_pieces(index_), 9);
    EXPECT_INT(kna_index_remove(context, index_, 2303, 1), KNA_OK);
    EXPECT_INT(knn_formed_pieces(index_), 8);
    EXPECT_INT(kna_index_remove(context, index_, 1535, 2), KNA_OK); /* across two pieces */
    EXPECT_INT(knn_formed_pieces(index_), 6);
    EXPECT_INT(kna_index_remove(context, index_, 1023, 1), KNA_OK); /* of a segment */
    EXPECT_INT(knn_formed_pieces(index_), 2);
    EXPECT(index_->clusters.state[4] == KNA_PIECE_ALONE && index_->clusters.state[7] == KNA_PIECE_ALONE);
    EXPECT_INT(kna_index_remove(context, index_, 0, KNA_MAX_ROWS), KNA_OK);
    EXPECT_INT(knn_formed_pieces(index_), 0);
    done();
}

/* More room: everything is where it was. */
static void grows(void)
{
    fresh(D, DV, KNA_F32);
    form(false);
    EXPECT_INT(kna_index_update(context, index_, &c.k, &c.v, 700, 1), KNA_OK);
    int64_t before = index_->clusters.capacity, slot = cluster_of(1, 700);
    EXPECT_INT(kna__clusters_reserve(context, index_, 20000), KNA_OK);
    EXPECT(index_->clusters.capacity > before && index_->clusters.capacity * KNA_PIECE >= 20000);
    EXPECT_INT(knn_formed_pieces(index_), 9);
    EXPECT_INT(cluster_of(1, 700), slot);
    EXPECT_INT(marked(0) + marked(1), 2);
    EXPECT_INT(index_->clusters.touched[700 / KNA_PIECE], 1);
    EXPECT(knn_index_holds(index_, &c.k, &c.v));
    done();
}

/* Each cluster knows whether it is what the cache holds. */
static void stale_clusters(void)
{
    fresh(D, DV, KNA_F16);
    form(true);
    int64_t row = 777, slot = cluster_of(1, row), stale = 0;
    case_put(&c.v, 1, row, 3, 9);
    for (int64_t i = 0; i < HEADS * N / KNA_MEMBERS; i++) {
        int64_t head = i % HEADS, at = i / HEADS;
        bool is = kna__cluster_is_stale(context->kernels, index_, &c.k, &c.v, head, at);
        EXPECT_THAT(!is || (head == 1 && at == slot), "head %lld, slot %lld", (long long)head, (long long)at);
        stale += is;
    }
    EXPECT_INT(stale, 1);
    EXPECT_INT(kna_index_update(context, index_, &c.k, &c.v, row, 1), KNA_OK); /* announced: read in full from now on */
    EXPECT(!kna__cluster_is_stale(context->kernels, index_, &c.k, &c.v, 1, slot));
    EXPECT(!kna__cluster_is_stale(context->kernels, index_, &c.k, &c.v, 1, index_->clusters.capacity * KNA_SLOTS));
    done();
}

/* The same clusters on any number of threads. */
static void threads(void)
{
    size_t bytes = HEADS * N * sizeof(uint16_t);
    uint16_t *member = malloc(bytes);
    for (int count = 1; count <= 3; count++) {
        if (count == 1) fresh(D, DV, KNA_F32);
        EXPECT_INT(kna_context_set_threads(context, count), KNA_OK);
        form(true);
        uint16_t *now = malloc(bytes);
        for (int64_t head = 0; head < HEADS; head++) {
            memcpy(now + head * N, index_->clusters.member + head * index_->clusters.capacity * KNA_PIECE, N * sizeof *now);
        }
        EXPECT_THAT(count == 1 || memcmp(member + 16, now + 16, (N - 16) * sizeof *now) == 0, "%d threads", count);
        memcpy(member, now, bytes);
        free(now);
    }
    EXPECT_INT(kna_context_set_threads(context, 1), KNA_OK);
    free(member);
    done();
}

/* ---- which rows are present */

static void next_holds(const bool *present, int64_t covered)
{
    int64_t end = (int64_t)test_below((size_t)covered + 1), row = (int64_t)test_below((size_t)end + 1), gaps = 0;
    for (int want = 0; want < 2; want++) {
        int64_t found = row;
        while (found < end && present[found] != want) found++;
        EXPECT_INT(kna__index_next(index_, row, end, want), found);
        if (!want) EXPECT_INT(kna__index_has_all(index_, row, end), found == end);
    }
    for (int64_t j = 0; j < end; j++) gaps += !present[j] && (j == 0 || present[j - 1]);
    EXPECT_INT(kna__index_gaps(index_, end), gaps);
}

/* Runs of rows present and not, as rows come and go; in the end all are there. */
static void presence(void)
{
    bool present[N] = { false };
    case_begin(&c, (shape){ HEADS, HEADS, 1, N, D, DV });
    case_rows(&c, &c.k, KNA_F32, LAYOUT_INTERLEAVED, 1);
    case_rows(&c, &c.v, KNA_F32, LAYOUT_PADDED, 1);
    context = context_best();
    EXPECT_INT(kna_index_new(context, &index_, KNA_KNN, HEADS, D, DV), KNA_OK);
    for (int step = 0; step < 400; step++) {
        bool come = step == 399 || test_below(3);
        int64_t most = test_below(2) ? 40 : N, first = (int64_t)test_below(N), count = 1 + (int64_t)test_below((size_t)most);
        first = step == 399 ? 0 : first;
        count = step == 399 ? N : first + count > N ? N - first : count;
        EXPECT_INT(come ? kna_index_update(context, index_, &c.k, &c.v, first, count)
                        : kna_index_remove(context, index_, first, count), KNA_OK);
        for (int64_t j = first; j < first + count; j++) present[j] = come;
        for (int look = 0; look < 5; look++) next_holds(present, kna_index_rows(index_));
    }
    EXPECT_INT(index_->present_rows, N);
    done();
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(partition);
    TEST(spread_by_the_metric);
    TEST(spread_of_long_keys);
    TEST(metric_decides);
    TEST(odd_rows);
    TEST(marks);
    TEST(formed_at_once);
    TEST(formed_in_part);
    TEST(opens);
    TEST(removals);
    TEST(grows);
    TEST(stale_clusters);
    TEST(threads);
    TEST(presence);
    contexts_free();
    return test_end();
}
