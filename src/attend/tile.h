/*
 * tile.h - a tile of query rows against tiles of keys, by matrix products with an online softmax between them (Dao et al. 2022).
 *
 * Keys and values are widened to f32 once per tile of rows. Invariant: a row's state covers the keys given so far, each once.
 */
#ifndef KNA_TILE_H
#define KNA_TILE_H

#include "problem.h"

enum { KNA_TILE_KEYS = 64 /* key panel, value panel and half the scores stay in a 32 KiB first-level cache at d = 64 */ };

typedef struct kna__tile {
    const kna__problem *problem;
    int64_t kv_head, row, rows; /* which rows of the problem */
    int64_t mute;               /* the first of them, of which only the state is wanted: their values are not mixed */
    float *q;                   /* (rows, d) scaled */
    float *panel;               /* (KEYS, max(d, dv)) keys before transposing, then values */
    float *kt;                  /* (d, KEYS) */
    float *s;                   /* (rows, KEYS) */
    float *out;                 /* (rows, dv) */
    kna__state *state;
} kna__tile;

/* A room for `rows` rows, cut off a block; with a NULL base only counted. */
void kna__tile_cut(kna__tile *tile, const kna__problem *problem, int64_t rows, kna__cutter *cutter);
/* Starts on rows row .. row + rows - 1 of a KV head. */
void kna__tile_begin(kna__tile *tile, int64_t kv_head, int64_t row, int64_t rows);
/* Keys first .. first + count - 1, count <= KNA_TILE_KEYS, each row as far as it sees them. */
void kna__tile_keys(kna__tile *tile, int64_t first, int64_t count);
/* Scattered keys that every row sees whole: no mask, no causality. */
void kna__tile_ids(kna__tile *tile, const int32_t *ids, int64_t count);
/* Row r's maximum is at least `max`: what it holds becomes relative to that. */
void kna__tile_raise(kna__tile *tile, int64_t r, float max);
/* Leaves the first rows out from here on. */
void kna__tile_skip(kna__tile *tile, int64_t rows);
/* Writes the results. */
void kna__tile_end(kna__tile *tile);

#endif
