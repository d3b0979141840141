/*
 * cache.h - which rows of which key-value cache an index knows, and what has been written since.
 *
 * A record belongs to one stream of one layer's cache and to one context. It holds the index and one bit per row: set while
 * the row has been written since it was encoded, or never was encoded.
 * Invariant: whoever learns of a write to memory says so with knnattn_touch(), from any thread; the bits of every record of
 * the process that covers that memory are then set before the call returns. A record is used by its context's thread only.
 */
#ifndef KNNATTN_CACHE_H
#define KNNATTN_CACHE_H

#include "kna.h"

#include <ggml.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct knnattn_engine;
struct knnattn_record;

/* The records of one context. */
struct knnattn_records {
    struct knnattn_record *first;
    struct knnattn_records *next;  /* all sets of the process, for knnattn_touch() */
    struct knnattn_engine *engine; /* whose they are */
    pthread_mutex_t busy;          /* held while their indexes are used or changed */
    size_t bytes;                  /* of all indexes of this set */
};

/* How a record's rows lie in memory: all rows of the stream, from its row 0 on, whether a call looks at them or not. */
struct knnattn_place {
    kna_rows k, v; /* with strides between rows, and as many rows the one as the other */
};

struct knnattn_record {
    struct knnattn_record *next;
    struct knnattn_place place;
    kna_index *index;
    int layer;
    size_t bytes;      /* of the index, as counted in the set */
    int64_t dirty_low; /* no bit below is set */
    uint64_t dirty[];  /* cells bits */
};

/* ggml's type as kna_rows has it; -1 for one the library does not know. */
int knnattn_type_of(enum ggml_type type);

/* Stream `stream` of an operand of attention, (d,rows,heads,streams). */
kna_rows knnattn_rows_of(const struct ggml_tensor *tensor, int64_t stream);

/* The layer of a key-value cache tensor ("cache_k_l7", "cache_v_l7", with or without a tag after "cache_"); -1 for any other. */
int knnattn_cache_layer(const struct ggml_tensor *tensor);

/*
 * Where stream `stream` of the attention operands k and v, (d,n,h_kv,streams) as ggml permutes them, lies in its cache.
 * False where they are no view of a cache that one record can describe.
 */
bool knnattn_place_of(struct knnattn_place *place, const struct ggml_tensor *k, const struct ggml_tensor *v, int64_t stream);

void knnattn_records_open(struct knnattn_records *records, struct knnattn_engine *engine);
void knnattn_records_close(struct knnattn_records *records);
/* Forgets all records, whose owner is computing; the set goes on. */
void knnattn_records_drop(struct knnattn_records *records);

/* The record at a place, made when it is new or its shape has changed; every row of a new one is dirty. NULL: no memory.
 * method: KNA_TOPK or KNA_KNN, the same for all records of a set. */
struct knnattn_record *knnattn_record_at(struct knnattn_records *records, kna_context *kna, int method,
                                         const struct knnattn_place *place);

/* The next run of dirty rows below n, cleared on the way out; false when there is none. */
bool knnattn_record_take(struct knnattn_record *record, int64_t n, int64_t *first, int64_t *count);

/* Every row of the set's records is dirty again. */
void knnattn_records_taint(struct knnattn_records *records);

/* Rows first .. first + count - 1 are dirty again (their encoding failed). */
void knnattn_record_taint(struct knnattn_record *record, int64_t first, int64_t count);

/* Recounts the bytes of a record's index after it was updated. */
void knnattn_record_weigh(struct knnattn_records *records, struct knnattn_record *record);

/* Bytes start .. start + bytes - 1 of memory have been or are about to be written. */
void knnattn_touch(const void *start, size_t bytes);

/*
 * A record of which these bytes are the values of `least` or more rows, and whose keys and values all lie in the memory that
 * starts at room, so that they can be read; *rows is one past the last row. Its set is held (records->busy) and is the
 * caller's to let go. NULL: there is none, or its set is in use.
 */
struct knnattn_record *knnattn_record_loaded(const void *start, size_t bytes, const void *room, size_t room_bytes, int64_t least,
                                             struct knnattn_records **records, int64_t *rows);

#endif
