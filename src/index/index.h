/*
 * index.h - inside a kna_index: per KV head, blocks of 16 consecutive rows.
 *
 * Invariant: a row whose present bit is set is encoded as the cache held it when it was last updated; a block's mean is the
 * mean value of its present rows as long as none of them was removed, so it is used only where all 16 are present. Rows that
 * are not present take no part.
 */
#ifndef KNA_INDEX_H
#define KNA_INDEX_H

#include "../kernel/context.h"

struct kna_index {
    kna__heap *heap;
    int64_t heads, d, dv;
    size_t d4;         /* groups of four columns of a packed key */
    int64_t rows;      /* covered: one past the highest row updated */
    int64_t capacity;  /* blocks allocated per head */
    uint8_t *packed;   /* (heads, capacity, d4, 16, 4), see scan() in kernel.h */
    float *scales;     /* (heads, capacity * 16) */
    uint16_t *means;   /* (heads, capacity, dv) f16 */
    uint16_t *present; /* (capacity) bit r: row 16 b + r; the same for all heads */
};

static inline const uint8_t *kna__index_packed(const kna_index *index, int64_t head, int64_t block)
{
    return index->packed + (size_t)(head * index->capacity + block) * index->d4 * 4 * KNA_BLOCK;
}

static inline const float *kna__index_scales(const kna_index *index, int64_t head, int64_t block)
{
    return index->scales + (head * index->capacity + block) * KNA_BLOCK;
}

static inline const uint16_t *kna__index_means(const kna_index *index, int64_t head, int64_t block)
{
    return index->means + (head * index->capacity + block) * index->dv;
}

/* Whether all of the first n rows are present. */
bool kna__index_is_full(const kna_index *index, int64_t n);

/* Room for `rows` rows. */
int kna__index_reserve(kna_context *context, kna_index *index, int64_t rows);

#endif
