/*
 * store.h - a store in memory: its files, and tables of what the log says.
 *
 * The log is the truth: a chain of records, each with the check of the one before it; a commit record ends a transaction. Tables are
 * made from it by one function, kna__tables_apply(), whether a record was just written or is read back. Documents, parts and rows only
 * grow; what is removed is marked, and goes when the store is compacted.
 *
 * Invariant: entries below `visible` are committed; those above belong to the transaction being written, whose records lie in
 * `pending` and will lie in the log from slot.log_bytes on, so that their places there are known before.
 */
#ifndef KNA_STORE_H
#define KNA_STORE_H

#include "file.h"
#include "format.h"

/* A growing array. */
typedef struct kna__list {
    void *items;
    uint64_t count, room;
    uint32_t item_bytes;
} kna__list;

typedef struct kna__entry {
    uint64_t id;
    uint64_t body_at; /* in the log */
    uint64_t body_bytes;
    uint64_t first_part;
    uint32_t parts;
    bool removed, leaving; /* leaving: by the transaction being written */
} kna__entry;

typedef struct kna__held_part {
    kna__part part;
    uint64_t entry;
    uint64_t checks_at;   /* in the log */
    uint64_t first_piece; /* in `verified` */
} kna__held_part;

typedef struct kna__held_family {
    kna__family family;
    kna__list parts;        /* uint64_t: which of all parts are of this family, by rows */
    uint64_t visible_parts; /* committed */
    uint64_t visible_rows;
    uint64_t stamp; /* of the check that met it last: a document has a family once */
} kna__held_family;

typedef struct kna__segment {
    kna__file file;
    const unsigned char *map;
    uint64_t mapped;
    uint64_t end; /* of the last part in it, committed or not */
} kna__segment;

struct kna_store {
    kna_context *context;
    char *folder;
    bool write;
    int broken;     /* a status: nothing but closing is left; 0: none */
    bool read_only; /* after a failed flush */
    bool locked;    /* the lock is ours: this process's, not that of one it forked from */
    int64_t process;
    kna__file lock, manifest, log;
    kna__slot slot;
    const unsigned char *log_map;
    uint64_t log_mapped;
    kna__commit last;                                              /* the last commit record */
    kna__list entries, parts, families, segments, notes, verified; /* verified: a byte per piece; notes: places in the log */
    uint64_t stamps;                                               /* checks so far */
    uint64_t visible, visible_parts, visible_families, visible_notes;
    uint64_t removed, live_bytes, dead_bytes;
    uint32_t *uris; /* open addressing: entry + 1 */
    uint64_t uri_room, uri_used;
    /* the transaction being written */
    kna__list pending; /* bytes of records */
    uint64_t pending_check;
    kna__list leaving; /* entries */
    uint64_t next_document;
    uint64_t segment_bytes;
    unsigned char *out;                  /* bytes not yet in the segment */
    uint64_t out_used, out_at;           /* they belong there */
    uint32_t out_segment, first_segment; /* the one written to; the first one since the last commit */
    uint32_t next_segment;               /* a number never used for a file */
    uint64_t own_segments;               /* numbers from here on were begun with this log: rows may be put behind those in them */
    bool folder_changed;
};

enum { KNA_OUT_BYTES = 16 * KNA_PIECE_BYTES };
#define KNA_MAX_SEGMENTS 1048576

/* ---- tables.c */
int kna__list_reserve(kna_context *context, kna__list *list, uint64_t more);
void kna__list_free(kna_context *context, kna__list *list);
static inline void *kna__list_at(const kna__list *list, uint64_t i)
{
    return (void *)((uintptr_t)list->items + i * list->item_bytes); /* also of a list without items, which has no memory */
}
void kna__tables_init(kna_store *store);
void kna__tables_free(kna_store *store);
/* Room for what the record brings, then its effect; `at` is where it lies, or will lie, in the log. KNA_EDAMAGED where it cannot be
 * after those before it; KNA_ENOMEM: nothing has changed. */
int kna__tables_apply(kna_store *store, const kna__record *record, uint64_t at);
/* All applied so far is committed; or goes, back to the last commit. */
void kna__tables_commit(kna_store *store);
void kna__tables_rollback(kna_store *store);
/* The entry of a document there is: by id, by uri (committed ones; with `written` those being written count, and not those leaving). */
kna__entry *kna__entry_of(const kna_store *store, int64_t id);
kna__entry *kna__entry_named(const kna_store *store, const char *uri, bool written);
/* One past the highest segment that rows lie in. */
uint64_t kna__segments_used(const kna_store *store);
kna__held_family *kna__family_of(const kna_store *store, int family);
/* Bytes of the log, or of what will be it. */
const unsigned char *kna__log_at(const kna_store *store, uint64_t at);
void kna__entry_document(const kna_store *store, const kna__entry *entry, kna__document *document);

/* ---- write.c */
/* A record of the transaction being written: framed, kept, applied. The body has been written at kna__pending_body(). */
unsigned char *kna__pending_body(kna_store *store, size_t body_bytes); /* NULL: out of memory */
int kna__pending_add(kna_store *store, kna__kind kind, size_t body_bytes);
/* Bytes behind those of the segment being written, checks of their pieces to `checks` from *pieces on. Rows from `rows` packed. */
int kna__out_part(kna_store *store, kna__part *part, const kna_rows *rows, uint64_t *checks);
/* A part that was written before, as it is: its checks go on to hold. */
int kna__out_copy(kna_store *store, kna__part *part, const unsigned char *bytes);
int kna__out_flush(kna_store *store);
int kna__out_sync(kna_store *store); /* all rows since kna__out_begin(), and the names of their files */
int kna__writer_status(const kna_store *store);
void kna__out_begin(kna_store *store); /* where the next transaction's rows go */
void kna__next_segment_after(kna_store *store, uint32_t number);
uint32_t kna__next_segment(const kna_store *store); /* for the commit record: commits without rows use up none */
int64_t kna__now_us(void);

/* ---- open.c */
/* Records one after another, each with the check of the one before: begin with `at` and that check. */
typedef struct kna__chain {
    const unsigned char *log;
    uint64_t at, end; /* of the record given last */
    uint64_t check, bytes;
} kna__chain;
bool kna__chain_next(kna__chain *chain, kna__record *record);          /* false: at its end, or where it breaks */
int kna__chain_whole(const kna_store *store, const kna__chain *chain); /* KNA_EDAMAGED where it broke */
void kna__log_name(char name[40], uint64_t generation);
void kna__segment_name(char name[40], uint32_t segment);
int kna__slots_read(kna_context *context, const kna__file *manifest, kna__slot *newest, bool *one_is_bad);
/* The same, some times over while a slot is not sound: it may be just being written. */
int kna__slots_look(kna_context *context, const kna__file *manifest, kna__slot *newest, bool *one_is_bad);
int kna__slot_write(const kna__file *manifest, const kna__slot *slot);
int kna__uuid_make(kna_context *context, unsigned char uuid[16]);
/* With the log open: what lies behind the sound receipt, if it is a whole commit. */
int kna__recover(kna_store *store, kna__slot *slot);
/* Map the log and all segments as far as they are committed. */
int kna__store_map(kna_store *store);
int kna__store_status(const kna_store *store); /* KNA_OK, or why it takes no calls */

void kna__store_leave(kna_store *store); /* tables and log; kna__store_reload() makes them anew from what the manifest says */
int kna__store_reload(kna_store *store);
/* The store as open.c begins it: folder, lock, manifest and buffer, nothing loaded; made by kna__store_begin(). */
int kna__store_begin(kna_context *context, kna_store **store, const char *folder, const kna_store_options *options);

/* ---- compact.c */
/* A new log of the documents there are, rows of segments with a dead share of at least `share` written anew, and the receipt. */
int kna__generation_write(kna_store *store, double share);
/* Files that nothing refers to go. */
void kna__sweep(kna_store *store);

/* ---- read.c */
/* Where a part lies, its pieces compared with their checks if they have not been. */
int kna__part_rows(kna_store *store, kna__held_part *part, const unsigned char **bytes);
/* Some bytes of a part, only the pieces they lie in compared; NULL: not as written, or not to be read. Leaves no message: for many threads at once. */
const unsigned char *kna__part_bytes(kna_store *store, const kna__held_part *part, uint64_t at, uint64_t bytes);
kna_store_rows kna__part_as_rows(const kna_store *store, const kna__part *part, const unsigned char *bytes);

#endif
