/*
 * format.h - the bytes of a store, as doc/format.md has them: slots of the manifest and records of the log, to and from structures.
 *
 * Invariant: decoders take any bytes, read none outside those given, and check everything that later code relies on (counts against
 * lengths, padding, text without NUL): what they accept can be used without looking again. Numbers are little-endian on disk, as on
 * all machines this is built for.
 */
#ifndef KNA_FORMAT_H
#define KNA_FORMAT_H

#include "../base/base.h"

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#    error "a store's numbers are read as they lie: little-endian machines only"
#endif

enum {
    KNA_FORMAT_VERSION = 1,
    KNA_SLOT_BYTES = 4096,      /* of the manifest; it has two */
    KNA_RECORD_HEAD_BYTES = 24, /* magic, kind, length of the body, check of the record before */
    KNA_RECORD_TAIL_BYTES = 8,  /* check */
    KNA_PIECE_BYTES = 65536,    /* rows have a check per piece of their part */
    KNA_PART_ALIGNMENT = 64,
    KNA_NAME_BYTES = 64, /* most of a family's name */
    KNA_HASH_BYTES = 32
};

uint64_t kna__check(const void *bytes, size_t count, uint64_t seed); /* XXH3, 64 bits */

/* ---- the manifest: what was committed last */

typedef struct kna__slot {
    unsigned char uuid[16];
    uint64_t transaction; /* lies in slot transaction % 2 */
    uint64_t generation;  /* which log: log-GENERATION */
    uint64_t log_bytes;   /* of it */
    uint64_t log_check;   /* of its last record */
} kna__slot;

enum { KNA_SLOT_VALID, KNA_SLOT_EMPTY, KNA_SLOT_FOREIGN, KNA_SLOT_VERSION, KNA_SLOT_ORDER, KNA_SLOT_DAMAGED };

void kna__slot_encode(unsigned char bytes[KNA_SLOT_BYTES], const kna__slot *slot);
/* One of KNA_SLOT_*: not a store's, another version's, another byte order's, or damaged. */
int kna__slot_decode(kna__slot *slot, const unsigned char bytes[KNA_SLOT_BYTES]);

/* ---- records of the log */

typedef enum kna__kind {
    KNA_RECORD_NOTE = 1,
    KNA_RECORD_FAMILY,
    KNA_RECORD_DOCUMENT,
    KNA_RECORD_REMOVE,
    KNA_RECORD_COMMIT
} kna__kind;

/* Where rows of a document lie. */
typedef struct kna__part {
    uint32_t family, segment;
    uint64_t first_row; /* number of its first row in the family: given once, never again */
    uint64_t rows;
    uint64_t offset, bytes; /* in the segment: rows, and behind them, at a multiple of 64, the scales of int8 ones */
} kna__part;
enum { KNA_PART_BYTES = 48 };

/* Texts point into the bytes decoded; each is followed by a NUL there. */
typedef struct kna__document {
    uint64_t id;
    int64_t time_us; /* since 1970 */
    uint64_t tokens;
    unsigned char hash[KNA_HASH_BYTES];
    const char *uri, *tags, *attributes; /* tags: separated by newlines; attributes: JSON, or empty */
    uint32_t uri_bytes, tags_bytes, attributes_bytes, parts;
    uint64_t parts_at;  /* kna__part_at() counts from the body's begin */
    uint64_t checks_at; /* of the pieces of all parts, first to last */
} kna__document;

typedef struct kna__family {
    uint32_t id, type;
    uint64_t dim;
    uint64_t next_row; /* rows numbered before the log was begun */
    char name[KNA_NAME_BYTES + 1];
} kna__family;

typedef struct kna__commit {
    uint64_t transaction, next_document, documents; /* documents there are */
    uint64_t next_segment;                          /* a number never used for a file */
    int64_t time_us;
} kna__commit;

typedef struct kna__note {
    const char *name, *text; /* the latest of a name counts; an empty text: none */
    uint32_t name_bytes, text_bytes;
} kna__note;

/* A whole record, framed and with its check, into `to`, which holds kna__record_bytes(body); returns that check. */
size_t kna__record_bytes(size_t body_bytes);
uint64_t kna__record_encode(unsigned char *to, kna__kind kind, const void *body, size_t body_bytes, uint64_t check_before);

/* The record at the begin of `bytes`: false where there is none that is whole and sound in itself. */
typedef struct kna__record {
    kna__kind kind;
    const unsigned char *body;
    uint64_t body_bytes, bytes; /* bytes: of all of it */
    uint64_t check_before, check;
} kna__record;
bool kna__record_decode(kna__record *record, const unsigned char *bytes, uint64_t count);

/* Bodies. Sizes are multiples of 8; encoders fill all of them. */
size_t kna__document_bytes(const kna__document *document, uint64_t pieces);
void kna__document_encode(unsigned char *body, const kna__document *document, const kna__part *parts, const uint64_t *checks);
bool kna__document_decode(kna__document *document, const unsigned char *body, uint64_t bytes);
kna__part kna__part_at(const unsigned char *body, const kna__document *document, uint32_t i);
uint64_t kna__part_pieces(const kna__part *part);

enum { KNA_FAMILY_BYTES = 24 + KNA_NAME_BYTES, KNA_REMOVE_BYTES = 8, KNA_COMMIT_BYTES = 40 };
void kna__family_encode(unsigned char body[KNA_FAMILY_BYTES], const kna__family *family);
bool kna__family_decode(kna__family *family, const unsigned char *body, uint64_t bytes);
bool kna__remove_decode(uint64_t *id, const unsigned char *body, uint64_t bytes);
void kna__commit_encode(unsigned char body[KNA_COMMIT_BYTES], const kna__commit *commit);
bool kna__commit_decode(kna__commit *commit, const unsigned char *body, uint64_t bytes);
size_t kna__note_bytes(const kna__note *note);
void kna__note_encode(unsigned char *body, const kna__note *note);
bool kna__note_decode(kna__note *note, const unsigned char *body, uint64_t bytes);

/* Bytes of a part of so many rows of the type: rows, padding, scales; false where they are more than a part may have (2^48). */
bool kna__part_size(uint64_t *bytes, uint64_t *scales_at, uint32_t type, uint64_t dim, uint64_t rows);
/* Bytes of a row; 0: no such row. */
uint64_t kna__stored_row_bytes(uint32_t type, uint64_t dim);

#endif
