/*
 * fail_store.c - a short life of a store with the n-th call failing, for every n, of every kind: opening, reading, writing (also half of
 * it, an interruption, a full disk), flushing, mapping, renaming, removing, memory. Every failure is reported; afterwards, with calls
 * that work, the store is as after the last commit that was acknowledged, or the one that was being made.
 */
#include "store_case.h"

#include "../src/store/file.h"

#include <errno.h>

enum { OPEN, OPEN_INTERRUPT, READ, READ_HALF, READ_INTERRUPT, WRITE, HALF, INTERRUPT, FULL, NOTHING, SYNC, SYNC_FULL, SYNC_FOLDER, SIZE, MAP, MAKE,
       RENAME, UNLINK, LOCK, MEMORY, KINDS };
static const char *const kinds[KINDS] = {
    "open", "interrupted open", "read", "half a read", "interrupted read", "write", "half a write", "interrupted write", "full disk", "write of nothing", "flush",
    "flush to a full disk", "flush of the folder", "size", "map", "mkdir", "rename", "unlink", "lock", "memory"
};

static kna__calls system_calls;
static int failing, count, at; /* the at-th call of the kind fails, counted from 1 */
static bool failed;

static bool fails(int kind)
{
    if (kind != failing || ++count != at) return false;
    failed = true;
    errno = kind == FULL || kind == SYNC_FULL                                     ? ENOSPC
            : kind == INTERRUPT || kind == READ_INTERRUPT || kind == OPEN_INTERRUPT ? EINTR
                                                                                    : EIO;
    return true;
}

/* Not a failure: the call is made again, or gone on with. */
static bool is_harmless(int kind)
{
    return kind == OPEN_INTERRUPT || kind == READ_HALF || kind == READ_INTERRUPT || kind == HALF || kind == INTERRUPT;
}

static int call_open(const char *path, int flags)
{
    return fails(OPEN) || fails(OPEN_INTERRUPT) ? -1 : system_calls.open(path, flags);
}
static ssize_t call_read(int fd, void *to, size_t bytes, off_t from)
{
    if (fails(READ) || fails(READ_INTERRUPT)) return -1;
    return system_calls.read_at(fd, to, fails(READ_HALF) && bytes > 1 ? bytes / 2 : bytes, from);
}
static ssize_t call_write(int fd, const void *from, size_t bytes, off_t to)
{
    if (fails(WRITE) || fails(FULL) || fails(INTERRUPT)) return -1;
    if (fails(NOTHING)) return 0;
    return system_calls.write_at(fd, from, fails(HALF) && bytes > 1 ? bytes / 2 : bytes, to);
}
static int call_sync(int fd)
{
    return fails(SYNC) || fails(SYNC_FULL) ? -1 : system_calls.sync(fd);
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
static int call_make(const char *path)
{
    return fails(MAKE) ? -1 : system_calls.make_folder(path);
}
static int call_rename(const char *from, const char *to)
{
    return fails(RENAME) ? -1 : system_calls.rename(from, to);
}
static int call_unlink(const char *path)
{
    return fails(UNLINK) ? -1 : system_calls.unlink(path);
}
static int call_lock(int fd)
{
    return fails(LOCK) ? -1 : system_calls.lock(fd);
}

static void fail_calls(bool on)
{
    kna__file_calls = system_calls;
    if (!on) return;
    kna__file_calls.open = call_open;
    kna__file_calls.read_at = call_read;
    kna__file_calls.write_at = call_write;
    kna__file_calls.sync = call_sync;
    kna__file_calls.sync_folder = call_sync_folder;
    kna__file_calls.size = call_size;
    kna__file_calls.map = call_map;
    kna__file_calls.make_folder = call_make;
    kna__file_calls.rename = call_rename;
    kna__file_calls.unlink = call_unlink;
    kna__file_calls.lock = call_lock;
}

static void *allocate(void *user, size_t bytes)
{
    void *memory = NULL;
    (void)user;
    return fails(MEMORY) || posix_memalign(&memory, 64, bytes) != 0 ? NULL : memory;
}
static void release(void *user, void *memory, size_t bytes)
{
    (void)user, (void)bytes;
    free(memory);
}

/* ---- a life */

static model acknowledged, coming;
static bool committing, created;
static char folder[128];
static kna_context *context;

static bool went(int status)
{
    if (status == KNA_OK) return true;
    EXPECT_THAT(!is_harmless(failing), "%s: %s after an %s", kna_status_name(status), kna_context_message(context), kinds[failing]);
    EXPECT_THAT(failed, "%s: %s with nothing failing", kna_status_name(status), kna_context_message(context));
    EXPECT_THAT(kna_context_message(context)[0] != 0, "%s without a word", kna_status_name(status));
    return false;
}

static bool add_some(kna_store *store, uint32_t first, uint32_t end)
{
    for (uint32_t number = first; number < end; number++) {
        int64_t id;
        int old = model_named(&coming, number);
        if (!went(add(store, number, 1, &id))) return false;
        if (old >= 0) model_remove(&coming, old);
        model_add(&coming, id, number);
    }
    return true;
}

static bool commit(kna_store *store)
{
    committing = true;
    if (!went(kna_store_commit(store))) return false;
    committing = false;
    acknowledged = coming;
    return true;
}

/* A reader beside the writer: it sees what was committed, also after a refresh that failed, opened anew. */
static kna_store *watcher;
static bool watch(void)
{
    if (!watcher && !went(kna_store_open(context, &watcher, folder, NULL))) return false;
    if (!went(kna_store_refresh(watcher, NULL))) {
        kna_store_close(watcher);
        watcher = NULL;
        int kind = failing;
        failing = -1;
        bool there = WELL(context, kna_store_open(context, &watcher, folder, NULL)) && EXPECT(has_ids_of(watcher, &acknowledged));
        failing = kind;
        return there;
    }
    return EXPECT(has_ids_of(watcher, &acknowledged));
}

static void live(kna_store **store)
{
    kna_store_options o = KNA_STORE_OPTIONS;
    int64_t damaged, kept, lost;
    if (!went(kna_store_create(context, folder, families, FAMILIES, NULL))) return;
    created = true;
    o.write = 1;
    o.segment_bytes = 60000;
    if (!went(kna_store_open(context, store, folder, &o))) return;
    if (!watch() || !add_some(*store, 1, 10) || !commit(*store) || !watch()) return;
    if (!went(kna_store_remove(*store, coming.ids[2]))) return;
    model_remove(&coming, 2);
    if (!add_some(*store, 301, 306)) { /* what was added so far can still be dropped, and the store goes on */
        kna_store_rollback(*store);
        coming = acknowledged;
        if (!has_ids_of(*store, &acknowledged)) return;
        EXPECT(add_some(*store, 401, 403));
    }
    if (!commit(*store) || !watch()) return;
    if (!went(kna_store_compact(*store, 0)) || !watch()) return;
    if (!add_some(*store, 500, 503) || !commit(*store) || !watch()) return;
    kna_store_close(watcher);
    watcher = NULL;
    kna_store_close(*store);
    *store = NULL;
    o.write = 0;
    if (!went(kna_store_open(context, store, folder, &o))) return;
    kna_document d = { .id = 0 };
    kna_store_rows rows;
    while (kna_store_next(*store, d.id, &d) == KNA_OK) {
        if (!went(kna_store_rows_of(*store, d.id, KEYS, &rows))) return;
    }
    if (!went(kna_store_verify(*store, &damaged, NULL, NULL))) return;
    kna_store_close(*store);
    *store = NULL;
    if (went(kna_store_repair(context, folder, &kept, &lost))) EXPECT(kept == acknowledged.count && lost == 0);
}

static void look_afterwards(void)
{
    kna_context *fresh = NULL;
    kna_store *store = NULL;
    kna_store_options o = KNA_STORE_OPTIONS;
    int64_t damaged;
    if (kna_context_new(&fresh, NULL) != KNA_OK) abort();
    o.write = at % 2;
    int status = kna_store_open(fresh, &store, folder, &o);
    if (!created) { /* none, or, where the last flush of all failed, a store without documents */
        if (status != KNA_OK) EXPECT_INT(status, access(folder, F_OK) == 0 ? KNA_EFORMAT : KNA_ENONE);
    } else if (WELL(fresh, status)) {
        bool new = committing && has_ids_of(store, &coming);
        EXPECT_THAT(new || has_ids_of(store, &acknowledged), "%s, call %d: other documents", kinds[failing], at);
        is_model(store, fresh, new ? &coming : &acknowledged);
        WELL(fresh, kna_store_verify(store, &damaged, NULL, NULL));
    }
    kna_store_close(store);
    kna_context_free(fresh);
}

/* One life with the at-th call of the kind failing; whether there was one. */
static bool one_life(void)
{
    kna_store *store = NULL;
    kna_context_options o = KNA_CONTEXT_OPTIONS;
    o.allocator = (kna_allocator){ allocate, release, NULL };
    o.threads = 1;
    snprintf(folder, sizeof folder, "%s/store", fresh_place());
    acknowledged.count = coming.count = count = 0;
    committing = created = failed = false;
    int kind = failing;
    failing = -1;
    if (kna_context_new(&context, &o) != KNA_OK) abort();
    failing = kind;
    fail_calls(true);
    live(&store);
    fail_calls(false);
    failing = -1;
    kna_store_close(store);
    kna_store_close(watcher);
    watcher = NULL;
    kna_memory memory;
    kna_context_memory(context, &memory);
    kna_context_free(context);
    failing = kind;
    look_afterwards();
    return failed;
}

static void every_call(void)
{
    for (failing = 0; failing < KINDS; failing++) {
        int step = failing == MEMORY || failing == WRITE ? 1 + (int)test_below(3) : 1; /* the many: another choice each run */
        for (at = 1; at < 3000 && test_state.failures < 10; at += step) {
            if (!one_life()) break;
        }
        EXPECT_THAT(at > 1, "no call of kind %s", kinds[failing]);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    system_calls = kna__file_calls;
    TEST(every_call);
    drop_place();
    return test_end();
}
