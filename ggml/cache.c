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

/*
 * A cache is (row, cells, streams), packed rows of equal stride; llama.cpp's views start at some stream's row 0. Fills in
 * where that is, as far as one operand tells.
 */
static bool stream_of(const char **base, size_t *stride, int64_t *cells, const struct ggml_tensor *view, int64_t stream)
{
    const struct ggml_tensor *root = view->view_src;

    if (root == NULL || root->data == NULL || knnattn_cache_layer(root) < 0 || root->ne[3] != 1 || view->nb[1] != root->nb[1]) {
        return false;
    }
    size_t offset = (size_t)((const char *)view->data - (const char *)root->data) + (size_t)stream * view->nb[3];
    if (view->ne[1] > root->ne[1] || offset % root->nb[2] >= root->nb[1] || offset / root->nb[2] >= (size_t)root->ne[2]) {
        return false;
    }
    *base = (const char *)root->data + offset;
    *stride = root->nb[1];
    *cells = root->ne[1];
    return true;
}

bool knnattn_place_of(struct knnattn_place *place, const struct ggml_tensor *k, const struct ggml_tensor *v, int64_t stream)
{
    int64_t v_cells = 0;

    memset(place, 0, sizeof(*place));
    if (!stream_of(&place->k, &place->k_stride, &place->cells, k, stream) ||
        !stream_of(&place->v, &place->v_stride, &v_cells, v, stream) || v_cells != place->cells) {
        return false;
    }
    place->heads = k->ne[2];
    place->d = k->ne[0];
    place->dv = v->ne[0];
    place->k_head_stride = k->ne[2] > 1 ? k->nb[2] : 0;
    place->v_head_stride = v->ne[2] > 1 ? v->nb[2] : 0;
    place->k_type = knnattn_type_of(k->type);
    place->v_type = knnattn_type_of(v->type);
    return true;
}

static bool same_place(const struct knnattn_place *a, const struct knnattn_place *b)
{
    return a->k == b->k && a->v == b->v && a->k_stride == b->k_stride && a->v_stride == b->v_stride &&
           a->k_head_stride == b->k_head_stride && a->v_head_stride == b->v_head_stride && a->cells == b->cells &&
           a->heads == b->heads && a->d == b->d && a->dv == b->dv && a->k_type == b->k_type && a->v_type == b->v_type;
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

/* Takes the record at this memory out of the list when its shape is another one by now. */
static struct knnattn_record *find(struct knnattn_records *records, const struct knnattn_place *place)
{
    struct knnattn_record **link = &records->first;

    while (*link != NULL && (*link)->place.k != place->k) {
        link = &(*link)->next;
    }
    struct knnattn_record *record = *link;
    if (record == NULL || same_place(&record->place, place)) {
        return record;
    }
    *link = record->next;
    records->bytes -= record->bytes;
    record_free(record);
    return NULL;
}

static struct knnattn_record *record_new(kna_context *kna, int method, const struct knnattn_place *place)
{
    size_t words = ((size_t)place->cells + WORD_BITS - 1) / WORD_BITS;
    struct knnattn_record *record = calloc(1, sizeof(*record) + words * sizeof(uint64_t));

    if (record == NULL) {
        return NULL;
    }
    record->place = *place;
    memset(record->dirty, 0xff, words * sizeof(uint64_t));
    if (kna_index_new(kna, &record->index, method, place->heads, place->d, place->dv) != KNA_OK) {
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
        set_bits(record, 0, record->place.cells);
    }
    pthread_mutex_unlock(&lock);
}

/* The rows of a stream that overlap the bytes start .. end - 1. */
static void touch_rows(struct knnattn_record *record, const char *base, size_t stride, uintptr_t start, uintptr_t end)
{
    uintptr_t low = (uintptr_t)base;
    uintptr_t high = low + (uintptr_t)record->place.cells * stride;

    start = start > low ? start : low;
    end = end < high ? end : high;
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
            touch_rows(record, record->place.k, record->place.k_stride, low, low + bytes);
            touch_rows(record, record->place.v, record->place.v_stride, low, low + bytes);
        }
    }
    pthread_mutex_unlock(&lock);
}

/* ---- rows loaded */

static bool lies_in(const char *base, size_t stride, int64_t rows, const char *room, size_t room_bytes)
{
    uintptr_t low = (uintptr_t)base;
    uintptr_t start = (uintptr_t)room;

    return low >= start && low + (uintptr_t)rows * stride <= start + room_bytes;
}

/* Rows whose values lie whole within the bytes low .. high - 1, from *first on. */
static int64_t whole_rows(const struct knnattn_place *place, uintptr_t low, uintptr_t high, int64_t *first)
{
    uintptr_t base = (uintptr_t)place->v;
    uintptr_t end = base + (uintptr_t)place->cells * place->v_stride;

    low = low > base ? low : base;
    high = high < end ? high : end;
    if (low >= high) {
        return 0;
    }
    *first = (int64_t)((low - base + place->v_stride - 1) / place->v_stride);
    return (int64_t)((high - base) / place->v_stride) - *first;
}

static struct knnattn_record *loaded_of(const struct knnattn_records *records, uintptr_t low, uintptr_t high, const char *room,
                                        size_t room_bytes, int64_t least, int64_t *rows)
{
    for (struct knnattn_record *record = records->first; record != NULL; record = record->next) {
        const struct knnattn_place *place = &record->place;
        int64_t first = 0;
        int64_t count = whole_rows(place, low, high, &first);
        if (count >= least && lies_in(place->k, place->k_stride, place->cells, room, room_bytes) &&
            lies_in(place->v, place->v_stride, place->cells, room, room_bytes)) {
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
