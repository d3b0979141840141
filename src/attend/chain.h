/*
 * chain.h - how many draws each query takes: the plan of gradients from keys drawn by the softmax (option chain).
 */
#ifndef KNA_CHAIN_H
#define KNA_CHAIN_H

#include "lists.h"

typedef struct kna__chain_plan {
    const kna__backward *b;
    double *running; /* (threads, m) sums of what queries are drawn by */
    int64_t *draws;  /* (h,m) of a query; NULL: option samples for every one */
    float *weight;   /* (h,m) KNA_CHAIN_JOINT: draws taken over draws expected */
    int32_t *steps;  /* (h,m,dv) KNA_CHAIN_SIGNED: of which so many for a column of dout */
    double *sums;    /* (h,dv) KNA_CHAIN_SIGNED: of |dout|, a column over all queries */
} kna__chain_plan;

void kna__chain_cut(kna__chain_plan *plan, kna__cutter *cutter);
/* Queries by chance: random numbers are of streams of their own, none of any row's. */
void kna__chain_draw(kna__chain_plan *plan);
/* KNA_CHAIN_SIGNED: what a block's draws add to dv. */
void kna__chain_add_signed(const kna__chain_plan *plan, const kna__lists *lists, kna__lists_block block);

#endif
