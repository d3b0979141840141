/*
 * index.h - inside a kna_index: which rows are present, and what the method it serves needs: for top-k, per KV head, int8 keys in
 * blocks of 16 consecutive rows; for kNN attention, clusters (clusters.h).
 *
 * Invariant: a row whose present bit is set is described as the cache held it when it was last updated. Rows that are not
 * present take no part.
 */
#ifndef KNA_INDEX_H
#define KNA_INDEX_H

#include "../kernel/context.h"
#include "clusters.h"

struct kna_index {
    kna__heap *heap;
    int method;        /* KNA_TOPK or KNA_KNN */
    int64_t heads, d, dv;
    size_t d4;         /* groups of four columns of a packed key */
    int64_t rows;      /* covered: one past the highest row updated */
    int64_t capacity;  /* blocks allocated per head */
    uint16_t *present; /* (capacity) bit r: row 16 b + r; the same for all heads */
    int64_t present_rows;

    /* top-k */
    uint8_t *packed;   /* (heads, capacity, d4, 16, 4), see scan() in kernel.h */
    float *scales;     /* (heads, capacity * 16) */

    /* knn */
    kna__clusters clusters;
    float *moment;     /* metric.c */
    int64_t phase;     /* 0 .. KNA_PHASES - 1, other for each index of a context in turn */
    uint64_t calls;    /* of single queries */
    float *level;      /* (heads) log2 of k, where eps is asked for with a delta (attend/knn_level.c); 0: not known yet */
    uint64_t draws;    /* calls that drew rows for it */
};

enum { KNA_PHASES = 32 };

static inline const uint8_t *kna__index_packed(const kna_index *index, int64_t head, int64_t block)
{
    return index->packed + (size_t)(head * index->capacity + block) * index->d4 * 4 * KNA_BLOCK;
}

static inline const float *kna__index_scales(const kna_index *index, int64_t head, int64_t block)
{
    return index->scales + (head * index->capacity + block) * KNA_BLOCK;
}

static inline bool kna__index_has(const kna_index *index, int64_t row)
{
    return index->present[row / KNA_BLOCK] >> row % KNA_BLOCK & 1;
}

/* The rows of a head from `row` on. */
static inline kna__span kna__row_span(const kna_rows *rows, int64_t head, int64_t row)
{
    size_t row_bytes = rows->row_stride_bytes ? (size_t)rows->row_stride_bytes : kna__row_bytes(rows->type, rows->dim);
    size_t head_bytes = rows->head_stride_bytes ? (size_t)rows->head_stride_bytes : row_bytes * (size_t)rows->rows;
    kna__span span;
    span.data = (const char *)rows->data + (size_t)head * head_bytes + (size_t)row * row_bytes;
    span.row_bytes = row_bytes;
    span.scales = rows->scales ? rows->scales + head * rows->rows + row : NULL;
    return span;
}

/* The first of rows row .. end - 1 that is present, or that is not; `end`: there is none. */
int64_t kna__index_next(const kna_index *index, int64_t row, int64_t end, bool present);

static inline bool kna__index_has_all(const kna_index *index, int64_t first, int64_t end)
{
    return kna__index_next(index, first, end, false) >= end;
}

/* Runs of rows not present among the first n. */
int64_t kna__index_gaps(const kna_index *index, int64_t n);

/* encode.c - whether keys and values are such as the index describes; a message says what is wrong. */
int kna__index_check(kna_context *context, const kna_index *index, const kna_rows *k, const kna_rows *v);

/* Room for `rows` rows. */
int kna__index_reserve(kna_context *context, kna_index *index, int64_t rows);

#endif
