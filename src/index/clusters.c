/* clusters.c - the clusters of an index: made room for, marked when rows change, opened when too many did. */
#include "clusters.h"
#include "index.h"

/* Rows written in a formed piece before it is opened; until then the clusters they are in are read in full. */
enum { TOUCHED_MOST = 32 };

/* All arrays lie in one block; a walk goes over it, array after array, and over the block that it replaces, if there is one. */
typedef struct walk {
    kna__cutter to, from;
    int64_t pieces, old_pieces;
} walk;

/* The next array: so many bytes per piece for each head. What the old one held is taken over. */
static void *place(walk *w, int64_t heads, size_t bytes)
{
    size_t all = kna__size_product((size_t)w->pieces, bytes), old = kna__size_product((size_t)w->old_pieces, bytes);
    char *to = kna__cut(&w->to, (size_t)heads, all);
    const char *from = kna__cut(&w->from, (size_t)heads, old);
    for (int64_t head = 0; to && from && head < heads; head++) {
        memcpy(to + (size_t)head * all, from + (size_t)head * old, old);
    }
    return to;
}

/* An array more is a line more. */
static void place_all(kna__clusters *c, const kna_index *index, walk *w)
{
    const size_t slots = KNA_SLOTS, rows = KNA_PIECE, d = (size_t)index->d, dv = (size_t)index->dv;
    for (int i = 0; i < KNA_LEVELS; i++) {
        kna__level *level = &c->level[i];
        const size_t means = i == KNA_GROUPS ? KNA_PIECE_GROUPS : slots;
        level->key = place(w, index->heads, means * d * sizeof *level->key);
        level->value = place(w, index->heads, means * dv * sizeof *level->value);
        level->spread = place(w, index->heads, means * sizeof *level->spread);
        level->deviation = place(w, index->heads, means * sizeof *level->deviation);
        level->count = place(w, index->heads, means * sizeof *level->count);
    }
    c->norm = place(w, index->heads, slots * sizeof *c->norm);
    c->first = place(w, index->heads, slots * sizeof *c->first);
    c->member = place(w, index->heads, rows * sizeof *c->member);
    c->step = place(w, index->heads, slots * sizeof *c->step);
    c->code = place(w, index->heads, rows / KNA_QUAD * kna__code_chunks(index->d) * KNA_QUAD_BYTES);
    c->always = place(w, index->heads, slots * sizeof *c->always);
    c->state = place(w, 1, sizeof *c->state);
    c->touched = place(w, 1, sizeof *c->touched);
    c->capacity = w->pieces;
    c->bytes = w->to.used;
}

size_t kna__clusters_bytes(const kna_index *index)
{
    return index->clusters.bytes;
}

void kna__clusters_release(kna_index *index)
{
    kna__release(index->heap, index->clusters.block, index->clusters.bytes);
    memset(&index->clusters, 0, sizeof index->clusters);
}

static int grow(kna_context *context, kna_index *index, int64_t pieces)
{
    kna__clusters bigger, *old = &index->clusters;
    walk counting = { .pieces = pieces };
    place_all(&bigger, index, &counting);
    bigger.block = kna__allocate(index->heap, bigger.bytes);
    if (!bigger.block) {
        return KNA_FAIL(context, KNA_ENOMEM, "index: out of memory for %lld rows", (long long)(pieces * KNA_PIECE));
    }
    walk moving = { { bigger.block, 0 }, { old->block, 0 }, pieces, old->capacity };
    place_all(&bigger, index, &moving);
    memset(bigger.state + old->capacity, KNA_PIECE_OPEN, (size_t)(pieces - old->capacity));
    memset(bigger.touched + old->capacity, 0, (size_t)(pieces - old->capacity));
    kna__clusters_release(index);
    *old = bigger;
    return KNA_OK;
}

int kna__clusters_reserve(kna_context *context, kna_index *index, int64_t rows)
{
    int64_t pieces = (rows + KNA_PIECE - 1) / KNA_PIECE, roomy = index->clusters.capacity + index->clusters.capacity / 8;
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
    for (int64_t i = 0; i < c->level[KNA_CLUSTERS].count[at]; i++) {
        ids[i] = (int32_t)(unit + member[i]);
    }
    return c->level[KNA_CLUSTERS].count[at];
}

/* The cluster that holds a row is read in full from now on. */
static void mark(kna__clusters *c, int64_t head, int64_t row)
{
    int64_t piece = row / KNA_PIECE, unit = kna__unit_row(c, piece), slots = kna__unit_rows(c, piece) / KNA_PIECE * KNA_SLOTS;
    const uint16_t *member = c->member + head * c->capacity * KNA_PIECE + unit;
    int64_t first_slot = kna__cluster_slot(c, head, unit / KNA_PIECE * KNA_SLOTS);
    for (int64_t s = first_slot; s < first_slot + slots; s++) {
        for (int64_t i = 0; i < c->level[KNA_CLUSTERS].count[s]; i++) {
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
