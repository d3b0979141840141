/*
 * delete_store.c - deleted means gone: thousands of documents removed or replaced at random, among additions, commits that are taken back,
 * compactions and reopenings, and no handle that has refreshed since gives any of them away: not the document, nor its uri, its rows, the
 * owner of its rows, or their extent. --deletions=N (default 10000).
 */
#include "store_case.h"

enum { HANDLES = 3, LIVE = 400 }; /* the writer, a reader that refreshes often, one that seldom does */
static kna_context *contexts[HANDLES];
static kna_store *handles[HANDLES];
static const char *place;

typedef struct gone {
    int64_t id, first[FAMILIES], rows[FAMILIES];
    uint32_t number;
} gone;
static gone *graves;
static long grave_count, grave_room, dug; /* dug: by the transaction being written, behind grave_count */
static long known[HANDLES];               /* a handle has refreshed since these were */
static long most = 10000, asked, compactions, reopenings;
static model now, then;

static void dig(int i)
{
    if (grave_count + dug == grave_room) {
        grave_room = 2 * grave_room + 1024;
        graves = realloc(graves, (size_t)grave_room * sizeof *graves);
        if (!graves) abort();
    }
    gone *g = &graves[grave_count + dug++];
    *g = (gone){ .id = now.ids[i], .number = now.numbers[i] };
    for (int family = 0; family < FAMILIES; family++) { /* of one that was never committed nothing is known yet */
        if (kna_store_extent(handles[0], g->id, family, &g->first[family], &g->rows[family]) != KNA_OK) g->rows[family] = 0;
    }
    model_remove(&now, i);
}

/* Ask a handle in every way for what is gone. */
static bool is_gone(int h, const gone *g)
{
    kna_store *store = handles[h];
    kna_document d;
    kna_store_rows rows;
    char uri[32];
    int64_t a, b;
    asked++;
    if (!EXPECT_INT(kna_store_document(store, g->id, &d), KNA_ENONE)) return false;
    name_of(uri, g->number);
    int status = kna_store_find(store, uri, &d);
    if (!EXPECT(status == KNA_ENONE || (status == KNA_OK && d.id != g->id))) return false;
    status = kna_store_next(store, g->id - 1, &d);
    if (!EXPECT(status == KNA_ENONE || (status == KNA_OK && d.id > g->id))) return false;
    for (int family = 0; family < FAMILIES; family++) {
        if (!EXPECT_INT(kna_store_rows_of(store, g->id, family, &rows), KNA_ENONE)) return false;
        if (!EXPECT_INT(kna_store_extent(store, g->id, family, &a, &b), KNA_ENONE)) return false;
        const int64_t places[] = { 0, g->rows[family] / 2, g->rows[family] - 1 };
        for (int i = 0; i < 3 && g->rows[family]; i++) {
            if (!EXPECT_INT(kna_store_owner(store, family, g->first[family] + places[i], &a, &b), KNA_ENONE)) return false;
        }
    }
    return true;
}

static bool none_is_back(int h, long from, long some)
{
    for (long i = from; i < known[h]; i++) {
        if (!is_gone(h, &graves[i])) return false;
    }
    for (long i = 0; i < some && known[h]; i++) {
        if (!is_gone(h, &graves[test_below((size_t)known[h])])) return false;
    }
    return true;
}

static bool change(uint32_t *number)
{
    int64_t id;
    if (now.count && (now.count > LIVE || test_below(100) < 45)) {
        int which = (int)test_below((size_t)now.count);
        if (!WELL(contexts[0], kna_store_remove(handles[0], now.ids[which]))) return false;
        dig(which);
    } else {
        int old = model_named(&now, ++*number);
        if (!WELL(contexts[0], add(handles[0], *number, 1, &id))) return false;
        if (old >= 0) dig(old);
        model_add(&now, id, *number);
    }
    return true;
}

static bool commit(void)
{
    if (!WELL(contexts[0], kna_store_commit(handles[0]))) return false;
    long before = grave_count;
    grave_count += dug;
    dug = 0;
    then = now;
    known[0] = grave_count;
    return none_is_back(0, before, 5);
}

static void take_back(void)
{
    kna_store_rollback(handles[0]);
    dug = 0;
    now = then;
}

static bool refresh(int h)
{
    long before = known[h];
    if (test_below(4) == 0) {
        kna_store_close(handles[h]);
        handles[h] = open_store(contexts[h], place, 0, 0);
        if (!handles[h]) return false;
    } else if (!WELL(contexts[h], kna_store_refresh(handles[h], NULL))) {
        return false;
    }
    known[h] = grave_count;
    return none_is_back(h, before, 20) && has_ids_of(handles[h], &then);
}

static bool step(uint32_t *number)
{
    uint32_t what = (uint32_t)test_below(1000);
    if (what < 850) return change(number);
    if (what < 960) return commit();
    if (what < 970) {
        take_back();
        return none_is_back(0, known[0], 20);
    }
    if (what < 975) {
        take_back();
        compactions++;
        return WELL(contexts[0], kna_store_compact(handles[0], (double)test_below(4) / 4)) && none_is_back(0, known[0], 50);
    }
    if (what < 980) {
        take_back();
        kna_store_close(handles[0]);
        reopenings++;
        handles[0] = open_store(contexts[0], place, 1, 100000 + (int64_t)test_below(1000000));
        return handles[0] && none_is_back(0, known[0], 50);
    }
    if (what < 998) return refresh(1);
    return refresh(2);
}

static void deletions(void)
{
    uint32_t number = 0;
    int64_t damaged;
    place = fresh_place();
    WELL(contexts[0], kna_store_create(contexts[0], place, families, FAMILIES, NULL));
    for (int h = 0; h < HANDLES; h++) handles[h] = open_store(contexts[h], place, h == 0, 300000);
    while (grave_count < most && step(&number)) {}
    take_back();
    for (int h = 0; h < HANDLES; h++) { /* every one that ever was, of every handle */
        if (!handles[h] || !WELL(contexts[h], kna_store_refresh(handles[h], NULL))) continue;
        known[h] = grave_count;
        EXPECT(none_is_back(h, 0, 0));
        EXPECT(is_model(handles[h], contexts[h], &then));
        WELL(contexts[h], kna_store_verify(handles[h], &damaged, NULL, NULL));
        kna_store_close(handles[h]);
    }
    EXPECT(grave_count >= most && compactions > 0 && reopenings > 0);
    printf("  %ld deletions, asked after %ld times; %ld compactions, %ld reopenings; %d documents at the end\n", grave_count, asked, compactions,
           reopenings, then.count);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--deletions=", 12) == 0) most = atol(argv[i] + 12);
    }
    for (int h = 0; h < HANDLES; h++) {
        if (kna_context_new(&contexts[h], NULL) != KNA_OK) return 1;
    }
    TEST(deletions);
    drop_place();
    free(graves);
    for (int h = 0; h < HANDLES; h++) kna_context_free(contexts[h]);
    return test_end();
}
