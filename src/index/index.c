/* index.c - an index's life: made, grown, asked, freed. */
#include "index.h"

typedef struct layout {
    size_t packed, scales, present;
} layout;

static layout layout_of(const kna_index *index, int64_t capacity)
{
    size_t blocks = kna__size_product((size_t)index->heads, (size_t)capacity);
    layout bytes;
    blocks = index->method == KNA_TOPK ? blocks : 0;
    bytes.packed = kna__size_product(blocks, index->d4 * 4 * KNA_BLOCK);
    bytes.scales = kna__size_product(blocks, KNA_BLOCK * sizeof(float));
    bytes.present = kna__size_product((size_t)capacity, sizeof(uint16_t));
    return bytes;
}

static void release_arrays(kna_index *index)
{
    layout bytes = layout_of(index, index->capacity);
    kna__release(index->heap, index->packed, bytes.packed);
    kna__release(index->heap, index->scales, bytes.scales);
    kna__release(index->heap, index->present, bytes.present);
}

int kna_index_new(kna_context *context, kna_index **index, int method, int64_t heads, int64_t d, int64_t dv)
{
    context->message[0] = 0;
    if (index && method != KNA_TOPK && method != KNA_KNN) {
        *index = NULL;
        return KNA_FAIL(context, KNA_EINVAL, "index: method %d is neither topk nor knn", method);
    }
    if (!index || heads < 1 || d < 1 || dv < 1) {
        return KNA_FAIL(context, KNA_EINVAL, "index: heads = %lld, d = %lld, dv = %lld must be at least 1", (long long)heads,
                        (long long)d, (long long)dv);
    }
    *index = NULL;
    if (heads > KNA_MAX_HEADS || d > KNA_MAX_DIM || dv > KNA_MAX_DIM) {
        return KNA_FAIL(context, KNA_ELIMIT, "index: heads = %lld (at most %d), d = %lld, dv = %lld (at most %d)",
                        (long long)heads, KNA_MAX_HEADS, (long long)d, (long long)dv, KNA_MAX_DIM);
    }
    kna_index *fresh = kna__allocate(&context->heap, sizeof *fresh);
    if (!fresh) {
        return KNA_FAIL(context, KNA_ENOMEM, "index: out of memory");
    }
    memset(fresh, 0, sizeof *fresh);
    fresh->heap = &context->heap;
    fresh->heads = heads;
    fresh->d = d;
    fresh->dv = dv;
    fresh->d4 = (size_t)(d + 3) / 4;
    fresh->method = method;
    fresh->phase = context->indexes++ % KNA_PHASES;
    fresh->level = kna__allocate(&context->heap, (size_t)heads * sizeof *fresh->level);
    if (!fresh->level) {
        kna__release(&context->heap, fresh, sizeof *fresh);
        return KNA_FAIL(context, KNA_ENOMEM, "index: out of memory");
    }
    memset(fresh->level, 0, (size_t)heads * sizeof *fresh->level);
    *index = fresh;
    return KNA_OK;
}

void kna_index_free(kna_index *index)
{
    if (!index) {
        return;
    }
    release_arrays(index);
    kna__clusters_release(index);
    kna__metric_release(index);
    kna__release(index->heap, index->level, (size_t)index->heads * sizeof *index->level);
    kna__release(index->heap, index, sizeof *index);
}

int64_t kna_index_rows(const kna_index *index)
{
    return index->rows;
}

size_t kna_index_bytes(const kna_index *index)
{
    layout bytes = layout_of(index, index->capacity);
    return sizeof *index + (size_t)index->heads * sizeof *index->level + bytes.packed + bytes.scales + bytes.present + kna__clusters_bytes(index) + kna__metric_bytes(index);
}

int64_t kna__index_next(const kna_index *index, int64_t row, int64_t end, bool present)
{
    if (index->present_rows == index->rows && end <= index->rows) {
        return present && row < end ? row : end; /* nothing is missing: the hot path */
    }
    while (row < end) {
        unsigned here = index->present[row / KNA_BLOCK];
        unsigned wanted = (present ? here : ~here & UINT16_MAX) >> row % KNA_BLOCK;
        if (wanted) {
            row += __builtin_ctz(wanted);
            return row < end ? row : end;
        }
        row = (row / KNA_BLOCK + 1) * KNA_BLOCK;
    }
    return end;
}

int64_t kna__index_gaps(const kna_index *index, int64_t n)
{
    int64_t gaps = 0;
    for (int64_t row = 0; (row = kna__index_next(index, row, n, false)) < n; gaps++) {
        row = kna__index_next(index, row, n, true);
    }
    return gaps;
}

static void copy_heads(char *to, const char *from, int64_t heads, size_t to_bytes, size_t from_bytes)
{
    for (int64_t head = 0; head < heads && from_bytes; head++) {
        memcpy(to + (size_t)head * to_bytes, from + (size_t)head * from_bytes, from_bytes);
    }
}

/* Move everything into arrays of a larger capacity. On failure nothing has changed. */
static int grow(kna_context *context, kna_index *index, int64_t capacity)
{
    kna_index old = *index, bigger = *index;
    layout bytes = layout_of(index, capacity), before = layout_of(index, old.capacity);
    size_t heads = (size_t)index->heads;
    bool keys = index->method == KNA_TOPK;
    bigger.capacity = capacity;
    bigger.packed = keys ? kna__allocate(index->heap, bytes.packed) : NULL;
    bigger.scales = keys ? kna__allocate(index->heap, bytes.scales) : NULL;
    bigger.present = kna__allocate(index->heap, bytes.present);
    if (!bigger.present || (keys && (!bigger.packed || !bigger.scales))) {
        release_arrays(&bigger);
        return KNA_FAIL(context, KNA_ENOMEM, "index: out of memory for %lld rows", (long long)(capacity * KNA_BLOCK));
    }
    if (keys) {
        memset(bigger.packed, 128, bytes.packed); /* 128 is the packed zero */
        memset(bigger.scales, 0, bytes.scales);
    }
    memset(bigger.present, 0, bytes.present);
    if (old.capacity) {
        copy_heads((char *)bigger.packed, (const char *)old.packed, index->heads, bytes.packed / heads, before.packed / heads);
        copy_heads((char *)bigger.scales, (const char *)old.scales, index->heads, bytes.scales / heads, before.scales / heads);
        memcpy(bigger.present, old.present, before.present);
        release_arrays(&old);
    }
    *index = bigger;
    return KNA_OK;
}

int kna__index_reserve(kna_context *context, kna_index *index, int64_t rows)
{
    int64_t blocks = (rows + KNA_BLOCK - 1) / KNA_BLOCK;
    if (blocks <= index->capacity) {
        return KNA_OK;
    }
    int64_t roomy = index->capacity + index->capacity / 4;
    return grow(context, index, blocks > roomy ? blocks : roomy);
}

int kna_index_remove(kna_context *context, kna_index *index, int64_t first, int64_t count)
{
    context->message[0] = 0;
    if (!index || first < 0 || count < 0 || first > KNA_MAX_ROWS - count) {
        return KNA_FAIL(context, KNA_EINVAL, "index: rows %lld + %lld are outside 0..%d, or the index is null", (long long)first,
                        (long long)count, KNA_MAX_ROWS);
    }
    int64_t end = first + count < index->rows ? first + count : index->rows;
    for (int64_t row = first; row < end; row++) {
        index->present_rows -= kna__index_has(index, row);
        index->present[row / KNA_BLOCK] &= (uint16_t)~(1u << row % KNA_BLOCK);
    }
    kna__clusters_remove(index, first, end - first);
    return KNA_OK;
}
