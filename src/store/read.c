/* read.c - documents and rows of a store; rows are compared with their checks the first time they are touched. */
#include "store.h"

#include <sys/mman.h>
#include <unistd.h>

/* ---- documents */

static void fill(const kna_store *s, const kna__entry *entry, kna_document *document)
{
    kna__document d;
    kna__entry_document(s, entry, &d);
    *document = (kna_document){ .id = (int64_t)d.id,
                                .uri = d.uri,
                                .tags = d.tags,
                                .attributes = d.attributes,
                                .time_us = d.time_us,
                                .tokens = (int64_t)d.tokens };
    memcpy(document->hash, d.hash, sizeof d.hash);
}

static int none(const kna_store *s, const char *what)
{
    return KNA_FAIL(s->context, KNA_ENONE, "store: there is no %s", what);
}

static bool is_visible(const kna_store *s, const kna__entry *entry)
{
    return (uint64_t)(entry - (const kna__entry *)s->entries.items) < s->visible;
}

int kna_store_document(const kna_store *s, int64_t id, kna_document *document)
{
    s->context->message[0] = 0;
    KNA_TRY(kna__store_status(s));
    const kna__entry *entry = kna__entry_of(s, id);
    if (!entry || !is_visible(s, entry)) {
        return KNA_FAIL(s->context, KNA_ENONE, "store: there is no document %lld", (long long)id);
    }
    fill(s, entry, document);
    return KNA_OK;
}

int kna_store_find(const kna_store *s, const char *uri, kna_document *document)
{
    s->context->message[0] = 0;
    KNA_TRY(kna__store_status(s));
    const kna__entry *entry = uri ? kna__entry_named(s, uri, false) : NULL;
    if (!entry) {
        return KNA_FAIL(s->context, KNA_ENONE, "store: there is no document %.150s", uri ? uri : "without a name");
    }
    fill(s, entry, document);
    return KNA_OK;
}

int kna_store_next(const kna_store *s, int64_t after, kna_document *document)
{
    uint64_t low = 0, high = s->visible;
    s->context->message[0] = 0;
    KNA_TRY(kna__store_status(s));
    while (low < high) { /* the first above `after` */
        uint64_t middle = (low + high) / 2;
        if ((int64_t)((kna__entry *)kna__list_at(&s->entries, middle))->id <= after) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    for (; low < s->visible; low++) {
        const kna__entry *entry = kna__list_at(&s->entries, low);
        if (!entry->removed) {
            fill(s, entry, document);
            return KNA_OK;
        }
    }
    return none(s, "further document");
}

const char *kna_store_note_text(const kna_store *s, const char *name)
{
    for (uint64_t i = s->broken ? 0 : s->visible_notes; i-- > 0;) {
        uint64_t at = *(uint64_t *)kna__list_at(&s->notes, i);
        kna__record record;
        kna__note note;
        if (kna__record_decode(&record, s->log_map + at, s->log_mapped - at) &&
            kna__note_decode(&note, record.body, record.body_bytes) && strcmp(note.name, name) == 0) {
            return note.text_bytes ? note.text : NULL;
        }
    }
    return NULL;
}

int kna_store_info_get(const kna_store *s, kna_store_info *info)
{
    if (info->size < sizeof *info) {
        return KNA_FAIL(s->context, KNA_EINVAL, "info: size %zu is below %zu", info->size, sizeof *info);
    }
    *info = (kna_store_info){ .size = info->size,
                              .transaction = (int64_t)s->slot.transaction,
                              .documents = (int64_t)(s->visible - s->removed),
                              .families = (int64_t)s->visible_families,
                              .removed = (int64_t)s->removed,
                              .bytes = (int64_t)s->live_bytes,
                              .dead_bytes = (int64_t)s->dead_bytes,
                              .log_bytes = (int64_t)s->slot.log_bytes };
    memcpy(info->uuid, s->slot.uuid, sizeof info->uuid);
    for (uint64_t i = 0; i < s->segments.count; i++) {
        info->segments += ((kna__segment *)kna__list_at(&s->segments, i))->mapped > 0;
    }
    for (uint64_t i = 0; i < s->verified.count; i++) {
        info->verified_pieces += ((unsigned char *)s->verified.items)[i];
    }
    return KNA_OK;
}

/* ---- families */

static const kna__held_family *committed_family(const kna_store *s, int family)
{
    return family >= 0 && (uint64_t)family < s->visible_families ? kna__list_at(&s->families, (uint64_t)family) : NULL;
}

int kna_store_family(const kna_store *s, int family, kna_family *out)
{
    const kna__held_family *held = committed_family(s, family);
    s->context->message[0] = 0;
    if (!held) {
        return KNA_FAIL(s->context, KNA_EINVAL, "family: %d is none of 0..%lld", family, (long long)s->visible_families - 1);
    }
    *out = (kna_family){ held->family.name, (int)held->family.type, (int64_t)held->family.dim };
    return KNA_OK;
}

int kna_store_family_named(const kna_store *s, const char *name)
{
    for (uint64_t i = 0; i < s->visible_families; i++) {
        if (strcmp(((kna__held_family *)kna__list_at(&s->families, i))->family.name, name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

int64_t kna_store_family_rows(const kna_store *s, int family)
{
    const kna__held_family *held = committed_family(s, family);
    return held ? (int64_t)held->visible_rows : 0;
}

/* ---- rows */

/* A piece is compared with its check unless it has been; two threads that do both come to the same. It is read for that, not looked at
 * where it is mapped: a sector that cannot be read, or an end that was cut off, is an error then, and not a signal. */
static int check_piece(kna_store *s, const kna__held_part *held, uint64_t piece)
{
    const kna__segment *segment = kna__list_at(&s->segments, held->part.segment);
    unsigned char bytes[KNA_PIECE_BYTES], *verified = kna__list_at(&s->verified, held->first_piece + piece);
    uint64_t want, at = piece * KNA_PIECE_BYTES, left = held->part.bytes - at;
    if (__atomic_load_n(verified, __ATOMIC_RELAXED)) {
        return KNA_OK;
    }
    left = left < KNA_PIECE_BYTES ? left : KNA_PIECE_BYTES;
    memcpy(&want, kna__log_at(s, held->checks_at) + 8 * piece, sizeof want);
    KNA_TRY(kna__file_fetch(&segment->file, bytes, (size_t)left, held->part.offset + at));
    if (kna__check(bytes, (size_t)left, piece) != want) {
        return KNA_EDAMAGED;
    }
    __atomic_store_n(verified, 1, __ATOMIC_RELAXED);
    return KNA_OK;
}

int kna__part_rows(kna_store *s, kna__held_part *held, const unsigned char **bytes)
{
    const kna__segment *segment = kna__list_at(&s->segments, held->part.segment);
    uint64_t pieces = kna__part_pieces(&held->part);
    *bytes = segment->map + held->part.offset;
    for (uint64_t i = 0; i < pieces; i++) {
        int status = check_piece(s, held, i);
        if (status != KNA_OK) {
            const kna__entry *entry = kna__list_at(&s->entries, held->entry);
            return KNA_FAIL(s->context, status, "document %llu: rows of family %u %s (rows-%06u, byte %llu)",
                            (unsigned long long)entry->id, held->part.family,
                            status == KNA_EDAMAGED ? "are not as written" : "cannot be read", held->part.segment,
                            (unsigned long long)(held->part.offset + i * KNA_PIECE_BYTES));
        }
    }
    return KNA_OK;
}

const unsigned char *kna__part_bytes(kna_store *s, const kna__held_part *held, uint64_t at, uint64_t bytes)
{
    const kna__segment *segment = kna__list_at(&s->segments, held->part.segment);
    for (uint64_t i = at / KNA_PIECE_BYTES; bytes && i <= (at + bytes - 1) / KNA_PIECE_BYTES; i++) {
        if (check_piece(s, held, i) != KNA_OK) {
            return NULL;
        }
    }
    return segment->map + held->part.offset + at;
}

kna_store_rows kna__part_as_rows(const kna_store *s, const kna__part *part, const unsigned char *bytes)
{
    const kna__family *family = &((kna__held_family *)kna__list_at(&s->families, part->family))->family;
    uint64_t size, scales_at;
    (void)kna__part_size(&size, &scales_at, family->type, family->dim, part->rows);
    kna_store_rows rows = { (int)part->family, (int64_t)part->first_row, { 0 } };
    rows.rows = (kna_rows){
        .data = bytes, .type = (int)family->type, .heads = 1, .rows = (int64_t)part->rows, .dim = (int64_t)family->dim
    };
    rows.rows.row_stride_bytes = (int64_t)kna__stored_row_bytes(family->type, family->dim);
    rows.rows.head_stride_bytes = rows.rows.row_stride_bytes * rows.rows.rows;
    rows.rows.scales = family->type == KNA_I8 ? (const float *)(const void *)(bytes + scales_at) : NULL;
    return rows;
}

/* The part of a document that is of the family; *held NULL: it has no rows of it. */
static int find_part(const kna_store *s, int64_t id, int family, kna_family *of, kna__held_part **held)
{
    *held = NULL;
    KNA_TRY(kna__store_status(s));
    KNA_TRY(kna_store_family(s, family, of));
    const kna__entry *entry = kna__entry_of(s, id);
    if (!entry || !is_visible(s, entry)) {
        return KNA_FAIL(s->context, KNA_ENONE, "store: there is no document %lld", (long long)id);
    }
    for (uint32_t i = 0; i < entry->parts && !*held; i++) {
        kna__held_part *part = kna__list_at(&s->parts, entry->first_part + i);
        *held = part->part.family == (uint32_t)family ? part : NULL;
    }
    return KNA_OK;
}

int kna_store_rows_of(kna_store *s, int64_t id, int family, kna_store_rows *rows)
{
    kna_family of;
    kna__held_part *held;
    const unsigned char *bytes = NULL;
    s->context->message[0] = 0;
    KNA_TRY(find_part(s, id, family, &of, &held));
    if (!held) {
        *rows = (kna_store_rows){ family, 0, { .type = of.type, .heads = 1, .dim = of.dim } };
        return KNA_OK;
    }
    KNA_TRY(kna__part_rows(s, held, &bytes));
    *rows = kna__part_as_rows(s, &held->part, bytes);
    return KNA_OK;
}

int kna_store_extent(const kna_store *s, int64_t id, int family, int64_t *first, int64_t *rows)
{
    kna_family of;
    kna__held_part *held;
    s->context->message[0] = 0;
    *first = *rows = 0;
    KNA_TRY(find_part(s, id, family, &of, &held));
    if (held) {
        *first = (int64_t)held->part.first_row;
        *rows = (int64_t)held->part.rows;
    }
    return KNA_OK;
}

void kna_store_prefetch(kna_store *s, int64_t id, int family)
{
    kna_family of;
    kna__held_part *held;
    if (find_part(s, id, family, &of, &held) != KNA_OK || !held) {
        return;
    }
    const kna__segment *segment = kna__list_at(&s->segments, held->part.segment);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), first = held->part.offset / page * page;
    (void)kna__file_calls.advise((void *)(uintptr_t)(segment->map + first), (size_t)(held->part.offset + held->part.bytes - first),
                                 MADV_WILLNEED);
}

int kna_store_owner(const kna_store *s, int family, int64_t row, int64_t *id, int64_t *place)
{
    const kna__held_family *held = committed_family(s, family);
    s->context->message[0] = 0;
    KNA_TRY(kna__store_status(s));
    uint64_t low = 0, high = held ? held->visible_parts : 0;
    while (low < high) { /* the first part that begins above the row */
        uint64_t middle = (low + high) / 2;
        const kna__held_part *part = kna__list_at(&s->parts, *(uint64_t *)kna__list_at(&held->parts, middle));
        if ((int64_t)part->part.first_row <= row) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low) {
        const kna__held_part *part = kna__list_at(&s->parts, *(uint64_t *)kna__list_at(&held->parts, low - 1));
        const kna__entry *entry = kna__list_at(&s->entries, part->entry);
        if (row < (int64_t)(part->part.first_row + part->part.rows) && !entry->removed) {
            *id = (int64_t)entry->id;
            *place = row - (int64_t)part->part.first_row;
            return KNA_OK;
        }
    }
    return KNA_FAIL(s->context, KNA_ENONE, "store: row %lld belongs to no document", (long long)row);
}
