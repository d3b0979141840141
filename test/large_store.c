/*
 * large_store.c - more than 4 GiB of rows: files with holes, written from doc/format.md, whose rows lie across and above byte 2^32 of
 * their segment, and a document of more than 2^32 rows. Read, compared with their checks, added to behind, removed, compacted.
 */
#include "store_case.h"

#include "../src/store/format.h"

#include <fcntl.h>
#include <sys/stat.h>

enum { SMALL = 12, BIG_NUMBER = 3 }; /* a document without a uri */
#define GIB ((uint64_t)1 << 30)
#define BIG_ROWS (4 * GIB + 12345)

static kna_context *context;
static char home[100];
static int segment_fd[2];
static unsigned char *log_bytes;
static size_t log_count, log_room;
static uint64_t log_check, next_row[FAMILIES], end_of[2] = { 4 * GIB - 4096, 3 * GIB };
static model m;

static void *grown(void *memory, size_t bytes)
{
    memory = realloc(memory, bytes);
    if (!memory) abort();
    return memory;
}

static void add_record(kna__kind kind, const void *body, size_t bytes)
{
    if (log_count + kna__record_bytes(bytes) > log_room) {
        log_room = 2 * (log_room + kna__record_bytes(bytes));
        log_bytes = grown(log_bytes, log_room);
    }
    log_check = kna__record_encode(log_bytes + log_count, kind, body, bytes, log_check);
    log_count += kna__record_bytes(bytes);
}

static kna__part place_part(int segment, int family, uint64_t rows)
{
    kna__part part = { .family = (uint32_t)family, .segment = (uint32_t)segment, .rows = rows, .first_row = next_row[family], .offset = end_of[segment] };
    uint64_t scales_at;
    if (!kna__part_size(&part.bytes, &scales_at, (uint32_t)families[family].type, (uint64_t)families[family].dim, rows)) abort();
    next_row[family] += rows;
    end_of[segment] += (part.bytes + KNA_PART_ALIGNMENT - 1) / KNA_PART_ALIGNMENT * KNA_PART_ALIGNMENT;
    return part;
}

/* Its bytes into the file; checks of its pieces. */
static uint64_t write_part(const kna__part *part, const kna_rows *r, uint64_t *checks)
{
    unsigned char *bytes = calloc(1, part->bytes);
    uint64_t row = kna__stored_row_bytes((uint32_t)r->type, (uint64_t)r->dim), size, scales_at, pieces = kna__part_pieces(part);
    (void)kna__part_size(&size, &scales_at, (uint32_t)r->type, (uint64_t)r->dim, part->rows);
    memcpy(bytes, r->data, row * part->rows);
    if (r->type == KNA_I8) memcpy(bytes + scales_at, r->scales, part->rows * sizeof(float));
    for (uint64_t i = 0; i < pieces; i++) {
        uint64_t at = i * KNA_PIECE_BYTES, left = part->bytes - at;
        checks[i] = kna__check(bytes + at, left < KNA_PIECE_BYTES ? left : KNA_PIECE_BYTES, i);
    }
    if (pwrite(segment_fd[part->segment], bytes, part->bytes, (off_t)part->offset) != (ssize_t)part->bytes) abort();
    free(bytes);
    return pieces;
}

static void add_body(kna__document *d, const kna__part *parts, const uint64_t *checks, uint64_t pieces)
{
    size_t bytes = kna__document_bytes(d, pieces);
    unsigned char *body = calloc(1, bytes);
    kna__document_encode(body, d, parts, checks);
    add_record(KNA_RECORD_DOCUMENT, body, bytes);
    free(body);
    model_add(&m, (int64_t)d->id, (uint32_t)d->tokens);
}

/* Document `number`, as add() of store_case.c has it. */
static void small_document(uint32_t number, int segment)
{
    static uint64_t checks[100];
    kna__part parts[FAMILIES];
    uint64_t pieces = 0;
    filled f;
    char uri[32];
    name_of(uri, number);
    kna__document d = { .id = (uint64_t)m.count + 1, .tokens = number, .uri = uri, .tags = "", .attributes = "", .uri_bytes = (uint32_t)strlen(uri) };
    memcpy(d.hash, &number, sizeof number);
    fill(&f, number);
    for (int family = 0; family < FAMILIES; family++) {
        const kna_rows *r = &f.rows[family].rows;
        if (!r->rows) continue;
        parts[d.parts] = place_part(segment, family, (uint64_t)r->rows);
        pieces += write_part(&parts[d.parts++], r, checks + pieces);
    }
    add_body(&d, parts, checks, pieces);
    unfill(&f);
}

/* Of zeros, which are the file's hole. */
static void big_document(void)
{
    static const unsigned char zeros[KNA_PIECE_BYTES];
    kna__part part = place_part(1, TEXT, BIG_ROWS);
    uint64_t pieces = kna__part_pieces(&part), *checks = grown(NULL, pieces * sizeof *checks);
    kna__document d = { .id = (uint64_t)m.count + 1, .tokens = BIG_NUMBER, .uri = "", .tags = "", .attributes = "", .parts = 1 };
    for (uint64_t i = 0; i < pieces; i++) {
        uint64_t left = part.bytes - i * KNA_PIECE_BYTES;
        checks[i] = kna__check(zeros, left < KNA_PIECE_BYTES ? left : KNA_PIECE_BYTES, i);
    }
    add_body(&d, &part, checks, pieces);
    free(checks);
}

static int create_file(const char *name)
{
    char path[200];
    snprintf(path, sizeof path, "%s/%s", home, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0666);
    if (fd < 0) abort();
    return fd;
}

static void write_file(const char *name, const void *bytes, size_t count)
{
    int fd = create_file(name);
    if (write(fd, bytes, count) != (ssize_t)count) abort();
    close(fd);
}

static int64_t make_store(void)
{
    unsigned char body[KNA_COMMIT_BYTES], family_body[KNA_FAMILY_BYTES], manifest[2 * KNA_SLOT_BYTES] = { 0 };
    int64_t big;
    snprintf(home, sizeof home, "%s/home", fresh_place());
    if (mkdir(home, 0777) != 0) abort();
    segment_fd[0] = create_file("rows-000000");
    segment_fd[1] = create_file("rows-000001");
    kna__commit_encode(body, &(kna__commit){ .transaction = 1, .next_document = 1 });
    add_record(KNA_RECORD_COMMIT, body, sizeof body);
    for (uint32_t i = 0; i < FAMILIES; i++) {
        kna__family family = { .id = i, .type = (uint32_t)families[i].type, .dim = (uint64_t)families[i].dim };
        snprintf(family.name, sizeof family.name, "%s", families[i].name);
        kna__family_encode(family_body, &family);
        add_record(KNA_RECORD_FAMILY, family_body, sizeof family_body);
    }
    for (uint32_t number = 20; number < 20 + SMALL; number++) small_document(number, 0);
    for (uint32_t number = 50; number < 50 + SMALL; number++) small_document(number, 1);
    big_document();
    big = m.ids[m.count - 1];
    model_remove(&m, m.count - 1); /* it is looked at by itself */
    for (int i = 0; i < 2; i++) {
        if (ftruncate(segment_fd[i], (off_t)end_of[i]) != 0) abort();
    }
    kna__slot slot = { .uuid = "sixteen letters", .transaction = 2, .generation = 1, .log_bytes = 0 };
    kna__commit commit = { .transaction = 2, .next_document = (uint64_t)big + 1, .documents = (uint64_t)m.count + 1, .next_segment = 2 };
    kna__commit_encode(body, &commit);
    add_record(KNA_RECORD_COMMIT, body, sizeof body);
    slot.log_bytes = log_count;
    slot.log_check = log_check;
    kna__slot_encode(manifest, &slot);
    kna__slot before = slot;
    before.transaction = 1;
    before.log_bytes = kna__record_bytes(KNA_COMMIT_BYTES);
    memcpy(&before.log_check, log_bytes + before.log_bytes - 8, 8);
    kna__slot_encode(manifest + KNA_SLOT_BYTES, &before);
    write_file("log-000001", log_bytes, log_count);
    write_file("manifest", manifest, sizeof manifest);
    write_file("lock", "", 0);
    free(log_bytes);
    return big;
}

static void small_ones(kna_store *store)
{
    for (int i = 0; i < m.count; i++) {
        if (!EXPECT(is_document(store, context, m.ids[i], m.numbers[i]))) return;
    }
}

static void read_them(int64_t big)
{
    kna_store_info info = { .size = sizeof info };
    kna_store_rows rows;
    int64_t owner, place, first, count, damaged;
    kna_store *store = open_store(context, home, 0, 0);
    if (!store) return;
    small_ones(store);
    WELL(context, kna_store_info_get(store, &info));
    EXPECT(info.bytes > (int64_t)BIG_ROWS && info.segments == 2);
    WELL(context, kna_store_extent(store, big, TEXT, &first, &count));
    EXPECT_INT(count, BIG_ROWS);
    EXPECT_INT(kna_store_family_rows(store, TEXT), first + count);
    WELL(context, kna_store_owner(store, TEXT, first + count - 1, &owner, &place));
    EXPECT(owner == big && place == (int64_t)BIG_ROWS - 1);
    EXPECT_INT(kna_store_owner(store, TEXT, first + count, &owner, &place), KNA_ENONE);
    WELL(context, kna_store_rows_of(store, big, TEXT, &rows));
    EXPECT(rows.rows.rows == (int64_t)BIG_ROWS && ((const unsigned char *)rows.rows.data)[BIG_ROWS - 1] == 0);
    off_t at = (off_t)(3 * GIB + 4 * GIB + 300000); /* far behind byte 2^32 of its rows, too */
    if (pwrite(segment_fd[1], "x", 1, at) != 1) abort();
    EXPECT_INT(kna_store_verify(store, &damaged, NULL, NULL), KNA_EDAMAGED);
    EXPECT_INT(damaged, 1);
    EXPECT_INT(kna_store_rows_of(store, big, TEXT, &rows), KNA_EDAMAGED);
    if (pwrite(segment_fd[1], "", 1, at) != 1) abort();
    WELL(context, kna_store_rows_of(store, big, TEXT, &rows));
    kna_store_close(store);
}

static void go_on(int64_t big)
{
    kna_store_info info = { .size = sizeof info };
    struct stat status;
    int64_t id;
    kna_store *store = open_store(context, home, 1, (int64_t)(16 * GIB));
    if (!store) return;
    for (uint32_t number = 100; number < 110; number++) {
        WELL(context, add(store, number, 0, &id));
        model_add(&m, id, number);
    }
    WELL(context, kna_store_commit(store));
    small_ones(store);
    if (fstat(segment_fd[1], &status) != 0) abort();
    EXPECT_THAT(status.st_size > (off_t)end_of[1], "%lld bytes: nothing was added behind", (long long)status.st_size);
    kna_store_close(store);
    store = open_store(context, home, 1, (int64_t)(16 * GIB));
    if (!store) return;
    small_ones(store);
    WELL(context, kna_store_remove(store, big));
    WELL(context, kna_store_commit(store));
    WELL(context, kna_store_info_get(store, &info));
    EXPECT(info.dead_bytes == (int64_t)BIG_ROWS && info.bytes < (int64_t)GIB);
    WELL(context, kna_store_compact(store, 0.5));
    WELL(context, kna_store_info_get(store, &info));
    EXPECT(is_model(store, context, &m));
    EXPECT(info.segments == 1 && info.dead_bytes == 0);
    kna_store_close(store);
    if (fstat(segment_fd[0], &status) != 0) abort();
    EXPECT_INT(status.st_nlink, 0); /* gone from the folder */
}

static void above_4_gib(void)
{
    int64_t big = make_store();
    read_them(big);
    go_on(big);
    close(segment_fd[0]);
    close(segment_fd[1]);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    if (kna_context_new(&context, NULL) != KNA_OK) return 1;
    TEST(above_4_gib);
    drop_place();
    kna_context_free(context);
    return test_end();
}
