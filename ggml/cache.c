/*
 * cache.c - records of indexed caches (see cache.h).
 *
 * Invariant: one lock guards the list of all sets, the lists of records and their bits. Encoding happens outside of it: a
 * row written while it is being encoded is dirty again afterwards, because its bit was cleared before.
 */
#define _GNU_SOURCE
#include "cache.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define WORD_BITS 64

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct knnattn_records *all_records;

/* ---- recognising a cache */

int knnattn_type_of(enum ggml_type type)
{
    switch (type) {
    case GGML_TYPE_F32:
        return KNA_F32;
    case GGML_TYPE_F16:
        return KNA_F16;
    case GGML_TYPE_BF16:
        return KNA_BF16;
    case GGML_TYPE_Q8_0:
        return KNA_Q8_0;
    default:
        return -1;
    }
}

int knnattn_cache_layer(const struct ggml_tensor *tensor)
{
    const char *name = tensor->name;
    const char *tail = strrchr(name, '_');

    if (strncmp(name, "cache_", 6) != 0 || tail == NULL || tail[1] != 'l' || tail[2] < '0' || tail[2] > '9') {
        return -1;
    }
    if (tail[-1] != 'k' && tail[-1] != 'v') {
        return -1;
    }
    char *end = NULL;
    long layer = strtol(tail + 2, &end, 10);
    return *end == '\0' && layer <= INT32_MAX ? (int)layer : -1;
}

kna_rows knnattn_rows_of(const struct ggml_tensor *tensor, int64_t stream)
{
    return (kna_rows){
        .data = (const char *)tensor->data + (size_t)stream * tensor->nb[3],
        .type = knnattn_type_of(tensor->type),
        .heads = tensor->ne[2],
        .rows = tensor->ne[1],
        .dim = tensor->ne[0],
        .head_stride_bytes = tensor->ne[2] > 1 ? (int64_t)tensor->nb[2] : 0,
        .row_stride_bytes = tensor->ne[1] > 1 ? (int64_t)tensor->nb[1] : 0,
    };
}

/*
 * A cache is (row, cells, streams), packed rows of equal stride; llama.cpp's views start at some stream's row 0. The rows are all
 * that the stream has, not only those in view.
 */
static bool stream_of(kna_rows *rows, const struct ggml_tensor *view, int64_t stream)
{
    const struct ggml_tensor *root = view->view_src;

    if (root == NULL || root->data == NULL || knnattn_cache_layer(root) < 0 || root->ne[3] != 1 || view->nb[1] != root->nb[1]) {
        return false;
    }
    *rows = knnattn_rows_of(view, stream);
    size_t offset = (size_t)((const char *)rows->data - (const char *)root->data);
    if (view->ne[1] > root->ne[1] || offset % root->nb[2] >= root->nb[1] || offset / root->nb[2] >= (size_t)root->ne[2]) {
        return false;
    }
    rows->rows = root->ne[1];
    rows->row_stride_bytes = (int64_t)root->nb[1];
    return true;
}

bool knnattn_place_of(struct knnattn_place *place, const struct ggml_tensor *k, const struct ggml_tensor *v, int64_t stream)
{
    memset(place, 0, sizeof(*place));
    return stream_of(&place->k, k, stream) && stream_of(&place->v, v, stream) && place->k.rows == place->v.rows &&
           place->k.heads == place->v.heads;
}

static bool same_rows(const kna_rows *a, const kna_rows *b)
{
    return a->data == b->data && a->type == b->type && a->heads == b->heads && a->rows == b->rows && a->dim == b->dim &&
           a->head_stride_bytes == b->head_stride_bytes && a->row_stride_bytes == b->row_stride_bytes;
}

/* ---- sets and records */

void knnattn_records_open(struct knnattn_records *records, struct knnattn_engine *engine)
{
    *records = (struct knnattn_records){ .engine = engine, .busy = PTHREAD_MUTEX_INITIALIZER };
    pthread_mutex_lock(&lock);
    records->next = all_records;
    all_records = records;
    pthread_mutex_unlock(&lock);
}

static void record_free(struct knnattn_record *record)
{
    if (record != NULL) {
        kna_index_free(record->index);
        free(record);
    }
}

void knnattn_records_close(struct knnattn_records *records)
{
    pthread_mutex_lock(&lock);
    struct knnattn_records **link = &all_records;
    while (*link != records) {
        link = &(*link)->next;
    }
    *link = records->next;
    pthread_mutex_unlock(&lock);

    pthread_mutex_lock(&records->busy); /* whoever found a record before it was taken out is done with it now */
    pthread_mutex_unlock(&records->busy);
    while (records->first != NULL) {
        struct knnattn_record *record = records->first;
        records->first = record->next;
        record_free(record);
    }
}

void knnattn_records_drop(struct knnattn_records *records)
{
    pthread_mutex_lock(&lock);
    while (records->first != NULL) {
        struct knnattn_record *record = records->first;
        records->first = record->next;
        record_free(record);
    }
    records->bytes = 0;
    pthread_mutex_unlock(&lock);
}

/* Takes the record at this memory out of the list when its shape is another one by now. */
static struct knnattn_record *find(struct knnattn_records *records, const struct knnattn_place *place)
{
    struct knnattn_record **link = &records->first;

    while (*link != NULL && (*link)->place.k.data != place->k.data) {
        link = &(*link)->next;
    }
    struct knnattn_record *record = *link;
    if (record == NULL || (same_rows(&record->place.k, &place->k) && same_rows(&record->place.v, &place->v))) {
        return record;
    }
    *link = record->next;
    records->bytes -= record->bytes;
    record_free(record);
    return NULL;
}

static struct knnattn_record *record_new(kna_context *kna, int method, const struct knnattn_place *place)
{
    size_t words = ((size_t)place->k.rows + WORD_BITS - 1) / WORD_BITS;
    struct knnattn_record *record = calloc(1, sizeof(*record) + words * sizeof(uint64_t));

    if (record == NULL) {
        return NULL;
    }
    record->place = *place;
    memset(record->dirty, 0xff, words * sizeof(uint64_t));
    if (kna_index_new(kna, &record->index, method, place->k.heads, place->k.dim, place->v.dim) != KNA_OK) {
        record_free(record);
        return NULL;
    }
    return record;
}

struct knnattn_record *knnattn_record_at(struct knnattn_records *records, kna_context *kna, int method,
                                         const struct knnattn_place *place)
{
    pthread_mutex_lock(&lock);
    struct knnattn_record *record = find(records, place);
    if (record == NULL) {
        record = record_new(kna, method, place);
        if (record != NULL) {
            record->next = records->first;
            records->first = record;
        }
    }
    pthread_mutex_unlock(&lock);
    return record;
}

void knnattn_record_weigh(struct knnattn_records *records, struct knnattn_record *record)
{
    size_t bytes = kna_index_bytes(record->index);

    records->bytes = records->bytes - record->bytes + bytes;
    record->bytes = bytes;
}

/* ---- dirty rows; the lock is held */

static void set_bits(struct knnattn_record *record, int64_t first, int64_t count)
{
    int64_t end = first + count;

    if (count <= 0) {
        return;
    }
    record->dirty_low = first < record->dirty_low ? first : record->dirty_low;
    for (int64_t row = first; row < end;) {
        int64_t word = row / WORD_BITS;
        int low = (int)(row % WORD_BITS);
        int64_t stop = (word + 1) * WORD_BITS < end ? (word + 1) * WORD_BITS : end;
        int bits = (int)(stop - row);
        uint64_t mask = bits == WORD_BITS ? ~UINT64_C(0) : ((UINT64_C(1) << bits) - 1) << low;
        record->dirty[word] |= mask;
        row = stop;
    }
}

static bool is_dirty(const struct knnattn_record *record, int64_t row)
{
    return (record->dirty[row / WORD_BITS] >> (row % WORD_BITS)) & 1;
}

static int64_t next_dirty(const struct knnattn_record *record, int64_t row, int64_t n)
{
    while (row < n && !is_dirty(record, row)) {
        row = record->dirty[row / WORD_BITS] >> (row % WORD_BITS) == 0 ? (row / WORD_BITS + 1) * WORD_BITS : row + 1;
    }
    return row < n ? row : n;
}

bool knnattn_record_take(struct knnattn_record *record, int64_t n, int64_t *first, int64_t *count)
{
    pthread_mutex_lock(&lock);
    int64_t row = next_dirty(record, record->dirty_low, n);
    *first = row;
    while (row < n && is_dirty(record, row)) {
        record->dirty[row / WORD_BITS] &= ~(UINT64_C(1) << (row % WORD_BITS));
        row++;
    }
    *count = row - *first;
    record->dirty_low = row > record->dirty_low ? row : record->dirty_low;
    pthread_mutex_unlock(&lock);
    return *count > 0;
}

void knnattn_record_taint(struct knnattn_record *record, int64_t first, int64_t count)
{
    pthread_mutex_lock(&lock);
    set_bits(record, first, count);
    pthread_mutex_unlock(&lock);
}

void knnattn_records_taint(struct knnattn_records *records)
{
    pthread_mutex_lock(&lock);
    for (struct knnattn_record *record = records->first; record != NULL; record = record->next) {
        set_bits(record, 0, record->place.k.rows);
    }
    pthread_mutex_unlock(&lock);
}

/* Where rows start in memory, and one past their end. */
static uintptr_t low_of(const kna_rows *rows)
{
    return (uintptr_t)rows->data;
}

static uintptr_t high_of(const kna_rows *rows)
{
    return low_of(rows) + (uintptr_t)rows->rows * (uintptr_t)rows->row_stride_bytes;
}

/* The rows that overlap the bytes start .. end - 1. */
static void touch_rows(struct knnattn_record *record, const kna_rows *rows, uintptr_t start, uintptr_t end)
{
    uintptr_t low = low_of(rows);
    uintptr_t stride = (uintptr_t)rows->row_stride_bytes;

    start = start > low ? start : low;
    end = end < high_of(rows) ? end : high_of(rows);
    if (start < end) {
        int64_t first = (int64_t)((start - low) / stride);
        set_bits(record, first, (int64_t)((end - 1 - low) / stride) - first + 1);
    }
}

void knnattn_touch(const void *start, size_t bytes)
{
    uintptr_t low = (uintptr_t)start;

    pthread_mutex_lock(&lock);
    for (struct knnattn_records *records = all_records; records != NULL; records = records->next) {
        for (struct knnattn_record *record = records->first; record != NULL; record = record->next) {
            touch_rows(record, &record->place.k, low, low + bytes);
            touch_rows(record, &record->place.v, low, low + bytes);
        }
    }
    pthread_mutex_unlock(&lock);
}

/* ---- rows loaded */

static bool lies_in(const kna_rows *rows, const char *room, size_t room_bytes)
{
    return low_of(rows) >= (uintptr_t)room && high_of(rows) <= (uintptr_t)room + room_bytes;
}

/* Rows that lie whole within the bytes low .. high - 1, from *first on. */
static int64_t whole_rows(const kna_rows *rows, uintptr_t low, uintptr_t high, int64_t *first)
{
    uintptr_t base = low_of(rows);
    uintptr_t stride = (uintptr_t)rows->row_stride_bytes;

    low = low > base ? low : base;
    high = high < high_of(rows) ? high : high_of(rows);
    if (low >= high) {
        return 0;
    }
    *first = (int64_t)((low - base + stride - 1) / stride);
    return (int64_t)((high - base) / stride) - *first;
}

static struct knnattn_record *loaded_of(const struct knnattn_records *records, uintptr_t low, uintptr_t high, const char *room,
                                        size_t room_bytes, int64_t least, int64_t *rows)
{
    for (struct knnattn_record *record = records->first; record != NULL; record = record->next) {
        const struct knnattn_place *place = &record->place;
        int64_t first = 0;
        int64_t count = whole_rows(&place->v, low, high, &first);
        if (count >= least && lies_in(&place->k, room, room_bytes) && lies_in(&place->v, room, room_bytes)) {
            *rows = first + count;
            return record;
        }
    }
    return NULL;
}

struct knnattn_record *knnattn_record_loaded(const void *start, size_t bytes, const void *room, size_t room_bytes, int64_t least,
                                             struct knnattn_records **of, int64_t *rows)
{
    struct knnattn_record *record = NULL;
    uintptr_t low = (uintptr_t)start;

    pthread_mutex_lock(&lock);
    for (struct knnattn_records *records = all_records; records != NULL && record == NULL; records = records->next) {
        if (pthread_mutex_trylock(&records->busy) != 0) {
            continue;
        }
        record = loaded_of(records, low, low + bytes, room, room_bytes, least, rows);
        if (record != NULL) {
            *of = records;
        } else {
            pthread_mutex_unlock(&records->busy);
        }
    }
    pthread_mutex_unlock(&lock);
    return record;
}
