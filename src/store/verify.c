/* verify.c - compare everything with its checks, and keep what is sound of a store that is not. */
#include "store.h"

#include <stdio.h>

/* ---- verify */

static int verify_log(kna_store *s)
{
    kna__chain chain = { .log = s->log_map, .end = s->slot.log_bytes };
    kna__record record;
    while (kna__chain_next(&chain, &record)) {}
    return kna__chain_whole(s, &chain);
}

static int verify_entry(kna_store *s, const kna__entry *entry)
{
    int status = KNA_OK;
    for (uint32_t i = 0; i < entry->parts && status == KNA_OK; i++) {
        kna__held_part *held = kna__list_at(&s->parts, entry->first_part + i);
        const unsigned char *bytes;
        memset(kna__list_at(&s->verified, held->first_piece), 0, (size_t)kna__part_pieces(&held->part)); /* look again */
        status = kna__part_rows(s, held, &bytes);
    }
    return status;
}

int kna_store_verify(kna_store *s, int64_t *damaged, void (*tell)(void *user, int64_t id, const char *what), void *user)
{
    bool one_is_bad;
    kna__slot slot;
    int64_t count = 0;
    s->context->message[0] = 0;
    if (damaged) {
        *damaged = 0;
    }
    KNA_TRY(kna__store_status(s));
    KNA_TRY(kna__slots_look(s->context, &s->manifest, &slot, &one_is_bad));
    KNA_TRY(verify_log(s));
    for (uint64_t i = 0; damaged && i < s->visible; i++) {
        const kna__entry *entry = kna__list_at(&s->entries, i);
        if (verify_entry(s, entry) != KNA_OK) {
            *damaged = ++count;
            if (tell) {
                tell(user, (int64_t)entry->id, s->context->message);
            }
        }
    }
    if (count) {
        return KNA_FAIL(s->context, KNA_EDAMAGED, "store: %lld documents are not as they were written", (long long)count);
    }
    return one_is_bad ? KNA_FAIL(s->context, KNA_EDAMAGED, "manifest: one of its two slots is not as it was written") : KNA_OK;
}

/* ---- repair */

static bool take_newest(void *user, const char *name)
{
    unsigned long long number = 0;
    uint64_t *generation = user;
    if (sscanf(name, "log-%llu", &number) == 1 && number > *generation) {
        *generation = number;
    }
    return true;
}

static int open_log(kna_store *s)
{
    char name[40];
    kna__log_name(name, s->slot.generation);
    return kna__file_open(&s->log, s->context, s->folder, name, KNA_FILE_WRITE);
}

/* The log to go by: of the manifest, or, if that says nothing any more, or names one that is not there, the newest there is. Without a
 * manifest it is another store, for whatever was derived from this one. *known: the manifest says how far the log goes; what lies behind
 * that was never committed. */
static int find_log(kna_store *s, bool *known)
{
    bool one_is_bad;
    uint64_t size;
    int status = kna__slots_read(s->context, &s->manifest, &s->slot, &one_is_bad);
    if (status != KNA_OK && status != KNA_EDAMAGED) {
        return status;
    }
    if (status == KNA_EDAMAGED) {
        s->slot = (kna__slot){ .generation = 0 };
        KNA_TRY(kna__uuid_make(s->context, s->slot.uuid));
    }
    status = status == KNA_OK ? open_log(s) : KNA_ENONE;
    *known = status == KNA_OK;
    if (status == KNA_ENONE) {
        s->slot.generation = 0;
        kna__folder_list(s->folder, take_newest, &s->slot.generation);
        status = open_log(s);
    }
    if (status == KNA_ENONE) {
        return KNA_FAIL(s->context, KNA_EDAMAGED, "%.180s: no file log-*: nothing tells what the rows are of", s->folder);
    }
    KNA_TRY(status);
    KNA_TRY(kna__file_size(&s->log, &size));
    if (*known && one_is_bad) {
        KNA_TRY(kna__recover(s, &s->slot));
    }
    s->slot.log_bytes = *known && s->slot.log_bytes < size ? s->slot.log_bytes : size;
    return kna__store_map(s);
}

/*
 * A removal that is damaged itself would bring its document back. All of its 40 bytes but the document's number are known from the
 * records around it, and it is the one number that gives the check which the next record has of it.
 */
static bool apply_lost_removal(kna_store *s, uint64_t at, uint64_t end, uint64_t check_before)
{
    unsigned char bytes[KNA_RECORD_HEAD_BYTES + KNA_REMOVE_BYTES + KNA_RECORD_TAIL_BYTES];
    kna__record next, removal = { .kind = KNA_RECORD_REMOVE, .body_bytes = KNA_REMOVE_BYTES };
    if (end - at <= sizeof bytes || !kna__record_decode(&next, s->log_map + at + sizeof bytes, end - at - sizeof bytes)) {
        return false;
    }
    for (uint64_t i = s->entries.count; i-- > 0;) {
        const kna__entry *entry = kna__list_at(&s->entries, i);
        removal.body = (const unsigned char *)&entry->id;
        if (!entry->removed && !entry->leaving &&
            kna__record_encode(bytes, KNA_RECORD_REMOVE, removal.body, KNA_REMOVE_BYTES, check_before) == next.check_before) {
            return kna__tables_apply(s, &removal, at) == KNA_OK;
        }
    }
    return false;
}

/* Behind which nothing counts. Where the manifest does not say it: a writer that finds a commit without a receipt puts zeros over its
 * begin, right behind the commit before; the rest of it may lie there still. */
static uint64_t last_commit(const kna_store *s, bool known)
{
    static const unsigned char nothing[KNA_RECORD_HEAD_BYTES];
    uint64_t end = 0;
    kna__record record;
    for (uint64_t at = 0; at + sizeof nothing <= s->slot.log_bytes; at += 8) {
        if (kna__record_decode(&record, s->log_map + at, s->slot.log_bytes - at)) {
            end = record.kind == KNA_RECORD_COMMIT ? at + record.bytes : end;
            at += record.bytes - 8;
        } else if (!known && at == end && memcmp(s->log_map + at, nothing, sizeof nothing) == 0) {
            break;
        }
    }
    return end;
}

/*
 * Sound records wherever they are, up to the last commit among them. A record that cannot be where it is, because one before it is
 * lost, is passed over. *lost: documents that the records speak of and that cannot be had.
 */
static int salvage(kna_store *s, bool known, int64_t *lost)
{
    uint64_t end = last_commit(s, known), sound_to = 0;
    kna__record record = { .check = 0 };
    for (uint64_t at = 0; at + 8 <= end; at += 8) {
        uint64_t check_before = record.check;
        if (!kna__record_decode(&record, s->log_map + at, end - at)) {
            if (sound_to == at && apply_lost_removal(s, at, end, check_before)) {
                at += kna__record_bytes(KNA_REMOVE_BYTES) - 8;
            }
            continue;
        }
        sound_to = at + record.bytes;
        kna__commit commit;
        if (record.kind != KNA_RECORD_COMMIT) {
            int status = kna__tables_apply(s, &record, at);
            *lost += status == KNA_EDAMAGED && record.kind == KNA_RECORD_DOCUMENT;
            KNA_TRY(status == KNA_EDAMAGED ? KNA_OK : status);
        } else if (kna__commit_decode(&commit, record.body, record.body_bytes) && commit.next_document <= INT64_MAX) {
            s->last = commit;
            s->next_document = commit.next_document > s->next_document ? commit.next_document : s->next_document;
            s->slot.transaction = commit.transaction > s->slot.transaction ? commit.transaction : s->slot.transaction;
        }
        at += record.bytes - 8;
    }
    s->last.next_document = s->next_document;
    kna__tables_commit(s);
    return KNA_OK;
}

static int map_segment(kna_store *s, uint32_t number)
{
    kna__segment *segment = kna__list_at(&s->segments, number);
    char name[40];
    uint64_t size = 0;
    const void *map = NULL;
    kna__segment_name(name, number);
    KNA_TRY(kna__file_open(&segment->file, s->context, s->folder, name, KNA_FILE_WRITE));
    KNA_TRY(kna__file_size(&segment->file, &size));
    KNA_TRY(kna__file_map(&segment->file, &map, (size_t)size));
    segment->map = map;
    segment->mapped = size;
    return KNA_OK;
}

/* Segments as far as they are there. One that is there and does not open, for now perhaps, ends the repair: it would drop sound documents. */
static int map_what_is_there(kna_store *s)
{
    for (uint64_t i = 0; i < s->segments.count; i++) {
        int status = map_segment(s, (uint32_t)i);
        if (status != KNA_OK && status != KNA_ENONE) {
            return status;
        }
    }
    return KNA_OK;
}

static bool is_sound(kna_store *s, const kna__entry *entry)
{
    for (uint32_t i = 0; i < entry->parts; i++) {
        const kna__part *part = &((kna__held_part *)kna__list_at(&s->parts, entry->first_part + i))->part;
        const kna__segment *segment = kna__list_at(&s->segments, part->segment);
        if (part->offset + part->bytes > segment->mapped) {
            return false;
        }
    }
    /* A read that failed is tried once more: what is dropped here is gone. */
    return verify_entry(s, entry) == KNA_OK || verify_entry(s, entry) == KNA_OK;
}

/* Two of one uri: the record that removed the older one is lost. */
static void drop_replaced(kna_store *s)
{
    for (uint64_t i = 0; i < s->visible; i++) {
        kna__entry *entry = kna__list_at(&s->entries, i), *older;
        kna__document d;
        kna__entry_document(s, entry, &d);
        while (!entry->removed && d.uri_bytes && (older = kna__entry_named(s, d.uri, false)) != entry && older) {
            older->removed = true;
            s->removed++;
        }
    }
}

static void drop_unsound(kna_store *s, int64_t *lost)
{
    for (uint64_t i = 0; i < s->visible; i++) {
        kna__entry *entry = kna__list_at(&s->entries, i);
        if (!entry->removed && !is_sound(s, entry)) {
            entry->removed = true;
            s->removed++;
            (*lost)++;
        }
    }
}

typedef struct index_removal {
    const kna_store *store;
    int status;
} index_removal;

static bool remove_index(void *user, const char *name)
{
    index_removal *r = user;
    r->status = strncmp(name, "index-", 6) == 0 ? kna__file_unlink(r->store->context, r->store->folder, name) : KNA_OK;
    return r->status == KNA_OK;
}

/* Where a document is lost the numbers of its rows may be given again: an index must not speak of them. */
static int remove_indexes(const kna_store *s)
{
    index_removal r = { s, KNA_OK };
    kna__folder_list(s->folder, remove_index, &r);
    return r.status == KNA_OK ? kna__folder_sync(s->context, s->folder) : r.status;
}

/* Both slots, so that nothing of before is gone by. */
static int repair(kna_store *s, int64_t *kept, int64_t *lost)
{
    bool known;
    KNA_TRY(find_log(s, &known));
    KNA_TRY(remove_indexes(s));
    KNA_TRY(salvage(s, known, lost));
    KNA_TRY(map_what_is_there(s));
    drop_unsound(s, lost);
    drop_replaced(s); /* of what is sound: an older one is better than none */
    *kept = (int64_t)(s->visible - s->removed);
    kna__out_begin(s);
    KNA_TRY(kna__generation_write(s, 0));
    KNA_TRY(kna__store_reload(s));
    s->pending_check = s->slot.log_check;
    kna__out_begin(s);
    KNA_TRY(kna__generation_write(s, 1));
    KNA_TRY(kna__store_reload(s));
    kna__sweep(s);
    return KNA_OK;
}

int kna_store_repair(kna_context *context, const char *folder, int64_t *kept, int64_t *lost)
{
    kna_store *s = NULL;
    kna_store_options options = KNA_STORE_OPTIONS;
    options.write = 1;
    *kept = *lost = 0;
    context->message[0] = 0;
    if (!folder) {
        return KNA_FAIL(context, KNA_EINVAL, "store: no folder");
    }
    int status = kna__store_begin(context, &s, folder, &options);
    status = status == KNA_OK ? repair(s, kept, lost) : status;
    kna_store_close(s);
    return status;
}
