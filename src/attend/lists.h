/*
 * lists.h - rows of attention as lists of keys, each with its share of the softmax: all that gradients need to know of a call that
 * looked at few keys. Those who attend fill lists (sampled_list.c, rival_lsh.c); backward_list.c differentiates them.
 *
 * The first `fixed` entries of a row are keys whose share is what it is: of frozen sets, all of them. The others are independent
 * draws from what the fixed ones leave of the softmax, with equal shares that add up to that.
 */
#ifndef KNA_LISTS_H
#define KNA_LISTS_H

#include "backward.h"
#include "strata.h"

/*
 * Cells of keys whose means stand in a row's softmax for what of them is not in its head: as the sum of their members less those of the
 * head. Of a row they are where its entries are, from first[row] on.
 */
typedef struct kna__list_cells {
    kna__strata strata;
    int64_t *count;  /* (rows) */
    int32_t *cell;   /* as numbered in strata */
    int32_t *rest;   /* members that are not in the head */
    float *shares;   /* of the softmax; later of one member */
    float *slopes;   /* likewise dS */
    float *pulls;    /* what the mean key adds to dq */
    double *masses;  /* before their sum is known; later <dout, mean value> */
    double *weights; /* (entries) of keys, before their sum is known */
    int32_t *in;     /* (entries) which of its row's cells a key of the head is in; -1: none */
    float *dk, *dv;  /* (h_kv, cells of all levels, d or dv): what every member gets; NULL: not wanted */
} kna__list_cells;

/* Row (head - its block's first head) * queries + (query - its block's first query). */
typedef struct kna__lists {
    int64_t *first; /* (rows + 1) the room of a row: entries first[row] .. first[row + 1] - 1 */
    int64_t *count; /* (rows) of which so many are used */
    int64_t *fixed; /* (rows) */
    float *weight;  /* (rows) what a row's gradients are multiplied by: 1 where every row is looked at */
    int32_t *keys;
    float *shares, *slopes; /* slopes: room for dS */
    kna__list_cells *cells; /* NULL: rows have none */
} kna__lists;

/* All heads of some KV heads, and a block of queries. */
typedef struct kna__lists_block {
    int64_t kv_head, kv_heads, query, queries;
} kna__lists_block;

void kna__lists_cut(kna__lists *lists, int64_t rows, int64_t entries, kna__cutter *cutter);

/* backward_cells.c - the part of cells. Room for them, their strata being known; dk and dv begin at zero. */
void kna__list_cells_cut(kna__list_cells *cells, const kna__backward *backward, int64_t rows, int64_t entries, kna__cutter *cutter);
/* Of a row: its cells' products with dout, given those of the keys (x), and their part of Delta; then what they add to dq. */
double kna__list_cells_delta(const kna__lists *lists, const kna__problem *problem, int64_t kv_head, int64_t row, const float *dout,
                             const float *x);
void kna__list_cells_tilt(const kna__lists *lists, const kna__problem *problem, int64_t kv_head, int64_t row, double delta);
void kna__list_cells_pull(const kna__lists *lists, const kna__problem *problem, int64_t kv_head, int64_t row, float *dq);
/* Adds x (from column on) to the gradients of a row's cells; in the end these go to their members. */
void kna__list_cells_add(const kna__lists *lists, const kna__problem *problem, int64_t kv_head, int64_t row, bool is_key,
                         const float *x, int64_t column, int64_t columns);
void kna__list_cells_spread(const kna__backward *backward, const kna__list_cells *cells);

/* Writes dq of the block's rows, and adds to dk and dv. Clobbers shares. */
void kna__lists_differentiate(const kna__backward *backward, kna__lists *lists, kna__lists_block block);

#endif
