/*
 * open.c - make, open and refresh a store; and find out what was committed.
 *
 * A commit is three flushes: the rows, the log with its commit record, and a slot of the manifest, which is the receipt. The slot
 * names the log and how far it goes; what lies behind that does not exist, and the next writer writes over it. Only where a slot is not
 * sound the log's chain of checks is followed further: the receipt was torn, or turned bad later, and then a whole commit behind the
 * sound one (whose rows were flushed before it was written) is the one it stood for. A log that ends before the receipt says is damaged,
 * and that is told.
 */
#include "store.h"

#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <errno.h>
#include <unistd.h>

#define MANIFEST "manifest"
#define LOCK     "lock"
enum { DEFAULT_SEGMENT_BYTES = 1 << 30, TRIES = 20 };

void kna__log_name(char name[40], uint64_t generation)
{
    snprintf(name, 40, "log-%06llu", (unsigned long long)generation);
}

void kna__segment_name(char name[40], uint32_t segment)
{
    snprintf(name, 40, "rows-%06u", segment);
}

int kna__store_status(const kna_store *s)
{
    return s->broken ? KNA_FAIL(s->context, s->broken, "store: an earlier call failed on its files; open it again") : KNA_OK;
}

/* ---- the manifest */

static int slot_fault(kna_context *context, const int faults[2])
{
    for (int i = 0; i < 2; i++) {
        if (faults[i] == KNA_SLOT_VERSION) {
            return KNA_FAIL(context, KNA_EFORMAT, "manifest: a store of another version than %d", KNA_FORMAT_VERSION);
        }
        if (faults[i] == KNA_SLOT_ORDER) {
            return KNA_FAIL(context, KNA_EFORMAT, "manifest: a store of a big-endian machine");
        }
    }
    bool foreign = faults[0] != KNA_SLOT_DAMAGED && faults[1] != KNA_SLOT_DAMAGED;
    return foreign ? KNA_FAIL(context, KNA_EFORMAT, "manifest: not a store's")
                   : KNA_FAIL(context, KNA_EDAMAGED, "manifest: neither slot is as it was written");
}

int kna__slots_read(kna_context *context, const kna__file *manifest, kna__slot *newest, bool *one_is_bad)
{
    unsigned char bytes[KNA_SLOT_BYTES];
    kna__slot slots[2];
    int faults[2];
    for (int i = 0; i < 2; i++) {
        KNA_TRY(kna__file_read(manifest, bytes, sizeof bytes, (uint64_t)i * KNA_SLOT_BYTES));
        faults[i] = kna__slot_decode(&slots[i], bytes);
        if (faults[i] == KNA_SLOT_VALID && slots[i].transaction % 2 != (uint64_t)i) {
            faults[i] = KNA_SLOT_DAMAGED;
        }
    }
    if (faults[0] != KNA_SLOT_VALID && faults[1] != KNA_SLOT_VALID) {
        return slot_fault(context, faults);
    }
    int best = faults[1] == KNA_SLOT_VALID && (faults[0] != KNA_SLOT_VALID || slots[1].transaction > slots[0].transaction);
    *newest = slots[best];
    *one_is_bad = faults[!best] != KNA_SLOT_VALID && !(faults[!best] == KNA_SLOT_EMPTY && newest->transaction == 1);
    return KNA_OK;
}

int kna__slots_look(kna_context *context, const kna__file *manifest, kna__slot *newest, bool *one_is_bad)
{
    int status = KNA_OK;
    for (int i = 0; i < TRIES; i++) {
        status = kna__slots_read(context, manifest, newest, one_is_bad);
        if (status != KNA_EDAMAGED && (status != KNA_OK || !*one_is_bad)) {
            break;
        }
        usleep(500);
    }
    return status;
}

int kna__slot_write(const kna__file *manifest, const kna__slot *slot)
{
    unsigned char bytes[KNA_SLOT_BYTES];
    kna__slot_encode(bytes, slot);
    KNA_TRY(kna__file_write(manifest, bytes, sizeof bytes, slot->transaction % 2 * KNA_SLOT_BYTES));
    return kna__file_sync(manifest);
}

/* ---- making one */

static int check_options(kna_context *context, const kna_store_options *o)
{
    if (o->size < sizeof *o) {
        return KNA_FAIL(context, KNA_EINVAL, "options: size %zu is below %zu: set it with KNA_STORE_OPTIONS", o->size, sizeof *o);
    }
    if (o->segment_bytes < 0) {
        return KNA_FAIL(context, KNA_EINVAL, "segment_bytes: %lld must be at least 0", (long long)o->segment_bytes);
    }
    return KNA_OK;
}

static int is_folder(kna_context *context, const char *folder)
{
    struct stat status;
    if (stat(folder, &status) != 0) {
        return KNA_FAIL(context, KNA_ENONE, "%.180s: %s", folder, strerror(errno));
    }
    return S_ISDIR(status.st_mode) ? KNA_OK : KNA_FAIL(context, KNA_EFORMAT, "%.180s: not a folder", folder);
}

static bool found_one(void *user, const char *name)
{
    (void)name;
    *(bool *)user = true;
    return false;
}

/* A folder that is new, or has nothing in it. */
static int claim_folder(kna_context *context, const char *folder)
{
    if (kna__file_calls.make_folder(folder) == 0) {
        char parent[KNA_PATH_BYTES];
        KNA_TRY(kna__path(parent, context, folder, ".."));
        return kna__folder_sync(context, parent); /* the folder's own name is there after a crash, too */
    }
    if (errno != EEXIST) {
        return KNA_FAIL(context, KNA_EIO, "%.180s: making the folder: %s", folder, strerror(errno));
    }
    KNA_TRY(is_folder(context, folder));
    bool full = false;
    kna__folder_list(folder, found_one, &full);
    return full ? KNA_FAIL(context, KNA_EEXISTS, "%.180s: not an empty folder", folder) : KNA_OK;
}

/* The log of a new store: nothing but its first commit. */
static int write_first_log(kna_context *context, const char *folder, kna__slot *slot)
{
    unsigned char body[KNA_COMMIT_BYTES], record[KNA_RECORD_HEAD_BYTES + KNA_COMMIT_BYTES + KNA_RECORD_TAIL_BYTES];
    char name[40];
    kna__file log;
    kna__commit_encode(body, &(kna__commit){ .transaction = slot->transaction, .next_document = 1 });
    slot->log_check = kna__record_encode(record, KNA_RECORD_COMMIT, body, sizeof body, 0);
    slot->log_bytes = sizeof record;
    kna__log_name(name, slot->generation);
    KNA_TRY(kna__file_open(&log, context, folder, name, KNA_FILE_CREATE));
    int status = kna__file_write(&log, record, sizeof record, 0);
    status = status == KNA_OK ? kna__file_sync(&log) : status;
    kna__file_close(&log);
    return status;
}

/* The manifest comes last and whole: written under another name, then renamed. */
static int write_manifest(kna_context *context, const char *folder, const kna__slot *slot)
{
    char from[KNA_PATH_BYTES], to[KNA_PATH_BYTES];
    unsigned char empty[KNA_SLOT_BYTES] = { 0 };
    kna__file manifest;
    KNA_TRY(kna__path(from, context, folder, MANIFEST ".new"));
    KNA_TRY(kna__path(to, context, folder, MANIFEST));
    KNA_TRY(kna__file_open(&manifest, context, folder, MANIFEST ".new", KNA_FILE_CREATE));
    int status = kna__file_write(&manifest, empty, sizeof empty, (slot->transaction + 1) % 2 * KNA_SLOT_BYTES);
    status = status == KNA_OK ? kna__slot_write(&manifest, slot) : status;
    kna__file_close(&manifest);
    KNA_TRY(status);
    KNA_TRY(kna__folder_sync(context, folder));
    if (kna__file_calls.rename(from, to) != 0) {
        return KNA_FAIL(context, KNA_EIO, "%.180s: renaming: %s", from, strerror(errno));
    }
    return kna__folder_sync(context, folder);
}

int kna__uuid_make(kna_context *context, unsigned char uuid[16])
{
    return getrandom(uuid, 16, 0) == 16 ? KNA_OK
                                        : KNA_FAIL(context, KNA_EIO, "random numbers for the store's uuid: %s", strerror(errno));
}

static int make_files(kna_context *context, const char *folder)
{
    kna__slot slot = { .transaction = 1, .generation = 1 };
    KNA_TRY(kna__uuid_make(context, slot.uuid));
    KNA_TRY(write_first_log(context, folder, &slot));
    return write_manifest(context, folder, &slot);
}

/* Of two that create at once one makes this file; the other has then made nothing, and must remove nothing. */
static int make_lock(kna_context *context, const char *folder)
{
    kna__file lock;
    KNA_TRY(kna__file_open(&lock, context, folder, LOCK, KNA_FILE_CREATE));
    kna__file_close(&lock);
    return KNA_OK;
}

static void remove_files(kna_context *context, const char *folder)
{
    static const char *const names[] = { MANIFEST, MANIFEST ".new", LOCK, "log-000001" };
    char message[KNA_MESSAGE_BYTES];
    memcpy(message, context->message, sizeof message); /* what went wrong first is what matters */
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        (void)kna__file_unlink(context, folder, names[i]);
    }
    memcpy(context->message, message, sizeof message);
}

int kna_store_create(kna_context *context, const char *folder, const kna_family *families, int count,
                     const kna_store_options *options)
{
    static const kna_store_options none = KNA_STORE_OPTIONS;
    const kna_store_options *o = options ? options : &none;
    kna_store *store = NULL;
    context->message[0] = 0;
    if (!folder || count < 0 || (count && !families)) {
        return KNA_FAIL(context, KNA_EINVAL, "store: no folder, or no families");
    }
    KNA_TRY(check_options(context, o));
    KNA_TRY(claim_folder(context, folder));
    KNA_TRY(make_lock(context, folder));
    int status = make_files(context, folder);
    if (status == KNA_OK) {
        kna_store_options write = *o;
        write.write = 1;
        write.model = NULL;
        status = kna_store_open(context, &store, folder, &write);
    }
    for (int i = 0; i < count && status == KNA_OK; i++) {
        status = kna_store_add_family(store, &families[i]);
    }
    if (status == KNA_OK && o->model) {
        status = kna_store_note(store, "model", o->model);
    }
    if (status == KNA_OK) {
        status = kna_store_commit(store);
    }
    kna_store_close(store);
    if (status != KNA_OK) {
        remove_files(context, folder);
    }
    return status;
}

/* ---- what was committed */

bool kna__chain_next(kna__chain *chain, kna__record *record)
{
    chain->at += chain->bytes;
    chain->bytes = 0;
    if (chain->at >= chain->end || !kna__record_decode(record, chain->log + chain->at, chain->end - chain->at) ||
        record->check_before != chain->check) {
        return false;
    }
    chain->bytes = record->bytes;
    chain->check = record->check;
    return true;
}

/* How far the log's chain goes from a sound place on: up to the last commit record found. */
static void follow_chain(const unsigned char *log, uint64_t bytes, kna__slot *slot)
{
    kna__chain chain = { .log = log, .at = slot->log_bytes, .end = bytes, .check = slot->log_check };
    kna__record record;
    while (kna__chain_next(&chain, &record)) {
        kna__commit commit;
        if (record.kind == KNA_RECORD_COMMIT && kna__commit_decode(&commit, record.body, record.body_bytes) &&
            commit.transaction == slot->transaction + 1) {
            slot->log_bytes = chain.at + chain.bytes;
            slot->log_check = chain.check;
            slot->transaction++;
        }
    }
}

int kna__recover(kna_store *s, kna__slot *slot)
{
    uint64_t size;
    const void *map;
    KNA_TRY(kna__file_size(&s->log, &size));
    if (size <= slot->log_bytes) {
        return KNA_OK;
    }
    KNA_TRY(kna__file_touch(&s->log, s->slot.log_bytes, size));
    KNA_TRY(kna__file_map(&s->log, &map, (size_t)size));
    follow_chain(map, size, slot);
    kna__file_unmap(map, (size_t)size);
    return KNA_OK;
}

static int map_segment(kna_store *s, uint32_t number)
{
    kna__segment *segment = kna__list_at(&s->segments, number);
    const void *map = NULL;
    char name[40];
    if (segment->end <= segment->mapped) {
        return KNA_OK;
    }
    if (segment->file.fd < 0) {
        kna__segment_name(name, number);
        KNA_TRY(kna__file_open(&segment->file, s->context, s->folder, name, s->write ? KNA_FILE_WRITE : KNA_FILE_READ));
    }
    KNA_TRY(kna__file_map(&segment->file, &map, (size_t)segment->end));
    kna__file_unmap(segment->map, (size_t)segment->mapped);
    segment->map = map;
    segment->mapped = segment->end;
    return KNA_OK;
}

int kna__store_map(kna_store *s)
{
    const void *map = NULL;
    if (s->slot.log_bytes > s->log_mapped) {
        KNA_TRY(kna__file_touch(&s->log, s->log_mapped, s->slot.log_bytes));
        KNA_TRY(kna__file_map(&s->log, &map, (size_t)s->slot.log_bytes));
        kna__file_unmap(s->log_map, (size_t)s->log_mapped);
        s->log_map = map;
        s->log_mapped = s->slot.log_bytes;
    }
    for (uint64_t i = 0; i < s->segments.count; i++) {
        KNA_TRY(map_segment(s, (uint32_t)i));
    }
    return KNA_OK;
}

int kna__chain_whole(const kna_store *s, const kna__chain *chain)
{
    return chain->at >= chain->end ? KNA_OK
                                   : KNA_FAIL(s->context, KNA_EDAMAGED, "%s: byte %llu: not the record that was written",
                                              s->log.name, (unsigned long long)chain->at);
}

/* The log from `at` on into the tables: a sound chain to exactly where the slot says. */
static int replay(kna_store *s, uint64_t at, uint64_t check)
{
    kna__chain chain = { .log = s->log_map, .at = at, .end = s->slot.log_bytes, .check = check };
    kna__record record;
    while (kna__chain_next(&chain, &record)) {
        KNA_TRY(kna__tables_apply(s, &record, chain.at));
        if (record.kind == KNA_RECORD_COMMIT) {
            kna__tables_commit(s);
        }
    }
    KNA_TRY(kna__chain_whole(s, &chain));
    if (chain.check != s->slot.log_check || s->last.transaction != s->slot.transaction) {
        return KNA_FAIL(s->context, KNA_EDAMAGED, "%s: not the one that the manifest speaks of", s->log.name);
    }
    return KNA_OK;
}

static void close_log(kna_store *s)
{
    kna__file_unmap(s->log_map, (size_t)s->log_mapped);
    kna__file_close(&s->log);
    s->log_map = NULL;
    s->log_mapped = 0;
}

/* Whether somebody is writing; a reader then leaves what lies behind the receipt alone. */
static bool writer_is_there(kna_store *s)
{
    kna__file lock;
    if (kna__file_open(&lock, s->context, s->folder, LOCK, KNA_FILE_READ) != KNA_OK) {
        return false;
    }
    bool there = kna__file_calls.is_locked(lock.fd);
    kna__file_close(&lock);
    return there;
}

/*
 * A process that was killed may have left what it wrote in the system's memory: a receipt that can be read and is on no disk. Before
 * anything is built on it, it is flushed; and written again, because where a flush of it has failed before, the system takes it for
 * flushed (Rebello et al. 2020), and because a crash may have kept it back.
 */
static int settle(kna_store *s)
{
    static const unsigned char nothing[KNA_RECORD_HEAD_BYTES];
    uint64_t size;
    KNA_TRY(kna__file_size(&s->log, &size));
    if (size > s->slot.log_bytes) { /* a commit without a receipt must not be taken for the one of a later slot that is torn */
        uint64_t more = size - s->slot.log_bytes;
        KNA_TRY(kna__file_write(&s->log, nothing, (size_t)(more < sizeof nothing ? more : sizeof nothing), s->slot.log_bytes));
    }
    KNA_TRY(kna__file_sync(&s->log));
    KNA_TRY(kna__folder_sync(s->context, s->folder));
    return kna__slot_write(&s->manifest, &s->slot);
}

/* One try: the newest slot, its log, its segments. *again: files went while we looked, since a writer compacts. */
static int load_once(kna_store *s, bool *again)
{
    bool one_is_bad = false;
    char name[40];
    *again = false;
    int status = kna__slots_read(s->context, &s->manifest, &s->slot, &one_is_bad);
    if (status != KNA_OK || (one_is_bad && !s->write && writer_is_there(s))) {
        *again = status == KNA_EDAMAGED || status == KNA_OK; /* a slot as it was being written */
        if (status != KNA_OK) {
            return status;
        }
    }
    kna__log_name(name, s->slot.generation);
    status = kna__file_open(&s->log, s->context, s->folder, name, s->write ? KNA_FILE_WRITE : KNA_FILE_READ);
    if (status == KNA_ENONE) {
        *again = true;
        return KNA_FAIL(s->context, KNA_EDAMAGED, "%s: there is no such file", name);
    }
    KNA_TRY(status);
    if (one_is_bad && (s->write || !writer_is_there(s))) {
        KNA_TRY(kna__recover(s, &s->slot));
        if (!s->write && writer_is_there(s)) { /* since just now: what was found may be a commit that it is making */
            *again = true;
            return KNA_FAIL(s->context, KNA_EDAMAGED, "%s: written to while it was read", name);
        }
    }
    KNA_TRY(kna__store_map(s));
    KNA_TRY(replay(s, 0, 0));
    status = kna__store_map(s);
    *again = status == KNA_ENONE;
    KNA_TRY(status == KNA_ENONE ? KNA_EDAMAGED : status);
    return s->write ? settle(s) : KNA_OK;
}

static int load(kna_store *s)
{
    int status = KNA_OK;
    bool again = true;
    for (int i = 0; i < TRIES && again; i++) {
        if (i) {
            kna__store_leave(s);
            usleep(500);
        }
        status = load_once(s, &again);
        if (s->write || status == KNA_OK) {
            return status;
        }
    }
    return status;
}

/* ---- opening */

/* The one writer; who has it is told. */
static int take_lock(kna_store *s)
{
    char holder[32] = "";
    int status = kna__file_open(&s->lock, s->context, s->folder, LOCK, KNA_FILE_WRITE);
    if (status == KNA_ENONE) {
        status = kna__file_open(&s->lock, s->context, s->folder, LOCK, KNA_FILE_CREATE);
    }
    KNA_TRY(status);
    if (kna__file_calls.lock(s->lock.fd) != 0) {
        if (errno != EAGAIN && errno != EACCES) {
            return KNA_FAIL(s->context, KNA_EIO, "%.180s: locking: %s", s->folder, strerror(errno));
        }
        ssize_t got = kna__file_calls.read_at(s->lock.fd, holder, sizeof holder - 1, 0);
        holder[got > 0 ? got : 0] = 0;
        holder[strcspn(holder, "\n")] = 0;
        return KNA_FAIL(s->context, KNA_EBUSY, "%.180s: process %s is writing to it", s->folder, holder[0] ? holder : "unknown");
    }
    s->locked = true;
    int length = snprintf(holder, sizeof holder, "%-20lld\n", (long long)getpid());
    return kna__file_write(&s->lock, holder, (size_t)length, 0);
}

static int check_model(kna_store *s, const char *model)
{
    const char *kept = kna_store_note_text(s, "model");
    if (!model || (kept && strcmp(kept, model) == 0)) {
        return KNA_OK;
    }
    return KNA_FAIL(s->context, KNA_EFORMAT, "store: made for model %.80s, asked for %.80s", kept ? kept : "none", model);
}

static int open_files(kna_store *s)
{
    KNA_TRY(is_folder(s->context, s->folder));
    int status = kna__file_open(&s->manifest, s->context, s->folder, MANIFEST, s->write ? KNA_FILE_WRITE : KNA_FILE_READ);
    if (status == KNA_ENONE) {
        return KNA_FAIL(s->context, KNA_EFORMAT, "%.180s: not a store: it has no manifest", s->folder);
    }
    KNA_TRY(status);
    if (!s->write) {
        return KNA_OK;
    }
    KNA_TRY(take_lock(s));
    s->out = kna__allocate(&s->context->heap, KNA_OUT_BYTES);
    return s->out ? KNA_OK : KNA_FAIL(s->context, KNA_ENOMEM, "store: a buffer of %d bytes", KNA_OUT_BYTES);
}

static kna_store *new_store(kna_context *context, const char *folder, const kna_store_options *o)
{
    size_t length = strlen(folder) + 1;
    kna_store *s = kna__allocate(&context->heap, sizeof *s);
    char *name = kna__allocate(&context->heap, length);
    if (!s || !name) {
        kna__release(&context->heap, s, sizeof *s);
        kna__release(&context->heap, name, length);
        return NULL;
    }
    memcpy(name, folder, length);
    *s = (kna_store){ .context = context, .folder = name, .write = o->write != 0, .process = getpid() };
    s->lock.fd = s->manifest.fd = s->log.fd = -1;
    s->segment_bytes = o->segment_bytes ? (uint64_t)o->segment_bytes : DEFAULT_SEGMENT_BYTES;
    kna__tables_init(s);
    return s;
}

int kna__store_begin(kna_context *context, kna_store **store, const char *folder, const kna_store_options *o)
{
    *store = new_store(context, folder, o);
    if (!*store) {
        return KNA_FAIL(context, KNA_ENOMEM, "store: out of memory");
    }
    return open_files(*store);
}

int kna_store_open(kna_context *context, kna_store **store, const char *folder, const kna_store_options *options)
{
    static const kna_store_options none = KNA_STORE_OPTIONS;
    const kna_store_options *o = options ? options : &none;
    *store = NULL;
    context->message[0] = 0;
    if (!folder) {
        return KNA_FAIL(context, KNA_EINVAL, "store: no folder");
    }
    KNA_TRY(check_options(context, o));
    int status = kna__store_begin(context, store, folder, o);
    status = status == KNA_OK ? load(*store) : status;
    status = status == KNA_OK ? check_model(*store, o->model) : status;
    if (status != KNA_OK) {
        kna_store_close(*store);
        *store = NULL;
        return status;
    }
    if (o->write) {
        kna__out_begin(*store);
        kna__sweep(*store);
        (*store)->pending_check = (*store)->slot.log_check;
    }
    return KNA_OK;
}

void kna_store_close(kna_store *s)
{
    if (!s) {
        return;
    }
    kna_context *context = s->context;
    kna__tables_free(s);
    close_log(s);
    kna__file_close(&s->manifest);
    if (s->locked && s->process == getpid()) { /* a child that closes what it inherited leaves its parent the lock */
        (void)kna__file_calls.unlock(s->lock.fd);
    }
    kna__file_close(&s->lock);
    kna__release(&context->heap, s->out, s->out ? KNA_OUT_BYTES : 0);
    kna__release(&context->heap, s->folder, strlen(s->folder) + 1);
    kna__release(&context->heap, s, sizeof *s);
}

/* ---- going on */

void kna__store_leave(kna_store *s)
{
    kna__tables_free(s);
    close_log(s);
    s->visible = s->visible_parts = s->visible_families = s->visible_notes = 0;
    s->removed = s->live_bytes = s->dead_bytes = 0;
    kna__tables_init(s);
}

int kna__store_reload(kna_store *s)
{
    kna__store_leave(s);
    return load(s);
}

int kna_store_refresh(kna_store *s, int *changed)
{
    bool one_is_bad;
    kna__slot newest, before = s->slot;
    s->context->message[0] = 0;
    if (changed) {
        *changed = 0;
    }
    KNA_TRY(kna__store_status(s));
    if (s->write) {
        return KNA_OK; /* nobody else writes */
    }
    int status = kna__slots_read(s->context, &s->manifest, &newest, &one_is_bad);
    if (status == KNA_EDAMAGED) { /* caught while it was written, or damaged: loading looks again and tells which */
        newest = before;
        newest.generation++;
    } else {
        KNA_TRY(status);
        if (newest.transaction <= before.transaction) { /* before: a commit whose receipt is torn was found by the log's chain */
            return KNA_OK;
        }
    }
    if (newest.generation != before.generation) {
        status = kna__store_reload(s);
    } else {
        s->slot = newest;
        status = kna__store_map(s);
        status = status == KNA_OK ? replay(s, before.log_bytes, before.log_check) : status;
        status = status == KNA_OK ? kna__store_map(s) : status;
        status = status == KNA_ENONE ? kna__store_reload(s) : status; /* a segment that a compaction has taken away by now */
    }
    s->broken = status;
    if (changed) {
        *changed = status == KNA_OK && s->slot.transaction != before.transaction;
    }
    return status;
}
