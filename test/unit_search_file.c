/*
 * unit_search_file.c - an index file that is not as it was written, another store's, another family's, of a later commit, or cut short: never
 * an answer that differs by a bit, and the report says that it was not used.
 */
#include "random_case.h"
#include "search_case.h"

#include <fcntl.h>
#include <sys/stat.h>

static search_case c;
static float *q;
static answer want;
static char path[160];
static unsigned char *bytes;
static size_t size;

static void read_index(void)
{
    FILE *file = fopen(path, "rb");
    struct stat status;
    if (!file || fstat(fileno(file), &status) != 0) abort();
    size = (size_t)status.st_size;
    free(bytes);
    bytes = malloc(size);
    if (fread(bytes, 1, size, file) != size) abort();
    fclose(file);
}

/* A new file: one that is mapped is never written to. */
static void write_index(const unsigned char *what, size_t count)
{
    unlink(path);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(what, 1, count, file) != count || fclose(file) != 0) abort();
}

/* Documents, an index, rows beyond it; what is found is found by rows alone, too. */
static int kind = KNA_SEARCH_FLAT;

static void begin(int metric)
{
    c = search_begin(context_best(), KNA_F32, 6, metric);
    search_add(&c, 20, NORMAL);
    search_add(&c, 13, NORMAL);
    search_index(&c, kind);
    search_add(&c, 5, NORMAL);
    snprintf(path, sizeof path, "%s/index-00000-%s", c.folder, kna_search_index_name(kind));
    q = search_queries(&c, ANSWER_QUERIES, NORMAL);
    kna_search *s = search_open(&c, c.store, KNA_SEARCH_NONE);
    WELL(c.context, search_ask(s, &c, q, &want));
    EXPECT_INT(want.report.index, KNA_SEARCH_NONE);
    kna_search_close(s);
    read_index();
}

static void end(void)
{
    free(q);
    free(bytes);
    bytes = NULL;
    search_end(&c);
}

/* With the file as it is: the answer wanted; and whether the index was used. */
static bool used(int *refused)
{
    answer a;
    kna_search *s = search_open(&c, c.store, KNA_SEARCH_AUTO);
    bool well = s && WELL(c.context, search_ask(s, &c, q, &a)) && EXPECT(search_same(&a, &want));
    if (well && a.report.index == KNA_SEARCH_NONE) { /* and it stays refused */
        answer again;
        well = WELL(c.context, search_ask(s, &c, q, &again)) && EXPECT(search_same(&again, &want)) &&
               EXPECT_INT(again.report.index, KNA_SEARCH_NONE) && EXPECT_INT(again.report.refused, a.report.refused);
    }
    *refused = well ? a.report.refused : KNA_OK;
    kna_search_close(s);
    return well && a.report.index == kind;
}

static void every_bit(void)
{
    for (int metric = 0; metric < KNA_METRIC_COUNT; metric++) {
        int refused;
        begin(metric);
        EXPECT(used(&refused) && refused == KNA_OK);
        int step = metric == KNA_IP ? rounds(4) == 4 ? 1 : 13 : 29;
        for (size_t bit = 0; bit < 8 * size && test_state.failures < 5; bit += (size_t)step) {
            bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
            write_index(bytes, size);
            EXPECT_THAT(!used(&refused) && (refused == KNA_EDAMAGED || refused == KNA_EFORMAT), "bit %zu of %zu: %s", bit, 8 * size,
                        kna_status_name(refused));
            bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
        }
        write_index(bytes, size);
        EXPECT(used(&refused));
        end();
    }
}

static void every_length(void)
{
    int refused;
    begin(KNA_L2);
    for (size_t length = 0; length < size; length += length % 64 == 0 || length + 70 > size ? 1 : 7) {
        write_index(bytes, length);
        if (!EXPECT_THAT(!used(&refused) && (refused == KNA_EDAMAGED || refused == KNA_EFORMAT), "%zu of %zu bytes: %s", length,
                         size, kna_status_name(refused)))
            break;
    }
    bytes = realloc(bytes, size + 64);
    memset(bytes + size, 0, 64);
    write_index(bytes, size + 1);
    EXPECT(!used(&refused) && refused == KNA_EDAMAGED);
    write_index(bytes, size + 64);
    EXPECT(!used(&refused) && refused == KNA_EDAMAGED);
    unlink(path);
    EXPECT(!used(&refused) && refused == KNA_ENONE);
    mkdir(path, 0777);
    EXPECT(!used(&refused) && refused != KNA_OK);
    rmdir(path);
    end();
}

/* The same of an index of clusters. */
static void clusters(void)
{
    kind = KNA_SEARCH_CLUSTERS;
    every_bit();
    every_length();
    kind = KNA_SEARCH_FLAT;
}

static void another_ones(void)
{
    int refused;
    begin(KNA_IP);
    char first[sizeof c.folder], other[160];
    snprintf(first, sizeof first, "%s", c.folder);
    snprintf(other, sizeof other, "%s-other", c.folder);
    kna_family two[] = { { "rows", KNA_F32, 6 }, { "more", KNA_F32, 6 } };
    kna_store *store = NULL;
    WELL(c.context, kna_store_create(c.context, other, two, 2, NULL));
    store = open_store(c.context, other, 1, 0);
    float x[24] = { 0 };
    kna_store_rows rows[] = { { 0, 0, { .data = x, .type = KNA_F32, .heads = 1, .rows = 4, .dim = 6 } },
                              { 1, 0, { .data = x, .type = KNA_F32, .heads = 1, .rows = 4, .dim = 6 } } };
    kna_document d = { .uri = "" };
    WELL(c.context, kna_store_add(store, &d, rows, 2, 0));
    WELL(c.context, kna_store_commit(store));
    WELL(c.context, kna_store_index(store, 0, NULL));
    kna_store_index_info info = { .size = sizeof info };
    char from[200], to[200];
    snprintf(from, sizeof from, "%s/index-00000-flat", other);
    snprintf(to, sizeof to, "%s/index-00001-flat", other);
    WELL(c.context, kna_store_index_get(store, 0, KNA_SEARCH_FLAT, &info));
    EXPECT(info.rows == 4 && info.covered == 4 && info.kind == KNA_SEARCH_FLAT && info.metric == KNA_IP);
    EXPECT(rename(from, to) == 0); /* another family's */
    EXPECT_INT(kna_store_index_get(store, 1, KNA_SEARCH_FLAT, &info), KNA_EFORMAT);
    EXPECT_INT(kna_store_index_get(store, 0, KNA_SEARCH_FLAT, &info), KNA_ENONE);
    EXPECT(rename(to, path) == 0); /* another store's */
    kna_store_close(store);
    EXPECT(!used(&refused) && refused == KNA_EFORMAT);
    write_index(bytes, size);
    c.metric = KNA_COSINE; /* another metric's */
    kna_search *s = search_open(&c, c.store, KNA_SEARCH_NONE);
    WELL(c.context, search_ask(s, &c, q, &want));
    kna_search_close(s);
    EXPECT(!used(&refused) && refused == KNA_EFORMAT);
    end();
    remove_folder(other);
}

/* A reader's answers are of its snapshot, though the index is of a later one in which a document is gone. */
static void later_commit(void)
{
    answer a;
    begin(KNA_IP);
    kna_store *reader = open_store(c.context, c.folder, 0, 0);
    search_remove(&c, 0);
    WELL(c.context, kna_store_compact(c.store, 0));
    search_index(&c, KNA_SEARCH_FLAT);
    kna_search *s = search_open(&c, reader, KNA_SEARCH_AUTO);
    WELL(c.context, search_ask(s, &c, q, &a));
    EXPECT(search_same(&a, &want) && a.report.index == KNA_SEARCH_NONE && a.report.refused == KNA_ESTALE);
    WELL(c.context, kna_store_refresh(reader, NULL));
    WELL(c.context, search_ask(s, &c, q, &a));
    EXPECT(!search_same(&a, &want) && a.report.index == KNA_SEARCH_FLAT && a.report.rows == 18);
    for (int i = 0; i < ANSWER_QUERIES * ANSWER_K; i++) EXPECT(a.hits[i].document != c.ids[0]);
    kna_search_close(s);
    kna_store_close(reader);
    end();
}

/* A file that is written over while it is mapped: lists not yet looked into are compared when they are. Then rows answer. */
static void damaged_while_open(void)
{
    answer a;
    begin(KNA_IP);
    kna_search *s = search_open(&c, c.store, KNA_SEARCH_AUTO);
    int fd = open(path, O_RDWR);
    EXPECT(pwrite(fd, "\xff\xff\xff", 3, 4096 + 30) == 3);
    close(fd);
    WELL(c.context, search_ask(s, &c, q, &a));
    EXPECT(search_same(&a, &want) && a.report.index == KNA_SEARCH_NONE && a.report.refused == KNA_EDAMAGED);
    kna_search_close(s);
    end();
}

/* A row that is damaged is told, and not served; rows of other documents are found as long as that one is not looked at. */
static void damaged_rows(void)
{
    char rows[160];
    answer a;
    begin(KNA_IP);
    kna_store_close(c.store);
    snprintf(rows, sizeof rows, "%s/rows-000000", c.folder);
    int fd = open(rows, O_RDWR);
    EXPECT(pwrite(fd, "\x01\x02\x03", 3, 4) == 3);
    close(fd);
    c.store = open_store(c.context, c.folder, 1, 0);
    kna_search *s = search_open(&c, c.store, KNA_SEARCH_NONE);
    EXPECT_INT(search_ask(s, &c, q, &a), KNA_EDAMAGED);
    EXPECT_THAT(strstr(kna_context_message(c.context), "document 1") != NULL, "message \"%s\"", kna_context_message(c.context));
    kna_search_close(s);
    EXPECT_INT(kna_store_index(c.store, 0, NULL), KNA_EDAMAGED);
    read_index(); /* the one there was is there still */
    WELL(c.context, kna_store_remove(c.store, c.ids[0]));
    WELL(c.context, kna_store_commit(c.store));
    s = search_open(&c, c.store, KNA_SEARCH_AUTO);
    WELL(c.context, search_ask(s, &c, q, &a));
    EXPECT(a.report.index == KNA_SEARCH_FLAT && a.report.rows == 18);
    kna_search_close(s);
    end();
}

/* Numbers of rows may be given again after a repair: no index of before is left. */
static void repaired(void)
{
    int64_t kept, lost;
    begin(KNA_IP);
    kna_store_close(c.store);
    WELL(c.context, kna_store_repair(c.context, c.folder, &kept, &lost));
    EXPECT(kept == 3 && lost == 0 && access(path, F_OK) != 0);
    c.store = open_store(c.context, c.folder, 1, 0);
    int refused;
    EXPECT(!used(&refused) && refused == KNA_ENONE);
    end();
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(every_bit);
    TEST(every_length);
    TEST(clusters);
    TEST(another_ones);
    TEST(later_commit);
    TEST(damaged_while_open);
    TEST(damaged_rows);
    TEST(repaired);
    contexts_free();
    return test_end();
}
