/* unit_store.c - a store against a model in memory: add, remove, replace, roll back, refresh, compact, open again; and what is refused. */
#include "store_case.h"

static const char *place;
static kna_context *writer_context, *reader_context;
#define OK(call)        WELL(writer_context, call)
#define READER_OK(call) WELL(reader_context, call)

static void create(void)
{
    place = fresh_place();
    OK(kna_store_create(writer_context, place, families, FAMILIES, NULL));
}

/* ---- tests */

static void as_a_model_says(void)
{
    static model now, then;
    uint32_t number = 0;
    create();
    now.count = then.count = 0;
    kna_store *store = open_store(writer_context, place, 1, 300000), *reader = open_store(reader_context, place, 0, 0);
    for (int step = 0; step < 1200 && store && reader; step++) {
        uint32_t what = (uint32_t)test_below(100);
        int64_t id;
        if (what < 55) {
            int old = model_named(&now, ++number), replace = (int)test_below(2);
            int status = add(store, number, replace, &id);
            if (old >= 0 && !replace) {
                EXPECT_INT(status, KNA_EEXISTS);
            } else if (OK(status)) {
                if (old >= 0) model_remove(&now, old);
                model_add(&now, id, number);
            }
        } else if (what < 70 && now.count) {
            int which = (int)test_below((size_t)now.count);
            if (!OK(kna_store_remove(store, now.ids[which]))) break;
            model_remove(&now, which);
        } else if (what < 85) {
            if (!OK(kna_store_commit(store))) break;
            then = now;
        } else if (what < 90) {
            kna_store_rollback(store);
            now = then;
        } else if (what < 92) {
            kna_store_rollback(store);
            now = then;
            OK(kna_store_compact(store, (double)test_below(3) / 2));
        } else if (what < 94) {
            kna_store_close(store);
            now = then;
            store = open_store(writer_context, place, 1, 100000 + (int64_t)test_below(1000000));
        } else if (what < 96) {
            READER_OK(kna_store_refresh(reader, NULL));
            if (!is_model(reader, reader_context, &then)) break;
        } else if (!is_model(store, writer_context, &then)) { /* the writer sees what is committed */
            break;
        }
    }
    EXPECT(now.count > 20);
    kna_store_close(store);
    kna_store_close(reader);
    reader = open_store(reader_context, place, 0, 0);
    int64_t damaged = -1;
    READER_OK(kna_store_verify(reader, &damaged, NULL, NULL));
    EXPECT_INT(damaged, 0);
    is_model(reader, reader_context, &then);
    kna_store_close(reader);
}

/* A reader sees what was there when it opened, until it asks; also while the writer compacts. */
static void snapshots(void)
{
    int64_t id[3];
    int changed = -1;
    create();
    kna_store *store = open_store(writer_context, place, 1, 0);
    OK(add(store, 1, 0, &id[0]));
    OK(add(store, 2, 0, &id[1]));
    OK(kna_store_commit(store));
    kna_store *reader = open_store(reader_context, place, 0, 0);
    OK(kna_store_remove(store, id[0]));
    OK(add(store, 4, 0, &id[2]));
    is_document(reader, reader_context, id[0], 1);
    OK(kna_store_commit(store));
    OK(kna_store_compact(store, 0));
    is_document(reader, reader_context, id[0], 1);
    is_document(reader, reader_context, id[1], 2);
    kna_document d;
    EXPECT_INT(kna_store_document(reader, id[2], &d), KNA_ENONE);
    READER_OK(kna_store_refresh(reader, &changed));
    EXPECT_INT(changed, 1);
    EXPECT_INT(kna_store_document(reader, id[0], &d), KNA_ENONE);
    is_document(reader, reader_context, id[1], 2);
    is_document(reader, reader_context, id[2], 4);
    READER_OK(kna_store_refresh(reader, &changed));
    EXPECT_INT(changed, 0);
    kna_store_close(reader);
    kna_store_close(store);
}

/* A compaction that leaves a segment alone makes its dead rows unknown, not free: a reader of before still has them. */
static void dead_rows_stay(void)
{
    int64_t id[30];
    create();
    kna_store *store = open_store(writer_context, place, 1, 0);
    for (int i = 0; i < 10; i++) OK(add(store, 30 + (uint32_t)i, 0, &id[i]));
    OK(kna_store_commit(store));
    kna_store *reader = open_store(reader_context, place, 0, 0);
    for (int i = 5; i < 10; i++) OK(kna_store_remove(store, id[i]));
    OK(kna_store_commit(store));
    OK(kna_store_compact(store, 1));
    for (int i = 10; i < 30; i++) OK(add(store, 30 + (uint32_t)i, 0, &id[i]));
    OK(kna_store_commit(store));
    for (int i = 0; i < 10; i++) is_document(reader, reader_context, id[i], 30 + (uint32_t)i);
    READER_OK(kna_store_refresh(reader, NULL));
    for (int i = 10; i < 30; i++) is_document(reader, reader_context, id[i], 30 + (uint32_t)i);
    kna_store_close(reader);
    kna_store_close(store);
}

/* Numbers of documents and of rows are given once, also after a compaction has forgotten who had them. */
static void numbers_go_on(void)
{
    int64_t id[4];
    kna_store_rows rows;
    create();
    kna_store *store = open_store(writer_context, place, 1, 0);
    for (int i = 0; i < 3; i++) OK(add(store, 20 + (uint32_t)i, 0, &id[i]));
    OK(kna_store_commit(store));
    int64_t next = kna_store_family_rows(store, KEYS);
    for (int i = 0; i < 3; i++) OK(kna_store_remove(store, id[i]));
    OK(kna_store_commit(store));
    OK(kna_store_compact(store, 0));
    kna_store_close(store);
    store = open_store(writer_context, place, 1, 0);
    EXPECT_INT(kna_store_family_rows(store, KEYS), next);
    OK(add(store, 21, 0, &id[3]));
    OK(kna_store_commit(store));
    EXPECT(id[3] > id[2]);
    OK(kna_store_rows_of(store, id[3], KEYS, &rows));
    EXPECT_INT(rows.first, next);
    is_document(store, writer_context, id[3], 21);
    kna_store_close(store);
}

static void one_writer(void)
{
    kna_store *second = NULL;
    kna_store_options o = KNA_STORE_OPTIONS;
    char want[32];
    create();
    kna_store *store = open_store(writer_context, place, 1, 0);
    o.write = 1;
    EXPECT_INT(kna_store_open(reader_context, &second, place, &o), KNA_EBUSY);
    snprintf(want, sizeof want, "process %d", (int)getpid());
    EXPECT_THAT(strstr(kna_context_message(reader_context), want) != NULL, "%s", kna_context_message(reader_context));
    EXPECT(second == NULL);
    o.write = 0;
    READER_OK(kna_store_open(reader_context, &second, place, &o));
    EXPECT_INT(kna_store_remove(second, 1), KNA_EINVAL);
    kna_store_close(second);
    kna_store_close(store);
    o.write = 1;
    READER_OK(kna_store_open(reader_context, &second, place, &o));
    kna_store_close(second);
}

static void models_and_notes(void)
{
    kna_store *store = NULL;
    kna_store_options o = KNA_STORE_OPTIONS;
    place = fresh_place();
    o.model = "smollm2 sha256:0123";
    OK(kna_store_create(writer_context, place, families, 1, &o));
    OK(kna_store_open(writer_context, &store, place, &o));
    EXPECT(strcmp(kna_store_note_text(store, "model"), o.model) == 0);
    EXPECT(kna_store_note_text(store, "other") == NULL);
    kna_store_close(store);
    o.model = "another";
    EXPECT_INT(kna_store_open(writer_context, &store, place, &o), KNA_EFORMAT);
    EXPECT(strstr(kna_context_message(writer_context), "another") != NULL);
    o.model = NULL;
    o.write = 1;
    OK(kna_store_open(writer_context, &store, place, &o));
    OK(kna_store_note(store, "calibration", "{}"));
    EXPECT(kna_store_note_text(store, "calibration") == NULL); /* not yet */
    OK(kna_store_commit(store));
    EXPECT(strcmp(kna_store_note_text(store, "calibration"), "{}") == 0);
    OK(kna_store_note(store, "calibration", "[1]"));
    OK(kna_store_note(store, "gone", "x"));
    OK(kna_store_commit(store));
    OK(kna_store_note(store, "gone", ""));
    OK(kna_store_commit(store));
    OK(kna_store_compact(store, 0));
    EXPECT(strcmp(kna_store_note_text(store, "calibration"), "[1]") == 0);
    EXPECT(kna_store_note_text(store, "gone") == NULL);
    EXPECT(strcmp(kna_store_note_text(store, "model"), "smollm2 sha256:0123") == 0);
    kna_store_close(store);
}

static void refused(void)
{
    kna_store *store = NULL;
    kna_document d = { .uri = "x" };
    float numbers[24] = { 0 };
    int64_t id;
    kna_store_rows rows = { HIDDEN, 0, { .data = numbers, .type = KNA_F32, .heads = 1, .rows = 1, .dim = 24 } }, two[2];
    place = fresh_place();
    EXPECT_INT(kna_store_open(writer_context, &store, place, NULL), KNA_EFORMAT); /* a folder, and no store */
    EXPECT_INT(kna_store_open(writer_context, &store, "/nonexistent/store", NULL), KNA_ENONE);
    EXPECT_INT(kna_store_open(writer_context, &store, "/dev/null", NULL), KNA_EFORMAT);
    EXPECT_INT(kna_store_create(writer_context, "/nonexistent/store", families, 1, NULL), KNA_EIO);
    kna_family bad[] = { { "", KNA_F32, 4 }, { "x", 77, 4 }, { "x", KNA_F32, 0 }, { "x", KNA_F32, KNA_MAX_STORED_DIM + 1 }, { "x", KNA_Q8_0, 31 } };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        EXPECT(kna_store_create(writer_context, place, &bad[i], 1, NULL) != KNA_OK);
        EXPECT_INT(kna_store_open(writer_context, &store, place, NULL), KNA_EFORMAT); /* nothing is left of it */
    }
    kna_family twice[] = { families[0], families[0] };
    EXPECT_INT(kna_store_create(writer_context, place, twice, 2, NULL), KNA_EEXISTS);
    OK(kna_store_create(writer_context, place, families, FAMILIES, NULL));
    EXPECT_INT(kna_store_create(writer_context, place, families, FAMILIES, NULL), KNA_EEXISTS);
    store = open_store(writer_context, place, 1, 0);
    rows.rows.dim = 23;
    EXPECT_INT(kna_store_add(store, &d, &rows, 1, 0), KNA_ESHAPE);
    rows.rows.dim = 24;
    rows.rows.heads = 2;
    EXPECT_INT(kna_store_add(store, &d, &rows, 1, 0), KNA_ESHAPE);
    rows.rows.heads = 1;
    rows.rows.type = KNA_F16;
    EXPECT_INT(kna_store_add(store, &d, &rows, 1, 0), KNA_ETYPE);
    rows.rows.type = KNA_F32;
    rows.family = FAMILIES;
    EXPECT_INT(kna_store_add(store, &d, &rows, 1, 0), KNA_EINVAL);
    rows.family = HIDDEN;
    two[0] = two[1] = rows;
    EXPECT_INT(kna_store_add(store, &d, two, 2, 0), KNA_EINVAL);
    rows.rows.data = NULL;
    EXPECT_INT(kna_store_add(store, &d, &rows, 1, 0), KNA_EINVAL);
    rows.rows.data = numbers;
    OK(kna_store_add(store, &d, &rows, 1, 0));
    EXPECT_INT(kna_store_add(store, &d, &rows, 1, 0), KNA_EEXISTS); /* the same uri */
    OK(kna_store_add(store, &d, &rows, 1, 1));
    EXPECT_INT(kna_store_compact(store, 0), KNA_EINVAL); /* in the middle of a transaction */
    OK(kna_store_commit(store));
    EXPECT_INT(kna_store_remove(store, 99), KNA_ENONE);
    OK(kna_store_remove(store, d.id));
    EXPECT_INT(kna_store_remove(store, d.id), KNA_ENONE);
    EXPECT_INT(kna_store_compact(store, 2), KNA_EINVAL);
    EXPECT_INT(kna_store_owner(store, HIDDEN, 5, &id, &id), KNA_ENONE);
    kna_store_close(store);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    if (kna_context_new(&writer_context, NULL) != KNA_OK || kna_context_new(&reader_context, NULL) != KNA_OK) return 1;
    TEST(as_a_model_says);
    TEST(snapshots);
    TEST(dead_rows_stay);
    TEST(numbers_go_on);
    TEST(one_writer);
    TEST(models_and_notes);
    TEST(refused);
    drop_place();
    kna_memory memory;
    kna_context_trim(writer_context);
    kna_context_memory(writer_context, &memory);
    EXPECT_THAT(memory.now_bytes < 10000, "%zu bytes are held", memory.now_bytes);
    kna_context_free(writer_context);
    kna_context_free(reader_context);
    return test_end();
}
