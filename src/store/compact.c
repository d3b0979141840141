/*
 * compact.c - give back what removed documents hold: a new log, a new generation of it, and rows of half-dead segments copied.
 *
 * Checks of pieces count from the begin of their part, so a part that moves keeps them. The old generation stands until the receipt
 * names the new one; a reader that has it open keeps its files, which are only unlinked.
 */
#include "store.h"

#include <stdio.h>

/* ---- which segments are worth it */

typedef struct use {
    uint64_t live; /* bytes of documents there are, each part up to where another may begin */
    bool anew;     /* what is live in it is copied */
} use;

/* What of a segment's file belongs to no document is dead, whoever had it: a log of after a compaction no longer speaks of those
 * removed before it. A file that is not there, in a repair, has nothing. */
static int count_uses(const kna_store *s, double share, use *uses)
{
    memset(uses, 0, (size_t)s->segments.count * sizeof *uses);
    for (uint64_t i = 0; i < s->parts.count; i++) {
        const kna__held_part *held = kna__list_at(&s->parts, i);
        if (!((kna__entry *)kna__list_at(&s->entries, held->entry))->removed) {
            uses[held->part.segment].live += (held->part.bytes + KNA_PART_ALIGNMENT - 1) / KNA_PART_ALIGNMENT * KNA_PART_ALIGNMENT;
        }
    }
    for (uint64_t i = 0; i < s->segments.count; i++) {
        const kna__segment *segment = kna__list_at(&s->segments, i);
        uint64_t bytes = 0;
        if (segment->end && segment->file.fd >= 0) {
            KNA_TRY(kna__file_size(&segment->file, &bytes));
        }
        uses[i].anew = bytes > uses[i].live && (double)(bytes - uses[i].live) >= share * (double)bytes;
    }
    return KNA_OK;
}

/* ---- the new log, in memory */

static int add_record(kna_store *s, kna__list *log, uint64_t *check, kna__kind kind, const void *body, size_t bytes)
{
    KNA_TRY(kna__list_reserve(s->context, log, kna__record_bytes(bytes)));
    *check = kna__record_encode((unsigned char *)log->items + log->count, kind, body, bytes, *check);
    log->count += kna__record_bytes(bytes);
    return KNA_OK;
}

/* The latest note of each name that has a text. */
static int add_notes(kna_store *s, kna__list *log, uint64_t *check)
{
    for (uint64_t i = 0; i < s->visible_notes; i++) {
        kna__record record;
        kna__note note;
        uint64_t at = *(uint64_t *)kna__list_at(&s->notes, i);
        if (!kna__record_decode(&record, s->log_map + at, s->log_mapped - at) ||
            !kna__note_decode(&note, record.body, record.body_bytes)) {
            return KNA_FAIL(s->context, KNA_EDAMAGED, "%s: byte %llu: no note any more", s->log.name, (unsigned long long)at);
        }
        if (kna_store_note_text(s, note.name) == note.text) {
            KNA_TRY(add_record(s, log, check, KNA_RECORD_NOTE, record.body, (size_t)record.body_bytes));
        }
    }
    return KNA_OK;
}

/* Families before the documents, numbered from 0; after them, with the numbers they have come to. */
static int add_families(kna_store *s, kna__list *log, uint64_t *check, bool after)
{
    unsigned char body[KNA_FAMILY_BYTES];
    for (uint64_t i = 0; i < s->families.count; i++) {
        kna__family family = kna__family_of(s, (int)i)->family;
        family.next_row = after ? family.next_row : 0;
        kna__family_encode(body, &family);
        if (!after || family.next_row) {
            KNA_TRY(add_record(s, log, check, KNA_RECORD_FAMILY, body, sizeof body));
        }
    }
    return KNA_OK;
}

static int add_document(kna_store *s, kna__list *log, uint64_t *check, const kna__entry *entry, const use *uses)
{
    kna__document d;
    uint64_t pieces = 0, memory = 0;
    kna__entry_document(s, entry, &d);
    for (uint32_t i = 0; i < d.parts; i++) {
        kna__part part = ((kna__held_part *)kna__list_at(&s->parts, entry->first_part + i))->part;
        pieces += kna__part_pieces(&part);
    }
    memory = d.parts * sizeof(kna__part) + kna__document_bytes(&d, pieces);
    kna__part *parts = kna__allocate(&s->context->heap, (size_t)memory);
    if (!parts) {
        return KNA_FAIL(s->context, KNA_ENOMEM, "store: out of memory");
    }
    int status = KNA_OK;
    for (uint32_t i = 0; i < d.parts && status == KNA_OK; i++) {
        kna__held_part *held = kna__list_at(&s->parts, entry->first_part + i);
        const unsigned char *bytes;
        parts[i] = held->part;
        if (uses[held->part.segment].anew) {
            status = kna__part_rows(s, held, &bytes);
            status = status == KNA_OK ? kna__out_copy(s, &parts[i], bytes) : status;
        }
    }
    unsigned char *body = (unsigned char *)(parts + d.parts);
    if (status == KNA_OK) {
        const uint64_t *checks = (const uint64_t *)(const void *)(kna__log_at(s, entry->body_at) + d.checks_at);
        kna__document_encode(body, &d, parts, checks);
        status = add_record(s, log, check, KNA_RECORD_DOCUMENT, body, kna__document_bytes(&d, pieces));
    }
    kna__release(&s->context->heap, parts, (size_t)memory);
    return status;
}

static int add_all(kna_store *s, kna__list *log, uint64_t *check, const use *uses)
{
    unsigned char body[KNA_COMMIT_BYTES];
    KNA_TRY(add_notes(s, log, check));
    KNA_TRY(add_families(s, log, check, false));
    for (uint64_t i = 0; i < s->visible; i++) {
        const kna__entry *entry = kna__list_at(&s->entries, i);
        if (!entry->removed) {
            KNA_TRY(add_document(s, log, check, entry, uses));
        }
    }
    KNA_TRY(add_families(s, log, check, true));
    KNA_TRY(kna__out_flush(s));
    kna__commit commit = { .transaction = s->slot.transaction + 1,
                           .next_document = s->next_document,
                           .documents = s->visible - s->removed,
                           .next_segment = kna__next_segment(s),
                           .time_us = kna__now_us() };
    kna__commit_encode(body, &commit);
    return add_record(s, log, check, KNA_RECORD_COMMIT, body, sizeof body);
}

/* ---- to the files */

static int write_new_log(kna_store *s, const kna__list *log, uint64_t generation)
{
    kna__file file;
    char name[40];
    kna__log_name(name, generation);
    KNA_TRY(kna__file_unlink(s->context, s->folder, name)); /* of a compaction that was cut off */
    KNA_TRY(kna__file_open(&file, s->context, s->folder, name, KNA_FILE_CREATE));
    int status = kna__file_write(&file, log->items, (size_t)log->count, 0);
    status = status == KNA_OK ? kna__file_sync(&file) : status;
    kna__file_close(&file);
    return status == KNA_OK ? kna__folder_sync(s->context, s->folder) : status;
}

static int write_generation(kna_store *s, kna__list *log, const use *uses)
{
    kna__slot next = s->slot;
    uint64_t check = 0;
    KNA_TRY(add_all(s, log, &check, uses));
    KNA_TRY(kna__out_sync(s));
    next.transaction++;
    next.generation++;
    next.log_bytes = log->count;
    next.log_check = check;
    KNA_TRY(write_new_log(s, log, next.generation));
    s->read_only = true; /* until the receipt is known to be there or not */
    KNA_TRY(kna__slot_write(&s->manifest, &next));
    s->read_only = false;
    s->slot = next;
    return KNA_OK;
}

int kna__generation_write(kna_store *s, double share)
{
    kna__list log = { .item_bytes = 1 };
    size_t bytes = (size_t)s->segments.count * sizeof(use);
    use *uses = kna__allocate(&s->context->heap, bytes);
    if (!uses) {
        return KNA_FAIL(s->context, KNA_ENOMEM, "store: out of memory");
    }
    s->out_segment = s->first_segment = s->next_segment; /* nothing is added to a segment that may go */
    kna__next_segment_after(s, s->out_segment);
    s->out_at = s->out_used = 0;
    int status = count_uses(s, share, uses);
    status = status == KNA_OK ? write_generation(s, &log, uses) : status;
    kna__release(&s->context->heap, uses, bytes);
    kna__list_free(s->context, &log);
    return status;
}

int kna_store_compact(kna_store *s, double share)
{
    KNA_TRY(kna__writer_status(s));
    if (!(share >= 0 && share <= 1)) {
        return KNA_FAIL(s->context, KNA_EINVAL, "compact: a share of %g is outside [0, 1]", share);
    }
    if (s->pending.count) {
        return KNA_FAIL(s->context, KNA_EINVAL, "compact: commit or roll back first");
    }
    int status = kna__generation_write(s, share);
    if (status != KNA_OK) {
        kna__out_begin(s);
        return status;
    }
    s->broken = kna__store_reload(s);
    KNA_TRY(s->broken);
    s->pending_check = s->slot.log_check;
    kna__out_begin(s);
    kna__sweep(s);
    return KNA_OK;
}

/* ---- what is left over */

static bool is_number(const char *text, unsigned long long *number)
{
    char *end;
    *number = strtoull(text, &end, 10);
    return end != text && *end == 0;
}

static bool is_in_use(const kna_store *s, const char *name)
{
    unsigned long long number;
    if (strncmp(name, "log-", 4) == 0 && is_number(name + 4, &number)) {
        return number == s->slot.generation;
    }
    if (strncmp(name, "rows-", 5) == 0 && is_number(name + 5, &number)) {
        return number < s->segments.count && ((kna__segment *)kna__list_at(&s->segments, number))->end > 0;
    }
    size_t length = strlen(name);
    if (strncmp(name, "index-", 6) == 0 && length > 4 && strcmp(name + length - 4, ".new") == 0) {
        return false; /* of an index that was not finished */
    }
    return strcmp(name, "manifest.new") != 0; /* not ours to remove */
}

/* Not being able to is no fault: the next writer tries again. */
static bool remove_unused(void *user, const char *name)
{
    kna_store *s = user;
    if (!is_in_use(s, name)) {
        (void)kna__file_unlink(s->context, s->folder, name);
    }
    return true;
}

void kna__sweep(kna_store *s)
{
    char message[KNA_MESSAGE_BYTES];
    memcpy(message, s->context->message, sizeof message);
    kna__folder_list(s->folder, remove_unused, s);
    memcpy(s->context->message, message, sizeof message);
}
