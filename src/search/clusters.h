/*
 * clusters.h - lists of rows that lie close together, and which of them a query looks into.
 *
 * What a list promises a query is the score of its center, and alpha times how far its rows' scores usually are from that:
 *     <q', center> (l2: - |center|^2) + alpha |q'| spread
 * Those that promise most are looked into. How many that takes, and alpha, are measured when the index is made (aims.c).
 */
#ifndef KNA_CLUSTERS_H
#define KNA_CLUSTERS_H

#include "lloyd.h"
#include "search.h"

/* Centers as queries meet them. */
int kna__probe_pack(kna_context *context, kna__packed *packed, const float *centers, uint64_t lists, uint64_t dim, int metric);
/* promises: (16 blocks of packed); behind the last list far below all others. */
void kna__promises(const kna__kernels *kernels, float *promises, const kna__packed *packed, const float *spreads, float alpha,
                   const kna__query *query);

/* ---- probe.c */

typedef struct kna__probe {
    const kna__packed *packed;
    const float *centers, *spreads, *squares; /* squares: |center|^2 */
    float alpha;
    uint64_t probes;
    int32_t *picked;                /* (queries, probes) */
    float *bases;                   /* likewise: products with the centers */
    kna__look *looks;               /* likewise, by list */
    uint64_t *first;                /* (lists + 1) */
    uint64_t *active, active_count; /* (lists) those anybody looks into */
    float *rooms;
    size_t room_numbers;
} kna__probe;

void kna__probe_cut(kna__probe *probe, const kna__search_job *job, kna__cutter *cutter);
/* Fill job->looks for its block of queries. */
void kna__probe_lists(kna__search_job *job, kna__probe *probe);

/* How many lists this recall takes, of so many nearest rows: as measured, in between as a power of how many, behind it in proportion. */
uint64_t kna__probes_for(const kna__index_head *head, double recall, double nearest);
double kna__aim(int i); /* 0 .. KNA_AIMS - 1 */

/* ---- aims.c */

/* An index that is being made. */
typedef struct kna__aims_data {
    const kna__rows *rows;
    const uint32_t *ids; /* (count) rows in lists, ascending */
    uint64_t count;
    const uint32_t *to; /* (count) the list of each */
    const float *centers, *spreads;
    uint64_t lists;
    int metric;
} kna__aims_data;

/* Fill alpha and probes of the head: for the 10, 100 and 1000 nearest rows of `queries`, or, NULL, of rows themselves, which are then not counted among
 * their own nearest. KNA_OK, KNA_ENOMEM, KNA_EDAMAGED. */
int kna__measure_aims(kna_context *context, kna__index_head *head, const kna__aims_data *data, const kna_rows *queries);

/* m of them, evenly spread, as f32: out (m, dim). */
void kna__take_queries(const kna__kernels *kernels, float *out, const kna_rows *from, uint64_t m);

/* build_clusters.c */
int kna__build_clusters(const kna__rows *rows, const kna_store_index_options *options, uint32_t *ids, uint64_t count, float *turn);

#endif
