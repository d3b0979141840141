/*
 * near.h - attention that reads few keys: what near.c (the call), near_head.c (which keys are read in full) and near_row.c
 * (one row's softmax) share.
 *
 * A call goes by tiles of queries. Per tile, two parallel steps: scan (int8 scores of all keys for all rows of the tile, cut by
 * KV head and by blocks of keys, so that a single query still keeps every thread busy), then rows (each row by itself).
 *
 * Invariant of a row: every visible key is in exactly one of the exact list or the tail; a tail key stands in a block whose 16
 * rows the query all sees ("whole"), and gets the weight exp(mean approximate logit of the block's tail keys). Blocks seen in
 * part go to the exact list entirely.
 */
#ifndef KNA_NEAR_H
#define KNA_NEAR_H

#include "problem.h"

/* What one row did, for the report. */
typedef struct near_stats {
    float keys_seen, keys_full, bytes_share, tail_mass;
    float error_est;   /* negative: not estimated */
    float audit_error; /* negative: not audited */
    int32_t stale;
    bool exact;
} near_stats;

typedef struct near_job {
    const kna__problem *problem;
    const kna_index *index;
    int64_t query, queries; /* this tile */
    int64_t tile;           /* queries per tile */
    int64_t ld;             /* scores per row: n rounded up to whole blocks */
    int64_t chunks;         /* scan tasks per KV head */
    float *q;               /* (h_kv, tile * g, d) scaled */
    int8_t *q_i8;           /* (h_kv, tile * g, 4 d4) */
    int8_t *q_rest;         /* top-k only: what q_i8 left over, again int8 */
    float *q_scale, *rest_scale; /* (h_kv, tile * g) */
    float *q_lost;          /* top-k only: sum |what both left over| (h_kv, tile * g) */
    float *scores;          /* (h_kv, tile * g, ld) */
    near_stats *stats;      /* (m, h) */
    float *audits;          /* (m h) errors of the audited rows, for their quantile */
    char *rooms;
    size_t room_bytes;
    float scale_max;        /* largest scale of any key */
} near_job;

/* A worker's room for one row; arrays of ld entries unless said. */
typedef struct near_room {
    int32_t *ids;           /* exact list */
    float *exact;           /* its logits, then weights */
    float *approx;          /* its approximate logits */
    int32_t *found, *found_scratch;
    float *topk_scratch;    /* 2 ld / 16 + 1 + ld */
    float *tail_sum;        /* per block: sum of approximate logits of its tail keys */
    float *tail_count;      /* per block: how many tail keys (0: not whole, or empty) */
    float *tail_weight;     /* per block: weight of each tail key */
    float *work;            /* ld */
    float *values;          /* dv: the row's sum of weighted values */
    float *audit;           /* dv */
} near_room;

/* The row being worked on. */
typedef struct near_row {
    const near_job *job;
    near_room room;
    const float *q;
    float *s;               /* approximate logits; -inf: not seen, or taken into the exact list */
    int64_t kv_head, head, query, lo, hi;
    int64_t first_block, end_block;
    int64_t seen, listed, whole; /* visible keys, keys on the exact list, whole blocks */
    int64_t untaken;        /* keys in whole blocks not on the exact list */
    int64_t scored;         /* keys whose logit was computed in full; for top-k more than are listed */
    float q_l1;             /* sum |q| */
    int32_t stale;          /* scored keys that the index describes otherwise */
} near_row;

near_room kna__near_room(const near_job *job, int worker, char *base, size_t *bytes);

/* near_head.c */
void kna__near_see(near_row *row);                 /* finish logits, sort blocks, list what must be read in full */
void kna__near_take(near_row *row, int64_t k);     /* the k nearest of the rest into the list */
void kna__near_untake(near_row *row, int64_t to);  /* shorten the list to `to` keys again */
void kna__near_topk(near_row *row, int64_t k);     /* the list = exactly the k nearest, scored in full */

/* near_row.c */
void kna__near_attend(near_row *row, near_stats *stats);
/* Keys `ids`, whose approximate logits are at approx, but the cache now says exact: how many differ by more than int8 can. */
int32_t kna__near_stale(const near_row *row, const int32_t *ids, const float *approx, const float *exact, int64_t count);

int kna__attend_near(const kna__problem *problem, const kna_index *index, kna_report *report);

#endif
