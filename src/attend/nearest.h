/*
 * nearest.h - attention to the k nearest keys, found exactly: what nearest.c (the call) and nearest_row.c (one row) share.
 *
 * A call goes by tiles of queries. Per tile, two parallel steps: scan (int8 scores of all keys for all rows of the tile, cut by
 * KV head and by blocks of keys, so that a single query still keeps every thread busy), then rows (each row by itself).
 */
#ifndef KNA_NEAREST_H
#define KNA_NEAREST_H

#include "report.h"

typedef struct nearest_job {
    const kna__problem *problem;
    const kna_index *index;
    int64_t query, queries;      /* this tile */
    int64_t tile;                /* queries per tile */
    int64_t ld;                  /* scores per row: n rounded up to whole blocks */
    int64_t chunks;              /* scan tasks per KV head */
    float *q;                    /* (h_kv, tile * g, d) scaled */
    int8_t *q_i8;                /* (h_kv, tile * g, 4 d4) */
    int8_t *q_rest;              /* what q_i8 left over, again int8 */
    float *q_scale, *rest_scale; /* (h_kv, tile * g) */
    float *q_lost;               /* sum |what both left over| (h_kv, tile * g) */
    float *scores;               /* (h_kv, tile * g, ld) */
    kna__row_stats *stats;       /* (m, h) */
    float *audits;               /* (m h) errors of the audited rows, for their quantile */
    char *rooms;
    size_t room_bytes;
    float scale_max; /* largest scale of any key */
    double *v_most;  /* (h_kv) largest |v|, for a finite certificate */
} nearest_job;

/* A worker's room for one row; arrays of ld entries unless said. */
typedef struct nearest_room {
    int32_t *ids;  /* exact list */
    float *exact;  /* its logits, then weights */
    float *approx; /* its approximate logits */
    int32_t *found, *found_scratch;
    float *topk_scratch; /* 2 ld / 16 + 1 + ld */
    float *work;         /* ld */
    float *values;       /* dv: the row's sum of weighted values */

    /* For methods that sample. */
    double *sums;           /* of the head's weights */
    double *doubles;        /* 7 dv */
    int32_t *drawn;         /* option samples */
    float *groups, *column; /* (option groups, dv) and one column of that */
} nearest_room;

/* The row being worked on. */
typedef struct nearest_row {
    const nearest_job *job;
    nearest_room room;
    const float *q;
    float *s; /* approximate logits; -inf: not seen */
    int64_t kv_head, head, query, lo, hi;
    int64_t first_block, end_block;
    int64_t seen, listed; /* visible keys, keys on the list */
    int64_t scored;       /* keys whose logit was computed in full: more than are listed */
    float q_l1;           /* sum |q| */
    int32_t stale;        /* scored keys that the index describes otherwise */
} nearest_row;

nearest_room kna__nearest_room(const nearest_job *job, int worker, char *base, size_t *bytes);

void kna__nearest_attend(nearest_row *row, kna__row_stats *stats);

int kna__attend_nearest(const kna__problem *problem, const kna_index *index, kna_report *report);

#endif
