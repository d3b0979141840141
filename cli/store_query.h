/*
 * store_query.h - queries from a file or a store's own rows, which documents may be found, and the search itself: what `kna store search`
 * and `kna store recall` share.
 */
#ifndef KNA_CLI_STORE_QUERY_H
#define KNA_CLI_STORE_QUERY_H

#include "npy.h"
#include "store.h"

typedef struct query_request {
    const char *family;
    store_choice choice;
    int metric; /* a kna_metric */
    int64_t k, probes, threads;
    double recall;
} query_request;
extern const cli_option query_options[];  /* --family, --k, --metric, --probes, --recall, --threads */
extern const cli_option choice_of_options[]; /* --tag, --uri-prefix, --filter */

typedef struct queries {
    const char *path; /* NULL: drawn from the store */
    npy_array array;
    float *drawn;
    kna_rows rows;
} queries;

/* All return CLI_OK or an exit code, having printed why. */
int queries_read(queries *q, const store_target *target, int family, const char *path);
int queries_draw(queries *q, const store_target *target, int family, int64_t count, uint64_t seed);
void queries_free(queries *q);

/* A search among the documents chosen. Close search first, then free ids. */
typedef struct query_search {
    kna_search *search;
    int64_t *ids;
    int64_t count;
} query_search;
int query_search_open(query_search *s, const store_target *target, const query_request *r, int family, int index);
void query_search_close(query_search *s);

/* Hits (m,k) and counts (m), owned by the caller. */
typedef struct query_hits {
    kna_hit *hits;
    int64_t *counts;
    kna_search_report report;
} query_hits;
int query_run(query_hits *to, const store_target *target, const query_search *s, const queries *q, const kna_search_how *how);
void query_hits_free(query_hits *hits);

/* "flat", or "none (there is none)": what was used and why nothing else. */
const char *query_index_text(char text[100], const kna_search_report *report);

#endif
