/*
 * fault_store.c - single faults of the world around a store, one test each: a flush that is lost for good, a process that forks, one
 * whose first descriptors are closed, a medium that cannot be written, a file that cannot be read, two that create at once, numbers
 * that run out; and what repair makes of a store whose manifest, log or removals are gone.
 */
#include "store_case.h"

#include "../src/store/file.h"
#include "../src/store/format.h"
#include "disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

static kna_context *context, *other;
static char home[100], crashed[100];
static kna__calls system_calls;

static void places(void)
{
    const char *base = fresh_place();
    snprintf(home, sizeof home, "%s/home", base);
    snprintf(crashed, sizeof crashed, "%s/crashed", base);
    if (mkdir(crashed, 0777) != 0) abort();
}

static void create(void)
{
    places();
    WELL(context, kna_store_create(context, home, families, FAMILIES, NULL));
}

/* A store of documents from..end-1, committed; open for writing. */
static kna_store *filled_store(uint32_t from, uint32_t end, int64_t segment_bytes, model *m)
{
    create();
    kna_store *store = open_store(context, home, 1, segment_bytes);
    m->count = 0;
    for (uint32_t number = from; number < end && store; number++) {
        int64_t id;
        WELL(context, add(store, number, 0, &id));
        model_add(m, id, number);
    }
    WELL(context, kna_store_commit(store));
    return store;
}

static void path_of(char path[200], const char *name)
{
    snprintf(path, 200, "%.99s/%.90s", home, name);
}

/* The name in the store's folder that begins so; the first met. */
static void name_like(char name[90], const char *prefix)
{
    DIR *all = opendir(home);
    name[0] = 0;
    for (struct dirent *e = readdir(all); e && !name[0]; e = readdir(all)) {
        if (strncmp(e->d_name, prefix, strlen(prefix)) == 0) snprintf(name, 90, "%.80s", e->d_name);
    }
    closedir(all);
}

static size_t read_whole(const char *name, unsigned char *bytes, size_t most)
{
    char path[200];
    path_of(path, name);
    int fd = open(path, O_RDONLY);
    ssize_t got = fd < 0 ? -1 : pread(fd, bytes, most, 0);
    if (got < 0) abort();
    close(fd);
    return (size_t)got;
}

static void write_whole(const char *name, const unsigned char *bytes, size_t count)
{
    char path[200];
    path_of(path, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (fd < 0 || write(fd, bytes, count) != (ssize_t)count) abort();
    close(fd);
}

static void turn_bit(const char *name, size_t at)
{
    char path[200];
    unsigned char byte;
    path_of(path, name);
    int fd = open(path, O_RDWR);
    if (fd < 0 || pread(fd, &byte, 1, (off_t)at) != 1) abort();
    byte ^= 16;
    if (pwrite(fd, &byte, 1, (off_t)at) != 1) abort();
    close(fd);
}

/* Bytes of all files of rows. */
static int64_t rows_on_disk(void)
{
    DIR *all = opendir(home);
    int64_t bytes = 0;
    for (struct dirent *e = readdir(all); e; e = readdir(all)) {
        char path[200];
        struct stat status;
        path_of(path, e->d_name);
        if (strncmp(e->d_name, "rows-", 5) == 0 && stat(path, &status) == 0) bytes += status.st_size;
    }
    closedir(all);
    return bytes;
}

/* ---- flushes that are lost: the system said so once, and later pretends that all is well (Rebello et al. 2020) */

static void receipt_never_flushed(void)
{
    static model m;
    for (int compacting = 0; compacting < 2; compacting++) {
        kna_store *store = filled_store(1, 12, 0, &m), *left;
        int64_t id;
        kna_store_close(store);
        disk_begin(home, NULL);
        store = open_store(context, home, 1, 0);
        WELL(context, kna_store_remove(store, m.ids[0]));
        model_remove(&m, 0);
        if (compacting) WELL(context, kna_store_commit(store));
        disk_lose_flush("manifest");
        EXPECT_INT(compacting ? kna_store_compact(store, 0) : kna_store_commit(store), KNA_EIO);
        EXPECT_INT(add(store, 20, 0, &id), KNA_EIO); /* until it is opened again */
        kna_store_close(store);
        store = open_store(context, home, 1, 0); /* and that one believes what it reads */
        if (!store) break;
        bool there = has_ids_of(store, &m);
        EXPECT(there);
        disk_pause(true);
        disk_crash(crashed);
        left = open_store(other, crashed, 0, 0);
        if (left) EXPECT(is_model(left, other, &m));
        kna_store_close(left);
        disk_pause(false);
        kna_store_close(store);
        disk_end();
    }
}

/* ---- readers and a receipt that was torn */

static void refresh_after_a_torn_receipt(void)
{
    static model m;
    int changed = -1;
    int64_t id;
    kna_store *store = filled_store(1, 4, 0, &m);
    kna_store_info info = { .size = sizeof info };
    WELL(context, add(store, 4, 0, &id));
    model_add(&m, id, 4);
    WELL(context, kna_store_commit(store));
    WELL(context, kna_store_info_get(store, &info));
    kna_store_close(store);
    turn_bit("manifest", (size_t)(info.transaction % 2) * KNA_SLOT_BYTES + 70);
    kna_store *reader = open_store(other, home, 0, 0);
    EXPECT(is_model(reader, other, &m));
    for (int i = 0; i < 2; i++) {
        WELL(other, kna_store_refresh(reader, &changed)); /* nobody has written: it is where it was */
        EXPECT_INT(changed, 0);
        EXPECT(is_model(reader, other, &m));
    }
    store = open_store(context, home, 1, 0);
    WELL(context, add(store, 5, 0, &id));
    model_add(&m, id, 5);
    WELL(context, kna_store_commit(store));
    WELL(other, kna_store_refresh(reader, &changed));
    EXPECT_INT(changed, 1);
    EXPECT(is_model(reader, other, &m));
    kna_store_close(reader);
    kna_store_close(store);
}

/* A slot as it is while it is being written, seen once: not damage. */
static int torn_reads;
static ssize_t read_torn(int fd, void *to, size_t bytes, off_t at)
{
    ssize_t got = system_calls.read_at(fd, to, bytes, at);
    if (bytes == KNA_SLOT_BYTES && torn_reads > 0 && torn_reads--) ((unsigned char *)to)[100] ^= 1;
    return got;
}

static void slots_being_written(void)
{
    static model m;
    int64_t damaged;
    kna_store *store = filled_store(1, 4, 0, &m), *reader = NULL;
    kna__file_calls.read_at = read_torn;
    for (int torn = 1; torn < 4; torn++) {
        torn_reads = torn;
        WELL(other, kna_store_open(other, &reader, home, NULL));
        torn_reads = torn;
        WELL(other, kna_store_verify(reader, &damaged, NULL, NULL));
        torn_reads = torn;
        WELL(other, kna_store_refresh(reader, NULL));
        EXPECT(is_model(reader, other, &m));
        kna_store_close(reader);
    }
    kna__file_calls.read_at = system_calls.read_at;
    kna_store_close(store);
}

/* ---- two that create at once: the later one is refused and touches nothing */

static int open_after_another(const char *path, int flags)
{
    const char *name = strrchr(path, '/');
    if (name && strcmp(name, "/lock") == 0 && (flags & O_CREAT)) {
        kna__file_calls.open = system_calls.open;
        WELL(other, kna_store_create(other, home, families, 2, NULL));
    }
    return system_calls.open(path, flags);
}

static void two_create(void)
{
    places();
    kna__file_calls.open = open_after_another;
    EXPECT_INT(kna_store_create(context, home, families, FAMILIES, NULL), KNA_EEXISTS);
    kna__file_calls.open = system_calls.open;
    kna_store *store = open_store(context, home, 1, 0);
    if (store) EXPECT_INT(kna_store_family_named(store, families[1].name), 1);
    kna_store_close(store);
}

/* ---- processes */

/* What the child found; every check in it counts. */
static void in_child(void (*body)(void *), void *with)
{
    int status = -1;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        test_state.failures = 0;
        body(with);
        fflush(NULL);
        _exit(test_state.failures ? 9 : 0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) abort();
    EXPECT_THAT(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child ended with status %x", status);
}

static model forked;

static void child_of_a_writer(void *with)
{
    kna_store *store = with, *mine = NULL;
    kna_store_options o = KNA_STORE_OPTIONS;
    int64_t id, damaged;
    EXPECT(is_model(store, context, &forked)); /* what was committed when it forked can be read */
    WELL(context, kna_store_verify(store, &damaged, NULL, NULL));
    EXPECT_INT(add(store, 90, 0, &id), KNA_EINVAL);
    EXPECT(strstr(kna_context_message(context), "forked") != NULL);
    EXPECT_INT(kna_store_remove(store, forked.ids[0]), KNA_EINVAL);
    EXPECT_INT(kna_store_note(store, "x", "y"), KNA_EINVAL);
    EXPECT_INT(kna_store_add_family(store, &families[0]), KNA_EINVAL);
    EXPECT_INT(kna_store_commit(store), KNA_EINVAL);
    EXPECT_INT(kna_store_compact(store, 0), KNA_EINVAL);
    kna_store_rollback(store);
    kna_store_close(store);
    o.write = 1;
    EXPECT_INT(kna_store_open(context, &mine, home, &o), KNA_EBUSY); /* closing gave nothing of the parent's away */
    EXPECT_INT(kna_store_repair(context, home, &id, &damaged), KNA_EBUSY);
    mine = open_store(context, home, 0, 0);
    EXPECT(is_model(mine, context, &forked));
    kna_store_close(mine);
}

static void forks_of_a_writer(void)
{
    kna_store *second = NULL, *store = filled_store(1, 10, 0, &forked);
    kna_store_options o = KNA_STORE_OPTIONS;
    int64_t id;
    o.write = 1;
    WELL(context, add(store, 11, 0, &id)); /* in the middle of a transaction */
    in_child(child_of_a_writer, store);
    EXPECT_INT(kna_store_open(other, &second, home, &o), KNA_EBUSY); /* still ours */
    WELL(context, add(store, 12, 0, &id));
    WELL(context, kna_store_commit(store));
    model_add(&forked, id - 1, 11);
    model_add(&forked, id, 12);
    EXPECT(is_model(store, context, &forked));
    /* A child that lives on has the lock's descriptor, too: closing the store in the parent must free it all the same. */
    int ends[2];
    char one;
    if (pipe(ends) != 0) abort();
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        close(ends[1]);
        _exit(read(ends[0], &one, 1) == 0 ? 0 : 1);
    }
    kna_store_close(store);
    store = open_store(context, home, 1, 0);
    if (store) EXPECT(is_model(store, context, &forked));
    kna_store_close(store);
    close(ends[1]);
    close(ends[0]);
    waitpid(child, NULL, 0);
}

static void child_of_a_reader(void *with)
{
    kna_store *reader = with;
    static model before;
    int64_t id;
    int changed;
    before = forked;
    EXPECT(is_model(reader, other, &before));
    kna_store *store = open_store(context, home, 1, 0); /* a writer of its own */
    WELL(context, kna_store_remove(store, before.ids[1]));
    WELL(context, kna_store_commit(store));
    WELL(context, kna_store_compact(store, 0));
    EXPECT(is_model(reader, other, &before));
    WELL(context, add(store, 30, 0, &id));
    WELL(context, kna_store_commit(store));
    kna_store_close(store);
    model_remove(&before, 1);
    model_add(&before, id, 30);
    WELL(other, kna_store_refresh(reader, &changed));
    EXPECT_INT(changed, 1);
    EXPECT(is_model(reader, other, &before));
    kna_store_close(reader);
}

static void forks_of_a_reader(void)
{
    kna_store *store = filled_store(1, 10, 0, &forked);
    kna_store_close(store);
    kna_store *reader = open_store(other, home, 0, 0);
    in_child(child_of_a_reader, reader);
    EXPECT(is_model(reader, other, &forked)); /* the parent has its snapshot still */
    int changed = 0;
    WELL(other, kna_store_refresh(reader, &changed));
    EXPECT_INT(changed, 1);
    kna_document d;
    EXPECT_INT(kna_store_document(reader, forked.ids[1], &d), KNA_ENONE);
    kna_store_close(reader);
}

/* Without standard input, output and error the next files would be opened as these, and written over by the first printf(). */
static void without_standard_files(void *with)
{
    int64_t id;
    (void)with;
    int kept = fcntl(1, F_DUPFD, 100);
    for (int fd = 0; fd < 3; fd++) close(fd);
    kna_store *store = open_store(context, home, 1, 0);
    for (int i = 0; i < 100; i++) {
        for (int fd = 0; fd < 3; fd++) (void)!write(fd, "a line of a program that knows nothing of stores\n", 49);
    }
    WELL(context, add(store, 50, 0, &id));
    WELL(context, kna_store_commit(store));
    kna_store_close(store);
    dup2(kept, 1);
    dup2(kept, 2);
}

static void low_descriptors(void)
{
    static model m;
    int64_t damaged;
    kna_store_close(filled_store(1, 4, 0, &m));
    in_child(without_standard_files, NULL);
    kna_store *reader = open_store(other, home, 0, 0);
    if (!reader) return;
    WELL(other, kna_store_verify(reader, &damaged, NULL, NULL));
    kna_document d;
    EXPECT_INT(kna_store_find(reader, "doc/50", &d), KNA_OK);
    kna_store_close(reader);
}

/* A reader that dies with its snapshot while the writer compacts: nobody waits for it, nothing of it is left. */
static void reader_dies(void)
{
    static model m;
    kna_store *store = filled_store(1, 40, 30000, &m);
    int ends[2], status;
    char one;
    if (pipe(ends) != 0) abort();
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        kna_store *reader = open_store(other, home, 0, 0);
        if (!is_model(reader, other, &m)) _exit(1);
        if (write(ends[1], "", 1) != 1) _exit(1);
        for (;;) pause();
    }
    if (read(ends[0], &one, 1) != 1) abort();
    for (int i = 0; i < 30; i++) {
        WELL(context, kna_store_remove(store, m.ids[0]));
        model_remove(&m, 0);
    }
    WELL(context, kna_store_commit(store));
    WELL(context, kna_store_compact(store, 0));
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    int64_t id, before = rows_on_disk();
    WELL(context, add(store, 60, 0, &id));
    model_add(&m, id, 60);
    WELL(context, kna_store_commit(store));
    WELL(context, kna_store_compact(store, 0));
    EXPECT(is_model(store, context, &m));
    kna_store_info info = { .size = sizeof info };
    WELL(context, kna_store_info_get(store, &info));
    EXPECT_THAT(rows_on_disk() < info.bytes + 64 * 4 * (int64_t)m.count + 64, "%lld bytes in files, %lld then, %lld of rows",
                (long long)rows_on_disk(), (long long)before, (long long)info.bytes);
    kna_store_close(store);
    close(ends[0]);
    close(ends[1]);
}

/* ---- a medium that cannot be written */

static int refuse(void)
{
    errno = EROFS;
    return -1;
}
static int open_read_only(const char *path, int flags)
{
    return (flags & (O_WRONLY | O_RDWR | O_CREAT)) ? refuse() : system_calls.open(path, flags);
}
static ssize_t write_nothing(int fd, const void *from, size_t bytes, off_t at)
{
    (void)fd, (void)from, (void)bytes, (void)at;
    return refuse();
}
static int refuse_path(const char *path)
{
    (void)path;
    return refuse();
}
static int refuse_paths(const char *from, const char *to)
{
    (void)from, (void)to;
    return refuse();
}

static void read_only_medium(void)
{
    static model m;
    kna_store *store = NULL;
    kna_store_options o = KNA_STORE_OPTIONS;
    int64_t damaged, lost;
    char unmade[160];
    kna_store_close(filled_store(1, 10, 0, &m));
    kna__file_calls.open = open_read_only;
    kna__file_calls.write_at = write_nothing;
    kna__file_calls.make_folder = kna__file_calls.unlink = refuse_path;
    kna__file_calls.rename = refuse_paths;
    kna_store *reader = open_store(other, home, 0, 0);
    EXPECT(is_model(reader, other, &m));
    WELL(other, kna_store_refresh(reader, NULL));
    WELL(other, kna_store_verify(reader, &damaged, NULL, NULL));
    kna_store_close(reader);
    o.write = 1;
    EXPECT_INT(kna_store_open(context, &store, home, &o), KNA_EIO);
    EXPECT_THAT(strstr(kna_context_message(context), home) && strstr(kna_context_message(context), "Read-only"), "%s", kna_context_message(context));
    EXPECT_INT(kna_store_repair(context, home, &damaged, &lost), KNA_EIO);
    EXPECT_THAT(strstr(kna_context_message(context), "Read-only") != NULL, "%s", kna_context_message(context));
    snprintf(unmade, sizeof unmade, "%.99s.new", home);
    EXPECT_INT(kna_store_create(context, unmade, families, 1, NULL), KNA_EIO);
    EXPECT_THAT(strstr(kna_context_message(context), "Read-only") != NULL, "%s", kna_context_message(context));
    kna__file_calls = system_calls;
    char path[200];
    path_of(path, "lock"); /* a copy without it, as a reader may be given */
    if (unlink(path) != 0) abort();
    kna__file_calls.open = open_read_only;
    reader = open_store(other, home, 0, 0);
    EXPECT(is_model(reader, other, &m));
    kna_store_close(reader);
    kna__file_calls = system_calls;
}

/* ---- a medium that cannot be read */

static off_t bad_from;
static bool log_too;
static ssize_t read_bad_sector(int fd, void *to, size_t bytes, off_t at)
{
    char link[64], name[200] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, name, sizeof name - 1) < 0) abort();
    if (strstr(name, log_too ? "/log-" : "/rows-") && at + (off_t)bytes > bad_from && at <= bad_from) {
        errno = EIO;
        return -1;
    }
    return system_calls.read_at(fd, to, bytes, at);
}

static void rows_that_cannot_be_read(void)
{
    static model m;
    kna_store_rows rows;
    int64_t damaged;
    int failures = 0;
    kna_store_close(filled_store(1, 10, 0, &m));
    kna_store *reader = open_store(other, home, 0, 0);
    bad_from = 40;
    log_too = false;
    kna__file_calls.read_at = read_bad_sector;
    for (int i = 0; i < m.count; i++) {
        for (int family = 0; family < FAMILIES; family++) {
            int status = kna_store_rows_of(reader, m.ids[i], family, &rows);
            failures += status != KNA_OK;
            if (status != KNA_OK) EXPECT_INT(status, KNA_EIO);
        }
    }
    EXPECT_INT(failures, 1);
    EXPECT(kna_store_verify(reader, &damaged, NULL, NULL) != KNA_OK);
    EXPECT_INT(damaged, 1);
    kna_store_close(reader);
    log_too = true;
    reader = NULL;
    EXPECT_INT(kna_store_open(other, &reader, home, NULL), KNA_EIO);
    EXPECT_THAT(strstr(kna_context_message(other), "log-") != NULL, "%s", kna_context_message(other));
    kna__file_calls = system_calls;
    reader = open_store(other, home, 0, 0);
    EXPECT(is_model(reader, other, &m));
    kna_store_close(reader);
}

/* Cut short under an open store: the rows that are gone are damaged, which must be found before they are touched in the map. */
static void cut_under_a_reader(void)
{
    static model m;
    char name[90], path[200];
    kna_store_rows rows;
    int damaged = 0;
    kna_store_close(filled_store(1, 10, 0, &m));
    kna_store *reader = open_store(other, home, 0, 0);
    name_like(name, "rows-");
    path_of(path, name);
    if (truncate(path, 4096) != 0) abort();
    for (int i = 0; i < m.count; i++) {
        for (int family = 0; family < FAMILIES; family++) {
            int status = kna_store_rows_of(reader, m.ids[i], family, &rows);
            damaged += status == KNA_EDAMAGED;
            if (status != KNA_OK) EXPECT_INT(status, KNA_EDAMAGED);
        }
    }
    EXPECT(damaged > 5);
    kna_store_close(reader);
}

/* ---- what compaction counts */

/* A compaction that leaves a segment as it is forgets whose its dead rows were; a later one must know that they are there. */
static void forgotten_dead_rows(void)
{
    static model m;
    kna_store *store = filled_store(1, 30, 0, &m);
    kna_store_info info = { .size = sizeof info };
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 6; i++) {
            WELL(context, kna_store_remove(store, m.ids[round]));
            model_remove(&m, round);
        }
        WELL(context, kna_store_commit(store));
        WELL(context, kna_store_compact(store, 0.9));
    }
    EXPECT(is_model(store, context, &m));
    int64_t before = rows_on_disk();
    WELL(context, kna_store_compact(store, 0));
    WELL(context, kna_store_info_get(store, &info));
    EXPECT_THAT(rows_on_disk() < info.bytes + 64 * 4 * (int64_t)m.count + 64, "%lld bytes before, %lld after, %lld of rows", (long long)before,
                (long long)rows_on_disk(), (long long)info.bytes);
    EXPECT(is_model(store, context, &m));
    before = rows_on_disk();
    char name[90], again[90];
    name_like(name, "rows-");
    WELL(context, kna_store_compact(store, 0)); /* nothing to gain: nothing is copied */
    name_like(again, "rows-");
    EXPECT_TEXT(again, name);
    EXPECT_INT(rows_on_disk(), before);
    kna_store_close(store);
}

/* The last number of a segment: said, and the store stays as it is. */
static void segments_run_out(void)
{
    static model m;
    enum { LAST = 1 << 20 };
    unsigned char body[KNA_COMMIT_BYTES], log[KNA_RECORD_HEAD_BYTES + KNA_COMMIT_BYTES + KNA_RECORD_TAIL_BYTES], manifest[2 * KNA_SLOT_BYTES];
    for (int left = 0; left < 3; left++) {
        create();
        kna__slot slot;
        kna_store_info info = { .size = sizeof info };
        kna_store *store = open_store(context, home, 0, 0);
        WELL(context, kna_store_info_get(store, &info));
        kna_store_close(store);
        read_whole("manifest", manifest, sizeof manifest);
        EXPECT_INT(kna__slot_decode(&slot, manifest + info.transaction % 2 * KNA_SLOT_BYTES), KNA_SLOT_VALID);
        kna__commit_encode(body, &(kna__commit){ .transaction = slot.transaction, .next_document = 1, .next_segment = (uint64_t)(LAST - left) });
        slot.log_check = kna__record_encode(log, KNA_RECORD_COMMIT, body, sizeof body, 0);
        slot.log_bytes = sizeof log;
        kna__slot_encode(manifest + info.transaction % 2 * KNA_SLOT_BYTES, &slot);
        write_whole("log-000001", log, sizeof log);
        write_whole("manifest", manifest, sizeof manifest);
        store = open_store(context, home, 1, left == 2 ? 200 : 1 << 20);
        if (!store) return;
        for (int i = 0; i < FAMILIES; i++) WELL(context, kna_store_add_family(store, &families[i]));
        WELL(context, kna_store_commit(store));
        m.count = 0;
        for (uint32_t number = 1; number < 4; number++) { /* of two to four parts, each of which begins a segment where it may have 200 bytes */
            int64_t id;
            int status = add(store, number, 0, &id);
            if (status == KNA_OK) model_add(&m, id, number); else EXPECT_INT(status, KNA_ELIMIT);
        }
        WELL(context, kna_store_commit(store));
        EXPECT_INT(m.count, left == 2 ? 1 : 3 * left);
        int status = kna_store_compact(store, 0);
        if (status != KNA_OK) EXPECT_INT(status, KNA_ELIMIT);
        EXPECT(is_model(store, context, &m));
        WELL(context, kna_store_note(store, "still", "here"));
        WELL(context, kna_store_commit(store));
        kna_store_close(store);
        store = open_store(context, home, 1, 0);
        if (store) EXPECT(is_model(store, context, &m));
        kna_store_close(store);
    }
}

/* ---- repair */

static void repaired(const model *m, bool same_uuid, const unsigned char uuid[16])
{
    static const unsigned char nothing[16];
    int64_t kept, lost, damaged;
    kna_store_info info = { .size = sizeof info };
    if (!WELL(context, kna_store_repair(context, home, &kept, &lost))) return;
    EXPECT_INT(kept, m->count);
    kna_store *store = open_store(context, home, 0, 0);
    if (!store) return;
    EXPECT(is_model(store, context, m));
    WELL(context, kna_store_verify(store, &damaged, NULL, NULL));
    WELL(context, kna_store_info_get(store, &info));
    EXPECT(memcmp(info.uuid, nothing, 16) != 0); /* an index of another store must not pass for one of this */
    EXPECT(!same_uuid == (memcmp(info.uuid, uuid, 16) != 0));
    kna_store_close(store);
}

static void repair_without_a_manifest(void)
{
    static model m;
    unsigned char nonsense[2 * KNA_SLOT_BYTES];
    kna_store_info info = { .size = sizeof info };
    kna_store *store = filled_store(1, 10, 0, &m);
    WELL(context, kna_store_info_get(store, &info));
    kna_store_close(store);
    read_whole("manifest", nonsense, sizeof nonsense);
    nonsense[50] ^= 1;
    nonsense[KNA_SLOT_BYTES + 50] ^= 1;
    write_whole("manifest", nonsense, sizeof nonsense);
    repaired(&m, false, info.uuid);
}

/* The manifest names a log that is not there; another one is. */
static void repair_with_another_log(void)
{
    static model m;
    char from[200], to[200];
    kna_store_info info = { .size = sizeof info };
    kna_store *store = filled_store(1, 10, 0, &m);
    WELL(context, kna_store_info_get(store, &info));
    kna_store_close(store);
    path_of(from, "log-000001");
    path_of(to, "log-000007");
    if (rename(from, to) != 0) abort();
    repaired(&m, true, info.uuid);
    char name[90];
    name_like(name, "log-");
    path_of(from, name);
    if (unlink(from) != 0) abort();
    int64_t kept, lost;
    EXPECT_INT(kna_store_repair(context, home, &kept, &lost), KNA_EDAMAGED);
    EXPECT_THAT(strstr(kna_context_message(context), "log-") != NULL, "%s", kna_context_message(context));
}

/* Where in the log the at-th record of the kind begins. */
static size_t record_at(const unsigned char *log, size_t count, kna__kind kind, int which)
{
    kna__record record;
    for (size_t at = 0; at < count && kna__record_decode(&record, log + at, count - at); at += record.bytes) {
        if (record.kind == kind && which-- == 0) return at;
    }
    abort();
}

/* Removals whose record is damaged: removed is removed, all the same. */
static void repair_of_removals(void)
{
    static model m;
    static unsigned char log[1 << 20];
    for (int which = 0; which < 3; which++) {
        for (size_t byte = 0; byte < 40; byte += 3) {
            int64_t id;
            kna_store_info info = { .size = sizeof info };
            kna_store *store = filled_store(1, 10, 0, &m);
            WELL(context, kna_store_remove(store, m.ids[4]));
            model_remove(&m, 4);
            WELL(context, kna_store_commit(store));
            WELL(context, add(store, m.numbers[0], 1, &id)); /* in the place of the one before */
            uint32_t number = m.numbers[0];
            model_remove(&m, 0);
            model_add(&m, id, number);
            WELL(context, kna_store_commit(store));
            WELL(context, kna_store_remove(store, m.ids[1]));
            model_remove(&m, 1);
            WELL(context, kna_store_commit(store));
            WELL(context, kna_store_info_get(store, &info));
            kna_store_close(store);
            size_t count = read_whole("log-000001", log, sizeof log);
            turn_bit("log-000001", record_at(log, count, KNA_RECORD_REMOVE, which) + byte);
            repaired(&m, true, info.uuid);
        }
    }
}

/* A commit that never got its receipt is no part of the store, also for a repair: nothing of it is taken up. */
static ssize_t write_no_receipt(int fd, const void *from, size_t bytes, off_t at)
{
    errno = EIO;
    return bytes == KNA_SLOT_BYTES ? -1 : system_calls.write_at(fd, from, bytes, at);
}

static void repair_after_a_discarded_commit(void)
{
    static model m;
    unsigned char nonsense[2 * KNA_SLOT_BYTES];
    for (int lose_manifest = 0; lose_manifest < 2; lose_manifest++) {
        kna_store *store = filled_store(1, 10, 0, &m);
        kna_store_info info = { .size = sizeof info };
        int64_t id;
        WELL(context, kna_store_info_get(store, &info));
        for (int i = 0; i < 3; i++) WELL(context, kna_store_remove(store, m.ids[i]));
        WELL(context, add(store, 20, 0, &id));
        kna__file_calls.write_at = write_no_receipt;
        EXPECT_INT(kna_store_commit(store), KNA_EIO);
        kna__file_calls.write_at = system_calls.write_at;
        EXPECT(is_model(store, context, &m));
        kna_store_close(store);
        store = open_store(context, home, 1, 0);
        EXPECT(is_model(store, context, &m));
        kna_store_close(store);
        if (lose_manifest) {
            memset(nonsense, 1, sizeof nonsense);
            memcpy(nonsense, "knastore", 8);
            memcpy(nonsense + KNA_SLOT_BYTES, "knastore", 8);
            write_whole("manifest", nonsense, sizeof nonsense);
        }
        repaired(&m, !lose_manifest, info.uuid);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    system_calls = kna__file_calls;
    signal(SIGPIPE, SIG_IGN);
    if (kna_context_new(&context, NULL) != KNA_OK || kna_context_new(&other, NULL) != KNA_OK) return 1;
    TEST(receipt_never_flushed);
    TEST(refresh_after_a_torn_receipt);
    TEST(slots_being_written);
    TEST(two_create);
    TEST(forks_of_a_writer);
    TEST(forks_of_a_reader);
    TEST(low_descriptors);
    TEST(reader_dies);
    TEST(read_only_medium);
    TEST(rows_that_cannot_be_read);
    TEST(cut_under_a_reader);
    TEST(forgotten_dead_rows);
    TEST(segments_run_out);
    TEST(repair_without_a_manifest);
    TEST(repair_with_another_log);
    TEST(repair_of_removals);
    TEST(repair_after_a_discarded_commit);
    drop_place();
    kna_context_free(context);
    kna_context_free(other);
    return test_end();
}
