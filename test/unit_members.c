/* unit_members.c - kna_index_clusters(): every row is in one cluster or read in full, as the pieces of the index are. */
#include "random_case.h"

enum { HEADS = 2, N = 700, WHOLE = 512, FIRST = 16, D = 24, DV = 12 };

static random_case c;
static kna_context *context;
static kna_index *index_;
static int32_t cluster[N];
static float spread[N];

/* An index that has met a query, and formed the two whole pieces; the rest is open. */
static void form(void)
{
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    static float out[HEADS * DV];
    const kna_out_rows to = { out, 0, 0 };
    case_begin(&c, (shape){ HEADS, HEADS, 1, N, D, DV });
    context = context_best();
    EXPECT_INT(kna_index_new(context, &index_, KNA_KNN, HEADS, D, DV), KNA_OK);
    EXPECT_INT(kna_index_update(context, index_, &c.k, &c.v, 0, N), KNA_OK);
    options.method = KNA_KNN;
    options.k_near = 16;
    options.index = index_;
    EXPECT_INT(kna_attend(context, &to, NULL, NULL, &c.q, &c.k, &c.v, &options), KNA_OK);
}

static void done(void)
{
    kna_index_free(index_);
    case_end(&c);
}

static void rows_of_clusters(void)
{
    form();
    for (int64_t head = 0; head < HEADS; head++) {
        float of[N] = { 0 };
        int32_t members[N] = { 0 };
        EXPECT_INT(kna_index_clusters(context, cluster, spread, index_, head, N), KNA_OK);
        for (int64_t row = 0; row < N; row++) {
            EXPECT_THAT((cluster[row] >= 0) == (row >= FIRST && row < WHOLE), "row %d: cluster %d", (int)row, (int)cluster[row]);
            if (cluster[row] < 0 || cluster[row] >= N) {
                continue;
            }
            float *first = &of[cluster[row]];
            *first = members[cluster[row]]++ ? *first : spread[row];
            EXPECT_THAT(spread[row] == *first && spread[row] >= 0, "row %d: a spread unlike its cluster's", (int)row);
        }
        int64_t clusters = 0;
        for (int64_t i = 0; i < N; i++) {
            clusters += members[i] > 0;
        }
        EXPECT_THAT(clusters >= 24 && clusters <= 32, "%d clusters of 496 rows", (int)clusters);
    }
    done();
}

/* Fewer rows than the index has: nothing is written beyond. */
static void fewer_rows(void)
{
    form();
    cluster[300] = 4711;
    EXPECT_INT(kna_index_clusters(context, cluster, spread, index_, 1, 300), KNA_OK);
    EXPECT_INT(cluster[300], 4711);
    EXPECT(cluster[299] >= 0);
    EXPECT_INT(kna_index_clusters(context, cluster, spread, index_, 1, 0), KNA_OK);
    done();
}

/* A row written again: its whole cluster is read in full from then on. */
static void marked(void)
{
    form();
    EXPECT_INT(kna_index_clusters(context, cluster, spread, index_, 0, N), KNA_OK);
    const int32_t changed = cluster[100];
    EXPECT_INT(kna_index_update(context, index_, &c.k, &c.v, 100, 1), KNA_OK);
    int32_t now[N];
    EXPECT_INT(kna_index_clusters(context, now, spread, index_, 0, N), KNA_OK);
    for (int64_t row = 0; row < N; row++) {
        EXPECT_INT(now[row], cluster[row] == changed ? -1 : cluster[row]);
    }
    done();
}

static void refused(void)
{
    form();
    EXPECT_INT(kna_index_clusters(context, cluster, spread, index_, HEADS, N), KNA_EINVAL);
    EXPECT_INT(kna_index_clusters(context, cluster, spread, index_, -1, N), KNA_EINVAL);
    EXPECT_INT(kna_index_clusters(context, cluster, spread, index_, 0, -1), KNA_EINVAL);
    EXPECT_INT(kna_index_clusters(context, cluster, spread, NULL, 0, N), KNA_EINVAL);
    kna_index *other = NULL;
    EXPECT_INT(kna_index_new(context, &other, KNA_TOPK, HEADS, D, DV), KNA_OK);
    EXPECT_INT(kna_index_clusters(context, cluster, spread, other, 0, N), KNA_EINVAL);
    kna_index_free(other);
    done();
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(rows_of_clusters);
    TEST(fewer_rows);
    TEST(marked);
    TEST(refused);
    contexts_free();
    return test_end();
}
