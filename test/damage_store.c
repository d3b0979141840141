/*
 * damage_store.c - files that are not as they were written: bits turned over, ends cut off, files swapped, other versions. Whatever it
 * is, the store says so, or what it gives is as it was committed, last or before; nothing damaged is given out, nothing crashes. Then
 * kna_store_repair() keeps what is sound.
 */
#include "store_case.h"

#include "../src/store/format.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static int rounds_of(int n) { return n / 4; } /* every access is watched */
#else
static int rounds_of(int n) { return n; }
#endif

enum { COMMITS = 5, MOST_FILES = 20 };
static kna_context *context;
static char home[100], spoiled[100];
static model history[COMMITS + 1];
static struct {
    char name[40];
    unsigned char *bytes;
    size_t count;
} files[MOST_FILES];
static int file_count;

/* ---- a store, and copies of it */

static void read_files(void)
{
    DIR *all = opendir(home);
    for (struct dirent *e = readdir(all); e; e = readdir(all)) {
        if (e->d_name[0] == '.') continue;
        char path[400];
        struct stat status;
        snprintf(path, sizeof path, "%.99s/%.39s", home, e->d_name);
        int fd = open(path, O_RDONLY);
        if (fd < 0 || fstat(fd, &status) != 0 || file_count == MOST_FILES) abort();
        snprintf(files[file_count].name, sizeof files[0].name, "%.39s", e->d_name);
        files[file_count].count = (size_t)status.st_size;
        files[file_count].bytes = malloc((size_t)status.st_size + 1);
        if (read(fd, files[file_count].bytes, files[file_count].count) != (ssize_t)files[file_count].count) abort();
        close(fd);
        file_count++;
    }
    closedir(all);
}

static void put_file(const char *name, const unsigned char *bytes, size_t count)
{
    char path[400];
    snprintf(path, sizeof path, "%.99s/%.39s", spoiled, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (fd < 0 || write(fd, bytes, count) != (ssize_t)count) abort();
    close(fd);
}

static void copy_store(void)
{
    remove_folder(spoiled);
    if (mkdir(spoiled, 0777) != 0) abort();
    for (int i = 0; i < file_count; i++) put_file(files[i].name, files[i].bytes, files[i].count);
}

static int file_named(const char *prefix)
{
    for (int i = 0; i < file_count; i++) {
        if (strncmp(files[i].name, prefix, strlen(prefix)) == 0) return i;
    }
    abort();
}

static void make_store(void)
{
    kna_store *store;
    char *base = (char *)(uintptr_t)fresh_place();
    snprintf(home, sizeof home, "%s/home", base);
    snprintf(spoiled, sizeof spoiled, "%s/spoiled", base);
    WELL(context, kna_store_create(context, home, families, FAMILIES, NULL));
    store = open_store(context, home, 1, 40000);
    for (int commit = 1; commit <= COMMITS; commit++) {
        model *now = &history[commit];
        *now = history[commit - 1];
        for (int i = 0; i < 4; i++) {
            int64_t id;
            uint32_t number = (uint32_t)(commit * 20 + i);
            WELL(context, add(store, number, 0, &id));
            model_add(now, id, number);
        }
        if (commit % 2) {
            WELL(context, kna_store_remove(store, now->ids[1]));
            model_remove(now, 1);
        }
        WELL(context, kna_store_commit(store));
    }
    kna_store_close(store);
    read_files();
}

/* ---- what may be found */

/* Rows are as written, or said to be damaged. */
static bool rows_are_honest(kna_store *store, int64_t id, uint32_t number)
{
    filled f;
    bool honest = true;
    fill(&f, number);
    for (int family = 0; family < FAMILIES && honest; family++) {
        const kna_rows *want = &f.rows[family].rows;
        kna_store_rows got;
        int status = kna_store_rows_of(store, id, family, &got);
        size_t bytes = (size_t)(want->rows * want->dim) * (want->type == KNA_F32 ? 4 : want->type == KNA_F16 ? 2 : 1);
        if (status == KNA_OK) {
            honest = EXPECT_INT(got.rows.rows, want->rows) && EXPECT(!bytes || memcmp(got.rows.data, want->data, bytes) == 0);
        } else {
            honest = EXPECT_INT(status, KNA_EDAMAGED);
        }
    }
    unfill(&f);
    return honest;
}

/* Returns which commit it is, or -1 where it does not open. */
static int look(int write)
{
    kna_store *store = NULL;
    kna_store_options o = KNA_STORE_OPTIONS;
    o.write = write;
    int status = kna_store_open(context, &store, spoiled, &o), found = -1;
    if (status != KNA_OK) {
        EXPECT_THAT(status == KNA_EDAMAGED || status == KNA_EFORMAT, "%s: %s", kna_status_name(status), kna_context_message(context));
        EXPECT(kna_context_message(context)[0] != 0);
        return -1;
    }
    for (int commit = COMMITS; commit >= 0 && found < 0; commit--) {
        if (has_ids_of(store, &history[commit])) found = commit;
    }
    if (EXPECT_THAT(found >= 0, "documents of no commit")) {
        for (int i = 0; i < history[found].count; i++) {
            if (!rows_are_honest(store, history[found].ids[i], history[found].numbers[i])) break;
        }
    }
    kna_store_close(store);
    return found;
}

/* What is left after a repair was there once, is whole, and can be added to. */
static void repair(int64_t least, bool families_needed)
{
    kna_store *store = NULL;
    int64_t kept, lost, damaged, id;
    if (!WELL(context, kna_store_repair(context, spoiled, &kept, &lost))) return;
    EXPECT_THAT(kept >= least, "%lld kept, %lld lost", (long long)kept, (long long)lost);
    store = open_store(context, spoiled, 1, 0);
    if (!store) return;
    WELL(context, kna_store_verify(store, &damaged, NULL, NULL));
    kna_document d = { .id = 0 };
    int64_t count = 0;
    for (; kna_store_next(store, d.id, &d) == KNA_OK; count++) is_document(store, context, d.id, (uint32_t)d.tokens);
    EXPECT_INT(count, kept);
    if (families_needed) EXPECT_INT(kna_store_family_named(store, families[FAMILIES - 1].name), FAMILIES - 1);
    if (kna_store_family_named(store, families[FAMILIES - 1].name) == FAMILIES - 1) {
        WELL(context, add(store, 299, 1, &id));
        WELL(context, kna_store_commit(store));
        is_document(store, context, id, 299);
    }
    kna_store_close(store);
}

/* ---- tests */

static void bits_of_the_manifest(void)
{
    copy_store();
    EXPECT_INT(look(0), COMMITS);
    int f = file_named("manifest");
    for (size_t bit = 0; bit < 8 * 2 * KNA_SLOT_BYTES; bit += bit % (8 * KNA_SLOT_BYTES) < 8 * 90 ? 1 : 61) {
        unsigned char *byte = &files[f].bytes[bit / 8];
        *byte ^= (unsigned char)(1 << bit % 8);
        put_file("manifest", files[f].bytes, files[f].count);
        *byte ^= (unsigned char)(1 << bit % 8);
        int found = look(0);
        /* One slot is enough to find the last commit: the log says how far it goes. But a byte that says "another version" is believed. */
        if (found >= 0) EXPECT_INT(found, COMMITS);
    }
    copy_store();
}

static void bits_of_the_log(void)
{
    int f = file_named("log-");
    for (int i = 0; i < rounds_of(3000); i++) {
        size_t bit = test_below(8 * files[f].count);
        unsigned char *byte = &files[f].bytes[bit / 8];
        *byte ^= (unsigned char)(1 << bit % 8);
        put_file(files[f].name, files[f].bytes, files[f].count);
        *byte ^= (unsigned char)(1 << bit % 8);
        EXPECT_INT(look(0), -1); /* every byte of it counts */
        if (i % 50 == 0) {
            repair(0, true);
            copy_store();
        }
    }
    copy_store();
}

static void bits_of_rows(void)
{
    for (int i = 0; i < rounds_of(300); i++) {
        int f = (int)test_below((size_t)file_count);
        if (strncmp(files[f].name, "rows-", 5) != 0) continue;
        size_t bit = test_below(8 * files[f].count);
        unsigned char *byte = &files[f].bytes[bit / 8];
        *byte ^= (unsigned char)(1 << bit % 8);
        put_file(files[f].name, files[f].bytes, files[f].count);
        *byte ^= (unsigned char)(1 << bit % 8);
        EXPECT_INT(look(0), COMMITS); /* and not one false row: see rows_are_honest() */
        if (i % 20 == 0) {
            repair(history[COMMITS].count - 1, true); /* one document at most */
            copy_store();
        } else {
            put_file(files[f].name, files[f].bytes, files[f].count);
        }
    }
    copy_store();
}

static void ends_cut_off(void)
{
    for (int f = 0; f < file_count; f++) {
        size_t step = files[f].count > 3000 ? files[f].count / (size_t)rounds_of(400) + 1 : 7;
        for (size_t left = 0; left < files[f].count && strcmp(files[f].name, "lock") != 0; left += step) {
            put_file(files[f].name, files[f].bytes, left);
            int found = look(0);
            if (strcmp(files[f].name, "manifest") != 0) EXPECT_INT(found, -1);
            if (left % 50 == 0) {
                if (strcmp(files[f].name, "manifest") != 0) repair(0, false);
                copy_store();
            }
        }
        put_file(files[f].name, files[f].bytes, files[f].count);
    }
    copy_store();
}

/* Files in each other's place, an old one of its own, one of another store, none. */
static void other_files(void)
{
    for (int f = 0; f < file_count; f++) {
        for (int g = 0; g < file_count; g++) {
            if (f == g || strcmp(files[f].name, "lock") == 0) continue;
            put_file(files[f].name, files[g].bytes, files[g].count);
            int found = look(0);
            if (found >= 0) EXPECT_INT(found, COMMITS);
            put_file(files[f].name, files[f].bytes, files[f].count);
        }
        char path[400];
        snprintf(path, sizeof path, "%.99s/%.39s", spoiled, files[f].name);
        if (strcmp(files[f].name, "lock") == 0) continue;
        if (unlink(path) != 0) abort();
        EXPECT_INT(look(0), -1);
        put_file(files[f].name, files[f].bytes, files[f].count);
    }
    EXPECT_INT(look(0), COMMITS);
}

static void stamp(size_t at, uint32_t x, const char *words)
{
    int f = file_named("manifest");
    unsigned char bytes[2 * KNA_SLOT_BYTES];
    memcpy(bytes, files[f].bytes, sizeof bytes);
    for (int slot = 0; slot < 2; slot++) {
        unsigned char *of = bytes + slot * KNA_SLOT_BYTES;
        memcpy(of + at, &x, sizeof x);
        uint64_t check = kna__check(of, KNA_SLOT_BYTES - 8, 0);
        memcpy(of + KNA_SLOT_BYTES - 8, &check, sizeof check);
    }
    put_file("manifest", bytes, sizeof bytes);
    kna_store *store = NULL;
    EXPECT_INT(kna_store_open(context, &store, spoiled, NULL), KNA_EFORMAT);
    EXPECT_THAT(strstr(kna_context_message(context), words) != NULL, "message %s", kna_context_message(context));
    copy_store();
}

static void other_versions(void)
{
    stamp(8, KNA_FORMAT_VERSION + 1, "version");
    stamp(12, 0x04030201, "big-endian");
    stamp(0, 0x12345678, "not a store");
}

/* A tail that a crash left behind the receipt is no damage, whatever it is; and it is never taken for more than it is. */
static void tails(void)
{
    int f = file_named("log-");
    unsigned char *longer = calloc(1, files[f].count + 5000);
    for (int i = 0; i < rounds_of(200); i++) {
        size_t more = test_below(5000);
        memcpy(longer, files[f].bytes, files[f].count);
        if (i % 2) {
            for (size_t x = 0; x < more; x++) longer[files[f].count + x] = (unsigned char)test_random();
        } else { /* records that were written before, again */
            size_t from = test_below(files[f].count / 8) * 8;
            more = more < files[f].count - from ? more : files[f].count - from;
            memcpy(longer + files[f].count, files[f].bytes + from, more);
        }
        put_file(files[f].name, longer, files[f].count + more);
        EXPECT_INT(look(i / 2 % 2), COMMITS);
    }
    free(longer);
    copy_store();
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    if (kna_context_new(&context, NULL) != KNA_OK) return 1;
    make_store();
    TEST(bits_of_the_manifest);
    TEST(bits_of_the_log);
    TEST(bits_of_rows);
    TEST(ends_cut_off);
    TEST(other_files);
    TEST(other_versions);
    TEST(tails);
    for (int i = 0; i < file_count; i++) free(files[i].bytes);
    drop_place();
    kna_context_free(context);
    return test_end();
}
