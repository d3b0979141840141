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

static kna_search *search_of(const search_case *c, kna_store *store, int index)
{
    kna_search *s = NULL;
    kna_search_options o = KNA_SEARCH_OPTIONS;
    o.metric = c->metric;
    o.index = index;
    WELL(c->context, kna_search_open(c->context, &s, store, 0, &o));
    return s;
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
        kna_search *s = search_of(&c, c.store, KNA_SEARCH_AUTO);
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

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(random_searches);
    contexts_free();
    return test_end();
}
