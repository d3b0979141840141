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

/* Row (head - its block's first head) * queries + (query - its block's first query). */
typedef struct kna__lists {
    int64_t *first; /* (rows + 1) the room of a row: entries first[row] .. first[row + 1] - 1 */
    int64_t *count; /* (rows) of which so many are used */
    int64_t *fixed; /* (rows) */
    float *weight;  /* (rows) what a row's gradients are multiplied by: 1 where every row is looked at */
    int32_t *keys;
    float *shares, *slopes; /* slopes: room for dS */
} kna__lists;

/* All heads of some KV heads, and a block of queries. */
typedef struct kna__lists_block {
    int64_t kv_head, kv_heads, query, queries;
} kna__lists_block;

void kna__lists_cut(kna__lists *lists, int64_t rows, int64_t entries, kna__cutter *cutter);

/* Writes dq of the block's rows, and adds to dk and dv. Clobbers shares. */
void kna__lists_differentiate(const kna__backward *backward, kna__lists *lists, kna__lists_block block);

#endif
