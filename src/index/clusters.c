/* clusters.c - the clusters of an index: made room for, marked when rows change, opened when too many did. */
#include "clusters.h"
#include "index.h"

/* Rows written in a formed piece before it is opened; until then the clusters they are in are read in full. */
enum { TOUCHED_MOST = 32 };

typedef struct layout {
    size_t key, value, number, short_number, member, flag, piece;
} layout;

static layout layout_of(const kna_index *index, int64_t pieces)
{
    size_t slots = kna__size_product((size_t)index->heads, (size_t)pieces * KNA_SLOTS);
    layout bytes;
    bytes.key = kna__size_product(slots, (size_t)index->d * sizeof(uint16_t));
    bytes.value = kna__size_product(slots, (size_t)index->dv * sizeof(uint16_t));
    bytes.number = kna__size_product(slots, sizeof(float));
    bytes.short_number = kna__size_product(slots, sizeof(uint16_t));
    bytes.member = kna__size_product(slots, KNA_MEMBERS * sizeof(uint16_t));
    bytes.flag = slots;
    bytes.piece = (size_t)pieces;
    return bytes;
}

size_t kna__clusters_bytes(const kna_index *index)
{
    layout b = layout_of(index, index->clusters.capacity);
    return b.key + b.value + 3 * b.number + 2 * b.short_number + b.member + b.flag + 2 * b.piece;
}

static void release(kna_index *index, kna__clusters *c)
{
    layout b = layout_of(index, c->capacity);
    kna__release(index->heap, c->key, b.key);
    kna__release(index->heap, c->value, b.value);
    kna__release(index->heap, c->spread, b.number);
    kna__release(index->heap, c->deviation, b.number);
    kna__release(index->heap, c->norm, b.number);
    kna__release(index->heap, c->count, b.short_number);
    kna__release(index->heap, c->first, b.short_number);
    kna__release(index->heap, c->member, b.member);
    kna__release(index->heap, c->always, b.flag);
    kna__release(index->heap, c->state, b.piece);
    kna__release(index->heap, c->touched, b.piece);
}

void kna__clusters_release(kna_index *index)
{
    release(index, &index->clusters);
    memset(&index->clusters, 0, sizeof index->clusters);
}

static void move(void *to, const void *from, int64_t heads, size_t to_bytes, size_t from_bytes)
{
    for (int64_t head = 0; head < heads && from_bytes; head++) {
        memcpy((char *)to + (size_t)head * (to_bytes / (size_t)heads),
               (const char *)from + (size_t)head * (from_bytes / (size_t)heads), from_bytes / (size_t)heads);
    }
}

static bool allocate(kna_index *index, kna__clusters *c)
{
    layout b = layout_of(index, c->capacity);
    c->key = kna__allocate(index->heap, b.key);
    c->value = kna__allocate(index->heap, b.value);
    c->spread = kna__allocate(index->heap, b.number);
    c->deviation = kna__allocate(index->heap, b.number);
    c->norm = kna__allocate(index->heap, b.number);
    c->count = kna__allocate(index->heap, b.short_number);
    c->first = kna__allocate(index->heap, b.short_number);
    c->member = kna__allocate(index->heap, b.member);
    c->always = kna__allocate(index->heap, b.flag);
    c->state = kna__allocate(index->heap, b.piece);
    c->touched = kna__allocate(index->heap, b.piece);
    if (!c->key || !c->value || !c->spread || !c->deviation || !c->norm || !c->count || !c->first || !c->member || !c->always ||
        !c->state || !c->touched) {
        return false;
    }
    memset(c->state, KNA_PIECE_OPEN, b.piece);
    memset(c->touched, 0, b.piece);
    return true;
}

static int grow(kna_context *context, kna_index *index, int64_t pieces)
{
    kna__clusters bigger = { 0 }, *old = &index->clusters;
    layout b = layout_of(index, pieces), before = layout_of(index, old->capacity);
    bigger.capacity = pieces;
    if (!allocate(index, &bigger)) {
        release(index, &bigger);
        return KNA_FAIL(context, KNA_ENOMEM, "index: out of memory for %lld rows", (long long)(pieces * KNA_PIECE));
    }
    move(bigger.key, old->key, index->heads, b.key, before.key);
    move(bigger.value, old->value, index->heads, b.value, before.value);
    move(bigger.spread, old->spread, index->heads, b.number, before.number);
    move(bigger.deviation, old->deviation, index->heads, b.number, before.number);
    move(bigger.norm, old->norm, index->heads, b.number, before.number);
    move(bigger.count, old->count, index->heads, b.short_number, before.short_number);
    move(bigger.first, old->first, index->heads, b.short_number, before.short_number);
    move(bigger.member, old->member, index->heads, b.member, before.member);
    move(bigger.always, old->always, index->heads, b.flag, before.flag);
    if (old->capacity) {
        memcpy(bigger.state, old->state, before.piece);
        memcpy(bigger.touched, old->touched, before.piece);
    }
    release(index, old);
    *old = bigger;
    return KNA_OK;
}

int kna__clusters_reserve(kna_context *context, kna_index *index, int64_t rows)
{
    int64_t pieces = (rows + KNA_SEGMENT - 1) / KNA_SEGMENT * KNA_SEGMENT_PIECES;
    int64_t roomy = (index->clusters.capacity + index->clusters.capacity / 4) / KNA_SEGMENT_PIECES * KNA_SEGMENT_PIECES;
    if (pieces <= index->clusters.capacity) {
        return KNA_OK;
    }
    return grow(context, index, pieces > roomy ? pieces : roomy);
}

/* Rows of a cluster are written in ascending order when it is formed. */
int64_t kna__cluster_rows(const kna__clusters *c, int64_t head, int64_t slot, int32_t *ids)
{
    int64_t piece = slot / KNA_SLOTS, unit = kna__unit_row(c, piece), at = kna__cluster_slot(c, head, slot);
    const uint16_t *member = c->member + head * c->capacity * KNA_PIECE + unit + c->first[at];
    for (int64_t i = 0; i < c->count[at]; i++) {
        ids[i] = (int32_t)(unit + member[i]);
    }
    return c->count[at];
}

/* The cluster that holds a row is read in full from now on. */
static void mark(kna__clusters *c, int64_t head, int64_t row)
{
    int64_t piece = row / KNA_PIECE, unit = kna__unit_row(c, piece), slots = kna__unit_rows(c, piece) / KNA_PIECE * KNA_SLOTS;
    const uint16_t *member = c->member + head * c->capacity * KNA_PIECE + unit;
    int64_t first_slot = kna__cluster_slot(c, head, unit / KNA_PIECE * KNA_SLOTS);
    for (int64_t s = first_slot; s < first_slot + slots; s++) {
        for (int64_t i = 0; i < c->count[s]; i++) {
            if (member[c->first[s] + i] == (uint16_t)(row - unit)) {
                c->always[s] = 1;
                return;
            }
        }
    }
}

static void open_unit(kna__clusters *c, int64_t piece)
{
    int64_t first = kna__unit_row(c, piece) / KNA_PIECE, pieces = kna__unit_rows(c, piece) / KNA_PIECE;
    memset(c->state + first, KNA_PIECE_OPEN, (size_t)pieces);
}

static void touch_piece(kna_index *index, int64_t piece, int64_t first, int64_t end)
{
    kna__clusters *c = &index->clusters;
    if (c->state[piece] == KNA_PIECE_OPEN) {
        return;
    }
    int64_t touched = c->touched[piece] + end - first;
    c->touched[piece] = (uint8_t)(touched < 255 ? touched : 255);
    if (touched > TOUCHED_MOST) {
        open_unit(c, piece);
        return;
    }
    for (int64_t row = first; row < end; row++) {
        for (int64_t head = 0; head < index->heads; head++) {
            mark(c, head, row);
        }
    }
}

void kna__clusters_touch(kna_index *index, int64_t first, int64_t count)
{
    int64_t end = first + count, most = index->clusters.capacity * KNA_PIECE;
    end = end < most ? end : most;
    for (int64_t row = first > KNA_FIRST_ROWS ? first : KNA_FIRST_ROWS; row < end;) {
        int64_t piece = row / KNA_PIECE, stop = (piece + 1) * KNA_PIECE < end ? (piece + 1) * KNA_PIECE : end;
        touch_piece(index, piece, row, stop);
        row = stop;
    }
}

void kna__clusters_remove(kna_index *index, int64_t first, int64_t count)
{
    kna__clusters *c = &index->clusters;
    for (int64_t row = first; row < first + count; row = (row / KNA_PIECE + 1) * KNA_PIECE) {
        if (row / KNA_PIECE < c->capacity && c->state[row / KNA_PIECE] != KNA_PIECE_OPEN) {
            open_unit(c, row / KNA_PIECE);
        }
    }
}
