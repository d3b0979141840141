/*
 * unit_golden_store.c - the store of format 1 in test/golden/store-1 is read, and gone on with, for ever.
 *
 * It was made by `unit_golden_store --make=FOLDER`, once; what it holds follows from numbers, see store_case.h, so that this test knows it without
 * the code that wrote it. test/cli/golden_store.sh has the same for doc/read_store.py and the command.
 */
#include "store_case.h"

#include <dirent.h>

enum { HALVES = FAMILIES, BLOCKS, ALL_FAMILIES };
enum { LONG_BYTES = 70000, HALVES_ROWS = 3, BLOCKS_ROWS = 2 };
#define TIME_US(number) (1700000000000000 + 1000001 * (int64_t)(number))

static const kna_family more[] = { { "halves", KNA_BF16, 8 }, { "blocks", KNA_Q8_0, 32 } };
static const uint32_t numbers[] = { 3, 317,
                                    313 }; /* of the documents that are left, in the order of their ids; then the long one */
static const int64_t ids[] = { 3, 5, 6, 7 };
static kna_context *context;
#define OK(call) WELL(context, call)

/* ---- the long document: more than a piece, and the types that store_case.h has none of */

static struct {
    unsigned char text[LONG_BYTES], blocks[BLOCKS_ROWS * 34];
    uint16_t halves[HALVES_ROWS * 8];
} contents;

static int long_rows(kna_store_rows rows[3])
{
    for (int i = 0; i < LONG_BYTES; i++) contents.text[i] = (unsigned char)('a' + i / 1000 % 26);
    for (int i = 0; i < HALVES_ROWS * 8; i++) contents.halves[i] = (uint16_t)(0x3f80 + i);
    for (int i = 0; i < BLOCKS_ROWS * 34; i++) contents.blocks[i] = (unsigned char)(3 * i);
    rows[0] = (kna_store_rows){ TEXT, 0, { .data = contents.text, .type = KNA_BYTES, .heads = 1, .rows = LONG_BYTES, .dim = 1 } };
    rows[1] =
        (kna_store_rows){ HALVES, 0, { .data = contents.halves, .type = KNA_BF16, .heads = 1, .rows = HALVES_ROWS, .dim = 8 } };
    rows[2] =
        (kna_store_rows){ BLOCKS, 0, { .data = contents.blocks, .type = KNA_Q8_0, .heads = 1, .rows = BLOCKS_ROWS, .dim = 32 } };
    return 3;
}

static void is_long(kna_store *store, int64_t id)
{
    kna_store_rows want[3], got;
    const size_t bytes[3] = { sizeof contents.text, sizeof contents.halves, sizeof contents.blocks };
    for (int i = 0; i < long_rows(want); i++) {
        if (!OK(kna_store_rows_of(store, id, want[i].family, &got))) return;
        EXPECT_INT(got.rows.rows, want[i].rows.rows);
        EXPECT(got.rows.type == want[i].rows.type && memcmp(got.rows.data, want[i].rows.data, bytes[i]) == 0);
    }
}

/* ---- how it was made */

static void put(kna_store *store, uint32_t number, int replace)
{
    filled f;
    char uri[32], attributes[64];
    name_of(uri, number);
    snprintf(attributes, sizeof attributes, "{\"number\":%u}", number);
    kna_document d = { .uri = uri,
                       .tags = number % 2 ? "odd\nall" : "even\nall",
                       .attributes = attributes,
                       .time_us = TIME_US(number),
                       .tokens = number };
    memcpy(d.hash, &number, sizeof number);
    fill(&f, number);
    OK(kna_store_add(store, &d, f.rows, f.count, replace));
    unfill(&f);
}

static void make(const char *folder)
{
    kna_store_options options = KNA_STORE_OPTIONS;
    kna_store_rows rows[3];
    kna_document d = { .uri = "long/\xc3\xbc", .time_us = TIME_US(1000) };
    options.model = "golden";
    if (!OK(kna_store_create(context, folder, families, FAMILIES, &options))) return;
    kna_store *store = open_store(context, folder, 1, 20000);
    for (int i = 0; i < ALL_FAMILIES - FAMILIES; i++) OK(kna_store_add_family(store, &more[i]));
    OK(kna_store_note(store, "made", "once"));
    put(store, 17, 0);
    put(store, 2, 0);
    put(store, 3, 0);
    put(store, 54, 0);
    OK(kna_store_commit(store));
    OK(kna_store_remove(store, 2));
    put(store, 317, 1);
    OK(kna_store_commit(store));
    OK(kna_store_compact(store, 0.5));
    put(store, 313, 0);
    OK(kna_store_add(store, &d, rows, long_rows(rows), 0));
    OK(kna_store_commit(store));
    OK(kna_store_remove(store, 4));
    OK(kna_store_commit(store));
    kna_store_close(store);
}

/* ---- what is in it */

static void holds_all(kna_store *store)
{
    kna_family family;
    kna_document d = { .id = 0 };
    for (int i = 0; i < ALL_FAMILIES; i++) {
        const kna_family *want = i < FAMILIES ? &families[i] : &more[i - FAMILIES];
        if (!OK(kna_store_family(store, i, &family))) return;
        EXPECT(strcmp(family.name, want->name) == 0 && family.type == want->type && family.dim == want->dim);
    }
    EXPECT(strcmp(kna_store_note_text(store, "model"), "golden") == 0 && strcmp(kna_store_note_text(store, "made"), "once") == 0);
    for (int i = 0; i < 3; i++) {
        if (!OK(kna_store_document(store, ids[i], &d))) return;
        EXPECT_INT(d.time_us, TIME_US(numbers[i]));
        is_document(store, context, ids[i], numbers[i]);
    }
    if (OK(kna_store_find(store, "long/\xc3\xbc", &d))) EXPECT(d.id == ids[3] && d.time_us == TIME_US(1000));
    is_long(store, ids[3]);
    EXPECT_INT(kna_store_document(store, 1, &d), KNA_ENONE);
    EXPECT_INT(kna_store_document(store, 2, &d), KNA_ENONE);
    EXPECT_INT(kna_store_document(store, 4, &d), KNA_ENONE);
}

static char golden[4096];

static void read_for_ever(void)
{
    int64_t damaged = -1;
    kna_store_info info = { .size = sizeof info };
    kna_store *store = open_store(context, golden, 0, 0);
    if (!store) return;
    holds_all(store);
    OK(kna_store_info_get(store, &info));
    EXPECT(info.documents == 4 && info.removed == 1 && info.families == ALL_FAMILIES && info.segments >= 3);
    OK(kna_store_verify(store, &damaged, NULL, NULL));
    OK(kna_store_verify(store, NULL, NULL, NULL));
    EXPECT_INT(damaged, 0);
    kna_store_close(store);
}

/* ---- a copy of it is gone on with */

static void copy_file(const char *folder, const char *name)
{
    static char bytes[1 << 20];
    char path[4400];
    snprintf(path, sizeof path, "%s/%s", golden, name);
    FILE *from = fopen(path, "rb");
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *to = fopen(path, "wb");
    if (from && to) {
        size_t count = fread(bytes, 1, sizeof bytes, from);
        EXPECT(count < sizeof bytes && fwrite(bytes, 1, count, to) == count);
    }
    EXPECT(from && to);
    if (from) fclose(from);
    if (to) fclose(to);
}

static void gone_on_with(void)
{
    const char *folder = fresh_place();
    int64_t id = 0;
    DIR *all = opendir(golden);
    for (const struct dirent *entry = all ? readdir(all) : NULL; entry; entry = readdir(all)) {
        if (entry->d_name[0] != '.') copy_file(folder, entry->d_name);
    }
    if (all) closedir(all);
    kna_store *store = open_store(context, folder, 1, 0);
    if (!store) return;
    OK(add(store, 8, 0, &id));
    EXPECT_INT(id, 8);
    OK(kna_store_commit(store));
    holds_all(store);
    OK(kna_store_compact(store, 0));
    kna_store_close(store);
    store = open_store(context, folder, 0, 0);
    holds_all(store);
    is_document(store, context, id, 8);
    kna_store_close(store);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    const char *source = getenv("KNA_SOURCE_DIR");
    if (kna_context_new(&context, NULL) != KNA_OK) return 1;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--make=", 7) == 0) {
            make(argv[i] + 7);
            kna_context_free(context);
            return test_end();
        }
    }
    if (!source) {
        printf("skipped: KNA_SOURCE_DIR does not say where test/golden is\n");
        return 77;
    }
    snprintf(golden, sizeof golden, "%s/test/golden/store-1", source);
    TEST(read_for_ever);
    TEST(gone_on_with);
    drop_place();
    kna_context_free(context);
    return test_end();
}
