/* format.c - see format.h and doc/format.md. */
#include "format.h"

#include "../kernel/kernel.h"

static const char slot_magic[8] = { 'k', 'n', 'a', 's', 't', 'o', 'r', 'e' };
enum { RECORD_MAGIC = 0x4345524b, ORDER_MARK = 0x01020304, FOREIGN_ORDER_MARK = 0x04030201 };
#define MOST_PART_BYTES ((uint64_t)1 << 48)

/* ---- numbers in bytes; a cursor moves on */

static void put32(unsigned char **to, uint32_t x)
{
    memcpy(*to, &x, sizeof x);
    *to += sizeof x;
}

static void put64(unsigned char **to, uint64_t x)
{
    memcpy(*to, &x, sizeof x);
    *to += sizeof x;
}

static uint32_t get32(const unsigned char **from)
{
    uint32_t x;
    memcpy(&x, *from, sizeof x);
    *from += sizeof x;
    return x;
}

static uint64_t get64(const unsigned char **from)
{
    uint64_t x;
    memcpy(&x, *from, sizeof x);
    *from += sizeof x;
    return x;
}

static uint64_t up(uint64_t x, uint64_t multiple)
{
    return (x + multiple - 1) / multiple * multiple;
}

static bool all_zero(const unsigned char *bytes, uint64_t count)
{
    unsigned char any = 0;
    for (uint64_t i = 0; i < count; i++) {
        any |= bytes[i];
    }
    return any == 0;
}

/* ---- the manifest */

enum { SLOT_USED = 8 + 4 + 4 + 16 + 4 * 8 };

void kna__slot_encode(unsigned char bytes[KNA_SLOT_BYTES], const kna__slot *slot)
{
    unsigned char *at = bytes;
    memset(bytes, 0, KNA_SLOT_BYTES);
    memcpy(at, slot_magic, sizeof slot_magic);
    at += sizeof slot_magic;
    put32(&at, KNA_FORMAT_VERSION);
    put32(&at, ORDER_MARK);
    memcpy(at, slot->uuid, sizeof slot->uuid);
    at += sizeof slot->uuid;
    put64(&at, slot->transaction);
    put64(&at, slot->generation);
    put64(&at, slot->log_bytes);
    put64(&at, slot->log_check);
    at = bytes + KNA_SLOT_BYTES - 8;
    put64(&at, kna__check(bytes, KNA_SLOT_BYTES - 8, 0));
}

int kna__slot_decode(kna__slot *slot, const unsigned char bytes[KNA_SLOT_BYTES])
{
    const unsigned char *at = bytes + sizeof slot_magic, *tail = bytes + KNA_SLOT_BYTES - 8;
    if (memcmp(bytes, slot_magic, sizeof slot_magic) != 0) {
        return all_zero(bytes, KNA_SLOT_BYTES) ? KNA_SLOT_EMPTY : KNA_SLOT_FOREIGN;
    }
    uint32_t version = get32(&at), order = get32(&at);
    bool sound = get64(&tail) == kna__check(bytes, KNA_SLOT_BYTES - 8, 0);
    if (order == FOREIGN_ORDER_MARK) {
        return KNA_SLOT_ORDER; /* its check is in that order too */
    }
    if (!sound) {
        return KNA_SLOT_DAMAGED;
    }
    if (version != KNA_FORMAT_VERSION) {
        return KNA_SLOT_VERSION;
    }
    memcpy(slot->uuid, at, sizeof slot->uuid);
    at += sizeof slot->uuid;
    slot->transaction = get64(&at);
    slot->generation = get64(&at);
    slot->log_bytes = get64(&at);
    slot->log_check = get64(&at);
    return order == ORDER_MARK && all_zero(bytes + SLOT_USED, KNA_SLOT_BYTES - 8 - SLOT_USED) ? KNA_SLOT_VALID : KNA_SLOT_DAMAGED;
}

/* ---- records */

size_t kna__record_bytes(size_t body_bytes)
{
    return KNA_RECORD_HEAD_BYTES + body_bytes + KNA_RECORD_TAIL_BYTES;
}

uint64_t kna__record_encode(unsigned char *to, kna__kind kind, const void *body, size_t body_bytes, uint64_t check_before)
{
    unsigned char *at = to;
    put32(&at, RECORD_MAGIC);
    put32(&at, (uint32_t)kind);
    put64(&at, body_bytes);
    put64(&at, check_before);
    if (body != at) {
        memcpy(at, body, body_bytes);
    }
    at += body_bytes;
    uint64_t check = kna__check(to, (size_t)(at - to), 0);
    put64(&at, check);
    return check;
}

bool kna__record_decode(kna__record *record, const unsigned char *bytes, uint64_t count)
{
    const unsigned char *at = bytes;
    if (count < KNA_RECORD_HEAD_BYTES + KNA_RECORD_TAIL_BYTES || get32(&at) != RECORD_MAGIC) {
        return false;
    }
    uint32_t kind = get32(&at);
    record->body_bytes = get64(&at);
    record->check_before = get64(&at);
    record->body = at;
    if (record->body_bytes > count - KNA_RECORD_HEAD_BYTES - KNA_RECORD_TAIL_BYTES || record->body_bytes % 8 != 0) {
        return false;
    }
    record->kind = (kna__kind)kind;
    record->bytes = KNA_RECORD_HEAD_BYTES + record->body_bytes + KNA_RECORD_TAIL_BYTES;
    at = record->body + record->body_bytes;
    record->check = get64(&at);
    return record->check == kna__check(bytes, (size_t)(KNA_RECORD_HEAD_BYTES + record->body_bytes), 0);
}

/* ---- rows */

uint64_t kna__stored_row_bytes(uint32_t type, uint64_t dim)
{
    if (type == KNA_BYTES) {
        return dim <= KNA_MAX_BYTES_DIM ? dim : 0;
    }
    return type < KNA_TYPE_COUNT && dim <= KNA_MAX_STORED_DIM ? kna__row_bytes((int)type, (int64_t)dim) : 0;
}

bool kna__part_size(uint64_t *bytes, uint64_t *scales_at, uint32_t type, uint64_t dim, uint64_t rows)
{
    uint64_t row = kna__stored_row_bytes(type, dim);
    if (!row || rows > MOST_PART_BYTES / row) {
        return false;
    }
    *scales_at = up(row * rows, KNA_PART_ALIGNMENT);
    *bytes = type == KNA_I8 ? *scales_at + rows * sizeof(float) : row * rows;
    return *bytes <= MOST_PART_BYTES;
}

uint64_t kna__part_pieces(const kna__part *part)
{
    return up(part->bytes, KNA_PIECE_BYTES) / KNA_PIECE_BYTES;
}

/* ---- bodies */

enum { DOCUMENT_FIXED = 8 + 8 + 8 + KNA_HASH_BYTES + 4 * 4 };

/* Texts with a NUL behind each, padded to 8 together. */
static uint64_t texts_bytes(uint64_t a, uint64_t b, uint64_t c)
{
    return up(a + b + c + 3, 8);
}

size_t kna__document_bytes(const kna__document *d, uint64_t pieces)
{
    uint64_t texts = texts_bytes(d->uri_bytes, d->tags_bytes, d->attributes_bytes);
    return (size_t)(DOCUMENT_FIXED + texts + (uint64_t)d->parts * KNA_PART_BYTES + pieces * 8);
}

static void put_text(unsigned char **to, const char *text, uint32_t bytes)
{
    memcpy(*to, text, bytes);
    *to += bytes;
    *(*to)++ = 0;
}

static void pad(unsigned char *body, unsigned char **at)
{
    while ((*at - body) % 8) {
        *(*at)++ = 0;
    }
}

static void put_part(unsigned char **to, const kna__part *part)
{
    put32(to, part->family);
    put32(to, part->segment);
    put64(to, part->first_row);
    put64(to, part->rows);
    put64(to, part->offset);
    put64(to, part->bytes);
    put64(to, 0);
}

void kna__document_encode(unsigned char *body, const kna__document *d, const kna__part *parts, const uint64_t *checks)
{
    unsigned char *at = body;
    put64(&at, d->id);
    put64(&at, (uint64_t)d->time_us);
    put64(&at, d->tokens);
    memcpy(at, d->hash, KNA_HASH_BYTES);
    at += KNA_HASH_BYTES;
    put32(&at, d->uri_bytes);
    put32(&at, d->tags_bytes);
    put32(&at, d->attributes_bytes);
    put32(&at, d->parts);
    put_text(&at, d->uri, d->uri_bytes);
    put_text(&at, d->tags, d->tags_bytes);
    put_text(&at, d->attributes, d->attributes_bytes);
    pad(body, &at);
    uint64_t pieces = 0;
    for (uint32_t i = 0; i < d->parts; i++) {
        put_part(&at, &parts[i]);
        pieces += kna__part_pieces(&parts[i]);
    }
    if (pieces) {
        memcpy(at, checks, (size_t)pieces * sizeof *checks);
    }
}

/* A text of the length, a NUL behind it and none within. */
static bool take_text(const char **text, const unsigned char **at, uint32_t bytes)
{
    *text = (const char *)*at;
    *at += bytes + 1;
    return (*at)[-1] == 0 && memchr(*text, 0, bytes) == NULL;
}

kna__part kna__part_at(const unsigned char *body, const kna__document *d, uint32_t i)
{
    const unsigned char *at = body + d->parts_at + (uint64_t)i * KNA_PART_BYTES;
    kna__part part;
    part.family = get32(&at);
    part.segment = get32(&at);
    part.first_row = get64(&at);
    part.rows = get64(&at);
    part.offset = get64(&at);
    part.bytes = get64(&at);
    return part;
}

static bool parts_are_sound(const kna__document *d, const unsigned char *body, uint64_t bytes)
{
    uint64_t pieces = 0, room = (bytes - d->checks_at) / 8;
    for (uint32_t i = 0; i < d->parts; i++) {
        kna__part part = kna__part_at(body, d, i);
        bool fits = part.bytes <= MOST_PART_BYTES && part.offset <= MOST_PART_BYTES && part.offset % KNA_PART_ALIGNMENT == 0 &&
                    part.rows <= MOST_PART_BYTES && part.first_row <= INT64_MAX - MOST_PART_BYTES;
        if (!fits || !all_zero(body + d->parts_at + (uint64_t)i * KNA_PART_BYTES + KNA_PART_BYTES - 8, 8)) {
            return false;
        }
        pieces += kna__part_pieces(&part);
        if (pieces > room) {
            return false;
        }
    }
    return pieces == room;
}

bool kna__document_decode(kna__document *d, const unsigned char *body, uint64_t bytes)
{
    const unsigned char *at = body;
    if (bytes < DOCUMENT_FIXED || bytes % 8) {
        return false;
    }
    d->id = get64(&at);
    d->time_us = (int64_t)get64(&at);
    d->tokens = get64(&at);
    memcpy(d->hash, at, KNA_HASH_BYTES);
    at += KNA_HASH_BYTES;
    d->uri_bytes = get32(&at);
    d->tags_bytes = get32(&at);
    d->attributes_bytes = get32(&at);
    d->parts = get32(&at);
    uint64_t texts = texts_bytes(d->uri_bytes, d->tags_bytes, d->attributes_bytes);
    d->parts_at = DOCUMENT_FIXED + texts;
    d->checks_at = d->parts_at + (uint64_t)d->parts * KNA_PART_BYTES;
    if (d->checks_at > bytes) {
        return false;
    }
    if (!take_text(&d->uri, &at, d->uri_bytes) || !take_text(&d->tags, &at, d->tags_bytes) ||
        !take_text(&d->attributes, &at, d->attributes_bytes)) {
        return false;
    }
    return all_zero(at, d->parts_at - (uint64_t)(at - body)) && parts_are_sound(d, body, bytes);
}

void kna__family_encode(unsigned char body[KNA_FAMILY_BYTES], const kna__family *family)
{
    unsigned char *at = body;
    put32(&at, family->id);
    put32(&at, family->type);
    put64(&at, family->dim);
    put64(&at, family->next_row);
    memset(at, 0, KNA_NAME_BYTES);
    memcpy(at, family->name, strnlen(family->name, KNA_NAME_BYTES));
}

bool kna__family_decode(kna__family *family, const unsigned char *body, uint64_t bytes)
{
    const unsigned char *at = body;
    if (bytes != KNA_FAMILY_BYTES) {
        return false;
    }
    family->id = get32(&at);
    family->type = get32(&at);
    family->dim = get64(&at);
    family->next_row = get64(&at);
    memcpy(family->name, at, KNA_NAME_BYTES);
    family->name[KNA_NAME_BYTES] = 0;
    size_t length = strlen(family->name);
    return length > 0 && all_zero(at + length, KNA_NAME_BYTES - length) && kna__stored_row_bytes(family->type, family->dim) > 0 &&
           family->next_row <= INT64_MAX - MOST_PART_BYTES;
}

bool kna__remove_decode(uint64_t *id, const unsigned char *body, uint64_t bytes)
{
    if (bytes != KNA_REMOVE_BYTES) {
        return false;
    }
    *id = get64(&body);
    return true;
}

void kna__commit_encode(unsigned char body[KNA_COMMIT_BYTES], const kna__commit *commit)
{
    put64(&body, commit->transaction);
    put64(&body, commit->next_document);
    put64(&body, commit->documents);
    put64(&body, commit->next_segment);
    put64(&body, (uint64_t)commit->time_us);
}

bool kna__commit_decode(kna__commit *commit, const unsigned char *body, uint64_t bytes)
{
    if (bytes != KNA_COMMIT_BYTES) {
        return false;
    }
    commit->transaction = get64(&body);
    commit->next_document = get64(&body);
    commit->documents = get64(&body);
    commit->next_segment = get64(&body);
    commit->time_us = (int64_t)get64(&body);
    return true;
}

size_t kna__note_bytes(const kna__note *note)
{
    return (size_t)(8 + texts_bytes(note->name_bytes, note->text_bytes, 0));
}

void kna__note_encode(unsigned char *body, const kna__note *note)
{
    unsigned char *at = body;
    memset(body, 0, kna__note_bytes(note));
    put32(&at, note->name_bytes);
    put32(&at, note->text_bytes);
    put_text(&at, note->name, note->name_bytes);
    put_text(&at, note->text, note->text_bytes);
}

bool kna__note_decode(kna__note *note, const unsigned char *body, uint64_t bytes)
{
    const unsigned char *at = body;
    if (bytes < 8) {
        return false;
    }
    note->name_bytes = get32(&at);
    note->text_bytes = get32(&at);
    if (note->name_bytes == 0 || bytes != kna__note_bytes(note)) {
        return false;
    }
    return take_text(&note->name, &at, note->name_bytes) && take_text(&note->text, &at, note->text_bytes) &&
           all_zero(at, bytes - (uint64_t)(at - body));
}
