/*
 * prop_search.c - what is found is what a comparison of all rows in double finds: for all types, metrics, sizes, with and without an
 * index, with rows it does not cover, documents removed, filters, limits; the same bits by themselves and in a batch, on 1, 2 and 5 threads.
 */
#include "random_case.h"
#include "search_case.h"

static int64_t random_dim(int type)
{
    int64_t d = 1 + (int64_t)test_below(test_below(4) ? 80 : 700);
    return type == KNA_Q8_0 ? (d + 31) / 32 * 32 : d;
}

static kna_rows rows_of(const float *q, int64_t m, int64_t dim)
{
    return (kna_rows){ .data = q, .type = KNA_F32, .heads = 1, .rows = m, .dim = dim };
}

/* Documents, an index when some of them are there, more documents, some removed. */
static search_case random_store(int type, int64_t dim, int metric, int kind, bool with_index)
{
    search_case c = search_begin(context_best(), type, dim, metric);
    int before = 1 + (int)test_below(4), after = (int)test_below(4);
    for (int i = 0; i < before; i++) search_add(&c, (int64_t)test_below(test_below(5) ? 300 : 5000), kind);
    if (c.documents > 1 && test_below(2)) search_remove(&c, (int64_t)test_below((size_t)c.documents));
    if (with_index) search_index(&c, KNA_SEARCH_FLAT);
    for (int i = 0; i < after; i++) search_add(&c, (int64_t)test_below(300), kind);
    for (int i = 0; i < 2; i++) {
        int64_t d = (int64_t)test_below((size_t)c.documents);
        if (!c.removed[d] && test_below(2)) search_remove(&c, d);
    }
    return c;
}

static bool kept[64];

static int keep_some(void *user, const kna_document *document)
{
    (void)user;
    return kept[atoi(document->tags)];
}

static int64_t by_index, by_rows; /* runs, and whether what was used is what there was to use */

static void count_use(const search_case *c, const kna_search_report *r, bool with_index, const bool *keep)
{
    int64_t there = 0;
    for (int64_t i = 0; i < c->rows; i++) there += !c->removed[c->owner[i]] && (!keep || keep[c->owner[i]]);
    EXPECT_INT(r->rows, there);
    EXPECT_INT(r->refused, with_index ? KNA_OK : KNA_ENONE);
    EXPECT(r->index == (with_index ? KNA_SEARCH_FLAT : KNA_SEARCH_NONE) || r->index == KNA_SEARCH_NONE);
    by_index += r->index == KNA_SEARCH_FLAT;
    by_rows += r->index == KNA_SEARCH_NONE;
}

static bool check_queries(search_case *c, kna_search *s, const float *q, int64_t m, const kna_search_how *how, bool with_index,
                          bool filtered)
{
    kna_hit *hits = malloc((size_t)(m * how->k + 1) * sizeof *hits);
    int64_t *counts = malloc((size_t)(m + 1) * sizeof *counts);
    truth *all = malloc((size_t)(c->rows + 1) * sizeof *all);
    kna_rows queries = rows_of(q, m, c->dim);
    kna_search_report report = { .size = sizeof report };
    bool holds = WELL(c->context, kna_search_run(s, hits, counts, &queries, how, &report));
    count_use(c, &report, with_index, filtered ? kept : NULL);
    for (int64_t i = 0; i < m && holds; i++) {
        int64_t there = search_truth(c, q + i * c->dim, filtered ? kept : NULL, all);
        holds = search_is_truth(c, q + i * c->dim, all, there, hits + i * how->k, counts[i], how->k, how->beta);
    }
    free(hits);
    free(counts);
    free(all);
    return holds;
}

static void random_searches(void)
{
    by_index = by_rows = 0;
    for (int i = 0; i < rounds(240); i++) {
        int type = (int)test_below(KNA_TYPE_COUNT), metric = (int)test_below(KNA_METRIC_COUNT), kind = (int)test_below(KINDS);
        int64_t dim = random_dim(type), m = 1 + (int64_t)test_below(test_below(3) ? 4 : 70);
        bool with_index = test_below(3) > 0, filtered = test_below(3) == 0;
        search_case c = random_store(type, dim, metric, kind, with_index);
        kna_search_how how = KNA_SEARCH_HOW;
        how.k = 1 + (int64_t)test_below(test_below(4) ? 20 : 1000);
        how.beta = test_below(3) ? 0 : test_uniform() * (double)dim;
        kna_search *s = search_open(&c, c.store, KNA_SEARCH_AUTO);
        for (int d = 0; d < 64; d++) kept[d] = test_below(2);
        if (filtered) WELL(c.context, kna_search_filter(s, keep_some, NULL));
        float *q = search_queries(&c, m, test_below(8) ? NORMAL : kind == WILD ? LOPSIDED : kind);
        if (!check_queries(&c, s, q, m, &how, with_index, filtered)) {
            printf("  type %d metric %d kind %d dim %lld rows %lld k %lld beta %g index %d filter %d m %lld\n", type, metric, kind,
                   (long long)dim, (long long)c.rows, (long long)how.k, how.beta, with_index, filtered, (long long)m);
        }
        free(q);
        kna_search_close(s);
        search_end(&c);
    }
    EXPECT_THAT(by_index > rounds(60) && by_rows > rounds(30), "%lld by index, %lld by rows", (long long)by_index,
                (long long)by_rows);
}

/* ---- the same bits */

static bool same_hits(const kna_hit *a, const int64_t *a_counts, const kna_hit *b, const int64_t *b_counts, int64_t m, int64_t k)
{
    for (int64_t i = 0; i < m; i++) {
        if (!EXPECT_INT(a_counts[i], b_counts[i])) return false;
        if (!EXPECT(memcmp(a + i * k, b + i * k, (size_t)a_counts[i] * sizeof *a) == 0)) return false;
    }
    return true;
}

/* On 1, 2 and 5 threads, at every CPU level, by index and by rows, in a batch and one by one: scores and all. */
static void same_bits(void)
{
    enum { M = 40, K = 13 };
    for (int i = 0; i < rounds(24); i++) {
        int type = (int)test_below(KNA_TYPE_COUNT), metric = (int)test_below(KNA_METRIC_COUNT), kind = (int)test_below(KINDS);
        search_case c = random_store(type, random_dim(type), metric, kind, true);
        float *q = search_queries(&c, M, NORMAL);
        kna_hit *want = calloc(M * K, sizeof *want), *got = calloc(M * K, sizeof *got);
        int64_t want_counts[M], counts[M];
        kna_search_how how = KNA_SEARCH_HOW;
        how.k = K;
        kna_rows queries = rows_of(q, M, c.dim);
        kna_context *const *all;
        int levels = contexts(&all);
        for (int level = 0; level < levels; level++) {
            for (int x = 0; x < 6; x++) {
                kna_store *store = NULL;
                kna_search *s = NULL;
                kna_search_options o = KNA_SEARCH_OPTIONS;
                o.metric = metric;
                o.index = x % 2 ? KNA_SEARCH_NONE : KNA_SEARCH_FLAT;
                (void)!kna_context_set_threads(all[level], x < 2 ? 1 : x < 4 ? 2 : 5);
                WELL(all[level], kna_store_open(all[level], &store, c.folder, NULL));
                WELL(all[level], kna_search_open(all[level], &s, store, 0, &o));
                bool is_first = level == 0 && x == 0;
                WELL(all[level], kna_search_run(s, is_first ? want : got, is_first ? want_counts : counts, &queries, &how, NULL));
                bool holds = is_first || same_hits(want, want_counts, got, counts, M, K);
                for (int64_t j = 0; j < M && holds; j += 7) {
                    kna_rows one = rows_of(q + j * c.dim, 1, c.dim);
                    WELL(all[level], kna_search_run(s, got, counts, &one, &how, NULL));
                    holds = same_hits(want + j * K, want_counts + j, got, counts, 1, K);
                }
                if (!holds) {
                    printf("  on cpu %s, way %d, type %d, metric %d, kind %d\n", kna_cpu_name(kna_context_cpu(all[level])), x, type,
                           metric, kind);
                }
                kna_search_close(s);
                kna_store_close(store);
                (void)!kna_context_set_threads(all[level], 0);
            }
        }
        free(want);
        free(got);
        free(q);
        search_end(&c);
    }
}

/* ---- several stores as one */

/* Searches of halves of the rows, merged, are the search of all of them; and so are their sums. */
static void merged(void)
{
    enum { M = 6, K = 9 };
    for (int i = 0; i < rounds(40); i++) {
        search_case c = search_begin(context_best(), KNA_F32, 1 + (int64_t)test_below(40), (int)test_below(KNA_METRIC_COUNT));
        int documents = 1 + (int)test_below(6), parts = 1 + (int)test_below(4);
        for (int d = 0; d < documents; d++) search_add(&c, (int64_t)test_below(200), test_below(2) ? NORMAL : ALIKE);
        float *q = search_queries(&c, M, NORMAL);
        kna_rows queries = rows_of(q, M, c.dim);
        kna_hit all[M * K], merge[M * K], part[4][M * K];
        int64_t counts[M], merge_counts[M], part_counts[4][M];
        double lse[M], merge_lse[M];
        kna_search_how how = KNA_SEARCH_HOW;
        how.k = K;
        how.beta = test_below(2) ? 0 : test_uniform() * 5;
        how.temperature = test_below(2) ? 0 : 0.1 + test_uniform();
        how.lse = lse;
        kna_search *s = search_open(&c, c.store, KNA_SEARCH_AUTO);
        WELL(c.context, kna_search_run(s, all, counts, &queries, &how, NULL));
        const kna_hit *part_hits[4] = { part[0], part[1], part[2], part[3] };
        const int64_t *counts_of[4] = { part_counts[0], part_counts[1], part_counts[2], part_counts[3] };
        how.lse = NULL;
        for (int p = 0; p < parts; p++) {
            for (int d = 0; d < 64; d++) kept[d] = d % parts == p;
            WELL(c.context, kna_search_filter(s, keep_some, NULL));
            WELL(c.context, kna_search_run(s, part[p], part_counts[p], &queries, &how, NULL));
        }
        how.lse = merge_lse;
        WELL(c.context, kna_hits_merge(c.context, merge, merge_counts, part_hits, counts_of, parts, M, &how));
        for (int64_t j = 0; j < M; j++) {
            if (!EXPECT_INT(merge_counts[j], counts[j])) break;
            for (int64_t x = 0; x < counts[j]; x++) {
                const kna_hit *a = &all[j * K + x], *b = &merge[j * K + x];
                EXPECT(a->score == b->score && b->source == (b->document - 1) % parts);
            }
            double sum = 0, t = how.temperature > 0 ? how.temperature : 1;
            for (int64_t x = 0; x < counts[j]; x++) sum += exp(((double)all[j * K + x].score - (double)all[j * K].score) / t);
            EXPECT_NEAR(lse[j], counts[j] ? (double)all[j * K].score / t + log(sum) : -(double)INFINITY, 1e-9 * fabs(lse[j]));
            EXPECT_NEAR(merge_lse[j], lse[j], 1e-9 * fabs(lse[j]));
        }
        kna_search_close(s);
        free(q);
        search_end(&c);
    }
}

/* More numbers in a row than attention takes. */
static void long_rows(void)
{
    static const int64_t dims[] = { 1536, 4099, 65536 };
    for (int i = 0; i < 3; i++) {
        for (int metric = 0; metric < KNA_METRIC_COUNT; metric++) {
            search_case c = search_begin(context_best(), i == 1 ? KNA_F16 : KNA_F32, dims[i], metric);
            kna_search_how how = KNA_SEARCH_HOW;
            how.k = 5;
            search_add(&c, i == 2 ? 20 : 100, NORMAL);
            if (metric != KNA_L2) search_index(&c, KNA_SEARCH_FLAT);
            search_add(&c, 3, NORMAL);
            kna_search *s = search_open(&c, c.store, KNA_SEARCH_AUTO);
            float *q = search_queries(&c, 2, NORMAL);
            check_queries(&c, s, q, 2, &how, metric != KNA_L2, false);
            free(q);
            kna_search_close(s);
            search_end(&c);
        }
    }
}

/* The store goes on under an open search: commits are seen, removals too, and an index made meanwhile when the store next changes. */
static void store_goes_on(void)
{
    search_case c = search_begin(context_best(), KNA_F32, 16, KNA_IP);
    kna_search_how how = KNA_SEARCH_HOW;
    search_add(&c, 500, NORMAL);
    kna_search *s = search_open(&c, c.store, KNA_SEARCH_AUTO);
    float *q = search_queries(&c, 4, NORMAL);
    check_queries(&c, s, q, 4, &how, false, false);
    search_add(&c, 300, NORMAL);
    check_queries(&c, s, q, 4, &how, false, false);
    search_index(&c, KNA_SEARCH_FLAT);
    search_add(&c, 100, NORMAL);
    check_queries(&c, s, q, 4, &how, true, false);
    search_remove(&c, 0);
    check_queries(&c, s, q, 4, &how, true, false);
    WELL(c.context, kna_store_compact(c.store, 0));
    check_queries(&c, s, q, 4, &how, true, false);
    search_remove(&c, 1);
    search_remove(&c, 2);
    check_queries(&c, s, q, 4, &how, true, false);
    free(q);
    kna_search_close(s);
    search_end(&c);
}

/* ---- what is refused */

static void refused(void)
{
    search_case c = search_begin(context_best(), KNA_F32, 8, KNA_IP);
    search_add(&c, 20, NORMAL);
    float *q = search_queries(&c, 2, NORMAL);
    kna_rows queries = rows_of(q, 2, 8);
    kna_hit hits[20];
    int64_t counts[2];
    kna_search *s = NULL;
    kna_search_how how = KNA_SEARCH_HOW;
    kna_search_options o = KNA_SEARCH_OPTIONS;
    kna_store_index_options io = KNA_STORE_INDEX_OPTIONS;
    kna_store_index_info info = { .size = sizeof info };
    EXPECT_INT(kna_search_open(c.context, &s, c.store, 1, NULL), KNA_EINVAL);
    EXPECT(s == NULL);
    o.metric = 3;
    EXPECT_INT(kna_search_open(c.context, &s, c.store, 0, &o), KNA_EINVAL);
    o = (kna_search_options){ sizeof o - 1, 0, 0 };
    EXPECT_INT(kna_search_open(c.context, &s, c.store, 0, &o), KNA_EINVAL);
    WELL(c.context, kna_search_open(c.context, &s, c.store, 0, NULL));
    how.k = 0;
    EXPECT_INT(kna_search_run(s, hits, counts, &queries, &how, NULL), KNA_EINVAL);
    how = (kna_search_how)KNA_SEARCH_HOW;
    how.beta = -1;
    EXPECT_INT(kna_search_run(s, hits, counts, &queries, &how, NULL), KNA_EINVAL);
    how.beta = NAN;
    EXPECT_INT(kna_search_run(s, hits, counts, &queries, &how, NULL), KNA_EINVAL);
    EXPECT_INT(kna_search_run(s, NULL, counts, &queries, NULL, NULL), KNA_EINVAL);
    queries.dim = 7;
    EXPECT_INT(kna_search_run(s, hits, counts, &queries, NULL, NULL), KNA_ESHAPE);
    queries = rows_of(q, 2, 8);
    queries.type = 9;
    EXPECT_INT(kna_search_run(s, hits, counts, &queries, NULL, NULL), KNA_ETYPE);
    queries.type = KNA_F32;
    q[11] = NAN;
    EXPECT_INT(kna_search_run(s, hits, counts, &queries, NULL, NULL), KNA_EVALUE);
    EXPECT_TEXT(kna_context_message(c.context), "queries: NaN or infinity at row 1, column 3");
    q[11] = 1;
    WELL(c.context, kna_search_run(s, hits, counts, &queries, NULL, NULL));
    EXPECT(counts[0] == 10 && counts[1] == 10);
    queries.rows = 0;
    WELL(c.context, kna_search_run(s, NULL, NULL, &queries, NULL, NULL));
    counts[0] = 11;
    const kna_hit *part = hits;
    const int64_t *part_count = counts;
    EXPECT_INT(kna_hits_merge(c.context, hits, counts, &part, &part_count, 1, 1, &(kna_search_how)KNA_SEARCH_HOW), KNA_EINVAL);
    io.kind = KNA_SEARCH_NONE;
    EXPECT_INT(kna_store_index(c.store, 0, &io), KNA_EINVAL);
    EXPECT_INT(kna_store_index(c.store, 3, NULL), KNA_EINVAL);
    EXPECT_INT(kna_store_index_get(c.store, 0, KNA_SEARCH_FLAT, &info), KNA_ENONE);
    EXPECT_INT(kna_store_index_drop(c.store, 0, KNA_SEARCH_AUTO), KNA_EINVAL);
    WELL(c.context, kna_store_index_drop(c.store, 0, KNA_SEARCH_FLAT));
    kna_store *reader = open_store(c.context, c.folder, 0, 0);
    EXPECT_INT(kna_store_index(reader, 0, NULL), KNA_EINVAL);
    kna_store_close(reader);
    kna_search_close(s);
    free(q);
    search_end(&c);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(random_searches);
    TEST(same_bits);
    TEST(merged);
    TEST(long_rows);
    TEST(store_goes_on);
    TEST(refused);
    contexts_free();
    return test_end();
}
