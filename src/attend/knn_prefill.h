/*
 * knn_prefill.h - a tile of rows of kNN attention, as knn_prefill.c computes it and knn_backward.c differentiates it.
 *
 * A tile of neighbouring queries, with all query heads of a KV head, shares a choice of clusters; the heads of a query choose some
 * more for themselves. A trace keeps who chose what: the sets that are held fixed when the result is differentiated.
 */
#ifndef KNA_KNN_PREFILL_H
#define KNA_KNN_PREFILL_H

#include "knn.h"
#include "tile.h"

typedef struct prefill_job {
    knn_call *call;
    int64_t tile;   /* query rows per task: whole queries */
    int64_t tiles;  /* per KV head */
    int64_t pieces; /* most of any plan */
    char *rooms;
    size_t room_bytes;
} prefill_job;

/* Clusters of one level as the rows weigh them: (rows, list.size) mean logits, then masses. */
typedef struct prefill_means {
    knn_list list;
    float *z;
} prefill_means;

/* Clusters by their numbers in the tile's list. */
typedef struct prefill_trace {
    int32_t *shared;
    int64_t shared_count;
    int32_t *own; /* (queries, own_most): what the heads of each share */
    int32_t *own_count;
    int64_t own_most;
    float *group_base; /* rows, those that only chose with them: what masses of groups are relative to */
    int64_t probe_rows;
} prefill_trace;

typedef struct prefill_room {
    kna__tile tile;
    knn_plan plan;
    knn_choice choice;
    prefill_means groups, clusters;
    bool is_deep;
    int64_t choosers;     /* rows that choose for the tile, from the first on */
    float mean_square;    /* of |q|, over these */
    float error;          /* estimated for groups left closed; negative: nobody asked */
    float *half_square;   /* rows */
    double *tail;         /* rows: masses left to means */
    float *max;           /* rows: what they are relative to */
    float *base;          /* rows: what their masses are relative to */
    double *total;        /* rows: all of softmax, as far as known when clusters were weighed; relative to the same */
    float *errors;        /* rows */
    int32_t *ids;         /* of a panel, and of one cluster more */
    knn_codes codes;      /* of the heads of a query */
    double *log_total;    /* of each of them: log of all of softmax */
    knn_members members;  /* of the clusters they choose for themselves */
    knn_tally *own;       /* rows: what has been read of those */
    prefill_trace *trace; /* NULL: nobody wants one */
} prefill_room;

/* The tile's size for the block of queries, and how many there are; a room; the tile of a task (kv_head, tile), but for writing it. */
void kna__knn_prefill_begin(prefill_job *job);
prefill_room kna__knn_prefill_room(const prefill_job *job, char *base, size_t *bytes);
void kna__knn_prefill_trace_cut(prefill_trace *trace, const prefill_job *job, kna__cutter *cutter);
void kna__knn_prefill_tile(const prefill_job *job, prefill_room *room, int64_t task);

#endif
