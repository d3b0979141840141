/*
 * backward_tile.h - a tile of rows and a tile of keys: what their pairs add to the gradients (backward.h has the formulas), by
 * matrix products.
 */
#ifndef KNA_BACKWARD_TILE_H
#define KNA_BACKWARD_TILE_H

#include "backward.h"

enum { KNA_BACKWARD_ROWS = 192, KNA_BACKWARD_KEYS = 128 };

/* A worker's room. */
typedef struct kna__backward_room {
    float *k, *kt, *v, *vt; /* (KEYS, d), (d, KEYS), and of values */
    float *weights, *slopes, *turned;
    float *raw;  /* products before the soft cap */
    float *part; /* (KEYS, max(d, dv)) gradients of scattered keys */
} kna__backward_room;

typedef struct kna__backward_pair {
    int64_t kv_head;
    int64_t row, rows;    /* of the KV head */
    int64_t first, count; /* keys */
    const int32_t *ids;   /* or these, which every row sees whole: no mask, no causality; NULL: first .. first + count - 1 */
    kna__backward_rows at;
    float *dq; /* (rows, d), added to; the scale is not yet in it. NULL: not wanted */
} kna__backward_pair;

void kna__backward_room_cut(kna__backward_room *room, const kna__problem *problem, kna__cutter *cutter);
/* Whether any of the rows sees any of the keys. */
bool kna__backward_sees(const kna__problem *problem, const kna__backward_pair *pair);
/* The pair's keys and values into the room: once for all pairs with the same ones. */
void kna__backward_read(const kna__problem *problem, const kna__backward_pair *pair, kna__backward_room *room);
/* Adds to dk and dv of the call's gradients, and to the pair's dq. */
void kna__backward_add(const kna__backward *backward, const kna__backward_pair *pair, kna__backward_room *room);

/* dS of a row before its soft cap: `slopes` times the cap's slope at the products `raw`, which become capped. */
void kna__backward_uncap(const kna__problem *problem, float *slopes, float *raw, int64_t count);
/* `to` (count, dim) at ldt += or = x' y; x (rows, count) at KNA_BACKWARD_KEYS, y (rows, dim). */
void kna__backward_turned(const kna__problem *problem, kna__backward_room *room, float *to, int64_t ldt, const float *x,
                          const float *y, int64_t rows, int64_t count, int64_t dim, bool accumulate);

#endif
