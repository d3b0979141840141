/*
 * index.c - index files: as they are, when nothing but time may be lost, and with all their checks made right, so that what is behind them is
 * reached: then a file may lie about rows, and must do no worse.
 */
#define _GNU_SOURCE
#define KNA_MAY_ALLOCATE
#include "fuzz.h"

#include <unistd.h>

#include "search/search.h"

enum { DIM = 5, ROWS = 40, K = 6, MOST_BYTES = 1 << 16 };

static kna_context *context;
static kna_store *store;
static char folder[] = "/tmp/kna-fuzz-XXXXXX", path[64];
static float numbers[ROWS * DIM];
static kna_hit truth[K];

static void run(kna_hit *hits, int kind, int exact)
{
    kna_search *s;
    kna_search_options options = KNA_SEARCH_OPTIONS;
    kna_search_how how = KNA_SEARCH_HOW;
    kna_rows query = { .data = numbers + DIM, .type = KNA_F32, .heads = 1, .rows = 1, .dim = DIM };
    int64_t count;
    options.index = kind;
    how.k = K;
    how.exact = exact;
    MUST(kna_search_open(context, &s, store, 0, &options) == KNA_OK);
    memset(hits, 0, K * sizeof *hits);
    MUST(kna_search_run(s, hits, &count, &query, &how, NULL) == KNA_OK && count >= 0 && count <= K);
    kna_search_close(s);
}

static void drop_store(void)
{
    char all[100];
    kna_store_close(store);
    kna_context_free(context);
    snprintf(all, sizeof all, "rm -rf %s", folder);
    MUST(system(all) == 0);
}

/* One store for all inputs. */
static void make_store(void)
{
    kna_store_options options = KNA_STORE_OPTIONS;
    kna_family family = { "rows", KNA_F32, DIM };
    kna_document document = { .uri = "" };
    kna_store_rows rows = { 0, 0, { .data = numbers, .type = KNA_F32, .heads = 1, .rows = ROWS, .dim = DIM } };
    for (int i = 0; i < ROWS * DIM; i++) numbers[i] = (float)(kna__uniform(1, 2, (uint64_t)i) - 0.5);
    options.write = 1;
    MUST(mkdtemp(folder) && kna_context_new(&context, NULL) == KNA_OK);
    MUST(kna_store_create(context, folder, &family, 1, NULL) == KNA_OK);
    MUST(kna_store_open(context, &store, folder, &options) == KNA_OK);
    MUST(kna_store_add(store, &document, &rows, 1, 0) == KNA_OK && kna_store_commit(store) == KNA_OK);
    atexit(drop_store);
    run(truth, KNA_SEARCH_NONE, 1);
}

static void put(const unsigned char *bytes, size_t count)
{
    FILE *file = fopen(path, "wb");
    MUST(file && fwrite(bytes, 1, count, file) == count && fclose(file) == 0);
}

static uint64_t number_at(const unsigned char *bytes, size_t at)
{
    uint64_t x;
    memcpy(&x, bytes + at, sizeof x);
    return x;
}

static void put_check(unsigned char *bytes, size_t count, size_t to, size_t from, uint64_t size, uint64_t seed)
{
    if (from <= count && size <= count - from && to + 8 <= count) {
        uint64_t check = kna__check(bytes + from, (size_t)size, seed);
        memcpy(bytes + to, &check, sizeof check);
    }
}

/* Whose it is, and all checks, as the file itself says where things are: lists, tables, header. */
static void make_right(unsigned char *bytes, size_t count, int kind)
{
    enum { ENTRY = 48, ROW_BYTES = 16 * 4 * (5 + 2) /* a block of 16 rows of five numbers */ };
    uint32_t as = (uint32_t)kind;
    memcpy(bytes + 16, store->slot.uuid, 16);
    memcpy(bytes + 32, &store->slot.transaction, sizeof store->slot.transaction);
    memcpy(bytes + 48, &as, sizeof as);
    uint64_t lists = number_at(bytes, 80), centers = number_at(bytes, 88), table = number_at(bytes, 96), at = number_at(bytes, 104);
    uint64_t whole = count;
    memcpy(bytes + 112, &whole, sizeof whole);
    if (lists < count && centers < count && table <= count && lists * ENTRY <= count - table) {
        for (uint64_t i = 0; i < lists; i++) {
            size_t entry = (size_t)(table + i * ENTRY);
            uint64_t blocks = number_at(bytes, entry + 16);
            put_check(bytes, count, entry + 24, (size_t)number_at(bytes, entry), blocks < count ? blocks * ROW_BYTES : count + 1,
                      i);
        }
        put_check(bytes, count, 120, (size_t)table, lists * ENTRY, 1);
        put_check(bytes, count, 128, (size_t)at, centers * DIM * sizeof(float), 2);
    }
    put_check(bytes, count, KNA_INDEX_HEAD_BYTES - 8, 0, KNA_INDEX_HEAD_BYTES - 8, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t count)
{
    static unsigned char bytes[MOST_BYTES];
    kna_hit hits[K];
    if (!store) make_store();
    count = count < MOST_BYTES ? count : MOST_BYTES;
    memcpy(bytes, input, count);
    for (int kind = KNA_SEARCH_FLAT; kind <= KNA_SEARCH_CLUSTERS; kind++) {
        char name[40];
        kna__index_name(name, 0, kind);
        snprintf(path, sizeof path, "%s/%s", folder, name);
        put(bytes, count);
        run(hits, kind, 1);
        MUST(memcmp(hits, truth, sizeof hits) == 0);
        if (count >= KNA_INDEX_HEAD_BYTES) {
            make_right(bytes, count, kind);
            put(bytes, count);
            run(hits, kind, 0);
            run(hits, kind, 1);
        }
        unlink(path);
    }
    return 0;
}
