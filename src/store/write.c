/*
 * write.c - the writer: rows into the segment, records into the transaction, and the commit.
 *
 * Rows go to the files as they are added, behind all that is committed, where no reader looks; what a crash leaves of them is
 * overwritten by the next writer. Records wait in memory until the commit.
 */
#include "store.h"

#include <stdio.h>
#include <sys/time.h>
#include <unistd.h>

int64_t kna__now_us(void)
{
    struct timeval now;
    gettimeofday(&now, NULL);
    return (int64_t)now.tv_sec * 1000000 + now.tv_usec;
}

int kna__writer_status(const kna_store *s)
{
    s->context->message[0] = 0;
    KNA_TRY(kna__store_status(s));
    if (!s->write) {
        return KNA_FAIL(s->context, KNA_EINVAL, "store: opened for reading");
    }
    if (s->process != getpid()) {
        return KNA_FAIL(s->context, KNA_EINVAL, "store: opened by process %lld, which forked; open it anew", (long long)s->process);
    }
    if (s->read_only) {
        return KNA_FAIL(s->context, KNA_EIO, "store: a flush failed before; open it again");
    }
    return KNA_OK;
}

/* ---- rows */

/* The segment's file, made if it is not there. */
static int open_segment(kna_store *s, uint32_t number)
{
    char name[40];
    if (number >= s->segments.count) {
        KNA_TRY(kna__list_reserve(s->context, &s->segments, number + 1 - s->segments.count));
    }
    while (s->segments.count <= number) {
        kna__segment *fresh = kna__list_at(&s->segments, s->segments.count++);
        *fresh = (kna__segment){ .file = { .context = s->context, .fd = -1 } };
    }
    kna__segment *segment = kna__list_at(&s->segments, number);
    if (segment->file.fd >= 0) {
        return KNA_OK;
    }
    kna__segment_name(name, number);
    int status = kna__file_open(&segment->file, s->context, s->folder, name, KNA_FILE_WRITE);
    if (status == KNA_ENONE) {
        status = kna__file_open(&segment->file, s->context, s->folder, name, KNA_FILE_CREATE);
        s->folder_changed = true;
    }
    return status;
}

int kna__out_flush(kna_store *s)
{
    if (s->out_used) {
        KNA_TRY(open_segment(s, s->out_segment));
        kna__segment *segment = kna__list_at(&s->segments, s->out_segment);
        KNA_TRY(kna__file_write(&segment->file, s->out, (size_t)s->out_used, s->out_at));
    }
    s->out_at += s->out_used;
    s->out_used = 0;
    return KNA_OK;
}

/* The limit itself is no number of a segment: begin_part() refuses it. */
void kna__next_segment_after(kna_store *s, uint32_t number)
{
    uint32_t after = number < KNA_MAX_SEGMENTS ? number + 1 : KNA_MAX_SEGMENTS;
    s->next_segment = after > s->next_segment ? after : s->next_segment;
}

uint32_t kna__next_segment(const kna_store *s)
{
    bool unused = s->out_at + s->out_used == 0 && s->next_segment == s->out_segment + 1;
    return unused ? s->out_segment : s->next_segment;
}

void kna__out_begin(kna_store *s)
{
    uint64_t count = kna__segments_used(s);
    s->next_segment = (uint32_t)(s->last.next_segment > count ? s->last.next_segment : count);
    uint64_t end = count ? ((kna__segment *)kna__list_at(&s->segments, count - 1))->end : 0;
    /* In a segment of before this log, rows of documents that it no longer speaks of may follow, and readers of the log before it have
     * them open. */
    bool goes_on = count > s->own_segments && end < s->segment_bytes;
    s->out_segment = goes_on ? (uint32_t)count - 1 : s->next_segment;
    s->out_at = goes_on ? (end + KNA_PART_ALIGNMENT - 1) / KNA_PART_ALIGNMENT * KNA_PART_ALIGNMENT : 0;
    s->out_used = 0;
    s->first_segment = s->out_segment;
    kna__next_segment_after(s, s->out_segment);
}

/* A part begins where it may: in a new segment if this one is full. */
static int begin_part(kna_store *s)
{
    uint64_t at = s->out_at + s->out_used, padding = (KNA_PART_ALIGNMENT - at % KNA_PART_ALIGNMENT) % KNA_PART_ALIGNMENT;
    bool full = at >= s->segment_bytes;
    if ((full ? s->next_segment : s->out_segment) >= KNA_MAX_SEGMENTS) {
        return KNA_FAIL(s->context, KNA_ELIMIT,
                        "store: more than %d segments, those removed by compactions included; export it to a new one",
                        KNA_MAX_SEGMENTS);
    }
    if (full) {
        KNA_TRY(kna__out_flush(s));
        s->out_segment = s->next_segment++;
        s->out_at = 0;
        return KNA_OK;
    }
    if (s->out_used + padding > KNA_OUT_BYTES) {
        KNA_TRY(kna__out_flush(s));
    }
    memset(s->out + s->out_used, 0, (size_t)padding);
    s->out_used += padding;
    return KNA_OK;
}

/* Bytes of a part, pieces checked as they fill; a piece never lies across two flushes. */
typedef struct piece {
    kna_store *store;
    uint64_t used, index;
    uint64_t *checks;
} piece;

static void end_piece(piece *p)
{
    kna_store *s = p->store;
    p->checks[p->index] = kna__check(s->out + s->out_used - p->used, (size_t)p->used, p->index);
    p->index++;
    p->used = 0;
}

static int put(piece *p, const unsigned char *from, uint64_t bytes)
{
    kna_store *s = p->store;
    while (bytes) {
        if (p->used == 0 && s->out_used + KNA_PIECE_BYTES > KNA_OUT_BYTES) {
            KNA_TRY(kna__out_flush(s));
        }
        uint64_t room = KNA_PIECE_BYTES - p->used, now = bytes < room ? bytes : room;
        if (from) {
            memcpy(s->out + s->out_used, from, (size_t)now);
            from += now;
        } else {
            memset(s->out + s->out_used, 0, (size_t)now);
        }
        s->out_used += now;
        p->used += now;
        bytes -= now;
        if (p->used == KNA_PIECE_BYTES) {
            end_piece(p);
        }
    }
    return KNA_OK;
}

int kna__out_copy(kna_store *s, kna__part *part, const unsigned char *bytes)
{
    uint64_t left = part->bytes;
    KNA_TRY(begin_part(s));
    part->segment = s->out_segment;
    part->offset = s->out_at + s->out_used;
    while (left) {
        if (s->out_used == KNA_OUT_BYTES) {
            KNA_TRY(kna__out_flush(s));
        }
        uint64_t room = KNA_OUT_BYTES - s->out_used, now = left < room ? left : room;
        memcpy(s->out + s->out_used, bytes, (size_t)now);
        s->out_used += now;
        bytes += now;
        left -= now;
    }
    return KNA_OK;
}

int kna__out_part(kna_store *s, kna__part *part, const kna_rows *rows, uint64_t *checks)
{
    uint64_t row_bytes = kna__stored_row_bytes((uint32_t)rows->type, (uint64_t)rows->dim), scales_at, bytes;
    (void)kna__part_size(&bytes, &scales_at, (uint32_t)rows->type, (uint64_t)rows->dim, part->rows);
    KNA_TRY(begin_part(s));
    part->segment = s->out_segment;
    part->offset = s->out_at + s->out_used;
    part->bytes = bytes;
    piece p = { .store = s, .checks = checks };
    const unsigned char *from = rows->data;
    int64_t stride = rows->row_stride_bytes ? rows->row_stride_bytes : (int64_t)row_bytes;
    if ((uint64_t)stride == row_bytes) {
        KNA_TRY(put(&p, from, row_bytes * part->rows));
    } else {
        for (uint64_t i = 0; i < part->rows; i++) {
            KNA_TRY(put(&p, from + (int64_t)i * stride, row_bytes));
        }
    }
    if (rows->type == KNA_I8) {
        KNA_TRY(put(&p, NULL, scales_at - row_bytes * part->rows));
        KNA_TRY(put(&p, (const unsigned char *)rows->scales, part->rows * sizeof(float)));
    }
    if (p.used) {
        end_piece(&p);
    }
    return KNA_OK;
}

/* ---- records */

unsigned char *kna__pending_body(kna_store *s, size_t body_bytes)
{
    if (kna__list_reserve(s->context, &s->pending, kna__record_bytes(body_bytes)) != KNA_OK) {
        return NULL;
    }
    return (unsigned char *)s->pending.items + s->pending.count + KNA_RECORD_HEAD_BYTES;
}

int kna__pending_add(kna_store *s, kna__kind kind, size_t body_bytes)
{
    unsigned char *bytes = (unsigned char *)s->pending.items + s->pending.count;
    uint64_t at = s->slot.log_bytes + s->pending.count;
    kna__record record = { .kind = kind, .body = bytes + KNA_RECORD_HEAD_BYTES, .body_bytes = body_bytes };
    record.bytes = kna__record_bytes(body_bytes);
    record.check_before = s->pending_check;
    record.check = kna__record_encode(bytes, kind, record.body, body_bytes, s->pending_check);
    s->pending.count += record.bytes;
    int status = kna__tables_apply(s, &record, at);
    if (status != KNA_OK) {
        s->pending.count -= record.bytes;
        return status;
    }
    s->pending_check = record.check;
    return KNA_OK;
}

static int out_of_memory(const kna_store *s)
{
    return KNA_FAIL(s->context, KNA_ENOMEM, "store: out of memory");
}

int kna_store_add_family(kna_store *s, const kna_family *family)
{
    KNA_TRY(kna__writer_status(s));
    size_t length = family && family->name ? strlen(family->name) : 0;
    if (length == 0 || length > KNA_NAME_BYTES) {
        return KNA_FAIL(s->context, KNA_EINVAL, "family: a name of 1 to %d bytes", KNA_NAME_BYTES);
    }
    if (family->dim < 1 || family->type < 0 || !kna__stored_row_bytes((uint32_t)family->type, (uint64_t)family->dim)) {
        return KNA_FAIL(s->context, KNA_ETYPE, "family %s: no rows of type %d with %lld numbers", family->name, family->type,
                        (long long)family->dim);
    }
    for (uint64_t i = 0; i < s->families.count; i++) {
        if (strcmp(kna__family_of(s, (int)i)->family.name, family->name) == 0) {
            return KNA_FAIL(s->context, KNA_EEXISTS, "family %s: there is one already", family->name);
        }
    }
    if (s->families.count == KNA_MAX_FAMILIES) {
        return KNA_FAIL(s->context, KNA_ELIMIT, "family %s: more than %d", family->name, KNA_MAX_FAMILIES);
    }
    kna__family f = { .id = (uint32_t)s->families.count, .type = (uint32_t)family->type, .dim = (uint64_t)family->dim };
    memcpy(f.name, family->name, length);
    /* Twice: rows of a family whose record is damaged could not be understood by kna_store_repair(). */
    KNA_TRY(kna__list_reserve(s->context, &s->pending, 2 * kna__record_bytes(KNA_FAMILY_BYTES)));
    for (int i = 0; i < 2; i++) {
        unsigned char *body = kna__pending_body(s, KNA_FAMILY_BYTES);
        if (!body) {
            return out_of_memory(s);
        }
        kna__family_encode(body, &f);
        KNA_TRY(kna__pending_add(s, KNA_RECORD_FAMILY, KNA_FAMILY_BYTES));
    }
    return KNA_OK;
}

int kna_store_note(kna_store *s, const char *name, const char *text)
{
    KNA_TRY(kna__writer_status(s));
    kna__note note = { .name = name, .text = text ? text : "" };
    if (!name || !name[0] || strlen(name) > KNA_NAME_BYTES || strlen(note.text) > INT32_MAX) {
        return KNA_FAIL(s->context, KNA_EINVAL, "note: a name of 1 to %d bytes", KNA_NAME_BYTES);
    }
    note.name_bytes = (uint32_t)strlen(name);
    note.text_bytes = (uint32_t)strlen(note.text);
    unsigned char *body = kna__pending_body(s, kna__note_bytes(&note));
    if (!body) {
        return out_of_memory(s);
    }
    kna__note_encode(body, &note);
    return kna__pending_add(s, KNA_RECORD_NOTE, kna__note_bytes(&note));
}

/* There is room for the record: see kna__pending_body() and kna__list_reserve(). */
static int add_removal(kna_store *s, uint64_t id)
{
    unsigned char *body = kna__pending_body(s, KNA_REMOVE_BYTES);
    if (!body) {
        return out_of_memory(s);
    }
    memcpy(body, &id, sizeof id);
    return kna__pending_add(s, KNA_RECORD_REMOVE, KNA_REMOVE_BYTES);
}

int kna_store_remove(kna_store *s, int64_t id)
{
    KNA_TRY(kna__writer_status(s));
    const kna__entry *entry = kna__entry_of(s, id);
    if (!entry || entry->leaving) {
        return KNA_FAIL(s->context, KNA_ENONE, "store: there is no document %lld", (long long)id);
    }
    return add_removal(s, (uint64_t)id);
}

/* ---- a document */

typedef struct addition {
    kna__document document;
    const kna_store_rows *rows; /* `count` */
    int count;
    kna__part *parts;
    uint64_t *checks;
    uint64_t pieces;
    size_t memory; /* of parts and checks together */
} addition;

static int check_rows(const kna_store *s, const kna_store_rows *r, uint64_t *pieces)
{
    kna__held_family *family = kna__family_of(s, r->family);
    uint64_t bytes, scales_at;
    if (!family) {
        return KNA_FAIL(s->context, KNA_EINVAL, "rows: family %d is none of 0..%lld", r->family, (long long)s->families.count - 1);
    }
    if ((uint32_t)r->rows.type != family->family.type) {
        return KNA_FAIL(s->context, KNA_ETYPE, "rows of family %s: type %d, not %u", family->family.name, r->rows.type,
                        family->family.type);
    }
    if ((uint64_t)r->rows.dim != family->family.dim || r->rows.heads != 1 || r->rows.rows < 0) {
        return KNA_FAIL(s->context, KNA_ESHAPE, "rows of family %s: (%lld,%lld,%lld), not (1,..,%llu)", family->family.name,
                        (long long)r->rows.heads, (long long)r->rows.rows, (long long)r->rows.dim,
                        (unsigned long long)family->family.dim);
    }
    if (r->rows.rows && (!r->rows.data || (r->rows.type == KNA_I8 && !r->rows.scales) || r->rows.row_stride_bytes < 0)) {
        return KNA_FAIL(s->context, KNA_EINVAL, "rows of family %s: no data, no scales, or a negative stride", family->family.name);
    }
    if (!kna__part_size(&bytes, &scales_at, family->family.type, family->family.dim, (uint64_t)r->rows.rows)) {
        return KNA_FAIL(s->context, KNA_ELIMIT, "rows of family %s: too many for one document", family->family.name);
    }
    if (family->stamp == s->stamps) {
        return KNA_FAIL(s->context, KNA_EINVAL, "rows: family %s twice", family->family.name);
    }
    family->stamp = s->stamps;
    *pieces += kna__part_pieces(&(kna__part){ .bytes = bytes });
    return KNA_OK;
}

static uint32_t length_of(const char *text)
{
    size_t length = strlen(text);
    return length > INT32_MAX ? INT32_MAX : (uint32_t)length;
}

static int check_document(kna_store *s, addition *a, const kna_document *document)
{
    kna__document *d = &a->document;
    *d = (kna__document){ .id = s->next_document,
                          .time_us = document->time_us ? document->time_us : kna__now_us(),
                          .tokens = (uint64_t)document->tokens,
                          .uri = document->uri ? document->uri : "",
                          .tags = document->tags ? document->tags : "",
                          .attributes = document->attributes ? document->attributes : "" };
    memcpy(d->hash, document->hash, sizeof d->hash);
    d->uri_bytes = length_of(d->uri);
    d->tags_bytes = length_of(d->tags);
    d->attributes_bytes = length_of(d->attributes);
    if (document->tokens < 0 || (uint64_t)d->uri_bytes + d->tags_bytes + d->attributes_bytes > 1 << 28) {
        return KNA_FAIL(s->context, KNA_EINVAL, "document: %lld tokens, or texts above 256 MiB", (long long)document->tokens);
    }
    s->stamps++;
    for (int i = 0; i < a->count; i++) {
        KNA_TRY(check_rows(s, &a->rows[i], &a->pieces));
        d->parts += a->rows[i].rows.rows > 0;
    }
    return KNA_OK;
}

static int write_parts(kna_store *s, addition *a)
{
    uint32_t part = 0;
    uint64_t *checks = a->checks;
    for (int i = 0; i < a->count; i++) {
        const kna_store_rows *r = &a->rows[i];
        if (r->rows.rows == 0) {
            continue;
        }
        kna__part *p = &a->parts[part++];
        *p = (kna__part){ .family = (uint32_t)r->family, .rows = (uint64_t)r->rows.rows };
        p->first_row = kna__family_of(s, r->family)->family.next_row;
        KNA_TRY(kna__out_part(s, p, &r->rows, checks));
        checks += kna__part_pieces(p);
    }
    return KNA_OK;
}

/* Rows, then the record; the place of the rows goes back if that fails. */
static int write_document(kna_store *s, addition *a)
{
    uint32_t segment = s->out_segment, next = s->next_segment;
    uint64_t at = s->out_at + s->out_used;
    size_t bytes = kna__document_bytes(&a->document, a->pieces);
    unsigned char *body = NULL;
    int status = write_parts(s, a);
    if (status == KNA_OK) {
        body = kna__pending_body(s, bytes);
        status = body ? KNA_OK : out_of_memory(s);
    }
    if (status == KNA_OK) {
        kna__document_encode(body, &a->document, a->parts, a->checks);
        status = kna__pending_add(s, KNA_RECORD_DOCUMENT, bytes);
    }
    if (status != KNA_OK) {
        bool flushed = segment != s->out_segment || at < s->out_at;
        s->out_used = flushed ? 0 : at - s->out_at;
        s->out_at = flushed ? at : s->out_at;
        s->out_segment = segment;
        s->next_segment = next;
    }
    return status;
}

int kna_store_add(kna_store *s, kna_document *document, const kna_store_rows *rows, int count, int replace)
{
    addition a = { .rows = rows, .count = count };
    KNA_TRY(kna__writer_status(s));
    if (!document || count < 0 || (count && !rows)) {
        return KNA_FAIL(s->context, KNA_EINVAL, "store: no document, or no rows");
    }
    KNA_TRY(check_document(s, &a, document));
    const kna__entry *old = kna__entry_named(s, a.document.uri, true);
    uint64_t old_id = old ? old->id : 0;
    if (old && !replace) {
        return KNA_FAIL(s->context, KNA_EEXISTS, "document %.150s: there is one already, with number %llu", a.document.uri,
                        (unsigned long long)old->id);
    }
    /* Room for all that comes after the rows, so that it cannot fail half done. */
    KNA_TRY(kna__list_reserve(s->context, &s->leaving, 1));
    KNA_TRY(kna__list_reserve(s->context, &s->pending,
                              kna__record_bytes(kna__document_bytes(&a.document, a.pieces)) + kna__record_bytes(KNA_REMOVE_BYTES)));
    a.memory = (size_t)count * sizeof *a.parts + (size_t)a.pieces * sizeof *a.checks;
    a.parts = kna__allocate(&s->context->heap, a.memory);
    if (!a.parts) {
        return out_of_memory(s);
    }
    a.checks = (uint64_t *)(void *)(a.parts + count);
    int status = write_document(s, &a);
    kna__release(&s->context->heap, a.parts, a.memory);
    KNA_TRY(status);
    if (old_id) {
        KNA_TRY(add_removal(s, old_id));
    }
    document->id = (int64_t)a.document.id;
    document->time_us = a.document.time_us;
    return KNA_OK;
}

/* ---- the end of a transaction */

int kna__out_sync(kna_store *s)
{
    KNA_TRY(kna__out_flush(s));
    for (uint32_t i = s->first_segment; i <= s->out_segment && i < s->segments.count; i++) {
        kna__segment *segment = kna__list_at(&s->segments, i);
        if (segment->file.fd >= 0) {
            KNA_TRY(kna__file_sync(&segment->file));
        }
    }
    if (s->folder_changed) {
        KNA_TRY(kna__folder_sync(s->context, s->folder));
        s->folder_changed = false;
    }
    return KNA_OK;
}

static int add_commit_record(kna_store *s)
{
    kna__commit commit = { .transaction = s->slot.transaction + 1,
                           .next_document = s->next_document,
                           .documents = s->entries.count - s->removed - s->leaving.count,
                           .next_segment = kna__next_segment(s),
                           .time_us = kna__now_us() };
    unsigned char *body = kna__pending_body(s, KNA_COMMIT_BYTES);
    if (!body) {
        return out_of_memory(s);
    }
    kna__commit_encode(body, &commit);
    return kna__pending_add(s, KNA_RECORD_COMMIT, KNA_COMMIT_BYTES);
}

/* Log, then receipt. From the first flush on a failure cannot be told from a success until the store is opened again. */
static int write_log(kna_store *s)
{
    kna__slot next = s->slot;
    next.transaction++;
    next.log_check = s->pending_check;
    next.log_bytes += s->pending.count;
    KNA_TRY(kna__file_write(&s->log, s->pending.items, (size_t)s->pending.count, s->slot.log_bytes));
    KNA_TRY(kna__file_sync(&s->log));
    KNA_TRY(kna__slot_write(&s->manifest, &next));
    s->slot = next;
    return KNA_OK;
}

int kna_store_commit(kna_store *s)
{
    KNA_TRY(kna__writer_status(s));
    if (!s->pending.count) {
        return KNA_OK;
    }
    kna__commit before = s->last;
    KNA_TRY(kna__out_flush(s)); /* a full disk is met here: it can be rolled back */
    KNA_TRY(add_commit_record(s));
    int status = kna__out_sync(s);
    status = status == KNA_OK ? write_log(s) : status;
    if (status != KNA_OK) {
        s->read_only = true;
        s->last = before;
        kna__tables_rollback(s);
        s->pending.count = 0;
        return status;
    }
    s->pending.count = 0;
    kna__tables_commit(s);
    s->broken = kna__store_map(s);
    kna__out_begin(s);
    return s->broken;
}

void kna_store_rollback(kna_store *s)
{
    if (!s->write || s->broken) {
        return;
    }
    kna__tables_rollback(s);
    s->pending.count = 0;
    s->pending_check = s->slot.log_check;
    kna__out_begin(s);
}
