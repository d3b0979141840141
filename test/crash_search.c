/*
 * crash_search.c - an index and crashes: at random moments of a life of commits, removals, compactions and indexes the folder is what a disk
 * that keeps any part of what was not flushed may have kept; whatever index is there then, every row of every document there is, and no
 * other, is found. --states=N sets how many moments (default 400).
 */
#include "store_case.h"

#include "disk.h"

#include <sys/stat.h>

enum { DIM = 6, MOST_ROWS = 20000 };

static kna_context *context, *checker;
static char home[80], crashed[80];
static long states, most_states, by_index, refused;

typedef struct row {
    int64_t number, document;
} row;

static int ascending(const void *a, const void *b)
{
    const row *x = a, *y = b;
    return (x->number > y->number) - (x->number < y->number);
}

/* All rows there are, by the store's own word. */
static int64_t list_rows(kna_store *store, row *rows)
{
    kna_document d = { .id = 0 };
    int64_t count = 0;
    while (kna_store_next(store, d.id, &d) == KNA_OK) {
        int64_t first, some;
        WELL(checker, kna_store_extent(store, d.id, 0, &first, &some));
        for (int64_t i = 0; i < some; i++) rows[count++] = (row){ first + i, d.id };
    }
    qsort(rows, (size_t)count, sizeof *rows, ascending);
    return count;
}

static void compare(kna_store *store)
{
    static row rows[MOST_ROWS], found[MOST_ROWS];
    static kna_hit hits[MOST_ROWS], few[10];
    float q[DIM];
    int64_t count = list_rows(store, rows), got = 0;
    kna_search *s = NULL;
    kna_search_how how = KNA_SEARCH_HOW;
    kna_search_report report = { .size = sizeof report };
    for (int i = 0; i < DIM; i++) q[i] = (float)test_normal();
    kna_rows queries = { .data = q, .type = KNA_F32, .heads = 1, .rows = 1, .dim = DIM };
    if (!WELL(checker, kna_search_open(checker, &s, store, 0, NULL))) return;
    how.k = MOST_ROWS;
    how.exact = 1;
    WELL(checker, kna_search_run(s, hits, &got, &queries, &how, &report));
    by_index += report.index != KNA_SEARCH_NONE;
    refused += report.refused != KNA_OK && report.refused != KNA_ENONE;
    for (int64_t i = 0; i < got; i++) found[i] = (row){ hits[i].row, hits[i].document };
    qsort(found, (size_t)got, sizeof *found, ascending);
    EXPECT_THAT(got == count && memcmp(found, rows, (size_t)count * sizeof *rows) == 0, "state %ld: %lld rows found of %lld",
                states, (long long)got, (long long)count);
    how.k = 10;
    WELL(checker, kna_search_run(s, few, &got, &queries, &how, NULL));
    EXPECT(got == (count < 10 ? count : 10) && memcmp(few, hits, (size_t)got * sizeof *few) == 0);
    kna_search_close(s);
}

static void moment(void)
{
    kna_store *left = NULL;
    kna_store_options o = KNA_STORE_OPTIONS;
    if (states >= most_states || test_state.failures > 5 || test_below(4)) return;
    disk_pause(true);
    remove_folder(crashed);
    if (mkdir(crashed, 0777) != 0) abort();
    disk_crash(crashed);
    states++;
    o.write = (int)test_below(2);
    if (WELL(checker, kna_store_open(checker, &left, crashed, &o))) {
        compare(left);
        if (o.write && test_below(4) == 0 && WELL(checker, kna_store_index(left, 0, NULL))) compare(left);
    }
    kna_store_close(left);
    disk_pause(false);
}

static int64_t add_rows(kna_store *store)
{
    static float x[40 * DIM];
    int64_t rows = (int64_t)test_below(40);
    for (int i = 0; i < 40 * DIM; i++) x[i] = (float)test_normal();
    kna_store_rows of = { 0, 0, { .data = x, .type = KNA_F32, .heads = 1, .rows = rows, .dim = DIM } };
    kna_document d = { .uri = "" };
    WELL(context, kna_store_add(store, &d, &of, 1, 0));
    return d.id;
}

static void a_life(void)
{
    static const kna_family family = { "rows", KNA_F32, DIM };
    int64_t ids[200];
    int count = 0;
    const char *base = fresh_place();
    snprintf(home, sizeof home, "%s/home", base);
    snprintf(crashed, sizeof crashed, "%s/crashed", base);
    WELL(context, kna_store_create(context, home, &family, 1, NULL));
    disk_begin(home, moment);
    kna_store *store = open_store(context, home, 1, 5000);
    for (int step = 0; step < 120 && store && states < most_states && test_state.failures <= 5; step++) {
        size_t what = test_below(100);
        if (what < 45) {
            ids[count++] = add_rows(store);
        } else if (what < 55 && count) {
            size_t which = test_below((size_t)count);
            WELL(context, kna_store_remove(store, ids[which]));
            ids[which] = ids[--count];
        } else if (what < 75) {
            WELL(context, kna_store_commit(store));
        } else if (what < 92) {
            kna_store_index_options o = KNA_STORE_INDEX_OPTIONS;
            o.kind = test_below(3) ? KNA_SEARCH_FLAT : KNA_SEARCH_CLUSTERS;
            WELL(context, kna_store_index(store, 0, &o));
        } else if (what < 96) {
            WELL(context, kna_store_commit(store));
            WELL(context, kna_store_compact(store, 0.3));
        } else {
            WELL(context, kna_store_index_drop(store, 0, test_below(2) ? KNA_SEARCH_FLAT : KNA_SEARCH_CLUSTERS));
        }
    }
    kna_store_close(store);
    disk_end();
}

static void lives(void)
{
    while (states < most_states && test_state.failures <= 5) a_life();
    printf("  %ld states; in %ld an index was used, in %ld one was there that could not be\n", states, by_index, refused);
    EXPECT(by_index > states / 10);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    most_states = 400;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--states=", 9) == 0) most_states = atol(argv[i] + 9);
    }
    if (kna_context_new(&context, NULL) != KNA_OK || kna_context_new(&checker, NULL) != KNA_OK) return 1;
    (void)!kna_context_set_threads(checker, 1);
    TEST(lives);
    drop_place();
    kna_context_free(context);
    kna_context_free(checker);
    return test_end();
}
