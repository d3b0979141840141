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
    KNA_TRY(kna__slots_read(s->context, &s->manifest, &slot, &one_is_bad));
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

/* The log to go by: of the manifest, or, if that says nothing any more, the newest there is. */
static int find_log(kna_store *s)
{
    bool one_is_bad;
    char name[40];
    int status = kna__slots_read(s->context, &s->manifest, &s->slot, &one_is_bad);
    if (status == KNA_EFORMAT) {
        return status;
    }
    if (status != KNA_OK) {
        s->slot = (kna__slot){ .generation = 0 };
        kna__folder_list(s->folder, take_newest, &s->slot.generation);
    }
    kna__log_name(name, s->slot.generation);
    KNA_TRY(kna__file_open(&s->log, s->context, s->folder, name, KNA_FILE_WRITE));
    KNA_TRY(kna__file_size(&s->log, &s->slot.log_bytes));
    return kna__store_map(s);
}

/*
 * Sound records wherever they are, up to the last commit among them. A record that cannot be where it is, because one before it is
 * lost, is passed over. *lost: documents that the records speak of and that cannot be had.
 */
static int salvage(kna_store *s, int64_t *lost)
{
    uint64_t end = 0;
    kna__record record;
    for (uint64_t at = 0; at + 8 <= s->slot.log_bytes; at += 8) {
        if (kna__record_decode(&record, s->log_map + at, s->slot.log_bytes - at)) {
            end = record.kind == KNA_RECORD_COMMIT ? at + record.bytes : end;
            at += record.bytes - 8;
        }
    }
    for (uint64_t at = 0; at + 8 <= end; at += 8) {
        if (!kna__record_decode(&record, s->log_map + at, end - at)) {
            continue;
        }
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

/* Segments as far as they are there. */
static void map_what_is_there(kna_store *s)
{
    for (uint64_t i = 0; i < s->segments.count; i++) {
        kna__segment *segment = kna__list_at(&s->segments, i);
        char name[40];
        uint64_t size = 0;
        const void *map = NULL;
        kna__segment_name(name, (uint32_t)i);
        if (kna__file_open(&segment->file, s->context, s->folder, name, KNA_FILE_WRITE) == KNA_OK &&
            kna__file_size(&segment->file, &size) == KNA_OK && kna__file_map(&segment->file, &map, (size_t)size) == KNA_OK) {
            segment->map = map;
            segment->mapped = size;
        }
    }
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
    return verify_entry(s, entry) == KNA_OK;
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
    KNA_TRY(find_log(s));
    KNA_TRY(remove_indexes(s));
    KNA_TRY(salvage(s, lost));
    map_what_is_there(s);
    drop_unsound(s, lost);
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
