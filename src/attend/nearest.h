/*
 * nearest.h - attention to the k nearest keys, found exactly: what nearest.c (the call), nearest_row.c (one row), nearest_head.c (its
 * head), landmarks.c (keys in every head) and nearest_tail.c (a mean for the rest) share.
 *
 * A call goes by tiles of queries. Per tile, two parallel steps: scan (int8 scores of all keys for all rows of the tile, cut by
 * KV head and by blocks of keys, so that a single query still keeps every thread busy), then rows (each row by itself).
 */
#ifndef KNA_NEAREST_H
#define KNA_NEAREST_H

#include "diverse.h"
#include "report.h"
#include "strata.h"

/* Keys by their groups. */
typedef struct nearest_groups {
    int32_t *keys;  /* (n) those of group 0, ascending, then of group 1 .. */
    int64_t *first; /* (groups + 1) places in keys */
} nearest_groups;

/* Keys that have the most softmax of the queries of a head, for each block of queries. */
typedef struct nearest_landmarks {
    int64_t count, blocks; /* at most so many a set; sets: 1 where queries have no order */
    bool has_order;
    int32_t *keys;  /* (h, blocks, count) */
    int32_t *found; /* (h, blocks) how many there are */
    float *rooms;   /* (threads, n) */
    float *mass;    /* (threads, n rounded up to blocks) */
    int32_t *ids;   /* (threads, 2 n, likewise) */
    float *scratch; /* (threads, 2 n + n / 16 + 1, likewise) */
} nearest_landmarks;

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
    float scale_max;       /* largest scale of any key */
    float *v_norm;         /* (h_kv, ld) |v|, for certificates */
    kna__strata strata;    /* where the method or a bound needs them */
    bool stratified, scan; /* whether there are strata; whether keys are scanned: an index of clusters finds the head by these */
    nearest_groups groups; /* option key_groups */
    nearest_landmarks landmarks; /* option landmarks */
    double *value_sums;          /* (h_kv, n / KNA_VALUE_STEP + 1, dv): of all values before so many rows; option tail */
} nearest_job;

/* A worker's room for one row; arrays of ld entries unless said. */
typedef struct nearest_room {
    int32_t *ids;  /* exact list */
    float *exact;  /* its logits, then weights */
    float *approx; /* its approximate logits; its logits, where exact holds weights */
    int32_t *found, *found_scratch;
    float *topk_scratch; /* 2 ld / 16 + 1 + ld */
    float *work;         /* ld */
    float *values;       /* dv: the row's sum of weighted values */

    /* For heads that are not the k nearest keys. */
    kna__pool pool; /* its logits are `exact` */
    float *part;    /* scores of a group */
    float *marked;  /* logits of keys that are in the head already; -inf: they are not */

    /* For methods that sample. */
    double *sums;                /* of the head's weights */
    double *doubles;             /* 5 dv and 2 dv for each stratum */
    struct kna__stratum *strata; /* option key_group_count, or 1 */
    int32_t *drawn;              /* option samples */
    float *groups, *column;      /* (option groups, dv) and one column of that */
    kna__cells cells;
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
    int64_t mixed;        /* values read */
    int64_t rejected;     /* keys that were to choose from and are not listed */
    float bound;          /* no logit of a key that is not listed is above; without a scan that is not so: the least of the head */
    float q_l1;           /* sum |q| */
    double v_most;        /* largest |v| of what it sees, for certificates */
    int32_t stale;        /* scored keys that the index describes otherwise */
} nearest_row;

nearest_room kna__nearest_room(const nearest_job *job, int worker, char *base, size_t *bytes);

void kna__nearest_attend(nearest_row *row, kna__row_stats *stats);

/* nearest_head.c - keys by group; the row's head, of more keys that it sees than option k_near. */
void kna__groups_sort(const kna__problem *problem, nearest_groups *groups);
void kna__head_choose(nearest_row *row);

/* landmarks.c - room; all sets of a call; those of a row, returns how many. */
void kna__landmarks_cut(nearest_landmarks *landmarks, const kna__problem *problem, kna__cutter *cutter);
void kna__landmarks_find(nearest_job *job);
int64_t kna__landmarks_of(const nearest_landmarks *landmarks, int64_t head, int64_t query, const int32_t **keys);

/* nearest_tail.c - the sums of one KV head's values; the mean value of what a row sees and has not listed. Returns how many values it
 * read. */
enum { KNA_VALUE_STEP = 64 };
void kna__tail_sum(void *job, int64_t kv_head, int worker);
int64_t kna__tail_mean(const nearest_row *row, double *mean);

/* strata_row.c - which cells a row uses; room->cells.of says of each key which one it is in. */
void kna__cells_see(nearest_row *row);
/* The head of a row without a scan: the k nearest of the keys in the cells whose means are nearest, 4 k of them. */
void kna__cells_find_head(nearest_row *row, int64_t k);
/* What is in no cell joins the head, which is on the list. */
void kna__cells_add_loose(nearest_row *row);
/* Keys of the cells outside the head into `tail`, cell by cell; returns how many. */
int64_t kna__cells_list_tail(nearest_row *row, int32_t *tail);
/* Their means, bounds and masses, relative to exp(shift); no logit of the tail is above `bound`. */
void kna__cells_weigh(nearest_row *row, double shift, double bound);
/* The value of a cell's keys outside the head, in the mean (dv). */
void kna__cells_mean_value(const nearest_row *row, int64_t cell, double *mean);
/* Bytes of means read, over those of a key and its value. */
double kna__cells_read(const nearest_row *row);
/*
 * How far `out` may be from exact attention, by these bounds alone. head: softmax sum of the head and a sink; known (dv) its weighted
 * values; loose keys are in neither, and none weighs more than exp(bound).
 */
double kna__cells_radius(const nearest_row *row, const double *out, double head, const double *known, int64_t loose, double bound);

/* How far the scanned logit of a key may be from the true one. */
float kna__scan_error(const nearest_row *row, int32_t key);

int kna__attend_nearest(const kna__problem *problem, const kna_index *index, kna_report *report);

#endif
