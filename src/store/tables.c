/* tables.c - what the records of the log mean: documents, parts, families, notes; and how to find them. */
#include "store.h"

#include <stdio.h>

/* ---- lists */

int kna__list_reserve(kna_context *context, kna__list *list, uint64_t more)
{
    if (more <= list->room - list->count) {
        return KNA_OK;
    }
    uint64_t room = list->room ? 2 * list->room : 16;
    room = room < list->count + more ? list->count + more : room;
    void *items = kna__allocate(&context->heap, kna__size_product((size_t)room, list->item_bytes));
    if (!items) {
        return KNA_FAIL(context, KNA_ENOMEM, "store: tables of %llu", (unsigned long long)room);
    }
    if (list->count) {
        memcpy(items, list->items, (size_t)list->count * list->item_bytes);
    }
    kna__release(&context->heap, list->items, (size_t)list->room * list->item_bytes);
    list->items = items;
    list->room = room;
    return KNA_OK;
}

void kna__list_free(kna_context *context, kna__list *list)
{
    kna__release(&context->heap, list->items, (size_t)list->room * list->item_bytes);
    list->items = NULL;
    list->count = list->room = 0;
}

static void *push(kna__list *list)
{
    return kna__list_at(list, list->count++);
}

void kna__tables_init(kna_store *s)
{
    s->entries.item_bytes = sizeof(kna__entry);
    s->parts.item_bytes = sizeof(kna__held_part);
    s->families.item_bytes = sizeof(kna__held_family);
    s->segments.item_bytes = sizeof(kna__segment);
    s->notes.item_bytes = s->leaving.item_bytes = sizeof(uint64_t);
    s->verified.item_bytes = s->pending.item_bytes = 1;
    s->next_document = 1;
    s->last = (kna__commit){ .next_document = 1 };
}

static void free_uris(kna_store *s)
{
    kna__release(&s->context->heap, s->uris, (size_t)s->uri_room * sizeof *s->uris);
    s->uris = NULL;
    s->uri_room = s->uri_used = 0;
}

void kna__tables_free(kna_store *s)
{
    for (uint64_t i = 0; i < s->families.count; i++) {
        kna__list_free(s->context, &((kna__held_family *)kna__list_at(&s->families, i))->parts);
    }
    for (uint64_t i = 0; i < s->segments.count; i++) {
        kna__segment *segment = kna__list_at(&s->segments, i);
        kna__file_unmap(segment->map, (size_t)segment->mapped);
        kna__file_close(&segment->file);
    }
    kna__list *lists[] = { &s->entries, &s->parts, &s->families, &s->segments, &s->notes, &s->leaving, &s->verified, &s->pending };
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        kna__list_free(s->context, lists[i]);
    }
    free_uris(s);
}

const unsigned char *kna__log_at(const kna_store *s, uint64_t at)
{
    return at < s->slot.log_bytes ? s->log_map + at : (const unsigned char *)s->pending.items + (at - s->slot.log_bytes);
}

void kna__entry_document(const kna_store *s, const kna__entry *entry, kna__document *document)
{
    (void)kna__document_decode(document, kna__log_at(s, entry->body_at), entry->body_bytes); /* it was decoded before */
}

/* ---- finding */

kna__entry *kna__entry_of(const kna_store *s, int64_t id)
{
    uint64_t low = 0, high = s->entries.count;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        if (((kna__entry *)kna__list_at(&s->entries, middle))->id < (uint64_t)id) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    kna__entry *entry = kna__list_at(&s->entries, low);
    return low < s->entries.count && entry->id == (uint64_t)id && !entry->removed ? entry : NULL;
}

static uint64_t uri_slot(const kna_store *s, const char *uri, size_t bytes)
{
    return kna__check(uri, bytes, 1) & (s->uri_room - 1);
}

kna__entry *kna__entry_named(const kna_store *s, const char *uri, bool written)
{
    size_t bytes = strlen(uri);
    for (uint64_t at = s->uri_room && bytes ? uri_slot(s, uri, bytes) : 0; s->uri_room && bytes && s->uris[at];
         at = (at + 1) & (s->uri_room - 1)) {
        kna__entry *entry = kna__list_at(&s->entries, s->uris[at] - 1);
        bool counts = !entry->removed && (written ? !entry->leaving : s->uris[at] - 1 < s->visible);
        kna__document document;
        if (counts) {
            kna__entry_document(s, entry, &document);
            if (document.uri_bytes == bytes && memcmp(document.uri, uri, bytes) == 0) {
                return entry;
            }
        }
    }
    return NULL;
}

kna__held_family *kna__family_of(const kna_store *s, int family)
{
    return family >= 0 && (uint64_t)family < s->families.count ? kna__list_at(&s->families, (uint64_t)family) : NULL;
}

static void put_uri(kna_store *s, uint64_t entry)
{
    kna__document document;
    kna__entry_document(s, kna__list_at(&s->entries, entry), &document);
    if (!document.uri_bytes) {
        return;
    }
    uint64_t at = uri_slot(s, document.uri, document.uri_bytes);
    while (s->uris[at]) {
        at = (at + 1) & (s->uri_room - 1);
    }
    s->uris[at] = (uint32_t)(entry + 1);
    s->uri_used++;
}

/* Entries that are gone are left out, so the table of a store whose documents are replaced all the time does not grow. */
static void fill_uris(kna_store *s)
{
    memset(s->uris, 0, (size_t)s->uri_room * sizeof *s->uris);
    s->uri_used = 0;
    for (uint64_t i = 0; i < s->entries.count; i++) {
        if (!((kna__entry *)kna__list_at(&s->entries, i))->removed) {
            put_uri(s, i);
        }
    }
}

static int reserve_uri(kna_store *s)
{
    if (2 * (s->uri_used + 1) <= s->uri_room) {
        return KNA_OK;
    }
    uint64_t live = s->entries.count - s->removed, room = s->uri_room ? s->uri_room : 64;
    while (room < 4 * (live + 1)) {
        room *= 2;
    }
    uint32_t *uris = kna__allocate(&s->context->heap, (size_t)room * sizeof *uris);
    if (!uris) {
        return KNA_FAIL(s->context, KNA_ENOMEM, "store: names of %llu documents", (unsigned long long)live);
    }
    free_uris(s);
    s->uris = uris;
    s->uri_room = room;
    fill_uris(s);
    return KNA_OK;
}

/* ---- records */

static int damaged(const kna_store *s, uint64_t at, const char *what)
{
    return KNA_FAIL(s->context, KNA_EDAMAGED, "log-%llu: byte %llu: %s", (unsigned long long)s->slot.generation,
                    (unsigned long long)at, what);
}

static int apply_family(kna_store *s, const kna__record *record, uint64_t at)
{
    kna__family family;
    if (!kna__family_decode(&family, record->body, record->body_bytes)) {
        return damaged(s, at, "no family");
    }
    if (family.id < s->families.count) { /* again: its numbers go on from another one */
        kna__family *known = &kna__family_of(s, (int)family.id)->family;
        if (strcmp(known->name, family.name) != 0 || known->type != family.type || known->dim != family.dim ||
            known->next_row > family.next_row) {
            return damaged(s, at, "a family that was another one before");
        }
        known->next_row = family.next_row;
        return KNA_OK;
    }
    if (family.id != s->families.count || s->families.count == KNA_MAX_FAMILIES) {
        return damaged(s, at, "no family that could be here");
    }
    KNA_TRY(kna__list_reserve(s->context, &s->families, 1));
    kna__held_family *held = push(&s->families);
    *held = (kna__held_family){ .family = family, .parts = { .item_bytes = sizeof(uint64_t) }, .visible_rows = family.next_row };
    return KNA_OK;
}

/* A part that rows of its family can have. */
static const char *part_fault(const kna_store *s, const kna__part *part)
{
    const kna__held_family *family = part->family < s->families.count ? kna__family_of(s, (int)part->family) : NULL;
    uint64_t bytes, scales_at;
    if (!family) {
        return "rows of a family there is not";
    }
    if (!kna__part_size(&bytes, &scales_at, family->family.type, family->family.dim, part->rows) || bytes != part->bytes) {
        return "rows that take another number of bytes";
    }
    if (part->segment >= KNA_MAX_SEGMENTS) {
        return "a segment above the limit";
    }
    return part->first_row < family->family.next_row ? "rows with numbers that were given before" : NULL;
}

static int check_document(kna_store *s, const kna__document *d, const unsigned char *body, uint64_t at, uint64_t *pieces)
{
    const kna__entry *last = s->entries.count ? kna__list_at(&s->entries, s->entries.count - 1) : NULL;
    *pieces = 0;
    s->stamps++;
    if (d->id == 0 || d->id > INT64_MAX || (last && last->id >= d->id)) {
        return damaged(s, at, "a document with a number that was given before");
    }
    for (uint32_t i = 0; i < d->parts; i++) {
        kna__part part = kna__part_at(body, d, i);
        const char *fault = part_fault(s, &part);
        if (fault) {
            return damaged(s, at, fault);
        }
        kna__held_family *family = kna__family_of(s, (int)part.family);
        if (family->stamp == s->stamps) {
            return damaged(s, at, "a family twice in a document");
        }
        family->stamp = s->stamps;
        *pieces += kna__part_pieces(&part);
    }
    return KNA_OK;
}

static int reserve_document(kna_store *s, const kna__document *d, const unsigned char *body, uint64_t pieces)
{
    KNA_TRY(kna__list_reserve(s->context, &s->entries, 1));
    KNA_TRY(kna__list_reserve(s->context, &s->parts, d->parts));
    KNA_TRY(kna__list_reserve(s->context, &s->verified, pieces));
    for (uint32_t i = 0; i < d->parts; i++) {
        kna__part part = kna__part_at(body, d, i);
        KNA_TRY(kna__list_reserve(s->context, &kna__family_of(s, (int)part.family)->parts, 1));
        if (part.segment >= s->segments.count) {
            KNA_TRY(kna__list_reserve(s->context, &s->segments, part.segment + 1 - s->segments.count));
        }
    }
    return reserve_uri(s);
}

static void hold_part(kna_store *s, const kna__part *part, uint64_t checks_at)
{
    kna__held_family *family = kna__family_of(s, (int)part->family);
    kna__held_part *held = push(&s->parts);
    *held = (kna__held_part){ *part, s->entries.count - 1, checks_at, s->verified.count };
    memset(kna__list_at(&s->verified, s->verified.count), 0, (size_t)kna__part_pieces(part));
    s->verified.count += kna__part_pieces(part);
    *(uint64_t *)push(&family->parts) = s->parts.count - 1;
    family->family.next_row = part->first_row + part->rows;
    while (s->segments.count <= part->segment) {
        kna__segment *segment = push(&s->segments);
        *segment = (kna__segment){ .file = { .context = s->context, .fd = -1 } };
    }
    kna__segment *segment = kna__list_at(&s->segments, part->segment);
    segment->end = part->offset + part->bytes > segment->end ? part->offset + part->bytes : segment->end;
}

static int apply_document(kna_store *s, const kna__record *record, uint64_t at)
{
    kna__document d;
    uint64_t pieces, body_at = at + KNA_RECORD_HEAD_BYTES;
    if (!kna__document_decode(&d, record->body, record->body_bytes)) {
        return damaged(s, at, "no document");
    }
    if (s->entries.count >= UINT32_MAX - 1) { /* uris are numbered with 32 bits */
        return KNA_FAIL(s->context, KNA_ELIMIT, "store: more than %u documents since the last compaction", UINT32_MAX - 1);
    }
    KNA_TRY(check_document(s, &d, record->body, at, &pieces));
    KNA_TRY(reserve_document(s, &d, record->body, pieces));
    kna__entry *entry = push(&s->entries);
    *entry = (kna__entry){
        .id = d.id, .body_at = body_at, .body_bytes = record->body_bytes, .first_part = s->parts.count, .parts = d.parts
    };
    uint64_t checks_at = body_at + d.checks_at;
    for (uint32_t i = 0; i < d.parts; i++) {
        kna__part part = kna__part_at(record->body, &d, i);
        hold_part(s, &part, checks_at);
        checks_at += 8 * kna__part_pieces(&part);
    }
    put_uri(s, s->entries.count - 1);
    s->next_document = d.id + 1;
    return KNA_OK;
}

static int apply_remove(kna_store *s, const kna__record *record, uint64_t at)
{
    uint64_t id;
    kna__entry *entry =
        kna__remove_decode(&id, record->body, record->body_bytes) && id <= INT64_MAX ? kna__entry_of(s, (int64_t)id) : NULL;
    if (!entry || entry->leaving) {
        return damaged(s, at, "the removal of a document there is not");
    }
    KNA_TRY(kna__list_reserve(s->context, &s->leaving, 1));
    entry->leaving = true;
    *(uint64_t *)push(&s->leaving) = (uint64_t)(entry - (kna__entry *)s->entries.items);
    return KNA_OK;
}

static int apply_note(kna_store *s, const kna__record *record, uint64_t at)
{
    kna__note note;
    if (!kna__note_decode(&note, record->body, record->body_bytes)) {
        return damaged(s, at, "no note");
    }
    KNA_TRY(kna__list_reserve(s->context, &s->notes, 1));
    *(uint64_t *)push(&s->notes) = at;
    return KNA_OK;
}

uint64_t kna__segments_used(const kna_store *s)
{
    uint64_t count = s->segments.count;
    while (count && ((kna__segment *)kna__list_at(&s->segments, count - 1))->end == 0) {
        count--; /* numbers of files that went, or of a transaction that was rolled back */
    }
    return count;
}

static int apply_commit(kna_store *s, const kna__record *record, uint64_t at)
{
    kna__commit commit;
    if (!kna__commit_decode(&commit, record->body, record->body_bytes) || commit.next_document < s->next_document ||
        commit.next_document > INT64_MAX || commit.documents != s->entries.count - s->removed - s->leaving.count ||
        commit.transaction <= s->last.transaction || commit.next_segment < kna__segments_used(s) ||
        commit.next_segment > KNA_MAX_SEGMENTS) {
        return damaged(s, at, "a commit that does not fit what is before it");
    }
    s->own_segments = s->last.transaction ? s->own_segments : commit.next_segment;
    s->last = commit;
    s->next_document = commit.next_document;
    return KNA_OK;
}

int kna__tables_apply(kna_store *s, const kna__record *record, uint64_t at)
{
    switch (record->kind) {
    case KNA_RECORD_NOTE:
        return apply_note(s, record, at);
    case KNA_RECORD_FAMILY:
        return apply_family(s, record, at);
    case KNA_RECORD_DOCUMENT:
        return apply_document(s, record, at);
    case KNA_RECORD_REMOVE:
        return apply_remove(s, record, at);
    case KNA_RECORD_COMMIT:
        return apply_commit(s, record, at);
    default:
        return damaged(s, at, "a record of a kind that this version does not know");
    }
}

/* ---- the end of a transaction */

static uint64_t entry_bytes(const kna_store *s, const kna__entry *entry)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < entry->parts; i++) {
        bytes += ((kna__held_part *)kna__list_at(&s->parts, entry->first_part + i))->part.bytes;
    }
    return bytes;
}

void kna__tables_commit(kna_store *s)
{
    for (; s->visible < s->entries.count; s->visible++) {
        s->live_bytes += entry_bytes(s, kna__list_at(&s->entries, s->visible));
    }
    for (uint64_t i = 0; i < s->leaving.count; i++) {
        kna__entry *entry = kna__list_at(&s->entries, *(uint64_t *)kna__list_at(&s->leaving, i));
        entry->leaving = false;
        entry->removed = true;
        s->removed++;
        s->live_bytes -= entry_bytes(s, entry);
        s->dead_bytes += entry_bytes(s, entry);
    }
    s->leaving.count = 0;
    s->visible_parts = s->parts.count;
    s->visible_families = s->families.count;
    s->visible_notes = s->notes.count;
    for (uint64_t i = 0; i < s->families.count; i++) {
        kna__held_family *family = kna__list_at(&s->families, i);
        family->visible_parts = family->parts.count;
        family->visible_rows = family->family.next_row;
    }
}

void kna__tables_rollback(kna_store *s)
{
    for (uint64_t i = 0; i < s->leaving.count; i++) {
        ((kna__entry *)kna__list_at(&s->entries, *(uint64_t *)kna__list_at(&s->leaving, i)))->leaving = false;
    }
    if (s->parts.count > s->visible_parts) {
        s->verified.count = ((kna__held_part *)kna__list_at(&s->parts, s->visible_parts))->first_piece;
    }
    for (uint64_t i = s->visible_families; i < s->families.count; i++) {
        kna__list_free(s->context, &((kna__held_family *)kna__list_at(&s->families, i))->parts);
    }
    for (uint64_t i = 0; i < s->segments.count; i++) {
        ((kna__segment *)kna__list_at(&s->segments, i))->end = 0;
    }
    s->leaving.count = 0;
    s->entries.count = s->visible;
    s->parts.count = s->visible_parts;
    for (uint64_t i = 0; i < s->parts.count; i++) {
        const kna__part *part = &((kna__held_part *)kna__list_at(&s->parts, i))->part;
        kna__segment *segment = kna__list_at(&s->segments, part->segment);
        segment->end = part->offset + part->bytes > segment->end ? part->offset + part->bytes : segment->end;
    }
    s->families.count = s->visible_families;
    s->notes.count = s->visible_notes;
    s->next_document = s->last.next_document;
    for (uint64_t i = 0; i < s->families.count; i++) {
        kna__held_family *family = kna__list_at(&s->families, i);
        family->parts.count = family->visible_parts;
        family->family.next_row = family->visible_rows;
    }
    if (s->uri_room) {
        fill_uris(s);
    }
}
