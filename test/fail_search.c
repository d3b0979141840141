/*
 * fail_search.c - making an index, opening a search and asking it, with the n-th call of a kind failing, for every n: files opened, read, written
 * (also half of it, an interruption, a full disk), flushed, measured, mapped, renamed, removed; memory. What is asked is answered rightly or
 * with an error that says why; an index that could not be made leaves the one before; and with calls that work everything is as it was.
 */
#include "search_case.h"

#include "../src/store/file.h"

#include <errno.h>

enum { OPEN, READ, WRITE, HALF, INTERRUPT, FULL, SYNC, SYNC_FOLDER, SIZE, MAP, RENAME, UNLINK, MEMORY, WAYS };
static const char *const ways[WAYS] = {
    "open", "read",   "write",  "half a write", "interrupted write", "full disk", "flush", "flush of the folder", "size",
    "map",  "rename", "unlink", "memory"
};

static kna__calls system_calls;
static int failing = -1, count, at; /* the at-th call of the kind fails, counted from 1 */
static bool failed;

static bool fails(int way)
{
    if (way != failing || ++count != at) return false;
    failed = true;
    errno = way == FULL ? ENOSPC : way == INTERRUPT ? EINTR : EIO;
    return true;
}

static int call_open(const char *path, int flags)
{
    return fails(OPEN) ? -1 : system_calls.open(path, flags);
}

static ssize_t call_read(int fd, void *to, size_t bytes, off_t from)
{
    return fails(READ) ? -1 : system_calls.read_at(fd, to, bytes, from);
}

static ssize_t call_write(int fd, const void *from, size_t bytes, off_t to)
{
    if (fails(WRITE) || fails(FULL) || fails(INTERRUPT)) return -1;
    return system_calls.write_at(fd, from, fails(HALF) && bytes > 1 ? bytes / 2 : bytes, to);
}

static int call_sync(int fd)
{
    return fails(SYNC) ? -1 : system_calls.sync(fd);
}

static int call_sync_folder(int fd)
{
    return fails(SYNC_FOLDER) ? -1 : system_calls.sync_folder(fd);
}

static off_t call_size(int fd)
{
    return fails(SIZE) ? -1 : system_calls.size(fd);
}

static void *call_map(int fd, size_t bytes)
{
    return fails(MAP) ? NULL : system_calls.map(fd, bytes);
}

static int call_rename(const char *from, const char *to)
{
    return fails(RENAME) ? -1 : system_calls.rename(from, to);
}

static int call_unlink(const char *path)
{
    return fails(UNLINK) ? -1 : system_calls.unlink(path);
}

static void watch_calls(void)
{
    system_calls = kna__file_calls;
    kna__file_calls.open = call_open;
    kna__file_calls.read_at = call_read;
    kna__file_calls.write_at = call_write;
    kna__file_calls.sync = call_sync;
    kna__file_calls.sync_folder = call_sync_folder;
    kna__file_calls.size = call_size;
    kna__file_calls.map = call_map;
    kna__file_calls.rename = call_rename;
    kna__file_calls.unlink = call_unlink;
}

static size_t held;

static void *allocate(void *user, size_t bytes)
{
    void *memory = NULL;
    (void)user;
    if (fails(MEMORY) || posix_memalign(&memory, 64, bytes) != 0) return NULL;
    memset(memory, 0xff, bytes); /* nobody may count on zeros */
    held += bytes;
    return memory;
}

static void release(void *user, void *memory, size_t bytes)
{
    (void)user;
    held -= bytes;
    free(memory);
}

/* ---- what is done */

static search_case c;
static float *q;
static answer want; /* by rows alone */
static int kind;    /* of the index */
static long answered, refused, made, indexed;

static bool went(int status)
{
    const char *message = kna_context_message(c.context);
    if (status == KNA_OK) return true;
    EXPECT_THAT(failed, "%s: %s with nothing failing", kna_status_name(status), message);
    EXPECT_THAT(message[0] != 0, "%s without a word", kna_status_name(status));
    EXPECT_THAT(status != KNA_ENOMEM || strstr(message, "memory"), "%s for want of memory", message);
    EXPECT_THAT((status == KNA_ENOMEM) == (failing == MEMORY), "%s (%s) where %s failed", kna_status_name(status), message,
                ways[failing]);
    refused++;
    return false;
}

static void ask(bool calls_work)
{
    kna_search *s = NULL;
    kna_search_options o = KNA_SEARCH_OPTIONS;
    answer a;
    o.metric = c.metric;
    bool well = went(kna_search_open(c.context, &s, c.store, 0, &o));
    EXPECT(well == (s != NULL));
    if (well && went(search_ask(s, &c, q, &a))) {
        answered++;
        EXPECT(search_same(&a, &want));
        EXPECT(!calls_work || a.report.index == kind);
        indexed += a.report.index == kind;
    }
    kna_search_close(s);
}

static void make(void)
{
    kna_store_index_options o = KNA_STORE_INDEX_OPTIONS;
    o.metric = c.metric;
    o.kind = kind;
    o.lists = kind == KNA_SEARCH_CLUSTERS ? 12 : 0; /* a few: each is written by itself, and every write fails once */
    made += went(kna_store_index(c.store, 0, &o));
}

/* The store as one that has read no row yet: a read that fails, and goes well when it is tried again, must not pass for a row. */
static void forget_reads(void)
{
    if (failing != READ) return;
    failing = -1;
    kna_store_close(c.store);
    c.store = open_store(c.context, c.folder, 1, 0);
    failing = READ;
}

/* One way of failing, from the first call on until none is left to fail. */
static void every_call_of(int way)
{
    failing = way;
    for (at = 1;; at++) {
        count = 0;
        failed = false;
        kna_context_trim(c.context);
        forget_reads();
        ask(false);
        forget_reads();
        make();
        ask(false);
        failing = -1;
        bool met = failed;
        ask(true);
        failing = way;
        if (!met || test_state.failures > 5) break;
    }
    EXPECT_THAT(at > 1, "no %s was met", ways[way]);
    failing = -1;
}

static void every_call(int of)
{
    kna_context_options o = KNA_CONTEXT_OPTIONS;
    kna_context *context = NULL;
    o.allocator = (kna_allocator){ allocate, release, NULL };
    o.threads = 1;
    if (!EXPECT_INT(kna_context_new(&context, &o), KNA_OK)) return;
    c = search_begin(context, KNA_F16, 20, KNA_L2);
    search_add(&c, 200, NORMAL);
    search_add(&c, 4500, NORMAL);
    kind = of;
    answered = indexed = made = refused = 0;
    search_index(&c, kind);
    search_add(&c, 30, NORMAL);
    q = search_queries(&c, ANSWER_QUERIES, NORMAL);
    kna_search *s = search_open(&c, c.store, KNA_SEARCH_NONE);
    WELL(context, search_ask(s, &c, q, &want));
    kna_search_close(s);
    watch_calls();
    for (int way = 0; way < WAYS; way++) every_call_of(way);
    kna__file_calls = system_calls;
    printf("  %ld answers, %ld by index; %ld indexes made; %ld calls refused\n", answered, indexed, made, refused);
    EXPECT(answered > indexed && indexed > 0 && made > 0 && refused > WAYS);
    free(q);
    search_end(&c);
    kna_context_free(context);
    EXPECT_INT(held, 0);
}

static void flat(void)
{
    every_call(KNA_SEARCH_FLAT);
}

static void clusters(void)
{
    every_call(KNA_SEARCH_CLUSTERS);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(flat);
    TEST(clusters);
    return test_end();
}
