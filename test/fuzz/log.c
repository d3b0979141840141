/*
 * log.c - a whole store whose log says anything: opened, read through, compared with its checks, repaired, opened again. The input is
 * a sequence of kind (a byte), length (two) and body, which are framed into a sound chain and end with a commit of what they seem to
 * say; kind 255: bytes as they are, behind which the chain is broken.
 */
#define KNA_MAY_ALLOCATE
#include "fuzz.h"

#include "kna.h"

#include "store/format.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ROWS_BYTES = 70000 };
static char folder[64];
static kna_context *context;

static void remove_store(void)
{
    char command[100];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (folder[0] && system(command) != 0) abort();
    kna_context_free(context);
}

static void put_file(const char *name, const void *bytes, size_t count)
{
    char path[128];
    snprintf(path, sizeof path, "%.60s/%.40s", folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (fd < 0 || write(fd, bytes, count) != (ssize_t)count) abort();
    close(fd);
}

static void begin(void)
{
    static unsigned char rows[ROWS_BYTES];
    if (folder[0]) return;
    snprintf(folder, sizeof folder, "%s/kna-fuzz-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (!mkdtemp(folder) || kna_context_new(&context, NULL) != KNA_OK) abort();
    atexit(remove_store);
    put_file("lock", "", 0);
    put_file("rows-000000", rows, sizeof rows);
    put_file("rows-000003", rows, sizeof rows);
}

static unsigned char *log_bytes;
static size_t log_count;

static uint64_t add(kna__kind kind, const unsigned char *body, size_t count, uint64_t check)
{
    size_t padded = (count + 7) / 8 * 8;
    log_bytes = realloc(log_bytes, log_count + kna__record_bytes(padded));
    if (!log_bytes) abort();
    unsigned char *to = log_bytes + log_count, *at = to + KNA_RECORD_HEAD_BYTES;
    memset(at, 0, padded);
    if (count) memcpy(at, body, count);
    log_count += kna__record_bytes(padded);
    return kna__record_encode(to, kind, at, padded, check);
}

static void write_store(const uint8_t *bytes, size_t count)
{
    unsigned char manifest[2 * KNA_SLOT_BYTES], body[KNA_COMMIT_BYTES];
    kna__slot slot = { .uuid = "fuzz", .transaction = 1, .generation = 1 }, next = { .uuid = "fuzz", .transaction = 2, .generation = 1 };
    kna__commit commit = { .transaction = 1, .next_document = 1 };
    log_count = 0;
    kna__commit_encode(body, &commit);
    uint64_t check = slot.log_check = add(KNA_RECORD_COMMIT, body, sizeof body, 0);
    slot.log_bytes = log_count;
    commit.transaction = 2;
    while (count >= 3) {
        unsigned kind = bytes[0];
        size_t length = bytes[1] | (size_t)bytes[2] << 8;
        uint64_t id;
        bytes += 3;
        count -= 3;
        length = length < count ? length : count;
        if (kind == 255) {
            log_bytes = realloc(log_bytes, log_count + length + 1);
            if (!log_bytes) abort();
            memcpy(log_bytes + log_count, bytes, length);
            log_count += length;
        } else {
            check = add((kna__kind)kind, bytes, length, check);
        }
        if (kind == KNA_RECORD_DOCUMENT && length >= 8) {
            memcpy(&id, bytes, 8);
            commit.documents++;
            commit.next_document = id < INT64_MAX && id >= commit.next_document ? id + 1 : commit.next_document;
        }
        commit.documents -= kind == KNA_RECORD_REMOVE;
        bytes += length;
        count -= length;
    }
    commit.next_segment = 16;
    kna__commit_encode(body, &commit);
    next.log_check = add(KNA_RECORD_COMMIT, body, sizeof body, check);
    next.log_bytes = log_count;
    kna__slot_encode(manifest, &next);
    kna__slot_encode(manifest + KNA_SLOT_BYTES, &slot);
    put_file("log-000001", log_bytes, log_count);
    put_file("manifest", manifest, sizeof manifest);
}

/* Every document, every row of it, every owner. */
static int64_t read_through(kna_store *store)
{
    kna_store_info info = { .size = sizeof info };
    kna_document d = { .id = 0 }, found;
    int64_t count = 0, sum = 0;
    MUST(kna_store_info_get(store, &info) == KNA_OK);
    for (; kna_store_next(store, d.id, &d) == KNA_OK; count++) {
        MUST(kna_store_document(store, d.id, &found) == KNA_OK && found.id == d.id);
        sum += (int64_t)(strlen(d.uri) + strlen(d.tags) + strlen(d.attributes));
        if (d.uri[0]) MUST(kna_store_find(store, d.uri, &found) == KNA_OK);
        for (int family = 0; family < (int)info.families; family++) {
            kna_store_rows rows;
            int64_t first, many, owner, place;
            MUST(kna_store_extent(store, d.id, family, &first, &many) == KNA_OK);
            if (many) MUST(kna_store_owner(store, family, first + many - 1, &owner, &place) == KNA_OK && owner == d.id && place == many - 1);
            if (kna_store_rows_of(store, d.id, family, &rows) != KNA_OK || !rows.rows.rows) continue;
            const unsigned char *last = (const unsigned char *)rows.rows.data + rows.rows.rows * rows.rows.row_stride_bytes;
            sum += *(const unsigned char *)rows.rows.data + last[-1];
        }
    }
    MUST(count == info.documents && sum >= 0);
    (void)kna_store_note_text(store, "model");
    return count;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    kna_store *store = NULL;
    int64_t kept = -1, lost = -1, damaged = -1;
    begin();
    write_store(bytes, count);
    if (kna_store_open(context, &store, folder, NULL) == KNA_OK) {
        read_through(store);
        (void)!kna_store_verify(store, &damaged, NULL, NULL);
    }
    kna_store_close(store);
    int status = kna_store_repair(context, folder, &kept, &lost);
    MUST(status == KNA_OK || status == KNA_ELIMIT);
    if (status == KNA_OK) {
        MUST(kna_store_open(context, &store, folder, NULL) == KNA_OK);
        MUST(read_through(store) == kept);
        MUST(kna_store_verify(store, &damaged, NULL, NULL) == KNA_OK && damaged == 0);
        kna_store_close(store);
    }
    static unsigned char rows[ROWS_BYTES];
    put_file("rows-000000", rows, sizeof rows);
    put_file("rows-000003", rows, sizeof rows);
    return 0;
}
